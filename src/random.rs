//! Counter-based random numbers: the same (seed, stream, position) gives the same number whoever
//! asks, in whatever order, on however many threads.

/// A stream of random numbers, fixed by a seed and a stream number.
#[derive(Clone, Debug)]
pub struct Stream {
    key: u64,
    counter: u64,
    spare: Option<f32>,
}

impl Stream {
    /// Stream `stream` of `seed`; different streams are independent.
    pub fn new(seed: u64, stream: u64) -> Stream {
        Stream { key: mix(mix(seed) ^ stream.wrapping_mul(GOLDEN)), counter: 0, spare: None }
    }

    /// The next 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.counter += 1;
        mix(self.key.wrapping_add(self.counter.wrapping_mul(GOLDEN)))
    }

    /// Uniform on (0, 1): never exactly 0 or 1.
    pub fn uniform(&mut self) -> f64 {
        ((self.bits() >> 12) as f64 + 0.5) / (1u64 << 52) as f64
    }

    /// Uniform on 0..n; `n` must not be 0.
    pub fn below(&mut self, n: usize) -> usize {
        // The bias of a 64-bit multiply-shift is below n / 2^64.
        ((self.bits() as u128 * n as u128) >> 64) as usize
    }

    /// Standard normal (Box and Muller).
    pub fn normal(&mut self) -> f32 {
        if let Some(x) = self.spare.take() {
            return x;
        }
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * self.uniform()).sin_cos();
        self.spare = Some((radius * sin) as f32);
        (radius * cos) as f32
    }

    /// Standard Gumbel: argmax over classes of logit + Gumbel samples the softmax.
    pub fn gumbel(&mut self) -> f32 {
        -(-self.uniform().ln()).ln() as f32
    }

    /// A random order of 0..n.
    pub fn permutation(&mut self, n: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..n as u32).collect();
        self.shuffle(&mut order);
        order
    }

    /// Puts things in a random order.
    pub fn shuffle<T>(&mut self, things: &mut [T]) {
        for i in (1..things.len()).rev() {
            things.swap(i, self.below(i + 1));
        }
    }
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finaliser of SplitMix64: a bijection whose output bits each depend on every input bit.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_the_distributions() {
        let mut s = Stream::new(7, 3);
        let n = 200_000;
        let moments = |xs: &[f64]| {
            let mean = xs.iter().sum::<f64>() / xs.len() as f64;
            (mean, xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / xs.len() as f64)
        };
        let (mean, var) = moments(&(0..n).map(|_| s.normal().into()).collect::<Vec<_>>());
        assert!(mean.abs() < 0.01 && (var - 1.0).abs() < 0.02, "normal: {mean} {var}");
        let (mean, var) = moments(&(0..n).map(|_| s.gumbel().into()).collect::<Vec<_>>());
        assert!(
            (mean - 0.5772).abs() < 0.01 && (var - 1.6449).abs() < 0.04,
            "gumbel: {mean} {var}"
        );
    }

    #[test]
    fn streams_repeat_and_differ() {
        let draw =
            |seed, stream| (0..8).map(|_| 0).scan(Stream::new(seed, stream), |s, _| Some(s.bits()));
        assert!(draw(1, 2).eq(draw(1, 2)));
        assert!(!draw(1, 2).eq(draw(1, 3)) && !draw(1, 2).eq(draw(2, 2)));
        let mut p = Stream::new(5, 0).permutation(1000);
        assert!(!p.is_sorted());
        p.sort();
        assert!(p.into_iter().eq(0..1000));
    }
}
