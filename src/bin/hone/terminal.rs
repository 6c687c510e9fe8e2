//! Progress, messages and signals of the command line.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use hone::cancel::Cancel;
use hone::prune::Progress;
use indicatif::{ProgressBar, ProgressStyle};

/// A bar on a terminal; elsewhere a line when a phase begins and every few seconds.
pub struct Bars {
    state: Mutex<State>,
    terminal: bool,
}

struct State {
    bar: ProgressBar,
    phase: String,
    total: u64,
    said: Instant,
}

/// Lines for a log file should be rare enough to read and frequent enough to show life.
const LINE_EVERY: Duration = Duration::from_secs(10);

impl Bars {
    pub fn new() -> Bars {
        let state = State {
            bar: ProgressBar::hidden(),
            phase: String::new(),
            total: 0,
            said: Instant::now(),
        };
        Bars { state: Mutex::new(state), terminal: std::io::stderr().is_terminal() }
    }

    pub fn finish(&self) {
        self.state.lock().expect("no holder panics").bar.finish_and_clear();
    }
}

impl Progress for Bars {
    fn begin(&self, phase: &str, total: u64) {
        let mut state = self.state.lock().expect("no holder panics");
        state.bar.finish_and_clear();
        state.phase = phase.into();
        state.total = total;
        state.said = Instant::now();
        if self.terminal {
            let style = "{prefix:16} {bar:40} {pos}/{len} {eta}";
            let style = ProgressStyle::with_template(style).expect("a valid template");
            state.bar = ProgressBar::new(total).with_style(style).with_prefix(phase.to_string());
            state.bar.enable_steady_tick(Duration::from_millis(200));
        } else {
            eprintln!("{phase}");
        }
    }

    fn advance(&self, done: u64) {
        let mut state = self.state.lock().expect("no holder panics");
        state.bar.set_position(done);
        if !self.terminal && state.said.elapsed() >= LINE_EVERY && done < state.total {
            state.said = Instant::now();
            eprintln!("{}: {done} of {}", state.phase, state.total);
        }
    }

    fn say(&self, line: &str) {
        let mut state = self.state.lock().expect("no holder panics");
        state.said = Instant::now();
        state.bar.suspend(|| eprintln!("{line}"));
    }
}

/// The first Ctrl-C asks the work to stop and leave nothing half-written; a second one ends the
/// process at once.
pub fn stop_on_signals(cancel: &Cancel) {
    let cancel = cancel.clone();
    let set = ctrlc::set_handler(move || {
        if cancel.is_cancelled() {
            std::process::exit(130);
        }
        eprintln!("hone: stopping (press again to stop at once)");
        cancel.cancel();
    });
    if let Err(e) = set {
        log::warn!("signals are not handled: {e}");
    }
}

struct Stderr;

impl log::Log for Stderr {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            eprintln!("hone: {}: {}", record.level().as_str().to_lowercase(), record.args());
        }
    }

    fn flush(&self) {}
}

/// Warnings by default, information with -v, everything with -vv.
pub fn start_logging(verbose: u8) {
    let level = match verbose {
        0 => log::LevelFilter::Warn,
        1 => log::LevelFilter::Info,
        _ => log::LevelFilter::Trace,
    };
    if log::set_logger(&Stderr).is_ok() {
        log::set_max_level(level);
    }
}
