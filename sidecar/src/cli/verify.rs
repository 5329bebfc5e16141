//! `strata verify`.

use super::output::{self, Output};
use crate::config::Config;
use crate::error::Result;
use crate::verify;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Parallel workers; by default backup.jobs of the configuration, else one for each processor
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
    /// Of what a third-party tool holds, believe the tool's own check and its list, and read nothing back
    #[arg(long)]
    listing: bool,
}

pub fn run(args: &Args, config: &Config, out: &Output) -> Result<()> {
    let mut config = config.clone();
    if let Some(jobs) = args.jobs {
        config.backup.jobs = usize::from(jobs);
    }
    let progress = out.progress();
    let report = verify::run(&config, args.listing, &progress);
    progress.finish();
    let report = report?;
    out.result(&report, || text(&report))?;
    report.require_sound()
}

fn text(report: &verify::Report) -> String {
    let mut text = output::pairs(&[
        ("backups", report.backups.to_string()),
        ("interrupted", report.interrupted_backups.len().to_string()),
        ("wal files", report.wal_files.to_string()),
        ("fragments", report.fragments.to_string()),
        ("objects", format!("{} in the tool, {} read back", report.objects, report.objects_read)),
        ("read", output::bytes(report.bytes)),
        ("damage", if report.damage.is_empty() { "none".to_owned() } else { report.damage.len().to_string() }),
    ]);
    for finding in &report.damage {
        text.push_str(&format!("  {} {}: {}\n", finding.kind, finding.name, finding.problem));
    }
    for note in &report.notes {
        text.push_str(&format!("  note: {note}\n"));
    }
    text
}
