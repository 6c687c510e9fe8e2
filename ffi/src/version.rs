//! Which hone this is.

use std::ffi::c_char;

/// The library's version, as "MAJOR.MINOR.PATCH". Static.
#[unsafe(no_mangle)]
pub extern "C" fn hone_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// The library's version as 0x00MMmmpp, to compare with HONE_VERSION_NUMBER of the header.
#[unsafe(no_mangle)]
pub extern "C" fn hone_version_number() -> u32 {
    const NUMBER: u32 = number(env!("CARGO_PKG_VERSION"));
    NUMBER
}

/// How the library was built: a JSON object with its version, target and least ONNX Runtime.
/// Static.
#[unsafe(no_mangle)]
pub extern "C" fn hone_build_info() -> *const c_char {
    concat!(
        "{\"schema\":\"hone.build/1\",\"version\":\"",
        env!("CARGO_PKG_VERSION"),
        "\",\"target\":\"",
        env!("HONE_TARGET"),
        "\",\"onnxruntime\":\"1.22\",\"samples\":[\"npy\",\"npz\",\"images\"]}\0"
    )
    .as_ptr()
    .cast()
}

/// Three numbers below 256 with dots between them, a byte each.
const fn number(version: &str) -> u32 {
    let bytes = version.as_bytes();
    let (mut whole, mut part, mut i) = (0, 0, 0);
    while i < bytes.len() {
        if bytes[i] == b'.' {
            whole = whole << 8 | part;
            part = 0;
        } else {
            part = part * 10 + (bytes[i] - b'0') as u32;
        }
        i += 1;
    }
    whole << 8 | part
}
