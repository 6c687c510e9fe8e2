//! The reverse walk: cotangents flow from the seeded outputs to the wanted values, against the
//! arrows of the forward graph, node by node through the rule table.
//!
//! A node is visited once, after all the uses of its outputs, so the sum
//! v̄ = Σ (∂f/∂v)ᵀ ȳ over the uses of a value v is complete when its producer asks for it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use super::builder::{Builder, Term};
use super::rules::{self, Derivative};
use super::{Backward, Capture, Facts, MINIMUM_OPSET, Slot};
use crate::error::{Error, ErrorKind, Result, bail, error};
use crate::onnx::graph::outer_names;
use crate::onnx::{Graph, Node, Value};
use crate::tensor::{ElementType, Tensor};

/// How many of the values that an operator hides a message names.
const NAMED_IN_MESSAGE: usize = 8;

/// Implements [`super::backward`].
pub(super) fn backward(
    graph: &Graph,
    facts: &Facts,
    outputs: &[String],
    wanted: &[String],
    captured: &[Slot],
) -> Result<Backward> {
    let mut walk = Walk::new(graph, facts, wanted, captured)?;
    let seeds = walk.seed(outputs)?;
    for index in (0..graph.nodes.len()).rev() {
        walk.visit(index)?;
    }
    walk.finish(seeds)
}

/// The state of the walk.
struct Walk<'a> {
    builder: Builder<'a>,
    graph: &'a Graph,
    wanted: &'a [String],
    captured: &'a [Slot],
    /// Values that depend on a wanted or captured value in a differentiable way.
    dependent: HashSet<String>,
    /// The terms of the cotangent of each value that have arrived so far.
    cotangents: HashMap<String, Vec<Term>>,
    /// Readable names for what the builder numbered, given when the walk is over.
    names: HashMap<String, String>,
    /// The cotangent of output 0 of each node with a captured slot.
    captures: HashMap<usize, Term>,
}

impl<'a> Walk<'a> {
    fn new(
        graph: &'a Graph,
        facts: &'a Facts,
        wanted: &'a [String],
        captured: &'a [Slot],
    ) -> Result<Walk<'a>> {
        if graph.opset < MINIMUM_OPSET {
            let have = graph.opset;
            bail!(
                Unsupported,
                "the graph is of opset {have}; convert it to {MINIMUM_OPSET} or newer"
            );
        }
        let builder = Builder::new(graph, facts);
        for name in wanted {
            require_float(&builder, name, "a gradient is wanted of")?;
        }
        for slot in captured {
            data_input(graph, slot)?;
        }
        let dependent = dependent_values(graph, facts, wanted, captured);
        Ok(Walk {
            builder,
            graph,
            wanted,
            captured,
            dependent,
            cotangents: HashMap::new(),
            names: HashMap::new(),
            captures: HashMap::new(),
        })
    }

    /// Adds a graph input for the cotangent of each output.
    fn seed(&mut self, outputs: &[String]) -> Result<Vec<(String, String)>> {
        let mut seeds = Vec::new();
        for output in outputs {
            let mut seed = require_float(&self.builder, output, "a seed is wanted for")?;
            if seeds.iter().any(|(o, _)| o == output) {
                bail!(Usage, "output {output:?} is to be seeded twice; name it once");
            }
            seed.name = self.builder.fresh(&format!("hone/seed/{output}"));
            let input = Value::fixed(seed.name.clone(), seed.element, &seed.shape);
            self.builder.graph.inputs.push(input);
            seeds.push((output.clone(), seed.name.clone()));
            self.cotangents.entry(output.clone()).or_default().push(seed);
        }
        Ok(seeds)
    }

    /// Passes the cotangents of a node's outputs on to its inputs.
    fn visit(&mut self, index: usize) -> Result<()> {
        let node = &self.graph.nodes[index];
        let depends = node.outputs.iter().any(|o| self.dependent.contains(o));
        let reached = node.outputs.iter().any(|o| self.cotangents.contains_key(o));
        if !depends || !reached {
            return Ok(());
        }
        let outputs = node.outputs.iter().map(|o| self.cotangent(o)).collect::<Vec<_>>();
        if self.captured.iter().any(|slot| slot.node == index)
            && let Some(Some(g)) = outputs.first()
        {
            self.captures.insert(index, g.clone());
        }
        let needs = (0..node.inputs.len())
            .map(|input| {
                self.dependent.contains(&node.inputs[input])
                    && !self.captured.contains(&Slot { node: index, input })
            })
            .collect::<Vec<_>>();
        let hidden_use = outer_names(node).iter().any(|name| self.dependent.contains(name));
        if !needs.contains(&true) && !hidden_use {
            return Ok(());
        }
        match rules::derivative(&node.op, &node.domain) {
            Derivative::Zero => Ok(()),
            Derivative::None => {
                let kind = kind(node);
                Err(error!(
                    Unsupported,
                    "there is no gradient rule for {kind}; skip the tensors before them"
                ))
            }
            Derivative::Rule(rule) => {
                rule(&mut Pullback { walk: self, index, node, outputs, needs })
            }
        }
        .map_err(|e| self.explain(e, index))
    }

    /// The cotangent of a value, summed over its uses so far.
    fn cotangent(&mut self, value: &str) -> Option<Term> {
        let terms = self.cotangents.remove(value)?;
        let mut sum = terms[0].clone();
        for term in &terms[1..] {
            sum = self.builder.add(&sum, term);
        }
        if sum.name.starts_with("hone/b/") && !self.names.contains_key(&sum.name) {
            let name = self.builder.fresh(&format!("hone/grad/{value}"));
            self.names.insert(sum.name.clone(), name);
        }
        self.cotangents.insert(value.into(), vec![sum.clone()]);
        Some(sum)
    }

    /// An error at a node, with what its operator hides.
    fn explain(&self, e: Error, index: usize) -> Error {
        let node = &self.graph.nodes[index];
        if e.kind() != ErrorKind::Unsupported {
            return e.context(node.describe());
        }
        let hidden = self.hidden_by(index);
        let mut names: Vec<String> =
            hidden.iter().take(NAMED_IN_MESSAGE).map(|n| format!("{n:?}")).collect();
        if hidden.len() > NAMED_IN_MESSAGE {
            names.push(format!("{} more", hidden.len() - NAMED_IN_MESSAGE));
        }
        let hides = format!("gradients of {} pass through {}", names.join(", "), node.describe());
        e.context(hides)
    }

    /// The wanted values and captured weights that a node depends on.
    fn hidden_by(&self, index: usize) -> Vec<String> {
        let producers = self.graph.producers();
        let (mut found, mut seen, mut queue) = (BTreeSet::new(), BTreeSet::new(), vec![index]);
        while let Some(node) = queue.pop() {
            for slot in self.captured.iter().filter(|s| s.node == node && node != index) {
                // A weight goes by the name it has in the model, before it is rearranged.
                let mut name = self.graph.nodes[node].inputs[slot.input].as_str();
                while let Some(&view) = producers.get(name) {
                    name = &self.graph.nodes[view].inputs[0];
                }
                found.insert(name.to_owned());
            }
            let node = &self.graph.nodes[node];
            for input in node.inputs.iter().cloned().chain(outer_names(node)) {
                if self.wanted.contains(&input) {
                    found.insert(input.clone());
                }
                if let Some(&producer) = producers.get(input.as_str())
                    && seen.insert(producer)
                {
                    queue.push(producer);
                }
            }
        }
        found.into_iter().collect()
    }

    /// Names the results, makes them graph outputs and drops what no output depends on.
    fn finish(mut self, seeds: Vec<(String, String)>) -> Result<Backward> {
        let mut results = Vec::new();
        let mut gradients = BTreeMap::new();
        for value in self.wanted {
            let term = self.cotangent(value);
            let term = self.as_result(term, value)?;
            gradients.insert(value.clone(), term.name.clone());
            results.push(term);
        }
        let mut captures = Vec::new();
        for &slot in self.captured {
            let node = &self.graph.nodes[slot.node];
            let output = node.outputs.first().map_or("", String::as_str);
            let term = self.captures.get(&slot.node).cloned();
            let term = self.as_result(term, output)?;
            captures.push(Capture { slot, gradient: term.name.clone() });
            results.push(term);
            if let Some(data) = data_input(self.graph, &slot)?
                && !self.graph.inputs.iter().any(|i| i.name == data)
            {
                results.push(self.builder.term(data)?);
            }
        }
        self.rename(&mut results, &mut gradients, &mut captures);
        let mut graph = self.builder.graph;
        for term in results {
            if !graph.outputs.iter().any(|o| o.name == term.name) {
                graph.outputs.push(Value::fixed(term.name, term.element, &term.shape));
            }
        }
        graph.remove_unused();
        Ok(Backward { graph, seeds, gradients, captures })
    }

    /// A cotangent as something that can be a graph output: produced by a node, zeros if none
    /// arrived.
    fn as_result(&mut self, term: Option<Term>, value: &str) -> Result<Term> {
        let result = match term {
            Some(term) if term.name.starts_with("hone/b/") => return Ok(term),
            Some(term) => self.builder.unary("Identity", &term),
            None => {
                let shape = self.builder.term(value)?;
                self.builder.zeros(shape.element, &shape.shape)
            }
        };
        let name = self.builder.fresh(&format!("hone/grad/{value}"));
        self.names.insert(result.name.clone(), name);
        self.cotangents.insert(value.into(), vec![result.clone()]);
        Ok(result)
    }

    fn rename(
        &mut self,
        results: &mut [Term],
        gradients: &mut BTreeMap<String, String>,
        captures: &mut [Capture],
    ) {
        let appended = &mut self.builder.graph.nodes[self.graph.nodes.len()..];
        let in_nodes = appended.iter_mut().flat_map(|n| n.inputs.iter_mut().chain(&mut n.outputs));
        let in_results = results.iter_mut().map(|t| &mut t.name);
        let in_captures = captures.iter_mut().map(|c| &mut c.gradient);
        for name in in_nodes.chain(in_results).chain(gradients.values_mut()).chain(in_captures) {
            if let Some(readable) = self.names.get(name.as_str()) {
                name.clone_from(readable);
            }
        }
    }
}

/// A node on the walk as its rule sees it: the forward operands, the cotangents of its outputs,
/// and a place to give the cotangents of its inputs to. Dereferences to the builder.
pub(super) struct Pullback<'w, 'a> {
    walk: &'w mut Walk<'a>,
    index: usize,
    /// The forward node.
    pub node: &'a Node,
    outputs: Vec<Option<Term>>,
    needs: Vec<bool>,
}

impl<'a> Pullback<'_, 'a> {
    /// Input `i` of the forward node; an error when it is absent.
    pub fn x(&self, i: usize) -> Result<Term> {
        match self.node.input(i) {
            Some(name) => self.term(name),
            None => bail!(Model, "input {i} is missing"),
        }
    }

    /// Output `i` of the forward node; an error when it is absent.
    pub fn y(&self, i: usize) -> Result<Term> {
        match self.node.output(i) {
            Some(name) => self.term(name),
            None => bail!(Model, "output {i} is missing"),
        }
    }

    /// The cotangent of output 0; zeros if only other outputs have one.
    pub fn g(&mut self) -> Result<Term> {
        match &self.outputs[0] {
            Some(term) => Ok(term.clone()),
            None => {
                let y = self.y(0)?;
                Ok(self.zeros(y.element, &y.shape))
            }
        }
    }

    /// The cotangent of output `i`, if one has arrived.
    pub fn cotangent(&self, i: usize) -> Option<Term> {
        self.outputs.get(i).cloned().flatten()
    }

    /// Whether the cotangent of input `i` is needed.
    pub fn needs(&self, i: usize) -> bool {
        self.needs.get(i) == Some(&true)
    }

    /// The number of inputs, absent ones included.
    pub fn arity(&self) -> usize {
        self.node.inputs.len()
    }

    /// The value of input `i` where it is the same in every run.
    pub fn constant(&self, i: usize) -> Option<Arc<Tensor>> {
        self.constant_value(self.node.input(i)?)
    }

    /// The integers of input `i`, which must be the same in every run; `None` when absent.
    pub fn constant_ints(&self, i: usize) -> Result<Option<Vec<i64>>> {
        let Some(name) = self.node.input(i) else { return Ok(None) };
        match self.constant(i).and_then(|t| t.to_i64()) {
            Some(values) => Ok(Some(values)),
            None => {
                bail!(Unsupported, "{name:?} is computed by the graph; the rule needs a constant")
            }
        }
    }

    /// Adds `term`, fitted to its shape, to the cotangent of input `i`.
    pub fn give(&mut self, i: usize, term: Term) -> Result<()> {
        if !self.needs(i) {
            return Ok(());
        }
        let x = self.x(i)?;
        let term = self.fit(&term, &x.shape);
        let term = self.cast(&term, x.element);
        self.walk.cotangents.entry(x.name).or_default().push(term);
        Ok(())
    }

    /// Output `i` of the forward node, which is made to compute it if it does not yet.
    pub fn extra_output(&mut self, i: usize, element: ElementType, shape: &[usize]) -> Term {
        let node = &mut self.walk.builder.graph.nodes[self.index];
        if let Some(name) = node.output(i) {
            return Term { name: name.into(), element, shape: shape.to_vec() };
        }
        node.outputs.resize(node.outputs.len().max(i + 1), String::new());
        let wish = format!("hone/{}/{i}", node.outputs[0]);
        let name = self.walk.builder.fresh(&wish);
        self.walk.builder.graph.nodes[self.index].outputs[i].clone_from(&name);
        Term { name, element, shape: shape.to_vec() }
    }
}

impl<'a> Deref for Pullback<'_, 'a> {
    type Target = Builder<'a>;
    fn deref(&self) -> &Builder<'a> {
        &self.walk.builder
    }
}

impl DerefMut for Pullback<'_, '_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.walk.builder
    }
}

/// The values that change with a wanted or captured value in a differentiable way.
fn dependent_values(
    graph: &Graph,
    facts: &Facts,
    wanted: &[String],
    captured: &[Slot],
) -> HashSet<String> {
    let mut dependent: HashSet<String> = wanted.iter().cloned().collect();
    let holders: HashSet<usize> = captured.iter().map(|slot| slot.node).collect();
    let float = |name: &String| facts.get(name).is_none_or(|f| f.element.is_float());
    for (index, node) in graph.nodes.iter().enumerate() {
        let stops = matches!(rules::derivative(&node.op, &node.domain), Derivative::Zero);
        let reached = holders.contains(&index)
            || node.inputs.iter().any(|i| dependent.contains(i))
            || outer_names(node).iter().any(|i| dependent.contains(i));
        if reached && !stops {
            let outputs = node.outputs.iter().filter(|o| !o.is_empty() && float(o));
            dependent.extend(outputs.cloned());
        }
    }
    dependent
}

/// The data operand that goes with a captured weight slot; `None` for a bias.
fn data_input<'g>(graph: &'g Graph, slot: &Slot) -> Result<Option<&'g str>> {
    let Some(node) = graph.nodes.get(slot.node) else {
        bail!(Usage, "slot {slot:?} is of a node that the graph does not have");
    };
    let data = match (node.op.as_str(), slot.input) {
        ("Conv" | "ConvTranspose", 1) => Some(0),
        ("Gemm" | "MatMul", 0 | 1) => Some(1 - slot.input),
        ("Conv" | "ConvTranspose" | "Gemm", 2) => None,
        _ => bail!(Usage, "input {} of {} is not a weight slot", slot.input, node.describe()),
    };
    if !node.domain.is_empty() || node.input(slot.input).is_none() {
        bail!(Usage, "{} has no weight at input {}", node.describe(), slot.input);
    }
    Ok(data.and_then(|i| node.input(i)))
}

fn require_float(builder: &Builder, name: &str, why: &str) -> Result<Term> {
    let Ok(term) = builder.term(name) else {
        bail!(Usage, "{why} {name:?}, but the graph has no such value");
    };
    if !term.element.is_float() {
        bail!(Usage, "{why} {name:?}, but its elements are {}, not floats", term.element);
    }
    Ok(term)
}

/// Names an operator: `GRU`, or `com.microsoft.FusedConv`.
fn kind(node: &Node) -> String {
    match node.domain.as_str() {
        "" => format!("operator {}", node.op),
        domain => format!("operator {} of domain {domain:?}", node.op),
    }
}
