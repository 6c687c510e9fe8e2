use crate::harness::{Case, Random};

/// The window along one axis and the length of that axis.
struct Window {
    kernel: usize,
    stride: usize,
    dilation: usize,
    before: usize,
    after: usize,
    length: usize,
}

/// A random window and a length that admits it.
fn window(r: &mut Random) -> Window {
    let (kernel, stride, dilation) = (r.int(1, 4), r.int(1, 3), r.int(1, 3));
    let (before, after) = (r.int(0, 4), r.int(0, 4));
    let extent = (kernel - 1) * dilation + 1;
    let length = extent.saturating_sub(before + after).max(1) + r.int(0, 5);
    Window { kernel, stride, dilation, before, after, length }
}

fn signed(v: &[usize]) -> Vec<i64> {
    v.iter().map(|&x| x as i64).collect()
}

#[test]
fn random_convolutions() {
    let mut r = Random(11);
    for round in 0..160 {
        let space = 1 + round % 3;
        let windows: Vec<_> = (0..space).map(|_| window(&mut r)).collect();
        let list = |f: fn(&Window) -> usize| windows.iter().map(f).collect::<Vec<_>>();
        let depthwise = round % 4 == 3;
        let group = r.int(1, 3);
        let (per_in, per_out) = (if depthwise { 1 } else { r.int(1, 3) }, r.int(1, 2));
        let batch = r.int(1, 3);
        let x = [vec![batch, group * per_in], list(|w| w.length)].concat();
        let w = [vec![group * per_out, per_in], list(|w| w.kernel)].concat();
        let mut case = Case::new("Conv")
            .single()
            .with("strides", signed(&list(|w| w.stride)))
            .with("dilations", signed(&list(|w| w.dilation)))
            .with("pads", signed(&[list(|w| w.before), list(|w| w.after)].concat()))
            .with("group", group as i64)
            .floats(&x, r.values(x.iter().product()))
            .floats(&w, r.values(w.iter().product()));
        if r.chance() {
            case = case.floats(&[group * per_out], r.values(group * per_out));
        }
        case.check();
    }
}

#[test]
fn convolutions_with_automatic_padding() {
    let mut r = Random(12);
    for auto in ["SAME_UPPER", "SAME_LOWER", "VALID"] {
        for (size, kernel, stride) in [(7, 3, 2), (8, 3, 2), (6, 4, 1), (7, 2, 3), (9, 1, 2)] {
            for group in [1, 2] {
                Case::new("Conv")
                    .single()
                    .with("auto_pad", auto)
                    .with("strides", vec![stride, 1])
                    .with("group", group as i64)
                    .floats(&[2, 2, size, 6], r.values(2 * 2 * size * 6))
                    .floats(&[4, 2 / group, kernel, 2], r.values(4 * 2 / group * kernel * 2))
                    .check();
            }
        }
    }
}

#[test]
fn random_transposed_convolutions() {
    let mut r = Random(13);
    for round in 0..80 {
        let space = 1 + round % 3;
        let (group, per_in, per_out) = (r.int(1, 3), r.int(1, 2), r.int(1, 2));
        let kernel: Vec<_> = (0..space).map(|_| r.int(1, 3)).collect();
        let stride: Vec<_> = (0..space).map(|_| r.int(1, 3)).collect();
        let dilation: Vec<_> = (0..space).map(|_| r.int(1, 2)).collect();
        let extra: Vec<_> = (0..space).map(|i| r.int(0, stride[i] - 1)).collect();
        let length: Vec<_> = (0..space).map(|_| r.int(2, 4)).collect();
        let pad = |r: &mut Random| -> Vec<usize> {
            (0..space).map(|i| r.int(0, (kernel[i] - 1) * dilation[i] / 2)).collect()
        };
        let pads = [pad(&mut r), pad(&mut r)].concat();
        let x = [vec![r.int(1, 2), group * per_in], length].concat();
        let w = [vec![group * per_in, per_out], kernel.clone()].concat();
        Case::new("ConvTranspose")
            .single()
            .with("strides", signed(&stride))
            .with("dilations", signed(&dilation))
            .with("output_padding", signed(&extra))
            .with("pads", signed(&pads))
            .with("group", group as i64)
            .floats(&x, r.values(x.iter().product()))
            .floats(&w, r.values(w.iter().product()))
            .floats(&[group * per_out], r.values(group * per_out))
            .check();
    }
}

#[test]
fn transposed_convolutions_with_a_given_output_shape() {
    let mut r = Random(14);
    for auto in ["NOTSET", "SAME_UPPER", "SAME_LOWER"] {
        Case::new("ConvTranspose")
            .single()
            .with("auto_pad", auto)
            .with("strides", vec![2, 3])
            .with("output_shape", vec![8, 9])
            .floats(&[1, 2, 4, 3], r.values(24))
            .floats(&[2, 2, 3, 4], r.values(48))
            .check();
        Case::new("ConvTranspose")
            .single()
            .with("auto_pad", if auto == "NOTSET" { "VALID" } else { auto })
            .with("strides", vec![2, 2])
            .floats(&[1, 2, 4, 3], r.values(24))
            .floats(&[2, 2, 3, 3], r.values(36))
            .check();
    }
}
