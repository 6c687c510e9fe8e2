//! Rows of values as callers have them, and distinct masked rows as the nets are fed them.
//!
//! A caller's row holds a value in 0..K_i at each site, or −1 where it is missing. Whether it fits
//! the model is decided row by row, so that one bad row does not sink its batch. Before a net runs,
//! equal masked rows become one.

use std::ops::Range;

use crate::error::{Error, Result, bail, error};
use crate::mam::contract::Contract;

/// What stands for a missing value in a caller's row.
pub const MISSING: i64 = -1;

/// Rows of L values each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    length: usize,
    cells: Vec<i64>,
}

impl Rows {
    /// Rows of `length` sites from their values, one row after the other; −1 is missing.
    pub fn new(length: usize, cells: Vec<i64>) -> Result<Rows> {
        if length == 0 || !cells.len().is_multiple_of(length) {
            bail!(Data, "{} values do not make rows of {length} sites", cells.len());
        }
        Ok(Rows { length, cells })
    }

    /// `count` rows in which nothing is known.
    pub fn all_missing(length: usize, count: usize) -> Rows {
        Rows { length, cells: vec![MISSING; length * count] }
    }

    /// The same rows with values missing wherever `known` is false.
    pub fn masked(mut self, known: &[bool]) -> Result<Rows> {
        if known.len() != self.cells.len() {
            bail!(
                Data,
                "the mask has {} elements, the rows have {}",
                known.len(),
                self.cells.len()
            );
        }
        let hidden = self.cells.iter_mut().zip(known).filter(|(_, known)| !**known);
        hidden.for_each(|(cell, _)| *cell = MISSING);
        Ok(self)
    }

    /// The rows to learn from, and every `every`th, which is held out.
    ///
    /// Error of kind `Usage` when there are fewer than `every`.
    pub fn split(&self, every: usize) -> Result<(Rows, Rows)> {
        if self.len() < every {
            bail!(Usage, "{} rows are too few to hold some out; give rows for that", self.len());
        }
        let pick = |held: bool| {
            let chosen = (0..self.len()).filter(|r| r.is_multiple_of(every) == held);
            Rows::new(self.length, chosen.flat_map(|r| self.row(r).iter().copied()).collect())
        };
        Ok((pick(false)?, pick(true)?))
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.cells.len() / self.length
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// L.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The values of a row.
    pub fn row(&self, index: usize) -> &[i64] {
        &self.cells[index * self.length..][..self.length]
    }

    /// All values, row after row.
    pub fn cells(&self) -> &[i64] {
        &self.cells
    }

    /// The rows of a range.
    pub fn slice(&self, rows: std::ops::Range<usize>) -> Rows {
        let cells = self.cells[rows.start * self.length..rows.end * self.length].to_vec();
        Rows { length: self.length, cells }
    }

    /// Each row as the nets take it, or what is wrong with it (`Data`, naming the site).
    pub(crate) fn checked(&self, contract: &Contract) -> Result<Checked> {
        self.checked_part(0..self.len(), contract)
    }

    /// The same for a range of the rows.
    pub(crate) fn checked_part(&self, part: Range<usize>, contract: &Contract) -> Result<Checked> {
        let length = self.length;
        if length != contract.length {
            bail!(Data, "the rows have {length} sites, the model has {}", contract.length);
        }
        let cells = &self.cells[part.start * length..part.end * length];
        let mut checked =
            Checked { width: length, cells: Vec::with_capacity(cells.len()), bad: Vec::new() };
        for (r, row) in cells.chunks_exact(length).enumerate() {
            if !encode(row.iter().copied(), contract, &mut checked.cells) {
                checked.bad.push((r, misfit(row, contract)));
            }
        }
        Ok(checked)
    }
}

/// Adds a row as the nets take it to `cells`; whether all of its values are of their sites. What is
/// wrong is looked up only if something is: see [`misfit`].
pub(crate) fn encode(
    row: impl Iterator<Item = i64>,
    contract: &Contract,
    cells: &mut Vec<i32>,
) -> bool {
    // The compiler makes one pass of this.
    let mut fits = true;
    cells.extend(row.zip(&contract.cardinalities).map(|(value, &values)| {
        fits &= (value.wrapping_add(1) as u64) <= values as u64;
        value as i32
    }));
    fits
}

/// What is wrong with a row that does not fit.
pub(crate) fn misfit(row: &[i64], contract: &Contract) -> Error {
    let fits = |site: &usize| (-1..contract.cardinalities[*site] as i64).contains(&row[*site]);
    let site = (0..row.len()).find(|site| !fits(site)).expect("the caller found one");
    let (value, last) = (row[site], contract.cardinalities[site] - 1);
    error!(
        Data,
        "site {site}: {value} is no value of this site, which has 0 to {last}; -1 is missing"
    )
}

/// Rows as the nets take them; those that do not fit have an error instead.
#[derive(Debug)]
pub(crate) struct Checked {
    width: usize,
    cells: Vec<i32>,
    /// In ascending order of their rows.
    bad: Vec<(usize, Error)>,
}

impl Checked {
    /// How many rows there are, bad ones included.
    pub fn len(&self) -> usize {
        self.cells.len() / self.width
    }

    /// Each row, or its error.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Result<&[i32]>> {
        let mut bad = self.bad.iter().peekable();
        self.cells.chunks_exact(self.width).enumerate().map(move |(r, row)| {
            match bad.next_if(|(b, _)| *b == r) {
                Some((_, e)) => Err(copy(e)),
                None => Ok(row),
            }
        })
    }
}

impl IntoIterator for Checked {
    type Item = Result<Vec<i32>>;
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        let rows: Vec<_> = self.iter().map(|row| row.map(<[i32]>::to_vec)).collect();
        rows.into_iter()
    }
}

/// The same error once more: answers of several kinds may rest on one bad row.
pub(crate) fn copy(e: &Error) -> Error {
    Error::new(e.kind(), e.to_string())
}

/// The sites at which a row has a value.
pub(crate) fn known_sites(row: &[i32]) -> impl Iterator<Item = usize> {
    row.iter().enumerate().filter(|(_, cell)| **cell >= 0).map(|(site, _)| site)
}

/// The sites at which it has none.
pub(crate) fn free_sites(row: &[i32]) -> impl Iterator<Item = usize> {
    row.iter().enumerate().filter(|(_, cell)| **cell < 0).map(|(site, _)| site)
}

/// Masked rows, each of them once.
///
/// A table of open addresses over the rows themselves, so that a row is stored and hashed once.
#[derive(Debug)]
pub(crate) struct Distinct {
    width: usize,
    cells: Vec<i32>,
    /// Of each row.
    hashes: Vec<u64>,
    /// A row's number + 1, or 0, at 2^n places of which at most half are taken.
    table: Vec<u32>,
}

impl Distinct {
    /// No rows of `width` cells.
    pub fn new(width: usize) -> Distinct {
        Distinct::with_room(width, 8)
    }

    /// No rows, with room for so many.
    pub fn with_room(width: usize, rows: usize) -> Distinct {
        Distinct {
            width,
            cells: Vec::with_capacity(width * rows),
            hashes: Vec::with_capacity(rows),
            table: vec![0; (2 * rows).next_power_of_two().max(16)],
        }
    }

    /// The number of `row`, which may be there already.
    pub fn insert(&mut self, row: &[i32]) -> u32 {
        let hash = hash(row);
        let mut place = self.place(hash);
        while let Some(id) = self.table[place].checked_sub(1) {
            if self.hashes[id as usize] == hash && self.row(id as usize) == row {
                return id;
            }
            place = (place + 1) & (self.table.len() - 1);
        }
        let id = self.push(row);
        self.table[place] = id + 1;
        if 2 * self.hashes.len() > self.table.len() {
            self.grow();
        }
        id
    }

    /// Adds `row` even if it is there already, under a number of its own; [`Self::insert`] does not
    /// find it.
    pub fn push(&mut self, row: &[i32]) -> u32 {
        debug_assert_eq!(row.len(), self.width);
        self.cells.extend_from_slice(row);
        self.hashes.push(hash(row));
        self.hashes.len() as u32 - 1
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// A row by its number.
    pub fn row(&self, id: usize) -> &[i32] {
        &self.cells[id * self.width..][..self.width]
    }

    /// How many bytes it holds.
    pub fn bytes(&self) -> usize {
        let (cells, table) = (self.cells.capacity(), self.table.capacity());
        size_of::<i32>() * (cells + table) + size_of::<u64>() * self.hashes.capacity()
    }

    /// Removes all rows, and keeps the memory. What that costs goes by the rows there are, not by
    /// how many there once were.
    pub fn clear(&mut self) {
        if 8 * self.len() < self.table.len() {
            // A row's place lies behind those of earlier rows only, so the last goes first.
            for id in (0..self.len()).rev() {
                let mut place = self.place(self.hashes[id]);
                while self.table[place] != 0 && self.table[place] != id as u32 + 1 {
                    place = (place + 1) & (self.table.len() - 1);
                }
                self.table[place] = 0;
            }
        } else {
            self.table.fill(0);
        }
        self.cells.clear();
        self.hashes.clear();
    }

    /// Where to look for a hash first: its upper bits, which depend on all others.
    fn place(&self, hash: u64) -> usize {
        (hash >> (64 - self.table.len().trailing_zeros())) as usize
    }

    /// Twice the places, taken in the same order.
    fn grow(&mut self) {
        let mut taken: Vec<u32> = self.table.iter().copied().filter(|&id| id > 0).collect();
        taken.sort_unstable();
        self.table.resize(2 * self.table.len(), 0);
        self.table.fill(0);
        for id in taken {
            let mut place = self.place(self.hashes[id as usize - 1]);
            while self.table[place] > 0 {
                place = (place + 1) & (self.table.len() - 1);
            }
            self.table[place] = id;
        }
    }
}

/// A hash of a row in four interleaved products, a few times faster than a keyed one. Rows made to
/// collide cost comparisons, and no more than a window of rows has of them.
fn hash(row: &[i32]) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |h: u64, pair: &[i32]| {
        let word = u64::from(pair[0] as u32) | u64::from(pair[1] as u32) << 32;
        (h ^ word).wrapping_mul(ODD).rotate_left(29)
    };
    let mut lanes = [1u64, 2, 3, 4];
    let (eights, rest) = row.as_chunks::<8>();
    for eight in eights {
        for (lane, pair) in lanes.iter_mut().zip(eight.chunks_exact(2)) {
            *lane = mix(*lane, pair);
        }
    }
    let ends = rest.iter().fold(row.len() as u64, |h, &v| mix(h, &[v, 0]));
    lanes
        .iter()
        .fold(ends, |h, &lane| (h ^ lane).wrapping_mul(ODD).rotate_left(29))
        .wrapping_mul(ODD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mam::contract::Kind;

    #[test]
    fn bad_rows_are_told_apart_from_good_ones() {
        let mut contract = Contract::new(Kind::Joint, 3, 3);
        contract.cardinalities = vec![3, 2, 3];
        let rows = Rows::new(3, vec![2, 1, -1, 0, 2, 0, -1, -1, -2]).unwrap();
        let checked = rows.checked(&contract).unwrap();
        assert_eq!(checked.len(), 3);
        let checked: Vec<_> = checked.iter().collect();
        assert_eq!(checked[0].as_ref().unwrap(), &[2, 1, -1]);
        let message = |i: usize| checked[i].as_ref().unwrap_err().to_string();
        assert!(message(1).starts_with("site 1: 2 is no value"), "{}", message(1));
        assert!(message(2).starts_with("site 2: -2"), "{}", message(2));
        assert!(Rows::new(3, vec![0; 4]).is_err() && Rows::new(0, vec![]).is_err());
        assert!(Rows::new(2, vec![0; 4]).unwrap().checked(&contract).is_err());
        let masked = rows.masked(&[true, false, true, true, true, true, true, true, true]).unwrap();
        assert_eq!(masked.row(0), [2, -1, -1]);
    }

    #[test]
    fn equal_rows_are_one() {
        let mut distinct = Distinct::new(2);
        let ids = [[1, 2], [2, 1], [1, 2], [-1, 0]].map(|row| distinct.insert(&row));
        assert_eq!(ids, [0, 1, 0, 2]);
        assert_eq!((distinct.len(), distinct.row(2)), (3, &[-1, 0][..]));
        assert_eq!((distinct.push(&[1, 2]), distinct.insert(&[2, 1])), (3, 1));
        distinct.clear();
        assert_eq!((distinct.len(), distinct.insert(&[-1, 0])), (0, 0));
    }

    #[test]
    fn many_rows_are_told_apart_as_a_map_does() {
        use std::collections::HashMap;
        for width in [1, 3, 8, 13] {
            let mut random = crate::random::Stream::new(5, width as u64);
            let (mut distinct, mut map) = (Distinct::new(width), HashMap::new());
            for _ in 0..3000 {
                let row: Vec<i32> = (0..width).map(|_| random.below(3) as i32 - 1).collect();
                let next = map.len() as u32;
                assert_eq!(distinct.insert(&row), *map.entry(row).or_insert(next));
            }
            assert_eq!(distinct.len(), map.len());
        }
    }

    #[test]
    fn nothing_is_left_of_rows_that_were_removed() {
        let mut random = crate::random::Stream::new(6, 0);
        let mut distinct = Distinct::new(2);
        for count in [900, 3, 40, 0, 500, 1] {
            for _ in 0..count {
                let row = [random.below(30) as i32, random.below(30) as i32];
                // Half of them are not to be found.
                if random.below(2) == 0 {
                    distinct.insert(&row)
                } else {
                    distinct.push(&row)
                };
            }
            distinct.clear();
            assert!(
                distinct.cells.is_empty() && distinct.table.iter().all(|&id| id == 0),
                "{count}"
            );
        }
    }

    #[test]
    fn the_values_at_the_ends_of_the_numbers_fit_no_site() {
        let contract = Contract::new(Kind::Joint, 1, 2);
        let cells = vec![i64::MIN, i64::MAX, -2, -1, 0, 1, 2, 1 << 32, (1 << 32) - 1];
        let rows = Rows::new(1, cells).unwrap().checked(&contract).unwrap();
        let fits: Vec<bool> = rows.iter().map(|row| row.is_ok()).collect();
        assert_eq!(fits, [false, false, false, true, true, true, false, false, false]);
    }
}
