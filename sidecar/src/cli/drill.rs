//! `strata drill`.

use super::output::{self, Output};
use crate::backup::record::Job;
use crate::config::Config;
use crate::drill::{self, DrillRequest};
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::Conninfo;
use crate::progress::Progress;
use crate::recovery::plan::PlanRequest;
use crate::repository::drills::DrillEntry;
use std::path::PathBuf;
use std::time::Duration;
use strata_catalog::JobKind;
use tokio::signal::unix::{SignalKind, signal};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to stop; see below
    #[arg(long, value_name = "TARGET", default_value = "latest")]
    to: String,
    /// The timeline to follow; by default the newest in the archive
    #[arg(long, value_name = "NUMBER")]
    timeline: Option<u32>,
    /// The backup to begin with, by its id; by default the newest that fits
    #[arg(long, value_name = "ID")]
    backup: Option<String>,
    /// The scratch directory; by default drill.directory of the configuration, else one in the directory for temporary files
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Parallel workers; by default backup.jobs of the configuration, else one for each processor
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
}

pub async fn run(args: &Args, config: &Config, out: &Output) -> Result<()> {
    let request = DrillRequest {
        plan: PlanRequest {
            target: args.to.parse()?,
            timeline: args.timeline,
            backup: args.backup.clone(),
            exclusive: false,
        },
        directory: args.scratch.clone(),
        jobs: args.jobs.map(usize::from),
    };
    let conninfo = Conninfo::parse(&config.member.conninfo)?;
    let shown = out.progress();
    let job = Job::start(&conninfo, JobKind::Drill, Some(&args.to)).await;
    let progress = match &job {
        Some(job) => Progress::new(vec![Box::new(shown.clone()), job.sink()], Duration::from_millis(100)),
        None => shown,
    };
    let listen =
        |kind| signal(kind).map_err(|error| Error::new(ErrorKind::Io, format!("could not wait for signals: {error}")));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let outcome = tokio::select! {
        outcome = drill::run(config, &request, &progress) => outcome,
        _ = terminate.recv() => Err(interrupted()),
        _ = interrupt.recv() => Err(interrupted()),
    };
    if outcome.as_ref().is_err_and(|error| error.message == INTERRUPTED) {
        drill::clean(config, &request).await?;
    }
    progress.finish();
    let outcome = outcome.and_then(|entry| out.result(&entry, || text(&entry)).map(|()| entry));
    let outcome = outcome.and_then(|entry| match entry.problems.first() {
        None => Ok(entry),
        Some(first) => {
            let count = output::count(entry.problems.len() as u64, "problem");
            let first = first.lines().next().unwrap_or_default();
            Err(Error::new(ErrorKind::Damaged, format!("the drill found {count}, the first is: {first}"))
                .detail(entry.problems.join("\n")))
        }
    });
    if let Some(job) = job {
        let json = outcome.as_ref().map(|entry| serde_json::json!(entry));
        job.finish(json.as_ref().map_err(|error| *error)).await;
    }
    outcome.map(drop)
}

const INTERRUPTED: &str = "the drill was interrupted";

fn interrupted() -> Error {
    Error::new(ErrorKind::Recovery, INTERRUPTED)
}

fn text(entry: &DrillEntry) -> String {
    let amcheck = match &entry.amcheck {
        Some(amcheck) if amcheck.ran && amcheck.output.is_empty() => "found nothing wrong".to_owned(),
        Some(amcheck) if amcheck.ran => amcheck.output.clone(),
        Some(amcheck) => format!("NOT RUN: {}", amcheck.output),
        None => "not reached".to_owned(),
    };
    let mut text = output::pairs(&[
        ("drill", entry.id.clone()),
        ("target", entry.target.clone()),
        ("backup", entry.backup_id.clone().unwrap_or_default()),
        ("open after", entry.seconds_to_open.map_or("did not open".to_owned(), |seconds| format!("{seconds:.2} s"))),
        ("fragments", format!("{} ({})", entry.fragments, output::bytes(entry.fragment_bytes))),
        ("pg_amcheck", amcheck),
        ("result", if entry.passed { "passed".to_owned() } else { "FAILED".to_owned() }),
    ]);
    for check in &entry.checks {
        let verdict = if check.passed { "ok" } else { "FAILED" };
        text.push_str(&format!("  {verdict:6} {}: {}\n", check.query, check.value.as_deref().unwrap_or("-")));
    }
    for problem in &entry.problems {
        text.push_str(&format!("  problem: {problem}\n"));
    }
    text
}
