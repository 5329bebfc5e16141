//! Proves that archiving works from end to end, by doing it: a WAL segment is closed, and must arrive in the repository.

use crate::agent::stream::slot_name;
use crate::backup::{archive, blocking};
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::{Conninfo, ServerInfo, Session, program};
use crate::progress::Progress;
use crate::repository::{Identity, Repository};
use crate::socket::client;
use crate::tool::trial;
use crate::wal::backlog::{Backlog, Dropped, Pressure};
use crate::wal::name::Segment;
use crate::wal::outbox::Outbox;
use serde::Serialize;
use std::time::{Duration, Instant};
use strata_catalog::{Request, names};

/// How one check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Good.
    Ok,
    /// Not good, but a backup works.
    Warning,
    /// Backup or recovery would fail.
    Failed,
    /// Not tried, since something before it failed.
    Skipped,
}

/// One check.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Its name.
    pub name: &'static str,
    /// How it went.
    pub state: State,
    /// What was found.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

/// All checks.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// The checks, in the order in which they were made.
    pub checks: Vec<Check>,
    #[serde(skip)]
    failure: Option<Error>,
}

impl Report {
    /// Notes how a check went; gives back what it found.
    fn note<T>(&mut self, name: &'static str, outcome: Result<(T, String)>) -> Option<T> {
        match outcome {
            Ok((value, message)) => {
                self.checks.push(Check { name, state: State::Ok, message, hint: None });
                Some(value)
            }
            Err(error) => {
                let message = match &error.detail {
                    Some(detail) => format!("{} ({})", error.message, detail.replace('\n', "; ")),
                    None => error.message.clone(),
                };
                self.checks.push(Check { name, state: State::Failed, message, hint: error.hint().map(str::to_owned) });
                self.failure.get_or_insert(error);
                None
            }
        }
    }

    /// Notes how a check went that may end with a warning, which gets the hint.
    fn note_state(&mut self, name: &'static str, outcome: Result<(State, String)>, hint: &str) {
        match outcome {
            Ok((State::Warning, message)) => {
                self.checks.push(Check { name, state: State::Warning, message, hint: Some(hint.to_owned()) });
            }
            other => drop(self.note(name, other)),
        }
    }

    fn skip(&mut self, name: &'static str) {
        let message = "not tried, since something before it failed".to_owned();
        self.checks.push(Check { name, state: State::Skipped, message, hint: None });
    }

    /// The first failure.
    pub fn require_good(self) -> Result<()> {
        self.failure.map_or(Ok(()), Err)
    }
}

/// Makes all checks. With `require_agent`, an agent that does not answer is a failure instead of a warning.
pub async fn run(config: &Config, require_agent: bool, progress: &Progress) -> Report {
    let mut report = Report::default();
    let named = format!("{} (system {}, member {})", config.file.display(), config.system, config.member.name);
    report.note("configuration", Ok(((), named)));
    let Some((session, info)) = report.note("connection", connection(config).await) else {
        for name in ["user", "settings", "privileges", "repository", "archiving", "backlog", "agent"] {
            report.skip(name);
        }
        return report;
    };
    // Another user must not make a repository that the server's own then cannot write to.
    if report.note("user", user(config, &info)).is_none() {
        for name in ["settings", "privileges", "repository", "archiving", "backlog", "agent"] {
            report.skip(name);
        }
        return report;
    }
    let archives = report.note("settings", settings(config, &info));
    let may = report.note("privileges", privileges(&session).await);
    match (archives, may, report.note("repository", repository(config, &info).await)) {
        (Some(()), Some(()), Some(repository)) => {
            let outcome = archiving(config, &repository, &session, &info, progress).await;
            report.note("archiving", outcome);
            let hint = "Keep an identity where you would recover, and try it: strata verify, strata drill.";
            report.note_state("encryption", encryption(repository.clone()).await, hint);
            if config.tool.is_some() {
                report.note("tool", tool(repository).await);
            }
        }
        _ => report.skip("archiving"),
    }
    report.note_state("backlog", backlog(config, &info), "See the server's log for what archive_command says.");
    if config.wal.stream {
        report.note("streaming", streaming(config, &session, &info).await);
    }
    match agent(config, &info).await {
        Err(error) if !require_agent => report.checks.push(Check {
            name: "agent",
            state: State::Warning,
            message: format!(
                "{}; so warm fragments are copied by backups only, and not brought on demand",
                error.message
            ),
            hint: error.hint().map(str::to_owned),
        }),
        outcome => drop(report.note("agent", outcome)),
    }
    report
}

async fn connection(config: &Config) -> Result<((Session, ServerInfo), String)> {
    let session = Conninfo::parse(&config.member.conninfo)?.connect().await?;
    let info = ServerInfo::ask(&session).await?;
    let message = format!("PostgreSQL {} in {}", info.version / 10000, info.data_directory.display());
    Ok(((session, info), message))
}

fn user(config: &Config, info: &ServerInfo) -> Result<((), String)> {
    let data_directory = config.member.data_directory.as_ref().unwrap_or(&info.data_directory);
    program::require_owner(data_directory)?;
    program::require_cluster(data_directory, info.system_identifier)?;
    Ok(((), format!("{} runs the server", program::os_user().unwrap_or_default())))
}

fn settings(config: &Config, info: &ServerInfo) -> Result<((), String)> {
    if config.repository.read_only {
        return Err(Error::new(ErrorKind::Forbidden, "repository.read_only is true, so nothing is archived")
            .with_hint("When this server is the one to go on with, set it to false and turn archiving on."));
    }
    archive::require_archiving(config, info)?;
    let how = if info.archive_library.is_empty() { &info.archive_command } else { &info.archive_library };
    Ok(((), format!("wal_level {}, archive_mode {}, archiving by: {how}", info.wal_level, info.archive_mode)))
}

async fn privileges(session: &Session) -> Result<((), String)> {
    let row = session
        .query_one(
            "SELECT current_user::text, array_to_string(array(SELECT f FROM unnest(ARRAY['pg_backup_start(text,boolean)', \
                 'pg_backup_stop(boolean)', 'pg_switch_wal()', 'pg_create_restore_point(text)']) f \
             WHERE NOT has_function_privilege(f, 'execute')), ', ')",
            &[],
        )
        .await?;
    let (user, lacking): (String, String) = (row.get(0), row.get(1));
    if lacking.is_empty() {
        return Ok(((), format!("{user} may take backups")));
    }
    Err(Error::new(ErrorKind::Config, format!("the user {user} may not execute {lacking}"))
        .with_hint("GRANT EXECUTE on these functions to the user of member.conninfo, or connect as a superuser."))
}

async fn repository(config: &Config, info: &ServerInfo) -> Result<(Repository, String)> {
    let identity = Identity { system_identifier: info.system_identifier, segment_size: info.segment_size };
    let config = config.clone();
    blocking(move || {
        let repository = Repository::open_or_create(&config)?;
        repository.claim(&identity)?;
        repository.probe()?;
        let message = format!("{} takes files", repository.root().display());
        Ok((repository, message))
    })
    .await
}

async fn archiving(
    config: &Config,
    repository: &Repository,
    session: &Session,
    info: &ServerInfo,
    progress: &Progress,
) -> Result<((), String)> {
    if info.in_recovery {
        return Err(Error::new(ErrorKind::Forbidden, "the server is a standby, or still recovering")
            .with_hint("Run this against the primary."));
    }
    let began = Instant::now();
    // Something must be in the segment, or there is nothing to close.
    session.query_one("SELECT pg_create_restore_point('strata check')", &[]).await?;
    // What ends where a segment ends belongs to that segment; from PostgreSQL 17 on pg_walfile_name() names the next one.
    let name: String = session.query_one("SELECT pg_walfile_name(pg_switch_wal() - 1)", &[]).await?.get(0);
    let segment = Segment::parse(&name)
        .ok_or_else(|| Error::new(ErrorKind::Postgres, format!("the server names its WAL segment \"{name}\"")))?;
    archive::wait(repository, session, info, segment, segment, config.backup.archive_timeout, progress).await?;
    let data_directory = config.member.data_directory.as_ref().unwrap_or(&info.data_directory);
    archive::keep_history(config, session, data_directory).await?;
    let (reader, wanted) = (repository.clone(), name.clone());
    blocking(move || reader.check_wal(&wanted)).await?;
    Ok(((), format!("the WAL segment {name} arrived after {:.2} s and is sound", began.elapsed().as_secs_f64())))
}

/// How much WAL waits, and whether any was given up that no backup has made good yet.
fn backlog(config: &Config, info: &ServerInfo) -> Result<(State, String)> {
    let data = config.member.data_directory.as_ref().unwrap_or(&info.data_directory);
    let size = u64::from(info.segment_size);
    let dropped = Dropped::all(&Outbox::path(config, data))?;
    if let Some(last) = dropped.iter().filter_map(Dropped::segment).max_by_key(|segment| segment.number(size)) {
        let repository = Repository::open(config)?;
        let (backups, _) = repository.backups()?;
        if !backups.iter().any(|backup| backup.start_lsn >= last.end(size)) {
            return Err(Error::new(
                ErrorKind::Gap,
                format!("the WAL segment {last} was dropped at the limit and not archived"),
            )
            .detail(format!("{} were dropped since, and no backup begins behind them.", dropped.len())));
        }
    }
    let backlog = Backlog::look(&config.wal, data)?;
    let alarm = backlog.alarm(config.wal.at_limit);
    match (backlog.pressure, alarm) {
        (Pressure::Full, Some(alarm)) => Err(Error::new(ErrorKind::Archive, alarm)),
        (Pressure::Alarm, Some(alarm)) => Ok((State::Warning, alarm)),
        _ => {
            let limit = backlog.limit.map_or("no limit is set".to_owned(), |limit| format!("{limit} may"));
            Ok((State::Ok, format!("{} bytes of WAL wait for the repository, {limit}", backlog.bytes)))
        }
    }
}

/// For whom what is written is encrypted, and whether they are known to be able to read it.
async fn encryption(repository: Repository) -> Result<(State, String)> {
    blocking(move || {
        let names = repository.keys().names();
        if names.is_empty() {
            return Ok((State::Ok, "nothing is encrypted: repository.recipients is not set".to_owned()));
        }
        let doubts = repository.doubts()?;
        if !doubts.is_empty() {
            return Ok((State::Warning, doubts.join("; ")));
        }
        Ok((State::Ok, format!("all is encrypted for {}", names.join(", "))))
    })
    .await
}

async fn tool(repository: Repository) -> Result<((), String)> {
    blocking(move || {
        let Some(tool) = repository.tool() else { return Ok(((), String::new())) };
        let tried = trial::run(&repository, tool)?;
        Ok(((), format!("{} stored {} bytes and gave them back", tried.tool, tried.bytes)))
    })
    .await
}

/// Streaming, when it is configured: the agent receives, and the server knows it.
async fn streaming(config: &Config, session: &Session, info: &ServerInfo) -> Result<((), String)> {
    let answer = ping(config, info).await?;
    let stream = answer.get("stream").filter(|stream| !stream.is_null());
    let is_on = stream.and_then(|stream| stream.get("streaming")).and_then(serde_json::Value::as_bool);
    if is_on != Some(true) {
        let why = stream.and_then(|stream| stream.get("error")).and_then(serde_json::Value::as_str);
        return Err(Error::new(ErrorKind::Archive, "the agent does not receive WAL")
            .detail(why.unwrap_or("It was started without wal.stream, or has not connected yet.").to_owned()));
    }
    let slot = slot_name(config);
    let row = session
        .query_opt(
            "SELECT active, pg_wal_lsn_diff(pg_current_wal_flush_lsn(), restart_lsn)::int8 \
             FROM pg_replication_slots WHERE slot_name = $1",
            &[&slot],
        )
        .await?
        .ok_or_else(|| Error::new(ErrorKind::Missing, format!("there is no replication slot {slot}")))?;
    let behind: Option<i64> = row.get(1);
    Ok(((), format!("WAL is streamed through the slot {slot}, {} bytes are not stored yet", behind.unwrap_or(0))))
}

async fn ping(config: &Config, info: &ServerInfo) -> Result<serde_json::Value> {
    let store = info.store_or(config.member.store.as_ref());
    let configured = config.agent.socket.clone().or_else(|| info.agent_socket.clone());
    let socket = configured.unwrap_or_else(|| names::default_socket(&store));
    client::ask(&socket, &Request::Ping, Duration::from_secs(5)).await
}

async fn agent(config: &Config, info: &ServerInfo) -> Result<((), String)> {
    let store = info.store_or(config.member.store.as_ref());
    let configured = config.agent.socket.clone().or_else(|| info.agent_socket.clone());
    let socket = configured.unwrap_or_else(|| names::default_socket(&store));
    let answer = client::ask(&socket, &Request::Ping, Duration::from_secs(5)).await?;
    let pid = answer.get("pid").map(ToString::to_string).unwrap_or_default();
    Ok(((), format!("process {pid} answers at {}", socket.display())))
}
