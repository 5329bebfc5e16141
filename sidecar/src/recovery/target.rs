//! Recovery targets as people write them.

use crate::error::{Error, ErrorKind, Result};
use crate::repository::catalog;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use std::fmt;
use std::str::FromStr;
use strata_catalog::Lsn;

/// Where a recovery shall stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// At the end of the archive.
    Latest,
    /// Behind the first record that begins at this position or later, as PostgreSQL's `recovery_target_lsn` has it.
    Lsn(Lsn),
    /// Before the first commit later than this time, as PostgreSQL's `recovery_target_time` has it.
    Time(Timestamp),
    /// As soon as this backup is consistent.
    Backup(String),
    /// As soon as the newest backup is consistent.
    Immediate,
    /// Behind the end of this transaction.
    Xid(u32),
    /// Behind this named restore point.
    Name(String),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::Lsn(lsn) => lsn.fmt(f),
            Self::Time(time) => time.fmt(f),
            Self::Backup(id) => f.write_str(id),
            Self::Immediate => f.write_str("immediate"),
            Self::Xid(xid) => write!(f, "xid:{xid}"),
            Self::Name(name) => write!(f, "name:{name}"),
        }
    }
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        if text.eq_ignore_ascii_case("latest") {
            return Ok(Self::Latest);
        }
        if text.eq_ignore_ascii_case("immediate") {
            return Ok(Self::Immediate);
        }
        if let Some(xid) = text.strip_prefix("xid:") {
            return xid.trim().parse().ok().filter(|xid| *xid > 2).map(Self::Xid).ok_or_else(|| {
                Error::new(ErrorKind::Usage, format!("\"{xid}\" is not a transaction id"))
                    .with_hint("It is a number of 32 bits, as pg_current_xact_id()::xid shows it.")
            });
        }
        if let Some(name) = text.strip_prefix("name:") {
            return match name.len() {
                1..=63 => Ok(Self::Name(name.to_owned())),
                _ => Err(Error::new(ErrorKind::Usage, format!("\"{name}\" is not the name of a restore point"))),
            };
        }
        if catalog::is_backup_id(text) {
            return Ok(Self::Backup(text.to_owned()));
        }
        if let Ok(lsn) = text.parse() {
            return Ok(Self::Lsn(lsn));
        }
        parse_time(text)?.map(Self::Time).ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("\"{text}\" is not a recovery target"))
                .with_hint("A target is \"latest\", \"immediate\", a position like 0/16B3748, a time like \"2026-01-31 09:30:00+01\", \"xid:NUMBER\", \"name:RESTORE POINT\", or a backup's id.")
        })
    }
}

/// Parses a time in ISO 8601's or PostgreSQL's form; none when it has neither. Without an offset it is in the system's time
/// zone, and an error when clocks there showed it twice or never.
pub fn parse_time(text: &str) -> Result<Option<Timestamp>> {
    match time_with_offset(text) {
        Ok(time) => Ok(time),
        Err(civil) => local_time(text, civil, TimeZone::system()).map(Some),
    }
}

fn local_time(text: &str, civil: DateTime, zone: TimeZone) -> Result<Timestamp> {
    let name = zone.iana_name().unwrap_or("the system's time zone").to_owned();
    zone.into_ambiguous_zoned(civil).unambiguous().map(|time| time.timestamp()).map_err(|_| {
        Error::new(ErrorKind::Usage, format!("in {name} clocks showed \"{text}\" twice or never"))
            .with_hint("Add the offset from UTC, as in \"2026-01-31 09:30:00+01\".")
    })
}

/// A time with an offset; as an error, one without.
fn time_with_offset(text: &str) -> Result<Option<Timestamp>, DateTime> {
    let text = text.trim();
    let text = text.strip_suffix(" UTC").map_or_else(|| text.to_owned(), |rest| format!("{rest}Z"));
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(Some(time));
    }
    // PostgreSQL writes "2026-01-31 09:30:00+01".
    let Some((day, rest)) = text.split_once([' ', 'T']) else { return Ok(None) };
    let rest = rest.trim();
    if let Some(at) = rest.rfind(['+', '-']) {
        let (clock, offset) = rest.split_at(at);
        let offset = if offset.len() == 3 { format!("{offset}:00") } else { offset.to_owned() };
        return Ok(format!("{day}T{}{offset}", clock.trim()).parse().ok());
    }
    format!("{day}T{rest}").parse().map_or(Ok(None), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forms_are_told_apart() {
        let time = |text: &str| Target::Time(text.parse().unwrap());
        for (text, target) in [
            ("latest", Target::Latest),
            ("immediate", Target::Immediate),
            ("xid:4711", Target::Xid(4711)),
            ("name:before the release", Target::Name("before the release".into())),
            ("0/16B3748", Target::Lsn(Lsn(0x16B3748))),
            ("20260131T093015Z", Target::Backup("20260131T093015Z".into())),
            ("2026-01-31T09:30:15Z", time("2026-01-31T09:30:15Z")),
            ("2026-01-31 09:30:15.25+00", time("2026-01-31T09:30:15.25Z")),
            ("2026-01-31 09:30:15-03:30", time("2026-01-31T13:00:15Z")),
            ("2026-01-31 09:30:15.123456 +02", time("2026-01-31T07:30:15.123456Z")),
            ("2026-01-31 09:30:15 UTC", time("2026-01-31T09:30:15Z")),
        ] {
            assert_eq!(text.parse::<Target>().unwrap(), target, "{text}");
        }
    }

    #[test]
    fn without_an_offset_the_systems_zone_counts() {
        let local: DateTime = "2026-01-31T09:30:15".parse().unwrap();
        let expected = local.to_zoned(TimeZone::system()).unwrap().timestamp();
        assert_eq!("2026-01-31 09:30:15".parse::<Target>().unwrap(), Target::Time(expected));
    }

    #[test]
    fn a_local_time_that_clocks_showed_twice_or_never_is_refused() {
        // Central Europe, where clocks go from 2 to 3 in spring and from 3 to 2 in autumn.
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let local = |text: &str| local_time(text, text.parse().unwrap(), zone.clone());
        assert_eq!(local("2026-01-31T09:30:15").unwrap(), "2026-01-31T08:30:15Z".parse().unwrap());
        for text in ["2026-03-29T02:30:00", "2026-10-25T02:30:00"] {
            let error = local(text).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Usage);
            assert!(error.message.contains(text), "{error}");
        }
    }

    #[test]
    fn other_texts_are_usage_errors() {
        for bad in [
            "",
            "xid:",
            "xid:0",
            "xid:99999999999",
            "name:",
            "yesterday",
            "0/",
            "2026-13-01 00:00:00Z",
            "12:30",
            "2026-01-31 25:00:00+00",
        ] {
            assert_eq!(bad.parse::<Target>().unwrap_err().kind, ErrorKind::Usage, "{bad}");
        }
    }
}
