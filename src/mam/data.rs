//! Rows in and out of files: `.npy` and `.npz` arrays, `.csv` numbers, `.txt` lines of a model with
//! an alphabet.

use std::fmt::Write as _;
use std::path::Path;

use crate::atomic_file::AtomicFile;
use crate::calibration::read_arrays;
use crate::error::{Context, Error, Result, bail, error};
use crate::mam::contract::Contract;
use crate::mam::rows::{MISSING, Rows};
use crate::tensor::{Data, Tensor};

/// Rows as read, and which of their sites are evidence, if the file says so.
#[derive(Clone, Debug)]
pub struct RowData {
    /// The rows.
    pub rows: Rows,
    /// An element for each cell: whether the site is given.
    pub given: Option<Vec<bool>>,
}

/// Reads rows to train a model on, which decide how many sites it has: arrays or `.csv` as for
/// [`read_rows`].
pub fn read_training_rows(
    path: &Path,
    threshold: Option<f64>,
    limit: Option<usize>,
) -> Result<Rows> {
    match path.extension().and_then(|e| e.to_str()) {
        Some("npy" | "npz") => read_array_rows(path, None, threshold, limit),
        Some("csv") => read_text(path, limit, |line| csv_row(line, threshold)),
        _ => Err(no_rows(path, ".npy, .npz and .csv")),
    }
    .map(|data| data.rows)
}

/// Reads rows for a model of `contract`.
///
/// `.npz`: array `x`, and perhaps bool `known` (false hides a value) and bool `given` (evidence);
/// `.npy`: `x` alone. Arrays are `[N, L]` or `[N, ...]` with L elements per row. Integers and bools
/// are values, −1 is missing; floats must be whole numbers, NaN is missing; with `threshold`,
/// numbers become 1 from it on and 0 below. `.csv`: a row per line, missing is empty, `?` or −1.
/// `.txt`: a row per line, one text of the alphabet after the other, `?` is missing unless it is in
/// the alphabet; short lines are filled with `mam.pad_id`. Symbols out of range are no error here;
/// they are one of their row when a query is made.
pub fn read_rows(
    path: &Path,
    contract: &Contract,
    threshold: Option<f64>,
    limit: Option<usize>,
) -> Result<RowData> {
    let extension = path.extension().and_then(|e| e.to_str());
    let data = match extension {
        Some("npy" | "npz") => read_array_rows(path, Some(contract.length), threshold, limit)?,
        Some("csv") => read_text(path, limit, |line| csv_row(line, threshold))?,
        Some("txt") if contract.alphabet.is_some() => {
            read_text(path, limit, |line| text_row(line, contract))?
        }
        Some("txt") => bail!(
            Usage,
            "{}: the model has no alphabet (mam.alphabet), so text cannot be read; use .npy or \
             .csv",
            path.display()
        ),
        _ => return Err(no_rows(path, ".npy, .npz, .csv and .txt")),
    };
    if data.rows.length() != contract.length {
        let (name, n) = (path.display(), data.rows.length());
        bail!(Data, "{name}: rows have {n} sites, the model has {}", contract.length);
    }
    Ok(data)
}

fn no_rows(path: &Path, readable: &str) -> Error {
    error!(Usage, "{}: rows are read from {readable} files", path.display())
}

/// Writes complete rows as an `.npy` array `[N, shape...]`, uint8 where K allows, else int64.
pub fn write_npy(path: &Path, rows: &Rows, contract: &Contract) -> Result<()> {
    let mut shape = vec![rows.len()];
    shape.extend(contract.shape.clone().unwrap_or_else(|| vec![rows.length()]));
    let axes: Vec<String> = shape.iter().map(usize::to_string).collect();
    let axes = format!("({},)", axes.join(", "));
    let small = contract.vocab <= 256 && rows.cells().iter().all(|&v| v >= 0);
    let descr = if small { "|u1" } else { "<i8" };
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {axes}, }}");
    // Magic, version and length take 10 bytes; data begins at a multiple of 64.
    let padding = 63 - (10 + header.len()) % 64;
    header += &" ".repeat(padding);
    header.push('\n');
    let mut file = AtomicFile::create(path)?;
    file.append(b"\x93NUMPY\x01\x00")?;
    file.append(&(header.len() as u16).to_le_bytes())?;
    file.append(header.as_bytes())?;
    let bytes: Vec<u8> = match small {
        true => rows.cells().iter().map(|&v| v as u8).collect(),
        false => rows.cells().iter().flat_map(|v| v.to_le_bytes()).collect(),
    };
    file.append(&bytes)?;
    file.commit()
}

/// The row as text: one line of the alphabet's texts, or numbers with commas.
pub fn row_text(row: &[i64], contract: &Contract) -> String {
    let mut text = String::new();
    for (i, &value) in row.iter().enumerate() {
        match &contract.alphabet {
            Some(alphabet) => {
                let symbol = usize::try_from(value).ok().and_then(|v| alphabet.get(v));
                text.push_str(symbol.map_or("?", String::as_str));
            }
            None => {
                let comma = if i == 0 { "" } else { "," };
                write!(text, "{comma}{value}").expect("a String takes everything");
            }
        }
    }
    text
}

fn read_array_rows(
    path: &Path,
    expected: Option<usize>,
    threshold: Option<f64>,
    limit: Option<usize>,
) -> Result<RowData> {
    let arrays = read_arrays(path, &["x", "known", "given"], limit)?;
    rows_of(arrays, expected, threshold).context(|| path.display().to_string())
}

fn rows_of(
    arrays: Vec<Option<Tensor>>,
    expected: Option<usize>,
    threshold: Option<f64>,
) -> Result<RowData> {
    let mut arrays = arrays.into_iter();
    let mut next = || arrays.next().expect("as many as names");
    let Some(x) = next() else {
        bail!(Data, "the archive has no array \"x\" with the rows");
    };
    let (known, given) = (next(), next());
    let count = x.shape()[0];
    let length: usize = x.shape()[1..].iter().product();
    if let Some(expected) = expected.filter(|&n| n != length) {
        bail!(
            Data,
            "array \"x\" has the shape {:?}: {length} sites per row, the model has {expected}",
            x.shape()
        );
    }
    let flags = |name: &str, tensor: Option<Tensor>| -> Result<Option<Vec<bool>>> {
        let Some(tensor) = tensor else { return Ok(None) };
        if tensor.shape()[0] != count || tensor.len() != x.len() {
            let (a, b) = (tensor.shape(), x.shape());
            bail!(Data, "array {name:?} has the shape {a:?}, \"x\" has {b:?}");
        }
        match tensor.into_data() {
            Data::Bool(flags) => Ok(Some(flags)),
            other => {
                bail!(Data, "array {name:?} must be bool, not {}", other.element_type())
            }
        }
    };
    let (known, given) = (flags("known", known)?, flags("given", given)?);
    let mut rows = Rows::new(length, cells(&x, threshold)?)?;
    if let Some(known) = known {
        rows = rows.masked(&known)?;
    }
    Ok(RowData { rows, given })
}

/// Values of an array.
fn cells(x: &Tensor, threshold: Option<f64>) -> Result<Vec<i64>> {
    let is_float = x.element_type().is_float();
    if threshold.is_none()
        && !is_float
        && let Some(cells) = x.to_i64()
    {
        return Ok(cells);
    }
    let length: usize = x.shape()[1..].iter().product();
    let value = |(i, v): (usize, f64)| {
        cell(v, is_float, threshold)
            .ok_or_else(|| error!(Data, "row {}, site {}: {v} is no value", i / length, i % length))
    };
    x.to_f64().into_iter().enumerate().map(value).collect()
}

/// A number as a value; −1 and, of floats, NaN are missing.
fn cell(v: f64, is_float: bool, threshold: Option<f64>) -> Option<i64> {
    if v == -1.0 || (is_float && v.is_nan()) {
        return Some(MISSING);
    }
    match threshold {
        Some(t) => Some((v >= t).into()),
        None => (v.fract() == 0.0 && v.abs() < 9e15).then_some(v as i64),
    }
}

fn read_text(
    path: &Path,
    limit: Option<usize>,
    row: impl Fn(&str) -> Result<Vec<i64>>,
) -> Result<RowData> {
    rows_of_text(path, limit, row).context(|| path.display().to_string())
}

fn rows_of_text(
    path: &Path,
    limit: Option<usize>,
    row: impl Fn(&str) -> Result<Vec<i64>>,
) -> Result<RowData> {
    let text = std::fs::read_to_string(path).map_err(|e| error!(Io, "cannot be read: {e}"))?;
    let (mut cells, mut length, mut count) = (Vec::new(), None, 0);
    for (number, line) in text.lines().enumerate().take(limit.unwrap_or(usize::MAX)) {
        let values = row(line).context(|| format!("line {}", number + 1))?;
        let expected = *length.get_or_insert(values.len());
        if values.len() != expected {
            let n = values.len();
            bail!(Data, "line {} has {n} sites, the first line has {expected}", number + 1);
        }
        cells.extend(values);
        count += 1;
    }
    match length {
        Some(length) if count > 0 => Ok(RowData { rows: Rows::new(length, cells)?, given: None }),
        _ => bail!(Data, "there are no rows"),
    }
}

fn csv_row(line: &str, threshold: Option<f64>) -> Result<Vec<i64>> {
    let value = |(site, field): (usize, &str)| match field.trim() {
        "" | "?" => Ok(MISSING),
        field => field
            .parse::<f64>()
            .ok()
            .and_then(|v| cell(v, true, threshold))
            .ok_or_else(|| error!(Data, "site {site}: {field:?} is no value")),
    };
    line.split(',').enumerate().map(value).collect()
}

fn text_row(line: &str, contract: &Contract) -> Result<Vec<i64>> {
    let alphabet = contract.alphabet.as_ref().expect("the caller looked");
    let mut row = Vec::new();
    let mut rest = line;
    while !rest.is_empty() {
        // The longest text that fits.
        let fits = alphabet.iter().enumerate().filter(|(_, t)| !t.is_empty());
        let best = fits.filter(|(_, t)| rest.starts_with(t.as_str())).max_by_key(|(_, t)| t.len());
        match best {
            Some((value, symbol)) => {
                row.push(value as i64);
                rest = &rest[symbol.len()..];
            }
            None if rest.starts_with('?') => {
                row.push(MISSING);
                rest = &rest[1..];
            }
            None => {
                let symbol = rest.chars().next().expect("not empty");
                bail!(Data, "site {}: {symbol:?} is not in the model's alphabet", row.len());
            }
        }
    }
    if let Some(pad) = contract.pad_id.filter(|_| row.len() < contract.length) {
        row.resize(contract.length, pad as i64);
    }
    if row.len() != contract.length {
        bail!(Data, "it has {} sites, the model has {}", row.len(), contract.length);
    }
    Ok(row)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mam::contract::Kind;

    fn contract() -> Contract {
        let mut c = Contract::new(Kind::Joint, 4, 3);
        c.alphabet = Some(["a", "b", "bb"].map(String::from).to_vec());
        c.shape = Some(vec![2, 2]);
        c
    }

    fn read(name: &str, text: &str, contract: &Contract) -> Result<RowData> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        read_rows(&path, contract, None, None)
    }

    #[test]
    fn text_files_are_read_and_their_lines_named() {
        let mut c = contract();
        let rows = read("r.csv", "0,1,,?\n-1, 2,1,0\n", &c).unwrap().rows;
        assert_eq!(rows.cells(), [0, 1, -1, -1, -1, 2, 1, 0]);
        let rows = read("r.txt", "abb?a\n", &c).unwrap().rows;
        assert_eq!(rows.cells(), [0, 2, -1, 0]);
        assert_eq!(row_text(rows.row(0), &c), "abb?a");
        let message = |name, text: &str, c: &_| read(name, text, c).unwrap_err().to_string();
        assert!(message("r.csv", "0,1,1,0\n0,x,1,0", &c).contains("line 2: site 1: \"x\""));
        assert!(message("r.csv", "0,1\n0,1", &c).contains("2 sites, the model has 4"));
        assert!(message("r.csv", "0,1,0,1\n0,1", &c).contains("line 2 has 2 sites"));
        assert!(message("r.csv", "", &c).contains("no rows"));
        assert!(message("r.txt", "abca", &c).contains("site 2: 'c'"));
        assert!(message("r.txt", "ab", &c).contains("2 sites"));
        c.pad_id = Some(1);
        assert_eq!(read("r.txt", "a", &c).unwrap().rows.cells(), [0, 1, 1, 1]);
        c.alphabet = None;
        assert!(message("r.txt", "ab", &c).contains("alphabet"));
        assert!(message("r.json", "ab", &c).contains(".npy"));
    }

    #[test]
    fn arrays_come_back_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let (c, path) = (contract(), folder.path().join("rows.npy"));
        for cells in [vec![0, 1, 2, 0, 1, 1, 1, 1], vec![-1, 1, 2, 0]] {
            let rows = Rows::new(4, cells).unwrap();
            write_npy(&path, &rows, &c).unwrap();
            assert_eq!(read_rows(&path, &c, None, None).unwrap().rows, rows);
            let stored: Tensor = read_arrays(&path, &["x"], None).unwrap().remove(0).unwrap();
            assert_eq!(stored.shape(), [rows.len(), 2, 2]);
        }
    }

    #[test]
    fn a_file_is_named_once() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["gone.npy", "gone.csv", "gone.txt", "gone.json"] {
            let path = folder.path().join(name);
            let error = read_rows(&path, &contract(), None, None).unwrap_err().to_string();
            assert_eq!(error.matches(name).count(), 1, "{error}");
        }
    }

    #[test]
    fn floats_are_whole_or_missing_or_thresholded() {
        let x = Tensor::f32([1, 4], vec![2.0, f32::NAN, 0.0, -1.0]);
        assert_eq!(cells(&x, None).unwrap(), [2, -1, 0, -1]);
        assert_eq!(cells(&x, Some(1.0)).unwrap(), [1, -1, 0, -1]);
        let x = Tensor::f32([2, 2], vec![0.0, 1.0, 0.0, 0.5]);
        assert!(cells(&x, None).unwrap_err().to_string().contains("row 1, site 1: 0.5"));
        let x = Tensor::new([1, 3], Data::U8(vec![0, 200, 255])).unwrap();
        assert_eq!(cells(&x, Some(128.0)).unwrap(), [0, 1, 1]);
        assert_eq!(cells(&x, None).unwrap(), [0, 200, 255]);
    }
}
