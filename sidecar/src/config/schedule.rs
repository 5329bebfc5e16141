//! `[schedule]`: what the agent does by the clock.

use croner::Cron;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::str::FromStr;

/// What the agent does by the clock, in the time zone of its machine. Nothing, unless it is said here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleConfig {
    /// Backups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup: Option<Times>,
    /// Expires.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expire: Option<Times>,
    /// Verifications of the whole repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verify: Option<Times>,
    /// Drills to the end of the archive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drill: Option<Times>,
}

/// Times as cron writes them: `0 3 * * *`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Times {
    text: String,
    cron: Cron,
}

impl Times {
    /// The first time behind `after`; none when there is none any more.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let after = after.to_zoned(TimeZone::system());
        self.cron.find_next_occurrence(&after, false).ok().map(|next| next.timestamp())
    }
}

impl Serialize for Times {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Times {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match Cron::from_str(&text) {
            Ok(cron) => Ok(Self { text, cron }),
            Err(error) => {
                Err(serde::de::Error::custom(format!("\"{text}\" is no cron expression like \"0 3 * * *\": {error}")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_written_and_found() {
        let parse = |text: &str| toml::from_str::<ScheduleConfig>(text);
        let schedule = parse("backup = \"0 3 * * *\"\nverify = \"*/5 * * * *\"").unwrap();
        assert_eq!(parse(&toml::to_string(&schedule).unwrap()).unwrap(), schedule);
        let at: Timestamp = "2026-01-31T09:30:15Z".parse().unwrap();
        assert_eq!(schedule.verify.unwrap().next(at), Some("2026-01-31T09:35:00Z".parse().unwrap()));
        let next = schedule.backup.unwrap().next(at).unwrap().to_zoned(TimeZone::system());
        assert_eq!((next.hour(), next.minute()), (3, 0));
        for bad in ["backup = \"never\"", "backup = \"0 99 * * *\"", "x = \"0 3 * * *\""] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
