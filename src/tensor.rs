//! A dense array with its element type and shape: what initializers, samples and runtime values
//! have in common. Row-major, in the host's byte order.

use half::{bf16, f16};

use crate::error::{Result, bail};

/// The element types of ONNX that hone can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum ElementType {
    F32,
    F64,
    F16,
    BF16,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    Bool,
}

impl ElementType {
    /// The number in `TensorProto.DataType`, if hone can hold it.
    pub fn from_onnx(code: i32) -> Option<ElementType> {
        use ElementType::*;
        Some(match code {
            1 => F32,
            2 => U8,
            3 => I8,
            4 => U16,
            5 => I16,
            6 => I32,
            7 => I64,
            9 => Bool,
            10 => F16,
            11 => F64,
            12 => U32,
            13 => U64,
            16 => BF16,
            _ => return None,
        })
    }

    /// The number in `TensorProto.DataType`.
    pub fn to_onnx(self) -> i32 {
        use ElementType::*;
        match self {
            F32 => 1,
            U8 => 2,
            I8 => 3,
            U16 => 4,
            I16 => 5,
            I32 => 6,
            I64 => 7,
            Bool => 9,
            F16 => 10,
            F64 => 11,
            U32 => 12,
            U64 => 13,
            BF16 => 16,
        }
    }

    /// Bytes per element.
    pub fn size(self) -> usize {
        use ElementType::*;
        match self {
            I8 | U8 | Bool => 1,
            F16 | BF16 | I16 | U16 => 2,
            F32 | I32 | U32 => 4,
            F64 | I64 | U64 => 8,
        }
    }

    /// Whether gradients exist for values of this type.
    pub fn is_float(self) -> bool {
        use ElementType::*;
        matches!(self, F32 | F64 | F16 | BF16)
    }
}

impl std::fmt::Display for ElementType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use ElementType::*;
        f.write_str(match self {
            F32 => "float32",
            F64 => "float64",
            F16 => "float16",
            BF16 => "bfloat16",
            I8 => "int8",
            I16 => "int16",
            I32 => "int32",
            I64 => "int64",
            U8 => "uint8",
            U16 => "uint16",
            U32 => "uint32",
            U64 => "uint64",
            Bool => "bool",
        })
    }
}

/// The elements of a tensor.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Data {
    F32(Vec<f32>),
    F64(Vec<f64>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
    I8(Vec<i8>),
    I16(Vec<i16>),
    I32(Vec<i32>),
    I64(Vec<i64>),
    U8(Vec<u8>),
    U16(Vec<u16>),
    U32(Vec<u32>),
    U64(Vec<u64>),
    Bool(Vec<bool>),
}

/// Runs `$body` with `$v` bound to the elements, whatever their type.
macro_rules! each_type {
    ($data:expr, $v:ident => $body:expr) => {
        match $data {
            Data::F32($v) => $body,
            Data::F64($v) => $body,
            Data::F16($v) => $body,
            Data::BF16($v) => $body,
            Data::I8($v) => $body,
            Data::I16($v) => $body,
            Data::I32($v) => $body,
            Data::I64($v) => $body,
            Data::U8($v) => $body,
            Data::U16($v) => $body,
            Data::U32($v) => $body,
            Data::U64($v) => $body,
            Data::Bool($v) => $body,
        }
    };
}

/// Runs `$body` with `$v` bound to the elements and wraps its result in the same variant.
macro_rules! map_type {
    ($data:expr, $v:ident => $body:expr) => {
        match $data {
            Data::F32($v) => Data::F32($body),
            Data::F64($v) => Data::F64($body),
            Data::F16($v) => Data::F16($body),
            Data::BF16($v) => Data::BF16($body),
            Data::I8($v) => Data::I8($body),
            Data::I16($v) => Data::I16($body),
            Data::I32($v) => Data::I32($body),
            Data::I64($v) => Data::I64($body),
            Data::U8($v) => Data::U8($body),
            Data::U16($v) => Data::U16($body),
            Data::U32($v) => Data::U32($body),
            Data::U64($v) => Data::U64($body),
            Data::Bool($v) => Data::Bool($body),
        }
    };
}

impl Data {
    /// How many elements.
    pub fn len(&self) -> usize {
        each_type!(self, v => v.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The type of the elements.
    pub fn element_type(&self) -> ElementType {
        match self {
            Data::F32(_) => ElementType::F32,
            Data::F64(_) => ElementType::F64,
            Data::F16(_) => ElementType::F16,
            Data::BF16(_) => ElementType::BF16,
            Data::I8(_) => ElementType::I8,
            Data::I16(_) => ElementType::I16,
            Data::I32(_) => ElementType::I32,
            Data::I64(_) => ElementType::I64,
            Data::U8(_) => ElementType::U8,
            Data::U16(_) => ElementType::U16,
            Data::U32(_) => ElementType::U32,
            Data::U64(_) => ElementType::U64,
            Data::Bool(_) => ElementType::Bool,
        }
    }

    /// The elements of type `element` that `bytes` holds in little-endian order, as ONNX stores
    /// them; a trailing part of an element is an error.
    pub fn from_le_bytes(element: ElementType, bytes: &[u8]) -> Result<Data> {
        use ElementType::*;
        if !bytes.len().is_multiple_of(element.size()) {
            bail!(Data, "{} bytes do not hold whole {element} elements", bytes.len());
        }
        Ok(match element {
            F32 => Data::F32(decode(bytes, f32::from_le_bytes)),
            F64 => Data::F64(decode(bytes, f64::from_le_bytes)),
            F16 => Data::F16(decode(bytes, f16::from_le_bytes)),
            BF16 => Data::BF16(decode(bytes, bf16::from_le_bytes)),
            I8 => Data::I8(decode(bytes, i8::from_le_bytes)),
            I16 => Data::I16(decode(bytes, i16::from_le_bytes)),
            I32 => Data::I32(decode(bytes, i32::from_le_bytes)),
            I64 => Data::I64(decode(bytes, i64::from_le_bytes)),
            U8 => Data::U8(bytes.to_vec()),
            U16 => Data::U16(decode(bytes, u16::from_le_bytes)),
            U32 => Data::U32(decode(bytes, u32::from_le_bytes)),
            U64 => Data::U64(decode(bytes, u64::from_le_bytes)),
            Bool => Data::Bool(bytes.iter().map(|&b| b != 0).collect()),
        })
    }

    /// The elements as little-endian bytes, as ONNX stores them.
    pub fn to_le_bytes(&self) -> Vec<u8> {
        match self {
            Data::F32(v) => encode(v, f32::to_le_bytes),
            Data::F64(v) => encode(v, f64::to_le_bytes),
            Data::F16(v) => encode(v, f16::to_le_bytes),
            Data::BF16(v) => encode(v, bf16::to_le_bytes),
            Data::I8(v) => encode(v, i8::to_le_bytes),
            Data::I16(v) => encode(v, i16::to_le_bytes),
            Data::I32(v) => encode(v, i32::to_le_bytes),
            Data::I64(v) => encode(v, i64::to_le_bytes),
            Data::U8(v) => v.clone(),
            Data::U16(v) => encode(v, u16::to_le_bytes),
            Data::U32(v) => encode(v, u32::to_le_bytes),
            Data::U64(v) => encode(v, u64::to_le_bytes),
            Data::Bool(v) => v.iter().map(|&x| x.into()).collect(),
        }
    }
}

/// `N` bytes per element.
fn encode<T: Copy, const N: usize>(elements: &[T], bytes: fn(T) -> [u8; N]) -> Vec<u8> {
    elements.iter().map(|&x| bytes(x)).collect::<Vec<_>>().into_flattened()
}

/// One element per `N` bytes.
fn decode<T, const N: usize>(bytes: &[u8], element: fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks().0.iter().map(|&chunk| element(chunk)).collect()
}

/// A dense array. Invariant: the product of `shape` is the number of elements.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    shape: Vec<usize>,
    data: Data,
}

impl Tensor {
    /// A tensor of `shape` over `data`; an error when they do not fit.
    pub fn new(shape: impl Into<Vec<usize>>, data: Data) -> Result<Tensor> {
        let shape = shape.into();
        if element_count(&shape) != Some(data.len()) {
            bail!(Data, "shape {shape:?} does not hold {} elements", data.len());
        }
        Ok(Tensor { shape, data })
    }

    /// A float32 tensor. Panics if the shape does not hold the elements: for shapes that
    /// the caller computed.
    pub fn f32(shape: impl Into<Vec<usize>>, data: Vec<f32>) -> Tensor {
        Tensor::new(shape, Data::F32(data)).expect("the caller computed both")
    }

    /// An int64 tensor. Panics if the shape does not hold the elements: for shapes that
    /// the caller computed.
    pub fn i64(shape: impl Into<Vec<usize>>, data: Vec<i64>) -> Tensor {
        Tensor::new(shape, Data::I64(data)).expect("the caller computed both")
    }

    /// A tensor without axes that holds one element.
    pub fn scalar(value: f32) -> Tensor {
        Tensor::f32([], vec![value])
    }

    /// The length of each axis.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// The elements, to be changed in place.
    pub fn data_mut(&mut self) -> &mut Data {
        &mut self.data
    }

    /// The elements, without the shape.
    pub fn into_data(self) -> Data {
        self.data
    }

    /// How many elements.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The type of the elements.
    pub fn element_type(&self) -> ElementType {
        self.data.element_type()
    }

    /// The float32 elements, if that is what they are.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &self.data {
            Data::F32(v) => Some(v),
            _ => None,
        }
    }

    /// The elements as int64; `None` for float tensors and for values that do not fit.
    pub fn to_i64(&self) -> Option<Vec<i64>> {
        Some(match &self.data {
            Data::I64(v) => v.clone(),
            Data::I32(v) => v.iter().map(|&x| x.into()).collect(),
            Data::I16(v) => v.iter().map(|&x| x.into()).collect(),
            Data::I8(v) => v.iter().map(|&x| x.into()).collect(),
            Data::U32(v) => v.iter().map(|&x| x.into()).collect(),
            Data::U16(v) => v.iter().map(|&x| x.into()).collect(),
            Data::U8(v) => v.iter().map(|&x| x.into()).collect(),
            Data::Bool(v) => v.iter().map(|&x| x.into()).collect(),
            Data::U64(v) => v.iter().map(|&x| x.try_into().ok()).collect::<Option<_>>()?,
            _ => return None,
        })
    }

    /// The elements as float64, rounded where int64 and uint64 are too large.
    pub fn to_f64(&self) -> Vec<f64> {
        match &self.data {
            Data::F32(v) => v.iter().map(|&x| x.into()).collect(),
            Data::F64(v) => v.clone(),
            Data::F16(v) => v.iter().map(|x| x.to_f64()).collect(),
            Data::BF16(v) => v.iter().map(|x| x.to_f64()).collect(),
            Data::U64(v) => v.iter().map(|&x| x as f64).collect(),
            _ => self.to_i64().unwrap_or_default().iter().map(|&x| x as f64).collect(),
        }
    }

    /// The elements as float32; exact for float32, float16 and bfloat16.
    pub fn to_f32(&self) -> Vec<f32> {
        match &self.data {
            Data::F32(v) => v.clone(),
            Data::F16(v) => v.iter().map(|x| x.to_f32()).collect(),
            Data::BF16(v) => v.iter().map(|x| x.to_f32()).collect(),
            _ => self.to_f64().iter().map(|&x| x as f32).collect(),
        }
    }

    /// The elements rounded to the float type `element`; an error for other types.
    pub fn to_floats(&self, element: ElementType) -> Result<Tensor> {
        let values = || self.to_f32().into_iter();
        let data = match element {
            ElementType::F32 => Data::F32(self.to_f32()),
            ElementType::F16 => Data::F16(values().map(f16::from_f32).collect()),
            ElementType::BF16 => Data::BF16(values().map(bf16::from_f32).collect()),
            ElementType::F64 => Data::F64(self.to_f64()),
            other => bail!(Unsupported, "weights of type {other} cannot be changed"),
        };
        Tensor::new(self.shape.clone(), data)
    }

    /// The slices `rows` of the first axis, in that order; repeats are allowed. Panics for a tensor
    /// without axes and for a row that is not there.
    pub fn take_rows(&self, rows: &[usize]) -> Tensor {
        let row = self.shape[1..].iter().product::<usize>();
        let mut shape = self.shape.clone();
        shape[0] = rows.len();
        let data = map_type!(&self.data, v => {
            let mut out = Vec::with_capacity(rows.len() * row);
            for &r in rows {
                out.extend_from_slice(&v[r * row..(r + 1) * row]);
            }
            out
        });
        Tensor { shape, data }
    }

    /// The same elements under another shape of the same size.
    pub fn reshaped(self, shape: impl Into<Vec<usize>>) -> Result<Tensor> {
        Tensor::new(shape, self.data)
    }
}

/// The number of elements of a shape, unless it overflows.
pub fn element_count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}
