//! The static algorithm on the diagonal blocks of F, from stored gradients.
//!
//! A block Q of B weights takes the cheaper and more accurate of two forms: for B ≤ m the *primal*,
//! F_Q = λI + G_QᵀG_Q/m factored as it stands, and for B > m the *dual* of [`Fixed`]. The primal is
//! summed from f32 products, and again in f64 where a pivot shows that their rounding would matter.

use std::ops::Range;

use super::fixed::{Fixed, well_pivoted};
use super::kernels::panel;
use super::kernels::syrk::{self, Sums};
use super::store::Gradients;
use super::{dense, parallel};
use crate::error::{Context, Result, bail};

/// The inverse of each diagonal block λI + G_QᵀG_Q/m.
#[derive(Debug)]
pub struct BlockFixed<'a> {
    dimension: usize,
    blocks: Vec<Range<usize>>,
    forms: Vec<Form<'a>>,
}

#[derive(Debug)]
enum Form<'a> {
    /// L of F_Q = LLᵀ, by columns.
    Primal(Vec<f64>),
    Dual(Fixed<'a>),
}

impl<'a> BlockFixed<'a> {
    /// Prepares the inverses of `blocks` (non-empty, disjoint, increasing) with damping λ.
    ///
    /// Errors: `Usage` for blocks that break the rule or reach past the weights and unless
    /// 0 < λ < ∞, `Numerics` naming the block where λ vanishes beside the gradients.
    pub fn precompute(
        gradients: Gradients<'a>,
        blocks: Vec<Range<usize>>,
        damping: f64,
        threads: usize,
    ) -> Result<BlockFixed<'a>> {
        if !(damping > 0.0 && damping.is_finite()) {
            bail!(Usage, "the damping must be positive and finite, not {damping}");
        }
        let mut end = 0;
        for block in &blocks {
            if block.is_empty() || block.start < end || block.end > gradients.dimension() {
                bail!(
                    Usage,
                    "Fisher block {block:?} is empty, begins before {end} or ends after the {} \
                     weights",
                    gradients.dimension()
                );
            }
            end = block.end;
        }
        let mut forms: Vec<Option<Result<Form<'a>>>> = Vec::new();
        forms.resize_with(blocks.len(), || None);
        let mut scratch = vec![Scratch::default(); threads.clamp(1, blocks.len().max(1))];
        parallel::for_each(
            &mut scratch,
            blocks.iter().zip(&mut forms),
            |scratch, (block, form)| {
                let gradients = gradients.columns(block.clone());
                *form = Some(prepare(gradients, damping, scratch));
            },
        );
        let named = |(form, block): (Option<Result<Form<'a>>>, &Range<usize>)| {
            form.expect("every block was prepared").context(|| format!("weights {block:?}"))
        };
        let forms = forms.into_iter().zip(&blocks).map(named).collect::<Result<_>>()?;
        Ok(BlockFixed { dimension: gradients.dimension(), blocks, forms })
    }

    /// The blocks, in order.
    pub fn blocks(&self) -> &[Range<usize>] {
        &self.blocks
    }

    /// The inverse of block `index` to `out`, dense B×B, both halves.
    pub fn inverse(&self, index: usize, out: &mut [f64]) {
        let n = self.blocks[index].len();
        assert_eq!(out.len(), n * n);
        match &self.forms[index] {
            Form::Primal(factor) => dense::invert(factor, n, out, &mut vec![0.0; n * n]),
            Form::Dual(fixed) => fixed.block(&(0..n).collect::<Vec<_>>(), out),
        }
    }

    /// The diagonal of the inverse of block `index` to `out` (B numbers), each positive.
    pub fn diagonal(&self, index: usize, out: &mut [f64]) {
        let n = self.blocks[index].len();
        assert_eq!(out.len(), n);
        match &self.forms[index] {
            Form::Primal(factor) => {
                let mut t = vec![0.0; n * n];
                dense::invert_lower(factor, n, &mut t);
                for (out, column) in out.iter_mut().zip(t.chunks_exact(n)) {
                    *out = column.iter().map(|t| t * t).sum();
                }
            }
            Form::Dual(fixed) => fixed.diagonal(0..n, out, 1),
        }
    }

    /// The product of the block-diagonal inverse with x (d numbers) to `out`; weights outside all
    /// blocks get 0.
    pub fn apply(&self, x: &[f32], out: &mut [f32], threads: usize) {
        assert!(x.len() == self.dimension && out.len() == x.len());
        out.fill(0.0);
        let (mut parts, mut rest, mut start) = (Vec::with_capacity(self.blocks.len()), out, 0);
        for block in &self.blocks {
            let (part, tail) = rest.split_at_mut(block.end - start);
            parts.push(&mut part[block.start - start..]);
            (rest, start) = (tail, block.end);
        }
        let items = self.blocks.iter().zip(&self.forms).zip(parts);
        let mut scratch = vec![Vec::new(); threads.clamp(1, self.blocks.len().max(1))];
        parallel::for_each(&mut scratch, items, |wide, ((block, form), out)| {
            let x = &x[block.clone()];
            match form {
                Form::Primal(factor) => {
                    wide.clear();
                    wide.extend(x.iter().map(|&x| f64::from(x)));
                    dense::solve(factor, block.len(), wide);
                    out.iter_mut().zip(&*wide).for_each(|(out, &x)| *out = x as f32);
                }
                Form::Dual(fixed) => fixed.apply(x, 0..x.len(), out, 1),
            }
        });
    }
}

/// What one thread needs to form a block.
#[derive(Clone, Debug, Default)]
struct Scratch {
    panels: Vec<f32>,
    row: Vec<f32>,
    half: Vec<f64>,
    fisher: Vec<f64>,
}

fn prepare<'a>(gradients: Gradients<'a>, damping: f64, scratch: &mut Scratch) -> Result<Form<'a>> {
    let n = gradients.dimension();
    if n > gradients.count() {
        return Ok(Form::Dual(Fixed::precompute(gradients, damping, 1)?));
    }
    let mut factor = vec![0.0; n * n];
    fisher(gradients, Sums::Single, scratch);
    let factored = dense::factor(&scratch.fisher, n, damping, &mut factor);
    if factored.is_err() || !well_pivoted(&factor, &scratch.fisher, n, damping) {
        fisher(gradients, Sums::Double, scratch);
        dense::factor(&scratch.fisher, n, damping, &mut factor)?;
    }
    Ok(Form::Primal(factor))
}

/// GᵀG/m to `scratch.fisher`.
fn fisher(gradients: Gradients<'_>, sums: Sums, scratch: &mut Scratch) {
    let (m, n) = (gradients.count(), gradients.dimension());
    scratch.half.clear();
    scratch.half.resize(syrk::half_len(n), 0.0);
    scratch.fisher.resize(n * n, 0.0);
    scratch.row.resize(n, 0.0);
    for start in (0..m).step_by(syrk::DEPTH) {
        let k = syrk::DEPTH.min(m - start);
        scratch.panels.resize(panel::len(k, n), 0.0);
        for i in 0..k {
            let row = gradients.row(start + i, 0..n, &mut scratch.row);
            panel::pack_row(row, i, k, &mut scratch.panels);
        }
        syrk::add(n, k, &scratch.panels, sums, &mut scratch.half);
    }
    syrk::expand(n, &scratch.half, 1.0 / m as f64, &mut scratch.fisher);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use crate::mfac::store::{GradientStore, Storage};
    use crate::mfac::tolerance::{
        Rng, assert_approximate, assert_exact, dense_inverse, hard_gradients, mean_square, widen,
    };

    fn stored(g: &[f32], m: usize, d: usize) -> GradientStore {
        let mut store = GradientStore::new(m, d, Storage::F32, None).unwrap();
        (0..m).for_each(|i| store.set_row(i, &g[i * d..][..d]).unwrap());
        store
    }

    #[test]
    fn both_forms_match_dense_inverses_of_hard_blocks() {
        let (m, d) = (100, 480);
        let g = hard_gradients(m, d, 61);
        let (store, x) = (stored(&g, m, d), Rng::new(62).normals(d));
        // Narrow, as wide as m, a gap, wider than m.
        let blocks = vec![0..1, 1..65, 65..165, 170..370, 400..480];
        for exponent in 3..=8 {
            let damping = 10f64.powi(-exponent) * mean_square(&g);
            let fixed = BlockFixed::precompute(store.all(), blocks.clone(), damping, 2).unwrap();
            let mut product = vec![f32::NAN; d];
            fixed.apply(&x, &mut product, 2);
            assert!(product[165..170].iter().all(|&p| p == 0.0));
            for (index, block) in blocks.iter().enumerate() {
                let n = block.len();
                let own: Vec<f32> =
                    g.chunks_exact(d).flat_map(|r| r[block.clone()].to_vec()).collect();
                let want = dense_inverse(&own, m, n, damping);
                let (mut inverse, mut diagonal) = (vec![f64::NAN; n * n], vec![f64::NAN; n]);
                fixed.inverse(index, &mut inverse);
                fixed.diagonal(index, &mut diagonal);
                let largest = want.iter().fold(0.0f64, |m, x| m.max(x.abs()));
                let exact: Vec<f64> = want.iter().step_by(n + 1).copied().collect();
                assert_approximate(&inverse, &want, 1e-3, largest);
                assert_approximate(&diagonal, &exact, 1e-3, 0.0);
                let exact: Vec<f64> = want
                    .chunks_exact(n)
                    .map(|r| r.iter().zip(&x[block.clone()]).map(|(a, &b)| a * f64::from(b)).sum())
                    .collect();
                let floor = exact.iter().fold(0.0f64, |m, x| m.max(x.abs()));
                assert_approximate(&widen(&product[block.clone()]), &exact, 1e-3, floor);
            }
        }
    }

    #[test]
    fn the_bytes_do_not_depend_on_the_threads() {
        let (m, d) = (50, 300);
        let store = stored(&hard_gradients(m, d, 63), m, d);
        let x = Rng::new(64).normals(d);
        let product = |threads| {
            let blocks = (0..d).step_by(40).map(|s| s..(s + 40).min(d)).collect();
            let mut out = vec![f32::NAN; d];
            let fixed = BlockFixed::precompute(store.all(), blocks, 1e-4, threads).unwrap();
            fixed.apply(&x, &mut out, threads);
            widen(&out)
        };
        assert_exact(&product(3), &product(1));
    }

    #[test]
    fn rules_are_kept_and_hopeless_blocks_named() {
        let store = stored(&[1.0; 200], 20, 10);
        let kind = |blocks: &[Range<usize>], damping| {
            BlockFixed::precompute(store.all(), blocks.to_vec(), damping, 1).unwrap_err().kind()
        };
        assert_eq!(kind(&[0..4, 3..5], 1.0), ErrorKind::Usage);
        assert_eq!(kind(&[0..4, 4..11], 1.0), ErrorKind::Usage);
        assert_eq!(kind(&[0..4, 4..9], 0.0), ErrorKind::Usage);
        let error = BlockFixed::precompute(store.all(), vec![0..1, 2..9], 1e-30, 2).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Numerics);
        assert!(error.to_string().starts_with("weights 2..9: "), "{error}");
    }
}
