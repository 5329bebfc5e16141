//! Drills: a recovery that is tried, looked at, and thrown away.
//!
//! ```text
//!   lock of the scratch directory ─► remove what a killed drill left ─► recover, all fragments ─► open
//!       ─► every fragment by its checksums and its number of rows ─► pg_amcheck ─► the user's own queries
//!       ─► stop ─► remove ─► record in the repository
//! ```
//!
//! What a drill shows: that the plan can be carried out, that PostgreSQL opens at the target, that heap pages and btree indexes are
//! sound as far as `pg_amcheck` sees (it looks at heap tables and at btree indexes, not into the delta store of warm
//! tables), that each fragment which the recovered catalogs name is there, is what its hash says, and has the rows that the catalog
//! says, and that the user's own checks hold. Row counts of tables are not compared with the old server: they are of another moment. A check
//! that compares with something that the data itself says (a sum, a counter, the time of the last row) is what `[drill] checks` is for.
//!
//! The scratch server does not listen on the network, does not archive, does not vacuum, and starts no subscription's worker.
//!
//! **Killed.** Everything of a drill is in its scratch directory, which it made, and whose file `strata-drill.lock` it holds locked. The next drill
//! that gets the lock stops a server that still runs there and removes all of it. A directory without that file is nobody's scratch and is
//! refused unless it is empty. A drill that was killed leaves no record; the kernel gives up its lock.

mod checks;

use crate::backup::blocking;
use crate::config::Config;
use crate::error::{AtPath, Error, ErrorKind, Result};
use crate::failpoint;
use crate::postgres::Conninfo;
use crate::progress::Progress;
use crate::recovery::plan::PlanRequest;
use crate::recovery::{self, RecoverRequest, Recovered};
use crate::repository::Repository;
use crate::repository::drills::DrillEntry;
use crate::repository::lock::Lock;
use jiff::Timestamp;
use std::path::{Path, PathBuf};
use std::process::Stdio;

const LOCK: &str = "strata-drill.lock";

/// What to try.
#[derive(Clone, Debug)]
pub struct DrillRequest {
    /// Where to stop, and what from.
    pub plan: PlanRequest,
    /// The scratch directory; none for the configuration's.
    pub directory: Option<PathBuf>,
    /// Parallel workers; none for the configuration's.
    pub jobs: Option<usize>,
}

/// Tries a recovery. The entry says what was wrong; an error means that nothing could be tried.
pub async fn run(config: &Config, request: &DrillRequest, progress: &Progress) -> Result<DrillEntry> {
    let started_at = Timestamp::now();
    let scratch = Scratch::take(&scratch_directory(config, request))?;
    scratch.clear().await?;
    let repository = Repository::open(config)?;
    let mut entry = DrillEntry {
        id: started_at.strftime("%Y%m%dT%H%M%S%3fZ").to_string(),
        target: request.plan.target.to_string(),
        backup_id: None,
        timeline: None,
        started_at,
        finished_at: started_at,
        passed: false,
        seconds_to_open: None,
        fragments: 0,
        fragment_bytes: 0,
        amcheck: None,
        checks: Vec::new(),
        problems: Vec::new(),
    };
    let tried = attempt(config, request, &scratch, &mut entry, progress).await;
    progress.phase("clean", 0, "removing the scratch server");
    scratch.clear().await?;
    if let Err(error) = tried {
        // What another process or the command line is to blame for says nothing about the repository.
        if matches!(
            error.kind,
            ErrorKind::Usage | ErrorKind::Config | ErrorKind::Refused | ErrorKind::Locked | ErrorKind::Forbidden
        ) {
            return Err(error);
        }
        entry.problems.push(error.full_text());
    }
    entry.finished_at = Timestamp::now();
    entry.passed = entry.problems.is_empty();
    if repository.is_read_only() {
        tracing::warn!("the drill is not recorded: the repository is read-only for this server");
        return Ok(entry);
    }
    let recorded = entry.clone();
    blocking(move || repository.record_drill(&recorded)).await?;
    Ok(entry)
}

/// Removes what a drill of this process left when it was interrupted.
pub async fn clean(config: &Config, request: &DrillRequest) -> Result<()> {
    Scratch::take(&scratch_directory(config, request))?.clear().await
}

fn scratch_directory(config: &Config, request: &DrillRequest) -> PathBuf {
    request
        .directory
        .clone()
        .or_else(|| config.drill.directory.clone())
        .unwrap_or_else(|| std::env::temp_dir().join(format!("strata-drill-{}-{}", config.system, config.member.name)))
}

async fn attempt(
    config: &Config,
    request: &DrillRequest,
    scratch: &Scratch,
    entry: &mut DrillEntry,
    progress: &Progress,
) -> Result<()> {
    let recover = RecoverRequest {
        plan: request.plan.clone(),
        into: scratch.data(),
        store: Some(scratch.store()),
        port: Some(free_port()?),
        full: true,
        start: true,
        keep_serving: false,
        allow_tablespaces: false,
        tablespaces: Vec::new(),
        jobs: request.jobs,
        action: crate::recovery::ending::Action::Promote,
        delta: false,
        server_options: ["listen_addresses=''", "max_logical_replication_workers=0", "autovacuum=off", "fsync=off"]
            .map(str::to_owned)
            .to_vec(),
    };
    let outcome = recovery::recover(config, &recover, progress).await?;
    let recovered = &outcome.recovered;
    failpoint::hit(failpoint::DRILL_OPEN);
    entry.backup_id = Some(recovered.backup_id.clone());
    entry.timeline = Some(recovered.timeline);
    entry.seconds_to_open = recovered.seconds_to_open;
    entry.fragments = recovered.fragments;
    entry.fragment_bytes = recovered.fragment_bytes;
    if let Some(fetched) = &outcome.fetched {
        entry.problems.extend(fetched.missing.iter().map(|one| {
            let relation = one.fragment.relation.as_deref().unwrap_or("a table that is gone");
            format!(
                "fragment {} of {relation} in database \"{}\": {}",
                one.fragment.hash, one.fragment.database, one.error
            )
        }));
    }
    let conninfo = conninfo(config, recovered)?;
    checks::fragments(&conninfo, recovered, config.backup.workers(), entry, progress).await?;
    checks::amcheck(&conninfo, recovered, entry, progress).await?;
    checks::queries(&conninfo, &config.drill.checks, entry, progress).await;
    failpoint::hit(failpoint::DRILL_CHECKED);
    Ok(())
}

fn conninfo(config: &Config, recovered: &Recovered) -> Result<Conninfo> {
    match (&recovered.socket_directory, recovered.port) {
        (Some(directory), Some(port)) => Ok(Conninfo::parse(&config.member.conninfo)?.moved(directory, port)),
        _ => Err(Error::new(ErrorKind::Recovery, "the scratch server has no address")),
    }
}

fn free_port() -> Result<u16> {
    std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|error| Error::new(ErrorKind::Io, format!("could not find a free port: {error}")))
}

/// The scratch directory, locked.
struct Scratch {
    dir: PathBuf,
    _lock: Lock,
}

impl Scratch {
    fn take(dir: &Path) -> Result<Self> {
        let dir = std::path::absolute(dir).at("use", dir)?;
        let lock = dir.join(LOCK);
        let names = match std::fs::read_dir(&dir) {
            Ok(entries) => entries.count(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                use std::os::unix::fs::DirBuilderExt;
                // In a directory that everybody may write to, nobody else may have made it.
                std::fs::DirBuilder::new().mode(0o700).create(&dir).at("create the directory", &dir)?;
                0
            }
            Err(error) => return Err(Error::io("list", &dir, error)),
        };
        if names > 0 && !lock.exists() {
            return Err(Error::new(
                ErrorKind::Config,
                format!("\"{}\" is not the scratch directory of a drill, and is not empty", dir.display()),
            )
            .with_hint("Name an empty directory, or one that is not there yet."));
        }
        crate::postgres::program::require_owner(&dir)?;
        let lock = Lock::acquire(&lock, &format!("drills in \"{}\"", dir.display()))?;
        Ok(Self { dir, _lock: lock })
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn store(&self) -> PathBuf {
        self.dir.join("data.strata")
    }

    /// Stops the server that runs here, and removes everything but the lock.
    async fn clear(&self) -> Result<()> {
        let data = self.data();
        stop(&data).await?;
        let dir = self.dir.clone();
        blocking(move || {
            for entry in std::fs::read_dir(&dir).at("list", &dir)? {
                let path = entry.at("list", &dir)?.path();
                if path.file_name().is_some_and(|name| name == LOCK) {
                    continue;
                }
                let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
                removed.at("remove", &path)?;
            }
            Ok(())
        })
        .await
    }
}

/// Stops the server of a data directory at once. What it holds is thrown away.
async fn stop(data: &Path) -> Result<()> {
    let pid_file = data.join("postmaster.pid");
    let Some(pid) = std::fs::read_to_string(&pid_file)
        .ok()
        .and_then(|text| text.lines().next()?.trim().parse().ok())
        .and_then(rustix::process::Pid::from_raw)
    else {
        return Ok(());
    };
    // The process must be the server of this very directory: numbers are used again.
    let cwd = std::fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero())).ok();
    if cwd.as_deref() != std::fs::canonicalize(data).ok().as_deref() {
        return Ok(());
    }
    for signal in [rustix::process::Signal::QUIT, rustix::process::Signal::KILL] {
        let _ = rustix::process::kill_process(pid, signal);
        for _ in 0..250 {
            if rustix::process::test_kill_process(pid).is_err() || !pid_file.exists() {
                return Ok(());
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
    Err(Error::new(ErrorKind::Recovery, format!("the scratch server in \"{}\" does not stop", data.display())))
}

/// A program of the scratch server's installation, without anything of ours on its standard input.
fn program(path: &Path) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(path);
    command.stdin(Stdio::null()).env_remove("RUST_BACKTRACE").kill_on_drop(true);
    command
}
