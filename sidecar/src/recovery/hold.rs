//! What keeps an expire, or `strata tool forget`, from removing what a recovery needs.
//!
//! ```text
//!   strata recover:  share ─► plan ─► lay out ─► start ─► replay ─► open ─► end
//!   its agent:                          share ─► start ─► fetch ... all that there is is fetched: give up
//! ```
//!
//! It is a share of the member's lock of recoveries (`flock`), so it ends with its holder, however that dies. The agent in the background takes its own
//! before it answers, while the recovery still has one: between the two there is no moment without. An agent gives its share up when it has fetched
//! what the repository has; when the server is away for [`AWAY`]; and with its end. So a recovered server that was stopped and left there keeps
//! nothing.
//!
//! A recovery that is not started (`--no-start`), and one that shuts down at its target, hold nothing once `strata recover` has ended. Nor does one that
//! reads a repository which it may not lock.

use crate::config::Config;
use crate::error::{ErrorKind, Result};
use crate::repository::Repository;
use crate::repository::lock::Lock;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The pause before the lock is tried again.
const POLL: Duration = Duration::from_millis(100);
/// How long the server of an agent that holds a share may be away.
pub const AWAY: Duration = Duration::from_secs(120);

/// A share, for as long as it lives.
#[derive(Debug)]
pub struct Hold {
    _lock: Option<Lock>,
}

/// Takes a share. Waits for whoever removes something just now.
pub async fn take(repository: &Repository) -> Result<Hold> {
    let mut said = false;
    loop {
        match repository.share_recoveries() {
            Ok(lock) => {
                if lock.is_none() {
                    tracing::warn!(
                        "the repository \"{}\" cannot be locked from here: do not expire what this recovery needs meanwhile",
                        repository.root().display()
                    );
                }
                return Ok(Hold { _lock: lock });
            }
            Err(error) if error.kind == ErrorKind::Locked => {
                if !said {
                    tracing::info!("an expire runs; waiting until it is done");
                    said = true;
                }
                tokio::time::sleep(POLL).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// The share of a recovered server's agent, which ends by itself.
#[derive(Debug)]
pub struct AgentHold {
    hold: Option<Hold>,
    data: Option<PathBuf>,
    seen: Instant,
}

impl AgentHold {
    /// None at all.
    pub fn none() -> Self {
        Self { hold: None, data: None, seen: Instant::now() }
    }

    /// Takes a share for the agent of this configuration. Without a repository there is nothing to hold.
    pub async fn take(config: &Config) -> Self {
        let taken = match Repository::open(config) {
            Ok(repository) => take(&repository).await,
            Err(error) => Err(error),
        };
        if let Err(error) = &taken {
            tracing::warn!("nothing keeps what this server still has to fetch from being expired: {error}");
        }
        Self { hold: taken.ok(), data: config.member.data_directory.clone(), seen: Instant::now() }
    }

    /// All that there is was fetched.
    pub fn done(&mut self) {
        self.hold = None;
    }

    /// The server was not reached, or is asked for the first time: gives the share up when it is away for too long.
    pub fn look(&mut self, alive: impl Fn(&Path) -> bool) {
        if self.data.as_deref().is_some_and(alive) {
            self.seen = Instant::now();
        } else if self.hold.is_some() && self.seen.elapsed() > AWAY {
            tracing::info!("the server is away; what it still has to fetch may be expired");
            self.hold = None;
        }
    }
}
