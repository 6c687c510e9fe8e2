//! Fisher blocks summed while gradients stream by: no gradient is kept, whatever m is.
//!
//! For each block Q of the flat weight vector it holds Σ_i g_Q,i g_Q,iᵀ, and gives
//! F_Q = (1/m) Σ_i g_Q,i g_Q,iᵀ, the diagonal block of the empirical Fisher without damping. For d
//! weights in blocks of B that is about d·B/2 numbers; M-FAC's own form keeps d·m. This is the
//! form of choice wherever B ≤ m: smaller, cheaper (B² against m² products a weight and gradient)
//! and more accurate at small damping than the dual, which cancels there.

use std::ops::Range;

use super::kernels::{panel, syrk};
use super::parallel;
use crate::error::{Error, ErrorKind, Result, bail};

/// Σ g gᵀ over blocks of a flat weight vector, accumulated as gradients stream by.
///
/// Products are exact and summed in f64, at half the speed of f32: with fewer gradients than
/// weights the block is singular, and the rounding of f32 sums then exceeds a small damping; such
/// blocks could not be inverted. The result is the same to the last bit for any number of
/// threads; it does depend on how gradients are grouped into calls of [`BlockFisher::add`].
#[derive(Debug)]
pub struct BlockFisher {
    blocks: Vec<Range<usize>>,
    /// The half of Σ g gᵀ of each block, as `syrk` lays it out.
    halves: Vec<Vec<f64>>,
    gradients: usize,
    /// Packed gradients of one block, one buffer a thread.
    scratch: Vec<Vec<f64>>,
}

impl BlockFisher {
    /// Sums of zero for `blocks`: non-empty, disjoint, increasing ranges of the flat vector.
    ///
    /// Lengths may differ, and there may be gaps. Errors: `Usage` for ranges that break the rule,
    /// `Memory` when the sums ([`BlockFisher::state_bytes`]) cannot be allocated.
    pub fn new(blocks: Vec<Range<usize>>) -> Result<BlockFisher> {
        let mut end = 0;
        for block in &blocks {
            if block.is_empty() || block.start < end {
                bail!(
                    Usage,
                    "Fisher block {block:?} is empty or begins before {end}, where the one before \
                     it ends; blocks must be non-empty, disjoint and in increasing order"
                );
            }
            end = block.end;
        }
        let halves = blocks.iter().map(zeros).collect::<Result<Vec<_>>>()?;
        Ok(BlockFisher { blocks, halves, gradients: 0, scratch: Vec::new() })
    }

    /// The bytes that the sums of `blocks` take (about 4·B² a block of B weights).
    pub fn state_bytes(blocks: &[Range<usize>]) -> usize {
        let bytes = |block: &Range<usize>| match block.len() {
            // Wider blocks overflow the count; no machine holds them.
            0..=0x3fff_ffff => syrk::half_len(block.len()).saturating_mul(size_of::<f64>()),
            _ => usize::MAX,
        };
        blocks.iter().map(bytes).fold(0, usize::saturating_add)
    }

    /// Adds `count` gradients: row i is `rows[i·stride..][..width]`, its column 0 has flat index
    /// `offset`.
    ///
    /// Only blocks that lie wholly in `offset..offset + width` are touched, so the caller passes
    /// each block exactly once for each gradient and counts gradients with
    /// [`BlockFisher::set_gradients`]. Every call reads and writes all the sums of its blocks: hand
    /// over many gradients at a time (64 or more; 96 make best use of the caches). Numbers that
    /// are not finite spread into the block's sums.
    ///
    /// Panics when `rows` is shorter than the rows described.
    pub fn add(
        &mut self,
        rows: &[f32],
        count: usize,
        stride: usize,
        offset: usize,
        width: usize,
        threads: usize,
    ) {
        let first = self.blocks.partition_point(|b| b.start < offset);
        let last = self.blocks.partition_point(|b| b.end <= offset + width).max(first);
        if count == 0 || first == last {
            return;
        }
        assert!(rows.len() >= (count - 1) * stride + width && stride >= width);
        let (blocks, halves) = (&self.blocks[first..last], &mut self.halves[first..last]);
        let widest = blocks.iter().map(Range::len).max().unwrap_or(0);
        let scratch =
            buffers(&mut self.scratch, threads, panel::len(syrk::DOUBLE_DEPTH.min(count), widest));
        parallel::for_each(scratch, blocks.iter().zip(halves), |panels, (block, half)| {
            for start in (0..count).step_by(syrk::DOUBLE_DEPTH) {
                let k = syrk::DOUBLE_DEPTH.min(count - start);
                let rows = &rows[start * stride + block.start - offset..];
                panel::pack(rows, stride, k, block.len(), panels);
                syrk::add_double(block.len(), k, panels, half);
            }
        });
    }

    /// m, the number of gradients the sums stand for.
    pub fn gradients(&self) -> usize {
        self.gradients
    }

    /// Sets m, counted by the caller: a gradient may arrive in several calls of `add`.
    pub fn set_gradients(&mut self, m: usize) {
        self.gradients = m;
    }

    /// The blocks, in order.
    pub fn blocks(&self) -> &[Range<usize>] {
        &self.blocks
    }

    /// Writes F_Q = (1/m) Σ g_Q g_Qᵀ of block `index` to `out`, dense row-major B×B, both halves
    /// filled, without damping. All zeros while m is 0.
    ///
    /// Panics when there is no such block or `out` does not hold B·B numbers.
    pub fn block(&self, index: usize, out: &mut [f64]) {
        let n = self.blocks[index].len();
        assert_eq!(out.len(), n * n, "a block of {n} weights has {n}×{n} elements");
        syrk::expand(n, &self.halves[index], self.scale(), out);
    }

    /// The mean of F_ii, without damping, over the weights of `range` that lie in blocks; 0 when
    /// none does.
    pub fn diagonal_mean(&self, range: Range<usize>) -> f64 {
        let first = self.blocks.partition_point(|b| b.end <= range.start);
        let (mut sum, mut count) = (0.0, 0usize);
        for (block, half) in self.blocks.iter().zip(&self.halves).skip(first) {
            let (start, end) = (block.start.max(range.start), block.end.min(range.end));
            if start >= end {
                break;
            }
            for i in start - block.start..end - block.start {
                sum += syrk::get(block.len(), half, i, i);
            }
            count += end - start;
        }
        if count == 0 { 0.0 } else { sum * self.scale() / count as f64 }
    }

    /// 1/m, and 0 for no gradients.
    fn scale(&self) -> f64 {
        if self.gradients == 0 { 0.0 } else { 1.0 / self.gradients as f64 }
    }
}

/// The zeroed half of a block, or a `Memory` error.
fn zeros(block: &Range<usize>) -> Result<Vec<f64>> {
    let bytes = BlockFisher::state_bytes(std::slice::from_ref(block));
    let mut half = Vec::new();
    half.try_reserve_exact(bytes / size_of::<f64>()).map_err(|e| {
        let message = format!(
            "the Fisher block of weights {block:?} needs {bytes} bytes, which cannot be had; \
             choose smaller blocks"
        );
        Error::new(ErrorKind::Memory, message).with_source(e)
    })?;
    half.resize(bytes / size_of::<f64>(), 0.0);
    Ok(half)
}

/// One buffer of at least `len` numbers for each of `threads` (at least one).
fn buffers(scratch: &mut Vec<Vec<f64>>, threads: usize, len: usize) -> &mut [Vec<f64>] {
    let threads = threads.max(1);
    if scratch.len() < threads {
        scratch.resize_with(threads, Vec::new);
    }
    for buffer in &mut scratch[..threads] {
        if buffer.len() < len {
            buffer.resize(len, 0.0);
        }
    }
    &mut scratch[..threads]
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "one block is a case worth testing")]
mod tests {
    use super::*;
    use crate::mfac::tolerance::{
        Rng, assert_approximate, assert_exact, assert_rounding, gram_columns,
    };

    /// The columns `range` of the m×d matrix `g`.
    fn columns(g: &[f32], d: usize, range: &Range<usize>) -> Vec<f32> {
        g.chunks_exact(d).flat_map(|row| row[range.clone()].iter().copied()).collect()
    }

    fn block(fisher: &BlockFisher, index: usize) -> Vec<f64> {
        let mut out = vec![f64::NAN; fisher.blocks()[index].len().pow(2)];
        fisher.block(index, &mut out);
        out
    }

    #[test]
    fn streamed_blocks_match_dense_sums() {
        let blocks = vec![0..1, 3..67, 67..195, 200..225];
        let (m, d, stride) = (421, 230, 241);
        let g = Rng::new(3).normals(m * stride);
        let mut fisher = BlockFisher::new(blocks.clone()).unwrap();
        for (start, count) in [(0, 1), (1, 8), (9, 0), (9, 193), (202, 219)] {
            fisher.add(&g[start * stride..], count, stride, 0, d, 2);
        }
        fisher.set_gradients(m);
        for (i, range) in blocks.iter().enumerate() {
            let mut want = gram_columns(&columns(&g, stride, range), m, range.len());
            want.iter_mut().for_each(|w| *w /= m as f64);
            assert_rounding(&block(&fisher, i), &want, m);
        }
        let mean = |r: Range<usize>| {
            let all = blocks.iter().enumerate().flat_map(|(i, b)| {
                let (n, f) = (b.len(), block(&fisher, i));
                b.clone().map(move |j| (j, f[(j - b.start) * (n + 1)])).collect::<Vec<_>>()
            });
            let some: Vec<f64> = all.filter(|(j, _)| r.contains(j)).map(|(_, f)| f).collect();
            some.iter().sum::<f64>() / some.len() as f64
        };
        for range in [0..230, 3..67, 40..100, 100..205] {
            assert_approximate(&[fisher.diagonal_mean(range.clone())], &[mean(range)], 1e-14, 0.0);
        }
        assert_eq!(fisher.diagonal_mean(195..200), 0.0);
    }

    /// Fewer gradients than weights, whose scales span four decades: a damping that is small for
    /// the layer is smaller than the rounding of f32 sums in its steepest block.
    #[test]
    fn singular_blocks_are_exact_enough_to_be_damped() {
        let (m, d) = (24, 96);
        let mut g = Rng::new(6).normals(m * d);
        g.iter_mut().enumerate().for_each(|(i, v)| *v *= 10f32.powi((i % d / 24) as i32));
        let range = 0..d;
        let mut fisher = BlockFisher::new(vec![range]).unwrap();
        fisher.add(&g, m, d, 0, d, 1);
        fisher.set_gradients(m);
        let mut want = gram_columns(&g, m, d);
        want.iter_mut().for_each(|w| *w /= m as f64);
        let have = block(&fisher, 0);
        for (i, (h, w)) in have.iter().zip(&want).enumerate() {
            let scale = (want[i / d * (d + 1)] * want[i % d * (d + 1)]).sqrt();
            assert!((h - w).abs() <= 1e-14 * m as f64 * scale, "[{i}] is {h}, not {w}");
        }
    }

    #[test]
    fn windows_of_columns_touch_only_the_blocks_inside_them() {
        let (m, d) = (5, 90);
        let g = Rng::new(4).normals(m * d);
        let blocks = vec![0..30, 30..60, 60..90];
        let mut whole = BlockFisher::new(blocks.clone()).unwrap();
        whole.add(&g, m, d, 0, d, 1);
        whole.set_gradients(m);
        let mut parts = BlockFisher::new(blocks).unwrap();
        parts.add(&columns(&g, d, &(0..59)), m, 59, 0, 59, 1);
        parts.add(&columns(&g, d, &(1..90)), m, 89, 1, 89, 3);
        parts.set_gradients(m);
        for i in 0..3 {
            assert_exact(&block(&parts, i), &block(&whole, i));
        }
    }

    #[test]
    fn the_bytes_do_not_depend_on_the_threads() {
        let (m, d) = (300, 500);
        let g = Rng::new(5).normals(m * d);
        let sums = |threads| {
            let blocks: Vec<_> = (0..d).step_by(48).map(|s| s..(s + 48).min(d)).collect();
            let mut fisher = BlockFisher::new(blocks).unwrap();
            fisher.add(&g, m, d, 0, d, threads);
            fisher.set_gradients(m);
            (0..fisher.blocks().len()).flat_map(|i| block(&fisher, i)).collect::<Vec<_>>()
        };
        for threads in [2, 3, 16] {
            assert_exact(&sums(threads), &sums(1));
        }
    }

    #[test]
    fn rules_for_blocks_are_kept_and_nothing_is_allocated_wildly() {
        let kind = |blocks| BlockFisher::new(blocks).unwrap_err().kind();
        assert_eq!(kind(vec![0..4, 3..5]), ErrorKind::Usage);
        assert_eq!(kind(vec![5..9, 0..4]), ErrorKind::Usage);
        assert_eq!(kind(vec![7..7]), ErrorKind::Usage);
        assert_eq!(kind(vec![0..1 << 29]), ErrorKind::Memory);
        assert_eq!(kind(vec![0..usize::MAX]), ErrorKind::Memory);
        assert_eq!(BlockFisher::state_bytes(&[0..32]), 32 * 32 * 8);
        let empty = BlockFisher::new(vec![]).unwrap();
        assert_eq!(empty.diagonal_mean(0..10), 0.0);
        let unfed = BlockFisher::new(vec![0..2]).unwrap();
        assert_eq!(block(&unfed, 0), [0.0; 4]);
    }
}
