//! The recovery window: from when to when every moment can be recovered, and where the gaps are.
//!
//! It is not computed beside the plans but asked of them. Along a timeline, the plan to a moment depends on the moment only through
//! the backup that it begins with, the fragments that it needs, and the segments up to it. So the way is cut where one of the first two
//! changes: at the end of each backup, and where a fragment that the repository does not have began and ceased to live. Between two
//! cuts a plan can be carried out from the first moment on up to where the archive leads ([`Planner::reach`]). The planner is
//! asked for both ends of each piece, by position and by time; what it refuses is a gap, and its reason is the gap's.
//!
//! Positions and times do not run quite alike. A time can be recovered when it is known that no earlier commit is missing, so the time
//! between the beginning and the end of a backup behind which nothing was archived yet cannot; the positions can. Then a stretch is
//! said as two, which follow each other by position and not by time.

use super::plan::{PlanRequest, Planner};
use super::target::Target;
use super::timeline::Chain;
use super::view::View;
use crate::error::{Error, ErrorKind, Result};
use crate::repository::Repository;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use std::collections::BTreeMap;
use strata_catalog::Lsn;

/// The window along one timeline, from its first ancestor on.
#[derive(Clone, Debug, Serialize)]
pub struct TimelineWindow {
    /// The timeline, as `--timeline` names it.
    pub timeline: u32,
    /// It is the one that is followed when none is named.
    pub current: bool,
    /// Where every moment can be recovered.
    pub intervals: Vec<Interval>,
    /// Where none can.
    pub gaps: Vec<Gap>,
}

/// A stretch of a timeline of which every moment can be recovered, its ends included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Interval {
    /// The first position.
    pub from_lsn: Lsn,
    /// The last one.
    pub to_lsn: Lsn,
    /// The first time; none when no time can be recovered here, though positions can.
    pub from_time: Option<Timestamp>,
    /// The last one.
    pub to_time: Option<Timestamp>,
    /// How many backups it has.
    pub backups: u64,
}

/// A stretch behind a backup of which no moment can be recovered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// The first position.
    pub from_lsn: Lsn,
    /// The last one; none when it has no end yet.
    pub to_lsn: Option<Lsn>,
    /// What a plan says.
    pub why: String,
}

/// A cut of the way.
#[derive(Clone, Copy, Debug)]
struct Cut {
    lsn: Lsn,
    time: Timestamp,
    backup: Option<usize>,
}

/// The windows of all timelines.
pub fn windows(repository: &Repository) -> Result<Vec<TimelineWindow>> {
    let view = View::open(repository)?;
    let timelines = view.timelines()?;
    if view.backups.is_empty() {
        return Ok(Vec::new());
    }
    view.list_fragments()?;
    let missing = Missing::find(&view)?;
    let mut all = Vec::new();
    for timeline in &timelines {
        let current = timelines.last() == Some(timeline);
        let window = match Chain::read(repository, *timeline) {
            Ok(Some(chain)) => along(&view, *timeline, &chain, &missing)?,
            Ok(None) => unreadable(*timeline, format!("the history of timeline {timeline} is not in the archive")),
            Err(error) if error.kind == ErrorKind::Damaged => unreadable(*timeline, error.message),
            Err(error) => return Err(error),
        };
        all.push(TimelineWindow { current, ..window });
    }
    Ok(all)
}

fn unreadable(timeline: u32, why: String) -> TimelineWindow {
    let gap = Gap { from_lsn: Lsn(0), to_lsn: None, why };
    TimelineWindow { timeline, current: false, intervals: Vec::new(), gaps: vec![gap] }
}

/// The moments at which fragments that the repository does not have began and ceased to live.
struct Missing(Vec<(Lsn, Timestamp)>);

impl Missing {
    fn find(view: &View) -> Result<Self> {
        let mut moments: BTreeMap<Lsn, Timestamp> = BTreeMap::new();
        for entry in view.log()? {
            if !view.has_fragment(&entry.fragment.hash)? {
                moments.insert(entry.fragment.created_lsn, entry.fragment.created_at);
                moments.extend(entry.dropped.iter().map(|dropped| (dropped.lsn, dropped.at)));
            }
        }
        Ok(Self(moments.into_iter().collect()))
    }
}

fn along(view: &View, timeline: u32, chain: &Chain, missing: &Missing) -> Result<TimelineWindow> {
    let mut cuts: Vec<Cut> = view
        .backups
        .iter()
        .enumerate()
        .filter(|(_, backup)| chain.contains(backup.timeline, backup.stop_lsn))
        .map(|(at, backup)| Cut { lsn: backup.stop_lsn, time: backup.stopped_at, backup: Some(at) })
        .collect();
    cuts.sort_by_key(|cut| cut.lsn);
    let mut window = TimelineWindow { timeline, current: false, intervals: Vec::new(), gaps: Vec::new() };
    let Some(first) = cuts.first().copied() else { return Ok(window) };
    let later = missing.0.iter().filter(|(lsn, _)| *lsn > first.lsn);
    cuts.extend(later.map(|(lsn, time)| Cut { lsn: *lsn, time: *time, backup: None }));
    cuts.sort_by_key(|cut| cut.lsn);
    let mut backup = first.backup;
    for (at, cut) in cuts.iter().enumerate() {
        backup = cut.backup.or(backup);
        let Some(entry) = backup.and_then(|at| view.backups.get(at)) else { continue };
        let ask = |target: Target| -> std::result::Result<(), Error> {
            let request = PlanRequest { target, timeline: Some(timeline), backup: None, exclusive: false };
            Planner { view, request: &request, timeline, chain }.plan()?.require_complete()
        };
        let any = PlanRequest { target: Target::Latest, timeline: Some(timeline), backup: None, exclusive: false };
        let reach = Planner { view, request: &any, timeline, chain }.reach(entry)?;
        let next = cuts.get(at + 1);
        let limit = next.map(|next| Lsn(next.lsn.0.saturating_sub(1)));
        let to_lsn = match (reach.lsn, limit) {
            (Some(lsn), Some(limit)) => Some(lsn.min(limit)),
            (lsn, None) => lsn,
            (None, Some(_)) => None,
        };
        let found = match to_lsn.filter(|to| *to >= cut.lsn) {
            Some(to) => refused(ask(Target::Lsn(cut.lsn)))?
                .map_or_else(|| refused(ask(Target::Lsn(to))), |why| Ok(Some(why)))?
                .map_or(Ok(to), Err),
            None => match refused(ask(Target::Lsn(cut.lsn)))? {
                Some(why) => Err(why),
                None => Ok(cut.lsn),
            },
        };
        match found {
            Ok(to_lsn) => {
                let limit = next.map(|next| next.time - SignedDuration::from_micros(1));
                let to_time = reach.time.map(|time| limit.map_or(time, |limit| time.min(limit)));
                let to_time = to_time.filter(|to| *to >= cut.time);
                let times = match to_time {
                    Some(to)
                        if refused(ask(Target::Time(cut.time)))?.is_none()
                            && refused(ask(Target::Time(to)))?.is_none() =>
                    {
                        Some((cut.time, to))
                    }
                    _ => None,
                };
                window.add(Interval {
                    from_lsn: cut.lsn,
                    to_lsn,
                    from_time: times.map(|times| times.0),
                    to_time: times.map(|times| times.1),
                    backups: u64::from(cut.backup.is_some()),
                });
                // The archive does not lead on to the next cut.
                let behind = Lsn(to_lsn.0.saturating_add(1));
                if limit_above(next, to_lsn)
                    && let Some(why) = refused(ask(Target::Lsn(behind)))?
                {
                    window.gaps.push(Gap {
                        from_lsn: behind,
                        to_lsn: next.map(|next| Lsn(next.lsn.0.saturating_sub(1))),
                        why,
                    });
                } else if next.is_none()
                    && let Some(why) = refused(ask(Target::Latest))?
                {
                    window.gaps.push(Gap { from_lsn: behind, to_lsn: None, why });
                }
            }
            Err(why) => window.gaps.push(Gap { from_lsn: cut.lsn, to_lsn: limit, why }),
        }
    }
    Ok(window)
}

fn limit_above(next: Option<&Cut>, to: Lsn) -> bool {
    next.is_some_and(|next| next.lsn.0 > to.0.saturating_add(1))
}

/// Why a plan was refused; none when it can be carried out. What keeps anything from being read is an error.
fn refused(plan: std::result::Result<(), Error>) -> Result<Option<String>> {
    match plan {
        Ok(()) => Ok(None),
        Err(error) if error.kind.is_of_place() || error.kind == ErrorKind::Config => Err(error),
        Err(error) => Ok(Some(error.message)),
    }
}

impl TimelineWindow {
    /// Adds an interval, as a part of the one before when nothing lies between them.
    fn add(&mut self, next: Interval) {
        let micro = SignedDuration::from_micros(1);
        if let Some(last) = self.intervals.last_mut() {
            let by_lsn = last.to_lsn.0.saturating_add(1) == next.from_lsn.0;
            let by_time = match (last.to_time, next.from_time) {
                (Some(to), Some(from)) => to + micro == from,
                (None, None) => true,
                _ => false,
            };
            if by_lsn && by_time {
                last.to_lsn = next.to_lsn;
                last.to_time = next.to_time;
                last.backups += next.backups;
                return;
            }
        }
        self.intervals.push(next);
    }
}

#[cfg(test)]
mod tests;
