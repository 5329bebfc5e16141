//! The agent's own schedule.
//!
//! One thing is done at a time, by one task, so nothing overlaps; the repository's locks keep it apart from commands. The repository
//! remembers up to when the schedule of each kind of work is settled (`schedule.json`). Work is due when a time of its schedule lies
//! between that and now. So what was missed while the agent, the server or the machine was down is made up, once, whatever number of times
//! was missed. A run that another process kept out, or for which the server was away, is tried again every half minute;
//! one that failed otherwise is settled, said in the log and in `strata.job`, and waits for its next time. A kind of work that is scheduled
//! for the first time begins with its next time.
//!
//! A run that is killed is made up: its time is settled when it ends.

use super::Shared;
use crate::backup::record::Job;
use crate::backup::{self, blocking};
use crate::config::schedule::Times;
use crate::drill::{self, DrillRequest};
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::ServerInfo;
use crate::progress::Progress;
use crate::recovery::plan::PlanRequest;
use crate::recovery::target::Target;
use crate::repository::Repository;
use crate::retention::{self, ExpireRequest};
use crate::verify::{self, Selection};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use strata_catalog::JobKind;

/// How often the clock is looked at.
const TICK: Duration = Duration::from_secs(1);
/// The pause before something that could not begin is tried again.
const AGAIN: Duration = Duration::from_secs(30);

/// Up to when each kind of work is settled.
type Settled = BTreeMap<String, Timestamp>;

impl Repository {
    fn schedule_path(&self) -> PathBuf {
        self.member_dir().join("schedule.json")
    }
}

/// Works by the clock for ever.
pub(super) async fn run(shared: &Shared) {
    let schedule = &shared.config.schedule;
    let kinds = [
        (JobKind::Backup, &schedule.backup),
        (JobKind::Expire, &schedule.expire),
        (JobKind::Verify, &schedule.verify),
        (JobKind::Drill, &schedule.drill),
    ];
    let kinds: Vec<(JobKind, &Times)> =
        kinds.into_iter().filter_map(|(kind, times)| Some((kind, times.as_ref()?))).collect();
    if kinds.is_empty() || shared.config.repository.read_only {
        return;
    }
    loop {
        let mut pause = TICK;
        for (kind, times) in &kinds {
            match one(shared, *kind, times).await {
                Ok(()) => {}
                Err(error) if matches!(error.kind, ErrorKind::Connection | ErrorKind::Locked) => {
                    tracing::warn!("scheduled {kind} is put off: {error}");
                    pause = AGAIN;
                }
                Err(error) => {
                    tracing::error!("scheduled {kind}: {}", error.full_text());
                    pause = AGAIN;
                }
            }
        }
        tokio::time::sleep(pause).await;
    }
}

/// Does one kind of work if it is due. An error means that its time is not settled.
async fn one(shared: &Shared, kind: JobKind, times: &Times) -> Result<()> {
    let repository = shared.repository().await?;
    let path = repository.schedule_path();
    let now = Timestamp::now();
    let mut settled: Settled = match repository.storage().read_sealed(&path) {
        Ok(settled) => settled.unwrap_or_default(),
        Err(error) if error.kind == ErrorKind::Damaged => Settled::new(),
        Err(error) => return Err(error),
    };
    if let Some(last) = settled.get(kind.as_str()) {
        if times.next(*last).is_none_or(|due| due > now) {
            return Ok(());
        }
        let session = shared.conninfo.connect().await?;
        if session.query_one("SELECT pg_is_in_recovery()", &[]).await?.get(0) {
            return Ok(());
        }
        let info = ServerInfo::ask(&session).await?;
        drop(session);
        let job = Job::start(&shared.conninfo, kind, Some("schedule")).await;
        let progress = match &job {
            Some(job) => Progress::new(vec![job.sink()], Duration::from_millis(200)),
            None => Progress::silent(),
        };
        tracing::info!("scheduled {kind} begins");
        let outcome = work(shared, kind, &info, &progress).await;
        if let Some(job) = job {
            job.finish(outcome.as_ref()).await;
        }
        match outcome {
            Ok(_) => tracing::info!("scheduled {kind} is done"),
            Err(error) if matches!(error.kind, ErrorKind::Connection | ErrorKind::Locked) => return Err(error),
            Err(error) => tracing::error!("scheduled {kind} failed: {}", error.full_text()),
        }
    }
    settled.insert(kind.as_str().to_owned(), now);
    blocking(move || repository.storage().write_sealed(&path, &settled)).await
}

async fn work(shared: &Shared, kind: JobKind, info: &ServerInfo, progress: &Progress) -> Result<Value> {
    let (config, progress) = (shared.config.clone(), progress.clone());
    match kind {
        JobKind::Backup => {
            let report = backup::run(&config, None, &progress).await?;
            match report.damage.first() {
                None => Ok(json!(report)),
                Some(first) => Err(Error::new(
                    ErrorKind::Damaged,
                    format!("the backup {} is complete, but the server has damage: {first}", report.entry.id),
                )),
            }
        }
        JobKind::Expire => {
            let store = Some(info.store_or(config.member.store.as_ref()));
            let request = ExpireRequest { store, ..ExpireRequest::default() };
            blocking(move || Ok(retention::run(&config, &request, &progress)?.summary())).await
        }
        JobKind::Verify => {
            blocking(move || {
                let report = verify::run(&config, false, Selection::default(), &progress)?;
                report.require_sound()?;
                Ok(json!(report))
            })
            .await
        }
        _ => {
            let plan = PlanRequest { target: Target::Latest, timeline: None, backup: None, exclusive: false };
            let entry = drill::run(&config, &DrillRequest { plan, directory: None, jobs: None }, &progress).await?;
            match entry.problems.first() {
                None => Ok(json!(entry)),
                Some(first) => Err(Error::new(ErrorKind::Damaged, format!("the drill found: {first}"))),
            }
        }
    }
}
