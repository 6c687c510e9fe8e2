//! What this machine can do, measured on the spot: the limits that benchmarks are read against.

use std::time::Instant;

use super::kernels::tile::{HEIGHT, Product, WIDTH};

/// f32 flop/s of the register tile with operands in the first-level cache, on `threads` threads at
/// once: within a few per cent of the processor's peak.
///
/// Each thread counts its fastest slice of some twenty microseconds, too short to be interrupted
/// often: the figure holds on a busy machine too.
pub fn tile_flops(threads: usize) -> f64 {
    const K: usize = 256;
    const PRODUCTS: usize = 40;
    const SLICES: usize = 2000;
    let (a, b) = (vec![0.5; K * HEIGHT], vec![0.25; K * WIDTH]);
    let product = Product { k: K, a: &a, a_stride: HEIGHT, b: &b, b_stride: WIDTH, narrow: false };
    let fastest = || {
        let mut tile = [0.0; HEIGHT * WIDTH];
        let mut slice = || {
            let start = Instant::now();
            for _ in 0..PRODUCTS {
                product.add_to(&mut tile);
                std::hint::black_box(&tile);
            }
            start.elapsed().as_secs_f64()
        };
        let seconds = (0..SLICES).map(|_| slice()).fold(f64::INFINITY, f64::min);
        (2 * PRODUCTS * K * HEIGHT * WIDTH) as f64 / seconds
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(fastest)).collect();
        running.into_iter().map(|t| t.join().expect("the tile does not panic")).sum()
    })
}

/// Bytes/s at which `threads` threads read memory, each its part of 512 MiB.
pub fn read_bandwidth(threads: usize) -> f64 {
    const BYTES: usize = 512 << 20;
    let memory = vec![1u64; BYTES / 8];
    let part = memory.len() / threads.max(1);
    let next = std::sync::atomic::AtomicUsize::new(0);
    let seconds = best(threads, || {
        let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % threads.max(1);
        let sum = memory[index * part..][..part].iter().fold(0u64, |s, x| s.wrapping_add(*x));
        std::hint::black_box(sum);
    });
    (threads * part * 8) as f64 / seconds
}

/// The shortest of seven runs of `work` on all threads at once.
fn best(threads: usize, work: impl Fn() + Sync) -> f64 {
    let run = || {
        let start = Instant::now();
        std::thread::scope(|scope| {
            (0..threads).for_each(|_| drop(scope.spawn(&work)));
        });
        start.elapsed().as_secs_f64()
    };
    (0..7).map(|_| run()).fold(f64::INFINITY, f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_of_this_world() {
        assert!((1e8..1e14).contains(&tile_flops(1)));
    }
}
