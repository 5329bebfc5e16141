//! Waiting until WAL is in the repository.

use super::blocking;
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::{ServerInfo, Session};
use crate::progress::Progress;
use crate::repository::{Repository, fsio};
use crate::wal::name::{Segment, WalName};
use crate::wal::push;
use std::path::Path;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(50);

/// Fails unless the server archives its WAL.
pub fn require_archiving(server: &ServerInfo) -> Result<()> {
    let wrong = |what: String, hint: &str| Err(Error::new(ErrorKind::Config, what).with_hint(hint));
    if server.wal_level == "minimal" {
        return wrong("wal_level is minimal".into(), "Set wal_level = replica and restart the server.");
    }
    if server.archive_mode == "off" {
        return wrong(
            "archive_mode is off, so no WAL arrives in the repository".into(),
            "Set archive_mode = on and archive_command = 'strata --config FILE wal push %p', and restart the server.",
        );
    }
    if (server.archive_command.is_empty() || server.archive_command == "(disabled)")
        && server.archive_library.is_empty()
    {
        return wrong(
            "archive_command is empty, so no WAL arrives in the repository".into(),
            "Set archive_command = 'strata --config FILE wal push %p' and reload the server.",
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
    let mut archived = archived_count(session).await;
    loop {
        while next <= to && repository.has_segment(Segment::numbered(last.timeline, next, size)) {
            next += 1;
            progress.advance(1);
            deadline = Instant::now() + timeout;
        }
        if next > to {
            // A push gives a segment its name just before it makes the name durable.
            let path = repository.wal_path(&last.to_string(), WalName::Segment(last));
            return fsio::confirm(&path, repository.root());
        }
        if Instant::now() >= deadline {
            let now = archived_count(session).await;
            if now > archived {
                archived = now;
                deadline = Instant::now() + timeout;
                continue;
            }
            return Err(late(session, server, Segment::numbered(last.timeline, next, size), timeout).await);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// How many files the archiver has archived; none when that is not known.
async fn archived_count(session: &Session) -> Option<i64> {
    session.query_one("SELECT archived_count FROM pg_stat_archiver", &[]).await.ok().map(|row| row.get(0))
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
