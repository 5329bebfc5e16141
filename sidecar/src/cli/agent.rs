//! `strata agent`.

use crate::agent::{self, Options};
use crate::config::Config;
use crate::error::Result;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// End when all fragments are in the store, or when the server is gone
    #[arg(long)]
    until_complete: bool,
    /// Become a session of its own, so that the end of a terminal does not end it
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
