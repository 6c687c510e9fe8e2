//! Rows of values as callers have them, and distinct masked rows as the nets are fed them.
//!
//! A caller's row holds a value in 0..K_i at each site, or −1 where it is missing. Whether it fits
//! the model is decided row by row, so that one bad row does not sink its batch. Before a net runs,
//! equal masked rows become one.

use std::collections::HashMap;

use crate::error::{Result, bail};
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
    pub(crate) fn checked(&self, contract: &Contract) -> Result<Vec<Result<Vec<i32>>>> {
        if self.length != contract.length {
            bail!(Data, "the rows have {} sites, the model has {}", self.length, contract.length);
        }
        Ok(self.cells.chunks_exact(self.length).map(|row| checked(row, contract)).collect())
    }
}

fn checked(row: &[i64], contract: &Contract) -> Result<Vec<i32>> {
    let cell = |(site, (&value, &values)): (usize, (&i64, &usize))| {
        if value != MISSING && !(0..values as i64).contains(&value) {
            bail!(
                Data,
                "site {site}: {value} is no value of this site, which has 0 to {}; -1 is missing",
                values - 1
            );
        }
        Ok(value as i32)
    };
    row.iter().zip(&contract.cardinalities).enumerate().map(cell).collect()
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
#[derive(Debug)]
pub(crate) struct Distinct {
    width: usize,
    cells: Vec<i32>,
    index: HashMap<Box<[i32]>, u32>,
}

impl Distinct {
    /// No rows of `width` cells.
    pub fn new(width: usize) -> Distinct {
        Distinct { width, cells: Vec::new(), index: HashMap::new() }
    }

    /// The number of `row`, which may be there already.
    pub fn insert(&mut self, row: &[i32]) -> u32 {
        if let Some(&id) = self.index.get(row) {
            return id;
        }
        let id = self.len() as u32;
        self.index.insert(row.into(), id);
        self.cells.extend_from_slice(row);
        id
    }

    /// Adds `row` even if it is there already, under a number of its own.
    pub fn push(&mut self, row: &[i32]) -> u32 {
        self.cells.extend_from_slice(row);
        self.len() as u32 - 1
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.cells.len() / self.width
    }

    /// A row by its number.
    pub fn row(&self, id: usize) -> &[i32] {
        &self.cells[id * self.width..][..self.width]
    }

    /// Removes all rows.
    pub fn clear(&mut self) {
        self.cells.clear();
        self.index.clear();
    }
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
    }
}
