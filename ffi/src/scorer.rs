//! Marginalization models (MaM): probabilities, conditionals and draws of discrete rows.

use std::mem::MaybeUninit;
use std::sync::Arc;

use hone_core::cancel::Cancel;
use hone_core::engine::{Outcome, SignalsBlocked};
use hone_core::mam::contract::Trained;
use hone_core::mam::{
    ChainScore, CheckOptions, FillOrder, LoadOptions, MISSING, Mam, Method, Orders, Rows,
    SampleOptions, Source,
};
use hone_core::onnx::Model;
use serde_json::json;

use crate::arguments::{check_apart, give, given, or, slice, slice_mut, threads_or_all};
use crate::engine::Home;
use crate::error::{guard, hone_error};
use crate::job::{hone_job, hone_observer, submit};
use crate::model::hone_model;
use crate::options::{self, Extensible};
use crate::process::Process;
use crate::report::hone_report;

/// By which half of a marginalization model a question is answered.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum hone_half {
    /// By θ where it sums to one by construction, else by φ.
    Auto = 0,
    /// By θ: one pass. What θ says is a likelihood only as far as it sums to one, which training
    /// brings about approximately; its differences between rows need no such caution.
    Theta = 1,
    /// By chains of φ, averaged over orders: a lower bound, in expectation.
    Phi = 2,
}

/// How to load a scorer. Zero means default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hone_scorer_options {
    /// sizeof(hone_scorer_options)
    pub size: usize,
    /// Threads that one question uses; 0 means the engine's number. Answers do not depend on it.
    pub threads: u32,
    /// Most rows in one run of a net; 0 means 64.
    pub batch: u32,
}

// SAFETY: plain data of C without padding that starts with its size.
unsafe impl Extensible for hone_scorer_options {}

/// How to score. Zero means default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hone_score_options {
    /// sizeof(hone_score_options)
    pub size: usize,
    /// Seeds the orders of φ's chains.
    pub seed: u64,
    /// A byte for each cell of the rows, 0 where the value is missing whatever the row says there;
    /// NULL means that −1 alone is.
    pub known: *const u8,
    /// A `hone_half`.
    pub half: u32,
    /// Orders of φ's chains; 0 means 1. A model that was trained in one order has that one.
    pub orders: u32,
    /// log Σ_x p_θ(x), as `hone_scorer_normaliser` has it, for `hone_scorer_score` by θ: it is
    /// subtracted from the score of a complete row, which makes that a log-likelihood. A row with a
    /// missing site then has no score. 0 means that θ is taken as it is.
    pub log_normaliser: f64,
}

// SAFETY: plain data of C without padding that starts with its size.
unsafe impl Extensible for hone_score_options {}

/// How to draw. Zero means default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hone_sample_options {
    /// sizeof(hone_sample_options)
    pub size: usize,
    /// Of the random numbers.
    pub seed: u64,
    /// The number of the first draw, so that a run in parts equals a run in one.
    pub first_draw: u64,
    /// Logits are divided by it; 0 means 1.
    pub temperature: f64,
    /// As in `hone_score_options`.
    pub known: *const u8,
    /// `order_count` sites, all of them, in the order they are filled in; NULL means a random order
    /// for each draw, and the forward one where the model was trained in that.
    pub order: *const u32,
    /// How many.
    pub order_count: usize,
    /// Draw from the likeliest so many values of a site only; 0 means all.
    pub top_k: u32,
    /// Sweeps that redraw what was missing, in blocks, afterwards; 0 means none.
    pub sweeps: u32,
    /// Sites in a block; 0 means 1.
    pub block: u32,
    /// Draws for each row; 0 means 1.
    pub draws: u32,
}

// SAFETY: plain data of C without padding that starts with its size.
unsafe impl Extensible for hone_sample_options {}

/// How to check a model. Zero means default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hone_check_options {
    /// sizeof(hone_check_options)
    pub size: usize,
    /// Seeds everything random.
    pub seed: u64,
    /// Steps (a subset of the known sites and one more) per row; 0 means 4.
    pub steps: u32,
    /// Orders of φ's chains; 0 means 5.
    pub orders: u32,
    /// Draws for the normaliser; 0 means 2048.
    pub draws: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Who hears of the progress.
    pub observer: hone_observer,
}

// SAFETY: plain data of C without padding that starts with its size.
unsafe impl Extensible for hone_check_options {}

/// A marginalization model, ready to answer. Immutable: any number of threads may ask at once.
///
/// Rows are int64 values, row after row, each of as many sites as `hone_scorer_length` says; −1 is
/// missing. An answer does not depend on the rows beside it. A row that has none, because a value
/// is not one of its site, say, gets NaN; asked alone, it is the error of the call.
pub struct hone_scorer {
    home: Arc<Home>,
    process: Process,
    pub(crate) mam: Arc<Mam>,
}

/// Makes a scorer of `model`, and of `other` if the halves are in two files (NULL if not). The
/// models must keep the contract of marginalization models (docs/mam-contract.md), and may be freed
/// at once. `options` may be NULL. It runs a few rows to see that the model does what it says.
///
/// Errors: INVALID_MODEL, also for a model that breaks the contract; RUNTIME, DEVICE; UNAVAILABLE
/// in a forked child.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_scorer_new(
    model: Option<&hone_model>,
    other: Option<&hone_model>,
    options: *const hone_scorer_options,
    out: Option<&mut MaybeUninit<*mut hone_scorer>>,
) -> Option<Box<hone_error>> {
    guard(|| {
        let (model, out) = (given(model, "model")?, given(out, "out")?);
        // SAFETY: the header asks for a struct of its size or NULL.
        let o = unsafe { options::read(options, "options") }?;
        let home = model.home.clone();
        home.engine.check_process()?;
        let threads = if o.threads == 0 { home.threads } else { threads_or_all(o.threads) };
        let batch = or(o.batch as usize, LoadOptions::default().batch);
        let load = LoadOptions { device: home.device, threads, batch };
        let models = [Some(model), other].into_iter().flatten();
        let models: Vec<Model> = models.map(|m| Model::clone(&m.model)).collect();
        let _blocked = SignalsBlocked::new();
        let mam = Mam::from_models(&models, load, &Cancel::never())?;
        give(out, hone_scorer { home, process: Process::here(), mam: Arc::new(mam) });
        Ok(())
    })
}

/// The number of sites of a row; 0 for NULL.
#[unsafe(no_mangle)]
pub extern "C" fn hone_scorer_length(scorer: Option<&hone_scorer>) -> usize {
    scorer.map_or(0, |s| s.mam.contract().length)
}

/// The number of values of the site that has most; 0 for NULL.
#[unsafe(no_mangle)]
pub extern "C" fn hone_scorer_vocab(scorer: Option<&hone_scorer>) -> usize {
    scorer.map_or(0, |s| s.mam.contract().vocab)
}

/// What the model is: halves, sites and values, log Z, and what is odd about it. Schema
/// "hone.scorer/1".
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn hone_scorer_inspect(
    scorer: Option<&hone_scorer>,
    out: Option<&mut MaybeUninit<*mut hone_report>>,
) -> Option<Box<hone_error>> {
    guard(|| {
        let (scorer, out) = (given(scorer, "scorer")?, given(out, "out")?);
        let (mam, contract) = (&scorer.mam, scorer.mam.contract());
        let report = json!({
            "schema": "hone.scorer/1",
            "length": contract.length,
            "vocab": contract.vocab,
            "cardinalities": contract.cardinalities,
            "theta": mam.has_theta(),
            "chains": mam.has_chains(),
            "distributions": mam.has_phi(),
            "normalised": mam.is_normalised(),
            "log_z": mam.log_z(),
            "orders": contract.orders.to_string(),
            "warnings": mam.warnings(),
        });
        give(out, hone_report::new(&format!("{report:#}\n"))?);
        Ok(())
    })
}

/// log p of the known sites of each of `count` rows to `out` (`count` numbers), in nats. `options`
/// may be NULL.
///
/// Once there was a call as large, by the same half, for each thread that asks at the same time, it
/// allocates nothing beside what ONNX Runtime does: by θ and by φ, on any number of threads, for as
/// many rows as 128 MiB of working memory are enough for (at least a million by θ, half a million
/// by φ with few orders). So much is kept at most for each thread that asks at the same time, and
/// threads that help wait for the next call.
///
/// Errors: INVALID_ARGUMENT for a half that the model lacks, INVALID_DATA for a single row that
/// does not fit; UNAVAILABLE in a forked child.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_scorer_score(
    scorer: Option<&hone_scorer>,
    rows: *const i64,
    count: usize,
    options: *const hone_score_options,
    out: *mut f64,
) -> Option<Box<hone_error>> {
    guard(|| {
        let scorer = scorer_here(scorer)?;
        // SAFETY: the header asks for a struct of its size or NULL.
        let o = unsafe { options::read(options, "options") }?;
        let method = scorer.method(o.half)?;
        let cells = cells_in(scorer, count)?;
        let masked = if o.known.is_null() { 0 } else { cells };
        check_apart(rows, cells, out, count, "`rows` and `out`")?;
        check_apart(o.known, masked, out, count, "`known` and `out`")?;
        // SAFETY: the header asks for so many rows.
        let rows = unsafe { slice(rows, cells, "rows") }?;
        // SAFETY: the header asks for a byte for each cell.
        let mask = || unsafe { slice(o.known, masked, "known") };
        let known = (masked > 0).then(mask).transpose()?;
        // SAFETY: the header asks for room for so many numbers; it overlaps neither of them.
        let out = unsafe { slice_mut(out, count, "out") }?;
        let (mam, never) = (&scorer.mam, Cancel::never());
        let mut answers = Filled::new(out);
        if method != Method::Theta {
            not_of_phi(&o)?;
            let orders = scorer.orders(&o, 1);
            let score = |c: hone_core::Result<ChainScore>| answers.take(c.map(|c| c.log_p));
            mam.each_chain_score(rows, known, &orders, &never, score)?;
            return answers.end();
        }
        let mut row = 0..;
        mam.each_log_marginal(rows, known, &never, |value| {
            let row = row.next().expect("numbers go on");
            answers.take(match o.log_normaliser {
                0.0 => value,
                log_sum => value.and_then(|v| scorer.corrected(v, log_sum, rows, known, row)),
            });
        })?;
        answers.end()
    })
}

/// log p of the other known sites of each row given those at which `given` (a byte for each cell of
/// the rows) is not 0, to `out` (`count` numbers), in nats. Errors as `hone_scorer_score`.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_scorer_condition(
    scorer: Option<&hone_scorer>,
    rows: *const i64,
    given: *const u8,
    count: usize,
    options: *const hone_score_options,
    out: *mut f64,
) -> Option<Box<hone_error>> {
    guard(|| {
        let scorer = scorer_here(scorer)?;
        // SAFETY: the header asks for a struct of its size or NULL.
        let o = unsafe { options::read(options, "options") }?;
        // SAFETY: the header asks for so many rows, and room for as many numbers.
        let rows = unsafe { rows_of(scorer, rows, count, o.known) }?;
        // SAFETY: the header asks for room for so many numbers; the rows are a copy.
        let out = unsafe { slice_mut(out, count, "out") }?;
        // SAFETY: the header asks for a byte for each cell.
        let given = unsafe { slice(given, rows.cells().len(), "given") }?;
        let given: Vec<bool> = given.iter().map(|&g| g != 0).collect();
        let method = scorer.method(o.half)?;
        not_of_phi(&o)?;
        let orders = scorer.orders(&o, 1);
        let found = scorer.mam.log_conditional(&rows, &given, &orders, &Cancel::never())?;
        let log_p = |c: hone_core::mam::Conditional| match method {
            Method::Theta => c.ratio,
            _ => c.chain.map(|chain| chain.log_p),
        };
        let mut answers = Filled::new(out);
        let found = found.into_iter().map(|c| c.map(|c| log_p(c).unwrap_or(f64::NAN)));
        found.for_each(|answer| answers.take(answer));
        answers.end()
    })
}

/// The distribution of every site of each row given its known ones, to `out`: log p of
/// `count`·length·vocab numbers, values running fastest. A known site has 0 at its value and −∞
/// elsewhere, and so have values that a site lacks.
///
/// Each distribution is of its site alone: their product is not the joint one of several. `options`
/// may be NULL; of them `half` and `known` count, and the usual half is φ where the model has it.
/// Errors as `hone_scorer_score`.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_scorer_distributions(
    scorer: Option<&hone_scorer>,
    rows: *const i64,
    count: usize,
    options: *const hone_score_options,
    out: *mut f64,
    len: usize,
) -> Option<Box<hone_error>> {
    guard(|| {
        let scorer = scorer_here(scorer)?;
        let (length, vocab) = (scorer.mam.contract().length, scorer.mam.contract().vocab);
        let needed = count.checked_mul(length).and_then(|n| n.checked_mul(vocab));
        if needed != Some(len) {
            let message = format!("`out` has length {len}, not {count}·{length}·{vocab}");
            return Err(hone_error::argument(message));
        }
        check_apart(rows, count * length, out, len, "`rows` and `out`")?;
        // SAFETY: the header asks for a struct of its size or NULL.
        let o = unsafe { options::read(options, "options") }?;
        // SAFETY: the header asks for so many rows.
        let rows = unsafe { rows_of(scorer, rows, count, o.known) }?;
        // SAFETY: the header asks for room for `len` numbers, which do not overlap the rows.
        let out = unsafe { slice_mut(out, len, "out") }?;
        let source = match o.half {
            0 if scorer.mam.has_phi() => Source::Phi,
            0 | 1 => Source::Theta,
            2 => Source::Phi,
            other => return Err(hone_error::argument(format!("{other} is no hone_half"))),
        };
        not_of_phi(&o)?;
        let found = scorer.mam.distributions(&rows, source, &Cancel::never())?;
        if let [Err(_)] = found.as_slice() {
            return Err(found.into_iter().find_map(Result::err).expect("it is one").into());
        }
        let blocks = out.chunks_exact_mut((length * vocab).max(1));
        for ((row, sites), out) in (0..count).zip(found).zip(blocks) {
            let Ok(sites) = sites else {
                out.fill(f64::NAN);
                continue;
            };
            out.fill(f64::NEG_INFINITY);
            for (site, &value) in rows.row(row).iter().enumerate() {
                if let Ok(value) = usize::try_from(value) {
                    out[site * vocab + value] = 0.0;
                }
            }
            for site in sites {
                out[site.site * vocab..][..site.log_p.len()].copy_from_slice(&site.log_p);
            }
        }
        Ok(())
    })
}

/// Draws `count` rows from φ: to `out` (`count`·length numbers), and log of the probability of each
/// along its order to `log_q` (`count` numbers, or NULL). `options` may be NULL; `known`, `draws`
/// and `sweeps` have no meaning here and must be 0.
///
/// The same seed gives the same draws for any number of threads. Errors: INVALID_ARGUMENT for a
/// model without φ and for options out of their range; UNAVAILABLE in a forked child.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_scorer_sample(
    scorer: Option<&hone_scorer>,
    count: usize,
    options: *const hone_sample_options,
    out: *mut i64,
    log_q: *mut f64,
) -> Option<Box<hone_error>> {
    guard(|| {
        let scorer = scorer_here(scorer)?;
        // SAFETY: the header asks for a struct of its size or NULL.
        let o = unsafe { options::read(options, "options") }?;
        if !o.known.is_null() || o.draws != 0 || o.sweeps != 0 {
            let message = "`known`, `draws` and `sweeps` complete rows: hone_scorer_impute";
            return Err(hone_error::argument(message));
        }
        let length = scorer.mam.contract().length;
        cells_of(length, count, 1)?;
        let nothing = Rows::all_missing(length, count);
        // SAFETY: the header asks for room for so many numbers.
        unsafe { draw(scorer, nothing, 1, &o, out, log_q) }
    })
}

/// Completes each of `count` rows by draws from φ given its known sites, `draws` of them one after
/// the other: the rows with a value at every site to `out` (`count`·`draws`·length numbers), and
/// log of the probability of each draw along its order to `log_q` (`count`·`draws` numbers, or
/// NULL; it means nothing after sweeps). `options` may be NULL.
///
/// A row that cannot be completed is all −1, and its `log_q` NaN. The same seed gives the same
/// draws for any number of threads. Errors as `hone_scorer_sample`, and INVALID_DATA for a single
/// row that does not fit.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_scorer_impute(
    scorer: Option<&hone_scorer>,
    rows: *const i64,
    count: usize,
    options: *const hone_sample_options,
    out: *mut i64,
    log_q: *mut f64,
) -> Option<Box<hone_error>> {
    guard(|| {
        let scorer = scorer_here(scorer)?;
        // SAFETY: the header asks for a struct of its size or NULL.
        let o = unsafe { options::read(options, "options") }?;
        let draws = or(o.draws as usize, 1);
        let length = scorer.mam.contract().length;
        let cells = cells_of(length, count, draws)?;
        // SAFETY: the header asks for so many rows.
        let evidence = unsafe { rows_of(scorer, rows, count, o.known) }?;
        let mut repeated = Vec::with_capacity(cells);
        for row in 0..count {
            (0..draws).for_each(|_| repeated.extend_from_slice(evidence.row(row)));
        }
        let repeated = Rows::new(length, repeated)?;
        // SAFETY: the header asks for room for so many numbers; the rows are a copy.
        unsafe { draw(scorer, repeated, draws, &o, out, log_q) }
    })
}

/// The cells of so many draws for each of so many rows.
fn cells_of(length: usize, count: usize, draws: usize) -> Result<usize, hone_error> {
    let cells = count.checked_mul(draws).and_then(|n| n.checked_mul(length));
    let cells = cells.filter(|&n| n <= isize::MAX as usize / size_of::<i64>());
    cells.ok_or_else(|| hone_error::argument(format!("{count} rows are too many")))
}

/// Completes rows, of which `draws` beside each other are one of the caller's.
///
/// # Safety
///
/// `out` must have room for as many cells as the rows have, `log_q`, if not null, for a number for
/// each of them, and the order in the options must be what the header says.
unsafe fn draw(
    scorer: &hone_scorer,
    evidence: Rows,
    draws: usize,
    o: &hone_sample_options,
    out: *mut i64,
    log_q: *mut f64,
) -> Result<(), hone_error> {
    let (cells, count) = (evidence.cells().len(), evidence.len());
    check_apart(out, cells, log_q, count, "`out` and `log_q`")?;
    // SAFETY: as the caller vouches.
    let out = unsafe { slice_mut(out, cells, "out") }?;
    let mut log_q = match log_q.is_null() {
        true => None,
        // SAFETY: as the caller vouches; it is apart from `out`.
        false => Some(unsafe { slice_mut(log_q, count, "log_q") }?.iter_mut()),
    };
    let order = match o.order.is_null() {
        true => FillOrder::Random,
        // SAFETY: as the caller vouches.
        false => FillOrder::Given(unsafe { slice(o.order, o.order_count, "order") }?.to_vec()),
    };
    let how = SampleOptions {
        order,
        temperature: or(o.temperature, 1.0),
        top_k: Some(o.top_k as usize).filter(|&k| k > 0),
        seed: o.seed,
        first_draw: o.first_draw,
    };
    let (sweeps, block) = (o.sweeps as usize, or(o.block, 1) as usize);
    let drawn = scorer.mam.impute(&evidence, &how, sweeps, block, &Cancel::never())?;
    if count == draws && drawn.iter().all(Result::is_err) {
        if let Some(error) = drawn.into_iter().find_map(Result::err) {
            return Err(error.into());
        }
        return Ok(());
    }
    for (drawn, out) in drawn.into_iter().zip(out.chunks_exact_mut(evidence.length())) {
        let value = match drawn {
            Ok(sample) => {
                out.copy_from_slice(&sample.values);
                sample.log_q
            }
            Err(_) => {
                out.fill(MISSING);
                f64::NAN
            }
        };
        if let Some(log_q) = log_q.as_mut().and_then(Iterator::next) {
            *log_q = value;
        }
    }
    Ok(())
}

/// Submits a look at how far θ and φ agree with each other and with probabilities on `count` rows,
/// which are copied. The job makes a report (schema "hone.mam.check/1", in nats). `options` may be
/// NULL. A model without both halves, and a row that does not fit, are errors of the job.
///
/// Errors: of options only, and UNAVAILABLE in a forked child.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_scorer_check(
    scorer: Option<&hone_scorer>,
    rows: *const i64,
    count: usize,
    options: *const hone_check_options,
    out: Option<&mut MaybeUninit<*mut hone_job>>,
) -> Option<Box<hone_error>> {
    guard(|| {
        let (scorer, out) = (scorer_here(scorer)?, given(out, "out")?);
        // SAFETY: the header asks for so many rows.
        let rows = unsafe { rows_of(scorer, rows, count, std::ptr::null()) }?;
        // SAFETY: the header asks for a struct of its size or NULL.
        let o = unsafe { options::read(options, "options") }?;
        options::check_reserved(o.reserved)?;
        let usual = CheckOptions::default();
        let how = CheckOptions {
            steps: or(o.steps as usize, usual.steps),
            orders: or(o.orders as usize, usual.orders),
            draws: or(o.draws as usize, usual.draws),
            seed: o.seed,
        };
        let mam = scorer.mam.clone();
        submit(&scorer.home, o.observer, out, move |progress, cancel| {
            progress.begin("checking", 1);
            let found = mam.check(&rows, &how, cancel)?;
            progress.advance(1);
            Ok(Outcome { report: format!("{:#}\n", found.to_json()), model: None })
        })
    })
}

/// Frees a scorer. NULL is fine; a check under way keeps what it needs.
#[unsafe(no_mangle)]
pub extern "C" fn hone_scorer_free(scorer: Option<Box<hone_scorer>>) {
    drop(scorer);
}

impl hone_scorer {
    fn method(&self, half: u32) -> Result<Method, hone_error> {
        let mam = &self.mam;
        match half {
            0 if mam.is_normalised() => Ok(Method::Theta),
            0 if mam.has_chains() => Ok(Method::Phi),
            0 => Err(hone_error::argument(
                "the model has θ alone, which does not sum to one by construction; ask for \
                 HONE_HALF_THETA if that is good enough",
            )),
            1 if mam.has_theta() => Ok(Method::Theta),
            2 if mam.has_chains() => Ok(Method::Phi),
            1 | 2 => Err(hone_error::argument("the model lacks that half")),
            other => Err(hone_error::argument(format!("{other} is no hone_half"))),
        }
    }

    pub(crate) fn orders(&self, o: &hone_score_options, usual: u32) -> Orders {
        match self.mam.contract().orders {
            Trained::Forward => Orders::Forward,
            _ => Orders::Random { count: or(o.orders, usual) as usize, seed: o.seed },
        }
    }

    /// θ's score of a row as a log-likelihood; an error unless the row is complete.
    fn corrected(
        &self,
        value: f64,
        log_sum: f64,
        rows: &[i64],
        known: Option<&[u8]>,
        row: usize,
    ) -> hone_core::Result<f64> {
        let length = self.mam.contract().length;
        let missing = |at: &usize| rows[*at] == MISSING || known.is_some_and(|k| k[*at] == 0);
        match (row * length..(row + 1) * length).find(missing) {
            None => Ok(value - log_sum),
            Some(at) => {
                let site = at - row * length;
                let message = format!("site {site} is missing: `log_normaliser` is of whole rows");
                Err(hone_core::Error::new(hone_core::ErrorKind::Data, message))
            }
        }
    }
}

/// `log_normaliser` corrects θ's scores.
pub(crate) fn not_of_phi(o: &hone_score_options) -> Result<(), hone_error> {
    match o.log_normaliser {
        0.0 => Ok(()),
        _ => Err(hone_error::argument("`log_normaliser` belongs to hone_scorer_score by θ")),
    }
}

/// Answers as they come: NaN for those that are errors, but the error of the call for one alone.
struct Filled<'a> {
    alone: bool,
    places: std::slice::IterMut<'a, f64>,
    error: Option<hone_core::Error>,
}

impl<'a> Filled<'a> {
    fn new(out: &'a mut [f64]) -> Filled<'a> {
        Filled { alone: out.len() == 1, places: out.iter_mut(), error: None }
    }

    fn take(&mut self, answer: hone_core::Result<f64>) {
        let place = self.places.next().expect("an answer for each row");
        match answer {
            Ok(value) => *place = value,
            Err(e) if self.alone => self.error = Some(e),
            Err(_) => *place = f64::NAN,
        }
    }

    fn end(self) -> Result<(), hone_error> {
        self.error.map_or(Ok(()), |e| Err(e.into()))
    }
}

pub(crate) fn scorer_here(scorer: Option<&hone_scorer>) -> Result<&hone_scorer, hone_error> {
    let scorer = given(scorer, "scorer")?;
    scorer.process.check("scorer")?;
    Ok(scorer)
}

/// How many cells so many rows have.
fn cells_in(scorer: &hone_scorer, count: usize) -> Result<usize, hone_error> {
    let cells = count.checked_mul(scorer.mam.contract().length);
    cells.ok_or_else(|| hone_error::argument(format!("{count} rows are too many")))
}

/// # Safety
///
/// `rows` must point to `count` rows, and `known`, if not null, to a byte for each of their cells.
pub(crate) unsafe fn rows_of(
    scorer: &hone_scorer,
    rows: *const i64,
    count: usize,
    known: *const u8,
) -> Result<Rows, hone_error> {
    let (length, cells) = (scorer.mam.contract().length, cells_in(scorer, count)?);
    // SAFETY: as the caller vouches.
    let cells = unsafe { slice(rows, cells, "rows") }?;
    let mut cells = cells.to_vec();
    if !known.is_null() {
        // SAFETY: as the caller vouches.
        let known = unsafe { slice(known, cells.len(), "known") }?;
        let hidden = cells.iter_mut().zip(known).filter(|(_, known)| **known == 0);
        hidden.for_each(|(cell, _)| *cell = MISSING);
    }
    Ok(Rows::new(length, cells)?)
}
