//! The command line: parses, calls, prints. No work is done here.
//!
//! Data goes to standard output (text for people, or one JSON document with `--output json`); messages and progress go to
//! standard error. The exit code is that of the error's kind ([`crate::error::ErrorKind::row`]); a usage error that the
//! parser finds is 2 as well.

mod agent;
mod backup;
mod check;
mod fragment;
mod info;
mod output;
mod plan;
mod recover;
mod verify;
mod wal;

use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use clap::{Parser, Subcommand, ValueEnum};
use output::Output;
use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;

/// Strata's sidecar: backup and recovery of PostgreSQL together with its warm fragments.
#[derive(Debug, Parser)]
#[command(name = "strata", version, max_term_width = 100, disable_help_subcommand = true)]
struct Cli {
    /// The configuration file. Without it: $STRATA_CONFIG, ~/.config/strata/strata.toml, /etc/strata/strata.toml
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The form of the result on standard output
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    output: Format,
    /// The form of progress on standard error; by default a bar on a terminal and nothing elsewhere
    #[arg(long, global = true, value_enum, default_value_t = ProgressForm::Auto)]
    progress: ProgressForm,
    /// Say only errors
    #[arg(long, short, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Say more; twice: even more
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ProgressForm {
    /// A bar on a terminal, nothing elsewhere
    Auto,
    /// A bar
    Bar,
    /// Lines of JSON
    Json,
    /// Nothing
    None,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve beside a server: fragments on demand, jobs from SQL, the fragment log, the backup catalog in SQL
    Agent(agent::Args),
    /// Prove that archiving works from end to end
    Check(check::Args),
    /// Take a backup
    Backup(backup::Args),
    /// Show what is in the repository
    Info(info::Args),
    /// Say what a recovery needs and what is missing
    Plan(plan::Args),
    /// Recover into a new directory and open the server there
    Recover(recover::Args),
    /// Check everything in the repository by its checksums
    Verify(verify::Args),
    /// Archive and restore WAL, for archive_command and restore_command
    #[command(subcommand)]
    Wal(wal::Command),
    /// Fetch and look at fragments
    #[command(subcommand)]
    Fragment(fragment::Command),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to standard output and are no errors; a closed pipe does not matter.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { ErrorKind::Usage.row().exit_code } else { 0 });
        }
    };
    output::start_log(cli.quiet, cli.verbose);
    let out = Output::new(cli.output, cli.progress, cli.quiet);
    match run(&cli, &out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            out.error(&error);
            ExitCode::from(error.kind.row().exit_code)
        }
    }
}

fn run(cli: &Cli, out: &Output) -> Result<()> {
    let config = || Config::load(cli.config.as_deref());
    match &cli.command {
        // PostgreSQL starts these two once a segment: no runtime, no threads.
        Command::Wal(command) => wal::run(command, &config()?, out),
        Command::Fragment(command) => fragment::run(command, &config, out),
        Command::Agent(args) => block_on(agent::run(args, &config()?)),
        Command::Check(args) => block_on(check::run(args, &config()?, out)),
        Command::Backup(args) => block_on(backup::run(args, &config()?, out)),
        Command::Info(args) => info::run(args, &config()?, out),
        Command::Plan(args) => plan::run(args, &config()?, out),
        Command::Recover(args) => block_on(recover::run(args, &config()?, out)),
        Command::Verify(args) => verify::run(args, &config()?, out),
    }
}

fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Error::new(ErrorKind::Io, format!("could not start the runtime: {error}")))?
        .block_on(future)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
