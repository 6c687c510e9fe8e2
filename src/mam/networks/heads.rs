//! What the heads make of a trunk's features.
//!
//! φ: logits = h W + b, b the log-frequencies of single sites; a perceptron has V e of the one-hot
//! row e besides.
//! θ: log p = g W + v·e + b + eᵀ A e / 10 with g the features of the row, or a residual layer on
//! those of the sites: their mean after a layer of its own, times √L, since log p grows with the
//! sites. v are log-frequencies. A = 0 at first: φ's sums along a chain are quadratic in e, which
//! hidden layers alone learn slowly (rows of more than 2048 do without). The factor keeps the
//! steps of L² entries that one row moves together small. Where sites are not told from each
//! other, v·e has one number per symbol and there is no A.

use crate::mam::contract::{LOG_P, LOGITS};
use crate::mam::networks::builder::Net;
use crate::mam::networks::{Features, Size};
use crate::onnx::Node;
use crate::tensor::Tensor;

/// The factor of the quadratic form.
const PAIRS: f32 = 0.1;

/// The widest one-hot row that has a quadratic form: 16 MiB of it.
const MOST_PAIRED: usize = 2048;

/// `LOGITS` `[B, L, K]`, which start at `log_p` of each site.
pub fn conditional(
    net: &mut Net,
    features: &Features,
    size: Size,
    log_p: &[Vec<f32>],
    knows_places: bool,
) {
    let (length, vocab) = (net.contract.length, net.contract.vocab);
    let scale = 0.1 / (size.hidden as f32).sqrt();
    match features {
        Features::Row(h) => {
            let outputs = length * vocab;
            let weight = net.weight("head.weight", &[size.hidden, outputs], scale);
            let bias = net.trained("head.bias", &[outputs], log_p.concat());
            let (row, width) = net.row();
            let direct = net.zeros("head.direct.weight", &[width, outputs]);
            let by_row = net.node("MatMul", &[&row, &direct], "by_row");
            let by_layers = net.node("Gemm", &[h, &weight, &bias], "by_layers");
            let output = net.node("Add", &[&by_layers, &by_row], "output");
            net.reshaped(&output, LOGITS, &[-1, length as i64, vocab as i64]);
        }
        Features::Sites(h) => {
            let weight = net.weight("head.weight", &[size.hidden, vocab], scale);
            let rows = if knows_places { length } else { 1 };
            let bias = net.trained("head.bias", &[rows, vocab], log_p[..rows].concat());
            let product = net.node("MatMul", &[h, &weight], "by_layers");
            net.push(Node::new("Add", [&product, &bias], LOGITS));
        }
    }
}

/// `LOG_P` `[B]`, which starts as the sum of `log_p` over what is known, plus `log_z`.
pub fn marginal(
    net: &mut Net,
    features: &Features,
    size: Size,
    log_p: &[Vec<f32>],
    log_z: f64,
    knows_places: bool,
) {
    let of_row = match features {
        Features::Row(h) => h.clone(),
        Features::Sites(h) => pooled(net, h, size.hidden),
    };
    let scale = 0.1 / (size.hidden as f32).sqrt();
    let weight = net.weight("head.weight", &[size.hidden, 1], scale);
    let bias = net.trained("head.bias", &[1], vec![log_z as f32]);
    let by_layers = net.node("Gemm", &[&of_row, &weight, &bias], "by_layers");
    // A missing site adds nothing.
    let direct = |site: &Vec<f32>| std::iter::once(0.0).chain(site.clone()).collect::<Vec<f32>>();
    let output = if knows_places {
        let (row, width) = net.row();
        let direct = log_p.iter().flat_map(direct).collect();
        let direct = net.trained("head.direct.weight", &[width, 1], direct);
        let by_row = net.node("MatMul", &[&row, &direct], "by_row");
        let output = net.node("Add", &[&by_layers, &by_row], "output");
        if width <= MOST_PAIRED { with_pairs(net, &row, width, &output) } else { output }
    } else {
        let symbols = net.symbols();
        let direct = net.trained("head.direct.weight", &[symbols, 1], direct(&log_p[0]));
        let counts = over_sites(net, "ReduceSum", "one_hot", "counts");
        let by_counts = net.node("MatMul", &[&counts, &direct], "by_counts");
        net.node("Add", &[&by_layers, &by_counts], "output")
    };
    net.reshaped(&output, LOG_P, &[-1]);
}

/// Features of the row from those of its sites: p = √L mean a(h U + u), then p + a(p W + b).
fn pooled(net: &mut Net, h: &str, width: usize) -> String {
    let length = net.contract.length;
    let sum = net.affine(h, "head.sites", [width, width], (2.0 / width as f32).sqrt());
    let active = net.active(&sum, "head.sites.active");
    let root = net.hold("root_length", Tensor::f32([], vec![(length as f32).sqrt()]));
    let output = net.own("head.mean");
    let mean = over_sites(net, "ReduceMean", &active, &output);
    let scaled = net.node("Mul", &[&mean, &root], "head.scaled");
    net.residual(&scaled, "head.row", width)
}

/// The mean or sum over the sites of `[B, L, C]`.
fn over_sites(net: &mut Net, op: &str, x: &str, output: &str) -> String {
    let axis = net.hold("site_axis", Tensor::i64([1], vec![1]));
    net.push(Node::new(op, [x, &axis], output).with("keepdims", 0i64))
}

/// output + eᵀ A e / 10.
fn with_pairs(net: &mut Net, row: &str, width: usize, output: &str) -> String {
    let matrix = net.zeros("head.pairs.weight", &[width, width]);
    // Summed by a product, whose rounding does not depend on the number of rows.
    let factor = net.hold("pairs_factor", Tensor::f32([width, 1], vec![PAIRS; width]));
    let product = net.node("MatMul", &[row, &matrix], "by_pairs");
    let terms = net.node("Mul", &[&product, row], "pair_terms");
    let scaled = net.node("MatMul", &[&terms, &factor], "pairs");
    net.node("Add", &[output, &scaled], "with_pairs")
}
