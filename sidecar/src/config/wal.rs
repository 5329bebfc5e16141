//! `[wal]`: how WAL goes to the repository and comes back.

use super::duration;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::path::PathBuf;
use std::time::Duration;

/// How WAL goes to the repository and comes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WalConfig {
    /// How many segments are compressed and stored at once when several wait. 1 never looks ahead.
    #[serde(deserialize_with = "jobs")]
    pub push_jobs: usize,
    /// How many bytes of WAL may wait in `pg_wal` for the repository. None: there is no limit and no alarm.
    #[serde(with = "size", skip_serializing_if = "Option::is_none")]
    pub keep_limit: Option<u64>,
    /// From which part of the limit on, in percent, there is an alarm.
    #[serde(deserialize_with = "percent")]
    pub alarm_percent: u8,
    /// What happens at the limit.
    pub at_limit: AtLimit,
    /// Where a push that looks ahead keeps its notes; by default `wal-outbox` in the store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outbox: Option<PathBuf>,
    /// The agent receives the WAL as it is written, besides whole segments.
    pub stream: bool,
    /// The replication slot for it; by default `strata_MEMBER`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot: Option<String>,
    /// How long received WAL waits at most until it is stored: the loss when the host is lost.
    #[serde(with = "duration")]
    pub stream_interval: Duration,
    /// How many segments a recovery reads ahead, at most.
    #[serde(deserialize_with = "jobs")]
    pub fetch_ahead: usize,
    /// How many of them are decompressed at once.
    #[serde(deserialize_with = "jobs")]
    pub fetch_jobs: usize,
}

impl Default for WalConfig {
    fn default() -> Self {
        Self {
            push_jobs: 2,
            keep_limit: None,
            alarm_percent: 50,
            at_limit: AtLimit::Keep,
            outbox: None,
            stream: false,
            slot: None,
            stream_interval: Duration::from_millis(200),
            fetch_ahead: 8,
            fetch_jobs: 2,
        }
    }
}

/// What happens when as much WAL waits as may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AtLimit {
    /// PostgreSQL keeps it all, and the alarm goes on: the disk may fill, nothing is lost.
    #[default]
    Keep,
    /// The oldest segment that waits is given up, and said to be: the server goes on, the archive has a gap.
    Drop,
}

fn jobs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    match usize::deserialize(deserializer)? {
        n @ 1..=64 => Ok(n),
        n => Err(serde::de::Error::custom(format!("{n} is not a number from 1 to 64"))),
    }
}

fn percent<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    match u8::deserialize(deserializer)? {
        n @ 1..=100 => Ok(n),
        n => Err(serde::de::Error::custom(format!("{n} is not a percentage from 1 to 100"))),
    }
}

mod size {
    //! Sizes as PostgreSQL writes them: `512MB`, `10GB`.
    use super::*;

    const UNITS: [(&str, u64); 5] = [("TB", 1 << 40), ("GB", 1 << 30), ("MB", 1 << 20), ("kB", 1 << 10), ("B", 1)];

    pub fn parse(text: &str) -> Option<u64> {
        let (number, unit) = UNITS.iter().find_map(|(name, unit)| Some((text.trim().strip_suffix(name)?, unit)))?;
        number.trim().parse::<u64>().ok()?.checked_mul(*unit).filter(|bytes| *bytes > 0)
    }

    pub fn serialize<S: Serializer>(value: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(bytes) => serializer.collect_str(&format_args!("{bytes}B")),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse(&text).map(Some).ok_or_else(|| {
            serde::de::Error::custom(format!("\"{text}\" is not a size above zero like \"512MB\" or \"10GB\""))
        })
    }

    #[cfg(test)]
    mod tests {
        use super::parse;

        #[test]
        fn sizes_have_postgresqls_units() {
            assert_eq!(parse("512MB"), Some(512 << 20));
            assert_eq!(parse("10 GB"), Some(10 << 30));
            assert_eq!(parse("7B"), Some(7));
            for bad in ["", "10", "0MB", "MB", "1.5GB", "-1GB", "99999999999TB"] {
                assert_eq!(parse(bad), None, "{bad}");
            }
        }
    }
}
