//! A scan that is looked at: whether it is sequential and waits, and what is done then. See the header of [`super`] for the states.

use super::ahead::{self, Ahead};
use super::{Counters, SEQUENTIAL};
use crate::guc;
use crate::pg::btree::Scan;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::ptr::null_mut;
use std::time::Instant;

/// Reads that are measured; so few if the scan is sequential already (an index-only scan reads one page a leaf).
const SAMPLES: usize = 16;
const FEW_SAMPLES: usize = 4;
/// Reads after which measuring begins, at first and at most.
const FIRST_READS: i64 = 4;
const MOST_READS: i64 = 1 << 16;
/// Blocks asked for until it is measured again, at first and at most.
const FIRST_SPAN: u64 = 4096;
const MOST_SPAN: u64 = 1 << 17;
/// Of so many blocks a sixteenth must not have been in shared buffers.
const HITS_SPAN: u64 = 1024;
/// Blocks to be outstanding at first.
const FIRST_DISTANCE: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Measuring,
    Ahead,
    Draining,
    Off,
}

/// A scan of a btree that is looked at.
pub struct Watched {
    /// The subtransaction that began it.
    pub begun_in: pg_sys::SubTransactionId,
    phase: Phase,
    forward: bool,
    page: pg_sys::BlockNumber,
    next: pg_sys::BlockNumber,
    /// Steps from leaf to neighbour in a row.
    steps: u32,
    /// Blocks that the backend had read at the last entry.
    reads: i64,
    /// Reads to be seen until measuring begins, and how many next time.
    idle: i64,
    backoff: i64,
    since: Option<Instant>,
    samples: usize,
    slow: usize,
    /// The index of the entry at which to act.
    wake: i32,
    distance: usize,
    span: u64,
    span_end: u64,
    hits_end: u64,
    hits_blocks: u64,
    /// What was done for it.
    pub counters: Counters,
    ahead: Option<Box<Ahead>>,
    context: pg_sys::MemoryContext,
}
impl Watched {
    /// One that has just begun.
    pub fn new() -> Self {
        Self {
            // SAFETY: a scan is begun in a transaction.
            begun_in: unsafe { pg_sys::GetCurrentSubTransactionId() },
            phase: Phase::Idle,
            forward: true,
            page: pg_sys::InvalidBlockNumber,
            next: pg_sys::InvalidBlockNumber,
            steps: 0,
            reads: blocks_read(),
            idle: FIRST_READS,
            backoff: FIRST_READS,
            since: None,
            samples: 0,
            slow: 0,
            wake: 0,
            distance: FIRST_DISTANCE,
            span: FIRST_SPAN,
            span_end: 0,
            hits_end: 0,
            hits_blocks: 0,
            counters: Counters::default(),
            ahead: None,
            context: null_mut(),
        }
    }

    /// The scan is somewhere else.
    #[inline]
    pub fn jump(&mut self) {
        self.page = pg_sys::InvalidBlockNumber;
        self.steps = 0;
        self.samples = 0;
        self.slow = 0;
        self.distance = FIRST_DISTANCE;
        if matches!(self.phase, Phase::Ahead | Phase::Draining) {
            self.phase = Phase::Measuring;
            self.since = None;
        }
        self.ahead = None;
    }

    /// What happened since the entry before.
    #[inline]
    pub fn before(&mut self) {
        if self.phase == Phase::Off {
            return;
        }
        let reads = blocks_read();
        let new = reads - self.reads;
        self.reads = reads;
        match self.phase {
            Phase::Idle => {
                self.idle -= new;
                if self.idle <= 0 {
                    self.measure();
                }
            }
            Phase::Measuring => {
                if guc::INDEX_PREFETCH_LATENCY.get() == 0 {
                    // Whatever the reads take: see `after`.
                    return;
                }
                let now = Instant::now();
                if let Some(since) = self.since.replace(now)
                    && new > 0
                {
                    let each = now.duration_since(since).as_nanos() / new as u128;
                    self.samples += 1;
                    self.slow += usize::from(each >= u128::from(guc::INDEX_PREFETCH_LATENCY.get() as u32) * 1000);
                    if self.samples >= SAMPLES || (self.samples >= FEW_SAMPLES && self.steps >= SEQUENTIAL) {
                        self.decide(self.slow * 3 >= self.samples);
                    }
                }
            }
            Phase::Ahead | Phase::Draining | Phase::Off => {}
        }
    }

    fn measure(&mut self) {
        self.phase = Phase::Measuring;
        self.ahead = None;
        self.since = None;
        self.samples = 0;
        self.slow = 0;
    }

    fn decide(&mut self, slow: bool) {
        if slow {
            self.phase = Phase::Ahead;
            self.wake = if self.forward { i32::MIN } else { i32::MAX };
            self.span_end = self.counters.looked_at + self.span;
            self.span = (self.span * 2).min(MOST_SPAN);
            self.hits_end = self.counters.looked_at + HITS_SPAN;
            self.hits_blocks = self.counters.blocks;
            self.backoff = FIRST_READS;
        } else {
            self.rest();
        }
    }

    fn rest(&mut self) {
        self.phase = Phase::Idle;
        self.backoff = (self.backoff * 4).min(MOST_READS);
        self.idle = self.backoff;
        self.ahead = None;
    }

    /// The scan is at an entry.
    ///
    /// # Safety
    /// `desc` is the scan, which has just returned an entry.
    #[inline]
    pub unsafe fn after(&mut self, desc: pg_sys::IndexScanDesc, forward: bool) {
        // SAFETY: an open scan of a btree that has just returned an entry.
        let position = unsafe { &Scan::of(desc).position };
        let arrived = position.page != self.page || forward != self.forward;
        if arrived {
            // SAFETY: as above.
            let parallel = unsafe { !(*desc).parallel_scan.is_null() };
            // Leftwards, the new leaf names the old one as its neighbour.
            let neighbour = if forward { position.page == self.next } else { position.next == self.page };
            let step = forward == self.forward && self.page != pg_sys::InvalidBlockNumber && (parallel || neighbour);
            if step {
                self.steps = self.steps.saturating_add(1);
            } else {
                self.jump();
            }
            self.forward = forward;
            self.page = position.page;
            self.next = position.next;
            if guc::INDEX_PREFETCH_LATENCY.get() == 0
                && self.steps >= SEQUENTIAL
                && matches!(self.phase, Phase::Idle | Phase::Measuring)
            {
                self.decide(true);
            }
        }
        if matches!(self.phase, Phase::Ahead | Phase::Draining) {
            let index = position.index;
            let due = if forward { index >= self.wake } else { index <= self.wake };
            if arrived || due || self.ahead.is_none() {
                // SAFETY: as above.
                unsafe { act(self, desc, arrived) };
            }
        }
    }
}

/// Keeps ahead of the scan.
#[pg_guard]
unsafe extern "C-unwind" fn act(w: *mut Watched, desc: pg_sys::IndexScanDesc, arrived: bool) {
    // SAFETY: the state of the scan, which has just returned an entry.
    unsafe {
        let w = &mut *w;
        let scan = Scan::of(desc);
        let most = guc::INDEX_PREFETCH_DISTANCE.get() as usize;
        if most == 0 || (*desc).heapRelation.is_null() || !scan.is_at(&(*desc).xs_heaptid) {
            w.phase = Phase::Off;
            w.ahead = None;
            return;
        }
        let fresh = w.ahead.is_none();
        if w.context.is_null() {
            // Below the context of the scan's descriptor, which it ends with.
            let parent = pg_sys::GetMemoryChunkContext(desc.cast());
            w.context =
                pg_sys::AllocSetContextCreateInternal(parent, c"strata prefetch".as_ptr(), 0, 8192, 8 * 1024 * 1024);
        }
        let (forward, context) = (w.forward, w.context);
        let ahead = w.ahead.get_or_insert_with(|| Box::new(Ahead::new(forward, context)));
        if fresh || arrived {
            ahead.arrive(desc, w.steps > 0);
        }
        let passed = ahead.pass(scan.position.index);
        if w.phase == Phase::Draining {
            if ahead.outstanding() == 0 {
                w.measure();
                return;
            }
        } else {
            w.distance = (w.distance + 2 * passed).min(most).max(1);
            let only = (*desc).xs_want_itup;
            let leaves = (most / if only { 2 } else { 8 }).clamp(2, 64).min(2 * w.steps as usize);
            let beyond = ahead::goes_beyond(w.steps, desc);
            ahead.ask(desc, w.distance, leaves, beyond, &mut w.counters);
            let counters = w.counters;
            let forced = guc::INDEX_PREFETCH_LATENCY.get() == 0;
            if !forced && counters.looked_at >= w.hits_end {
                if (counters.blocks - w.hits_blocks) * 16 < HITS_SPAN {
                    w.rest();
                    return;
                }
                w.hits_end = counters.looked_at + HITS_SPAN;
                w.hits_blocks = counters.blocks;
            }
            if !forced && counters.looked_at >= w.span_end {
                w.phase = Phase::Draining;
            }
        }
        if let Some(ahead) = &w.ahead {
            w.wake = ahead.wake();
        }
    }
}

/// Blocks that this backend has read into shared buffers.
#[inline]
fn blocks_read() -> i64 {
    // SAFETY: a counter of this process.
    unsafe { pg_sys::pgBufferUsage.shared_blks_read }
}
