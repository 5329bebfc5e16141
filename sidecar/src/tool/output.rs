//! What a tool says: read as it comes, in bounded memory, without the secrets that it was given.

use regex::Regex;
use std::collections::VecDeque;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};

/// How many of the last lines of each stream are kept.
const KEPT: usize = 10;
/// How long a kept line is at most.
const LINE: usize = 400;
/// A line is looked at up to this length; the rest is dropped.
const LOOKED_AT: usize = 64 << 10;
/// So much of the output of `list` is kept.
pub const CAPTURE: usize = 256 << 20;
/// Secrets that are shorter than this are not looked for: they would mask ordinary text.
const SHORTEST: usize = 4;

/// Which stream a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Error,
}

/// What is kept of a tool's output.
#[derive(Debug, Default)]
pub struct Output {
    masks: Vec<String>,
    identifier: Option<Regex>,
    stored_bytes: Option<Regex>,
    out: VecDeque<String>,
    error: VecDeque<String>,
    /// The first match of the pattern for the tool's own identifier.
    pub found_identifier: Option<String>,
    /// The first match of the pattern for the bytes that it stored.
    pub found_stored_bytes: Option<u64>,
    captured: Option<Vec<u8>>,
    /// There was more than [`CAPTURE`].
    pub overflow: bool,
}

impl Output {
    /// With the secrets to mask and the patterns to look for. `capture` keeps the whole of standard output.
    pub fn new(secrets: Vec<String>, identifier: Option<Regex>, stored_bytes: Option<Regex>, capture: bool) -> Self {
        let mut masks: Vec<String> = secrets.into_iter().filter(|secret| secret.len() >= SHORTEST).collect();
        // A secret may hold another one.
        masks.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        Self { masks, identifier, stored_bytes, captured: capture.then(Vec::new), ..Self::default() }
    }

    /// A text without secrets, on one line.
    pub fn masked(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for secret in &self.masks {
            if text.contains(secret) {
                text = text.replace(secret, "***");
            }
        }
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
    }

    fn line(&mut self, stream: Stream, raw: &[u8]) {
        let text = self.masked(&String::from_utf8_lossy(raw));
        let text = text.trim_end();
        if text.is_empty() {
            return;
        }
        let group = |regex: &Option<Regex>| Some(regex.as_ref()?.captures(text)?.get(1)?.as_str().to_owned());
        if self.found_identifier.is_none() {
            self.found_identifier = group(&self.identifier);
        }
        if self.found_stored_bytes.is_none() {
            self.found_stored_bytes = group(&self.stored_bytes).and_then(|text| text.parse().ok());
        }
        let mut short: String = text.chars().take(LINE).collect();
        if short.len() < text.len() {
            short.push('…');
        }
        let lines = match stream {
            Stream::Out => &mut self.out,
            Stream::Error => &mut self.error,
        };
        if lines.len() == KEPT {
            lines.pop_front();
        }
        lines.push_back(short);
    }

    fn capture(&mut self, bytes: &[u8]) {
        if let Some(captured) = &mut self.captured {
            let room = CAPTURE.saturating_sub(captured.len()).min(bytes.len());
            captured.extend_from_slice(bytes.get(..room).unwrap_or_default());
            self.overflow |= room < bytes.len();
        }
    }

    /// Takes what was captured.
    pub fn take_captured(&mut self) -> Vec<u8> {
        self.captured.take().unwrap_or_default()
    }

    /// The last lines: those of standard output, then those of standard error.
    pub fn last_lines(&self) -> Vec<String> {
        self.out.iter().chain(&self.error).cloned().collect()
    }
}

/// Reads a stream to its end.
pub fn drain(mut from: impl Read, stream: Stream, output: &Arc<Mutex<Output>>) {
    let mut buffer = [0; 8 << 10];
    let mut line = Vec::new();
    loop {
        let got = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(got) => got,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        let bytes = buffer.get(..got).unwrap_or_default();
        let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
        if stream == Stream::Out {
            output.capture(bytes);
        }
        for piece in bytes.split_inclusive(|b| matches!(b, b'\n' | b'\r')) {
            let (text, ends) = match piece.split_last() {
                Some((b'\n' | b'\r', text)) => (text, true),
                _ => (piece, false),
            };
            let room = LOOKED_AT.saturating_sub(line.len()).min(text.len());
            line.extend_from_slice(text.get(..room).unwrap_or_default());
            if ends {
                output.line(stream, &line);
                line.clear();
            }
        }
    }
    output.lock().unwrap_or_else(PoisonError::into_inner).line(stream, &line);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &[u8], secrets: &[&str]) -> Output {
        let secrets = secrets.iter().map(|secret| (*secret).to_owned()).collect();
        let identifier = Some(Regex::new("saved ([a-z0-9*]+)").unwrap());
        let stored = Some(Regex::new("added ([0-9]+)").unwrap());
        let output = Arc::new(Mutex::new(Output::new(secrets, identifier, stored, false)));
        drain(text, Stream::Error, &output);
        Arc::into_inner(output).unwrap().into_inner().unwrap()
    }

    #[test]
    fn only_the_last_lines_are_kept() {
        let text: String = (0..10_000).map(|n| format!("line {n}\n")).collect();
        let output = said((text + "saved abc, added 77\nno end").as_bytes(), &[]);
        assert_eq!(output.found_identifier.as_deref(), Some("abc"));
        assert_eq!(output.found_stored_bytes, Some(77));
        let lines = output.last_lines();
        assert_eq!(lines.len(), KEPT);
        assert_eq!(lines.last().map(String::as_str), Some("no end"));
    }

    #[test]
    fn a_line_without_end_takes_no_memory() {
        let output = said(&vec![b'x'; 10 << 20], &[]);
        assert!(output.last_lines()[0].len() < 2 * LINE);
    }

    #[test]
    fn secrets_are_masked_wherever_they_stand() {
        let pad = "x".repeat(LINE - 3);
        let text = format!("saved geheim1 and geheim12\n{pad}geheim12\na\x1b[31mb\n");
        let output = said(text.as_bytes(), &["geheim1", "geheim12", "a"]);
        let lines = output.last_lines().join("\n");
        assert!(!lines.contains("geheim") && !lines.contains("***2"), "{lines}");
        assert_eq!(output.found_identifier.as_deref(), Some("***"), "not even as an identifier");
        assert!(lines.contains("a [31mb"), "{lines}");
    }
}
