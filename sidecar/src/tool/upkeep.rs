//! Keeping what a tool holds in step with what the catalog needs: lists, and forgetting.
//!
//! An object goes when nobody needs it: one of hot data when its backup is not in the catalog, one of fragments when no
//! manifest of any backup of the system and no entry of a fragment log that a recovery can reach names a fragment in it, and whatever
//! a dead process left as `started`. The tool forgets it first, then its document is removed; whoever dies in between has
//! the tool asked again.
//!
//! **Nobody relies on what is about to go.** What is needed is decided under the locks that an expire takes, in the same order (see
//! [`crate::retention`]): the member's backup lock, which the caller holds, its lock of recoveries, the same locks of the other members, the lock of the
//! fragments, and last the lock of the objects, which whoever sends takes behind a share of the lock of the fragments. Somebody who sends may take
//! minutes, so that last one is not waited for with the others held. Under all of them the objects of fragments that go are marked `started`, durably:
//! from then on nobody finds their fragments in the repository, and who needs one sends it again. Then the lock of the fragments is
//! given up, since forgetting may take minutes, and moves wait for it. Who dies then leaves what a dead sender leaves.

use super::Tool;
use super::run::{self, Outcome};
use crate::config::tool::Operation;
use crate::error::{Error, ErrorKind, Result};
use crate::recovery::timeline::Chain;
use crate::repository::Repository;
use crate::repository::catalog::BackupEntry;
use crate::repository::fragments::{Dropped, FragmentLogEntry};
use crate::repository::lock::Lock;
use crate::repository::objects::{ObjectKind, ObjectState, StoredObject};
use crate::retention::{self, gather};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use std::collections::{BTreeSet, HashSet};
use std::time::{Duration, Instant};
use strata_catalog::Lsn;

/// An object of fragments stays for so long after it was stored, whatever names them: a fragment goes through the tool before its
/// transaction commits, and its entry in the log comes after that.
const FRESH: SignedDuration = SignedDuration::from_hours(24);
/// How long others that send are waited for.
const SENDERS: Duration = Duration::from_secs(600);

/// A line of the tool's list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// The object's name, when the list has names.
    pub name: Option<String>,
    /// The tool's own identifier, when the list has them.
    pub identifier: Option<String>,
}

/// What the tool says it holds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Listing(pub Vec<Listed>);

impl Listing {
    /// The line of an object: by its name where the list has names, else by its identifier.
    pub fn find(&self, object: &StoredObject) -> Option<&Listed> {
        self.0.iter().find(|listed| match (&listed.name, &listed.identifier, &object.identifier) {
            (Some(name), ..) => *name == object.name,
            (None, Some(listed), Some(known)) => listed == known,
            _ => false,
        })
    }
}

/// What was forgotten.
#[derive(Debug, Default, Serialize)]
pub struct Forgotten {
    /// Names of objects that the tool has forgotten.
    pub objects: Vec<String>,
    /// Bytes that had gone through the pipe for them.
    pub bytes: u64,
    /// Objects of fragments that stay because other backups, or a fragment log, need them.
    pub kept: u64,
}

impl Tool {
    /// What the tool says it holds. None when it has no command for that.
    pub fn list(&self) -> Result<Option<Listing>> {
        let Some(pattern) = self.spec.command(Operation::List).and_then(|command| command.objects.clone()) else {
            return Ok(None);
        };
        let Some(Outcome { captured, .. }) = self.plain(Operation::List)? else { return Ok(None) };
        let text = String::from_utf8_lossy(&captured);
        let group =
            |captures: &regex::Captures<'_>, name: &str| captures.name(name).map(|found| found.as_str().to_owned());
        let all = pattern
            .captures_iter(&text)
            .map(|captures| Listed { name: group(&captures, "name"), identifier: group(&captures, "identifier") });
        Ok(Some(Listing(all.collect())))
    }

    /// Has the tool forget objects, and removes their documents. What it cannot forget stays documented; the first error comes back
    /// beside what was forgotten.
    pub fn forget(&self, repository: &Repository, objects: &[StoredObject], prune: bool) -> (Forgotten, Option<Error>) {
        let mut done = Forgotten::default();
        if objects.is_empty() {
            return (done, None);
        }
        let mut listing = None;
        let begun = (|| {
            self.command(Operation::Forget)?;
            self.plain(Operation::Prepare)?;
            if objects.iter().any(|object| object.identifier.is_none()) {
                listing = self.list()?;
            }
            Ok(())
        })();
        if let Err(error) = begun {
            return (done, Some(error));
        }
        let mut first = None;
        for object in objects {
            match self.forget_one(repository, object, listing.as_ref()) {
                Ok(()) => {
                    done.bytes += object.bytes;
                    done.objects.push(object.name.clone());
                }
                Err(error) => drop(first.get_or_insert(error)),
            }
        }
        if prune
            && !done.objects.is_empty()
            && let Err(error) = self.plain(Operation::Prune)
        {
            first.get_or_insert(error);
        }
        (done, first)
    }

    fn forget_one(&self, repository: &Repository, object: &StoredObject, listing: Option<&Listing>) -> Result<()> {
        self.require_own(object)?;
        let mut object = object.clone();
        let by_identifier = self.command(Operation::Forget)?.words.iter().any(|word| word.uses("identifier"));
        let listed = listing.and_then(|listing| listing.find(&object));
        if object.identifier.is_none() {
            object.identifier = listed.and_then(|listed| listed.identifier.clone());
        }
        let unknown = object.state == ObjectState::Started && object.identifier.is_none() && by_identifier;
        if unknown && listing.is_some() {
            // It was never stored.
            return repository.remove_object(&object);
        }
        match self.start_stored(Operation::Forget, &object)?.finish() {
            Ok(_) => {}
            // There may be nothing of what was begun.
            Err(_) if object.state == ObjectState::Started && listing.is_some() && listed.is_none() => {}
            Err(error) => return Err(error),
        }
        repository.remove_object(&object)
    }
}

/// Has the tool forget what interrupted or failed backups of this member left. Call it under the backup lock, before a new
/// backup is begun, or after one has failed. What cannot be forgotten now is said and tried the next time.
pub fn clear(repository: &Repository, tool: &Tool) -> Result<()> {
    let complete: HashSet<String> = repository.backup_ids()?.into_iter().collect();
    // Whoever sends fragments just now has documents that say "started".
    let lock = match repository.lock_objects(None) {
        Ok(lock) => Some(lock),
        Err(error) if error.kind == ErrorKind::Locked => None,
        Err(error) => return Err(error),
    };
    let (objects, damaged) = repository.objects()?;
    for error in damaged {
        tracing::warn!("left alone: {error}");
    }
    let left: Vec<StoredObject> = objects
        .into_iter()
        .filter(|object| object.tool == tool.name())
        .filter(|object| match object.kind {
            ObjectKind::Fragments => object.state == ObjectState::Started && lock.is_some(),
            _ => object.member == repository.member() && !complete.contains(&object.backup),
        })
        .collect();
    if left.is_empty() || tool.spec().command(Operation::Forget).is_none() {
        return Ok(());
    }
    let (done, error) = tool.forget(repository, &left, false);
    for name in &done.objects {
        tracing::info!("the tool {} has forgotten {name}, which was not finished", tool.name());
    }
    if let Some(error) = error {
        tracing::warn!("not everything that was not finished could be forgotten: {}", error.full_text());
    }
    Ok(())
}

/// Forgets a backup that was taken through the tool: its entry, its objects, and the objects of fragments that nobody needs any
/// more. Call it under the backup lock. It refuses the only backup of the member, unless `last` says that it may go.
pub fn forget_backup(repository: &Repository, tool: &Tool, id: &str, last: bool) -> Result<Forgotten> {
    repository.writable()?;
    tool.command(Operation::Forget)?;
    let Some(entry) = repository.backup(id)? else {
        return Err(Error::new(ErrorKind::Missing, format!("there is no backup \"{id}\"")));
    };
    if entry.tool.is_none() {
        return Err(Error::new(
            ErrorKind::Forbidden,
            format!("the backup {id} is in the repository itself, not in a tool"),
        ));
    }
    if let Some(through) = entry.tool.as_ref().filter(|through| through.name != tool.name()) {
        return Err(Error::new(
            ErrorKind::Config,
            format!(
                "the backup {id} was taken with the tool {}, and the configuration has {}",
                through.name,
                tool.name()
            ),
        ));
    }
    if repository.backup_ids()?.len() == 1 && !last {
        return Err(Error::new(
            ErrorKind::Forbidden,
            format!("{id} is the only backup of member \"{}\"", repository.member()),
        )
        .detail("Every recovery needs a backup.")
        .with_hint("Take another one first, or say --last."));
    }
    let others = gather::others(repository)?;
    let _recoveries = repository.lock_recoveries()?;
    let _others = retention::lock_others(&others)?;
    let (fragments, _objects) = lock_all(repository)?;
    // Before anything goes it must be certain what the others need.
    let needed = needed_fragments(repository, Some(id))?;
    let (objects, damaged) = repository.objects()?;
    if let Some(error) = damaged.into_iter().next() {
        return Err(error);
    }
    repository.remove_entry(id)?;
    let own = |object: &StoredObject| object.kind != ObjectKind::Fragments && object.backup == id;
    let unneeded = |object: &StoredObject| {
        object.kind == ObjectKind::Fragments
            && object.state == ObjectState::Stored
            && object.ended_at.is_some_and(|ended| Timestamp::now().duration_since(ended) > FRESH)
            && !object.fragments.iter().any(|fragment| needed.contains(&fragment.hash))
    };
    let (going, staying): (Vec<_>, Vec<_>) = objects
        .into_iter()
        .filter(|object| object.tool == tool.name())
        .partition(|object| own(object) && object.member == repository.member() || unneeded(object));
    for object in going.iter().filter(|object| object.kind == ObjectKind::Fragments) {
        fragments.require_held()?;
        repository.write_object(&StoredObject { state: ObjectState::Started, ..object.clone() })?;
    }
    drop(fragments);
    let (mut done, error) = tool.forget(repository, &going, true);
    done.kept = staying.iter().filter(|object| object.kind == ObjectKind::Fragments).count() as u64;
    repository.remove_unfinished(id)?;
    match error {
        None => Ok(done),
        Some(error) => {
            let more = "The backup is not in the catalog any more. What the tool still holds of it is forgotten with the next backup, or the next \"strata tool forget\".";
            let hint = error.hint().map_or(more.to_owned(), |hint| format!("{hint} {more}"));
            Err(error.with_hint(hint))
        }
    }
}

/// The lock of the fragments and that of the objects. Who sends just now is waited for.
fn lock_all(repository: &Repository) -> Result<(Lock, Lock)> {
    let began = Instant::now();
    loop {
        let fragments = retention::lock_fragments(repository)?;
        match repository.lock_objects(None) {
            Err(error) if error.kind == ErrorKind::Locked && began.elapsed() < SENDERS && !run::interrupted() => {
                drop(fragments);
                std::thread::sleep(Duration::from_millis(100));
            }
            objects => return Ok((fragments, objects?)),
        }
    }
}

/// The fragments that somebody in the system needs: those of every backup's manifest (but that of `without`), and those of the
/// fragment logs that a recovery from the oldest backup that stays can come to.
fn needed_fragments(repository: &Repository, without: Option<&str>) -> Result<HashSet<String>> {
    let mut needed = HashSet::new();
    for member in repository.members()? {
        let other = repository.of_member(&member);
        let own = member == repository.member();
        let (entries, damaged) = other.backups()?;
        if let Some(error) = damaged.into_iter().next() {
            return Err(error.with_hint("Nothing is forgotten as long as it is not known what that backup needs."));
        }
        let staying: Vec<_> = entries.into_iter().filter(|entry| !own || Some(entry.id.as_str()) != without).collect();
        for entry in &staying {
            let manifest = other.outline(&entry.id, &entry.manifest_blake3)?;
            needed.extend(manifest.fragments.into_iter().map(|fragment| fragment.hash));
        }
        // On each timeline, what a recovery from the oldest backup on its way can come to.
        let timelines: BTreeSet<u32> =
            other.wal_timelines()?.into_iter().chain(staying.iter().map(|entry| entry.timeline)).collect();
        let mut ways = Vec::new();
        for timeline in timelines {
            // What a timeline without a history needs is not known.
            let chain = Chain::read(&other, timeline)?;
            let on_way = |entry: &&BackupEntry| {
                chain.as_ref().is_none_or(|chain| chain.contains(entry.timeline, entry.stop_lsn))
            };
            let earliest = staying.iter().filter(on_way).map(|entry| entry.start_lsn).min();
            ways.push((chain, earliest));
        }
        for path in other.fragment_log_paths()? {
            // One that cannot be read may be what needs a fragment.
            let entry: FragmentLogEntry = repository.storage().read_sealed_required(&path)?;
            let needs = |(chain, earliest): &(Option<Chain>, Option<Lsn>)| match chain {
                None => true,
                Some(chain) => {
                    let reached = |dropped: Dropped| earliest.is_some_and(|earliest| dropped.lsn >= earliest);
                    entry.on(chain) && entry.dropped_on(chain).is_none_or(reached)
                }
            };
            if entry.dropped.is_empty() || ways.iter().any(needs) {
                needed.insert(entry.fragment.hash);
            }
        }
    }
    Ok(needed)
}
