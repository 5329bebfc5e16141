//! `strata repository`.

use super::output::{self, Output};
use crate::config::Config;
use crate::error::Result;
use crate::repository::Repository;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Show the recipients that backups are encrypted for, and who was shown to be able to read; notes the identities of repository.identity_file
    Keys,
    /// Encrypt fragments anew that are not encrypted for the recipients of the configuration, as after these were changed
    Rekey {
        /// Only say how many
        #[arg(long)]
        dry_run: bool,
    },
}

pub fn run(command: &Command, config: &Config, out: &Output) -> Result<()> {
    let repository = Repository::open(config)?;
    match command {
        Command::Keys => {
            repository.note_identities()?;
            let states = repository.key_states()?;
            out.result(&states, || {
                let mut text = String::new();
                for state in &states {
                    let shown = match &state.shown {
                        _ if state.here => "its identity is here".to_owned(),
                        Some(shown) => format!("its identity was on {} at {}", shown.host, shown.shown_at),
                        None => "nobody was ever shown to have its identity".to_owned(),
                    };
                    let current = if state.current { "current" } else { "earlier" };
                    text.push_str(&format!("{current}  {}  {shown}\n", state.recipient));
                }
                if text.is_empty() { "nothing is encrypted\n".to_owned() } else { text }
            })
        }
        Command::Rekey { dry_run } => {
            let progress = out.progress();
            let done = repository.rekey(*dry_run, &progress);
            progress.finish();
            let done = done?;
            out.result(&done, || {
                let would = if *dry_run { "would be encrypted anew" } else { "encrypted anew" };
                format!(
                    "{} {would} ({}), {} encrypted for the recipients already",
                    output::count(done.rekeyed, "fragment"),
                    output::bytes(done.bytes),
                    output::count(done.current, "fragment")
                )
            })
        }
    }
}
