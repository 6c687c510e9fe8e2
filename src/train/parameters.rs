//! The trained tensors of a graph and the flat vector w of their free weights.
//!
//! Tensors come in the order they were named; within a tensor the free weights keep the order in
//! which the model stores them. Weights that a pruned model holds at zero are not free: they have
//! no place in w, so no optimizer moves them and no window of gradients spends memory on them.

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Result, bail};
use crate::onnx::Graph;
use crate::tensor::{Data, Tensor};

/// Named tensors and the flat vector of their free weights.
#[derive(Clone, Debug)]
pub struct Parameters {
    tensors: Vec<Parameter>,
    flat: Vec<f32>,
}

/// One trained tensor.
#[derive(Clone, Debug)]
struct Parameter {
    name: String,
    /// The current values, float32 in the model's shape.
    tensor: Tensor,
    /// Where in the tensor the free weights lie, ascending; `None` when all are free.
    free: Option<Vec<u32>>,
    /// Their range of the flat vector.
    range: Range<usize>,
}

impl Parameters {
    /// The initializers `names` of `graph`; where `keeps_zeros(name)`, what is zero now stays so.
    ///
    /// Errors of kind `Usage`: a name twice or of no initializer; `Unsupported`: not float32.
    pub fn new(
        graph: &Graph,
        names: &[String],
        keeps_zeros: impl Fn(&str) -> bool,
    ) -> Result<Parameters> {
        let mut parameters = Parameters { tensors: Vec::new(), flat: Vec::new() };
        for name in names {
            let Some(tensor) = graph.initializers.get(name) else {
                bail!(Usage, "the graph has no initializer {name:?} to train");
            };
            let Some(values) = tensor.as_f32() else {
                let element = tensor.element_type();
                bail!(Unsupported, "tensor {name:?} is {element}; only float32 is trained");
            };
            if parameters.tensors.iter().any(|p| p.name == *name) {
                bail!(Usage, "tensor {name:?} is to be trained twice; name it once");
            }
            if u32::try_from(values.len()).is_err() {
                bail!(Unsupported, "tensor {name:?} has {} elements, too many", values.len());
            }
            let start = parameters.flat.len();
            let free = (keeps_zeros(name) && values.contains(&0.0))
                .then(|| (0..values.len() as u32).filter(|&i| values[i as usize] != 0.0).collect());
            parameters.flat.extend(chosen(values, &free));
            parameters.tensors.push(Parameter {
                name: name.clone(),
                tensor: Tensor::clone(tensor),
                free,
                range: start..parameters.flat.len(),
            });
        }
        Ok(parameters)
    }

    /// d, the number of free weights.
    pub fn len(&self) -> usize {
        self.flat.len()
    }

    /// Whether no weight is free.
    pub fn is_empty(&self) -> bool {
        self.flat.is_empty()
    }

    /// The free weights.
    pub fn flat(&self) -> &[f32] {
        &self.flat
    }

    /// Lets `change` set the free weights (d numbers), then writes them to the tensors.
    pub fn update<T>(&mut self, change: impl FnOnce(&mut [f32]) -> T) -> T {
        let result = change(&mut self.flat);
        for p in &mut self.tensors {
            let Data::F32(values) = p.tensor.data_mut() else {
                unreachable!("only float32 tensors are taken")
            };
            let flat = &self.flat[p.range.clone()];
            match &p.free {
                None => values.copy_from_slice(flat),
                Some(free) => free.iter().zip(flat).for_each(|(&i, &w)| values[i as usize] = w),
            }
        }
        result
    }

    /// The tensors with their names, in order.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|p| (p.name.as_str(), &p.tensor))
    }

    /// Puts the tensors into `graph`.
    pub fn store(&self, graph: &mut Graph) {
        for p in &self.tensors {
            graph.initializers.insert(p.name.clone(), Arc::new(p.tensor.clone()));
        }
    }

    /// Adds the gradient of the whole tensor `index` to the sums of its free weights.
    pub(super) fn add_gradient(&self, index: usize, gradient: &[f32], sums: &mut [f64]) {
        let p = &self.tensors[index];
        let sums = &mut sums[p.range.clone()];
        match &p.free {
            None => sums.iter_mut().zip(gradient).for_each(|(s, &g)| *s += f64::from(g)),
            Some(free) => {
                sums.iter_mut().zip(free).for_each(|(s, &i)| *s += f64::from(gradient[i as usize]))
            }
        }
    }

    /// The tensor that free weight `place` belongs to.
    pub(super) fn name_at(&self, place: usize) -> &str {
        &self.tensors[self.tensors.partition_point(|p| p.range.end <= place)].name
    }
}

/// The free ones of `values`.
fn chosen(values: &[f32], free: &Option<Vec<u32>>) -> Vec<f32> {
    match free {
        None => values.to_vec(),
        Some(free) => free.iter().map(|&i| values[i as usize]).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn graph() -> Graph {
        let mut graph = Graph::default();
        let mut add = |name: &str, tensor: Tensor| {
            graph.initializers.insert(name.into(), tensor.into());
        };
        add("w", Tensor::f32([2, 2], vec![1.0, 0.0, 0.0, 4.0]));
        add("b", Tensor::f32([2], vec![0.0, 5.0]));
        add("i", Tensor::i64([1], vec![7]));
        graph
    }

    #[test]
    fn zeros_of_masked_tensors_have_no_place() {
        let mut graph = graph();
        let names = ["w".to_string(), "b".to_string()];
        let mut parameters = Parameters::new(&graph, &names, |name| name == "w").unwrap();
        assert_eq!(parameters.flat(), [1.0, 4.0, 0.0, 5.0]);
        let mut sums = vec![0.0; 4];
        parameters.add_gradient(0, &[1.0, 2.0, 3.0, 4.0], &mut sums);
        parameters.add_gradient(1, &[5.0, 6.0], &mut sums);
        assert_eq!(sums, [1.0, 4.0, 5.0, 6.0]);
        parameters.update(|flat| flat.iter_mut().for_each(|w| *w += 10.0));
        parameters.store(&mut graph);
        assert_eq!(graph.initializers["w"].as_f32().unwrap(), [11.0, 0.0, 0.0, 14.0]);
        assert_eq!(graph.initializers["b"].as_f32().unwrap(), [10.0, 15.0]);
        assert_eq!((parameters.name_at(1), parameters.name_at(2)), ("w", "b"));
    }

    #[test]
    fn what_cannot_be_trained_is_named() {
        let kind = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|n| n.to_string()).collect();
            Parameters::new(&graph(), &names, |_| false).unwrap_err().kind()
        };
        assert_eq!(kind(&["x"]), ErrorKind::Usage);
        assert_eq!(kind(&["w", "w"]), ErrorKind::Usage);
        assert_eq!(kind(&["i"]), ErrorKind::Unsupported);
    }
}
