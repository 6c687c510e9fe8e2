//! A loaded marginalization model: its halves θ and φ, what they agree on, and log Z.
//!
//! A graph with both outputs is split by what each depends on, because ONNX Runtime computes every
//! output whatever is asked for. log Z = f_θ(all missing) is computed anew on loading, so that
//! log p(x_S) = f_θ(x_S) − log Z is exact for the file at hand.

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use crate::cancel::Cancel;
use crate::error::{Context, Result, bail, error};
use crate::mam::chain::Orders;
use crate::mam::contract::{Contract, Kind, LOG_P, LOGITS, SITE_LOG_P, Trained, ZKind};
use crate::mam::half::{BatchEffect, Found, Half, LoadOptions};
use crate::mam::kept::Kept;
use crate::mam::rows::Distinct;
use crate::onnx::{Graph, Model};
use crate::sys::Crew;

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
    pub(crate) kept: Kept,
}

/// An answer for each row.
pub(crate) type Answers<T> = Vec<Result<T>>;

/// A site of a distinct row at which φ is wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Want {
    pub row: u32,
    pub site: u32,
}

/// The numbers of wants by their rows.
#[derive(Debug, Default)]
pub(crate) struct ByRow {
    order: Vec<u32>,
    /// Where the wants of each row end in that.
    ends: Vec<u32>,
}

impl ByRow {
    /// Of these wants, whose rows are below `rows`; the memory is kept.
    pub fn sort(&mut self, wants: &[Want], rows: usize) {
        let ByRow { order, ends } = self;
        ends.clear();
        ends.resize(rows + 1, 0);
        wants.iter().for_each(|want| ends[want.row as usize + 1] += 1);
        (0..rows).for_each(|row| ends[row + 1] += ends[row]);
        order.clear();
        order.resize(wants.len(), 0);
        // What says where a row begins moves on to where it ends.
        for (w, want) in wants.iter().enumerate() {
            let place = &mut ends[want.row as usize];
            order[*place as usize] = w as u32;
            *place += 1;
        }
    }

    /// Those of a row, in ascending order.
    pub fn of(&self, row: usize) -> &[u32] {
        let start = row.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.order[start as usize..self.ends[row] as usize]
    }
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
            kept: Kept::default(),
        };
        let crew = Arc::new(Crew::new(options.threads.saturating_sub(1)));
        for model in models {
            mam.add(model, options, &crew, cancel).context(|| model.name())?;
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
    fn add(
        &mut self,
        model: &Model,
        options: LoadOptions,
        crew: &Arc<Crew>,
        cancel: &Cancel,
    ) -> Result<()> {
        let contract = Contract::read(model)?;
        let graph = Graph::from_model(model)?;
        contract.check_graph(&graph)?;
        for &output in contract.kind.outputs() {
            let half = Half::load(&graph, &contract, output, options, crew.clone(), cancel)?;
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
        let mut found = Found::default();
        self.find_f_theta(rows, &mut found, cancel)?;
        Ok((0..rows.len()).map(|row| found.at(row)).collect())
    }

    /// The same in memory that is kept.
    pub(crate) fn find_f_theta(
        &self,
        rows: &Distinct,
        found: &mut Found,
        cancel: &Cancel,
    ) -> Result<()> {
        let Some(theta) = &self.theta else {
            bail!(
                Usage,
                "{}: this needs θ (output log_p), which the model lacks; ask φ instead, or give \
                 the file with the marginal half as well",
                self.name
            );
        };
        found.reset(rows.len());
        theta.run(rows, cancel, |row, value| found.set(row, f64::from(value[0])))
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

    /// Rows whose chains are looked at together: several orders have several chains for each.
    pub(crate) fn chained_rows_at_a_time(&self, orders: &Orders) -> usize {
        (self.rows_at_a_time() / orders.count().max(1)).max(1)
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
    pub(crate) fn phi_at<T: Send + Sync>(
        &self,
        rows: &Distinct,
        wants: &[Want],
        cancel: &Cancel,
        each: impl Fn(usize, &[f32]) -> T + Sync,
    ) -> Result<Vec<T>> {
        let mut by_row = ByRow::default();
        by_row.sort(wants, rows.len());
        let (vocab, cards) = (self.contract.vocab, &self.contract.cardinalities);
        let places: Vec<OnceLock<T>> = wants.iter().map(|_| OnceLock::new()).collect();
        self.needed_phi()?.run(rows, cancel, |id, logits| {
            for &w in by_row.of(id) {
                let site = wants[w as usize].site as usize;
                let value = each(w as usize, &logits[site * vocab..][..cards[site]]);
                assert!(places[w as usize].set(value).is_ok(), "each want is in one row");
            }
        })?;
        let found = |place: OnceLock<T>| place.into_inner().expect("each want is in one row");
        Ok(places.into_iter().map(found).collect())
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
