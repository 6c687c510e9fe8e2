//! Answers row by row: to a file that appears whole, or to standard output.

use std::io::{BufWriter, ErrorKind as IoKind, Stdout, Write, stdout};
use std::path::Path;

use hone::atomic_file::AtomicFile;
use hone::error::{Context, Error, ErrorKind, Result};
use serde_json::{Value as Json, json};

/// Where lines go, and how many rows had no answer.
pub struct Answers {
    sink: Sink,
    rows: usize,
    failed: usize,
    first: Option<Error>,
}

enum Sink {
    File(Box<AtomicFile>),
    Stdout(BufWriter<Stdout>),
    /// The reader has gone, as in `| head`: nothing more is wanted.
    Closed,
}

impl Answers {
    pub fn new(output: Option<&Path>) -> Result<Answers> {
        let sink = match output {
            Some(path) => Sink::File(Box::new(AtomicFile::create(path)?)),
            None => Sink::Stdout(BufWriter::new(stdout())),
        };
        Ok(Answers { sink, rows: 0, failed: 0, first: None })
    }

    /// Whether nobody reads any more.
    pub fn closed(&self) -> bool {
        matches!(self.sink, Sink::Closed)
    }

    /// The answer for the next row as a JSON line, or its error.
    pub fn row(&mut self, answer: Result<Json>) -> Result<()> {
        let row = self.rows;
        self.rows += 1;
        let mut line = json!({ "row": row });
        match answer {
            Ok(Json::Object(fields)) => line.as_object_mut().expect("it is one").extend(fields),
            Ok(other) => line["value"] = other,
            Err(e) if e.kind() == ErrorKind::Cancelled => return Err(e),
            Err(e) => {
                line["error"] = e.to_string().into();
                self.fail(row, e);
            }
        }
        self.line(&line.to_string())
    }

    /// A row without an answer.
    pub fn fail(&mut self, row: usize, error: Error) {
        self.failed += 1;
        if self.first.is_none() {
            self.first = Some(error.context(format!("row {row}")));
        }
    }

    pub fn line(&mut self, line: &str) -> Result<()> {
        let written = match &mut self.sink {
            Sink::File(file) => {
                return file.append(line.as_bytes()).and_then(|()| file.append(b"\n"));
            }
            Sink::Stdout(out) => writeln!(out, "{line}"),
            Sink::Closed => Ok(()),
        };
        self.settle(written)
    }

    /// Hands on what was written so far.
    pub fn flush(&mut self) -> Result<()> {
        let flushed = match &mut self.sink {
            Sink::Stdout(out) => out.flush(),
            _ => Ok(()),
        };
        self.settle(flushed)
    }

    fn settle(&mut self, result: std::io::Result<()>) -> Result<()> {
        match result {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == IoKind::BrokenPipe => {
                self.sink = Sink::Closed;
                Ok(())
            }
            Err(e) => {
                Err(Error::new(ErrorKind::Io, format!("standard output: cannot be written: {e}")))
            }
        }
    }

    /// Puts the file in its place; an error if rows had no answer.
    pub fn finish(mut self) -> Result<()> {
        self.flush()?;
        if let Sink::File(file) = self.sink {
            file.commit()?;
        }
        let (failed, all) = (self.failed, self.rows);
        match self.first {
            Some(first) => Err(first).context(|| format!("{failed} of {all} rows have no answer")),
            None => Ok(()),
        }
    }

    /// Counts rows that are written in another way.
    pub fn count(&mut self, rows: usize) {
        self.rows += rows;
    }
}
