//! The header in the repository says what the code says.

use std::fs;

#[test]
fn the_header_is_up_to_date() {
    let (path, fresh) = (hone_header::committed(), hone_header::fresh());
    if std::env::var_os("HONE_BLESS").is_some() {
        fs::write(&path, &fresh).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    let first = committed.lines().zip(fresh.lines()).find(|(a, b)| a != b);
    assert!(
        committed == fresh,
        "include/hone.h is stale (first difference: {first:?}); renew it with \
         `HONE_BLESS=1 cargo test -p hone-header`"
    );
}

#[test]
fn the_version_of_the_header_is_that_of_the_crates() {
    let fresh = hone_header::fresh();
    let version = env!("CARGO_PKG_VERSION");
    for (part, number) in ["MAJOR", "MINOR", "PATCH"].into_iter().zip(version.split('.')) {
        let line = format!("#define HONE_VERSION_{part} {number}\n");
        assert!(fresh.contains(&line), "cbindgen.toml lacks {line:?}");
    }
    for manifest in ["Cargo.toml", "ffi/Cargo.toml"] {
        let text = fs::read_to_string(hone_header::root().join(manifest)).unwrap();
        assert!(text.contains(&format!("\nversion = \"{version}\"\n")), "{manifest}");
    }
}
