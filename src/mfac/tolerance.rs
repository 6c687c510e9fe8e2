//! What the tests of this module hold results to, in one place: the classes of agreement, dense
//! references in f64, and gradients that are hard on the numerics.

/// Unit roundoff of f32.
const EPSILON: f64 = f32::EPSILON as f64 / 2.0;

/// Agreement bit for bit.
pub fn assert_exact(got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(g.to_bits() == w.to_bits(), "at {i}: {g} is not exactly {w}");
    }
}

/// Agreement up to the rounding of an f32 sum of `terms` products of numbers near one.
pub fn assert_rounding(got: &[f64], want: &[f64], terms: usize) {
    let scale = want.iter().fold(1.0f64, |m, w| m.max(w.abs()));
    assert_within(got, want, 8.0 * EPSILON * scale * (terms.max(1) as f64).sqrt());
}

/// Agreement of each element to `relative` of the larger of its own size and `floor`.
pub fn assert_approximate(got: &[f64], want: &[f64], relative: f64, floor: f64) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let bound = relative * w.abs().max(floor);
        assert!((g - w).abs() <= bound, "at {i}: {g:e} for {w:e} (off by more than {bound:e})");
    }
}

fn assert_within(got: &[f64], want: &[f64], absolute: f64) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(
            (g - w).abs() <= absolute,
            "at {i}: {g:e} for {w:e} (off by more than {absolute:e})"
        );
    }
}

/// GᵀG of the m×d matrix `g`, dense, in f64.
pub fn gram_columns(g: &[f32], m: usize, d: usize) -> Vec<f64> {
    let mut out = vec![0.0; d * d];
    for row in g.chunks_exact(d.max(1)).take(m) {
        for (out, &a) in out.chunks_exact_mut(d.max(1)).zip(row) {
            for (out, &b) in out.iter_mut().zip(row) {
                *out += f64::from(a) * f64::from(b);
            }
        }
    }
    out
}

/// A small counter-based generator (SplitMix64), so that tests need no dependency.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in (0, 1].
    pub fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal (Box–Muller).
    pub fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }

    pub fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal() as f32).collect()
    }
}
