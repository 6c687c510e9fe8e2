//! One array in NumPy's format: a header that names type and shape, then the elements.
//!
//! The header is a Python literal; a library parses it. Everything a hostile header could make
//! expensive is checked before anything is allocated: the length of the text and its nesting, and
//! that the shape accounts for exactly the bytes that are there.

use std::io::Read;

use half::f16;
use ndarray_npy::npy::header::{Header as Literal, ParseHeaderError, ReadHeaderError};

use crate::error::{Result, bail, error};
use crate::tensor::{Data, ElementType, Tensor, element_count};

/// NumPy's own bound on the text of a header (`max_header_size`).
const MAX_HEADER_BYTES: usize = 10_000;
/// Real headers nest twice (a tuple in a dictionary); the parser takes exponential time in depth.
const MAX_NESTING: usize = 6;
/// NumPy's bound on the number of axes.
const MAX_AXES: usize = 64;
/// How many bytes are decoded at a time: a multiple of every element size, small enough for cache.
const CHUNK_BYTES: usize = 64 << 10;

/// What the header of an array says.
#[derive(Debug)]
pub(super) struct Header {
    /// The length of each axis; at least one axis, none of them empty.
    pub shape: Vec<usize>,
    /// The type of the elements.
    pub element: ElementType,
    big_endian: bool,
    fortran: bool,
}

impl Header {
    /// Bytes of one row: the elements that share an index of the first axis.
    pub fn row_bytes(&self) -> usize {
        self.shape[1..].iter().product::<usize>() * self.element.size()
    }
}

/// Reads and checks the header of an array that takes `bytes` in all, header included.
pub(super) fn read_header(reader: &mut impl Read, bytes: u64) -> Result<Header> {
    let text = header_bytes(reader)?;
    let literal = Literal::from_reader(&mut text.as_slice()).map_err(|e| match e {
        ReadHeaderError::Parse(ParseHeaderError::MissingKey(key)) => {
            error!(Data, "the .npy header has no {key:?}")
        }
        // The library's own messages repeat parts of the header; those are not ours to pass on.
        _ => error!(Data, "the .npy header is damaged: it is not the dictionary NumPy writes"),
    })?;
    let Some(descriptor) = literal.type_descriptor.as_string() else {
        bail!(Data, "structured arrays cannot be read: save one plain array per model input");
    };
    let (element, big_endian) = element_type(descriptor)?;
    let shape = literal.shape;
    if shape.is_empty() {
        bail!(Data, "the array has no axes: the first axis must count the samples");
    }
    if shape.len() > MAX_AXES {
        bail!(Data, "the array has {} axes; at most {MAX_AXES} are possible", shape.len());
    }
    let size = element_count(&shape).and_then(|n| n.checked_mul(element.size()));
    let Some(size) = size.filter(|&s| isize::try_from(s).is_ok()) else {
        bail!(Data, "shape {shape:?} is larger than the address space");
    };
    if size == 0 {
        bail!(Data, "the array is empty: its shape is {shape:?}");
    }
    let body = bytes.saturating_sub(text.len() as u64);
    if body != size as u64 {
        let state = if body < size as u64 { "truncated" } else { "followed by something else" };
        bail!(
            Data,
            "the array is {state}: {element} of shape {shape:?} takes {size} bytes, {body} are there"
        );
    }
    Ok(Header { shape, element, big_endian, fortran: literal.layout.is_fortran() })
}

/// Reads the elements that follow `header`, only the first `rows` of them when fewer than there are.
pub(super) fn read_body(reader: &mut impl Read, header: &Header, rows: usize) -> Result<Tensor> {
    let rows = rows.min(header.shape[0]);
    // Fortran order scatters a row over the whole array: all of it is read, then put in order.
    let stored = if header.fortran { header.shape[0] } else { rows };
    let count = stored * header.shape[1..].iter().product::<usize>();
    let big = header.big_endian;
    macro_rules! numbers {
        ($variant:ident, $t:ty) => {{
            let decode = |b: &[u8]| {
                let b = b.try_into().expect("chunks of the element's size");
                if big { <$t>::from_be_bytes(b) } else { <$t>::from_le_bytes(b) }
            };
            let elements = read_elements(reader, count, decode)?;
            Data::$variant(in_row_order(elements, header, rows))
        }};
    }
    let data = match header.element {
        ElementType::F32 => numbers!(F32, f32),
        ElementType::F64 => numbers!(F64, f64),
        ElementType::F16 => numbers!(F16, f16),
        ElementType::I8 => numbers!(I8, i8),
        ElementType::I16 => numbers!(I16, i16),
        ElementType::I32 => numbers!(I32, i32),
        ElementType::I64 => numbers!(I64, i64),
        ElementType::U8 => numbers!(U8, u8),
        ElementType::U16 => numbers!(U16, u16),
        ElementType::U32 => numbers!(U32, u32),
        ElementType::U64 => numbers!(U64, u64),
        ElementType::Bool => {
            let bytes = read_elements(reader, count, |b| b[0])?;
            if let Some(bad) = bytes.iter().find(|&&b| b > 1) {
                bail!(Data, "a bool array holds the byte {bad}, which is neither 0 nor 1");
            }
            let elements = bytes.into_iter().map(|b| b == 1).collect();
            Data::Bool(in_row_order(elements, header, rows))
        }
        ElementType::BF16 => bail!(Data, "NumPy has no bfloat16: save the array as float32"),
    };
    let mut shape = header.shape.clone();
    shape[0] = rows;
    Tensor::new(shape, data)
}

/// The header as it stands in the file: magic, version, length and text.
fn header_bytes(reader: &mut impl Read) -> Result<Vec<u8>> {
    let truncated = |e: std::io::Error| error!(Data, "the .npy header cannot be read: {e}");
    let mut bytes = vec![0; 10];
    reader.read_exact(&mut bytes).map_err(truncated)?;
    if &bytes[..6] != b"\x93NUMPY" {
        bail!(Data, "this is not an array in NumPy's .npy format");
    }
    let length = match bytes[6] {
        1 => usize::from(u16::from_le_bytes([bytes[8], bytes[9]])),
        2 | 3 => {
            bytes.resize(12, 0);
            reader.read_exact(&mut bytes[10..]).map_err(truncated)?;
            u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) as usize
        }
        major => bail!(Data, "version {major} of the .npy format is not known"),
    };
    if length > MAX_HEADER_BYTES {
        bail!(Data, "the .npy header claims {length} bytes; NumPy allows {MAX_HEADER_BYTES}");
    }
    let start = bytes.len();
    bytes.resize(start + length, 0);
    reader.read_exact(&mut bytes[start..]).map_err(truncated)?;
    let mut depth = 0usize;
    for b in &bytes[start..] {
        match b {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_NESTING {
            bail!(Data, "the .npy header nests deeper than any plain array's");
        }
    }
    Ok(bytes)
}

/// The element type that a descriptor such as `<f4` names, and whether it is big-endian.
fn element_type(descriptor: &str) -> Result<(ElementType, bool)> {
    let (order, kind) = match descriptor.split_at_checked(1) {
        Some((order @ ("<" | ">" | "|" | "="), kind)) => (order, kind),
        _ => ("|", descriptor),
    };
    let element = match kind {
        "f4" => ElementType::F32,
        "f8" => ElementType::F64,
        "f2" => ElementType::F16,
        "i1" => ElementType::I8,
        "i2" => ElementType::I16,
        "i4" => ElementType::I32,
        "i8" => ElementType::I64,
        "u1" => ElementType::U8,
        "u2" => ElementType::U16,
        "u4" => ElementType::U32,
        "u8" => ElementType::U64,
        "b1" => ElementType::Bool,
        _ if kind.starts_with('O') => bail!(
            Data,
            "the array holds pickled Python objects, which are never loaded: save it with a numeric type"
        ),
        _ => bail!(
            Data,
            "the element type {descriptor:?} cannot be read: save the array as float, int or bool"
        ),
    };
    Ok((element, order == ">"))
}

/// `count` elements of `T`, decoded chunk by chunk so that a lie about the size costs little.
fn read_elements<T>(
    reader: &mut impl Read,
    count: usize,
    decode: impl Fn(&[u8]) -> T,
) -> Result<Vec<T>> {
    let size = size_of::<T>();
    let mut elements = Vec::new();
    if elements.try_reserve_exact(count).is_err() {
        bail!(Memory, "{} bytes for the array cannot be had: read fewer samples", count * size);
    }
    let mut chunk = vec![0; CHUNK_BYTES.min(count * size)];
    while elements.len() < count {
        let bytes = chunk.len().min((count - elements.len()) * size);
        reader
            .read_exact(&mut chunk[..bytes])
            .map_err(|e| error!(Data, "the elements of the array cannot be read: {e}"))?;
        elements.extend(chunk[..bytes].chunks_exact(size).map(&decode));
    }
    Ok(elements)
}

/// The first `rows` rows in row-major order of elements stored as `header` says.
fn in_row_order<T: Copy>(elements: Vec<T>, header: &Header, rows: usize) -> Vec<T> {
    let axes = header.shape.len();
    if !header.fortran || axes == 1 {
        let mut elements = elements;
        elements.truncate(rows * header.shape[1..].iter().product::<usize>());
        return elements;
    }
    let mut strides = vec![1; axes];
    for axis in 1..axes {
        strides[axis] = strides[axis - 1] * header.shape[axis - 1];
    }
    let count = rows * header.shape[1..].iter().product::<usize>();
    let mut index = vec![0; axes];
    let mut offset = 0;
    let mut ordered = Vec::with_capacity(count);
    for _ in 0..count {
        ordered.push(elements[offset]);
        for axis in (0..axes).rev() {
            index[axis] += 1;
            offset += strides[axis];
            if index[axis] < header.shape[axis] || axis == 0 {
                break;
            }
            offset -= strides[axis] * header.shape[axis];
            index[axis] = 0;
        }
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An array file with the given header text, padded as NumPy does.
    fn file(text: &str, body: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend(((text.len() + 1) as u16).to_le_bytes());
        bytes.extend(text.bytes());
        bytes.push(b'\n');
        bytes.extend(body);
        bytes
    }

    fn read(bytes: &[u8], rows: usize) -> Result<Tensor> {
        let mut reader = bytes;
        let header = read_header(&mut reader, bytes.len() as u64)?;
        read_body(&mut reader, &header, rows)
    }

    fn message(bytes: &[u8]) -> String {
        read(bytes, usize::MAX).unwrap_err().to_string()
    }

    #[test]
    fn both_byte_orders_and_half_precision() {
        let text = |d: &str| format!("{{'descr': '{d}', 'fortran_order': False, 'shape': (2,), }}");
        let t = read(&file(&text(">i2"), &[1, 0, 255, 254]), 9).unwrap();
        assert_eq!(t.data(), &Data::I16(vec![256, -2]));
        let t = read(&file(&text("<f4"), &[0, 0, 128, 63, 0, 0, 0, 192]), 9).unwrap();
        assert_eq!(t.data(), &Data::F32(vec![1.0, -2.0]));
        let t = read(&file(&text("<f2"), &[0, 60, 0, 192]), 9).unwrap();
        assert_eq!(t.data(), &Data::F16(vec![f16::from_f32(1.0), f16::from_f32(-2.0)]));
        let t = read(&file(&text("|b1"), &[1, 0]), 9).unwrap();
        assert_eq!(t.data(), &Data::Bool(vec![true, false]));
        assert!(message(&file(&text("|b1"), &[1, 7])).contains("byte 7"));
    }

    #[test]
    fn fortran_order_becomes_row_order() {
        let text = "{'descr': '|u1', 'fortran_order': True, 'shape': (2, 3, 2), }";
        // Element (i, j, k) is stored at i + 2 j + 6 k.
        let t = read(&file(text, &(0..12).collect::<Vec<u8>>()), 9).unwrap();
        assert_eq!(t.data(), &Data::U8(vec![0, 6, 2, 8, 4, 10, 1, 7, 3, 9, 5, 11]));
        let t = read(&file(text, &(0..12).collect::<Vec<u8>>()), 1).unwrap();
        assert_eq!(t.shape(), [1, 3, 2]);
        assert_eq!(t.data(), &Data::U8(vec![0, 6, 2, 8, 4, 10]));
    }

    #[test]
    fn hostile_headers_are_refused_before_they_cost_anything() {
        let plain = |d: &str, shape: &str| {
            file(&format!("{{'descr': {d}, 'fortran_order': False, 'shape': {shape}, }}"), &[0; 8])
        };
        let cases = [
            (plain("'<f4'", "(1099511627776, 1099511627776)"), "address space"),
            (plain("'<f4'", "(1000000000000,)"), "truncated"),
            (plain("'<f4'", "(1,)"), "followed by something else"),
            (plain("'<f4'", "(0, 3)"), "empty"),
            (plain("'<f4'", "()"), "no axes"),
            (plain("'<f4'", "(-1,)"), "damaged"),
            (plain("'|O'", "(1,)"), "pickled"),
            (plain("'<c8'", "(1,)"), "\"<c8\""),
            (plain("[('a', '<f4')]", "(2,)"), "structured"),
            (plain("{1, 2}", "(2,)"), "structured"),
            (plain("'<f4'", &"(".repeat(9000)), "nests"),
            (plain("'<f4'", &" ".repeat(20_000)), "claims"),
            (b"\x93NUMPY\x02\x00\xff\xff\xff\xff".to_vec(), "claims"),
            (b"\x93NUMPY\x09\x00\xff\xff\xff\xff".to_vec(), "version 9"),
            (b"PK\x03\x04 not an array".to_vec(), "not an array"),
            (b"\x93NUM".to_vec(), "header cannot be read"),
        ];
        for (bytes, part) in cases {
            let message = message(&bytes);
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
    }
}
