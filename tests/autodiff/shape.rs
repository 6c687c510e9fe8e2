use crate::harness::{Case, Random};
use hone::tensor::{Data, Tensor};

const SHAPE: &[usize] = &[2, 3, 4];

fn on(op: &str) -> Case {
    Case::new(op).floats(SHAPE, Random(6).values(24))
}

#[test]
fn the_same_elements() {
    on("Identity").check();
    on("Dropout").check();
    on("Flatten").check();
    on("Flatten").with("axis", -1i64).check();
    on("Reshape").ints(&[4, -1]).check();
    on("Reshape").ints(&[0, 2, 6]).check();
    on("Unsqueeze").ints(&[0, -1]).check();
    Case::new("Squeeze").floats(&[1, 3, 1, 2], Random(6).values(6)).ints(&[0, -2]).check();
    Case::new("Squeeze").floats(&[1, 3, 1, 2], Random(6).values(6)).check();
    on("Cast").single().with("to", 11i64).check();
    on("Expand").ints(&[5, 1, 1, 4]).check();
    Case::new("Expand").floats(&[3, 1], Random(6).values(3)).ints(&[2, 1, 4]).check();
    on("Transpose").check();
    for order in [vec![0, 2, 1], vec![2, 0, 1], vec![1, 2, 0]] {
        on("Transpose").with("perm", order).check();
    }
}

#[test]
fn joining_and_parting() {
    for axis in [0i64, 1, -1] {
        on("Concat").floats(SHAPE, Random(8).values(24)).with("axis", axis).check();
    }
    on("Concat").floats(&[2, 1, 4], Random(8).values(8)).with("axis", 1i64).check();
    on("Split").ints(&[1, 2]).with("axis", 1i64).outputs(&["y0", "y1"]).check();
    on("Split").with("num_outputs", 2i64).with("axis", -1i64).outputs(&["y0", "y1"]).check();
}

#[test]
fn slices_of_every_kind() {
    let cases: &[[&[i64]; 4]] = &[
        [&[0], &[2], &[1], &[1]],
        [&[1], &[1000], &[2], &[1]],
        [&[-2], &[i64::MAX], &[-1], &[1]],
        [&[0], &[4], &[2], &[2]],
        [&[1], &[4], &[2], &[2]],
        [&[-1], &[i64::MIN], &[2], &[-1]],
        [&[3], &[0], &[2], &[-1]],
        [&[1000], &[-5], &[2], &[-2]],
        [&[1, 0], &[2, 3], &[0, 2], &[1, 2]],
        [&[-1, 0], &[-3, 2], &[1, 0], &[-1, 1]],
        [&[-100], &[2], &[1], &[1]],
    ];
    for [starts, ends, axes, steps] in cases {
        on("Slice").ints(starts).ints(ends).ints(axes).ints(steps).check();
    }
    on("Slice").ints(&[0, 1]).ints(&[1, 3]).check();
    on("Slice").ints(&[1]).ints(&[3]).ints(&[1]).check();
}

#[test]
fn padding_of_every_mode() {
    on("Pad").ints(&[1, 0, 2, 0, 1, 0]).check();
    on("Pad").ints(&[1, 0, 2, 0, 1, 0]).floats(&[], vec![0.3]).check();
    on("Pad").ints(&[0, -1, 2, 1, 0, -1]).check();
    on("Pad").ints(&[0, -1, 0, 0, 0, -1]).check();
    on("Pad").ints(&[1, 2]).absent().ints(&[-1]).check();
    for mode in ["reflect", "edge", "wrap"] {
        let opset = if mode == "wrap" { 19 } else { 18 };
        on("Pad").opset(opset).with("mode", mode).ints(&[0, 2, 1, 1, 0, 3]).check();
    }
}

#[test]
fn repetition_and_triangles() {
    on("Tile").ints(&[2, 1, 3]).check();
    on("Tile").ints(&[1, 1, 1]).check();
    for upper in [0i64, 1] {
        let offset = Tensor::i64([], vec![1]);
        on("Trilu").with("upper", upper).check();
        on("Trilu").with("upper", upper).tensor(offset).check();
    }
}

#[test]
fn depth_and_space() {
    let deep = Random(6).values(2 * 12 * 2 * 3);
    for mode in ["DCR", "CRD"] {
        let case = Case::new("DepthToSpace").with("blocksize", 2i64).with("mode", mode);
        case.floats(&[2, 12, 2, 3], deep.clone()).check();
    }
    let case = Case::new("SpaceToDepth").with("blocksize", 2i64);
    case.floats(&[2, 3, 4, 6], Random(6).values(144)).check();
}

#[test]
fn dropout_outside_training_ignores_its_ratio() {
    let off = Tensor::new([], Data::Bool(vec![false])).unwrap();
    on("Dropout").fixed(&[], vec![0.5]).tensor(off).check();
}
