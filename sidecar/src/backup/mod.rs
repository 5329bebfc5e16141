//! Online base backups.
//!
//! ```text
//!   lock ─► clear what an interrupted backup left ─► pg_backup_start
//!        ─► copy files to the target (parallel), pg_control last ─► pg_backup_stop ─► copy fragments
//!        ─► wait for the WAL ─► manifest ─► catalog entry        (the backup exists from here on)
//!        ─► mirror into schema strata ─► expire, when retention.automatic says so
//! ```
//!
//! The target ([`target`]) is the repository itself or a third-party tool ([`crate::tool`]). With a tool, hot data and fragments go through its
//! pipes, a last stream has the labels and the manifest ([`through_tool`]), and all else is the same.
//!
//! Promises. A backup in the catalog can be recovered by itself: its packs, its fragments, and the WAL from its start to
//! its stop are durable in the repository. Fragments are listed before and after the stop; one that came and went between
//! the two is copied all the same, since its file stays in the store for a while. A backup that dies, by any cause, leaves a folder without a catalog entry, which
//! counts for nothing. PostgreSQL ends its backup mode by itself when our session ends.

pub mod archive;
pub mod copy;
pub mod fragments;
pub mod record;
pub mod scan;
pub mod target;
pub mod through_tool;

use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::{Conninfo, ServerInfo, Session, program, server};
use crate::progress::Progress;
use crate::recovery::timeline::Chain;
use crate::repository::catalog::{BackupEntry, ThroughTool};
use crate::repository::lock::Lock;
use crate::repository::manifest::{Manifest, Server};
use crate::repository::objects::StoredObject;
use crate::repository::{FORMAT, Identity, Repository};
use crate::retention::{self, ExpireRequest};
use crate::tool::fragments::Sent;
use crate::tool::upkeep;
use crate::wal::name::Segment;
use copy::{Copied, CopyOptions};
use jiff::Timestamp;
use scan::Scan;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;
use strata_catalog::{BackupState, Lsn};
use target::{PackTarget, Target, ToolTarget};
use through_tool::Infile;

/// The result of a backup.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackupReport {
    /// The entry in the repository's catalog.
    #[serde(flatten)]
    pub entry: BackupEntry,
    /// How long it took.
    pub seconds: f64,
    /// What was wrong on the server, one line each: the backup is complete, but these could not be copied whole.
    pub damage: Vec<String>,
    /// What was expired after it, when the configuration says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expired: Option<serde_json::Value>,
}

/// Takes a backup.
pub async fn run(config: &Config, label: Option<&str>, progress: &Progress) -> Result<BackupReport> {
    let began = std::time::Instant::now();
    let started_at = Timestamp::now();
    let conninfo = Conninfo::parse(&config.member.conninfo)?;
    check_label(label)?;
    let session = conninfo.connect().await?;
    let info = ServerInfo::ask(&session).await?;
    let data_directory = config.member.data_directory.clone().unwrap_or_else(|| info.data_directory.clone());
    check(config, &info, &data_directory)?;
    let repository = Repository::open_or_create(config)?;
    repository.claim(&Identity { system_identifier: info.system_identifier, segment_size: info.segment_size })?;
    let lock = {
        let repository = repository.clone();
        blocking(move || {
            let lock = repository.wait_for_backup_lock()?;
            for doubt in repository.doubts()? {
                tracing::warn!("{doubt}");
            }
            clear_interrupted(&repository)?;
            through_tool::prepare(&repository)?;
            Ok(lock)
        })
        .await?
    };
    let mirrored = record::has_jobs(&session).await;
    if mirrored && let Err(error) = record::fail_interrupted(&session, &config.system, &config.member.name).await {
        tracing::warn!("interrupted backups are not marked in strata.backup: {error}");
    }
    let (id, dir) = repository.create_backup_dir(started_at)?;
    let run = Run {
        config,
        conninfo: &conninfo,
        session: &session,
        info: &info,
        data_directory: &data_directory,
        repository: &repository,
        lock: &lock,
        id: &id,
        dir: &dir,
        label,
        started_at,
        progress,
    };
    if mirrored {
        run.mirror_state(BackupState::Running, None).await;
    }
    match run.take().await {
        Ok((entry, damage)) => {
            if mirrored && let Err(error) = record::upsert_backup(&session, &entry.row(&repository)).await {
                tracing::warn!("the backup is not mirrored in strata.backup: {error}");
            }
            let seconds = began.elapsed().as_secs_f64();
            let expired = expire(config, &repository, &info, lock, progress).await;
            Ok(BackupReport { entry, seconds, damage, expired })
        }
        Err(error) => {
            if let Err(error) = repository.remove_unfinished(&id) {
                tracing::warn!("the folder of the failed backup stays until the next one: {error}");
            }
            let left = repository.clone();
            let cleared = blocking(move || left.tool().map_or(Ok(()), |tool| upkeep::clear(&left, tool))).await;
            if let Err(error) = cleared {
                tracing::warn!("what the tool holds of the failed backup stays until the next one: {error}");
            }
            if mirrored {
                run.mirror_state(BackupState::Failed, Some(&error)).await;
            }
            Err(error)
        }
    }
}

/// Expires after a backup when the configuration says so, under the backup's lock. The backup is good whatever comes of it.
async fn expire(
    config: &Config,
    repository: &Repository,
    info: &ServerInfo,
    lock: Lock,
    progress: &Progress,
) -> Option<serde_json::Value> {
    if !config.retention.automatic || config.retention.is_empty() {
        return None;
    }
    let store = Some(info.store_or(config.member.store.as_ref()));
    let (config, repository, progress) = (config.clone(), repository.clone(), progress.clone());
    let request = ExpireRequest { store, ..ExpireRequest::default() };
    match blocking(move || retention::locked(&config, &repository, &request, &lock, &progress)).await {
        Ok(report) => Some(report.summary()),
        Err(error) => {
            tracing::error!("the backup is complete, but nothing, or not all, was expired: {}", error.full_text());
            Some(serde_json::json!({"error": error.full_text()}))
        }
    }
}

fn check(config: &Config, info: &ServerInfo, data_directory: &Path) -> Result<()> {
    if info.in_recovery {
        return Err(Error::new(ErrorKind::Forbidden, "the server is a standby, or still recovering")
            .with_hint("Take the backup from the primary."));
    }
    program::require_owner(data_directory)?;
    program::require_cluster(data_directory, info.system_identifier)?;
    archive::require_archiving(config, info)?;
    if config.repository.path.as_ref().is_some_and(|path| real(path).starts_with(real(data_directory))) {
        return Err(Error::new(
            ErrorKind::Config,
            format!("the repository \"{}\" is inside the data directory", config.repository.root().display()),
        )
        .with_hint("Put the repository outside the data directory, best on another disk or machine."));
    }
    Ok(())
}

/// A path with its links followed, as far as it exists.
fn real(path: &Path) -> PathBuf {
    match (std::fs::canonicalize(path), path.parent(), path.file_name()) {
        (Ok(real), ..) => real,
        (Err(_), Some(above), Some(name)) => real(above).join(name),
        _ => path.to_owned(),
    }
}

/// The server writes the label into `backup_label`, one line of several.
fn check_label(label: Option<&str>) -> Result<()> {
    match label {
        Some(label) if label.chars().count() > 200 || label.chars().any(char::is_control) => {
            Err(Error::new(ErrorKind::Usage, format!("the label {label:?} cannot be used"))
                .with_hint("A label has at most 200 characters and is one line."))
        }
        _ => Ok(()),
    }
}

fn clear_interrupted(repository: &Repository) -> Result<()> {
    let unfinished = repository.unfinished_backups()?;
    repository.require_catalog(&unfinished)?;
    for id in unfinished {
        tracing::info!("removing what the interrupted backup {id} left");
        repository.remove_unfinished(&id)?;
    }
    repository.sweep_temporary()
}

struct Run<'a> {
    config: &'a Config,
    conninfo: &'a Conninfo,
    session: &'a Session,
    info: &'a ServerInfo,
    data_directory: &'a Path,
    repository: &'a Repository,
    lock: &'a Lock,
    id: &'a str,
    dir: &'a Path,
    label: Option<&'a str>,
    started_at: Timestamp,
    progress: &'a Progress,
}

/// What `pg_backup_stop` says, and the server's clock around it.
struct Stopped {
    lsn: Lsn,
    label: String,
    tablespace_map: String,
    at: Timestamp,
}

impl Run<'_> {
    async fn take(&self) -> Result<(BackupEntry, Vec<String>)> {
        self.progress.phase("start", 0, "waiting for the checkpoint that starts the backup");
        let label = self.label.unwrap_or(self.id);
        let row = self
            .session
            .query_one("SELECT pg_backup_start($1, $2)", &[&label, &self.config.backup.fast_checkpoint])
            .await?;
        let start_lsn = server::lsn(row.get(0));
        archive::keep_history(self.config, self.session, self.data_directory).await?;
        let infile = self.repository.tool().map(|_| Infile::create(self.repository.storage(), self.dir)).transpose()?;
        let (mut scan, copied) = self.copy_files(start_lsn, infile.as_ref()).await?;
        let listed_at = SystemTime::now();
        let before = fragments::read_all(self.conninfo, self.session).await?;
        let stopped = self.stop().await?;
        let after = fragments::read_all(self.conninfo, self.session).await?;
        let start = BackupLabel::parse(&stopped.label)?;
        let fragments = self.copy_fragments(before, after, start.timeline, listed_at, infile.as_ref()).await?;

        let size = u64::from(self.info.segment_size);
        let first = Segment::holding(start.timeline, start_lsn, size);
        let last = Segment::holding(start.timeline, Lsn(stopped.lsn.0.saturating_sub(1)), size);
        let timeout = self.config.backup.archive_timeout;
        archive::wait(self.repository, self.session, self.info, first, last, timeout, self.progress).await?;

        self.progress.phase("record", 0, "recording the backup");
        let mut damage: Vec<String> = copied
            .damaged_pages
            .iter()
            .map(|page| format!("page {} of \"{}\" has a wrong checksum on the server", page.page, page.path))
            .collect();
        scan.lost_tablespaces.retain(|lost| lost.is_symlink());
        damage.extend(scan.lost_tablespaces.iter().map(|link| {
            let target = std::fs::read_link(link).unwrap_or_default();
            format!("the tablespace \"{}\" of \"{}\" is not there on the server", target.display(), link.display())
        }));
        damage.extend(fragments.failed.iter().map(|(fragment, why)| {
            let relation = fragment.relation.as_deref().unwrap_or("a table that is gone");
            format!("fragment {} of {relation} in database \"{}\": {why}", fragment.hash, fragment.database)
        }));
        let missing = fragments.failed.len() as u64;
        let manifest = self.manifest(scan, copied, &stopped, fragments.fragments);
        let manifest_blake3 = self.repository.write_manifest(&manifest)?;
        let tool = match &infile {
            None => None,
            Some(infile) => Some(self.close_tool(infile, &manifest, first, last, fragments.objects).await?),
        };
        let entry = BackupEntry {
            id: self.id.to_owned(),
            label: self.label.map(str::to_owned),
            system: self.config.system.clone(),
            member: self.config.member.name.clone(),
            server_version: self.info.version,
            system_identifier: self.info.system_identifier,
            segment_size: self.info.segment_size,
            timeline: start.timeline,
            start_lsn,
            stop_lsn: stopped.lsn,
            start_wal: first.to_string(),
            stop_wal: last.to_string(),
            started_at: self.started_at,
            stopped_at: stopped.at,
            completed_at: Timestamp::now(),
            files: manifest.files.len() as u64,
            data_bytes: manifest.files.iter().map(|file| file.bytes).sum(),
            stored_bytes: manifest.packs.iter().map(|pack| pack.bytes).sum(),
            fragments: manifest.fragments.len() as u64,
            fragment_bytes: manifest.fragments.iter().map(|fragment| fragment.bytes).sum(),
            fragments_copied: fragments.copied,
            fragment_bytes_copied: fragments.bytes_copied,
            fragments_missing: missing,
            damaged_pages: manifest.damaged_pages.len() as u64,
            manifest_blake3,
            tool,
        };
        self.lock.require_held()?;
        self.repository.record_backup(&entry)?;
        Ok((entry, damage))
    }

    /// The last stream through the tool: what is known only at the end. Returns what the tool did for this backup.
    async fn close_tool(
        &self,
        infile: &Infile,
        manifest: &Manifest,
        first: Segment,
        last: Segment,
        fragments: Vec<StoredObject>,
    ) -> Result<ThroughTool> {
        let (repository, infile, manifest) = (self.repository.clone(), infile.clone(), manifest.clone());
        let size = u64::from(self.info.segment_size);
        blocking(move || through_tool::close(&repository, &infile, &manifest, first, last, size, fragments)).await
    }

    async fn copy_files(&self, start: Lsn, infile: Option<&Infile>) -> Result<(Scan, Copied)> {
        let data_directory = self.data_directory.to_owned();
        let leave_out: Vec<PathBuf> =
            vec![self.info.store_or(self.config.member.store.as_ref()), self.repository.root().to_owned()];
        let dir = self.dir.to_owned();
        let progress = self.progress.clone();
        let (repository, id, infile) = (self.repository.clone(), self.id.to_owned(), infile.cloned());
        let level = self.config.backup.compress_level;
        let options = CopyOptions {
            workers: self.config.backup.workers(),
            check_pages_from: (self.info.data_checksums && self.info.block_size == 8192).then_some(start.0),
        };
        let cancelled = Arc::new(AtomicBool::new(false));
        // When this future is dropped, the threads must not go on.
        let _guard = CancelOnDrop(cancelled.clone());
        blocking(move || {
            // The same places may be written with and without links.
            let leave_out: Vec<PathBuf> = leave_out.iter().flat_map(|path| [path.clone(), real(path)]).collect();
            let leave_out: Vec<&Path> = leave_out.iter().map(PathBuf::as_path).collect();
            let scan = scan::scan(&data_directory, &leave_out)?;
            let Some(control) = scan.files.iter().position(|file| file.path == "global/pg_control") else {
                return Err(Error::new(
                    ErrorKind::Io,
                    format!("\"{}\" has no global/pg_control", data_directory.display()),
                )
                .with_hint("Is member.data_directory the server's data directory?"));
            };
            progress.phase_bytes("data", scan.bytes(), "copying the hot data");
            let copy =
                |target: &dyn Target| copy::copy(&scan.files, Some(control), target, &options, &progress, &cancelled);
            let copied = match (repository.tool(), &infile) {
                (Some(tool), Some(infile)) => {
                    let target = ToolTarget::new(&repository, tool, &id, infile.path(), &scan.directories);
                    infile.hot(&target, tool)?;
                    copy(&target)?
                }
                _ => copy(&PackTarget::new(repository.storage(), &dir, level, repository.keys()))?,
            };
            repository.storage().sync(&dir)?;
            Ok((scan, copied))
        })
        .await
    }

    async fn stop(&self) -> Result<Stopped> {
        self.progress.phase("stop", 0, "ending the backup on the server");
        let row = self.session.query_one("SELECT lsn, labelfile, spcmapfile FROM pg_backup_stop(false)", &[]).await?;
        let at = self.session.query_one("SELECT clock_timestamp()", &[]).await?.get(0);
        Ok(Stopped {
            lsn: server::lsn(row.get(0)),
            label: row.get(1),
            tablespace_map: row.get::<_, Option<String>>(2).unwrap_or_default(),
            at,
        })
    }

    async fn copy_fragments(
        &self,
        before: Vec<fragments::DatabaseFragments>,
        after: Vec<fragments::DatabaseFragments>,
        timeline: u32,
        listed_at: SystemTime,
        infile: Option<&Infile>,
    ) -> Result<fragments::FragmentsCopied> {
        let repository = self.repository.clone();
        let (id, infile) = (self.id.to_owned(), infile.cloned());
        let store = self.info.store_or(self.config.member.store.as_ref());
        let progress = self.progress.clone();
        blocking(move || {
            let needed: std::collections::HashSet<(u32, i64)> =
                after.iter().flat_map(|one| one.rows.iter().map(|row| (one.database.oid, row.fragment_id))).collect();
            let all = fragments::union(before, after);
            let sent = match (repository.tool(), &infile) {
                (Some(tool), Some(infile)) => {
                    through_tool::send_fragments(&repository, tool, &id, infile, &all, &store, listed_at, &progress)?
                }
                _ => Sent::default(),
            };
            // Its history was archived when the backup began.
            let way = Chain::read(&repository, timeline)?.unwrap_or_else(|| Chain::unknown(timeline));
            let mut done =
                fragments::copy(&repository, &all, |oid, id| needed.contains(&(oid, id)), &store, &way, &progress)?;
            fragments::copy_recent(&repository, &store, listed_at)?;
            let (count, bytes) = sent.copied();
            done.copied += count;
            done.bytes_copied += bytes;
            done.objects = sent.objects;
            Ok(done)
        })
        .await
    }

    fn manifest(
        &self,
        scan: Scan,
        copied: Copied,
        stopped: &Stopped,
        fragments: Vec<crate::repository::manifest::FragmentRef>,
    ) -> Manifest {
        Manifest {
            format: FORMAT,
            id: self.id.to_owned(),
            server: Server {
                version: self.info.version,
                data_directory: self.data_directory.to_owned(),
                store: self.info.store_or(self.config.member.store.as_ref()),
                bin_directory: self.info.bin_directory.clone(),
                data_checksums: self.info.data_checksums,
                settings: self.info.settings.clone(),
            },
            backup_label: stopped.label.clone(),
            tablespace_map: stopped.tablespace_map.clone(),
            tablespaces: scan.tablespaces,
            directories: scan.directories,
            packs: copied.packs,
            files: copied.files,
            fragments,
            damaged_pages: copied.damaged_pages,
            encrypted: None,
        }
    }

    async fn mirror_state(&self, state: BackupState, error: Option<&Error>) {
        let row = strata_catalog::BackupRow {
            backup_id: self.id.to_owned(),
            system: self.config.system.clone(),
            member: self.config.member.name.clone(),
            repository: self.repository.root().display().to_string(),
            state,
            timeline: None,
            start_lsn: None,
            stop_lsn: None,
            started_at: self.started_at,
            stopped_at: None,
            data_bytes: None,
            stored_bytes: None,
            fragments: None,
            fragment_bytes: None,
            fragments_copied: None,
            fragment_bytes_copied: None,
            error: error.map(Error::full_text),
            tool: self.repository.tool().map(|tool| tool.name().to_owned()),
            tool_result: None,
        };
        let written = match record::upsert_backup(self.session, &row).await {
            // The session may be what failed.
            Err(_) => match self.conninfo.connect().await {
                Ok(session) => record::upsert_backup(&session, &row).await,
                Err(error) => Err(error),
            },
            written => written,
        };
        if let Err(error) = written {
            tracing::warn!("the backup is not mirrored in strata.backup: {error}");
        }
    }
}

struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs blocking work on a thread of its own.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::new(ErrorKind::Io, format!("a worker ended unexpectedly: {error}"))),
    }
}

/// What `backup_label` says.
struct BackupLabel {
    timeline: u32,
}

impl BackupLabel {
    fn parse(text: &str) -> Result<Self> {
        text.lines()
            .find_map(|line| line.strip_prefix("START TIMELINE: ")?.trim().parse().ok())
            .map(|timeline| Self { timeline })
            .ok_or_else(|| {
                Error::new(ErrorKind::Postgres, "the server's backup label names no timeline").detail(text.to_owned())
            })
    }
}
