//! The rules of the house that a program can check: which module may use which, where `unsafe` may
//! stand, how long lines and files are, and what must not be left in the repository.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The modules, lowest first. A module uses modules of lower layers and of its own module only.
const LAYERS: &[&[&str]] = &[
    &["error"],
    &["sys", "atomic_file", "cancel", "progress", "random", "tensor"],
    &["onnx"],
    &["autodiff", "runtime"],
    &["calibration"],
    &["gradient", "evaluate", "mfac"],
    &["train"],
    &["inspect", "prune"],
    &["mam"],
    &["engine"],
    &["bin"],
];

/// Where `unsafe` may stand.
const UNSAFE_ALLOWED: &[&str] =
    &["src/sys.rs", "src/sys/", "src/mfac/kernels/", "ffi/src/", "ffi/benches/"];

/// A file should be held in the head.
const LONGEST_FILE_LINES: usize = 900;

/// Rust source lines fit beside each other on a screen.
const LONGEST_LINE_COLUMNS: usize = 100;

#[test]
fn modules_use_only_what_lies_below_them() {
    let mut wrong = Vec::new();
    for (path, text) in rust_files("src/") {
        let module = module_of(&path);
        if module == "lib" {
            continue;
        }
        let from = layer(module).unwrap_or_else(|| panic!("{path}: LAYERS lacks {module:?}"));
        for (number, line) in code_lines(&text) {
            if line.ends_with("crate::{") {
                wrong.push(format!("{path}:{number}: write one `use` for each module"));
            }
            for used in used_modules(line, module == "bin") {
                // Other names after `crate::` are macros and re-exports, of `error`, say.
                let Some(to) = layer(&used) else { continue };
                if used != module && to >= from {
                    wrong.push(format!("{path}:{number}: {module} must not use {used}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn unsafe_stands_where_it_may() {
    let mut wrong = Vec::new();
    for (path, text) in rust_files("") {
        if UNSAFE_ALLOWED.iter().any(|allowed| path.starts_with(allowed)) {
            continue;
        }
        for (number, line) in code_lines(&text) {
            if words(line).any(|word| word == concat!("un", "safe")) {
                wrong.push(format!("{path}:{number}"));
            }
        }
    }
    assert!(wrong.is_empty(), "allowed in {UNSAFE_ALLOWED:?} only:\n{}", wrong.join("\n"));
}

#[test]
fn files_and_lines_are_short() {
    let mut wrong = Vec::new();
    for (path, text) in rust_files("") {
        let lines = text.lines().count();
        if lines > LONGEST_FILE_LINES {
            wrong.push(format!("{path}: {lines} lines, more than {LONGEST_FILE_LINES}"));
        }
        for (i, line) in text.lines().enumerate().filter(|_| !path.starts_with("tests/")) {
            let columns = line.chars().count();
            if columns > LONGEST_LINE_COLUMNS {
                wrong.push(format!("{path}:{}: {columns} columns", i + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn files_say_what_they_are_for() {
    let silent = |(_, text): &(String, String)| !text.starts_with("//! ");
    let wrong: Vec<String> = rust_files("src/")
        .into_iter()
        .chain(rust_files("benches/"))
        .filter(silent)
        .map(|(path, _)| path)
        .collect();
    assert!(wrong.is_empty(), "these do not open with a `//!` paragraph: {wrong:?}");
}

#[test]
fn nothing_is_left_for_later() {
    // Written in halves, so that this file does not contain what it looks for.
    let marks = [
        concat!("to", "do!"),
        concat!("unimple", "mented!"),
        concat!("#[ig", "nore"),
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
    ];
    let found = find(&rust_files(""), &marks);
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn nothing_tells_where_it_was_made() {
    let marks = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("/ho", "me/"),
        concat!("index.cra", "tes.io"),
        concat!("local", "host"),
        concat!("127.0", ".0.1"),
    ];
    let files: Vec<_> = tracked()
        .into_iter()
        .filter(|path| path != "Cargo.lock")
        .filter_map(|path| Some((path.clone(), fs::read_to_string(root().join(path)).ok()?)))
        .collect();
    assert!(files.iter().any(|(path, _)| path == "Cargo.toml"), "text files are looked at");
    let found = find(&files, &marks);
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

/// The lines that contain one of `marks`.
fn find(files: &[(String, String)], marks: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in files {
        for (i, line) in text.lines().enumerate() {
            for mark in marks.iter().filter(|mark| line.contains(**mark)) {
                found.push(format!("{path}:{}: {mark}", i + 1));
            }
        }
    }
    found
}

/// The top-level module a file belongs to.
fn module_of(path: &str) -> &str {
    let inside = path.strip_prefix("src/").expect("only files of src have modules");
    inside.split(['/', '.']).next().expect("a split gives at least one part")
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// The modules named after `crate::` (in the binary: after `hone::`) on a line of code.
fn used_modules(line: &str, binary: bool) -> Vec<String> {
    let prefix = if binary { "hone::" } else { "crate::" };
    let mut used = Vec::new();
    for (at, _) in line.match_indices(prefix) {
        let rest = &line[at + prefix.len()..];
        // `crate::{a, b::C}` names several.
        let list = rest.strip_prefix('{').map_or(rest, |l| l.split('}').next().unwrap_or(l));
        let names = if rest.starts_with('{') { list.split(',').collect() } else { vec![list] };
        for name in names {
            used.extend(words(name).next().map(String::from));
        }
    }
    used
}

/// The numbered lines of a file that are not comments.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let numbered = text.lines().enumerate().map(|(i, line)| (i + 1, line));
    numbered.filter(|(_, line)| !line.trim_start().starts_with("//"))
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// Path and text of the tracked Rust files whose path starts with `prefix`.
fn rust_files(prefix: &str) -> Vec<(String, String)> {
    let files: Vec<_> = tracked()
        .into_iter()
        .filter(|path| path.starts_with(prefix) && path.ends_with(".rs"))
        .filter_map(|path| Some((path.clone(), fs::read_to_string(root().join(path)).ok()?)))
        .collect();
    assert!(!files.is_empty(), "there are Rust files under {prefix:?}");
    files
}

/// The files that are, or are about to be, in the repository; outside of one, all sources.
fn tracked() -> Vec<String> {
    let list = ["ls-files", "--cached", "--others", "--exclude-standard"];
    if let Ok(git) = Command::new("git").args(list).current_dir(root()).output()
        && git.status.success()
    {
        return String::from_utf8_lossy(&git.stdout).lines().map(String::from).collect();
    }
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder)).expect("the sources can be listed") {
            let entry = entry.expect("the sources can be listed");
            let path = folder.join(entry.file_name());
            let top = path.to_string_lossy();
            if ["target", "third_party", ".git"].contains(&&*top) {
                continue;
            }
            match entry.path().is_dir() {
                true => folders.push(path),
                false => files.push(top.into_owned()),
            }
        }
    }
    files
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_checks_see_what_they_look_for() {
    assert_eq!(used_modules("use crate::{onnx::Graph, sys};", false), ["onnx", "sys"]);
    assert_eq!(used_modules("    crate::prune::step(&mut x)", false), ["prune"]);
    assert_eq!(used_modules("use hone::mfac::Fixed;", true), ["mfac"]);
    assert_eq!((module_of("src/bin/hone/main.rs"), module_of("src/sys.rs")), ("bin", "sys"));
    assert!(layer("onnx") < layer("gradient") && layer("gradient") < layer("prune"));
    let marked = [("a.rs".to_string(), "fine\nlet x = bad!();".to_string())];
    assert_eq!(find(&marked, &["bad!"]), ["a.rs:2: bad!"]);
    assert_eq!(code_lines("// one\nlet two;").collect::<Vec<_>>(), [(2, "let two;")]);
}
