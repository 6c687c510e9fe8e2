//! Products of a few rows of G with vectors: rows are read as they are stored, sums are in f64.
//!
//! These passes wait for memory, so the wider arithmetic costs nothing and spares F⁻¹x the rounding
//! that its cancellation at small damping would magnify. Half precision is widened in registers:
//! f16 by the processor's own instruction, bf16 by placing its bits in the upper half of an f32.
//! Eight rows at a time keep eight streams of reads going and load each element of x once for all.
#![allow(unsafe_code, reason = "vector registers; the safe functions check every length")]

use half::{bf16, f16};

/// Rows taken together.
pub const ROWS: usize = 8;
const LANES: usize = 8;

/// Eight rows of G as they are stored, without the scales of f16.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    F32([&'a [f32]; ROWS]),
    F16([&'a [u16]; ROWS]),
    Bf16([&'a [u16]; ROWS]),
}

/// `out[i] += Σ_j rows[i][j]·x[j]`, in a fixed order.
///
/// Panics when a row is shorter than `x`.
pub fn dot(rows: Rows<'_>, x: &[f64], out: &mut [f64; ROWS]) {
    rows.check(x.len());
    #[cfg(target_arch = "x86_64")]
    if has_vectors() {
        // SAFETY: the processor has the features, and every row is as long as x.
        return unsafe {
            match rows {
                Rows::F32(rows) => avx2::dot_f32(rows, x, out),
                Rows::F16(rows) => avx2::dot_f16(rows, x, out),
                Rows::Bf16(rows) => avx2::dot_bf16(rows, x, out),
            }
        };
    }
    match rows {
        Rows::F32(rows) => dot_any(rows, x, out, |a| a),
        Rows::F16(rows) => dot_any(rows, x, out, from_f16),
        Rows::Bf16(rows) => dot_any(rows, x, out, from_bf16),
    }
}

/// `y[j] += Σ_i factors[i]·rows[i][j]`.
///
/// Panics when a row is shorter than `y`.
pub fn add(rows: Rows<'_>, factors: [f64; ROWS], y: &mut [f64]) {
    rows.check(y.len());
    #[cfg(target_arch = "x86_64")]
    if has_vectors() {
        // SAFETY: the processor has the features, and every row is as long as y.
        return unsafe {
            match rows {
                Rows::F32(rows) => avx2::add_f32(rows, factors, y),
                Rows::F16(rows) => avx2::add_f16(rows, factors, y),
                Rows::Bf16(rows) => avx2::add_bf16(rows, factors, y),
            }
        };
    }
    match rows {
        Rows::F32(rows) => add_any(rows, factors, y, |a| a),
        Rows::F16(rows) => add_any(rows, factors, y, from_f16),
        Rows::Bf16(rows) => add_any(rows, factors, y, from_bf16),
    }
}

impl Rows<'_> {
    fn check(&self, len: usize) {
        let long_enough = match self {
            Rows::F32(rows) => rows.iter().all(|row| row.len() >= len),
            Rows::F16(rows) | Rows::Bf16(rows) => rows.iter().all(|row| row.len() >= len),
        };
        assert!(long_enough, "a row is shorter than the vector");
    }
}

#[cfg(target_arch = "x86_64")]
fn has_vectors() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
}

fn from_f16(bits: u16) -> f32 {
    f16::from_bits(bits).to_f32()
}

fn from_bf16(bits: u16) -> f32 {
    bf16::from_bits(bits).to_f32()
}

fn dot_any<T: Copy>(
    rows: [&[T]; ROWS],
    x: &[f64],
    out: &mut [f64; ROWS],
    widen: impl Fn(T) -> f32,
) {
    for (out, row) in out.iter_mut().zip(rows) {
        let mut sums = [0.0; LANES];
        for (row, x) in row[..x.len()].chunks(LANES).zip(x.chunks(LANES)) {
            for ((sum, &a), x) in sums.iter_mut().zip(row).zip(x) {
                *sum += f64::from(widen(a)) * x;
            }
        }
        *out += sums.iter().sum::<f64>();
    }
}

fn add_any<T: Copy>(
    rows: [&[T]; ROWS],
    factors: [f64; ROWS],
    y: &mut [f64],
    widen: impl Fn(T) -> f32,
) {
    for (row, factor) in rows.into_iter().zip(factors) {
        for (y, &a) in y.iter_mut().zip(row) {
            *y += factor * f64::from(widen(a));
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{LANES, ROWS, from_bf16, from_f16};

    macro_rules! passes {
        ($number:ty, $dot:ident, $add:ident, $load:ident, $widen:expr) => {
            /// # Safety
            /// AVX2, FMA and F16C must be there, and each row be as long as x.
            #[target_feature(enable = "avx2,fma,f16c")]
            pub unsafe fn $dot(rows: [&[$number]; ROWS], x: &[f64], out: &mut [f64; ROWS]) {
                let starts = rows.map(|row| row.as_ptr());
                let whole = x.len() - x.len() % LANES;
                let mut sums = [_mm256_setzero_pd(); ROWS];
                for j in (0..whole).step_by(LANES) {
                    // SAFETY: j + 8 ≤ the length of x and of every row.
                    unsafe {
                        let x0 = _mm256_loadu_pd(x.as_ptr().add(j));
                        let x1 = _mm256_loadu_pd(x.as_ptr().add(j + 4));
                        for i in 0..ROWS {
                            let (a, b) = $load(starts[i].add(j));
                            sums[i] = _mm256_fmadd_pd(a, x0, sums[i]);
                            sums[i] = _mm256_fmadd_pd(b, x1, sums[i]);
                        }
                    }
                }
                for i in 0..ROWS {
                    let mut four = [0.0; 4];
                    // SAFETY: four f64 are the size of the register.
                    unsafe { _mm256_storeu_pd(four.as_mut_ptr(), sums[i]) };
                    let tail = rows[i][whole..].iter().zip(&x[whole..]);
                    let tail: f64 = tail.map(|(&a, x)| f64::from($widen(a)) * x).sum();
                    out[i] += ((four[0] + four[2]) + (four[1] + four[3])) + tail;
                }
            }

            /// # Safety
            /// AVX2, FMA and F16C must be there, and each row be as long as y.
            #[target_feature(enable = "avx2,fma,f16c")]
            pub unsafe fn $add(rows: [&[$number]; ROWS], factors: [f64; ROWS], y: &mut [f64]) {
                let starts = rows.map(|row| row.as_ptr());
                let whole = y.len() - y.len() % LANES;
                let wide = factors.map(|f| _mm256_set1_pd(f));
                for j in (0..whole).step_by(LANES) {
                    // SAFETY: j + 8 ≤ the length of y and of every row.
                    unsafe {
                        let y = y.as_mut_ptr().add(j);
                        let (mut y0, mut y1) = (_mm256_loadu_pd(y), _mm256_loadu_pd(y.add(4)));
                        for i in 0..ROWS {
                            let (a, b) = $load(starts[i].add(j));
                            y0 = _mm256_fmadd_pd(a, wide[i], y0);
                            y1 = _mm256_fmadd_pd(b, wide[i], y1);
                        }
                        _mm256_storeu_pd(y, y0);
                        _mm256_storeu_pd(y.add(4), y1);
                    }
                }
                for (row, factor) in rows.into_iter().zip(factors) {
                    for (y, &a) in y[whole..].iter_mut().zip(&row[whole..]) {
                        *y += factor * f64::from($widen(a));
                    }
                }
            }
        };
    }

    passes!(f32, dot_f32, add_f32, load_f32, |a: f32| a);
    passes!(u16, dot_f16, add_f16, load_f16, from_f16);
    passes!(u16, dot_bf16, add_bf16, load_bf16, from_bf16);

    /// # Safety
    /// AVX2 must be there, and eight numbers readable.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load_f32(at: *const f32) -> (__m256d, __m256d) {
        // SAFETY: as the caller vouches.
        let (low, high) = unsafe { (_mm_loadu_ps(at), _mm_loadu_ps(at.add(4))) };
        (_mm256_cvtps_pd(low), _mm256_cvtps_pd(high))
    }

    /// # Safety
    /// AVX2 and F16C must be there, and eight numbers readable.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load_f16(at: *const u16) -> (__m256d, __m256d) {
        // SAFETY: as the caller vouches; each load takes four numbers.
        let (low, high) =
            unsafe { (_mm_loadl_epi64(at.cast()), _mm_loadl_epi64(at.add(4).cast())) };
        (_mm256_cvtps_pd(_mm_cvtph_ps(low)), _mm256_cvtps_pd(_mm_cvtph_ps(high)))
    }

    /// # Safety
    /// AVX2 must be there, and eight numbers readable.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load_bf16(at: *const u16) -> (__m256d, __m256d) {
        // SAFETY: as the caller vouches.
        let bits = unsafe { _mm_loadu_si128(at.cast()) };
        let zero = _mm_setzero_si128();
        let low = _mm_castsi128_ps(_mm_unpacklo_epi16(zero, bits));
        let high = _mm_castsi128_ps(_mm_unpackhi_epi16(zero, bits));
        (_mm256_cvtps_pd(low), _mm256_cvtps_pd(high))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mfac::tolerance::{Rng, assert_approximate};

    /// The rows in each format, and what they hold.
    fn stored(data: &[f32], n: usize, check: impl Fn(Rows<'_>, &[f64])) {
        fn rows<T>(data: &[T], n: usize) -> [&[T]; ROWS] {
            std::array::from_fn(|i| &data[i * n..][..n])
        }
        let wide = |numbers: &[f32]| numbers.iter().map(|&a| f64::from(a)).collect::<Vec<_>>();
        check(Rows::F32(rows(data, n)), &wide(data));
        let half: Vec<f16> = data.iter().map(|&a| f16::from_f32(a)).collect();
        let bits: Vec<u16> = half.iter().map(|a| a.to_bits()).collect();
        let back: Vec<f32> = half.iter().map(|a| a.to_f32()).collect();
        check(Rows::F16(rows(&bits, n)), &wide(&back));
        let half: Vec<bf16> = data.iter().map(|&a| bf16::from_f32(a)).collect();
        let bits: Vec<u16> = half.iter().map(|a| a.to_bits()).collect();
        let back: Vec<f32> = half.iter().map(|a| a.to_f32()).collect();
        check(Rows::Bf16(rows(&bits, n)), &wide(&back));
    }

    #[test]
    fn both_passes_match_plain_sums_in_every_format() {
        let mut rng = Rng::new(12);
        for n in [0, 1, 7, 8, 33, 256] {
            let data = rng.normals(n * ROWS);
            let x: Vec<f64> = (0..n).map(|_| rng.normal()).collect();
            let factors: [f64; ROWS] = std::array::from_fn(|i| 0.5 * i as f64 - 1.25);
            stored(&data, n, |rows, held| {
                let mut out: [f64; ROWS] = std::array::from_fn(|i| i as f64);
                dot(rows, &x, &mut out);
                let row = |i: usize| held[i * n..][..n].iter().zip(&x);
                let want: Vec<f64> =
                    (0..ROWS).map(|i| row(i).fold(i as f64, |s, (a, x)| s + a * x)).collect();
                assert_approximate(&out, &want, 1e-13, 10.0);
                let mut y = x.clone();
                add(rows, factors, &mut y);
                let want: Vec<f64> = (0..n)
                    .map(|j| (0..ROWS).fold(x[j], |s, i| s + factors[i] * held[i * n + j]))
                    .collect();
                assert_approximate(&y, &want, 1e-13, 10.0);
            });
            let rows: [&[f32]; ROWS] = std::array::from_fn(|i| &data[i * n..][..n]);
            let (mut fast, mut plain) = ([0.0; ROWS], [0.0; ROWS]);
            dot(Rows::F32(rows), &x, &mut fast);
            dot_any(rows, &x, &mut plain, |a| a);
            assert_approximate(&fast, &plain, 1e-13, 10.0);
            let (mut fast, mut plain) = (x.clone(), x.clone());
            add(Rows::F32(rows), factors, &mut fast);
            add_any(rows, factors, &mut plain, |a| a);
            assert_approximate(&fast, &plain, 1e-13, 10.0);
        }
    }

    #[test]
    #[should_panic(expected = "shorter")]
    fn short_rows_are_refused() {
        let rows: [&[f32]; ROWS] = [&[0.0; 3]; ROWS];
        dot(Rows::F32(rows), &[0.0; 4], &mut [0.0; ROWS]);
    }
}
