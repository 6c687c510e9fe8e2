//! The Fisher of a model within a memory limit: blocks in memory, or group by group in a file.
//!
//! Blocks of B weights take about 4·B² bytes while gradients stream by. Where all of them and a
//! panel of gradients fit the limit, one pass over the samples fills them. Otherwise the blocks are
//! cut into contiguous groups that fit; each group gets its own pass (whose backward graph ends at
//! the group's layers), and its finished blocks, packed lower triangles of f64, go to a nameless
//! file in the folder for temporary files, from where pruning reads one at a time. Panels have
//! the same number of rows whatever the limit, and f64 loses nothing, so the result is the same to
//! the last bit.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::error::{Error, ErrorKind, Result, bail};
use crate::gradient::collect::Panel;
use crate::mfac::BlockFisher;
use crate::prune::Curvature;

/// What is set aside for packed panels, vectors and lists, in bytes.
pub(super) const ALLOWANCE_BYTES: usize = 2 << 20;

/// B×B matrices of f64 that a thread works on while it prunes a block: the block, its packed part,
/// the factor or inverse of that, and the greedy order's own two in f64.
const WORKING_MATRICES: usize = 5;

/// What the Fisher may cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    /// What gradients and Fisher blocks may take together, in bytes.
    pub limit_bytes: usize,
    /// m.
    pub gradients: usize,
    /// Rows of the largest panel of gradients.
    pub panel_rows: usize,
    /// Worker threads.
    pub threads: usize,
}

/// Finished Fisher blocks.
#[derive(Debug)]
pub(super) struct FisherBlocks {
    blocks: Vec<Range<usize>>,
    /// The sum of each block's undamped diagonal.
    traces: Vec<f64>,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Memory(BlockFisher),
    /// The packed lower triangle of each block begins at its offset.
    Spilled {
        file: File,
        offsets: Vec<u64>,
    },
}

/// Groups of blocks, each summed in one pass.
#[derive(Debug, PartialEq)]
pub(super) struct Groups {
    /// Ranges of block numbers, in order.
    pub groups: Vec<Range<usize>>,
    /// Whether finished blocks leave memory.
    pub spills: bool,
}

/// A pass over all gradients, restricted to a range of the flat vector.
pub(super) type Pass<'a> =
    dyn FnMut(Range<usize>, &mut dyn FnMut(Panel<'_>) -> Result<()>) -> Result<()> + 'a;

impl FisherBlocks {
    /// Sums `blocks` over as many passes as `groups` asks for.
    ///
    /// Errors: those of a pass, `Memory`, and `Io` when the file cannot be written.
    pub fn collect(
        blocks: Vec<Range<usize>>,
        groups: &Groups,
        budget: Budget,
        pass: &mut Pass<'_>,
    ) -> Result<FisherBlocks> {
        let mut spill = if groups.spills { Some(Spill::new()?) } else { None };
        let (mut traces, mut held) = (Vec::with_capacity(blocks.len()), None);
        for group in &groups.groups {
            let group = &blocks[group.clone()];
            let fisher = sum(group, budget, pass)?;
            traces.extend(group.iter().map(|b| fisher.diagonal_mean(b.clone()) * b.len() as f64));
            match &mut spill {
                Some(spill) => spill.write(&fisher)?,
                None => held = Some(fisher),
            }
        }
        let place = match spill {
            Some(spill) => spill.finish()?,
            None => Place::Memory(held.map_or_else(|| BlockFisher::new(Vec::new()), Ok)?),
        };
        Ok(FisherBlocks { blocks, traces, place })
    }
}

/// The sums of one group from one pass.
fn sum(group: &[Range<usize>], budget: Budget, pass: &mut Pass<'_>) -> Result<BlockFisher> {
    let mut fisher = BlockFisher::new(group.to_vec())?;
    let (Some(first), Some(last)) = (group.first(), group.last()) else { return Ok(fisher) };
    let (start, width) = (first.start, last.end - first.start);
    pass(start..last.end, &mut |panel| {
        fisher.add(panel.rows, panel.count, width, start, width, budget.threads);
        Ok(())
    })?;
    fisher.set_gradients(budget.gradients);
    Ok(fisher)
}

impl Groups {
    /// Cuts `blocks` into as few groups as stay within the budget; `name` names the tensor of a
    /// block.
    ///
    /// Error `Memory`: a block does not fit by itself; the message says what it needs.
    pub fn plan(
        blocks: &[Range<usize>],
        budget: Budget,
        name: impl Fn(&Range<usize>) -> String,
    ) -> Result<Groups> {
        let room = budget.limit_bytes.saturating_sub(ALLOWANCE_BYTES);
        let working = |b: &Range<usize>| {
            let matrix = b.len().saturating_mul(b.len()).saturating_mul(size_of::<f64>());
            matrix.saturating_mul(WORKING_MATRICES * budget.threads.max(1))
        };
        let working = blocks.iter().map(working).max().unwrap_or(0);
        let state = BlockFisher::state_bytes(blocks);
        let all = blocks
            .iter()
            .map(|b| panel_bytes(b, budget))
            .fold(0, usize::saturating_add)
            .max(working);
        if state.saturating_add(all) <= room {
            return Ok(Groups {
                groups: std::iter::once(0..blocks.len()).collect(),
                spills: false,
            });
        }
        let (mut groups, mut start, mut sum) = (Vec::new(), 0, 0usize);
        for (i, block) in blocks.iter().enumerate() {
            let state = BlockFisher::state_bytes(std::slice::from_ref(block));
            let bytes = state.saturating_add(panel_bytes(block, budget));
            let alone = bytes.max(working);
            if alone > room {
                bail!(
                    Memory,
                    "tensor {:?}: a Fisher block of {} weights needs {} bytes, and the memory \
                     limit is {}; raise --memory-limit or choose a smaller --block",
                    name(block),
                    block.len(),
                    alone.saturating_add(ALLOWANCE_BYTES),
                    budget.limit_bytes
                );
            }
            if sum.saturating_add(bytes) > room {
                groups.push(start..i);
                (start, sum) = (i, 0);
            }
            sum += bytes;
        }
        groups.push(start..blocks.len());
        Ok(Groups { groups, spills: true })
    }
}

/// The columns of a block in a panel of gradients.
fn panel_bytes(block: &Range<usize>, budget: Budget) -> usize {
    block.len().saturating_mul(budget.panel_rows * size_of::<f32>())
}

/// Finished blocks on their way to a file.
struct Spill {
    file: BufWriter<File>,
    offsets: Vec<u64>,
    end: u64,
    dense: Vec<f64>,
}

impl Spill {
    fn new() -> Result<Spill> {
        let file = BufWriter::new(tempfile::tempfile().map_err(failed)?);
        Ok(Spill { file, offsets: Vec::new(), end: 0, dense: Vec::new() })
    }

    fn write(&mut self, fisher: &BlockFisher) -> Result<()> {
        for (index, block) in fisher.blocks().iter().enumerate() {
            let n = block.len();
            self.dense.resize(n * n, 0.0);
            fisher.block(index, &mut self.dense);
            self.offsets.push(self.end);
            for (i, row) in self.dense.chunks_exact(n).enumerate() {
                for value in &row[..=i] {
                    self.file.write_all(&value.to_le_bytes()).map_err(failed)?;
                }
            }
            self.end += packed_bytes(n) as u64;
        }
        Ok(())
    }

    fn finish(self) -> Result<Place> {
        let file = self.file.into_inner().map_err(|e| failed(e.into_error()))?;
        Ok(Place::Spilled { file, offsets: self.offsets })
    }
}

/// The bytes of a packed lower triangle.
fn packed_bytes(n: usize) -> usize {
    n * (n + 1) / 2 * size_of::<f64>()
}

fn failed(source: std::io::Error) -> Error {
    let folder = std::env::temp_dir();
    let message = format!(
        "{}: Fisher blocks beyond the memory limit cannot be kept there: {source}; set TMPDIR to a \
         folder with more space or raise --memory-limit",
        folder.display()
    );
    Error::new(ErrorKind::Io, message).with_source(source)
}

impl Curvature for FisherBlocks {
    fn blocks(&self) -> &[Range<usize>] {
        &self.blocks
    }

    fn block(&self, index: usize, out: &mut [f64]) -> Result<()> {
        let (file, offsets) = match &self.place {
            Place::Memory(fisher) => {
                fisher.block(index, out);
                return Ok(());
            }
            Place::Spilled { file, offsets } => (file, offsets),
        };
        let n = self.blocks[index].len();
        let mut packed = vec![0; packed_bytes(n)];
        file.read_exact_at(&mut packed, offsets[index]).map_err(failed)?;
        let mut values = packed.as_chunks::<8>().0.iter();
        for i in 0..n {
            for (j, bytes) in values.by_ref().take(i + 1).enumerate() {
                let value = f64::from_le_bytes(*bytes);
                out[i * n + j] = value;
                out[j * n + i] = value;
            }
        }
        Ok(())
    }

    fn diagonal_mean(&self, range: Range<usize>) -> f64 {
        let first = self.blocks.partition_point(|b| b.start < range.start);
        let end = self.blocks.partition_point(|b| b.end <= range.end).max(first);
        let count: usize = self.blocks[first..end].iter().map(Range::len).sum();
        self.traces[first..end].iter().sum::<f64>() / count.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;

    const WIDTH: usize = 900;

    fn blocks() -> Vec<Range<usize>> {
        (0..WIDTH).step_by(30).map(|s| s..s + 30).collect()
    }

    fn budget(limit_bytes: usize) -> Budget {
        Budget { limit_bytes, gradients: 200, panel_rows: 64, threads: 2 }
    }

    /// Sums of the same gradients under a limit, and how many passes they took.
    fn collected(limit_bytes: usize) -> (FisherBlocks, usize) {
        let mut stream = Stream::new(5, 0);
        let gradients: Vec<f32> = (0..200 * WIDTH).map(|_| stream.normal()).collect();
        let mut passes = 0;
        let groups = Groups::plan(&blocks(), budget(limit_bytes), |_| "w".into()).unwrap();
        let mut pass = |range: Range<usize>, sink: &mut dyn FnMut(Panel<'_>) -> Result<()>| {
            passes += 1;
            for rows in gradients.chunks(64 * WIDTH) {
                let part: Vec<f32> =
                    rows.chunks(WIDTH).flat_map(|row| &row[range.clone()]).copied().collect();
                sink(Panel { rows: &part, count: rows.len() / WIDTH })?;
            }
            Ok(())
        };
        let fisher =
            FisherBlocks::collect(blocks(), &groups, budget(limit_bytes), &mut pass).unwrap();
        (fisher, passes)
    }

    #[test]
    fn spilled_blocks_are_those_in_memory_to_the_last_bit() {
        let (held, one) = collected(1 << 30);
        let (spilled, many) = collected(ALLOWANCE_BYTES + (100 << 10));
        assert!(one == 1 && many > 3, "{one} {many}");
        assert!(matches!(spilled.place, Place::Spilled { .. }));
        let (mut a, mut b) = (vec![0.0; 900], vec![1.0; 900]);
        for i in 0..blocks().len() {
            held.block(i, &mut a).unwrap();
            spilled.block(i, &mut b).unwrap();
            assert!(a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits()), "block {i}");
            assert!(a[0] > 0.5 && a[0] < 1.5, "{}", a[0]);
        }
        for range in [0..WIDTH, 60..120] {
            let (a, b) = (held.diagonal_mean(range.clone()), spilled.diagonal_mean(range));
            assert!(a == b && a > 0.8 && a < 1.2, "{a} {b}");
        }
    }

    #[test]
    fn groups_stay_within_the_limit_and_a_block_too_large_is_named() {
        let limit = ALLOWANCE_BYTES + (100 << 10);
        let groups = Groups::plan(&blocks(), budget(limit), |_| "w".into()).unwrap();
        assert!(groups.spills);
        let mut end = 0;
        for group in &groups.groups {
            assert!(group.start == end && !group.is_empty());
            end = group.end;
            let part = &blocks()[group.clone()];
            let panels: usize = part.iter().map(|b| panel_bytes(b, budget(0))).sum();
            assert!(BlockFisher::state_bytes(part) + panels <= 100 << 10);
        }
        assert_eq!(end, blocks().len());
        let error = Groups::plan(&blocks(), budget(1 << 10), |_| "w".into()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Memory);
        let text = error.to_string();
        assert!(text.contains("\"w\"") && text.contains("--memory-limit"), "{text}");
    }
}
