//! Watches `strata.fragment` in every database.
//!
//! A new fragment is copied to the repository and logged soon after it was made, so that a recovery to a moment between
//! two backups has it. A row that is gone is noted in the log, with a position that is certainly behind its removal: it
//! is read after the rows. A file that the store has lost comes back from the repository.
//!
//! **Timelines.** A server that was recovered to an earlier moment goes on as a branch of what it was, and its agent on the same log. The rows
//! of the branch that was left are not its own: that they are not there says nothing of them, and plans for that branch need them as
//! before. So the watch knows the way to its server's timeline, from the server's own history file or else from the archive. Of the log it takes what was
//! written on that way and not seen to be gone on it, and notes as gone nothing else, with the server's timeline beside the position. When the
//! timeline changes, or its history is found, it begins anew. As long as no history is found, all that is older is left alone: that keeps fragments longer, and loses
//! none. A session lives no longer than its server does on one timeline, and rows and position are read while the round's session lives.
//!
//! On a standby the last of these is all that is done, and now and then the server is asked to remove files that its rows do not name any
//! more: the primary's removals arrive there as rows that are gone.
//!
//! Databases are looked at with connections that end at once. Those without the extension are looked at less often.

use super::{Backoff, Shared};
use crate::backup::{blocking, fragments as catalog};
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::server::{self, Database};
use crate::postgres::{ServerInfo, Session};
use crate::progress::Progress;
use crate::recovery::fragments::{Wanted, fetch_all, wanted};
use crate::recovery::hold::AgentHold;
use crate::recovery::timeline::Chain;
use crate::repository::fragments::{Dropped, FragmentLogEntry};
use crate::repository::{Repository, fsio};
use crate::tool::fragments::FragmentFile;
use jiff::Timestamp;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use strata_catalog::{FragmentRow, Lsn, names};

/// Every how many rounds databases without the extension are looked at.
const RARE: u64 = 10;
/// Every how many rounds the store is compared with the rows though they did not change.
const FULL: u64 = 30;
/// Every how many rounds a standby removes files that it does not need any more.
const SWEEP: u64 = 150;
/// After a change in the store, rows are looked at this often, for this long.
const BUSY_INTERVAL: Duration = Duration::from_millis(250);
const BUSY: Duration = Duration::from_secs(10);
/// How long the server that is recovered may take to appear.
const APPEAR: Duration = Duration::from_secs(120);
/// How long a server that was seen may be away: it may be restarted.
const AWAY: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(5);

/// What is known of a database.
#[derive(Default)]
struct Known {
    fingerprint: Option<(i64, i64)>,
    /// What the log has of the server's way, and has not as gone.
    logged: HashMap<(i64, String), FragmentLogEntry>,
    /// Fragments that could not be copied, so that each is said once.
    failed: HashMap<String, String>,
    /// The repository did not have all that the store lacks.
    waiting: bool,
}

#[derive(Default)]
struct Watch {
    databases: HashMap<u32, Known>,
    /// None when nothing is written, and as long as nothing was looked at.
    way: Option<Way>,
    round: u64,
}

/// The way to the server's timeline.
#[derive(Clone, Debug)]
struct Way {
    timeline: u32,
    chain: Chain,
    /// Its history was found.
    known: bool,
}

impl Way {
    /// Something that is gone was there no longer at this position, read from the server, and this time.
    fn gone(&self, lsn: Lsn, at: Timestamp) -> Dropped {
        Dropped { at, lsn, timeline: self.timeline }
    }
}

/// Watches for ever. When `changed` says that a file appeared in the store, its row is looked for more often for a while. `hold` is given up when
/// the store has what the repository has.
pub(super) async fn run(shared: &Shared, changed: &tokio::sync::Notify, mut hold: AgentHold) {
    let mut busy_until = Instant::now();
    let mut watch = Watch::default();
    let mut backoff = Backoff::new();
    let mut session = None;
    loop {
        match watch.round(shared, &mut session).await {
            Ok(()) => {
                hold.done();
                backoff.reset();
                let interval = shared.config.agent.fragment_interval;
                let pause = if Instant::now() < busy_until { interval.min(BUSY_INTERVAL) } else { interval };
                if tokio::time::timeout(pause, changed.notified()).await.is_ok() {
                    busy_until = Instant::now() + BUSY;
                }
            }
            Err(error) => {
                tracing::warn!("fragments are not watched just now: {}", error.full_text());
                hold.look(server_alive);
                session = None;
                backoff.pause().await;
            }
        }
    }
}

/// Looks once at everything.
pub(super) async fn once(shared: &Shared) -> Result<()> {
    Watch::default().round(shared, &mut None).await
}

impl Watch {
    async fn round(&mut self, shared: &Shared, session: &mut Option<Session>) -> Result<()> {
        let read_only = shared.config.repository.read_only;
        let main = match session {
            Some(main) if !main.is_closed() => main,
            _ => session.insert(shared.conninfo.connect().await?),
        };
        let standby = server::in_recovery(main).await?;
        if shared.note_standby(standby) && !standby {
            tracing::info!("the server was promoted");
            super::clear_stale(shared).await;
        }
        if standby {
            return self.standby(shared, main).await;
        }
        let repository = shared.repository().await?;
        if !read_only {
            self.follow(shared, &repository, main).await?;
        }
        let databases = server::databases(main).await?;
        let mut failed = None;
        for database in &databases {
            let known = self.databases.contains_key(&database.oid);
            if !known && !self.round.is_multiple_of(RARE) {
                continue;
            }
            if let Err(error) = self.database(shared, &repository, database, main).await {
                match error.kind {
                    // Dropped meanwhile, or it refuses connections just now; the next round will tell.
                    ErrorKind::Connection => tracing::debug!("database \"{}\": {error}", database.name),
                    // The others are looked at all the same.
                    _ => {
                        let what = format!("In database \"{}\".", database.name);
                        let detail = error.detail.as_ref().map_or(what.clone(), |detail| format!("{what} {detail}"));
                        failed.get_or_insert(error.detail(detail));
                    }
                }
            }
        }
        self.note_dropped_databases(&repository, main).await?;
        self.round += 1;
        failed.map_or(Ok(()), Err)
    }

    /// A round beside a standby.
    async fn standby(&mut self, shared: &Shared, main: &Session) -> Result<()> {
        let mut failed = None;
        for database in server::databases(main).await? {
            if !self.databases.contains_key(&database.oid) && !self.round.is_multiple_of(RARE) {
                continue;
            }
            match self.standby_database(shared, &database).await {
                Ok(()) => {}
                Err(error) if error.kind == ErrorKind::Connection => {
                    tracing::debug!("database \"{}\": {error}", database.name);
                }
                Err(error) => drop(failed.get_or_insert(error)),
            }
        }
        self.round += 1;
        failed.map_or(Ok(()), Err)
    }

    async fn standby_database(&mut self, shared: &Shared, database: &Database) -> Result<()> {
        let session = shared.conninfo.database(&database.name).connect().await?;
        if !server::has_catalog(&session).await? {
            return Ok(());
        }
        let fingerprint = fingerprint(&session).await?;
        let (round, full) = (self.round, self.round.is_multiple_of(FULL));
        let known = self.databases.entry(database.oid).or_default();
        if known.fingerprint != Some(fingerprint) || known.waiting || !known.failed.is_empty() || full {
            let rows = catalog::read_rows(&session).await?;
            known.failed.retain(|hash, _| rows.iter().any(|row| row.hash == *hash));
            // The repository is asked only when something is missing: a store that is shared with the primary lacks nothing.
            if rows.iter().any(|row| !in_store(&shared.store, database.oid, &row.hash)) {
                known.bring_back(shared, &shared.repository().await?, database, &rows).await?;
            } else {
                known.waiting = false;
                known.failed.clear();
            }
            known.fingerprint = Some(fingerprint);
        }
        if round % SWEEP == SWEEP - 1 {
            session.execute("SELECT strata.sweep()", &[]).await?;
        }
        Ok(())
    }

    /// Notes that the fragments of databases that are gone are gone.
    async fn note_dropped_databases(&mut self, repository: &Repository, main: &Session) -> Result<()> {
        let Some(way) = &self.way else { return Ok(()) };
        let logged: Vec<u32> =
            self.databases.iter().filter(|(_, known)| !known.logged.is_empty()).map(|(oid, _)| *oid).collect();
        let row = main
            .query_one(
                "SELECT array(SELECT o FROM unnest($1::oid[]) o WHERE NOT EXISTS (SELECT FROM pg_database d WHERE d.oid = o)), \
                        pg_current_wal_insert_lsn(), clock_timestamp()",
                &[&logged],
            )
            .await?;
        let behind = way.gone(server::lsn(row.get(1)), row.get(2));
        for oid in row.get::<_, Vec<u32>>(0) {
            if let Some(mut known) = self.databases.remove(&oid) {
                known.note_dropped(repository, &[], behind).await?;
            }
        }
        Ok(())
    }

    /// Sees to it that what is known is of the server's timeline.
    async fn follow(&mut self, shared: &Shared, repository: &Repository, main: &Session) -> Result<()> {
        let timeline = timeline(main).await?;
        let before = self.way.take().filter(|way| way.timeline == timeline);
        if before.as_ref().is_some_and(|way| way.known) {
            self.way = before;
            return Ok(());
        }
        let found = history(shared, repository, main, timeline).await?;
        if found.is_none() && before.is_some() {
            self.way = before;
            return Ok(());
        }
        if found.is_none() {
            tracing::warn!(
                timeline,
                "the history of the server's timeline is not found, so what is older in the fragment log is left alone"
            );
        }
        let known = found.is_some();
        let way = Way { timeline, chain: found.unwrap_or_else(|| Chain::unknown(timeline)), known };
        self.databases = load(repository, &way.chain).await?;
        self.way = Some(way);
        // Each database is looked at.
        self.round = 0;
        Ok(())
    }

    async fn database(
        &mut self,
        shared: &Shared,
        repository: &Repository,
        database: &Database,
        main: &Session,
    ) -> Result<()> {
        let session = shared.conninfo.database(&database.name).connect().await?;
        if !server::has_catalog(&session).await? {
            return Ok(());
        }
        let fingerprint = fingerprint(&session).await?;
        let known = self.databases.entry(database.oid).or_default();
        // Now and then the files are looked for even when no row changed.
        let full = self.round.is_multiple_of(FULL);
        if known.fingerprint == Some(fingerprint) && known.failed.is_empty() && !full {
            return Ok(());
        }
        let rows = catalog::read_rows(&session).await?;
        drop(session);
        let row = main.query_one("SELECT pg_current_wal_insert_lsn(), clock_timestamp()", &[]).await?;
        known.bring_back(shared, repository, database, &rows).await?;
        if let Some(way) = &self.way {
            known.keep(shared, repository, database, &rows, &way.chain).await?;
            known.note_dropped(repository, &rows, way.gone(server::lsn(row.get(0)), row.get(1))).await?;
        }
        known.fingerprint = Some(fingerprint);
        Ok(())
    }
}

impl Known {
    /// Fetches files that the store does not have but the repository does.
    async fn bring_back(
        &mut self,
        shared: &Shared,
        repository: &Repository,
        database: &Database,
        rows: &[FragmentRow],
    ) -> Result<()> {
        let (lost, absent): (Vec<&FragmentRow>, Vec<&FragmentRow>) = rows
            .iter()
            .filter(|row| !in_store(&shared.store, database.oid, &row.hash))
            .partition(|row| repository.has_fragment(&row.hash).unwrap_or(false));
        self.waiting = !absent.is_empty();
        let lost: Vec<Wanted> = lost
            .into_iter()
            .map(|row| Wanted {
                database_oid: database.oid,
                database: database.name.clone(),
                relation: row.relation.clone(),
                hash: row.hash.clone(),
                bytes: u64::try_from(row.bytes).unwrap_or(0),
            })
            .collect();
        if lost.is_empty() {
            return Ok(());
        }
        let workers = shared.config.backup.workers();
        let fetched = fetch_all(repository, &shared.store, lost, workers, &Progress::silent()).await?;
        tracing::info!(database = database.name, fetched = fetched.fetched, "fragments brought back into the store");
        for one in fetched.missing {
            self.say_once(&one.fragment.hash, &one.error);
        }
        Ok(())
    }

    /// Copies and logs fragments that are new.
    async fn keep(
        &mut self,
        shared: &Shared,
        repository: &Repository,
        database: &Database,
        rows: &[FragmentRow],
        way: &Chain,
    ) -> Result<()> {
        if repository.tool().is_some() {
            // All at once, in as few runs of the tool as they fit in; one that fails is not started for each row.
            let new = rows.iter().filter(|row| !self.logged.contains_key(&(row.fragment_id, row.hash.clone())));
            let files: Vec<FragmentFile> = new
                .filter_map(|row| {
                    let below = names::fragment_relative_path(database.oid, &row.hash)?;
                    Some(FragmentFile { hash: row.hash.clone(), path: shared.store.join(below) })
                })
                .collect();
            let repository = repository.clone();
            blocking(move || repository.tool().map_or(Ok(0), |tool| repository.send_fragments(tool, files, None)))
                .await?;
        }
        for row in rows {
            let key = (row.fragment_id, row.hash.clone());
            if self.logged.contains_key(&key) {
                continue;
            }
            let (repository, database, fragment, store) =
                (repository.clone(), database.clone(), row.clone(), shared.store.clone());
            let way = way.clone();
            let kept = blocking(move || catalog::keep(&repository, &database, &fragment, &store, &way));
            match kept.await {
                Ok((copied, entry)) => {
                    tracing::info!(hash = row.hash, copied, "fragment logged");
                    self.failed.remove(&row.hash);
                    self.logged.insert(key, entry);
                }
                Err(error) => self.say_once(&row.hash, &error.to_string()),
            }
        }
        Ok(())
    }

    /// Notes in the log which rows are gone.
    async fn note_dropped(&mut self, repository: &Repository, rows: &[FragmentRow], behind: Dropped) -> Result<()> {
        let there: HashSet<(i64, &str)> = rows.iter().map(|row| (row.fragment_id, row.hash.as_str())).collect();
        let gone: Vec<(i64, String)> =
            self.logged.keys().filter(|(id, hash)| !there.contains(&(*id, hash.as_str()))).cloned().collect();
        for key in gone {
            let Some(entry) = self.logged.remove(&key) else { continue };
            let repository = repository.clone();
            blocking(move || repository.log_dropped(&entry, behind)).await?;
        }
        self.failed.retain(|hash, _| rows.iter().any(|row| row.hash == *hash));
        Ok(())
    }

    fn say_once(&mut self, hash: &str, error: &str) {
        if self.failed.insert(hash.to_owned(), error.to_owned()).as_deref() != Some(error) {
            tracing::error!(hash, "fragment: {error}");
        }
    }
}

/// Changes when rows of `strata.fragment` come or go.
async fn fingerprint(session: &Session) -> Result<(i64, i64)> {
    let row = session
        .query_one("SELECT count(*), coalesce(sum(hashtextextended(fragment_id || hash, 0) >> 20), 0)::bigint FROM strata.fragment", &[])
        .await?;
    Ok((row.get(0), row.get(1)))
}

fn in_store(store: &Path, database_oid: u32, hash: &str) -> bool {
    names::fragment_relative_path(database_oid, hash).is_some_and(|below| store.join(below).exists())
}

async fn timeline(session: &Session) -> Result<u32> {
    let row = session.query_one("SELECT pg_walfile_name(pg_current_wal_lsn())", &[]).await?;
    let name: String = row.get(0);
    crate::wal::name::Segment::parse(&name)
        .map(|segment| segment.timeline)
        .ok_or_else(|| Error::new(ErrorKind::Postgres, format!("the server names its WAL segment \"{name}\"")))
}

/// The way to the server's timeline: as its own history file has it, else the archive's. None when neither is there, or can be read.
async fn history(shared: &Shared, repository: &Repository, main: &Session, timeline: u32) -> Result<Option<Chain>> {
    if timeline == 1 {
        return Ok(Some(Chain::unknown(1)));
    }
    let data: PathBuf = match &shared.config.member.data_directory {
        Some(data) => data.clone(),
        None => ServerInfo::ask(main).await?.data_directory,
    };
    let repository = repository.clone();
    blocking(move || {
        let file = data.join("pg_wal").join(format!("{timeline:08X}.history"));
        // The data directory may be somebody else's, or on another machine.
        if let Ok(Some(content)) = fsio::read_optional(&file)
            && let Ok(chain) = Chain::parse(timeline, &String::from_utf8_lossy(&content))
        {
            return Ok(Some(chain));
        }
        match Chain::read(&repository, timeline) {
            Err(error) if error.kind == ErrorKind::Damaged => {
                tracing::warn!("{error}");
                Ok(None)
            }
            other => other,
        }
    })
    .await
}

/// What an earlier agent logged of rows on the way that it has not seen to be gone there: so that those that went meanwhile are noticed.
async fn load(repository: &Repository, way: &Chain) -> Result<HashMap<u32, Known>> {
    let repository = repository.clone();
    let mut databases: HashMap<u32, Known> = HashMap::new();
    for entry in blocking(move || repository.fragment_log()).await? {
        if entry.on(way) && entry.dropped_on(way).is_none() {
            let known = databases.entry(entry.database_oid).or_default();
            known.logged.insert((entry.fragment.fragment_id, entry.fragment.hash.clone()), entry);
        }
    }
    Ok(databases)
}

/// Fetches all fragments of a server that was just recovered. Done when all are there, or when the server is gone.
/// `hold` is given up when what the repository has is there.
pub(super) async fn until_complete(shared: &Shared, mut hold: AgentHold) -> Result<()> {
    let data = shared.config.member.data_directory.clone().ok_or_else(|| {
        Error::new(ErrorKind::Config, "--until-complete needs member.data_directory in the configuration")
    })?;
    let mut last_seen = Instant::now();
    let mut patience = APPEAR;
    let mut cleared = false;
    let mut known = Known::default();
    let mut backoff = Backoff::new();
    loop {
        if server_alive(&data) {
            (last_seen, patience) = (Instant::now(), AWAY);
        } else if last_seen.elapsed() > patience || !data.exists() {
            tracing::info!("the server is gone");
            return Ok(());
        }
        match fetch_wanted(shared, &mut known).await {
            Ok(missing) => {
                hold.done();
                if !cleared {
                    super::clear_stale(shared).await;
                    cleared = true;
                }
                if missing == 0 {
                    tracing::info!("all fragments are in the store");
                    return Ok(());
                }
                // The repository may get them some day.
                backoff.pause().await;
            }
            // It takes no connections before it is open.
            Err(error) if error.kind == ErrorKind::Connection => tokio::time::sleep(Duration::from_millis(100)).await,
            Err(error) => {
                tracing::warn!("fragments are not fetched just now: {}", error.full_text());
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn fetch_wanted(shared: &Shared, known: &mut Known) -> Result<usize> {
    let all = wanted(&shared.conninfo).await?;
    let repository = shared.repository().await?;
    let workers = shared.config.backup.workers();
    let fetched = fetch_all(&repository, &shared.store, all, workers, &Progress::silent()).await?;
    for one in &fetched.missing {
        known.say_once(&one.fragment.hash, &one.error);
    }
    if fetched.fetched > 0 {
        let (count, bytes, missing) = (fetched.fetched, fetched.fetched_bytes, fetched.missing.len());
        tracing::info!(fetched = count, bytes, missing, "fragments fetched");
    }
    Ok(fetched.missing.len())
}

fn server_alive(data: &Path) -> bool {
    std::fs::read_to_string(data.join("postmaster.pid"))
        .ok()
        .and_then(|text| text.lines().next()?.trim().parse().ok())
        .and_then(rustix::process::Pid::from_raw)
        .is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
}

#[cfg(test)]
mod tests;
