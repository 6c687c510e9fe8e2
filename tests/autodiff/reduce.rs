use crate::harness::{Case, Random};

const SHAPE: &[usize] = &[2, 3, 4];

#[test]
fn reductions_over_any_axes() {
    let axes: &[&[i64]] = &[&[0], &[1], &[-1], &[0, 2], &[-2, -1], &[0, 1, 2], &[]];
    let ops = [
        "ReduceSum",
        "ReduceMean",
        "ReduceMax",
        "ReduceMin",
        "ReduceProd",
        "ReduceL1",
        "ReduceL2",
        "ReduceSumSquare",
        "ReduceLogSum",
        "ReduceLogSumExp",
    ];
    for op in ops {
        for &axes in axes {
            for keep in [0i64, 1] {
                let x: Vec<f64> = match op {
                    "ReduceMax" | "ReduceMin" => Random(3).distinct(24),
                    "ReduceLogSum" => Random(3).values(24).iter().map(|v| v.abs()).collect(),
                    _ => Random(3).values(24),
                };
                let case = Case::new(op).with("keepdims", keep).floats(SHAPE, x);
                case.clone().ints(axes).check();
                if axes.is_empty() {
                    case.clone().check();
                    let idle = case.ints(axes).with("noop_with_empty_axes", 1i64);
                    idle.check();
                }
            }
        }
    }
}

#[test]
fn products_with_zeros() {
    let x = vec![2.0, 0.0, -3.0, 4.0, 0.0, 0.0, 5.0, 7.0, 1.0, 2.0, 3.0, 4.0];
    Case::new("ReduceProd").floats(&[3, 4], x).ints(&[1]).check();
}

#[test]
fn cumulative_sums() {
    for axis in [0i64, 1, -1] {
        for (exclusive, reverse) in [(0i64, 0i64), (0, 1), (1, 0), (1, 1)] {
            Case::new("CumSum")
                .with("exclusive", exclusive)
                .with("reverse", reverse)
                .floats(SHAPE, Random(3).values(24))
                .tensor(hone::tensor::Tensor::i64([], vec![axis]))
                .check();
        }
    }
}
