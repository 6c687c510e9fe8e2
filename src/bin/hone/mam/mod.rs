//! `hone mam`: questions to marginalization models.

mod answers;
pub mod arguments;
mod draw;
mod inspect;
mod pictures;
mod prune;
mod train;

use std::ops::Range;

use hone::cancel::Cancel;
use hone::error::{Error, ErrorKind, Result};
use hone::mam::contract::{Contract, Kind, Trained};
use hone::mam::{
    ChainScore, CheckOptions, Conditional, Consistency, Foreign, LARGEST_TAIL, Mam, Method,
    Normaliser, Orders, Residuals, Rows, SampleOptions, ScoreOptions, SiteDistribution, Source,
};
use hone::onnx::{Graph, Model};
use hone::prune::Progress;
use serde_json::{Map, Value as Json, json};

use crate::terminal::Bars;
use answers::Answers;
use arguments::{Adapt, Check, Condition, MamArguments, MamCommand, Score};

/// Rows that are asked about at a time: enough to fill batches, few enough to see progress.
const SLICE: usize = 256;

/// Orders of φ's chains unless told otherwise, as published.
const ORDERS: usize = 5;

pub fn run(a: &MamArguments, cancel: &Cancel) -> Result<()> {
    match &a.command {
        MamCommand::Inspect(a) => inspect::run(a, cancel),
        MamCommand::Score(a) => score(a, cancel),
        MamCommand::Condition(a) => condition(a, cancel),
        MamCommand::Sample(a) => draw::sample(a, cancel),
        MamCommand::Impute(a) => draw::impute(a, cancel),
        MamCommand::Check(a) => check(a, cancel),
        MamCommand::Adapt(a) => adapt(a),
        MamCommand::Train(a) => train::run(a, cancel),
        MamCommand::Prune(a) => prune::run(a, cancel),
    }
}

fn score(a: &Score, cancel: &Cancel) -> Result<()> {
    let mam = a.files.load(cancel)?;
    let data = a.data.read(&mam)?;
    let method = match a.method.as_deref() {
        Some("theta") => Method::Theta,
        Some("phi") => Method::Phi,
        Some(_) => Method::Bracket,
        None if mam.has_theta() && mam.has_chains() => Method::Bracket,
        None if mam.has_theta() => Method::Theta,
        None => Method::Phi,
    };
    let normaliser = match a.correct {
        Some(draws) => Some(correction(&mam, draws as usize, a.seed, cancel)?),
        None => None,
    };
    if method == Method::Theta && normaliser.is_none() && !mam.is_normalised() {
        log::warn!(
            "θ does not sum to one exactly, so `theta` is no likelihood; --correct 2000 estimates \
             the correction, --method bracket gives bounds, `hone mam check` a report"
        );
    }
    let options = ScoreOptions {
        method,
        orders: orders(a.orders.as_deref(), &mam, a.seed)?,
        log_normaliser: normaliser.map(|n| n.log_sum),
        conflict: a.conflict,
        surprise: a.surprise,
    };
    let answers = Answers::new(a.output.as_deref())?;
    slices("scores", &data.rows, answers, |_, rows| {
        let scores = mam.score(&rows, &options, cancel)?;
        Ok(scores.into_iter().map(|s| Ok(score_json(&s?))).collect())
    })
}

fn correction(mam: &Mam, draws: usize, seed: u64, cancel: &Cancel) -> Result<Normaliser> {
    let found = mam.normaliser(draws, seed, cancel)?;
    eprintln!("{}", normaliser_text(&found));
    if !found.is_reliable() {
        log::warn!(
            "the correction is not to be relied on: {}; raise --correct, or use --method phi",
            doubt(&found)
        );
    }
    Ok(found)
}

fn score_json(s: &hone::mam::Score) -> Json {
    let mut fields = Map::new();
    let mut put = |name: &str, value: Json| drop(fields.insert(name.into(), value));
    put("known", s.known.into());
    if let Some(theta) = s.theta {
        put("theta", theta.into());
        put("theta_normalised", s.theta_normalised.into());
    }
    if let Some(phi) = &s.phi {
        put("phi", chain_json(phi));
    }
    if let Some(b) = &s.bracket {
        put("lower", b.lower.into());
        put("lower_error", b.lower_error.into());
        put("upper", b.upper.into());
        put("upper_error", b.upper_error.into());
    }
    if let Some(conflict) = s.conflict {
        put("conflict", conflict.into());
    }
    if let Some(surprise) = &s.surprise {
        let of_site = |(site, value): &(usize, f64)| json!({ "site": site, "surprise": value });
        put("surprise", surprise.iter().map(of_site).collect());
    }
    fields.into()
}

fn chain_json(c: &ChainScore) -> Json {
    json!({ "log_p": c.log_p, "mean": c.mean, "spread": c.spread, "orders": c.orders })
}

fn condition(a: &Condition, cancel: &Cancel) -> Result<()> {
    let mam = a.files.load(cancel)?;
    let data = a.data.read(&mam)?;
    let answers = Answers::new(a.output.as_deref())?;
    if let Some(given) = &data.given {
        let orders = orders(a.orders.as_deref(), &mam, a.seed)?;
        return slices("conditionals", &data.rows, answers, |range, rows| {
            let length = rows.length();
            let given = &given[range.start * length..range.end * length];
            let found = mam.log_conditional(&rows, given, &orders, cancel)?;
            Ok(found.into_iter().map(|c| Ok(conditional_json(&c?))).collect())
        });
    }
    let source = match a.source.as_deref() {
        Some("theta") => Source::Theta,
        None if !mam.has_phi() => Source::Theta,
        _ => Source::Phi,
    };
    slices("distributions", &data.rows, answers, |_, rows| {
        let found = mam.distributions(&rows, source, cancel)?;
        Ok(found.into_iter().map(|sites| Ok(distributions_json(&sites?))).collect())
    })
}

fn conditional_json(c: &Conditional) -> Json {
    json!({
        "asked": c.asked,
        "given": c.given,
        "ratio": c.ratio,
        "chain": c.chain.as_ref().map(chain_json),
        "gap": c.gap,
    })
}

fn distributions_json(sites: &[SiteDistribution]) -> Json {
    let of_site = |s: &SiteDistribution| {
        let p: Vec<f64> = s.log_p.iter().map(|l| l.exp()).collect();
        json!({ "site": s.site, "p": p })
    };
    json!({ "missing": sites.iter().map(of_site).collect::<Vec<_>>() })
}

fn check(a: &Check, cancel: &Cancel) -> Result<()> {
    let mam = a.files.load(cancel)?;
    let rows = match &a.data {
        Some(path) => a.reading.read(path, &mam)?.rows,
        None => own_samples(&mam, a, cancel)?,
    };
    let options = CheckOptions {
        steps: a.steps as usize,
        orders: a.orders as usize,
        draws: a.draws as usize,
        seed: a.seed,
    };
    let found = mam.check(&rows, &options, cancel)?;
    if a.json {
        println!("{:#}", found.to_json());
    } else {
        print!("{}", check_text(&found));
    }
    Ok(())
}

fn own_samples(mam: &Mam, a: &Check, cancel: &Cancel) -> Result<Rows> {
    let options = SampleOptions { seed: a.seed, ..SampleOptions::default() };
    let length = mam.contract().length;
    let count = a.reading.limit.unwrap_or(256).max(1);
    let samples = mam.sample(&Rows::all_missing(length, count), &options, cancel)?;
    let samples = samples.into_iter().collect::<Result<Vec<_>>>()?;
    Rows::new(length, samples.into_iter().flat_map(|s| s.values).collect())
}

fn check_text(c: &Consistency) -> String {
    let line = |name: &str, r: &Residuals| {
        format!("{name:34} {:>8.4} {:>8.4} {:>8.4}   {}\n", r.mean, r.rms, r.max, r.count)
    };
    let mut text = format!("{:34} {:>8} {:>8} {:>8}   count\n", "in nats", "mean", "rms", "max");
    text += &line("one step: f(S) + log phi - f(S, i)", &c.one_step);
    text += &line("sum rule: log sum_k f(S, k) - f(S)", &c.sum_rule);
    text += &line("theta - phi, whole rows", &c.theta_against_phi);
    text += &format!("spread of phi over orders          {:>8.4}\n", c.order_spread);
    text += &format!("phi, bits per known site           {:>8.4}\n", c.phi_bits);
    text += &normaliser_text(&c.normaliser);
    text.push('\n');
    if !c.normaliser.is_reliable() {
        text += &format!("  not to be relied on: {}\n", doubt(&c.normaliser));
    }
    text
}

/// Why an estimate is not to be relied on.
fn doubt(n: &Normaliser) -> String {
    match n.tail.filter(|&k| k >= LARGEST_TAIL) {
        Some(k) => {
            format!("the weights' tail is too heavy (Pareto k {k:.2}): theta is far from phi")
        }
        None => format!("{:.0} effective draws are too few", n.effective),
    }
}

fn normaliser_text(n: &Normaliser) -> String {
    match n.exact {
        true => format!("log sum of p_theta over all {} states: {:+.4}", n.draws, n.log_sum),
        false => {
            let tail = n.tail.map_or(String::new(), |k| format!(", Pareto k {k:.2}"));
            format!(
                "log sum of p_theta: {:+.3} +- {:.3} ({:.0} effective of {} draws, largest share \
                 {:.3}{tail})",
                n.log_sum, n.error, n.effective, n.draws, n.largest_share
            )
        }
    }
}

fn adapt(a: &Adapt) -> Result<()> {
    let foreign = Foreign {
        values_input: a.values_input.clone(),
        values: a.values.clone(),
        missing: a.missing,
        mask_input: a.mask_input.clone(),
        mask_is_missing: a.mask_is_missing,
        step_input: a.step_input.clone(),
        log_p: a.log_p.clone(),
        logits: a.logits.clone(),
        logits_values_first: a.logits_values_first,
    };
    let kind = match (&a.log_p, &a.logits) {
        (Some(_), None) => Kind::Marginal,
        (None, Some(_)) => Kind::Conditional,
        _ => Kind::Joint,
    };
    if a.length == 0 || a.values.is_empty() {
        return Err(usage("--length and --values must not be empty"));
    }
    let mut contract = Contract::new(kind, a.length, a.values.len());
    if !a.shape.is_empty() {
        if a.shape.iter().product::<usize>() != a.length {
            return Err(usage(format!("--shape does not have {} sites", a.length)));
        }
        contract.shape = Some(a.shape.clone());
    }
    let graph = Graph::from_model(&Model::load(&a.net)?)?;
    let adapted = hone::mam::adapt(graph, &foreign, &contract)?;
    let metadata = contract.metadata();
    let metadata: Vec<_> = metadata.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
    adapted.save(&a.output, &metadata)
}

/// Asks about the rows a slice at a time and writes the answers as they come.
fn slices(
    what: &str,
    rows: &Rows,
    mut answers: Answers,
    mut ask: impl FnMut(Range<usize>, Rows) -> Result<Vec<Result<Json>>>,
) -> Result<()> {
    let bars = Bars::new();
    // Short work needs no progress, and standard output may be the terminal.
    let long = rows.len() > SLICE;
    if long {
        bars.begin(what, rows.len() as u64);
    }
    for start in (0..rows.len()).step_by(SLICE) {
        let range = start..(start + SLICE).min(rows.len());
        for answer in ask(range.clone(), rows.slice(range.clone()))? {
            answers.row(answer)?;
        }
        answers.flush()?;
        if answers.closed() {
            break;
        }
        if long {
            bars.advance(range.end as u64);
        }
    }
    bars.finish();
    answers.finish()
}

/// Orders as typed: how many random ones, or `forward`; what the model was trained for by default.
fn orders(text: Option<&str>, mam: &Mam, seed: u64) -> Result<Orders> {
    match text {
        Some("forward") => Ok(Orders::Forward),
        None if mam.contract().orders == Trained::Forward => Ok(Orders::Forward),
        None => Ok(Orders::Random { count: ORDERS, seed }),
        Some(text) => match text.parse() {
            Ok(count) if (1..=100_000).contains(&count) => Ok(Orders::Random { count, seed }),
            _ => Err(usage(format!("--orders {text:?}: use a number, such as 5, or forward"))),
        },
    }
}

fn usage(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Usage, message)
}
