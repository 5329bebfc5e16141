//! The agent: one process beside each server.
//!
//! ```text
//!   extension, command line ──socket──► handler ──► fragments on demand, backup, plan, recover (jobs)
//!   files in the store                 ──► store  ──► repository: fragments
//!   strata.fragment of each database   ──► watch  ──► repository: fragments, fragment log
//!   repository ──► mirror ──► strata.backup, strata.log_backup
//!   clock ──► schedule ──► backup, expire, verify, drill
//!   pg_wal/archive_status ──► backlog ──► alarm
//!   replication ──► stream ──► repository: WAL
//! ```
//!
//! Promises. It may be killed at any time and started again: what it knows is in the repository and in the catalogs. It
//! goes on when the server is down, and connects again with growing pauses.
//!
//! **Beside a standby** it brings fragments from the repository into the store, in the background and on demand, and writes nothing:
//! neither to the repository, which is the primary's agent's, nor to the server. When the standby is promoted it is the primary's agent
//! from then on, with the same configuration.
//!
//! It keeps connections only to the database of
//! its conninfo, so that others can be dropped and copied. Ended by a signal, it looks once more before it goes. Work that it started for a client goes on when the client
//! leaves; work that it was killed in is marked failed when it starts again.

mod backlog;
mod handler;
mod mirror;
mod schedule;
mod store;
pub mod stream;
mod watch;

use crate::backup::{blocking, record};
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::{Conninfo, ServerInfo, program, server};
use crate::recovery::hold::AgentHold;
use crate::repository::Repository;
use crate::socket::Listener;
use crate::wal::backlog::Backlog;
use handler::AgentHandler;
use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use strata_catalog::names;
use stream::StreamStatus;
use tokio::signal::unix::{SignalKind, signal};

/// How long an agent that is done stays for requests that it is answering.
const LAST_ANSWERS: Duration = Duration::from_secs(600);
/// How long the last look may take.
const LAST_LOOK: Duration = Duration::from_secs(10);

/// How the agent behaves.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// End when all fragments are in the store, or when the server is gone.
    pub until_complete: bool,
}

/// What all parts of the agent share.
pub(crate) struct Shared {
    pub config: Config,
    pub conninfo: Conninfo,
    pub store: PathBuf,
    /// The server is a standby, as far as is known.
    standby: AtomicBool,
    /// How much WAL waits for the repository, once that was looked at.
    backlog: Mutex<Option<Backlog>>,
    /// How streaming goes; none when it is not done.
    stream: Mutex<Option<StreamStatus>>,
}

impl Shared {
    /// Whether the server was a standby when it was last asked.
    pub fn is_standby(&self) -> bool {
        self.standby.load(Ordering::Relaxed)
    }

    /// Notes what the server is. Returns what it was before.
    pub fn note_standby(&self, standby: bool) -> bool {
        self.standby.swap(standby, Ordering::Relaxed)
    }

    /// Notes how much WAL waits.
    pub fn note_backlog(&self, backlog: Backlog) {
        *self.backlog.lock().unwrap_or_else(PoisonError::into_inner) = Some(backlog);
    }

    /// How much WAL waited when it was last looked at.
    pub fn backlog(&self) -> Option<Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes what is known of streaming.
    pub fn note_stream(&self, change: impl FnOnce(&mut StreamStatus)) {
        change(self.stream.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(StreamStatus::none));
    }

    /// How streaming goes.
    pub fn stream(&self) -> Option<StreamStatus> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The repository, created when it may be.
    pub async fn repository(&self) -> Result<Repository> {
        let config = self.config.clone();
        blocking(move || match config.repository.read_only {
            true => Repository::open(&config),
            false => Repository::open_or_create(&config),
        })
        .await
    }
}

/// Pauses that grow from one failure to the next.
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(250);
    const LAST: Duration = Duration::from_secs(30);

    pub fn new() -> Self {
        Self { next: Self::FIRST }
    }

    pub fn reset(&mut self) {
        self.next = Self::FIRST;
    }

    pub async fn pause(&mut self) {
        tokio::time::sleep(self.next).await;
        self.next = (self.next * 2).min(Self::LAST);
    }
}

/// Runs the agent until a signal ends it.
pub async fn run(config: &Config, options: Options) -> Result<()> {
    let listen =
        |kind| signal(kind).map_err(|error| Error::new(ErrorKind::Io, format!("could not wait for signals: {error}")));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let end = async {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    serve(config, options, end).await
}

/// One more look at store and catalogs, so that what was made just before the end is kept.
async fn last_look(shared: &Shared) {
    let look = async {
        let watch = Arc::new(std::sync::Mutex::new(store::StoreWatch::default()));
        store::round(shared, &watch).await?;
        watch::once(shared).await
    };
    match tokio::time::timeout(LAST_LOOK, look).await {
        Ok(Ok(())) => {}
        // Without a server there is nothing new to see.
        Ok(Err(error)) if error.kind == ErrorKind::Connection => {}
        Ok(Err(error)) => tracing::warn!("the last look at the fragments failed: {}", error.full_text()),
        Err(_) => tracing::warn!("the last look at the fragments took too long; the next agent goes on with it"),
    }
}

async fn serve(config: &Config, options: Options, end: impl Future<Output = &'static str>) -> Result<()> {
    let conninfo = Conninfo::parse(&config.member.conninfo)?;
    tokio::pin!(end);
    let (store, socket) = tokio::select! {
        found = places(config, &conninfo, options) => found?,
        _ = &mut end => return Ok(()),
    };
    // A recovery that hands over to this agent has a share until the agent answers.
    let hold = match options.until_complete || config.repository.read_only {
        false => AgentHold::none(),
        true => tokio::select! {
            hold = AgentHold::take(config) => hold,
            _ = &mut end => return Ok(()),
        },
    };
    let listener = Listener::bind(&socket)?;
    tracing::info!(socket = %socket.display(), store = %store.display(), "the agent listens");
    let shared = Arc::new(Shared {
        config: config.clone(),
        conninfo,
        store,
        standby: AtomicBool::new(false),
        backlog: Mutex::default(),
        stream: Mutex::default(),
    });
    if let Ok(session) = shared.conninfo.connect().await {
        shared.note_standby(server::in_recovery(&session).await.unwrap_or(false));
    }
    if !options.until_complete {
        // Before anything is asked of this agent, and after the socket's lock said that there is no other.
        clear_stale(&shared).await;
    }
    let handler = Arc::new(AgentHandler::new(shared.clone()));
    let background = async {
        if options.until_complete {
            return watch::until_complete(&shared, hold).await;
        }
        let changed = tokio::sync::Notify::new();
        let store = async {
            if !shared.config.repository.read_only {
                store::run(&shared, &changed).await;
            }
        };
        let backlog = async {
            if !shared.config.repository.read_only {
                backlog::run(&shared).await;
            }
        };
        let stream = async {
            if shared.config.wal.stream && !shared.config.repository.read_only {
                stream::run(&shared).await;
            }
        };
        tokio::join!(
            store,
            watch::run(&shared, &changed, hold),
            mirror::run(&shared),
            schedule::run(&shared),
            backlog,
            stream
        );
        Ok(())
    };
    let signal = tokio::select! {
        () = listener.serve(handler.clone()) => return Ok(()),
        result = background => {
            // A query may wait for an answer still, though the fragment is in the store by now.
            tokio::select! {
                () = listener.serve(handler) => {}
                () = listener.idle(LAST_ANSWERS) => {}
            }
            return result;
        }
        signal = end => signal,
    };
    tracing::info!("ended by {signal}");
    drop(listener);
    if !options.until_complete && !shared.config.repository.read_only && !shared.is_standby() {
        last_look(&shared).await;
    }
    // A backup that still runs is over with this process, and so is its tool.
    crate::tool::run::interrupt();
    Ok(())
}

/// The store and the socket: what the configuration says, else what the server says.
async fn places(config: &Config, conninfo: &Conninfo, options: Options) -> Result<(PathBuf, PathBuf)> {
    if let (Some(store), true) = (&config.member.store, options.until_complete || config.agent.socket.is_some()) {
        let socket = config.agent.socket.clone().unwrap_or_else(|| names::default_socket(store));
        return Ok((store.clone(), socket));
    }
    let mut backoff = Backoff::new();
    loop {
        let asked = async {
            let session = conninfo.connect().await?;
            ServerInfo::ask(&session).await
        };
        match asked.await {
            Ok(info) => {
                program::require_owner(&info.data_directory)?;
                let store = info.store_or(config.member.store.as_ref());
                let socket =
                    config.agent.socket.clone().or(info.agent_socket).unwrap_or_else(|| names::default_socket(&store));
                return Ok((store, socket));
            }
            Err(error) if error.kind == ErrorKind::Connection => {
                tracing::warn!("waiting for the server: {error}");
                backoff.pause().await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Marks what a dead agent, or a dead command, left as running.
async fn clear_stale(shared: &Shared) {
    let clear = async {
        let session = shared.conninfo.connect().await?;
        if server::in_recovery(&session).await? || !record::has_jobs(&session).await {
            return Ok(());
        }
        // A backup that runs from the command line holds the lock; then its rows are alive. In a server that was just
        // recovered every row that says "running" is from before.
        let lock = match shared.config.repository.read_only {
            true => None,
            false => match shared.repository().await?.lock_backup() {
                Ok(lock) => Some(lock),
                Err(error) if error.kind == ErrorKind::Locked => return Ok(()),
                Err(error) => return Err(error),
            },
        };
        record::fail_interrupted(&session, &shared.config.system, &shared.config.member.name).await?;
        session
            .execute(
                "UPDATE strata.job SET state = 'failed', error = 'the process that ran it ended', finished_at = clock_timestamp() \
                 WHERE state = 'running' AND kind IN ('backup', 'recovery_plan', 'recover', 'verify', 'expire', 'drill')",
                &[],
            )
            .await?;
        drop(lock);
        Ok::<_, Error>(())
    };
    if let Err(error) = clear.await {
        tracing::warn!("jobs of an earlier agent are not marked: {error}");
    }
}
