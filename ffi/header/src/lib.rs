//! `include/hone.h` as cbindgen makes it from the C ABI's source.
//!
//! The header is committed, so that building hone does not write into its own source tree; a test
//! compares it. To renew it: `HONE_BLESS=1 cargo test -p hone-header`.

use std::path::{Path, PathBuf};

/// Where the header is.
pub fn committed() -> PathBuf {
    root().join("include/hone.h")
}

/// What the header should say.
pub fn fresh() -> String {
    let ffi = root().join("ffi");
    let config = cbindgen::Config::from_file(ffi.join("cbindgen.toml"))
        .expect("ffi/cbindgen.toml is a configuration of cbindgen");
    let mut header = Vec::new();
    cbindgen::generate_with_config(&ffi, config)
        .expect("cbindgen can read ffi/src")
        .write(&mut header);
    String::from_utf8(header).expect("the sources are UTF-8")
}

/// The root of the source tree.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
