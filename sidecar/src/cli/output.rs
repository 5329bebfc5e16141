//! How things are shown.

use super::{Format, ProgressForm};
use crate::error::{Error, Result};
use crate::progress::{Progress, Report, Sink};
use comfy_table::presets::NOTHING;
use comfy_table::{Cell, CellAlignment, Table};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Libraries that say at their lowest levels what they send: signed addresses and headers. They never get that far.
const RESERVED: [&str; 4] = ["ureq=debug", "ureq_proto=info", "rustls=info", "rusty_s3=info"];

/// Starts the log on standard error. `STRATA_LOG` overrides the level, in the form of `tracing_subscriber`'s filter.
pub fn start_log(quiet: bool, verbose: u8) {
    let level = match (quiet, verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, _) => "debug",
    };
    let filter = std::env::var("STRATA_LOG").unwrap_or_else(|_| format!("off,strata_sidecar={level}"));
    let mut filter = tracing_subscriber::EnvFilter::new(filter);
    if std::env::var_os("STRATA_LOG").is_some() {
        for one in RESERVED.iter().filter_map(|one| one.parse().ok()) {
            filter = filter.add_directive(one);
        }
    }
    let started = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init();
    // Already started means that somebody embeds us.
    drop(started);
}

/// Where and how results, errors and progress are shown.
pub struct Output {
    format: Format,
    progress: ProgressForm,
    quiet: bool,
}

impl Output {
    /// As the command line said.
    pub fn new(format: Format, progress: ProgressForm, quiet: bool) -> Self {
        Self { format, progress, quiet }
    }

    /// True when the result shall be JSON.
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Shows a result: as JSON, or as the text that `text` makes.
    pub fn result<T: Serialize>(&self, value: &T, text: impl FnOnce() -> String) -> Result<()> {
        let mut shown = if self.is_json() {
            serde_json::to_string_pretty(value)
                .map_err(|error| Error::new(crate::error::ErrorKind::Io, format!("could not write JSON: {error}")))?
        } else {
            text()
        };
        if !shown.ends_with('\n') && !shown.is_empty() {
            shown.push('\n');
        }
        print(&shown)
    }

    /// Shows an error.
    pub fn error(&self, error: &Error) {
        let text = if self.is_json() {
            let document = serde_json::json!({"error": {
                "kind": error.kind.to_string(),
                "message": error.message,
                "detail": error.detail,
                "hint": error.hint(),
                "retryable": error.kind.row().retryable,
            }});
            document.to_string()
        } else {
            format!("strata: error: {}", error.full_text())
        };
        // Standard error may be closed; the exit code still tells.
        let _ = writeln!(std::io::stderr(), "{text}");
    }

    /// Where work reports to.
    pub fn progress(&self) -> Progress {
        let form = match self.progress {
            ProgressForm::Auto if self.quiet || !std::io::stderr().is_terminal() => ProgressForm::None,
            ProgressForm::Auto => ProgressForm::Bar,
            form => form,
        };
        match form {
            ProgressForm::Bar => Progress::new(vec![Box::new(Bar::new())], Duration::from_millis(50)),
            ProgressForm::Json => Progress::new(vec![Box::new(JsonLines)], Duration::from_millis(500)),
            _ => Progress::silent(),
        }
    }
}

fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Nobody reads any more, as in "strata info | head".
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Error::io("write to", std::path::Path::new("standard output"), error)),
        Ok(()) => Ok(()),
    }
}

struct JsonLines;

impl Sink for JsonLines {
    fn report(&self, report: &Report) {
        let line = serde_json::json!({
            "event": "progress",
            "phase": report.phase,
            "done": report.done,
            "total": report.total,
            "unit": if report.bytes { "bytes" } else { "items" },
            "message": report.message,
        });
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}

struct Bar {
    bar: ProgressBar,
    phase: Mutex<String>,
}

impl Bar {
    fn new() -> Self {
        Self {
            bar: ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()),
            phase: Mutex::new(String::new()),
        }
    }

    fn style(report: &Report) -> ProgressStyle {
        let template = match (report.total, report.bytes) {
            (0, _) => "{spinner} {msg} [{elapsed}]",
            (_, true) => "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            (_, false) => "{msg} {wide_bar} {pos}/{len}",
        };
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
    }
}

impl Sink for Bar {
    fn report(&self, report: &Report) {
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        if *phase != report.phase {
            phase.clone_from(&report.phase);
            self.bar.set_style(Self::style(report));
            self.bar.reset();
            self.bar.set_message(report.message.clone());
            self.bar.enable_steady_tick(Duration::from_millis(100));
        }
        if report.total > 0 {
            self.bar.set_length(report.total);
        }
        self.bar.set_position(report.done);
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// A number of bytes for people.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or("B");
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {name}") }
}

/// A number of things for people: `1 segment`, `2 segments`.
pub fn count(n: u64, thing: &str) -> String {
    if n == 1 { format!("1 {thing}") } else { format!("{n} {thing}s") }
}

/// Pairs of a name and a value, aligned.
pub fn pairs(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    rows.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
}

/// A table. Columns whose name ends in `>` are aligned to the right.
pub fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING);
    let right: Vec<bool> = head.iter().map(|name| name.ends_with('>')).collect();
    table.set_header(head.iter().map(|name| name.trim_end_matches('>')));
    for row in rows {
        table.add_row(row.into_iter().zip(&right).map(|(text, right)| {
            Cell::new(text).set_alignment(if *right { CellAlignment::Right } else { CellAlignment::Left })
        }));
    }
    let mut text: String = table.to_string().lines().flat_map(|line| [line.trim_end(), "\n"]).collect();
    if text.trim().is_empty() {
        text.clear();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_readable() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1500), "1.5 kB");
        assert_eq!(bytes(16 << 20), "16.8 MB");
    }
}
