//! Compiles the ONNX schema: `protox` parses it (no protoc needed), `buffa` writes the Rust types,
//! which keep fields they do not know so that a model survives a round trip unchanged.

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto/onnx-ml.proto");
    let descriptors = PathBuf::from(env::var("OUT_DIR")?).join("onnx.descriptors");
    let set = protox::Compiler::new(["proto"])?
        .include_source_info(false)
        .open_file("onnx-ml.proto")?
        .encode_file_descriptor_set();
    fs::write(&descriptors, set)?;
    // buffa has cargo watch this file: were it younger than this run, each build would run again.
    let schema = fs::metadata("proto/onnx-ml.proto")?.modified()?;
    fs::File::options().append(true).open(&descriptors)?.set_modified(schema)?;
    buffa_build::Config::new()
        .descriptor_set(&descriptors)
        .files(&["onnx-ml.proto"])
        .generate_views(false)
        .include_file("onnx.rs")
        .compile()
}
