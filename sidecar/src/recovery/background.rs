//! The process that brings the fragments of a recovered server after `strata recover` returned: an agent of that server
//! (`strata agent --until-complete`), which serves fragments on demand, fetches all, and ends by itself when all are there
//! or the server is gone.

use crate::error::{AtPath, Error, ErrorKind, Result};
use crate::socket::client;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use strata_catalog::{Request, names};

const START_LIMIT: Duration = Duration::from_secs(10);

/// The process. Dropped before it is released, it is killed.
pub struct BackgroundAgent {
    child: Option<Child>,
    log: PathBuf,
}

impl BackgroundAgent {
    /// Starts it and waits until it answers. With `stay`, it goes on when all fragments are there.
    pub async fn start(config: &Path, store: &Path, stay: bool) -> Result<Self> {
        let program = std::env::current_exe()
            .map_err(|error| Error::new(ErrorKind::Io, format!("could not find this program: {error}")))?;
        let log = store.join("agent.log");
        let out = OpenOptions::new().create(true).append(true).mode(0o600).open(&log).at("open", &log)?;
        let mut command = Command::new(&program);
        command.arg("--config").arg(config).args(["--verbose", "agent", "--detach"]);
        if !stay {
            command.arg("--until-complete");
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone().at("open", &log)?)
            .stderr(out)
            .current_dir("/")
            .spawn()
            .at("run", &program)?;
        let mut agent = Self { child: Some(child), log };
        let socket = names::default_socket(store);
        let began = Instant::now();
        loop {
            if client::ask(&socket, &Request::Ping, Duration::from_secs(2)).await.is_ok() {
                return Ok(agent);
            }
            let ended = agent.child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)));
            if ended || began.elapsed() > START_LIMIT {
                return Err(Error::new(ErrorKind::Recovery, "the agent that brings the fragments did not start")
                    .detail(format!("Its log \"{}\" says:\n{}", agent.log.display(), agent.said())));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default().trim().to_owned()
    }

    /// Lets it go on after this process. Returns its process id.
    pub fn release(mut self) -> Option<u32> {
        let child = self.child.take()?;
        let id = child.id();
        // Whoever goes on living (an agent that ran the recovery) has to take its exit status some day.
        std::thread::spawn(move || {
            let mut child = child;
            child.wait()
        });
        Some(id)
    }
}

impl Drop for BackgroundAgent {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It ended already, or it ends now.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
