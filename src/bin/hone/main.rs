//! The command line of hone: a thin caller of the library.

mod arguments;
mod eval;
mod finetune;
mod gradient;
mod inspect;
mod mam;
mod prune;
mod terminal;

use std::process::ExitCode;

use arguments::Command;
use clap::Parser;
use hone::cancel::Cancel;
use hone::{Error, ErrorKind};

fn main() -> ExitCode {
    let arguments = match arguments::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(e) => {
            // Help and version are not failures.
            let _ = e.print();
            return if e.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    terminal::start_logging(arguments.verbose);
    let cancel = Cancel::new();
    terminal::stop_on_signals(&cancel);
    let result = match &arguments.command {
        Command::Prune(a) => prune::run(a, &cancel),
        Command::Finetune(a) => finetune::run(a, &cancel),
        Command::Eval(a) => eval::run(a, &cancel),
        Command::Inspect(a) => inspect::run(a),
        Command::Gradient(a) => gradient::run(a, &cancel),
        Command::Mam(a) => mam::run(a, &cancel),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("hone: {e}");
            ExitCode::from(exit_code(&e))
        }
    }
}

/// What the exit code says; `hone --help` lists these.
fn exit_code(e: &Error) -> u8 {
    match e.kind() {
        ErrorKind::Usage => 2,
        ErrorKind::Io => 3,
        ErrorKind::Model => 4,
        ErrorKind::Unsupported => 5,
        ErrorKind::Data => 6,
        ErrorKind::Runtime | ErrorKind::Device => 7,
        ErrorKind::Memory => 8,
        ErrorKind::Numerics => 9,
        ErrorKind::Cancelled => 130,
        _ => 1,
    }
}
