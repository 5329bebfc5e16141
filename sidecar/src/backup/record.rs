//! What is said of work in schema `strata`: running jobs, and the mirror of the repository's entries.
//!
//! The repository is the truth. So nothing here makes a backup fail: a database without the extension, or one that
//! refuses a row, costs a log line.

use crate::error::{Error, ErrorKind, Result};
use crate::postgres::server::pg_lsn;
use crate::postgres::{Conninfo, Session};
use crate::progress::{Report, Sink};
use std::time::Duration;
use strata_catalog::{BackupRow, JobKind, JobState, names};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_postgres::types::PgLsn;

/// How often a job's row is rewritten at most.
const JOB_INTERVAL: Duration = Duration::from_millis(500);

/// True when the session's database has the extension's catalog of jobs and backups.
pub async fn has_jobs(session: &Session) -> bool {
    let query = format!("SELECT to_regclass('{}') IS NOT NULL", names::TABLE_JOB);
    match session.query_one(query.as_str(), &[]).await {
        Ok(row) => row.get(0),
        Err(_) => false,
    }
}

/// Writes a row of `strata.backup`, in place of the one with the same id.
pub async fn upsert_backup(session: &Session, row: &BackupRow) -> Result<()> {
    let lsn = |lsn: Option<strata_catalog::Lsn>| -> Option<PgLsn> { lsn.map(pg_lsn) };
    session
        .execute(
            "INSERT INTO strata.backup (backup_id, system, member, repository, state, timeline, start_lsn, stop_lsn, \
                 started_at, stopped_at, data_bytes, stored_bytes, fragments, fragment_bytes, fragments_copied, \
                 fragment_bytes_copied, error, tool, tool_result) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19) \
             ON CONFLICT (backup_id) DO UPDATE SET (system, member, repository, state, timeline, start_lsn, stop_lsn, \
                 started_at, stopped_at, data_bytes, stored_bytes, fragments, fragment_bytes, fragments_copied, \
                 fragment_bytes_copied, error, tool, tool_result) = (excluded.system, excluded.member, excluded.repository, excluded.state, \
                 excluded.timeline, excluded.start_lsn, excluded.stop_lsn, excluded.started_at, excluded.stopped_at, \
                 excluded.data_bytes, excluded.stored_bytes, excluded.fragments, excluded.fragment_bytes, \
                 excluded.fragments_copied, excluded.fragment_bytes_copied, excluded.error, excluded.tool, excluded.tool_result)",
            &[
                &row.backup_id,
                &row.system,
                &row.member,
                &row.repository,
                &row.state.as_str(),
                &row.timeline,
                &lsn(row.start_lsn),
                &lsn(row.stop_lsn),
                &row.started_at,
                &row.stopped_at,
                &row.data_bytes,
                &row.stored_bytes,
                &row.fragments,
                &row.fragment_bytes,
                &row.fragments_copied,
                &row.fragment_bytes_copied,
                &row.error,
                &row.tool,
                &row.tool_result,
            ],
        )
        .await?;
    Ok(())
}

/// Marks backups and their jobs as failed that rows say are running, though nobody runs them. Call it under the backup lock.
pub async fn fail_interrupted(session: &Session, system: &str, member: &str) -> Result<u64> {
    // A job that is younger may be about to ask for the lock.
    session
        .execute(
            "UPDATE strata.job SET state = 'failed', error = 'the process that ran it ended', finished_at = clock_timestamp() \
             WHERE state = 'running' AND kind = 'backup' AND started_at < clock_timestamp() - interval '1 minute'",
            &[],
        )
        .await?;
    Ok(session
        .execute(
            "UPDATE strata.backup SET state = 'failed', error = 'interrupted' \
             WHERE state = 'running' AND system = $1 AND member = $2",
            &[&system, &member],
        )
        .await?)
}

/// A row of `strata.job` that follows the work on a connection of its own, so that the work never waits for it.
pub struct Job {
    id: i64,
    conninfo: Conninfo,
    latest: watch::Sender<Option<Report>>,
    writer: JoinHandle<()>,
}

impl Job {
    /// Records that a job began. None when the database has no catalog of jobs, or does not take the row.
    pub async fn start(conninfo: &Conninfo, kind: JobKind, object: Option<&str>) -> Option<Self> {
        let begin = async {
            let session = conninfo.connect().await?;
            if !has_jobs(&session).await {
                return Ok(None);
            }
            let row = session
                .query_one(
                    "INSERT INTO strata.job (kind, object) VALUES ($1, $2) RETURNING job_id",
                    &[&kind.as_str(), &object],
                )
                .await?;
            Ok::<_, Error>(Some((session, row.get(0))))
        };
        let (session, id) = match begin.await {
            Ok(found) => found?,
            // The work itself says so if it needs the server.
            Err(error) if error.kind == ErrorKind::Connection => return None,
            Err(error) => {
                tracing::warn!("the job is not recorded in strata.job: {error}");
                return None;
            }
        };
        let (latest, reports) = watch::channel(None);
        let writer = tokio::spawn(follow(session, id, reports));
        Some(Self { id, conninfo: conninfo.clone(), latest, writer })
    }

    /// The job's number.
    pub fn id(&self) -> i64 {
        self.id
    }

    /// Where the work reports to.
    pub fn sink(&self) -> Box<dyn Sink> {
        Box::new(JobSink(self.latest.clone()))
    }

    /// Records the job's end.
    pub async fn finish(self, outcome: std::result::Result<&serde_json::Value, &Error>) {
        self.writer.abort();
        let (state, result, error) = match outcome {
            Ok(result) => (JobState::Done, Some(result), None),
            Err(error) => (JobState::Failed, None, Some(error.full_text())),
        };
        let end = async {
            let session = self.conninfo.connect().await?;
            session
                .execute(
                    "UPDATE strata.job SET state = $2, result = $3, error = $4, finished_at = clock_timestamp(), \
                         phase = CASE WHEN $2 = 'done' THEN NULL ELSE phase END, done = CASE WHEN $2 = 'done' THEN coalesce(total, done) ELSE done END WHERE job_id = $1",
                    &[&self.id, &state.as_str(), &result, &error],
                )
                .await?;
            Ok::<_, Error>(())
        };
        if let Err(error) = end.await {
            tracing::warn!("the end of job {} is not recorded in strata.job: {error}", self.id);
        }
    }
}

struct JobSink(watch::Sender<Option<Report>>);

impl Sink for JobSink {
    fn report(&self, report: &Report) {
        self.0.send_replace(Some(report.clone()));
    }
}

async fn follow(session: Session, id: i64, mut reports: watch::Receiver<Option<Report>>) {
    let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    while reports.changed().await.is_ok() {
        let Some(report) = reports.borrow_and_update().clone() else { continue };
        let total = (report.total > 0).then(|| signed(report.total));
        let written = session
            .execute(
                "UPDATE strata.job SET phase = $2, done = $3, total = $4 WHERE job_id = $1 AND state = 'running'",
                &[&id, &report.phase, &signed(report.done), &total],
            )
            .await;
        if let Err(error) = written {
            tracing::debug!("progress of job {id} is not recorded: {error}");
            return;
        }
        tokio::time::sleep(JOB_INTERVAL).await;
    }
}
