use crate::harness::{Case, Random};
use hone::tensor::{Data, Tensor};

const SHAPE: &[usize] = &[2, 3, 4];

fn unary(op: &str) -> Case {
    Case::new(op).floats(SHAPE, Random(7).values(24))
}

/// Operators that ONNX Runtime computes in float32 only.
fn unary_single(op: &str) -> Case {
    Case::new(op).single().floats(SHAPE, Random(7).values(24))
}

fn positive(op: &str) -> Case {
    Case::new(op).floats(SHAPE, Random(7).values(24).iter().map(|v| v.abs() + 0.1).collect())
}

fn inside(op: &str) -> Case {
    Case::new(op).single().floats(SHAPE, Random(7).values(24).iter().map(|v| 0.8 * v).collect())
}

#[test]
fn functions_of_one_operand() {
    for op in ["Abs", "Neg", "Exp", "Reciprocal", "Tanh", "Sigmoid", "Relu"] {
        unary(op).check();
    }
    for op in ["Erf", "Sin", "Cos", "Tan", "Atan", "Asinh", "Sinh", "Cosh"] {
        unary_single(op).check();
    }
    for op in ["Sqrt", "Log"] {
        positive(op).check();
    }
    for op in ["Acos", "Asin", "Atanh"] {
        inside(op).check();
    }
    let above = Random(7).values(24).iter().map(|v| 1.2 + v.abs()).collect();
    Case::new("Acosh").single().floats(SHAPE, above).check();
}

#[test]
fn activations() {
    for op in ["Elu", "Selu", "Celu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish"] {
        unary_single(op).check();
    }
    for op in ["Softplus", "Softsign"] {
        unary_single(op).check();
    }
    for op in ["Elu", "Celu"] {
        unary_single(op).with("alpha", 1.7f32).check();
    }
    unary_single("Selu").with("alpha", 1.3f32).with("gamma", 0.7f32).check();
    unary_single("HardSigmoid").with("alpha", 1.538f32).with("beta", 0.538f32).check();
    unary_single("LeakyRelu").with("alpha", -0.3f32).check();
    unary_single("ThresholdedRelu").with("alpha", 0.05f32).check();
    let wide = Random(3).values(24).iter().map(|v| 5.0 * v).collect();
    Case::new("HardSwish").single().floats(SHAPE, wide).check();
    for approximate in ["none", "tanh"] {
        unary_single("Gelu").opset(20).with("approximate", approximate).check();
    }
}

#[test]
fn prelu_broadcasts_its_slope() {
    for slope in [&[4][..], &[3, 1], &[1], &[2, 3, 4]] {
        let n = slope.iter().product();
        unary_single("PRelu").floats(slope, Random(9).values(n)).check();
    }
}

#[test]
fn clip_passes_what_lies_between_its_bounds() {
    let x = Random(5).distinct(24);
    Case::new("Clip")
        .floats(SHAPE, x.clone())
        .floats(&[], vec![-1.05])
        .floats(&[], vec![1.32])
        .check();
    Case::new("Clip").floats(SHAPE, x.clone()).floats(&[], vec![-1.05]).check();
    Case::new("Clip").floats(SHAPE, x.clone()).absent().floats(&[], vec![0.45]).check();
    Case::new("Clip").floats(SHAPE, x).check();
}

#[test]
fn softmax_and_its_logarithm() {
    for op in ["Softmax", "LogSoftmax"] {
        for axis in [-1i64, 0, 1] {
            unary(op).with("axis", axis).check();
        }
        unary(op).check();
    }
}

#[test]
fn two_operands_broadcast() {
    let shapes: &[(&[usize], &[usize])] = &[
        (&[2, 3, 4], &[2, 3, 4]),
        (&[2, 3, 4], &[4]),
        (&[2, 3, 4], &[3, 1]),
        (&[3, 1], &[2, 1, 4]),
        (&[1], &[2, 3]),
        (&[], &[2, 3]),
    ];
    for op in ["Add", "Sub", "Mul", "Div"] {
        for &(a, b) in shapes {
            let (n, m) = (a.iter().product(), b.iter().product());
            let b_values = Random(2).values(m).iter().map(|v| v + v.signum()).collect();
            Case::new(op).floats(a, Random(1).values(n)).floats(b, b_values).check();
        }
    }
}

#[test]
fn powers() {
    let base: Vec<f64> = Random(1).values(12).iter().map(|v| v.abs() + 0.2).collect();
    Case::new("Pow").floats(&[3, 4], base.clone()).floats(&[4], Random(2).values(4)).check();
    for exponent in [0.0, 1.0, 2.0, 3.0, 0.5, -1.5] {
        Case::new("Pow").floats(&[3, 4], base.clone()).floats(&[], vec![exponent]).check();
        let mixed = Random(3).values(12);
        if exponent.fract() == 0.0 {
            Case::new("Pow").floats(&[3, 4], mixed).fixed(&[1], vec![exponent]).check();
        }
    }
    let whole = Tensor::new([4], Data::I64(vec![2, 3, 1, 0])).unwrap();
    Case::new("Pow").floats(&[3, 4], base).tensor(whole).check();
}

#[test]
fn many_operands() {
    for op in ["Sum", "Mean", "Max", "Min"] {
        let values = Random(4).distinct(12 + 4 + 3);
        Case::new(op)
            .single()
            .floats(&[3, 4], values[..12].to_vec())
            .floats(&[4], values[12..16].to_vec())
            .floats(&[3, 1], values[16..].to_vec())
            .check();
        Case::new(op).single().floats(&[3, 4], values[..12].to_vec()).check();
    }
}

#[test]
fn where_routes_by_its_condition() {
    let condition = Tensor::new([3, 1], Data::Bool(vec![true, false, true])).unwrap();
    Case::new("Where")
        .varying(condition)
        .floats(&[3, 4], Random(1).values(12))
        .floats(&[4], Random(2).values(4))
        .check();
}
