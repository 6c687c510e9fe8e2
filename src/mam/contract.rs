//! The MaM contract, version 1: how an ONNX file says that it is a marginalization model.
//!
//! A marginalization model of variables x = (x_1 … x_L), x_i in 0..K_i, has two halves:
//! f_θ(x_S) ≈ log p(x_S) + const for any subset S (output `log_p`), and log-conditionals
//! log p_φ(x_i | x_S) up to a constant per site (output `logits`). A file holds one half or both,
//! takes the masked vector as `x`, and describes itself in its metadata. `docs/mam-contract.md` is
//! the same for those who write such files.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::error::{Context, Error, Result, bail, error};
use crate::mam::rows::Rows;
use crate::onnx::{Dimension, Graph, Model, Value};
use crate::tensor::ElementType;

/// The version of the contract that this is.
pub const VERSION: &str = "1";

/// The masked vector: int64 `[B, L]`, a symbol is its value + `value_offset`, missing is `mask_id`.
pub const INPUT: &str = "x";
/// Optional, bool `[B, L]`: which sites are known. hone derives it from `x`.
pub const KNOWN: &str = "known";
/// Only of kind `ordered`, int64 `[B, L]`: the sites in the order they are predicted in.
pub const ORDER: &str = "order";
/// f_θ, float `[B]`.
pub const LOG_P: &str = "log_p";
/// Unnormalised log p_φ(x_i = k | x_S), float `[B, L, K]`; undefined at known sites.
pub const LOGITS: &str = "logits";
/// Only of kind `ordered`, float `[B, L]`: log p(x_i | the sites before i in the order).
pub const SITE_LOG_P: &str = "site_log_p";

/// More sites or symbols, or more logits per row, than any model has: a limit for hostile files.
pub const MOST_SITES: usize = 1 << 20;
const MOST_LOGITS: usize = 1 << 28;
/// More sides than arrays have.
const MOST_SIDES: usize = 32;

/// Which halves a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// θ alone: `log_p`.
    Marginal,
    /// φ alone: `logits`.
    Conditional,
    /// Both.
    Joint,
    /// Chain terms of a whole order in one pass: `site_log_p`.
    Ordered,
}

/// What f_θ(all missing) is, and so whether f_θ(x) − f_θ(∅) sums to one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ZKind {
    /// Learnt by the net; sums to one only as far as training went.
    #[default]
    Empty,
    /// A constant of the training objective.
    Constant,
    /// The model is normalised by construction.
    Exact,
}

/// The orders that φ was trained for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trained {
    /// Every order.
    #[default]
    Any,
    /// Site 0, 1, 2, ... only.
    Forward,
}

/// What a file says about itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Contract {
    /// Which halves it holds.
    pub kind: Kind,
    /// L, the number of sites.
    pub length: usize,
    /// K, the largest cardinality, the last axis of `logits`.
    pub vocab: usize,
    /// K_i of each site.
    pub cardinalities: Vec<usize>,
    /// What `x` holds at a missing site.
    pub mask_id: i64,
    /// What is added to a value in `x`.
    pub value_offset: i64,
    /// f_θ(∅) when the file was made.
    pub log_z: Option<f64>,
    /// What that is.
    pub z_kind: ZKind,
    /// The orders φ was trained for.
    pub orders: Trained,
    /// How to lay the sites out for display, such as 28 × 28.
    pub shape: Option<Vec<usize>>,
    /// The text of each value.
    pub alphabet: Option<Vec<String>>,
    /// The value that fills short rows.
    pub pad_id: Option<usize>,
    /// Other `mam.` entries: provenance and quality, shown and otherwise unused.
    pub notes: BTreeMap<String, String>,
}

impl Contract {
    /// A contract with the published encoding (missing 0, values from 1) and K values everywhere.
    pub fn new(kind: Kind, length: usize, vocab: usize) -> Contract {
        Contract {
            kind,
            length,
            vocab,
            cardinalities: vec![vocab; length],
            mask_id: 0,
            value_offset: 1,
            log_z: None,
            z_kind: ZKind::default(),
            orders: Trained::default(),
            shape: None,
            alphabet: None,
            pad_id: None,
            notes: BTreeMap::new(),
        }
    }

    /// What rows to learn from say of a model: `values` is how many values sites have, one number
    /// for all or one for each, or nothing for what the rows hold; `shape` the sides that they are
    /// laid out in, or nothing.
    ///
    /// Errors of kind `Usage` for numbers that do not fit the rows.
    pub fn of_rows(rows: &Rows, values: &[usize], shape: &[usize]) -> Result<Contract> {
        let length = rows.length();
        let most = rows.cells().iter().copied().max().unwrap_or(0).max(1) as usize + 1;
        let cardinalities = match values {
            [] => vec![most; length],
            [one] => vec![*one; length],
            each if each.len() == length => each.to_vec(),
            each => bail!(Usage, "values has {} numbers for {length} sites", each.len()),
        };
        let vocab = cardinalities.iter().copied().max().unwrap_or(0);
        if cardinalities.contains(&0) || vocab > 1 << 16 {
            bail!(
                Usage,
                "a site has 1 to 65536 values, not {vocab}; are these rows of values 0, 1, ..., \
                 or numbers that need a threshold?"
            );
        }
        if !shape.is_empty() && shape.iter().product::<usize>() != length {
            bail!(Usage, "shape {shape:?} does not have {length} sites");
        }
        let mut contract = Contract::new(Kind::Joint, length, vocab);
        contract.cardinalities = cardinalities;
        contract.shape = (!shape.is_empty()).then(|| shape.to_vec());
        Ok(contract)
    }

    /// What the metadata of `model` says. Errors (`Model`) name the entry and what it should be.
    pub fn read(model: &Model) -> Result<Contract> {
        let props = model.proto.metadata_props.iter();
        let entries: BTreeMap<&str, &str> = props
            .filter_map(|p| Some((p.key.as_deref()?.strip_prefix("mam.")?, p.value.as_deref()?)))
            .collect();
        parse(entries).context(|| model.name())
    }

    /// The metadata entries that say the same.
    pub fn metadata(&self) -> Vec<(String, String)> {
        let mut entries = vec![
            ("version", VERSION.to_string()),
            ("kind", self.kind.to_string()),
            ("length", self.length.to_string()),
            ("vocab", self.vocab.to_string()),
            ("mask_id", self.mask_id.to_string()),
            ("value_offset", self.value_offset.to_string()),
            ("z_kind", self.z_kind.to_string()),
            ("orders", self.orders.to_string()),
        ];
        if self.cardinalities.iter().any(|&k| k != self.vocab) {
            entries.push(("cardinalities", json(&self.cardinalities)));
        }
        entries.extend(self.log_z.map(|z| ("log_z", z.to_string())));
        entries.extend(self.alphabet.as_ref().map(|a| ("alphabet", json(a))));
        entries.extend(self.pad_id.map(|p| ("pad_id", p.to_string())));
        entries.extend(
            self.shape
                .as_ref()
                .map(|s| ("shape", s.iter().map(usize::to_string).collect::<Vec<_>>().join(","))),
        );
        let mut all: Vec<_> = entries.into_iter().map(|(k, v)| (format!("mam.{k}"), v)).collect();
        all.extend(self.notes.iter().map(|(k, v)| (format!("mam.{k}"), v.clone())));
        all
    }

    /// Checks that the inputs and outputs that `graph` declares are those of the contract.
    pub fn check_graph(&self, graph: &Graph) -> Result<()> {
        let mut allowed = vec![INPUT, KNOWN];
        if self.kind == Kind::Ordered {
            allowed.push(ORDER);
        }
        for (i, input) in graph.inputs.iter().enumerate() {
            if graph.inputs[..i].iter().any(|other| other.name == input.name) {
                bail!(Model, "two inputs are called {:?}", input.name);
            }
            let (name, per_row) = (input.name.as_str(), [self.length]);
            if !allowed.contains(&name) {
                bail!(
                    Model,
                    "input {name:?} is not of the contract, which knows {allowed:?}; `hone mam \
                     adapt` turns masks and steps that a net takes into part of its graph"
                );
            }
            let element = if name == KNOWN { ElementType::Bool } else { ElementType::I64 };
            check_value(input, element, &per_row).context(|| format!("input {name:?}"))?;
        }
        for required in allowed.iter().filter(|&&name| name != KNOWN) {
            if !graph.inputs.iter().any(|i| i.name == **required) {
                let inputs: Vec<&str> = graph.inputs.iter().map(|i| i.name.as_str()).collect();
                bail!(
                    Model,
                    "there is no input {required:?} (int64 [B, {}]); the model takes {inputs:?}",
                    self.length
                );
            }
        }
        for name in self.kind.outputs() {
            let Some(output) = graph.outputs.iter().find(|o| o.name == *name) else {
                let outputs: Vec<&str> = graph.outputs.iter().map(|o| o.name.as_str()).collect();
                bail!(
                    Model,
                    "a model of kind {} has an output {name:?}; this one has {outputs:?}",
                    self.kind
                );
            };
            let (shape, kind) = (self.row_shape(name), output.element);
            if kind.is_some_and(|e| !e.is_float()) {
                bail!(Model, "output {name:?} must be a float tensor, not {}", kind.expect("is"));
            }
            check_value(output, kind.unwrap_or(ElementType::F32), &shape)
                .context(|| format!("output {name:?}"))?;
        }
        Ok(())
    }

    /// The shape of one row of an output.
    pub fn row_shape(&self, output: &str) -> Vec<usize> {
        match output {
            LOGITS => vec![self.length, self.vocab],
            SITE_LOG_P => vec![self.length],
            _ => Vec::new(),
        }
    }

    /// The number of complete rows, if it is a number that can be counted to.
    pub fn states(&self) -> Option<u64> {
        self.cardinalities.iter().try_fold(1u64, |n, &k| n.checked_mul(k as u64))
    }

    /// What must be equal in the two files of a pair, and is not.
    pub(crate) fn difference(&self, other: &Contract) -> Option<String> {
        let (a, b) = (self, other);
        let pair = |c: &Contract| c.notes.get("pair").cloned();
        if a.length != b.length {
            return Some(format!("one has {} sites, the other {}", a.length, b.length));
        }
        if let Some(i) = (0..a.length).find(|&i| a.cardinalities[i] != b.cardinalities[i]) {
            let (x, y) = (a.cardinalities[i], b.cardinalities[i]);
            return Some(format!("site {i} has {x} values in one and {y} in the other"));
        }
        if a.alphabet.is_some() && b.alphabet.is_some() && a.alphabet != b.alphabet {
            return Some("their alphabets differ".into());
        }
        match (pair(a), pair(b)) {
            (Some(x), Some(y)) if x != y => Some(format!("mam.pair is {x:?} and {y:?}")),
            _ => None,
        }
    }
}

impl Kind {
    /// The outputs that hone reads of such a model.
    pub fn outputs(self) -> &'static [&'static str] {
        match self {
            Kind::Marginal => &[LOG_P],
            Kind::Conditional => &[LOGITS],
            Kind::Joint => &[LOG_P, LOGITS],
            Kind::Ordered => &[SITE_LOG_P],
        }
    }
}

/// Gives an enum its names in the metadata.
macro_rules! names {
    ($type:ident: $($name:literal => $variant:ident),+) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $($type::$variant => $name),+ })
            }
        }
        impl FromStr for $type {
            type Err = Error;
            fn from_str(s: &str) -> Result<$type> {
                match s {
                    $($name => Ok($type::$variant),)+
                    _ => bail!(Model, "{s:?} is none of {:?}", [$($name),+]),
                }
            }
        }
    };
}
names!(Kind: "marginal" => Marginal, "conditional" => Conditional, "joint" => Joint,
       "ordered" => Ordered);
names!(ZKind: "empty" => Empty, "constant" => Constant, "exact" => Exact);
names!(Trained: "any" => Any, "forward" => Forward);

/// A value that is declared must be declared as `[B, rest...]` with a free B.
fn check_value(value: &Value, element: ElementType, rest: &[usize]) -> Result<()> {
    if value.element.is_some_and(|e| e != element) {
        bail!(Model, "must be {element}, not {}", value.element.expect("checked"));
    }
    let Some(shape) = &value.shape else { return Ok(()) };
    let fits = |(d, n): (&Dimension, &usize)| !matches!(d, Dimension::Fixed(m) if m != n);
    if shape.len() != rest.len() + 1 || !shape[1..].iter().zip(rest).all(fits) {
        bail!(Model, "must have the shape [B, {rest:?}], not {}", describe(shape));
    }
    if let Dimension::Fixed(n) = shape[0] {
        bail!(Model, "its batch is fixed to {n}; export the model with a symbolic first axis");
    }
    Ok(())
}

fn describe(shape: &[Dimension]) -> String {
    let axis = |d: &Dimension| match d {
        Dimension::Fixed(n) => n.to_string(),
        Dimension::Symbol(s) => s.clone(),
    };
    format!("[{}]", shape.iter().map(axis).collect::<Vec<_>>().join(", "))
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("numbers and texts are JSON")
}

fn parse(mut entries: BTreeMap<&str, &str>) -> Result<Contract> {
    match entries.remove("version") {
        Some(VERSION) => {}
        Some(v) => bail!(Model, "metadata mam.version is {v:?}; this hone reads version 1"),
        None => bail!(
            Model,
            "this is no marginalization model: the metadata lacks mam.version. \
             docs/mam-contract.md says how to write one, `hone mam adapt` converts other nets"
        ),
    }
    let mut take = |key: &str| entries.remove(key);
    let kind = required("kind", take("kind"))?;
    let length = required("length", take("length"))?;
    let vocab = required("vocab", take("vocab"))?;
    if length == 0 || length > MOST_SITES || vocab < 1 || vocab > MOST_LOGITS / length {
        bail!(Model, "metadata: mam.length {length} and mam.vocab {vocab} make no model");
    }
    let mut contract = Contract::new(kind, length, vocab);
    if let Some(text) = take("cardinalities") {
        contract.cardinalities = from_json("cardinalities", text)?;
    }
    contract.mask_id = optional("mask_id", take("mask_id"))?.unwrap_or(0);
    contract.value_offset = optional("value_offset", take("value_offset"))?.unwrap_or(1);
    contract.log_z = optional("log_z", take("log_z"))?;
    contract.z_kind = optional("z_kind", take("z_kind"))?.unwrap_or_default();
    contract.orders = optional("orders", take("orders"))?.unwrap_or_default();
    contract.pad_id = optional("pad_id", take("pad_id"))?;
    contract.alphabet = take("alphabet").map(|t| from_json("alphabet", t)).transpose()?;
    contract.shape = take("shape").map(shape).transpose()?;
    contract.notes = entries.into_iter().map(|(k, v)| (k.into(), v.into())).collect();
    check_consistent(&contract)?;
    Ok(contract)
}

fn check_consistent(c: &Contract) -> Result<()> {
    if c.cardinalities.len() != c.length {
        let n = c.cardinalities.len();
        bail!(Model, "metadata mam.cardinalities has {n} numbers for {} sites", c.length);
    }
    if let Some(i) = c.cardinalities.iter().position(|k| !(1..=c.vocab).contains(k)) {
        let k = c.cardinalities[i];
        bail!(
            Model,
            "metadata mam.cardinalities: site {i} has {k} values, not 1 to mam.vocab = {}",
            c.vocab
        );
    }
    let last = c.value_offset.checked_add(c.vocab as i64 - 1);
    let Some(last) = last else {
        bail!(Model, "metadata mam.value_offset {} is too large", c.value_offset);
    };
    if (c.value_offset..=last).contains(&c.mask_id) {
        bail!(
            Model,
            "metadata mam.mask_id {} is also a value: they are {} to {last} by mam.value_offset",
            c.mask_id,
            c.value_offset
        );
    }
    if c.shape.as_ref().is_some_and(|s| s.len() > MOST_SIDES) {
        bail!(Model, "metadata mam.shape has more than {MOST_SIDES} sides");
    }
    if c.shape
        .as_ref()
        .is_some_and(|s| s.iter().try_fold(1usize, |n, &d| n.checked_mul(d)) != Some(c.length))
    {
        bail!(Model, "metadata mam.shape does not have mam.length = {} sites", c.length);
    }
    if let Some(a) = c.alphabet.as_ref().filter(|a| a.len() != c.vocab) {
        bail!(Model, "metadata mam.alphabet has {} texts for {} values", a.len(), c.vocab);
    }
    if c.pad_id.is_some_and(|p| p >= c.vocab) {
        bail!(Model, "metadata mam.pad_id is no value below mam.vocab = {}", c.vocab);
    }
    if c.log_z.is_some_and(|z| !z.is_finite()) {
        bail!(Model, "metadata mam.log_z is not finite");
    }
    Ok(())
}

fn required<T: FromStr>(key: &str, text: Option<&str>) -> Result<T> {
    optional(key, text)?.ok_or_else(|| error!(Model, "the metadata lacks mam.{key}"))
}

fn optional<T: FromStr>(key: &str, text: Option<&str>) -> Result<Option<T>> {
    let Some(text) = text else { return Ok(None) };
    match text.trim().parse() {
        Ok(value) => Ok(Some(value)),
        Err(_) => bail!(Model, "metadata mam.{key} is {text:?}, which it cannot be"),
    }
}

fn from_json<T: serde::de::DeserializeOwned>(key: &str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| error!(Model, "metadata mam.{key} is no JSON list: {e}"))
}

fn shape(text: &str) -> Result<Vec<usize>> {
    let sides: Option<Vec<usize>> = text.split(',').map(|s| s.trim().parse().ok()).collect();
    sides.ok_or_else(|| error!(Model, "metadata mam.shape is {text:?}, not such as \"28,28\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(entries: &[(&str, &str)]) -> Result<Contract> {
        parse(entries.iter().copied().collect())
    }

    #[test]
    fn what_is_written_is_read() {
        let mut c = Contract::new(Kind::Joint, 6, 3);
        c.cardinalities = vec![3, 2, 3, 1, 2, 3];
        (c.mask_id, c.value_offset) = (3, 0);
        (c.log_z, c.z_kind, c.orders) = (Some(-0.25), ZKind::Exact, Trained::Forward);
        (c.shape, c.pad_id) = (Some(vec![2, 3]), Some(2));
        c.alphabet = Some(vec!["a".into(), "b".into(), " ".into()]);
        c.notes.insert("dataset".into(), "made up".into());
        let entries = c.metadata();
        let short: Vec<_> = entries.iter().map(|(k, v)| (&k[4..], v.as_str())).collect();
        assert_eq!(read(&short).unwrap(), c);
        assert_eq!(c.states(), Some(108));
    }

    #[test]
    fn wrong_entries_are_named() {
        let base = [("version", "1"), ("kind", "joint"), ("length", "4"), ("vocab", "2")];
        let with = |key, value| {
            let mut entries: BTreeMap<_, _> = base.into_iter().collect();
            entries.insert(key, value);
            parse(entries).unwrap_err().to_string()
        };
        assert!(read(&base).is_ok());
        let cases = [
            ("version", "2", "version 1"),
            ("kind", "both", "mam.kind is \"both\""),
            ("length", "0", "mam.length 0"),
            ("length", "99999999999", "make no model"),
            ("vocab", "-3", "mam.vocab is \"-3\""),
            ("mask_id", "2", "also a value: they are 1 to 2"),
            ("value_offset", "9223372036854775807", "too large"),
            ("cardinalities", "[2, 2, 2]", "3 numbers for 4 sites"),
            ("cardinalities", "[2, 2, 2, 3]", "site 3 has 3 values"),
            ("cardinalities", "2,2", "no JSON list"),
            ("shape", "3,3", "mam.shape"),
            ("shape", "2x2", "not such as"),
            (
                "shape",
                "4,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1",
                "32 sides",
            ),
            ("alphabet", "[\"a\"]", "1 texts for 2 values"),
            ("pad_id", "2", "mam.pad_id"),
            ("log_z", "nan", "not finite"),
            ("z_kind", "sum", "mam.z_kind is \"sum\""),
        ];
        for (key, value, expected) in cases {
            let message = with(key, value);
            assert!(message.contains(expected), "{key}={value}: {message}");
        }
        assert!(read(&base[1..]).unwrap_err().to_string().contains("hone mam adapt"));
        assert!(read(&base[..3]).unwrap_err().to_string().contains("lacks mam.vocab"));
    }
}
