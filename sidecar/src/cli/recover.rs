//! `strata recover`.

use super::output::{self, Output};
use crate::config::Config;
use crate::error::Result;
use crate::recovery::ending::Action;
use crate::recovery::plan::PlanRequest;
use crate::recovery::{self, Outcome, RecoverRequest};
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to stop; see below
    #[arg(long, value_name = "TARGET")]
    to: String,
    /// The new data directory: absent or empty, unless --delta is given
    #[arg(long, value_name = "DIR")]
    into: PathBuf,
    /// The new store; by default the data directory's path with ".strata" behind it
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// The port of the new server; by default the one in the backup
    #[arg(long)]
    port: Option<u16>,
    /// Wait until all warm fragments are there; otherwise the server opens first, and they come on demand and in the
    /// background
    #[arg(long)]
    full: bool,
    /// Lay everything out, but do not start the server: "pg_ctl start" recovers it later
    #[arg(long)]
    no_start: bool,
    /// Keep the new server's agent running when all fragments are there
    #[arg(long, conflicts_with = "no_start")]
    keep_serving: bool,
    /// The timeline to follow; by default the newest in the archive
    #[arg(long, value_name = "NUMBER")]
    timeline: Option<u32>,
    /// The backup to begin with, by its id; by default the newest that fits
    #[arg(long, value_name = "ID")]
    backup: Option<String>,
    /// Put a tablespace, named by its oid or its old directory, elsewhere; by default each goes to INTO.tablespaces/OID.
    /// May be given several times
    #[arg(long = "tablespace", visible_alias = "tablespace-map", value_name = "OID=DIR", value_parser = mapping)]
    tablespaces: Vec<(String, PathBuf)>,
    /// Go on when the WAL creates a tablespace. Replay makes and empties its old directory, so no server on this machine may
    /// use that
    #[arg(long)]
    allow_tablespaces: bool,
    /// Stop just before what the target names, not behind it: a time, a position, a transaction or a restore point
    #[arg(long)]
    exclusive: bool,
    /// What the new server does when it has reached the target: "promote" opens it for writing; "pause" opens it for reading only, until
    /// SELECT pg_wal_replay_resume() promotes it; "shutdown" stops it there
    #[arg(long, value_enum, default_value_t = Action::Promote, conflicts_with = "no_start")]
    action: Action,
    /// Recover over an existing, stopped data directory of the same cluster: what is in it and not in the backup is removed, and only
    /// what differs is written. A tablespace stays where it is
    #[arg(long)]
    delta: bool,
    /// Parallel workers; by default backup.jobs of the configuration, else one for each processor
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
}

fn mapping(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((from, to)) if !from.is_empty() && to.starts_with('/') => Ok((from.to_owned(), PathBuf::from(to))),
        _ => Err("it has the form OID=/DIR or /OLDDIR=/DIR".to_owned()),
    }
}

pub async fn run(args: &Args, config: &Config, out: &Output) -> Result<()> {
    let request = RecoverRequest {
        plan: PlanRequest {
            target: args.to.parse()?,
            timeline: args.timeline,
            backup: args.backup.clone(),
            exclusive: args.exclusive,
        },
        into: args.into.clone(),
        store: args.store.clone(),
        port: args.port,
        full: args.full,
        start: !args.no_start,
        keep_serving: args.keep_serving,
        allow_tablespaces: args.allow_tablespaces,
        tablespaces: args.tablespaces.clone(),
        action: args.action,
        delta: args.delta,
        jobs: args.jobs.map(usize::from),
        server_options: Vec::new(),
    };
    let progress = out.progress();
    let outcome = recovery::recover(config, &request, &progress).await;
    progress.finish();
    let outcome = outcome?;
    out.result(&outcome, || text(&outcome))?;
    match &outcome.fetched {
        Some(fetched) => fetched.require_complete(),
        None => Ok(()),
    }
}

fn text(outcome: &Outcome) -> String {
    let recovered = &outcome.recovered;
    let mut text = match (&recovered.conninfo, recovered.seconds_to_open) {
        (Some(conninfo), Some(seconds)) if recovered.action == Action::Pause => format!(
            "paused at {} after {seconds:.2} s: psql \"{conninfo}\"\nSELECT pg_wal_replay_resume() promotes it; then remove the recovery_target lines from its postgresql.auto.conf\n",
            recovered.target
        ),
        (None, Some(seconds)) => format!(
            "shut down at {} after {seconds:.2} s: \"{}\"\nbefore it is started again, set recovery_target_action in its postgresql.auto.conf\n",
            recovered.target,
            recovered.into.display()
        ),
        (Some(conninfo), Some(seconds)) => format!(
            "open after {seconds:.2} s at {}: psql \"{conninfo}\"\narchiving is off; its agent: strata --config {} agent\n",
            recovered.target,
            recovered.config.display()
        ),
        _ => format!(
            "laid out in {:.2} s, not started: pg_ctl -D {} start recovers it\n",
            recovered.seconds_to_restore,
            recovered.into.display()
        ),
    };
    if let Some(delta) = &recovered.delta {
        let (kept, written) = (output::bytes(delta.kept_bytes), output::bytes(delta.written_bytes));
        text.push_str(&format!("{kept} were there already, {written} were written\n"));
    }
    match (&outcome.fetched, recovered.agent_pid) {
        (Some(fetched), _) => text.push_str(&format!(
            "{} of {} fragments fetched ({}), {} missing",
            fetched.fetched,
            fetched.fragments,
            output::bytes(fetched.fetched_bytes),
            fetched.missing.len()
        )),
        (None, Some(_)) if recovered.fragments == 0 => text.push_str("the target needs no warm fragments"),
        (None, Some(pid)) => text.push_str(&format!(
            "{} fragments ({}) come on demand and in the background, brought by process {pid}",
            recovered.fragments,
            output::bytes(recovered.fragment_bytes)
        )),
        (None, None) => text.push_str("no fragment was fetched: start its agent with the server"),
    }
    text
}
