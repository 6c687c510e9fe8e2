//! What vectors the processor has: every kernel exists for AVX-512, for AVX2 and plainly, and asks
//! here which one may run.

/// The vectors of a processor, the narrowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Vectors {
    /// None that hone knows.
    Plain,
    /// Sixteen registers of 256 bits: AVX2, FMA and F16C.
    Avx2,
    /// Thirty-two registers of 512 bits: AVX-512 F, BW, DQ and VL besides those of AVX2.
    Avx512,
}

impl Vectors {
    /// Those of this processor.
    #[inline]
    pub fn here() -> Vectors {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            return match is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
            {
                true => Vectors::Avx512,
                false => Vectors::Avx2,
            };
        }
        Vectors::Plain
    }

    /// All that this processor can run, for tests of every code path.
    #[cfg(test)]
    pub fn all() -> impl Iterator<Item = Vectors> {
        let known = [Vectors::Plain, Vectors::Avx2, Vectors::Avx512];
        known.into_iter().filter(|v| *v <= Vectors::here())
    }
}

/// Defines a function as another one, marked `#[inline(always)]`, compiled for the widest vectors
/// there are: the compiler does the rest.
macro_rules! widest {
    ($(#[$doc:meta])* $visible:vis fn $name:ident $(<$t:ident: $bound:path>)? (
        $($arg:ident: $type:ty),* $(,)?
    ) $(-> $out:ty)? = $body:expr;) => {
        $(#[$doc])*
        #[inline]
        $visible fn $name $(<$t: $bound + Copy>)? ($($arg: $type),*) $(-> $out)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512 $(<$t: $bound + Copy>)? ($($arg: $type),*) $(-> $out)? {
                    $body($($arg),*)
                }
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2 $(<$t: $bound + Copy>)? ($($arg: $type),*) $(-> $out)? {
                    $body($($arg),*)
                }
                use $crate::mfac::kernels::vectors::Vectors;
                // SAFETY: the processor has the features; both functions are safe otherwise.
                unsafe {
                    match Vectors::here() {
                        Vectors::Avx512 => return avx512($($arg),*),
                        Vectors::Avx2 => return avx2($($arg),*),
                        Vectors::Plain => {}
                    }
                }
            }
            $body($($arg),*)
        }
    };
}
pub(crate) use widest;
