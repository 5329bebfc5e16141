//! CPU time of server processes, from /proc/PID/schedstat (nanoseconds on a CPU), and wall time.
//!
//! A process that answers sleeps soon after; its time is up to date once it sleeps. So short statements are measured in batches.

use anyhow::{Context, Result};
use postgres::Client;
use std::fs;
use std::time::{Duration, Instant};

/// CPU and wall time of something.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    pub cpu: Duration,
    pub wall: Duration,
}

impl Cost {
    /// Milliseconds of CPU.
    pub fn ms(&self) -> f64 {
        self.cpu.as_secs_f64() * 1000.0
    }

    /// Per one of `n`.
    pub fn each(&self, n: usize) -> Self {
        let n = u32::try_from(n.max(1)).unwrap_or(u32::MAX);
        Self { cpu: self.cpu / n, wall: self.wall / n }
    }
}

/// The processes that work for one connection.
pub struct Meter {
    pids: Vec<i32>,
}

impl Meter {
    /// The connection's backend and Strata's workers, whose work is on its account.
    pub fn of(c: &mut Client) -> Result<Self> {
        let sql = "SELECT pid FROM pg_stat_activity WHERE pid = pg_backend_pid() OR backend_type LIKE 'strata%'";
        Ok(Self { pids: c.query(sql, &[])?.iter().map(|r| r.get(0)).collect() })
    }

    fn used(&self) -> Result<Duration> {
        let mut sum = 0;
        for pid in &self.pids {
            let path = format!("/proc/{pid}/schedstat");
            // A worker may have ended.
            let Ok(text) = fs::read_to_string(&path) else { continue };
            let used = text.split(' ').next().and_then(|n| n.trim().parse::<u64>().ok());
            sum += used.with_context(|| format!("no CPU time in {path}: {text:?}"))?;
        }
        Ok(Duration::from_nanos(sum))
    }

    /// What `work` costs.
    pub fn measure<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(T, Cost)> {
        let (before, start) = (self.used()?, Instant::now());
        let result = work()?;
        let wall = start.elapsed();
        // The last of it is counted when the backend sleeps.
        std::thread::sleep(Duration::from_millis(1));
        Ok((result, Cost { cpu: self.used()?.saturating_sub(before), wall }))
    }

    /// What a statement costs each time: the better of two means, each over enough runs to be measured.
    pub fn repeat(&self, at_least: Duration, mut work: impl FnMut() -> Result<()>) -> Result<Cost> {
        let mut best: Option<Cost> = None;
        for _ in 0..2 {
            let (mut sum, mut runs) = (Cost::default(), 0);
            while runs == 0 || (sum.cpu < at_least && runs < 40) {
                let ((), cost) = self.measure(&mut work)?;
                sum.cpu += cost.cpu;
                sum.wall += cost.wall;
                runs += 1;
            }
            let mean = sum.each(runs);
            if best.is_none_or(|b| mean.cpu < b.cpu) {
                best = Some(mean);
            }
        }
        Ok(best.unwrap_or_default())
    }
}
