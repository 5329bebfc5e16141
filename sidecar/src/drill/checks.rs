//! What a drill looks at in the scratch server.

use crate::backup::{blocking, fragments as catalog};
use crate::error::{AtPath, Result};
use crate::postgres::Conninfo;
use crate::progress::Progress;
use crate::recovery::Recovered;
use crate::repository::drills::{Amcheck, CheckResult, DrillEntry};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use strata_catalog::names;

/// As much of a program's output as is kept.
const OUTPUT: usize = 4000;

/// Every fragment that the recovered catalogs name: its checksums, and the rows that the catalog says.
pub async fn fragments(
    conninfo: &Conninfo,
    recovered: &Recovered,
    workers: usize,
    entry: &mut DrillEntry,
    progress: &Progress,
) -> Result<()> {
    let session = conninfo.connect().await?;
    let mut all = Vec::new();
    for one in catalog::read_all(conninfo, &session).await? {
        all.extend(one.rows.into_iter().map(|row| (one.database.clone(), row)));
    }
    progress.phase("fragments", all.len() as u64, "reading every fragment");
    let (store, progress) = (recovered.store.clone(), progress.clone());
    let problems = blocking(move || {
        let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..workers.clamp(1, all.len().max(1)) {
                scope.spawn(|| {
                    while let Some((database, row)) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let below = names::fragment_relative_path(database.oid, &row.hash).unwrap_or_default();
                        let problem = match strata_fragment::verify_file(&store.join(below)) {
                            Ok(summary) if i64::try_from(summary.rows) == Ok(row.row_count) => None,
                            Ok(summary) => Some(format!("it has {} rows instead of {}", summary.rows, row.row_count)),
                            Err(error) => Some(error.to_string()),
                        };
                        if let Some(problem) = problem {
                            let relation = row.relation.as_deref().unwrap_or("a table that is gone");
                            let text = format!(
                                "fragment {} of {relation} in database \"{}\": {problem}",
                                row.hash, database.name
                            );
                            found.lock().unwrap_or_else(PoisonError::into_inner).push(text);
                        }
                        progress.advance(1);
                    }
                });
            }
        });
        Ok(found.into_inner().unwrap_or_else(PoisonError::into_inner))
    })
    .await?;
    for problem in problems {
        // One that could not be fetched is named already.
        if !entry.problems.iter().any(|known| known.split(':').next() == problem.split(':').next()) {
            entry.problems.push(problem);
        }
    }
    Ok(())
}

/// `pg_amcheck` on all databases.
pub async fn amcheck(
    conninfo: &Conninfo,
    recovered: &Recovered,
    entry: &mut DrillEntry,
    progress: &Progress,
) -> Result<()> {
    progress.phase("amcheck", 0, "pg_amcheck reads heap tables and btree indexes");
    let session = conninfo.connect().await?;
    let has = "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'amcheck')";
    let available: bool = session.query_one(has, &[]).await?.get(0);
    let bin = recovered.bin_directory.join("pg_amcheck");
    if !available || !bin.exists() {
        let missing = if available { "the program pg_amcheck" } else { "the extension amcheck" };
        entry.amcheck = Some(Amcheck { ran: false, output: format!("{missing} is not installed") });
        return Ok(());
    }
    let mut command = super::program(&bin);
    command.args(["--all", "--install-missing", "--no-password", "--username", conninfo.user()]);
    command.args(["--maintenance-db", conninfo.dbname()]);
    if let Some(directory) = &recovered.socket_directory {
        command.arg("--host").arg(directory);
    }
    if let Some(port) = recovered.port {
        command.args(["--port", &port.to_string()]);
    }
    let output = command.output().await.at("run", &bin)?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    let text: String = text.trim().chars().take(OUTPUT).collect();
    if !output.status.success() {
        entry.problems.push(format!("pg_amcheck ended with {}: {text}", output.status));
    }
    entry.amcheck = Some(Amcheck { ran: true, output: text });
    Ok(())
}

/// The user's own queries.
pub async fn queries(conninfo: &Conninfo, queries: &[String], entry: &mut DrillEntry, progress: &Progress) {
    progress.phase("checks", queries.len() as u64, "asking the checks of the configuration");
    for query in queries {
        let asked = async {
            let session = conninfo.connect().await?;
            // Our own sessions find nothing but the system's objects.
            session.batch_execute("SET search_path = \"$user\", public").await?;
            Ok::<_, crate::error::Error>(session.simple_query(query).await?)
        };
        let (value, problem) = match asked.await {
            Ok(messages) => match first_value(&messages) {
                Some(Some(value)) if value != "f" => (Some(value), None),
                Some(value) => (value.clone(), Some(format!("it gives {}", value.as_deref().unwrap_or("null")))),
                None => (None, Some("it gives no row".to_owned())),
            },
            Err(error) => (None, Some(error.to_string())),
        };
        entry.problems.extend(problem.iter().map(|problem| format!("the check {query:?}: {problem}")));
        entry.checks.push(CheckResult { query: query.clone(), value, passed: problem.is_none() });
        progress.advance(1);
    }
}

/// The first value of the last result that has a row.
fn first_value(messages: &[tokio_postgres::SimpleQueryMessage]) -> Option<Option<String>> {
    messages.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).map(str::to_owned)),
        _ => None,
    })
}
