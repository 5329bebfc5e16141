//! Starts a recovered server through `pg_ctl` and waits until it is open.
//!
//! While it recovers it takes no connections (`hot_standby = off` on the command line only), so nobody ever sees a state
//! from before the target, unless it is to pause there ([`super::ending`]). It is open when its `postmaster.pid` says `ready`.

use super::configure::NewPlace;
use crate::error::{AtPath, Error, ErrorKind, Result};
use crate::progress::Progress;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Where the server's log collector says which files it writes to.
const LOG_LIST: &str = "current_logfiles";
pub(super) const POLL: Duration = Duration::from_millis(20);
const ENDED: &str = "the recovered server ended before it was open";
/// How much of the server's log is read for an error.
const LOG_TAIL: u64 = 64 << 10;
/// How long the server's log collector, which outlives the server, may take to write the server's last words.
const LOG_PATIENCE: Duration = Duration::from_secs(5);
/// After so long without a word it has written them.
const LOG_QUIET: Duration = Duration::from_millis(200);

/// Where the server's messages of the recovery go.
pub fn log_path(data: &Path) -> PathBuf {
    data.join("strata-recover.log")
}

/// Starts the server, with settings of its command line. Returns at once. With `hot_standby` it takes connections while it recovers.
pub async fn start(place: &NewPlace, options: &[String], hot_standby: bool) -> Result<()> {
    let log = log_path(&place.data);
    let pg_ctl = place.bin.join("pg_ctl");
    // The backup has the old server's list. (The times of files do not tell which it is: some are finer than others.)
    let list = place.data.join(LOG_LIST);
    match std::fs::remove_file(&list) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).at("remove", &list),
        _ => {}
    }
    let status = tokio::process::Command::from(command(&pg_ctl, &place.data, &log, options, hot_standby))
        .status()
        .await
        .at("run", &pg_ctl)?;
    if status.success() {
        return Ok(());
    }
    Err(failed(place, "pg_ctl could not start the server").await)
}

fn command(pg_ctl: &Path, data: &Path, log: &Path, options: &[String], hot_standby: bool) -> Command {
    let hot_standby = if hot_standby { "on" } else { "off" };
    let mut all = format!("-c hot_standby={hot_standby} -c recovery_init_sync_method=syncfs");
    options.iter().for_each(|option| all.push_str(&format!(" -c {option}")));
    let mut command = Command::new(pg_ctl);
    command
        .arg("start")
        .arg("-W")
        .arg("-s")
        .arg("-D")
        .arg(data)
        .arg("-l")
        .arg(log)
        .args(["-o", &all])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // A backtrace setting of ours must not make the server write backtraces into its errors.
        .env_remove("RUST_BACKTRACE");
    command
}

/// Waits until the server is open, for as long as it recovers.
pub async fn wait(place: &NewPlace, progress: &Progress) -> Result<()> {
    progress.phase("replay", 0, "PostgreSQL replays the WAL");
    let mut server = Watched::new(place);
    while !server.look().await?.is_some_and(|file| file.ready) {
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// A server that was started, as its `postmaster.pid` shows it.
pub(super) struct Watched<'a> {
    place: &'a NewPlace,
    patience: Duration,
}

impl<'a> Watched<'a> {
    /// It makes the file some moments after `pg_ctl` returned, and fills it some moments later.
    pub fn new(place: &'a NewPlace) -> Self {
        Self { place, patience: Duration::from_secs(10) }
    }

    /// What the file says; none when it is not there yet. An error when the server has ended.
    pub async fn look(&mut self) -> Result<Option<PidFile>> {
        let file = PidFile::read(&self.place.data.join("postmaster.pid"));
        match &file {
            Some(file) if file.alive => self.patience = Duration::from_secs(1),
            None if !self.patience.is_zero() => self.patience = self.patience.saturating_sub(POLL),
            _ => return Err(failed(self.place, ENDED).await),
        }
        Ok(file)
    }
}

/// What a server's `postmaster.pid` says.
pub(super) struct PidFile {
    pub alive: bool,
    pub ready: bool,
}

impl PidFile {
    /// None when the file is not there, or not written yet.
    pub fn read(path: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(path).ok()?;
        // The last line that is ended is whole.
        let text = text.get(..text.rfind('\n')?)?;
        let mut lines = text.lines();
        let pid = rustix::process::Pid::from_raw(lines.next()?.trim().parse().ok()?)?;
        Some(Self {
            alive: rustix::process::test_kill_process(pid).is_ok(),
            ready: lines.nth(6).is_some_and(|status| status.trim() == "ready"),
        })
    }
}

pub(super) async fn failed(place: &NewPlace, message: &str) -> Error {
    let log = log_path(&place.data);
    let is_fatal = |line: &&str| line.contains("FATAL") || line.contains("PANIC");
    let mut text = messages(place, &log);
    let (mut waited, mut quiet) = (Duration::ZERO, Duration::ZERO);
    while waited < LOG_PATIENCE && (quiet < LOG_QUIET || !text.lines().any(|line| is_fatal(&line))) {
        tokio::time::sleep(POLL).await;
        let now = messages(place, &log);
        quiet = if now == text { quiet + POLL } else { Duration::ZERO };
        waited += POLL;
        text = now;
    }
    let fatal: Vec<&str> = text.lines().filter(is_fatal).collect();
    let last: Vec<&str> = text.lines().rev().take(10).collect();
    let said = match fatal.as_slice() {
        [] => last.into_iter().rev().collect::<Vec<_>>().join("\n"),
        lines => lines.join("\n"),
    };
    let mut error = Error::new(ErrorKind::Recovery, message)
        .detail(format!("The server's log \"{}\" says:\n{said}", log.display()));
    if text.contains("recovery ended before configured recovery target was reached") {
        error = error.with_hint(
            "The log ended before the target: a WAL segment is missing or damaged. Run \"strata verify\" to find it.",
        );
    }
    error
}

/// What the server said since it was started.
fn messages(place: &NewPlace, log: &Path) -> String {
    let mut text = tail(log);
    // With logging_collector, the server writes there only until the collector runs.
    for path in collected_logs(&place.data) {
        let collected = tail(&path);
        // The file may be one that the old server began.
        text.push_str(collected.rfind("starting PostgreSQL").and_then(|at| collected.get(at..)).unwrap_or(&collected));
    }
    text
}

/// The files that the server's log collector writes to.
fn collected_logs(data: &Path) -> Vec<PathBuf> {
    let list = data.join(LOG_LIST);
    let text = std::fs::read_to_string(&list).unwrap_or_default();
    text.lines().filter_map(|line| Some(data.join(line.split_once(' ')?.1))).collect()
}

fn tail(path: &Path) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(LOG_TAIL)))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        Ok(text)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}
