//! `hone finetune` and gradual pruning as a user meets them: masks that stay, an output that differs
//! in trained tensors only, runs that go on where they were stopped, and messages that say how to
//! mend things.

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
/// A gradual run of seconds.
const GRADUAL: &[&str] = &[
    "--schedule",
    "gradual",
    "--sparsity",
    "0.8",
    "--gradients",
    "32",
    "--steps",
    "3",
    "--stages",
    "1",
    "--tune-steps",
    "3",
    "--batch",
    "8",
    "--limit",
    "32",
];
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
        let seconds = |name: &str| json[name].as_f64().unwrap();
        assert!(0.0 < seconds("gradient_seconds"), "{json}");
        assert!(seconds("gradient_seconds") <= seconds("training_seconds"), "{json}");
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
    let (code, said) = stopped_at_a_checkpoint(command, "-INT", &kept, &log);
    assert_eq!(code, Some(130), "{said}");
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
    assert!(!done && said.contains("distillation with a weight of 1"), "{said}");
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
        (&["--damping-metric", "round"], "diagonal, identity"),
        (&["--weight-decay=-1"], "weight decay"),
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

#[test]
fn a_gradual_run_reaches_its_sparsity_in_steps() {
    let folder = Folder::new();
    let (out, report) = (folder.path("o.onnx"), folder.path("r"));
    let run = |more: &[&str]| {
        let (done, said) = folder.gradual(MODEL, &out, &[more, &["--report", &text(&report)]]);
        assert!(done, "{said}");
        let json = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
        (json, said)
    };
    let (json, said): (serde_json::Value, _) = run(&["--evaluation", DATA]);
    assert_eq!(json["schema"], "hone.report/1");
    let (gradual, steps) = (&json["gradual"], json["gradual"]["steps"].as_array().unwrap());
    assert_eq!(
        (&gradual["ramp"], &gradual["tuning"]["optimizer"]),
        (&"geometric".into(), &"mfac".into())
    );
    assert_eq!(
        (&gradual["tuning"]["steps"], &gradual["tuning"]["distill_weight"]),
        (&3.into(), &0.5.into())
    );
    assert_eq!(gradual["final_steps"], 24, "eight times as many by default");
    for (j, step) in (1..).zip(steps) {
        let want = 1.0 - 0.2f64.powf(f64::from(j) / 3.0);
        assert!((step["sparsity"].as_f64().unwrap() - want).abs() < 1e-4, "{step}");
        for standing in ["pruned", "tuned"] {
            assert!(step[standing]["quality"]["accuracy"].is_number(), "{step}");
            assert!(step[standing]["divergence"]["relative_error"].as_f64().unwrap() > 0.0);
        }
        assert!(
            step["predicted_loss"].as_f64().unwrap() > 0.0 && step["training_loss"][1].is_number()
        );
    }
    assert_eq!(steps.len(), 3);
    let (last, total) = (&steps[2]["tuned"]["quality"], &json["total"]);
    assert_eq!(*last, json["evaluation"]["pruned"], "the model that is written is the last one");
    assert_eq!(total["measured_loss"], serde_json::Value::Null);
    assert!(
        said.contains("step 2/3: gradients") && said.contains("step 3/3: fine-tuning"),
        "{said}"
    );

    let (dense, pruned) = (tensors(&root().join(MODEL)), tensors(&out));
    let (mut zeros, mut weights) = (0, 0);
    for (name, tensor) in pruned.iter().filter(|(name, _)| name.ends_with("weight")) {
        zeros += tensor.to_f32().iter().filter(|w| **w == 0.0).count();
        weights += tensor.len();
        assert_ne!(tensor, &dense[name]);
    }
    assert_eq!(
        (total["weights"].as_u64(), total["zeros"].as_u64()),
        (Some(weights as u64), Some(zeros as u64))
    );
    assert_eq!(zeros, (0.8 * weights as f64).round() as usize);
    assert!(json["adjusted"].as_array().unwrap().len() == 12, "all biases were trained");

    let bare = folder.path("bare.npz");
    let mut archive = NpzWriter::new(File::create(&bare).unwrap());
    let images =
        Array4::from_shape_fn((16, 1, 28, 28), |(n, _, y, x)| ((n * y + x) % 9) as f32 / 9.0);
    archive.add_array("image", &images).unwrap();
    archive.finish().unwrap();
    let bare = text(&bare);
    let (json, _) = run(&[
        "--calibration",
        &bare,
        "--evaluation",
        &bare,
        "--optimizer",
        "adam",
        "--ramp",
        "cubic",
        "--final-steps",
        "2",
    ]);
    let gradual = &json["gradual"];
    assert_eq!((&gradual["tuning"]["steps"], &gradual["final_steps"]), (&3.into(), &2.into()));
    assert_eq!(gradual["tuning"]["distill_weight"], 1.0, "there are no labels to learn from");
    let step = &gradual["steps"][0];
    assert!((step["sparsity"].as_f64().unwrap() - 0.8 * (1.0 - 8.0 / 27.0)).abs() < 1e-4, "{step}");
    assert!(
        step["tuned"]["quality"].is_null()
            && step["tuned"]["divergence"]["relative_error"].is_number()
    );
}

#[test]
fn a_gradual_run_keeps_a_pattern() {
    let folder = Folder::new();
    let out = folder.path("o.onnx");
    let (done, said) = folder.gradual(
        MODEL,
        &out,
        &[&["--pattern", "2:4", "--sparsity", "0.5", "--optimizer", "sgd"]],
    );
    assert!(done, "{said}");
    let pruned = tensors(&out);
    let weights =
        pruned.iter().filter(|(name, t)| name.ends_with("weight") && t.shape()[1] % 4 == 0);
    let mut seen = 0;
    for (name, tensor) in weights {
        let (shape, values) = (tensor.shape(), tensor.to_f32());
        let taps: usize = shape[2..].iter().product();
        for start in (0..values.len()).filter(|i| (i / taps).is_multiple_of(4)) {
            let kept = (0..4).filter(|c| values[start + c * taps] != 0.0).count();
            assert_eq!(kept, 2, "{name} {start}");
        }
        seen += 1;
    }
    assert_eq!(seen, 11, "all but the first, of one channel");
}

#[test]
fn a_gradual_run_that_was_stopped_goes_on_to_the_same_bytes() {
    let folder = Folder::new();
    let (whole, out) = (folder.path("whole.onnx"), folder.path("o.onnx"));
    let (kept, log) = (folder.path("run"), folder.path("log"));
    let state = text(&kept);
    let long = ["--tune-steps", "12", "--final-steps", "16"];
    let (done, said) = folder.gradual(MODEL, &whole, &[&long, &["--threads", "1"]]);
    assert!(done, "{said}");
    let resumable = [&long[..], &["--checkpoint", &state, "--checkpoint-every", "5"]].concat();
    for (signal, code) in [("-INT", Some(130)), ("-KILL", None)] {
        // Whichever phase it is in after a while: each is stopped in its own way.
        for pause in [0, 150, 400] {
            let mut command = command(&["prune", MODEL]);
            let given = folder.with_defaults(&[&resumable]);
            command.args(&given).arg("--output").arg(&out);
            let (ended, said) =
                stopped_after(command, signal, &kept, &log, Duration::from_millis(pause));
            if ended == Some(0) {
                break;
            }
            assert_eq!(ended, code, "{said}");
            // One that was stopped before it went on has nothing to say.
            let says = signal == "-KILL" || !said.contains("step ");
            assert!(says || said.contains("run again to go on"), "{said}");
            assert!(!out.exists() && kept.exists());
        }
        if kept.exists() {
            let others = [
                ("--seed", "1", "its seed is 0, here it is 1"),
                ("--ramp", "cubic", "its ramp is geometric"),
            ];
            for (option, value, words) in others {
                let (done, said) = folder.gradual(MODEL, &out, &[&resumable, &[option, value]]);
                assert!(!done && said.contains(words), "{said}");
            }
            let (done, said) = folder.gradual(&whole, &out, &[&resumable, &["--sparsity", "0.9"]]);
            assert!(!done && said.contains("checkpoint is of another run"), "{said}");
        }
        let (done, said) = folder.gradual(MODEL, &out, &[&resumable]);
        assert!(done, "{said}");
        assert!(fs::read(&out).unwrap() == fs::read(&whole).unwrap(), "the same bytes");
        assert!(!kept.exists(), "the checkpoint of a finished run is gone");
        fs::remove_file(&out).unwrap();
    }
    fs::write(&kept, "hone.checkpoint/1\nno more").unwrap();
    let (done, said) = folder.gradual(MODEL, &out, &[&resumable]);
    assert!(!done && said.contains("damaged") && kept.exists(), "{said}");
}

#[test]
fn gradual_options_that_make_no_sense_are_named_before_any_work() {
    let folder = Folder::new();
    let out = folder.path("o.onnx");
    let output = text(&out);
    for (more, words) in [
        (&["--schedule", "one-shot"][..], "--steps belongs to a gradual run"),
        (&["--ramp", "steep"], "geometric or cubic"),
        (&["--steps", "0"], "--steps"),
        (&["--tune-epochs", "2"], "cannot be used with"),
        (&["--final-epochs", "0"], "--final-epochs 0 is not a positive number"),
        (&["--final-epochs", "2", "--final-steps", "2"], "cannot be used with"),
        (&["--learning-rate=-1"], "learning rate"),
        (&["--distill-weight", "2"], "share must be from 0 to 1"),
        (&["--loss", "mse"], "float `targets`"),
        (&["--outputs", "a", "--outputs", "b"], "trains one output"),
        (&["--checkpoint", &output], "is the output itself"),
        (&["--checkpoint", "no/where"], "the folder does not exist"),
        (&["--checkpoint-every", "5"], "--checkpoint <FILE>"),
        (&["--pattern", "2:4"], "at most 0.5"),
    ] {
        let (done, said) = folder.gradual(MODEL, &out, &[more]);
        assert!(!done && said.contains(words) && !said.contains("panicked"), "{more:?}: {said}");
        assert!(!said.contains("step 1/"), "{more:?} is refused before any work: {said}");
        assert!(!out.exists());
    }
    let sparse = folder.path("sparse.onnx");
    let magnitude = ["--method", "magnitude", "--sparsity", "0.85", "--limit", "16"];
    assert!(folder.hone(&[&["prune", MODEL, "--calibration", DATA], &magnitude[..]], &sparse).0);
    let (done, said) = folder.gradual(&sparse, &out, &[]);
    assert!(!done && said.contains("85.00 % of the prunable weights are zero already"), "{said}");
    let (done, said) = folder.finetune(MODEL, &out, &["--checkpoint", &output]);
    assert!(!done && said.contains("is the output itself"), "{said}");
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

    fn gradual(&self, model: impl AsRef<OsStr>, out: &Path, more: &[&[&str]]) -> (bool, String) {
        let model = model.as_ref().to_str().unwrap();
        self.hone(&[&["prune", model], &self.with_defaults(more)], out)
    }

    /// The options of a small gradual run, but for those given.
    fn with_defaults<'t>(&self, more: &[&[&'t str]]) -> Vec<&'t str> {
        let mut all = more.concat();
        for pair in GRADUAL.chunks(2).chain([&["--calibration", DATA][..]]) {
            if !all.contains(&pair[0]) {
                all.extend(pair);
            }
        }
        all
    }

    fn finetune(&self, model: impl AsRef<OsStr>, out: &Path, more: &[&str]) -> (bool, String) {
        let model = model.as_ref().to_str().unwrap();
        let mut small = SMALL.to_vec();
        let given = |pair: &[&str]| more.contains(&pair[0]);
        small = small.chunks(2).filter(|pair| !given(pair)).flatten().copied().collect();
        self.hone(&[&["finetune", model, "--data", DATA], &small, more], out)
    }
}

/// The exit code of a command that is sent a signal once there is a checkpoint, and what it said.
fn stopped_at_a_checkpoint(
    command: Command,
    signal: &str,
    kept: &Path,
    log: &Path,
) -> (Option<i32>, String) {
    let (code, said) = stopped_after(command, signal, kept, log, Duration::ZERO);
    assert_ne!(code, Some(0), "it ended early: {said}");
    (code, said)
}

/// The same with a pause before the signal; the command may have come to its end by then.
fn stopped_after(
    mut command: Command,
    signal: &str,
    kept: &Path,
    log: &Path,
    pause: Duration,
) -> (Option<i32>, String) {
    command.stderr(File::create(log).unwrap()).stdout(Stdio::null()).stdin(Stdio::null());
    let mut child = command.spawn().unwrap();
    let start = Instant::now();
    while !kept.exists() && child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < PATIENCE, "no checkpoint is written");
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(pause);
    let id = child.id().to_string();
    // It may be gone already.
    let _ = Command::new("kill").args([signal, &id]).stderr(Stdio::null()).status().unwrap();
    let status = child.wait().unwrap();
    (status.code(), fs::read_to_string(log).unwrap())
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
