//! DuckDB on one thread, by Python: `benches/duck.py`; and the generator of lineitem, which PyPI has as well.

use super::meter::Cost;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;
use strata_tests::process::run;

/// What is installed, with the versions that the documentation's figures belong to.
const PACKAGES: [&str; 2] = ["duckdb==2.0.0", "tpchgen-cli==4.0.0"];
const SCRIPT: &str = include_str!("../../../../benches/duck.py");

/// Programs from PyPI, in a Python environment of their own.
pub struct Tools {
    bin: PathBuf,
}

impl Tools {
    /// Finds or makes the environment in `cache`.
    pub fn find(cache: &Path, say: &mut dyn FnMut(&str)) -> Result<Self> {
        let place = cache.join("bench-python");
        let marker = place.join(PACKAGES.join("+"));
        let bin = place.join("bin");
        if !marker.exists() {
            say(&format!("installing {} from PyPI, once", PACKAGES.join(" and ")));
            run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&place))
                .context("make a Python environment (Debian: apt-get install python3-venv)")?;
            run(Command::new(bin.join("pip"))
                .args(["install", "--quiet", "--disable-pip-version-check"])
                .args(PACKAGES))?;
            fs::write(&marker, "")?;
        }
        Ok(Self { bin })
    }

    /// Lineitem at a scale factor as CSV with a header, made once.
    pub fn lineitem(&self, cache: &Path, scale: &str) -> Result<PathBuf> {
        let file = cache.join(format!("lineitem-{scale}.csv"));
        if !file.exists() {
            let work = tempfile::tempdir_in(cache)?;
            let program = self.bin.join("tpchgen-cli");
            run(Command::new(program).args(["csv", "-s", scale, "-T", "lineitem", "-o"]).arg(work.path()))?;
            fs::rename(work.path().join("lineitem.csv"), &file)?;
        }
        Ok(file)
    }

    /// Opens a database file.
    pub fn open(&self, file: &Path) -> Result<Duck> {
        let mut child = Command::new(self.bin.join("python3"))
            .arg("-c")
            .arg(SCRIPT)
            .arg(file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start DuckDB")?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (Some(input), Some(output)) = (input, output) else { bail!("DuckDB has no pipes") };
        Ok(Duck { child, input, output: BufReader::new(output) })
    }
}

/// An open DuckDB; ends with the value.
pub struct Duck {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// Rows as text.
pub type Rows = Vec<Vec<Option<String>>>;

impl Duck {
    /// Runs a statement once.
    pub fn execute(&mut self, sql: &str) -> Result<()> {
        self.ask(&json!({ "sql": sql })).map(drop)
    }

    /// Runs a query until it used `at_least` of CPU.
    pub fn measure(&mut self, sql: &str, at_least: Duration) -> Result<(Rows, Cost)> {
        let answer = self.ask(&json!({ "sql": sql, "seconds": at_least.as_secs_f64() }))?;
        let time = |name: &str| Duration::from_secs_f64(answer[name].as_f64().unwrap_or(0.0) / 1000.0);
        let cost = Cost { cpu: time("cpu"), wall: time("wall") };
        Ok((serde_json::from_value(answer["rows"].clone())?, cost))
    }

    fn ask(&mut self, request: &Value) -> Result<Value> {
        writeln!(self.input, "{request}")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let answer: Value = serde_json::from_str(&line).with_context(|| format!("DuckDB answered {line:?}"))?;
        match answer["error"].as_str() {
            Some(error) => bail!("DuckDB: {error}\n{request}"),
            None => Ok(answer),
        }
    }
}

impl Drop for Duck {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
