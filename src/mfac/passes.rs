//! Passes over G: the Gram matrix GGᵀ, products G·x and sums Gᵀ·c, shared by the static and the
//! dynamic algorithm.
//!
//! Columns are divided among a number of slots that depends on the shape of G alone, and what the
//! slots sum is added in their order: the bytes do not depend on the number of threads.

use std::ops::Range;

use super::kernels::gemv::{self, ROWS};
use super::kernels::syrk::{self, Sums};
use super::kernels::transpose::SIDE;
use super::kernels::{panel, tile};
use super::parallel;
use super::store::Gradients;

/// Columns that one step of a product with a vector takes: few enough that the rows' pieces stay in
/// a first-level cache, enough for long streams.
const PIECE: usize = 1024;
/// The most slots a pass is divided into.
const SLOTS: usize = 16;
/// The most numbers the Gram matrices of all slots may take: 64 MiB of f64, two slots at least.
const GRAM_NUMBERS: usize = 8 << 20;

/// The half (as `syrk` lays it out) of GGᵀ.
pub fn gram(g: Gradients<'_>, sums: Sums, threads: usize) -> Vec<f64> {
    let (m, d) = (g.count(), g.dimension());
    let len = syrk::half_len(m);
    let slots = slots(d, 4 * syrk::DEPTH, (GRAM_NUMBERS / len.max(1)).clamp(2, SLOTS));
    let mut halves: Vec<_> = slots.into_iter().map(|slot| (slot, vec![0.0; len])).collect();
    let mut scratch: Vec<_> = (0..threads.clamp(1, halves.len().max(1)))
        .map(|_| (vec![0.0; panel::len(syrk::DEPTH, m)], vec![0.0; SIDE * syrk::DEPTH]))
        .collect();
    parallel::for_each(&mut scratch, halves.iter_mut(), |(panels, rows), (slot, half)| {
        for start in slot.clone().step_by(syrk::DEPTH) {
            let k = syrk::DEPTH.min(slot.end - start);
            pack_transposed(g, start..start + k, panels, rows);
            syrk::add(m, k, panels, sums, half);
        }
    });
    let mut halves = halves.into_iter().map(|(_, half)| half);
    let mut total = halves.next().unwrap_or_else(|| vec![0.0; len]);
    for half in halves {
        total.iter_mut().zip(half).for_each(|(t, h)| *t += h);
    }
    total
}

/// `out[v·m + i] = Σ_j G_ij x_v[j]` for each of the vectors (d numbers each) in `x`.
pub fn products(g: Gradients<'_>, x: &[f64], out: &mut [f64], threads: usize) {
    let (m, d) = (g.count(), g.dimension());
    let count = out.len() / m.max(1);
    assert!(out.len() == count * m && x.len() == count * d);
    let mut partial: Vec<_> =
        slots(d, 2 * PIECE, SLOTS).into_iter().map(|s| (s, vec![0.0; count * m])).collect();
    let mut scratch = row_scratch(threads, partial.len());
    parallel::for_each(&mut scratch, partial.iter_mut(), |rows, (slot, sums)| {
        for start in slot.clone().step_by(PIECE) {
            let piece = start..slot.end.min(start + PIECE);
            for first in (0..m).step_by(ROWS) {
                let rows = four_rows(g, first, piece.clone(), rows);
                for v in 0..count {
                    let mut four = [0.0; ROWS];
                    gemv::dot(rows, &x[v * d..][piece.clone()], &mut four);
                    let sums = &mut sums[v * m + first..(v + 1) * m];
                    sums.iter_mut().zip(four).for_each(|(s, f)| *s += f);
                }
            }
        }
    });
    out.fill(0.0);
    for (_, sums) in partial {
        out.iter_mut().zip(sums).for_each(|(o, s)| *o += s);
    }
}

/// `finish(v, j, Σ_i factors[v·m + i] G_i,range.start + j)` for each vector of m factors; the pieces
/// of `out` (`range.len()` numbers for each vector) that `finish` fills are handed to it.
pub fn combine(
    g: Gradients<'_>,
    factors: &[f64],
    range: Range<usize>,
    out: &mut [f32],
    threads: usize,
    finish: impl Fn(usize, Range<usize>, &[f64], &mut [f32]) + Sync,
) {
    let (m, width) = (g.count(), range.len());
    if width == 0 {
        return;
    }
    let count = out.len() / width;
    assert!(out.len() == count * width && factors.len() == count * m);
    // The pieces of all vectors that cover the same columns go together.
    let mut pieces: Vec<Vec<&mut [f32]>> = Vec::new();
    pieces.resize_with(width.div_ceil(PIECE), Vec::new);
    for vector in out.chunks_exact_mut(width) {
        for (piece, part) in pieces.iter_mut().zip(vector.chunks_mut(PIECE)) {
            piece.push(part);
        }
    }
    let mut scratch: Vec<_> = row_scratch(threads, pieces.len())
        .into_iter()
        .map(|rows| (rows, vec![0.0; PIECE * count]))
        .collect();
    parallel::for_each(&mut scratch, pieces.into_iter().enumerate(), |(rows, sums), (p, parts)| {
        let start = range.start + p * PIECE;
        let columns = start..range.end.min(start + PIECE);
        let len = columns.len();
        sums.fill(0.0);
        for first in (0..m).step_by(ROWS) {
            let rows = four_rows(g, first, columns.clone(), rows);
            for v in 0..count {
                let four =
                    std::array::from_fn(|i| factors[v * m..(v + 1) * m].get(first + i).copied());
                let four: [f64; ROWS] = four.map(|f| f.unwrap_or(0.0));
                gemv::add(rows, four, &mut sums[v * len..][..len]);
            }
        }
        for (v, part) in parts.into_iter().enumerate() {
            finish(v, columns.clone(), &sums[v * len..][..len], part);
        }
    });
}

/// Packs columns `range` of the strip `columns` of G as panels of `depth` rows, those past m zero.
pub fn pack_columns(
    g: Gradients<'_>,
    range: Range<usize>,
    depth: usize,
    panels: &mut [f32],
    row: &mut [f32],
) {
    for i in 0..g.count() {
        panel::pack_row(g.row(i, range.clone(), row), i, depth, panels);
    }
    for strip in panels.chunks_exact_mut((tile::WIDTH * depth).max(1)) {
        strip[g.count() * tile::WIDTH..].fill(0.0);
    }
}

/// Packs the gradients' columns `range` as panels whose columns are the gradients.
fn pack_transposed(g: Gradients<'_>, range: Range<usize>, panels: &mut [f32], scratch: &mut [f32]) {
    let k = range.len();
    for first in (0..panel::strips(g.count()) * tile::WIDTH).step_by(SIDE) {
        let mut pieces = scratch.chunks_exact_mut(syrk::DEPTH);
        let eight: [&[f32]; SIDE] = std::array::from_fn(|i| {
            let piece = pieces.next().expect("scratch of eight pieces");
            row_or_zeros(g, first + i, range.clone(), piece)
        });
        panel::pack_columns(eight, first, k, panels);
    }
}

/// Four rows from `first`, those past m zero.
fn four_rows<'s>(
    g: Gradients<'s>,
    first: usize,
    range: Range<usize>,
    scratch: &'s mut [f32],
) -> [&'s [f32]; ROWS] {
    let mut pieces = scratch.chunks_exact_mut(PIECE);
    std::array::from_fn(|i| {
        let piece = pieces.next().expect("scratch of four pieces");
        row_or_zeros(g, first + i, range.clone(), piece)
    })
}

fn row_or_zeros<'s>(
    g: Gradients<'s>,
    i: usize,
    range: Range<usize>,
    scratch: &'s mut [f32],
) -> &'s [f32] {
    if i < g.count() {
        return g.row(i, range, scratch);
    }
    let zeros = &mut scratch[..range.len()];
    zeros.fill(0.0);
    zeros
}

/// Scratch for [`four_rows`], for each thread that has work.
fn row_scratch(threads: usize, items: usize) -> Vec<Vec<f32>> {
    vec![vec![0.0; ROWS * PIECE]; threads.clamp(1, items.max(1))]
}

/// Up to `most` ranges of equal length, a multiple of `unit`, that cover d columns.
fn slots(d: usize, unit: usize, most: usize) -> Vec<Range<usize>> {
    let len = d.div_ceil(most).next_multiple_of(unit);
    (0..d).step_by(len.max(1)).map(|start| start..d.min(start + len)).collect()
}
