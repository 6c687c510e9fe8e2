//! A loaded marginalization model: its halves θ and φ, what they agree on, and log Z.
//!
//! A graph with both outputs is split by what each depends on, because ONNX Runtime computes every
//! output whatever is asked for. log Z = f_θ(all missing) is computed anew on loading, so that
//! log p(x_S) = f_θ(x_S) − log Z is exact for the file at hand.

use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;

use crate::cancel::Cancel;
use crate::error::{Context, Result, bail, error};
use crate::mam::contract::{Contract, Kind, LOG_P, LOGITS, SITE_LOG_P, Trained, ZKind};
use crate::mam::half::{BatchEffect, Half, LoadOptions};
use crate::mam::rows::{Distinct, MISSING, Rows, encode, misfit};
use crate::onnx::{Graph, Model};

/// f_θ(∅) may differ by so much from what the file says before that is worth a warning.
const LOG_Z_TOLERANCE: f64 = 1e-3;

/// Masked rows that wait for a net take about this much memory, whatever is asked.
pub(crate) const WINDOW_BYTES: usize = 32 << 20;

/// A window beyond this many rows only costs memory.
pub(crate) const WINDOW_ROWS: usize = 1 << 14;

/// A model that answers. All methods take `&self`: any number of threads may ask at once.
#[derive(Debug)]
pub struct Mam {
    contract: Contract,
    name: String,
    pub(crate) theta: Option<Half>,
    pub(crate) phi: Option<Half>,
    pub(crate) ordered: Option<Half>,
    log_z: Option<f64>,
    warnings: Vec<String>,
    /// Memory that no call is using.
    scratch: Mutex<Vec<Scratch>>,
}

/// What rows that θ scores go through, kept from call to call.
#[derive(Debug)]
struct Scratch {
    /// A row as the nets take it.
    row: Vec<i32>,
    distinct: Distinct,
    /// Of each row, among the distinct; none of a row that does not fit.
    ids: Vec<Option<u32>>,
    /// f_θ of the distinct ones.
    values: Vec<f64>,
}

/// Calls of more rows give their memory back.
const KEPT_ROWS: usize = 1024;

/// An answer for each row.
pub(crate) type Answers<T> = Vec<Result<T>>;

/// A site of a distinct row at which φ is wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Want {
    pub row: u32,
    pub site: u32,
}

impl Mam {
    /// Loads a model from one file, or from the two files of its halves in either order.
    pub fn load(paths: &[impl AsRef<Path>], options: LoadOptions, cancel: &Cancel) -> Result<Mam> {
        let models = paths.iter().map(Model::load).collect::<Result<Vec<_>>>()?;
        Mam::from_models(&models, options, cancel)
    }

    /// The same for models that are in memory.
    pub fn from_models(models: &[Model], options: LoadOptions, cancel: &Cancel) -> Result<Mam> {
        let (first, second) = match models {
            [one] => (one, None),
            [one, two] => (one, Some(two)),
            _ => bail!(Usage, "a marginalization model is one file or two, not {}", models.len()),
        };
        let mut mam = Mam {
            contract: Contract::read(first)?,
            name: first.name().into(),
            theta: None,
            phi: None,
            ordered: None,
            log_z: None,
            warnings: Vec::new(),
            scratch: Mutex::default(),
        };
        for model in models {
            mam.add(model, options, cancel).context(|| model.name())?;
        }
        if let Some(second) = second {
            let other = Contract::read(second)?;
            if let Some(difference) = mam.contract.difference(&other) {
                let (a, b) = (first.name(), second.name());
                bail!(Model, "{a} and {b} are no pair: {difference}");
            }
            mam.merge(other);
        }
        mam.find_log_z(cancel)?;
        Ok(mam)
    }

    /// Loads what the file holds.
    fn add(&mut self, model: &Model, options: LoadOptions, cancel: &Cancel) -> Result<()> {
        let contract = Contract::read(model)?;
        let graph = Graph::from_model(model)?;
        contract.check_graph(&graph)?;
        for &output in contract.kind.outputs() {
            let half = Half::load(&graph, &contract, output, options, cancel)?;
            if let BatchEffect::Rounding(gap) = half.effect {
                self.warnings.push(format!(
                    "{}: {output}: rows are rounded differently by the size of their batch, by up \
                     to {gap:.1e}",
                    model.name()
                ));
            }
            let place = match output {
                LOG_P => &mut self.theta,
                LOGITS => &mut self.phi,
                _ => &mut self.ordered,
            };
            if place.replace(half).is_some() {
                bail!(Usage, "both files have the output {output:?}; give one of each half");
            }
        }
        Ok(())
    }

    /// What the second file knows and the first does not.
    fn merge(&mut self, other: Contract) {
        let c = &mut self.contract;
        if self.theta.is_some() && self.phi.is_some() {
            c.kind = Kind::Joint;
        }
        c.shape = c.shape.take().or(other.shape);
        c.alphabet = c.alphabet.take().or(other.alphabet);
        c.pad_id = c.pad_id.or(other.pad_id);
        c.log_z = c.log_z.or(other.log_z);
        if other.z_kind != ZKind::default() {
            c.z_kind = other.z_kind;
        }
        if other.orders == Trained::Forward {
            c.orders = Trained::Forward;
        }
        for (key, value) in other.notes {
            c.notes.entry(key).or_insert(value);
        }
    }

    fn find_log_z(&mut self, cancel: &Cancel) -> Result<()> {
        if self.theta.is_none() {
            return Ok(());
        }
        let mut rows = Distinct::new(self.contract.length);
        rows.insert(&vec![-1; self.contract.length]);
        let log_z = self.f_theta(&rows, cancel)?[0];
        if !log_z.is_finite() {
            bail!(Numerics, "{}: f_theta(all missing) is {log_z}", self.name);
        }
        if let Some(told) = self.contract.log_z
            && (told - log_z).abs() > LOG_Z_TOLERANCE * told.abs().max(1.0)
        {
            self.warnings.push(format!(
                "mam.log_z is {told}, but f_theta(all missing) is {log_z:.6}, which hone uses; the \
                 net was changed after its metadata was written"
            ));
        }
        self.log_z = Some(log_z);
        Ok(())
    }

    /// What the model says about itself; of two files, what both say together.
    pub fn contract(&self) -> &Contract {
        &self.contract
    }

    /// f_θ(all missing), of a model with θ.
    pub fn log_z(&self) -> Option<f64> {
        self.log_z
    }

    /// What is odd about the model, in words.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Whether θ sums to one by construction, so that it is a likelihood.
    pub fn is_normalised(&self) -> bool {
        self.theta.is_some() && self.contract.z_kind == ZKind::Exact
    }

    /// Whether there is a θ: one-pass log-marginals.
    pub fn has_theta(&self) -> bool {
        self.theta.is_some()
    }

    /// Whether there is a φ: conditionals of any site given any others.
    pub fn has_phi(&self) -> bool {
        self.phi.is_some()
    }

    /// Whether chains can be computed, by φ or by an ordered net.
    pub fn has_chains(&self) -> bool {
        self.phi.is_some() || self.ordered.is_some()
    }

    /// Output, parameters, nodes and batch effect of each half.
    pub fn halves(&self) -> Vec<(&'static str, usize, usize, BatchEffect)> {
        let named = [(LOG_P, &self.theta), (LOGITS, &self.phi), (SITE_LOG_P, &self.ordered)];
        named
            .into_iter()
            .filter_map(|(n, h)| h.as_ref().map(|h| (n, h.parameters, h.nodes, h.effect)))
            .collect()
    }

    /// f_θ of each row, log Z not subtracted; not finite where the net is not.
    pub(crate) fn f_theta(&self, rows: &Distinct, cancel: &Cancel) -> Result<Vec<f64>> {
        let mut values = Vec::with_capacity(rows.len());
        self.add_f_theta(rows, &mut values, cancel)?;
        Ok(values)
    }

    fn add_f_theta(&self, rows: &Distinct, values: &mut Vec<f64>, cancel: &Cancel) -> Result<()> {
        let Some(theta) = &self.theta else {
            bail!(
                Usage,
                "{}: this needs θ (output log_p), which the model lacks; ask φ instead, or give \
                 the file with the marginal half as well",
                self.name
            );
        };
        theta.run(rows, cancel, values, |_, value, found| found.push(f64::from(value[0])))
    }

    /// log p(x_S) by θ for rows that callers gave: one error per bad row.
    pub fn log_marginal(&self, rows: &Rows, cancel: &Cancel) -> Result<Vec<Result<f64>>> {
        let (length, own) = (rows.length(), self.contract.length);
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
    /// For up to 1024 rows on one thread it allocates nothing on this side of ONNX Runtime, once
    /// there was a call as large for each thread that asks at the same time, given a `cancel` that
    /// is never raised and rows that fit.
    pub fn each_log_marginal(
        &self,
        cells: &[i64],
        known: Option<&[u8]>,
        cancel: &Cancel,
        each: impl FnMut(Result<f64>),
    ) -> Result<()> {
        let length = self.contract.length;
        if !cells.len().is_multiple_of(length) || known.is_some_and(|k| k.len() != cells.len()) {
            bail!(Data, "{} values do not make rows of {length} sites, or masks", cells.len());
        }
        let count = cells.len() / length;
        let idle = self.scratch.lock().expect("no holder panics").pop();
        let mut scratch = idle.unwrap_or_else(|| Scratch {
            row: Vec::with_capacity(length),
            distinct: Distinct::with_room(length, count.min(self.rows_at_a_time())),
            ids: Vec::new(),
            values: Vec::new(),
        });
        let most = self.rows_at_a_time();
        let done = if count <= most {
            self.score_in(&mut scratch, cells, known, cancel, each)
        } else {
            let mut answers = Vec::with_capacity(count);
            let done = parts(count, most).try_for_each(|part| {
                let range = part.start * length..part.end * length;
                let known = known.map(|known| &known[range.clone()]);
                self.score_in(&mut scratch, &cells[range], known, cancel, |a| answers.push(a))
            });
            done.map(|()| answers.into_iter().for_each(each))
        };
        if count <= KEPT_ROWS {
            self.scratch.lock().expect("no holder panics").push(scratch);
        }
        done
    }

    /// [`Self::each_log_marginal`] of a part of the rows.
    fn score_in(
        &self,
        scratch: &mut Scratch,
        cells: &[i64],
        known: Option<&[u8]>,
        cancel: &Cancel,
        mut each: impl FnMut(Result<f64>),
    ) -> Result<()> {
        let Scratch { row, distinct, ids, values } = scratch;
        let length = self.contract.length;
        let value = |at: usize| match known {
            Some(known) if known[at] == 0 => MISSING,
            _ => cells[at],
        };
        let rows = (0..cells.len()).step_by(length).map(|start| start..start + length);
        distinct.clear();
        ids.clear();
        ids.extend(rows.clone().map(|range| {
            row.clear();
            encode(range.map(value), &self.contract, row).then(|| distinct.insert(row))
        }));
        values.clear();
        values.reserve(distinct.len());
        self.add_f_theta(distinct, values, cancel)?;
        for (range, id) in rows.zip(ids.iter()) {
            each(match id {
                Some(id) => self.normal(values[*id as usize]),
                None => Err(misfit(&range.map(value).collect::<Vec<_>>(), &self.contract)),
            });
        }
        Ok(())
    }

    pub(crate) fn log_marginals<'r>(
        &self,
        rows: impl ExactSizeIterator<Item = Result<&'r [i32]>>,
        cancel: &Cancel,
    ) -> Result<Vec<Result<f64>>> {
        let mut distinct = Distinct::with_room(self.contract.length, rows.len());
        let ids: Answers<u32> = rows.map(|row| row.map(|row| distinct.insert(row))).collect();
        let values = self.f_theta(&distinct, cancel)?;
        Ok(ids.into_iter().map(|id| self.normal(values[id? as usize])).collect())
    }

    /// Rows that are looked at together, so that memory does not grow with their number.
    pub(crate) fn rows_at_a_time(&self) -> usize {
        (WINDOW_BYTES / (8 * self.contract.length)).clamp(1, WINDOW_ROWS)
    }

    /// f − log Z, or an error when θ gave no number.
    pub(crate) fn normal(&self, f: f64) -> Result<f64> {
        if !f.is_finite() {
            bail!(Numerics, "the net's log_p is {f}");
        }
        Ok(f - self.log_z.expect("a model with θ has it"))
    }

    /// `each(index of the want, logits of the site)` for every want, in their order. The logits
    /// are those of the site's own values.
    pub(crate) fn phi_at<T: Send>(
        &self,
        rows: &Distinct,
        wants: &[Want],
        cancel: &Cancel,
        each: impl Fn(usize, &[f32]) -> T + Sync,
    ) -> Result<Vec<T>> {
        let phi = self.needed_phi()?;
        let mut by_row: Vec<u32> = (0..wants.len() as u32).collect();
        by_row.sort_by_key(|&w| wants[w as usize].row);
        let mut ends = vec![0usize; rows.len() + 1];
        wants.iter().for_each(|w| ends[w.row as usize + 1] += 1);
        (0..rows.len()).for_each(|i| ends[i + 1] += ends[i]);
        let (vocab, cards) = (self.contract.vocab, &self.contract.cardinalities);
        let mut found: Vec<T> = Vec::with_capacity(wants.len());
        phi.run(rows, cancel, &mut found, |id, logits, found| {
            found.extend(by_row[ends[id]..ends[id + 1]].iter().map(|&w| {
                let site = wants[w as usize].site as usize;
                each(w as usize, &logits[site * vocab..][..cards[site]])
            }));
        })?;
        if by_row.is_sorted() {
            return Ok(found);
        }
        let mut slots: Vec<Option<T>> = wants.iter().map(|_| None).collect();
        for (w, value) in by_row.iter().zip(found) {
            slots[*w as usize] = Some(value);
        }
        Ok(slots.into_iter().map(|s| s.expect("each want is in one row")).collect())
    }

    pub(crate) fn needed_phi(&self) -> Result<&Half> {
        self.phi.as_ref().ok_or_else(|| {
            error!(
                Usage,
                "{}: this needs φ (output logits), which the model lacks; ask θ instead, or give \
                 the file with the conditional half as well",
                self.name
            )
        })
    }
}

/// `count` things in ranges of at most `most`.
pub(crate) fn parts(count: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    (0..count).step_by(most).map(move |start| start..(start + most).min(count))
}

/// log Σ exp of the terms, exact for −∞.
pub(crate) fn log_sum_exp(terms: impl Iterator<Item = f64> + Clone) -> f64 {
    let max = terms.clone().fold(f64::NEG_INFINITY, f64::max);
    if !max.is_finite() {
        return max;
    }
    max + terms.map(|t| (t - max).exp()).sum::<f64>().ln()
}

/// log softmax(logits)\[value\]; NaN where the logits are NaN or +∞.
pub(crate) fn log_softmax_at(logits: &[f32], value: usize) -> f64 {
    f64::from(logits[value]) - log_sum_exp(logits.iter().map(|&l| f64::from(l)))
}
