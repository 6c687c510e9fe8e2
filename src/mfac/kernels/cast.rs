//! Mapped bytes seen as numbers.
#![allow(unsafe_code, reason = "bytes of a mapping reinterpreted as numbers of any bit pattern")]

/// Number types for which every bit pattern is a value.
pub trait Plain: Copy {}
impl Plain for f32 {}
impl Plain for u16 {}

/// The bytes as numbers. Panics when they are not aligned, which a mapping always is.
pub fn numbers<T: Plain>(bytes: &[u8]) -> &[T] {
    // SAFETY: `Plain` types have no padding and no invalid bit patterns; alignment is checked below.
    let (head, numbers, _) = unsafe { bytes.align_to() };
    assert!(head.is_empty(), "a mapping begins on a page");
    numbers
}

/// The bytes as numbers that can be written. Panics as [`numbers`] does.
pub fn numbers_mut<T: Plain>(bytes: &mut [u8]) -> &mut [T] {
    // SAFETY: as in `numbers`, and any value written leaves valid bytes behind.
    let (head, numbers, _) = unsafe { bytes.align_to_mut() };
    assert!(head.is_empty(), "a mapping begins on a page");
    numbers
}
