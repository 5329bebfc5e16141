//! `strata backup`.

use super::output::{self, Output};
use crate::backup::{self, BackupReport, record::Job};
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::Conninfo;
use crate::progress::{Progress, Sink};
use crate::socket::client;
use std::path::{Path, PathBuf};
use std::time::Duration;
use strata_catalog::{JobKind, Request};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A text to know the backup by, shown by "strata info"; one line
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
    /// Parallel workers; by default backup.jobs of the configuration, else one for each processor
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
    /// Order the backup from the agent that listens at this socket, instead of taking it here. No configuration is read. The socket may be
    /// another machine's, forwarded by ssh
    #[arg(long, value_name = "SOCKET", conflicts_with = "jobs")]
    on: Option<PathBuf>,
}

pub async fn run(args: &Args, config: &dyn Fn() -> Result<Config>, out: &Output) -> Result<()> {
    let report = match &args.on {
        Some(socket) => order(args, socket, out).await?,
        None => take(args, config()?, out).await?,
    };
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

/// How long an agent may say nothing; it says something every few seconds.
const SILENCE: Duration = Duration::from_secs(30);

/// Has an agent take the backup, and waits for its end.
async fn order(args: &Args, socket: &Path, out: &Output) -> Result<BackupReport> {
    let progress = out.progress();
    let request = Request::Backup { label: args.label.clone() };
    let said = client::ask_and_follow(socket, &request, SILENCE, |report| progress.report(&report)).await;
    progress.finish();
    serde_json::from_value(said?).map_err(|error| {
        Error::new(ErrorKind::Connection, format!("the agent's answer is not understood: {error}"))
            .with_hint("Is it of another version?")
    })
}

async fn take(args: &Args, mut config: Config, out: &Output) -> Result<BackupReport> {
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
    let work = backup::run(&config, args.label.as_deref(), &progress);
    let outcome = match config.tool.is_some() {
        true => super::ended_by_signals(work).await,
        false => work.await,
    };
    progress.finish();
    if let Some(job) = job {
        let json = outcome.as_ref().map(|report| serde_json::json!(report));
        job.finish(json.as_ref().map_err(|error| *error)).await;
    }
    outcome
}

fn text(report: &BackupReport) -> String {
    let entry = &report.entry;
    let bytes = output::bytes;
    let mut text = output::pairs(&[
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
    ]);
    if let Some(tool) = &entry.tool {
        let stored = tool.tool_stored_bytes.map(|stored| format!(", {} stored", bytes(stored))).unwrap_or_default();
        text.push_str(&output::pairs(&[
            ("tool", tool.name.clone()),
            (
                "objects",
                format!(
                    "{} and {} with fragments, {} piped{stored}",
                    tool.objects.len(),
                    tool.fragment_objects,
                    bytes(tool.piped_bytes)
                ),
            ),
        ]));
        for warning in tool.warnings() {
            text.push_str(&format!("warning of the tool: {warning}\n"));
        }
    }
    text
}
