//! The decision: which backups, WAL and fragments are kept, and why. Nothing here reads or writes a file.
//!
//! A *way* is a timeline that is kept, from the start of the backup at which its kept moments begin. Everything that lies on a way
//! is kept: its backups, all WAL from its start on, and every fragment that lived at a moment behind its start. A backup that is kept
//! and lies on no way keeps the WAL from its start to its stop, and its fragments. A backup that a third-party tool holds is always kept, at least by itself: its objects
//! go by other means.

use crate::config::RetentionConfig;
use crate::recovery::timeline::Chain;
use crate::repository::catalog::BackupEntry;
use crate::repository::fragments::FragmentLogEntry;
use crate::wal::name::{Segment, WalName};
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use strata_catalog::Lsn;

/// A backup, as far as the decision cares.
#[derive(Clone, Debug)]
pub struct BackupFact {
    /// Its entry in the catalog.
    pub entry: BackupEntry,
    /// Why it cannot be recovered; none when it can.
    pub unusable: Option<String>,
}

/// A timeline.
#[derive(Clone, Debug)]
pub struct TimelineFact {
    /// The timeline.
    pub timeline: u32,
    /// The way to it; none when its history is not known.
    pub chain: Option<Chain>,
    /// When something happened on it last; none when that is not known.
    pub last_activity: Option<Timestamp>,
}

/// Everything that the decision is made from.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The time.
    pub now: Timestamp,
    /// The size of WAL segments.
    pub segment_size: u64,
    /// The backups in the catalog.
    pub backups: Vec<BackupFact>,
    /// The timelines of the archive and of the backups.
    pub timelines: Vec<TimelineFact>,
}

/// A timeline that is kept from a backup on.
#[derive(Clone, Debug)]
pub struct Way {
    /// The timeline.
    pub timeline: u32,
    /// The way to it; none when its history is not known, and so everything on it is kept.
    pub chain: Option<Chain>,
    /// The backup where its kept moments begin; none when everything on it is kept.
    pub backup: Option<String>,
    /// Where that backup starts.
    pub start: Lsn,
}

/// A run of segments that is kept, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeptWal {
    /// The timeline.
    pub timeline: u32,
    /// The number of the first segment.
    pub from: u64,
    /// The number of the last one; none when it has no end.
    pub to: Option<u64>,
    /// Why.
    pub why: String,
}

/// What is kept.
#[derive(Clone, Debug, Default)]
pub struct Decision {
    /// The backups that are kept, each with the reasons.
    pub backups: BTreeMap<String, Vec<String>>,
    /// The timelines that are kept.
    pub ways: Vec<Way>,
    /// The WAL that is kept.
    pub wal: Vec<KeptWal>,
    /// History files from this timeline on are kept.
    pub first_timeline: u32,
    /// The newest timeline.
    pub newest: u32,
}

pub(super) fn before(now: Timestamp, age: Duration) -> Timestamp {
    let age = SignedDuration::try_from(age).unwrap_or(SignedDuration::MAX);
    now.checked_sub(age).unwrap_or(Timestamp::MIN)
}

/// Decides.
pub fn decide(rules: &RetentionConfig, facts: &Facts) -> Decision {
    let newest = facts.timelines.iter().map(|one| one.timeline).max().unwrap_or(1);
    let mut decider = Decider { facts, newest, decision: Decision { newest, ..Decision::default() } };
    decider.rules(rules);
    match rules.recovery_window {
        Some(window) => decider.window(before(facts.now, window)),
        None => decider.continuous(),
    }
    decider.held_by_tools();
    decider.finish()
}

struct Decider<'a> {
    facts: &'a Facts,
    newest: u32,
    decision: Decision,
}

impl<'a> Decider<'a> {
    fn keep(&mut self, entry: &BackupEntry, why: impl Into<String>) {
        self.decision.backups.entry(entry.id.clone()).or_default().push(why.into());
    }

    /// What a third-party tool holds goes by "strata tool forget" alone. What no rule keeps stays by itself.
    fn held_by_tools(&mut self) {
        for one in &self.facts.backups {
            if let Some(tool) = &one.entry.tool
                && !self.decision.backups.contains_key(&one.entry.id)
            {
                self.keep(&one.entry, format!("the tool {} holds it: \"strata tool forget\" removes it", tool.name));
            }
        }
    }

    /// The backups on the way to a timeline, oldest first.
    fn on_way(&self, chain: &Chain) -> Vec<&'a BackupFact> {
        let on_way = |one: &&BackupFact| chain.contains(one.entry.timeline, one.entry.stop_lsn);
        let mut found: Vec<&BackupFact> = self.facts.backups.iter().filter(on_way).collect();
        found.sort_by_key(|one| one.entry.stop_lsn);
        found
    }

    /// What the rules by count and age keep.
    fn rules(&mut self, rules: &RetentionConfig) {
        let newest_way: Vec<&BackupFact> = match self.timeline(self.newest).and_then(|one| one.chain.as_ref()) {
            Some(chain) => self.on_way(chain),
            None => Vec::new(),
        };
        if let Some(count) = rules.keep_backups {
            let mut by_time: Vec<&BackupFact> = self.facts.backups.iter().collect();
            by_time.sort_by_key(|one| (one.entry.stopped_at, one.entry.stop_lsn));
            for all in [&by_time, &newest_way] {
                let usable: Vec<&&BackupFact> = all.iter().rev().filter(|one| one.unusable.is_none()).collect();
                for (at, one) in usable.iter().take(count as usize).enumerate() {
                    let why = format!("keep_backups: number {} of {count}", at + 1);
                    if !self.decision.backups.get(&one.entry.id).is_some_and(|whys| whys.contains(&why)) {
                        self.keep(&one.entry, why);
                    }
                }
                // One that cannot be recovered does not count, and goes when those around it go.
                let oldest = usable.iter().take(count as usize).next_back().map(|one| one.entry.stopped_at);
                for one in all.iter().filter(|one| one.unusable.is_some()) {
                    if oldest.is_none_or(|oldest| one.entry.stopped_at >= oldest)
                        && !self.decision.backups.contains_key(&one.entry.id)
                    {
                        self.keep(&one.entry, "it cannot be recovered, and an older one is kept");
                    }
                }
            }
        }
        if let Some(age) = rules.keep_for {
            let since = before(self.facts.now, age);
            for one in self.facts.backups.iter().filter(|one| one.entry.stopped_at >= since) {
                self.keep(&one.entry, "keep_for: it is not older");
            }
        }
        // Rules by age alone would remove the last backup of a server that is not backed up any more.
        if let Some(last) = newest_way.iter().rev().find(|one| one.unusable.is_none()) {
            self.keep(&last.entry, "the newest one that can be recovered");
        } else {
            for one in &self.facts.backups {
                self.keep(&one.entry, "no backup leads to the newest timeline");
            }
        }
    }

    fn timeline(&self, timeline: u32) -> Option<&'a TimelineFact> {
        self.facts.timelines.iter().find(|one| one.timeline == timeline)
    }

    /// Keeps every moment from `since` on, on every timeline that has any.
    fn window(&mut self, since: Timestamp) {
        for one in &self.facts.timelines {
            let alive = one.timeline == self.newest || one.last_activity.is_none_or(|last| last >= since);
            if !self.unknown(one) && alive {
                let Some(chain) = &one.chain else { continue };
                let on_way = self.on_way(chain);
                let begins = |fact: &&&BackupFact| fact.unusable.is_none() && fact.entry.stopped_at <= since;
                let anchor = on_way.iter().rev().find(begins).or(on_way.first()).copied();
                let Some(anchor) = anchor else {
                    self.all_of(one, "no backup leads to this timeline");
                    continue;
                };
                self.way(one, &anchor.entry);
                for fact in on_way.iter().filter(|fact| fact.entry.stop_lsn >= anchor.entry.stop_lsn) {
                    let why = match fact.entry.id == anchor.entry.id {
                        true => format!("recovery_window: on timeline {} it begins here", one.timeline),
                        false => format!("recovery_window: on timeline {} it is inside", one.timeline),
                    };
                    self.keep(&fact.entry, why);
                }
            }
        }
    }

    /// Keeps every moment from the oldest kept backup on, on every timeline that a kept backup leads to.
    fn continuous(&mut self) {
        for one in &self.facts.timelines {
            if self.unknown(one) {
                continue;
            }
            let Some(chain) = &one.chain else { continue };
            let on_way = self.on_way(chain);
            let first = on_way.iter().find(|fact| self.decision.backups.contains_key(&fact.entry.id)).copied();
            match first {
                Some(first) => self.way(one, &first.entry),
                None if one.timeline == self.newest => self.all_of(one, "no backup leads to this timeline"),
                None => {}
            }
        }
    }

    /// Keeps everything of a timeline whose history nobody knows.
    fn unknown(&mut self, one: &TimelineFact) -> bool {
        if one.chain.is_some() {
            return false;
        }
        self.all_of(one, "the history of this timeline is missing or damaged");
        for fact in self.facts.backups.iter().filter(|fact| fact.entry.timeline == one.timeline) {
            self.keep(&fact.entry, format!("the history of timeline {} is missing or damaged", one.timeline));
        }
        true
    }

    fn all_of(&mut self, one: &TimelineFact, why: &str) {
        self.decision.ways.push(Way { timeline: one.timeline, chain: one.chain.clone(), backup: None, start: Lsn(0) });
        self.decision.wal.push(KeptWal { timeline: one.timeline, from: 0, to: None, why: why.to_owned() });
    }

    fn way(&mut self, one: &TimelineFact, first: &BackupEntry) {
        let Some(chain) = &one.chain else { return };
        let from = first.start_lsn.0 / self.facts.segment_size;
        let begin = chain.stretch(first.timeline).map_or(Lsn(0), |stretch| stretch.begin);
        for stretch in chain.stretches().iter().filter(|stretch| stretch.begin >= begin) {
            self.decision.wal.push(KeptWal {
                timeline: stretch.timeline,
                from: from.max(stretch.begin.0 / self.facts.segment_size),
                to: stretch.end.map(|end| end.0 / self.facts.segment_size),
                why: format!("every moment of timeline {} behind backup {}", one.timeline, first.id),
            });
        }
        self.decision.ways.push(Way {
            timeline: one.timeline,
            chain: one.chain.clone(),
            backup: Some(first.id.clone()),
            start: first.start_lsn,
        });
    }

    fn finish(mut self) -> Decision {
        for fact in &self.facts.backups {
            let entry = &fact.entry;
            if !self.decision.backups.contains_key(&entry.id) {
                continue;
            }
            let number = |name: &str| Segment::parse(name).map(|segment| segment.number(self.facts.segment_size));
            if let (Some(from), Some(to)) = (number(&entry.start_wal), number(&entry.stop_wal)) {
                let own = KeptWal {
                    timeline: entry.timeline,
                    from,
                    to: Some(to),
                    why: format!("backup {} needs it", entry.id),
                };
                self.decision.wal.push(own);
            }
        }
        self.decision.wal.sort();
        self.decision.wal.dedup();
        self.decision.first_timeline = self.decision.wal.iter().map(|kept| kept.timeline).min().unwrap_or(0);
        self.decision
    }
}

impl Decision {
    /// Why a file of the archive is kept; none when it goes.
    pub fn why_wal(&self, name: WalName, segment_size: u64) -> Option<&str> {
        match name {
            WalName::Segment(segment) | WalName::Partial(segment) | WalName::BackupHistory(segment) => {
                let number = segment.number(segment_size);
                let here = |kept: &&KeptWal| {
                    kept.timeline == segment.timeline && kept.from <= number && kept.to.is_none_or(|to| number <= to)
                };
                self.wal.iter().find(here).map(|kept| kept.why.as_str())
            }
            // They are small, and PostgreSQL chooses the number of a new timeline by those that it finds.
            WalName::History(timeline) => {
                (timeline >= self.first_timeline).then_some("a timeline that is kept, or one behind it")
            }
        }
    }

    /// Why an entry of the fragment log is kept; none when no kept moment needs it. Fragments that the manifests of kept backups
    /// name are not looked at here.
    pub fn why_entry(&self, entry: &FragmentLogEntry) -> Option<String> {
        let newest = self.ways.iter().find(|way| way.timeline == self.newest).and_then(|way| way.chain.as_ref());
        // On a branch that was left nobody sees any more what goes there: then its kept moments decide, like those of any other.
        let left = newest.is_some_and(|newest| !entry.on(newest)) && entry.timeline < self.newest;
        if !left && entry.dropped.is_empty() {
            return Some("it is in use, as far as the log knows".to_owned());
        }
        let needs = |way: &&Way| match &way.chain {
            None => true,
            // As a plan has it.
            Some(chain) => entry.on(chain) && entry.dropped_on(chain).is_none_or(|dropped| dropped.lsn > way.start),
        };
        self.ways.iter().find(needs).map(|way| match &way.backup {
            Some(backup) => format!("moments of timeline {} behind backup {backup}", way.timeline),
            None => format!("timeline {} is kept whole", way.timeline),
        })
    }

    /// The ids of the backups that go.
    pub fn removed<'a>(&self, facts: &'a Facts) -> BTreeSet<&'a str> {
        let ids = facts.backups.iter().map(|fact| fact.entry.id.as_str());
        ids.filter(|id| !self.backups.contains_key(*id)).collect()
    }
}
