//! `strata expire`.

use super::output::{self, Output};
use crate::backup::{blocking, record::Job};
use crate::config::Config;
use crate::error::Result;
use crate::postgres::{Conninfo, ServerInfo};
use crate::progress::Progress;
use crate::retention::{self, ExpireRequest, report::Report};
use std::path::PathBuf;
use std::time::Duration;
use strata_catalog::JobKind;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Say exactly what would go, and why the rest is kept; remove nothing
    #[arg(long)]
    dry_run: bool,
    /// Go by the clock though the repository has nothing of a long time, up to now or in between: the clock is right, and the server was off, or
    /// archived nothing, on purpose. It is remembered
    #[arg(long)]
    trust_clock: bool,
}

pub async fn run(args: &Args, config: &Config, out: &Output) -> Result<()> {
    let conninfo = Conninfo::parse(&config.member.conninfo)?;
    let (dry_run, trust_clock) = (args.dry_run, args.trust_clock);
    let request = ExpireRequest { dry_run, store: store(config, &conninfo).await, trust_clock };
    let shown = out.progress();
    let job = match args.dry_run {
        true => None,
        false => Job::start(&conninfo, JobKind::Expire, None).await,
    };
    let progress = match &job {
        Some(job) => Progress::new(vec![Box::new(shown.clone()), job.sink()], Duration::from_millis(100)),
        None => shown,
    };
    let (work, config) = (progress.clone(), config.clone());
    let outcome = blocking(move || retention::run(&config, &request, &work)).await;
    progress.finish();
    if let Some(job) = job {
        let json = outcome.as_ref().map(|report| report.summary());
        job.finish(json.as_ref().map_err(|error| *error)).await;
    }
    let report = outcome?;
    out.result(&report, || text(&report))
}

/// The store, when it is known: the repository can be expired without its server.
async fn store(config: &Config, conninfo: &Conninfo) -> Option<PathBuf> {
    if config.member.store.is_some() {
        return config.member.store.clone();
    }
    let ask = async {
        let session = conninfo.connect().await?;
        ServerInfo::ask(&session).await
    };
    ask.await.ok().map(|info| info.store_or(None))
}

fn text(report: &Report) -> String {
    let bytes = output::bytes;
    let gone = if report.dry_run { "would be removed" } else { "removed" };
    let mut text = String::new();
    for backup in &report.backups {
        let time = backup.stopped_at.strftime("%Y-%m-%d %H:%M:%SZ");
        let size = bytes(backup.stored_bytes);
        let verdict = if backup.remove { gone } else { "kept" };
        text.push_str(&format!("backup {}  {time}  timeline {}  {size}  {verdict}\n", backup.id, backup.timeline));
        for why in &backup.kept_because {
            text.push_str(&format!("    {why}\n"));
        }
        if let Some(unusable) = &backup.unusable {
            text.push_str(&format!("    it cannot be recovered: {unusable}\n"));
        }
    }
    let wal = &report.wal;
    text.push_str(&format!(
        "wal  {} {gone} ({}), {} kept ({})\n",
        output::count(wal.remove.len() as u64, "file"),
        bytes(wal.remove_bytes),
        output::count(wal.kept, "file"),
        bytes(wal.kept_bytes)
    ));
    for (from, to) in &wal.remove_runs {
        text.push_str(&format!("    {gone}: {from} to {to}\n"));
    }
    for kept in &wal.kept_because {
        let to = kept.to.as_ref().map_or("on".to_owned(), |to| format!("to {to}"));
        text.push_str(&format!("    kept: {} {to}: {}\n", kept.from, kept.why));
    }
    let fragments = &report.fragments;
    text.push_str(&format!(
        "fragments  {} {gone} ({}), {} of the log {gone}\n",
        output::count(fragments.remove.len() as u64, "fragment"),
        bytes(fragments.remove_bytes),
        output::count(fragments.remove_entries, "line")
    ));
    for hash in &fragments.remove {
        text.push_str(&format!("    {gone}: {hash}\n"));
    }
    for kept in &fragments.kept_because {
        let count = output::count(kept.fragments, "fragment");
        text.push_str(&format!("    kept: {count} ({}): {}\n", bytes(kept.bytes), kept.why));
    }
    if let Some(why) = &fragments.all_kept {
        text.push_str(&format!("    none goes: {why}\n"));
    }
    text
}
