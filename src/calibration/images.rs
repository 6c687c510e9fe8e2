//! A folder of PNG and JPEG images as samples: decoded, resized to the model's input, scaled.
//!
//! Labels come from the sub-folder an image is in (sorted by name, counted from 0) or from a
//! `labels.csv` with lines `file,label`. Rows of labelled folders alternate between the classes, so
//! that the first m rows are a balanced choice. Images are stretched to height × width (triangle
//! filter) and brought to grey or RGB by the number of channels the model takes.

use std::fs;
use std::path::{Component, Path, PathBuf};

use image::imageops::FilterType;
use image::{DynamicImage, ImageReader, Limits};

use crate::calibration::fit::{self, Scaling};
use crate::calibration::{ImageLayout, Labels, MemoryLimit, ReadOptions, Samples};
use crate::error::{Context, Result, bail, error};
use crate::onnx::{Dimension, Value};
use crate::tensor::{Data, ElementType, Tensor};

/// Pixels along one side of an image: beyond this it is a bomb or a scan, not a sample.
const MAX_IMAGE_SIDE: u32 = 16_384;
/// What the decoder of one image may allocate.
const MAX_DECODER_BYTES: u64 = 512 << 20;
/// Bytes of a `labels.csv`: some hundred thousand lines.
const MAX_CSV_BYTES: u64 = 64 << 20;

/// Reads the images of `folder` for a model with one image input.
pub(super) fn read(
    folder: &Path,
    inputs: &[Value],
    options: &ReadOptions,
    scaling: &Scaling,
) -> Result<Samples> {
    let [input] = inputs else {
        let names: Vec<&str> = inputs.iter().map(|v| v.name.as_str()).collect();
        bail!(Usage, "images feed one input; this model takes {names:?}: use an .npz archive");
    };
    let frame = Frame::new(input, options)?;
    let mut files = list(folder)?;
    files.truncate(options.limit.unwrap_or(usize::MAX));
    if files.is_empty() {
        bail!(Data, "the folder holds no .png, .jpg or .jpeg images");
    }
    let pixels = frame.height.saturating_mul(frame.width).saturating_mul(frame.channels);
    // The bytes of all images, and the numbers they are converted to.
    let element_bytes = 1 + input.element.map_or(4, ElementType::size) as u64;
    let row_bytes = (pixels as u64).saturating_mul(element_bytes);
    MemoryLimit::new(options).take(files.len() as u64, row_bytes)?;

    let mut data = Vec::with_capacity(files.len() * pixels);
    for file in &files {
        let image = decode(&file.path).context(|| file.path.display().to_string())?;
        frame.append(image, &mut data);
    }
    let tensor = Tensor::new(frame.shape(files.len()), Data::U8(data))?;
    let scaling =
        if input.element == Some(ElementType::U8) { scaling.clone() } else { scaling.for_images() };
    let tensor = fit::fit(tensor, input, &scaling)?;
    let labels: Option<Vec<i64>> = files.iter().map(|f| f.label).collect();
    let labels = labels.map(|l| Labels::new(Tensor::i64([l.len()], l))).transpose()?;
    Samples::from_tensors(vec![(input.name.clone(), tensor)], labels)
}

/// The shape of one image as the model takes it.
struct Frame {
    channels: usize,
    height: usize,
    width: usize,
    layout: ImageLayout,
}

impl Frame {
    fn new(input: &Value, options: &ReadOptions) -> Result<Frame> {
        let Some([_, a, b, c]) = input.shape.as_deref() else {
            bail!(Usage, "input {:?} takes no images: it is not declared with 4 axes", input.name);
        };
        let is_channels = |d: &Dimension| matches!(d, Dimension::Fixed(1 | 3));
        let layout = match options.layout {
            Some(layout) => layout,
            None if is_channels(a) => ImageLayout::ChannelsFirst,
            None if is_channels(c) => ImageLayout::ChannelsLast,
            None => bail!(
                Usage,
                "input {:?} declares neither axis 1 nor axis 3 as 1 or 3 channels: state the layout",
                input.name
            ),
        };
        let (channels, height, width) = match layout {
            ImageLayout::ChannelsFirst => (a, b, c),
            ImageLayout::ChannelsLast => (c, a, b),
        };
        let channels = match channels {
            Dimension::Fixed(n @ (1 | 3)) => *n,
            Dimension::Symbol(_) => 3,
            Dimension::Fixed(n) => {
                bail!(Usage, "input {:?} takes {n} channels; images have 1 or 3", input.name)
            }
        };
        let side = |axis: &Dimension, given: Option<usize>, name: &str| {
            let length = match (axis, given) {
                (Dimension::Fixed(n), None) => *n,
                (Dimension::Fixed(n), Some(g)) if *n == g => *n,
                (Dimension::Symbol(_), Some(g)) => g,
                (Dimension::Fixed(n), Some(g)) => {
                    bail!(Usage, "the model fixes the {name} at {n}, images cannot have {g}")
                }
                (Dimension::Symbol(_), None) => {
                    bail!(Usage, "the model leaves the {name} open: state the image size")
                }
            };
            if length == 0 || length > MAX_IMAGE_SIDE as usize {
                bail!(Usage, "a {name} of {length} pixels is not between 1 and {MAX_IMAGE_SIDE}");
            }
            Ok(length)
        };
        let (given_height, given_width) = options.image_size.unzip();
        Ok(Frame {
            channels,
            height: side(height, given_height, "height")?,
            width: side(width, given_width, "width")?,
            layout,
        })
    }

    fn shape(&self, rows: usize) -> [usize; 4] {
        let Frame { channels, height, width, .. } = *self;
        match self.layout {
            ImageLayout::ChannelsFirst => [rows, channels, height, width],
            ImageLayout::ChannelsLast => [rows, height, width, channels],
        }
    }

    /// Appends the pixels of `image` in the frame's size, colours and order.
    fn append(&self, image: DynamicImage, data: &mut Vec<u8>) {
        let (width, height) = (self.width as u32, self.height as u32);
        let pixels = if self.channels == 1 {
            image::imageops::resize(&image.into_luma8(), width, height, FilterType::Triangle)
                .into_raw()
        } else {
            image::imageops::resize(&image.into_rgb8(), width, height, FilterType::Triangle)
                .into_raw()
        };
        match self.layout {
            ImageLayout::ChannelsLast => data.extend(pixels),
            ImageLayout::ChannelsFirst => {
                for channel in 0..self.channels {
                    data.extend(pixels.iter().skip(channel).step_by(self.channels));
                }
            }
        }
    }
}

/// An image file and its class.
struct ImageFile {
    path: PathBuf,
    label: Option<i64>,
}

/// The images of `folder` in the order of their rows.
fn list(folder: &Path) -> Result<Vec<ImageFile>> {
    let csv = folder.join("labels.csv");
    if csv.is_file() {
        return list_csv(folder, &csv).context(|| "labels.csv");
    }
    let (folders, files) = entries(folder)?;
    if folders.is_empty() {
        return Ok(files.into_iter().map(|path| ImageFile { path, label: None }).collect());
    }
    if let Some(file) = files.first() {
        bail!(
            Data,
            "{} lies beside folders of classes: put every image into a class, or none",
            file.display()
        );
    }
    let mut classes = Vec::new();
    for class in &folders {
        classes.push(entries(class)?.1.into_iter());
    }
    let mut listed = Vec::new();
    let mut before = usize::MAX;
    // One image of each class in turn, until a turn adds none.
    while listed.len() != before {
        before = listed.len();
        for (label, class) in classes.iter_mut().enumerate() {
            listed.extend(class.next().map(|path| ImageFile { path, label: Some(label as i64) }));
        }
    }
    Ok(listed)
}

/// The images that the lines `file,label` of `csv` name; the first line may be a heading.
fn list_csv(folder: &Path, csv: &Path) -> Result<Vec<ImageFile>> {
    let unreadable = |e: std::io::Error| error!(Io, "cannot be read: {e}");
    if csv.metadata().map_err(unreadable)?.len() > MAX_CSV_BYTES {
        bail!(Data, "the file is larger than {} MiB", MAX_CSV_BYTES >> 20);
    }
    let text = fs::read_to_string(csv).map_err(unreadable)?;
    let mut files = Vec::new();
    for (i, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let number = i + 1;
        if line.trim().is_empty() {
            continue;
        }
        let Some((name, label)) = line.rsplit_once(',') else {
            bail!(Data, "line {number} is not `file,label`: {line:?}");
        };
        let (name, label) = (Path::new(name.trim()), label.trim());
        let label = match label.parse::<i64>() {
            Ok(label) => label,
            Err(_) if i == 0 => continue,
            Err(_) => bail!(Data, "line {number}: label {label:?} is not an integer"),
        };
        if !name.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
            bail!(Data, "line {number}: {} leaves the folder", name.display());
        }
        let path = folder.join(name);
        if !path.is_file() {
            bail!(Data, "line {number}: there is no file {}", name.display());
        }
        files.push(ImageFile { path, label: Some(label) });
    }
    Ok(files)
}

/// The sub-folders and the images of `folder`, each sorted by name; hidden ones are left out.
fn entries(folder: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let unreadable = |e: std::io::Error| error!(Io, "{} cannot be read: {e}", folder.display());
    let (mut folders, mut files) = (Vec::new(), Vec::new());
    let mut skipped = 0;
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let hidden = path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
        let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
        if hidden {
            continue;
        } else if path.is_dir() {
            folders.push(path);
        } else if matches!(extension.as_deref(), Some("png" | "jpg" | "jpeg")) {
            files.push(path);
        } else {
            skipped += 1;
        }
    }
    if skipped > 0 {
        log::warn!("{}: {skipped} files are no .png, .jpg or .jpeg", folder.display());
    }
    folders.sort();
    files.sort();
    Ok((folders, files))
}

/// Decodes one file, by what it holds and not by its name, within the limits.
fn decode(path: &Path) -> Result<DynamicImage> {
    let unreadable = |e: std::io::Error| error!(Io, "cannot be read: {e}");
    let mut reader =
        ImageReader::open(path).map_err(unreadable)?.with_guessed_format().map_err(unreadable)?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_IMAGE_SIDE);
    limits.max_image_height = Some(MAX_IMAGE_SIDE);
    limits.max_alloc = Some(MAX_DECODER_BYTES);
    reader.limits(limits);
    reader.decode().map_err(|e| error!(Data, "not a readable image: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayImage, Luma, Rgb, RgbImage};

    fn input(shape: &[usize]) -> Vec<Value> {
        vec![Value::fixed("x", ElementType::F32, shape)]
    }

    fn save(folder: &Path, name: &str, grey: u8) {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        GrayImage::from_pixel(3, 3, Luma([grey])).save(path).unwrap();
    }

    fn read(folder: &Path, shape: &[usize], limit: Option<usize>) -> Result<Samples> {
        let options = ReadOptions { limit, ..ReadOptions::default() };
        Samples::read(folder, &input(shape), &options)
    }

    #[test]
    fn classes_alternate_in_the_order_of_their_names() {
        let folder = tempfile::tempdir().unwrap();
        for (name, grey) in [("b/2.png", 51), ("b/1.png", 102), ("a/9.png", 0), ("c/1.jpg", 255)] {
            save(folder.path(), name, grey);
        }
        fs::write(folder.path().join("a/notes.txt"), "not an image").unwrap();
        let samples = read(folder.path(), &[1, 1, 2, 2], None).unwrap();
        assert_eq!(samples.labels().unwrap().classes().unwrap(), [0, 1, 2, 1]);
        let x = samples.inputs()[0].1.as_f32().unwrap();
        let first: Vec<f32> = x.iter().copied().step_by(4).collect();
        assert_eq!(first, [0.0, 0.4, 1.0, 0.2]);
        assert_eq!(read(folder.path(), &[1, 1, 2, 2], Some(3)).unwrap().rows(), 3);
        save(folder.path(), "stray.png", 0);
        let error = read(folder.path(), &[1, 1, 2, 2], None).unwrap_err();
        assert!(error.to_string().contains("stray.png"), "{error}");
    }

    #[test]
    fn colours_and_layouts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.png");
        RgbImage::from_pixel(4, 4, Rgb([255, 0, 51])).save(path).unwrap();
        let pixels = |shape: &[usize]| {
            let samples = read(folder.path(), shape, None).unwrap();
            assert!(samples.labels().is_none());
            samples.inputs()[0].1.clone()
        };
        let first = pixels(&[1, 3, 1, 2]);
        assert_eq!(first.as_f32().unwrap(), [1.0, 1.0, 0.0, 0.0, 0.2, 0.2]);
        // Axis 1 is no channel count here, so the channels are last.
        let last = pixels(&[1, 2, 1, 3]);
        assert_eq!(last.as_f32().unwrap(), [1.0, 0.0, 0.2, 1.0, 0.0, 0.2]);
    }

    #[test]
    fn a_csv_names_files_and_labels() {
        let folder = tempfile::tempdir().unwrap();
        save(folder.path(), "a.png", 255);
        save(folder.path(), "b,c.png", 0);
        let csv = |text: &str| {
            fs::write(folder.path().join("labels.csv"), text).unwrap();
            read(folder.path(), &[1, 1, 1, 1], None)
        };
        let samples = csv("file,label\nb,c.png,7\na.png, 3\n").unwrap();
        assert_eq!(samples.labels().unwrap().classes().unwrap(), [7, 3]);
        assert_eq!(samples.inputs()[0].1.as_f32().unwrap(), [0.0, 1.0]);
        for (text, part) in [
            ("a.png,1\na.png,x", "line 2: label"),
            ("a.png,1\nnone.png,1", "line 2: there is no file"),
            ("../a.png,1", "leaves the folder"),
            ("a.png", "not `file,label`"),
            ("", "no .png"),
        ] {
            let error = csv(text).unwrap_err().to_string();
            assert!(error.contains(part), "{part:?} is not in {error:?}");
        }
    }

    #[test]
    fn bad_images_and_shapes_are_named() {
        let folder = tempfile::tempdir().unwrap();
        save(folder.path(), "a.png", 1);
        let open = Value {
            shape: Some(["N", "C", "H", "W"].map(|s| Dimension::Symbol(s.into())).to_vec()),
            ..input(&[1, 1, 1, 1])[0].clone()
        };
        let read_as = |value: &Value, options: ReadOptions| {
            Samples::read(folder.path(), std::slice::from_ref(value), &options)
        };
        let error = read_as(&open, ReadOptions::default()).unwrap_err().to_string();
        assert!(error.contains("layout"), "{error}");
        let layout = Some(ImageLayout::ChannelsFirst);
        let options = ReadOptions { layout, ..ReadOptions::default() };
        let error = read_as(&open, options.clone()).unwrap_err().to_string();
        assert!(error.contains("height open"), "{error}");
        let options = ReadOptions { image_size: Some((2, 5)), ..options };
        assert_eq!(read_as(&open, options).unwrap().inputs()[0].1.shape(), [1, 3, 2, 5]);
        assert!(read(folder.path(), &[1, 7, 2, 2], None).is_err());
        assert!(read(folder.path(), &[1, 784], None).is_err());

        let mut bytes = fs::read(folder.path().join("a.png")).unwrap();
        // The width in the header, with a checksum that no longer fits.
        bytes[16..20].copy_from_slice(&0x7fff_ffffu32.to_be_bytes());
        fs::write(folder.path().join("bomb.png"), bytes).unwrap();
        let error = read(folder.path(), &[1, 1, 2, 2], None).unwrap_err().to_string();
        assert!(error.contains("bomb.png"), "{error}");
    }
}
