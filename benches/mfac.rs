//! How close M-FAC comes to the machine, and how far from numpy: `cargo bench --bench mfac
//! [-- [--quick] [full] [blocks] [dynamic] [prune]]`.
//!
//! Prints a Markdown table and writes it to `target/mfac-bench.md` and, as JSON, to
//! `target/mfac-bench.json`. The machine's limits are measured in the same run: "peak" is the
//! register tile with operands in the first-level cache, on each core, "bandwidth" a read of
//! 512 MiB. So are the peers of `benches/peers.py`, with the numpy that `scripts/setup --tests`
//! put in `third_party/python` or the one that `python3` has. Times are wall-clock medians, so the
//! machine should be idle; on a busy one the share by CPU time (a thread's part of it) says more,
//! though caches and bandwidth are still shared.

use std::collections::HashMap;
use std::fmt::Write;
use std::process::Command;
use std::time::Instant;

#[path = "prune.rs"]
#[allow(dead_code, reason = "the other benchmark's own table")]
mod prune;

use hone::mfac::{BlockFisher, BlockFixed, Fixed, GradientStore, Sliding, Storage, machine};

const THREADS: usize = 2;
const BLOCKS: [usize; 3] = [64, 128, 256];
const DAMPING: f64 = 1e-3;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let quick = arguments.iter().any(|a| a == "--quick");
    let kinds: Vec<_> = arguments.iter().filter(|a| !a.starts_with("--")).collect();
    let wanted = |kind: &str| kinds.is_empty() || kinds.iter().any(|k| *k == kind);
    let mut report = Report::new(quick);
    let (d, counts): (usize, &[usize]) =
        if quick { (65_536, &[256]) } else { (262_144, &[256, 1024]) };
    for &m in counts.iter().filter(|_| wanted("full") || wanted("blocks")) {
        let gradients = gradients(m, d, Storage::F32);
        if wanted("full") {
            report.fixed(&gradients);
        }
        for block in BLOCKS.into_iter().filter(|_| wanted("blocks")) {
            report.blocks(&gradients, block);
        }
    }
    for kind in ["full", "blocks"].into_iter().filter(|kind| wanted(kind)) {
        report.peers(kind);
    }
    if wanted("dynamic") {
        for storage in [Storage::F32, Storage::F16, Storage::Bf16] {
            report.sliding(*counts.last().expect("there are counts"), d, storage);
        }
        for storage in [Storage::F32, Storage::F16].into_iter().filter(|_| !quick) {
            report.sliding(1024, 1 << 20, storage);
        }
    }
    for block in BLOCKS.into_iter().filter(|_| wanted("prune")) {
        report.pruning(block);
    }
    report.finish();
}

struct Report {
    quick: bool,
    /// Useful flop/s of all cores, and bytes/s.
    peak: f64,
    bandwidth: f64,
    rows: Vec<serde_json::Value>,
    text: String,
}

impl Report {
    fn new(quick: bool) -> Report {
        let peak = machine::tile_flops(THREADS);
        let bandwidth = machine::read_bandwidth(THREADS);
        let mut report = Report { quick, peak, bandwidth, rows: Vec::new(), text: String::new() };
        report.say(&format!(
            "{THREADS} threads: peak {:.1} GF/s, {:.1} GB/s\n\n\
             | what | d | m | B | seconds | rate | share of limit | by CPU time |\n\
             |---|---|---|---|---|---|---|---|",
            peak / 1e9,
            bandwidth / 1e9
        ));
        report
    }

    fn say(&mut self, line: &str) {
        println!("{line}");
        writeln!(self.text, "{line}").expect("text grows");
    }

    fn fixed(&mut self, gradients: &GradientStore) {
        let (m, d) = (gradients.count(), gradients.dimension());
        let mut out = vec![0.0; d];
        let flops = 2.0 * d as f64 * (m * m) as f64;
        for threads in [1, THREADS] {
            let time = self.median(threads, || {
                let fixed = Fixed::precompute(gradients.all(), DAMPING, threads).expect("damped");
                fixed.diagonal(0..d, &mut out, threads);
            });
            self.flops(named("static full, diagonal", threads), d, m, 0, time, flops);
        }
    }

    fn blocks(&mut self, gradients: &GradientStore, block: usize) {
        let (m, d) = (gradients.count(), gradients.dimension());
        let blocks: Vec<_> = (0..d).step_by(block).map(|s| s..(s + block).min(d)).collect();
        let flops = |extra: usize| d as f64 * (block * (m + extra)) as f64;
        for threads in [1, THREADS] {
            let time = self.median(threads, || {
                let (all, blocks) = (gradients.all(), blocks.clone());
                BlockFixed::precompute(all, blocks, DAMPING, threads).expect("damped");
            });
            let what = named("static blocks, inverses", threads);
            self.flops(what, d, m, block, time, flops(block));
        }
        let mut rows = vec![0.0; m * d];
        for (i, row) in rows.chunks_exact_mut(d).enumerate() {
            row.copy_from_slice(gradients.all().row(i, 0..d, &mut []));
        }
        let mut fisher = BlockFisher::new(blocks).expect("blocks in order");
        let time = self.median(THREADS, || fisher.add(&rows, m, d, 0, d, THREADS));
        self.flops("streamed Fisher blocks (f64)".into(), d, m, block, time, flops(0));
    }

    fn sliding(&mut self, m: usize, d: usize, storage: Storage) {
        let mut window = Sliding::new(m, d, DAMPING, storage, None).expect("room for the window");
        let row = |seed| {
            let mut row = vec![0.0; d];
            fill(&mut row, seed as u64);
            row
        };
        window.extend((0..m).map(row), THREADS).expect("finite gradients");
        let (g, mut out) = (row(m), vec![0.0; d]);
        let time = self.median(THREADS, || window.step(&g, &mut out, THREADS).expect("finite"));
        let bytes = (2 * m * d * storage.size()) as f64;
        let what = format!("dynamic step, {storage:?}");
        self.row(what, d, m, 0, time, bytes, self.bandwidth, "GB/s");
    }

    /// One step to 90 % zeros, in CPU seconds of one thread for a million weights.
    fn pruning(&mut self, block: usize) {
        let seconds = prune::greedy_seconds(262_144, block, 0.9);
        let what = "exact greedy pruning to 90 %, CPU time of 1M weights";
        self.say(&format!("| {what} | 1000000 | | {block} | {seconds:.4} | | | |"));
        self.rows.push(serde_json::json!({
            "what": what, "d": 1_000_000, "m": 0, "block": block, "seconds": seconds,
        }));
    }

    /// Runs the numpy peers and takes over what they print.
    fn peers(&mut self, kind: &str) {
        let root = env!("CARGO_MANIFEST_DIR");
        let mut command = Command::new("python3");
        command.env("PYTHONPATH", format!("{root}/third_party/python"));
        command.arg(format!("{root}/benches/peers.py"));
        command.args(self.quick.then_some("--quick")).arg(kind);
        let Some(output) = command.output().ok().filter(|o| o.status.success()) else {
            self.say("| no peers: python3 has no numpy, `scripts/setup --tests` gets it | | | |");
            return;
        };
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let row: serde_json::Value = serde_json::from_str(line).expect("peers print JSON");
            let [what, d, m, block, seconds] =
                ["what", "d", "m", "block", "seconds"].map(|key| &row[key]);
            let what = what.as_str().unwrap_or("?");
            self.say(&format!("| {what} | {d} | {m} | {block} | {seconds} | | | |"));
            self.rows.push(row);
        }
    }

    fn flops(&mut self, what: String, d: usize, m: usize, block: usize, time: Time, flops: f64) {
        let limit = self.peak * time.threads as f64 / THREADS as f64;
        self.row(what, d, m, block, time, flops, limit, "GF/s");
    }

    #[allow(clippy::too_many_arguments, reason = "the columns of the table")]
    fn row(
        &mut self,
        what: String,
        d: usize,
        m: usize,
        block: usize,
        time: Time,
        work: f64,
        limit: f64,
        unit: &str,
    ) {
        let Time { wall, cpu, .. } = time;
        let (rate, share, by_cpu) = (work / wall, work / wall / limit, work / cpu / limit);
        self.say(&format!(
            "| {what} | {d} | {m} | {block} | {wall:.4} | {:.1} {unit} | {:.0} % | {:.0} % |",
            rate / 1e9,
            100.0 * share,
            100.0 * by_cpu
        ));
        self.rows.push(serde_json::json!({
            "what": what, "d": d, "m": m, "block": block, "seconds": wall, "rate": rate,
            "share_of_limit": share, "share_by_cpu_time": by_cpu,
        }));
    }

    fn median(&self, threads: usize, mut work: impl FnMut()) -> Time {
        let (mut times, before) = (Vec::new(), cpu_seconds());
        // Nine runs, fewer of what takes long: an odd number, so that the median is one of them.
        let mut total = 0.0;
        while times.len() < 9 && total < 0.7 || times.len().is_multiple_of(2) {
            let start = Instant::now();
            work();
            times.push(start.elapsed().as_secs_f64());
            total += times[times.len() - 1];
        }
        let cpu = (cpu_seconds() - before).max(0.01) / (times.len() * threads) as f64;
        times.sort_by(f64::total_cmp);
        Time { threads, wall: times[times.len() / 2], cpu }
    }

    /// The ratios, and the files.
    fn finish(&mut self) {
        // Seconds a weight: the slowest peers run on fewer.
        let times: HashMap<_, _> = self
            .rows
            .iter()
            .filter_map(|row| {
                let key = |k: &str| row[k].as_u64().unwrap_or(0);
                let what = row["what"].as_str()?.to_string();
                let a_weight = row["seconds"].as_f64()? / key("d") as f64;
                Some(((what, key("d") > 1 << 19, key("m"), key("block")), a_weight))
            })
            .collect();
        let mut ratios = Vec::new();
        let full = named("static full, diagonal", THREADS);
        let blocks = named("static blocks, inverses", THREADS);
        for (ours, theirs) in [
            (&full, "numpy: published recursion, diagonal"),
            (&full, "numpy: Woodbury, diagonal"),
            (&full, "static full, diagonal, 1 thread"),
            (&blocks, "numpy: published block recursion"),
            (&blocks, "numpy: batched inverses"),
            (&blocks, "static blocks, inverses, 1 thread"),
            (&"dynamic step, F16".into(), "dynamic step, F32"),
            (&"dynamic step, Bf16".into(), "dynamic step, F32"),
        ] {
            for ((what, large, m, block), seconds) in &times {
                let key = (theirs.to_string(), *large, *m, *block);
                let (true, Some(other)) = (what == ours, times.get(&key)) else { continue };
                ratios.push((what.clone(), *large, *m, *block, theirs, other / seconds));
            }
        }
        ratios.sort_by(|a, b| {
            (&a.0, a.4, a.1, a.2, a.3)
                .partial_cmp(&(&b.0, b.4, b.1, b.2, b.3))
                .expect("no ratio is compared")
        });
        self.say("\n| faster | than | m | B | times |\n|---|---|---|---|---|");
        let mut values = Vec::new();
        for (what, large, m, block, theirs, ratio) in ratios {
            let d = if large { " (d = 1M)" } else { "" };
            self.say(&format!("| {what}{d} | {theirs} | {m} | {block} | {ratio:.2} |"));
            values.push(serde_json::json!({
                "what": what, "than": theirs, "large": large, "m": m, "block": block,
                "times": ratio,
            }));
        }
        let report = serde_json::json!({
            "threads": THREADS, "peak": self.peak, "bandwidth": self.bandwidth,
            "rows": self.rows, "ratios": values,
        });
        let target = concat!(env!("CARGO_MANIFEST_DIR"), "/target/mfac-bench");
        for (ending, text) in [("md", &self.text), ("json", &report.to_string())] {
            match std::fs::write(format!("{target}.{ending}"), text) {
                Ok(()) => println!("\nAlso in {target}.{ending}"),
                Err(e) => println!("\nNot written to {target}.{ending}: {e}"),
            }
        }
    }
}

/// The name of a row; those on all cores carry no number.
fn named(what: &str, threads: usize) -> String {
    if threads == THREADS { what.into() } else { format!("{what}, {threads} thread") }
}

/// Seconds of one run: by the clock, and on the processor for each thread.
#[derive(Clone, Copy)]
struct Time {
    threads: usize,
    wall: f64,
    cpu: f64,
}

/// The processor time of this process, in ticks of 10 ms; 0 where /proc does not tell.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

fn gradients(m: usize, d: usize, storage: Storage) -> GradientStore {
    let mut store = GradientStore::new(m, d, storage, None).expect("room for the gradients");
    let mut row = vec![0.0; d];
    for i in 0..m {
        fill(&mut row, i as u64);
        store.set_row(i, &row).expect("finite gradients");
    }
    store
}

/// Uniform numbers in ±1 from a counter.
fn fill(row: &mut [f32], seed: u64) {
    for (j, x) in row.iter_mut().enumerate() {
        let mut z = (seed << 32 | j as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        *x = (z >> 40) as f32 / (1u32 << 23) as f32 - 1.0;
    }
}
