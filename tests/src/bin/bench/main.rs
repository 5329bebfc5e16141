//! `make bench`: `strata-bench goals [--smoke] [--out DIR] [--only PART,…]`, `strata-bench warm`, `strata-bench prefetch` and
//! `strata-bench backup`. Ratios between columns
//! of one run, not seconds.

mod backup;
mod duck;
mod goals;
mod meter;
mod prefetch;
mod tables;
mod verdict;
mod warm;
mod work;

use anyhow::{Result, bail};
use std::path::PathBuf;
use std::process::ExitCode;
use strata_tests::report::Screen;

fn main() -> ExitCode {
    let mut screen = Screen::new();
    if let Err(error) = strata_tests::cluster::stop_on_signal() {
        eprintln!("strata: {error:#}");
        return ExitCode::FAILURE;
    }
    let mut arguments = std::env::args().skip(1);
    let done = match arguments.next().as_deref() {
        Some("warm") => warm::run(&mut screen).map(|()| true),
        Some("prefetch") => prefetch::run(&mut screen),
        Some("backup") => backup::run(&mut screen).map(|()| true),
        Some("goals") => run_goals(&mut screen, arguments),
        other => usage(other),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("strata-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_goals(screen: &mut Screen, mut arguments: impl Iterator<Item = String>) -> Result<bool> {
    let (mut smoke, mut out, mut parts) = (false, None, goals::Parts::default());
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--smoke" => smoke = true,
            "--out" => out = arguments.next().map(PathBuf::from),
            "--only" => parts = arguments.next().unwrap_or_default().parse()?,
            other => bail!("\"{other}\" is no option of goals; there are --smoke, --out DIR and --only PART,…"),
        }
    }
    goals::run(screen, smoke, &parts, &out.map_or_else(goals::default_output, Ok)?)
}

fn usage(given: Option<&str>) -> Result<bool> {
    bail!("\"{}\" is no benchmark; there are goals, warm, prefetch and backup", given.unwrap_or(""))
}
