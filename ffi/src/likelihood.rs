//! How far θ's scores are likelihoods: its normaliser, and bounds by φ from both sides.

use hone_core::cancel::Cancel;
use hone_core::mam::{Bracket, CheckOptions, Method, ScoreOptions};

use crate::arguments::{check_apart, or, slice_mut};
use crate::error::{guard, hone_error};
use crate::options::{self, Extensible};
use crate::scorer::{hone_score_options, hone_scorer, not_of_phi, rows_of, scorer_here};

/// How to estimate the normaliser. Zero means default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hone_normaliser_options {
    /// sizeof(hone_normaliser_options)
    pub size: usize,
    /// Of the draws.
    pub seed: u64,
    /// Draws from φ, at least 2; 0 means 2048.
    pub draws: u32,
    /// Must be 0.
    pub reserved: u32,
}

// SAFETY: plain data of C without padding that starts with its size.
unsafe impl Extensible for hone_normaliser_options {}

/// log Σ_x p_θ(x) over all complete rows: 0 for a θ that sums to one. Set `size`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hone_normaliser {
    /// sizeof(hone_normaliser)
    pub size: usize,
    /// The sum, in nats: by enumeration where the model has no more rows than draws (or 1024), else
    /// the estimate log (1/n) Σ w with w = p_θ(x)/q(x) and x drawn from q, the chains of φ.
    pub log_sum: f64,
    /// Its standard error, in nats; 0 for an enumeration.
    pub error: f64,
    /// (Σ w)² / Σ w²: how many independent draws the estimate is worth.
    pub effective_draws: f64,
    /// The share of the largest w in their sum, up to 1.
    pub largest_share: f64,
    /// Pareto k̂ of the largest w: from 0.7 on the estimate cannot be relied on. NaN where there is
    /// none: an enumeration, few draws, weights that are all alike.
    pub pareto_k: f64,
    /// Draws, or rows for an enumeration.
    pub draws: u64,
    /// 1 for an enumeration, else 0.
    pub exact: u32,
    /// 1 if it is exact, or if at least 100 draws are effective and k̂ is below 0.7; else 0.
    pub reliable: u32,
}

// SAFETY: plain data of C without padding that starts with its size.
unsafe impl Extensible for hone_normaliser {}

/// An estimate of log Σ_x p_θ(x) to `out`, whose `size` is set: what makes θ's score of a complete
/// row a log-likelihood, see `log_normaliser` in `hone_score_options`. `options` may be NULL. It
/// takes as long as drawing `draws` rows and scoring them by θ; the same seed gives the same
/// numbers.
///
/// Errors: INVALID_ARGUMENT for a model without both halves (θ alone will do where it can be
/// enumerated), and for options out of their range; NUMERICS; UNAVAILABLE in a forked child.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_scorer_normaliser(
    scorer: Option<&hone_scorer>,
    options: *const hone_normaliser_options,
    out: *mut hone_normaliser,
) -> Option<Box<hone_error>> {
    guard(|| {
        let scorer = scorer_here(scorer)?;
        // SAFETY: the header asks for a struct of its size or NULL.
        let o = unsafe { options::read(options, "options") }?;
        options::check_reserved(o.reserved)?;
        if out.is_null() {
            return Err(hone_error::null("out"));
        }
        let draws = or(o.draws as usize, CheckOptions::default().draws);
        let found = scorer.mam.normaliser(draws, o.seed, &Cancel::never())?;
        let made = hone_normaliser {
            size: size_of::<hone_normaliser>(),
            log_sum: found.log_sum,
            error: found.error,
            effective_draws: found.effective,
            largest_share: found.largest_share,
            pareto_k: found.tail.unwrap_or(f64::NAN),
            draws: found.draws as u64,
            exact: found.exact.into(),
            reliable: found.is_reliable().into(),
        };
        // SAFETY: the header asks for a struct of its size.
        unsafe { options::write(out, made, "out") }
    })
}

/// Bounds of log u of each of `count` rows, where u is the mean of p_φ over all orders, which is a
/// normalised probability of the known sites: to `lower` the mean of log p_φ over `orders` orders
/// (0 means 5), to `upper` u/c + log c − 1 with the mean over the same orders in the place of u and
/// c = p_θ, +∞ where θ is hopelessly low; `count` numbers each, in nats. To `lower_error` and
/// `upper_error` (`count` numbers, or NULL) their standard errors over the orders, NaN for a single
/// order.
///
/// `options` may be NULL; of them `seed`, `known` and `orders` count. Errors as
/// `hone_scorer_score`; the model must have both halves.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_scorer_bracket(
    scorer: Option<&hone_scorer>,
    rows: *const i64,
    count: usize,
    options: *const hone_score_options,
    lower: *mut f64,
    upper: *mut f64,
    lower_error: *mut f64,
    upper_error: *mut f64,
) -> Option<Box<hone_error>> {
    guard(|| {
        let scorer = scorer_here(scorer)?;
        // SAFETY: the header asks for a struct of its size or NULL.
        let o = unsafe { options::read(options, "options") }?;
        not_of_phi(&o)?;
        if o.half != 0 {
            return Err(hone_error::argument("`half`: a bracket takes both"));
        }
        // SAFETY: the header asks for so many rows.
        let rows = unsafe { rows_of(scorer, rows, count, o.known) }?;
        let outs = [
            (lower, "lower", true),
            (upper, "upper", true),
            (lower_error, "lower_error", false),
            (upper_error, "upper_error", false),
        ];
        for (i, (a, ..)) in outs.iter().enumerate() {
            for (b, ..) in outs[..i].iter().filter(|(b, ..)| !a.is_null() && !b.is_null()) {
                check_apart(*a, count, *b, count, "two outputs")?;
            }
        }
        let place = |(out, what, needed): (*mut f64, &str, bool)| match out.is_null() && !needed {
            true => Ok(None),
            // SAFETY: the header asks for room for so many numbers; no two outputs overlap, and the
            // rows are a copy.
            false => unsafe { slice_mut(out, count, what) }.map(Some),
        };
        let [lower, upper, lower_error, upper_error] = outs.map(place);
        let outs = [lower?, upper?, lower_error?, upper_error?];
        let how = ScoreOptions {
            method: Method::Bracket,
            orders: scorer.orders(&o, BRACKET_ORDERS),
            log_normaliser: None,
            conflict: false,
            surprise: false,
        };
        let scores = scorer.mam.score(&rows, &how, &Cancel::never())?;
        let mut found = Vec::with_capacity(count);
        for score in scores {
            found.push(match score {
                Ok(score) => score.bracket.expect("it was asked for"),
                Err(e) if count == 1 => return Err(e.into()),
                Err(_) => NO_BRACKET,
            });
        }
        let fields: [fn(&Bracket) -> f64; 4] =
            [|b| b.lower, |b| b.upper, |b| b.lower_error, |b| b.upper_error];
        for (out, field) in outs.into_iter().zip(fields) {
            let places = out.into_iter().flatten();
            places.zip(&found).for_each(|(out, bracket)| *out = field(bracket));
        }
        Ok(())
    })
}

/// Orders of φ's chains in a bracket unless told otherwise.
const BRACKET_ORDERS: u32 = 5;

/// Of a row that has none.
const NO_BRACKET: Bracket =
    Bracket { lower: f64::NAN, lower_error: f64::NAN, upper: f64::NAN, upper_error: f64::NAN };
