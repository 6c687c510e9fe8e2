//! Topological order: a node comes after the producers of what it reads.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};

use crate::error::{Error, error};

/// The most nodes of a cycle that an error names.
const MAX_NAMED: usize = 8;

/// What one node reads (in its subgraphs too) and writes.
#[derive(Debug)]
pub struct Step<'a> {
    pub reads: Vec<Cow<'a, str>>,
    pub writes: &'a [String],
}

/// An order of the steps in which each comes after the producers of what it reads, as close to the
/// given one as can be; or the steps of a cycle.
pub fn topological_order(steps: &[Step]) -> Result<Vec<usize>, Vec<usize>> {
    let mut producer = HashMap::new();
    for (i, step) in steps.iter().enumerate() {
        producer.extend(step.writes.iter().filter(|w| !w.is_empty()).map(|w| (w.as_str(), i)));
    }
    let needed =
        |step: &Step| step.reads.iter().filter_map(|r| producer.get(&**r).copied()).collect();
    let needs: Vec<BTreeSet<usize>> = steps.iter().map(needed).collect();
    let mut waiting: Vec<usize> = needs.iter().map(BTreeSet::len).collect();
    let mut readers = vec![Vec::new(); steps.len()];
    for (i, needed) in needs.iter().enumerate() {
        needed.iter().for_each(|&p| readers[p].push(i));
    }
    let mut ready: BTreeSet<usize> = (0..steps.len()).filter(|&i| waiting[i] == 0).collect();
    let mut order = Vec::with_capacity(steps.len());
    while let Some(i) = ready.pop_first() {
        order.push(i);
        for &reader in &readers[i] {
            waiting[reader] -= 1;
            if waiting[reader] == 0 {
                ready.insert(reader);
            }
        }
    }
    if order.len() == steps.len() { Ok(order) } else { Err(find_cycle(&needs, |i| waiting[i] > 0)) }
}

/// The error for a cycle of the nodes so described.
pub fn cycle_error(nodes: impl Iterator<Item = String>) -> Error {
    let names: Vec<_> = nodes.take(MAX_NAMED).collect();
    error!(Model, "these nodes wait for each other's results: {}", names.join(", "))
}

/// The steps of one cycle. Every stuck step needs another stuck one, so that following them must
/// close a loop.
fn find_cycle(needs: &[BTreeSet<usize>], stuck: impl Fn(usize) -> bool) -> Vec<usize> {
    let mut at = (0..needs.len()).find(|&i| stuck(i)).expect("some step was not ordered");
    let (mut path, mut position) = (Vec::new(), HashMap::new());
    loop {
        if let Some(&begin) = position.get(&at) {
            return path.split_off(begin);
        }
        position.insert(at, path.len());
        path.push(at);
        at = *needs[at].iter().find(|&&p| stuck(p)).expect("it waits for such a step");
    }
}
