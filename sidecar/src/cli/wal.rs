//! `strata wal push` and `strata wal fetch`.

use super::output::Output;
use crate::config::Config;
use crate::error::Result;
use crate::wal;
use crate::wal::command::Outcome;
use clap::Subcommand;
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Archive a WAL file: archive_command = 'strata --config FILE wal push %p'
    Push {
        /// The file, as %p names it
        path: PathBuf,
    },
    /// Archive all segments that wait, until none does; "push" starts this when several wait
    #[command(hide = true)]
    Pusher {
        /// The data directory
        data: PathBuf,
    },
    /// Restore a WAL file: restore_command = 'strata --config FILE wal fetch %f %p'
    Fetch {
        /// The file's name, as %f names it
        name: String,
        /// Where to write it, as %p names it
        path: PathBuf,
    },
}

pub fn run(command: &Command, config: &Config, out: &Output) -> Result<()> {
    match command {
        Command::Push { path } => {
            let pushed = match wal::command::archive(config, path)? {
                Outcome::Archived(pushed) => pushed,
                Outcome::Dropped(text) => {
                    tracing::error!("{text}");
                    return Ok(());
                }
            };
            tracing::info!(name = pushed.name, stored_bytes = pushed.stored_bytes, "archived");
            if out.is_json() { out.result(&pushed, String::new) } else { Ok(()) }
        }
        Command::Pusher { data } => wal::command::run_pusher(config, data),
        Command::Fetch { name, path } => {
            wal::fetch::fetch(config, name, path)?;
            tracing::info!(name, "restored");
            Ok(())
        }
    }
}
