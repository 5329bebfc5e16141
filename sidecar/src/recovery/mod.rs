//! Recovery into a new directory.
//!
//! ```text
//!   plan ─► refuse what cannot be reached ─► lay the hot data out ─► configure ─► start ─► replay ─► open
//!                                                                                            │
//!                        fragments: on demand over the new store's socket, and all in the background
//! ```
//!
//! Without `full`, an agent of the new server is started in the background for the fragments, and this process is done
//! when the server is open ([`background`]). With `full`, this process serves and fetches them itself. Nothing that it needs is
//! expired meanwhile ([`hold`]).
//!
//! Promises. Nothing is written before the plan is complete. The directory that is named is absent or empty, or, when that is asked for
//! ([`delta`]), that of the same cluster; no running
//! server is touched. The server opens at the target or not at all, whatever dies meanwhile ([`configure`]). It opens with archiving off. Fragments that a query
//! touches before they were fetched come on demand; `full` waits for all of them. What could not be fetched is named. Once it
//! is open, nothing of the target stays in its configuration.

pub mod background;
pub mod configure;
pub mod delta;
pub mod ending;
pub mod find;
pub mod fragments;
pub mod hold;
pub mod plan;
pub mod restore;
pub mod spool;
pub mod start;
pub mod target;
pub mod timeline;
pub mod view;
pub mod window;

use crate::backup::blocking;
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::postgres::{Conninfo, program};
use crate::progress::Progress;
use crate::repository::Repository;
use crate::repository::manifest::Manifest;
use crate::socket::Listener;
use background::BackgroundAgent;
use configure::NewPlace;
use delta::{DeltaReport, Kept};
use ending::Action;
use fragments::{FetchOnly, Fetched, Wanted};
use plan::{Plan, PlanRequest};
use serde::Serialize;
use spool::Spool;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use strata_catalog::names;

/// What to recover, and where to.
#[derive(Clone, Debug)]
pub struct RecoverRequest {
    /// Where to stop, and what from.
    pub plan: PlanRequest,
    /// The new data directory.
    pub into: PathBuf,
    /// The new store; none for the data directory's path with `.strata` behind it.
    pub store: Option<PathBuf>,
    /// The port; none for the one in the backup.
    pub port: Option<u16>,
    /// Fetch all fragments before anything is said to be open.
    pub full: bool,
    /// Start the server.
    pub start: bool,
    /// Leave an agent behind that goes on when all fragments are there.
    pub keep_serving: bool,
    /// Go on when the log creates a tablespace, whose directory replay makes at the place that was named then.
    pub allow_tablespaces: bool,
    /// New places of tablespaces, by oid or old path.
    pub tablespaces: Vec<(String, PathBuf)>,
    /// Parallel workers; none for the configuration's.
    pub jobs: Option<usize>,
    /// What the server does when it has reached the target.
    pub action: Action,
    /// `into` is an existing data directory of the same cluster; only what differs is written.
    pub delta: bool,
    /// Settings of the server's first start only, as `name=value`.
    pub server_options: Vec<String>,
}

/// A recovered server, or a directory that waits to be started.
#[derive(Clone, Debug, Serialize)]
pub struct Recovered {
    /// The data directory.
    pub into: PathBuf,
    /// The store.
    pub store: PathBuf,
    /// The configuration for its agent.
    pub config: PathBuf,
    /// How to connect; none when it was not started.
    pub conninfo: Option<String>,
    /// Its port.
    pub port: Option<u16>,
    /// Its socket directory.
    pub socket_directory: Option<PathBuf>,
    /// The directory of its programs.
    #[serde(skip)]
    pub bin_directory: PathBuf,
    /// The backup.
    pub backup_id: String,
    /// The target as it was asked for.
    pub target: String,
    /// What PostgreSQL was told to stop at.
    pub stop: plan::StopAt,
    /// The timeline that was followed.
    pub timeline: u32,
    /// Seconds until the hot data was laid out.
    pub seconds_to_restore: f64,
    /// Seconds until the server was open, or had reached the target and waits there or is shut down.
    pub seconds_to_open: Option<f64>,
    /// What the server did at the target.
    pub action: Action,
    /// How much of an existing directory was used; none when there was none.
    pub delta: Option<DeltaReport>,
    /// The server's messages of the recovery.
    pub server_log: PathBuf,
    /// The process that brings the fragments; none when they were all fetched, or nothing was started.
    pub agent_pid: Option<u32>,
    /// How many fragments the target may need.
    pub fragments: u64,
    /// Their bytes.
    pub fragment_bytes: u64,
}

/// Fragments of one store, served by this process as long as this lives.
struct Serving {
    task: tokio::task::JoinHandle<()>,
}

impl Serving {
    fn start(repository: &Repository, store: &Path) -> Result<Self> {
        let listener = Listener::bind(&names::default_socket(store))?;
        let handler = Arc::new(FetchOnly { repository: repository.clone(), store: store.to_owned() });
        Ok(Self { task: tokio::spawn(async move { listener.serve(handler).await }) })
    }

    /// Ends it, and waits until the socket is free.
    async fn stop(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a recovery came to.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// The recovered server.
    #[serde(flatten)]
    pub recovered: Recovered,
    /// What was fetched before this was said; none when fragments still come in the background.
    #[serde(flatten)]
    pub fetched: Option<Fetched>,
}

/// Recovers. Done when the server is open, or, with `full`, when all fragments are there as well.
pub async fn recover(config: &Config, request: &RecoverRequest, progress: &Progress) -> Result<Outcome> {
    let began = Instant::now();
    if program::is_root() {
        return Err(Error::new(ErrorKind::Forbidden, "PostgreSQL cannot be recovered by the superuser")
            .detail("The data directory must belong to the user that runs the server.")
            .with_hint("Run this as that user, for example with \"runuser -u postgres --\"."));
    }
    let into = std::path::absolute(&request.into).map_err(|error| Error::io("use", &request.into, error))?;
    let store = match &request.store {
        Some(store) => std::path::absolute(store).map_err(|error| Error::io("use", store, error))?,
        None => names::default_store(&into),
    };
    let conninfo = Conninfo::parse(&config.member.conninfo)?;
    let repository = Repository::open(config)?;
    let _hold = hold::take(&repository).await?;
    let workers = request.jobs.unwrap_or_else(|| config.backup.workers());
    progress.phase("plan", 0, "planning the recovery");
    let (plan, manifest) = prepare(&repository, request, &into, &store).await?;
    if plan.creates_tablespace && !request.allow_tablespaces {
        return Err(Error::new(ErrorKind::Forbidden, "the WAL between the backup and the target creates a tablespace")
            .detail("Replay empties and makes its directory at the place that was named then, which an old server on this machine may use.")
            .with_hint("Use a later backup, or --allow-tablespaces where no server uses that place."));
    }
    let place = NewPlace {
        bin: program::bin_directory(
            config.member.bin_directory.as_deref(),
            manifest.server.bin_directory.as_deref(),
            manifest.server.version,
        )?,
        data: into.clone(),
        store: store.clone(),
        port: request.port,
    };
    let tablespaces = restore::place_tablespaces(&manifest.tablespaces, &into, &request.tablespaces, request.delta)?;
    if request.start {
        require_free_port(&manifest, request.port)?;
    }
    let claimed = match request.delta {
        true => delta::claim(&into, plan.backup.system_identifier)?,
        false => restore::claim(&into)?,
    };
    std::fs::create_dir_all(&store).map_err(|error| Error::io("create the directory", &store, error))?;
    // The socket comes first: it is also what keeps two recoveries out of one store.
    let lock = Listener::bind(&names::default_socket(&store))?;

    let manifest = Arc::new(manifest);
    let (toml, delta) =
        lay_out(config, &repository, &manifest, &place, &tablespaces, &plan, workers, request, progress)
            .await
            .map_err(|error| half_done(error, &into))?;
    let seconds_to_restore = began.elapsed().as_secs_f64();
    let (directory, port) = {
        let (place, start) = (place.clone(), request.start);
        let settle = move || {
            configure::require_own_directory(&place)?;
            configure::settle_address(&place, start)
        };
        blocking(settle).await.map_err(|error| half_done(error, &into))?
    };
    let conninfo = conninfo.moved(&directory, port);
    configure::write_strata_toml(config, &place, &conninfo.text(), &toml)?;
    {
        let place = place.clone();
        blocking(move || configure::arm(&place, &tablespaces)).await.map_err(|error| half_done(error, &into))?;
    }
    failpoint::hit(failpoint::RECOVER_ARMED);
    let mut recovered = Recovered {
        into: into.clone(),
        store: store.clone(),
        config: toml.clone(),
        conninfo: None,
        port: Some(port),
        socket_directory: Some(directory),
        bin_directory: place.bin.clone(),
        backup_id: plan.backup.id.clone(),
        target: plan.target.clone(),
        stop: plan.stop,
        timeline: plan.timeline,
        seconds_to_restore,
        seconds_to_open: None,
        action: request.action,
        delta,
        server_log: start::log_path(&into),
        agent_pid: None,
        fragments: plan.fragments,
        fragment_bytes: plan.fragment_bytes,
    };
    drop(lock);
    drop(claimed);
    let planned = || plan.fragment_list.iter().map(Wanted::from).collect::<Vec<_>>();
    if !request.start || request.action == Action::Shutdown {
        if request.start {
            let spool = Spool::start(&config.wal, &repository, &store, plan.segments.clone());
            start::start(&place, &request.server_options, false).await.map_err(|error| half_done(error, &into))?;
            ending::wait_for_shutdown(&place, progress).await.map_err(|error| half_done(error, &into))?;
            drop(spool);
            recovered.seconds_to_open = Some(began.elapsed().as_secs_f64());
        }
        let fetched = match request.full {
            true => Some(fragments::fetch_all(&repository, &store, planned(), workers, progress).await?),
            false => None,
        };
        return Ok(Outcome { recovered, fetched });
    }
    let (serving, background) = match request.full {
        true => (Some(Serving::start(&repository, &store)?), None),
        false => (None, Some(BackgroundAgent::start(&toml, &store, request.keep_serving).await?)),
    };
    let spool = Spool::start(&config.wal, &repository, &store, plan.segments.clone());
    let pause = request.action == Action::Pause;
    start::start(&place, &request.server_options, pause).await.map_err(|error| half_done(error, &into))?;
    match pause {
        true => ending::wait_for_pause(&place, &conninfo, progress).await,
        false => start::wait(&place, progress).await,
    }
    .map_err(|error| half_done(error, &into))?;
    drop(spool);
    recovered.seconds_to_open = Some(began.elapsed().as_secs_f64());
    recovered.conninfo = Some(conninfo.describe());
    if !pause && let Err(error) = forget_target(&conninfo).await {
        tracing::warn!(
            "the recovery target stays in \"{}\"; remove the lines that begin with recovery_target before a standby is made of this server: {error}",
            into.join("postgresql.auto.conf").display()
        );
    }
    recovered.agent_pid = background.and_then(BackgroundAgent::release);
    let Some(serving) = serving else { return Ok(Outcome { recovered, fetched: None }) };
    let wanted = match fragments::wanted(&conninfo).await {
        Ok(wanted) => wanted,
        Err(error) => {
            tracing::warn!("the recovered catalogs cannot be read, so the plan says which fragments to fetch: {error}");
            planned()
        }
    };
    let fetched = fragments::fetch_all(&repository, &store, wanted, workers, progress).await?;
    (recovered.fragments, recovered.fragment_bytes) = (fetched.fragments, fetched.fragment_bytes);
    serving.stop().await;
    if request.keep_serving {
        recovered.agent_pid = BackgroundAgent::start(&toml, &store, true).await?.release();
    }
    Ok(Outcome { recovered, fetched: Some(fetched) })
}

/// Takes the recovery target out of the configuration of a server that reached it: a standby that is copied from the server
/// would stop there.
async fn forget_target(conninfo: &Conninfo) -> Result<()> {
    let session = conninfo.connect().await?;
    for row in session.query("SELECT name FROM pg_settings WHERE name ~ '^recovery_target'", &[]).await? {
        session.batch_execute(&format!("ALTER SYSTEM RESET {}", row.get::<_, String>(0))).await?;
    }
    Ok(())
}

/// What is in the way of another try.
fn half_done(error: Error, into: &Path) -> Error {
    let hint =
        format!("\"{}\" holds what was laid out so far. Empty it before the next try, or use --delta.", into.display());
    let hint = match error.hint() {
        Some(first) => format!("{first} {hint}"),
        None => hint,
    };
    error.with_hint(hint)
}

/// Fails when it is known already that the new server's port is not free: before hours of laying out, not after.
fn require_free_port(manifest: &Manifest, asked: Option<u16>) -> Result<()> {
    let setting = |name: &str| manifest.server.settings.iter().find(|(other, _)| other == name).map(|(_, value)| value);
    let port = asked.or_else(|| setting("port").map_or(Some(5432), |port| port.parse().ok()));
    let directories = setting("unix_socket_directories").map_or("", String::as_str);
    let directories = directories.split(',').map(|dir| Path::new(dir.trim())).filter(|dir| dir.is_absolute());
    port.map_or(Ok(()), |port| configure::require_free_port(port, directories))
}

impl From<&crate::repository::manifest::FragmentRef> for Wanted {
    fn from(fragment: &crate::repository::manifest::FragmentRef) -> Self {
        Self {
            database_oid: fragment.database_oid,
            database: fragment.database.clone(),
            relation: fragment.relation.clone(),
            hash: fragment.hash.clone(),
            bytes: fragment.bytes,
        }
    }
}

/// Makes the plan, and refuses everything that can be refused before anything is written.
async fn prepare(
    repository: &Repository,
    request: &RecoverRequest,
    into: &Path,
    store: &Path,
) -> Result<(Plan, Manifest)> {
    if !request.delta {
        restore::require_empty(into)?;
    }
    if store.starts_with(into) || into.starts_with(store) {
        return Err(Error::new(
            ErrorKind::Usage,
            format!(
                "the store \"{}\" and the data directory \"{}\" must stand side by side",
                store.display(),
                into.display()
            ),
        ));
    }
    if into.starts_with(repository.root()) || store.starts_with(repository.root()) {
        return Err(Error::new(ErrorKind::Usage, "the new server must not be inside the repository"));
    }
    if !request.delta && has_fragments(store) {
        return Err(Error::new(ErrorKind::Conflict, format!("the store \"{}\" is not empty", store.display()))
            .with_hint("Name another store with --store, or empty this one."));
    }
    let (repository, request) = (repository.clone(), request.plan.clone());
    blocking(move || {
        let plan = plan::plan(&repository, &request)?;
        plan.require_complete()?;
        let manifest = repository.manifest(&plan.backup.id, &plan.backup.manifest_blake3)?;
        Ok((plan, manifest))
    })
    .await
}

/// True when a store holds more than a socket, configuration and read-ahead WAL that an earlier recovery left.
fn has_fragments(store: &Path) -> bool {
    let other = |path: PathBuf| {
        path.is_dir() && path != spool::directory(store) && path != store.join(crate::wal::outbox::DIRECTORY)
    };
    std::fs::read_dir(store).is_ok_and(|mut entries| entries.any(|entry| entry.is_ok_and(|entry| other(entry.path()))))
}

#[allow(clippy::too_many_arguments)]
async fn lay_out(
    config: &Config,
    repository: &Repository,
    manifest: &Arc<Manifest>,
    place: &NewPlace,
    tablespaces: &[restore::TablespacePlace],
    plan: &Plan,
    workers: usize,
    request: &RecoverRequest,
    progress: &Progress,
) -> Result<(PathBuf, Option<DeltaReport>)> {
    let (config, repository, manifest) = (config.clone(), repository.clone(), manifest.clone());
    let (place, progress, tablespaces) = (place.clone(), progress.clone(), tablespaces.to_vec());
    let delta = request.delta;
    let stop =
        configure::Stop { timeline: plan.timeline, at: plan.stop, inclusive: plan.inclusive, action: request.action };
    blocking(move || {
        let kept = delta.then(Kept::default);
        if delta {
            progress.phase("compare", 0, "removing what the backup does not have");
            delta::prepare(&place.data, &manifest, &tablespaces)?;
        }
        restore::restore(&repository, &manifest, &place.data, &tablespaces, kept.as_ref(), workers, &progress)?;
        let map = restore::tablespace_map(&tablespaces);
        let toml = configure::write_all(&config, &manifest, &place, &map, stop)?;
        if delta {
            delta::release(&place.data)?;
        }
        Ok((toml, kept.map(|kept| kept.report(&manifest))))
    })
    .await
}
