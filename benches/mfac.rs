//! How close M-FAC comes to the machine, and to numpy: `cargo bench --bench mfac [-- --quick]`.
//!
//! Prints a Markdown table and writes the same figures as JSON to `target/mfac-bench.json`. The
//! machine's limits are measured in the same run: "peak" is the register tile with operands in the
//! first-level cache, on each core, "bandwidth" a read of 512 MiB. The peers of `benches/peers.py`
//! run beside it where `python3` has numpy. Times are wall-clock medians, so the machine should be
//! idle; on a busy one the share by CPU time (a thread's part of it) says more, though caches and
//! bandwidth are still shared.

use std::process::Command;
use std::time::Instant;

use hone::mfac::{BlockFisher, BlockFixed, Fixed, GradientStore, Sliding, Storage, machine};

const THREADS: usize = 2;

fn main() {
    let quick = std::env::args().any(|a| a == "--quick");
    let mut report = Report::new(quick);
    let (d, counts): (usize, &[usize]) =
        if quick { (65_536, &[256]) } else { (262_144, &[256, 1024]) };
    for &m in counts {
        let gradients = gradients(m, d, Storage::F32);
        report.fixed(&gradients);
        for block in [64, 128, 256] {
            report.blocks(&gradients, block);
        }
    }
    for storage in [Storage::F32, Storage::F16, Storage::Bf16] {
        report.sliding(*counts.last().expect("there are counts"), d, storage);
    }
    report.peers(d, counts[0]);
    report.write();
}

struct Report {
    quick: bool,
    /// Useful flop/s of all cores, and bytes/s.
    peak: f64,
    bandwidth: f64,
    rows: Vec<serde_json::Value>,
}

impl Report {
    fn new(quick: bool) -> Report {
        let peak = machine::tile_flops(THREADS);
        let bandwidth = machine::read_bandwidth(THREADS);
        println!("{THREADS} threads: peak {:.1} GF/s, {:.1} GB/s\n", peak / 1e9, bandwidth / 1e9);
        println!("| what | d | m | B | seconds | rate | share of limit | by CPU time |");
        println!("|---|---|---|---|---|---|---|---|");
        Report { quick, peak, bandwidth, rows: Vec::new() }
    }

    fn fixed(&mut self, gradients: &GradientStore) {
        let (m, d) = (gradients.count(), gradients.dimension());
        let mut out = vec![0.0; d];
        let time = self.median(|| {
            let fixed = Fixed::precompute(gradients.all(), 1e-3, THREADS).expect("a sane damping");
            fixed.diagonal(0..d, &mut out, THREADS);
        });
        self.flops("static full, diagonal", d, m, 0, time, 2.0 * d as f64 * (m * m) as f64);
    }

    fn blocks(&mut self, gradients: &GradientStore, block: usize) {
        let (m, d) = (gradients.count(), gradients.dimension());
        let blocks: Vec<_> = (0..d).step_by(block).map(|s| s..(s + block).min(d)).collect();
        let per_weight = |extra: usize| d as f64 * (block * (m + extra)) as f64;
        let mut inverse = vec![0.0; block * block];
        let time = self.median(|| {
            let fixed = BlockFixed::precompute(gradients.all(), blocks.clone(), 1e-3, THREADS)
                .expect("a sane damping");
            (0..blocks.len()).for_each(|b| fixed.inverse(b, &mut inverse));
        });
        self.flops("static blocks, inverses", d, m, block, time, per_weight(block));
        let mut rows = vec![0.0; m * d];
        for (i, row) in rows.chunks_exact_mut(d).enumerate() {
            let mut scratch = vec![0.0; d];
            row.copy_from_slice(gradients.all().row(i, 0..d, &mut scratch));
        }
        let mut fisher = BlockFisher::new(blocks).expect("blocks in order");
        let time = self.median(|| fisher.add(&rows, m, d, 0, d, THREADS));
        self.flops("streamed Fisher blocks", d, m, block, time, per_weight(0));
    }

    fn sliding(&mut self, m: usize, d: usize, storage: Storage) {
        let mut window = Sliding::new(m, d, 1e-3, storage, None).expect("room for the window");
        let mut g = vec![0.0; d];
        for seed in 0..m {
            fill(&mut g, seed as u64);
            window.push(&g, THREADS).expect("finite gradients");
        }
        let mut out = vec![0.0; d];
        let time = self.median(|| window.step(&g, &mut out, THREADS).expect("finite"));
        let bytes = (2 * m * d * storage.size()) as f64;
        let what = format!("dynamic step, {storage:?}");
        self.row(&what, d, m, 0, time, bytes, self.bandwidth, "GB/s");
    }

    /// Runs the numpy peers and prints what they print.
    fn peers(&mut self, d: usize, m: usize) {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers.py");
        let output =
            Command::new("python3").args([script, &d.to_string(), &m.to_string()]).output();
        let Some(output) = output.ok().filter(|o| o.status.success()) else {
            println!("\nNo peers: python3 with numpy was not found.");
            return;
        };
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let row: serde_json::Value = serde_json::from_str(line).expect("peers print JSON");
            println!(
                "| {} | {} | {} | {} | {} | | | |",
                row["what"].as_str().unwrap_or("?"),
                row["d"],
                row["m"],
                row["block"],
                row["seconds"]
            );
            self.rows.push(row);
        }
    }

    fn flops(&mut self, what: &str, d: usize, m: usize, block: usize, time: Time, flops: f64) {
        self.row(what, d, m, block, time, flops, self.peak, "GF/s");
    }

    #[allow(clippy::too_many_arguments, reason = "the columns of the table")]
    fn row(
        &mut self,
        what: &str,
        d: usize,
        m: usize,
        block: usize,
        time: Time,
        work: f64,
        limit: f64,
        unit: &str,
    ) {
        let Time { wall, cpu } = time;
        let (rate, share, by_cpu) = (work / wall, work / wall / limit, work / cpu / limit);
        println!(
            "| {what} | {d} | {m} | {block} | {wall:.4} | {:.1} {unit} | {:.0} % | {:.0} % |",
            rate / 1e9,
            100.0 * share,
            100.0 * by_cpu
        );
        self.rows.push(serde_json::json!({
            "what": what, "d": d, "m": m, "block": block, "seconds": wall, "rate": rate,
            "share_of_limit": share, "share_by_cpu_time": by_cpu,
        }));
    }

    fn median(&self, mut work: impl FnMut()) -> Time {
        let runs = if self.quick { 3 } else { 5 };
        let before = cpu_seconds();
        let mut times: Vec<f64> = (0..runs)
            .map(|_| {
                let start = Instant::now();
                work();
                start.elapsed().as_secs_f64()
            })
            .collect();
        let cpu = (cpu_seconds() - before).max(0.01) / (runs * THREADS) as f64;
        times.sort_by(f64::total_cmp);
        Time { wall: times[times.len() / 2], cpu }
    }

    fn write(&self) {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/target/mfac-bench.json");
        let report = serde_json::json!({
            "threads": THREADS, "peak": self.peak, "bandwidth": self.bandwidth, "rows": self.rows,
        });
        match std::fs::write(path, report.to_string()) {
            Ok(()) => println!("\nAs JSON: {path}"),
            Err(e) => println!("\nNo JSON at {path}: {e}"),
        }
    }
}

/// Seconds of one run: by the clock, and on the processor for each thread.
#[derive(Clone, Copy)]
struct Time {
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
