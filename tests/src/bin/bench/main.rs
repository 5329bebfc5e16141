//! `make bench`: `strata-bench warm` and `strata-bench backup`. Ratios between columns of one run, not seconds.

mod backup;
mod warm;

use anyhow::{Result, bail};
use std::process::ExitCode;
use strata_tests::report::Screen;

fn main() -> ExitCode {
    let mut screen = Screen::new();
    if let Err(error) = strata_tests::cluster::stop_on_signal() {
        eprintln!("strata: {error:#}");
        return ExitCode::FAILURE;
    }
    let done = match std::env::args().nth(1).as_deref() {
        Some("warm") => warm::run(&mut screen),
        Some("backup") => backup::run(&mut screen),
        other => usage(other),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("strata-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn usage(given: Option<&str>) -> Result<()> {
    bail!("\"{}\" is no benchmark; there are warm and backup", given.unwrap_or(""))
}
