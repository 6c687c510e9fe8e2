//! Pruning flat weights of the host's own by its own gradients: no model, no ONNX Runtime.

use std::ffi::c_char;
use std::mem::MaybeUninit;

use hone_core::cancel::Cancel;
use hone_core::engine::SignalsBlocked;
use hone_core::mfac::{BlockFisher, GradientStore};
use hone_core::prune::{
    Layer, Pattern, Scope, Selection, StepPlan, Update, Workers, plan_blocks, step,
};

use crate::arguments::{
    check_apart, check_len, given, optional_text, or, slice, slice_mut, threads_or_all,
};
use crate::error::{guard, hone_error};
use crate::gradients::hone_gradients;
use crate::options::{self, Extensible};
use crate::prune::{HONE_BLOCK_LAYER, choose, damping};

/// A prunable tensor inside the flat vector of weights, outputs × inputs, row-major.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hone_layer {
    /// For messages; UTF-8, ends in NUL.
    pub name: *const c_char,
    /// Its first weight in the flat vector.
    pub offset: usize,
    /// Its number of weights.
    pub len: usize,
    /// Weights of one output: divides `len`. Groups of an N:M pattern are consecutive inside.
    pub row: usize,
}

/// How to prune flat weights. Zero means default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hone_weights_options {
    /// sizeof(hone_weights_options)
    pub size: usize,
    /// The fraction of zeros after the step, those before it included; 0 only with an N:M pattern.
    pub sparsity: f64,
    /// λ as a fraction of the layer's mean Fisher diagonal; 0 means 0.01.
    pub damping: f64,
    /// λ itself, in units of a squared gradient; 0 means the fraction above.
    pub damping_absolute: f64,
    /// "N:M" such as "2:4"; NULL means "unstructured".
    pub pattern: *const c_char,
    /// A `hone_scope`.
    pub scope: u32,
    /// A `hone_update`.
    pub update: u32,
    /// How often the survivors of a block are scored anew; 0 means after each removed weight.
    pub selection_stages: u32,
    /// Weights per Fisher block; 0 means 128. HONE_BLOCK_LAYER means whole layers.
    pub block: u32,
    /// Threads; 0 means one per core. The result does not depend on it.
    pub threads: u32,
    /// Must be 0.
    pub reserved: u32,
}

// SAFETY: plain data of C without padding that starts with its size.
unsafe impl Extensible for hone_weights_options {}

/// Prunes `len` weights in place by the Fisher of `gradients`, all of which must be there: zeros
/// for those that go, and what makes up for them for the others.
///
/// `mask` (`len` bytes) is 0 where a weight is pruned already, and afterwards where it is pruned;
/// NULL means that none is, and that the zeros say it all. `layers` are the `layer_count` tensors
/// to prune, increasing and disjoint; none means one of a single row. `loss`, which may be NULL,
/// takes ½ δᵀFδ: the rise of the loss that the gradients predict.
///
/// Errors: CONFLICT when gradients are missing; NUMERICS when λ is too small; nothing has changed
/// then.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_weights_prune(
    gradients: Option<&hone_gradients>,
    weights: *mut f32,
    mask: *mut u8,
    len: usize,
    layers: *const hone_layer,
    layer_count: usize,
    options: *const hone_weights_options,
    loss: Option<&mut MaybeUninit<f64>>,
) -> Option<Box<hone_error>> {
    guard(|| {
        let gradients = given(gradients, "gradients")?;
        check_apart(weights, len, mask, len, "`weights` and `mask`")?;
        // SAFETY: the header asks for `len` numbers.
        let weights = unsafe { slice_mut(weights, len, "weights") }?;
        let mask = match mask.is_null() {
            true => None,
            // SAFETY: the header asks for `len` bytes; they do not overlap the weights.
            false => Some(unsafe { slice_mut(mask, len, "mask") }?),
        };
        // SAFETY: the header asks for `layer_count` layers.
        let layers = unsafe { slice(layers, layer_count, "layers") }?;
        // SAFETY: the header asks for a struct of its size or NULL.
        let o = unsafe { options::read(options, "options") }?;
        // SAFETY: the header says what the pointers in the struct are.
        let plan = unsafe { plan(&o) }?;
        let store = gradients.complete()?;
        check_len(len, store.dimension(), "weights")?;
        let layers = match layers {
            [] => vec![Layer { name: "weights".into(), range: 0..len, row: len }],
            // SAFETY: the header says what a layer is.
            _ => layers.iter().map(|l| unsafe { layer(l, len) }).collect::<Result<_, _>>()?,
        };
        let block = match o.block {
            0 => 128,
            HONE_BLOCK_LAYER => usize::MAX,
            n => n as usize,
        };
        let threads = threads_or_all(o.threads);
        let alive: Vec<bool> = match &mask {
            Some(mask) => mask.iter().map(|&m| m != 0).collect(),
            None => vec![true; len],
        };
        let _blocked = SignalsBlocked::new();
        let mut fisher = BlockFisher::new(plan_blocks(&layers, block, plan.pattern))?;
        accumulate(&mut fisher, &store, threads);
        let cancel = Cancel::new();
        let workers = Workers::new(threads, &cancel);
        let done = step(weights, &alive, &layers, &fisher, &plan, workers)?;
        weights.copy_from_slice(&done.weights);
        if let Some(mask) = mask {
            mask.iter_mut().zip(&done.alive).for_each(|(m, &alive)| *m = u8::from(alive));
        }
        if let Some(loss) = loss {
            loss.write(done.predicted_loss);
        }
        Ok(())
    })
}

/// # Safety
///
/// `pattern` must be a string or null.
unsafe fn plan(o: &hone_weights_options) -> Result<StepPlan, hone_error> {
    options::check_reserved(o.reserved)?;
    // SAFETY: as the caller vouches.
    let pattern = unsafe { optional_text(o.pattern, "pattern") }?;
    let pattern: Pattern = pattern.unwrap_or("unstructured").parse()?;
    let sparsity = match pattern {
        Pattern::NOfM { .. } => or(o.sparsity, pattern.sparsity_limit()),
        Pattern::Unstructured => o.sparsity,
    };
    if !(sparsity > 0.0 && sparsity < 1.0) {
        return Err(hone_error::argument(format!(
            "`sparsity` is {sparsity}; say which fraction of the weights to remove, such as 0.9"
        )));
    }
    Ok(StepPlan {
        pattern,
        scope: choose(o.scope, "hone_scope", &[Scope::Global, Scope::Layer])?,
        sparsity,
        update: choose(o.update, "hone_update", &[Update::Joint, Update::Independent])?,
        selection: match o.selection_stages {
            0 => Selection::Greedy,
            n => Selection::Staged { stages: n as usize },
        },
        damping: damping(o.damping, o.damping_absolute)?,
    })
}

/// # Safety
///
/// The name must be a string or null.
unsafe fn layer(given: &hone_layer, len: usize) -> Result<Layer, hone_error> {
    // SAFETY: as the caller vouches.
    let name = unsafe { optional_text(given.name, "name of a layer") }?;
    let name = name.map_or_else(|| format!("layer at {}", given.offset), String::from);
    let end = given.offset.checked_add(given.len).filter(|&end| end <= len);
    let end = end.ok_or_else(|| {
        hone_error::argument(format!("layer {name:?} reaches beyond the {len} weights"))
    })?;
    Ok(Layer { name, range: given.offset..end, row: given.row })
}

/// Gradients handed to the Fisher at once: what makes best use of the caches.
const PANEL: usize = 192;

fn accumulate(fisher: &mut BlockFisher, store: &GradientStore, threads: usize) {
    let (m, d) = (store.count(), store.dimension());
    let mut panel = vec![0.0; PANEL.min(m) * d];
    let mut scratch = vec![0.0; d];
    for start in (0..m).step_by(PANEL) {
        let count = PANEL.min(m - start);
        for (i, row) in panel.chunks_exact_mut(d).take(count).enumerate() {
            row.copy_from_slice(store.all().row(start + i, 0..d, &mut scratch));
        }
        fisher.add(&panel[..count * d], count, d, 0, d, threads);
    }
    fisher.set_gradients(m);
}
