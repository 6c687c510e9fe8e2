//! Damaged and hostile sample files end in a typed error that names file and array, or in the
//! samples that were written: never in a panic, a hang, or other samples.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use hone::ErrorKind;
use hone::calibration::{ReadOptions, Samples};
use hone::onnx::{Dimension, Value};
use hone::tensor::ElementType;
use ndarray::{Array1, Array3, Array4};
use ndarray_npy::NpzWriter;

const ROWS: usize = 6;
/// Damaged copies of each file, with one to three flipped bits.
const FLIPS: u64 = 500;

/// A small model's input: float32 [N, 1, 4, 4].
fn inputs() -> Vec<Value> {
    let mut value = Value::fixed("image", ElementType::F32, &[0, 1, 4, 4]);
    value.shape.as_mut().unwrap()[0] = Dimension::Symbol("N".into());
    vec![value]
}

fn read(path: &Path) -> hone::Result<Samples> {
    Samples::read(path, &inputs(), &ReadOptions::default())
}

fn images() -> Array4<f32> {
    Array4::from_shape_fn((ROWS, 1, 4, 4), |(n, _, i, j)| (n * 16 + i * 4 + j) as f32 / 96.0)
}

fn labels() -> Array1<i64> {
    Array1::from_iter(0..ROWS as i64)
}

fn archive(path: &Path, compressed: bool) -> Vec<u8> {
    let file = File::create(path).unwrap();
    let mut writer =
        if compressed { NpzWriter::new_compressed(file) } else { NpzWriter::new(file) };
    writer.add_array("image", &images()).unwrap();
    writer.add_array("labels", &labels()).unwrap();
    writer.finish().unwrap();
    fs::read(path).unwrap()
}

/// The bytes of every kind of file under test, each with its extension, and a folder to put them.
fn corpus() -> (tempfile::TempDir, Vec<(&'static str, Vec<u8>)>) {
    let folder = tempfile::tempdir().unwrap();
    let npy = folder.path().join("whole.npy");
    ndarray_npy::write_npy(&npy, &images()).unwrap();
    let npz = folder.path().join("whole.npz");
    let files = vec![
        ("npz", archive(&npz, true)),
        ("npz", archive(&npz, false)),
        ("npy", fs::read(&npy).unwrap()),
    ];
    (folder, files)
}

fn array_file(folder: &Path, header: &str, body: &[u8]) -> PathBuf {
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16 + 1).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.push(b'\n');
    bytes.extend(body);
    let path = folder.join("array.npy");
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    let (folder, files) = corpus();
    for (extension, bytes) in files {
        let path = folder.path().join("cut").with_extension(extension);
        fs::write(&path, &bytes).unwrap();
        assert_eq!(read(&path).unwrap().rows(), ROWS);
        let file = File::options().write(true).open(&path).unwrap();
        for length in (0..bytes.len()).rev() {
            file.set_len(length as u64).unwrap();
            let error = read(&path).expect_err("a part of the file is not the file");
            assert_eq!(error.kind(), ErrorKind::Data, "{extension} cut at {length}: {error}");
            assert!(error.to_string().contains("cut."), "{error}");
        }
    }
}

#[test]
fn flipped_bits_are_noticed_or_harmless() {
    let (folder, files) = corpus();
    let mut state = 7u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    for (extension, bytes) in files {
        let path = folder.path().join("flipped").with_extension(extension);
        fs::write(&path, &bytes).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        let mut refused = 0;
        for flip in 0..FLIPS {
            let mut damaged = bytes.clone();
            for _ in 0..=flip % 3 {
                damaged[random(bytes.len())] ^= 1 << random(8);
            }
            file.write_all_at(&damaged, 0).unwrap();
            match read(&path) {
                // Members carry a checksum, so what is read from an archive is what was written.
                Ok(samples) if extension == "npz" => {
                    let x = samples.inputs()[0].1.as_f32().unwrap();
                    assert!(x.iter().eq(images().iter()), "other samples after flip {flip}");
                }
                Ok(samples) => assert_eq!(samples.inputs()[0].1.shape()[1..], [1, 4, 4]),
                Err(error) => {
                    let kind = error.kind();
                    let typed = matches!(kind, ErrorKind::Data | ErrorKind::Memory);
                    assert!(typed, "flip {flip}: {kind:?}: {error}");
                    refused += 1;
                }
            }
        }
        assert!(refused > FLIPS / 10, "{extension}: only {refused} of {FLIPS} were noticed");
    }
}

#[test]
fn headers_that_promise_too_much_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let cases = [
        ("'<f4'", "(4611686018427387904, 1, 4, 4)", "address space"),
        ("'<f4'", "(99999999999999999999999999, 1, 4, 4)", "damaged"),
        ("'<f4'", "(1000000000, 1, 4, 4)", "truncated"),
        ("'|O'", "(1, 1, 4, 4)", "pickled"),
        ("'<U16'", "(1, 1, 4, 4)", "\"<U16\""),
        ("'<c8'", "(1, 1, 4, 4)", "\"<c8\""),
        ("'<f4'", "(0, 1, 4, 4)", "empty"),
    ];
    for (descr, shape, part) in cases {
        let header = format!("{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}");
        let error = read(&array_file(folder.path(), &header, &[0; 64])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data);
        let message = error.to_string();
        assert!(message.contains(part) && message.contains("array.npy"), "{message}");
    }
}

#[test]
fn an_honest_header_over_a_huge_file_meets_the_memory_limit() {
    let folder = tempfile::tempdir().unwrap();
    let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (17179869184, 1, 4, 4), }";
    let path = array_file(folder.path(), header, &[]);
    let file = File::options().write(true).open(&path).unwrap();
    let start = file.metadata().unwrap().len();
    // A hole: a file of a terabyte that takes no space. Not every file system grants it.
    if file.set_len(start + (17179869184u64 << 6)).is_err() {
        return;
    }
    let error = read(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Memory, "{error}");
    let few = ReadOptions { limit: Some(3), ..ReadOptions::default() };
    assert_eq!(Samples::read(&path, &inputs(), &few).unwrap().rows(), 3);
}

#[test]
fn samples_that_do_not_fit_the_model_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("samples.npz");
    let message = |write: &dyn Fn(&mut NpzWriter<File>)| {
        let mut writer = NpzWriter::new_compressed(File::create(&path).unwrap());
        write(&mut writer);
        writer.finish().unwrap();
        let error = read(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data, "{error}");
        let message = error.to_string();
        assert!(message.contains("samples.npz"), "{message}");
        message
    };
    let expect = |message: String, parts: &[&str]| {
        for part in parts {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
    };

    let mut nan = images();
    nan[[4, 0, 1, 2]] = f32::NAN;
    expect(message(&|w| w.add_array("image", &nan).unwrap()), &["\"image\"", "row 4"]);
    nan[[4, 0, 1, 2]] = f32::NEG_INFINITY;
    expect(message(&|w| w.add_array("image", &nan).unwrap()), &["\"image\"", "row 4"]);

    let few = Array1::from(vec![1i64, 2]);
    let mismatch = message(&|w| {
        w.add_array("image", &images()).unwrap();
        w.add_array("labels", &few).unwrap();
    });
    expect(mismatch, &["\"image\" has 6", "\"labels\" has 2"]);

    let wrong = Array3::<f32>::zeros((ROWS, 4, 5));
    expect(
        message(&|w| w.add_array("image", &wrong).unwrap()),
        &["\"image\"", "[6, 4, 5]", "[N, 1, 4, 4]"],
    );
    let bytes = Array4::<u8>::zeros((ROWS, 1, 4, 4));
    expect(message(&|w| w.add_array("image", &bytes).unwrap()), &["uint8", "scale 1/255"]);
    let huge = Array4::<f64>::from_elem((ROWS, 1, 4, 4), 1e200);
    expect(message(&|w| w.add_array("image", &huge).unwrap()), &["row 0", "float32"]);
    expect(message(&|w| w.add_array("img", &images()).unwrap()), &["\"image\"", "[\"img\"]"]);
    expect(message(&|_| ()), &["\"image\""]);

    let mut writer = NpzWriter::new(File::create(&path).unwrap());
    writer.add_array("image", &images()).unwrap();
    writer.add_array("labels", &labels()).unwrap();
    writer.finish().unwrap();
    let samples = read(&path).unwrap();
    let error = samples.labels().unwrap().check(5).unwrap_err();
    expect(error.to_string(), &["label 5 of row 5"]);
}

#[test]
fn paths_that_hold_no_samples() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(read(&folder.path().join("none.npz")).unwrap_err().kind(), ErrorKind::Io);
    let text = folder.path().join("samples.csv");
    fs::write(&text, "1,2,3").unwrap();
    assert_eq!(read(&text).unwrap_err().kind(), ErrorKind::Usage);
    let empty = folder.path().join("empty.npz");
    fs::write(&empty, "").unwrap();
    assert_eq!(read(&empty).unwrap_err().kind(), ErrorKind::Data);
}
