//! The command line as a user meets it: exit codes, messages that name what is wrong and how to
//! mend it, and files that are whole or not there, whatever goes wrong.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ndarray::{Array1, Array4};
use ndarray_npy::NpzWriter;

const MODEL: &str = "examples/fashion/model.onnx";
const CALIBRATION: &str = "examples/fashion/calibration.npz";

/// Settings under which pruning the example takes seconds.
const SMALL: &[&str] = &["--limit", "32", "--gradients", "32", "--stages", "1"];

/// No run of these tests may take longer.
const PATIENCE: Duration = Duration::from_secs(300);

#[test]
fn a_missing_or_foreign_file_is_named() {
    let folder = Folder::new();
    let gone = folder.path("gone.onnx");
    let run = prune(&gone, CALIBRATION, &folder.path("out.onnx"), &["--sparsity", "0.5"]);
    run.fails(3, &["gone.onnx", "cannot be read"]);

    let text = folder.path("text.onnx");
    fs::write(&text, "this is no model\n").unwrap();
    let run = prune(&text, CALIBRATION, &folder.path("out.onnx"), &["--sparsity", "0.5"]);
    run.fails(4, &["text.onnx", "is this an ONNX file"]);

    let run =
        prune(MODEL, folder.path("gone.npz"), &folder.path("out.onnx"), &["--sparsity", "0.5"]);
    run.fails(3, &["gone.npz"]);
    folder.holds(&["text.onnx"]);
}

#[test]
fn samples_that_do_not_fit_are_named() {
    let folder = Folder::new();
    let out = folder.path("out.onnx");
    let prune_on = |samples: &Path, more: &[&str]| {
        prune(MODEL, samples, &out, &[&["--sparsity", "0.5"], SMALL, more].concat())
    };
    let narrow = folder.path("narrow.npz");
    write_samples(&narrow, &Array4::zeros((4, 1, 28, 20)), 0);
    prune_on(&narrow, &[]).fails(6, &["narrow.npz", "\"image\"", "20", "does not fit"]);

    let broken = folder.path("broken.npz");
    let mut images = Array4::zeros((4, 1, 28, 28));
    images[[2, 0, 5, 5]] = f32::NAN;
    write_samples(&broken, &images, 0);
    prune_on(&broken, &[]).fails(6, &["broken.npz", "image", "row 2", "not finite"]);

    let mislabelled = folder.path("mislabelled.npz");
    write_samples(&mislabelled, &Array4::zeros((4, 1, 28, 28)), 10);
    let run = prune_on(&mislabelled, &["--fisher", "labels"]);
    run.fails(6, &["label 10 of row 0", "counted from 0"]);
    folder.holds(&["narrow.npz", "broken.npz", "mislabelled.npz"]);
}

#[test]
fn outputs_that_cannot_be_are_refused_before_any_work() {
    let folder = Folder::new();
    let nowhere = folder.path("no/out.onnx");
    let run = prune(MODEL, CALIBRATION, &nowhere, &["--sparsity", "0.5"]);
    run.fails(3, &["does not exist", "create it"]);

    let own = folder.path("model.onnx");
    fs::copy(root().join(MODEL), &own).unwrap();
    let before = fs::read(&own).unwrap();
    let run = prune(&own, CALIBRATION, &own, &["--sparsity", "0.5"]);
    run.fails(2, &["the output", "the model itself", "another file"]);
    assert!(fs::read(&own).unwrap() == before, "the model is as it was");

    let run = prune(MODEL, CALIBRATION, folder.0.path(), &["--sparsity", "0.5"]);
    run.fails(2, &["the output", "is a folder"]);
    folder.holds(&["model.onnx"]);
}

#[test]
fn options_out_of_range_are_usage_errors() {
    let folder = Folder::new();
    let out = folder.path("out.onnx");
    let prune_with = |more: &[&str]| prune(MODEL, CALIBRATION, &out, &[SMALL, more].concat());
    for sparsity in ["1", "1.5", "nan"] {
        prune_with(&["--sparsity", sparsity]).fails(2, &["--sparsity", "0.9"]);
    }
    prune_with(&["--sparsity=-0.1"]).fails(2, &["--sparsity", "0.9"]);
    prune_with(&[]).fails(2, &["--sparsity is missing"]);
    prune_with(&["--pattern", "4:2"]).fails(2, &["4:2", "such as 2:4"]);
    prune_with(&["--pattern", "2:4", "--sparsity", "0.9"]).fails(2, &["2:4", "at most 0.5"]);
    let run = prune_with(&["--sparsity", "0.5", "--skip", "no.such.weight"]);
    run.fails(2, &["no.such.weight", "head.weight"]);
    prune_with(&["--sparsity", "0.5", "--fisher", "exact"]).fails(2, &["exact", "outputs"]);
    prune_with(&["--sparsity", "0.5", "--outputs", "probs"]).fails(2, &["\"probs\""]);
    prune_with(&["--sparsity", "0.5", "--memory-limit", "lots"]).fails(2, &["lots", "4GiB"]);
    hone(["polish"]).fails(2, &["polish"]);
    folder.holds(&[]);
}

#[test]
#[cfg(not(feature = "cuda"))]
fn a_build_without_cuda_says_so() {
    let eval =
        |device| hone(["eval", MODEL, "--data", CALIBRATION, "--limit", "8", "--device", device]);
    eval("cuda").fails(7, &["CUDA", "`cuda` feature", "device cpu"]);
    let run = eval("auto");
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(run.stderr.contains("warn") && run.stderr.contains("CPU"), "{run:?}");
    assert!(run.stdout.contains("of 8 right"), "{run:?}");
    eval("tpu").fails(2, &["tpu", "cpu, cuda or auto"]);
}

#[test]
fn a_missing_onnx_runtime_is_explained() {
    let mut command = command(["eval", MODEL, "--data", CALIBRATION, "--limit", "8"]);
    command.env("HONE_ORT_DYLIB", "/nonexistent/libonnxruntime.so");
    let tried = "/nonexistent/libonnxruntime.so";
    run(command).fails(7, &["ONNX Runtime", "scripts/setup", "HONE_ORT_DYLIB", tried]);
}

#[test]
fn an_interrupt_leaves_nothing_half_written() {
    let folder = Folder::new();
    let out = folder.path("out.onnx");
    fs::write(&out, "an older result").unwrap();
    let mut command = command(["prune", MODEL, "--calibration", CALIBRATION, "--output"]);
    // Far more work than the test waits for.
    command.arg(&out).args(["--sparsity", "0.5", "--gradients", "1000000", "--threads", "1"]);
    let log = folder.path("log");
    command.stderr(File::create(&log).unwrap()).stdout(Stdio::null()).stdin(Stdio::null());
    let mut child = command.spawn().unwrap();
    let start = Instant::now();
    // The first line of progress tells that the signal handler is in place and work has begun.
    while fs::read_to_string(&log).unwrap().is_empty() {
        assert!(start.elapsed() < PATIENCE, "nothing happens");
        assert_eq!(child.try_wait().unwrap(), None, "it still runs");
        thread::sleep(Duration::from_millis(20));
    }
    thread::sleep(Duration::from_millis(300));
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("the interrupt does not end it");
        }
        thread::sleep(Duration::from_millis(20));
    };
    let said = fs::read_to_string(&log).unwrap();
    assert_eq!(status.code(), Some(130), "{said}");
    assert!(said.contains("stopping"), "{said}");
    assert_eq!(fs::read_to_string(&out).unwrap(), "an older result");
    folder.holds(&["log", "out.onnx"]);
}

/// A limit on the size of files stands for a full disk: writing fails half-way through the model.
#[test]
fn a_full_disk_leaves_the_old_output() {
    let folder = Folder::new();
    let out = folder.path("out.onnx");
    fs::write(&out, "an older result").unwrap();
    let mut command = Command::new("bash");
    // Ignored, the signal that comes with the limit becomes an error of the write.
    command.args(["-c", "trap '' XFSZ; ulimit -f 100; exec \"$@\"", "bash"]);
    command.arg(env!("CARGO_BIN_EXE_hone")).args(["prune", MODEL, "--calibration", CALIBRATION]);
    command.arg("--output").arg(&out).args(["--sparsity", "0.5", "--method", "magnitude"]);
    command.args(SMALL).current_dir(root());
    run(command).fails(3, &["out.onnx", "cannot be written", "too large"]);
    assert_eq!(fs::read_to_string(&out).unwrap(), "an older result");
    folder.holds(&["out.onnx"]);
}

#[test]
fn a_run_off_a_terminal_reports_in_plain_lines() {
    let folder = Folder::new();
    let (out, report) = (folder.path("out.onnx"), folder.path("report.json"));
    let more = [&["--sparsity", "0.5", "--report", report.to_str().unwrap()], SMALL].concat();
    let run = prune(MODEL, CALIBRATION, &out, &more);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(run.stderr.lines().count() >= 2, "{run:?}");
    let control = |c: char| c.is_control() && c != '\n';
    assert!(!run.stderr.contains(control) && !run.stdout.contains(control), "{run:?}");
    assert!(run.stdout.contains("head.weight"), "{run:?}");
    folder.holds(&["out.onnx", "report.json"]);
    let json: serde_json::Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
    assert_eq!(json["schema"], "hone.report/1");
}

#[test]
fn help_has_an_example_for_every_command() {
    let overview = hone(["--help"]);
    assert!(overview.stdout.contains("Exit codes"), "{overview:?}");
    for name in ["prune", "finetune", "eval", "inspect", "gradient", "mam"] {
        assert!(overview.stdout.contains(name), "{overview:?}");
        let help = hone([name, "--help"]);
        assert_eq!(help.code, Some(0), "{help:?}");
        assert!(help.stdout.contains(&format!("Example:\n  hone {name} ")), "{help:?}");
        assert!(help.stdout.contains(" examples/"), "{help:?}");
    }
}

/// What a process left behind.
#[derive(Debug)]
struct Run {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Run {
    /// Asserts the exit code and that the message on standard error contains all of `parts`.
    #[track_caller]
    fn fails(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(!self.stderr.contains("panicked"), "{self:?}");
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not in {self:?}");
        }
    }
}

fn prune(
    model: impl AsRef<OsStr>,
    calibration: impl AsRef<OsStr>,
    output: &Path,
    more: &[&str],
) -> Run {
    let mut command = command([OsStr::new("prune"), model.as_ref()]);
    command.arg("--calibration").arg(calibration).arg("--output").arg(output).args(more);
    run(command)
}

fn hone<const N: usize>(arguments: [&str; N]) -> Run {
    run(command(arguments))
}

fn command<A: AsRef<OsStr>, const N: usize>(arguments: [A; N]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hone"));
    command.args(arguments).current_dir(root());
    command
}

fn run(mut command: Command) -> Run {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Run { code: status.code(), stdout: text(stdout), stderr: text(stderr) }
}

/// Images and, for each, the same label.
fn write_samples(path: &Path, images: &Array4<f32>, label: i64) {
    let mut archive = NpzWriter::new(File::create(path).unwrap());
    archive.add_array("image", images).unwrap();
    archive.add_array("labels", &Array1::from_elem(images.dim().0, label)).unwrap();
    archive.finish().unwrap();
}

/// A folder for the files of one test.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Asserts that these files and no others are in it: no output, nothing temporary.
    #[track_caller]
    fn holds(&self, names: &[&str]) {
        let entries = fs::read_dir(&self.0).unwrap();
        let mut found: Vec<_> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        let mut names = names.to_vec();
        found.sort();
        names.sort();
        assert_eq!(found, names);
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
