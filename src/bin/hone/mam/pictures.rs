//! Rows of a model with an image shape as one PNG: a grid of samples, or a line for each row of
//! evidence with its completions behind it.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use hone::atomic_file::{AtomicFile, check_output};
use hone::error::{Error, ErrorKind, Result};
use hone::mam::Rows;
use hone::mam::contract::Contract;
use image::{ImageFormat, Rgb, RgbImage};

use super::usage;

/// Small pictures are enlarged to about this many pixels.
const SIDE: usize = 48;
/// Between pictures.
const GAP: usize = 3;
/// The longest side of the whole.
const MOST: usize = 1 << 14;

const BACKGROUND: Rgb<u8> = Rgb([40, 40, 48]);
/// A site without a value.
const MISSING: Rgb<u8> = Rgb([120, 70, 130]);
/// The least and the greatest value that was drawn.
const DRAWN: [[f64; 3]; 2] = [[20.0, 50.0, 120.0], [255.0, 180.0, 60.0]];

/// A grid of pictures in the making.
pub struct Pictures<'a> {
    path: PathBuf,
    cardinalities: &'a [usize],
    evidence: &'a Rows,
    width: usize,
    /// Pixels of the image per site.
    scale: usize,
    /// Pictures from one to the next.
    step: [usize; 2],
    columns: usize,
    image: RgbImage,
}

impl<'a> Pictures<'a> {
    /// Room for `count` pictures of each row of evidence. Errors (`Usage`): the model's sites are
    /// no image, or the pictures are too many for one.
    pub fn new(
        path: &Path,
        contract: &'a Contract,
        evidence: &'a Rows,
        count: u64,
    ) -> Result<Pictures<'a>> {
        let shape = contract.shape.as_deref().unwrap_or_default();
        // One channel in front or behind is none.
        let sides: Vec<usize> = match shape {
            [1, h, w] | [h, w, 1] | [h, w] => vec![*h, *w],
            _ => {
                return Err(usage(format!(
                    "--png: the model's sites are no image: mam.shape is {shape:?}, not a height \
                     and a width"
                )));
            }
        };
        check_output(path, &[])?;
        let (height, width) = (sides[0], sides[1]);
        let scale = (SIDE / height.max(width)).max(1);
        let step = [width * scale + GAP, height * scale + GAP];
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let known = evidence.cells().iter().any(|&v| v >= 0);
        // Completions stand behind their evidence; samples of nothing make a square.
        let (columns, lines) = match known || evidence.len() > 1 {
            true => (count.saturating_add(1), evidence.len()),
            false => {
                let side = (count as f64).sqrt().ceil() as usize;
                (side, count.div_ceil(side.max(1)))
            }
        };
        let pixels = |pictures: usize, step: usize| {
            pictures.checked_mul(step).map(|n| n + GAP).filter(|&n| n <= MOST)
        };
        let (Some(wide), Some(high)) = (pixels(columns, step[0]), pixels(lines, step[1])) else {
            return Err(usage(format!(
                "--png: {columns} x {lines} pictures are too many for one file; use --limit or a \
                 smaller --count"
            )));
        };
        let image = RgbImage::from_pixel(wide as u32, high as u32, BACKGROUND);
        let cardinalities = &contract.cardinalities;
        let path = path.to_path_buf();
        let mut pictures =
            Pictures { path, cardinalities, evidence, width, scale, step, columns, image };
        if known || evidence.len() > 1 {
            (0..evidence.len()).for_each(|row| pictures.paint(row * columns, row, None));
        }
        Ok(pictures)
    }

    /// Puts the picture of a draw in its place.
    pub fn draw(&mut self, row: usize, number: u64, values: &[i64]) {
        let number = number as usize;
        let alone = self.evidence.len() == 1 && self.evidence.row(0).iter().all(|&v| v < 0);
        let place = if alone { number } else { row * self.columns + number + 1 };
        self.paint(place, row, Some(values));
    }

    fn paint(&mut self, place: usize, row: usize, values: Option<&[i64]>) {
        let (column, line) = (place % self.columns, place / self.columns);
        let given = self.evidence.row(row);
        let plain = given.iter().all(|&v| v < 0);
        for (site, &evidence) in given.iter().enumerate() {
            let most = (self.cardinalities[site].max(2) - 1) as f64;
            let share = |v: i64| (v as f64 / most).clamp(0.0, 1.0);
            let grey = |v: i64| Rgb([(255.0 * share(v)) as u8; 3]);
            let color = match values.map(|values| values[site]) {
                _ if evidence >= 0 => grey(evidence),
                Some(drawn) if drawn >= 0 && plain => grey(drawn),
                Some(drawn) if drawn >= 0 => {
                    let mix =
                        |c: usize| (DRAWN[0][c] + share(drawn) * (DRAWN[1][c] - DRAWN[0][c])) as u8;
                    Rgb([mix(0), mix(1), mix(2)])
                }
                _ => MISSING,
            };
            let x = GAP + column * self.step[0] + site % self.width * self.scale;
            let y = GAP + line * self.step[1] + site / self.width * self.scale;
            for (dx, dy) in (0..self.scale).flat_map(|dy| (0..self.scale).map(move |dx| (dx, dy))) {
                self.image.put_pixel((x + dx) as u32, (y + dy) as u32, color);
            }
        }
    }

    /// Writes the file, whole or not at all.
    pub fn save(self) -> Result<()> {
        let mut bytes = Cursor::new(Vec::new());
        self.image.write_to(&mut bytes, ImageFormat::Png).map_err(|e| {
            let what = format!("{}: the picture cannot be written: {e}", self.path.display());
            Error::new(ErrorKind::Io, what)
        })?;
        let mut file = AtomicFile::create(&self.path)?;
        file.append(bytes.get_ref())?;
        file.commit()
    }
}
