//! `strata backup`.

use super::output::{self, Output};
use crate::backup::{self, record::Job};
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::Conninfo;
use crate::progress::Progress;
use std::time::Duration;
use strata_catalog::JobKind;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A text to know the backup by, shown by "strata info"; one line
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
    /// Parallel workers; by default backup.jobs of the configuration, else one for each processor
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
}

pub async fn run(args: &Args, config: &Config, out: &Output) -> Result<()> {
    let mut config = config.clone();
    if let Some(jobs) = args.jobs {
        config.backup.jobs = usize::from(jobs);
    }
    let conninfo = Conninfo::parse(&config.member.conninfo)?;
    let shown = out.progress();
    let job = Job::start(&conninfo, JobKind::Backup, args.label.as_deref()).await;
    let progress = match &job {
        Some(job) => Progress::new(vec![Box::new(shown.clone()), job.sink()], Duration::from_millis(100)),
        None => shown,
    };
    let outcome = backup::run(&config, args.label.as_deref(), &progress).await;
    progress.finish();
    if let Some(job) = job {
        let json = outcome.as_ref().map(|report| serde_json::json!(report));
        job.finish(json.as_ref().map_err(|error| *error)).await;
    }
    let report = outcome?;
    out.result(&report, || text(&report))?;
    match report.damage.first() {
        None => Ok(()),
        Some(first) => Err(Error::new(
            ErrorKind::Damaged,
            format!("the backup {} is complete, but the server has damage: {first}", report.entry.id),
        )
        .detail(report.damage.join("\n"))
        .with_hint("Repair the server, or keep an older backup until you know what is lost.")),
    }
}

fn text(report: &backup::BackupReport) -> String {
    let entry = &report.entry;
    let bytes = output::bytes;
    output::pairs(&[
        ("backup", entry.id.clone()),
        ("timeline", entry.timeline.to_string()),
        ("from", format!("{} ({})", entry.start_lsn, entry.start_wal)),
        ("to", format!("{} ({})", entry.stop_lsn, entry.stop_wal)),
        (
            "hot data",
            format!("{} in {} files, {} stored", bytes(entry.data_bytes), entry.files, bytes(entry.stored_bytes)),
        ),
        ("fragments", format!("{} ({})", entry.fragments, bytes(entry.fragment_bytes))),
        ("newly copied", format!("{} ({})", entry.fragments_copied, bytes(entry.fragment_bytes_copied))),
        ("seconds", format!("{:.1}", report.seconds)),
    ])
}
