use crate::harness::{Case, Random};

fn positive(seed: u64, n: usize) -> Vec<f64> {
    Random(seed).values(n).iter().map(|v| v.abs() + 0.2).collect()
}

#[test]
fn batch_normalization_in_inference() {
    for shape in [&[2, 3][..], &[2, 3, 5], &[2, 3, 4, 2], &[1, 3, 2, 2, 2]] {
        Case::new("BatchNormalization")
            .with("epsilon", 1e-3f32)
            .floats(shape, Random(1).values(shape.iter().product()))
            .floats(&[3], Random(2).values(3))
            .floats(&[3], Random(3).values(3))
            .floats(&[3], Random(4).values(3))
            .floats(&[3], positive(5, 3))
            .check();
    }
}

#[test]
fn layer_normalization_and_its_statistics() {
    for (axis, width) in [(-1i64, &[5][..]), (1, &[4, 5]), (0, &[3, 4, 5])] {
        let n = width.iter().product();
        let case = Case::new("LayerNormalization")
            .with("axis", axis)
            .floats(&[3, 4, 5], Random(1).values(60))
            .floats(width, Random(2).values(n));
        case.clone().check();
        case.clone().floats(width, Random(3).values(n)).check();
    }
    Case::new("LayerNormalization")
        .single()
        .floats(&[3, 4, 5], Random(1).values(60))
        .floats(&[5], Random(2).values(5))
        .floats(&[5], Random(2).values(5))
        .outputs(&["y0", "mean", "inverse"])
        .check();
}

#[test]
fn instance_and_group_normalization() {
    for shape in [&[2, 4, 5][..], &[2, 4, 3, 2]] {
        let x = Random(1).values(shape.iter().product());
        Case::new("InstanceNormalization")
            .single()
            .floats(shape, x.clone())
            .floats(&[4], Random(2).values(4))
            .floats(&[4], Random(3).values(4))
            .check();
        Case::new("GroupNormalization")
            .single()
            .opset(21)
            .with("num_groups", 2i64)
            .floats(shape, x)
            .floats(&[4], Random(2).values(4))
            .floats(&[4], Random(3).values(4))
            .check();
    }
}

#[test]
fn norms_without_a_mean() {
    for axis in [-1i64, 1] {
        let width: &[usize] = if axis == 1 { &[4, 5] } else { &[5] };
        Case::new("RMSNormalization")
            .single()
            .opset(23)
            .with("axis", axis)
            .floats(&[3, 4, 5], Random(1).values(60))
            .floats(width, Random(2).values(width.iter().product()))
            .check();
        for p in [1i64, 2] {
            Case::new("LpNormalization")
                .with("axis", axis)
                .with("p", p)
                .floats(&[3, 4, 5], Random(1).values(60))
                .check();
        }
    }
}
