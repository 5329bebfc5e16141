//! `strata verify`.

use super::output::{self, Output};
use crate::config::Config;
use crate::error::Result;
use crate::recovery::target::parse_time;
use crate::verify::{self, Selection};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Parallel workers; by default backup.jobs of the configuration, else one for each processor
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
    /// Of what a third-party tool holds, believe the tool's own check and its list, and read nothing back
    #[arg(long)]
    listing: bool,
    /// Read only this part of the packs, WAL files and fragments, another one each time. Catalog, manifests and logs are read in any case,
    /// and that nothing is missing is checked of everything
    #[arg(long, value_name = "N%", value_parser = percent)]
    sample: Option<f64>,
    /// Read only what came into the repository since this time; the rest as with --sample
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<jiff::Timestamp>,
}

fn percent(text: &str) -> std::result::Result<f64, String> {
    let number: Option<f64> = text.trim().trim_end_matches('%').trim_end().parse().ok();
    number.filter(|n| *n > 0.0 && *n <= 100.0).ok_or_else(|| "a part is above 0% and at most 100%".to_owned())
}

fn time(text: &str) -> std::result::Result<jiff::Timestamp, String> {
    match parse_time(text) {
        Ok(Some(time)) => Ok(time),
        Ok(None) => Err("a time is like \"2026-01-31 09:30:00+01\"".to_owned()),
        Err(error) => Err(error.message),
    }
}

pub fn run(args: &Args, config: &Config, out: &Output) -> Result<()> {
    let mut config = config.clone();
    if let Some(jobs) = args.jobs {
        config.backup.jobs = usize::from(jobs);
    }
    let progress = out.progress();
    let seed = jiff::Timestamp::now().as_nanosecond() as u64;
    let selection = Selection { sample: args.sample.map(|percent| (percent, seed)), since: args.since };
    let report = verify::run(&config, args.listing, selection, &progress);
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
        ("left out", output::count(report.left_out, "file")),
        (
            "encrypted",
            match report.encrypted {
                0 => "none that cannot be opened here".to_owned(),
                n => format!(
                    "{} that cannot be opened here: only what is stored was checked",
                    output::count(n, "object")
                ),
            },
        ),
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
