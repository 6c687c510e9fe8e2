//! The static algorithm: diagonal, products and elements of F⁻¹ for gradients of the host's own.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;

use hone_core::engine::SignalsBlocked;
use hone_core::mfac::{BlockFixed, Fixed, GradientStore, Gradients};
use hone_core::prune::Damping;

use crate::arguments::{check_apart, check_len, give, given, slice, slice_mut, threads_or_all};
use crate::error::{guard, hone_error};
use crate::gradients::hone_gradients;
use crate::options::{self, Extensible};
use crate::prune::damping;

/// How to invert a Fisher. Zero means default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hone_fisher_options {
    /// sizeof(hone_fisher_options)
    pub size: usize,
    /// λ as a fraction of the mean Fisher diagonal; 0 means 0.01.
    pub damping: f64,
    /// λ itself, in units of a squared gradient; 0 means the fraction above.
    pub damping_absolute: f64,
    /// Weights per diagonal block of F, the last block may be shorter; 0 means one block: all of F.
    pub block: usize,
    /// Threads; 0 means one per core. Results do not depend on it.
    pub threads: u32,
    /// Must be 0.
    pub reserved: u32,
}

// SAFETY: plain data of C without padding that starts with its size.
unsafe impl Extensible for hone_fisher_options {}

/// F⁻¹ = (λI + (1/m) Σ g gᵀ)⁻¹ of m gradients g, or of the diagonal blocks of that, never formed.
/// Immutable: any number of threads may ask at once.
pub struct hone_fisher {
    // Dropped before the gradients it borrows.
    inverse: Inverse,
    damping: f64,
    threads: usize,
    store: Arc<GradientStore>,
}

enum Inverse {
    Full(Fixed<'static>),
    Blocks(BlockFixed<'static>),
}

/// Prepares the inverse Fisher of `gradients`, all of which must be there. `options` may be NULL.
///
/// Errors: CONFLICT when gradients are missing, NUMERICS when λ vanishes beside the gradients (the
/// message names a damping that does not).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_fisher_new(
    gradients: Option<&hone_gradients>,
    options: *const hone_fisher_options,
    out: Option<&mut MaybeUninit<*mut hone_fisher>>,
) -> Option<Box<hone_error>> {
    guard(|| {
        let (gradients, out) = (given(gradients, "gradients")?, given(out, "out")?);
        // SAFETY: the header asks for a struct of its size or NULL.
        let o = unsafe { options::read(options, "options") }?;
        options::check_reserved(o.reserved)?;
        let store = gradients.complete()?;
        let damping = match damping(o.damping, o.damping_absolute)? {
            Damping::Absolute(lambda) => lambda,
            Damping::Relative(fraction) => fraction * mean_diagonal(&store)?,
        };
        let threads = threads_or_all(o.threads);
        // SAFETY: the borrowed store is on the heap, in `store` for as long as `inverse` lives, and
        // nobody changes it: that takes the only reference (see `hone_gradients_push`).
        let all = unsafe { std::mem::transmute::<Gradients<'_>, Gradients<'static>>(store.all()) };
        let _blocked = SignalsBlocked::new();
        let inverse = if o.block == 0 {
            Inverse::Full(Fixed::precompute(all, damping, threads)?)
        } else {
            let blocks = blocks(store.dimension(), o.block);
            Inverse::Blocks(BlockFixed::precompute(all, blocks, damping, threads)?)
        };
        give(out, hone_fisher { inverse, damping, threads, store });
        Ok(())
    })
}

/// Ranges of `block` weights that cover `dimension` of them.
pub(crate) fn blocks(dimension: usize, block: usize) -> Vec<Range<usize>> {
    (0..dimension).step_by(block).map(|s| s..s.saturating_add(block).min(dimension)).collect()
}

/// The mean over the weights of (1/m) Σ g².
fn mean_diagonal(store: &GradientStore) -> Result<f64, hone_error> {
    let mut scratch = vec![0.0; store.dimension()];
    let mut sum = 0.0;
    for i in 0..store.count() {
        let row = store.all().row(i, 0..store.dimension(), &mut scratch);
        sum += row.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
    }
    if sum == 0.0 {
        return Err(hone_error::new(
            crate::error::hone_code::Numerics,
            "all gradients are zero, so the Fisher says nothing; use an absolute damping",
        ));
    }
    Ok(sum / store.count() as f64 / store.dimension() as f64)
}

/// The number of weights, d; 0 for NULL.
#[unsafe(no_mangle)]
pub extern "C" fn hone_fisher_dimension(fisher: Option<&hone_fisher>) -> usize {
    fisher.map_or(0, |f| f.store.dimension())
}

/// λ; 0 for NULL.
#[unsafe(no_mangle)]
pub extern "C" fn hone_fisher_damping(fisher: Option<&hone_fisher>) -> f64 {
    fisher.map_or(0.0, |f| f.damping)
}

/// The diagonal of F⁻¹ to `out`: `len` numbers, the dimension, each above 0 and at most 1/λ.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_fisher_diagonal(
    fisher: Option<&hone_fisher>,
    out: *mut f64,
    len: usize,
) -> Option<Box<hone_error>> {
    guard(|| {
        let fisher = given(fisher, "fisher")?;
        check_len(len, fisher.store.dimension(), "out")?;
        // SAFETY: the header asks for room for `len` numbers.
        let out = unsafe { slice_mut(out, len, "out") }?;
        let _blocked = SignalsBlocked::new();
        match &fisher.inverse {
            Inverse::Full(fixed) => fixed.diagonal(0..len, out, fisher.threads),
            Inverse::Blocks(fixed) => {
                for (index, block) in fixed.blocks().iter().enumerate() {
                    fixed.diagonal(index, &mut out[block.clone()]);
                }
            }
        }
        Ok(())
    })
}

/// F⁻¹x to `out`: `len` numbers each, the dimension; the two must not overlap.
///
/// Errors: NUMERICS when `x` is not finite.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_fisher_apply(
    fisher: Option<&hone_fisher>,
    x: *const f32,
    out: *mut f32,
    len: usize,
) -> Option<Box<hone_error>> {
    guard(|| {
        let fisher = given(fisher, "fisher")?;
        check_len(len, fisher.store.dimension(), "x")?;
        check_apart(x, len, out, len, "`x` and `out`")?;
        // SAFETY: the header asks for `len` numbers.
        let x = unsafe { slice(x, len, "x") }?;
        // SAFETY: the header asks for room for `len` numbers; they do not overlap `x`.
        let out = unsafe { slice_mut(out, len, "out") }?;
        if let Some(i) = x.iter().position(|x| !x.is_finite()) {
            let message = format!("`x`[{i}] is {}", x[i]);
            return Err(hone_error::new(crate::error::hone_code::Numerics, message));
        }
        let _blocked = SignalsBlocked::new();
        match &fisher.inverse {
            Inverse::Full(fixed) => fixed.apply(x, 0..len, out, fisher.threads),
            Inverse::Blocks(fixed) => fixed.apply(x, out, fisher.threads),
        }
        Ok(())
    })
}

/// `count` elements of F⁻¹: `out[k]` is that in row `rows[k]` and column `columns[k]`, in double
/// precision; 0 between blocks. Elements of the same block next to each other cost least.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_fisher_elements(
    fisher: Option<&hone_fisher>,
    rows: *const usize,
    columns: *const usize,
    out: *mut f64,
    count: usize,
) -> Option<Box<hone_error>> {
    guard(|| {
        let fisher = given(fisher, "fisher")?;
        check_apart(rows, count, out, count, "`rows` and `out`")?;
        check_apart(columns, count, out, count, "`columns` and `out`")?;
        // SAFETY: the header asks for `count` numbers.
        let rows = unsafe { slice(rows, count, "rows") }?;
        // SAFETY: the header asks for `count` numbers.
        let columns = unsafe { slice(columns, count, "columns") }?;
        // SAFETY: the header asks for room for `count` numbers; they overlap nothing.
        let out = unsafe { slice_mut(out, count, "out") }?;
        let d = fisher.store.dimension();
        if let Some(wrong) = rows.iter().chain(columns).find(|&&i| i >= d) {
            return Err(hone_error::argument(format!("there is no weight {wrong} of {d}")));
        }
        let mut kept = BlockInverse { index: usize::MAX, numbers: Vec::new() };
        for ((&row, &column), out) in rows.iter().zip(columns).zip(out) {
            *out = match &fisher.inverse {
                Inverse::Full(fixed) => fixed.element(row, column),
                Inverse::Blocks(fixed) => kept.element(fixed, row, column),
            };
        }
        Ok(())
    })
}

/// The inverse of one block, kept until another is asked for.
struct BlockInverse {
    index: usize,
    numbers: Vec<f64>,
}

impl BlockInverse {
    fn element(&mut self, fixed: &BlockFixed<'_>, row: usize, column: usize) -> f64 {
        let index = fixed.blocks().partition_point(|b| b.end <= row);
        let block = &fixed.blocks()[index];
        if !block.contains(&column) {
            return 0.0;
        }
        if self.index != index {
            self.numbers.resize(block.len() * block.len(), 0.0);
            fixed.inverse(index, &mut self.numbers);
            self.index = index;
        }
        self.numbers[(row - block.start) * block.len() + column - block.start]
    }
}

/// Frees a Fisher. NULL is fine.
#[unsafe(no_mangle)]
pub extern "C" fn hone_fisher_free(fisher: Option<Box<hone_fisher>>) {
    drop(fisher);
}
