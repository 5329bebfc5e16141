//! `[retention]`: what `strata expire` keeps. Each rule keeps things, none removes what another one keeps.

use jiff::{Span, SpanRelativeTo};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::time::Duration;

/// What is kept. Without any rule nothing is ever removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetentionConfig {
    /// This many of the newest backups that can be recovered.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "above_zero")]
    pub keep_backups: Option<u32>,
    /// Backups that ended within this time.
    #[serde(with = "age", skip_serializing_if = "Option::is_none")]
    pub keep_for: Option<Duration>,
    /// Every moment within this time. Backups that the other rules keep beyond it are kept by themselves, without the WAL between
    /// them. None: every moment since the oldest kept backup.
    #[serde(with = "age", skip_serializing_if = "Option::is_none")]
    pub recovery_window: Option<Duration>,
    /// Expire after each backup that succeeded.
    pub automatic: bool,
}

impl RetentionConfig {
    /// True when no rule is set.
    pub fn is_empty(&self) -> bool {
        self.keep_backups.is_none() && self.keep_for.is_none() && self.recovery_window.is_none()
    }
}

fn above_zero<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    match u32::deserialize(deserializer)? {
        0 => Err(serde::de::Error::custom("keep_backups must be at least 1")),
        n => Ok(Some(n)),
    }
}

mod age {
    //! Ages as text: `14d`, `2w`, `36h`. A day has 24 hours.
    use super::*;

    pub fn serialize<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => serializer.collect_str(&format_args!("{}ms", value.as_millis())),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parse = || {
            let span: Span = text.parse().ok()?;
            let age = span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()?;
            Duration::try_from(age).ok().filter(|age| !age.is_zero())
        };
        parse().map(Some).ok_or_else(|| {
            serde::de::Error::custom(format!("\"{text}\" is not an age above zero like \"30d\", \"2w\" or \"36h\""))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_and_counts_are_read_and_written() {
        let parse = |text: &str| toml::from_str::<RetentionConfig>(text);
        let rules = parse("keep_backups = 3\nkeep_for = \"2w\"\nrecovery_window = \"14d 12h\"").unwrap();
        assert_eq!(rules.keep_backups, Some(3));
        assert_eq!(rules.keep_for, Some(Duration::from_secs(14 * 86400)));
        assert_eq!(rules.recovery_window, Some(Duration::from_secs(14 * 86400 + 12 * 3600)));
        assert_eq!(parse(&toml::to_string(&rules).unwrap()).unwrap(), rules);
        assert!(parse("").unwrap().is_empty());
        for bad in
            ["keep_backups = 0", "keep_for = \"soon\"", "recovery_window = \"0s\"", "keep_for = \"1 month\"", "x = 1"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
