//! The register tile: C(8×32) += Σ_k a_k b_kᵀ with a_k of 8 and b_k of 32 numbers.
//!
//! In AVX-512 its sixteen accumulators, two vectors of b and one broadcast stay in registers; in
//! AVX2 it is done in parts of 4×16, eight accumulators each, as many as the latency of two
//! multiply-adds a cycle asks for. It is written in assembly because compilers spill such tiles to
//! memory depending on the code around them (measured: 91 % of peak in one build, 32 % in another
//! of the same source). Tiles that cross the diagonal of a symmetric matrix may need their first 16
//! columns only; the same tile in f64 is done in two halves of 16 columns.
#![allow(unsafe_code, reason = "vector registers; the safe functions check every length")]

use super::vectors::{Vectors, widest};

/// Rows of the tile.
pub const HEIGHT: usize = 8;
/// Columns of the tile.
pub const WIDTH: usize = 32;
/// Columns of a narrow tile, which takes half the time.
pub const NARROW: usize = 16;
/// Columns of half a tile of f64.
pub const HALF: usize = 16;

/// The tile, row-major.
pub type Tile = [f32; HEIGHT * WIDTH];

/// The tile Σ_{l<k} a_l b_lᵀ, summed in order of l: element (i, j) of a term is
/// `a[l·a_stride + i] · b[l·b_stride + j]`.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    pub k: usize,
    pub a: &'a [f32],
    pub a_stride: usize,
    pub b: &'a [f32],
    pub b_stride: usize,
    /// Only the first 16 columns; the others are left as they are.
    pub narrow: bool,
}

impl Product<'_> {
    /// Adds the tile to `sums`. Panics when `a` or `b` is too short, and unless there are 256 sums.
    #[inline]
    pub fn add_to(&self, sums: &mut [f32]) {
        self.run(Vectors::here(), false, sums);
    }

    /// Writes the tile to `out`. Panics as [`Product::add_to`] does.
    #[inline]
    pub fn write_to(&self, out: &mut [f32]) {
        self.run(Vectors::here(), true, out);
    }

    /// Adds to `sums`, or to zeros if `fresh`.
    #[inline]
    fn run(&self, vectors: Vectors, fresh: bool, sums: &mut [f32]) {
        let Product { k, a, a_stride, b, b_stride, narrow } = *self;
        let sums: &mut Tile = sums.try_into().expect("a tile has 256 sums");
        let columns = if narrow { NARROW } else { WIDTH };
        if k == 0 {
            if fresh {
                sums.chunks_exact_mut(WIDTH).for_each(|row| row[..columns].fill(0.0));
            }
            return;
        }
        assert!(a.len() >= (k - 1) * a_stride + HEIGHT && b.len() >= (k - 1) * b_stride + WIDTH);
        let steps = [a_stride * 4, b_stride * 4];
        match vectors {
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx512 => {
                let (a, b, sums) = (a.as_ptr(), b.as_ptr(), sums.as_mut_ptr());
                // SAFETY: the processor has the features, k > 0, the assertion above covers every
                // element that the k steps read, and the tile those written.
                unsafe {
                    match narrow {
                        true => vector::avx512_narrow(k, a, b, steps, sums, fresh),
                        false => vector::avx512(k, a, b, steps, sums, fresh),
                    }
                }
            }
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx2 => {
                for (i, j) in parts(4, 16, columns) {
                    let (a, b) = (a[i..].as_ptr(), b[j..].as_ptr());
                    let sums = sums[i * WIDTH + j..].as_mut_ptr();
                    // SAFETY: as above; the part begins at row i and column j and lies in the tile.
                    unsafe { vector::avx2(k, a, b, steps, sums, fresh) };
                }
            }
            _ => {
                for (i, sums) in sums.chunks_exact_mut(WIDTH).enumerate() {
                    let sums = &mut sums[..columns];
                    if fresh {
                        sums.fill(0.0);
                    }
                    for l in 0..k {
                        let (a, b) = (a[l * a_stride + i], &b[l * b_stride..][..columns]);
                        sums.iter_mut().zip(b).for_each(|(s, &b)| *s += a * b);
                    }
                }
            }
        }
    }
}

/// `sums[i·32 + j] += Σ_{l<k} a[l·32 + i] · b[l·32 + j]` for the 16 columns j from `first` on, in
/// f64: at half the speed of f32, for matrices that f32 sums would spoil.
///
/// Panics when `a` or `b` is too short, and unless there are 256 sums and `first` is 0 or 16.
#[inline]
pub fn add_double(k: usize, a: &[f64], b: &[f64], first: usize, sums: &mut [f64]) {
    add_double_by(Vectors::here(), k, a, b, first, sums);
}

#[inline]
fn add_double_by(vectors: Vectors, k: usize, a: &[f64], b: &[f64], first: usize, sums: &mut [f64]) {
    let sums: &mut [f64; HEIGHT * WIDTH] = sums.try_into().expect("a tile has 256 sums");
    assert!(first == 0 || first == HALF);
    if k == 0 {
        return;
    }
    assert!(a.len() >= (k - 1) * WIDTH + HEIGHT && b.len() >= k * WIDTH);
    match vectors {
        #[cfg(target_arch = "x86_64")]
        Vectors::Avx512 => {
            let (b, sums) = (b[first..].as_ptr(), sums[first..].as_mut_ptr());
            // SAFETY: the processor has the features, k > 0, and the assertions above cover every
            // element read and written: 16 of the 32 columns of b and of the sums.
            unsafe { vector::avx512_double(k, a.as_ptr(), b, [WIDTH * 8; 2], sums, false) };
        }
        #[cfg(target_arch = "x86_64")]
        Vectors::Avx2 => {
            for (i, j) in parts(4, 8, HALF) {
                let (a, b) = (a[i..].as_ptr(), b[first + j..].as_ptr());
                let sums = sums[i * WIDTH + first + j..].as_mut_ptr();
                // SAFETY: as above; the part begins at row i and column j and lies in the half.
                unsafe { vector::avx2_double(k, a, b, [WIDTH * 8; 2], sums, false) };
            }
        }
        _ => {
            for l in 0..k {
                let (a, b) = (&a[l * WIDTH..][..HEIGHT], &b[l * WIDTH + first..][..HALF]);
                for (sum, &a) in sums.chunks_exact_mut(WIDTH).zip(a) {
                    sum[first..].iter_mut().zip(b).for_each(|(s, &b)| *s += a * b);
                }
            }
        }
    }
}

/// Where the parts of a tile begin that has so many columns.
#[cfg(target_arch = "x86_64")]
fn parts(height: usize, width: usize, columns: usize) -> impl Iterator<Item = (usize, usize)> {
    let rows = (0..HEIGHT).step_by(height);
    rows.flat_map(move |i| (0..columns).step_by(width).map(move |j| (i, j)))
}

/// `norms[j] += Σ_i tile[i·32 + j]²`: a sum of eight in f32, the rest in f64.
#[inline]
pub fn add_squares(tile: &Tile, norms: &mut [f64]) {
    let norms: &mut [f64; WIDTH] = norms.try_into().expect("a tile has 32 columns");
    add_squares_widest(tile, norms);
}

widest! {
    fn add_squares_widest(tile: &Tile, norms: &mut [f64; WIDTH]) = add_squares_any;
}

#[inline(always)]
fn add_squares_any(tile: &Tile, norms: &mut [f64; WIDTH]) {
    let mut squares = [0.0f32; WIDTH];
    for row in tile.as_chunks::<WIDTH>().0 {
        squares.iter_mut().zip(row).for_each(|(s, x)| *s += x * x);
    }
    norms.iter_mut().zip(squares).for_each(|(norm, s)| *norm += f64::from(s));
}

/// The tiles in assembly: `k` steps over `a` and `b`, each so many bytes after the one before,
/// added to `out` (rows of 32 numbers), or to zeros if `fresh`.
#[cfg(target_arch = "x86_64")]
mod vector {
    /// A kernel `name` for numbers of a type. It multiplies the
    /// vectors of `b` by one number of `a` after another, in register `one`, and adds them to the
    /// vectors of that row of `out`; registers come with what they hold, by its offset in bytes.
    macro_rules! kernel {
        ($name:ident: $features:tt, $number:ty, $clear:tt, $broadcast:tt, $multiply:tt, one $one:tt,
         b $($b:tt at $b_offset:tt),+;
         $(a $a_offset:tt: $($sum:tt += $by:tt at $offset:tt),+;)+) => {
            /// # Safety
            /// The processor must have the features; k > 0; `a` and `b` must be readable for k
            /// steps, `out` readable and writable.
            #[target_feature(enable = $features)]
            pub unsafe fn $name(
                k: usize,
                a: *const $number,
                b: *const $number,
                steps: [usize; 2],
                out: *mut $number,
                fresh: bool,
            ) {
                // SAFETY: the loop runs k > 0 times and reads at a and b what the caller vouched
                // for; `out` holds what is loaded and stored there. Every register written is
                // declared.
                unsafe {
                    std::arch::asm!(
                        "test {fresh:e}, {fresh:e}",
                        "jnz 3f",
                        $($(concat!("vmovups ", $sum, ", [{out} + ", $offset, "]"),)+)+
                        "jmp 2f",
                        "3:",
                        $($(concat!($clear, " ", $sum, ", ", $sum, ", ", $sum),)+)+
                        "2:",
                        $(concat!("vmovups ", $b, ", [{b} + ", $b_offset, "]"),)+
                        $(
                            concat!($broadcast, " ", $one, ", [{a} + ", $a_offset, "]"),
                            $(concat!($multiply, " ", $sum, ", ", $by, ", ", $one),)+
                        )+
                        "add {a}, {a_step}",
                        "add {b}, {b_step}",
                        "dec {k}",
                        "jnz 2b",
                        $($(concat!("vmovups [{out} + ", $offset, "], ", $sum),)+)+
                        a = inout(reg) a => _,
                        b = inout(reg) b => _,
                        k = inout(reg) k => _,
                        a_step = in(reg) steps[0],
                        b_step = in(reg) steps[1],
                        out = in(reg) out,
                        fresh = in(reg) u32::from(fresh),
                        $($(out($sum) _,)+)+
                        $(out($b) _,)+
                        out($one) _,
                        options(nostack),
                    );
                }
            }
        };
    }

    kernel!(avx512: "avx512f", f32, "vpxord", "vbroadcastss", "vfmadd231ps", one "zmm18",
        b "zmm16" at 0, "zmm17" at 64;
        a 0: "zmm0" += "zmm16" at 0, "zmm1" += "zmm17" at 64;
        a 4: "zmm2" += "zmm16" at 128, "zmm3" += "zmm17" at 192;
        a 8: "zmm4" += "zmm16" at 256, "zmm5" += "zmm17" at 320;
        a 12: "zmm6" += "zmm16" at 384, "zmm7" += "zmm17" at 448;
        a 16: "zmm8" += "zmm16" at 512, "zmm9" += "zmm17" at 576;
        a 20: "zmm10" += "zmm16" at 640, "zmm11" += "zmm17" at 704;
        a 24: "zmm12" += "zmm16" at 768, "zmm13" += "zmm17" at 832;
        a 28: "zmm14" += "zmm16" at 896, "zmm15" += "zmm17" at 960;);

    kernel!(avx512_narrow: "avx512f", f32, "vpxord", "vbroadcastss", "vfmadd231ps", one "zmm9",
        b "zmm8" at 0;
        a 0: "zmm0" += "zmm8" at 0;
        a 4: "zmm1" += "zmm8" at 128;
        a 8: "zmm2" += "zmm8" at 256;
        a 12: "zmm3" += "zmm8" at 384;
        a 16: "zmm4" += "zmm8" at 512;
        a 20: "zmm5" += "zmm8" at 640;
        a 24: "zmm6" += "zmm8" at 768;
        a 28: "zmm7" += "zmm8" at 896;);

    kernel!(avx512_double: "avx512f", f64, "vpxord", "vbroadcastsd", "vfmadd231pd", one "zmm18",
        b "zmm16" at 0, "zmm17" at 64;
        a 0: "zmm0" += "zmm16" at 0, "zmm1" += "zmm17" at 64;
        a 8: "zmm2" += "zmm16" at 256, "zmm3" += "zmm17" at 320;
        a 16: "zmm4" += "zmm16" at 512, "zmm5" += "zmm17" at 576;
        a 24: "zmm6" += "zmm16" at 768, "zmm7" += "zmm17" at 832;
        a 32: "zmm8" += "zmm16" at 1024, "zmm9" += "zmm17" at 1088;
        a 40: "zmm10" += "zmm16" at 1280, "zmm11" += "zmm17" at 1344;
        a 48: "zmm12" += "zmm16" at 1536, "zmm13" += "zmm17" at 1600;
        a 56: "zmm14" += "zmm16" at 1792, "zmm15" += "zmm17" at 1856;);

    kernel!(avx2: "avx2,fma", f32, "vxorps", "vbroadcastss", "vfmadd231ps", one "ymm10",
        b "ymm8" at 0, "ymm9" at 32;
        a 0: "ymm0" += "ymm8" at 0, "ymm1" += "ymm9" at 32;
        a 4: "ymm2" += "ymm8" at 128, "ymm3" += "ymm9" at 160;
        a 8: "ymm4" += "ymm8" at 256, "ymm5" += "ymm9" at 288;
        a 12: "ymm6" += "ymm8" at 384, "ymm7" += "ymm9" at 416;);

    kernel!(avx2_double: "avx2,fma", f64, "vxorps", "vbroadcastsd", "vfmadd231pd", one "ymm10",
        b "ymm8" at 0, "ymm9" at 32;
        a 0: "ymm0" += "ymm8" at 0, "ymm1" += "ymm9" at 32;
        a 8: "ymm2" += "ymm8" at 256, "ymm3" += "ymm9" at 288;
        a 16: "ymm4" += "ymm8" at 512, "ymm5" += "ymm9" at 544;
        a 24: "ymm6" += "ymm8" at 768, "ymm7" += "ymm9" at 800;);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mfac::tolerance::{Rng, assert_approximate, assert_rounding, widen};

    #[test]
    fn all_code_paths_match_a_plain_sum() {
        let mut rng = Rng::new(1);
        for (vectors, k) in Vectors::all().flat_map(|v| [0, 1, 2, 7, 193, 256].map(|k| (v, k))) {
            let stride = 37;
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
            let mut tile = [0.0; HEIGHT * WIDTH];
            let (a_stride, b_stride) = (stride, WIDTH + 3);
            let mut wide = vec![f32::NAN; k * b_stride + WIDTH];
            for (wide, b) in wide.chunks_mut(b_stride).zip(b.chunks_exact(WIDTH)) {
                wide[..WIDTH].copy_from_slice(b);
            }
            let mut product = Product { k, a: &a, a_stride, b: &wide, b_stride, narrow: false };
            product.run(vectors, false, &mut tile);
            assert_rounding(&widen(&tile), &want, k);
            tile.fill(f32::NAN);
            product.run(vectors, true, &mut tile);
            assert_rounding(&widen(&tile), &want, k);
            for row in tile.chunks_exact_mut(WIDTH) {
                row[..NARROW].fill(f32::NAN);
                row[NARROW..].fill(0.0);
            }
            product.narrow = true;
            product.run(vectors, true, &mut tile);
            for (row, want) in tile.chunks_exact(WIDTH).zip(want.chunks_exact(WIDTH)) {
                assert_rounding(&widen(&row[..NARROW]), &want[..NARROW], k);
                assert_eq!(row[NARROW..], [0.0; WIDTH - NARROW]);
            }
            let a = rng.normals(k * WIDTH + HEIGHT);
            let (want, mut sums) = (sum(&a, WIDTH), vec![0.0; HEIGHT * WIDTH]);
            for first in [0, HALF] {
                add_double_by(vectors, k, &widen(&a), &widen(&b), first, &mut sums);
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
        let (a, b) = (&[0.0; 16], &[0.0; 64]);
        Product { k: 2, a, a_stride: 16, b, b_stride: 32, narrow: false }.add_to(&mut [0.0; 256]);
    }
}
