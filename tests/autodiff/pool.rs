use crate::harness::{Case, Random};

#[test]
fn random_pools() {
    let mut r = Random(21);
    for round in 0..120 {
        let space = 1 + round % 3;
        let kernel: Vec<i64> = (0..space).map(|_| r.int(1, 3) as i64).collect();
        let stride: Vec<i64> = (0..space).map(|_| r.int(1, 3) as i64).collect();
        let dilation: Vec<i64> = (0..space).map(|_| r.int(1, 2) as i64).collect();
        let pads: Vec<i64> =
            (0..2 * space).map(|i| r.int(0, kernel[i % space] as usize - 1) as i64).collect();
        let length: Vec<usize> = (0..space).map(|_| r.int(5, 8)).collect();
        let x = [vec![r.int(1, 2), r.int(1, 3)], length].concat();
        let n = x.iter().product();
        let shared = |op: &str| {
            Case::new(op)
                .with("kernel_shape", kernel.clone())
                .with("strides", stride.clone())
                .with("pads", pads.clone())
                .with("ceil_mode", (round / 3 % 2) as i64)
        };
        shared("MaxPool").with("dilations", dilation.clone()).floats(&x, r.distinct(n)).check();
        let include = r.int(0, 1) as i64;
        for opset in [18, 22] {
            let average = shared("AveragePool").single().with("count_include_pad", include);
            average.opset(opset).floats(&x, r.values(n)).check();
        }
    }
}

#[test]
fn pools_with_automatic_padding() {
    let mut r = Random(22);
    for auto in ["SAME_UPPER", "SAME_LOWER", "VALID"] {
        for (size, kernel, stride) in [(7, 3, 2), (8, 2, 2), (6, 3, 1), (7, 2, 3)] {
            for op in ["MaxPool", "AveragePool"] {
                Case::new(op)
                    .single()
                    .with("auto_pad", auto)
                    .with("kernel_shape", vec![kernel, 2])
                    .with("strides", vec![stride, 2])
                    .floats(&[2, 2, size, 5], r.distinct(2 * 2 * size * 5))
                    .check();
            }
        }
    }
}

#[test]
fn max_pools_that_tile_and_max_pools_with_indices() {
    let mut r = Random(23);
    for shape in [&[2, 3, 6][..], &[2, 3, 6, 4], &[1, 2, 6, 4, 2]] {
        let kernel: Vec<i64> = vec![3, 2, 2][..shape.len() - 2].to_vec();
        let n = shape.iter().product();
        let case = Case::new("MaxPool")
            .with("kernel_shape", kernel.clone())
            .with("strides", kernel)
            .floats(shape, r.distinct(n));
        case.check();
        case.clone().outputs(&["y0", "places"]).check();
        case.outputs(&["y0", "places"]).with("storage_order", 1i64).check();
    }
}

#[test]
fn global_pools() {
    let mut r = Random(24);
    for shape in [&[2, 3, 5][..], &[2, 3, 4, 5], &[1, 2, 2, 3, 2]] {
        let n = shape.iter().product();
        Case::new("GlobalAveragePool").single().floats(shape, r.values(n)).check();
        Case::new("GlobalMaxPool").single().floats(shape, r.distinct(n)).check();
    }
}
