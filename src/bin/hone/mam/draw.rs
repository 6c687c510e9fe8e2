//! `hone mam sample` and `hone mam impute`: rows drawn from a model.

use hone::cancel::Cancel;
use hone::error::Result;
use hone::mam::contract::Contract;
use hone::mam::{FillOrder, Mam, Rows, Sample as Drawn, SampleOptions, row_text, write_npy};
use hone::prune::Progress;
use serde_json::{Value as Json, json};

use super::answers::Answers;
use super::arguments::{Drawing, Impute, Sample};
use super::pictures::Pictures;
use super::{SLICE, usage};
use crate::terminal::Bars;

pub fn sample(a: &Sample, cancel: &Cancel) -> Result<()> {
    let mam = a.files.load(cancel)?;
    let evidence = match &a.evidence {
        Some(path) => a.reading.read(path, &mam)?.rows,
        None => Rows::all_missing(mam.contract().length, 1),
    };
    let options = options(&a.drawing)?;
    draw(&mam, &evidence, a.count, &a.drawing, |rows, first_draw| {
        mam.sample(rows, &SampleOptions { first_draw, ..options.clone() }, cancel)
    })
}

pub fn impute(a: &Impute, cancel: &Cancel) -> Result<()> {
    let mam = a.files.load(cancel)?;
    let evidence = a.data.read(&mam)?.rows;
    let options = options(&a.drawing)?;
    let (sweeps, block) = (a.sweeps as usize, a.block as usize);
    draw(&mam, &evidence, a.count, &a.drawing, |rows, first_draw| {
        mam.impute(rows, &SampleOptions { first_draw, ..options.clone() }, sweeps, block, cancel)
    })
}

fn options(d: &Drawing) -> Result<SampleOptions> {
    let order = match d.order.as_str() {
        "random" => FillOrder::Random,
        "forward" => FillOrder::Forward,
        sites => match sites.split(',').map(|s| s.trim().parse().ok()).collect() {
            Some(sites) => FillOrder::Given(sites),
            None => {
                return Err(usage(format!(
                    "--order {sites:?}: use random, forward, or the numbers of all sites"
                )));
            }
        },
    };
    Ok(SampleOptions {
        order,
        temperature: d.temperature,
        top_k: d.top_k,
        seed: d.seed,
        first_draw: 0,
    })
}

/// How drawn rows are written.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    /// All of them at the end.
    Npy,
    Json,
    Text,
    Picture,
}

fn form(d: &Drawing, contract: &Contract) -> Result<Form> {
    let extension = d.output.as_ref().and_then(|p| p.extension()).and_then(|e| e.to_str());
    match extension {
        Some("npy") => Ok(Form::Npy),
        Some("txt") if contract.alphabet.is_none() => {
            Err(usage("the model has no alphabet, so rows are no text; write .csv or .npy"))
        }
        Some("csv" | "txt") => Ok(Form::Text),
        _ if d.show && contract.alphabet.is_none() && contract.shape.is_some() => Ok(Form::Picture),
        _ if d.show => Ok(Form::Text),
        _ => Ok(Form::Json),
    }
}

/// Draws `count` rows for each row of evidence, a slice at a time.
fn draw(
    mam: &Mam,
    evidence: &Rows,
    count: u64,
    d: &Drawing,
    mut ask: impl FnMut(&Rows, u64) -> Result<Vec<Result<Drawn>>>,
) -> Result<()> {
    let contract = mam.contract();
    let form = form(d, contract)?;
    let total = evidence.len() as u64 * count;
    let mut pictures = match &d.png {
        Some(path) => Some(Pictures::new(path, contract, evidence, count)?),
        None => None,
    };
    let file = d.output.as_deref().filter(|_| form != Form::Npy);
    let mut answers = Answers::new(file)?;
    let mut kept: Vec<i64> = Vec::new();
    let bars = Bars::new();
    let long = total > SLICE as u64;
    if long {
        bars.begin("draws", total);
    }
    let mut start = 0;
    while start < total && !answers.closed() {
        let end = (start + SLICE as u64).min(total);
        let source = |i: u64| evidence.row((i / count) as usize).iter().copied();
        let rows = Rows::new(evidence.length(), (start..end).flat_map(source).collect())?;
        for (i, drawn) in (start..end).zip(ask(&rows, start)?) {
            let row = (i / count) as usize;
            if let (Some(pictures), Ok(sample)) = (&mut pictures, &drawn) {
                pictures.draw(row, i % count, &sample.values);
            }
            match (form, drawn) {
                (Form::Json, drawn) => answers.row(drawn.map(|s| json(&s, row, contract)))?,
                (_, Err(e)) => {
                    answers.count(1);
                    answers.fail(row, e);
                    let missing = vec![-1; evidence.length()];
                    if form == Form::Npy {
                        kept.extend(missing);
                    } else {
                        answers.line("")?;
                    }
                }
                (Form::Npy, Ok(s)) => {
                    answers.count(1);
                    kept.extend(s.values);
                }
                (Form::Text, Ok(s)) => {
                    answers.count(1);
                    answers.line(&row_text(&s.values, contract))?;
                }
                (Form::Picture, Ok(s)) => {
                    answers.count(1);
                    answers.line(&picture(&s.values, contract))?;
                }
            }
        }
        answers.flush()?;
        if long {
            bars.advance(end);
        }
        start = end;
    }
    bars.finish();
    if let (Form::Npy, Some(path)) = (form, &d.output) {
        write_npy(path, &Rows::new(evidence.length(), kept)?, contract)?;
    }
    if let Some(pictures) = pictures {
        pictures.save()?;
    }
    answers.finish()
}

fn json(s: &Drawn, evidence: usize, contract: &Contract) -> Json {
    let mut line = json!({ "evidence_row": evidence, "values": s.values });
    if contract.alphabet.is_some() {
        line["text"] = row_text(&s.values, contract).into();
    }
    line["log_q"] = s.log_q.into();
    line["log_p"] = s.log_p.into();
    line
}

/// The row as a picture of characters, an empty line behind it.
fn picture(values: &[i64], contract: &Contract) -> String {
    let width = contract.shape.as_ref().and_then(|s| s.last()).copied().unwrap_or(values.len());
    let symbol = |&v: &i64| match (v, contract.vocab) {
        (0, 2) => " .".to_string(),
        (1, 2) => " #".to_string(),
        (v, _) => format!(" {v}"),
    };
    let lines = values.chunks(width.max(1));
    lines.map(|line| line.iter().map(symbol).collect::<String>() + "\n").collect()
}
