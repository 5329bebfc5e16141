//! Drills: recoveries that were tried, as the repository remembers them.

use super::Repository;
use crate::error::Result;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How many drills are remembered.
const REMEMBERED: usize = 100;

/// A drill.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DrillEntry {
    /// Its id: the time of its beginning.
    pub id: String,
    /// The target as it was asked for.
    pub target: String,
    /// The backup that it began with.
    pub backup_id: Option<String>,
    /// The timeline that it followed.
    pub timeline: Option<u32>,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Timestamp,
    /// Nothing was wrong.
    pub passed: bool,
    /// Seconds until the scratch server was open; none when it did not open.
    pub seconds_to_open: Option<f64>,
    /// Fragments that were fetched and read.
    pub fragments: u64,
    /// Their bytes.
    pub fragment_bytes: u64,
    /// What `pg_amcheck` said; none when it did not come to that.
    pub amcheck: Option<Amcheck>,
    /// The user's own checks.
    pub checks: Vec<CheckResult>,
    /// What was wrong, one text each.
    pub problems: Vec<String>,
}

/// What `pg_amcheck` said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amcheck {
    /// It ran. False when it is not installed; then the drill says nothing about pages and indexes.
    pub ran: bool,
    /// What it wrote.
    pub output: String,
}

/// One of the user's own checks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckResult {
    /// The query.
    pub query: String,
    /// The first value of its result.
    pub value: Option<String>,
    /// It held.
    pub passed: bool,
}

impl Repository {
    fn drills_dir(&self) -> std::path::PathBuf {
        self.member_dir().join("drills")
    }

    /// Records a drill. The oldest ones are forgotten when there are many.
    pub fn record_drill(&self, entry: &DrillEntry) -> Result<()> {
        self.writable()?;
        let dir = self.drills_dir();
        self.storage().write_new_sealed(&dir.join(format!("{}.json", entry.id)), entry)?;
        let names = self.storage().list(&dir)?;
        for name in names.iter().take(names.len().saturating_sub(REMEMBERED)) {
            self.storage().remove(&dir.join(name))?;
        }
        Ok(())
    }

    /// The newest drill; none when there is none, or when its record cannot be read, which is said.
    pub fn last_drill(&self) -> Result<Option<DrillEntry>> {
        let Some(name) = self.storage().list(&self.drills_dir())?.pop() else { return Ok(None) };
        match self.storage().read_sealed(&self.drills_dir().join(name)) {
            Err(error) if error.kind == crate::error::ErrorKind::Damaged => {
                tracing::warn!("{error}");
                Ok(None)
            }
            other => other,
        }
    }
}
