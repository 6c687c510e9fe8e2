//! The perceptron: h_0 = a(W_0 e + b_0) of the one-hot row e, then residual layers.

use crate::mam::networks::Size;
use crate::mam::networks::builder::Net;

/// Features of the row, `[B, hidden]`.
pub fn trunk(net: &mut Net, size: Size) -> String {
    let (row, width) = net.row();
    // The first layer sees one 1 per site.
    let scale = (2.0 / net.contract.length as f32).sqrt();
    let sum = net.affine(&row, "0", [width, size.hidden], scale);
    let first = net.active(&sum, "0.active");
    (1..size.layers).fold(first, |h, layer| net.residual(&h, &layer.to_string(), size.hidden))
}
