//! `hone finetune` as a user meets it: masks that stay, an output that differs in trained tensors
//! only, runs that go on where they were stopped, and messages that say how to mend things.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hone::onnx::{Graph, Model};
use hone::tensor::Tensor;
use ndarray::{Array1, Array4};
use ndarray_npy::NpzWriter;

const MODEL: &str = "examples/fashion/model.onnx";
const DATA: &str = "examples/fashion/calibration.npz";
/// A run of seconds.
const SMALL: &[&str] = &["--limit", "40", "--batch", "8", "--steps", "6", "--threads", "2"];
/// No run of these tests may take longer.
const PATIENCE: Duration = Duration::from_secs(300);

#[test]
fn a_pruned_model_keeps_its_zeros_and_everything_that_is_not_trained() {
    let folder = Folder::new();
    let (pruned, out, report) = (folder.path("p.onnx"), folder.path("o.onnx"), folder.path("r"));
    let magnitude = ["--method", "magnitude", "--sparsity", "0.5", "--limit", "16"];
    let run = folder.hone(&[&["prune", MODEL, "--calibration", DATA], &magnitude[..]], &pruned);
    assert!(run.0, "{}", run.1);
    for optimizer in ["mfac", "adam", "sgd"] {
        let more = ["--optimizer", optimizer, "--evaluation", DATA, "--report", &text(&report)];
        let run = folder.finetune(&pruned, &out, &more);
        assert!(run.0, "{}", run.1);
        let (before, after) = (tensors(&pruned), tensors(&out));
        let json: serde_json::Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
        assert_eq!(json["schema"], "hone.finetune/1");
        assert_eq!(json["options"]["optimizer"], optimizer);
        assert_eq!((&json["options"]["steps"], &json["training_steps"]), (&6.into(), &6.into()));
        assert!(json["evaluation"]["after"]["accuracy"].is_number(), "{json}");
        assert_eq!(json["history"].as_array().unwrap().last().unwrap()["step"], 6);
        let trained: Vec<&str> = json["tensors"]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| t["name"].as_str().unwrap())
            .collect();
        assert_eq!(trained.len(), 24, "12 weights and 12 biases: {trained:?}");
        let mut moved = 0;
        for (name, old) in &before {
            let new = &after[name];
            if !trained.contains(&name.as_str()) {
                assert_eq!(old, new, "{name}");
                continue;
            }
            let (old, new) = (old.to_f32(), new.to_f32());
            let kept = |(o, n): (&f32, &f32)| n.is_finite() && (*o != 0.0 || *n == 0.0);
            assert!(name.ends_with("bias") || old.iter().zip(&new).all(kept), "{name}");
            moved += old.iter().zip(&new).filter(|(o, n)| o != n).count();
        }
        assert!(moved > 80_000, "{optimizer}: {moved}");
        if optimizer == "sgd" {
            let run = folder.finetune(&pruned, &out, &[&more[..], &["--free-zeros"]].concat());
            assert!(run.0, "{}", run.1);
            let zeros = |t: &Tensor| t.to_f32().iter().filter(|w| **w == 0.0).count();
            let all =
                |tensors: &BTreeMap<String, Tensor>| tensors.values().map(zeros).sum::<usize>();
            assert!(all(&tensors(&out)) < all(&before) / 2, "--free-zeros lets them move");
        }
    }
}

#[test]
fn a_run_that_was_stopped_goes_on_to_the_same_bytes() {
    let folder = Folder::new();
    let (whole, out) = (folder.path("whole.onnx"), folder.path("o.onnx"));
    let (kept, log) = (folder.path("run"), folder.path("log"));
    let state = text(&kept);
    let long = ["--steps", "60", "--average", "0.9", "--window", "8", "--distill", MODEL];
    assert!(folder.finetune(MODEL, &whole, &[&long[..], &["--threads", "1"]].concat()).0);

    let resumable = [&long[..], &["--checkpoint", &state, "--checkpoint-every", "7"]].concat();
    let mut command = command(&["finetune", MODEL, "--data", DATA]);
    command.args(["--limit", "40", "--batch", "8"]).args(&resumable).arg("--output").arg(&out);
    command.stderr(File::create(&log).unwrap()).stdout(Stdio::null()).stdin(Stdio::null());
    let mut child = command.spawn().unwrap();
    let start = Instant::now();
    while !kept.exists() {
        assert!(start.elapsed() < PATIENCE, "no checkpoint is written");
        assert_eq!(child.try_wait().unwrap(), None, "it ended early");
        std::thread::sleep(Duration::from_millis(5));
    }
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let status = child.wait().unwrap();
    let said = fs::read_to_string(&log).unwrap();
    assert_eq!(status.code(), Some(130), "{said}");
    assert!(said.contains("run again to go on"), "{said}");
    assert!(!out.exists() && kept.exists());

    let other = folder.finetune(MODEL, &out, &[&resumable[..], &["--seed", "1"]].concat());
    assert!(!other.0 && other.1.contains("its seed is 0, here it is 1"), "{}", other.1);
    let run = folder.finetune(MODEL, &out, &resumable);
    assert!(run.0, "{}", run.1);
    assert!(fs::read(&out).unwrap() == fs::read(&whole).unwrap(), "the same bytes");
    assert!(!kept.exists(), "the checkpoint of a finished run is gone");
}

#[test]
fn a_teacher_replaces_labels() {
    let folder = Folder::new();
    let (bare, out) = (folder.path("bare.npz"), folder.path("o.onnx"));
    let mut archive = NpzWriter::new(File::create(&bare).unwrap());
    archive.add_array("image", &Array4::from_elem((16, 1, 28, 28), 0.3f32)).unwrap();
    archive.finish().unwrap();
    let run = |more: &[&str]| {
        let data = ["finetune", MODEL, "--data", &text(&bare), "--batch", "8", "--steps", "2"];
        folder.hone(&[&data[..], more], &out)
    };
    let (done, said) = run(&[]);
    assert!(!done && said.contains("--distill DENSE --distill-weight 1"), "{said}");
    let (done, said) = run(&["--distill", MODEL]);
    assert!(!done && said.contains("no `labels`"), "{said}");
    let (done, said) = run(&["--distill", MODEL, "--distill-weight", "1"]);
    assert!(done, "{said}");
}

#[test]
fn what_makes_no_sense_is_named() {
    let folder = Folder::new();
    let out = folder.path("o.onnx");
    for (more, words) in [
        (&["--train", "head.wait"][..], "\"head.wait\" names no float32 tensor"),
        (&["--schedule", "stairs:0:1"], "stairs:EVERY:FACTOR"),
        (&["--learning-rate=-1"], "learning rate"),
        (&["--momentum", "1"], "momentum"),
        (&["--loss", "mse"], "float `targets`"),
        (&["--output-name", "probs"], "no output \"probs\""),
        (&["--damping", "0"], "damping"),
        (&["--damping-absolute", "1e-5"], "--learning-rate"),
        (&["--clip", "0"], "norm"),
        (&["--distill", MODEL, "--temperature", "0"], "temperature"),
        (&["--optimizer", "sgd", "--learning-rate", "1e9"], "lower the learning rate"),
    ] {
        let (done, said) = folder.finetune(MODEL, &out, more);
        assert!(!done && said.contains(words) && !said.contains("panicked"), "{more:?}: {said}");
        assert!(!out.exists());
    }
    let model = folder.path("m.onnx");
    fs::copy(root().join(MODEL), &model).unwrap();
    let (done, said) = folder.finetune(&model, &model, &[]);
    assert!(!done && said.contains("the model itself"), "{said}");
    let wrong = folder.path("wrong.npz");
    let mut archive = NpzWriter::new(File::create(&wrong).unwrap());
    archive.add_array("image", &Array4::from_elem((8, 1, 28, 28), 0.3f32)).unwrap();
    archive.add_array("labels", &Array1::from_elem(8, 10i64)).unwrap();
    archive.finish().unwrap();
    let arguments = ["finetune", MODEL, "--data", &text(&wrong)];
    let (done, said) = folder.hone(&[&arguments[..]], &out);
    assert!(!done && said.contains("label 10 of row 0") && said.contains("wrong.npz"), "{said}");
}

#[test]
fn help_shows_an_example() {
    let help = command(&["finetune", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    assert!(help.contains("Example:\n  hone finetune pruned.onnx"), "{help}");
}

/// The initializers of a file.
fn tensors(path: &Path) -> BTreeMap<String, Tensor> {
    let graph = Graph::from_model(&Model::load(path).unwrap()).unwrap();
    graph.initializers.into_iter().map(|(name, t)| (name, Tensor::clone(&t))).collect()
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Whether the command succeeds, and what it says on standard error.
    fn hone(&self, arguments: &[&[&str]], output: &Path) -> (bool, String) {
        let mut command = command(&arguments.concat());
        let done = command.arg("--output").arg(output).stdin(Stdio::null()).output().unwrap();
        (done.status.success(), String::from_utf8(done.stderr).unwrap())
    }

    fn finetune(&self, model: impl AsRef<OsStr>, out: &Path, more: &[&str]) -> (bool, String) {
        let model = model.as_ref().to_str().unwrap();
        let mut small = SMALL.to_vec();
        let given = |pair: &[&str]| more.contains(&pair[0]);
        small = small.chunks(2).filter(|pair| !given(pair)).flatten().copied().collect();
        self.hone(&[&["finetune", model, "--data", DATA], &small, more], out)
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().into()
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hone"));
    command.args(arguments).current_dir(root());
    command
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
