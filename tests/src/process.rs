//! Processes: run as the server's user, find, kill, wait.
//!
//! PostgreSQL refuses to run as root. When the harness is root, everything that belongs to a server runs as the user
//! `postgres` through `runuser`; otherwise it runs as the current user.

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, geteuid, kill_process, test_kill_process};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The operating system user that servers run as, when the harness itself is root.
pub const SERVER_USER: &str = "postgres";

/// Whether the harness runs as root.
pub fn is_root() -> bool {
    geteuid().is_root()
}

/// A command that runs `program` as the server's user in a directory that this user can enter.
pub fn as_server(program: impl AsRef<Path>) -> Command {
    let mut command = if is_root() {
        let mut c = Command::new("runuser");
        c.args(["-u", SERVER_USER, "--"]).arg(program.as_ref());
        c
    } else {
        Command::new(program.as_ref())
    };
    command
        .current_dir("/")
        .stdin(Stdio::null())
        .env_remove("RUST_BACKTRACE")
        .env("HOME", "/tmp")
        .env("LC_ALL", "C.UTF-8")
        .env("TZ", "UTC")
        // The harness' own directories only: nothing of the caller's libpq or Strata settings reaches a server.
        .env_remove("PGHOST")
        .env_remove("PGPORT")
        .env_remove("PGUSER")
        .env_remove("PGDATABASE")
        .env_remove("PGDATA")
        .env_remove("STRATA_CONFIG");
    command
}

/// Gives `path` to the server's user.
pub fn give_to_server(path: &Path) -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let (uid, gid) = server_ids()?;
    std::os::unix::fs::chown(path, Some(uid), Some(gid))
        .with_context(|| format!("give {} to {SERVER_USER}", path.display()))
}

fn server_ids() -> Result<(u32, u32)> {
    let passwd = fs::read_to_string("/etc/passwd").context("read /etc/passwd")?;
    for line in passwd.lines() {
        let f: Vec<&str> = line.split(':').collect();
        if f.first() == Some(&SERVER_USER) && f.len() > 3 {
            return Ok((f[2].parse()?, f[3].parse()?));
        }
    }
    bail!("no user {SERVER_USER} in /etc/passwd; run `make setup`")
}

/// Runs a command to its end, and fails with everything it said unless it exits with 0.
pub fn run(command: &mut Command) -> Result<Output> {
    let shown = format!("{command:?}");
    let output = command.output().with_context(|| format!("start {shown}"))?;
    if !output.status.success() {
        bail!(
            "{shown} ended with {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output)
}

/// Sends SIGKILL; a process that is gone already is fine.
pub fn kill9(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Sends SIGTERM; a process that is gone already is fine.
pub fn terminate(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, Signal::TERM);
    }
}

/// Whether a process with this id exists and is not a zombie.
pub fn alive(pid: i32) -> bool {
    let Some(p) = Pid::from_raw(pid) else { return false };
    test_kill_process(p).is_ok() && !matches!(stat(pid), Some((_, 'Z')))
}

/// Whether a process with this id exists, as a zombie perhaps.
pub fn exists(pid: i32) -> bool {
    Pid::from_raw(pid).is_some_and(|p| test_kill_process(p).is_ok())
}

/// Parent and state of a process.
fn stat(pid: i32) -> Option<(i32, char)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut rest = text.get(text.rfind(')')? + 2..)?.split(' ');
    let state = rest.next()?.chars().next()?;
    Some((rest.next()?.parse().ok()?, state))
}

/// All processes below `pid`, deepest last.
pub fn descendants(pid: i32) -> Vec<i32> {
    let mut parents = Vec::new();
    if let Ok(entries) = fs::read_dir("/proc") {
        for entry in entries.flatten() {
            if let Ok(p) = entry.file_name().to_string_lossy().parse::<i32>()
                && let Some((parent, _)) = stat(p)
            {
                parents.push((p, parent));
            }
        }
    }
    let mut found = Vec::new();
    let mut above = vec![pid];
    while let Some(p) = above.pop() {
        for &(child, parent) in &parents {
            if parent == p {
                found.push(child);
                above.push(child);
            }
        }
    }
    found
}

/// Waits until `done` is true; says after `limit` what it waited for.
pub fn wait_for(what: &str, limit: Duration, mut done: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    while !done() {
        if start.elapsed() > limit {
            bail!("waited {limit:?} for {what}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The directory of a PostgreSQL installation: `pg_config --NAME`.
pub fn pg_config(what: &str) -> Result<PathBuf> {
    let program = std::env::var("PG_CONFIG").unwrap_or_else(|_| "pg_config".to_owned());
    let output = run(Command::new(&program).arg(format!("--{what}")))?;
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}

/// Bytes of all files below `path`.
pub fn tree_bytes(path: &Path) -> u64 {
    files_below(path).iter().filter_map(|f| fs::metadata(f).ok()).map(|m| m.len()).sum()
}

/// All regular files below `path`, sorted; what disappears meanwhile is left out.
pub fn files_below(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![path.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(t) if t.is_dir() => todo.push(entry.path()),
                Ok(t) if t.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found.sort();
    found
}
