//! WAL that waits in `pg_wal` for the repository, and how near it is to the limit that the user set.
//!
//! PostgreSQL keeps a segment until `archive_command` succeeds, so a repository that is away costs room in `pg_wal`. `[wal] keep_limit`
//! says how much may wait. From `alarm_percent` of it on there is an alarm: in the server's log with each failed push, in the agent's log,
//! as a notification, in the agent's answer to a ping, and in `strata check`. At the limit `at_limit` decides: `keep` goes on
//! waiting, `drop` gives up the oldest segment ([`Dropped`]), which is then named in the server's log and by `strata check`, and is a gap for
//! `strata info`, plans and `strata verify`.

use super::name::{Segment, WalName};
use crate::config::{AtLimit, WalConfig};
use crate::error::{AtPath, Error, ErrorKind, Result};
use crate::repository::fsio;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fs::OpenOptions;
use std::io::{ErrorKind as IoKind, Write};
use std::path::Path;

/// How near the limit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pressure {
    /// Far, or there is no limit.
    Ok,
    /// Past `alarm_percent` of it.
    Alarm,
    /// It is reached.
    Full,
}

/// What waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Backlog {
    /// How many files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The first one, in the order in which they are archived.
    pub first: Option<String>,
    /// How many bytes may wait.
    pub limit: Option<u64>,
    /// How near that is.
    pub pressure: Pressure,
}

impl Backlog {
    /// Looks into a data directory.
    pub fn look(wal: &WalConfig, data: &Path) -> Result<Self> {
        let names = ready(data)?;
        let dir = data.join("pg_wal");
        // What is gone meanwhile was archived.
        let bytes = names.iter().filter_map(|name| std::fs::metadata(dir.join(name)).ok()).map(|meta| meta.len()).sum();
        let pressure = match wal.keep_limit {
            Some(limit) if bytes >= limit => Pressure::Full,
            Some(limit) if u128::from(bytes) * 100 >= u128::from(limit) * u128::from(wal.alarm_percent) => {
                Pressure::Alarm
            }
            _ => Pressure::Ok,
        };
        Ok(Self { files: names.len() as u64, bytes, first: names.into_iter().next(), limit: wal.keep_limit, pressure })
    }

    /// A sentence about it; none when all is well.
    pub fn alarm(&self, at_limit: AtLimit) -> Option<String> {
        let limit = self.limit?;
        let waiting = format!("{} files with {} bytes of WAL wait for the repository", self.files, self.bytes);
        match (self.pressure, at_limit) {
            (Pressure::Ok, _) => None,
            (Pressure::Alarm, AtLimit::Keep) => Some(format!("{waiting}; the limit is {limit} bytes")),
            (Pressure::Alarm, AtLimit::Drop) => {
                Some(format!("{waiting}; at {limit} bytes the oldest is dropped, as wal.at_limit says"))
            }
            (Pressure::Full, AtLimit::Keep) => {
                Some(format!("{waiting}, and the limit is {limit} bytes; all is kept, as wal.at_limit says"))
            }
            (Pressure::Full, AtLimit::Drop) => {
                Some(format!("{waiting}, and the limit is {limit} bytes; the oldest is dropped, as wal.at_limit says"))
            }
        }
    }
}

/// The files that wait to be archived, in the order in which PostgreSQL hands them over: histories, then by name.
pub fn ready(data: &Path) -> Result<Vec<String>> {
    let dir = data.join("pg_wal/archive_status");
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == IoKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", &dir, error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.at("list", &dir)?.file_name();
        let name = name.to_str().and_then(|name| name.strip_suffix(".ready"));
        names.extend(name.filter(|name| WalName::parse(name).is_some()).map(str::to_owned));
    }
    let history = |name: &String| matches!(WalName::parse(name), Some(WalName::History(_)));
    names.sort_unstable_by(|a, b| (!history(a), a).cmp(&(!history(b), b)));
    Ok(names)
}

/// A segment that was given up at the limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// Its name.
    pub name: String,
    /// When.
    pub at: Timestamp,
    /// How many bytes waited.
    pub waiting: u64,
}

impl Dropped {
    const FILE: &str = "dropped.jsonl";

    /// Notes it, durably, in the outbox. Only then may the segment go.
    pub fn note(self, outbox: &Path) -> Result<()> {
        let path = outbox.join(Self::FILE);
        let mut line = serde_json::to_vec(&self)
            .map_err(|error| Error::new(ErrorKind::Io, format!("could not write JSON: {error}")))?;
        line.push(b'\n');
        let mut file = OpenOptions::new().append(true).create(true).open(&path).at("open", &path)?;
        file.write_all(&line).and_then(|()| file.sync_all()).at("write", &path)?;
        fsio::fsync_dir(outbox)
    }

    /// All that were given up, oldest first.
    pub fn all(outbox: &Path) -> Result<Vec<Self>> {
        let path = outbox.join(Self::FILE);
        match std::fs::read_to_string(&path) {
            // A line that was cut off is one whose segment was not given up.
            Ok(text) => Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()),
            Err(error) if error.kind() == IoKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(Error::io("read", &path, error)),
        }
    }

    /// The segment.
    pub fn segment(&self) -> Option<Segment> {
        Segment::parse(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let status = dir.path().join("pg_wal/archive_status");
        std::fs::create_dir_all(&status).unwrap();
        for name in ["000000010000000000000002", "000000010000000000000001", "00000002.history"] {
            std::fs::write(status.join(format!("{name}.ready")), "").unwrap();
            std::fs::write(dir.path().join("pg_wal").join(name), vec![0; 1000]).unwrap();
        }
        std::fs::write(status.join("000000010000000000000000.done"), "").unwrap();
        std::fs::write(status.join("core.ready"), "").unwrap();
        dir
    }

    #[test]
    fn what_waits_is_counted_in_postgresqls_order() {
        let dir = data();
        let names = ready(dir.path()).unwrap();
        assert_eq!(names, ["00000002.history", "000000010000000000000001", "000000010000000000000002"]);
        assert_eq!(ready(&dir.path().join("nowhere")).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn the_alarm_comes_before_the_limit() {
        let dir = data();
        let look = |limit, percent| {
            let wal = WalConfig { keep_limit: limit, alarm_percent: percent, ..WalConfig::default() };
            Backlog::look(&wal, dir.path()).unwrap()
        };
        assert_eq!((look(None, 50).pressure, look(None, 50).alarm(AtLimit::Keep)), (Pressure::Ok, None));
        assert_eq!(look(Some(10_000), 50).pressure, Pressure::Ok);
        assert_eq!(look(Some(6_000), 50).pressure, Pressure::Alarm);
        assert!(look(Some(6_000), 50).alarm(AtLimit::Drop).unwrap().contains("at 6000 bytes the oldest"));
        assert_eq!(look(Some(3_000), 50).pressure, Pressure::Full);
        assert!(look(Some(3_000), 50).alarm(AtLimit::Keep).unwrap().contains("3 files with 3000 bytes"));
    }

    #[test]
    fn a_drop_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Dropped::all(dir.path()).unwrap(), []);
        let one = Dropped { name: "000000010000000000000001".to_owned(), at: Timestamp::UNIX_EPOCH, waiting: 1 };
        one.clone().note(dir.path()).unwrap();
        OpenOptions::new().append(true).open(dir.path().join(Dropped::FILE)).unwrap().write_all(b"{\"na").unwrap();
        assert_eq!(Dropped::all(dir.path()).unwrap(), [one]);
    }
}
