//! The only unsafe code of the core outside the numeric kernels: the calls into the C library that
//! have no safe wrapper among hone's dependencies, and threads that are kept ([`Crew`]).
#![allow(unsafe_code)]

mod crew;

use std::ffi::{CStr, CString, OsStr, c_char, c_void};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use ort::AsPointer;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{RunOptions, Session};
use ort::sys::{ONNXTensorElementDataType as Code, OrtValue};
use ort::value::TensorElementType;

use crate::error::{Error, ErrorKind, Result};

pub use crew::Crew;

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

/// The inputs and one output of a session in memory of their own, at places that stay: a run over
/// their first rows finds names and memory prepared, and allocates nothing on this side of ONNX
/// Runtime.
pub struct Prepared {
    /// The inputs, and then the output.
    ports: Vec<Port>,
    /// Of the ports; they point into them.
    names: Vec<*const c_char>,
    /// The most rows of a run.
    rows: usize,
    /// For each number of rows the ports as ONNX Runtime knows them; null until first needed.
    views: Vec<*mut OrtValue>,
    info: MemoryInfo<'static>,
    checked: bool,
}

/// An input or output: `[rows, row...]` numbers of one type.
struct Port {
    name: CString,
    /// Of the last view that was made.
    shape: Vec<i64>,
    /// Numbers in a row.
    row_len: usize,
    memory: Memory,
}

/// What an input of [`Prepared`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// int64.
    I64,
    /// bool.
    Bool,
}

enum Memory {
    I64(Fixed<i64>),
    Bool(Fixed<bool>),
    F32(Fixed<f32>),
}

/// A boxed slice that foreign code may have pointers to.
struct Fixed<T>(NonNull<[T]>);

impl<T: Clone> Fixed<T> {
    /// Zeros, whose pages take no memory until they are written to.
    fn new(zero: T, len: usize) -> Fixed<T> {
        let memory = Box::into_raw(vec![zero; len].into_boxed_slice());
        Fixed(NonNull::new(memory).expect("a box is somewhere"))
    }
}

impl<T> Fixed<T> {
    fn get(&self) -> &[T] {
        // SAFETY: the box is alive and whole; ONNX Runtime writes only during `Prepared::run`,
        // which borrows it exclusively.
        unsafe { self.0.as_ref() }
    }

    fn get_mut(&mut self) -> &mut [T] {
        // SAFETY: as above.
        unsafe { self.0.as_mut() }
    }
}

impl<T> Drop for Fixed<T> {
    fn drop(&mut self) {
        // SAFETY: it came from `Box::into_raw`, and this is the only owner.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

// SAFETY: everything it points to is its own: memory, names, and values that ONNX Runtime lets any
// thread use and release.
unsafe impl Send for Prepared {}

impl Prepared {
    /// Inputs with names, kinds and the shapes of a row, and an output of float32, for runs of up
    /// to `rows` rows.
    pub fn new(
        inputs: &[(&str, Numbers, &[usize])],
        output: (&str, &[usize]),
        rows: usize,
    ) -> ort::Result<Prepared> {
        let port = |name: &str, row: &[usize], memory: fn(usize) -> Memory| {
            let row_len = row.iter().product::<usize>();
            Port {
                name: CString::new(name).expect("the names are hone's own"),
                shape: std::iter::once(&rows).chain(row).map(|&n| n as i64).collect(),
                row_len,
                memory: memory(rows * row_len),
            }
        };
        let mut ports: Vec<Port> = inputs
            .iter()
            .map(|&(name, numbers, row)| match numbers {
                Numbers::I64 => port(name, row, |n| Memory::I64(Fixed::new(0, n))),
                Numbers::Bool => port(name, row, |n| Memory::Bool(Fixed::new(false, n))),
            })
            .collect();
        ports.push(port(output.0, output.1, |n| Memory::F32(Fixed::new(0.0, n))));
        let names = ports.iter().map(|p| p.name.as_ptr()).collect();
        let views = vec![std::ptr::null_mut(); (rows + 1) * ports.len()];
        let (device, kind) = (AllocationDevice::CPU, AllocatorType::Device);
        let info = MemoryInfo::new(device, 0, kind, MemoryType::Default)?;
        Ok(Prepared { ports, names, rows, views, info, checked: false })
    }

    /// The numbers of an input of int64, all rows.
    pub fn i64s(&mut self, input: usize) -> &mut [i64] {
        match &mut self.ports[input].memory {
            Memory::I64(memory) => memory.get_mut(),
            _ => panic!("input {input} holds no int64"),
        }
    }

    /// The numbers of an input of bool, all rows.
    pub fn bools(&mut self, input: usize) -> &mut [bool] {
        match &mut self.ports[input].memory {
            Memory::Bool(memory) => memory.get_mut(),
            _ => panic!("input {input} holds no bool"),
        }
    }

    /// What the output holds since the last run, all rows.
    pub fn output(&self) -> &[f32] {
        match self.ports.last().map(|p| &p.memory) {
            Some(Memory::F32(memory)) => memory.get(),
            _ => unreachable!("the output is the last port"),
        }
    }

    /// Runs `session`, the same each time, over the first `rows` rows. An output of another shape
    /// is an error.
    pub fn run(
        &mut self,
        session: &mut Session,
        rows: usize,
        options: &RunOptions,
    ) -> ort::Result<()> {
        assert!((1..=self.rows).contains(&rows), "{rows} rows of at most {}", self.rows);
        if !self.checked {
            self.check_output(session)?;
            self.checked = true;
        }
        let ports = self.ports.len();
        let views = &mut self.views[rows * ports..][..ports];
        if views[ports - 1].is_null() {
            for (port, view) in self.ports.iter_mut().zip(views.iter_mut()) {
                // One that an earlier try has made, before it failed, is as good.
                if view.is_null() {
                    *view = port.view(rows, &self.info)?;
                }
            }
        }
        let (inputs, output) = views.split_at_mut(ports - 1);
        // SAFETY: session and options are alive; there are as many names and values as is said, all
        // of them alive, and the values lie over memory that nobody else has a reference to, as
        // `self` is borrowed exclusively. The output is given, so that ONNX Runtime fills it in
        // instead of making one.
        let status = unsafe {
            (ort::api().Run)(
                session.ptr_mut(),
                options.ptr(),
                self.names.as_ptr(),
                inputs.as_ptr().cast(),
                inputs.len(),
                self.names[inputs.len()..].as_ptr(),
                1,
                output.as_mut_ptr(),
            )
        };
        // SAFETY: the status is what the call returned, and is handed over once.
        unsafe { ort::Error::result_from_status(status) }
    }

    /// An error unless the output is of float32, as ONNX Runtime would not see that it is not.
    fn check_output(&self, session: &Session) -> ort::Result<()> {
        let name = self.ports.last().map(|p| p.name.to_bytes());
        let found = session.outputs().iter().find(|o| Some(o.name().as_bytes()) == name);
        match found.and_then(|o| o.dtype().tensor_type()) {
            Some(TensorElementType::Float32) => Ok(()),
            _ => Err(ort::Error::new("the output is not of float32")),
        }
    }
}

impl Port {
    /// Its first `rows` rows as a value over the same memory, which the caller releases before it
    /// lets go of the port.
    fn view(&mut self, rows: usize, info: &MemoryInfo<'_>) -> ort::Result<*mut OrtValue> {
        let (start, size, code) = match &self.memory {
            Memory::I64(m) => {
                (m.0.cast::<c_void>(), size_of::<i64>(), Code::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64)
            }
            Memory::Bool(m) => (m.0.cast(), 1, Code::ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL),
            Memory::F32(m) => {
                (m.0.cast(), size_of::<f32>(), Code::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)
            }
        };
        self.shape[0] = rows as i64;
        let mut value = std::ptr::null_mut();
        // SAFETY: the memory has room for as many rows as `Prepared` was made for, which is no
        // fewer; it lives as long as the value, which `drop` releases. The shape is read during the
        // call.
        let status = unsafe {
            (ort::api().CreateTensorWithDataAsOrtValue)(
                info.ptr(),
                start.as_ptr(),
                rows * self.row_len * size,
                self.shape.as_ptr(),
                self.shape.len(),
                code,
                &mut value,
            )
        };
        // SAFETY: as in `Prepared::run`.
        unsafe { ort::Error::result_from_status(status) }.map(|()| value)
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        for &view in self.views.iter().filter(|view| !view.is_null()) {
            // SAFETY: ONNX Runtime made it, and this is its only owner.
            unsafe { (ort::api().ReleaseValue)(view) };
        }
    }
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = self.ports.iter().map(|p| &p.name).collect::<Vec<_>>();
        write!(f, "Prepared({names:?}, {} rows)", self.rows)
    }
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
