//! Receives the WAL as it is written, by streaming replication, so that the loss of the host loses less than a second.
//!
//! ```text
//!   walsender ──► Incoming ──┬─ each stream_interval ──► pieces of the segment  ─┬─► status: stored up to here
//!     ▲ slot                 └─ segment full ──────────► archive, pieces away   ─┘
//!     └────────────────────────────────────────────────────────────────────────
//! ```
//!
//! It runs beside a primary when `[wal] stream` is set. A physical slot, made when it is not there, keeps the server from removing
//! what is not stored, and tells after any interruption of either side where to go on: at the beginning of the segment in which the
//! slot stands, behind those that the archive has, behind the pieces that are stored. The server is told only of what is durable in the repository,
//! so it may name this receiver (`strata`) in `synchronous_standby_names`.
//!
//! `archive_command` may archive the same segments: who comes second finds the same content there. At the end of a timeline the history of the next
//! one is archived, and its first segment is received from its beginning; the pieces of the last segment of the old one stay.
//!
//! An error ends the session; the next one begins after a pause. The alarm for a stream that stands is `strata check`, and the
//! server's `pg_replication_slots`.

use super::{Backoff, Shared};
use crate::backup::blocking;
use crate::error::Result;
use crate::postgres::replication::{Received, Replication, Started};
use crate::postgres::{ServerInfo, server};
use crate::repository::{Identity, Repository};
use crate::wal::name::{Segment, WalName};
use crate::wal::push::Prepared;
use crate::wal::stream::{self, Incoming};
use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;
use std::time::Duration;
use strata_catalog::Lsn;
use tokio::time::Instant;

/// How often the server hears of us when nothing happens.
const HEARTBEAT: Duration = Duration::from_secs(5);
const STANDBY_POLL: Duration = Duration::from_millis(500);

/// How streaming goes.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct StreamStatus {
    /// WAL is being received.
    pub streaming: bool,
    /// The timeline.
    pub timeline: u32,
    /// Everything before this position is in the repository.
    pub stored: Lsn,
    /// When that was last so.
    pub at: Timestamp,
    /// Why the last session ended.
    pub error: Option<String>,
}

impl StreamStatus {
    /// Nothing was received yet.
    pub fn none() -> Self {
        Self { streaming: false, timeline: 0, stored: Lsn(0), at: Timestamp::now(), error: None }
    }
}

/// The slot that a configuration names.
pub fn slot_name(config: &crate::config::Config) -> String {
    let clean = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    let default = || format!("strata_{}", config.member.name.chars().map(clean).collect::<String>());
    config.wal.slot.clone().unwrap_or_else(default).chars().take(63).collect()
}

/// Receives for ever.
pub(super) async fn run(shared: &Shared) {
    let mut backoff = Backoff::new();
    loop {
        while shared.is_standby() {
            tokio::time::sleep(STANDBY_POLL).await;
        }
        let began = Instant::now();
        let Err(error) = session(shared).await else { continue };
        tracing::warn!("WAL is not streamed just now: {}", error.full_text());
        shared.note_stream(|status| {
            status.streaming = false;
            status.error = Some(error.message.clone());
        });
        if began.elapsed() > HEARTBEAT {
            backoff.reset();
        }
        backoff.pause().await;
    }
}

/// Receives until something ends it. That is an error, except that the server turned out to be a standby.
async fn session(shared: &Shared) -> Result<()> {
    let sql = shared.conninfo.connect().await?;
    if server::in_recovery(&sql).await? {
        shared.note_standby(true);
        return Ok(());
    }
    let info = ServerInfo::ask(&sql).await?;
    drop(sql);
    let identity = Identity { system_identifier: info.system_identifier, segment_size: info.segment_size };
    let size = u64::from(info.segment_size);
    let repository = shared.repository().await?;
    let (claimed, level) = (repository.clone(), shared.config.backup.compress_level);
    blocking(move || {
        claimed.claim(&identity)?;
        stream::sweep(&claimed)
    })
    .await?;
    let slot = slot_name(&shared.config);
    let mut link = Replication::connect(&shared.conninfo).await?;
    let system = link.identify().await?;
    let mut stands = link.slot(&slot).await?;
    if stands.is_none() {
        link.create_slot(&slot).await?;
        tracing::info!(slot, "made a replication slot");
        stands = link.slot(&slot).await?;
    }
    let restart = stands.and_then(|slot| slot.restart).unwrap_or(system.flushed);
    let mut timeline = stands.and_then(|slot| slot.timeline).unwrap_or(system.timeline);
    let mut segment = Segment::holding(timeline, restart, size);
    loop {
        keep_history(&mut link, &repository, timeline, level).await?;
        let from = repository.clone();
        let (first, limit) = (segment, system.flushed);
        let incoming = blocking(move || {
            let first = behind_archived(&from, first, limit, size)?;
            Incoming::resume(from, first, size, level)
        })
        .await?;
        let next = match link.start(&slot, timeline, incoming.received()).await? {
            Started::Ended(next) => next,
            Started::Streaming => {
                tracing::info!(timeline, from = %incoming.received(), "WAL is streamed");
                receive(shared, &mut link, incoming, timeline, size).await?;
                link.finish_timeline().await?
            }
        };
        tracing::info!("timeline {timeline} ended at {}; {} follows", next.begin, next.timeline);
        timeline = next.timeline;
        segment = Segment::holding(timeline, next.begin, size);
    }
}

/// The first segment from `first` on that the archive does not have. What the archive has need not be received again. The segment that
/// the server writes now is never left out.
fn behind_archived(repository: &Repository, first: Segment, written: Lsn, size: u64) -> Result<Segment> {
    let mut segment = first;
    while segment.end(size) <= written && repository.has_segment(segment)? {
        let path = repository.wal_path(&segment.to_string(), WalName::Segment(segment));
        repository.storage().confirm(&path, repository.root())?;
        segment = Segment::numbered(segment.timeline, segment.number(size) + 1, size);
    }
    Ok(segment)
}

/// A recovery on a timeline begins with its history.
async fn keep_history(link: &mut Replication, repository: &Repository, timeline: u32, level: i32) -> Result<()> {
    if timeline == 1 {
        return Ok(());
    }
    let content = link.history(timeline).await?;
    let repository = repository.clone();
    let kind = WalName::History(timeline);
    blocking(move || {
        let name = format!("{timeline:08X}.history");
        Prepared::of(repository, &name, kind, &content, None, level)?.publish().map(drop)
    })
    .await
}

/// Receives a timeline to its end.
async fn receive(
    shared: &Shared,
    link: &mut Replication,
    mut incoming: Incoming,
    timeline: u32,
    size: u64,
) -> Result<()> {
    let interval = shared.config.wal.stream_interval;
    let mut heard = Instant::now();
    // When what is not stored must be.
    let mut due: Option<Instant> = None;
    tell(shared, link, &incoming, timeline).await?;
    loop {
        let wake = due.unwrap_or(heard + HEARTBEAT);
        let received = tokio::select! {
            biased;
            () = tokio::time::sleep_until(wake) => None,
            received = link.receive() => Some(received),
        };
        let mut must_tell = received.is_none();
        match received {
            None => {}
            Some(Ok(Received::Wal(start, bytes))) => {
                incoming = take(incoming, start, bytes, size, shared, &mut must_tell).await?;
                due = match incoming.is_dirty() {
                    true => due.or_else(|| Some(Instant::now() + interval)),
                    false => None,
                };
            }
            // A server that shuts down waits until all is stored.
            Some(Ok(Received::Keepalive(asked))) => must_tell = asked,
            Some(Ok(Received::TimelineEnd)) => {
                store(incoming).await?;
                return Ok(());
            }
            // What came before the connection was lost is stored all the same.
            Some(Err(error)) => {
                store(incoming).await?;
                return Err(error);
            }
        }
        if must_tell {
            incoming = store(incoming).await?;
            due = None;
            heard = Instant::now();
            tell(shared, link, &incoming, timeline).await?;
        }
    }
}

/// Takes bytes into the segment, and into those that follow. Sets `finished` when a segment is full and archived.
async fn take(
    mut incoming: Incoming,
    mut start: Lsn,
    mut bytes: Bytes,
    size: u64,
    shared: &Shared,
    finished: &mut bool,
) -> Result<Incoming> {
    loop {
        let taken = incoming.append(start, &bytes)?;
        let _ = bytes.split_to(taken);
        start = Lsn(start.0 + taken as u64);
        if !incoming.is_full() {
            return Ok(incoming);
        }
        let (repository, level) = (shared.repository().await?, shared.config.backup.compress_level);
        incoming = blocking(move || {
            let next = incoming.finish()?;
            Incoming::resume(repository, next, size, level)
        })
        .await?;
        *finished = true;
        if bytes.is_empty() {
            return Ok(incoming);
        }
    }
}

async fn store(mut incoming: Incoming) -> Result<Incoming> {
    if !incoming.is_dirty() {
        return Ok(incoming);
    }
    blocking(move || {
        incoming.store()?;
        Ok(incoming)
    })
    .await
}

async fn tell(shared: &Shared, link: &mut Replication, incoming: &Incoming, timeline: u32) -> Result<()> {
    let stored = incoming.stored();
    shared.note_stream(|status| {
        *status = StreamStatus { streaming: true, timeline, stored, at: Timestamp::now(), error: None };
    });
    link.status(incoming.received(), stored).await
}
