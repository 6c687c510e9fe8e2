//! Steps as a whole, on synthetic blocks with correlated weights.

use super::*;
use crate::error::ErrorKind;
use crate::mfac::{GradientStore, Storage};

/// Reproducible numbers in (−1, 1) and, summed, nearly normal ones.
struct Draw(u64);

impl Draw {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let mixed = (self.0 ^ (self.0 >> 29)).wrapping_mul(0xbf58476d1ce4e5b9);
        (mixed >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    fn normal(&mut self) -> f64 {
        (0..6).map(|_| self.uniform()).sum::<f64>() * 0.5f64.sqrt()
    }
}

/// Blocks of a Fisher held densely.
struct Dense {
    ranges: Vec<Range<usize>>,
    blocks: Vec<Vec<f64>>,
}

impl Curvature for Dense {
    fn blocks(&self) -> &[Range<usize>] {
        &self.ranges
    }
    fn block(&self, index: usize, out: &mut [f64]) -> Result<()> {
        out.copy_from_slice(&self.blocks[index]);
        Ok(())
    }
    fn diagonal_mean(&self, range: Range<usize>) -> f64 {
        let n = range.len() as f64;
        let inside = self.ranges.iter().zip(&self.blocks).filter(|(r, _)| range.contains(&r.start));
        inside.map(|(r, f)| f.iter().step_by(r.len() + 1).sum::<f64>()).sum::<f64>() / n
    }
}

/// Gradients like those of a layer on smooth inputs: neighbours alike, scales apart.
fn correlated(n: usize, gradients: usize, draw: &mut Draw) -> Vec<f64> {
    let scale: Vec<f64> = (0..n).map(|_| (0.7 * draw.normal()).exp()).collect();
    let mut fisher = vec![0.0; n * n];
    for _ in 0..gradients {
        let delta = draw.normal();
        let mut state = draw.normal();
        let row: Vec<f64> = (0..n)
            .map(|i| {
                state = 0.9 * state + 0.44 * draw.normal();
                1e-3 * delta * scale[i] * state
            })
            .collect();
        for i in 0..n {
            for j in 0..n {
                fisher[i * n + j] += row[i] * row[j] / gradients as f64;
            }
        }
    }
    fisher
}

/// A net of layers (outputs, row) cut into blocks of at most `size`.
fn net(shapes: &[(usize, usize)], size: usize, pattern: Pattern, seed: u64) -> (Net, Dense) {
    let mut draw = Draw(seed);
    let mut layers = Vec::new();
    let mut at = 3; // what lies outside the layers is not touched
    for (i, &(outputs, row)) in shapes.iter().enumerate() {
        let range = at..at + outputs * row;
        at = range.end + 2;
        layers.push(Layer { name: format!("layer{i}"), range, row });
    }
    let ranges = plan_blocks(&layers, size, pattern);
    let blocks = ranges.iter().map(|r| correlated(r.len(), 300, &mut draw)).collect();
    let weights: Vec<f32> = (0..at).map(|_| 0.1 * draw.normal() as f32).collect();
    (Net { alive: vec![true; at], weights, layers }, Dense { ranges, blocks })
}

struct Net {
    weights: Vec<f32>,
    alive: Vec<bool>,
    layers: Vec<Layer>,
}

impl Net {
    fn step(&self, curvature: &Dense, plan: &StepPlan) -> Result<Step> {
        step(
            &self.weights,
            &self.alive,
            &self.layers,
            curvature,
            plan,
            Workers::new(1, &Cancel::new()),
        )
    }

    /// ½ δᵀ(F + λI)δ of `after`, with the λ of each layer.
    fn loss(&self, curvature: &Dense, after: &[f32], damping: &[f64]) -> f64 {
        let mut total = 0.0;
        for (range, fisher) in curvature.ranges.iter().zip(&curvature.blocks) {
            let n = range.len();
            let layer = self.layers.iter().position(|l| l.range.contains(&range.start)).unwrap();
            let delta: Vec<f64> =
                range.clone().map(|i| after[i] as f64 - self.weights[i] as f64).collect();
            for i in 0..n {
                total += 0.5 * damping[layer] * delta[i] * delta[i];
                for j in 0..n {
                    total += 0.5 * delta[i] * fisher[i * n + j] * delta[j];
                }
            }
        }
        total
    }
}

fn plan(sparsity: f64) -> StepPlan {
    StepPlan {
        pattern: Pattern::Unstructured,
        scope: Scope::Global,
        sparsity,
        update: Update::Joint,
        selection: Selection::Greedy,
        damping: Damping::Relative(0.1),
    }
}

fn every_plan(sparsity: f64) -> Vec<StepPlan> {
    let mut plans = Vec::new();
    for scope in [Scope::Global, Scope::Layer] {
        for (update, selection) in [
            (Update::Joint, Selection::Greedy),
            (Update::Joint, Selection::Staged { stages: 4 }),
            (Update::Independent, Selection::Greedy),
        ] {
            plans.push(StepPlan { scope, update, selection, ..plan(sparsity) });
        }
    }
    plans
}

/// Gauss-Jordan: an inverse that shares nothing with the code under test.
fn inverse(matrix: &[f64], n: usize) -> Vec<f64> {
    let mut left = matrix.to_vec();
    let mut right = vec![0.0; n * n];
    (0..n).for_each(|i| right[i * n + i] = 1.0);
    for p in 0..n {
        let pivot = left[p * n + p];
        for j in 0..n {
            left[p * n + j] /= pivot;
            right[p * n + j] /= pivot;
        }
        for i in (0..n).filter(|&i| i != p) {
            let factor = left[i * n + p];
            for j in 0..n {
                left[i * n + j] -= factor * left[p * n + j];
                right[i * n + j] -= factor * right[p * n + j];
            }
        }
    }
    right
}

fn damped(fisher: &[f64], n: usize, lambda: f64) -> Vec<f64> {
    let mut matrix = fisher.to_vec();
    matrix.iter_mut().step_by(n + 1).for_each(|d| *d += lambda);
    matrix
}

/// The joint optimum for the survivors `kept` of one block, and (F_SS)⁻¹.
fn optimum(matrix: &[f64], n: usize, weights: &[f64], kept: &[usize]) -> (Vec<f64>, Vec<f64>) {
    let k = kept.len();
    let part: Vec<f64> =
        kept.iter().flat_map(|&i| kept.iter().map(move |&j| matrix[i * n + j])).collect();
    let inverse = inverse(&part, k);
    let gone: Vec<usize> = (0..n).filter(|i| !kept.contains(i)).collect();
    let pull: Vec<f64> =
        kept.iter().map(|&i| gone.iter().map(|&j| matrix[i * n + j] * weights[j]).sum()).collect();
    let moved = (0..k)
        .map(|a| weights[kept[a]] + (0..k).map(|b| inverse[a * k + b] * pull[b]).sum::<f64>())
        .collect();
    (moved, inverse)
}

/// Greedy removal with everything computed anew each time, each group of `of` losing `lose` at
/// most: the order and the marginal losses.
fn brute_force(
    matrix: &[f64],
    n: usize,
    weights: &[f64],
    lose: usize,
    of: usize,
) -> (Vec<usize>, Vec<f64>) {
    let mut kept: Vec<usize> = (0..n).collect();
    let (mut order, mut losses): (Vec<usize>, Vec<f64>) = (Vec::new(), Vec::new());
    loop {
        let open = |i: usize| order.iter().filter(|p| **p / of == i / of).count() < lose;
        let (moved, inverse) = optimum(matrix, n, weights, &kept);
        let k = kept.len();
        let rho: Vec<f64> =
            (0..k).map(|a| moved[a] * moved[a] / (2.0 * inverse[a * k + a])).collect();
        let candidates = (0..k).filter(|&a| open(kept[a]));
        let Some(best) = candidates.min_by(|&a, &b| rho[a].total_cmp(&rho[b])) else {
            return (order, losses);
        };
        losses.push(rho[best]);
        order.push(kept.remove(best));
    }
}

fn first_task<'a>(net: &'a Net, curvature: &Dense, relative: f64) -> Task<'a> {
    let plan = StepPlan { damping: Damping::Relative(relative), ..plan(0.5) };
    tasks(&net.layers, curvature, &plan).unwrap().remove(0)
}

/// The trace of the only block against the brute force.
fn assert_greedy(n: usize, relative: f64, pattern: Pattern, lose: usize, of: usize) {
    let (net, curvature) = net(&[(1, n)], n, pattern, 5 + n as u64);
    let plan = StepPlan { damping: Damping::Relative(relative), pattern, ..plan(0.5) };
    let task = tasks(&net.layers, &curvature, &plan).unwrap().remove(0);
    let start = Start { weights: &net.weights, alive: &net.alive, curvature: &curvature };
    let mut scratch = Scratch::default();
    let trace = block::rank(&mut scratch, &task, &start, &net.alive, Ranking::Greedy).unwrap();
    let originals: Vec<f64> = net.weights[task.range.clone()].iter().map(|w| *w as f64).collect();
    let matrix = damped(&curvature.blocks[0], n, task.damping);
    let (order, losses) = brute_force(&matrix, n, &originals, lose, of);
    assert_eq!(trace.order, order.iter().map(|i| *i as u32).collect::<Vec<_>>(), "{n} {pattern}");
    let mut highest = 0.0f64;
    for (loss, expected) in trace.loss.iter().zip(losses) {
        highest = highest.max(expected);
        assert!((*loss as f64 / highest - 1.0).abs() < 1e-3, "{n}: {loss} {highest}");
    }
}

#[test]
fn greedy_is_the_brute_force() {
    // 1e-6 needs the f64 kernel; 128 and 140 go through sums of every width.
    let easy = [(1, 0.1), (2, 0.1), (17, 0.1), (128, 0.1), (140, 0.1)];
    for (n, relative) in easy.into_iter().chain([(70, 1e-3), (40, 1e-6)]) {
        assert_greedy(n, relative, Pattern::Unstructured, n, n);
    }
}

#[test]
fn greedy_under_a_pattern_is_the_brute_force_under_it() {
    for (n, keep, of) in [(8, 2, 4), (64, 2, 4), (72, 1, 4), (48, 4, 8), (60, 5, 6)] {
        assert_greedy(n, 0.1, Pattern::NOfM { keep, of }, of - keep, of);
    }
}

#[test]
fn the_joint_update_leaves_no_gradient_at_the_survivors() {
    for selection in [Selection::Greedy, Selection::Staged { stages: 3 }] {
        let (net, curvature) = net(&[(3, 40), (2, 25)], 40, Pattern::Unstructured, 11);
        let step = net.step(&curvature, &StepPlan { selection, ..plan(0.6) }).unwrap();
        for (range, fisher) in curvature.ranges.iter().zip(&curvature.blocks) {
            let n = range.len();
            let layer = net.layers.iter().position(|l| l.range.contains(&range.start)).unwrap();
            let matrix = damped(fisher, n, step.layers[layer].damping);
            let change = |i: usize| {
                step.weights[range.start + i] as f64 - net.weights[range.start + i] as f64
            };
            for i in (0..n).filter(|i| step.alive[range.start + i]) {
                let terms = (0..n).map(|j| matrix[i * n + j] * change(j));
                let size: f64 = terms.clone().map(f64::abs).sum();
                assert!(terms.sum::<f64>().abs() <= 1e-6 * size, "weights are rounded to f32");
            }
        }
    }
}

#[test]
fn the_independent_update_is_the_published_formula() {
    let (net, curvature) = net(&[(1, 30)], 30, Pattern::Unstructured, 3);
    let task = first_task(&net, &curvature, 0.1);
    let plan = StepPlan { update: Update::Independent, ..plan(0.5) };
    let step = net.step(&curvature, &plan).unwrap();
    let n = 30;
    let inverse = inverse(&damped(&curvature.blocks[0], n, task.damping), n);
    let w: Vec<f64> = net.weights[task.range.clone()].iter().map(|w| *w as f64).collect();
    let mut order: Vec<usize> = (0..n).collect();
    let rho = |i: usize| w[i] * w[i] / (2.0 * inverse[i * n + i]);
    order.sort_by(|&a, &b| rho(a).total_cmp(&rho(b)));
    let removed = &order[..15];
    for i in 0..n {
        let expected = if removed.contains(&i) {
            0.0
        } else {
            w[i] - removed
                .iter()
                .map(|&p| inverse[i * n + p] * w[p] / inverse[p * n + p])
                .sum::<f64>()
        };
        let actual = step.weights[task.range.start + i] as f64;
        assert!((actual - expected).abs() < 1e-7, "{i}: {actual} {expected}");
        assert_eq!(step.alive[task.range.start + i], !removed.contains(&i));
    }
}

#[test]
fn the_number_of_zeros_is_exact_and_the_rest_of_the_vector_untouched() {
    let shapes = [(4, 33), (7, 20), (1, 5)];
    let (mut net, curvature) = net(&shapes, 48, Pattern::Unstructured, 2);
    // Ties: a stretch of zeros and one of equal weights; and some weights that are dead already.
    net.weights[10..40].fill(0.0);
    net.weights[150..170].fill(0.25);
    for i in (net.layers[0].range.start..net.layers[1].range.end - 1).step_by(7) {
        net.alive[i] = !net.layers.iter().any(|l| l.range.contains(&i));
    }
    for sparsity in [0.0, 0.1, 0.37, 0.5, 0.9, 0.97] {
        for plan in every_plan(sparsity) {
            let step = net.step(&curvature, &plan).unwrap();
            let zeros =
                |range: &Range<usize>| step.alive[range.clone()].iter().filter(|a| !**a).count();
            let goal = |n: usize| (sparsity * n as f64).round() as usize;
            let dead =
                |range: &Range<usize>| net.alive[range.clone()].iter().filter(|a| !**a).count();
            let (mut total, mut size, mut before) = (0, 0, 0);
            for (layer, figures) in net.layers.iter().zip(&step.layers) {
                let range = &layer.range;
                if plan.scope == Scope::Layer {
                    let expected = goal(range.len()).min(range.len() - 1).max(dead(range));
                    assert_eq!(zeros(range), expected, "{plan:?}");
                }
                assert!(zeros(range) < range.len(), "{plan:?}: a layer is empty");
                assert_eq!(figures.zeros, zeros(range));
                assert_eq!(figures.removed, zeros(range) - dead(range));
                total += zeros(range);
                size += range.len();
                before += dead(range);
            }
            if plan.scope == Scope::Global {
                assert_eq!(total, goal(size).max(before), "{plan:?}");
            }
            for i in 0..net.weights.len() {
                if !net.layers.iter().any(|l| l.range.contains(&i)) {
                    assert_eq!(step.weights[i], net.weights[i]);
                    assert!(step.alive[i]);
                } else if !step.alive[i] {
                    assert_eq!(step.weights[i].to_bits(), 0);
                } else {
                    assert!(net.alive[i], "a dead weight came back");
                }
            }
        }
    }
}

#[test]
fn weights_that_are_zero_go_first_and_cost_nothing() {
    let (mut net, curvature) = net(&[(4, 32)], 32, Pattern::Unstructured, 8);
    net.weights[20..50].fill(0.0);
    for plan in every_plan(30.0 / 128.0) {
        let step = net.step(&curvature, &plan).unwrap();
        assert!(step.alive[20..50].iter().all(|alive| !alive), "{plan:?}");
        assert_eq!(step.predicted_loss_damped, 0.0);
        assert_eq!(step.weights, net.weights);
    }
}

#[test]
fn patterns_hold_in_every_group() {
    for text in ["2:4", "1:4", "4:8"] {
        let pattern: Pattern = text.parse().unwrap();
        let Pattern::NOfM { keep, of } = pattern else { unreachable!() };
        let (mut net, curvature) = net(&[(6, 24), (5, 14), (9, 7)], 50, pattern, 4);
        net.alive[30] = false;
        for plan in every_plan(pattern.sparsity_limit()) {
            let step = net.step(&curvature, &StepPlan { pattern, ..plan.clone() }).unwrap();
            for layer in &net.layers {
                for row in step.alive[layer.range.clone()].chunks(layer.row) {
                    for group in row.chunks(of) {
                        let kept = group.iter().filter(|alive| **alive).count();
                        assert_eq!(kept, (group.len() * keep).div_ceil(of), "{text} {plan:?}");
                    }
                }
            }
        }
        let mask = magnitude(
            &net.weights,
            &net.alive,
            &net.layers,
            pattern,
            Scope::Global,
            pattern.sparsity_limit(),
        )
        .unwrap();
        for group in mask[net.layers[0].range.clone()].chunks(of) {
            assert_eq!(group.iter().filter(|alive| **alive).count(), keep);
        }
        // Half way, no group has lost more than it may.
        let half = StepPlan { pattern, ..plan(pattern.sparsity_limit() / 2.0) };
        let step = net.step(&curvature, &half).unwrap();
        for group in step.alive[net.layers[0].range.clone()].chunks(of) {
            assert!(group.iter().filter(|alive| **alive).count() >= keep);
        }
        let beyond = StepPlan { pattern, ..plan(0.9) };
        assert_eq!(net.step(&curvature, &beyond).unwrap_err().kind(), ErrorKind::Usage);
    }
}

#[test]
fn magnitude_takes_the_smallest_weights() {
    let (mut net, _) = net(&[(3, 20), (2, 15)], 20, Pattern::Unstructured, 41);
    net.alive[5] = false;
    for (scope, sparsity) in [(Scope::Global, 0.5), (Scope::Layer, 0.5), (Scope::Layer, 0.99)] {
        let mask = magnitude(
            &net.weights,
            &net.alive,
            &net.layers,
            Pattern::Unstructured,
            scope,
            sparsity,
        )
        .unwrap();
        assert!(!mask[5] && mask[0] && mask[net.weights.len() - 1]);
        let parts: Vec<Vec<usize>> = match scope {
            Scope::Global => vec![net.layers.iter().flat_map(|l| l.range.clone()).collect()],
            Scope::Layer => net.layers.iter().map(|l| l.range.clone().collect()).collect(),
        };
        for part in parts {
            let size = |i: &usize| net.weights[*i].abs();
            let removed = part.iter().filter(|i| !mask[**i] && net.alive[**i]).map(size);
            let kept = part.iter().filter(|i| mask[**i]).map(size);
            assert!(removed.fold(0.0, f32::max) <= kept.fold(f32::MAX, f32::min));
            let zeros = part.iter().filter(|i| !mask[**i]).count();
            let goal = (sparsity * part.len() as f64).round() as usize;
            assert_eq!(zeros, goal.min(part.len() - 1), "{scope:?} {sparsity}");
        }
    }
    net.weights[9] = f32::NAN;
    let (none, scope) = (Pattern::Unstructured, Scope::Global);
    let error = magnitude(&net.weights, &net.alive, &net.layers, none, scope, 0.5).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Numerics);
}

#[test]
fn predicted_losses_are_those_of_the_weights_returned() {
    let (net, curvature) = net(&[(3, 40), (5, 9)], 40, Pattern::Unstructured, 21);
    for plan in every_plan(0.7) {
        let step = net.step(&curvature, &plan).unwrap();
        let damping: Vec<f64> = step.layers.iter().map(|l| l.damping).collect();
        let close = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-9;
        assert!(close(step.predicted_loss, net.loss(&curvature, &step.weights, &[0.0, 0.0])));
        assert!(close(step.predicted_loss_damped, net.loss(&curvature, &step.weights, &damping)));
        let sum: f64 = step.layers.iter().map(|l| l.predicted_loss).sum();
        assert!(close(step.predicted_loss, sum));
    }
}

#[test]
fn better_selection_and_exact_updates_lose_less() {
    let (mut greedy, mut staged, mut once, mut independent) = (0.0, 0.0, 0.0, 0.0);
    for seed in 0..6 {
        let (net, curvature) = net(&[(1, 96)], 96, Pattern::Unstructured, 100 + seed);
        let damping = Damping::Relative(1e-3);
        let loss = |plan: StepPlan| {
            net.step(&curvature, &StepPlan { damping, ..plan }).unwrap().predicted_loss
        };
        let best = loss(plan(0.8));
        let stages = |stages| Selection::Staged { stages };
        greedy += 1.0;
        staged += loss(StepPlan { selection: stages(4), ..plan(0.8) }) / best;
        once += loss(StepPlan { selection: stages(1), ..plan(0.8) }) / best;
        independent += loss(StepPlan { update: Update::Independent, ..plan(0.8) }) / best;
    }
    assert!(greedy < staged && staged < once && once < independent);
    assert!(independent > 4.0 * greedy, "{greedy} {staged} {once} {independent}");
}

#[test]
fn threads_do_not_change_a_bit() {
    let (net, curvature) = net(&[(8, 40), (5, 30)], 40, Pattern::Unstructured, 9);
    for plan in every_plan(0.8) {
        let run = |threads| {
            let cancel = Cancel::new();
            let workers = Workers::new(threads, &cancel);
            step(&net.weights, &net.alive, &net.layers, &curvature, &plan, workers).unwrap()
        };
        let one = run(1);
        for threads in [2, 3, 16] {
            assert_eq!(run(threads), one, "{plan:?}");
        }
    }
}

#[test]
fn global_scope_prunes_more_where_it_costs_less() {
    let (net, mut curvature) = net(&[(4, 30), (4, 30)], 30, Pattern::Unstructured, 13);
    for block in &mut curvature.blocks[..4] {
        block.iter_mut().for_each(|f| *f *= 1e-4);
    }
    let step = net.step(&curvature, &plan(0.5)).unwrap();
    assert!(step.layers[0].zeros > 110 && step.layers[1].zeros < 10, "{:?}", step.layers);
    let step = net.step(&curvature, &StepPlan { scope: Scope::Layer, ..plan(0.5) }).unwrap();
    assert_eq!((step.layers[0].zeros, step.layers[1].zeros), (60, 60));
}

#[test]
fn a_layer_without_gradients_takes_the_common_damping_and_all_of_them_are_an_error() {
    let (net, mut curvature) = net(&[(2, 20), (2, 20)], 20, Pattern::Unstructured, 17);
    curvature.blocks[..2].iter_mut().for_each(|block| block.fill(0.0));
    let result = net.step(&curvature, &plan(0.5)).unwrap();
    assert_eq!(result.layers[0].damping, result.layers[1].damping / 2.0);
    curvature.blocks.iter_mut().for_each(|block| block.fill(0.0));
    assert_eq!(net.step(&curvature, &plan(0.5)).unwrap_err().kind(), ErrorKind::Numerics);
    let absolute = StepPlan { damping: Damping::Absolute(1e-3), ..plan(0.5) };
    let zeros =
        net.step(&curvature, &absolute).unwrap().layers.iter().map(|l| l.zeros).sum::<usize>();
    assert_eq!(zeros, 40);
}

#[test]
fn what_is_not_finite_or_not_invertible_names_its_layer() {
    let (net, curvature) = net(&[(2, 20), (2, 20)], 20, Pattern::Unstructured, 19);
    let fails = |net: &Net, curvature: &Dense, plan: &StepPlan| {
        let error = net.step(curvature, plan).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Numerics);
        assert!(error.to_string().contains("layer1"), "{error}");
    };
    let at = net.layers[1].range.start + 7;
    for bad in [f32::NAN, f32::INFINITY] {
        let mut weights = net.weights.clone();
        weights[at] = bad;
        let net = Net { weights, alive: net.alive.clone(), layers: net.layers.clone() };
        fails(&net, &curvature, &plan(0.5));
    }
    for plan in every_plan(0.5) {
        for (entry, bad) in [(3, f64::NAN), (3, f64::INFINITY), (0, f64::NAN), (0, -1.0)] {
            let mut curvature =
                Dense { ranges: curvature.ranges.clone(), blocks: curvature.blocks.clone() };
            curvature.blocks[2][entry] = bad;
            fails(&net, &curvature, &plan);
        }
        // Rank one and next to no damping.
        let mut curvature =
            Dense { ranges: curvature.ranges.clone(), blocks: curvature.blocks.clone() };
        curvature.blocks[2].fill(1.0);
        fails(&net, &curvature, &StepPlan { damping: Damping::Absolute(1e-30), ..plan });
    }
}

#[test]
fn plans_and_geometries_that_make_no_sense_are_refused() {
    let (net, curvature) = net(&[(2, 20)], 20, Pattern::Unstructured, 23);
    let refused = |net: &Net, plan: StepPlan| {
        assert_eq!(net.step(&curvature, &plan).unwrap_err().kind(), ErrorKind::Usage, "{plan:?}");
    };
    for sparsity in [-0.1, 1.0, f64::NAN] {
        refused(&net, plan(sparsity));
    }
    refused(&net, StepPlan { selection: Selection::Staged { stages: 0 }, ..plan(0.5) });
    for damping in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        refused(&net, StepPlan { damping: Damping::Absolute(damping), ..plan(0.5) });
    }
    let layers = |range: Range<usize>, row| {
        let layer = Layer { name: "odd".into(), range, row };
        Net { weights: net.weights.clone(), alive: net.alive.clone(), layers: vec![layer] }
    };
    refused(&layers(3..43, 7), plan(0.5));
    refused(&layers(3..43, 0), plan(0.5));
    refused(&layers(3..99, 1), plan(0.5));
    refused(&layers(4..44, 20), plan(0.5));
    refused(&layers(3..40, 1), plan(0.5));
}

#[test]
fn a_streamed_fisher_serves_as_curvature() {
    let (net, _) = net(&[(4, 16), (3, 10)], 16, Pattern::Unstructured, 31);
    let mut fisher = BlockFisher::new(plan_blocks(&net.layers, 16, Pattern::Unstructured)).unwrap();
    let (mut draw, width, count) = (Draw(6), net.weights.len(), 64);
    let rows: Vec<f32> = (0..count * width).map(|_| draw.normal() as f32).collect();
    fisher.add(&rows, count, width, 0, width, 2);
    fisher.set_gradients(count);
    let cancel = Cancel::new();
    let workers = Workers::new(2, &cancel);
    let step = step(&net.weights, &net.alive, &net.layers, &fisher, &plan(0.5), workers).unwrap();
    assert_eq!(step.layers.iter().map(|l| l.zeros).sum::<usize>(), 47);
    // The loss of the samples themselves: 1/(2m) Σ (gᵀδ)², block by block.
    let mut loss = 0.0;
    for row in rows.chunks(width) {
        for range in fisher.blocks() {
            let product: f64 = range
                .clone()
                .map(|i| row[i] as f64 * (step.weights[i] as f64 - net.weights[i] as f64))
                .sum();
            loss += product * product / (2.0 * count as f64);
        }
    }
    assert!((step.predicted_loss / loss - 1.0).abs() < 1e-5, "{} {loss}", step.predicted_loss);
}

/// Blocks kept as gradients, and the same blocks as matrices.
fn wide(net: &Net, m: usize, seed: u64) -> (Wide, Dense) {
    let mut draw = Draw(seed);
    let ranges: Vec<Range<usize>> = net.layers.iter().map(|l| l.range.clone()).collect();
    let (mut stores, mut blocks) = (Vec::new(), Vec::new());
    for range in &ranges {
        let n = range.len();
        let mut store = GradientStore::new(m, n, Storage::F32, None).unwrap();
        let mut fisher = vec![0.0; n * n];
        for k in 0..m {
            let mut state = draw.normal();
            let row: Vec<f32> = (0..n)
                .map(|_| {
                    state = 0.8 * state + 0.6 * draw.normal();
                    (1e-2 * state) as f32
                })
                .collect();
            store.set_row(k, &row).unwrap();
            for i in 0..n {
                for j in 0..n {
                    fisher[i * n + j] += row[i] as f64 * row[j] as f64 / m as f64;
                }
            }
        }
        stores.push(store);
        blocks.push(fisher);
    }
    (Wide(stores, ranges.clone()), Dense { ranges, blocks })
}

struct Wide(Vec<GradientStore>, Vec<Range<usize>>);

impl Curvature for Wide {
    fn blocks(&self) -> &[Range<usize>] {
        &self.1
    }
    fn block(&self, index: usize, _: &mut [f64]) -> Result<()> {
        panic!("the matrix of wide block {index} is formed")
    }
    fn gradients(&self, index: usize) -> Option<Gradients<'_>> {
        Some(self.0[index].all())
    }
    fn diagonal_mean(&self, range: Range<usize>) -> f64 {
        let at = self.1.iter().position(|r| *r == range).unwrap();
        let (g, mut scratch) = (self.0[at].all(), vec![0.0; range.len()]);
        let row =
            |i| g.row(i, 0..range.len(), &mut scratch).iter().map(|x| (x * x) as f64).sum::<f64>();
        (0..g.count()).map(row).sum::<f64>() / (g.count() * range.len()) as f64
    }
}

#[test]
fn the_dual_form_agrees_with_the_primal() {
    let half: Pattern = "2:4".parse().unwrap();
    for pattern in [Pattern::Unstructured, half] {
        let (net, _) = net(&[(8, 20), (12, 16)], 8, pattern, 41);
        let (wide, dense) = wide(&net, 24, 17);
        for sparsity in [0.3, 0.5] {
            for plan in every_plan(sparsity) {
                if plan.update == Update::Joint && plan.selection == Selection::Greedy {
                    continue; // another order on purpose
                }
                let damping = Damping::Absolute(2e-5);
                let plan = StepPlan { pattern, damping, ..plan };
                let cancel = Cancel::new();
                let workers = Workers::new(2, &cancel);
                let layers = &net.layers;
                let dual = step(&net.weights, &net.alive, layers, &wide, &plan, workers).unwrap();
                let primal = net.step(&dense, &plan).unwrap();
                assert_eq!(dual.alive, primal.alive, "{plan:?}");
                for (a, b) in dual.weights.iter().zip(&primal.weights) {
                    assert!((a - b).abs() <= 1e-6 * (1.0 + b.abs()), "{a} {b} {plan:?}");
                }
                let ratio = dual.predicted_loss / primal.predicted_loss;
                assert!((ratio - 1.0).abs() < 1e-4, "{ratio} {plan:?}");
            }
        }
    }
}

#[test]
fn greedy_on_wide_blocks_comes_close_to_the_exact_order_and_keeps_patterns() {
    let half: Pattern = "2:4".parse().unwrap();
    for (pattern, sparsity) in [(Pattern::Unstructured, 0.7), (half, 0.5)] {
        let (net, _) = net(&[(8, 20), (12, 16)], 8, pattern, 43);
        let (wide, dense) = wide(&net, 24, 19);
        let plan = StepPlan { pattern, ..plan(sparsity) };
        let run = |plan: &StepPlan, curvature: &dyn Curvature| {
            let cancel = Cancel::new();
            let workers = Workers::new(2, &cancel);
            step(&net.weights, &net.alive, &net.layers, curvature, plan, workers).unwrap()
        };
        let (dual, exact) = (run(&plan, &wide), run(&plan, &dense));
        let once = StepPlan { selection: Selection::Staged { stages: 1 }, ..plan.clone() };
        let once = run(&once, &wide);
        assert_eq!(
            dual.layers.iter().map(|l| l.zeros).sum::<usize>(),
            exact.layers.iter().map(|l| l.zeros).sum::<usize>()
        );
        let loss = |step: &Step| step.predicted_loss_damped;
        assert!(loss(&dual) < loss(&once), "{} {}", loss(&dual), loss(&once));
        assert!(loss(&dual) < 1.5 * loss(&exact), "{} {}", loss(&dual), loss(&exact));
        if pattern != Pattern::Unstructured {
            for layer in &net.layers {
                let groups = dual.alive[layer.range.clone()].chunks(4);
                assert!(groups.clone().all(|g| g.iter().filter(|a| **a).count() <= 2));
            }
        }
    }
}
