//! The only unsafe code of the core outside the numeric kernels: the calls into the C library that
//! have no safe wrapper among hone's dependencies.
#![allow(unsafe_code)]

use std::ffi::{CStr, OsStr, c_char, c_void};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

/// Sets an environment variable unless it is set already.
///
/// Meant for the start of a process or, in a library, for the moment just before ONNX Runtime is
/// loaded: C code that reads the environment on another thread at this very moment would race.
pub fn set_default_env(name: &str, value: &str) {
    if std::env::var_os(name).is_none() {
        // SAFETY: Rust's own readers of the environment take a lock that `set_var` takes too; the
        // remaining hazard, C code reading it concurrently, is the documented one above.
        unsafe { std::env::set_var(name, value) }
    }
}

/// The file of a shared library that this process has mapped already, found by its soname.
pub fn mapped_library(soname: &CStr, symbol: &CStr) -> Option<PathBuf> {
    // SAFETY: RTLD_NOLOAD never loads anything: the handle is of a library that is mapped already,
    // and closing it only drops the reference taken here. dladdr fills `info` or returns 0, and
    // the name it points to belongs to the mapped library, which outlives this function.
    unsafe {
        let handle = libc::dlopen(soname.as_ptr(), libc::RTLD_NOLOAD | libc::RTLD_LAZY);
        if handle.is_null() {
            return None;
        }
        let address = libc::dlsym(handle, symbol.as_ptr());
        let path = if address.is_null() { None } else { library_of(address) };
        libc::dlclose(handle);
        path
    }
}

/// The file (executable or shared library) that this code was linked into.
pub fn own_library() -> Option<PathBuf> {
    // SAFETY: the address is that of a function of this very object.
    unsafe { library_of(own_library as *const c_void) }
}

/// The file that maps `address`.
///
/// # Safety
/// `address` must lie in an object that stays mapped during the call.
unsafe fn library_of(address: *const c_void) -> Option<PathBuf> {
    // SAFETY: Dl_info is plain data for which all zeros is valid; dladdr only writes to it.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: as above; the caller vouches for the address.
    if unsafe { libc::dladdr(address, &mut info) } == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: dladdr set a NUL-terminated name owned by the mapped object.
    let name = unsafe { CStr::from_ptr(info.dli_fname as *const c_char) };
    Some(PathBuf::from(OsStr::from_bytes(name.to_bytes())))
}

/// Opens `name` inside the open folder `folder` for reading. A symbolic link in the place of `name`
/// is an error (`ELOOP`, or `ENOTDIR` when a folder is asked for), and a FIFO does not block.
pub fn open_in(folder: &File, name: &CStr, is_folder: bool) -> io::Result<File> {
    let kind = if is_folder { libc::O_DIRECTORY } else { 0 };
    let flags = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC | kind;
    // SAFETY: the descriptor is open for as long as `folder` lives, the name ends in NUL, and
    // openat reads nothing else without O_CREAT.
    let descriptor = unsafe { libc::openat(folder.as_raw_fd(), name.as_ptr(), flags) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: openat just made this descriptor; nobody else owns it.
    Ok(unsafe { File::from_raw_fd(descriptor) })
}

/// The largest resident set this process has had, in bytes.
pub fn peak_memory_bytes() -> u64 {
    // SAFETY: rusage is plain data for which all zeros is valid; getrusage only writes to it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    usage.ru_maxrss as u64 * 1024
}

/// Asks for large pages behind the whole pages of `memory`, which must not have been written to yet
/// for it to matter: fewer faults when large buffers fill, fewer misses when they are read. Only
/// advice, so failure is silent.
pub fn advise_huge_pages<T>(memory: &mut [T]) {
    const PAGE: usize = 4096;
    let (start, len) = (memory.as_mut_ptr() as usize, size_of_val(memory));
    let (first, end) = (start.next_multiple_of(PAGE), (start + len) / PAGE * PAGE);
    if first < end {
        // SAFETY: the pages lie wholly inside `memory`, which is borrowed exclusively, and the
        // advice changes nothing that can be read.
        unsafe { libc::madvise(first as *mut _, end - first, libc::MADV_HUGEPAGE) };
    }
}

/// Signals meant for the process go to threads of the host: while this lives, the calling thread
/// and those it starts receive none but those of faults of their own.
#[derive(Debug)]
pub struct SignalsBlocked {
    before: libc::sigset_t,
    /// A thread's mask is the business of that thread.
    of_thread: std::marker::PhantomData<*const ()>,
}

impl SignalsBlocked {
    /// Blocks them until the value is dropped, on the same thread.
    pub fn new() -> SignalsBlocked {
        // SAFETY: both sets are plain data that the calls fill in; pthread_sigmask changes only the
        // mask of this thread and cannot fail with a valid `how`.
        unsafe {
            let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = std::mem::zeroed();
            libc::sigfillset(&mut all);
            for fault in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP] {
                libc::sigdelset(&mut all, fault);
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
            SignalsBlocked { before, of_thread: std::marker::PhantomData }
        }
    }
}

impl Default for SignalsBlocked {
    fn default() -> SignalsBlocked {
        SignalsBlocked::new()
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: as above; the mask is the one that was there.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut()) };
    }
}

/// A descriptor that becomes readable once and stays so (an eventfd).
pub fn event() -> io::Result<File> {
    // SAFETY: eventfd touches no memory.
    let descriptor = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: eventfd just made this descriptor; nobody else owns it.
    Ok(unsafe { File::from_raw_fd(descriptor) })
}

/// Maps a nameless file of `len` zero bytes in `folder`, whose space is set aside beforehand.
///
/// The file is gone when the mapping is dropped. Errors of kind `Io` name the folder.
pub fn map_scratch_file(folder: &Path, len: usize) -> Result<memmap2::MmapMut> {
    let failed = |source: std::io::Error| {
        let message = format!("{}: cannot make a scratch file of {len} bytes", folder.display());
        Error::new(ErrorKind::Io, format!("{message}: {source}")).with_source(source)
    };
    let file = tempfile::tempfile_in(folder).map_err(failed)?;
    let size = libc::off_t::try_from(len).map_err(|e| failed(std::io::Error::other(e)))?;
    // SAFETY: the descriptor is open during the call, which touches no memory of this process.
    // Without the space set aside, a full disk would kill the process at a later write.
    match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, size) } {
        0 => {}
        code => return Err(failed(std::io::Error::from_raw_os_error(code))),
    }
    // SAFETY: the file has no name and its descriptor is not shared, so nobody else can change or
    // shorten it under the mapping.
    unsafe { memmap2::MmapMut::map_mut(&file) }.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_mapped_c_library_and_itself() {
        let libc = mapped_library(c"libc.so.6", c"malloc").expect("every test binary maps libc");
        assert!(libc.to_string_lossy().contains("libc"));
        assert!(mapped_library(c"libno-such-library.so.7", c"f").is_none());
        assert!(own_library().is_some());
    }

    #[test]
    fn signals_are_blocked_while_the_guard_lives_and_in_threads_started_then() {
        let blocked = || {
            // SAFETY: the call only fills in the set, which is plain data.
            unsafe {
                let mut now: libc::sigset_t = std::mem::zeroed();
                libc::pthread_sigmask(libc::SIG_SETMASK, std::ptr::null(), &mut now);
                libc::sigismember(&now, libc::SIGINT) == 1
            }
        };
        assert!(!blocked());
        let guard = SignalsBlocked::new();
        assert!(blocked());
        let thread = std::thread::spawn(blocked);
        assert!(thread.join().unwrap());
        drop(guard);
        assert!(!blocked());
    }

    #[test]
    fn an_event_is_readable_after_it_was_written() {
        use std::io::{Read, Write};
        let mut event = event().unwrap();
        let mut count = [0; 8];
        assert_eq!(event.read(&mut count).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        event.write_all(&1u64.to_ne_bytes()).unwrap();
        event.read_exact(&mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1);
    }

    #[test]
    fn peak_memory_is_of_this_process() {
        let before = peak_memory_bytes();
        let block = std::hint::black_box(vec![1u8; 64 << 20]);
        assert!(block.iter().map(|&b| b as u64).sum::<u64>() == 64 << 20);
        assert!(before > 1 << 20 && peak_memory_bytes() >= before);
    }
}
