//! Structs that may grow: the caller states the size it was built with.

use crate::error::hone_error;

/// A plain-data struct whose first field is its size and whose zero value means "all defaults".
///
/// # Safety
///
/// The type must be `repr(C)` without padding, start with `size: usize`, and be valid when every
/// byte is zero.
pub(crate) unsafe trait Extensible: Copy {}

/// Copies the caller's struct over one of zeros, whichever of the two is longer.
///
/// Errors: `size` is not set, or a field that this library does not know is not zero.
///
/// # Safety
///
/// If not null, `given` must point to a struct as long as its `size` says.
pub(crate) unsafe fn read<T: Extensible>(given: *const T, what: &str) -> Result<T, hone_error> {
    // SAFETY: `Extensible` says that all zeros are a valid value.
    let mut own: T = unsafe { std::mem::zeroed() };
    if given.is_null() {
        return Ok(own);
    }
    // SAFETY: the caller vouches for `size` bytes, and checks them to be at least that field.
    let size = unsafe { size_of_given(given.cast(), what) }?;
    let (known, given) = (size_of::<T>(), given.cast::<u8>());
    // SAFETY: both sides are at least `min` long, and any bytes of plain data of C are valid here
    // (pointers and numbers; enums travel as numbers).
    unsafe { std::ptr::copy_nonoverlapping(given, (&raw mut own).cast(), size.min(known)) };
    for i in known..size {
        // SAFETY: the caller vouches for `size` bytes.
        if unsafe { *given.add(i) } != 0 {
            return Err(hone_error::argument(format!(
                "`{what}`: a field is set that this version of hone is too old for"
            )));
        }
    }
    Ok(own)
}

/// Writes as much of `value` to the caller's struct as that holds; its `size` stays, and what this
/// library does not know becomes zero.
///
/// # Safety
///
/// If not null, `out` must point to a struct as long as its `size` says.
pub(crate) unsafe fn write<T: Extensible>(
    out: *mut T,
    value: T,
    what: &str,
) -> Result<(), hone_error> {
    if out.is_null() {
        return Err(hone_error::null(what));
    }
    const HEAD: usize = size_of::<usize>();
    // SAFETY: the caller vouches for `size` bytes.
    let size = unsafe { size_of_given(out.cast(), what) }?;
    let (known, out) = (size_of::<T>(), out.cast::<u8>());
    let from = (&raw const value).cast::<u8>();
    let end = size.min(known);
    // SAFETY: both sides are at least `end` long, the first field is left out on both, and the rest
    // of the caller's struct reaches to `size`.
    unsafe {
        std::ptr::copy_nonoverlapping(from.add(HEAD), out.add(HEAD), end - HEAD);
        std::ptr::write_bytes(out.add(end), 0, size - end);
    }
    Ok(())
}

/// The longest struct that can be meant; anything longer is memory that was never filled in.
const LONGEST: usize = 1 << 16;

/// # Safety
///
/// `given` must point to a struct that begins with its size.
unsafe fn size_of_given(given: *const usize, what: &str) -> Result<usize, hone_error> {
    // SAFETY: every such struct starts with its size.
    let size = unsafe { given.read_unaligned() };
    if !(size_of::<usize>()..=LONGEST).contains(&size) {
        return Err(hone_error::argument(format!(
            "`{what}`: `size` is {size}; set it to the sizeof of the struct and the rest to zero"
        )));
    }
    Ok(size)
}

/// A reserved field must be 0, so that it can get a meaning later.
pub(crate) fn check_reserved(field: u32) -> Result<(), hone_error> {
    match field {
        0 => Ok(()),
        n => Err(hone_error::argument(format!("`reserved` is {n}; it must be 0"))),
    }
}
