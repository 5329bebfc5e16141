//! The pusher: a process that archives everything that waits, several segments at once.
//!
//! ```text
//!   archive_status/*.ready ──► worker: read, check, compress ─┐ in the order of the log
//!                          ──► worker: read, check, compress ─┴─► archive ─► note in the outbox
//! ```
//!
//! [`super::command`] starts it when more than one segment waits, and hands it the outbox's lock as its standard input. It ends when
//! nothing has waited for a moment, and at the first error, which it notes under the file's name.
//!
//! Segments are compressed side by side and get into the archive one after the other, each only when the one before it in
//! the queue is there, durably. So wherever it dies, the archive has no hole that this made, and the note `follows` of each segment is
//! true. It may die anywhere: what it did is in the archive, what it was about to do still waits in `pg_wal`, and the
//! lock is free.

use super::backlog;
use super::name::Segment;
use super::outbox::Outbox;
use super::push::Prepared;
use crate::config::Config;
use crate::error::Result;
use crate::failpoint;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long it stays when nothing waits.
const LINGER: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(10);

/// Works until nothing waits any more. The caller holds the outbox's lock.
pub fn run(config: &Config, data: &Path, outbox: &Outbox) -> Result<()> {
    let mut idle = Instant::now();
    loop {
        let ready = backlog::ready(data)?;
        outbox.sweep(&ready);
        let queue: Vec<Segment> =
            ready.iter().filter(|name| !outbox.is_noted(name)).filter_map(|name| Segment::parse(name)).collect();
        if queue.is_empty() {
            if idle.elapsed() >= LINGER {
                return Ok(());
            }
            std::thread::sleep(POLL);
            continue;
        }
        if !Round::new(config, data, outbox, queue).run() {
            return Ok(());
        }
        idle = Instant::now();
    }
}

/// One pass over what waits.
struct Round<'a> {
    config: &'a Config,
    data: &'a Path,
    outbox: &'a Outbox,
    state: Mutex<State>,
    moved: Condvar,
}

struct State {
    queue: VecDeque<(usize, Segment)>,
    /// The last one that a worker took.
    taken: Option<Segment>,
    /// Whose turn it is to be published.
    turn: usize,
    failed: bool,
}

impl<'a> Round<'a> {
    fn new(config: &'a Config, data: &'a Path, outbox: &'a Outbox, queue: Vec<Segment>) -> Self {
        let queue = queue.into_iter().enumerate().collect();
        let state = Mutex::new(State { queue, taken: None, turn: 0, failed: false });
        Self { config, data, outbox, state, moved: Condvar::new() }
    }

    /// False when something failed.
    fn run(&self) -> bool {
        std::thread::scope(|scope| {
            for _ in 0..self.config.wal.push_jobs {
                scope.spawn(|| while self.next() {});
            }
        });
        !self.state.lock().unwrap_or_else(PoisonError::into_inner).failed
    }

    /// Archives the next one. False when there is none, or something failed.
    fn next(&self) -> bool {
        let (at, segment, before) = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.failed {
                return false;
            }
            let Some((at, segment)) = state.queue.pop_front() else { return false };
            (at, segment, state.taken.replace(segment))
        };
        let name = segment.to_string();
        let path = self.data.join("pg_wal").join(&name);
        let prepared = Prepared::read(self.config, &path, before);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.turn != at && !state.failed {
            state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.failed {
            return false;
        }
        drop(state);
        // It is this one's turn, and nobody else's until the turn is passed on below.
        let outcome = prepared.and_then(|prepared| {
            let (source, blake3) = (prepared.source().cloned(), prepared.blake3().to_owned());
            let pushed = prepared.publish()?;
            source.map_or(Ok(()), |source| self.outbox.note_done(&source, &blake3, &pushed))
        });
        failpoint::hit(failpoint::PUSH_NOTED);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.turn += 1;
        if let Err(error) = outcome {
            state.failed = true;
            // Without the note, the archive_command finds the error itself.
            let _ = self.outbox.note_error(&name, &error);
        }
        let good = !state.failed;
        self.moved.notify_all();
        good
    }
}
