//! `strata recover`.

use super::output::{self, Output};
use crate::config::Config;
use crate::error::Result;
use crate::recovery::plan::PlanRequest;
use crate::recovery::{self, RecoverRequest, Recovered, fragments::Fetched};
use serde::Serialize;
use std::path::PathBuf;
use tokio::signal::unix::{SignalKind, signal};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to stop: latest, a position, a time, or a backup's id for its end
    #[arg(long, value_name = "TARGET")]
    to: String,
    /// The new data directory: absent or empty
    #[arg(long, value_name = "DIR")]
    into: PathBuf,
    /// The new store; by default the data directory's path with ".strata" behind it
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// The port of the new server; by default the one in the backup
    #[arg(long)]
    port: Option<u16>,
    /// Wait until all fragments are there before the server is said to be open
    #[arg(long)]
    full: bool,
    /// Lay everything out, but do not start the server
    #[arg(long)]
    no_start: bool,
    /// Go on serving fragments on demand when all are fetched, until a signal comes
    #[arg(long, conflicts_with = "no_start")]
    keep_serving: bool,
    /// The timeline to follow; by default the newest in the archive
    #[arg(long)]
    timeline: Option<u32>,
    /// The base backup to use; by default the newest that fits
    #[arg(long, value_name = "ID")]
    backup: Option<String>,
    /// Put a tablespace elsewhere; by default into INTO.tablespaces/OID
    #[arg(long = "tablespace", value_name = "OID=DIR", value_parser = mapping)]
    tablespaces: Vec<(String, PathBuf)>,
    /// Parallel workers, instead of backup.jobs
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
}

fn mapping(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((from, to)) if !from.is_empty() && to.starts_with('/') => Ok((from.to_owned(), PathBuf::from(to))),
        _ => Err("it has the form OID=/DIR or /OLDDIR=/DIR".to_owned()),
    }
}

#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    recovered: &'a Recovered,
    #[serde(flatten)]
    fetched: &'a Fetched,
}

pub async fn run(args: &Args, config: &Config, out: &Output) -> Result<()> {
    let request = RecoverRequest {
        plan: PlanRequest { target: args.to.parse()?, timeline: args.timeline, backup: args.backup.clone() },
        into: args.into.clone(),
        store: args.store.clone(),
        port: args.port,
        full: args.full,
        start: !args.no_start,
        tablespaces: args.tablespaces.clone(),
        jobs: args.jobs.map(usize::from),
    };
    let progress = out.progress();
    let open = recovery::recover(config, &request, &progress).await;
    if open.is_err() {
        progress.finish();
    }
    let open = open?;
    if !args.full {
        out.text(&opened(&open.recovered))?;
    }
    let fetched = open.fetch_all(&progress).await;
    progress.finish();
    let fetched = fetched?;
    out.result(&Report { recovered: &open.recovered, fetched: &fetched }, || {
        let mut text = if args.full { format!("{}\n", opened(&open.recovered)) } else { String::new() };
        text.push_str(&format!(
            "{} of {} fragments fetched ({}), {} missing",
            fetched.fetched,
            fetched.fragments,
            output::bytes(fetched.fetched_bytes),
            fetched.missing.len()
        ));
        text
    })?;
    if args.keep_serving {
        let wait = |kind| signal(kind).map_err(|error| crate::error::Error::io("wait for", &args.into, error));
        let (mut terminate, mut interrupt) = (wait(SignalKind::terminate())?, wait(SignalKind::interrupt())?);
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
    fetched.require_complete()
}

fn opened(recovered: &Recovered) -> String {
    match (&recovered.conninfo, recovered.seconds_to_open) {
        (Some(conninfo), Some(seconds)) => format!(
            "open after {seconds:.2} s: psql \"{conninfo}\"\narchiving is off; its agent: strata --config {} agent",
            recovered.config.display()
        ),
        _ => format!(
            "laid out in {:.2} s, not started: pg_ctl -D {} start recovers it",
            recovered.seconds_to_restore,
            recovered.into.display()
        ),
    }
}
