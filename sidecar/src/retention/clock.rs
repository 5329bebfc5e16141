//! Whether ages can be told by the clock.
//!
//! `keep_for` and `recovery_window` count back from now. With a clock that is far ahead everything is old; so it is when nothing was archived for
//! long while a scheduled expire went on. Then all but one backup would go. From here both look the same: a long time of which the repository has
//! nothing, up to now, or up to the first thing that was recorded with the wrong clock. A server that was off on purpose looks like that as well. So an expire by
//! age that would remove something refuses when there is such a silence among what the ages reach, until somebody says that the clock is right
//! (`--trust-clock`, which `expired.json` remembers).
//!
//! **The limit** is half of the shortest age, since a longer silence takes more than half of what that rule promises, and three days at least, for a
//! weekend.
//!
//! **Signs of life** are all times that the repository has: when backups began and ended, when segments were archived, when something was committed in
//! them. They are taken as a set, in the order of time and not of the log. So a clock that was set back for a while only adds signs to the past, which makes no
//! silence. Times in the future are of a clock that was ahead, and count for nothing. The segments are looked at only when the backups leave a silence.

use super::decide::{Facts, before};
use crate::config::RetentionConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::repository::Repository;
use jiff::{SignedDuration, Timestamp};
use std::time::Duration;

/// The smallest limit.
const AT_LEAST: Duration = Duration::from_secs(3 * 24 * 3600);

/// A time of which the repository has nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silence {
    /// The last sign of life before it.
    pub from: Timestamp,
    /// The first one behind it, or now.
    pub to: Timestamp,
    /// The longest silence that ages are trusted with.
    pub limit: SignedDuration,
}

/// A silence among what the ages reach that is too long to trust them; none when no rule is about age. What lies before `trusted` was looked at by a
/// person.
pub fn silence(
    repository: &Repository,
    rules: &RetentionConfig,
    facts: &Facts,
    trusted: Option<Timestamp>,
) -> Result<Option<Silence>> {
    let ages = || rules.keep_for.into_iter().chain(rules.recovery_window);
    let (Some(shortest), Some(longest)) = (ages().min(), ages().max()) else { return Ok(None) };
    let limit = SignedDuration::try_from((shortest / 2).max(AT_LEAST)).unwrap_or(SignedDuration::MAX);
    // One that was said while the clock was ahead says nothing.
    let trusted = trusted.filter(|trusted| *trusted <= facts.now);
    let since = before(facts.now, longest).max(trusted.unwrap_or(Timestamp::MIN));
    let backups = facts.backups.iter().flat_map(|one| [one.entry.started_at, one.entry.stopped_at]);
    let mut signs: Vec<Timestamp> = backups.chain(trusted).collect();
    if find(&mut signs, facts.now, since, limit).is_none() {
        return Ok(None);
    }
    signs.extend(of_segments(repository)?);
    Ok(find(&mut signs, facts.now, since, limit))
}

/// The first silence that is longer than the limit and does not end before `since`.
fn find(signs: &mut Vec<Timestamp>, now: Timestamp, since: Timestamp, limit: SignedDuration) -> Option<Silence> {
    signs.retain(|sign| *sign < now);
    signs.push(now);
    signs.sort_unstable();
    signs.windows(2).find_map(|pair| match *pair {
        [from, to] if to > since && to.duration_since(from) > limit => Some(Silence { from, to, limit }),
        _ => None,
    })
}

/// The times that the notes of the archived segments have.
fn of_segments(repository: &Repository) -> Result<Vec<Timestamp>> {
    let mut times = Vec::new();
    for timeline in repository.wal_timelines()? {
        for segment in repository.segments(timeline)? {
            match repository.read_wal_note(&segment.to_string()) {
                Ok(Some((note, _))) => {
                    times.push(note.archived_at);
                    times.extend(note.segment.and_then(|summary| summary.last_time));
                }
                Ok(None) => {}
                Err(error) if error.kind == ErrorKind::Damaged => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(times)
}

/// The error about a silence.
pub fn refuse(found: Silence, now: Timestamp) -> Error {
    let said = |duration: SignedDuration| format!("{} days", duration.as_hours() / 24);
    Error::new(
        ErrorKind::Forbidden,
        format!("nothing is expired by age: the repository has nothing from {} to {}", found.from, found.to),
    )
    .detail(format!(
        "That is {}, more than {}, and the clock says {now}. If the clock is ahead, or archiving stood still, what is needed would be taken for old.",
        said(found.to.duration_since(found.from)),
        said(found.limit)
    ))
    .with_hint(
        "Look at the clock, and whether WAL is archived (\"strata check\"). If both are right, say \"strata expire --trust-clock\" once.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silence_is_found_wherever_it_is_and_a_clock_that_was_set_back_makes_none() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let search = |times: &[i64], since: i64| {
            let mut signs: Vec<Timestamp> = times.iter().map(|second| at(*second)).collect();
            let found = find(&mut signs, at(1000), at(since), SignedDuration::from_secs(100));
            found.map(|one| (one.from.as_second(), one.to.as_second()))
        };
        let even: Vec<i64> = (0..=20).map(|n| n * 50).collect();
        assert_eq!(search(&even, 0), None);
        // Up to now, in between, before what the ages reach, and with times in the future.
        assert_eq!(search(&even[..15], 0), Some((700, 1000)));
        let leap: Vec<i64> = even.iter().copied().filter(|second| *second <= 300 || *second >= 700).collect();
        assert_eq!(
            (search(&leap, 0), search(&leap, 699), search(&leap, 700)),
            (Some((300, 700)), Some((300, 700)), None)
        );
        assert_eq!(search(&[&even[..15], &[5000, 90_000]].concat(), 0), Some((700, 1000)));
        // Set back: the times of some are those of others.
        let mut back = even.clone();
        back.iter_mut().skip(10).step_by(2).for_each(|second| *second -= 450);
        assert_eq!(search(&back, 0), None);
        assert_eq!(search(&[], 0), None);
    }
}
