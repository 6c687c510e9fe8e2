//! Every tensor of a model, wherever it is: initializers, attributes, subgraphs, functions.

use crate::error::Result;
use crate::onnx::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};

/// What is done to each tensor.
type Visit<'a> = &'a mut dyn FnMut(&mut TensorProto) -> Result<()>;

/// Visits every tensor of the model.
pub fn model(model: &mut ModelProto, visit: Visit) -> Result<()> {
    let training = model.training_info.iter_mut();
    let training = training.flat_map(|t| [&mut t.initialization, &mut t.algorithm]);
    for field in training.chain([&mut model.graph]) {
        field.as_option_mut().map_or(Ok(()), |g| graph(g, visit))?;
    }
    for function in &mut model.functions {
        function.attribute_proto.iter_mut().try_for_each(|a| attribute(a, visit))?;
        nodes(&mut function.node, visit)?;
    }
    Ok(())
}

/// Visits every tensor of the graph and its subgraphs.
pub fn graph(graph: &mut GraphProto, visit: Visit) -> Result<()> {
    graph.initializer.iter_mut().try_for_each(&mut *visit)?;
    for sparse in &mut graph.sparse_initializer {
        let parts = [sparse.values.as_option_mut(), sparse.indices.as_option_mut()];
        parts.into_iter().flatten().try_for_each(&mut *visit)?;
    }
    nodes(&mut graph.node, visit)
}

/// Visits every tensor in the attributes of the nodes.
pub fn nodes(nodes: &mut [NodeProto], visit: Visit) -> Result<()> {
    nodes.iter_mut().flat_map(|n| &mut n.attribute).try_for_each(|a| attribute(a, visit))
}

/// Visits every tensor of the attribute.
pub fn attribute(attribute: &mut AttributeProto, visit: Visit) -> Result<()> {
    attribute
        .t
        .as_option_mut()
        .into_iter()
        .chain(&mut attribute.tensors)
        .try_for_each(&mut *visit)?;
    let sparse = attribute.sparse_tensor.as_option_mut().into_iter();
    for sparse in sparse.chain(&mut attribute.sparse_tensors) {
        let parts = [sparse.values.as_option_mut(), sparse.indices.as_option_mut()];
        parts.into_iter().flatten().try_for_each(&mut *visit)?;
    }
    let graphs = attribute.g.as_option_mut().into_iter().chain(&mut attribute.graphs);
    graphs.into_iter().try_for_each(|g| graph(g, visit))
}
