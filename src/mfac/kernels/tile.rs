//! The register tile: C(4×24) = Σ_k a_k b_kᵀ with a_k of 4 and b_k of 24 numbers.
//!
//! Twelve accumulators, three vectors of b and one broadcast fill the sixteen registers of AVX2.
//! It is written in assembly because compilers spill such a tile to memory depending on the code
//! around it (measured: 91 % of peak in one build, 32 % in another of the same source). Tiles that
//! cross the diagonal of a symmetric matrix need only their first 16 columns, and the same tile in
//! f64 is done in two halves of 12 columns.
#![allow(unsafe_code, reason = "vector registers; the safe functions check every length")]

/// Rows of the tile.
pub const HEIGHT: usize = 4;
/// Columns of the tile.
pub const WIDTH: usize = 24;
/// Columns of a narrow tile, which takes two thirds of the time.
pub const NARROW: usize = 16;
/// Columns of half a tile of f64.
pub const HALF: usize = 12;

/// The tile, row-major.
pub type Tile = [f32; HEIGHT * WIDTH];

/// `out[i·24 + j] = Σ_{l<k} a[l·a_stride + i] · b[l·24 + j]`, summed in order of l.
///
/// Panics when `a` or `b` is too short.
#[inline]
pub fn product(k: usize, a: &[f32], a_stride: usize, b: &[f32], out: &mut Tile) {
    if k == 0 {
        return out.fill(0.0);
    }
    assert!(a.len() >= (k - 1) * a_stride + HEIGHT && b.len() >= k * WIDTH);
    #[cfg(target_arch = "x86_64")]
    if has_fma() {
        // SAFETY: the processor has both features, k > 0, the assertion above covers every element
        // that the k steps read, and the tile those written.
        return unsafe { avx2::product(k, a.as_ptr(), a_stride * 4, b.as_ptr(), out.as_mut_ptr()) };
    }
    out.fill(0.0);
    add_any(k, a, a_stride, b, WIDTH, out);
}

/// `sums[i·24 + j] += Σ_{l<k} a[l·a_stride + i] · b[l·24 + j]`, for the first 16 columns only if
/// `narrow`.
///
/// Panics when `a` or `b` is too short, and unless there are 96 sums.
#[inline]
pub fn add(k: usize, a: &[f32], a_stride: usize, b: &[f32], narrow: bool, sums: &mut [f32]) {
    let sums: &mut Tile = sums.try_into().expect("a tile has 96 sums");
    if k == 0 {
        return;
    }
    assert!(a.len() >= (k - 1) * a_stride + HEIGHT && b.len() >= k * WIDTH);
    #[cfg(target_arch = "x86_64")]
    if has_fma() {
        let (a, b, sums) = (a.as_ptr(), b.as_ptr(), sums.as_mut_ptr());
        // SAFETY: as in `product`; a narrow tile lies within the whole one.
        return unsafe {
            match narrow {
                true => avx2::add_narrow(k, a, a_stride * 4, b, sums),
                false => avx2::add(k, a, a_stride * 4, b, sums),
            }
        };
    }
    add_any(k, a, a_stride, b, if narrow { NARROW } else { WIDTH }, sums);
}

/// `sums[i·24 + j] += Σ_{l<k} a[l·24 + i] · b[l·24 + j]` for the 12 columns j from `first` on, in
/// f64: at half the speed of f32, for matrices that f32 sums would spoil.
///
/// Panics when `a` or `b` is too short, and unless there are 96 sums and `first` is 0 or 12.
#[inline]
pub fn add_double(k: usize, a: &[f64], b: &[f64], first: usize, sums: &mut [f64]) {
    let sums: &mut [f64; HEIGHT * WIDTH] = sums.try_into().expect("a tile has 96 sums");
    assert!(first == 0 || first == HALF);
    if k == 0 {
        return;
    }
    assert!(a.len() >= (k - 1) * WIDTH + HEIGHT && b.len() >= k * WIDTH);
    #[cfg(target_arch = "x86_64")]
    if has_fma() {
        let (b, sums) = (b[first..].as_ptr(), sums[first..].as_mut_ptr());
        // SAFETY: the processor has both features, k > 0, and the assertions above cover every
        // element read and written: 12 of the 24 columns of b and of the sums.
        return unsafe { avx2::add_double(k, a.as_ptr(), WIDTH * 8, b, sums) };
    }
    for l in 0..k {
        let (a, b) = (&a[l * WIDTH..][..HEIGHT], &b[l * WIDTH + first..][..HALF]);
        for (sum, &a) in sums.chunks_exact_mut(WIDTH).zip(a) {
            sum[first..].iter_mut().zip(b).for_each(|(s, &b)| *s += a * b);
        }
    }
}

/// `sum[i] += tile[i]`, in f64.
#[inline]
pub fn accumulate(tile: &Tile, sum: &mut [f64]) {
    let sum: &mut [f64; HEIGHT * WIDTH] = sum.try_into().expect("a tile has 96 sums");
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has the feature; the function is safe otherwise.
        return unsafe { accumulate_avx2(tile, sum) };
    }
    accumulate_any(tile, sum);
}

/// `norms[j] += Σ_i tile[i·24 + j]²`: a sum of four in f32, the rest in f64.
#[inline]
pub fn add_squares(tile: &Tile, norms: &mut [f64]) {
    let norms: &mut [f64; WIDTH] = norms.try_into().expect("a tile has 24 columns");
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has the feature; the function is safe otherwise.
        return unsafe { add_squares_avx2(tile, norms) };
    }
    add_squares_any(tile, norms);
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn has_fma() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn accumulate_avx2(tile: &Tile, sum: &mut [f64; HEIGHT * WIDTH]) {
    accumulate_any(tile, sum);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn add_squares_avx2(tile: &Tile, norms: &mut [f64; WIDTH]) {
    add_squares_any(tile, norms);
}

#[inline(always)]
fn accumulate_any(tile: &Tile, sum: &mut [f64; HEIGHT * WIDTH]) {
    for (s, &t) in sum.iter_mut().zip(tile) {
        *s += f64::from(t);
    }
}

#[inline(always)]
fn add_squares_any(tile: &Tile, norms: &mut [f64; WIDTH]) {
    let at = |i: usize| tile[i] * tile[i];
    for (j, norm) in norms.iter_mut().enumerate() {
        let squares = (at(j) + at(WIDTH + j)) + (at(2 * WIDTH + j) + at(3 * WIDTH + j));
        *norm += f64::from(squares);
    }
}

fn add_any(k: usize, a: &[f32], a_stride: usize, b: &[f32], width: usize, out: &mut Tile) {
    for l in 0..k {
        let (a, b) = (&a[l * a_stride..][..HEIGHT], &b[l * WIDTH..][..width]);
        for (sum, &a) in out.chunks_exact_mut(WIDTH).zip(a) {
            sum.iter_mut().zip(b).for_each(|(s, &b)| *s += a * b);
        }
    }
}

/// The tiles in assembly: `k` steps over `a` (4 numbers, `a_step` bytes apart) and `b` (rows of 24
/// numbers), into `out` (rows of 24 numbers).
#[cfg(target_arch = "x86_64")]
mod avx2 {
    macro_rules! kernel {
        ($name:ident, $number:ty, $row:literal, [$($begin:tt)*] [$($load:tt)*] [$($rows:tt)*]
         [$($end:tt)*]) => {
            /// # Safety
            /// AVX2 and FMA must be there; k > 0; `a` and `b` must be readable for k steps, `out`
            /// readable and writable.
            #[target_feature(enable = "avx2,fma")]
            pub unsafe fn $name(
                k: usize,
                a: *const $number,
                a_step: usize,
                b: *const $number,
                out: *mut $number,
            ) {
                // SAFETY: the loop runs k > 0 times and reads at a and b what the caller vouched
                // for; `out` holds what is loaded and stored there. Every register written is
                // declared.
                unsafe {
                    std::arch::asm!(
                        $($begin)*
                        "2:",
                        $($load)*
                        $($rows)*
                        concat!("add {b}, ", $row),
                        "add {a}, {step}",
                        "dec {k}",
                        "jnz 2b",
                        $($end)*
                        a = inout(reg) a => _,
                        b = inout(reg) b => _,
                        k = inout(reg) k => _,
                        step = in(reg) a_step,
                        out = in(reg) out,
                        out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _,
                        out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _,
                        out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
                        out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
                        options(nostack),
                    );
                }
            }
        };
    }
    macro_rules! zero {
        ($($register:literal)+) => {
            concat!($("vxorps xmm", $register, ", xmm", $register, ", xmm", $register, "\n"),+)
        };
    }
    macro_rules! read {
        ($from:literal: $($register:literal at $offset:literal),+) => {
            concat!($("vmovups ymm", $register, ", ymmword ptr [", $from, " + ", $offset, "]\n"),+)
        };
    }
    macro_rules! write {
        ($($register:literal at $offset:literal),+) => {
            concat!($("vmovups ymmword ptr [{out} + ", $offset, "], ymm", $register, "\n"),+)
        };
    }
    /// One number of a times the vectors of b.
    macro_rules! row {
        ($broadcast:literal $multiply:literal $offset:literal: $($sum:literal += $b:literal),+) => {
            concat!(
                $broadcast, " [{a} + ", $offset, "]\n",
                $($multiply, " ymm", $sum, ", ymm", $b, ", ymm15\n"),+
            )
        };
    }
    macro_rules! single {
        ($offset:literal: $($sum:literal += $b:literal),+) => {
            row!("vbroadcastss ymm15, dword ptr" "vfmadd231ps" $offset: $($sum += $b),+)
        };
    }
    macro_rules! double {
        ($offset:literal: $($sum:literal += $b:literal),+) => {
            row!("vbroadcastsd ymm15, qword ptr" "vfmadd231pd" $offset: $($sum += $b),+)
        };
    }

    kernel!(product, f32, 96,
        [zero!(0 1 2 3 4 5 6 7 8 9 10 11),]
        [read!("{b}": 12 at 0, 13 at 32, 14 at 64),]
        [single!(0: 0 += 12, 1 += 13, 2 += 14),
         single!(4: 3 += 12, 4 += 13, 5 += 14),
         single!(8: 6 += 12, 7 += 13, 8 += 14),
         single!(12: 9 += 12, 10 += 13, 11 += 14),]
        [write!(0 at 0, 1 at 32, 2 at 64, 3 at 96, 4 at 128, 5 at 160),
         write!(6 at 192, 7 at 224, 8 at 256, 9 at 288, 10 at 320, 11 at 352),]);

    kernel!(add, f32, 96,
        [read!("{out}": 0 at 0, 1 at 32, 2 at 64, 3 at 96, 4 at 128, 5 at 160),
         read!("{out}": 6 at 192, 7 at 224, 8 at 256, 9 at 288, 10 at 320, 11 at 352),]
        [read!("{b}": 12 at 0, 13 at 32, 14 at 64),]
        [single!(0: 0 += 12, 1 += 13, 2 += 14),
         single!(4: 3 += 12, 4 += 13, 5 += 14),
         single!(8: 6 += 12, 7 += 13, 8 += 14),
         single!(12: 9 += 12, 10 += 13, 11 += 14),]
        [write!(0 at 0, 1 at 32, 2 at 64, 3 at 96, 4 at 128, 5 at 160),
         write!(6 at 192, 7 at 224, 8 at 256, 9 at 288, 10 at 320, 11 at 352),]);

    kernel!(add_narrow, f32, 96,
        [read!("{out}": 0 at 0, 1 at 32, 3 at 96, 4 at 128),
         read!("{out}": 6 at 192, 7 at 224, 9 at 288, 10 at 320),]
        [read!("{b}": 12 at 0, 13 at 32),]
        [single!(0: 0 += 12, 1 += 13),
         single!(4: 3 += 12, 4 += 13),
         single!(8: 6 += 12, 7 += 13),
         single!(12: 9 += 12, 10 += 13),]
        [write!(0 at 0, 1 at 32, 3 at 96, 4 at 128),
         write!(6 at 192, 7 at 224, 9 at 288, 10 at 320),]);

    kernel!(add_double, f64, 192,
        [read!("{out}": 0 at 0, 1 at 32, 2 at 64, 3 at 192, 4 at 224, 5 at 256),
         read!("{out}": 6 at 384, 7 at 416, 8 at 448, 9 at 576, 10 at 608, 11 at 640),]
        [read!("{b}": 12 at 0, 13 at 32, 14 at 64),]
        [double!(0: 0 += 12, 1 += 13, 2 += 14),
         double!(8: 3 += 12, 4 += 13, 5 += 14),
         double!(16: 6 += 12, 7 += 13, 8 += 14),
         double!(24: 9 += 12, 10 += 13, 11 += 14),]
        [write!(0 at 0, 1 at 32, 2 at 64, 3 at 192, 4 at 224, 5 at 256),
         write!(6 at 384, 7 at 416, 8 at 448, 9 at 576, 10 at 608, 11 at 640),]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mfac::tolerance::{Rng, assert_approximate, assert_rounding, widen};

    #[test]
    fn all_code_paths_match_a_plain_sum() {
        let mut rng = Rng::new(1);
        for k in [0, 1, 2, 7, 193, 256, 264] {
            let stride = 29;
            let a = rng.normals(k * stride + HEIGHT);
            let b = rng.normals(k * WIDTH);
            let sum = |a: &[f32], stride: usize| {
                let mut want = vec![0.0f64; HEIGHT * WIDTH];
                for (l, b) in b.chunks_exact(WIDTH).enumerate() {
                    for (i, want) in want.chunks_exact_mut(WIDTH).enumerate() {
                        let a = f64::from(a[l * stride + i]);
                        want.iter_mut().zip(b).for_each(|(w, &b)| *w += a * f64::from(b));
                    }
                }
                want
            };
            let want = sum(&a, stride);
            let mut tile = [f32::NAN; HEIGHT * WIDTH];
            product(k, &a, stride, &b, &mut tile);
            let mut sums = vec![0.5; HEIGHT * WIDTH];
            accumulate(&tile, &mut sums);
            sums.iter_mut().for_each(|s| *s -= 0.5);
            assert_rounding(&sums, &want, k);
            tile.fill(0.0);
            add_any(k, &a, stride, &b, WIDTH, &mut tile);
            assert_rounding(&tile.map(f64::from), &want, k);
            tile.fill(0.0);
            add(k, &a, stride, &b, false, &mut tile);
            assert_rounding(&tile.map(f64::from), &want, k);
            tile.fill(0.0);
            add(k, &a, stride, &b, true, &mut tile);
            for (row, want) in tile.chunks_exact(WIDTH).zip(want.chunks_exact(WIDTH)) {
                assert_rounding(&widen(&row[..NARROW]), &want[..NARROW], k);
                assert_eq!(row[NARROW..], [0.0; WIDTH - NARROW]);
            }
            let a = rng.normals(k * WIDTH + HEIGHT);
            let (want, mut sums) = (sum(&a, WIDTH), vec![0.0; HEIGHT * WIDTH]);
            for first in [0, HALF] {
                add_double(k, &widen(&a), &widen(&b), first, &mut sums);
            }
            assert_approximate(&sums, &want, 1e-13, 10.0);
        }
    }

    #[test]
    fn squares_are_summed_by_columns() {
        let tile: Tile = std::array::from_fn(|i| i as f32 / 8.0);
        let mut norms = vec![1.0; WIDTH];
        add_squares(&tile, &mut norms);
        for (j, norm) in norms.into_iter().enumerate() {
            let want: f32 = (0..HEIGHT).map(|i| tile[i * WIDTH + j].powi(2)).sum();
            assert!((norm - 1.0 - f64::from(want)).abs() < 1e-4 * norm);
        }
    }

    #[test]
    #[should_panic]
    fn short_operands_are_refused() {
        product(2, &[0.0; 8], 8, &[0.0; 48], &mut [0.0; 96]);
    }
}
