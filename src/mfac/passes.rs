//! Passes over G: the Gram matrix GGᵀ, products G·x and sums Gᵀ·c, shared by the static and the
//! dynamic algorithm.
//!
//! Columns are divided among a number of slots that depends on the shape of G alone, and what the
//! slots sum is added in their order: the bytes do not depend on the number of threads.

use std::ops::Range;

use super::kernels::gemv::{self, ROWS};
use super::kernels::panel::{self, Panels};
use super::kernels::syrk::{self, SINGLE_SUMS};
use super::kernels::tile;
use super::kernels::transpose::SIDE;
use super::parallel;
use super::store::Gradients;
use crate::sys::Crew;

/// Columns that one step of a product with a vector takes: few enough that the rows' pieces stay in
/// a first-level cache, enough for long streams.
const PIECE: usize = 4096;
/// The most slots a pass is divided into.
const SLOTS: usize = 16;
/// The most numbers the Gram matrices of all slots may take: 80 MiB of f64, two slots at least.
const GRAM_NUMBERS: usize = 10 << 20;

/// How the products of a Gram matrix are summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sums {
    /// Up to [`SINGLE_SUMS`] in f32, those sums in f64.
    Single,
    /// In f64 throughout: exact products, half the speed.
    Double,
}

/// What one thread needs for a Gram matrix.
#[derive(Default)]
struct GramScratch {
    panels: Vec<f32>,
    rows: Vec<f32>,
    wide: Vec<f64>,
    single: Vec<f32>,
}

/// The half (as `syrk` lays it out) of GGᵀ.
pub fn gram(g: Gradients<'_>, sums: Sums, threads: usize) -> Vec<f64> {
    let (m, d) = (g.count(), g.dimension());
    let len = syrk::half_len(m);
    let depth = if sums == Sums::Single { syrk::DEPTH } else { syrk::DOUBLE_DEPTH };
    let slots = slots(d, SINGLE_SUMS, (GRAM_NUMBERS / len.max(1)).clamp(2, SLOTS));
    let mut halves: Vec<_> = slots.into_iter().map(|slot| (slot, Vec::new())).collect();
    let mut scratch: Vec<_> = (0..threads.clamp(1, halves.len().max(1)))
        .map(|_| GramScratch {
            panels: vec![0.0; panel::len(depth, m)],
            rows: vec![0.0; SIDE * depth],
            ..GramScratch::default()
        })
        .collect();
    parallel::for_each(&mut scratch, halves.iter_mut(), |scratch, (slot, half)| {
        let GramScratch { panels, rows, wide, single } = scratch;
        for start in slot.clone().step_by(depth) {
            let k = depth.min(slot.end - start);
            let panels = &mut panels[..panel::len(k, m)];
            pack_transposed(g, start..start + k, panels, rows);
            match sums {
                Sums::Single => {
                    let (done, end) = (start - slot.start, start + k);
                    let next = end..slot.end.min(end + depth);
                    single.resize(len, 0.0);
                    let fresh = done.is_multiple_of(SINGLE_SUMS);
                    let packed = Panels::packed(panels, k);
                    syrk::single(m, packed, fresh, single, &mut g.ahead(0..m, next));
                    if (done + k).is_multiple_of(SINGLE_SUMS) || end == slot.end {
                        syrk::widen(single, half);
                    }
                }
                Sums::Double => {
                    // Written here, by the thread that reads them: pages that are read before they
                    // are written are mapped twice, the second time at the cost of all threads.
                    half.resize(len, 0.0);
                    panel::widen(panels, wide);
                    syrk::add_double(m, k, wide, half);
                }
            }
        }
    });
    let mut halves = halves.into_iter().map(|(_, half)| half);
    let mut total = halves.next().unwrap_or_else(|| vec![0.0; len]);
    for half in halves {
        total.iter_mut().zip(half).for_each(|(t, h)| *t += h);
    }
    total
}

/// What [`products`] and [`combine_one`] compute in and on, kept by those who call them often: a
/// second call on gradients of the same shape allocates nothing and starts no thread.
#[derive(Debug, Default)]
pub struct Scratch {
    /// m and d of the gradients that `partial` is for.
    shape: (usize, usize),
    /// Slots of columns and their sums.
    partial: Vec<(Range<usize>, Vec<f64>)>,
    /// Sums of a piece, for each thread.
    pieces: Vec<Vec<f64>>,
    crew: Crew,
}

impl Scratch {
    fn prepare(&mut self, g: Gradients<'_>, count: usize, threads: usize) {
        let (m, d) = (g.count(), g.dimension());
        if self.shape != (m, d) {
            let slots = slots(d, PIECE, SLOTS);
            self.partial = slots.into_iter().map(|slot| (slot, Vec::new())).collect();
            self.shape = (m, d);
        }
        for (_, sums) in &mut self.partial {
            sums.clear();
            sums.resize(count * m, 0.0);
        }
        self.prepare_pieces(count, threads.clamp(1, d.div_ceil(PIECE).max(1)));
    }

    /// Exactly so many: there is a thread for each.
    fn prepare_pieces(&mut self, count: usize, threads: usize) {
        self.pieces.resize_with(threads, Vec::new);
        self.pieces.iter_mut().for_each(|sums| sums.resize(PIECE * count, 0.0));
    }
}

/// `out[v·m + i] = Σ_j G_ij x_v[j]` for each of the vectors (d numbers each) in `x`; `beside` is
/// called meanwhile.
pub fn products(
    g: Gradients<'_>,
    x: &[f64],
    out: &mut [f64],
    scratch: &mut Scratch,
    beside: impl FnOnce() + Send,
    threads: usize,
) {
    let (m, d) = (g.count(), g.dimension());
    let count = out.len() / m.max(1);
    assert!(out.len() == count * m && x.len() == count * d);
    scratch.prepare(g, count, threads);
    let Scratch { partial, pieces, crew, .. } = scratch;
    let threads = pieces.len().min(partial.len().max(1));
    let pieces = &mut pieces[..threads];
    parallel::for_each_beside(crew, pieces, beside, partial.iter_mut(), |_, (slot, sums)| {
        for start in slot.clone().step_by(PIECE) {
            let piece = start..slot.end.min(start + PIECE);
            for first in (0..m).step_by(ROWS) {
                let (rows, scales) = g.rows(first, piece.clone());
                if first + ROWS < m {
                    g.rows(first + ROWS, piece.clone()).0.soon();
                }
                for v in 0..count {
                    let mut some = [0.0; ROWS];
                    gemv::dot(rows, &x[v * d..][piece.clone()], &mut some);
                    let sums = &mut sums[v * m + first..(v + 1) * m];
                    let some = some.into_iter().zip(scales);
                    sums.iter_mut().zip(some).for_each(|(s, (f, scale))| *s += scale * f);
                }
            }
        }
    });
    out.fill(0.0);
    for (_, sums) in partial {
        out.iter_mut().zip(sums).for_each(|(o, s)| *o += *s);
    }
}

/// `finish(v, j, Σ_i factors[v·m + i] G_i,range.start + j)` for each vector of m factors; the
/// pieces of `out` (`range.len()` numbers for each vector) that `finish` fills are handed to it.
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
    let mut scratch = Scratch::default();
    scratch.prepare_pieces(count, threads.clamp(1, pieces.len()));
    let items = pieces.into_iter().enumerate();
    let Scratch { pieces, crew, .. } = &mut scratch;
    parallel::for_each_by(crew, pieces, items, |sums, (p, parts)| {
        let start = range.start + p * PIECE;
        let columns = start..range.end.min(start + PIECE);
        let len = columns.len();
        sum_rows(g, factors, columns.clone(), &mut sums[..count * len]);
        for (v, part) in parts.into_iter().enumerate() {
            finish(v, columns.clone(), &sums[v * len..][..len], part);
        }
    });
}

/// [`combine`] of one vector over all columns, in scratch that the caller keeps.
pub fn combine_one(
    g: Gradients<'_>,
    factors: &[f64],
    out: &mut [f32],
    scratch: &mut Scratch,
    threads: usize,
    finish: impl Fn(Range<usize>, &[f64], &mut [f32]) + Sync,
) {
    assert!(out.len() == g.dimension() && factors.len() == g.count());
    let items = out.chunks_mut(PIECE).enumerate();
    scratch.prepare_pieces(1, threads.clamp(1, items.len().max(1)));
    let Scratch { pieces, crew, .. } = scratch;
    parallel::for_each_by(crew, pieces, items, |sums, (p, part)| {
        let columns = p * PIECE..p * PIECE + part.len();
        let sums = &mut sums[..part.len()];
        sum_rows(g, factors, columns.clone(), sums);
        finish(columns, sums, part);
    });
}

/// Σ_i factors[v·m + i] G_i of the columns, for each vector of m factors, to `sums`.
fn sum_rows(g: Gradients<'_>, factors: &[f64], columns: Range<usize>, sums: &mut [f64]) {
    let (m, len) = (g.count(), columns.len());
    sums.fill(0.0);
    for first in (0..m).step_by(ROWS) {
        let (rows, scales) = g.rows(first, columns.clone());
        if first + ROWS < m {
            g.rows(first + ROWS, columns.clone()).0.soon();
        }
        for (v, sums) in sums.chunks_exact_mut(len).enumerate() {
            let factor = |i: usize| factors[v * m..(v + 1) * m].get(first + i).unwrap_or(&0.0);
            gemv::add(rows, std::array::from_fn(|i| scales[i] * factor(i)), sums);
        }
    }
}

/// The rows `rows` of G for the tile: where they are, if they are whole strips of f32, else packed
/// to `packed`, with `row` for one row.
pub fn panels<'a>(
    g: Gradients<'a>,
    rows: Range<usize>,
    packed: &'a mut Vec<f32>,
    row: &mut Vec<f32>,
) -> Panels<'a> {
    let (k, n) = (rows.len(), g.dimension());
    if let Some((numbers, stride)) = g.strided(rows.start).filter(|_| n.is_multiple_of(tile::WIDTH))
    {
        return Panels::in_place(numbers, k, stride);
    }
    pack(g, rows, packed, row);
    Panels::packed(packed, k)
}

/// Packs the rows `rows` of G, with `row` for one row.
pub fn pack(g: Gradients<'_>, rows: Range<usize>, packed: &mut Vec<f32>, row: &mut Vec<f32>) {
    let (k, n) = (rows.len(), g.dimension());
    packed.resize(panel::len(k, n), 0.0);
    if let Some((numbers, stride)) = g.strided(rows.start) {
        return panel::pack(numbers, stride, k, n, packed);
    }
    row.resize(n, 0.0);
    for (i, from) in rows.enumerate() {
        panel::pack_row(g.row(from, 0..n, row), i, k, packed);
    }
}

/// Packs the gradients' columns `range` as panels whose columns are the gradients.
fn pack_transposed(g: Gradients<'_>, range: Range<usize>, panels: &mut [f32], scratch: &mut [f32]) {
    let k = range.len();
    for first in (0..panel::strips(g.count()) * tile::WIDTH).step_by(SIDE) {
        let mut pieces = scratch.chunks_exact_mut(k);
        let some: [&[f32]; SIDE] = std::array::from_fn(|i| {
            let piece = pieces.next().expect("scratch of sixteen pieces");
            row_or_zeros(g, first + i, range.clone(), piece)
        });
        panel::pack_columns(some, first, k, panels);
    }
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

/// Up to `most` ranges of equal length, a multiple of `unit`, that cover d columns.
fn slots(d: usize, unit: usize, most: usize) -> Vec<Range<usize>> {
    let len = d.div_ceil(most).next_multiple_of(unit);
    (0..d).step_by(len.max(1)).map(|start| start..d.min(start + len)).collect()
}
