//! Scores of rows in memory of the caller, by way of memory that is kept from call to call: what a
//! server asks again and again must not go to the allocator each time.

use std::ops::Range;
use std::sync::Mutex;

use crate::cancel::Cancel;
use crate::error::{Result, bail};
use crate::mam::chain::{ChainScore, Chains, Orders, not_finite};
use crate::mam::contract::Contract;
use crate::mam::half::Found;
use crate::mam::model::{Mam, parts};
use crate::mam::rows::{Distinct, MISSING, Rows, encode, misfit};

/// Memory beyond this is given back after a call.
const KEPT_BYTES: usize = 128 << 20;

/// Memory that no call is using.
#[derive(Debug, Default)]
pub(crate) struct Kept(Mutex<Vec<Scratch>>);

/// What rows go through, and their answers until there is one for all.
#[derive(Debug)]
struct Scratch {
    /// A row as the nets take it.
    row: Vec<i32>,
    /// By θ: of each row of a part, among the distinct; none of a row that does not fit.
    ids: Vec<Option<u32>>,
    distinct: Distinct,
    found: Found,
    /// f_θ of each row; none of one that does not fit.
    marginals: Vec<Option<f64>>,
    /// By φ.
    chains: Chains,
    orders: Vec<u32>,
    /// log p_φ of a row along each order.
    logs: Vec<f64>,
    /// The score of each row, or a site whose conditional is no number; none of one that does not
    /// fit.
    scores: Vec<Option<std::result::Result<ChainScore, u32>>>,
}

impl Scratch {
    fn new(mam: &Mam) -> Scratch {
        Scratch {
            row: Vec::with_capacity(mam.contract().length),
            ids: Vec::new(),
            distinct: Distinct::new(mam.contract().length),
            found: Found::default(),
            marginals: Vec::new(),
            chains: Chains::new(mam),
            orders: Vec::new(),
            logs: Vec::new(),
            scores: Vec::new(),
        }
    }

    /// About how many bytes it holds.
    fn bytes(&self) -> usize {
        let of_id = size_of::<Option<u32>>() + size_of::<f64>();
        self.distinct.bytes()
            + self.ids.capacity() * of_id
            + self.marginals.capacity() * size_of::<Option<f64>>()
            + self.chains.bytes()
            + self.orders.capacity() * size_of::<u32>()
            + self.scores.capacity() * size_of::<Option<std::result::Result<ChainScore, u32>>>()
    }
}

/// The caller's rows.
#[derive(Clone, Copy)]
struct Cells<'a> {
    cells: &'a [i64],
    known: Option<&'a [u8]>,
    contract: &'a Contract,
}

impl<'a> Cells<'a> {
    fn new(cells: &'a [i64], known: Option<&'a [u8]>, contract: &'a Contract) -> Result<Self> {
        let length = contract.length;
        if !cells.len().is_multiple_of(length) || known.is_some_and(|k| k.len() != cells.len()) {
            bail!(Data, "{} values do not make rows of {length} sites, or masks", cells.len());
        }
        Ok(Cells { cells, known, contract })
    }

    fn count(&self) -> usize {
        self.cells.len() / self.contract.length
    }

    /// The values of a row, missing where the mask says so.
    fn row(&self, number: usize) -> impl Iterator<Item = i64> {
        let length = self.contract.length;
        (number * length..(number + 1) * length).map(|at| match self.known {
            Some(known) if known[at] == 0 => MISSING,
            _ => self.cells[at],
        })
    }

    /// Puts a row into `row` as the nets take it, and says whether it fits.
    fn encode(&self, number: usize, row: &mut Vec<i32>) -> bool {
        row.clear();
        encode(self.row(number), self.contract, row)
    }

    /// What is wrong with a row that does not fit.
    fn misfit(&self, number: usize) -> crate::Error {
        misfit(&self.row(number).collect::<Vec<_>>(), self.contract)
    }
}

impl Mam {
    /// log p(x_S) by θ for rows that callers gave: one error per bad row.
    pub fn log_marginal(&self, rows: &Rows, cancel: &Cancel) -> Result<Vec<Result<f64>>> {
        let (length, own) = (rows.length(), self.contract().length);
        if length != own {
            bail!(Data, "the rows have {length} sites, the model has {own}");
        }
        let mut answers = Vec::with_capacity(rows.len());
        self.each_log_marginal(rows.cells(), None, cancel, |answer| answers.push(answer))?;
        Ok(answers)
    }

    /// The same for rows in memory of the caller, whose values are missing wherever `known` is 0,
    /// with `each` called for every row in turn once there are answers for all of them.
    ///
    /// It allocates nothing on this side of ONNX Runtime, once there was a call as large for each
    /// thread that asks at the same time, given a `cancel` that is never raised and rows that fit;
    /// 128 MiB of memory (enough for a million rows) are kept for each of those threads at most.
    pub fn each_log_marginal(
        &self,
        cells: &[i64],
        known: Option<&[u8]>,
        cancel: &Cancel,
        mut each: impl FnMut(Result<f64>),
    ) -> Result<()> {
        let rows = Cells::new(cells, known, self.contract())?;
        self.with_scratch(|scratch| {
            scratch.marginals.clear();
            scratch.marginals.reserve(rows.count());
            for part in parts(rows.count(), self.rows_at_a_time()) {
                self.marginals_of(rows, part, scratch, cancel)?;
            }
            for (number, f) in scratch.marginals.iter().enumerate() {
                each(f.map_or_else(|| Err(rows.misfit(number)), |f| self.normal(f)));
            }
            Ok(())
        })
    }

    /// f_θ of a part of the rows.
    fn marginals_of(
        &self,
        rows: Cells,
        part: Range<usize>,
        scratch: &mut Scratch,
        cancel: &Cancel,
    ) -> Result<()> {
        let Scratch { row, ids, distinct, found, marginals, .. } = scratch;
        distinct.clear();
        ids.clear();
        ids.extend(part.map(|number| rows.encode(number, row).then(|| distinct.insert(row))));
        self.find_f_theta(distinct, found, cancel)?;
        marginals.extend(ids.iter().map(|id| id.map(|id| found.at(id as usize))));
        Ok(())
    }

    /// log p(x_S) by chains of φ over `orders`, or by an ordered net, in the way of
    /// [`Self::each_log_marginal`]. For `Orders::Given` it allocates.
    pub fn each_chain_score(
        &self,
        cells: &[i64],
        known: Option<&[u8]>,
        orders: &Orders,
        cancel: &Cancel,
        mut each: impl FnMut(Result<ChainScore>),
    ) -> Result<()> {
        if !self.has_chains() {
            self.needed_phi()?;
        }
        let rows = Cells::new(cells, known, self.contract())?;
        self.with_scratch(|scratch| {
            orders.write_to(&mut scratch.orders, self)?;
            scratch.scores.clear();
            scratch.scores.reserve(rows.count());
            for part in parts(rows.count(), self.chained_rows_at_a_time(orders)) {
                self.chain_scores_of(rows, part, scratch, cancel)?;
            }
            for (number, score) in scratch.scores.iter().enumerate() {
                each(match score {
                    Some(score) => score.map_err(not_finite),
                    None => Err(rows.misfit(number)),
                });
            }
            Ok(())
        })
    }

    /// Scores of a part of the rows by chains.
    fn chain_scores_of(
        &self,
        rows: Cells,
        part: Range<usize>,
        scratch: &mut Scratch,
        cancel: &Cancel,
    ) -> Result<()> {
        let Scratch { row, chains, orders, logs, scores, .. } = scratch;
        let length = self.contract().length;
        chains.clear();
        let first = scores.len();
        for number in part {
            if !rows.encode(number, row) {
                scores.push(None);
                continue;
            }
            // Until there is one.
            scores.push(Some(Err(0)));
            for order in orders.chunks_exact(length) {
                let known = order.iter().filter(|&&site| row[site as usize] >= 0);
                let steps = known.map(|&site| (site, row[site as usize]));
                self.add_chain(chains, std::iter::repeat_n(-1, length), steps, cancel)?;
            }
        }
        self.end_chains(chains, cancel)?;
        let mut sums = chains.sums().chunks_exact(orders.len() / length);
        for score in scores[first..].iter_mut().flatten() {
            let sums = sums.next().expect("chains for each row that fits");
            logs.clear();
            logs.extend(sums.iter().map_while(|sum| sum.value().ok()));
            *score = match sums.get(logs.len()).map(|sum| sum.value()) {
                Some(Err(site)) => Err(site),
                _ => Ok(ChainScore::new(logs)),
            };
        }
        Ok(())
    }

    /// Does `work` in memory that is kept.
    fn with_scratch(&self, work: impl FnOnce(&mut Scratch) -> Result<()>) -> Result<()> {
        let idle = self.kept.0.lock().expect("no holder panics").pop();
        let mut scratch = idle.unwrap_or_else(|| Scratch::new(self));
        let done = work(&mut scratch);
        if scratch.bytes() <= KEPT_BYTES {
            let mut kept = self.kept.0.lock().expect("no holder panics");
            if kept.len() < self.most_at_once() {
                kept.push(scratch);
            }
        }
        done
    }

    /// Threads that are served at the same time; others wait for them.
    fn most_at_once(&self) -> usize {
        let halves = [&self.theta, &self.phi, &self.ordered].into_iter().flatten();
        halves.map(|half| half.most_at_once()).max().unwrap_or(1)
    }
}
