//! One array to one model input: its element type, its shape, its scale.
//!
//! x becomes (x·scale − mean)/std, per channel, computed in float64 and rounded once. What cannot
//! be converted without a guess is refused with the option or the shape that would settle it.

use half::{bf16, f16};

use crate::calibration::ReadOptions;
use crate::error::{Result, bail, error};
use crate::onnx::{Dimension, Value};
use crate::tensor::{Data, ElementType, Tensor};

/// Shapes with more axes than this are compared, not completed: the search for axes is exponential.
const MAX_COMPLETED_AXES: usize = 10;

/// (x·scale − mean)/std with one value or one per channel.
#[derive(Clone, Debug)]
pub(super) struct Scaling {
    scale: Option<Vec<f64>>,
    mean: Option<Vec<f64>>,
    std: Option<Vec<f64>>,
}

impl Scaling {
    /// Checks the options for values that cannot be meant.
    pub fn new(options: &ReadOptions) -> Result<Scaling> {
        let ReadOptions { scale, mean, std, .. } = options.clone();
        for (name, values) in [("scale", &scale), ("mean", &mean), ("std", &std)] {
            let values = values.as_deref().unwrap_or(&[1.0]);
            if values.is_empty() || values.iter().any(|v| !v.is_finite()) {
                bail!(Usage, "{name} {values:?} is not a list of finite numbers");
            }
            if name != "mean" && values.contains(&0.0) {
                bail!(Usage, "{name} must not be 0");
            }
        }
        Ok(Scaling { scale, mean, std })
    }

    /// Whether the caller said anything about the scale.
    pub fn is_given(&self) -> bool {
        self.scale.is_some() || self.mean.is_some() || self.std.is_some()
    }

    /// The scaling of images, where bytes stand for 0 to 1 even when nothing was said.
    #[cfg(feature = "images")]
    pub fn for_images(&self) -> Scaling {
        Scaling { scale: Some(self.scale.clone().unwrap_or(vec![1.0 / 255.0])), ..self.clone() }
    }

    /// The map for data of `shape` and type `source`: which channel a value belongs to, and how it
    /// is scaled there. Channels are axis 1, or the last axis when only that has the right length.
    fn map(&self, shape: &[usize], source: ElementType) -> Result<Affine> {
        let default_scale = if source == ElementType::U8 { 1.0 / 255.0 } else { 1.0 };
        let scale = self.scale.clone().unwrap_or(vec![default_scale]);
        let mean = self.mean.clone().unwrap_or(vec![0.0]);
        let std = self.std.clone().unwrap_or(vec![1.0]);
        let channels = scale.len().max(mean.len()).max(std.len());
        let axis = match channels {
            1 => shape.len(),
            _ if shape.get(1) == Some(&channels) => 1,
            _ if shape.len() > 1 && shape.last() == Some(&channels) => shape.len() - 1,
            _ => bail!(
                Usage,
                "scale, mean or std have {channels} values, but no channel axis of shape {shape:?} \
                 is that long"
            ),
        };
        let at = |name: &str, values: &[f64], c: usize| match values.len() {
            1 => Ok(values[0]),
            n if n == channels => Ok(values[c]),
            n => bail!(Usage, "{name} has {n} values where another option has {channels}"),
        };
        let terms = (0..channels)
            .map(|c| Ok((at("scale", &scale, c)?, at("mean", &mean, c)?, at("std", &std, c)?)));
        let inner = shape.iter().skip(axis + 1).product::<usize>().max(1);
        Ok(Affine { terms: terms.collect::<Result<_>>()?, inner })
    }
}

/// A scaling with its channels laid out: value i of a sample belongs to channel (i/inner) mod C.
struct Affine {
    terms: Vec<(f64, f64, f64)>,
    inner: usize,
}

impl Affine {
    fn apply(&self, i: usize, x: f64) -> f64 {
        let (scale, mean, std) = self.terms[i / self.inner % self.terms.len()];
        (x * scale - mean) / std
    }
}

/// The array as `input` takes it: shape completed, type converted, scaled, and finite.
pub(super) fn fit(tensor: Tensor, input: &Value, scaling: &Scaling) -> Result<Tensor> {
    let shape = match &input.shape {
        Some(declared) => fit_shape(tensor.shape(), declared).ok_or_else(|| {
            let hint = if declared.is_empty() {
                " (an input without axes cannot be fed from samples)"
            } else {
                ""
            };
            error!(
                Data,
                "shape {:?} does not fit input {:?}, which is declared as {}{hint}",
                tensor.shape(),
                input.name,
                describe(declared)
            )
        })?,
        None => tensor.shape().to_vec(),
    };
    let tensor = tensor.reshaped(shape)?;
    let source = tensor.element_type();
    let scaled = scaling.is_given() || source.is_float();
    let target = input.element.unwrap_or(if scaled { ElementType::F32 } else { source });
    if target.is_float() {
        to_float(tensor, target, input, scaling)
    } else {
        to_int(tensor, target, input)
    }
}

/// An error that names the first row with a value that is not finite.
pub(super) fn check_finite(tensor: &Tensor) -> Result<()> {
    let bad = match tensor.data() {
        Data::F32(v) => v.iter().position(|x| !x.is_finite()),
        Data::F64(v) => v.iter().position(|x| !x.is_finite()),
        Data::F16(v) => v.iter().position(|x| !x.is_finite()),
        Data::BF16(v) => v.iter().position(|x| !x.is_finite()),
        _ => None,
    };
    match bad {
        Some(i) => {
            let row = i / (tensor.len() / tensor.shape()[0]);
            bail!(Data, "row {row} holds a value that is not finite (NaN or infinity)")
        }
        None => Ok(()),
    }
}

/// The declared shape with its open lengths filled in from `shape`, inserting axes of length 1
/// where only those are missing and there is one way to do it. The first axis counts samples and
/// fits any declaration.
fn fit_shape(shape: &[usize], declared: &[Dimension]) -> Option<Vec<usize>> {
    let (rows, sample) = shape.split_first()?;
    let (_, axes) = declared.split_first()?;
    let matches = |length: usize, axis: &Dimension| match axis {
        Dimension::Fixed(n) => *n == length,
        Dimension::Symbol(_) => true,
    };
    if sample.len() == axes.len() && sample.iter().zip(axes).all(|(&l, a)| matches(l, a)) {
        return Some(shape.to_vec());
    }
    if sample.len() >= axes.len() || axes.len() > MAX_COMPLETED_AXES {
        return None;
    }
    let mut found: Option<Vec<usize>> = None;
    // Each set of declared axes that the array has; the others must be declared as 1.
    for present in 0u32..1 << axes.len() {
        if present.count_ones() as usize != sample.len() {
            continue;
        }
        let mut lengths = sample.iter();
        let fitted: Option<Vec<usize>> = axes
            .iter()
            .enumerate()
            .map(|(i, axis)| match present >> i & 1 {
                1 => lengths.next().copied().filter(|&l| matches(l, axis)),
                _ => (*axis == Dimension::Fixed(1)).then_some(1),
            })
            .collect();
        match (&found, fitted) {
            (_, None) => {}
            (None, Some(fitted)) => found = Some(fitted),
            (Some(other), Some(fitted)) if *other == fitted => {}
            _ => return None,
        }
    }
    found.map(|axes| [vec![*rows], axes].concat())
}

/// How messages write a declared shape: `[N, 1, 28, 28]`, with `?` for an unnamed length.
fn describe(declared: &[Dimension]) -> String {
    let axes = declared.iter().map(|d| match d {
        Dimension::Fixed(n) => n.to_string(),
        Dimension::Symbol(s) if s.is_empty() => "?".into(),
        Dimension::Symbol(s) => s.clone(),
    });
    format!("[{}]", axes.collect::<Vec<_>>().join(", "))
}

fn to_float(
    tensor: Tensor,
    target: ElementType,
    input: &Value,
    scaling: &Scaling,
) -> Result<Tensor> {
    let source = tensor.element_type();
    if !source.is_float() && source != ElementType::Bool && !scaling.is_given() {
        bail!(
            Data,
            "{source} values for the {target} input {:?} need a scale: give scale 1/255 to map \
             0..255 to 0..1, scale 1 to take the numbers as they are, and mean and std if \
             the model was trained with them",
            input.name
        );
    }
    if source == target && !scaling.is_given() {
        check_finite(&tensor)?;
        return Ok(tensor);
    }
    let map = scaling.map(tensor.shape(), source)?;
    let data = match target {
        ElementType::F64 => Data::F64(convert(&tensor, &map, target, |x| x)?),
        ElementType::F16 => Data::F16(convert(&tensor, &map, target, f16::from_f64)?),
        ElementType::BF16 => Data::BF16(convert(&tensor, &map, target, bf16::from_f64)?),
        _ => Data::F32(convert(&tensor, &map, target, |x| x as f32)?),
    };
    Tensor::new(tensor.shape(), data)
}

/// Every value scaled and rounded to `T`, row by row; none may end up infinite.
fn convert<T: Copy + Into<f64>>(
    tensor: &Tensor,
    map: &Affine,
    target: ElementType,
    round: impl Fn(f64) -> T,
) -> Result<Vec<T>> {
    let mut out = Vec::with_capacity(tensor.len());
    for row in 0..tensor.shape()[0] {
        for (i, &x) in tensor.take_rows(&[row]).to_f64().iter().enumerate() {
            let y = round(map.apply(i, x));
            if !x.is_finite() {
                bail!(Data, "row {row} holds a value that is not finite (NaN or infinity)");
            }
            if !y.into().is_finite() {
                bail!(Data, "row {row} holds {x}, which does not fit {target}");
            }
            out.push(y);
        }
    }
    Ok(out)
}

fn to_int(tensor: Tensor, target: ElementType, input: &Value) -> Result<Tensor> {
    let source = tensor.element_type();
    if source == target {
        return Ok(tensor);
    }
    if source.is_float() {
        bail!(
            Data,
            "{source} values for the {target} input {:?}: save them as integers",
            input.name
        );
    }
    let values = tensor.to_i64().ok_or_else(|| error!(Data, "a value is too large for int64"))?;
    let row = values.len() / tensor.shape()[0];
    macro_rules! narrow {
        ($variant:ident, $t:ty) => {{
            let fits = |(i, &v): (usize, &i64)| {
                <$t>::try_from(v).map_err(|_| {
                    error!(Data, "row {} holds {v}, which does not fit {target}", i / row)
                })
            };
            Data::$variant(values.iter().enumerate().map(fits).collect::<Result<_>>()?)
        }};
    }
    let data = match target {
        ElementType::I8 => narrow!(I8, i8),
        ElementType::I16 => narrow!(I16, i16),
        ElementType::I32 => narrow!(I32, i32),
        ElementType::I64 => Data::I64(values),
        ElementType::U8 => narrow!(U8, u8),
        ElementType::U16 => narrow!(U16, u16),
        ElementType::U32 => narrow!(U32, u32),
        ElementType::U64 => narrow!(U64, u64),
        _ => {
            if let Some(i) = values.iter().position(|v| !(0..2).contains(v)) {
                bail!(Data, "row {} holds {}, which is neither 0 nor 1", i / row, values[i]);
            }
            Data::Bool(values.iter().map(|&v| v == 1).collect())
        }
    };
    Tensor::new(tensor.shape(), data)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared(text: &str) -> Vec<Dimension> {
        let axis = |s: &str| s.parse().map_or(Dimension::Symbol(s.into()), Dimension::Fixed);
        text.split_whitespace().map(axis).collect()
    }

    #[test]
    fn missing_axes_of_length_one_are_inserted_when_there_is_one_way() {
        type Case<'a> = (&'a [usize], &'a str, Option<&'a [usize]>);
        let cases: [Case; 12] = [
            (&[8, 1, 28, 28], "N 1 28 28", Some(&[8, 1, 28, 28])),
            (&[8, 28, 28], "N 1 28 28", Some(&[8, 1, 28, 28])),
            (&[8, 28, 28], "1 28 28 1", Some(&[8, 28, 28, 1])),
            (&[8, 5], "N 1 T 1", Some(&[8, 1, 5, 1])),
            (&[8, 1], "N 1 T", Some(&[8, 1, 1])),
            (&[8], "N 1", Some(&[8, 1])),
            (&[8, 5], "N T 1 S", None),
            (&[8, 784], "N 1 28 28", None),
            (&[8, 28, 27], "N 1 28 28", None),
            (&[8, 3, 28, 28], "N 1 28 28", None),
            (&[28, 28], "N 1 28 28", None),
            (&[8], "", None),
        ];
        for (shape, text, expected) in cases {
            let got = fit_shape(shape, &declared(text));
            assert_eq!(got.as_deref(), expected, "{shape:?} into [{text}]");
        }
        assert_eq!(describe(&declared("N 1 28")), "[N, 1, 28]");
    }

    #[test]
    fn channels_are_axis_one_or_the_last() {
        let options = ReadOptions {
            scale: Some(vec![0.5]),
            mean: Some(vec![1.0, 2.0, 3.0]),
            std: Some(vec![1.0, 2.0, 4.0]),
            ..ReadOptions::default()
        };
        let scaling = Scaling::new(&options).unwrap();
        let input = Value { element: Some(ElementType::F32), ..Value::named("x") };
        let x = |shape: [usize; 4]| Tensor::new(shape, Data::U8(vec![8; 12])).unwrap();
        let first = fit(x([2, 3, 1, 2]), &input, &scaling).unwrap();
        assert_eq!(first.as_f32().unwrap()[..6], [3.0, 3.0, 1.0, 1.0, 0.25, 0.25]);
        let last = fit(x([2, 1, 2, 3]), &input, &scaling).unwrap();
        assert_eq!(last.as_f32().unwrap()[..6], [3.0, 1.0, 0.25, 3.0, 1.0, 0.25]);
        let error = fit(x([2, 6, 1, 1]), &input, &scaling).unwrap_err();
        assert!(error.to_string().contains("3 values"), "{error}");
        let options = ReadOptions { std: Some(vec![0.0]), ..ReadOptions::default() };
        assert!(Scaling::new(&options).is_err());
    }

    #[test]
    fn numbers_are_converted_within_their_range() {
        let none = Scaling::new(&ReadOptions::default()).unwrap();
        let to = |element, data| {
            let input = Value { element: Some(element), ..Value::named("x") };
            fit(Tensor::new([2], data).unwrap(), &input, &none).map(Tensor::into_data)
        };
        let fits = |element, data| to(element, data).unwrap();
        let error = |element, data| to(element, data).unwrap_err().to_string();
        use ElementType::*;
        assert_eq!(fits(F32, Data::F64(vec![0.1, 2.0])), Data::F32(vec![0.1, 2.0]));
        assert_eq!(fits(F32, Data::Bool(vec![true, false])), Data::F32(vec![1.0, 0.0]));
        assert_eq!(fits(I32, Data::I64(vec![-5, 5])), Data::I32(vec![-5, 5]));
        assert_eq!(fits(Bool, Data::U8(vec![1, 0])), Data::Bool(vec![true, false]));
        assert_eq!(fits(U64, Data::U64(vec![u64::MAX, 0])), Data::U64(vec![u64::MAX, 0]));
        assert!(error(I32, Data::I64(vec![0, 1 << 40])).contains("row 1 holds 1099511627776"));
        assert!(error(U8, Data::I8(vec![0, -1])).contains("row 1 holds -1"));
        assert!(error(Bool, Data::U8(vec![2, 0])).contains("row 0 holds 2"));
        assert!(error(I64, Data::F32(vec![1.0, 2.0])).contains("save them as integers"));
        assert!(error(I64, Data::U64(vec![u64::MAX, 0])).contains("too large"));
        assert!(error(F32, Data::F64(vec![0.0, 1e300])).contains("row 1 holds 1"));
        assert!(error(F16, Data::F32(vec![1e6, 0.0])).contains("does not fit float16"));
        assert!(error(F32, Data::F32(vec![0.0, f32::NAN])).contains("row 1"));
        assert!(error(F32, Data::F64(vec![f64::INFINITY, 0.0])).contains("row 0"));
        assert!(error(F32, Data::U8(vec![0, 1])).contains("scale 1/255"));
    }
}
