//! Products of a few rows of G with vectors: rows come in f32, sums are kept in f64.
//!
//! These passes wait for memory, so the wider arithmetic costs nothing and spares F⁻¹x the rounding
//! that its cancellation at small damping would magnify. Four rows at a time keep several streams
//! of reads going and load each element of x once for the four.
#![allow(unsafe_code, reason = "functions compiled for processor features, else safe code")]

/// Rows taken together.
pub const ROWS: usize = 4;
const LANES: usize = 8;

/// `out[i] += Σ_j rows[i][j]·x[j]`, in a fixed order.
///
/// Panics when a row is shorter than `x`.
pub fn dot(rows: [&[f32]; ROWS], x: &[f64], out: &mut [f64; ROWS]) {
    let rows = rows.map(|row| &row[..x.len()]);
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the processor has both features; the function is safe otherwise.
        return unsafe { dot_avx2(rows, x, out) };
    }
    dot_any(rows, x, out, |a, b, c| a * b + c);
}

/// `y[j] += Σ_i factors[i]·rows[i][j]`.
///
/// Panics when a row is shorter than `y`.
pub fn add(rows: [&[f32]; ROWS], factors: [f64; ROWS], y: &mut [f64]) {
    let rows = rows.map(|row| &row[..y.len()]);
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the processor has both features; the function is safe otherwise.
        return unsafe { add_avx2(rows, factors, y) };
    }
    add_any(rows, factors, y, |a, b, c| a * b + c);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn dot_avx2(rows: [&[f32]; ROWS], x: &[f64], out: &mut [f64; ROWS]) {
    dot_any(rows, x, out, f64::mul_add);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn add_avx2(rows: [&[f32]; ROWS], factors: [f64; ROWS], y: &mut [f64]) {
    add_any(rows, factors, y, f64::mul_add);
}

#[inline(always)]
fn dot_any(
    rows: [&[f32]; ROWS],
    x: &[f64],
    out: &mut [f64; ROWS],
    multiply_add: impl Fn(f64, f64, f64) -> f64,
) {
    let [a, b, c, d] = rows;
    let mut sums = [[0.0f64; LANES]; ROWS];
    let whole = x.len() - x.len() % LANES;
    for j in (0..whole).step_by(LANES) {
        let x: &[f64; LANES] = x[j..j + LANES].try_into().expect("eight numbers");
        for (sums, row) in sums.iter_mut().zip([a, b, c, d]) {
            let row: &[f32; LANES] = row[j..j + LANES].try_into().expect("eight numbers");
            for l in 0..LANES {
                sums[l] = multiply_add(f64::from(row[l]), x[l], sums[l]);
            }
        }
    }
    for ((out, sums), row) in out.iter_mut().zip(sums).zip(rows) {
        let tail: f64 = (whole..x.len()).map(|j| f64::from(row[j]) * x[j]).sum();
        let [s0, s1, s2, s3, s4, s5, s6, s7] = sums;
        *out += (((s0 + s4) + (s1 + s5)) + ((s2 + s6) + (s3 + s7))) + tail;
    }
}

#[inline(always)]
fn add_any(
    rows: [&[f32]; ROWS],
    factors: [f64; ROWS],
    y: &mut [f64],
    multiply_add: impl Fn(f64, f64, f64) -> f64,
) {
    let [a, b, c, d] = rows;
    let rows = a.iter().zip(b).zip(c).zip(d);
    for (y, (((&a, &b), &c), &d)) in y.iter_mut().zip(rows) {
        let ab = multiply_add(f64::from(a), factors[0], multiply_add(f64::from(b), factors[1], *y));
        *y = multiply_add(f64::from(c), factors[2], multiply_add(f64::from(d), factors[3], ab));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mfac::tolerance::{Rng, assert_approximate};

    #[test]
    fn both_passes_match_plain_sums() {
        let mut rng = Rng::new(12);
        for n in [0, 1, 7, 8, 33, 256] {
            let data = rng.normals(n * ROWS);
            let rows: [&[f32]; ROWS] = std::array::from_fn(|i| &data[i * n..][..n]);
            let x: Vec<f64> = (0..n).map(|_| rng.normal()).collect();
            let mut out = [1.0, 2.0, 3.0, 4.0];
            dot(rows, &x, &mut out);
            let want: Vec<f64> = (0..ROWS)
                .map(|i| (0..n).fold(1.0 + i as f64, |s, j| s + f64::from(rows[i][j]) * x[j]))
                .collect();
            assert_approximate(&out, &want, 1e-13, 10.0);
            let (factors, mut y) = ([0.5, -1.0, 2.0, 0.25], x.clone());
            add(rows, factors, &mut y);
            let want: Vec<f64> = (0..n)
                .map(|j| (0..ROWS).fold(x[j], |s, i| s + factors[i] * f64::from(rows[i][j])))
                .collect();
            assert_approximate(&y, &want, 1e-14, 10.0);
        }
    }
}
