//! The networks that training builds: they learn, repeat themselves, go on where they were stopped,
//! and say what they cannot be.

use hone::ErrorKind;
use hone::cancel::Cancel;
use hone::mam::contract::{Contract, Kind};
use hone::mam::train::{
    Energy, EnergyOptions, Objective, TrainOptions, TrainReport, Trained, train, train_by_energy,
};
use hone::mam::{Network, Rows, Size};
use hone::random::Stream;

use crate::cli::{mam as command, text};
use crate::tables::load;

const NETWORKS: [Network; 3] =
    [Network::Mlp, Network::Transformer { heads: 2 }, Network::Conv { torus: false }];

/// 4×4 images whose lines are of one value each but for one site in ten.
fn stripes(count: usize) -> Rows {
    let mut random = Stream::new(5, 0);
    let mut cells = Vec::new();
    for _ in 0..4 * count {
        let value = random.below(2) as i64;
        cells.extend((0..4).map(|_| if random.uniform() < 0.1 { 1 - value } else { value }));
    }
    Rows::new(16, cells).unwrap()
}

fn contract() -> Contract {
    let mut contract = Contract::new(Kind::Joint, 16, 2);
    contract.shape = Some(vec![4, 4]);
    contract
}

fn options(network: Network) -> TrainOptions {
    TrainOptions {
        network,
        size: Size { hidden: 16, layers: 2 },
        conditional_steps: 8,
        marginal_steps: 8,
        batch: 64,
        learning_rate: 1e-2,
        average: 0.95,
        report_every: 4,
        ..TrainOptions::default()
    }
}

fn run(options: &TrainOptions, rows: &Rows) -> Trained {
    let held_out = rows.slice(0..60);
    train(rows, &held_out, &contract(), options, None, &mut |_| {}, &Cancel::new()).unwrap()
}

#[test]
fn every_network_learns_more_than_single_sites() {
    let rows = stripes(1000);
    let (learnt, held_out) = (rows.slice(0..800), rows.slice(800..1000));
    for network in NETWORKS {
        let options =
            TrainOptions { conditional_steps: 300, marginal_steps: 300, ..options(network) };
        let cancel = Cancel::new();
        let trained =
            train(&learnt, &held_out, &contract(), &options, None, &mut |_| {}, &cancel).unwrap();
        // Independent sites need 1 bit each, the truth about 0.66.
        assert!(trained.bits < 0.8, "{network:?}: {}", trained.bits);
        assert!(trained.theta_error.rms < 1.0, "{network:?}: {:?}", trained.theta_error);
        let mam = load(&trained.graph, &trained.contract).unwrap();
        assert!(mam.warnings().is_empty(), "{network:?}: {:?}", mam.warnings());
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_also_when_resumed_and_another_network_is_refused() {
    let rows = stripes(100);
    let bytes = |trained: &Trained| trained.graph.to_bytes().unwrap();
    for (i, network) in NETWORKS.into_iter().enumerate() {
        let options = TrainOptions { batch: 128, ..options(network) };
        let whole = run(&options, &rows);
        let three = TrainOptions { threads: 3, ..options.clone() };
        assert!(bytes(&whole) == bytes(&run(&three, &rows)), "{network:?}");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state");
        let go_on = |options: &TrainOptions, stop: Option<usize>| {
            let cancel = Cancel::new();
            let mut watch = |r: &TrainReport| {
                if stop == Some(r.stage) && r.step == 4 {
                    cancel.cancel();
                }
            };
            let held_out = rows.slice(0..60);
            train(&rows, &held_out, &contract(), options, Some(&file), &mut watch, &cancel)
        };
        for stage in [1, 2] {
            let stopped = go_on(&options, Some(stage)).unwrap_err();
            assert_eq!(stopped.kind(), ErrorKind::Cancelled, "{network:?}");
        }
        let other = TrainOptions { network: NETWORKS[(i + 1) % 3], ..options.clone() };
        let error = go_on(&other, None).unwrap_err();
        assert!(error.to_string().contains("other options or data"), "{error}");
        assert!(bytes(&go_on(&options, None).unwrap()) == bytes(&whole), "{network:?}");
    }
}

#[test]
fn a_torus_knows_no_places() {
    let energy = Energy::Ising("4x4,coupling=0.3,field=0.2".parse().unwrap());
    let options = TrainOptions {
        weight_decay: 0.0,
        batch: 16,
        average: 0.9,
        ..options(Network::Conv { torus: true })
    };
    let learning = EnergyOptions { objective: Objective::Balance, steps: 150 };
    let (c, cancel) = (energy.contract(), Cancel::new());
    let trained =
        train_by_energy(&energy, &c, &learning, &options, None, &mut |_| {}, &cancel).unwrap();
    assert!(trained.figures.gap.unwrap() < 0.3, "{:?}", trained.figures);
    let mam = load(&trained.graph, &trained.contract).unwrap();
    // A row and the same moved by (1, 2), some sites missing.
    let row: Vec<i64> = (0..16).map(|i: i64| (i * i + i / 3) % 3 - 1).collect();
    let moved = |i: usize| row[(i / 4 + 3) % 4 * 4 + (i % 4 + 2) % 4];
    let both = [row.clone(), (0..16).map(moved).collect()].concat();
    let found = mam.log_marginal(&Rows::new(16, both).unwrap(), &Cancel::new()).unwrap();
    let [a, b] = [0, 1].map(|i| *found[i].as_ref().unwrap());
    assert!((a - b).abs() < 1e-4, "{a} {b}");
}

#[test]
fn a_transformer_learns_from_an_energy() {
    let energy = Energy::Ising("2x3,coupling=0.3,field=0.2".parse().unwrap());
    let options = TrainOptions {
        weight_decay: 0.0,
        batch: 24,
        learning_rate: 5e-3,
        ..options(Network::Transformer { heads: 4 })
    };
    let learning = EnergyOptions { objective: Objective::Balance, steps: 400 };
    let (c, cancel) = (energy.contract(), Cancel::new());
    let trained =
        train_by_energy(&energy, &c, &learning, &options, None, &mut |_| {}, &cancel).unwrap();
    assert!(trained.figures.gap.unwrap() < 0.05, "{:?}", trained.figures);
}

#[test]
fn what_a_network_cannot_be_is_named() {
    let rows = stripes(20);
    let refused = |options: TrainOptions, contract: &Contract, what: &str| {
        let held_out = rows.slice(0..2);
        let run = train(&rows, &held_out, contract, &options, None, &mut |_| {}, &Cancel::new());
        let error = run.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains(what), "{error}");
    };
    let flat = Contract::new(Kind::Joint, 16, 2);
    refused(options(Network::Conv { torus: false }), &flat, "two sides");
    refused(options(Network::Transformer { heads: 3 }), &flat, "3 heads do not divide 16 units");
    refused(options(Network::Transformer { heads: 0 }), &flat, "0 heads");
    let empty = Size { hidden: 0, layers: 1 };
    refused(TrainOptions { size: empty, ..options(Network::Mlp) }, &flat, "1 to 65536 units");

    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("rows.csv");
    std::fs::write(&data, "0,1,1,0\n".repeat(20)).unwrap();
    let output = folder.path().join("model.onnx");
    let asked = |more: &[&str]| {
        let start = ["train", "--data", text(&data), "--output", text(&output)];
        command(&[&start[..], more].concat())
    };
    asked(&["--heads", "2"]).fails(2, &["--heads", "transformer"]);
    asked(&["--padding", "torus"]).fails(2, &["--padding", "conv"]);
    asked(&["--network", "conv"]).fails(2, &["two sides", "--shape"]);
    asked(&["--network", "recurrent"]).fails(2, &["recurrent"]);
}
