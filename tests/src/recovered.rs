//! A server that `strata recover` brought back, and how to get everything archived before.

use crate::cluster::Cluster;
use crate::process::{self, wait_for};
use crate::sidecar::Strata;
use crate::twin;
use anyhow::{Context, Result, bail};
use postgres::Client;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

/// A recovered server, open; stopped and removed when dropped. Its fragments may still be on their way.
#[derive(Debug)]
pub struct Recovered {
    /// The server.
    pub cluster: Cluster,
    /// How long it took until the server was open.
    pub took: Duration,
    /// How many fragments its store had then.
    pub fragments_when_open: usize,
    serving: Child,
    out: PathBuf,
}

/// A fresh directory for a recovery that the server's user may write to.
pub fn place() -> Result<PathBuf> {
    let dir = tempfile::Builder::new().prefix("strata-r-").tempdir()?.keep();
    process::give_to_server(&dir)?;
    Ok(dir)
}

/// `strata recover --to TARGET --into NEW` with `more` arguments. Returns when the server is open; the program goes on to
/// fetch fragments, and serves them on demand.
pub fn recover(strata: &Strata, target: &str, more: &[&str]) -> Result<Recovered> {
    let dir = place()?;
    let data = dir.join("data");
    let into = data.display().to_string();
    let port = free_port()?.to_string();
    let mut args = vec!["recover", "--to", target, "--into", &into, "--port", &port];
    args.extend(more);
    let out = dir.join("recover.out");
    let file = File::create(&out).with_context(|| format!("create {}", out.display()))?;
    let start = Instant::now();
    let mut serving =
        strata.command(&args).stdout(file.try_clone()?).stderr(file).spawn().context("start strata recover")?;
    let mut ended = None;
    let opened = wait_for("the recovered server to be open", Duration::from_secs(120), || {
        ended = serving.try_wait().ok().flatten();
        ended.is_some() || said(&out).contains("open after")
    });
    let took = start.elapsed();
    // From here on the directory goes when the value does.
    let cluster = Cluster::adopt(&dir, &data)?;
    let fragments_when_open = cluster.fragment_files().len();
    if opened.is_err() || ended.is_some_and(|e| !e.success()) {
        let _ = serving.kill();
        let _ = serving.wait();
        bail!("strata {args:?} {}\n{}", ended.map_or("did not end".into(), |e| format!("ended with {e}")), said(&out));
    }
    let recovered = Recovered { cluster, took, fragments_when_open, serving, out };
    recovered.cluster.wait_ready(Duration::from_secs(20))?;
    Ok(recovered)
}

fn said(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_default()
}

impl Recovered {
    /// What `strata recover` has said until now.
    pub fn said(&self) -> String {
        said(&self.out)
    }

    /// Waits until `strata recover` has fetched everything; gives whether it could.
    pub fn fetched_all(&mut self) -> Result<bool> {
        Ok(self.serving.wait()?.success())
    }
}

impl Drop for Recovered {
    fn drop(&mut self) {
        if !matches!(self.serving.try_wait(), Ok(Some(_))) {
            let top = i32::try_from(self.serving.id()).unwrap_or(0);
            process::descendants(top).into_iter().for_each(process::terminate);
            let gone = wait_for("strata recover to end", Duration::from_secs(5), || {
                matches!(self.serving.try_wait(), Ok(Some(_)))
            });
            if gone.is_err() {
                process::descendants(top).into_iter().for_each(process::kill9);
                let _ = self.serving.kill();
                let _ = self.serving.wait();
            }
        }
    }
}

/// A port that nothing listens on now.
pub fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Switches WAL and waits until the archiver has stored everything up to now.
pub fn wait_archived(client: &mut Client) -> Result<()> {
    // Less one: where nothing was written since the last switch, this is a boundary, and PostgreSQL 17 names the segment behind it.
    let last = twin::value(client, "SELECT pg_walfile_name(pg_switch_wal() - 1)")?;
    wait_for(&format!("segment {last} to be archived"), Duration::from_secs(60), || {
        twin::value(client, "SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver")
            .is_ok_and(|done| done >= last)
    })
}
