//! The agent's socket: lines of JSON on a Unix socket (`docs/design/contract.md`, section 3).
//!
//! One agent per socket: a lock beside it says whose it is, so a socket file that a dead agent left is replaced and one
//! of a living agent is not. A handler gets the request and a sender for events; it goes on when the client leaves. Progress
//! that a slow client does not take in time is dropped; the last event is not.

pub mod client;

use crate::error::{AtPath, Error, ErrorKind, Result};
use crate::progress::{Report, Sink};
use crate::repository::lock::Lock;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use strata_catalog::{Event, Request};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// A request is one line of at most this many bytes.
const REQUEST_LIMIT: u64 = 64 << 10;

/// A client hears something at least this often.
const HEARTBEAT: std::time::Duration = std::time::Duration::from_secs(2);

/// A client sends its request within this time.
const REQUEST_TIME: std::time::Duration = std::time::Duration::from_secs(30);

/// A client that takes nothing for this long has left.
const STUCK: std::time::Duration = std::time::Duration::from_secs(60);

/// How many events wait for a client.
const QUEUE: usize = 64;

/// What a handler returns.
pub type Answer = Pin<Box<dyn Future<Output = Result<serde_json::Value>> + Send>>;

/// Answers requests.
pub trait Handler: Send + Sync + 'static {
    /// Does what is asked. Progress goes to `events`.
    fn handle(self: Arc<Self>, request: Request, events: EventSender) -> Answer;
}

/// Sends events to the client of a request; events to a client that left go nowhere.
#[derive(Clone)]
pub struct EventSender(Sender<Event>);

impl Sink for EventSender {
    fn report(&self, report: &Report) {
        // A client that left needs no progress, and one that is behind gets the next report.
        let _ = self.0.try_send(Event::Progress {
            phase: report.phase.clone(),
            done: report.done,
            total: report.total,
            message: report.message.clone(),
        });
    }
}

/// The last event of a request.
pub fn last_event(outcome: std::result::Result<serde_json::Value, &Error>) -> Event {
    match outcome {
        Ok(result) => Event::Result { result },
        Err(error) => Event::Error {
            kind: error.kind.to_string(),
            message: error.message.clone(),
            detail: error.detail.clone(),
            hint: error.hint().map(str::to_owned),
        },
    }
}

/// A socket that is listened on. Dropping it removes the socket file.
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
    /// How many requests are being answered.
    answering: Arc<AtomicUsize>,
    _lock: Lock,
}

/// Counts a request as long as it lives.
struct Answering(Arc<AtomicUsize>);

impl Answering {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Listener {
    /// Begins to listen.
    pub fn bind(path: &Path) -> Result<Self> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).at("create the directory", dir)?;
        }
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let lock =
            Lock::acquire(Path::new(&lock_path), &format!("the agent at \"{}\"", path.display())).map_err(|error| {
                match error.kind {
                    ErrorKind::Locked => error.with_hint("Another agent serves this socket. End it first."),
                    _ => error,
                }
            })?;
        match std::fs::remove_file(path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("remove the old socket", path, error)),
        }
        // The socket is born with the permissions that it keeps: those of its descriptor. (A umask would be the whole process',
        // in which other threads make directories.)
        let bind = || -> std::io::Result<UnixListener> {
            let socket = UnixSocket::new_stream()?;
            rustix::fs::fchmod(&socket, rustix::fs::Mode::from_raw_mode(0o600))?;
            socket.bind(path)?;
            socket.listen(128)
        };
        let listener = bind().map_err(|error| {
            let long = path.as_os_str().len() > 107;
            let error = Error::io("listen at", path, error);
            if long {
                error.with_hint("The path of a Unix socket has at most 107 bytes. Set agent.socket.")
            } else {
                error
            }
        })?;
        Ok(Self { listener, path: path.to_owned(), answering: Arc::default(), _lock: lock })
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Serves requests until this future is dropped.
    pub async fn serve(&self, handler: Arc<dyn Handler>) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let (handler, answering) = (handler.clone(), Answering::new(&self.answering));
                    tokio::spawn(async move {
                        connection(stream, handler).await;
                        drop(answering);
                    });
                }
                Err(error) => {
                    tracing::warn!("could not accept a connection: {error}");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Listener {
    /// Waits until no request is being answered, but not for ever.
    pub async fn idle(&self, longest: std::time::Duration) {
        let begin = std::time::Instant::now();
        while self.answering.load(Ordering::Relaxed) > 0 && begin.elapsed() < longest {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // The lock is still held, so the file is ours.
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn connection(stream: UnixStream, handler: Arc<dyn Handler>) {
    let (read, write) = stream.into_split();
    let mut line = String::new();
    let mut reader = BufReader::new(read.take(REQUEST_LIMIT));
    match tokio::time::timeout(REQUEST_TIME, reader.read_line(&mut line)).await {
        Ok(Ok(0)) => return,
        Ok(Ok(_)) => {}
        Ok(Err(error)) => {
            tracing::debug!("could not read a request: {error}");
            return;
        }
        Err(_) => {
            tracing::debug!("a client connected and asked nothing");
            return;
        }
    }
    let (events, queue) = channel(QUEUE);
    let writer = tokio::spawn(write_events(write, queue));
    let outcome = match serde_json::from_str::<Request>(&line) {
        Ok(request) => {
            tracing::debug!(?request, "request");
            handler.handle(request, EventSender(events.clone())).await
        }
        Err(error) => Err(Error::new(ErrorKind::Usage, format!("the request is not understood: {error}"))),
    };
    if let Err(error) = &outcome {
        tracing::warn!("a request failed: {}", error.full_text());
    }
    // Only a client that left does not get it.
    let _ = events.send(last_event(outcome.as_ref().map(Clone::clone))).await;
    drop(events);
    let _ = writer.await;
}

/// Writes events as they come, and the last one again when nothing came for a while: a client takes silence for death.
async fn write_events(mut write: tokio::net::unix::OwnedWriteHalf, mut queue: Receiver<Event>) {
    let mut last = Event::Progress { phase: "working".into(), done: 0, total: 0, message: String::new() };
    let mut open = true;
    loop {
        match tokio::time::timeout(HEARTBEAT, queue.recv()).await {
            Ok(Some(event)) => last = event,
            Ok(None) => return,
            Err(_) => {}
        }
        if !open {
            continue;
        }
        let Ok(mut line) = serde_json::to_vec(&last) else { continue };
        line.push(b'\n');
        open = tokio::time::timeout(STUCK, write.write_all(&line)).await.is_ok_and(|written| written.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::os::unix::fs::PermissionsExt;
    use tokio::io::AsyncReadExt;

    /// Reports far more than a client that does not read can be sent, and is done at once.
    struct Chatty;

    impl Handler for Chatty {
        fn handle(self: Arc<Self>, _request: Request, events: EventSender) -> Answer {
            Box::pin(async move {
                for done in 0..100_000 {
                    let report = Report { phase: "p".into(), done, total: 0, bytes: false, message: "m".repeat(100) };
                    events.report(&report);
                }
                Ok(json!("the end"))
            })
        }
    }

    #[tokio::test]
    async fn a_client_that_is_slow_to_read_gets_the_last_event() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Listener::bind(&path).map(drop).unwrap_err().kind, ErrorKind::Locked);
        let serving = tokio::spawn(async move { listener.serve(Arc::new(Chatty)).await });
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(b"{\"op\":\"ping\"}\n").await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(last, json!({"event": "result", "result": "the end"}));
        assert!(text.lines().count() < 10_000, "progress that nobody reads is not kept");
        serving.abort();
    }
}
