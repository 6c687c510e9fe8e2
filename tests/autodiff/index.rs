use crate::harness::{Case, Random};
use hone::tensor::{Data, Tensor};

fn on(op: &str) -> Case {
    Case::new(op).floats(&[3, 4, 5], Random(31).values(60))
}

#[test]
fn gather_along_any_axis() {
    let repeated = Tensor::i64([2, 2], vec![0, 2, -1, 0]);
    let once = Tensor::i64([2], vec![2, -3]);
    let run = Tensor::i64([2], vec![1, 2]);
    let one = Tensor::i64([], vec![1]);
    let narrow = Tensor::new([2], Data::I32(vec![-1, 2])).unwrap();
    for axis in [0i64, 1, -1] {
        for indices in [&repeated, &once, &run, &one, &narrow] {
            on("Gather").with("axis", axis).tensor(indices.clone()).check();
            on("Gather").with("axis", axis).varying(indices.clone()).check();
        }
    }
}

#[test]
fn gather_elements_with_repetition() {
    let indices = Tensor::i64([2, 2, 3], vec![0, 1, 0, -1, 2, 2, 1, 1, 0, 0, 0, -3]);
    for axis in [0i64, 1, -1] {
        on("GatherElements").with("axis", axis).varying(indices.clone()).check();
    }
}

#[test]
fn gather_by_tuples() {
    let pairs = Tensor::i64([2, 2], vec![0, 1, 2, -1]);
    on("GatherND").varying(pairs.clone()).check();
    on("GatherND").varying(Tensor::i64([2, 1], vec![1, 1])).check();
    let batched = Tensor::i64([3, 2, 1], vec![0, 1, 3, 3, 2, -4]);
    on("GatherND").with("batch_dims", 1i64).varying(batched).check();
}

#[test]
fn scatter_writes_and_adds() {
    let pairs = Tensor::i64([2, 2], vec![0, 1, 2, 3]);
    let elements = Tensor::i64([1, 2, 3], vec![0, 1, 2, 2, 0, 1]);
    for reduction in ["none", "add"] {
        let updates = Random(32).values(10);
        on("ScatterND")
            .varying(pairs.clone())
            .floats(&[2, 5], updates.clone())
            .with("reduction", reduction)
            .check();
        on("ScatterElements")
            .varying(elements.clone())
            .floats(&[1, 2, 3], updates[..6].to_vec())
            .with("reduction", reduction)
            .check();
    }
}

#[test]
fn top_elements() {
    for (axis, largest) in [(-1i64, 1i64), (1, 0), (0, 1)] {
        Case::new("TopK")
            .floats(&[3, 4, 5], Random(33).distinct(60))
            .ints(&[2])
            .with("axis", axis)
            .with("largest", largest)
            .outputs(&["y0", "places"])
            .check();
    }
}
