//! Watches how much WAL waits for the repository, and gives alarm.
//!
//! While the alarm lasts it is in the agent's log and goes out as a notification on the channel `strata_wal`, when it begins, when it grows to the limit,
//! and once a minute; its end is told as well. The payload is JSON: the members of [`Backlog`] and a `message`. An alarm must not depend on
//! the server's taking connections, so the log comes first.

use super::Shared;
use crate::backup::blocking;
use crate::error::Result;
use crate::postgres::ServerInfo;
use crate::wal::backlog::{Backlog, Pressure};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The channel of the notifications.
const CHANNEL: &str = "strata_wal";
const POLL: Duration = Duration::from_secs(1);
/// How often an alarm that lasts is repeated.
const REPEAT: Duration = Duration::from_secs(60);

/// Watches for ever.
pub(super) async fn run(shared: &Shared) {
    let mut told = Pressure::Ok;
    let mut last = Instant::now();
    let mut data = shared.config.member.data_directory.clone();
    loop {
        tokio::time::sleep(POLL).await;
        if data.is_none() {
            data = ask(shared).await.ok();
        }
        let Some(data) = data.clone() else { continue };
        let wal = shared.config.wal.clone();
        let Ok(backlog) = blocking(move || Backlog::look(&wal, &data)).await else { continue };
        shared.note_backlog(backlog.clone());
        let repeat = backlog.pressure != Pressure::Ok && last.elapsed() >= REPEAT;
        if backlog.pressure == told && !repeat {
            continue;
        }
        let message = backlog
            .alarm(shared.config.wal.at_limit)
            .unwrap_or_else(|| "no more WAL waits for the repository than may".to_owned());
        match backlog.pressure {
            Pressure::Ok => tracing::info!("{message}"),
            Pressure::Alarm => tracing::warn!("{message}"),
            Pressure::Full => tracing::error!("{message}"),
        }
        (told, last) = (backlog.pressure, Instant::now());
        if let Err(error) = notify(shared, &backlog, message).await {
            tracing::warn!("nobody was notified of it: {error}");
        }
    }
}

async fn ask(shared: &Shared) -> Result<PathBuf> {
    let session = shared.conninfo.connect().await?;
    Ok(ServerInfo::ask(&session).await?.data_directory)
}

async fn notify(shared: &Shared, backlog: &Backlog, message: String) -> Result<()> {
    let mut payload = serde_json::json!(backlog);
    if let Some(members) = payload.as_object_mut() {
        members.insert("message".to_owned(), message.into());
    }
    let session = shared.conninfo.connect().await?;
    // A standby takes no notifications.
    if !crate::postgres::server::in_recovery(&session).await? {
        session.execute("SELECT pg_notify($1, $2)", &[&CHANNEL, &payload.to_string()]).await?;
    }
    Ok(())
}
