//! Arrays of the host: views that are read before a call returns.

use std::ffi::{c_char, c_void};

use hone_core::tensor::{Data, ElementType, Tensor};

use crate::arguments::{slice, text};
use crate::error::hone_error;

/// Element types, numbered as in ONNX and ONNX Runtime.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum hone_dtype {
    /// IEEE 754 binary32.
    F32 = 1,
    /// 0 to 255.
    U8 = 2,
    /// Two's complement of 1 byte.
    I8 = 3,
    /// Unsigned, 2 bytes.
    U16 = 4,
    /// Two's complement of 2 bytes.
    I16 = 5,
    /// Two's complement of 4 bytes.
    I32 = 6,
    /// Two's complement of 8 bytes.
    I64 = 7,
    /// One byte, 0 or not.
    Bool = 9,
    /// IEEE 754 binary16.
    F16 = 10,
    /// IEEE 754 binary64.
    F64 = 11,
    /// Unsigned, 4 bytes.
    U32 = 12,
    /// Unsigned, 8 bytes.
    U64 = 13,
    /// The upper half of a binary32.
    Bf16 = 16,
}

/// A view of an array of the caller's: nothing here owns. Read before the call returns. This struct
/// never changes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hone_tensor {
    /// The first element; may be NULL when there are none. Needs no alignment.
    pub data: *const c_void,
    /// `rank` lengths, each at least 0.
    pub shape: *const i64,
    /// `rank` distances between neighbours, in elements, of any sign; NULL for row-major without
    /// gaps.
    pub strides: *const i64,
    /// The number of axes, at most 16.
    pub rank: u32,
    /// A `hone_dtype`.
    pub dtype: u32,
}

/// A tensor with the name of the model's input it is for.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hone_named_tensor {
    /// UTF-8, ends in NUL.
    pub name: *const c_char,
    /// The array.
    pub tensor: hone_tensor,
}

/// Axes no tensor of a model exceeds.
const MOST_AXES: u32 = 16;

/// A copy of a named array.
///
/// # Safety
///
/// The name and the array must be what the header says.
pub(crate) unsafe fn named(given: &hone_named_tensor) -> Result<(String, Tensor), hone_error> {
    // SAFETY: as the caller vouches.
    let name = unsafe { text(given.name, "name of a tensor") }?;
    // SAFETY: as the caller vouches.
    let tensor = unsafe { copy(&given.tensor, name) }?;
    Ok((name.to_owned(), tensor))
}

/// A copy of an array, row-major.
///
/// # Safety
///
/// `shape` and `strides` must have `rank` entries and `data` every element they reach.
pub(crate) unsafe fn copy(given: &hone_tensor, name: &str) -> Result<Tensor, hone_error> {
    let wrong = |what: String| hone_error::argument(format!("tensor {name:?}: {what}"));
    let element = i32::try_from(given.dtype).ok().and_then(ElementType::from_onnx);
    let element = element.ok_or_else(|| wrong(format!("{} is no hone_dtype", given.dtype)))?;
    if given.rank > MOST_AXES {
        return Err(wrong(format!("{} axes are more than {MOST_AXES}", given.rank)));
    }
    let rank = given.rank as usize;
    // SAFETY: as the caller vouches.
    let lengths = unsafe { slice(given.shape, rank, "shape") }?;
    let shape: Option<Vec<usize>> = lengths.iter().map(|&n| usize::try_from(n).ok()).collect();
    let shape = shape.ok_or_else(|| wrong(format!("a length of {lengths:?} is negative")))?;
    let count = shape.iter().try_fold(element.size(), |n, &l| n.checked_mul(l));
    let bytes = count.filter(|&bytes| bytes <= isize::MAX as usize);
    let bytes = bytes.ok_or_else(|| wrong(format!("{lengths:?} is more than memory can hold")))?;
    let strides = if given.strides.is_null() {
        None
    } else {
        // SAFETY: as the caller vouches.
        Some(unsafe { slice(given.strides, rank, "strides") }?)
    };
    if bytes > 0 && given.data.is_null() {
        return Err(wrong("`data` is NULL".into()));
    }
    let base = given.data.cast::<u8>();
    let owned = match strides {
        _ if bytes == 0 => Vec::new(),
        // SAFETY: `data` is not null and the caller vouches for all elements.
        None => unsafe { std::slice::from_raw_parts(base, bytes) }.to_vec(),
        // SAFETY: the caller vouches for every element that the strides reach.
        Some(strides) => unsafe { gather(base, &shape, strides, element.size(), bytes) },
    };
    let mut owned = owned;
    if element == ElementType::Bool {
        owned.iter_mut().for_each(|b| *b = u8::from(*b != 0));
    }
    // Linux on x86_64 and aarch64 is little-endian, as are the bytes that `Data` takes.
    const { assert!(cfg!(target_endian = "little")) };
    Ok(Tensor::new(shape, Data::from_le_bytes(element, &owned)?)?)
}

/// The elements in row-major order.
///
/// # Safety
///
/// Each element that `strides` reach within `shape` must be readable at `base`.
unsafe fn gather(
    base: *const u8,
    shape: &[usize],
    strides: &[i64],
    size: usize,
    bytes: usize,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes);
    let mut index = vec![0usize; shape.len()];
    loop {
        let element = index.iter().zip(strides).map(|(&i, &s)| (i as i64).wrapping_mul(s));
        let offset = element.fold(0i64, i64::wrapping_add) as isize;
        // SAFETY: the caller vouches for this element, so the offset is that of an object in
        // memory.
        let from = unsafe { base.offset(offset.wrapping_mul(size as isize)) };
        // SAFETY: as above, for `size` bytes.
        out.extend_from_slice(unsafe { std::slice::from_raw_parts(from, size) });
        // The next index, the last axis running fastest.
        let Some(axis) = (0..shape.len()).rev().find(|&a| index[a] + 1 < shape[a]) else {
            return out;
        };
        index[axis] += 1;
        index[axis + 1..].fill(0);
    }
}
