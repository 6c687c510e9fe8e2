//! The archive of arrays that `numpy.savez` writes: a zip file with one `.npy` member per array.
//!
//! Only what such archives use is read: stored and deflated members, with or without zip64. The
//! directory at the end is read first and every size in it is held against the length of the file,
//! so that an archive cannot make hone allocate or inflate more than its own bytes account for.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Take};

use flate2::{Crc, read::DeflateDecoder};

use crate::error::{Result, bail, error};

/// The end record is found in the last bytes of the file: 22 bytes and a comment of at most 65,535.
const MAX_TAIL: u64 = 22 + 65_535;
/// A bound on the directory: some hundred thousand arrays, far above any archive of samples.
const MAX_DIRECTORY_BYTES: u64 = 16 << 20;
/// No deflate stream expands more than this (RFC 1951: 258 bytes for two bits).
const MAX_EXPANSION: u64 = 1032;

/// An archive whose directory has been read and checked.
#[derive(Debug)]
pub(super) struct Archive {
    file: File,
    members: BTreeMap<String, Member>,
}

/// What the directory says of one array.
#[derive(Clone, Debug)]
struct Member {
    deflated: bool,
    crc: u32,
    stored: u64,
    size: u64,
    offset: u64,
}

impl Archive {
    /// Reads the directory of the archive in `file`.
    pub fn new(mut file: File) -> Result<Archive> {
        let length = file.metadata().map_err(unreadable)?.len();
        let (start, end, count) = directory_bounds(&mut file, length)?;
        let directory = bytes_at(&mut file, start, (end - start) as usize)?;
        let members = read_directory(&directory, count, start)?;
        Ok(Archive { file, members })
    }

    /// The names of the arrays, without `.npy`, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.members.keys().map(String::as_str)
    }

    /// The bytes of array `name` and their number; `None` when the archive does not hold it.
    pub fn open(&mut self, name: &str) -> Result<Option<(MemberReader<'_>, u64)>> {
        let Some(member) = self.members.get(name).cloned() else { return Ok(None) };
        let local = bytes_at(&mut self.file, member.offset, 30)?;
        if &local[..4] != b"PK\x03\x04" {
            bail!(Data, "the archive is damaged: its directory points to no member");
        }
        let skip = u64::from(u16_at(&local, 26)) + u64::from(u16_at(&local, 28));
        self.file.seek(SeekFrom::Start(member.offset + 30 + skip)).map_err(unreadable)?;
        let raw = BufReader::with_capacity(64 << 10, (&self.file).take(member.stored));
        let inner = match member.deflated {
            true => Inner::Deflated(DeflateDecoder::new(raw)),
            false => Inner::Stored(raw),
        };
        let reader =
            MemberReader { inner, left: member.size, crc: Crc::new(), expected: member.crc };
        Ok(Some((reader, member.size)))
    }
}

/// The bytes of one member; the checksum is compared when the last of them is read.
#[derive(Debug)]
pub(super) struct MemberReader<'a> {
    inner: Inner<'a>,
    left: u64,
    crc: Crc,
    expected: u32,
}

#[derive(Debug)]
enum Inner<'a> {
    Stored(BufReader<Take<&'a File>>),
    Deflated(DeflateDecoder<BufReader<Take<&'a File>>>),
}

impl Read for MemberReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let n = match &mut self.inner {
            Inner::Stored(reader) => reader.read(&mut buffer[..wanted])?,
            Inner::Deflated(reader) => reader.read(&mut buffer[..wanted])?,
        };
        self.crc.update(&buffer[..n]);
        self.left -= n as u64;
        if n > 0 && self.left == 0 && self.crc.sum() != self.expected {
            return Err(std::io::Error::other(
                "the checksum does not match, the archive is damaged",
            ));
        }
        Ok(n)
    }
}

/// Where the directory starts and ends, and how many members it lists.
fn directory_bounds(file: &mut File, length: u64) -> Result<(u64, u64, u64)> {
    let tail_start = length.saturating_sub(MAX_TAIL);
    let tail = bytes_at(file, tail_start, (length - tail_start) as usize)?;
    let found = (0..tail.len().saturating_sub(21)).rev().find(|&i| {
        &tail[i..i + 4] == b"PK\x05\x06"
            && i + 22 + usize::from(u16_at(&tail, i + 20)) == tail.len()
    });
    let Some(at) = found else {
        bail!(Data, "this is not an .npz archive, or its end is missing");
    };
    let end_record = tail_start + at as u64;
    let mut count = u64::from(u16_at(&tail, at + 10));
    let mut size = u64::from(u32_at(&tail, at + 12));
    let mut start = u64::from(u32_at(&tail, at + 16));
    let mut limit = end_record;
    if count == 0xffff || size == 0xffff_ffff || start == 0xffff_ffff {
        let broken = || error!(Data, "the archive's zip64 end record is damaged");
        let locator = bytes_at(file, end_record.checked_sub(20).ok_or_else(broken)?, 20)?;
        limit = u64_at(&locator, 8);
        if &locator[..4] != b"PK\x06\x07" || limit > end_record - 20 {
            return Err(broken());
        }
        let record = bytes_at(file, limit, 56)?;
        if &record[..4] != b"PK\x06\x06" {
            return Err(broken());
        }
        (count, size, start) = (u64_at(&record, 32), u64_at(&record, 40), u64_at(&record, 48));
    }
    match start.checked_add(size) {
        Some(end) if end <= limit && size <= MAX_DIRECTORY_BYTES => Ok((start, end, count)),
        _ => bail!(Data, "the archive's directory does not fit in the file"),
    }
}

/// The members listed in `directory`, which starts at byte `start` of the file.
fn read_directory(directory: &[u8], count: u64, start: u64) -> Result<BTreeMap<String, Member>> {
    let broken = || error!(Data, "the archive's directory is damaged");
    let mut members = BTreeMap::new();
    let mut rest = directory;
    for _ in 0..count {
        let (fixed, tail) = rest.split_at_checked(46).ok_or_else(broken)?;
        let lengths = [28, 30, 32].map(|i| usize::from(u16_at(fixed, i)));
        let (name, tail) = tail.split_at_checked(lengths[0]).ok_or_else(broken)?;
        let (extra, tail) = tail.split_at_checked(lengths[1]).ok_or_else(broken)?;
        rest = tail.get(lengths[2]..).ok_or_else(broken)?;
        if &fixed[..4] != b"PK\x01\x02" {
            return Err(broken());
        }
        let name = String::from_utf8_lossy(name);
        let name = name.strip_suffix(".npy").unwrap_or(&name).to_owned();
        let member = member(fixed, extra).ok_or_else(broken)?;
        if u16_at(fixed, 8) & 1 == 1 {
            bail!(Data, "array {name:?} is encrypted: save it with numpy.savez");
        }
        if !matches!(u16_at(fixed, 10), 0 | 8) {
            bail!(Data, "array {name:?} uses a compression that numpy.savez does not write");
        }
        let end = member.offset.checked_add(30).and_then(|e| e.checked_add(member.stored));
        if end.is_none_or(|e| e > start) {
            bail!(Data, "the archive is damaged: array {name:?} reaches beyond its end");
        }
        let most = if member.deflated {
            member.stored.saturating_mul(MAX_EXPANSION)
        } else {
            member.stored
        };
        if member.size > most {
            bail!(
                Data,
                "array {name:?} claims {} bytes, more than its {} stored bytes can hold",
                member.size,
                member.stored
            );
        }
        if members.insert(name.clone(), member).is_some() {
            bail!(Data, "the archive holds two arrays named {name:?}");
        }
    }
    Ok(members)
}

/// The sizes and place of a member, from the extra field (zip64) where the fixed part is full.
fn member(fixed: &[u8], extra: &[u8]) -> Option<Member> {
    let mut values = [24, 20, 42].map(|i| u64::from(u32_at(fixed, i)));
    let mut rest = extra;
    while values.contains(&0xffff_ffff) && rest.len() >= 4 {
        let (kind, length) = (u16_at(rest, 0), usize::from(u16_at(rest, 2)));
        let mut field = rest.get(4..4 + length)?;
        rest = &rest[4 + length..];
        if kind == 1 {
            for value in values.iter_mut().filter(|v| **v == 0xffff_ffff) {
                let (first, others) = field.split_at_checked(8)?;
                *value = u64_at(first, 0);
                field = others;
            }
            break;
        }
    }
    let [size, stored, offset] = values;
    Some(Member { deflated: u16_at(fixed, 10) == 8, crc: u32_at(fixed, 16), stored, size, offset })
}

/// `length` bytes at `offset`; the callers bound the length.
fn bytes_at(file: &mut File, offset: u64, length: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    file.seek(SeekFrom::Start(offset)).map_err(unreadable)?;
    file.read_exact(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}

fn unreadable(e: std::io::Error) -> crate::Error {
    match e.kind() {
        std::io::ErrorKind::UnexpectedEof => error!(Data, "the archive is truncated"),
        _ => error!(Io, "the archive cannot be read: {e}"),
    }
}

fn u16_at(bytes: &[u8], i: usize) -> u16 {
    u16::from_le_bytes([bytes[i], bytes[i + 1]])
}

fn u32_at(bytes: &[u8], i: usize) -> u32 {
    u32::from(u16_at(bytes, i)) | u32::from(u16_at(bytes, i + 2)) << 16
}

fn u64_at(bytes: &[u8], i: usize) -> u64 {
    u64::from(u32_at(bytes, i)) | u64::from(u32_at(bytes, i + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn archive(write: impl FnOnce(&mut ndarray_npy::NpzWriter<&File>), compressed: bool) -> File {
        let file = tempfile::tempfile().unwrap();
        let mut writer = match compressed {
            true => ndarray_npy::NpzWriter::new_compressed(&file),
            false => ndarray_npy::NpzWriter::new(&file),
        };
        write(&mut writer);
        writer.finish().unwrap();
        file
    }

    fn bytes(archive: &mut Archive, name: &str) -> std::io::Result<Vec<u8>> {
        let (mut reader, size) = archive.open(name).unwrap().expect("a member");
        let mut bytes = vec![0; size as usize];
        reader.read_exact(&mut bytes).map(|()| bytes)
    }

    #[test]
    fn stored_and_deflated_members_are_read() {
        for compressed in [false, true] {
            let zeros = ndarray::Array1::<u8>::zeros(5000);
            let file = archive(
                |w| {
                    w.add_array("b", &zeros).unwrap();
                    w.add_array("a", &ndarray::arr0(1.5f32)).unwrap();
                },
                compressed,
            );
            let mut archive = Archive::new(file).unwrap();
            assert_eq!(archive.names().collect::<Vec<_>>(), ["a", "b"]);
            let b = bytes(&mut archive, "b").unwrap();
            assert_eq!(&b[..6], b"\x93NUMPY");
            assert!(b.ends_with(&[0; 5000]));
            assert!(bytes(&mut archive, "a").unwrap().ends_with(&1.5f32.to_le_bytes()));
            assert!(archive.open("c").unwrap().is_none());
        }
    }

    #[test]
    fn a_changed_byte_fails_the_checksum() {
        let mut file = archive(|w| w.add_array("x", &ndarray::arr1(&[7u8; 64])).unwrap(), false);
        file.seek(SeekFrom::Start(180)).unwrap();
        file.write_all(&[8]).unwrap();
        let error = bytes(&mut Archive::new(file).unwrap(), "x").unwrap_err();
        assert!(error.to_string().contains("checksum"), "{error}");
    }

    #[test]
    fn a_bomb_is_refused_by_its_directory() {
        let mut file = archive(|w| w.add_array("x", &ndarray::arr1(&[7u8; 64])).unwrap(), true);
        let length = file.metadata().unwrap().len();
        let whole = bytes_at(&mut file, 0, length as usize).unwrap();
        let entry = whole.windows(4).position(|w| w == b"PK\x01\x02").unwrap() as u64;
        file.seek(SeekFrom::Start(entry + 24)).unwrap();
        file.write_all(&0x7000_0000u32.to_le_bytes()).unwrap();
        let error = Archive::new(file).unwrap_err();
        assert!(error.to_string().contains("more than its"), "{error}");
    }
}
