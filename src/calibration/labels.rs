//! What the model should have answered: class indices, or the targets of a regression.

use crate::calibration::fit;
use crate::error::{Result, bail, error};
use crate::tensor::{Data, Tensor};

/// The labels of a set of samples, one row per sample.
#[derive(Clone, Debug, PartialEq)]
pub enum Labels {
    /// Class indices, int64 `[N]`, or `[N, T]` for T positions per sample.
    Classes(Tensor),
    /// Float32 targets `[N, ...]`.
    Targets(Tensor),
}

impl Labels {
    /// Labels of any integer type (class indices) or float type (targets).
    ///
    /// Errors (`Data`): no rows, class indices with more than two axes or beyond int64, targets
    /// that are not finite.
    pub fn new(tensor: Tensor) -> Result<Labels> {
        let shape = tensor.shape().to_vec();
        if shape.is_empty() || tensor.is_empty() {
            bail!(Data, "there are no labels: the shape is {shape:?}");
        }
        if tensor.element_type().is_float() {
            fit::check_finite(&tensor)?;
            let narrow = Tensor::new(shape, Data::F32(tensor.to_f32()))?;
            fit::check_finite(&narrow)?;
            return Ok(Labels::Targets(narrow));
        }
        if shape.len() > 2 {
            bail!(Data, "class labels have the shape [N] or [N, T], not {shape:?}");
        }
        let classes =
            tensor.to_i64().ok_or_else(|| error!(Data, "a label is too large for int64"))?;
        Ok(Labels::Classes(Tensor::new(shape, Data::I64(classes))?))
    }

    /// How many samples are labelled.
    pub fn rows(&self) -> usize {
        self.tensor().shape()[0]
    }

    /// The numbers: int64 `[N]` or `[N, T]`, or float32 `[N, ...]`.
    pub fn tensor(&self) -> &Tensor {
        match self {
            Labels::Classes(t) | Labels::Targets(t) => t,
        }
    }

    /// The class indices of all rows, row by row, if that is what the labels are.
    pub fn classes(&self) -> Option<&[i64]> {
        match self {
            Labels::Classes(t) => match t.data() {
                Data::I64(v) => Some(v),
                _ => None,
            },
            Labels::Targets(_) => None,
        }
    }

    /// The labels of the given rows, in that order. Panics for a row that is not there.
    pub fn batch(&self, rows: &[usize]) -> Labels {
        match self {
            Labels::Classes(t) => Labels::Classes(t.take_rows(rows)),
            Labels::Targets(t) => Labels::Targets(t.take_rows(rows)),
        }
    }

    /// Checks that every class index is one of `0..classes`; targets always pass.
    pub fn check(&self, classes: usize) -> Result<()> {
        let Some(indices) = self.classes() else { return Ok(()) };
        let in_range = |&v: &i64| usize::try_from(v).is_ok_and(|v| v < classes);
        if let Some(i) = indices.iter().position(|v| !in_range(v)) {
            let row = i / (indices.len() / self.rows());
            bail!(
                Data,
                "label {} of row {row} is not a class: the model has {classes}, counted from 0",
                indices[i]
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_decides_and_ranges_are_checked() {
        let labels = Labels::new(Tensor::new([2, 2], Data::U8(vec![0, 1, 9, 2])).unwrap()).unwrap();
        assert_eq!(labels.classes().unwrap(), [0, 1, 9, 2]);
        labels.check(10).unwrap();
        let message = labels.check(9).unwrap_err().to_string();
        assert!(message.contains("label 9 of row 1"), "{message}");
        assert_eq!(labels.batch(&[1]).classes().unwrap(), [9, 2]);
        let negative = Labels::new(Tensor::i64([1], vec![-1])).unwrap();
        assert!(negative.check(3).unwrap_err().to_string().contains("label -1 of row 0"));

        let targets = Labels::new(Tensor::new([2], Data::F64(vec![0.5, 2.0])).unwrap()).unwrap();
        assert_eq!(targets.tensor().as_f32().unwrap(), [0.5, 2.0]);
        targets.check(1).unwrap();

        assert!(Labels::new(Tensor::new([1], Data::U64(vec![u64::MAX])).unwrap()).is_err());
        assert!(Labels::new(Tensor::new([1], Data::F64(vec![1e300])).unwrap()).is_err());
        assert!(Labels::new(Tensor::i64([1, 1, 1], vec![0])).is_err());
        assert!(Labels::new(Tensor::i64([0], vec![])).is_err());
    }
}
