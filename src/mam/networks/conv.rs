//! The convolutional net over two sides: 3×3 convolutions of the one-hot image, the first to the
//! width, then residual ones. An edge is padded by zeros, and each site has a vector of its own
//! that the first layer adds; on a torus the image wraps around and no site is told from others,
//! so that a shifted image has shifted logits and the same log p.

use crate::error::{Result, error};
use crate::mam::contract::Contract;
use crate::mam::networks::Size;
use crate::mam::networks::builder::Net;
use crate::onnx::Node;
use crate::tensor::Tensor;

/// Features of the sites, `[B, L, hidden]`.
pub fn trunk(net: &mut Net, size: Size, torus: bool) -> Result<String> {
    let [rows, columns] = sides(net.contract)?;
    let (length, symbols, width) = (net.contract.length, net.symbols(), size.hidden);
    let turn = |x: &str, to: &str| Node::new("Transpose", [x], to).with("perm", vec![0i64, 2, 1]);
    net.push(turn("one_hot", "channels"));
    let dims = [-1, symbols as i64, rows as i64, columns as i64];
    let image = net.reshaped("channels", "image", &dims);
    let sum = convolved(net, &image, "0", [width, symbols], torus);
    let sum = if torus {
        sum
    } else {
        let places = net.zeros("places.weight", &[width, rows, columns]);
        net.node("Add", &[&sum, &places], "placed")
    };
    let mut h = net.active(&sum, "0.active");
    for layer in 1..size.layers {
        let sum = convolved(net, &h, &layer.to_string(), [width, width], torus);
        let active = net.active(&sum, &format!("{layer}.active"));
        h = net.node("Add", &[&h, &active], &format!("{layer}.hidden"));
    }
    let output = net.own("channels");
    let flat = net.reshaped(&h, &output, &[-1, width as i64, length as i64]);
    let sites = net.own("sites");
    Ok(net.push(turn(&flat, &sites)))
}

/// The two sides in which rows are laid out. An error of kind `Usage` if there are none.
pub fn sides(contract: &Contract) -> Result<[usize; 2]> {
    let shape = contract.shape.clone().unwrap_or_default();
    let long: Vec<usize> = shape.iter().copied().filter(|&n| n > 1).collect();
    <[usize; 2]>::try_from(long).map_err(|_| {
        let known = if shape.is_empty() { "none".into() } else { format!("{shape:?}") };
        error!(
            Usage,
            "a convolutional net needs rows with two sides, such as 28,28; the sides of these are \
             {known}: give --shape"
        )
    })
}

/// W ∗ x + b with W of 3×3.
fn convolved(net: &mut Net, x: &str, layer: &str, [out, inn]: [usize; 2], torus: bool) -> String {
    // The first layer sees one 1 per site.
    let fan_in = if layer == "0" { 9 } else { 9 * inn };
    let scale = (2.0 / fan_in as f32).sqrt();
    let weight = net.weight(&format!("{layer}.weight"), &[out, inn, 3, 3], scale);
    let bias = net.zeros(&format!("{layer}.bias"), &[out]);
    let (x, pads) = if torus {
        let pads = net.hold("pads", Tensor::i64([8], vec![0, 0, 1, 1, 0, 0, 1, 1]));
        // The image itself is wrapped once for both halves.
        let output =
            if layer == "0" { "wrapped".into() } else { net.own(&format!("{layer}.wrapped")) };
        (net.push(Node::new("Pad", [x, &pads], output).with("mode", "wrap")), 0)
    } else {
        (x.to_string(), 1)
    };
    let output = net.own(&format!("{layer}.sum"));
    net.push(Node::new("Conv", [&x, &weight, &bias], output).with("pads", vec![pads as i64; 4]))
}
