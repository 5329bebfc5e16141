//! The data-driven heap twin: one SQL script, run once on heap and once on warm, statement by statement.
//!
//! A script is plain SQL; statements end with `;` at the end of a line. Lines that begin with a backslash are ours:
//!
//! | line | heap side | warm side |
//! |---|---|---|
//! | `\warm TABLE…` | nothing | `strata.to_warm(TABLE)`, after `strata.to_hot` if it is warm: all its rows become fragments |
//! | `\hot TABLE…` | nothing | `strata.to_hot(TABLE)` |
//! | `\always TABLE…` | nothing | from here on `\warm TABLE…` before every statement outside a transaction |
//! | `\session N` | the next statements go to connection N | the same |
//! | `\since V` | the rest of the script is left out on servers older than PostgreSQL V | the same |
//!
//! `{side}` in a statement is `heap` or `warm` (for names that both databases share), `{method}` the table access method of the side.
//! `STRATA_TWIN=heap` leaves out the moves and needs no extension: heap against heap, which checks the scripts themselves
//! and prints each statement that fails.
//!
//! Each statement must give the same on both sides: the same rows (in order when it says ORDER BY, else as a bag), the same
//! command tag count, or the same SQLSTATE with the same message, names of objects and context.

use crate::checks;
use crate::cluster::Cluster;
use crate::twin;
use anyhow::{Context, Result, bail};
use postgres::error::DbError;
use postgres::{Client, SimpleQueryMessage};
use std::collections::BTreeMap;

/// One step of a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// SQL for both sides.
    Sql(String),
    /// Move these tables to warm.
    Warm(Vec<String>),
    /// Move these tables to hot.
    Hot(Vec<String>),
    /// Move these tables to warm before every statement.
    Always(Vec<String>),
    /// Use this connection.
    Session(String),
    /// Stop here if the server is older than this major version.
    Since(i32),
}

/// Reads a script; each step comes with its line number.
pub fn parse(text: &str) -> Result<Vec<(usize, Step)>> {
    let mut steps = Vec::new();
    let mut sql = String::new();
    let mut start = 0;
    let mut quoted = false;
    for (i, line) in text.lines().enumerate() {
        let trimmed = line.trim();
        if sql.is_empty() && (trimmed.is_empty() || trimmed.starts_with("--")) {
            continue;
        }
        if sql.is_empty() {
            start = i + 1;
            if let Some(command) = trimmed.strip_prefix('\\') {
                let mut words = command.split_whitespace().map(str::to_owned);
                let name = words.next().unwrap_or_default();
                let rest: Vec<String> = words.collect();
                steps.push((
                    start,
                    match name.as_str() {
                        "warm" => Step::Warm(rest),
                        "hot" => Step::Hot(rest),
                        "always" => Step::Always(rest),
                        "session" => Step::Session(rest.join(" ")),
                        "since" => Step::Since(
                            rest.join(" ").parse().with_context(|| format!("line {start}: no version in {trimmed}"))?,
                        ),
                        other => bail!("line {start}: unknown command \\{other}"),
                    },
                ));
                continue;
            }
        }
        // A body in $$ … $$ may have semicolons at line ends.
        quoted ^= line.matches("$$").count() % 2 == 1;
        sql.push_str(line);
        sql.push('\n');
        if !quoted && trimmed.ends_with(';') {
            steps.push((start, Step::Sql(std::mem::take(&mut sql))));
        }
    }
    if !sql.trim().is_empty() {
        bail!("line {start}: a statement without an end: {sql}");
    }
    Ok(steps)
}

/// What a statement gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Columns, rows and affected rows of each command in it.
    Done(Vec<Vec<String>>, Vec<u64>),
    /// SQLSTATE; and the message with what else a client can see of it, but for DETAIL and HINT.
    Failed(String, String),
}

/// Runs one statement and tells what came of it; only a lost connection is an error of ours.
pub fn outcome(client: &mut Client, sql: &str) -> Result<Outcome> {
    match client.simple_query(sql) {
        Ok(messages) => {
            let (mut rows, mut counts) = (Vec::new(), Vec::new());
            for message in messages {
                match message {
                    SimpleQueryMessage::Row(r) => {
                        rows.push((0..r.len()).map(|i| r.get(i).unwrap_or("<null>").to_owned()).collect());
                    }
                    SimpleQueryMessage::CommandComplete(n) => counts.push(n),
                    SimpleQueryMessage::RowDescription(columns) => {
                        rows.push(columns.iter().map(|c| format!("# {}", c.name())).collect());
                    }
                    _ => {}
                }
            }
            if !sql.to_uppercase().contains("ORDER BY") {
                rows.sort();
            }
            Ok(Outcome::Done(rows, counts))
        }
        Err(error) => match error.as_db_error() {
            Some(db) => Ok(Outcome::Failed(db.code().code().to_owned(), described(db))),
            None => Err(error).with_context(|| format!("lost the connection in {sql}")),
        },
    }
}

/// The message, the objects it names, and its context.
fn described(error: &DbError) -> String {
    let mut text = error.message().to_owned();
    for (field, name) in [
        ("schema", error.schema()),
        ("table", error.table()),
        ("column", error.column()),
        ("type", error.datatype()),
        ("constraint", error.constraint()),
    ] {
        if let Some(name) = name {
            text.push_str(&format!("; {field} \"{name}\""));
        }
    }
    // Who met it first, the leader or a worker of it, is chance.
    let context: Vec<&str> =
        error.where_().unwrap_or_default().lines().filter(|line| *line != "parallel worker").collect();
    if context.is_empty() { text } else { format!("{text}\n{}", without_places(&context.join("\n"))) }
}

/// A context without the places of rows: `while deleting tuple (0,1) in relation "t"`.
fn without_places(context: &str) -> String {
    match context.split_once(" tuple (") {
        Some((before, after)) => {
            let after = after.split_once(')').map_or(after, |(_, after)| after);
            format!("{before} tuple{}", without_places(after))
        }
        None => context.to_owned(),
    }
}

/// One side of a comparison: a database, and its connections by name.
struct Side<'a> {
    cluster: &'a Cluster,
    kind: &'static str,
    database: String,
    sessions: BTreeMap<String, Client>,
}

impl Side<'_> {
    fn run(&mut self, session: &str, sql: &str) -> Result<Outcome> {
        let method = if self_check() { "heap" } else { self.kind };
        let sql = sql.replace("{side}", self.kind).replace("{method}", method);
        outcome(self.client(session)?, &sql)
    }

    fn client(&mut self, session: &str) -> Result<&mut Client> {
        if !self.sessions.contains_key(session) {
            let mut client = self.cluster.connect_to(&self.database)?;
            client
                .batch_execute("SET extra_float_digits = 0; SET lock_timeout = '10s'; SET statement_timeout = '60s'")?;
            self.sessions.insert(session.to_owned(), client);
        }
        self.sessions.get_mut(session).context("the session was just made")
    }
}

/// Whether the scripts themselves are checked, heap against heap.
pub fn self_check() -> bool {
    std::env::var("STRATA_TWIN").is_ok_and(|v| v == "heap")
}

/// Runs a script on both sides; `name` names the two databases. Fails with every statement that differs.
pub fn compare(cluster: &Cluster, name: &str, text: &str) -> Result<()> {
    let steps = parse(text)?;
    let side = |kind: &'static str| -> Result<Side> {
        let database = format!("{kind}_{name}");
        if self_check() {
            cluster.connect()?.batch_execute(&format!("CREATE DATABASE {database}"))?;
            cluster
                .connect()?
                .batch_execute("DO 'BEGIN CREATE ROLE strata_read; EXCEPTION WHEN OTHERS THEN NULL; END'")?;
        } else {
            drop(cluster.create_database(&database)?);
        }
        Ok(Side { kind, cluster, database, sessions: BTreeMap::new() })
    };
    let (mut heap, mut warm) = (side("heap")?, side("warm")?);
    let mut session = "1".to_owned();
    let mut always: Vec<String> = Vec::new();
    let mut open: BTreeMap<String, bool> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (line, step) in steps {
        match step {
            Step::Session(s) => session = s,
            Step::Since(version) => {
                let number = twin::value(heap.client(&session)?, "SHOW server_version_num")?;
                if number.parse::<i32>()? / 10_000 < version {
                    println!("{name}.sql: left out from line {line} on: PostgreSQL {version} is needed");
                    break;
                }
            }
            Step::Warm(_) | Step::Hot(_) | Step::Always(_) if self_check() => {}
            Step::Warm(tables) => {
                to_warm(warm.client(&session)?, &tables).with_context(|| format!("{name}.sql:{line}"))?
            }
            Step::Hot(tables) => {
                for t in tables {
                    warm.client(&session)?
                        .execute(&format!("SELECT strata.to_hot('{t}')"), &[])
                        .with_context(|| format!("{name}.sql:{line}: to_hot({t})"))?;
                }
            }
            Step::Always(tables) => always = tables,
            Step::Sql(sql) => {
                if !always.is_empty() && !open.values().any(|&o| o) {
                    to_warm(warm.client(&session)?, &always).with_context(|| format!("{name}.sql:{line} (always)"))?;
                }
                let expected = heap.run(&session, &sql).with_context(|| format!("{name}.sql:{line} on heap"))?;
                let found = warm.run(&session, &sql).with_context(|| format!("{name}.sql:{line} on warm"))?;
                if let (Outcome::Failed(code, message), true) = (&expected, self_check()) {
                    println!("{name}.sql:{line}: {code} {message}");
                }
                if expected != found {
                    wrong.push(format!("{name}.sql:{line}: {}\n  heap: {expected:?}\n  warm: {found:?}", sql.trim()));
                }
                let upper = sql.trim_start().to_uppercase();
                if upper.starts_with("BEGIN") || upper.starts_with("START TRANSACTION") {
                    open.insert(session.clone(), true);
                } else if upper.starts_with("COMMIT")
                    || upper.starts_with("PREPARE TRANSACTION")
                    || (upper.starts_with("ROLLBACK") && !upper.starts_with("ROLLBACK TO"))
                {
                    open.insert(session.clone(), false);
                }
            }
        }
    }
    if wrong.is_empty() { Ok(()) } else { bail!("{} statements differ:\n{}", wrong.len(), wrong.join("\n")) }
}

fn to_warm(client: &mut Client, tables: &[String]) -> Result<()> {
    tables.iter().try_for_each(|t| checks::rewarm(client, t).map(drop))
}

#[cfg(test)]
mod tests {
    use super::{Step, parse};

    #[test]
    fn statements_end_at_a_semicolon_outside_a_body() {
        let steps = parse("-- c\nSELECT 1;\n\\warm a b\nDO $$\nBEGIN\n  NULL;\nEND\n$$;\n\\session 2\n").unwrap();
        assert_eq!(steps.len(), 4);
        assert_eq!(steps[0], (2, Step::Sql("SELECT 1;\n".to_owned())));
        assert_eq!(steps[1], (3, Step::Warm(vec!["a".to_owned(), "b".to_owned()])));
        assert_eq!(steps[2].0, 4);
        assert_eq!(steps[3].1, Step::Session("2".to_owned()));
    }

    #[test]
    fn an_unfinished_statement_is_an_error() {
        assert!(parse("SELECT 1\n").is_err());
        assert!(parse("\\nonsense\n").is_err());
    }
}
