//! Waiting until WAL is in the repository.

use super::blocking;
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::{ServerInfo, Session};
use crate::progress::Progress;
use crate::repository::Repository;
use crate::wal::name::{Segment, WalName};
use crate::wal::push;
use std::path::Path;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(50);
/// The same where each look is a request.
const POLL_REMOTE: Duration = Duration::from_millis(250);

/// The `archive_command` that runs this program with its configuration.
fn push_command(config: &Config) -> String {
    let program = std::env::current_exe().map_or_else(|_| "strata".to_owned(), |path| path.display().to_string());
    format!("{program} --config {} wal push %p", config.file.display())
}

/// Fails unless the server archives its WAL.
pub fn require_archiving(config: &Config, server: &ServerInfo) -> Result<()> {
    let wrong = |what: &str, hint: String| Err(Error::new(ErrorKind::Config, what).with_hint(hint));
    if server.wal_level == "minimal" {
        return wrong("wal_level is minimal", "Set wal_level = replica and restart the server.".to_owned());
    }
    // The agent archives whole segments as well.
    if config.wal.stream {
        return Ok(());
    }
    if server.archive_mode == "off" {
        return wrong(
            "archive_mode is off, so no WAL arrives in the repository",
            format!("Set archive_mode = on and archive_command = '{}', and restart the server.", push_command(config)),
        );
    }
    if (server.archive_command.is_empty() || server.archive_command == "(disabled)")
        && server.archive_library.is_empty()
    {
        return wrong(
            "archive_command is empty, so no WAL arrives in the repository",
            format!("Set archive_command = '{}' and reload the server.", push_command(config)),
        );
    }
    Ok(())
}

/// Sees to it that the history of the server's timeline is in the archive: a recovery on a timeline begins with it. The server
/// archives it when it makes it, but not when archiving was turned on later, as in a server that was recovered.
pub async fn keep_history(config: &Config, session: &Session, data_directory: &Path) -> Result<()> {
    let name: String = session.query_one("SELECT pg_walfile_name(pg_current_wal_insert_lsn())", &[]).await?.get(0);
    let timeline = Segment::parse(&name)
        .ok_or_else(|| Error::new(ErrorKind::Postgres, format!("the server names its WAL segment \"{name}\"")))?
        .timeline;
    if timeline == 1 {
        return Ok(());
    }
    let path = data_directory.join("pg_wal").join(format!("{timeline:08X}.history"));
    let config = config.clone();
    blocking(move || {
        let pushed = push::push(&config, &path)?;
        if !pushed.already_archived {
            tracing::info!("archived \"{}\", which the server had not archived", path.display());
        }
        Ok(())
    })
    .await
}

/// Waits until every segment from `first` to `last` is in the repository, durably. The time limit begins anew with each
/// one that arrives, and whenever the archiver got on: it may have older ones to do first.
pub async fn wait(
    repository: &Repository,
    session: &Session,
    server: &ServerInfo,
    first: Segment,
    last: Segment,
    timeout: Duration,
    progress: &Progress,
) -> Result<()> {
    let size = u64::from(server.segment_size);
    let (from, to) = (first.number(size), last.number(size));
    progress.phase("wal", (to + 1).saturating_sub(from), "waiting until the WAL is in the repository");
    let mut deadline = Instant::now() + timeout;
    let mut next = from;
    let mut archived = archiver(session).await.0;
    loop {
        while next <= to && repository.has_segment(Segment::numbered(last.timeline, next, size))? {
            next += 1;
            progress.advance(1);
            deadline = Instant::now() + timeout;
        }
        if next > to {
            // A push gives a segment its name just before it makes the name durable.
            let path = repository.wal_path(&last.to_string(), WalName::Segment(last));
            return repository.storage().confirm(&path, repository.root());
        }
        if Instant::now() >= deadline {
            let wanted = Segment::numbered(last.timeline, next, size);
            let (now, last_archived) = archiver(session).await;
            // An archiver that is behind the segment already has put it elsewhere.
            if now > archived && last_archived.is_some_and(|name| name < wanted.to_string()) {
                archived = now;
                deadline = Instant::now() + timeout;
                continue;
            }
            return Err(late(session, server, wanted, timeout).await);
        }
        tokio::time::sleep(if repository.storage().is_directory() { POLL } else { POLL_REMOTE }).await;
    }
}

/// How many files the archiver has archived, and the last one; none when that is not known.
async fn archiver(session: &Session) -> (Option<i64>, Option<String>) {
    match session.query_one("SELECT archived_count, last_archived_wal FROM pg_stat_archiver", &[]).await {
        Ok(row) => (row.get(0), row.get(1)),
        Err(_) => (None, None),
    }
}

async fn late(session: &Session, server: &ServerInfo, segment: Segment, timeout: Duration) -> Error {
    let mut detail = format!("archive_command is: {}", server.archive_command);
    if !server.archive_library.is_empty() {
        detail = format!("archive_library is: {}", server.archive_library);
    }
    let failed = session
        .query_one("SELECT failed_count, last_failed_wal, last_failed_time::text FROM pg_stat_archiver", &[])
        .await;
    if let Ok(row) = failed
        && let (Some(wal), Some(time)) = (row.get::<_, Option<String>>(1), row.get::<_, Option<String>>(2))
    {
        let count: i64 = row.get(0);
        detail.push_str(&format!("\nThe archiver failed {count} times, last on {wal} at {time}."));
    }
    Error::new(
        ErrorKind::Archive,
        format!("the WAL segment {segment} did not arrive in the repository within {} s", timeout.as_secs_f64()),
    )
    .detail(detail)
    .with_hint("See the server's log for what archive_command says, and run it by hand.")
}
