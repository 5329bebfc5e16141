//! What a recovered server does when it has reached its target, and how that is seen.
//!
//! `promote` opens it: the module [`super::start`] waits for that. `pause` lets it be looked at first: it takes connections while it recovers, for reading
//! only, stops at the target and waits for `pg_wal_replay_resume()`, which promotes it. Until it has paused, it shows states from before the
//! target, so this program says where it is only then. `shutdown` stops it at the target; its `pg_control` says that it was shut down in recovery.

use super::configure::NewPlace;
use super::start::{POLL, PidFile, Watched, failed};
use crate::error::{AtPath, Result};
use crate::postgres::Conninfo;
use crate::progress::Progress;
use serde::Serialize;
use std::time::Duration;

/// `DB_SHUTDOWNED_IN_RECOVERY` of `pg_control`.
const SHUT_DOWN_IN_RECOVERY: u32 = 2;
/// Where `pg_control` has the state.
const STATE: std::ops::Range<usize> = 16..20;

/// What a server does at its target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Opens for writing.
    #[default]
    Promote,
    /// Waits, open for reading.
    Pause,
    /// Stops.
    Shutdown,
}

impl Action {
    /// As `recovery_target_action` names it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Promote => "promote",
            Self::Pause => "pause",
            Self::Shutdown => "shutdown",
        }
    }
}

/// Waits until the server has paused at its target.
pub async fn wait_for_pause(place: &NewPlace, conninfo: &Conninfo, progress: &Progress) -> Result<()> {
    progress.phase("replay", 0, "PostgreSQL replays the WAL");
    let mut server = Watched::new(place);
    loop {
        server.look().await?;
        // It refuses connections until it is consistent.
        if let Ok(session) = conninfo.connect().await
            && let Ok(row) = session.query_one("SELECT pg_get_wal_replay_pause_state()", &[]).await
            && row.get::<_, String>(0) == "paused"
        {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Waits until the server has stopped at its target.
pub async fn wait_for_shutdown(place: &NewPlace, progress: &Progress) -> Result<()> {
    progress.phase("replay", 0, "PostgreSQL replays the WAL");
    let pid_file = place.data.join("postmaster.pid");
    // The server makes the file some moments after pg_ctl returned, or is done before anybody looks.
    let mut patience = Duration::from_secs(10);
    loop {
        match PidFile::read(&pid_file) {
            Some(file) if file.alive => patience = Duration::from_secs(1),
            Some(_) => patience = Duration::ZERO,
            None => patience = patience.saturating_sub(POLL),
        }
        let control = place.data.join("global/pg_control");
        let bytes = std::fs::read(&control).at("read", &control)?;
        let state = bytes.get(STATE).and_then(|state| state.try_into().ok()).map(u32::from_ne_bytes);
        if state == Some(SHUT_DOWN_IN_RECOVERY) && !pid_file.exists() {
            return Ok(());
        }
        if patience.is_zero() {
            return Err(failed(place, "the recovered server ended before it reached the target").await);
        }
        tokio::time::sleep(POLL).await;
    }
}
