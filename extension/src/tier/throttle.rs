//! A limit on what moves and consolidations read and write each second (`strata.move_rate`).
//!
//! It holds for the part of the work that is done beside readers and writers. Nothing waits here while a page is locked or while
//! the table is locked exclusively: slowing down the swap would make others wait, which is what the limit is there to avoid.

use crate::guc;
use pgrx::pg_sys;
use std::time::{Duration, Instant};

/// The clock is looked at after so many bytes.
const STEP: u64 = 64 << 10;
/// Time that was not used (the work was slower than the limit, or waited for a lock) is made up for to this extent.
const CREDIT: Duration = Duration::from_millis(200);

/// The bytes of one move or consolidation so far.
#[derive(Debug)]
pub struct Throttle {
    /// Bytes since the clock was last looked at.
    pending: u64,
    /// When the bytes that are accounted for should have been done.
    due: Instant,
}

impl Throttle {
    /// Begins now.
    pub fn begin() -> Self {
        Self { pending: 0, due: Instant::now() }
    }

    /// Counts bytes that were read or written, and waits if that was faster than allowed. No page is locked.
    #[inline]
    pub fn spent(&mut self, bytes: u64) {
        self.pending += bytes;
        if self.pending >= STEP {
            self.settle();
        }
    }

    fn settle(&mut self) {
        let bytes = std::mem::take(&mut self.pending);
        let now = Instant::now();
        let Some(time) = time_of(bytes, guc::MOVE_RATE.get()) else {
            self.due = now;
            return;
        };
        self.due = self.due.max(now.checked_sub(CREDIT).unwrap_or(now)) + time;
        while let Some(left) = self.due.checked_duration_since(Instant::now()) {
            nap(left);
        }
    }
}

/// The time that `bytes` take at `rate` kB a second; None: there is no limit.
fn time_of(bytes: u64, rate: i32) -> Option<Duration> {
    let rate = u64::try_from(rate).ok().filter(|r| *r > 0)? * 1024;
    Some(Duration::from_micros(bytes.saturating_mul(1_000_000) / rate))
}

/// Sleeps; a cancel or a shutdown ends it.
fn nap(time: Duration) {
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    let milliseconds = i64::try_from(time.as_millis().max(1)).unwrap_or(i64::MAX);
    // SAFETY: the process's own latch.
    unsafe {
        pg_sys::WaitLatch(pg_sys::MyLatch, events as i32, milliseconds, pg_sys::PG_WAIT_EXTENSION);
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    pgrx::check_for_interrupts!();
}
