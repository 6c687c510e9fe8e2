//! A run's state in a file, from which the same run goes on with the same bits.
//!
//! The file holds what the run is (settings and fingerprints of model and data, so that another run
//! does not continue from it), its log so far, the state of the trainer, and a checksum. It is
//! replaced as a whole: whenever a run is killed, the latest complete file is there.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use crate::atomic_file::AtomicFile;
use crate::calibration::Samples;
use crate::error::{Context, Error, ErrorKind, Result, bail};
use crate::tensor::Tensor;

/// What a run is, by name: runs with the same identity do the same.
pub type Identity = BTreeMap<String, String>;

/// The longest identity or log that is read: the state proper is bounded by the trainer.
const LONGEST_TEXT: u64 = 256 << 20;

const MAGIC: &[u8; 18] = b"hone.checkpoint/1\n";

/// What can be known of a checkpoint's place before any work: it is in a folder that exists and is
/// not the `output`, whose file it would take with it at the end.
pub fn check_place(path: Option<&Path>, output: &Path) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let folder = |path: &Path| match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.canonicalize(),
        _ => Path::new(".").canonicalize(),
    };
    let Ok(here) = folder(path) else {
        bail!(Io, "{}: the folder does not exist; create it first", path.display());
    };
    if path.is_dir() || path.file_name().is_none() {
        bail!(Usage, "the checkpoint {} is a folder; name a file in it", path.display());
    }
    if path.file_name() == output.file_name() && folder(output).is_ok_and(|there| there == here) {
        bail!(Usage, "the checkpoint {} is the output itself; name another file", path.display());
    }
    Ok(())
}

/// Writes the file at `path`: `log` is any text, `save` writes the state.
pub fn write(
    path: &Path,
    identity: &Identity,
    log: &str,
    save: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    let mut to = Hashing { inner: &mut file, hash: Hash::new() };
    let body = || -> io::Result<()> {
        to.write_all(MAGIC)?;
        let identity = serde_json::to_string(identity).map_err(io::Error::other)?;
        for text in [&identity, log] {
            to.write_all(&(text.len() as u64).to_le_bytes())?;
            to.write_all(text.as_bytes())?;
        }
        save(&mut to)
    };
    let written = body().and_then(|()| {
        let sum = to.hash.0;
        to.inner.write_all(&sum.to_le_bytes())
    });
    written.map_err(|e| broken(path, "cannot be written", e))?;
    file.commit()
}

/// Reads the file at `path` back and gives its log; `None` when there is no such file.
///
/// Errors of kind `Usage`: it belongs to another run, which the message tells apart; of kind `Io`:
/// it cannot be read or is damaged. What `restore` filled is then not to be used.
pub fn read(
    path: &Path,
    identity: &Identity,
    restore: impl FnOnce(&mut dyn Read) -> Result<()>,
) -> Result<Option<String>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(broken(path, "cannot be opened", e)),
    };
    let in_file = || path.display().to_string();
    let mut from = Hashing { inner: BufReader::new(file), hash: Hash::new() };
    let damaged = |e| broken(path, "is no checkpoint, or a damaged one; delete it", e);
    let mut magic = [0; MAGIC.len()];
    from.read_exact(&mut magic).map_err(damaged)?;
    if magic != *MAGIC {
        bail!(Io, "{}: this is no checkpoint of hone", path.display());
    }
    let found = read_text(&mut from).map_err(damaged)?;
    let found: Identity = serde_json::from_str(&found).map_err(|e| damaged(io::Error::other(e)))?;
    compare(&found, identity).context(in_file)?;
    let log = read_text(&mut from).map_err(damaged)?;
    restore(&mut from).context(in_file)?;
    let sum = from.hash.0;
    let mut stored = [0; 8];
    from.inner.read_exact(&mut stored).map_err(damaged)?;
    if u64::from_le_bytes(stored) != sum {
        bail!(Io, "{}: the checkpoint is damaged (its checksum is wrong)", path.display());
    }
    Ok(Some(log))
}

/// The fingerprint of samples: inputs and labels.
pub fn fingerprint(samples: &Samples) -> String {
    let mut hash = Hash::new();
    let labels = samples.labels().map(|l| ("labels", l.tensor()));
    let inputs = samples.inputs().iter().map(|(name, tensor)| (name.as_str(), tensor));
    for (name, tensor) in inputs.chain(labels) {
        hash.add(name.as_bytes());
        add_tensor(&mut hash, tensor);
    }
    format!("{:016x}", hash.0)
}

/// The fingerprint of some bytes.
pub fn fingerprint_of_bytes(bytes: &[u8]) -> String {
    let mut hash = Hash::new();
    hash.add(bytes);
    format!("{:016x}", hash.0)
}

fn add_tensor(hash: &mut Hash, tensor: &Tensor) {
    hash.add(format!("{:?} {}", tensor.shape(), tensor.element_type()).as_bytes());
    // Some rows at a time, as their bytes are copied.
    const ROWS: usize = 256;
    let rows: Vec<usize> = (0..tensor.shape().first().copied().unwrap_or(0)).collect();
    for rows in rows.chunks(ROWS) {
        hash.add(&tensor.take_rows(rows).data().to_le_bytes());
    }
}

/// An error that tells two runs apart.
fn compare(found: &Identity, wanted: &Identity) -> Result<()> {
    for key in found.keys().chain(wanted.keys()) {
        let (a, b) = (found.get(key), wanted.get(key));
        if a != b {
            let (a, b) = (a.map_or("nothing", |v| v), b.map_or("nothing", |v| v));
            bail!(
                Usage,
                "the checkpoint is of another run: its {key} is {a}, here it is {b}; give the same \
                 options and files, or another checkpoint, or delete the file to start anew"
            );
        }
    }
    Ok(())
}

fn read_text(from: &mut dyn Read) -> io::Result<String> {
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes)?;
    let length = u64::from_le_bytes(bytes);
    if length > LONGEST_TEXT {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a text in it is too long"));
    }
    let mut text = String::new();
    let read = from.take(length).read_to_string(&mut text)?;
    if read as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(text)
}

fn broken(path: &Path, what: &str, e: io::Error) -> Error {
    Error::new(ErrorKind::Io, format!("{}: {what}: {e}", path.display())).with_source(e)
}

/// Passes bytes through and sums them up.
struct Hashing<T> {
    inner: T,
    hash: Hash,
}

impl<T: Write> Write for Hashing<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hash.add(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for Hashing<T> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(bytes)?;
        self.hash.add(&bytes[..n]);
        Ok(n)
    }
}

/// FNV-1a: against accidents, not against malice.
struct Hash(u64);

impl Hash {
    fn new() -> Hash {
        Hash(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn identity(rate: &str) -> Identity {
        [("learning rate", rate), ("seed", "0")].map(|(k, v)| (k.into(), v.into())).into()
    }

    fn restore(path: &Path, identity: &Identity) -> Result<Option<(String, Vec<u8>)>> {
        let mut state = vec![0; 5];
        let fill = |from: &mut dyn Read| {
            from.read_exact(&mut state).map_err(|e| broken(path, "is cut short", e))
        };
        Ok(read(path, identity, fill)?.map(|log| (log, state)))
    }

    #[test]
    fn a_state_comes_back_or_the_reason_why_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let same = identity("0.1");
        assert!(restore(&path, &same).unwrap().is_none());
        write(&path, &same, "log", |to| to.write_all(b"state")).unwrap();
        let (log, state) = restore(&path, &same).unwrap().unwrap();
        assert_eq!((log.as_str(), state.as_slice()), ("log", &b"state"[..]));

        let error = restore(&path, &identity("0.2")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains("its learning rate is 0.1, here it is 0.2"), "{error}");
        let error = restore(&path, &Identity::new()).unwrap_err();
        assert!(error.to_string().contains("here it is nothing"), "{error}");

        let whole = fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(restore(&path, &same).unwrap_err().kind(), ErrorKind::Io, "{cut}");
        }
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x40;
            fs::write(&path, &flipped).unwrap();
            assert!(restore(&path, &same).is_err(), "{at}");
        }
    }
}
