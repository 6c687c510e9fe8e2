//! What energy-based training learns from: log f(x), known up to nothing, for complete rows x.
//!
//! Built in is the Ising model on a torus: log f(x) = K Σ s_i s_j + h Σ s_i with s = 2x − 1 and the
//! sum over each site's right and lower neighbour. Anything else is an ONNX graph.

use std::path::Path;
use std::str::FromStr;
use std::sync::Mutex;

use crate::cancel::Cancel;
use crate::error::{Context, Error, Result, bail, error};
use crate::mam::contract::{Contract, INPUT, Kind, MOST_SITES};
use crate::mam::model::log_sum_exp;
use crate::onnx::{Dimension, Graph, Model, import};
use crate::runtime::{Session, SessionOptions};
use crate::tensor::{ElementType, Tensor};

/// log Z is summed over all states up to so many.
const MOST_STATES: u64 = 1 << 20;

/// The shorter side of the widest torus whose transfer matrix is applied: 2^12 states of a row.
const MOST_WIDTH: usize = 12;

/// Rows in one run of an energy graph.
const BATCH: usize = 256;

/// log f of complete rows.
#[derive(Debug)]
pub enum Energy {
    /// Spins on a torus.
    Ising(Ising),
    /// A graph from `x` int64 `[B, L]`, values counted from 0, to log f, float `[B]`.
    Graph(Box<EnergyGraph>),
}

/// The Ising model on a torus of `rows` × `columns` sites.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ising {
    /// Sites of a column.
    pub rows: usize,
    /// Sites of a row.
    pub columns: usize,
    /// K of each edge.
    pub coupling: f64,
    /// h of each site.
    pub field: f64,
}

/// An energy as an ONNX graph.
#[derive(Debug)]
pub struct EnergyGraph {
    session: Mutex<Session>,
    output: String,
    contract: Contract,
}

impl Energy {
    /// The sites and values that the energy is of, as the contract of a model to train.
    pub fn contract(&self) -> Contract {
        match self {
            Energy::Ising(ising) => {
                let mut c = Contract::new(Kind::Joint, ising.rows * ising.columns, 2);
                c.shape = Some(vec![ising.rows, ising.columns]);
                c
            }
            Energy::Graph(graph) => graph.contract.clone(),
        }
    }

    /// log f of complete rows. Errors (`Numerics`) name the first row whose value is not finite.
    pub fn log_f(&self, rows: &[Vec<i32>], cancel: &Cancel) -> Result<Vec<f64>> {
        let found = match self {
            Energy::Ising(ising) => rows.iter().map(|row| ising.log_f(row)).collect(),
            Energy::Graph(graph) => graph.log_f(rows, cancel)?,
        };
        if let Some(i) = found.iter().position(|f: &f64| !f.is_finite()) {
            bail!(Numerics, "the energy of row {i}, {:?}, is {}", rows[i], found[i]);
        }
        Ok(found)
    }

    /// log Σ_x f(x) where it can be computed: by a transfer matrix for a torus with a side of at
    /// most 12 sites, by enumeration of up to 2^20 states otherwise.
    pub fn log_z(&self, cancel: &Cancel) -> Result<Option<f64>> {
        if let Energy::Ising(ising) = self
            && ising.rows.min(ising.columns) <= MOST_WIDTH
        {
            return Ok(Some(ising.log_z()));
        }
        let contract = self.contract();
        let Some(states) = contract.states().filter(|&n| n <= MOST_STATES) else { return Ok(None) };
        let mut logs = Vec::with_capacity(states as usize);
        for start in (0..states).step_by(BATCH) {
            let codes = start..(start + BATCH as u64).min(states);
            let rows: Vec<Vec<i32>> = codes.map(|code| state(code, &contract)).collect();
            logs.extend(self.log_f(&rows, cancel)?);
        }
        Ok(Some(log_sum_exp(logs.iter().copied())))
    }

    /// What tells this energy from others.
    pub(super) fn identity(&self, cancel: &Cancel) -> Result<String> {
        if let Energy::Ising(ising) = self {
            return Ok(format!("{ising:?}"));
        }
        // A graph is told by what it says of some rows.
        let contract = self.contract();
        let mut random = crate::random::Stream::new(0, 0xe4e);
        let mut draw = |_| contract.cardinalities.iter().map(|&k| random.below(k) as i32).collect();
        let rows: Vec<Vec<i32>> = (0..16).map(&mut draw).collect();
        Ok(format!("{:?}", self.log_f(&rows, cancel)?))
    }
}

/// The complete row with this number.
fn state(mut code: u64, contract: &Contract) -> Vec<i32> {
    let mut digit = |&k: &usize| {
        let value = (code % k as u64) as i32;
        code /= k as u64;
        value
    };
    contract.cardinalities.iter().map(&mut digit).collect()
}

impl Ising {
    fn log_f(&self, row: &[i32]) -> f64 {
        let spin = |r: usize, c: usize| {
            f64::from(2 * row[r % self.rows * self.columns + c % self.columns] - 1)
        };
        let (mut edges, mut sites) = (0.0, 0.0);
        for r in 0..self.rows {
            for c in 0..self.columns {
                edges += spin(r, c) * (spin(r, c + 1) + spin(r + 1, c));
                sites += spin(r, c);
            }
        }
        self.coupling * edges + self.field * sites
    }

    /// log tr T^n with T between neighbouring lines of w sites, T = D^½ V D^½: D is diagonal,
    /// within
    /// a line; V = ⊗ (e^K e^−K; e^−K e^K), between lines, is applied one site at a time.
    fn log_z(&self) -> f64 {
        let (w, n) = (self.rows.min(self.columns), self.rows.max(self.columns));
        let spin = |state: usize, i: usize| f64::from(2 * (state >> (i % w) & 1) as i32 - 1);
        let half = |s: usize| {
            let edges: f64 = (0..w).map(|i| spin(s, i) * spin(s, i + 1)).sum();
            let sites: f64 = (0..w).map(|i| spin(s, i)).sum();
            0.5 * (self.coupling * edges + self.field * sites)
        };
        let halves: Vec<f64> = (0..1 << w).map(half).collect();
        let top = halves.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let diagonal: Vec<f64> = halves.iter().map(|h| (h - top).exp()).collect();
        // Everything relative to the largest: e^|K| between sites.
        let k = self.coupling.abs();
        let (equal, unequal) = ((self.coupling - k).exp(), (-self.coupling - k).exp());
        let mut terms = Vec::with_capacity(1 << w);
        let mut v = vec![0.0; 1 << w];
        for start in 0..1 << w {
            v.fill(0.0);
            v[start] = 1.0;
            let mut log = 0.0;
            for _ in 0..n {
                v.iter_mut().zip(&diagonal).for_each(|(v, d)| *v *= d);
                for bit in (0..w).map(|i| 1usize << i) {
                    for low in (0..1 << w).filter(|s| s & bit == 0) {
                        let (a, b) = (v[low], v[low | bit]);
                        v[low] = equal * a + unequal * b;
                        v[low | bit] = unequal * a + equal * b;
                    }
                }
                v.iter_mut().zip(&diagonal).for_each(|(v, d)| *v *= d);
                let largest = v.iter().copied().fold(0.0, f64::max);
                log += largest.ln();
                v.iter_mut().for_each(|v| *v /= largest);
            }
            terms.push(log + v[start].ln());
        }
        log_sum_exp(terms.iter().copied()) + n as f64 * (2.0 * top + w as f64 * k)
    }
}

/// `10x10,coupling=0.2,field=0.2`
impl FromStr for Ising {
    type Err = Error;

    fn from_str(text: &str) -> Result<Ising> {
        let wrong = || {
            error!(Usage, "{text:?} is no Ising model; write such as 10x10,coupling=0.2,field=0.2")
        };
        let mut parts = text.split(',');
        let (rows, columns) =
            parts.next().and_then(|s| s.trim().split_once('x')).ok_or_else(wrong)?;
        let side = |s: &str| s.parse().ok().filter(|n| (1..=1000).contains(n)).ok_or_else(wrong);
        let mut ising =
            Ising { rows: side(rows)?, columns: side(columns)?, coupling: 0.0, field: 0.0 };
        for part in parts {
            let (key, value) = part.split_once('=').ok_or_else(wrong)?;
            let number: f64 = value.trim().parse().map_err(|_| wrong())?;
            match key.trim() {
                _ if number.is_nan() || number.abs() > 1e3 => return Err(wrong()),
                "coupling" => ising.coupling = number,
                "field" => ising.field = number,
                _ => return Err(wrong()),
            }
        }
        Ok(ising)
    }
}

impl EnergyGraph {
    /// Loads a graph. The sites are the second axis of its input, or `mam.length` of its metadata;
    /// each has as many values as `values` says (one number for all sites or one for each), or the
    /// metadata. Runs it on a few rows; errors say what does not fit.
    pub fn load(path: &Path, values: &[usize], cancel: &Cancel) -> Result<EnergyGraph> {
        let model = Model::load(path)?;
        EnergyGraph::from_model(&model, values, cancel).context(|| path.display().to_string())
    }

    /// The same of a model in memory.
    pub fn from_model(model: &Model, values: &[usize], cancel: &Cancel) -> Result<EnergyGraph> {
        let graph = import(model)?;
        let (input, output) = match (graph.inputs.as_slice(), graph.outputs.as_slice()) {
            ([input], [output]) => (input, output),
            (inputs, outputs) => bail!(
                Model,
                "an energy has one input, x, and one output, log f; this graph has {} and {}",
                inputs.len(),
                outputs.len()
            ),
        };
        if input.name != INPUT || input.element.is_some_and(|e| e != ElementType::I64) {
            bail!(Model, "input {:?} should be \"x\", int64 [B, L]", input.name);
        }
        let told = |key: &str| {
            let found = model.proto.metadata_props.iter().find(|p| p.key.as_deref() == Some(key));
            found.and_then(|p| p.value.clone())
        };
        let contract = contract(&graph, values, told)?;
        let options = SessionOptions::default();
        let session = Mutex::new(Session::of_graph(&graph, &options)?);
        let energy = EnergyGraph { session, output: output.name.clone(), contract };
        // All zeros, and the largest values.
        let last: Vec<i32> = energy.contract.cardinalities.iter().map(|&k| k as i32 - 1).collect();
        let rows = [vec![0; last.len()], last];
        let together = energy.log_f(&rows, cancel)?;
        for (i, row) in rows.iter().enumerate() {
            let alone = energy.log_f(std::slice::from_ref(row), cancel)?[0];
            if !alone.is_finite() {
                bail!(Numerics, "the energy of row {row:?} is {alone}");
            }
            if (alone - together[i]).abs() > 1e-4 * alone.abs().max(1.0) {
                bail!(Model, "the energy of a row depends on the rows it is batched with");
            }
        }
        Ok(energy)
    }

    fn log_f(&self, rows: &[Vec<i32>], cancel: &Cancel) -> Result<Vec<f64>> {
        let length = self.contract.length;
        let mut session = self.session.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut found = Vec::with_capacity(rows.len());
        for rows in rows.chunks(BATCH) {
            let cells = rows.iter().flatten().map(|&v| i64::from(v)).collect();
            let x = Tensor::i64([rows.len(), length], cells);
            let outputs = session.run([(INPUT, &x)], cancel)?;
            let (shape, values) = outputs.f32(&self.output)?;
            if values.len() != rows.len() {
                let n = rows.len();
                bail!(Model, "output {:?} has the shape {shape:?} for {n} rows", self.output);
            }
            found.extend(values.iter().map(|&v| f64::from(v)));
        }
        Ok(found)
    }
}

/// The sites of an energy graph and how many values they have.
fn contract(
    graph: &Graph,
    values: &[usize],
    told: impl Fn(&str) -> Option<String>,
) -> Result<Contract> {
    let declared = graph.inputs[0].shape.as_ref();
    if declared.is_some_and(|s| s.len() != 2) {
        bail!(Model, "input \"x\" should have two axes, [B, L]");
    }
    let length = match declared.map(|s| &s[1]) {
        Some(Dimension::Fixed(n)) => *n,
        _ => told("mam.length").and_then(|t| t.trim().parse().ok()).ok_or_else(|| {
            error!(Model, "neither the shape of input \"x\" nor mam.length says how many sites")
        })?,
    };
    if length == 0 || length > MOST_SITES {
        bail!(Model, "{length} sites: from 1 to {MOST_SITES} are possible");
    }
    let number = |key: &str| told(key).and_then(|t| t.trim().parse::<usize>().ok());
    let list = told("mam.cardinalities").map(|t| serde_json::from_str::<Vec<usize>>(&t));
    let cardinalities = match (values, list, number("mam.vocab")) {
        ([], Some(Ok(list)), _) => list,
        ([], Some(Err(e)), _) => bail!(Model, "metadata mam.cardinalities is no list: {e}"),
        ([], None, Some(all)) => vec![all; length],
        ([], None, None) => bail!(
            Usage,
            "how many values has a site? Say it in the options, or by mam.vocab or \
             mam.cardinalities in the metadata of the energy"
        ),
        ([all], ..) => vec![*all; length],
        (each, ..) => each.to_vec(),
    };
    let vocab = cardinalities.iter().copied().max().unwrap_or(0);
    if cardinalities.len() != length || cardinalities.contains(&0) || vocab > 1 << 16 {
        let n = cardinalities.len();
        bail!(Usage, "{n} numbers of values, up to {vocab}, do not fit {length} sites");
    }
    let mut contract = Contract::new(Kind::Joint, length, vocab);
    contract.cardinalities = cardinalities;
    Ok(contract)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_enumeration(ising: Ising) -> f64 {
        let contract = Energy::Ising(ising).contract();
        let all = (0..contract.states().unwrap()).map(|code| ising.log_f(&state(code, &contract)));
        let logs: Vec<f64> = all.collect();
        log_sum_exp(logs.iter().copied())
    }

    #[test]
    fn the_transfer_matrix_sums_all_states() {
        let cancel = Cancel::new();
        for (rows, columns) in [(4, 4), (3, 5), (5, 3), (2, 3), (1, 4), (4, 2)] {
            for (coupling, field) in [(0.2, 0.2), (-0.7, 0.4), (0.0, 0.0), (1.5, -2.0)] {
                let ising = Ising { rows, columns, coupling, field };
                let (sum, found) = (by_enumeration(ising), Energy::Ising(ising).log_z(&cancel));
                let found = found.unwrap().unwrap();
                assert!(
                    (found - sum).abs() < 1e-10 * sum.abs().max(1.0),
                    "{ising:?} {found} {sum}"
                );
            }
        }
    }

    #[test]
    fn known_values_are_met() {
        let ising: Ising = "4x4,coupling=0.2,field=0.2".parse().unwrap();
        assert!((ising.log_z() - 12.59850260).abs() < 1e-8);
        let ising: Ising = "10x10,coupling=0.2,field=0.2".parse().unwrap();
        assert!((ising.log_z() - 78.68805619).abs() < 1e-8, "{}", ising.log_z());
    }

    #[test]
    fn what_is_no_ising_model_is_refused() {
        for text in ["", "4", "4x", "0x4", "4x4,coupling", "4x4,spin=1", "4x4,field=nan"] {
            let error = text.parse::<Ising>().unwrap_err();
            assert!(error.to_string().contains("10x10,coupling=0.2"), "{error}");
        }
    }
}
