//! `strata check`.

use super::output::Output;
use crate::check::{self, State};
use crate::config::Config;
use crate::error::Result;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Fail when no agent answers; otherwise that is a warning
    #[arg(long)]
    agent: bool,
}

pub async fn run(args: &Args, config: &Config, out: &Output) -> Result<()> {
    let progress = out.progress();
    let report = check::run(config, args.agent, &progress).await;
    progress.finish();
    out.result(&report, || text(&report))?;
    report.require_good()
}

fn text(report: &check::Report) -> String {
    let mut text = String::new();
    for check in &report.checks {
        let state = match check.state {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Failed => "FAILED",
            State::Skipped => "skipped",
        };
        text.push_str(&format!("{state:8} {:14} {}\n", check.name, check.message));
        if let Some(hint) = &check.hint {
            text.push_str(&format!("{:8} {:14} {hint}\n", "", ""));
        }
    }
    text
}
