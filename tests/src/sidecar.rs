//! The program `strata`: its configuration for a test cluster, one run of it, and the agent.

use crate::cluster::Cluster;
use crate::process::{self, as_server, give_to_server, kill9, terminate, wait_for};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

/// A configuration file, and the program that reads it.
#[derive(Debug, Clone)]
pub struct Strata {
    config: PathBuf,
    repository: PathBuf,
    program: PathBuf,
}

/// What one run of `strata` said.
#[derive(Debug, Clone)]
pub struct Said {
    /// The exit code; -1 after a signal.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Said {
    /// Standard output as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(self.stdout.trim()).with_context(|| format!("not JSON: {self:?}"))
    }

    /// Both outputs.
    pub fn all(&self) -> String {
        format!("{}\n{}", self.stdout, self.stderr)
    }
}

impl Strata {
    /// Writes `strata.toml` for `cluster`, with the repository beside its data directory.
    pub fn configure(cluster: &Cluster) -> Result<Self> {
        Self::configure_at(cluster, &cluster.dir().join("repo"))
    }

    /// Writes `strata.toml` for `cluster`, with the repository at `repository`.
    pub fn configure_at(cluster: &Cluster, repository: &Path) -> Result<Self> {
        fs::create_dir_all(repository)?;
        give_to_server(repository)?;
        let config = cluster.dir().join("strata.toml");
        let text = format!(
            "system = \"test\"\n\n\
             [member]\n\
             name = \"one\"\n\
             conninfo = \"{}\"\n\
             data_directory = \"{}\"\n\
             bin_directory = \"{}\"\n\n\
             [repository]\n\
             path = \"{}\"\n",
            cluster.dsn("postgres"),
            cluster.data().display(),
            process::pg_config("bindir")?.display(),
            repository.display()
        );
        fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
        Ok(Self { config, repository: repository.to_path_buf(), program: program() })
    }

    /// Makes the server archive its WAL through `strata wal push`. The server must have `archive_mode = on`
    /// ([`Options::archiving`](crate::Options::archiving)).
    pub fn archive(&self, cluster: &Cluster) -> Result<()> {
        let command = format!("{} --config {} wal push %p", self.program.display(), self.config.display());
        let mut client = cluster.connect()?;
        client.batch_execute(&format!("ALTER SYSTEM SET archive_command = '{command}'"))?;
        client.batch_execute("SELECT pg_reload_conf()")?;
        Ok(())
    }

    /// Configuration, archiving and a running agent.
    pub fn with_agent(cluster: &Cluster) -> Result<(Self, Agent)> {
        let strata = Self::configure(cluster)?;
        strata.archive(cluster)?;
        let agent = Agent::start(cluster, &strata)?;
        Ok((strata, agent))
    }

    /// The configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The repository's directory.
    pub fn repository(&self) -> &Path {
        &self.repository
    }

    /// `strata ARGS` as the server's user, ready to be started.
    pub fn command(&self, args: &[&str]) -> std::process::Command {
        let mut command = as_server(&self.program);
        command.arg("--config").arg(&self.config).args(args);
        command
    }

    /// Runs `strata ARGS` to its end, whatever that is.
    pub fn try_run(&self, args: &[&str]) -> Result<Said> {
        let output = self.command(args).output().with_context(|| format!("start {}", self.program.display()))?;
        Ok(Said {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs `strata ARGS`, which must succeed.
    pub fn run(&self, args: &[&str]) -> Result<Said> {
        let said = self.try_run(args)?;
        if said.code != 0 {
            bail!("strata {args:?} ended with {}\n{}", said.code, said.all());
        }
        Ok(said)
    }

    /// Runs `strata --output json ARGS`, which must succeed, and reads what it says.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let mut all = vec!["--output", "json"];
        all.extend(args);
        self.run(&all)?.json()
    }
}

/// The installed program.
pub fn program() -> PathBuf {
    std::env::var_os("STRATA_BIN").map_or_else(|| PathBuf::from("/usr/local/bin/strata"), PathBuf::from)
}

/// A running `strata agent`; killed with SIGTERM when dropped.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    log: PathBuf,
}

impl Agent {
    /// Starts an agent for the cluster and waits until its socket is there.
    pub fn start(cluster: &Cluster, strata: &Strata) -> Result<Self> {
        Self::start_at(strata, &cluster.store().join("agent.sock"), &cluster.dir().join("agent.log"))
    }

    /// Starts an agent that will listen at `socket` and logs to `log`.
    pub fn start_at(strata: &Strata, socket: &Path, log: &Path) -> Result<Self> {
        let _ = fs::remove_file(socket);
        let out =
            File::options().create(true).append(true).open(log).with_context(|| format!("open {}", log.display()))?;
        let child = strata
            .command(&["agent"])
            .stdout(out.try_clone()?)
            .stderr(Stdio::from(out))
            .spawn()
            .context("start strata agent")?;
        let mut agent = Self { child, log: log.to_path_buf() };
        // The file is there a moment before somebody listens.
        let answers = || UnixStream::connect(socket).is_ok();
        let waited = wait_for("the agent's socket", Duration::from_secs(30), || {
            answers() || !matches!(agent.child.try_wait(), Ok(None))
        });
        if waited.is_err() || !answers() {
            bail!("the agent did not come up:\n{}", agent.said());
        }
        Ok(agent)
    }

    /// The agent's log.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The agent's own process ids (`runuser` may stand above it).
    pub fn pids(&self) -> Vec<i32> {
        let top = i32::try_from(self.child.id()).unwrap_or(0);
        let mut all = process::descendants(top);
        all.push(top);
        all
    }

    /// kill -9.
    pub fn kill9(mut self) {
        self.pids().into_iter().for_each(kill9);
        let _ = self.child.wait();
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        let pids = self.pids();
        // The agent itself is the deepest; runuser passes its end on.
        pids.iter().for_each(|&p| terminate(p));
        if wait_for("the agent to end", Duration::from_secs(20), || !matches!(self.child.try_wait(), Ok(None))).is_err()
        {
            pids.into_iter().for_each(kill9);
            let _ = self.child.wait();
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- agent (last lines) ---\n{}", crate::cluster::tail(&self.said(), 40));
        }
        self.end();
    }
}
