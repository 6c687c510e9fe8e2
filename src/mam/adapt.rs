//! Nets that were not written for the contract, turned into files that keep it.
//!
//! Published nets take an image as floats −1 and +1 with 0 for missing, a mask of what is known,
//! or the number of known sites as a step. [`adapt`] puts a few nodes before and behind such a net
//! that derive all of it from `x`: values by a table, the mask by a comparison, the step by a sum.
//! The net itself stays as it is.

use std::collections::HashMap;

use crate::error::{Result, bail, error};
use crate::mam::contract::{Contract, INPUT, KNOWN, LOG_P, LOGITS};
use crate::mam::half::rename_result;
use crate::onnx::graph::{Names, outer_names};
use crate::onnx::{Dimension, Graph, Node, Value};
use crate::tensor::{Data, ElementType, Tensor};

/// What the net takes and gives.
#[derive(Clone, Debug, Default)]
pub struct Foreign {
    /// The input for values; the only input that is neither mask nor step, unless named.
    pub values_input: Option<String>,
    /// What the net is fed for value 0, 1, ... of a site.
    pub values: Vec<f64>,
    /// What it is fed at a missing site.
    pub missing: f64,
    /// An input that says which sites are known (1 or true).
    pub mask_input: Option<String>,
    /// Whether that input says which sites are missing instead.
    pub mask_is_missing: bool,
    /// An input for the number of known sites, `[B]`.
    pub step_input: Option<String>,
    /// The output that is f_θ, if there is one.
    pub log_p: Option<String>,
    /// The output that is φ's logits, if there is one.
    pub logits: Option<String>,
    /// Whether the logits have their values on axis 1 (`[B, K, ...]`) instead of on the last.
    pub logits_values_first: bool,
}

/// The graph of a net that keeps `contract`: takes `x`, returns `log_p`, `logits` or both. Shapes
/// of inputs are read from their declarations, which may have any axes behind the first whose
/// product is L.
pub fn adapt(mut graph: Graph, foreign: &Foreign, contract: &Contract) -> Result<Graph> {
    check(foreign, contract)?;
    let ports = ports(&graph, foreign)?;
    let results = results(&graph, foreign)?;
    // Everything of the net that bears a name of the contract gets another one.
    let mut renamed = HashMap::new();
    for taken in [INPUT, KNOWN, LOG_P, LOGITS] {
        if !graph.names().contains(taken) {
            continue;
        }
        if graph.nodes.iter().any(|n| outer_names(n).iter().any(|o| o == taken)) {
            bail!(Unsupported, "a subgraph reads a value called {taken:?}: rename it");
        }
        let other = Names::of(&graph).fresh(&format!("net_{taken}"));
        rename_result(&mut graph, taken, &other);
        if let Some(tensor) = graph.initializers.remove(taken) {
            graph.initializers.insert(other.clone(), tensor);
        }
        renamed.insert(taken, other);
    }
    let called = |name: &str| renamed.get(name).cloned().unwrap_or_else(|| name.to_string());

    graph.outputs.clear();
    graph.inputs = vec![symbolic(INPUT, ElementType::I64, &[contract.length])];
    let names = Names::of(&graph);
    let mut front = Front { names, nodes: Vec::new(), initializers: Vec::new() };
    let missing = front.missing(contract);
    front.values(&ports.values, &called(&ports.values.name), &missing, foreign, contract)?;
    if ports.mask.is_some() || ports.step.is_some() {
        let known = front.node("Not", &[&missing], "mam_is_known");
        if let Some(mask) = &ports.mask {
            let source = if foreign.mask_is_missing { &missing } else { &known };
            let cast = front.cast(source, mask.element.unwrap_or(ElementType::F32));
            front.shaped(&cast, mask, &called(&mask.name), contract)?;
        }
        if let Some(step) = &ports.step {
            front.step(step, &called(&step.name), &known)?;
        }
    }
    let Front { nodes, initializers, mut names } = front;
    graph.nodes.splice(0..0, nodes);
    graph.initializers.extend(initializers.into_iter().map(|(n, t)| (n, t.into())));
    for (result, target) in results {
        let source = called(&result.name);
        output(&mut graph, &mut names, &result, &source, target, foreign, contract);
    }
    graph.remove_unused();
    graph.sort()?;
    Ok(graph)
}

/// The inputs of the net by their roles.
struct Ports {
    values: Value,
    mask: Option<Value>,
    step: Option<Value>,
}

fn ports(graph: &Graph, foreign: &Foreign) -> Result<Ports> {
    let all: Vec<&str> = graph.inputs.iter().map(|i| i.name.as_str()).collect();
    let find = |name: &String| {
        let found = graph.inputs.iter().find(|i| i.name == *name).cloned();
        found.ok_or_else(|| error!(Usage, "the net has no input {name:?}; it takes {all:?}"))
    };
    let mask = foreign.mask_input.as_ref().map(find).transpose()?;
    let step = foreign.step_input.as_ref().map(find).transpose()?;
    let mut others = graph.inputs.clone();
    others.retain(|i| [&mask, &step].into_iter().flatten().all(|taken| taken.name != i.name));
    let values = match (&foreign.values_input, others.as_slice()) {
        (Some(name), _) => find(name)?,
        (None, [one]) => one.clone(),
        (None, _) => {
            let names: Vec<&str> = others.iter().map(|i| i.name.as_str()).collect();
            bail!(Usage, "which of the inputs {names:?} takes the values, which a mask or a step?");
        }
    };
    if let Some(extra) = others.iter().find(|i| i.name != values.name) {
        bail!(Usage, "what is input {:?}: a mask or a step?", extra.name);
    }
    Ok(Ports { values, mask, step })
}

/// The outputs of the net that are wanted, with the names they get.
fn results(graph: &Graph, foreign: &Foreign) -> Result<Vec<(Value, &'static str)>> {
    let wanted = [(&foreign.log_p, LOG_P), (&foreign.logits, LOGITS)];
    let named = wanted.into_iter().filter_map(|(name, target)| Some((name.as_ref()?, target)));
    let find = |(name, target): (&String, &'static str)| {
        let Some(output) = graph.outputs.iter().find(|o| o.name == *name) else {
            let all: Vec<&str> = graph.outputs.iter().map(|o| o.name.as_str()).collect();
            bail!(Usage, "the net has no output {name:?}; it has {all:?}");
        };
        Ok((output.clone(), target))
    };
    named.map(find).collect()
}

fn check(foreign: &Foreign, contract: &Contract) -> Result<()> {
    if foreign.log_p.is_none() && foreign.logits.is_none() {
        bail!(Usage, "name the output that is log p, or the one that is the logits, or both");
    }
    if foreign.values.len() != contract.vocab {
        let (n, k) = (foreign.values.len(), contract.vocab);
        bail!(Usage, "there are {n} inputs of values for {k} values of a site");
    }
    Ok(())
}

/// The nodes before the net.
struct Front {
    names: Names,
    nodes: Vec<Node>,
    initializers: Vec<(String, Tensor)>,
}

impl Front {
    /// Which sites are missing, bool `[B, L]`.
    fn missing(&mut self, contract: &Contract) -> String {
        let mask_id = self.constant("mam_mask_id", Tensor::i64([], vec![contract.mask_id]));
        self.node("Equal", &[INPUT, &mask_id], "mam_is_missing")
    }

    /// x → the net's values: a table look-up, then the net's shape.
    fn values(
        &mut self,
        input: &Value,
        target: &str,
        missing: &str,
        foreign: &Foreign,
        contract: &Contract,
    ) -> Result<()> {
        // The values, and behind them what stands for missing.
        let mut table = foreign.values.clone();
        table.push(foreign.missing);
        let table = numbers(&table, input.element.unwrap_or(ElementType::F32))?;
        let table = self.constant("mam_table", table);
        let offset = self.constant("mam_offset", Tensor::i64([], vec![contract.value_offset]));
        let last = self.constant("mam_last", Tensor::i64([], vec![contract.vocab as i64]));
        let value = self.node("Sub", &[INPUT, &offset], "mam_value");
        let index = self.node("Where", &[missing, &last, &value], "mam_index");
        let fed = self.node("Gather", &[&table, &index], "mam_fed");
        self.shaped(&fed, input, target, contract)
    }

    /// The number of known sites.
    fn step(&mut self, input: &Value, target: &str, known: &str) -> Result<()> {
        let rank = input.shape.as_ref().map_or(1, Vec::len);
        if !(1..=2).contains(&rank) {
            bail!(Unsupported, "step input {:?} has {rank} axes, not [B] or [B, 1]", input.name);
        }
        let counted = self.cast(known, ElementType::I64);
        let axis = self.constant("mam_site_axis", Tensor::i64([1], vec![1]));
        let sum = self.names.fresh("mam_step");
        let node = Node::new("ReduceSum", [counted.as_str(), &axis], &sum);
        self.nodes.push(node.with("keepdims", i64::from(rank == 2)));
        let element = input.element.unwrap_or(ElementType::F32).to_onnx();
        self.nodes.push(Node::new("Cast", [sum.as_str()], target).with("to", i64::from(element)));
        Ok(())
    }

    /// `[B, L]` in the shape the net declares.
    fn shaped(
        &mut self,
        value: &str,
        input: &Value,
        target: &str,
        contract: &Contract,
    ) -> Result<()> {
        let shape = target_shape(input, contract)?;
        let shape = self.constant("mam_shape", Tensor::i64([shape.len()], shape));
        self.nodes.push(Node::new("Reshape", [value, shape.as_str()], target));
        Ok(())
    }

    fn cast(&mut self, value: &str, element: ElementType) -> String {
        let output = self.names.fresh("mam_cast");
        let node = Node::new("Cast", [value], &output);
        self.nodes.push(node.with("to", i64::from(element.to_onnx())));
        output
    }

    fn node(&mut self, op: &str, inputs: &[&str], output: &str) -> String {
        let output = self.names.fresh(output);
        self.nodes.push(Node::new(op, inputs.iter().copied(), &output));
        output
    }

    fn constant(&mut self, name: &str, tensor: Tensor) -> String {
        let name = self.names.fresh(name);
        self.initializers.push((name.clone(), tensor));
        name
    }
}

/// −1 and the axes behind the first, of which one may be open.
fn target_shape(input: &Value, contract: &Contract) -> Result<Vec<i64>> {
    let length = contract.length;
    let Some(axes) = &input.shape else { return Ok(vec![-1, length as i64]) };
    let refuse = || {
        error!(
            Usage,
            "input {:?} does not take {length} sites per row: its shape is declared otherwise",
            input.name
        )
    };
    let rest = axes.get(1..).unwrap_or_default();
    let fixed = |d: &Dimension| match d {
        Dimension::Fixed(n) => Some(*n),
        Dimension::Symbol(_) => None,
    };
    let product: usize = rest.iter().filter_map(fixed).product();
    let open = rest.iter().filter(|d| fixed(d).is_none()).count();
    let filler = match open {
        0 if product == length => 1,
        1 if product > 0 && length.is_multiple_of(product) => length / product,
        _ => return Err(refuse()),
    };
    let rest = rest.iter().map(|d| fixed(d).unwrap_or(filler) as i64);
    Ok(std::iter::once(-1).chain(rest).collect())
}

/// Behind the net: float32, and the name and shape of the contract.
fn output(
    graph: &mut Graph,
    names: &mut Names,
    declared: &Value,
    source: &str,
    target: &str,
    foreign: &Foreign,
    contract: &Contract,
) {
    let (length, vocab) = (contract.length as i64, contract.vocab as i64);
    let mut value = source.to_string();
    let mut then = |graph: &mut Graph, node: Node, name: &str| {
        let mut node = node;
        let output = names.fresh(name);
        node.inputs.insert(0, std::mem::replace(&mut value, output.clone()));
        node.outputs = vec![output];
        graph.nodes.push(node);
    };
    let reshape = |graph: &mut Graph, name: &str, dims: &[i64]| {
        graph.initializers.insert(name.into(), Tensor::i64([dims.len()], dims.to_vec()).into());
        Node::new("Reshape", [name], "")
    };
    if declared.element.is_some_and(|e| e != ElementType::F32) {
        let to = i64::from(ElementType::F32.to_onnx());
        then(graph, Node::new("Cast", [""; 0], "").with("to", to), "mam_cast");
    }
    let dims = if target == LOGITS { vec![-1, length, vocab] } else { vec![-1] };
    if target == LOGITS && foreign.logits_values_first {
        let node = reshape(graph, "mam_flat_shape", &[-1, vocab, length]);
        then(graph, node, "mam_flat");
        let turn = Node::new("Transpose", [""; 0], "").with("perm", vec![0i64, 2, 1]);
        then(graph, turn, "mam_turned");
    }
    let node = reshape(graph, &format!("mam_{target}_shape"), &dims);
    then(graph, node, target);
    let rest: Vec<usize> = dims[1..].iter().map(|&d| d as usize).collect();
    graph.outputs.push(symbolic(target, ElementType::F32, &rest));
}

/// A value of shape `[B, rest...]` with a free B.
pub(crate) fn symbolic(name: &str, element: ElementType, rest: &[usize]) -> Value {
    let mut value = Value::fixed(name, element, rest);
    let shape = value.shape.as_mut().expect("fixed values have a shape");
    shape.insert(0, Dimension::Symbol("B".into()));
    value
}

fn numbers(values: &[f64], element: ElementType) -> Result<Tensor> {
    let data = match element {
        ElementType::F32 => Data::F32(values.iter().map(|&v| v as f32).collect()),
        ElementType::F64 => Data::F64(values.to_vec()),
        ElementType::I64 => Data::I64(whole(values)?),
        ElementType::I32 => Data::I32(whole(values)?.into_iter().map(|v| v as i32).collect()),
        other => bail!(Unsupported, "values of type {other} are not fed; float32 or int64 are"),
    };
    Tensor::new([values.len()], data)
}

fn whole(values: &[f64]) -> Result<Vec<i64>> {
    let fits = |v: &f64| v.fract() == 0.0 && v.abs() < 2e9;
    match values.iter().find(|v| !fits(v)) {
        Some(v) => bail!(Usage, "the net takes integers, and {v} is none"),
        None => Ok(values.iter().map(|&v| v as i64).collect()),
    }
}
