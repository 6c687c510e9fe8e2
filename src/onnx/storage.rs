//! A [`Tensor`] in and out of a `TensorProto`, whatever form the elements are stored in.
//!
//! ONNX stores elements as little-endian bytes (`raw_data`), in a typed list (`float_data`,
//! `int32_data` for everything of 32 bits and less, ...) or in another file (external data, which
//! [`super::external`] reads). A tensor that hone changes keeps its form, so that a pruned model
//! differs from its source in values only.

use half::{bf16, f16};

use crate::error::{Context, Result, bail, error};
use crate::onnx::proto::tensor_proto::{DataLocation, DataType};
use crate::onnx::proto::{StringStringEntryProto, TensorProto};
use crate::tensor::{Data, ElementType, Tensor, element_count};

/// The tensor that `proto` holds within itself. Errors when the elements are elsewhere, of a type
/// hone cannot hold, or not as many as the shape says.
pub fn read(proto: &TensorProto) -> Result<Tensor> {
    let (element, shape) = check_embedded(proto)?;
    let data = match raw_data(proto) {
        Some(raw) => Data::from_le_bytes(element, raw)?,
        None => read_typed(proto, element)?,
    };
    Tensor::new(shape, data)
}

/// The element type and shape of a tensor that holds as many elements as they say.
pub fn check_embedded(proto: &TensorProto) -> Result<(ElementType, Vec<usize>)> {
    let (element, shape) = (element_type(proto)?, shape(proto)?);
    let expected = byte_length(element, &shape)?;
    if proto.segment.is_set() {
        bail!(Unsupported, "it is stored in segments; save the model with a current exporter");
    }
    if is_external(proto) {
        bail!(Model, "its data is in another file, which this place of the model does not allow");
    }
    if let Some(raw) = raw_data(proto) {
        if raw.len() != expected {
            bail!(Model, "shape {shape:?} of {element} takes {expected} bytes, not {}", raw.len());
        }
        return Ok((element, shape));
    }
    let (count, found) = (expected / element.size(), typed_length(proto, element));
    if found != count {
        bail!(Model, "shape {shape:?} takes {count} {element} elements, not {found}");
    }
    Ok((element, shape))
}

/// A `TensorProto` that holds `tensor` as raw data.
pub fn write(name: &str, tensor: &Tensor) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        dims: tensor.shape().iter().map(|&d| d as i64).collect(),
        data_type: Some(tensor.element_type().to_onnx()),
        raw_data: Some(tensor.data().to_le_bytes()),
        ..TensorProto::default()
    }
}

/// A `TensorProto` that says what `tensor` is without its data, for a reader who is handed that
/// separately: external data at a location that is no file.
pub fn outside(name: &str, tensor: &Tensor) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        dims: tensor.shape().iter().map(|&d| d as i64).collect(),
        data_type: Some(tensor.element_type().to_onnx()),
        data_location: Some(DataLocation::EXTERNAL),
        external_data: vec![StringStringEntryProto {
            key: Some("location".into()),
            value: Some("in memory".into()),
            ..StringStringEntryProto::default()
        }],
        ..TensorProto::default()
    }
}

/// Puts the elements of `tensor` into `proto` in the form it has: raw stays raw, typed stays typed.
/// Errors unless element type and shape are the same, or when the elements are in another file.
pub fn replace(proto: &mut TensorProto, tensor: &Tensor) -> Result<()> {
    check_same_kind(proto, tensor)?;
    if is_external(proto) {
        bail!(Model, "its data is in another file, which this place of the model does not allow");
    }
    if raw_data(proto).is_some() {
        proto.raw_data = Some(tensor.data().to_le_bytes());
    } else {
        write_typed(proto, tensor.data());
    }
    Ok(())
}

/// Errors unless `tensor` has the element type and shape that `proto` declares.
pub fn check_same_kind(proto: &TensorProto, tensor: &Tensor) -> Result<()> {
    same_kind(element_type(proto)?, &shape(proto)?, tensor)
}

/// Errors unless `tensor` has this element type and shape.
pub fn same_kind(element: ElementType, shape: &[usize], tensor: &Tensor) -> Result<()> {
    if element != tensor.element_type() || shape != tensor.shape() {
        let (new, at) = (tensor.element_type(), tensor.shape());
        bail!(Model, "it is {element} {shape:?} and cannot become {new} {at:?}");
    }
    Ok(())
}

/// The element type, or an error that names the one hone cannot hold.
pub fn element_type(proto: &TensorProto) -> Result<ElementType> {
    let code = proto.data_type.unwrap_or(0);
    ElementType::from_onnx(code).ok_or_else(|| {
        let name = data_type_name(code);
        error!(Unsupported, "its element type is {name}, which hone keeps but cannot compute with")
    })
}

/// The length of each axis, or an error where one is negative.
pub fn shape(proto: &TensorProto) -> Result<Vec<usize>> {
    let axis = |&d: &i64| {
        usize::try_from(d).map_err(|_| error!(Model, "its shape {:?} is impossible", proto.dims))
    };
    proto.dims.iter().map(axis).collect()
}

/// How many bytes a tensor takes, or an error when that number is beyond any memory.
pub fn byte_length(element: ElementType, shape: &[usize]) -> Result<usize> {
    element_count(shape)
        .and_then(|n| n.checked_mul(element.size()))
        .filter(|&n| isize::try_from(n).is_ok())
        .ok_or_else(|| error!(Model, "its shape {shape:?} is beyond any memory"))
}

/// Whether the elements are in another file.
pub fn is_external(proto: &TensorProto) -> bool {
    proto.data_location == Some(DataLocation::EXTERNAL)
}

/// How ONNX calls an element type, such as `FLOAT8E4M3FN`.
pub fn data_type_name(code: i32) -> String {
    use buffa::Enumeration;
    DataType::from_i32(code).map_or_else(|| format!("number {code}"), |t| t.proto_name().into())
}

/// The raw bytes, if that is the form the elements are in.
pub fn raw_data(proto: &TensorProto) -> Option<&[u8]> {
    let raw = proto.raw_data.as_deref()?;
    let typed = !proto.float_data.is_empty()
        || !proto.int32_data.is_empty()
        || !proto.int64_data.is_empty()
        || !proto.double_data.is_empty()
        || !proto.uint64_data.is_empty();
    // Some exporters write an empty `raw_data` beside the typed list.
    (!raw.is_empty() || !typed).then_some(raw)
}

/// How many elements the typed list of `element` holds.
fn typed_length(proto: &TensorProto, element: ElementType) -> usize {
    use ElementType::*;
    match element {
        F32 => proto.float_data.len(),
        F64 => proto.double_data.len(),
        I64 => proto.int64_data.len(),
        U32 | U64 => proto.uint64_data.len(),
        F16 | BF16 | I8 | I16 | I32 | U8 | U16 | Bool => proto.int32_data.len(),
    }
}

fn read_typed(proto: &TensorProto, element: ElementType) -> Result<Data> {
    use ElementType::*;
    let (int32, uint64) = (&proto.int32_data, &proto.uint64_data);
    let bits = || narrow::<_, u16>(int32, element);
    Ok(match element {
        F32 => Data::F32(proto.float_data.clone()),
        F64 => Data::F64(proto.double_data.clone()),
        I64 => Data::I64(proto.int64_data.clone()),
        I32 => Data::I32(int32.clone()),
        U64 => Data::U64(uint64.clone()),
        U32 => Data::U32(narrow(uint64, element)?),
        F16 => Data::F16(bits()?.into_iter().map(f16::from_bits).collect()),
        BF16 => Data::BF16(bits()?.into_iter().map(bf16::from_bits).collect()),
        I8 => Data::I8(narrow(int32, element)?),
        I16 => Data::I16(narrow(int32, element)?),
        U8 => Data::U8(narrow(int32, element)?),
        U16 => Data::U16(narrow(int32, element)?),
        Bool => Data::Bool(int32.iter().map(|&x| x != 0).collect()),
    })
}

fn write_typed(proto: &mut TensorProto, data: &Data) {
    match data {
        Data::F32(v) => proto.float_data = v.clone(),
        Data::F64(v) => proto.double_data = v.clone(),
        Data::I64(v) => proto.int64_data = v.clone(),
        Data::I32(v) => proto.int32_data = v.clone(),
        Data::U64(v) => proto.uint64_data = v.clone(),
        Data::U32(v) => proto.uint64_data = v.iter().map(|&x| x.into()).collect(),
        Data::F16(v) => proto.int32_data = v.iter().map(|x| x.to_bits().into()).collect(),
        Data::BF16(v) => proto.int32_data = v.iter().map(|x| x.to_bits().into()).collect(),
        Data::I8(v) => proto.int32_data = v.iter().map(|&x| x.into()).collect(),
        Data::I16(v) => proto.int32_data = v.iter().map(|&x| x.into()).collect(),
        Data::U8(v) => proto.int32_data = v.iter().map(|&x| x.into()).collect(),
        Data::U16(v) => proto.int32_data = v.iter().map(|&x| x.into()).collect(),
        Data::Bool(v) => proto.int32_data = v.iter().map(|&x| x.into()).collect(),
    }
}

/// The values in a narrower type, or an error that shows the first one that does not fit.
fn narrow<A, B>(values: &[A], element: ElementType) -> Result<Vec<B>>
where
    A: Copy + std::fmt::Display,
    B: TryFrom<A>,
{
    let one = |&v: &A| B::try_from(v).map_err(|_| error!(Model, "its value {v} is no {element}"));
    values.iter().map(one).collect()
}

/// Adds the tensor's name to an error.
pub fn named<T>(result: Result<T>, name: &str) -> Result<T> {
    result.context(|| match name {
        "" => "a tensor without a name".to_owned(),
        _ => format!("tensor {name:?}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    /// One tensor of each type, with the extreme values that a careless conversion would lose.
    fn one_of_each() -> Vec<Data> {
        vec![
            Data::F32(vec![-0.0, f32::MIN_POSITIVE, 1.5]),
            Data::F64(vec![f64::MAX, -0.0, 0.1]),
            Data::F16(vec![f16::MIN, f16::from_f32(-0.0), f16::from_f32(0.1)]),
            Data::BF16(vec![bf16::MIN, bf16::from_f32(-0.0), bf16::from_f32(0.1)]),
            Data::I8(vec![i8::MIN, -1, i8::MAX]),
            Data::I16(vec![i16::MIN, -1, i16::MAX]),
            Data::I32(vec![i32::MIN, -1, i32::MAX]),
            Data::I64(vec![i64::MIN, -1, i64::MAX]),
            Data::U8(vec![0, 1, u8::MAX]),
            Data::U16(vec![0, 1, u16::MAX]),
            Data::U32(vec![0, 1, u32::MAX]),
            Data::U64(vec![0, 1, u64::MAX]),
            Data::Bool(vec![true, false, true]),
        ]
    }

    fn message(proto: &TensorProto) -> (ErrorKind, String) {
        let error = read(proto).unwrap_err();
        (error.kind(), error.to_string())
    }

    #[test]
    fn every_type_survives_both_forms() {
        for data in one_of_each() {
            let tensor = Tensor::new([3, 1], data).unwrap();
            let raw = write("t", &tensor);
            assert_eq!(read(&raw).unwrap(), tensor);

            let mut typed = TensorProto { raw_data: None, ..raw.clone() };
            write_typed(&mut typed, tensor.data());
            assert_eq!(read(&typed).unwrap(), tensor, "{}", tensor.element_type());
        }
    }

    #[test]
    fn replacing_keeps_the_form() {
        for data in one_of_each() {
            let tensor = Tensor::new([3], data).unwrap();
            let mut raw = write("t", &tensor);
            let mut typed = TensorProto { raw_data: None, ..raw.clone() };
            write_typed(&mut typed, tensor.data());
            let (raw_before, typed_before) = (raw.clone(), typed.clone());
            replace(&mut raw, &tensor).unwrap();
            replace(&mut typed, &tensor).unwrap();
            assert_eq!((raw, typed), (raw_before, typed_before));
        }
    }

    #[test]
    fn replacing_refuses_another_shape_or_type() {
        let mut proto = write("t", &Tensor::f32([2], vec![1.0, 2.0]));
        assert!(replace(&mut proto, &Tensor::f32([1, 2], vec![1.0, 2.0])).is_err());
        assert!(replace(&mut proto, &Tensor::i64([2], vec![1, 2])).is_err());
        assert!(replace(&mut proto, &Tensor::f32([2], vec![3.0, 4.0])).is_ok());
        assert_eq!(read(&proto).unwrap().as_f32(), Some(&[3.0, 4.0][..]));
    }

    #[test]
    fn the_length_of_the_data_is_checked() {
        let mut proto = write("t", &Tensor::f32([2], vec![1.0, 2.0]));
        proto.dims = vec![3];
        assert_eq!(message(&proto).1, "shape [3] of float32 takes 12 bytes, not 8");
        proto.dims = vec![-2];
        assert_eq!(message(&proto), (ErrorKind::Model, "its shape [-2] is impossible".into()));
        proto.dims = vec![i64::MAX, i64::MAX];
        assert!(message(&proto).1.contains("beyond any memory"));
        proto.dims = vec![1 << 62];
        assert!(message(&proto).1.contains("beyond any memory"));
        proto.dims = vec![1 << 40];
        assert!(message(&proto).1.contains("bytes, not 8"));
    }

    #[test]
    fn values_that_do_not_fit_are_named() {
        let proto = TensorProto {
            dims: vec![1],
            data_type: Some(ElementType::U8.to_onnx()),
            int32_data: vec![300],
            ..TensorProto::default()
        };
        assert_eq!(message(&proto).1, "its value 300 is no uint8");
    }

    #[test]
    fn unsupported_types_are_named() {
        let proto = TensorProto { data_type: Some(17), ..TensorProto::default() };
        let (kind, text) = message(&proto);
        assert_eq!(kind, ErrorKind::Unsupported);
        assert!(text.contains("FLOAT8E4M3FN"), "{text}");
        let proto = TensorProto { data_type: Some(999), ..TensorProto::default() };
        assert!(message(&proto).1.contains("number 999"));
    }

    #[test]
    fn an_empty_raw_field_beside_typed_data_is_ignored() {
        let proto = TensorProto {
            dims: vec![1],
            data_type: Some(1),
            float_data: vec![2.0],
            raw_data: Some(Vec::new()),
            ..TensorProto::default()
        };
        assert_eq!(read(&proto).unwrap(), Tensor::f32([1], vec![2.0]));
    }
}
