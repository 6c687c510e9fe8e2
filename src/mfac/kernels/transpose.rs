//! Sixteen rows side by side: the inner step of packing rows of G as columns of panels.
#![allow(unsafe_code, reason = "vector registers; the safe function checks every length")]

use super::vectors::Vectors;

/// Rows (and columns) of one step.
pub const SIDE: usize = 16;

/// `out[j·stride + i] = rows[i][j]` for i < 16 and j < k.
///
/// Panics when a row is shorter than `k` or `out` than `(k − 1)·stride + 16`.
#[inline]
pub fn interleave(rows: [&[f32]; SIDE], k: usize, out: &mut [f32], stride: usize) {
    interleave_by(Vectors::here(), rows, k, out, stride);
}

#[inline]
fn interleave_by(vectors: Vectors, rows: [&[f32]; SIDE], k: usize, out: &mut [f32], stride: usize) {
    if k == 0 {
        return;
    }
    assert!(rows.iter().all(|row| row.len() >= k) && out.len() >= (k - 1) * stride + SIDE);
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if vectors != Vectors::Plain {
        done = k - k % SIDE;
        for j in (0..done).step_by(SIDE) {
            let (rows, out) = (rows.map(|row| row[j..].as_ptr()), &mut out[j * stride]);
            // SAFETY: the processor has the vectors; j + 16 ≤ k, so the assertion above covers the
            // sixteen numbers read of each row and written at each of the sixteen steps of out.
            unsafe {
                match vectors {
                    Vectors::Avx512 => vector::avx512(rows, out, stride),
                    _ => vector::avx(rows, out, stride),
                }
            }
        }
    }
    for j in done..k {
        for (out, row) in out[j * stride..][..SIDE].iter_mut().zip(rows) {
            *out = row[j];
        }
    }
}

/// Squares of 16, by intrinsics; without closures, which would not be compiled for the processor's
/// features.
#[cfg(target_arch = "x86_64")]
mod vector {
    use std::arch::x86_64::*;

    use super::SIDE;

    /// # Safety
    /// AVX-512 F must be there; sixteen numbers must be readable at each of `rows` and writable at
    /// `out + j·stride` for j < 16.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn avx512(rows: [*const f32; SIDE], out: *mut f32, stride: usize) {
        let mut r = [_mm512_setzero_ps(); SIDE];
        for (r, row) in r.iter_mut().zip(rows) {
            // SAFETY: the caller vouches for the sixteen numbers of each row.
            *r = unsafe { _mm512_loadu_ps(row) };
        }
        let mut t = [_mm512_setzero_pd(); SIDE];
        for i in 0..SIDE / 2 {
            t[2 * i] = _mm512_castps_pd(_mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]));
            t[2 * i + 1] = _mm512_castps_pd(_mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]));
        }
        // Quarter q of u[4i + c] is column 4q + c of the rows from 4i on.
        let mut u = r;
        for i in (0..SIDE).step_by(4) {
            u[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(t[i], t[i + 2]));
            u[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(t[i], t[i + 2]));
            u[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(t[i + 1], t[i + 3]));
            u[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(t[i + 1], t[i + 3]));
        }
        for c in 0..4 {
            let even_low = _mm512_shuffle_f32x4::<0b10_00_10_00>(u[c], u[c + 4]);
            let odd_low = _mm512_shuffle_f32x4::<0b11_01_11_01>(u[c], u[c + 4]);
            let even_high = _mm512_shuffle_f32x4::<0b10_00_10_00>(u[c + 8], u[c + 12]);
            let odd_high = _mm512_shuffle_f32x4::<0b11_01_11_01>(u[c + 8], u[c + 12]);
            let columns = [
                _mm512_shuffle_f32x4::<0b10_00_10_00>(even_low, even_high),
                _mm512_shuffle_f32x4::<0b10_00_10_00>(odd_low, odd_high),
                _mm512_shuffle_f32x4::<0b11_01_11_01>(even_low, even_high),
                _mm512_shuffle_f32x4::<0b11_01_11_01>(odd_low, odd_high),
            ];
            for (q, column) in columns.into_iter().enumerate() {
                // SAFETY: the caller vouches for sixteen numbers at each step.
                unsafe { _mm512_storeu_ps(out.add((4 * q + c) * stride), column) };
            }
        }
    }

    /// # Safety
    /// AVX must be there, and the numbers as for `avx512`.
    #[target_feature(enable = "avx")]
    pub unsafe fn avx(rows: [*const f32; SIDE], out: *mut f32, stride: usize) {
        for (first, j) in [(0, 0), (0, 8), (8, 0), (8, 8)] {
            let mut eight = [std::ptr::null(); 8];
            for (eight, row) in eight.iter_mut().zip(&rows[first..]) {
                // SAFETY: a row has sixteen numbers.
                *eight = unsafe { row.add(j) };
            }
            // SAFETY: a quarter of the square that the caller vouches for.
            unsafe { square(eight, out.add(j * stride + first), stride) };
        }
    }

    /// # Safety
    /// AVX must be there; eight numbers must be readable at each of `rows` and writable at
    /// `out + j·stride` for j < 8.
    #[target_feature(enable = "avx")]
    unsafe fn square(rows: [*const f32; 8], out: *mut f32, stride: usize) {
        let mut r = [_mm256_setzero_ps(); 8];
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mfac::tolerance::Rng;

    #[test]
    fn rows_become_columns() {
        let data = Rng::new(11).normals(16 * 40);
        for (vectors, k) in Vectors::all().flat_map(|v| [0, 1, 15, 16, 17, 33].map(|k| (v, k))) {
            let rows = std::array::from_fn(|i| &data[i * 40..][..k]);
            let mut out = vec![f32::NAN; 24 * k + 16];
            interleave_by(vectors, rows, k, &mut out, 24);
            for (i, j) in (0..16).flat_map(|i| (0..k).map(move |j| (i, j))) {
                assert_eq!(out[j * 24 + i], data[i * 40 + j]);
            }
        }
    }
}
