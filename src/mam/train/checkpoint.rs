//! The state of a training run on disk: which run it is, its stage, what the stage keeps beside the
//! trainer (φ's weights once they are fixed, or rows drawn), and the trainer's own state.

use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use crate::atomic_file::AtomicFile;
use crate::error::{Context, Result, bail, error};
use crate::train::{Parameters, Trainer};

const MAGIC: &[u8; 16] = b"hone.mamtrain/1\n";

/// Where the state is kept, if anywhere, and what was found there.
pub struct Checkpoint {
    path: Option<PathBuf>,
    /// Tells this run from others: options, data and model.
    run: String,
    /// The stage that was found, and the trainer's state in it.
    found: Option<(u64, Vec<u8>)>,
    /// What the stage keeps.
    kept: Vec<u8>,
}

impl Checkpoint {
    /// Reads what is at `path`. An error of kind `Usage` if it is the state of another run.
    pub fn new(path: Option<&Path>, run: String) -> Result<Checkpoint> {
        let mut checkpoint =
            Checkpoint { path: path.map(Path::to_owned), run, found: None, kept: Vec::new() };
        if let Some(path) = path.filter(|p| p.exists()) {
            let read = std::fs::read(path).map_err(|e| error!(Io, "cannot be read: {e}"));
            let result = read.and_then(|bytes| checkpoint.read(&bytes));
            result.context(|| path.display().to_string())?;
        }
        Ok(checkpoint)
    }

    fn read(&mut self, bytes: &[u8]) -> Result<()> {
        let mut from = Cursor::new(bytes);
        let mut magic = [0; MAGIC.len()];
        if from.read_exact(&mut magic).is_err() || magic != *MAGIC {
            bail!(Usage, "this is no state of `hone mam train`; name another file");
        }
        let run = block(&mut from)?;
        if run != self.run.as_bytes() {
            bail!(
                Usage,
                "this is the state of a run with other options or data; name another file, or \
                 remove it to start anew"
            );
        }
        let stage = number(&mut from)?;
        self.kept = block(&mut from)?;
        self.found = Some((stage, block(&mut from)?));
        Ok(())
    }

    /// What `stage` keeps, if that is the stage that was found.
    pub fn take_kept(&mut self, stage: u64) -> Option<Vec<u8>> {
        let there = self.found.as_ref().is_some_and(|(found, _)| *found == stage);
        there.then(|| self.kept.clone())
    }

    /// φ's weights, if stage 1 is over.
    pub fn take_phi(&mut self) -> Option<Vec<f32>> {
        let bytes = self.take_kept(2)?;
        let float = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        Some(bytes.chunks_exact(4).map(float).collect())
    }

    /// Remembers what the states from now on keep.
    pub fn keep(&mut self, bytes: Vec<u8>) {
        self.kept = bytes;
    }

    /// Remembers φ's weights for the states of stage 2.
    pub fn keep_phi(&mut self, phi: &Parameters) {
        self.keep(phi.flat().iter().flat_map(|w| w.to_le_bytes()).collect());
    }

    /// Puts the trainer into the state that was found for this stage.
    pub fn restore(&mut self, stage: u64, trainer: &mut Trainer) -> Result<()> {
        match self.found.take_if(|(found, _)| *found == stage) {
            Some((_, state)) => trainer.restore(&mut Cursor::new(state)),
            None => Ok(()),
        }
    }

    /// Writes the state.
    pub fn save(&self, stage: usize, trainer: &Trainer) -> Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let mut state = Vec::new();
        trainer.save(&mut state).expect("memory takes everything");
        let mut bytes = MAGIC.to_vec();
        put(&mut bytes, self.run.as_bytes());
        bytes.extend((stage as u64).to_le_bytes());
        put(&mut bytes, &self.kept);
        put(&mut bytes, &state);
        let mut file = AtomicFile::create(path)?;
        file.append(&bytes)?;
        file.commit()
    }
}

fn put(bytes: &mut Vec<u8>, part: &[u8]) {
    bytes.extend((part.len() as u64).to_le_bytes());
    bytes.extend(part);
}

fn number(from: &mut impl Read) -> Result<u64> {
    let mut bytes = [0; 8];
    let cut = |e| error!(Io, "the state is cut short: {e}");
    from.read_exact(&mut bytes).map_err(cut)?;
    Ok(u64::from_le_bytes(bytes))
}

fn block(from: &mut Cursor<&[u8]>) -> Result<Vec<u8>> {
    let length = number(from)?;
    let left = from.get_ref().len() as u64 - from.position();
    if length > left {
        bail!(Io, "the state is cut short");
    }
    let mut bytes = vec![0; length as usize];
    from.read_exact(&mut bytes).map_err(|e| error!(Io, "the state is cut short: {e}"))?;
    Ok(bytes)
}
