//! Reads what the decision needs from the repository.

use super::decide::{BackupFact, Decision, Facts, TimelineFact};
use crate::error::{ErrorKind, Result};
use crate::recovery::plan::{self, PlanRequest};
use crate::recovery::target::Target;
use crate::recovery::timeline::Chain;
use crate::repository::catalog::BackupEntry;
use crate::repository::fragments::FragmentLogEntry;
use crate::repository::storage::Listed;
use crate::repository::{Repository, fsio};
use crate::wal::name::{Segment, WalName};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use strata_catalog::names;

/// A fragment without an entry in any log is kept when it is younger than the oldest kept backup, or not older than it by more
/// than this.
const UNLOGGED: Duration = Duration::from_secs(24 * 3600);

/// The backups and timelines of the repository.
pub fn facts(repository: &Repository, now: Timestamp) -> Result<Facts> {
    let (entries, damaged) = repository.backups()?;
    if let Some(error) = damaged.into_iter().next() {
        return Err(error.with_hint(
            "What a damaged entry of the catalog needs is not known, so nothing is expired. Put it back from another copy of the repository, or remove it by hand.",
        ));
    }
    let segment_size = match (repository.identity()?, entries.first()) {
        (Some(identity), _) => u64::from(identity.segment_size),
        (None, Some(entry)) => u64::from(entry.segment_size),
        (None, None) => 16 << 20,
    };
    let mut timelines = Vec::new();
    let known: BTreeSet<u32> =
        repository.wal_timelines()?.into_iter().chain(entries.iter().map(|entry| entry.timeline)).collect();
    for timeline in known {
        let chain = match Chain::read(repository, timeline) {
            Ok(chain) => chain,
            Err(error) if error.kind == ErrorKind::Damaged => None,
            Err(error) => return Err(error),
        };
        timelines.push(TimelineFact { timeline, chain, last_activity: last_activity(repository, timeline, &entries)? });
    }
    let mut backups = Vec::new();
    for entry in entries {
        let request =
            PlanRequest { target: Target::Backup(entry.id.clone()), timeline: None, backup: None, exclusive: false };
        let planned = plan::plan(repository, &request).and_then(|plan| plan.require_complete());
        let unusable = match planned {
            Ok(()) => None,
            // A repository that cannot be reached says nothing about what is in it.
            Err(error) if error.kind.is_of_place() => return Err(error),
            Err(error) => Some(error.message),
        };
        backups.push(BackupFact { entry, unusable });
    }
    Ok(Facts { now, segment_size, backups, timelines })
}

/// When something happened on a timeline last; none when that cannot be told.
fn last_activity(repository: &Repository, timeline: u32, entries: &[BackupEntry]) -> Result<Option<Timestamp>> {
    let mut last = entries.iter().filter(|entry| entry.timeline == timeline).map(|entry| entry.stopped_at).max();
    if let Some(segment) = repository.segments(timeline)?.last() {
        match repository.read_wal_note(&segment.to_string()) {
            Ok(Some((note, _))) => {
                last = last.max(Some(note.archived_at)).max(note.segment.and_then(|summary| summary.last_time));
            }
            _ => return Ok(None),
        }
    }
    Ok(last)
}

/// A file of the WAL archive.
#[derive(Clone, Debug)]
pub struct WalFile {
    /// Its name in `pg_wal`.
    pub name: String,
    /// What kind of file.
    pub kind: WalName,
    /// Where it is.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
}

/// The archive's files, with names that PostgreSQL gives.
pub fn wal_files(repository: &Repository) -> Result<Vec<WalFile>> {
    let mut files = Vec::new();
    for Listed { path, bytes } in repository.storage().walk(&repository.wal_dir())? {
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".zst"));
        let Some((name, kind)) = name.and_then(|name| Some((name.to_owned(), WalName::parse(name)?))) else { continue };
        // One in another place than its own is nothing that is known.
        if repository.wal_path(&name, kind) == path {
            files.push(WalFile { name, kind, path, bytes });
        }
    }
    Ok(files)
}

/// The verdict on the fragments.
#[derive(Clone, Debug, Default)]
pub struct FragmentVerdict {
    /// Entries of the member's log that go.
    pub entries: Vec<PathBuf>,
    /// Fragments that go, with their sizes.
    pub remove: BTreeMap<String, u64>,
    /// Those that stay, by the reason.
    pub keep: BTreeMap<String, BTreeMap<String, u64>>,
    /// Why no fragment goes.
    pub all_kept: Option<String>,
}

/// Decides about the fragments: what the manifests of kept backups name, what the log says of kept moments, and what other members
/// of the system name. `released` are those whose entries an interrupted expire removed.
pub fn fragments(
    repository: &Repository,
    facts: &Facts,
    decision: &Decision,
    released: &BTreeSet<String>,
    store: Option<&Path>,
) -> Result<FragmentVerdict> {
    let mut verdict = FragmentVerdict::default();
    let mut why: HashMap<String, String> = HashMap::new();
    for fact in facts.backups.iter().filter(|fact| decision.backups.contains_key(&fact.entry.id)) {
        match repository.outline(&fact.entry.id, &fact.entry.manifest_blake3) {
            Ok(manifest) => {
                for fragment in manifest.fragments {
                    why.entry(fragment.hash).or_insert_with(|| format!("backup {} names it", fact.entry.id));
                }
            }
            Err(error) => {
                verdict.all_kept.get_or_insert(error.message);
            }
        }
    }
    let others = others(repository)?;
    match named_by_others(repository, &others) {
        Ok(named) => {
            for (hash, member) in named {
                why.entry(hash).or_insert_with(|| format!("member \"{member}\" names it"));
            }
        }
        Err(error) => {
            verdict.all_kept.get_or_insert(error.message);
        }
    }
    // Whatever is not known to go must survive: a damaged entry keeps what its name says.
    let mut logged: BTreeSet<String> = BTreeSet::new();
    for path in repository.fragment_log_paths()? {
        let keep = match repository.storage().read_sealed_required::<FragmentLogEntry>(&path) {
            Ok(entry) => {
                logged.insert(entry.fragment.hash.clone());
                decision.why_entry(&entry).map(|text| (entry.fragment.hash, text))
            }
            Err(error) if error.kind == ErrorKind::Damaged => {
                hash_of(&path).map(|hash| (hash, "its entry in the fragment log is damaged".to_owned()))
            }
            Err(error) => return Err(error),
        };
        match keep {
            Some((hash, text)) => {
                why.entry(hash).or_insert(text);
            }
            None if hash_of(&path).is_some() => verdict.entries.push(path),
            None => {}
        }
    }
    let oldest = facts.backups.iter().filter(|fact| decision.backups.contains_key(&fact.entry.id));
    let oldest = oldest.map(|fact| fact.entry.started_at).min();
    for (hash, bytes) in repository.fragments()? {
        let reason = match (why.remove(&hash), &verdict.all_kept) {
            (Some(why), _) => Some(why),
            (None, Some(_)) => Some("it is not known what needs it".to_owned()),
            (None, None) if logged.contains(&hash) || released.contains(&hash) => None,
            (None, None) => unlogged(repository, &hash, oldest, others.is_empty(), store)?,
        };
        match reason {
            Some(reason) => verdict.keep.entry(reason).or_default().insert(hash, bytes),
            None => verdict.remove.insert(hash, bytes),
        };
    }
    if verdict.all_kept.is_some() {
        verdict.entries.clear();
    }
    Ok(verdict)
}

/// Why a fragment that no log and no manifest names is kept; none when it goes. A file is in the repository before its row is
/// committed, and a sweep of the store spares what the log does not have yet: so one that is old, and gone from the store, never
/// had a row that was committed, or belongs to moments that are not kept.
fn unlogged(
    repository: &Repository,
    hash: &str,
    oldest: Option<Timestamp>,
    alone: bool,
    store: Option<&Path>,
) -> Result<Option<String>> {
    let path = repository.fragment_path(hash)?;
    // One that is gone meanwhile goes like any other.
    let modified = repository.storage().modified(&path)?.unwrap_or(SystemTime::UNIX_EPOCH);
    let old = oldest
        .is_some_and(|oldest| modified.checked_add(UNLOGGED).is_some_and(|until| until < SystemTime::from(oldest)));
    Ok(match store {
        _ if !old => Some("no log names it yet, and it is not older than what is kept".to_owned()),
        _ if !alone => Some("no log names it, and the system has other members".to_owned()),
        None => Some("no log names it, and the store is not known".to_owned()),
        Some(store) if in_store(store, hash)? => Some("no log names it, and the store has it".to_owned()),
        Some(_) => None,
    })
}

fn in_store(store: &Path, hash: &str) -> Result<bool> {
    for database in fsio::list(store)?.iter().filter(|name| name.bytes().all(|b| b.is_ascii_digit())) {
        let below = database.parse().ok().and_then(|oid| names::fragment_relative_path(oid, hash));
        if below.is_some_and(|below| store.join(below).exists()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The hash in the name of an entry of the fragment log.
pub fn hash_of(path: &Path) -> Option<String> {
    let (hash, _) = path.file_name()?.to_str()?.split_once('-')?;
    names::is_fragment_hash(hash).then(|| hash.to_owned())
}

/// The other members of the system.
pub fn others(repository: &Repository) -> Result<Vec<Repository>> {
    let names = repository.storage().folders(&repository.system_dir())?;
    let own = repository.member();
    Ok(names
        .iter()
        .filter(|name| *name != own && !matches!(name.as_str(), "fragments" | "objects"))
        .map(|name| repository.of_member(name))
        .collect())
}

/// The fragments that other members' logs and manifests name.
fn named_by_others(repository: &Repository, others: &[Repository]) -> Result<BTreeMap<String, String>> {
    let mut named = BTreeMap::new();
    for other in others {
        debug_assert_eq!(other.system(), repository.system());
        for hash in other.fragment_log_paths()?.iter().filter_map(|path| hash_of(path)) {
            named.entry(hash).or_insert_with(|| other.member().to_owned());
        }
        let (entries, damaged) = other.backups()?;
        if let Some(error) = damaged.into_iter().next() {
            return Err(error);
        }
        for entry in entries {
            for fragment in other.outline(&entry.id, &entry.manifest_blake3)?.fragments {
                named.entry(fragment.hash).or_insert_with(|| other.member().to_owned());
            }
        }
    }
    Ok(named)
}

/// The numbers of segments that go, as runs.
pub fn runs(files: &[WalFile], segment_size: u64) -> Vec<crate::repository::expired::ExpiredWal> {
    let segment = |file: &WalFile| match file.kind {
        WalName::Segment(segment) => Some(segment),
        _ => None,
    };
    let numbers = files.iter().filter_map(segment).map(|segment: Segment| {
        let number = segment.number(segment_size);
        crate::repository::expired::ExpiredWal { timeline: segment.timeline, from: number, to: number }
    });
    let size = u32::try_from(segment_size).unwrap_or(0);
    let mut all = crate::repository::expired::Expired::nothing(Timestamp::UNIX_EPOCH, size);
    all.add(numbers);
    all.wal
}
