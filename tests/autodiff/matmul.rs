use crate::harness::{Case, Random};

#[test]
fn gemm_with_all_flags() {
    for (ta, tb) in [(0i64, 0i64), (0, 1), (1, 0), (1, 1)] {
        for bias in [&[][..], &[4], &[3, 1], &[3, 4]] {
            let a: &[usize] = if ta == 1 { &[5, 3] } else { &[3, 5] };
            let b: &[usize] = if tb == 1 { &[4, 5] } else { &[5, 4] };
            Case::new("Gemm")
                .with("transA", ta)
                .with("transB", tb)
                .with("alpha", 0.7f32)
                .with("beta", 1.3f32)
                .floats(a, Random(1).values(15))
                .floats(b, Random(2).values(20))
                .floats(bias, Random(3).values(bias.iter().product()))
                .check();
        }
    }
    Case::new("Gemm")
        .floats(&[3, 5], Random(1).values(15))
        .floats(&[5, 2], Random(2).values(10))
        .check();
}

#[test]
fn matmul_of_every_rank() {
    let shapes: &[(&[usize], &[usize])] = &[
        (&[3, 5], &[5, 4]),
        (&[5], &[5]),
        (&[5], &[5, 4]),
        (&[3, 5], &[5]),
        (&[2, 3, 5], &[5, 4]),
        (&[2, 3, 5], &[2, 5, 4]),
        (&[2, 3, 5], &[5]),
        (&[5], &[2, 5, 4]),
        (&[3, 5], &[2, 5, 4]),
        (&[2, 1, 3, 5], &[3, 5, 4]),
        (&[1, 3, 5], &[2, 5, 4]),
    ];
    for &(a, b) in shapes {
        let (n, m) = (a.iter().product(), b.iter().product());
        Case::new("MatMul").floats(a, Random(1).values(n)).floats(b, Random(2).values(m)).check();
    }
}
