//! A client of the agent's socket.

use crate::error::{Error, ErrorKind, Result};
use crate::progress::Report;
use std::path::Path;
use std::time::Duration;
use strata_catalog::{Event, Request};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// Asks the agent and returns its last event's result. `silence` is how long it may say nothing.
pub async fn ask(socket: &Path, request: &Request, silence: Duration) -> Result<serde_json::Value> {
    ask_and_follow(socket, request, silence, |_| {}).await
}

/// Like [`ask`]; `follow` is told of progress.
pub async fn ask_and_follow(
    socket: &Path,
    request: &Request,
    silence: Duration,
    follow: impl Fn(Report),
) -> Result<serde_json::Value> {
    let unreachable = |why: String| {
        Error::new(ErrorKind::Connection, format!("no agent answers at \"{}\": {why}", socket.display()))
            .with_hint("Start one with \"strata agent\".")
    };
    let stream = UnixStream::connect(socket).await.map_err(|error| unreachable(error.to_string()))?;
    let (read, mut write) = stream.into_split();
    let mut line = serde_json::to_vec(request).map_err(|error| unreachable(error.to_string()))?;
    line.push(b'\n');
    write.write_all(&line).await.map_err(|error| unreachable(error.to_string()))?;
    let mut lines = BufReader::new(read).lines();
    loop {
        let line = match tokio::time::timeout(silence, lines.next_line()).await {
            Ok(Ok(Some(line))) => line,
            Ok(Ok(None)) => return Err(unreachable("it closed the connection".to_owned())),
            Ok(Err(error)) => return Err(unreachable(error.to_string())),
            Err(_) => return Err(unreachable("it said nothing in time".to_owned())),
        };
        match serde_json::from_str(&line) {
            Ok(Event::Progress { phase, done, total, message }) => {
                follow(Report { phase, done, total, bytes: false, message });
            }
            Ok(Event::Result { result }) => return Ok(result),
            Ok(Event::Error { kind, message, detail, hint }) => {
                // What went wrong there counts, not that it went wrong elsewhere.
                let here = ErrorKind::named(&kind).unwrap_or(ErrorKind::Connection);
                let mut error = Error::new(here, format!("the agent says: {message}"));
                error = error.detail(match detail {
                    Some(detail) => format!("{kind}: {detail}"),
                    None => kind,
                });
                return Err(match hint {
                    Some(hint) => error.with_hint(hint),
                    None => error,
                });
            }
            Err(error) => return Err(unreachable(format!("it answered something else: {error}"))),
        }
    }
}
