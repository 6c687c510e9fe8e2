//! What a pruning step costs: CPU seconds per million weights, by block size and method.
//!
//! `cargo bench --bench prune [weights [B]]`. One thread, so that the time on the CPU is that of
//! the work alone, also on a busy machine. Every step fetches its blocks, ranks, fetches again and
//! settles.

use std::ops::Range;

use hone::cancel::Cancel;
use hone::prune::{
    Curvature, Damping, Layer, Pattern, Scope, Selection, StepPlan, Update, Workers, plan_blocks,
    step,
};

fn main() {
    let mut numbers = std::env::args().filter_map(|a| a.parse::<usize>().ok());
    let weights = numbers.next().unwrap_or(262_144);
    let sizes = numbers.next().map_or(vec![64, 128, 256, 512], |size| vec![size]);
    println!("CPU seconds per 1M weights, one thread, {weights} weights");
    println!(
        "{:>5} {:>12} {:>9} {:>9} {:>9} {:>9} {:>12}",
        "B", "pattern", "sparsity", "greedy", "1 stage", "8 stages", "independent"
    );
    for size in sizes {
        for (pattern, sparsity) in [("unstructured", 0.5), ("unstructured", 0.9), ("2:4", 0.5)] {
            let pattern: Pattern = pattern.parse().expect("a pattern");
            let problem = Problem::new(weights, size, pattern);
            let seconds = |update, selection| {
                let plan = StepPlan {
                    pattern,
                    scope: Scope::Global,
                    sparsity,
                    update,
                    selection,
                    damping: Damping::Relative(0.1),
                };
                problem.seconds(&plan) * 1e6 / weights as f64
            };
            println!(
                "{size:>5} {:>12} {sparsity:>9} {:>9.3} {:>9.3} {:>9.3} {:>12.3}",
                pattern.to_string(),
                seconds(Update::Joint, Selection::Greedy),
                seconds(Update::Joint, Selection::Staged { stages: 1 }),
                seconds(Update::Joint, Selection::Staged { stages: 8 }),
                seconds(Update::Independent, Selection::Greedy),
            );
        }
    }
}

/// CPU seconds that the exact greedy order and the joint update of a million weights take in blocks
/// of `size`, from a step over `weights` of them.
pub fn greedy_seconds(weights: usize, size: usize, sparsity: f64) -> f64 {
    let plan = StepPlan {
        pattern: Pattern::Unstructured,
        scope: Scope::Global,
        sparsity,
        update: Update::Joint,
        selection: Selection::Greedy,
        damping: Damping::Relative(0.1),
    };
    Problem::new(weights, size, plan.pattern).seconds(&plan) * 1e6 / weights as f64
}

struct Problem {
    weights: Vec<f32>,
    layers: Vec<Layer>,
    blocks: Vec<Range<usize>>,
    /// One Fisher block stands for all.
    fisher: Vec<f64>,
}

impl Problem {
    fn new(count: usize, size: usize, pattern: Pattern) -> Problem {
        let mut state = 1u64;
        let mut uniform = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f64 / (1u64 << 23) as f64 - 1.0
        };
        let layers = vec![Layer { name: "w".into(), range: 0..count, row: size }];
        let blocks = plan_blocks(&layers, size, pattern);
        let gradients: Vec<Vec<f64>> = (0..2 * size)
            .map(|_| {
                let (mut state, delta) = (0.0, uniform() + uniform());
                (0..size)
                    .map(|_| {
                        state = 0.9 * state + 0.5 * uniform();
                        delta * state
                    })
                    .collect()
            })
            .collect();
        let mut fisher = vec![0.0; size * size];
        for row in &gradients {
            for (i, out) in fisher.chunks_exact_mut(size).enumerate() {
                out.iter_mut()
                    .zip(row)
                    .for_each(|(f, g)| *f += row[i] * g / gradients.len() as f64);
            }
        }
        let weights = (0..count).map(|_| (uniform() + uniform() + uniform()) as f32).collect();
        Problem { weights, layers, blocks, fisher }
    }

    /// The fastest of three runs.
    fn seconds(&self, plan: &StepPlan) -> f64 {
        let alive = vec![true; self.weights.len()];
        let cancel = Cancel::new();
        let workers = Workers::new(1, &cancel);
        (0..3)
            .map(|_| {
                let start = on_cpu();
                let result = step(&self.weights, &alive, &self.layers, self, plan, workers);
                assert!(result.expect("a sound problem").predicted_loss > 0.0);
                on_cpu() - start
            })
            .fold(f64::INFINITY, f64::min)
    }
}

impl Curvature for Problem {
    fn blocks(&self) -> &[Range<usize>] {
        &self.blocks
    }
    fn block(&self, _index: usize, out: &mut [f64]) -> hone::error::Result<()> {
        out.copy_from_slice(&self.fisher[..out.len()]);
        Ok(())
    }
    fn diagonal_mean(&self, _range: Range<usize>) -> f64 {
        let size = self.blocks[0].len();
        self.fisher.iter().step_by(size + 1).sum::<f64>() / size as f64
    }
}

/// Seconds this thread has spent on the CPU.
fn on_cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    let nanoseconds = text.split(' ').next().and_then(|n| n.parse::<f64>().ok());
    nanoseconds.expect("schedstat begins with the time on the CPU") * 1e-9
}
