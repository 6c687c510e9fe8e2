//! Gives `libhone.so` its soname, so that programs ask for the ABI and not for a path: the major
//! version, or 0 and the minor one while the major is zero. Keeps the library loaded for good, as
//! the thread-local values of its threads outlive `dlclose`.

use std::env;

fn main() {
    let version = |part: &str| env::var(format!("CARGO_PKG_VERSION_{part}")).expect("set by cargo");
    let abi = match version("MAJOR").as_str() {
        "0" => format!("0.{}", version("MINOR")),
        major => major.to_owned(),
    };
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libhone.so.{abi}");
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }
    let target = env::var("TARGET").expect("set by cargo");
    println!("cargo:rustc-env=HONE_TARGET={target}");
    println!("cargo:rerun-if-changed=build.rs");
}
