//! The Fisher of a model within a memory limit: blocks in memory, or group by group in a file.
//!
//! Blocks of B weights take about 4·B² bytes while gradients stream by. Where all of them and a
//! panel of gradients fit the limit, one pass over the samples fills them. Otherwise the blocks are
//! cut into contiguous groups that fit; each group gets its own pass (whose backward graph ends at
//! the group's layers), and its finished blocks, packed lower triangles of f64, go to a nameless
//! file in the folder for temporary files, from where pruning reads one at a time. Panels have
//! the same number of rows whatever the limit, and f64 loses nothing, so the result is the same to
//! the last bit.
//!
//! Blocks wider than m and than [`WIDEST_MATRIX`] are kept as their m×B gradients instead, in f32:
//! in memory where all fits, else in a mapped nameless file whose pages the system takes back when
//! memory is short.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::error::{Error, ErrorKind, Result, bail};
use crate::gradient::collect::Panel;
use crate::mfac::{BlockFisher, GradientStore, Gradients, Storage};
use crate::prune::Curvature;

/// What is set aside for packed panels, vectors and lists, in bytes.
pub(super) const ALLOWANCE_BYTES: usize = 2 << 20;

/// B×B matrices of f64 that a thread works on while it prunes a block: the block, and those of the
/// greedy order, two in f32 and three in f64; other orders take fewer.
const WORKING_MATRICES: usize = 5;

/// m×m matrices of f64 for a wide block: the factor, and a chunk of columns that counts as another.
const WIDE_WORKING_MATRICES: usize = 2;

/// Blocks up to this size are matrices even where fewer gradients were taken (B > m): the exact
/// greedy order costs B² operations a weight, and beats the staged one of wide blocks.
pub(super) const WIDEST_MATRIX: usize = 512;

/// Vectors over the block, of f64.
const WORKING_VECTORS: usize = 10;

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
    forms: Vec<Form>,
    /// The blocks that stay in memory.
    held: BlockFisher,
    /// Those that do not.
    spilled: Option<File>,
}

#[derive(Debug)]
enum Form {
    /// Number so many of those held in memory.
    Held(usize),
    /// A packed lower triangle from this offset of the file.
    Spilled(u64),
    /// m×B gradients.
    Wide(GradientStore),
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
        let (mut traces, mut forms) = (Vec::new(), Vec::new());
        let mut held = BlockFisher::new(Vec::new())?;
        for group in &groups.groups {
            let group = &blocks[group.clone()];
            let (fisher, wide) = sum(group, budget, groups.spills, pass)?;
            let (mut wide, mut number) = (wide.into_iter(), 0);
            for block in group {
                if budget.is_wide(block) {
                    let wide = wide.next().expect("one for each wide block");
                    traces.push(wide.squares / budget.gradients as f64);
                    forms.push(Form::Wide(wide.store));
                    continue;
                }
                traces.push(fisher.diagonal_mean(block.clone()) * block.len() as f64);
                forms.push(match &mut spill {
                    Some(spill) => Form::Spilled(spill.write(&fisher, number)?),
                    None => Form::Held(number),
                });
                number += 1;
            }
            if spill.is_none() {
                held = fisher;
            }
        }
        let spilled = spill.map(Spill::finish).transpose()?;
        Ok(FisherBlocks { blocks, traces, forms, held, spilled })
    }
}

/// The gradients of a wide block.
struct Wide {
    block: Range<usize>,
    store: GradientStore,
    /// Σ g² over all of them.
    squares: f64,
}

impl Wide {
    fn new(block: Range<usize>, gradients: usize, on_disk: bool) -> Result<Wide> {
        let folder = std::env::temp_dir();
        let folder = on_disk.then_some(folder.as_path());
        let store = GradientStore::new(gradients, block.len(), Storage::F32, folder)?;
        Ok(Wide { block, store, squares: 0.0 })
    }

    fn set_row(&mut self, i: usize, gradient: &[f32]) -> Result<()> {
        self.squares += gradient.iter().map(|&g| g as f64 * g as f64).sum::<f64>();
        self.store.set_row(i, gradient)
    }
}

/// The sums and the wide blocks of one group from one pass.
fn sum(
    group: &[Range<usize>],
    budget: Budget,
    on_disk: bool,
    pass: &mut Pass<'_>,
) -> Result<(BlockFisher, Vec<Wide>)> {
    let (wide, narrow): (Vec<_>, Vec<_>) = group.iter().cloned().partition(|b| budget.is_wide(b));
    let mut fisher = BlockFisher::new(narrow)?;
    let new = |block| Wide::new(block, budget.gradients, on_disk);
    let mut wide = wide.into_iter().map(new).collect::<Result<Vec<_>>>()?;
    let (Some(first), Some(last)) = (group.first(), group.last()) else {
        return Ok((fisher, wide));
    };
    let (start, width, mut done) = (first.start, last.end - first.start, 0);
    pass(start..last.end, &mut |panel| {
        fisher.add(panel.rows, panel.count, width, start, width, budget.threads);
        for (i, row) in panel.rows.chunks_exact(width).enumerate() {
            for wide in &mut wide {
                let columns = wide.block.start - start..wide.block.end - start;
                wide.set_row(done + i, &row[columns])?;
            }
        }
        done += panel.count;
        Ok(())
    })?;
    fisher.set_gradients(budget.gradients);
    Ok((fisher, wide))
}

impl Budget {
    /// Whether a block is kept as gradients: its matrix would be larger, and too large for the
    /// exact greedy order, which only the matrix allows.
    fn is_wide(&self, block: &Range<usize>) -> bool {
        block.len() > self.gradients.max(WIDEST_MATRIX)
    }

    /// Bytes of a block while its group is summed; wide ones that spill are written at once.
    fn state_bytes(&self, block: &Range<usize>, spills: bool) -> usize {
        match (self.is_wide(block), spills) {
            (false, _) => BlockFisher::state_bytes(std::slice::from_ref(block)),
            (true, true) => 0,
            (true, false) => GradientStore::bytes(self.gradients, block.len(), Storage::F32)
                .unwrap_or(usize::MAX),
        }
    }

    /// Bytes of a block's part of a panel.
    fn panel_bytes(&self, block: &Range<usize>) -> usize {
        block.len().saturating_mul(self.panel_rows * size_of::<f32>())
    }

    /// Bytes that all threads take to prune blocks like this one.
    fn working_bytes(&self, block: &Range<usize>) -> usize {
        let (matrices, side) = match self.is_wide(block) {
            true => (WIDE_WORKING_MATRICES, self.gradients),
            false => (WORKING_MATRICES, block.len()),
        };
        let numbers = side.saturating_mul(side).saturating_mul(matrices);
        let numbers = numbers.saturating_add(block.len().saturating_mul(WORKING_VECTORS));
        numbers.saturating_mul(size_of::<f64>() * self.threads.max(1))
    }
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
        let working = blocks.iter().map(|b| budget.working_bytes(b)).max().unwrap_or(0);
        let total = |bytes: &dyn Fn(&Range<usize>) -> usize| {
            blocks.iter().map(bytes).fold(0, usize::saturating_add)
        };
        let states = total(&|b| budget.state_bytes(b, false));
        // Panels are gone when blocks are pruned.
        let rest = total(&|b| budget.panel_bytes(b)).max(working);
        if states.saturating_add(rest) <= room {
            return Ok(Groups {
                groups: std::iter::once(0..blocks.len()).collect(),
                spills: false,
            });
        }
        let (mut groups, mut start, mut sum) = (Vec::new(), 0, 0usize);
        for (i, block) in blocks.iter().enumerate() {
            let bytes = budget.state_bytes(block, true).saturating_add(budget.panel_bytes(block));
            let alone = bytes.max(budget.working_bytes(block));
            if alone > room {
                bail!(
                    Memory,
                    "tensor {:?}: a Fisher block of {} weights needs {} bytes, and the memory \
                     limit is {}; raise the memory limit or choose smaller blocks",
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

/// Finished blocks on their way to a file.
struct Spill {
    file: BufWriter<File>,
    end: u64,
    dense: Vec<f64>,
}

impl Spill {
    fn new() -> Result<Spill> {
        let file = BufWriter::new(tempfile::tempfile().map_err(failed)?);
        Ok(Spill { file, end: 0, dense: Vec::new() })
    }

    /// Writes a block and says where.
    fn write(&mut self, fisher: &BlockFisher, index: usize) -> Result<u64> {
        let n = fisher.blocks()[index].len();
        self.dense.resize(n * n, 0.0);
        fisher.block(index, &mut self.dense);
        for (i, row) in self.dense.chunks_exact(n).enumerate() {
            for value in &row[..=i] {
                self.file.write_all(&value.to_le_bytes()).map_err(failed)?;
            }
        }
        let start = self.end;
        self.end += packed_bytes(n) as u64;
        Ok(start)
    }

    fn finish(self) -> Result<File> {
        self.file.into_inner().map_err(|e| failed(e.into_error()))
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
         folder with more space or raise the memory limit",
        folder.display()
    );
    Error::new(ErrorKind::Io, message).with_source(source)
}

impl Curvature for FisherBlocks {
    fn blocks(&self) -> &[Range<usize>] {
        &self.blocks
    }

    fn block(&self, index: usize, out: &mut [f64]) -> Result<()> {
        let (file, offset) = match (&self.forms[index], &self.spilled) {
            (Form::Held(number), _) => {
                self.held.block(*number, out);
                return Ok(());
            }
            (Form::Spilled(offset), Some(file)) => (file, *offset),
            _ => bail!(Usage, "Fisher block {index} is kept as gradients, it has no matrix"),
        };
        let n = self.blocks[index].len();
        let mut packed = vec![0; packed_bytes(n)];
        file.read_exact_at(&mut packed, offset).map_err(failed)?;
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

    fn gradients(&self, index: usize) -> Option<Gradients<'_>> {
        match &self.forms[index] {
            Form::Wide(store) => Some(store.all()),
            _ => None,
        }
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
        assert!(matches!(spilled.forms[0], Form::Spilled(0)));
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
    fn wide_blocks_keep_their_gradients_in_memory_and_on_disk() {
        let (m, blocks) = (20, vec![0..600, 600..640, 640..1300]);
        let mut stream = Stream::new(6, 0);
        let gradients: Vec<f32> = (0..m * 1300).map(|_| stream.normal()).collect();
        for (limit_bytes, spills) in [(1 << 30, false), (ALLOWANCE_BYTES + (120 << 10), true)] {
            let budget = Budget { limit_bytes, gradients: m, panel_rows: 8, threads: 1 };
            let groups = Groups::plan(&blocks, budget, |_| "w".into()).unwrap();
            assert_eq!(groups.spills, spills);
            let mut pass = |range: Range<usize>, sink: &mut dyn FnMut(Panel<'_>) -> Result<()>| {
                for rows in gradients.chunks(8 * 1300) {
                    let part: Vec<f32> =
                        rows.chunks(1300).flat_map(|row| &row[range.clone()]).copied().collect();
                    sink(Panel { rows: &part, count: rows.len() / 1300 })?;
                }
                Ok(())
            };
            let fisher = FisherBlocks::collect(blocks.clone(), &groups, budget, &mut pass).unwrap();
            assert!(fisher.gradients(1).is_none());
            let mut matrix = vec![0.0; 40 * 40];
            fisher.block(1, &mut matrix).unwrap();
            assert!(matrix[0] > 0.2 && matrix[0] < 3.0, "{}", matrix[0]);
            for index in [0, 2] {
                let range = blocks[index].clone();
                let (stored, mut scratch) = (fisher.gradients(index).unwrap(), Vec::new());
                scratch.resize(range.len(), 0.0);
                let mut squares = 0.0;
                for i in 0..m {
                    let row = stored.row(i, 0..range.len(), &mut scratch);
                    assert_eq!(row, &gradients[i * 1300..][range.clone()]);
                    squares += row.iter().map(|g| f64::from(g * g)).sum::<f64>();
                }
                let mean = squares / (m * range.len()) as f64;
                assert!((fisher.diagonal_mean(range) / mean - 1.0).abs() < 1e-6);
                assert!(fisher.block(index, &mut []).is_err());
            }
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
            let panels: usize = part.iter().map(|b| b.len() * 64 * 4).sum();
            assert!(BlockFisher::state_bytes(part) + panels <= 100 << 10);
        }
        assert_eq!(end, blocks().len());
        let error = Groups::plan(&blocks(), budget(1 << 10), |_| "w".into()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Memory);
        let text = error.to_string();
        assert!(text.contains("\"w\"") && text.contains("memory limit"), "{text}");
    }
}
