//! `strata agent`.

use crate::agent::{self, Options};
use crate::config::Config;
use crate::error::Result;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only bring missing fragments, and end when all are in the store or the server is gone; what "strata recover" starts
    #[arg(long)]
    until_complete: bool,
    /// Live on when the terminal is closed. It stays in the foreground all the same
    #[arg(long)]
    detach: bool,
}

pub async fn run(args: &Args, config: &Config) -> Result<()> {
    if args.detach {
        // It fails only for a process that is a session's leader already.
        let _ = rustix::process::setsid();
    }
    agent::run(config, Options { until_complete: args.until_complete }).await
}
