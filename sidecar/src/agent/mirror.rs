//! Mirrors the repository's catalog into schema `strata` of the conninfo's database.
//!
//! What was expired goes from the mirror. Only a repository that says that something was expired from it (`expired.json`) is
//! believed to be whole: one whose file system is not mounted must not empty the tables.
//!
//! What is mirrored makes WAL. On an idle server with `archive_timeout`, a row for each archived segment would make the
//! next segment worth archiving, for ever. So a single new segment waits until something else is mirrored or some time
//! has passed.

use super::{Backoff, Shared};
use crate::backup::{blocking, record};
use crate::error::{ErrorKind, Result};
use crate::postgres::Session;
use crate::postgres::server::{self, pg_lsn};
use crate::repository::Repository;
use crate::repository::catalog::BackupEntry;
use crate::repository::fragments::FragmentLogEntry;
use crate::wal::name::WalName;
use std::collections::HashSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use strata_catalog::{LogBackupRow, LogKind};
use tokio_postgres::types::PgLsn;

/// How long a single new segment waits.
const LONE_SEGMENT: Duration = Duration::from_secs(15 * 60);
/// How many rows one transaction takes.
const BATCH: usize = 1000;

#[derive(Default)]
struct Mirror {
    loaded: bool,
    backups: HashSet<String>,
    logs: HashSet<String>,
    fragment_paths: HashSet<PathBuf>,
    /// What cannot be read, so that each thing is said once.
    damaged: HashSet<String>,
    lone_since: Option<Instant>,
}

/// Mirrors for ever.
pub(super) async fn run(shared: &Shared) {
    let mut mirror = Mirror::default();
    let mut backoff = Backoff::new();
    loop {
        match mirror.round(shared).await {
            Ok(()) => {
                backoff.reset();
                tokio::time::sleep(shared.config.agent.mirror_interval).await;
            }
            Err(error) => {
                tracing::warn!("the backup catalog is not mirrored just now: {}", error.full_text());
                mirror = Mirror::default();
                backoff.pause().await;
            }
        }
    }
}

/// What the repository has and the mirror does not.
#[derive(Default)]
struct News {
    backups: Vec<BackupEntry>,
    logs: Vec<LogBackupRow>,
    paths: Vec<PathBuf>,
    damaged: Vec<String>,
    /// Backups that were expired.
    gone_backups: Vec<String>,
    /// Names of logs that were expired.
    gone_logs: Vec<String>,
    gone_paths: Vec<PathBuf>,
}

impl Mirror {
    async fn round(&mut self, shared: &Shared) -> Result<()> {
        let mut session = shared.conninfo.connect().await?;
        let recovering = server::in_recovery(&session).await?;
        if recovering || !record::has_jobs(&session).await {
            self.loaded = false;
            return Ok(());
        }
        if !self.loaded {
            self.load(shared, &session).await?;
        }
        let repository = shared.repository().await?;
        // They may hold hundreds of thousands of names, so they are lent and not copied. An error begins anew in any case.
        let known = std::mem::take(self);
        let news;
        (news, *self) = blocking(move || Ok((News::collect(&repository, &known)?, known))).await?;
        for text in news.damaged {
            if self.damaged.insert(text.clone()) {
                tracing::error!("not mirrored: {text}");
            }
        }
        if !news.gone_backups.is_empty() || !news.gone_logs.is_empty() {
            let (system, member) = (&shared.config.system, &shared.config.member.name);
            session
                .execute(
                    "DELETE FROM strata.backup WHERE system = $1 AND member = $2 AND state = 'complete' AND backup_id = ANY($3)",
                    &[system, member, &news.gone_backups],
                )
                .await?;
            session
                .execute(
                    "DELETE FROM strata.log_backup WHERE system = $1 AND member = $2 AND name = ANY($3)",
                    &[system, member, &news.gone_logs],
                )
                .await?;
            self.backups.retain(|id| !news.gone_backups.contains(id));
            let gone: HashSet<&String> = news.gone_logs.iter().collect();
            self.logs.retain(|name| !gone.contains(name));
            let gone: HashSet<&PathBuf> = news.gone_paths.iter().collect();
            self.fragment_paths.retain(|path| !gone.contains(path));
        }
        for entry in news.backups {
            let repository = shared.repository().await?;
            record::upsert_backup(&session, &entry.row(&repository)).await?;
            self.backups.insert(entry.id);
        }
        if let ([only], None) = (news.logs.as_slice(), news.paths.first()) {
            let since = *self.lone_since.get_or_insert_with(Instant::now);
            if only.kind == LogKind::Wal && since.elapsed() < LONE_SEGMENT {
                return Ok(());
            }
        }
        self.lone_since = None;
        for rows in news.logs.chunks(BATCH) {
            insert(&mut session, rows).await?;
            self.logs.extend(rows.iter().map(|row| row.name.clone()));
        }
        self.fragment_paths.extend(news.paths);
        Ok(())
    }

    async fn load(&mut self, shared: &Shared, session: &Session) -> Result<()> {
        let (system, member) = (&shared.config.system, &shared.config.member.name);
        let rows = session
            .query(
                "SELECT backup_id FROM strata.backup WHERE state = 'complete' AND system = $1 AND member = $2",
                &[system, member],
            )
            .await?;
        self.backups = rows.iter().map(|row| row.get(0)).collect();
        let rows = session
            .query("SELECT name FROM strata.log_backup WHERE system = $1 AND member = $2", &[system, member])
            .await?;
        self.logs = rows.iter().map(|row| row.get(0)).collect();
        self.loaded = true;
        Ok(())
    }
}

impl News {
    fn collect(repository: &Repository, known: &Mirror) -> Result<Self> {
        let mut news = Self::default();
        // Read first: what is recorded meanwhile is in the lists below.
        let whole = repository.expired()?.is_some();
        let mut there: HashSet<String> = HashSet::new();
        for id in repository.backup_ids()? {
            there.insert(id.clone());
            if !known.backups.contains(&id) {
                let entry = news.sound(repository.backup(&id))?;
                news.backups.extend(entry.flatten());
            }
        }
        if whole {
            news.gone_backups.extend(known.backups.iter().filter(|id| !there.contains(*id)).cloned());
        }
        there.clear();
        for name in repository.wal_names()? {
            there.insert(name.clone());
            if !known.logs.contains(&name) {
                let row = news.sound(wal_row(repository, &name))?;
                news.logs.extend(row.flatten());
            }
        }
        let paths = repository.fragment_log_paths()?;
        if whole {
            let of_log = |path: &PathBuf| {
                let hash = crate::retention::gather::hash_of(path)?;
                Some(format!("{}/{hash}", path.parent()?.file_name()?.to_str()?))
            };
            there.extend(paths.iter().filter_map(of_log));
            news.gone_logs.extend(known.logs.iter().filter(|name| !there.contains(*name)).cloned());
            let paths: HashSet<&PathBuf> = paths.iter().collect();
            news.gone_paths.extend(known.fragment_paths.iter().filter(|path| !paths.contains(path)).cloned());
        }
        for path in paths {
            if !known.fragment_paths.contains(&path) {
                let entry = repository.storage().read_sealed_required::<FragmentLogEntry>(&path);
                let Some(entry) = news.sound(entry)? else { continue };
                let row = fragment_row(repository, &entry);
                if !known.logs.contains(&row.name) {
                    news.logs.push(row);
                }
                news.paths.push(path);
            }
        }
        Ok(news)
    }

    /// What was read; nothing when it is damaged, which is noted and keeps nothing else from being mirrored.
    fn sound<T>(&mut self, read: Result<T>) -> Result<Option<T>> {
        match read {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.kind == ErrorKind::Damaged => {
                self.damaged.push(error.message);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn wal_row(repository: &Repository, name: &str) -> Result<Option<LogBackupRow>> {
    let (kind, segment) = match WalName::parse(name) {
        Some(WalName::Segment(segment) | WalName::Partial(segment)) => (LogKind::Wal, Some(segment)),
        Some(WalName::History(_)) => (LogKind::History, None),
        _ => return Ok(None),
    };
    let Some((note, stored)) = repository.read_wal_note(name)? else { return Ok(None) };
    let timeline = WalName::parse(name).map_or(0, WalName::timeline);
    let size = note.segment.as_ref().map_or(0, |summary| u64::from(summary.segment_size));
    Ok(Some(LogBackupRow {
        system: repository.system().to_owned(),
        member: repository.member().to_owned(),
        kind,
        name: name.to_owned(),
        timeline: i32::try_from(timeline).ok(),
        start_lsn: segment.map(|segment| segment.start(size)),
        end_lsn: segment.map(|segment| segment.end(size)),
        bytes: signed(note.bytes),
        stored_bytes: signed(stored),
        checksum: note.blake3,
        completed_at: note.archived_at,
    }))
}

fn fragment_row(repository: &Repository, entry: &FragmentLogEntry) -> LogBackupRow {
    LogBackupRow {
        system: repository.system().to_owned(),
        member: repository.member().to_owned(),
        kind: LogKind::Fragment,
        name: format!("{}/{}", entry.database_oid, entry.fragment.hash),
        timeline: i32::try_from(entry.timeline).ok(),
        start_lsn: Some(entry.fragment.created_lsn),
        end_lsn: None,
        bytes: entry.fragment.bytes,
        stored_bytes: entry.fragment.bytes,
        checksum: entry.fragment.hash.clone(),
        completed_at: entry.completed_at,
    }
}

async fn insert(session: &mut Session, rows: &[LogBackupRow]) -> Result<()> {
    let statement = session
        .prepare(
            "INSERT INTO strata.log_backup (system, member, kind, name, timeline, start_lsn, end_lsn, bytes, stored_bytes, \
                 checksum, completed_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT DO NOTHING",
        )
        .await?;
    session.batch_execute("BEGIN").await?;
    for row in rows {
        let (start, end): (Option<PgLsn>, Option<PgLsn>) = (row.start_lsn.map(pg_lsn), row.end_lsn.map(pg_lsn));
        session
            .execute(
                &statement,
                &[
                    &row.system,
                    &row.member,
                    &row.kind.as_str(),
                    &row.name,
                    &row.timeline,
                    &start,
                    &end,
                    &row.bytes,
                    &row.stored_bytes,
                    &row.checksum,
                    &row.completed_at,
                ],
            )
            .await?;
    }
    session.batch_execute("COMMIT").await?;
    Ok(())
}
