//! `hone mam inspect`: the contract, the halves, log Z, and what is odd.

use hone::cancel::Cancel;
use hone::error::Result;
use hone::mam::contract::Contract;
use hone::mam::{BatchEffect, Mam};
use serde_json::{Value as Json, json};

use super::arguments::Inspect;

pub fn run(a: &Inspect, cancel: &Cancel) -> Result<()> {
    let mam = a.files.load(cancel)?;
    if a.json {
        println!("{:#}", report(a, &mam));
    } else {
        print!("{}", text(&mam));
    }
    Ok(())
}

fn report(a: &Inspect, mam: &Mam) -> Json {
    let c = mam.contract();
    let halves: Vec<Json> = mam
        .halves()
        .into_iter()
        .map(|(output, parameters, nodes, effect)| {
            json!({
                "output": output,
                "parameters": parameters,
                "nodes": nodes,
                "batch_effect": effect_json(effect),
            })
        })
        .collect();
    json!({
        "schema": "hone.mam.inspect/1",
        "model": a.files.model,
        "kind": c.kind.to_string(),
        "length": c.length,
        "vocab": c.vocab,
        "cardinalities": c.cardinalities,
        "mask_id": c.mask_id,
        "value_offset": c.value_offset,
        "orders": c.orders.to_string(),
        "shape": c.shape,
        "alphabet": c.alphabet,
        "pad_id": c.pad_id,
        "log_z": mam.log_z(),
        "z_kind": c.z_kind.to_string(),
        "normalised": mam.is_normalised(),
        "halves": halves,
        "notes": c.notes,
        "warnings": mam.warnings(),
    })
}

fn effect_json(effect: BatchEffect) -> Json {
    match effect {
        BatchEffect::None => "none".into(),
        BatchEffect::Alone => "never alone".into(),
        BatchEffect::Rounding(gap) => json!({ "rounding": gap }),
    }
}

fn text(mam: &Mam) -> String {
    let c = mam.contract();
    let mut text = format!("{} model of {} sites, {}\n", c.kind, c.length, values(c));
    if let Some(shape) = &c.shape {
        let sides: Vec<String> = shape.iter().map(usize::to_string).collect();
        text += &format!("shape {}\n", sides.join(" x "));
    }
    if let Some(alphabet) = &c.alphabet {
        text += &format!("alphabet {alphabet:?}\n");
    }
    if let Some(pad) = c.pad_id {
        text += &format!("short rows are filled with value {pad}\n");
    }
    if let Some(states) = c.states() {
        text += &format!("{states} states\n");
    }
    text += &format!(
        "orders: {}; stored as value + {}, missing as {}\n",
        c.orders, c.value_offset, c.mask_id
    );
    for (output, parameters, nodes, effect) in mam.halves() {
        let effect = match effect {
            BatchEffect::None => "a row's answer has the same bits in any batch".to_string(),
            BatchEffect::Alone => "same bits in any batch of two or more, which hone keeps".into(),
            BatchEffect::Rounding(gap) => format!("rows differ by up to {gap:.1e} with the batch"),
        };
        text += &format!("{output}: {parameters} parameters, {nodes} nodes; {effect}\n");
    }
    if let Some(z) = mam.log_z() {
        let trust = match mam.is_normalised() {
            true => "normalised by construction",
            false => "not normalised by construction: see `hone mam check`",
        };
        text += &format!("log Z = f(all missing) = {z:.6} ({}); theta is {trust}\n", c.z_kind);
    }
    for (key, value) in &c.notes {
        text += &format!("{key}: {value}\n");
    }
    text
}

fn values(c: &Contract) -> String {
    let (least, most) =
        (c.cardinalities.iter().min().unwrap_or(&0), c.cardinalities.iter().max().unwrap_or(&0));
    match least == most {
        true => format!("{least} values each"),
        false => format!("{least} to {most} values each"),
    }
}
