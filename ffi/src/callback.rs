//! Callbacks of the host: a function, its context, and what is called when hone lets go of it.

use std::ffi::c_void;

/// The context of a callback with its end: `drop` is called once, when this is dropped.
pub(crate) struct Context {
    pub(crate) pointer: *mut c_void,
    drop: Option<unsafe extern "C" fn(context: *mut c_void)>,
}

// SAFETY: the header says that callbacks come on any thread; a context that cannot take that must
// not be given.
unsafe impl Send for Context {}
// SAFETY: as above; observers are called one at a time, and log sinks must bear concurrent calls.
unsafe impl Sync for Context {}

impl Context {
    pub(crate) fn new(
        pointer: *mut c_void,
        drop: Option<unsafe extern "C" fn(context: *mut c_void)>,
    ) -> Context {
        Context { pointer, drop }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if let Some(drop) = self.drop {
            // SAFETY: the host gave the function with this context, and this is the only call.
            unsafe { drop(self.pointer) };
        }
    }
}
