//! The import changes the form of a model, never its results: each case is run by ONNX Runtime as
//! it came and as imported, and both must agree.

use std::sync::Arc;

use half::f16;
use hone::cancel::Cancel;
use hone::onnx::proto::attribute_proto::AttributeType;
use hone::onnx::proto::{AttributeProto, FunctionProto, GraphProto, OperatorSetIdProto};
use hone::onnx::{Attribute, Graph, Model, Node, Value, import};
use hone::runtime::{Program, Session, SessionOptions};
use hone::tensor::{Data, ElementType, Tensor};

/// A deterministic spread of values around zero.
fn values(shape: &[usize]) -> Tensor {
    let count = shape.iter().product();
    let value = |i: usize| ((i * 7919 + 13) % 101) as f32 / 25.0 - 2.0;
    Tensor::f32(shape, (0..count).map(value).collect())
}

/// A graph of `nodes` that makes `y` from `x`.
fn graph(opset: i64, x: &Tensor, nodes: Vec<Node>, constants: Vec<(&str, Tensor)>) -> Graph {
    Graph {
        name: "case".into(),
        opset,
        domains: [("com.microsoft".to_owned(), 1)].into(),
        nodes,
        initializers: constants.into_iter().map(|(n, t)| (n.into(), Arc::new(t))).collect(),
        inputs: vec![Value::fixed("x", x.element_type(), x.shape())],
        outputs: vec![Value::named("y")],
        ..Graph::default()
    }
}

fn run(model: &[u8], x: &Tensor) -> Tensor {
    let options = SessionOptions { optimize: false, ..SessionOptions::default() };
    let mut session = Session::new(&Program::from_file(model.to_vec()), &options).unwrap();
    session.run([("x", x)], &Cancel::new()).unwrap().tensor("y").unwrap()
}

/// Imports the graph, compares its results to the original's, and returns it.
fn agrees(source: &Graph, x: &Tensor) -> Graph {
    let bytes = source.to_bytes().unwrap();
    let imported = import(&Model::from_bytes(&bytes, None).unwrap()).unwrap();
    assert!(imported.opset >= 18, "version {}", imported.opset);
    // The working graph computes in float32 what the file has in half precision.
    let half = x.element_type() == ElementType::F16;
    let wide = if half { Tensor::f32(x.shape(), x.to_f32()) } else { x.clone() };
    let (before, after) = (run(&bytes, x), run(&imported.to_bytes().unwrap(), &wide));
    let op = &source.nodes[0].op;
    assert_eq!(before.shape(), after.shape(), "{op}");
    let element = if half { ElementType::F32 } else { before.element_type() };
    assert_eq!(after.element_type(), element, "{op}");
    let tolerance = if half { 1e-3 } else { 1e-5 };
    for (a, b) in before.to_f64().iter().zip(after.to_f64()) {
        assert!((a - b).abs() <= tolerance * (1.0 + a.abs()), "{op}: {a} became {b}");
    }
    imported
}

fn node(op: &str, inputs: &[&str]) -> Node {
    Node::new(op, inputs.iter().copied(), "y")
}

fn with_outputs(mut node: Node, outputs: &[&str]) -> Node {
    node.outputs = outputs.iter().map(|&o| o.into()).collect();
    node
}

fn fused(op: &str, inputs: &[&str]) -> Node {
    Node { domain: "com.microsoft".into(), ..node(op, inputs) }
}

fn ints(values: &[i64]) -> Attribute {
    values.to_vec().into()
}

#[test]
fn attributes_became_inputs() {
    let x = values(&[2, 3, 4]);
    let slice = node("Slice", &["x"]).with("starts", ints(&[1, -3])).with("ends", ints(&[9, -1]));
    let cases = [
        slice.clone(),
        slice.with("axes", ints(&[1, 2])),
        node("Clip", &["x"]).with("min", -0.5).with("max", 0.75),
        node("Clip", &["x"]).with("max", 0.75),
        node("Clip", &["x"]),
        node("Pad", &["x"]).with("pads", ints(&[0, 1, 0, 0, 0, 2])).with("value", 3.5),
        node("Pad", &["x"]).with("pads", ints(&[0, 1, 0, 0, 0, 2])).with("mode", "reflect"),
        node("Unsqueeze", &["x"]).with("axes", ints(&[0, 2])),
        node("Dropout", &["x"]).with("ratio", 0.3),
        with_outputs(node("TopK", &["x"]).with("k", 2i64), &["y", "indices"]),
        with_outputs(node("Split", &["x"]).with("axis", 1i64), &["a", "y", "c"]),
        with_outputs(
            node("Split", &["x"]).with("axis", 2i64).with("split", ints(&[1, 3])),
            &["a", "y"],
        ),
    ];
    for case in cases {
        agrees(&graph(9, &x, vec![case], vec![]), &x);
    }
}

#[test]
fn reductions_of_every_age() {
    let x = values(&[2, 3, 4]);
    for op in ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2", "ReduceSumSquare"] {
        for opset in [9, 11, 12, 13, 17] {
            let old = node(op, &["x"]).with("axes", ints(&[1, 2])).with("keepdims", 0i64);
            if op != "ReduceSum" || opset < 13 {
                agrees(&graph(opset, &x, vec![old], vec![]), &x);
            }
            agrees(&graph(opset, &x, vec![node(op, &["x"])], vec![]), &x);
        }
    }
    let new = node("ReduceSum", &["x", "axes"]);
    agrees(&graph(13, &x, vec![new], vec![("axes", Tensor::i64([1], vec![1]))]), &x);
}

#[test]
fn softmax_worked_on_a_matrix() {
    let x = values(&[2, 3, 4]);
    for op in ["Softmax", "LogSoftmax", "Hardmax"] {
        for opset in [9, 11, 12] {
            agrees(&graph(opset, &x, vec![node(op, &["x"])], vec![]), &x);
            for axis in 0..3i64 {
                let case = node(op, &["x"]).with("axis", axis);
                let imported = agrees(&graph(opset, &x, vec![case], vec![]), &x);
                assert_eq!(imported.nodes.len(), if axis == 2 { 1 } else { 4 }, "{op} {axis}");
            }
        }
        for axis in [-1i64, -2] {
            agrees(&graph(11, &x, vec![node(op, &["x"]).with("axis", axis)], vec![]), &x);
            agrees(&graph(13, &x, vec![node(op, &["x"]).with("axis", axis)], vec![]), &x);
        }
    }
}

#[test]
fn upsampling_by_every_version() {
    let x = values(&[1, 2, 3, 4]);
    let scales = || Tensor::f32([4], vec![1.0, 1.0, 2.0, 3.0]);
    let empty = || Tensor::f32([0], vec![]);
    for mode in ["nearest", "linear"] {
        let upsample = node("Upsample", &["x", "s"]).with("mode", mode);
        agrees(&graph(9, &x, vec![upsample], vec![("s", scales())]), &x);
        let resize = node("Resize", &["x", "s"]).with("mode", mode);
        agrees(&graph(10, &x, vec![resize], vec![("s", scales())]), &x);
        let resize = node("Resize", &["x", "roi", "s"]).with("mode", mode);
        agrees(&graph(11, &x, vec![resize], vec![("s", scales()), ("roi", empty())]), &x);
        let resize = node("Resize", &["x", "e", "e", "size"]).with("mode", mode);
        let size = Tensor::i64([4], vec![1, 2, 5, 4]);
        agrees(&graph(11, &x, vec![resize], vec![("size", size), ("e", empty())]), &x);
    }
}

#[test]
fn other_changes() {
    let x = values(&[2, 3, 4, 4]);
    let channels = |first: f32| Tensor::f32([3], vec![first, 0.5, 0.25]);
    let norm = node("BatchNormalization", &["x", "g", "b", "m", "v"]);
    let constants = || ["g", "b", "m", "v"].map(|n| (n, channels(1.0))).to_vec();
    let many = with_outputs(norm.clone(), &["y", "mean", "var", "m2", "v2"]);
    let reads_mean = Node::new("Add", ["y", "mean"], "z");
    agrees(&graph(9, &x, vec![norm], constants()), &x);
    let training = graph(9, &x, vec![many, reads_mean], constants()).to_bytes().unwrap();
    let error = import(&Model::from_bytes(&training, None).unwrap()).unwrap_err().to_string();
    assert!(error.contains("training mode"), "{error}");

    let x = values(&[1, 1, 4, 4]);
    let boxes = Tensor::f32([1, 4], vec![0.0, 0.0, 2.5, 3.0]);
    let align = node("RoiAlign", &["x", "boxes", "batch"]);
    let align = align.with("output_height", 2i64).with("output_width", 2i64);
    let batch = Tensor::i64([1], vec![0]);
    agrees(&graph(10, &x, vec![align], vec![("boxes", boxes), ("batch", batch)]), &x);

    let x = values(&[3, 3]);
    let scatter = node("Scatter", &["x", "i", "u"]);
    let constants = vec![("i", Tensor::i64([1, 2], vec![1, 0])), ("u", values(&[1, 2]))];
    agrees(&graph(9, &x, vec![scatter], constants), &x);

    let x = values(&[1, 3, 1]);
    agrees(&graph(9, &x, vec![node("Squeeze", &["x"])], vec![]), &x);
    agrees(&graph(9, &x, vec![node("Squeeze", &["x"]).with("axes", ints(&[0]))], vec![]), &x);
}

#[test]
fn constants_take_the_type_of_what_they_meet() {
    let half = values(&[2, 3]).to_f32().into_iter().map(f16::from_f32).collect();
    let x = Tensor::new([2, 3], Data::F16(half)).unwrap();
    let nodes = vec![
        Node::new("Relu", ["x"], "a"),
        Node::new("Clip", ["a"], "y").with("min", 0.5).with("max", 1.0),
    ];
    agrees(&graph(9, &x, nodes, vec![]), &x);
}

/// An attribute that holds a graph without inputs.
fn branch(name: &str, nodes: Vec<Node>, output: &str) -> Attribute {
    let outputs = vec![Value::named(output)];
    let inner = Graph { opset: 1, nodes, outputs, ..Graph::default() };
    let graph = inner.to_proto().graph.into_option().unwrap();
    Attribute::Other(Box::new(AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::GRAPH),
        g: GraphProto { name: Some(name.into()), ..graph }.into(),
        ..AttributeProto::default()
    }))
}

#[test]
fn subgraphs_are_upgraded_too() {
    let x = values(&[2, 3]);
    let clip = Node::new("Clip", ["x"], "t").with("min", 0.25);
    let soft = Node::new("Softmax", ["x"], "e").with("axis", 0i64);
    let choice = node("If", &["condition"])
        .with("then_branch", branch("then_branch", vec![clip], "t"))
        .with("else_branch", branch("else_branch", vec![soft], "e"));
    for condition in [true, false] {
        let condition = Tensor::new([], Data::Bool(vec![condition])).unwrap();
        agrees(&graph(9, &x, vec![choice.clone()], vec![("condition", condition)]), &x);
    }
}

#[test]
fn activations_of_onnx_runtime() {
    let x = values(&[2, 3, 4]);
    let bias = || ("b", values(&[4]));
    agrees(&graph(17, &x, vec![fused("Gelu", &["x"])], vec![]), &x);
    agrees(&graph(17, &x, vec![fused("BiasGelu", &["x", "b"])], vec![bias()]), &x);
    agrees(&graph(17, &x, vec![fused("FastGelu", &["x"])], vec![]), &x);
    agrees(&graph(17, &x, vec![fused("FastGelu", &["x", "b"])], vec![bias()]), &x);
    agrees(&graph(17, &x, vec![fused("QuickGelu", &["x"])], vec![]), &x);
    agrees(&graph(17, &x, vec![fused("QuickGelu", &["x"]).with("alpha", 0.5)], vec![]), &x);
}

#[test]
fn normalizations_of_onnx_runtime() {
    let x = values(&[2, 3, 4]);
    let constants = || {
        let gamma = Tensor::f32([4], vec![1.0, 0.5, 2.0, -1.0]);
        vec![("s", values(&[2, 3, 4])), ("g", gamma), ("b", values(&[4])), ("c", values(&[4]))]
    };
    for op in ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"] {
        let cases: [&[&str]; 3] = match op {
            "SkipLayerNormalization" => {
                [&["x", "s", "g", "b", "c"], &["x", "s", "g", "b"], &["x", "s", "g"]]
            }
            _ => [&["x", "s", "g", "c"], &["x", "s", "g"], &["x", "x", "g"]],
        };
        for inputs in cases {
            let case = fused(op, inputs).with("epsilon", 1e-3);
            agrees(&graph(17, &x, vec![case.clone()], constants()), &x);
            let sum = with_outputs(case, &["n", "", "", "sum"]);
            let both = Node::new("Sub", ["n", "sum"], "y");
            agrees(&graph(17, &x, vec![sum, both], constants()), &x);
        }
    }
    let simple = node("SimplifiedLayerNormalization", &["x", "g"]).with("epsilon", 1e-3);
    agrees(&graph(17, &x, vec![simple.with("axis", -1i64)], constants()), &x);
}

#[test]
fn products_of_onnx_runtime() {
    let x = values(&[2, 3, 4]);
    let constants =
        || vec![("w", values(&[4, 5])), ("t", values(&[5, 4])), ("u", values(&[2, 3, 5]))];
    let plain = fused("FusedMatMul", &["x", "w"]).with("alpha", 0.5);
    agrees(&graph(17, &x, vec![plain], constants()), &x);
    let case = fused("FusedMatMul", &["x", "t"]).with("transB", 1i64);
    agrees(&graph(17, &x, vec![case], constants()), &x);
    let case = fused("FusedMatMul", &["x", "u"]).with("transA", 1i64).with("alpha", 2.0);
    agrees(&graph(17, &x, vec![case], constants()), &x);

    let x = values(&[3, 4]);
    let gemm = fused("FusedGemm", &["x", "w", "c"]).with("alpha", 0.5);
    for (activation, alpha) in [("Relu", None), ("LeakyRelu", Some(0.2)), ("Tanh", None)] {
        let mut gemm = gemm.clone().with("activation", activation);
        gemm.attributes.extend(alpha.map(|a: f32| ("activation_alpha".into(), a.into())));
        agrees(&graph(17, &x, vec![gemm], vec![("w", values(&[4, 5])), ("c", values(&[5]))]), &x);
    }
}

#[test]
fn convolutions_of_onnx_runtime() {
    let x = values(&[1, 2, 5, 5]);
    let constants =
        || vec![("w", values(&[3, 2, 3, 3])), ("b", values(&[3])), ("z", values(&[1, 3, 5, 5]))];
    let conv = fused("FusedConv", &["x", "w", "b"]).with("pads", ints(&[1, 1, 1, 1]));
    for (activation, parameters) in [
        ("Relu", vec![]),
        ("Sigmoid", vec![]),
        ("LeakyRelu", vec![0.3]),
        ("Clip", vec![-0.5, 0.5]),
        ("HardSigmoid", vec![0.3, 0.4]),
    ] {
        let mut case = conv.clone().with("activation", activation);
        if !parameters.is_empty() {
            case.attributes.insert("activation_params".into(), Attribute::Floats(parameters));
        }
        agrees(&graph(17, &x, vec![case], constants()), &x);
    }
    let mut sum = conv.with("activation", "Relu");
    sum.inputs.push("z".into());
    agrees(&graph(17, &x, vec![sum], constants()), &x);
}

/// A function of the domain `local`.
fn function(name: &str, inputs: &[&str], outputs: &[&str], nodes: Vec<Node>) -> FunctionProto {
    let strings = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
    let import = |domain: &str, version| OperatorSetIdProto {
        domain: Some(domain.into()),
        version: Some(version),
        ..OperatorSetIdProto::default()
    };
    let body = Graph { opset: 17, nodes, ..Graph::default() };
    FunctionProto {
        name: Some(name.into()),
        domain: Some("local".into()),
        input: strings(inputs),
        output: strings(outputs),
        node: body.to_proto().graph.into_option().unwrap().node,
        opset_import: vec![import("", 17), import("local", 1)],
        ..FunctionProto::default()
    }
}

fn call(name: &str, inputs: &[&str], output: &str) -> Node {
    Node { domain: "local".into(), ..Node::new(name, inputs.iter().copied(), output) }
}

/// A float attribute whose value is the function's attribute `parameter`.
fn parameter(name: &str, parameter: &str) -> Attribute {
    Attribute::Other(Box::new(AttributeProto {
        name: Some(name.into()),
        ref_attr_name: Some(parameter.into()),
        r#type: Some(AttributeType::FLOAT),
        ..AttributeProto::default()
    }))
}

#[test]
fn functions_are_inlined() {
    let x = values(&[2, 3]);
    let body = vec![
        Node::new("LeakyRelu", ["a"], "t").with("alpha", parameter("alpha", "slope")),
        Node::new("Constant", [""; 0], "c").with("value_float", 0.5),
        Node::new("Add", ["t", "c"], "b"),
    ];
    let mut leaky = function("leaky", &["a"], &["b"], body);
    leaky.attribute = vec!["slope".into()];
    let body = vec![
        call("leaky", &["a"], "t").with("slope", 0.25),
        call("leaky", &["t"], "b").with("slope", 0.5),
        Node::new("Identity", ["b"], "same"),
    ];
    let twice = function("twice", &["a", "unused"], &["b", "same"], body);
    let nodes = vec![
        with_outputs(call("twice", &["x", ""], ""), &["t", "unread"]),
        with_outputs(call("twice", &["t", "x"], ""), &["u", "v"]),
        Node::new("Add", ["u", "v"], "y"),
    ];
    let mut source = graph(17, &x, nodes, vec![]);
    source.domains.insert("local".into(), 1);
    source.functions = vec![leaky, twice];
    let imported = agrees(&source, &x);
    assert!(imported.functions.is_empty() && imported.domains.is_empty());
    assert!(imported.nodes.iter().all(|n| n.domain.is_empty()));
}

#[test]
fn functions_that_grow_without_end_are_refused() {
    let x = values(&[1]);
    let endless = function("endless", &["a"], &["b"], vec![call("endless", &["a"], "b")]);
    let double = |name: &str, inner: &str| {
        function(name, &["a"], &["b"], vec![call(inner, &["a"], "t"), call(inner, &["t"], "b")])
    };
    let leaf = function("f0", &["a"], &["b"], vec![Node::new("Relu", ["a"], "b")]);
    let tower: Vec<_> = (1..40).map(|i| double(&format!("f{i}"), &format!("f{}", i - 1))).collect();
    for (functions, start, why) in [
        (vec![endless], "endless", "too deeply"),
        ([vec![leaf], tower].concat(), "f39", "expand to more than"),
    ] {
        let mut source = graph(17, &x, vec![call(start, &["x"], "y")], vec![]);
        source.domains.insert("local".into(), 1);
        source.functions = functions;
        let model = Model::from_bytes(&source.to_bytes().unwrap(), None).unwrap();
        let error = import(&model).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn tied_weights_stay_tied_and_look_alikes_part() {
    let x = values(&[2, 3]);
    let nodes = vec![
        Node::new("Identity", ["w"], "alias"),
        Node::new("MatMul", ["x", "w"], "a"),
        Node::new("Add", ["a", "zeros"], "b"),
        Node::new("MatMul", ["b", "alias"], "c"),
        Node::new("Add", ["c", "zeros"], "y"),
    ];
    let constants = vec![("w", values(&[3, 3])), ("zeros", Tensor::f32([3], vec![0.0; 3]))];
    let imported = agrees(&graph(13, &x, nodes, constants), &x);
    let inputs: Vec<_> = imported.nodes.iter().map(|n| n.inputs[1].as_str()).collect();
    assert_eq!(inputs, ["w", "zeros", "w", "zeros_2"]);
}
