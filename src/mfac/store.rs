//! Where gradients are kept: the rows of G in f32, scaled f16 or bf16, in memory or on disk.
//!
//! What is stored *is* G for everything after: Gram matrices and products are taken of the rounded
//! rows, so that they agree with each other. Rounding moves an element by at most 2⁻¹¹ of itself in
//! f16, whose rows are scaled by a power of two so that the largest element is near 2¹⁵ (elements
//! more than 2²⁹ times smaller lose digits), and by 2⁻⁸ in bf16.

use std::io::{Read, Write};
use std::ops::Range;
use std::path::Path;

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use memmap2::{Advice, MmapMut};

use super::kernels::ahead::Ahead;
use super::kernels::cast;
use super::kernels::gemv::{ROWS, Rows};
use crate::error::{Error, ErrorKind, Result, bail};
use crate::sys;

/// The format of stored gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// 4 bytes a number, exact.
    F32,
    /// 2 bytes a number, relative rounding 2⁻¹¹, rows scaled by powers of two.
    F16,
    /// 2 bytes a number, relative rounding 2⁻⁸.
    Bf16,
}

/// The m×d matrix G of gradients, row by row; rows not set yet are zero.
#[derive(Debug)]
pub struct GradientStore {
    count: usize,
    dimension: usize,
    /// Numbers from one row to the next.
    stride: usize,
    storage: Storage,
    bytes: MmapMut,
    /// What the stored numbers of a row are to be multiplied by: powers of two, 1 but for f16.
    scales: Vec<f32>,
}

/// Columns of a [`GradientStore`]: the gradients of a range of weights.
#[derive(Clone, Copy, Debug)]
pub struct Gradients<'a> {
    store: &'a GradientStore,
    start: usize,
    dimension: usize,
}

impl Storage {
    /// Bytes of one number.
    pub fn size(self) -> usize {
        match self {
            Storage::F32 => 4,
            Storage::F16 | Storage::Bf16 => 2,
        }
    }
}

impl GradientStore {
    /// Room for `count` gradients of `dimension` weights, in memory, or with `folder` in a nameless
    /// file there that goes away with the store.
    ///
    /// Errors: `Memory` when the memory cannot be had, `Io` when the file cannot be made that
    /// large.
    pub fn new(
        count: usize,
        dimension: usize,
        storage: Storage,
        folder: Option<&Path>,
    ) -> Result<GradientStore> {
        let Some(len) = GradientStore::bytes(count, dimension, storage) else {
            bail!(Memory, "{count} gradients of {dimension} weights are too large to address");
        };
        let len = len.max(1);
        let bytes = match folder {
            Some(folder) => sys::map_scratch_file(folder, len)?,
            None => {
                let mapped = MmapMut::map_anon(len).map_err(|e| {
                    let message = format!(
                        "{count} gradients of {dimension} weights need {len} bytes of memory, \
                         which cannot be had; keep fewer, in half precision, or on disk"
                    );
                    Error::new(ErrorKind::Memory, message).with_source(e)
                })?;
                // Only a hint: 5 to 30 % faster reads where the system grants it.
                let _ = mapped.advise(Advice::HugePage);
                mapped
            }
        };
        let stride = stride(dimension).expect("the size was computed with it");
        let scales = vec![1.0; count];
        Ok(GradientStore { count, dimension, stride, storage, bytes, scales })
    }

    /// The bytes that a store takes; `None` when they cannot be counted.
    pub fn bytes(count: usize, dimension: usize, storage: Storage) -> Option<usize> {
        let bytes = stride(dimension)?.checked_mul(count)?.checked_mul(storage.size())?;
        (bytes <= isize::MAX as usize).then_some(bytes)
    }

    /// m, the number of rows.
    pub fn count(&self) -> usize {
        self.count
    }

    /// d, the length of a row.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// The format of the rows.
    pub fn storage(&self) -> Storage {
        self.storage
    }

    /// All columns.
    pub fn all(&self) -> Gradients<'_> {
        self.columns(0..self.dimension)
    }

    /// The gradients of the weights in `range`. Panics when it reaches beyond d.
    pub fn columns(&self, range: Range<usize>) -> Gradients<'_> {
        assert!(range.start <= range.end && range.end <= self.dimension);
        Gradients { store: self, start: range.start, dimension: range.len() }
    }

    /// Writes the stored numbers, little-endian as they lie in memory.
    pub(super) fn save(&self, to: &mut dyn Write) -> std::io::Result<()> {
        for scale in &self.scales {
            to.write_all(&scale.to_le_bytes())?;
        }
        to.write_all(&self.bytes)
    }

    /// Reads what `save` wrote for a store of the same shape.
    pub(super) fn restore(&mut self, from: &mut dyn Read) -> std::io::Result<()> {
        for scale in &mut self.scales {
            let mut bytes = [0; 4];
            from.read_exact(&mut bytes)?;
            *scale = f32::from_le_bytes(bytes);
        }
        from.read_exact(&mut self.bytes)
    }

    /// Rounds `gradient` (d numbers) to the storage format and keeps it as row `i`.
    ///
    /// Error `Numerics`: an element is not finite, or too large for bf16; the row is then
    /// unchanged.
    /// Panics when there is no such row or the length is not d.
    pub fn set_row(&mut self, i: usize, gradient: &[f32]) -> Result<()> {
        assert!(i < self.count && gradient.len() == self.dimension);
        // Magnitudes are ordered as their bits, NaN above all.
        let magnitude = |g: &f32| g.to_bits() & 0x7fff_ffff;
        let largest = f32::from_bits(gradient.iter().map(magnitude).max().unwrap_or(0));
        let limit = if self.storage == Storage::Bf16 { bf16::MAX.to_f32() } else { f32::MAX };
        if largest.is_nan() || largest > limit {
            bail!(
                Numerics,
                "gradient {i} has an element that is not finite or too large to store ({largest:e})"
            );
        }
        let start = i * self.stride;
        let range = start..start + self.dimension;
        match self.storage {
            Storage::F32 => {
                cast::numbers_mut::<f32>(&mut self.bytes)[range].copy_from_slice(gradient)
            }
            Storage::Bf16 => {
                let row = &mut cast::numbers_mut::<u16>(&mut self.bytes)[range];
                row.reinterpret_cast_mut::<bf16>().convert_from_f32_slice(gradient);
            }
            Storage::F16 => {
                let row = &mut cast::numbers_mut::<u16>(&mut self.bytes)[range];
                let row: &mut [f16] = row.reinterpret_cast_mut();
                let scale = row_scale(largest);
                self.scales[i] = 1.0 / scale;
                let mut scaled = [0.0f32; 512];
                for (row, gradient) in row.chunks_mut(512).zip(gradient.chunks(512)) {
                    let scaled = &mut scaled[..gradient.len()];
                    scaled.iter_mut().zip(gradient).for_each(|(s, g)| *s = g * scale);
                    row.convert_from_f32_slice(scaled);
                }
            }
        }
        Ok(())
    }
}

impl<'a> Gradients<'a> {
    /// m, the number of gradients.
    pub fn count(&self) -> usize {
        self.store.count
    }

    /// The number of weights.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// The columns `range` of these columns.
    pub fn columns(&self, range: Range<usize>) -> Gradients<'a> {
        assert!(range.end <= self.dimension);
        self.store.columns(self.start + range.start..self.start + range.end)
    }

    /// Columns `range` of row `i`, as stored: borrowed if the storage is f32, else decoded to the
    /// front of `scratch`.
    pub fn row<'s>(&self, i: usize, range: Range<usize>, scratch: &'s mut [f32]) -> &'s [f32]
    where
        'a: 's,
    {
        assert!(i < self.store.count && range.end <= self.dimension);
        let start = i * self.store.stride + self.start + range.start;
        let stored = start..start + range.len();
        if self.store.storage == Storage::F32 {
            return &cast::numbers::<f32>(&self.store.bytes)[stored];
        }
        let scratch = &mut scratch[..range.len()];
        let row = &cast::numbers::<u16>(&self.store.bytes)[stored];
        if self.store.storage == Storage::Bf16 {
            row.reinterpret_cast::<bf16>().convert_to_f32_slice(scratch);
        } else {
            row.reinterpret_cast::<f16>().convert_to_f32_slice(scratch);
            let scale = self.store.scales[i];
            scratch.iter_mut().for_each(|x| *x *= scale);
        }
        scratch
    }

    /// The rows from `first` on in one piece and how far apart they begin, where they are in f32
    /// and there is one.
    pub(super) fn strided(&self, first: usize) -> Option<(&'a [f32], usize)> {
        let store = self.store;
        let start = first * store.stride + self.start;
        (store.storage == Storage::F32 && first < store.count)
            .then(|| (&cast::numbers::<f32>(&store.bytes)[start..], store.stride))
    }

    /// Asks for the columns `range` of the rows `rows` ahead of time.
    pub(super) fn ahead(&self, rows: Range<usize>, range: Range<usize>) -> Ahead {
        if range.is_empty() || rows.is_empty() {
            return Ahead::none();
        }
        let (store, size) = (self.store, self.store.storage.size());
        let start = rows.start * store.stride + self.start + range.start;
        let bytes = &store.bytes[start * size..];
        Ahead::new(bytes, rows.len(), store.stride * size, range.len() * size)
    }

    /// Columns `range` of the rows from `first` on as they are stored, and what each is to be
    /// multiplied by; where there are no more rows, the last one and 0.
    pub(super) fn rows(&self, first: usize, range: Range<usize>) -> (Rows<'a>, [f64; ROWS]) {
        let store = self.store;
        assert!(first < store.count && range.end <= self.dimension);
        let stored = |i: usize| {
            let start = (first + i).min(store.count - 1) * store.stride + self.start + range.start;
            start..start + range.len()
        };
        let halves = || {
            let numbers = cast::numbers::<u16>(&store.bytes);
            std::array::from_fn(|i| &numbers[stored(i)])
        };
        let rows = match store.storage {
            Storage::F32 => {
                let numbers = cast::numbers::<f32>(&store.bytes);
                Rows::F32(std::array::from_fn(|i| &numbers[stored(i)]))
            }
            Storage::F16 => Rows::F16(halves()),
            Storage::Bf16 => Rows::Bf16(halves()),
        };
        let scale = |i: usize| store.scales.get(first + i).map_or(0.0, |&s| f64::from(s));
        (rows, std::array::from_fn(scale))
    }
}

/// A power of two that brings `largest` to between 2¹⁴ and 2¹⁵, as far as its inverse is normal.
fn row_scale(largest: f32) -> f32 {
    let exponent = (largest.to_bits() >> 23) as i32 - 127;
    let exponent = if largest == 0.0 { 14 } else { exponent.max(-112) };
    2.0f32.powi(14 - exponent)
}

/// Rows begin an odd number of lines (16 numbers of f32) apart: powers of two would make the rows
/// compete for the same places in the caches (15 to 40 % slower, measured). Where it is little of a
/// row, they begin 17 lines more than a multiple of 32 apart, so that pieces of up to 16 lines of
/// many rows lie beside each other there (another 5 to 10 %).
fn stride(dimension: usize) -> Option<usize> {
    let lines = dimension.checked_add(15)? / 16;
    let short = lines < 1024;
    let lines = if short { lines | 1 } else { lines.checked_add((49 - lines % 32) % 32)? };
    lines.checked_mul(16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mfac::tolerance::{Rng, assert_approximate, assert_exact, widen};

    #[test]
    fn rows_come_back_rounded_to_their_format() {
        let folder = tempfile::tempdir().unwrap();
        for (storage, relative) in
            [(Storage::F32, 0.0), (Storage::F16, 2f64.powi(-11)), (Storage::Bf16, 2f64.powi(-8))]
        {
            for folder in [None, Some(folder.path())] {
                for size in [1e-30, 1e-8, 1.0, 1e30] {
                    let mut store = GradientStore::new(3, 1000, storage, folder).unwrap();
                    let g: Vec<f32> = Rng::new(21).normals(1000).iter().map(|g| g * size).collect();
                    store.set_row(1, &g).unwrap();
                    let mut scratch = vec![0.0; 1000];
                    let floor = f64::from(size) * 1e-4;
                    for range in [0..1000, 17..990, 5..5] {
                        let row = store.all().row(1, range.clone(), &mut scratch);
                        assert_approximate(&widen(row), &widen(&g[range]), relative, floor);
                    }
                    let view = store.columns(100..300).columns(50..60);
                    let row = view.row(1, 2..5, &mut scratch).to_vec();
                    let whole = store.all().row(1, 152..155, &mut scratch);
                    assert_exact(&widen(&row), &widen(whole));
                    assert_eq!(store.all().row(2, 0..1000, &mut scratch), [0.0; 1000]);
                }
            }
        }
    }

    #[test]
    fn extremes_stay_finite_and_what_is_not_is_refused() {
        for storage in [Storage::F32, Storage::F16, Storage::Bf16] {
            let mut store = GradientStore::new(1, 4, storage, None).unwrap();
            for g in [[f32::MIN_POSITIVE, 1e-45, 0.0, -1e-40], [3.3e38, -1.0, 0.0, 1e-45], [0.0; 4]]
            {
                store.set_row(0, &g).unwrap();
                let mut scratch = [0.0; 4];
                let row = store.all().row(0, 0..4, &mut scratch);
                assert!(row.iter().all(|x| x.is_finite()), "{storage:?} {row:?}");
            }
            for bad in [f32::NAN, f32::INFINITY] {
                let error = store.set_row(0, &[0.0, bad, 1.0, 2.0]).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Numerics);
            }
        }
    }

    #[test]
    fn what_cannot_be_had_is_an_error() {
        let kind =
            |folder| GradientStore::new(1 << 20, 1 << 40, Storage::F16, folder).unwrap_err().kind();
        assert_eq!(kind(None), ErrorKind::Memory);
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(kind(Some(folder.path())), ErrorKind::Io);
        let error = GradientStore::new(usize::MAX, 99, Storage::F32, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Memory);
        assert!(GradientStore::new(0, 0, Storage::F32, None).is_ok());
    }
}
