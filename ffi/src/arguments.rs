//! What arrives as pointers, checked and given a Rust type.

use std::ffi::{CStr, OsStr, c_char};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::error::hone_error;

/// A handle or struct that must be there.
pub(crate) fn given<T>(pointer: Option<T>, what: &str) -> Result<T, hone_error> {
    pointer.ok_or_else(|| hone_error::null(what))
}

/// Hands a new handle to the caller.
pub(crate) fn give<T>(out: &mut MaybeUninit<*mut T>, handle: T) {
    out.write(Box::into_raw(Box::new(handle)));
}

/// UTF-8 text that must be there.
///
/// # Safety
///
/// If not null, `pointer` must point to a string that ends in NUL and lives as long as the result.
pub(crate) unsafe fn text<'a>(pointer: *const c_char, what: &str) -> Result<&'a str, hone_error> {
    // SAFETY: as the caller vouches.
    let text = unsafe { optional_text(pointer, what) }?;
    given(text, what)
}

/// UTF-8 text, or none for NULL.
///
/// # Safety
///
/// As [`text`].
pub(crate) unsafe fn optional_text<'a>(
    pointer: *const c_char,
    what: &str,
) -> Result<Option<&'a str>, hone_error> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller vouches for the string.
    let text = unsafe { CStr::from_ptr(pointer) }.to_str();
    text.map(Some).map_err(|_| hone_error::argument(format!("`{what}` is not UTF-8")))
}

/// A path, or none for NULL: bytes as the system takes them.
///
/// # Safety
///
/// As [`text`].
pub(crate) unsafe fn optional_path(
    pointer: *const c_char,
    what: &str,
) -> Result<Option<PathBuf>, hone_error> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller vouches for the string.
    let bytes = unsafe { CStr::from_ptr(pointer) }.to_bytes();
    if bytes.is_empty() {
        return Err(hone_error::argument(format!("`{what}` is an empty path")));
    }
    Ok(Some(PathBuf::from(OsStr::from_bytes(bytes))))
}

/// A path that must be there.
///
/// # Safety
///
/// As [`text`].
pub(crate) unsafe fn path(pointer: *const c_char, what: &str) -> Result<PathBuf, hone_error> {
    // SAFETY: as the caller vouches.
    let path = unsafe { optional_path(pointer, what) }?;
    given(path, what)
}

/// `count` texts.
///
/// # Safety
///
/// As [`slice`] for the pointers, and as [`text`] for each of them.
pub(crate) unsafe fn texts(
    pointer: *const *const c_char,
    count: usize,
    what: &str,
) -> Result<Vec<String>, hone_error> {
    // SAFETY: as the caller vouches.
    let pointers = unsafe { slice(pointer, count, what) }?;
    // SAFETY: as the caller vouches.
    let one = |&p: &*const c_char| unsafe { text(p, what) }.map(String::from);
    pointers.iter().map(one).collect()
}

/// `len` numbers; NULL stands for none of them.
///
/// # Safety
///
/// If not null, `pointer` must point to `len` initialized values that nobody changes while the
/// result lives.
pub(crate) unsafe fn slice<'a, T>(
    pointer: *const T,
    len: usize,
    what: &str,
) -> Result<&'a [T], hone_error> {
    if len == 0 {
        return Ok(&[]);
    }
    check(pointer, len, what)?;
    // SAFETY: not null, aligned, not too long; the caller vouches for the rest.
    Ok(unsafe { std::slice::from_raw_parts(pointer, len) })
}

/// Room for `len` numbers.
///
/// # Safety
///
/// If not null, `pointer` must point to `len` initialized values that nobody else touches while the
/// result lives.
pub(crate) unsafe fn slice_mut<'a, T>(
    pointer: *mut T,
    len: usize,
    what: &str,
) -> Result<&'a mut [T], hone_error> {
    if len == 0 {
        return Ok(&mut []);
    }
    check(pointer, len, what)?;
    // SAFETY: not null, aligned, not too long; the caller vouches for the rest.
    Ok(unsafe { std::slice::from_raw_parts_mut(pointer, len) })
}

fn check<T>(pointer: *const T, len: usize, what: &str) -> Result<(), hone_error> {
    if pointer.is_null() {
        return Err(hone_error::null(what));
    }
    if !pointer.is_aligned() {
        return Err(hone_error::argument(format!("`{what}` is not aligned to its type")));
    }
    if len.checked_mul(size_of::<T>()).is_none_or(|bytes| bytes > isize::MAX as usize) {
        return Err(hone_error::argument(format!("`{what}`: {len} is more than memory can hold")));
    }
    Ok(())
}

/// An error when `len` is not what it must be.
pub(crate) fn check_len(len: usize, expected: usize, what: &str) -> Result<(), hone_error> {
    if len != expected {
        return Err(hone_error::argument(format!("`{what}` has length {len}, not {expected}")));
    }
    Ok(())
}

/// An error when two buffers overlap, of which one is written while the other is read.
pub(crate) fn check_apart<A, B>(
    a: *const A,
    a_len: usize,
    b: *const B,
    b_len: usize,
    what: &str,
) -> Result<(), hone_error> {
    let (a, b) = (a.addr(), b.addr());
    let a_end = a.saturating_add(a_len.saturating_mul(size_of::<A>()));
    let b_end = b.saturating_add(b_len.saturating_mul(size_of::<B>()));
    if a_len > 0 && b_len > 0 && a < b_end && b < a_end {
        return Err(hone_error::argument(format!("{what} overlap; give each its own memory")));
    }
    Ok(())
}

/// `threads`, or one per core for 0.
pub(crate) fn threads_or_all(threads: u32) -> usize {
    match threads {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
        n => (n as usize).min(MOST_THREADS),
    }
}

/// More threads than any machine has use for.
const MOST_THREADS: usize = 1024;

/// A number where 0 stands for a default.
pub(crate) fn or<T: Default + PartialEq>(value: T, default: T) -> T {
    if value == T::default() { default } else { value }
}
