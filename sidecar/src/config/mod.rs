//! Configuration: `strata.toml`.
//!
//! Which file: the flag `--config`, else the variable `STRATA_CONFIG`, else the first of
//! `$XDG_CONFIG_HOME/strata/strata.toml` (by default `~/.config/strata/strata.toml`) and `/etc/strata/strata.toml` that
//! exists. Unknown keys are errors, so that a misspelt one is not silently ignored. Paths must be absolute: commands run
//! from the server's data directory, from a shell, and from a service manager.

pub mod drill;
pub mod repository;
pub mod retention;
pub mod schedule;
pub mod template;
pub mod tool;
pub mod wal;

use crate::error::{AtPath, Error, ErrorKind, Result};
pub use drill::DrillConfig;
use jiff::SignedDuration;
pub use repository::{RepositoryConfig, S3Config};
pub use retention::RetentionConfig;
pub use schedule::ScheduleConfig;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tool::ToolConfig;
pub use wal::{AtLimit, WalConfig};

/// The configuration file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The system: a set of servers that belong together.
    pub system: String,
    /// This server.
    pub member: MemberConfig,
    /// Where backups are.
    pub repository: RepositoryConfig,
    /// How backups are taken.
    #[serde(default)]
    pub backup: BackupConfig,
    /// How WAL goes to the repository and comes back.
    #[serde(default)]
    pub wal: WalConfig,
    /// The agent.
    #[serde(default)]
    pub agent: AgentConfig,
    /// What is kept, and for how long.
    #[serde(default)]
    pub retention: RetentionConfig,
    /// What the agent does by the clock.
    #[serde(default)]
    pub schedule: ScheduleConfig,
    /// How a recovery is tried.
    #[serde(default)]
    pub drill: DrillConfig,
    /// The third-party tool that carries backups, when there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<ToolConfig>,
    /// The file that this came from.
    #[serde(skip)]
    pub file: PathBuf,
}

/// One server of the system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberConfig {
    /// Its name in the system.
    #[serde(default = "default_member")]
    pub name: String,
    /// How to connect, in libpq's form. The libpq environment variables fill what it does not say.
    #[serde(default)]
    pub conninfo: String,
    /// The data directory; asked from the server when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_directory: Option<PathBuf>,
    /// The store of live fragments; asked from the server when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<PathBuf>,
    /// The directory of `postgres` and `pg_ctl`; found by the server's version when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bin_directory: Option<PathBuf>,
}

/// How backups are taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BackupConfig {
    /// Parallel readers and writers; 0 means one for each processor.
    pub jobs: usize,
    /// The level of zstd for data and WAL.
    pub compress_level: i32,
    /// Ask for an immediate checkpoint at the start, instead of a spread one.
    pub fast_checkpoint: bool,
    /// How long to wait for WAL to arrive in the repository.
    #[serde(with = "duration")]
    pub archive_timeout: Duration,
}

/// The agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentConfig {
    /// Its socket; asked from the server when absent (`strata.agent_socket`, else `STORE/agent.sock`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// How often new fragments are looked for, besides notifications.
    #[serde(with = "duration")]
    pub fragment_interval: Duration,
    /// How often the repository's catalog is mirrored into schema `strata`.
    #[serde(with = "duration")]
    pub mirror_interval: Duration,
}

impl Default for BackupConfig {
    fn default() -> Self {
        Self { jobs: 0, compress_level: 1, fast_checkpoint: true, archive_timeout: Duration::from_secs(60) }
    }
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self { socket: None, fragment_interval: Duration::from_secs(2), mirror_interval: Duration::from_secs(5) }
    }
}

fn default_member() -> String {
    "main".to_owned()
}

impl BackupConfig {
    /// The number of parallel workers.
    pub fn workers(&self) -> usize {
        match self.jobs {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        }
    }
}

mod duration {
    //! Durations as text: `5s`, `2m 30s`, `500ms`.
    use super::{Duration, SignedDuration};
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}ms", value.as_millis()))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        let signed: SignedDuration = text.parse().map_err(|_| {
            serde::de::Error::custom(format!("\"{text}\" is not a duration like \"5s\", \"500ms\" or \"2m\""))
        })?;
        match Duration::try_from(signed) {
            Ok(duration) if !duration.is_zero() => Ok(duration),
            _ => Err(serde::de::Error::custom(format!("the duration \"{text}\" must be above zero"))),
        }
    }
}

mod optional_duration {
    //! Durations that may be left out.
    use super::{Duration, duration};
    use serde::{Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => duration::serialize(value, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        duration::deserialize(deserializer).map(Some)
    }
}

impl Config {
    /// Finds and reads the configuration.
    pub fn load(flag: Option<&Path>) -> Result<Self> {
        let file = match flag {
            Some(path) => path.to_owned(),
            None => find(&|name| std::env::var_os(name).map(PathBuf::from))?,
        };
        Self::read(&file)
    }

    /// Reads one file.
    pub fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file).map_err(|error| {
            Error::new(ErrorKind::Config, format!("could not read the configuration \"{}\": {error}", file.display()))
                .with_hint("Name the file with --config or STRATA_CONFIG.")
        })?;
        let file = std::path::absolute(file).at("find", file)?;
        Self::parse(&text, &file)
    }

    /// Parses the text of a file.
    pub fn parse(text: &str, file: &Path) -> Result<Self> {
        let bad = |what: String| {
            Error::new(ErrorKind::Config, format!("the configuration \"{}\" is wrong: {what}", file.display()))
        };
        // The error's own text would show the line, which may hold a password.
        let mut config: Config = toml::from_str(text).map_err(|error| {
            let place = error.span().and_then(|span| text.get(..span.start)).map(|before| {
                let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
                format!("line {}, column {column}: ", before.matches('\n').count() + 1)
            });
            bad(format!("{}{}", place.unwrap_or_default(), error.message()))
        })?;
        config.file = file.to_owned();
        check_name("system", &config.system).map_err(&bad)?;
        check_name("member.name", &config.member.name).map_err(&bad)?;
        if matches!(
            config.member.name.as_str(),
            "fragments" | "objects" | "keys" | "objects.lock" | "fragments.lock" | "fragments.lock.shares"
        ) {
            return Err(bad(format!(
                "member.name is \"{}\", which has another meaning in a repository",
                config.member.name
            )));
        }
        let paths = [
            ("repository.path", config.repository.path.as_ref()),
            ("repository.identity_file", config.repository.identity_file.as_ref()),
            ("member.data_directory", config.member.data_directory.as_ref()),
            ("member.store", config.member.store.as_ref()),
            ("member.bin_directory", config.member.bin_directory.as_ref()),
            ("agent.socket", config.agent.socket.as_ref()),
            ("drill.directory", config.drill.directory.as_ref()),
            ("wal.outbox", config.wal.outbox.as_ref()),
        ];
        for (key, path) in paths {
            if let Some(path) = path.filter(|path| !path.is_absolute()) {
                return Err(bad(format!("{key} is \"{}\", but must be an absolute path", path.display())));
            }
        }
        config.repository.check().map_err(&bad)?;
        if config.tool.is_some() && !config.repository.recipients.is_empty() {
            return Err(bad(
                "repository.recipients says that everything is encrypted, but [tool] gives hot data and fragments to a tool; encrypt there, or leave out one of them".to_owned(),
            ));
        }
        let levels = zstd::compression_level_range();
        if !levels.contains(&config.backup.compress_level) {
            return Err(bad(format!(
                "backup.compress_level is {}, but must be between {} and {}",
                config.backup.compress_level,
                levels.start(),
                levels.end()
            )));
        }
        if config.backup.jobs > 256 {
            return Err(bad(format!("backup.jobs is {}, but must be at most 256", config.backup.jobs)));
        }
        if let Some(slot) = config.wal.slot.as_ref().filter(|slot| !is_slot_name(slot)) {
            return Err(bad(format!(
                "wal.slot is \"{slot}\", but must be 1 to 63 lower-case letters, digits or \"_\""
            )));
        }
        if let Some(tool) = &config.tool {
            tool.resolve().map_err(&bad)?;
        }
        Ok(config)
    }
}

/// What PostgreSQL takes as the name of a replication slot.
fn is_slot_name(name: &str) -> bool {
    (1..=63).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// Names become directories, so they are kept to what every file system and shell takes.
fn check_name(key: &str, name: &str) -> Result<(), String> {
    let good = !name.is_empty()
        && name.len() <= 63
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        && !name.starts_with(['.', '-']);
    if good {
        return Ok(());
    }
    Err(format!(
        "{key} is \"{name}\", but must be 1 to 63 letters, digits, \"_\", \"-\" or \".\", not begun by \".\" or \"-\""
    ))
}

fn find(env: &dyn Fn(&str) -> Option<PathBuf>) -> Result<PathBuf> {
    if let Some(path) = env("STRATA_CONFIG").filter(|path| !path.as_os_str().is_empty()) {
        return Ok(path);
    }
    let home = env("XDG_CONFIG_HOME")
        .filter(|path| path.is_absolute())
        .or_else(|| env("HOME").map(|home| home.join(".config")));
    let mut tried: Vec<PathBuf> = Vec::new();
    tried.extend(home.map(|dir| dir.join("strata/strata.toml")));
    tried.push(PathBuf::from("/etc/strata/strata.toml"));
    for path in &tried {
        if path.exists() {
            return Ok(path.clone());
        }
    }
    let names: Vec<String> = tried.iter().map(|path| path.display().to_string()).collect();
    Err(Error::new(ErrorKind::Config, "there is no configuration")
        .detail(format!("Looked for {}.", names.join(" and ")))
        .with_hint("Name the file with --config or STRATA_CONFIG."))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        system = "shop"
        [member]
        name = "main"
        conninfo = "host=/tmp user=postgres"
        [repository]
        path = "/srv/repo"
    "#;

    fn parse(text: &str) -> Result<Config> {
        Config::parse(text, Path::new("/x/strata.toml"))
    }

    fn s3(inside: &str) -> String {
        GOOD.replace("path = \"/srv/repo\"", &format!("s3 = {{ {inside} }}"))
    }

    #[test]
    fn a_bucket_has_a_place_and_defaults() {
        let config = parse(&s3("bucket = \"b\", prefix = \"a/b\", endpoint = \"https://h:1\"")).unwrap();
        assert_eq!(config.repository.root(), Path::new("s3://b/a/b"));
        let s3 = config.repository.s3.clone().unwrap();
        assert!(s3.path_style && !s3.allow_http);
        assert_eq!(parse(&toml::to_string(&config).unwrap()).unwrap(), config);
    }

    #[test]
    fn the_rest_has_defaults() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.backup, BackupConfig::default());
        assert_eq!(config.agent, AgentConfig::default());
        assert!(config.backup.workers() >= 1);
        assert!(!config.repository.read_only);
    }

    #[test]
    fn what_is_written_can_be_read_again() {
        let config = parse(GOOD).unwrap();
        let text = toml::to_string(&config).unwrap();
        assert_eq!(parse(&text).unwrap(), config);
    }

    #[test]
    fn wrong_files_are_refused_and_say_where() {
        let cases = [
            (GOOD.replace("conninfo", "coninfo"), "coninfo"),
            (GOOD.replace("\"shop\"", "\"a/b\""), "a/b"),
            (GOOD.replace("\"main\"", "\"objects\""), "another meaning"),
            (format!("{GOOD}\n[tool]\npreset = \"tar\""), "tool.preset is \"tar\""),
            (GOOD.replace("/srv/repo", "srv/repo"), "repository.path"),
            (format!("{GOOD}\n[backup]\ncompress_level = 99"), "99"),
            (format!("{GOOD}\n[backup]\narchive_timeout = \"soon\""), "soon"),
            (format!("{GOOD}\n[backup]\narchive_timeout = \"0s\""), "above zero"),
            (GOOD.replace("path = \"/srv/repo\"", ""), "neither path nor s3"),
            (format!("{GOOD}\ns3 = {{ bucket = \"b\" }}"), "both path and s3"),
            (GOOD.replace("path = \"/srv/repo\"", "path = \"/srv/repo\"\nrecipients = [\"age1x\"]"), "age1x"),
            (GOOD.replace("path = \"/srv/repo\"", "path = \"/srv/repo\"\nidentity_file = \"x\""), "absolute"),
            (s3("bucket = \"b\", endpoint = \"http://h\""), "without TLS"),
            (s3("bucket = \"b\", endpoint = \"https://u:p@h\""), "user or password"),
            (s3("bucket = \"b\", prefix = \"/x/\""), "repository.s3.prefix"),
            (s3("bucket = \"b\", secret_access_key = \"x\""), "secret_access_key"),
            (s3("bucket = \"b\", ca_file = \"x\""), "absolute"),
            (format!("{GOOD}\n[vault]\nx = 1"), "vault"),
            (format!("{GOOD}\n[wal]\nkeep_limit = \"10\""), "\"10\" is not a size"),
            (format!("{GOOD}\n[wal]\npush_jobs = 0"), "from 1 to 64"),
            (format!("{GOOD}\n[wal]\nslot = \"My-Slot\""), "My-Slot"),
            (format!("{GOOD}\n[wal]\nat_limit = \"forget\""), "forget"),
            ("system = ".to_owned(), "line 1"),
        ];
        for (text, needle) in cases {
            let error = parse(&text).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Config);
            assert!(error.message.contains(needle), "{needle}: {error}");
            assert!(error.message.contains("/x/strata.toml"), "{error}");
        }
    }

    #[test]
    fn no_line_of_the_file_is_shown() {
        for wrong in ["conninfo = \"password=geheim", "conninfo = \"password=geheim\"\nconninfo = \"x\""] {
            let error = parse(&GOOD.replace("conninfo = \"host=/tmp user=postgres\"", wrong)).unwrap_err();
            assert!(error.message.contains("line "), "{error}");
            assert!(!error.full_text().contains("geheim"), "{}", error.full_text());
        }
    }

    #[test]
    fn the_environment_wins_over_the_usual_places() {
        let found = find(&|name| (name == "STRATA_CONFIG").then(|| PathBuf::from("/here.toml"))).unwrap();
        assert_eq!(found, Path::new("/here.toml"));
    }

    #[test]
    fn the_home_directory_comes_before_etc() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(home.path().join(".config/strata")).unwrap();
        let file = home.path().join(".config/strata/strata.toml");
        std::fs::write(&file, GOOD).unwrap();
        let path = home.path().to_owned();
        assert_eq!(find(&|name| (name == "HOME").then(|| path.clone())).unwrap(), file);
    }
}
