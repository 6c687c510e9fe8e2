//! The register tile: C(4×24) = Σ_k a_k b_kᵀ with a_k of 4 and b_k of 24 numbers.
//!
//! Twelve accumulators, three vectors of b and one broadcast fill the sixteen registers of AVX2.
//! It is written in assembly because compilers spill such a tile to memory depending on the code
//! around it (measured: 91 % of peak in one build, 32 % in another of the same source).
#![allow(unsafe_code, reason = "vector registers; the safe functions check every length")]

/// Rows of the tile.
pub const HEIGHT: usize = 4;
/// Columns of the tile.
pub const WIDTH: usize = 24;

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
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the processor has both features, k > 0, and the assertion above covers every
        // element that the k steps read.
        return unsafe { product_avx2(k, a.as_ptr(), a_stride, b.as_ptr(), out) };
    }
    product_portable(k, a, a_stride, b, out);
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

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn accumulate_avx2(tile: &Tile, sum: &mut [f64; HEIGHT * WIDTH]) {
    accumulate_any(tile, sum);
}

#[inline(always)]
fn accumulate_any(tile: &Tile, sum: &mut [f64; HEIGHT * WIDTH]) {
    for (s, &t) in sum.iter_mut().zip(tile) {
        *s += f64::from(t);
    }
}

fn product_portable(k: usize, a: &[f32], a_stride: usize, b: &[f32], out: &mut Tile) {
    let mut sums = [[0.0f32; WIDTH]; HEIGHT];
    for (l, b) in b.chunks_exact(WIDTH).take(k).enumerate() {
        let a = &a[l * a_stride..][..HEIGHT];
        for (sum, &a) in sums.iter_mut().zip(a) {
            for (s, &b) in sum.iter_mut().zip(b) {
                *s += a * b;
            }
        }
    }
    out.copy_from_slice(sums.as_flattened());
}

/// # Safety
/// AVX2 and FMA must be there; k > 0; `a` and `b` must be readable as `product` describes.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn product_avx2(k: usize, a: *const f32, a_stride: usize, b: *const f32, out: &mut Tile) {
    macro_rules! row {
        ($offset:literal, $c0:literal, $c1:literal, $c2:literal) => {
            concat!(
                "vbroadcastss ymm15, dword ptr [{a} + ",
                $offset,
                "]\n",
                "vfmadd231ps ymm",
                $c0,
                ", ymm12, ymm15\n",
                "vfmadd231ps ymm",
                $c1,
                ", ymm13, ymm15\n",
                "vfmadd231ps ymm",
                $c2,
                ", ymm14, ymm15\n",
            )
        };
    }
    macro_rules! zero {
        ($($register:literal)+) => {
            concat!($("vxorps xmm", $register, ", xmm", $register, ", xmm", $register, "\n"),+)
        };
    }
    macro_rules! store {
        ($($register:literal at $offset:literal),+) => {
            concat!($("vmovups ymmword ptr [{out} + ", $offset, "], ymm", $register, "\n"),+)
        };
    }
    // SAFETY: the loop runs k > 0 times and reads 4 floats at a and 24 at b each time, stepping by
    // the strides the caller vouched for; `out` holds the 96 floats stored at the end. Every
    // register written is declared.
    unsafe {
        std::arch::asm!(
            zero!(0 1 2 3 4 5 6 7 8 9 10 11),
            "2:",
            "vmovups ymm12, ymmword ptr [{b}]",
            "vmovups ymm13, ymmword ptr [{b} + 32]",
            "vmovups ymm14, ymmword ptr [{b} + 64]",
            row!(0, 0, 1, 2),
            row!(4, 3, 4, 5),
            row!(8, 6, 7, 8),
            row!(12, 9, 10, 11),
            "add {b}, 96",
            "add {a}, {step}",
            "dec {k}",
            "jnz 2b",
            store!(0 at 0, 1 at 32, 2 at 64, 3 at 96, 4 at 128, 5 at 160),
            store!(6 at 192, 7 at 224, 8 at 256, 9 at 288, 10 at 320, 11 at 352),
            a = inout(reg) a => _,
            b = inout(reg) b => _,
            k = inout(reg) k => _,
            step = in(reg) a_stride * size_of::<f32>(),
            out = in(reg) out.as_mut_ptr(),
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _,
            out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _,
            out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
            out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
            options(nostack),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mfac::tolerance::{Rng, assert_rounding};

    #[test]
    fn both_code_paths_match_a_plain_sum() {
        let mut rng = Rng::new(1);
        for k in [0, 1, 2, 7, 193, 256, 264] {
            let stride = 29;
            let a = rng.normals(k * stride + HEIGHT);
            let b = rng.normals(k * WIDTH);
            let mut want = vec![0.0f64; HEIGHT * WIDTH];
            for l in 0..k {
                for (i, want) in want.chunks_exact_mut(WIDTH).enumerate() {
                    for (j, want) in want.iter_mut().enumerate() {
                        *want += f64::from(a[l * stride + i]) * f64::from(b[l * WIDTH + j]);
                    }
                }
            }
            let mut tile = [f32::NAN; HEIGHT * WIDTH];
            product(k, &a, stride, &b, &mut tile);
            let mut sums = vec![0.5; HEIGHT * WIDTH];
            accumulate(&tile, &mut sums);
            sums.iter_mut().for_each(|s| *s -= 0.5);
            assert_rounding(&sums, &want, k);
            product_portable(k, &a, stride, &b, &mut tile);
            assert_rounding(&tile.map(f64::from), &want, k);
        }
    }

    #[test]
    #[should_panic]
    fn short_operands_are_refused() {
        product(2, &[0.0; 8], 8, &[0.0; 48], &mut [0.0; 96]);
    }
}
