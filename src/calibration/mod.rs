//! Samples and labels in: what a model is fed while hone watches it.
//!
//! A [`Samples`] holds one tensor per model input with a common first axis, the rows, and possibly
//! labels. It is read from `.npy`, `.npz` or a folder of images, or handed over by a host; either
//! way it is checked completely (types, shapes, counts, finite values) before anything runs, so
//! that everything after it can take batches without looking back.

mod fit;
#[cfg(feature = "images")]
mod images;
mod labels;
pub mod metrics;
mod npy;
mod npz;

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use crate::error::{Context, Result, bail, error};
use crate::onnx::Value;
use crate::tensor::{ElementType, Tensor};
use fit::Scaling;
pub use labels::Labels;
pub use metrics::{Accuracy, Divergence, accuracy};

/// What samples may take in memory when the caller sets no limit: 8 GiB.
pub const DEFAULT_MEMORY_LIMIT: u64 = 8 << 30;

/// How samples are read and turned into what the model expects.
#[derive(Clone, Debug, Default)]
pub struct ReadOptions {
    /// Factor of every value, one or one per channel; x becomes (x·scale − mean)/std. Default
    /// 1/255 for uint8 data and images, otherwise 1.
    pub scale: Option<Vec<f64>>,
    /// Subtracted after scaling, one or one per channel. Default 0.
    pub mean: Option<Vec<f64>>,
    /// Divided by after that, one or one per channel. Default 1.
    pub std: Option<Vec<f64>>,
    /// Height and width images are resized to, for models that leave them open.
    pub image_size: Option<(usize, usize)>,
    /// Where the channels of an image input are, when its declared shape leaves that open.
    pub layout: Option<ImageLayout>,
    /// Reads only the first so many samples.
    pub limit: Option<usize>,
    /// The array of the archive that holds the labels. Default: `labels`, else `targets`, if there.
    pub labels: Option<String>,
    /// Bytes the samples may take in memory. Default [`DEFAULT_MEMORY_LIMIT`].
    pub memory_limit: Option<u64>,
}

/// The order of the axes of an image input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageLayout {
    /// `[N, C, H, W]`.
    ChannelsFirst,
    /// `[N, H, W, C]`.
    ChannelsLast,
}

/// Input tensors by name with a common first axis, the rows, and possibly labels for the rows.
///
/// Invariants: at least one input and one row; float inputs are finite; labels count as many rows.
#[derive(Clone, Debug)]
pub struct Samples {
    inputs: Vec<(String, Tensor)>,
    labels: Option<Labels>,
}

impl Samples {
    /// Reads samples for a model that takes `inputs`.
    ///
    /// `path` is a `.npz` archive with arrays named as the inputs (and `labels` or `targets`), a
    /// `.npy` array for a model with one input, or a folder of PNG and JPEG images: one sub-folder
    /// per class, or a `labels.csv` with lines `file,label`, or plain unlabelled files.
    ///
    /// Numbers are converted to the type the input declares: floats to floats, integers to integers
    /// within their range, integers to floats only when `options` say how to scale them. A sample
    /// that lacks axes of length 1 gets them. Errors: `Io`, `Usage` for options that do not fit,
    /// `Memory` beyond the limit, otherwise `Data`, naming the file and the array.
    pub fn read(path: &Path, inputs: &[Value], options: &ReadOptions) -> Result<Samples> {
        let scaling = Scaling::new(options)?;
        if options.limit == Some(0) {
            bail!(Usage, "a limit of 0 samples leaves none");
        }
        if inputs.is_empty() {
            bail!(Model, "the model takes no inputs, so there is nothing to feed");
        }
        if scaling.is_given() && !inputs.iter().any(|v| v.element.is_none_or(|e| e.is_float())) {
            bail!(Usage, "scale, mean and std are for float inputs; this model takes none");
        }
        read_any(path, inputs, options, &scaling).context(|| path.display().to_string())
    }

    /// Samples that a host already holds, with the types and shapes its model takes.
    ///
    /// Errors (`Data`) when the first axes differ or are empty, or a float value is not finite.
    pub fn from_tensors(inputs: Vec<(String, Tensor)>, labels: Option<Labels>) -> Result<Samples> {
        for (name, tensor) in &inputs {
            if tensor.shape().is_empty() || tensor.is_empty() {
                bail!(Data, "input {name:?} has no samples: its shape is {:?}", tensor.shape());
            }
            fit::check_finite(tensor).context(|| format!("input {name:?}"))?;
        }
        let rows = inputs.iter().map(|(name, t)| (name.as_str(), t.shape()[0]));
        common_rows(rows.chain(labels.iter().map(|l| ("labels", l.rows()))))?;
        Ok(Samples { inputs, labels })
    }

    /// Samples that a host holds as arrays named as the model's `inputs`, fitted to those as
    /// [`Samples::read`] does it; `options` say how to scale them.
    ///
    /// Errors: `Usage` for options that do not fit and arrays that are no inputs, otherwise `Data`,
    /// naming the array.
    pub fn fit(
        arrays: Vec<(String, Tensor)>,
        labels: Option<Tensor>,
        inputs: &[Value],
        options: &ReadOptions,
    ) -> Result<Samples> {
        let scaling = Scaling::new(options)?;
        let names: Vec<&str> = inputs.iter().map(|v| v.name.as_str()).collect();
        for (i, (name, _)) in arrays.iter().enumerate() {
            if !names.contains(&name.as_str()) {
                bail!(Usage, "the model has no input {name:?}; it takes {names:?}");
            }
            if arrays[..i].iter().any(|(other, _)| other == name) {
                bail!(Usage, "input {name:?} is given twice");
            }
        }
        let mut arrays = arrays;
        let mut tensors = Vec::with_capacity(inputs.len());
        for input in inputs {
            let name = &input.name;
            let Some(at) = arrays.iter().position(|(n, _)| n == name) else {
                bail!(Usage, "input {name:?} of the model is missing");
            };
            let (_, tensor) = arrays.swap_remove(at);
            if tensor.shape().is_empty() || tensor.is_empty() {
                bail!(Data, "input {name:?} has no samples: its shape is {:?}", tensor.shape());
            }
            let tensor = fit::fit(tensor, input, &scaling);
            tensors.push((name.clone(), tensor.context(|| format!("input {name:?}"))?));
        }
        let labels = labels.map(|l| Labels::new(l).context(|| "labels")).transpose()?;
        Samples::from_tensors(tensors, labels)
    }

    /// How many samples there are.
    pub fn rows(&self) -> usize {
        self.inputs[0].1.shape()[0]
    }

    /// The inputs in the order the model declares them, each `[rows, ...]`.
    pub fn inputs(&self) -> &[(String, Tensor)] {
        &self.inputs
    }

    /// The inputs of the given rows, in that order. Panics for a row that is not there.
    pub fn batch(&self, rows: &[usize]) -> Vec<(String, Tensor)> {
        self.inputs.iter().map(|(name, tensor)| (name.clone(), tensor.take_rows(rows))).collect()
    }

    /// The labels, if there are any.
    pub fn labels(&self) -> Option<&Labels> {
        self.labels.as_ref()
    }
}

/// Arrays as they are stored, of any types and shapes: the one array of an `.npy` file whatever
/// name is asked for, or those of an `.npz` archive by name, `None` where it has no such array.
///
/// At most `limit` rows of each are read. Errors: `Io`, `Usage`, `Memory`, `Data`, naming the file.
pub fn read_arrays(
    path: &Path,
    names: &[&str],
    limit: Option<usize>,
) -> Result<Vec<Option<Tensor>>> {
    let read = || {
        let file = || File::open(path).map_err(|e| error!(Io, "cannot be opened: {e}"));
        let mut loader = Loader::new(&ReadOptions { limit, ..ReadOptions::default() });
        match path.extension().and_then(|e| e.to_str()) {
            Some("npy") => {
                let (file, bytes) = (file()?, path.metadata().map_or(0, |m| m.len()));
                let array = loader.load(&mut BufReader::new(file), bytes, None)?;
                let first = std::iter::once(Some(array.tensor));
                Ok(first.chain(std::iter::repeat(None)).take(names.len()).collect())
            }
            Some("npz") => {
                let mut archive = npz::Archive::new(file()?)?;
                let mut array = |name: &&str| {
                    let in_array = || format!("array {name:?}");
                    let Some((mut reader, bytes)) = archive.open(name).context(in_array)? else {
                        return Ok(None);
                    };
                    let array = loader.load(&mut reader, bytes, None).context(in_array)?;
                    Ok(Some(array.tensor))
                };
                names.iter().map(&mut array).collect()
            }
            _ => bail!(Usage, "arrays are read from .npy and .npz files, not from this"),
        }
    };
    read().context(|| path.display().to_string())
}

/// Numbers of an option such as `--scale` or `--mean`: `1/255`, `0.5`, or several with commas.
pub fn parse_scale(text: &str) -> Result<Vec<f64>> {
    let number = |s: &str| s.trim().parse::<f64>().ok();
    let values = text.split(',').map(|part| match part.split_once('/') {
        Some((a, b)) => Some(number(a)? / number(b)?),
        None => number(part),
    });
    let values: Option<Vec<f64>> = values.map(|v| v.filter(|v| v.is_finite())).collect();
    values.ok_or_else(|| {
        error!(Usage, "{text:?} is not a number, a fraction such as 1/255, or a list of them")
    })
}

/// Chooses the reader by what `path` is.
fn read_any(
    path: &Path,
    inputs: &[Value],
    options: &ReadOptions,
    scaling: &Scaling,
) -> Result<Samples> {
    let about = path.metadata().map_err(|e| error!(Io, "cannot be read: {e}"))?;
    if about.is_dir() {
        #[cfg(feature = "images")]
        return images::read(path, inputs, options, scaling);
        #[cfg(not(feature = "images"))]
        bail!(Unsupported, "this build of hone reads no images (feature \"images\")");
    }
    let file = || File::open(path).map_err(|e| error!(Io, "cannot be opened: {e}"));
    match path.extension().and_then(|e| e.to_str()) {
        Some("npy") => read_npy(file()?, about.len(), inputs, options, scaling),
        Some("npz") => read_npz(npz::Archive::new(file()?)?, inputs, options, scaling),
        _ => bail!(Usage, "samples are read from .npy, .npz or a folder of images, not from this"),
    }
}

fn read_npy(
    file: File,
    bytes: u64,
    inputs: &[Value],
    options: &ReadOptions,
    scaling: &Scaling,
) -> Result<Samples> {
    let [input] = inputs else {
        let names: Vec<&str> = inputs.iter().map(|v| v.name.as_str()).collect();
        bail!(
            Usage,
            "an .npy file feeds one input; this model takes {names:?}: use an .npz archive"
        );
    };
    let mut loader = Loader::new(options);
    let array = loader.load(&mut BufReader::new(file), bytes, input.element)?;
    let tensor = fit::fit(array.tensor, input, scaling)?;
    Samples::from_tensors(vec![(input.name.clone(), tensor)], None)
}

fn read_npz(
    mut archive: npz::Archive,
    inputs: &[Value],
    options: &ReadOptions,
    scaling: &Scaling,
) -> Result<Samples> {
    let mut loader = Loader::new(options);
    let mut stored_rows = Vec::new();
    let mut tensors = Vec::new();
    for input in inputs {
        let name = &input.name;
        let in_array = || format!("array {name:?}");
        let Some((mut reader, bytes)) = archive.open(name).context(in_array)? else {
            let names: Vec<&str> = archive.names().collect();
            bail!(
                Data,
                "no array is named as the model's input {name:?}; the archive holds {names:?}"
            );
        };
        let array = loader.load(&mut reader, bytes, input.element).context(in_array)?;
        stored_rows.push((name.as_str(), array.stored_rows));
        tensors.push((name.clone(), fit::fit(array.tensor, input, scaling).context(in_array)?));
    }
    let mut labels = None;
    if let Some(name) = label_array(&archive, inputs, options)? {
        let in_array = || format!("array {name:?}");
        let (mut reader, bytes) = archive
            .open(name)
            .context(in_array)?
            .ok_or_else(|| error!(Data, "the archive has no array {name:?}"))?;
        let array = loader.load(&mut reader, bytes, None).context(in_array)?;
        stored_rows.push((name, array.stored_rows));
        if name == "labels" && options.labels.is_none() && array.tensor.element_type().is_float() {
            bail!(
                Data,
                "array \"labels\": class labels are integers, these are {}: save them as int64, \
                 or under the name \"targets\" if they are targets of a regression",
                array.tensor.element_type()
            );
        }
        labels = Some(Labels::new(array.tensor).context(in_array)?);
    }
    common_rows(stored_rows.into_iter())?;
    Samples::from_tensors(tensors, labels)
}

/// The array that holds the labels: the one asked for, else `labels`, else `targets`.
fn label_array<'a>(
    archive: &npz::Archive,
    inputs: &[Value],
    options: &'a ReadOptions,
) -> Result<Option<&'a str>> {
    let has = |name: &str| archive.names().any(|n| n == name);
    if let Some(name) = options.labels.as_deref() {
        if !has(name) {
            let names: Vec<&str> = archive.names().collect();
            bail!(Usage, "the archive has no array {name:?} for the labels; it holds {names:?}");
        }
        return Ok(Some(name));
    }
    let is_input = |name: &str| inputs.iter().any(|v| v.name == name);
    Ok(["labels", "targets"].into_iter().find(|name| has(name) && !is_input(name)))
}

/// The number of rows that all arrays have in common; an error that names two that differ.
fn common_rows<'a>(mut arrays: impl Iterator<Item = (&'a str, usize)>) -> Result<usize> {
    let Some((first, rows)) = arrays.next() else {
        bail!(Data, "there are no samples");
    };
    match arrays.find(|(_, r)| *r != rows) {
        Some((other, r)) => bail!(
            Data,
            "{first:?} has {rows} rows, {other:?} has {r}: the first axis of every \
             array counts the samples"
        ),
        None => Ok(rows),
    }
}

/// Reads arrays within the limits on rows and memory.
struct Loader {
    rows: usize,
    memory: MemoryLimit,
}

/// An array as read, and how many rows there were before the limit.
struct Array {
    tensor: Tensor,
    stored_rows: usize,
}

impl Loader {
    fn new(options: &ReadOptions) -> Loader {
        Loader { rows: options.limit.unwrap_or(usize::MAX), memory: MemoryLimit::new(options) }
    }

    /// The array in the next `bytes` of `reader`, to be converted to `target`.
    fn load(
        &mut self,
        reader: &mut impl Read,
        bytes: u64,
        target: Option<ElementType>,
    ) -> Result<Array> {
        let header = npy::read_header(reader, bytes)?;
        let stored_rows = header.shape[0];
        let rows = stored_rows.min(self.rows);
        let widened = target.map_or(1, |t| t.size().div_ceil(header.element.size()));
        let row_bytes = header.row_bytes() as u64;
        self.memory.take(rows as u64, row_bytes.saturating_mul(widened as u64))?;
        Ok(Array { tensor: npy::read_body(reader, &header, rows)?, stored_rows })
    }
}

/// What is left of the memory that samples may take.
struct MemoryLimit {
    limit: u64,
    left: u64,
}

impl MemoryLimit {
    fn new(options: &ReadOptions) -> MemoryLimit {
        let limit = options.memory_limit.unwrap_or(DEFAULT_MEMORY_LIMIT);
        MemoryLimit { limit, left: limit }
    }

    fn take(&mut self, rows: u64, row_bytes: u64) -> Result<()> {
        let bytes = rows.saturating_mul(row_bytes);
        let Some(left) = self.left.checked_sub(bytes) else {
            bail!(
                Memory,
                "{rows} samples take {} MiB, which exceeds the limit of {} MiB for samples: \
                 read fewer of them",
                bytes >> 20,
                self.limit >> 20
            );
        };
        self.left = left;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::onnx::Dimension;
    use crate::tensor::Data;
    use ndarray::{Array1, Array2, Array3, Array4};
    use std::path::PathBuf;

    fn image_input() -> Vec<Value> {
        let mut value = Value::fixed("image", ElementType::F32, &[1, 1, 2, 2]);
        value.shape.as_mut().unwrap()[0] = Dimension::Symbol("N".into());
        vec![value]
    }

    fn npz(
        folder: &tempfile::TempDir,
        write: impl FnOnce(&mut ndarray_npy::NpzWriter<File>),
    ) -> PathBuf {
        let path = folder.path().join("samples.npz");
        let mut writer = ndarray_npy::NpzWriter::new_compressed(File::create(&path).unwrap());
        write(&mut writer);
        writer.finish().unwrap();
        path
    }

    #[test]
    fn an_archive_with_labels_is_read_and_batched() {
        let folder = tempfile::tempdir().unwrap();
        let x = Array4::from_shape_fn((5, 1, 2, 2), |(n, _, i, j)| (100 * n + 10 * i + j) as f32);
        let y = Array1::from(vec![4u8, 3, 2, 1, 0]);
        let path = npz(&folder, |w| {
            w.add_array("image", &x).unwrap();
            w.add_array("labels", &y).unwrap();
        });
        let samples = Samples::read(&path, &image_input(), &ReadOptions::default()).unwrap();
        assert_eq!(samples.rows(), 5);
        assert_eq!(samples.labels().unwrap().classes().unwrap(), [4, 3, 2, 1, 0]);
        let batch = samples.batch(&[3, 0]);
        assert_eq!(batch[0].0, "image");
        assert_eq!(batch[0].1.shape(), [2, 1, 2, 2]);
        let expected = [300., 301., 310., 311., 0., 1., 10., 11.];
        assert_eq!(batch[0].1.as_f32().unwrap(), expected);

        let two = ReadOptions { limit: Some(2), ..ReadOptions::default() };
        let samples = Samples::read(&path, &image_input(), &two).unwrap();
        assert_eq!((samples.rows(), samples.labels().unwrap().rows()), (2, 2));
    }

    #[test]
    fn bytes_become_floats_only_when_told_how() {
        let folder = tempfile::tempdir().unwrap();
        let x = Array3::from_shape_fn((2, 2, 2), |(n, i, j)| (128 * n + 2 * i + j) as u8);
        let path = npz(&folder, |w| w.add_array("image", &x).unwrap());
        let error = Samples::read(&path, &image_input(), &ReadOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data);
        assert!(error.to_string().contains("1/255"), "{error}");
        let options = ReadOptions {
            mean: Some(vec![0.5]),
            std: Some(parse_scale("1/4").unwrap()),
            ..ReadOptions::default()
        };
        let samples = Samples::read(&path, &image_input(), &options).unwrap();
        assert_eq!(samples.inputs()[0].1.shape(), [2, 1, 2, 2]);
        let got = samples.inputs()[0].1.as_f32().unwrap()[5];
        assert_eq!(got, ((129.0 / 255.0 - 0.5) * 4.0) as f32);
    }

    #[test]
    fn float_labels_are_targets_only_under_that_name() {
        let folder = tempfile::tempdir().unwrap();
        let x = Array4::<f32>::zeros((3, 1, 2, 2));
        let y = Array2::<f64>::ones((3, 2));
        let path = npz(&folder, |w| {
            w.add_array("image", &x).unwrap();
            w.add_array("labels", &y).unwrap();
        });
        let error = Samples::read(&path, &image_input(), &ReadOptions::default()).unwrap_err();
        assert!(error.to_string().contains("targets"), "{error}");
        let named = ReadOptions { labels: Some("labels".into()), ..ReadOptions::default() };
        let samples = Samples::read(&path, &image_input(), &named).unwrap();
        assert!(matches!(samples.labels(), Some(Labels::Targets(t)) if t.shape() == [3, 2]));
    }

    #[test]
    fn a_single_array_feeds_a_single_input() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npy");
        ndarray_npy::write_npy(&path, &Array2::<i64>::from_elem((4, 3), 7)).unwrap();
        let tokens = [Value::fixed("tokens", ElementType::I32, &[1, 3])];
        let samples = Samples::read(&path, &tokens, &ReadOptions::default()).unwrap();
        assert_eq!(samples.inputs()[0].1.data(), &Data::I32(vec![7; 12]));
        let two = [tokens[0].clone(), Value::named("mask")];
        let error = Samples::read(&path, &two, &ReadOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        let scaled = ReadOptions { scale: Some(vec![1.0]), ..ReadOptions::default() };
        let error = Samples::read(&path, &tokens, &scaled).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        let small = ReadOptions { memory_limit: Some(95), ..ReadOptions::default() };
        let error = Samples::read(&path, &tokens, &small).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Memory);
    }

    #[test]
    fn hosts_hand_over_tensors() {
        let x = Tensor::f32([2, 2], vec![1., 2., 3., 4.]);
        let y = Labels::new(Tensor::i64([2], vec![0, 1])).unwrap();
        let samples = Samples::from_tensors(vec![("x".into(), x.clone())], Some(y)).unwrap();
        assert_eq!(samples.rows(), 2);
        let y = Labels::new(Tensor::i64([3], vec![0, 1, 2])).unwrap();
        let error = Samples::from_tensors(vec![("x".into(), x)], Some(y)).unwrap_err();
        assert!(error.to_string().contains("3"), "{error}");
        let bad = Tensor::f32([2, 2], vec![1., 2., f32::NAN, 4.]);
        let error = Samples::from_tensors(vec![("x".into(), bad)], None).unwrap_err();
        assert!(error.to_string().contains("row 1"), "{error}");
        assert!(Samples::from_tensors(Vec::new(), None).is_err());
    }

    #[test]
    fn arrays_of_hosts_are_fitted_to_the_inputs() {
        let inputs = [
            Value::fixed("a", ElementType::F32, &[1, 1, 2]),
            Value::fixed("b", ElementType::I64, &[1]),
        ];
        let a =
            || ("a".to_string(), Tensor::new([3, 2], Data::U8(vec![0, 1, 2, 3, 4, 5])).unwrap());
        let b = || ("b".to_string(), Tensor::new([3], Data::I32(vec![7, 8, 9])).unwrap());
        let plain = ReadOptions { scale: Some(vec![2.0]), ..ReadOptions::default() };
        let fit = |arrays| Samples::fit(arrays, None, &inputs, &plain);
        let samples = fit(vec![b(), a()]).unwrap();
        assert_eq!(
            samples.inputs()[0],
            ("a".into(), { Tensor::f32([3, 1, 2], vec![0., 2., 4., 6., 8., 10.]) })
        );
        assert_eq!(samples.inputs()[1].1.data(), &Data::I64(vec![7, 8, 9]));
        for (arrays, word) in
            [(vec![a()], "missing"), (vec![a(), a(), b()], "twice"), (vec![b()], "missing")]
        {
            assert!(fit(arrays).unwrap_err().to_string().contains(word), "{word}");
        }
        let other = ("c".to_string(), b().1);
        assert!(fit(vec![a(), b(), other]).unwrap_err().to_string().contains("no input \"c\""));
        let empty = ("b".to_string(), Tensor::i64([0], Vec::new()));
        assert!(fit(vec![a(), empty]).unwrap_err().to_string().contains("no samples"));
    }

    #[test]
    fn numbers_and_fractions() {
        assert_eq!(parse_scale("1/255").unwrap(), [1.0 / 255.0]);
        assert_eq!(parse_scale("0.5, 1e-3,2").unwrap(), [0.5, 1e-3, 2.0]);
        for bad in ["", "1/0", "x", "1,,2", "nan", "1/2/3"] {
            assert_eq!(parse_scale(bad).unwrap_err().kind(), ErrorKind::Usage, "{bad:?}");
        }
    }
}
