//! The transformer: every site is a token, its symbol's vector plus its place's, and sees all
//! others. A block is h ← h + O softmax(Q Kᵀ / √d) V with Q, K, V affine in the normalised h, then
//! h ← h + W₂ a(W₁ n + b₁) + b₂ with n the normalised h and W₁ twice as wide.

use crate::mam::networks::Size;
use crate::mam::networks::builder::Net;
use crate::onnx::Node;
use crate::tensor::Tensor;

/// How many times wider the hidden layer of a block is.
const WIDER: usize = 2;

/// Features of the sites, `[B, L, hidden]`.
pub fn trunk(net: &mut Net, size: Size, heads: usize) -> String {
    let (length, width) = (net.contract.length, size.hidden);
    let shape = [net.symbols(), width];
    let symbols = net.weight("symbols.weight", &shape, 1.0);
    let places = net.weight("places.weight", &[length, width], 1.0);
    let symbols = net.node("MatMul", &["one_hot", &symbols], "symbols");
    let mut h = net.node("Add", &[&symbols, &places], "tokens");
    for layer in 0..size.layers {
        // Together the blocks add as much as there was.
        let scale = 1.0 / (2 * size.layers * width) as f32;
        let normal = normalised(net, &h, &format!("{layer}.attention"), width);
        let seen = attention(net, &normal, layer, width, heads);
        let name = format!("{layer}.out");
        let seen = net.affine(&seen, &name, [width, width], scale.sqrt());
        h = net.node("Add", &[&h, &seen], &format!("{layer}.seen"));
        let normal = normalised(net, &h, &format!("{layer}.layer"), width);
        let (name, wide) = (format!("{layer}.wide"), WIDER * width);
        let sum = net.affine(&normal, &name, [width, wide], (2.0 / width as f32).sqrt());
        let active = net.active(&sum, &format!("{layer}.active"));
        let name = format!("{layer}.narrow");
        let change = net.affine(&active, &name, [wide, width], (scale / WIDER as f32).sqrt());
        h = net.node("Add", &[&h, &change], &format!("{layer}.hidden"));
    }
    normalised(net, &h, "last", width)
}

/// softmax(Q Kᵀ / √d) V with d channels in each head.
fn attention(net: &mut Net, x: &str, layer: usize, width: usize, heads: usize) -> String {
    let (length, each) = (net.contract.length as i64, width / heads);
    let part = |net: &mut Net, what: &str, permutation: [i64; 4], scale: f32| {
        let name = format!("{layer}.{what}");
        let part = net.affine(x, &name, [width, width], scale / (width as f32).sqrt());
        let split = net.own(&format!("{name}.split"));
        let split = net.reshaped(&part, &split, &[-1, length, heads as i64, each as i64]);
        let output = net.own(&format!("{name}.turned"));
        net.push(Node::new("Transpose", [split], output).with("perm", permutation.to_vec()))
    };
    let q = part(net, "query", [0, 2, 1, 3], 1.0);
    let k = part(net, "key", [0, 2, 3, 1], 1.0);
    let v = part(net, "value", [0, 2, 1, 3], 1.0);
    let root = net.hold("root", Tensor::f32([], vec![1.0 / (each as f32).sqrt()]));
    let product = net.node("MatMul", &[&q, &k], &format!("{layer}.product"));
    let scaled = net.node("Mul", &[&product, &root], &format!("{layer}.scores"));
    let output = net.own(&format!("{layer}.weights"));
    let weights = net.push(Node::new("Softmax", [scaled], output).with("axis", -1i64));
    let seen = net.node("MatMul", &[&weights, &v], &format!("{layer}.by_head"));
    let output = net.own(&format!("{layer}.by_site"));
    let seen = net.push(Node::new("Transpose", [seen], output).with("perm", vec![0i64, 2, 1, 3]));
    let output = net.own(&format!("{layer}.together"));
    net.reshaped(&seen, &output, &[-1, length, width as i64])
}

/// γ (h − mean) / deviation + β over the channels of a site.
fn normalised(net: &mut Net, h: &str, name: &str, width: usize) -> String {
    let scale = net.trained(&format!("{name}.scale"), &[width], vec![1.0; width]);
    let shift = net.zeros(&format!("{name}.shift"), &[width]);
    let output = net.own(&format!("{name}.normal"));
    net.push(Node::new("LayerNormalization", [h, &scale, &shift], output).with("axis", -1i64))
}
