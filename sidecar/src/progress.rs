//! Progress of long work: the work reports to a [`Progress`], and whoever started it chose where that goes (a bar on a
//! terminal, lines of JSON on standard error, the agent's client, a row of `strata.job`, or nowhere).
//!
//! Reporting is cheap: counters are atomic, and a sink is only called when some time has passed since its last call, or
//! when the phase changes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What is being done, in a word or two.
    pub phase: String,
    /// How much of it is done.
    pub done: u64,
    /// Of how much; 0 when that is not known.
    pub total: u64,
    /// True when `done` and `total` are bytes.
    pub bytes: bool,
    /// A sentence for people.
    pub message: String,
}

/// Where reports go.
pub trait Sink: Send + Sync {
    /// Takes a report. Must not block for long.
    fn report(&self, report: &Report);
    /// The work is over; no report follows.
    fn finish(&self) {}
}

/// A progress can pass its reports on to another one.
impl Sink for Progress {
    fn report(&self, report: &Report) {
        for sink in &self.0.sinks {
            sink.report(report);
        }
    }

    fn finish(&self) {
        Progress::finish(self);
    }
}

/// A sink that drops everything.
pub struct Silent;

impl Sink for Silent {
    fn report(&self, _report: &Report) {}
}

#[derive(Default)]
struct Phase {
    name: String,
    message: String,
    bytes: bool,
}

struct Shared {
    sinks: Vec<Box<dyn Sink>>,
    interval: Duration,
    phase: Mutex<Phase>,
    last: Mutex<Instant>,
    done: AtomicU64,
    total: AtomicU64,
}

/// The handle that work reports to. Clones report to the same place.
#[derive(Clone)]
pub struct Progress(Arc<Shared>);

impl Progress {
    /// Reports to `sinks`, at most every `interval` except when the phase changes.
    pub fn new(sinks: Vec<Box<dyn Sink>>, interval: Duration) -> Self {
        Self(Arc::new(Shared {
            sinks,
            interval,
            phase: Mutex::new(Phase::default()),
            last: Mutex::new(Instant::now()),
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
        }))
    }

    /// Reports nowhere.
    pub fn silent() -> Self {
        Self::new(Vec::new(), Duration::MAX)
    }

    /// Begins a phase that counts `total` things; 0 when nobody knows how many.
    pub fn phase(&self, name: &str, total: u64, message: impl Into<String>) {
        self.start(name, total, message.into(), false);
    }

    /// Begins a phase that counts bytes.
    pub fn phase_bytes(&self, name: &str, total: u64, message: impl Into<String>) {
        self.start(name, total, message.into(), true);
    }

    fn start(&self, name: &str, total: u64, message: String, bytes: bool) {
        *self.0.phase.lock().unwrap_or_else(PoisonError::into_inner) = Phase { name: name.to_owned(), message, bytes };
        self.0.done.store(0, Ordering::Relaxed);
        self.0.total.store(total, Ordering::Relaxed);
        self.emit();
    }

    /// Some more is done.
    pub fn advance(&self, by: u64) {
        self.0.done.fetch_add(by, Ordering::Relaxed);
        let due = match self.0.last.try_lock() {
            Ok(mut last) if last.elapsed() >= self.0.interval => {
                *last = Instant::now();
                true
            }
            _ => false,
        };
        if due {
            self.emit();
        }
    }

    fn emit(&self) {
        if self.0.sinks.is_empty() {
            return;
        }
        let report = {
            let phase = self.0.phase.lock().unwrap_or_else(PoisonError::into_inner);
            Report {
                phase: phase.name.clone(),
                message: phase.message.clone(),
                bytes: phase.bytes,
                done: self.0.done.load(Ordering::Relaxed),
                total: self.0.total.load(Ordering::Relaxed),
            }
        };
        for sink in &self.0.sinks {
            sink.report(&report);
        }
    }

    /// The work is over.
    pub fn finish(&self) {
        for sink in &self.0.sinks {
            sink.finish();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Keep(Arc<Mutex<Vec<Report>>>);

    impl Sink for Keep {
        fn report(&self, report: &Report) {
            self.0.lock().unwrap().push(report.clone());
        }
    }

    #[test]
    fn a_phase_is_reported_at_once_and_counts_from_zero() {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let progress = Progress::new(vec![Box::new(Keep(kept.clone()))], Duration::ZERO);
        progress.phase("one", 2, "first");
        progress.advance(2);
        progress.phase_bytes("two", 10, "second");
        let kept = kept.lock().unwrap();
        let seen: Vec<_> = kept.iter().map(|r| (r.phase.as_str(), r.done, r.total, r.bytes)).collect();
        assert_eq!(seen, [("one", 0, 2, false), ("one", 2, 2, false), ("two", 0, 10, true)]);
    }
}
