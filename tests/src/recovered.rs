//! A server that `strata recover` brought back, and how to get everything archived before.

use crate::cluster::Cluster;
use crate::process::{self, wait_for};
use crate::sidecar::{Said, Strata};
use crate::twin;
use anyhow::{Result, bail};
use postgres::Client;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A recovered server, open; stopped and removed when dropped.
#[derive(Debug)]
pub struct Recovered {
    /// The server.
    pub cluster: Cluster,
    /// What `strata recover` said.
    pub said: Said,
    /// How long it took until the server was open.
    pub took: Duration,
    /// How many fragments its store had then.
    pub fragments_when_open: usize,
}

/// A fresh directory for a recovery that the server's user may write to.
pub fn place() -> Result<PathBuf> {
    let dir = tempfile::Builder::new().prefix("strata-r-").tempdir()?.keep();
    process::give_to_server(&dir)?;
    Ok(dir)
}

/// `strata recover --to TARGET --into NEW` with `more` arguments; the server is open when this returns.
pub fn recover(strata: &Strata, target: &str, more: &[&str]) -> Result<Recovered> {
    let dir = place()?;
    let data = dir.join("data");
    let into = data.display().to_string();
    let port = free_port()?.to_string();
    let mut args = vec!["--output", "json", "recover", "--to", target, "--into", &into, "--port", &port];
    args.extend(more);
    let start = Instant::now();
    let said = strata.try_run(&args)?;
    // From here on the directory goes when the value does.
    let cluster = Cluster::adopt(&dir, &data)?;
    if said.code != 0 {
        bail!("strata {args:?} ended with {}\n{}", said.code, said.all());
    }
    let fragments_when_open = cluster.fragment_files().len();
    cluster.wait_ready(Duration::from_secs(60))?;
    Ok(Recovered { cluster, said, took: start.elapsed(), fragments_when_open })
}

/// A port that nothing listens on now.
pub fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Switches WAL and waits until the archiver has stored everything up to now.
pub fn wait_archived(client: &mut Client) -> Result<()> {
    let last = twin::value(client, "SELECT pg_walfile_name(pg_switch_wal())")?;
    wait_for(&format!("segment {last} to be archived"), Duration::from_secs(60), || {
        twin::value(client, "SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver")
            .is_ok_and(|done| done >= last)
    })
}
