use crate::harness::{Case, Random};

const COORDINATES: [&str; 5] =
    ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"];

/// A resize of a [2, 3, 5, 4] input by the attributes that follow.
fn case(r: &mut Random) -> Case {
    Case::new("Resize").single().floats(&[2, 3, 5, 4], r.values(120)).absent()
}

#[test]
fn nearest_in_every_coordinate_mode() {
    let mut r = Random(91);
    for coordinates in COORDINATES {
        for nearest in ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"] {
            let [height, width] = [r.int(2, 11) as i64, r.int(2, 11) as i64];
            case(&mut r)
                .absent()
                .ints(&[2, 3, height, width])
                .with("coordinate_transformation_mode", coordinates)
                .with("nearest_mode", nearest)
                .check();
        }
    }
}

#[test]
fn linear_and_cubic_up_and_down() {
    let mut r = Random(92);
    for coordinates in COORDINATES {
        for (mode, exclude) in [("linear", 0), ("cubic", 0), ("cubic", 1)] {
            for size in [[10, 8], [3, 7], [1, 4]] {
                case(&mut r)
                    .absent()
                    .ints(&[2, 3, size[0], size[1]])
                    .with("mode", mode)
                    .with("exclude_outside", exclude as i64)
                    .with("coordinate_transformation_mode", coordinates)
                    .check();
            }
        }
    }
}

#[test]
fn scales_count_and_not_the_lengths_they_lead_to() {
    let mut r = Random(93);
    for mode in ["nearest", "linear"] {
        for scales in [[2.0, 2.0], [1.3, 0.6], [2.7, 1.0]] {
            let scales = vec![1.0, 1.0, scales[0], scales[1]];
            case(&mut r).fixed(&[4], scales).with("mode", mode).check_first();
        }
    }
}
