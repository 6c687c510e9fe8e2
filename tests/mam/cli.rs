//! `hone mam` as a user meets it: what goes wrong is named, and good rows are answered all the same.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use hone::mam::contract::Kind;

use crate::tables::{Table, save};

pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    #[track_caller]
    pub fn fails(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "{}{}", self.stdout, self.stderr);
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not in {}", self.stderr);
        }
    }

    #[track_caller]
    fn lines(&self) -> Vec<serde_json::Value> {
        self.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }
}

pub fn mam(arguments: &[&str]) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hone"));
    command.arg("mam").args(arguments).stdin(Stdio::null());
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Run { code: status.code(), stdout: text(stdout), stderr: text(stderr) }
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn good_rows_are_answered_beside_bad_ones() {
    let table = Table::new(4, 2, 0.0, 0.0);
    let contract = table.contract(Kind::Joint);
    let (folder, model) = save(&table.graph(&contract), &contract, "model.onnx");
    let rows = folder.path().join("rows.csv");
    fs::write(&rows, "0,1,?,0\n0,1,2,0\n1,1,1,1\n").unwrap();
    let run = mam(&["score", text(&model), "--data", text(&rows)]);
    run.fails(6, &["1 of 3 rows have no answer", "row 1: site 2: 2 is no value"]);
    let lines = run.lines();
    assert!(lines[1]["error"].as_str().unwrap().starts_with("site 2"));
    for (i, row) in [(0, [0, 1, -1, 0]), (2, [1; 4])] {
        let truth = table.log_marginal(&row);
        assert!((lines[i]["phi"]["log_p"].as_f64().unwrap() - truth).abs() < 1e-4);
        assert_eq!(lines[i]["row"], i);
    }
    let output = folder.path().join("draws.npy");
    let run = mam(&["impute", text(&model), "--data", text(&rows), "--output", text(&output)]);
    run.fails(6, &["row 1"]);
    assert!(output.exists(), "the good rows are there");
}

#[test]
fn theta_alone_comes_with_a_warning() {
    let table = Table::new(3, 2, 0.3, 0.0);
    let contract = table.contract(Kind::Joint);
    let (folder, model) = save(&table.graph(&contract), &contract, "model.onnx");
    let rows = folder.path().join("rows.csv");
    fs::write(&rows, "0,1,0\n").unwrap();
    let theta = ["score", text(&model), "--data", text(&rows), "--method", "theta"];
    let run = mam(&theta);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(run.stderr.contains("no likelihood"), "{}", run.stderr);
    assert!(run.lines()[0]["theta_normalised"].is_null());
    let run = mam(&[&theta[..], &["--correct", "100"]].concat());
    assert!(run.stderr.contains("over all 8 states"), "{}", run.stderr);
    let line = &run.lines()[0];
    let all: f64 = table.states().iter().map(|s| table.theta_of(s).exp()).sum();
    let corrected = line["theta"].as_f64().unwrap() - all.ln();
    assert!((line["theta_normalised"].as_f64().unwrap() - corrected).abs() < 1e-4);
}

#[test]
fn files_and_options_that_cannot_be_are_named() {
    let table = Table::new(3, 2, 0.0, 0.0);
    let contract = table.contract(Kind::Marginal);
    let (folder, model) = save(&table.graph(&contract), &contract, "model.onnx");
    let (model, rows) = (text(&model), folder.path().join("rows.csv"));
    fs::write(&rows, "0,1,0\n").unwrap();
    let rows = text(&rows);
    let fashion = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/fashion/model.onnx");
    mam(&["inspect", fashion]).fails(4, &["fashion/model.onnx", "no marginalization model"]);
    mam(&["inspect", "gone.onnx"]).fails(3, &["gone.onnx"]);
    mam(&["inspect", model, model]).fails(2, &["one of each half"]);
    mam(&["sample", model]).fails(2, &["needs φ", "conditional half"]);
    mam(&["score", model, "--data", "gone.npy"]).fails(3, &["gone.npy"]);
    mam(&["score", model, "--data", rows, "--method", "phi"]).fails(2, &["needs φ"]);
    mam(&["score", model, "--data", rows, "--orders", "all"]).fails(2, &["\"all\"", "forward"]);
    let nowhere = folder.path().join("no/where.jsonl");
    let run = mam(&["score", model, "--data", rows, "--output", text(&nowhere)]);
    run.fails(3, &["where.jsonl", "cannot be written"]);
    let wide = folder.path().join("wide.csv");
    fs::write(&wide, "0,1,0,1\n").unwrap();
    let run = mam(&["score", model, "--data", text(&wide)]);
    run.fails(6, &["wide.csv", "4 sites, the model has 3"]);
}

#[test]
fn every_command_has_an_example() {
    for name in ["inspect", "score", "condition", "sample", "impute", "check", "adapt", "prune"] {
        let help = mam(&[name, "--help"]);
        assert_eq!(help.code, Some(0), "{}", help.stderr);
        assert!(help.stdout.contains(&format!("hone mam {name} ")), "{}", help.stdout);
        assert!(help.stdout.contains("Example"), "{}", help.stdout);
    }
}

#[test]
fn pictures_tell_evidence_from_what_was_drawn() {
    let table = Table::new(6, 2, 0.0, 0.0);
    let mut contract = table.contract(Kind::Joint);
    contract.shape = Some(vec![2, 3]);
    let (folder, model) = save(&table.graph(&contract), &contract, "model.onnx");
    let (model, file) = (text(&model), folder.path().join("grid.png"));
    let run = mam(&["sample", model, "--count", "5", "--png", text(&file)]);
    assert_eq!((run.code, run.lines().len()), (Some(0), 5), "{}", run.stderr);
    let grid = image::open(&file).unwrap().into_rgb8();
    // Three columns of two lines, 16 pixels a site, gaps of 3.
    assert_eq!(grid.dimensions(), (3 * 51 + 3, 2 * 35 + 3));
    let is_grey = |p: &image::Rgb<u8>| p.0[0] == p.0[1] && p.0[1] == p.0[2];
    let cells = run.lines()[1]["values"].as_array().unwrap().clone();
    for (site, value) in cells.iter().enumerate() {
        let (x, y) = (51 + 3 + site as u32 % 3 * 16, 3 + site as u32 / 3 * 16);
        let expected = if *value == 1 { 255 } else { 0 };
        assert_eq!(grid.get_pixel(x + 15, y + 15).0, [expected; 3], "site {site}");
    }
    let rows = folder.path().join("rows.csv");
    fs::write(&rows, "0,1,?,1,?,0\n1,1,1,0,0,?\n").unwrap();
    let impute = ["impute", model, "--data", text(&rows), "--count", "2", "--png", text(&file)];
    let run = mam(&impute);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let grid = image::open(&file).unwrap().into_rgb8();
    assert_eq!(grid.dimensions(), (3 * 51 + 3, 2 * 35 + 3));
    let at = |picture: u32, line: u32, site: u32| {
        *grid.get_pixel(3 + picture * 51 + site % 3 * 16, 3 + line * 35 + site / 3 * 16)
    };
    let missing = at(0, 0, 2);
    assert!(!is_grey(&missing) && at(0, 1, 5) == missing);
    for picture in 0..3 {
        assert_eq!((at(picture, 0, 1).0, at(picture, 0, 5).0), ([255; 3], [0; 3]));
    }
    for picture in 1..3 {
        assert!(!is_grey(&at(picture, 0, 2)) && at(picture, 0, 2) != missing);
    }
    let run = mam(&["sample", model, "--count", "10000000", "--png", text(&file)]);
    run.fails(2, &["--png", "too many"]);
    contract.shape = None;
    let (_folder, flat) = save(&table.graph(&contract), &contract, "flat.onnx");
    let run = mam(&["sample", text(&flat), "--png", text(&file)]);
    run.fails(2, &["--png", "no image", "mam.shape"]);
}
