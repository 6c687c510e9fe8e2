//! The inverse of a symmetric positive definite matrix in f32, in place, by the symmetric sweep.
//!
//! Sweeping a set P of indices turns A into
//! −A_PP⁻¹ at P, A_RP A_PP⁻¹ beside it, and A_RR − A_RP A_PP⁻¹ A_PR elsewhere; once all are swept,
//! −A⁻¹ is left. Here rows that are swept are kept with the other sign where they meet those that
//! are not: both products are then those with N = −A_PP⁻¹. P is a strip of 32 at a time, so all but
//! the inverse of a 32×32 block is done by the register tile, on the half that `syrk` lays out: n³
//! multiply-adds and additions, as for a Cholesky factorization and the inverse from it, in one
//! loop without short cases.
#![allow(unsafe_code, reason = "a function compiled for processor features, else safe code")]

use super::panel::strips;
use super::syrk::{at, half_len, offset};
use super::tile::{HEIGHT, NARROW, Product, WIDTH};
use super::transpose::{SIDE, interleave};
use super::vectors::{Vectors, widest};

/// A square of 32, row-major.
type Block = [f32; WIDTH * WIDTH];

/// What an inverse is computed in.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    /// The rows of the strip being swept, and N = −A_PP⁻¹ times them: 32 rows of each strip.
    rows: Vec<f32>,
    swept: Vec<f32>,
    diagonal: Vec<f32>,
}

/// −A⁻¹ in place of the half of A (n×n); false when A has too few digits for it in f32.
///
/// That is when a pivot is more than `inflation` times smaller than its diagonal element, or the
/// inverse's diagonal element larger than the inverse of A's: rounding is magnified as much.
/// `half` is then spoiled.
pub fn negative_inverse(n: usize, half: &mut [f32], inflation: f32, scratch: &mut Scratch) -> bool {
    debug_assert_eq!(half.len(), half_len(n));
    let Scratch { rows, swept, diagonal } = scratch;
    diagonal.clear();
    diagonal.extend((0..n).map(|i| half[at(n, i, i)]));
    rows.resize(strips(n) * WIDTH * WIDTH, 0.0);
    swept.resize(strips(n) * WIDTH * WIDTH, 0.0);
    for p in 0..strips(n) {
        let Some(inverse) = pivot_block(n, p, half, diagonal, inflation) else {
            return false;
        };
        read_rows(n, p, half, rows);
        multiply(n, p, &inverse, rows, swept);
        update(n, p, rows, swept, half);
        write_rows(n, p, &inverse, swept, half);
    }
    // False for NaN as well.
    diagonal.iter().enumerate().all(|(i, &a)| {
        let inverse = -half[at(n, i, i)];
        inverse > 0.0 && a * inverse <= inflation
    })
}

/// The width of strip p.
fn width(n: usize, p: usize) -> usize {
    WIDTH.min(n - p * WIDTH)
}

/// −A_PP⁻¹ of strip p, zeros past its width.
fn pivot_block(
    n: usize,
    p: usize,
    half: &[f32],
    diagonal: &[f32],
    inflation: f32,
) -> Option<Box<Block>> {
    let k = width(n, p);
    let mut block = Box::new([0.0; WIDTH * WIDTH]);
    let corner = &half[offset(n, p)..][..k * WIDTH];
    for i in 0..k {
        for j in 0..=i {
            (block[i * WIDTH + j], block[j * WIDTH + i]) =
                (corner[i * WIDTH + j], corner[i * WIDTH + j]);
        }
    }
    let diagonal = &diagonal[p * WIDTH..][..k];
    let fused = Vectors::here() != Vectors::Plain;
    sweep_block(&mut block, diagonal, inflation, fused).then_some(block)
}

widest! {
    fn sweep_block(block: &mut Block, diagonal: &[f32], inflation: f32, fused: bool) -> bool =
        sweep_either;
}

/// Without an instruction for it a fused multiply-add would be a call of a slow function.
#[inline(always)]
fn sweep_either(block: &mut Block, diagonal: &[f32], inflation: f32, fused: bool) -> bool {
    match fused {
        true => sweep_any(block, diagonal, inflation, f32::mul_add),
        false => sweep_any(block, diagonal, inflation, |a, b, c| a * b + c),
    }
}

/// Indices swept together within a block.
const FEW: usize = 8;
/// Their rows.
type Few = [f32; FEW * WIDTH];

/// Sweeps the indices of the block, a few at a time; false at a pivot that is too small.
///
/// With N the swept rows of those few, another row with the numbers f at their columns becomes
/// itself, with zeros there, minus fN. Pivots wait for one another; so the next few rows come
/// first, and while their pivots are divided by the processor updates the others.
#[inline(always)]
fn sweep_any(
    block: &mut Block,
    diagonal: &[f32],
    inflation: f32,
    multiply_add: impl Fn(f32, f32, f32) -> f32 + Copy,
) -> bool {
    let (k, groups) = (diagonal.len(), block.as_chunks_mut().0);
    let mut sound = sweep_few(&mut groups[0], 0, diagonal, inflation, multiply_add);
    let count = k.div_ceil(FEW);
    for t in 0..count {
        let (swept, next) = (groups[t], t + 1);
        if next < count {
            update_few(&mut groups[next], &swept, t, multiply_add);
            sound &= sweep_few(&mut groups[next], next, diagonal, inflation, multiply_add);
        }
        for other in (0..count).filter(|o| *o != t && *o != next) {
            update_few(&mut groups[other], &swept, t, multiply_add);
        }
    }
    sound
}

/// Sweeps the indices of group t within its rows.
#[inline(always)]
fn sweep_few(
    few: &mut Few,
    t: usize,
    diagonal: &[f32],
    inflation: f32,
    multiply_add: impl Fn(f32, f32, f32) -> f32 + Copy,
) -> bool {
    let mut sound = true;
    for (l, p) in (t * FEW..diagonal.len().min((t + 1) * FEW)).enumerate() {
        let pivot = few[l * WIDTH + p];
        sound &= pivot * inflation >= diagonal[p] && pivot > 0.0;
        // Whole rows at a time: a single number written would stall the read of its vector.
        let keep: &[f32; WIDTH] = ONE_OUT[WIDTH - p..].first_chunk().expect("p is below 32");
        let (inverse, mut row) = (1.0 / pivot, [0.0; WIDTH]);
        for j in 0..WIDTH {
            row[j] = inverse * (keep[j] * few[l * WIDTH + j] - (1.0 - keep[j]));
        }
        for i in 0..FEW {
            let factor = -few[i * WIDTH + p];
            for j in 0..WIDTH {
                let other = keep[j] * few[i * WIDTH + j];
                few[i * WIDTH + j] = multiply_add(factor, row[j], other);
            }
        }
        few[l * WIDTH..][..WIDTH].copy_from_slice(&row);
    }
    sound
}

/// Takes the swept rows of group t into a few other rows.
#[inline(always)]
fn update_few(
    few: &mut Few,
    swept: &Few,
    t: usize,
    multiply_add: impl Fn(f32, f32, f32) -> f32 + Copy,
) {
    let keep = FEW_OUT[WIDTH - t * FEW..].first_chunk::<WIDTH>().expect("a group of the block");
    for other in few.as_chunks_mut::<WIDTH>().0 {
        let mut factors = [0.0; FEW];
        factors.copy_from_slice(&other[t * FEW..][..FEW]);
        for j in 0..WIDTH {
            other[j] *= keep[j];
        }
        for l in 0..FEW {
            for j in 0..WIDTH {
                other[j] = multiply_add(-factors[l], swept[l * WIDTH + j], other[j]);
            }
        }
    }
}

/// Zeros for N columns among ones: from a place s before them on, 0 for the columns from s on. Read
/// from memory, since a vector put together from pieces would stall its own read.
const fn zeros_among_ones<const N: usize>() -> [f32; 2 * WIDTH] {
    let (mut numbers, mut i) = ([1.0; 2 * WIDTH], WIDTH);
    while i < WIDTH + N {
        (numbers[i], i) = (0.0, i + 1);
    }
    numbers
}

static ONE_OUT: [f32; 2 * WIDTH] = zeros_among_ones::<1>();
static FEW_OUT: [f32; 2 * WIDTH] = zeros_among_ones::<FEW>();

/// A_P· by strips, each 32 rows of 32; those of strip p itself and past n mean nothing.
fn read_rows(n: usize, p: usize, half: &[f32], rows: &mut [f32]) {
    let k = width(n, p);
    for (s, out) in rows.chunks_exact_mut(WIDTH * WIDTH).enumerate() {
        if s < p {
            let from = offset(n, s) + (p - s) * WIDTH * WIDTH;
            out[..k * WIDTH].copy_from_slice(&half[from..][..k * WIDTH]);
        } else if s > p {
            let below = &half[offset(n, p) + (s - p) * WIDTH * WIDTH..offset(n, p + 1)];
            let zeros = [0.0; WIDTH];
            let line = |c: usize| below.get(c * WIDTH..(c + 1) * WIDTH).unwrap_or(&zeros);
            for c in (0..WIDTH).step_by(SIDE) {
                interleave(std::array::from_fn(|i| line(c + i)), WIDTH, &mut out[c..], WIDTH);
            }
        }
    }
}

/// N·A_P· by strips for N = −A_PP⁻¹.
fn multiply(n: usize, p: usize, inverse: &Block, rows: &[f32], swept: &mut [f32]) {
    let (k, square) = (width(n, p), WIDTH * WIDTH);
    let strips = rows.chunks_exact(square).zip(swept.chunks_exact_mut(square)).enumerate();
    for (s, (b, out)) in strips.filter(|(s, _)| *s != p) {
        let tiles = out.chunks_exact_mut(HEIGHT * WIDTH).take(k.div_ceil(HEIGHT));
        for (t, out) in tiles.enumerate() {
            let (a, narrow) = (&inverse[t * HEIGHT..], width(n, s) <= NARROW);
            Product { k, a, a_stride: WIDTH, b, b_stride: WIDTH, narrow }.write_to(out);
        }
    }
}

/// A_RR += A_RP N A_PR for all indices R outside strip p.
fn update(n: usize, p: usize, rows: &[f32], swept: &[f32], half: &mut [f32]) {
    let (k, square) = (width(n, p), WIDTH * WIDTH);
    for s in (0..strips(n)).filter(|s| *s != p) {
        let b = &rows[s * square..][..square];
        let tiles = half[offset(n, s)..offset(n, s + 1)].chunks_exact_mut(HEIGHT * WIDTH);
        for (t, out) in tiles.enumerate() {
            let row = s * WIDTH + t * HEIGHT;
            if row / WIDTH == p {
                continue;
            }
            let counted = width(n, s).min(row + HEIGHT - s * WIDTH);
            let a = &swept[row / WIDTH * square + row % WIDTH..];
            let narrow = counted <= NARROW;
            Product { k, a, a_stride: WIDTH, b, b_stride: WIDTH, narrow }.add_to(out);
        }
    }
}

/// N at strip p, and N·A_P· beside it.
fn write_rows(n: usize, p: usize, inverse: &Block, swept: &[f32], half: &mut [f32]) {
    let k = width(n, p);
    for (s, from) in swept.chunks_exact(WIDTH * WIDTH).enumerate() {
        if s < p {
            let to = offset(n, s) + (p - s) * WIDTH * WIDTH;
            half[to..][..k * WIDTH].copy_from_slice(&from[..k * WIDTH]);
        } else if s > p {
            let below = &mut half[offset(n, p) + (s - p) * WIDTH * WIDTH..offset(n, p + 1)];
            let count = WIDTH.min(below.len() / WIDTH);
            let line = |l: usize| &from[l * WIDTH..(l + 1) * WIDTH];
            for l in (0..WIDTH).step_by(SIDE) {
                interleave(std::array::from_fn(|i| line(l + i)), count, &mut below[l..], WIDTH);
            }
        } else {
            half[offset(n, p)..][..k * WIDTH].copy_from_slice(&inverse[..k * WIDTH]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mfac::kernels::ahead::Ahead;
    use crate::mfac::kernels::panel::Panels;
    use crate::mfac::kernels::{panel, syrk};
    use crate::mfac::tolerance::{Rng, dense_inverse};

    /// The half of λI + GᵀG/m, and its exact inverse.
    fn problem(n: usize, m: usize, damping: f32) -> (Vec<f32>, Vec<f64>) {
        let mut g = Rng::new(71).normals(m * n);
        g.iter_mut().for_each(|g| *g /= (m as f32).sqrt());
        let mut panels = vec![0.0f32; panel::len(m, n)];
        panel::pack(&g, n, m, n, &mut panels);
        let mut half = vec![0.0; half_len(n)];
        syrk::single(n, Panels::packed(&panels, m), true, &mut half, &mut Ahead::none());
        (0..n).for_each(|i| half[at(n, i, i)] += damping);
        let scaled: Vec<f32> = g.iter().map(|g| g * (m as f32).sqrt()).collect();
        (half, dense_inverse(&scaled, m, n, f64::from(damping)))
    }

    #[test]
    fn inverses_match_dense_ones_at_all_sizes() {
        for n in [1, 3, 8, 17, 24, 25, 48, 64, 100, 128, 193, 256] {
            let (mut half, want) = problem(n, 2 * n + 3, 0.05);
            assert!(negative_inverse(n, &mut half, 128.0, &mut Scratch::default()), "{n}");
            let largest = want.iter().fold(0.0f64, |m, x| m.max(x.abs()));
            for (i, j) in (0..n).flat_map(|i| (0..=i).map(move |j| (i, j))) {
                let (got, want) = (-f64::from(half[at(n, i, j)]), want[i * n + j]);
                assert!((got - want).abs() <= 2e-5 * largest, "{n}: {i} {j}: {got} {want}");
            }
        }
    }

    #[test]
    fn what_has_too_few_digits_is_refused() {
        let (mut half, _) = problem(60, 20, 1e-5);
        assert!(!negative_inverse(60, &mut half, 128.0, &mut Scratch::default()));
        for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            let (mut half, _) = problem(30, 80, 0.1);
            half[at(30, 27, 27)] = bad;
            assert!(!negative_inverse(30, &mut half, 128.0, &mut Scratch::default()), "{bad}");
        }
    }
}
