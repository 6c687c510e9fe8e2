//! Reading tensors that are stored in other files (ONNX external data).
//!
//! A model names these files itself, so that opening one is opening whatever a stranger chose. A
//! location is therefore a plain path below the model's folder, walked one component at a time
//! without following links, and only a regular file that has no other name (hard link) is read, by
//! plain reads within bounds that were checked before anything is allocated. ONNX Runtime is never
//! handed such a reference.

use std::ffi::CString;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use crate::error::{Error, Result, bail, error};
use crate::onnx::proto::{StringStringEntryProto, TensorProto};
use crate::onnx::storage;
use crate::sys;
use crate::tensor::{Data, Tensor};

/// How much is copied at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// Where in which file a tensor is stored.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    /// The path below the model's folder.
    pub location: String,
    /// The first byte.
    pub offset: u64,
    /// The number of bytes; up to the end of the file when absent.
    pub length: Option<u64>,
}

/// The bytes of one tensor in an open file.
#[derive(Debug)]
pub struct Span {
    file: File,
    location: String,
    offset: u64,
    length: u64,
}

impl Reference {
    /// What the external data entries of `proto` say: a location below the model's folder, and
    /// decimal numbers.
    pub fn parse(proto: &TensorProto) -> Result<Reference> {
        let number = |key: &str| -> Result<Option<u64>> {
            let Some(text) = entry(proto, key)? else { return Ok(None) };
            let decimal = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            match text.parse() {
                Ok(value) if decimal => Ok(Some(value)),
                _ => bail!(Model, "the {key} {text:?} of its external data is no byte count"),
            }
        };
        let Some(location) = entry(proto, "location")? else {
            bail!(Model, "its external data has no location");
        };
        components(location)?;
        let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
        Ok(Reference { location: location.into(), offset, length })
    }

    /// The entries that say the same, for a `TensorProto`.
    pub fn entries(&self) -> Vec<StringStringEntryProto> {
        let pair = |key: &str, value: String| StringStringEntryProto {
            key: Some(key.into()),
            value: Some(value),
            ..StringStringEntryProto::default()
        };
        let mut entries =
            vec![pair("location", self.location.clone()), pair("offset", self.offset.to_string())];
        entries.extend(self.length.map(|length| pair("length", length.to_string())));
        entries
    }

    /// Opens the file below `folder` and checks that the bytes are there.
    pub fn open(&self, folder: &Path) -> Result<Span> {
        let file = open_below(folder, &self.location)?;
        let size = file.metadata().map_err(|e| unreadable(&self.location, e))?.len();
        let length = self.length.unwrap_or(size.saturating_sub(self.offset));
        let end = self.offset.checked_add(length);
        if end.is_none_or(|end| end > size) {
            let Reference { location, offset, .. } = self;
            bail!(
                Model,
                "its external data is bytes {offset} to {offset}+{length} of {location:?}, \
                 which has only {size}; is the file complete?"
            );
        }
        Ok(Span { file, location: self.location.clone(), offset: self.offset, length })
    }
}

impl Span {
    /// The number of bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Hands the bytes to `sink`, a chunk at a time.
    pub fn copy(&self, mut sink: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut buffer = vec![0; CHUNK_BYTES.min(self.length as usize)];
        let mut done = 0;
        while done < self.length {
            let chunk = &mut buffer[..CHUNK_BYTES.min((self.length - done) as usize)];
            self.read_at(chunk, done)?;
            sink(chunk)?;
            done += chunk.len() as u64;
        }
        Ok(())
    }

    fn read_at(&self, buffer: &mut [u8], start: u64) -> Result<()> {
        let read = self.file.read_exact_at(buffer, self.offset + start);
        read.map_err(|e| unreadable(&self.location, e))
    }
}

/// The tensor that `proto` stores in a file below `folder`.
pub fn read(folder: &Path, proto: &TensorProto) -> Result<Tensor> {
    let (element, shape) = (storage::element_type(proto)?, storage::shape(proto)?);
    let span = reference(proto)?.open(folder)?;
    let (length, mut bytes) = (span.length as usize, Vec::new());
    if bytes.try_reserve_exact(length).is_err() {
        bail!(Memory, "there is no memory for its {length} bytes");
    }
    bytes.resize(length, 0);
    span.read_at(&mut bytes, 0)?;
    Tensor::new(shape, Data::from_le_bytes(element, &bytes)?)
}

/// Where `proto` is stored: exactly the bytes that its shape takes, where hone knows the element
/// type.
pub fn reference(proto: &TensorProto) -> Result<Reference> {
    let (mut reference, shape) = (Reference::parse(proto)?, storage::shape(proto)?);
    if let Ok(element) = storage::element_type(proto) {
        let expected = storage::byte_length(element, &shape)? as u64;
        let length = *reference.length.get_or_insert(expected);
        if length != expected {
            bail!(
                Model,
                "shape {shape:?} of {element} takes {expected} bytes, but its external data in \
                 {:?} has {length}",
                reference.location
            );
        }
    }
    Ok(reference)
}

/// The value of an external data entry; twice the same key is an error.
fn entry<'a>(proto: &'a TensorProto, key: &str) -> Result<Option<&'a str>> {
    let mut found = proto.external_data.iter().filter(|e| e.key.as_deref() == Some(key));
    let value = found.next().map(|e| e.value.as_deref().unwrap_or(""));
    if found.next().is_some() {
        bail!(Model, "its external data has more than one {key}");
    }
    Ok(value)
}

/// Opens the regular file `location` below `folder`.
fn open_below(folder: &Path, location: &str) -> Result<File> {
    let parts = components(location)?;
    let (last, folders) = parts.split_last().expect("there is at least one component");
    let mut at = File::open(folder)
        .map_err(|e| error!(Io, "{}: cannot be opened: {e}", folder.display()).with_source(e))?;
    for part in folders {
        at = sys::open_in(&at, part, true).map_err(|e| unreadable(location, e))?;
    }
    let file = sys::open_in(&at, last, false).map_err(|e| unreadable(location, e))?;
    let metadata = file.metadata().map_err(|e| unreadable(location, e))?;
    if !metadata.is_file() {
        bail!(Model, "its external data {location:?} is not a regular file");
    }
    if metadata.nlink() > 1 {
        bail!(
            Model,
            "its external data {location:?} is a hard link, which may lead out of the model's \
             folder; replace it by a copy"
        );
    }
    Ok(file)
}

/// The names along a location; an error unless it is a plain relative path.
fn components(location: &str) -> Result<Vec<CString>> {
    let refuse = |why: &str| {
        error!(
            Model,
            "its external data {location:?} {why}; hone reads below the model's folder only"
        )
    };
    if location.starts_with('/') {
        return Err(refuse("is an absolute path"));
    }
    if location.contains(['\\', '\0']) {
        return Err(refuse("is not a plain path"));
    }
    let parts: Vec<_> = location.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.contains(&"..") {
        return Err(refuse("leads out of the model's folder"));
    }
    if parts.is_empty() {
        return Err(refuse("names no file"));
    }
    Ok(parts.into_iter().map(|p| CString::new(p).expect("NUL was refused")).collect())
}

fn unreadable(location: &str, e: std::io::Error) -> Error {
    let link = matches!(e.raw_os_error(), Some(libc::ELOOP | libc::ENOTDIR));
    let hint =
        if link { "; hone follows no links and reads below the model's folder only" } else { "" };
    error!(Io, "its external data {location:?} cannot be read: {e}{hint}").with_source(e)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn proto(entries: &[(&str, &str)]) -> TensorProto {
        let mut proto = storage::write("w", &Tensor::f32([2], vec![1.0, 2.0]));
        proto.raw_data = None;
        proto.data_location = Some(super::super::proto::tensor_proto::DataLocation::EXTERNAL);
        proto.external_data = entries
            .iter()
            .map(|(k, v)| StringStringEntryProto {
                key: Some((*k).into()),
                value: Some((*v).into()),
                ..StringStringEntryProto::default()
            })
            .collect();
        proto
    }

    /// A folder with a file of 16 bytes: 0.0, 1.0, 2.0, 3.0.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let data = Data::F32(vec![0.0, 1.0, 2.0, 3.0]).to_le_bytes();
        fs::create_dir(folder.path().join("sub")).unwrap();
        fs::write(folder.path().join("data"), &data).unwrap();
        fs::write(folder.path().join("sub/data"), &data).unwrap();
        folder
    }

    fn refusal(folder: &Path, entries: &[(&str, &str)]) -> String {
        read(folder, &proto(entries)).unwrap_err().to_string()
    }

    #[test]
    fn reads_the_named_bytes() {
        let folder = folder();
        let read = |entries: &[_]| read(folder.path(), &proto(entries)).unwrap();
        let at = |first: f32| Tensor::f32([2], vec![first, first + 1.0]);
        assert_eq!(read(&[("location", "data"), ("offset", "4"), ("length", "8")]), at(1.0));
        assert_eq!(read(&[("location", "sub/data"), ("offset", "8")]), at(2.0));
        assert_eq!(read(&[("location", "./sub/data")]), at(0.0));
    }

    #[test]
    fn paths_that_leave_the_folder_are_refused() {
        let outer = folder();
        let folder = outer.path().join("sub");
        symlink(outer.path().join("data"), folder.join("link")).unwrap();
        symlink("data", folder.join("inner-link")).unwrap();
        symlink(outer.path(), folder.join("folder-link")).unwrap();
        fs::hard_link(outer.path().join("data"), folder.join("hard")).unwrap();
        let absolute = outer.path().join("data").display().to_string();
        for (location, why) in [
            ("../data", "leads out"),
            ("a/../../data", "leads out"),
            ("..", "leads out"),
            (&absolute, "absolute"),
            ("..\\data", "not a plain path"),
            ("data\0", "not a plain path"),
            ("", "names no file"),
            (".", "names no file"),
            ("link", "follows no links"),
            ("inner-link", "follows no links"),
            ("folder-link/data", "follows no links"),
            ("data/data", "cannot be read"),
            ("hard", "hard link"),
            ("none", "cannot be read"),
        ] {
            let text = refusal(&folder, &[("location", location)]);
            assert!(text.contains(why), "{location:?}: {text}");
        }
    }

    #[test]
    fn only_regular_files_are_read() {
        let folder = folder();
        let fifo = folder.path().join("fifo");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(made.success());
        for location in ["fifo", "sub"] {
            let text = refusal(folder.path(), &[("location", location)]);
            assert!(text.contains("not a regular file"), "{text}");
        }
    }

    #[test]
    fn offset_and_length_are_checked() {
        let folder = folder();
        for (key, value, why) in [
            ("offset", "12", "which has only 16"),
            ("offset", "18446744073709551615", "which has only 16"),
            ("offset", "18446744073709551616", "no byte count"),
            ("offset", "-4", "no byte count"),
            ("offset", "+4", "no byte count"),
            ("offset", "0x4", "no byte count"),
            ("offset", "", "no byte count"),
            ("length", "4", "takes 8 bytes"),
            ("length", "1e1", "no byte count"),
            ("location", "data", "more than one location"),
        ] {
            let text = refusal(folder.path(), &[("location", "data"), (key, value)]);
            assert!(text.contains(why), "{key} {value:?}: {text}");
        }
        assert!(refusal(folder.path(), &[]).contains("no location"));
    }

    #[test]
    fn shapes_are_checked_before_memory_is_taken() {
        let folder = folder();
        let mut proto = proto(&[("location", "data")]);
        proto.dims = vec![1 << 50];
        let text = read(folder.path(), &proto).unwrap_err().to_string();
        assert!(text.contains("which has only 16"), "{text}");
    }
}
