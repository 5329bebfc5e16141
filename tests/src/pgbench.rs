//! Load by `pgbench`: a script of one's own, and what it reports per transaction.

use crate::cluster::Cluster;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};

/// A running pgbench that logs every transaction.
#[derive(Debug)]
pub struct Load {
    child: Child,
    prefix: PathBuf,
}

/// What a load did.
#[derive(Debug, Default, Clone)]
pub struct Report {
    /// Transactions that committed.
    pub transactions: u64,
    /// Transactions that failed.
    pub failed: u64,
    /// The longest one, in milliseconds.
    pub longest_ms: f64,
    /// The longest one of each script, in milliseconds, in the order of the scripts.
    pub longest_by_script: Vec<f64>,
}

impl Load {
    /// Starts `clients` clients over the `scripts` (with equal weight) until `seconds` have passed.
    pub fn start(cluster: &Cluster, scripts: &[&str], clients: u32, seconds: u32) -> Result<Self> {
        let prefix = cluster.dir().join("pgbench");
        let mut command = cluster.program("pgbench");
        command
            .args(["--no-vacuum", "--log", "--protocol=prepared", "--max-tries=1"])
            .arg(format!("--log-prefix={}", prefix.display()))
            .arg(format!("--client={clients}"))
            .arg("--jobs=1")
            .arg(format!("--time={seconds}"));
        for (i, script) in scripts.iter().enumerate() {
            let file = cluster.dir().join(format!("pgbench-{i}.sql"));
            fs::write(&file, script).with_context(|| format!("write {}", file.display()))?;
            command.arg("-f").arg(file);
        }
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("start pgbench")?;
        Ok(Self { child, prefix })
    }

    /// Whether it is still running.
    pub fn running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end. A client that was aborted by an error is a failure of the whole.
    pub fn finish(self) -> Result<Report> {
        let output = self.child.wait_with_output()?;
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if !output.status.success() {
            bail!("pgbench ended with {}:\n{said}", output.status);
        }
        let mut report = Report::default();
        if let Some(line) = said.lines().find(|l| l.starts_with("number of failed transactions:")) {
            report.failed = line.split(&[' ', ':'][..]).find_map(|w| w.parse().ok()).unwrap_or(0);
        }
        let dir = self.prefix.parent().context("the log prefix has a directory")?;
        let name = self.prefix.file_name().map(|n| format!("{}.", n.to_string_lossy())).unwrap_or_default();
        for entry in fs::read_dir(dir)?.flatten() {
            if !entry.file_name().to_string_lossy().starts_with(&name) {
                continue;
            }
            // client transaction latency_us script ...; "failed" in place of the latency when it failed
            for line in fs::read_to_string(entry.path())?.lines() {
                let f: Vec<&str> = line.split(' ').collect();
                let script: usize = f.get(3).and_then(|s| s.parse().ok()).unwrap_or(0);
                let Some(us) = f.get(2).and_then(|s| s.parse::<f64>().ok()) else {
                    report.failed += 1;
                    continue;
                };
                report.transactions += 1;
                report.longest_ms = report.longest_ms.max(us / 1000.0);
                if report.longest_by_script.len() <= script {
                    report.longest_by_script.resize(script + 1, 0.0);
                }
                report.longest_by_script[script] = report.longest_by_script[script].max(us / 1000.0);
            }
            fs::remove_file(entry.path())?;
        }
        Ok(report)
    }
}
