//! Eight rows side by side: the inner step of packing rows of G as columns of panels.
#![allow(unsafe_code, reason = "vector registers; the safe function checks every length")]

/// Rows (and columns) of one step.
pub const SIDE: usize = 8;

/// `out[j·stride + i] = rows[i][j]` for i < 8 and j < k.
///
/// Panics when a row is shorter than `k` or `out` than `(k − 1)·stride + 8`.
pub fn interleave(rows: [&[f32]; SIDE], k: usize, out: &mut [f32], stride: usize) {
    if k == 0 {
        return;
    }
    assert!(rows.iter().all(|row| row.len() >= k) && out.len() >= (k - 1) * stride + SIDE);
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx") {
        done = k - k % SIDE;
        for j in (0..done).step_by(SIDE) {
            // SAFETY: the processor has AVX; j + 8 ≤ k, so the assertion above covers the eight
            // numbers read of each row and the eight written at each of the eight steps of out.
            unsafe { square_avx(rows.map(|row| row[j..].as_ptr()), &mut out[j * stride], stride) }
        }
    }
    for j in done..k {
        for (out, row) in out[j * stride..][..SIDE].iter_mut().zip(rows) {
            *out = row[j];
        }
    }
}

/// # Safety
/// AVX must be there; eight numbers must be readable at each of `rows` and writable at
/// `out + j·stride` for j < 8.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
unsafe fn square_avx(rows: [*const f32; SIDE], out: *mut f32, stride: usize) {
    use std::arch::x86_64::*;
    // Without closures, which would not be compiled for the processor's features.
    let mut r = [_mm256_setzero_ps(); SIDE];
    for (r, row) in r.iter_mut().zip(rows) {
        // SAFETY: the caller vouches for the eight numbers of each row.
        *r = unsafe { _mm256_loadu_ps(row) };
    }
    let mut t = r;
    for i in 0..4 {
        t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    let mut u = t;
    for i in 0..2 {
        let (a, b, c, d) = (t[4 * i], t[4 * i + 1], t[4 * i + 2], t[4 * i + 3]);
        u[4 * i] = _mm256_shuffle_ps::<0b01_00_01_00>(a, c);
        u[4 * i + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(a, c);
        u[4 * i + 2] = _mm256_shuffle_ps::<0b01_00_01_00>(b, d);
        u[4 * i + 3] = _mm256_shuffle_ps::<0b11_10_11_10>(b, d);
    }
    for i in 0..4 {
        let low = _mm256_permute2f128_ps::<0x20>(u[i], u[i + 4]);
        let high = _mm256_permute2f128_ps::<0x31>(u[i], u[i + 4]);
        // SAFETY: the caller vouches for eight numbers at each step.
        unsafe {
            _mm256_storeu_ps(out.add(i * stride), low);
            _mm256_storeu_ps(out.add((i + 4) * stride), high);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mfac::tolerance::Rng;

    #[test]
    fn rows_become_columns() {
        let data = Rng::new(11).normals(8 * 40);
        for k in [0, 1, 7, 8, 9, 33] {
            let rows = std::array::from_fn(|i| &data[i * 40..][..k]);
            let mut out = vec![f32::NAN; 24 * k + 8];
            interleave(rows, k, &mut out, 24);
            for (i, j) in (0..8).flat_map(|i| (0..k).map(move |j| (i, j))) {
                assert_eq!(out[j * 24 + i], data[i * 40 + j]);
            }
        }
    }
}
