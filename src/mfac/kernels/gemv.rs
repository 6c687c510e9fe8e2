//! Products of a few rows of G with vectors: rows are read as they are stored, sums are in f64.
//!
//! These passes wait for memory, so the wider arithmetic costs nothing and spares F⁻¹x the rounding
//! that its cancellation at small damping would magnify. Half precision is widened in registers:
//! f16 by the processor's own instruction, bf16 by placing its bits in the upper half of an f32.
//! Eight rows at a time keep eight streams of reads going and load each element of x once for all.
#![allow(unsafe_code, reason = "vector registers; the safe functions check every length")]

use half::{bf16, f16};

use super::ahead::{ask_for, soon};
use super::vectors::Vectors;

/// Rows taken together.
pub const ROWS: usize = 8;
/// Bytes of each row in half precision that are asked for ahead of time. The processor fetches
/// ahead as well, but only within a page and not far enough for rows that are read this fast; rows
/// of f32 are better left to it.
const AHEAD: usize = 512;
/// Numbers of a row that a plain step takes.
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
    dot_by(Vectors::here(), rows, x, out);
}

/// `y[j] += Σ_i factors[i]·rows[i][j]`.
///
/// Panics when a row is shorter than `y`.
pub fn add(rows: Rows<'_>, factors: [f64; ROWS], y: &mut [f64]) {
    add_by(Vectors::here(), rows, factors, y);
}

impl Rows<'_> {
    /// Asks for the beginnings of rows in half precision ahead of time.
    pub fn soon(&self) {
        if let Rows::F16(rows) | Rows::Bf16(rows) = self {
            rows.iter().for_each(|row| soon(&row[..row.len().min(AHEAD / 2)]));
        }
    }

    fn check(&self, len: usize) {
        let long_enough = match self {
            Rows::F32(rows) => rows.iter().all(|row| row.len() >= len),
            Rows::F16(rows) | Rows::Bf16(rows) => rows.iter().all(|row| row.len() >= len),
        };
        assert!(long_enough, "a row is shorter than the vector");
    }
}

fn dot_by(vectors: Vectors, rows: Rows<'_>, x: &[f64], out: &mut [f64; ROWS]) {
    rows.check(x.len());
    match (vectors, rows) {
        // SAFETY: the processor has the features, and every row is as long as x.
        #[cfg(target_arch = "x86_64")]
        (Vectors::Avx512, rows) => unsafe {
            match rows {
                Rows::F32(rows) => avx512::dot_f32(rows, x, out),
                Rows::F16(rows) => avx512::dot_f16(rows, x, out),
                Rows::Bf16(rows) => avx512::dot_bf16(rows, x, out),
            }
        },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        (Vectors::Avx2, rows) => unsafe {
            match rows {
                Rows::F32(rows) => avx2::dot_f32(rows, x, out),
                Rows::F16(rows) => avx2::dot_f16(rows, x, out),
                Rows::Bf16(rows) => avx2::dot_bf16(rows, x, out),
            }
        },
        (_, Rows::F32(rows)) => dot_any(rows, x, out, |a| a),
        (_, Rows::F16(rows)) => dot_any(rows, x, out, from_f16),
        (_, Rows::Bf16(rows)) => dot_any(rows, x, out, from_bf16),
    }
}

fn add_by(vectors: Vectors, rows: Rows<'_>, factors: [f64; ROWS], y: &mut [f64]) {
    rows.check(y.len());
    match (vectors, rows) {
        // SAFETY: the processor has the features, and every row is as long as y.
        #[cfg(target_arch = "x86_64")]
        (Vectors::Avx512, rows) => unsafe {
            match rows {
                Rows::F32(rows) => avx512::add_f32(rows, factors, y),
                Rows::F16(rows) => avx512::add_f16(rows, factors, y),
                Rows::Bf16(rows) => avx512::add_bf16(rows, factors, y),
            }
        },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        (Vectors::Avx2, rows) => unsafe {
            match rows {
                Rows::F32(rows) => avx2::add_f32(rows, factors, y),
                Rows::F16(rows) => avx2::add_f16(rows, factors, y),
                Rows::Bf16(rows) => avx2::add_bf16(rows, factors, y),
            }
        },
        (_, Rows::F32(rows)) => add_any(rows, factors, y, |a| a),
        (_, Rows::F16(rows)) => add_any(rows, factors, y, from_f16),
        (_, Rows::Bf16(rows)) => add_any(rows, factors, y, from_bf16),
    }
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

/// Both passes over numbers of one format, `$lanes` at a time: `$load` widens them to two vectors.
#[cfg(target_arch = "x86_64")]
macro_rules! passes {
    ($features:tt, $lanes:literal: $zero:ident, $read:ident, $write:ident, $all:ident,
     $multiply_add:ident; $number:ty, $dot:ident, $add:ident, $load:ident, $widen:expr) => {
        /// # Safety
        /// The processor must have the features, and each row be as long as x.
        #[target_feature(enable = $features)]
        pub unsafe fn $dot(rows: [&[$number]; ROWS], x: &[f64], out: &mut [f64; ROWS]) {
            let starts = rows.map(|row| row.as_ptr());
            let whole = x.len() - x.len() % $lanes;
            let mut sums = [$zero(); ROWS];
            for j in (0..whole).step_by($lanes) {
                let later = (j + AHEAD / size_of::<$number>()).min(whole);
                // SAFETY: j + the lanes ≤ the length of x and of every row.
                unsafe {
                    let x0 = $read(x.as_ptr().add(j));
                    let x1 = $read(x.as_ptr().add(j + $lanes / 2));
                    for i in 0..ROWS {
                        if size_of::<$number>() < 4 {
                            ask_for(starts[i].wrapping_add(later).cast());
                        }
                        let (a, b) = $load(starts[i].add(j));
                        sums[i] = $multiply_add(a, x0, sums[i]);
                        sums[i] = $multiply_add(b, x1, sums[i]);
                    }
                }
            }
            for i in 0..ROWS {
                let mut some = [0.0; $lanes / 2];
                // SAFETY: so many f64 are the size of the register.
                unsafe { $write(some.as_mut_ptr(), sums[i]) };
                // In pairs, half of them each time.
                let mut count = some.len() / 2;
                while count > 0 {
                    for j in 0..count {
                        some[j] += some[j + count];
                    }
                    count /= 2;
                }
                let tail = rows[i][whole..].iter().zip(&x[whole..]);
                let tail: f64 = tail.map(|(&a, x)| f64::from($widen(a)) * x).sum();
                out[i] += some[0] + tail;
            }
        }

        /// # Safety
        /// The processor must have the features, and each row be as long as y.
        #[target_feature(enable = $features)]
        pub unsafe fn $add(rows: [&[$number]; ROWS], factors: [f64; ROWS], y: &mut [f64]) {
            let starts = rows.map(|row| row.as_ptr());
            let whole = y.len() - y.len() % $lanes;
            let mut wide = [$zero(); ROWS];
            for i in 0..ROWS {
                wide[i] = $all(factors[i]);
            }
            for j in (0..whole).step_by($lanes) {
                let later = (j + AHEAD / size_of::<$number>()).min(whole);
                // SAFETY: j + the lanes ≤ the length of y and of every row.
                unsafe {
                    let y = y.as_mut_ptr().add(j);
                    let (mut y0, mut y1) = ($read(y), $read(y.add($lanes / 2)));
                    for i in 0..ROWS {
                        if size_of::<$number>() < 4 {
                            ask_for(starts[i].wrapping_add(later).cast());
                        }
                        let (a, b) = $load(starts[i].add(j));
                        y0 = $multiply_add(a, wide[i], y0);
                        y1 = $multiply_add(b, wide[i], y1);
                    }
                    $write(y, y0);
                    $write(y.add($lanes / 2), y1);
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

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{AHEAD, ROWS, ask_for, from_bf16, from_f16};

    macro_rules! eight {
        ($($rest:tt)*) => {
            passes!("avx2,fma,f16c", 8: _mm256_setzero_pd, _mm256_loadu_pd, _mm256_storeu_pd,
                _mm256_set1_pd, _mm256_fmadd_pd; $($rest)*);
        };
    }
    eight!(f32, dot_f32, add_f32, load_f32, |a: f32| a);
    eight!(u16, dot_f16, add_f16, load_f16, from_f16);
    eight!(u16, dot_bf16, add_bf16, load_bf16, from_bf16);

    /// # Safety
    /// Eight numbers must be readable.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load_f32(at: *const f32) -> (__m256d, __m256d) {
        // SAFETY: as the caller vouches.
        let (low, high) = unsafe { (_mm_loadu_ps(at), _mm_loadu_ps(at.add(4))) };
        (_mm256_cvtps_pd(low), _mm256_cvtps_pd(high))
    }

    /// # Safety
    /// Eight numbers must be readable.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load_f16(at: *const u16) -> (__m256d, __m256d) {
        // SAFETY: as the caller vouches; each load takes four numbers.
        let (low, high) =
            unsafe { (_mm_loadl_epi64(at.cast()), _mm_loadl_epi64(at.add(4).cast())) };
        (_mm256_cvtps_pd(_mm_cvtph_ps(low)), _mm256_cvtps_pd(_mm_cvtph_ps(high)))
    }

    /// # Safety
    /// Eight numbers must be readable.
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

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::{AHEAD, ROWS, ask_for, from_bf16, from_f16};

    macro_rules! sixteen {
        ($($rest:tt)*) => {
            passes!("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl", 16: _mm512_setzero_pd,
                _mm512_loadu_pd, _mm512_storeu_pd, _mm512_set1_pd, _mm512_fmadd_pd; $($rest)*);
        };
    }
    sixteen!(f32, dot_f32, add_f32, load_f32, |a: f32| a);
    sixteen!(u16, dot_f16, add_f16, load_f16, from_f16);
    sixteen!(u16, dot_bf16, add_bf16, load_bf16, from_bf16);

    /// # Safety
    /// Sixteen numbers must be readable.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load_f32(at: *const f32) -> (__m512d, __m512d) {
        // SAFETY: as the caller vouches.
        let (low, high) = unsafe { (_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))) };
        (_mm512_cvtps_pd(low), _mm512_cvtps_pd(high))
    }

    /// # Safety
    /// Sixteen numbers must be readable.
    #[inline]
    #[target_feature(enable = "avx512f,f16c")]
    unsafe fn load_f16(at: *const u16) -> (__m512d, __m512d) {
        // SAFETY: as the caller vouches; each load takes eight numbers.
        let (low, high) =
            unsafe { (_mm_loadu_si128(at.cast()), _mm_loadu_si128(at.add(8).cast())) };
        (_mm512_cvtps_pd(_mm256_cvtph_ps(low)), _mm512_cvtps_pd(_mm256_cvtph_ps(high)))
    }

    /// # Safety
    /// Sixteen numbers must be readable.
    #[inline]
    #[target_feature(enable = "avx512f,avx2")]
    unsafe fn load_bf16(at: *const u16) -> (__m512d, __m512d) {
        // SAFETY: as the caller vouches; each load takes eight numbers.
        let (low, high) =
            unsafe { (_mm_loadu_si128(at.cast()), _mm_loadu_si128(at.add(8).cast())) };
        let single =
            |bits| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits)));
        (_mm512_cvtps_pd(single(low)), _mm512_cvtps_pd(single(high)))
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
        for (vectors, n) in Vectors::all().flat_map(|v| [0, 1, 7, 8, 33, 256].map(|n| (v, n))) {
            let data = rng.normals(n * ROWS);
            let x: Vec<f64> = (0..n).map(|_| rng.normal()).collect();
            let factors: [f64; ROWS] = std::array::from_fn(|i| 0.5 * i as f64 - 1.25);
            stored(&data, n, |rows, held| {
                let mut out: [f64; ROWS] = std::array::from_fn(|i| i as f64);
                dot_by(vectors, rows, &x, &mut out);
                let row = |i: usize| held[i * n..][..n].iter().zip(&x);
                let want: Vec<f64> =
                    (0..ROWS).map(|i| row(i).fold(i as f64, |s, (a, x)| s + a * x)).collect();
                assert_approximate(&out, &want, 1e-13, 10.0);
                let mut y = x.clone();
                add_by(vectors, rows, factors, &mut y);
                let want: Vec<f64> = (0..n)
                    .map(|j| (0..ROWS).fold(x[j], |s, i| s + factors[i] * held[i * n + j]))
                    .collect();
                assert_approximate(&y, &want, 1e-13, 10.0);
            });
        }
    }

    #[test]
    #[should_panic(expected = "shorter")]
    fn short_rows_are_refused() {
        let rows: [&[f32]; ROWS] = [&[0.0; 3]; ROWS];
        dot(Rows::F32(rows), &[0.0; 4], &mut [0.0; ROWS]);
    }
}
