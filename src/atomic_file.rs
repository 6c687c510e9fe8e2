//! Output files that appear whole or not at all: written beside their place, flushed to the disk,
//! then renamed. Whatever fails or is interrupted before that leaves the old file as it was.

use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::{Error, Result, bail, error};

/// A file in the making; dropped before [`AtomicFile::commit`], it leaves nothing behind.
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    file: BufWriter<NamedTempFile>,
}

impl AtomicFile {
    /// Starts the file that is to be at `path`, whose folder must exist.
    pub fn create(path: impl Into<PathBuf>) -> Result<AtomicFile> {
        let path = path.into();
        let file = tempfile::Builder::new()
            .prefix(".hone-")
            .permissions(Permissions::from_mode(0o666)) // less the umask, as for any new file
            .tempfile_in(folder_of(&path))
            .map_err(|e| cannot_write(&path, e))?;
        Ok(AtomicFile { path, file: BufWriter::with_capacity(1 << 20, file) })
    }

    /// Writes all of `bytes`. The error names the file.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| cannot_write(&self.path, e))
    }

    /// Makes sure that what was written is on the disk.
    pub fn sync(&mut self) -> Result<()> {
        let synced = self.file.flush().and_then(|()| self.file.get_ref().as_file().sync_all());
        synced.map_err(|e| cannot_write(&self.path, e))
    }

    /// Puts the file in its place, instead of what was there.
    pub fn commit(mut self) -> Result<()> {
        self.sync()?;
        let path = self.path;
        let (file, _) = self.file.into_parts();
        file.persist(&path).map_err(|e| cannot_write(&path, e.error))?;
        // The new name is durable once the folder is; some file systems cannot say so.
        if let Ok(folder) = File::open(folder_of(&path)) {
            let _ = folder.sync_all();
        }
        Ok(())
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// What can be known of an output before hours of work: it is a file name in a folder that exists,
/// and none of `sources` is the same file.
pub fn check_output(output: &Path, sources: &[&Path]) -> Result<()> {
    if output.file_name().is_none() {
        bail!(Usage, "the output {} is not a file name", output.display());
    }
    if !folder_of(output).is_dir() {
        bail!(Io, "{}: the folder does not exist; create it first", output.display());
    }
    if output.is_dir() {
        bail!(Usage, "the output {} is a folder; name a file in it", output.display());
    }
    let real = |path: &Path| fs::canonicalize(path).ok();
    if real(output).is_some_and(|output| sources.iter().any(|s| real(s).as_ref() == Some(&output)))
    {
        bail!(Usage, "the output is the model itself; write to another file");
    }
    Ok(())
}

/// The folder that holds `path`.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn cannot_write(path: &Path, e: io::Error) -> Error {
    // Without the name of the temporary file, which nobody asked for.
    let e = if e.raw_os_error().is_some() { e } else { io::Error::from(e.kind()) };
    error!(Io, "{}: cannot be written: {e}", path.display()).with_source(e)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appears_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        fs::write(&path, "old").unwrap();

        let mut abandoned = AtomicFile::create(&path).unwrap();
        abandoned.append(b"half").unwrap();
        abandoned.sync().unwrap();
        drop(abandoned);
        assert_eq!(fs::read(&path).unwrap(), b"old");

        let mut file = AtomicFile::create(&path).unwrap();
        file.append(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        file.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "no temporary file is left");
        let plain = folder.path().join("plain");
        fs::write(&plain, "").unwrap();
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode();
        assert_eq!(mode(&path), mode(&plain), "as readable as any new file");
    }

    #[test]
    fn errors_name_the_file() {
        let error = AtomicFile::create("/no-such-folder/out").unwrap_err().to_string();
        assert!(error.starts_with("/no-such-folder/out: cannot be written"), "{error}");
        assert!(!error.contains(".hone-"), "{error}");
        let folder = tempfile::tempdir().unwrap();
        assert!(AtomicFile::create(folder.path()).unwrap().commit().is_err(), "it is a folder");
    }
}
