//! `strata wal push` and `strata wal fetch`.

use super::output::Output;
use crate::config::Config;
use crate::error::Result;
use crate::wal;
use clap::Subcommand;
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Archive a WAL file: archive_command = 'strata --config FILE wal push %p'
    Push {
        /// The file, as %p names it
        path: PathBuf,
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
            let pushed = wal::push::push(config, path)?;
            tracing::info!(name = pushed.name, stored_bytes = pushed.stored_bytes, "archived");
            if out.is_json() { out.result(&pushed, String::new) } else { Ok(()) }
        }
        Command::Fetch { name, path } => {
            wal::fetch::fetch(config, name, path)?;
            tracing::info!(name, "restored");
            Ok(())
        }
    }
}
