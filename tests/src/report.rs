//! What the demo and the benchmark print: chapters, sentences, tables, numbers for people. Colour on a terminal only.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// The terminal.
#[derive(Debug)]
pub struct Screen {
    colour: bool,
    chapter: usize,
    begun: Instant,
}

impl Default for Screen {
    fn default() -> Self {
        Self::new()
    }
}

impl Screen {
    /// A screen on standard output.
    pub fn new() -> Self {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { colour, chapter: 0, begun: Instant::now() }
    }

    /// Time since the demo began.
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Begins a chapter.
    pub fn chapter(&mut self, title: &str) {
        self.chapter += 1;
        let seconds = self.begun.elapsed().as_secs();
        let head = format!("{}. {title}", self.chapter);
        println!(
            "\n{}  {}",
            self.paint("1;36", &head),
            self.paint("2", &format!("[{}:{:02}]", seconds / 60, seconds % 60))
        );
    }

    /// A sentence.
    pub fn say(&self, text: &str) {
        println!("   {text}");
    }

    /// Something that was proven.
    pub fn proven(&self, text: &str) {
        println!("   {} {text}", self.paint("1;32", "✓"));
    }

    /// Something that fell short.
    pub fn short(&self, text: &str) {
        println!("   {} {text}", self.paint("1;31", "✗"));
    }

    /// SQL or a command, as it is run.
    pub fn command(&self, prompt: &str, text: &str) {
        for (i, line) in text.lines().enumerate() {
            let lead = if i == 0 { prompt.to_owned() } else { " ".repeat(prompt.len()) };
            println!("   {} {}", self.paint("2", &lead), self.paint("33", line));
        }
    }

    /// Lines that a program printed.
    pub fn quote(&self, text: &str) {
        for line in text.lines() {
            println!("     {}", self.paint("2", line));
        }
    }

    /// A table; every column but the first is aligned to the right.
    pub fn table(&self, head: &[&str], rows: &[Vec<String>]) {
        let width = |s: &str| s.chars().count();
        let widths: Vec<usize> = (0..head.len())
            .map(|c| rows.iter().filter_map(|r| r.get(c)).map(|v| width(v)).chain([width(head[c])]).max().unwrap_or(0))
            .collect();
        let line = |cells: Vec<&str>| {
            let mut out = String::new();
            for (c, cell) in cells.iter().enumerate() {
                let pad = " ".repeat(widths[c] - width(cell));
                out += &if c == 0 { format!("{cell}{pad}") } else { format!("   {pad}{cell}") };
            }
            out
        };
        println!("     {}", self.paint("1", &line(head.to_vec())));
        println!("     {}", self.paint("2", &"─".repeat(widths.iter().sum::<usize>() + 3 * (widths.len() - 1))));
        for row in rows {
            println!("     {}", line(row.iter().map(String::as_str).collect()));
        }
    }
}

/// Bytes for people.
pub fn bytes(n: u64) -> String {
    let n = n as f64;
    match n {
        n if n >= 1e9 => format!("{:.2} GB", n / 1e9),
        n if n >= 1e6 => format!("{:.1} MB", n / 1e6),
        n if n >= 1e3 => format!("{:.1} kB", n / 1e3),
        n => format!("{n:.0} B"),
    }
}

/// A whole number with separators.
pub fn count(n: i64) -> String {
    let digits = n.abs().to_string();
    let mut out = String::new();
    for (i, d) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(d);
    }
    if n < 0 { format!("-{out}") } else { out }
}

/// A duration for people.
pub fn time(d: Duration) -> String {
    let ms = d.as_secs_f64() * 1000.0;
    match ms {
        ms if ms >= 10_000.0 => format!("{:.0} s", ms / 1000.0),
        ms if ms >= 1_000.0 => format!("{:.1} s", ms / 1000.0),
        ms if ms >= 10.0 => format!("{ms:.0} ms"),
        ms => format!("{ms:.2} ms"),
    }
}
