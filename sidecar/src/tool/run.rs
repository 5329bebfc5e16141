//! One run of a tool: a process group of its own, a pipe, limits, and an end in every case.
//!
//! ```text
//!   caller ──bytes──► Process::write ──poll──► stdin or FIFO ──► tool ──► stdout/stderr ──► two readers ──► Output
//!   caller ◄─bytes─── Process::read  ◄─poll─── stdout or FIFO ◄── tool
//! ```
//!
//! Our end of the pipe never blocks: each wait is a short poll, after which the limits are looked at. So a tool that hangs,
//! one that died while something else holds its pipe, and one that never opens its FIFO all end the same way.
//!
//! The tool leads a process group. When its leader ends, or when we end it (SIGTERM, a grace period, SIGKILL), what is left of
//! the group is killed before the leader is reaped, so the group's number cannot be another's by then. A `Process` that is
//! dropped is ended: the tool must not take the end of its input for the end of the data. If this program is killed
//! itself, the tool does see the end of its input, and may store a stream that was cut off; nothing names that object, and
//! the next backup forgets it (see [`super::send`]).
//!
//! Memory is bounded: see [`super::output`].

use super::output::{Output, Stream, drain};
use crate::config::tool::{CommandSpec, Operation, PipeKind, ToolSpec};
use crate::error::{AtPath, Error, ErrorKind, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a poll waits before the limits are looked at.
const SLICE: Duration = Duration::from_millis(50);
/// What a tool gets between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(5);
/// How long the readers may take when the tool and its group are gone: something may hold its output.
const READERS: Duration = Duration::from_secs(1);
/// The pipe's size, if the system allows it.
const PIPE: usize = 1 << 20;
/// What a tool gets of our environment: never what libpq reads, for example.
const INHERITED: [&str; 17] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "LC_MESSAGES",
    "TMPDIR",
    "TZ",
    "SSH_AUTH_SOCK",
    "XDG_CONFIG_HOME",
    "XDG_CACHE_HOME",
    "XDG_RUNTIME_DIR",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Ends all runs of tools of this process soon, with an error: this process is about to end.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// True once [`interrupt`] was called.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// The values of placeholders.
pub type Values<'a> = dyn Fn(&str) -> &'a str + 'a;

/// How a run ended well.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The exit code; not 0 when it is a warning.
    pub exit_code: i32,
    /// The tool's own identifier.
    pub identifier: Option<String>,
    /// The bytes that it says it stored.
    pub stored_bytes: Option<u64>,
    /// Its last lines.
    pub messages: Vec<String>,
    /// Its whole standard output, for `list`.
    pub captured: Vec<u8>,
}

/// Why we ended a tool.
#[derive(Clone, Copy, Debug)]
enum Cut {
    Timeout(Duration),
    Stall(Duration),
    Interrupted,
}

/// A running tool. Dropping it ends it.
pub struct Process {
    what: String,
    hint: String,
    warnings: Vec<i32>,
    child: Option<Child>,
    group: Pid,
    output: Arc<Mutex<Output>>,
    readers: Vec<JoinHandle<()>>,
    pipe: Option<OwnedFd>,
    fifo: Option<Fifo>,
    began: Instant,
    timeout: Duration,
    stall: Duration,
    status: Option<ExitStatus>,
    cut: Option<Cut>,
}

/// A named pipe. Dropping it removes it.
struct Fifo(PathBuf);

impl Fifo {
    fn create(state: &Path) -> Result<Self> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = state.join(format!("pipe-{}-{number}", std::process::id()));
        // A process of the same number may have been killed here.
        let _ = std::fs::remove_file(&path);
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
            .at("create the named pipe", &path)?;
        Ok(Self(path))
    }
}

impl Drop for Fifo {
    fn drop(&mut self) {
        // One that stays is removed by the next process of this number.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Sees to the tool's directory for pipes and caches, which nobody else can enter.
fn require_state(state: &Path) -> Result<()> {
    match std::fs::DirBuilder::new().recursive(true).mode(0o700).create(state) {
        Ok(()) => {}
        Err(error) => return Err(Error::io("create the directory", state, error)),
    }
    let meta = std::fs::symlink_metadata(state).at("look at", state)?;
    let own = meta.is_dir() && meta.uid() == rustix::process::geteuid().as_raw();
    if own && meta.mode() & 0o077 == 0 {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Forbidden,
        format!("the tool's directory \"{}\" is not this user's alone", state.display()),
    )
    .with_hint("Name another one as tool.state: a directory of this user with the permissions 0700, or one that is not there yet."))
}

/// The secrets' values.
fn secrets(spec: &ToolSpec) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for (name, secret) in &spec.secrets {
        let wrong = |why: String| Error::new(ErrorKind::Config, format!("tool.secrets.{name} cannot be had: {why}"));
        let value = match (&secret.file, &secret.env) {
            (Some(file), _) => {
                let text = std::fs::read_to_string(file)
                    .map_err(|error| wrong(format!("could not read \"{}\": {error}", file.display())))?;
                text.lines().next().unwrap_or_default().to_owned()
            }
            (None, Some(variable)) => std::env::var(variable)
                .map_err(|_| wrong(format!("the environment variable {variable} is not set, or is no text")))?,
            (None, None) => String::new(),
        };
        if value.is_empty() {
            return Err(wrong("it is empty".to_owned()));
        }
        found.push((name.clone(), value));
    }
    Ok(found)
}

impl Process {
    /// Starts a command. `what` completes "the tool NAME failed in …".
    pub fn start(spec: &ToolSpec, command: &CommandSpec, what: &str, values: &Values<'_>) -> Result<Self> {
        require_state(&spec.state)?;
        let fifo = match command.pipe {
            PipeKind::Fifo => Some(Fifo::create(&spec.state)?),
            PipeKind::Stdio => None,
        };
        let pipe_path = fifo.as_ref().map_or_else(String::new, |fifo| fifo.0.display().to_string());
        let state = spec.state.display().to_string();
        let words: Vec<String> = command
            .words
            .iter()
            .map(|word| {
                let texts: std::collections::HashMap<&str, &str> =
                    [("pipe", pipe_path.as_str()), ("state", state.as_str()), ("repository", spec.repository.as_str())]
                        .into();
                word.fill(command.shell, |name| match texts.get(name) {
                    Some(text) => text,
                    None => values(name),
                })
            })
            .collect();
        let secrets = secrets(spec)?;
        let program = if command.shell { "sh" } else { words.first().map_or("", String::as_str) };
        let mut process = Command::new(program);
        match command.shell {
            true => process.arg("-c").args(&words).arg("sh"),
            false => process.args(words.iter().skip(1)),
        };
        process.env_clear();
        for name in INHERITED {
            if let Some(value) = std::env::var_os(name) {
                process.env(name, value);
            }
        }
        for (name, value) in &spec.env {
            let value = value.fill(false, |name| match name {
                "state" => state.as_str(),
                "repository" => spec.repository.as_str(),
                _ => values(name),
            });
            process.env(name, value);
        }
        process.envs(secrets.iter().map(|(name, value)| (name, value)));
        let carries = |operation| command.operation == operation && command.pipe == PipeKind::Stdio;
        process
            .stdin(if carries(Operation::Backup) { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .current_dir("/")
            .process_group(0);
        let hint = format!("Try it by hand: \"strata tool show\" prints the command of tool.{}.", command.operation);
        let mut child = process.spawn().map_err(|error| {
            let failed = Error::new(ErrorKind::Tool, format!("could not start \"{program}\" of the tool {}: {error}", spec.name));
            match error.kind() {
                // A directory of the PATH that cannot be entered makes "denied" of "not there".
                std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied => failed.with_hint(format!(
                    "Install it, see to it that it is in the PATH of this process, or name it with its path in tool.{}.command.",
                    command.operation
                )),
                _ => failed,
            }
        })?;
        let output = Output::new(
            secrets.into_iter().map(|(_, value)| value).collect(),
            command.identifier.clone(),
            command.stored_bytes.clone(),
            command.operation == Operation::List,
        );
        let output = Arc::new(Mutex::new(output));
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        // The number of a process fits.
        let group = Pid::from_child(&child);
        let mut this = Self {
            what: format!("the tool {} failed in {what}", spec.name),
            hint,
            warnings: command.warnings.clone(),
            child: Some(child),
            group,
            output: output.clone(),
            readers: Vec::new(),
            pipe: stdin.map(OwnedFd::from),
            fifo,
            began: Instant::now(),
            timeout: command.timeout,
            stall: spec.stall,
            status: None,
            cut: None,
        };
        if let Some(stderr) = stderr {
            let output = output.clone();
            this.readers.push(std::thread::spawn(move || drain(stderr, Stream::Error, &output)));
        }
        match stdout {
            Some(stdout) if carries(Operation::Restore) => this.pipe = Some(stdout.into()),
            Some(stdout) => this.readers.push(std::thread::spawn(move || drain(stdout, Stream::Out, &output))),
            None => {}
        }
        if let Some(pipe) = &this.pipe {
            let _ = rustix::pipe::fcntl_setpipe_size(pipe, PIPE);
            let flags = rustix::fs::fcntl_getfl(pipe).at("use a pipe of", Path::new(program))?;
            rustix::fs::fcntl_setfl(pipe, flags | OFlags::NONBLOCK).at("use a pipe of", Path::new(program))?;
        }
        if this.fifo.is_some() {
            this.open_fifo(command.operation)?;
        }
        Ok(this)
    }

    /// Opens our end of the named pipe. The writing end can be opened only when the tool has opened its own.
    fn open_fifo(&mut self, operation: Operation) -> Result<()> {
        let Some(path) = self.fifo.as_ref().map(|fifo| fifo.0.clone()) else { return Ok(()) };
        let way = if operation == Operation::Backup { OFlags::WRONLY } else { OFlags::RDONLY };
        let began = Instant::now();
        loop {
            match rustix::fs::open(&path, way | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()) {
                Ok(pipe) => {
                    let _ = rustix::pipe::fcntl_setpipe_size(&pipe, PIPE);
                    self.pipe = Some(pipe);
                    return Ok(());
                }
                Err(rustix::io::Errno::NXIO) => {}
                Err(error) => return Err(Error::io("open the named pipe", &path, error)),
            }
            if self.ended()? {
                return Err(self.failed("it ended without opening its named pipe"));
            }
            self.check_limits(began)?;
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Writes all of `bytes` to the tool.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        let mut waiting = Instant::now();
        while !bytes.is_empty() {
            let Some(pipe) = &self.pipe else { return Err(self.failed("its pipe is closed")) };
            match rustix::io::write(pipe, bytes) {
                Ok(written) => {
                    bytes = bytes.get(written..).unwrap_or_default();
                    waiting = Instant::now();
                    if INTERRUPTED.load(Ordering::Relaxed) || self.began.elapsed() > self.timeout {
                        self.check_limits(waiting)?;
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    if !self.ready(PollFlags::OUT)? && self.ended()? {
                        return Err(self.failed("it ended before it had read everything"));
                    }
                    self.check_limits(waiting)?;
                }
                Err(rustix::io::Errno::PIPE) => {
                    return Err(self.failed("it stopped reading before the end of the data"));
                }
                Err(error) => return Err(self.failed(&format!("its pipe cannot be written: {error}"))),
            }
        }
        Ok(())
    }

    /// Reads some bytes from the tool; 0 at the end.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let waiting = Instant::now();
        loop {
            let Some(pipe) = &self.pipe else { return Ok(0) };
            // A named pipe that nobody has opened yet reads as if it were at its end; polled, it says nothing.
            if self.fifo.is_some() && !self.ready(PollFlags::IN)? {
                if self.ended()? && !self.ready(PollFlags::IN)? {
                    return Ok(0);
                }
                self.check_limits(waiting)?;
                continue;
            }
            match rustix::io::read(pipe, &mut *buffer) {
                Ok(got) => return Ok(got),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    if !self.ready(PollFlags::IN)? && self.ended()? {
                        // What it wrote before it ended is there by now.
                        if !self.ready(PollFlags::IN)? {
                            return Ok(0);
                        }
                    }
                    self.check_limits(waiting)?;
                }
                Err(error) => return Err(self.failed(&format!("its pipe cannot be read: {error}"))),
            }
        }
    }

    /// Waits a moment until the pipe is ready, or its other end is closed.
    fn ready(&self, flags: PollFlags) -> Result<bool> {
        let Some(pipe) = &self.pipe else { return Ok(false) };
        let mut fds = [PollFd::from_borrowed_fd(pipe.as_fd(), flags)];
        let slice = Timespec { tv_sec: 0, tv_nsec: SLICE.subsec_nanos().into() };
        match poll(&mut fds, Some(&slice)) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(Error::new(ErrorKind::Io, format!("could not wait for a pipe: {error}"))),
        }
    }

    /// Ends the tool when a limit is passed.
    fn check_limits(&mut self, waiting: Instant) -> Result<()> {
        let cut = if INTERRUPTED.load(Ordering::Relaxed) {
            Cut::Interrupted
        } else if self.began.elapsed() > self.timeout {
            Cut::Timeout(self.timeout)
        } else if waiting.elapsed() > self.stall {
            Cut::Stall(self.stall)
        } else {
            return Ok(());
        };
        self.cut = Some(cut);
        Err(self.failed(""))
    }

    /// True when the tool itself has ended. What is left of its group is killed then.
    fn ended(&mut self) -> Result<bool> {
        if self.status.is_some() {
            return Ok(true);
        }
        let peek = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        match waitid(WaitId::Pid(self.group), peek) {
            Ok(None) => Ok(false),
            Ok(Some(_)) => {
                self.reap();
                Ok(true)
            }
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(Error::new(ErrorKind::Io, format!("could not wait for the tool: {error}"))),
        }
    }

    /// Kills what is left of the group, whose leader has ended or is killed with it, and takes the leader's status.
    fn reap(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // It fails when nobody is left.
        let _ = kill_process_group(self.group, Signal::KILL);
        self.status = child.wait().ok();
        let began = Instant::now();
        while self.readers.iter().any(|reader| !reader.is_finished()) && began.elapsed() < READERS {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.readers.clear();
    }

    /// Ends the tool and its group, gently first.
    fn stop(&mut self) {
        if self.child.is_none() {
            return;
        }
        let _ = kill_process_group(self.group, Signal::TERM);
        let began = Instant::now();
        while began.elapsed() < GRACE {
            if !matches!(self.ended(), Ok(false)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.reap();
    }

    /// Closes the pipe and waits for the tool's end.
    pub fn finish(mut self) -> Result<Outcome> {
        self.pipe = None;
        let waiting = Instant::now();
        let mut pause = Duration::from_millis(1);
        while !self.ended()? {
            // At the end of its input a tool may have much to do: only the limit for the whole run holds.
            self.check_limits(Instant::now())?;
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
        tracing::debug!(seconds = waiting.elapsed().as_secs_f64(), "the tool ended");
        let code = self.status.and_then(|status| status.code());
        match code {
            Some(code) if code == 0 || self.warnings.contains(&code) => {
                let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
                Ok(Outcome {
                    exit_code: code,
                    identifier: output.found_identifier.take(),
                    stored_bytes: output.found_stored_bytes,
                    messages: output.last_lines(),
                    captured: output.take_captured(),
                })
            }
            _ => Err(self.failed("")),
        }
    }

    /// Ends the tool, whose output is not wanted any more.
    pub fn abandon(mut self) {
        self.stop();
    }

    /// The error of this run, with the tool's last lines; the tool is ended. `saw` is what we noticed ourselves.
    pub fn failed(&mut self, saw: &str) -> Error {
        // It may be about to say why.
        let began = Instant::now();
        while self.cut.is_none() && began.elapsed() < GRACE.min(self.stall) && matches!(self.ended(), Ok(false)) {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.stop();
        let how = match (self.cut, self.status) {
            (Some(Cut::Timeout(limit)), _) => format!("it took longer than its limit of {limit:?} and was ended"),
            (Some(Cut::Stall(limit)), _) => format!("no byte went through its pipe for {limit:?}, and it was ended"),
            (Some(Cut::Interrupted), _) => "this program was told to end".to_owned(),
            (None, Some(status)) => match (status.code(), status.signal()) {
                (Some(0), _) => String::new(),
                (Some(code), _) => format!("exit code {code}"),
                (None, Some(signal)) => format!("it was killed by signal {signal}"),
                (None, None) => String::new(),
            },
            (None, None) => String::new(),
        };
        let why: Vec<&str> = [how.as_str(), saw].into_iter().filter(|text| !text.is_empty()).collect();
        let lines = self.output.lock().unwrap_or_else(PoisonError::into_inner).last_lines();
        let full =
            lines.iter().any(|line| line.contains("No space left on device") || line.contains("Disk quota exceeded"));
        let kind = if full { ErrorKind::DiskFull } else { ErrorKind::Tool };
        let mut error = Error::new(kind, format!("{}: {}", self.what, why.join(", ")));
        if !lines.is_empty() {
            error = error.detail(format!("Its last lines:\n{}", lines.join("\n")));
        }
        if !full {
            let code = self.status.and_then(|status| status.code());
            error = error.with_hint(match code {
                Some(126 | 127) => format!("Is the program installed? {}", self.hint),
                _ => self.hint.clone(),
            });
        }
        error
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests;
