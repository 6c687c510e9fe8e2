//! The static algorithm on the diagonal blocks of F, from stored gradients.
//!
//! A block Q of B weights takes the cheaper and more accurate of two forms: for B ≤ m the *primal*,
//! F_Q = λI + G_QᵀG_Q/m inverted as it stands, and for B > m the *dual* of [`Fixed`]. The primal is
//! summed and inverted in f32, and again in f64 where a pivot or an element of the inverse shows
//! that f32 has too few digits for it: [F_Q]_ii [F_Q⁻¹]_ii, the factor by which rounding is
//! magnified in weight i, may be 128 at most.

use std::ops::Range;

use memmap2::{Advice, MmapMut};

use super::fixed::Fixed;
use super::kernels::panel::{self, strips};
use super::kernels::syrk::SINGLE_SUMS;
use super::kernels::tile::WIDTH;
use super::kernels::{cast, sweep, syrk};
use super::store::Gradients;
use super::{dense, parallel, passes};
use crate::error::{Context, Error, ErrorKind, Result, bail};

/// Columns of the blocks that are summed side by side: rows are read in pieces of 2 KiB, as pieces
/// of one small block would not come at the speed of memory.
const TOGETHER: usize = 512;
/// Columns that a thread takes one piece after another: while one is computed the next is fetched.
const RUN: usize = 8 * TOGETHER;
/// Gradients per step of the sums: what is fetched ahead must find room in the second-level cache.
const DEPTH: usize = 128;
/// What an inverse in f32 may magnify rounding by: with it the sums of many products in f32 still
/// keep three digits.
const INFLATION: f32 = 128.0;

/// The inverse of each diagonal block λI + G_QᵀG_Q/m.
#[derive(Debug)]
pub struct BlockFixed<'a> {
    dimension: usize,
    damping: f64,
    blocks: Vec<Range<usize>>,
    forms: Vec<Form<'a>>,
    /// Halves of −F_Q⁻¹/m, as `syrk` lays them out: the sums over gradients are inverted as they
    /// are and where they are.
    inverses: MmapMut,
    /// What those are to be multiplied by, −m.
    scale: f64,
}

#[derive(Debug)]
enum Form<'a> {
    /// −F_Q⁻¹/m in f32, among the inverses from this number on.
    Inverse(usize),
    /// L of F_Q = LLᵀ, by columns.
    Factor(Vec<f64>),
    Dual(Fixed<'a>),
}

/// A block to be prepared, and where its inverse goes.
struct Task<'a, 'i> {
    block: Range<usize>,
    start: usize,
    inverse: &'i mut [f32],
    /// Sums in f64, of many gradients only.
    half: Vec<f64>,
    form: Option<Result<Form<'a>>>,
}

impl<'a> BlockFixed<'a> {
    /// Prepares the inverses of `blocks` (non-empty, disjoint, increasing) with damping λ:
    /// B·m/2 + B²/2 multiplications a weight where B ≤ m.
    ///
    /// Errors: `Usage` for blocks that break the rule or reach past the weights and unless
    /// 0 < λ < ∞, `Memory` when the inverses (2·B² bytes a block) do not fit, `Numerics` naming the
    /// block where λ vanishes beside the gradients.
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
        let len = |block: &Range<usize>| match block.len() <= gradients.count() {
            true => syrk::half_len(block.len()),
            false => 0,
        };
        let mut inverses = room(blocks.iter().map(len).sum())?;
        let (mut rest, mut start) = (cast::numbers_mut::<f32>(&mut inverses), 0);
        let mut tasks = Vec::with_capacity(blocks.len());
        for block in &blocks {
            let inverse_len = len(block);
            let inverse = rest.split_off_mut(..inverse_len).expect("room for all inverses");
            let (block, half) = (block.clone(), Vec::new());
            tasks.push(Task { block, start, inverse, half, form: None });
            start += inverse_len;
        }
        let runs = cut(&mut tasks, RUN).into_iter();
        let mut scratch = vec![Scratch::default(); threads.clamp(1, runs.len().max(1))];
        parallel::for_each(&mut scratch, runs, |scratch, run| {
            let mut pieces = cut(run, TOGETHER).into_iter().peekable();
            while let Some(tasks) = pieces.next() {
                let next = pieces.peek().map_or(0..0, |tasks| span(tasks));
                sum(gradients, tasks, next, scratch);
                for task in tasks {
                    task.form = Some(form(gradients, task, damping, scratch));
                }
            }
        });
        let named = |task: Task<'a, '_>| {
            let form = task.form.expect("every block was prepared");
            form.context(|| format!("weights {:?}", task.block))
        };
        let forms = tasks.into_iter().map(named).collect::<Result<_>>()?;
        let (dimension, scale) = (gradients.dimension(), -(gradients.count() as f64));
        Ok(BlockFixed { dimension, damping, blocks, forms, inverses, scale })
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
            Form::Inverse(start) => syrk::expand(n, self.half(*start, n), self.scale, out),
            Form::Factor(factor) => dense::invert(factor, n, out, &mut vec![0.0; n * n]),
            Form::Dual(fixed) => fixed.block(&(0..n).collect::<Vec<_>>(), out),
        }
    }

    /// The diagonal of the inverse of block `index` to `out` (B numbers), each positive and at most
    /// 1/λ.
    pub fn diagonal(&self, index: usize, out: &mut [f64]) {
        let n = self.blocks[index].len();
        assert_eq!(out.len(), n);
        match &self.forms[index] {
            Form::Inverse(start) => {
                let half = self.half(*start, n);
                out.iter_mut().enumerate().for_each(|(i, out)| {
                    let inverse = self.scale * f64::from(syrk::get(n, half, i, i));
                    *out = inverse.min(1.0 / self.damping);
                });
            }
            Form::Factor(factor) => {
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
                Form::Inverse(start) => {
                    multiply(block.len(), self.half(*start, block.len()), x, wide);
                    let numbers = out.iter_mut().zip(&*wide);
                    numbers.for_each(|(out, &x)| *out = (self.scale * x) as f32);
                }
                Form::Factor(factor) => {
                    wide.clear();
                    wide.extend(x.iter().map(|&x| f64::from(x)));
                    dense::solve(factor, block.len(), wide);
                    out.iter_mut().zip(&*wide).for_each(|(out, &x)| *out = x as f32);
                }
                Form::Dual(fixed) => fixed.apply(x, 0..x.len(), out, 1),
            }
        });
    }

    /// The half of an inverse of n×n that begins at number `start`.
    fn half(&self, start: usize, n: usize) -> &[f32] {
        &cast::numbers::<f32>(&self.inverses)[start..start + syrk::half_len(n)]
    }
}

/// Zeroed room for so many f32.
fn room(count: usize) -> Result<MmapMut> {
    let bytes = count.saturating_mul(size_of::<f32>()).max(1);
    let mapped = MmapMut::map_anon(bytes).map_err(|e| {
        let message = format!(
            "the inverses of the blocks need {bytes} bytes, which cannot be had; choose \
                     smaller blocks"
        );
        Error::new(ErrorKind::Memory, message).with_source(e)
    })?;
    // Only a hint.
    let _ = mapped.advise(Advice::HugePage);
    Ok(mapped)
}

/// y = Hx for the symmetric H of a half.
fn multiply(n: usize, half: &[f32], x: &[f32], y: &mut Vec<f64>) {
    y.clear();
    y.resize(n, 0.0);
    for s in 0..strips(n) {
        let first = s * WIDTH;
        let strip = &half[syrk::offset(n, s)..syrk::offset(n, s + 1)];
        for (i, row) in (first..n).zip(strip.chunks_exact(WIDTH)) {
            let (mut sum, own) = (0.0, f64::from(x[i]));
            for (j, &h) in (first..i.min(first + WIDTH)).zip(row) {
                sum += f64::from(h) * f64::from(x[j]);
                y[j] += f64::from(h) * own;
            }
            if i < first + WIDTH {
                sum += f64::from(row[i - first]) * own;
            }
            y[i] += sum;
        }
    }
}

/// What one thread needs to form a block.
#[derive(Clone, Debug, Default)]
struct Scratch {
    panels: Vec<f32>,
    row: Vec<f32>,
    sweep: sweep::Scratch,
    /// Of a block in f64.
    wide: Vec<f64>,
    half: Vec<f64>,
    fisher: Vec<f64>,
}

/// The tasks in pieces of up to `width` columns, one block at least.
fn cut<'t, 'a, 'i>(mut tasks: &'t mut [Task<'a, 'i>], width: usize) -> Vec<&'t mut [Task<'a, 'i>]> {
    let mut pieces = Vec::new();
    while let Some(first) = tasks.first() {
        let end = first.block.start + width;
        let count = tasks.iter().take_while(|task| task.block.end <= end).count().max(1);
        pieces.push(tasks.split_off_mut(..count).expect("so many are left"));
    }
    pieces
}

/// The columns from the first of the blocks to the last.
fn span(tasks: &[Task<'_, '_>]) -> Range<usize> {
    let [first, .., last] = tasks else {
        return tasks.first().map_or(0..0, |task| task.block.clone());
    };
    first.block.start..last.block.end
}

/// The halves of G_QᵀG_Q of the blocks that have room for it. Meanwhile the gradients are fetched
/// that come next, in the end those of the columns `next`.
fn sum(
    gradients: Gradients<'_>,
    tasks: &mut [Task<'_, '_>],
    next: Range<usize>,
    scratch: &mut Scratch,
) {
    let (m, own, count) = (gradients.count(), span(tasks), tasks.len());
    let Scratch { panels, row, .. } = scratch;
    for start in (0..m).step_by(DEPTH) {
        let end = m.min(start + DEPTH);
        let (later, columns) = match end < m {
            true => (end..m.min(end + DEPTH), &own),
            false => (0..m.min(DEPTH), &next),
        };
        for (t, task) in tasks.iter_mut().enumerate().filter(|(_, t)| !t.inverse.is_empty()) {
            // Whole rows, a share for each block.
            let share = |t: usize| later.start + later.len() * t / count;
            let ahead = &mut gradients.ahead(share(t)..share(t + 1), columns.clone());
            let block = gradients.columns(task.block.clone());
            let panels = passes::panels(block, start..end, panels, row);
            let fresh = start % SINGLE_SUMS == 0;
            syrk::single(block.dimension(), panels, fresh, task.inverse, ahead);
            if m > SINGLE_SUMS && (end % SINGLE_SUMS == 0 || end == m) {
                syrk::widen(task.inverse, &mut task.half);
            }
        }
    }
}

/// The form of a block whose sums are there.
fn form<'a>(
    gradients: Gradients<'a>,
    task: &mut Task<'a, '_>,
    damping: f64,
    scratch: &mut Scratch,
) -> Result<Form<'a>> {
    let own = gradients.columns(task.block.clone());
    if own.dimension() > own.count() {
        Fixed::precompute(own, damping, 1).map(Form::Dual)
    } else if invert(own, damping, task, &mut scratch.sweep) {
        Ok(Form::Inverse(task.start))
    } else {
        factor(own, damping, scratch).map(Form::Factor)
    }
}

/// −F_Q⁻¹/m in f32 from the sums; false where f32 has too few digits.
fn invert(
    gradients: Gradients<'_>,
    damping: f64,
    task: &mut Task<'_, '_>,
    scratch: &mut sweep::Scratch,
) -> bool {
    let (m, n, inverse) = (gradients.count(), gradients.dimension(), &mut *task.inverse);
    let half = std::mem::take(&mut task.half);
    inverse.iter_mut().zip(half).for_each(|(s, h)| *s = h as f32);
    let damping = (m as f64 * damping) as f32;
    (0..n).for_each(|i| inverse[syrk::at(n, i, i)] += damping);
    sweep::negative_inverse(n, inverse, INFLATION, scratch)
}

/// L of F_Q, all in f64.
fn factor(gradients: Gradients<'_>, damping: f64, scratch: &mut Scratch) -> Result<Vec<f64>> {
    let (m, n) = (gradients.count(), gradients.dimension());
    let Scratch { panels, row, wide, half, fisher, .. } = scratch;
    half.clear();
    half.resize(syrk::half_len(n), 0.0);
    for start in (0..m).step_by(syrk::DOUBLE_DEPTH) {
        let rows = start..m.min(start + syrk::DOUBLE_DEPTH);
        passes::pack(gradients, rows.clone(), panels, row);
        panel::widen(panels, wide);
        syrk::add_double(n, rows.len(), wide, half);
    }
    fisher.resize(n * n, 0.0);
    syrk::expand(n, half, 1.0 / m as f64, fisher);
    let mut factor = vec![0.0; n * n];
    dense::factor(fisher, n, damping, &mut factor)?;
    Ok(factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use crate::mfac::store::{GradientStore, Storage};
    use crate::mfac::tolerance::{
        Rng, assert_approximate, assert_exact, dense_inverse, hard_gradients, mean_square, widen,
    };

    fn stored(g: &[f32], m: usize, d: usize, storage: Storage) -> GradientStore {
        let mut store = GradientStore::new(m, d, storage, None).unwrap();
        (0..m).for_each(|i| store.set_row(i, &g[i * d..][..d]).unwrap());
        store
    }

    #[test]
    fn both_forms_match_dense_inverses_of_hard_blocks_in_every_storage() {
        let (m, d) = (100, 480);
        let g = hard_gradients(m, d, 61);
        let x = Rng::new(62).normals(d);
        // Narrow, as wide as m, a gap, wider than m.
        let blocks = vec![0..1, 1..65, 65..165, 170..370, 400..480];
        for storage in [Storage::F32, Storage::F16, Storage::Bf16] {
            let store = stored(&g, m, d, storage);
            let mut row = vec![0.0; d];
            let kept = (0..m).flat_map(|i| store.all().row(i, 0..d, &mut row).to_vec());
            let kept: Vec<f32> = kept.collect();
            for exponent in 3..=8 {
                let damping = 10f64.powi(-exponent) * mean_square(&g);
                let fixed =
                    BlockFixed::precompute(store.all(), blocks.clone(), damping, 2).unwrap();
                let mut product = vec![f32::NAN; d];
                fixed.apply(&x, &mut product, 2);
                assert!(product[165..170].iter().all(|&p| p == 0.0));
                for (index, block) in blocks.iter().enumerate() {
                    let own = kept.chunks_exact(d).flat_map(|r| r[block.clone()].to_vec());
                    let want = dense_inverse(&own.collect::<Vec<_>>(), m, block.len(), damping);
                    let part = (&x[block.clone()], &product[block.clone()]);
                    assert_block(&fixed, index, &want, part);
                }
            }
        }
    }

    /// Block `index` is `want`, to three digits, and so is its product with x.
    fn assert_block(
        fixed: &BlockFixed<'_>,
        index: usize,
        want: &[f64],
        (x, product): (&[f32], &[f32]),
    ) {
        let n = x.len();
        let (mut inverse, mut diagonal) = (vec![f64::NAN; n * n], vec![f64::NAN; n]);
        fixed.inverse(index, &mut inverse);
        fixed.diagonal(index, &mut diagonal);
        let largest = want.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        let exact: Vec<f64> = want.iter().step_by(n + 1).copied().collect();
        assert_approximate(&inverse, want, 1e-3, largest);
        assert_approximate(&diagonal, &exact, 1e-3, 0.0);
        assert!(diagonal.iter().all(|&d| 0.0 < d && d <= 1.0 / fixed.damping));
        let sum = |r: &[f64]| r.iter().zip(x).map(|(a, &b)| a * f64::from(b)).sum();
        let exact: Vec<f64> = want.chunks_exact(n).map(sum).collect();
        let floor = exact.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        assert_approximate(&widen(product), &exact, 1e-3, floor);
    }

    /// More gradients than f32 sums take, and weights that are easy: no block needs f64.
    #[test]
    fn easy_blocks_of_many_gradients_stay_in_f32() {
        let (m, d) = (2 * SINGLE_SUMS + 77, 40);
        let g = Rng::new(65).normals(m * d);
        let store = stored(&g, m, d, Storage::F32);
        let fixed = BlockFixed::precompute(store.all(), vec![0..7, 7..d], 0.1, 1).unwrap();
        assert!(fixed.forms.iter().all(|form| matches!(form, Form::Inverse(_))));
        let own: Vec<f32> = g.chunks_exact(d).flat_map(|r| r[7..].to_vec()).collect();
        let mut inverse = vec![f64::NAN; 33 * 33];
        fixed.inverse(1, &mut inverse);
        assert_approximate(&inverse, &dense_inverse(&own, m, 33, 0.1), 1e-5, 1.0);
    }

    #[test]
    fn gradients_on_disk_give_the_same_bits() {
        let (m, d) = (30, 90);
        let g = hard_gradients(m, d, 66);
        let folder = tempfile::tempdir().unwrap();
        let diagonals = |folder| {
            let mut store = GradientStore::new(m, d, Storage::F16, folder).unwrap();
            (0..m).for_each(|i| store.set_row(i, &g[i * d..][..d]).unwrap());
            let fixed = BlockFixed::precompute(store.all(), vec![0..20, 20..d], 1e-3, 2).unwrap();
            let mut out = vec![f64::NAN; d];
            fixed.diagonal(0, &mut out[..20]);
            fixed.diagonal(1, &mut out[20..]);
            out
        };
        assert_exact(&diagonals(Some(folder.path())), &diagonals(None));
    }

    #[test]
    fn a_block_does_not_depend_on_its_neighbours() {
        let (m, d) = (150, 5000);
        let store = stored(&hard_gradients(m, d, 67), m, d, Storage::F32);
        // Whole strips and others, gaps, pieces and runs of many blocks, and a dual one.
        let mut blocks: Vec<_> = (0..4200).step_by(64).map(|s| s..s + 64).collect();
        blocks.extend([4300..4333, 4400..4600, 4601..4603, 4700..4828]);
        let together = BlockFixed::precompute(store.all(), blocks.clone(), 1e-3, 2).unwrap();
        for (i, block) in blocks.into_iter().enumerate() {
            let alone = BlockFixed::precompute(store.all(), vec![block.clone()], 1e-3, 1).unwrap();
            let (mut want, mut got) = (vec![0.0; block.len()], vec![f64::NAN; block.len()]);
            alone.diagonal(0, &mut want);
            together.diagonal(i, &mut got);
            assert_exact(&got, &want);
        }
    }

    #[test]
    fn the_bytes_do_not_depend_on_the_threads() {
        let (m, d) = (50, 300);
        let store = stored(&hard_gradients(m, d, 63), m, d, Storage::F32);
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
        let store = stored(&[1.0; 200], 20, 10, Storage::F32);
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
