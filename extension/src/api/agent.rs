//! The way to the agent: a Unix socket, lines of JSON (`docs/design/contract.md`).

use crate::error::StrataError;
use crate::guc;
use pgrx::JsonB;
use pgrx::prelude::*;
use serde_json::{Value, json};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Why a call brought no result.
pub enum CallError {
    /// Nobody listens, or nobody answers in time.
    NoAgent(String),
    /// The agent said so.
    Agent(Value),
}

/// Sends one request; calls `progress` for each progress event; returns the result. Interrupts are served meanwhile.
pub fn call(request: &Value, mut progress: impl FnMut(&Value)) -> Result<Value, CallError> {
    let socket = guc::agent_socket();
    let gone = |e: std::io::Error| CallError::NoAgent(e.to_string());
    let mut stream = UnixStream::connect(&socket).map_err(gone)?;
    stream.set_read_timeout(Some(Duration::from_millis(100))).map_err(gone)?;
    stream.write_all(format!("{request}\n").as_bytes()).map_err(gone)?;
    let patience = Duration::from_secs(guc::AGENT_TIMEOUT.get() as u64);
    let mut last_word = Instant::now();
    let mut pending = Vec::new();
    let mut chunk = [0u8; 4096];
    loop {
        pgrx::check_for_interrupts!();
        match stream.read(&mut chunk) {
            Ok(0) => return Err(CallError::NoAgent("the agent closed the connection without an answer".into())),
            Ok(n) => {
                last_word = Instant::now();
                pending.extend_from_slice(&chunk[..n]);
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {
                if last_word.elapsed() > patience {
                    return Err(CallError::NoAgent(format!("no word from the agent for {} s", patience.as_secs())));
                }
                continue;
            }
            Err(e) => return Err(gone(e)),
        }
        while let Some(end) = pending.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            let Ok(event) = serde_json::from_slice::<Value>(&line) else {
                return Err(CallError::NoAgent("the agent's answer is not JSON".into()));
            };
            match event["event"].as_str() {
                Some("progress") => progress(&event),
                Some("result") => return Ok(event["result"].clone()),
                _ => return Err(CallError::Agent(event)),
            }
        }
    }
}

/// Asks the agent to bring a fragment into the store.
pub fn fetch_fragment(hash: &str) -> Result<(), String> {
    // SAFETY: a plain variable of the backend.
    let database = unsafe { pgrx::pg_sys::MyDatabaseId.to_u32() };
    let request = json!({"op": "fetch_fragment", "database_oid": database, "hash": hash});
    match call(&request, |_| {}) {
        Ok(_) => Ok(()),
        Err(CallError::NoAgent(why)) => Err(format!("it is not in the store, and no agent answers ({why})")),
        Err(CallError::Agent(e)) => {
            Err(format!("the agent could not fetch it: {}", e["message"].as_str().unwrap_or("unknown error")))
        }
    }
}

/// Sends a request to the agent, shows its progress as notices, returns its result.
#[pg_extern(sql = false)]
fn strata_agent_call(request: JsonB) -> JsonB {
    let mut last = String::new();
    let answer = call(&request.0, |event| {
        let phase = event["phase"].as_str().unwrap_or("working");
        let text = match (event["message"].as_str(), event["done"].as_i64(), event["total"].as_i64()) {
            (Some(message), ..) if !message.is_empty() => format!("{phase}: {message}"),
            (_, Some(done), Some(total)) if total > 0 => format!("{phase}: {} %", done * 100 / total),
            _ => phase.to_owned(),
        };
        if text != last {
            notice!("{text}");
            last = text;
        }
    });
    match answer {
        Ok(result) => JsonB(result),
        Err(CallError::NoAgent(why)) => {
            StrataError::NoAgent { socket: guc::agent_socket().display().to_string(), why }.raise()
        }
        Err(CallError::Agent(event)) => {
            let text = |name: &str| event[name].as_str().map(str::to_owned);
            StrataError::Agent {
                kind: text("kind").unwrap_or_default(),
                message: text("message").unwrap_or_else(|| "the agent failed".into()),
                detail: text("detail"),
                hint: text("hint"),
            }
            .raise()
        }
    }
}
