//! The command line: parses, calls, prints. No work is done here.
//!
//! Data goes to standard output (text for people, or one JSON document with `--output json`); messages and progress go to
//! standard error. The exit code is that of the error's kind ([`crate::error::ErrorKind::row`]); a usage error that the
//! parser finds is 2 as well.

mod agent;
mod backup;
mod check;
mod drill;
mod expire;
mod fragment;
mod info;
mod output;
mod plan;
mod recover;
mod repository;
mod tool;
mod verify;
mod wal;

use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use clap::{Parser, Subcommand, ValueEnum};
use output::Output;
use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// Shown below the help of the program.
const GETTING_STARTED: &str = "\
Getting started, as the operating system user that runs PostgreSQL (\"runuser -u postgres --\"):

  1. Write /etc/strata/strata.toml:
       system = \"shop\"
       [member]
       conninfo = \"host=/var/run/postgresql user=postgres dbname=postgres\"
       [repository]
       path = \"/srv/backup\"
  2. In postgresql.conf, and restart the server:
       archive_mode = on
       archive_command = 'strata --config /etc/strata/strata.toml wal push %p'
  3. strata check                    proves that archiving works
  4. strata agent                    runs beside the server; keep it running
  5. strata backup                   takes a backup
  6. strata plan --to latest         says what a recovery would use
  7. strata recover --to latest --into /srv/recovered --port 5433

Exit codes: 0 success, 1 failed, 2 usage, 3 configuration, 4 connection, 5 locked, 6 damage found.";

/// Shown below the help of what takes a target.
const TARGETS: &str = "\
A TARGET is one of
  latest                        the end of the archived WAL
  \"2026-01-31 09:30:00+01\"      a time; without an offset from UTC it is in this machine's time zone
  0/16B3748                     a WAL position, as pg_current_wal_lsn() shows it
  xid:4711                      the end of a transaction, as pg_current_xact_id()::xid shows it
  name:before_the_release       a restore point, as pg_create_restore_point() made it
  immediate                     as soon as the newest backup is consistent
  20260131T083000Z              a backup's id, as \"strata info\" shows it: the end of that backup
The earliest target is the end of the first backup, the last one the end of the archived WAL.";

/// Shown below the help of what expires.
const RETENTION: &str = "\
The rules are in strata.toml. What one of them keeps is kept:
  [retention]
  keep_backups = 7              the 7 newest backups that can be recovered
  keep_for = \"30d\"              backups that ended within 30 days
  recovery_window = \"14d\"       every moment of the last 14 days; older backups that the others keep stay by themselves,
                                without the WAL between. Without it: every moment since the oldest kept backup
  automatic = true              expire after each backup that succeeded
Without any rule nothing is removed. At least one backup that can be recovered always stays.";

/// Strata's sidecar: backup and recovery of PostgreSQL together with its warm fragments.
#[derive(Debug, Parser)]
#[command(name = "strata", version, max_term_width = 100, disable_help_subcommand = true, after_help = GETTING_STARTED)]
struct Cli {
    /// The configuration file. Without it: $STRATA_CONFIG, ~/.config/strata/strata.toml, /etc/strata/strata.toml
    #[arg(long, global = true, value_name = "FILE", help_heading = "Options of every command")]
    config: Option<PathBuf>,
    /// The form of the result on standard output, and of an error on standard error
    #[arg(long, global = true, value_enum, default_value_t = Format::Text, value_name = "FORM", help_heading = "Options of every command")]
    output: Format,
    /// The form of progress on standard error; auto is a bar on a terminal and nothing elsewhere
    #[arg(long, global = true, value_enum, default_value_t = ProgressForm::Auto, value_name = "FORM", help_heading = "Options of every command")]
    progress: ProgressForm,
    /// Say only errors
    #[arg(long, short, global = true, conflicts_with = "verbose", help_heading = "Options of every command")]
    quiet: bool,
    /// Say more; -vv says even more
    #[arg(long, short, global = true, action = clap::ArgAction::Count, help_heading = "Options of every command")]
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
    Auto,
    Bar,
    Json,
    None,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run beside a server: copies new warm fragments to the repository, brings back missing ones, runs strata.backup() and
    /// the like from SQL. It stays in the foreground until a signal ends it
    Agent(agent::Args),
    /// Prove that archiving works from end to end: closes a WAL segment and waits until it is in the repository
    Check(check::Args),
    /// Take a backup of the hot data, and of the warm fragments that the repository does not have
    Backup(backup::Args),
    /// Show the backups and the WAL in the repository, and what can be reached
    Info(info::Args),
    /// Say what a recovery to a target needs and what is missing; changes nothing
    #[command(after_help = TARGETS)]
    Plan(plan::Args),
    /// Recover into a new directory and open a server there, with archiving off; touches no existing server
    #[command(after_help = TARGETS)]
    Recover(recover::Args),
    /// Try a recovery in a scratch directory: recover, open, check, throw away, and record the result
    #[command(after_help = TARGETS)]
    Drill(drill::Args),
    /// Remove backups, WAL and fragments that nothing needs which [retention] of the configuration keeps
    #[command(after_help = RETENTION)]
    Expire(expire::Args),
    /// Read everything in the repository, and what a third-party tool holds, and check it by its checksums
    Verify(verify::Args),
    /// Set up, try and look after the third-party tool that carries backups
    #[command(subcommand)]
    Tool(tool::Command),
    /// Look after the keys of an encrypted repository
    #[command(subcommand)]
    Repository(repository::Command),
    /// Archive and restore WAL files: what PostgreSQL calls, not people
    #[command(subcommand)]
    Wal(wal::Command),
    /// Look at fragments, and bring single ones back into a store
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
        Command::Backup(args) => block_on(backup::run(args, &config, out)),
        Command::Info(args) => info::run(args, &config()?, out),
        Command::Plan(args) => plan::run(args, &config()?, out),
        Command::Recover(args) => block_on(recover::run(args, &config()?, out)),
        Command::Drill(args) => block_on(drill::run(args, &config()?, out)),
        Command::Expire(args) => block_on(expire::run(args, &config()?, out)),
        Command::Verify(args) => verify::run(args, &config()?, out),
        Command::Repository(command) => repository::run(command, &config()?, out),
        Command::Tool(command) => block_on(tool::run(command, &config, out)),
    }
}

/// Does work that may run a third-party tool. A signal that ends this program ends the tool first: it must not take the end of its
/// input for the end of the data.
async fn ended_by_signals<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let listen =
        |kind| signal(kind).map_err(|error| Error::new(ErrorKind::Io, format!("could not wait for signals: {error}")));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    tokio::pin!(work);
    tokio::select! {
        done = &mut work => return done,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    crate::tool::run::interrupt();
    work.await
}

fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Error::new(ErrorKind::Io, format!("could not start the runtime: {error}")))?;
    let outcome = runtime.block_on(future);
    // Work that was left, as by a signal, ends with the process.
    runtime.shutdown_background();
    outcome
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
