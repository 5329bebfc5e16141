//! Retention: removing what no kept backup and no kept moment needs.
//!
//! ```text
//!   backup lock ─► finish what an interrupted expire left ─► decide ─► expire.json
//!       ─► catalog entries ─► folders of backups ─► expired.json ─► WAL
//!       ─► lock of the fragments ─► decide again about them ─► entries of the log ─► fragments ─► expire.json goes
//! ```
//!
//! **Promises.** What is kept is whole at every moment, whatever dies when: a thing goes only when nothing that is kept needs it, so the
//! order among the things that go matters only for who looks at them. A backup's catalog entry goes, durably, before anything of its
//! data: a backup in the catalog can be recovered. A fragment's entry in the log goes, durably, before the fragment: a plan never
//! names a fragment that was expired. What is not known is kept: a damaged catalog entry stops everything, a damaged
//! manifest keeps all fragments, a damaged entry of the fragment log keeps its fragment, a timeline without a history is kept whole.
//! At least one backup that can be recovered stays for the newest timeline.
//!
//! **Interrupted.** The decision is made anew each time, from what is there. What is left of an interrupted expire is found without a note,
//! except for two things, and these `expire.json` names: folders of backups without a catalog entry, which could also mean that the
//! catalog was lost; and fragments without an entry in the log, which could also belong to a row that is about to be committed. It is
//! written before the first removal and removed after the last one. A fragment that it names is looked at like any other: a new row may
//! have named it again meanwhile.
//!
//! **Locks**, in this order: the member's backup lock (no backup runs, and no other expire) and its lock of recoveries; then, for the fragments, the
//! backup locks of all other members and their locks of recoveries, then the lock of the fragments, exclusively. A recovery shares its member's lock of recoveries from before
//! its plan until all fragments are fetched, through the process that brings them in the background too; so an expire fails while one runs, and one that begins waits for
//! an expire. Whoever trusts that a fragment is in the repository holds that lock
//! with others while it looks and until its entry in the log is durable. So an expire either sees the entry or removed the fragment
//! before it was looked for, and then it is copied again. A backup holds its member's lock from before it looks
//! until its catalog entry is durable. WAL that is pushed meanwhile is newer than what goes; a segment that is
//! pushed again, after a crash of the server, stays as an old segment that nothing needs, until the next expire.
//!
//! `expired.json` says which segments were removed, before they are: `strata verify` takes other missing segments for damage.

pub mod clock;
pub mod decide;
pub mod gather;
pub mod report;

use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::progress::Progress;
use crate::repository::expired::{Expired, Expiring};
use crate::repository::lock::Lock;
use crate::repository::{Repository, fsio};
use decide::{Decision, Facts};
use gather::{FragmentVerdict, WalFile};
use jiff::Timestamp;
use report::Report;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long the lock of the fragments is waited for: copies in progress hold it.
const FRAGMENT_LOCK: Duration = Duration::from_secs(60);

/// What to do.
#[derive(Clone, Debug, Default)]
pub struct ExpireRequest {
    /// Say what would go, and remove nothing.
    pub dry_run: bool,
    /// The store of the server, when it is known.
    pub store: Option<PathBuf>,
    /// Ages are told by the clock though the repository has nothing of a long time (see [`clock`]).
    pub trust_clock: bool,
}

/// Expires, or says what would be.
pub fn run(config: &Config, request: &ExpireRequest, progress: &Progress) -> Result<Report> {
    if config.retention.is_empty() {
        return Err(Error::new(ErrorKind::Config, "the configuration says nothing about what is kept")
            .with_hint("Set keep_backups, keep_for or recovery_window under [retention]."));
    }
    let repository = Repository::open(config)?;
    if request.dry_run {
        let look = look(config, &repository, request, Timestamp::now(), progress)?;
        if let Err(error) = trust(config, &repository, request, &look) {
            tracing::warn!("{}", error.full_text());
        }
        return Ok(look.report(true));
    }
    repository.writable()?;
    repository.require_user()?;
    let lock = repository.wait_for_backup_lock()?;
    locked(config, &repository, request, &lock, progress)
}

/// Expires under the backup lock that the caller holds.
pub fn locked(
    config: &Config,
    repository: &Repository,
    request: &ExpireRequest,
    lock: &Lock,
    progress: &Progress,
) -> Result<Report> {
    let recoveries = repository.lock_recoveries()?;
    at(config, repository, request, Timestamp::now(), &[lock, &recoveries], progress)
}

fn at(
    config: &Config,
    repository: &Repository,
    request: &ExpireRequest,
    now: Timestamp,
    locks: &[&Lock],
    progress: &Progress,
) -> Result<Report> {
    let look = look(config, repository, request, now, progress)?;
    let mut report = look.report(false);
    progress.phase("expire", 0, "removing what is not kept");
    if !look.nothing() {
        trust(config, repository, request, &look)?;
        apply(config, repository, request, &look, locks, &mut report)?;
    }
    Ok(report)
}

/// What there is and what is decided.
struct Look {
    facts: Facts,
    decision: Decision,
    wal: Vec<WalFile>,
    remove_wal: Vec<WalFile>,
    fragments: FragmentVerdict,
    expiring: Expiring,
    /// Folders without a catalog entry that an interrupted expire left.
    leavings: Vec<String>,
}

fn look(
    config: &Config,
    repository: &Repository,
    request: &ExpireRequest,
    now: Timestamp,
    progress: &Progress,
) -> Result<Look> {
    progress.phase("look", 0, "looking at what is in the repository");
    let expiring = repository.expiring()?.unwrap_or_default();
    let facts = gather::facts(repository, now)?;
    let decision = decide::decide(&config.retention, &facts);
    let wal = gather::wal_files(repository)?;
    // Without any backup nothing can be told from what the first one needs.
    let any = !facts.backups.is_empty();
    let remove_wal = wal.iter().filter(|file| any && decision.why_wal(file.kind, facts.segment_size).is_none());
    let remove_wal = remove_wal.cloned().collect();
    let fragments = match any {
        true => gather::fragments(repository, &facts, &decision, &expiring.fragments, request.store.as_deref())?,
        false => FragmentVerdict { all_kept: Some("there is no backup".to_owned()), ..FragmentVerdict::default() },
    };
    let unfinished = repository.unfinished_backups()?;
    let leavings = unfinished.into_iter().filter(|id| expiring.backups.contains(id)).collect();
    Ok(Look { facts, decision, wal, remove_wal, fragments, expiring, leavings })
}

/// Refuses when ages cannot be told by the clock. That a person says that they can is remembered.
fn trust(config: &Config, repository: &Repository, request: &ExpireRequest, look: &Look) -> Result<()> {
    let expired = repository.expired()?;
    let trusted = expired.as_ref().and_then(|expired| expired.clock_trusted_at);
    match clock::silence(repository, &config.retention, &look.facts, trusted)? {
        None => Ok(()),
        Some(found) if !request.trust_clock => Err(clock::refuse(found, look.facts.now)),
        Some(_) if request.dry_run => Ok(()),
        Some(_) => {
            let mut expired = expired.unwrap_or_else(|| Expired::nothing(look.facts.now, look.segment_size()));
            expired.clock_trusted_at = Some(look.facts.now);
            repository.write_expired(&expired)
        }
    }
}

impl Look {
    fn segment_size(&self) -> u32 {
        u32::try_from(self.facts.segment_size).unwrap_or(u32::MAX)
    }

    fn nothing(&self) -> bool {
        self.decision.removed(&self.facts).is_empty()
            && self.remove_wal.is_empty()
            && self.fragments.remove.is_empty()
            && self.fragments.entries.is_empty()
            && self.leavings.is_empty()
            && self.expiring == Expiring::default()
    }

    fn report(&self, dry_run: bool) -> Report {
        Report::new(dry_run, &self.facts, &self.decision, &self.wal, &self.fragments)
    }
}

fn apply(
    config: &Config,
    repository: &Repository,
    request: &ExpireRequest,
    look: &Look,
    locks: &[&Lock],
    report: &mut Report,
) -> Result<()> {
    // Nothing goes without it, however long what went before took.
    let held = || locks.iter().copied().try_for_each(Lock::require_held);
    let removed: Vec<String> = look.decision.removed(&look.facts).into_iter().map(str::to_owned).collect();
    let mut expiring = look.expiring.clone();
    expiring.backups.extend(removed.iter().cloned());
    expiring.fragments.extend(look.fragments.remove.keys().cloned());
    repository.write_expiring(&expiring)?;
    failpoint::hit(failpoint::EXPIRE_DECIDED);

    for id in &removed {
        held()?;
        repository.forget_backup(id)?;
        failpoint::hit(failpoint::EXPIRE_ENTRY);
    }
    for id in removed.iter().chain(&look.leavings) {
        held()?;
        remove_folder(repository, id)?;
    }

    let now = Timestamp::now();
    let mut expired = repository.expired()?.unwrap_or_else(|| Expired::nothing(now, look.segment_size()));
    expired.at = now;
    expired.add(gather::runs(&look.remove_wal, look.facts.segment_size));
    repository.write_expired(&expired)?;
    let mut folders = BTreeSet::new();
    for file in &look.remove_wal {
        held()?;
        repository.storage().remove(&file.path)?;
        folders.insert(fsio::parent(&file.path).to_owned());
        failpoint::hit(failpoint::EXPIRE_WAL);
    }
    folders.iter().try_for_each(|folder| repository.storage().sync(folder))?;

    match fragments(config, repository, request, look, locks) {
        Ok(()) => {}
        // They go next time: expire.json still names them.
        Err(error) if error.kind == ErrorKind::Locked => {
            report.fragments_postponed(&error);
            return Ok(());
        }
        Err(error) => return Err(error),
    }
    failpoint::hit(failpoint::EXPIRE_REMOVED);
    repository.end_expiring()
}

/// Removes a backup's folder, its manifest first: a folder without one is no backup for anybody.
fn remove_folder(repository: &Repository, id: &str) -> Result<()> {
    let dir = repository.backup_dir(id);
    if !repository.storage().has_folder(&dir)? {
        return Ok(());
    }
    repository.storage().remove(&repository.manifest_path(id))?;
    repository.storage().sync(&dir)?;
    failpoint::hit(failpoint::EXPIRE_MANIFEST);
    repository.remove_unfinished(id)
}

fn fragments(
    config: &Config,
    repository: &Repository,
    request: &ExpireRequest,
    look: &Look,
    locks: &[&Lock],
) -> Result<()> {
    if look.fragments.remove.is_empty() && look.fragments.entries.is_empty() {
        return Ok(());
    }
    let others = gather::others(repository)?;
    let others = lock_others(&others)?;
    let lock = lock_fragments(repository)?;
    let held = || locks.iter().copied().chain(&others).chain([&lock]).try_for_each(Lock::require_held);
    // Entries may have come since, here or at another member.
    let decided = decide::decide(&config.retention, &look.facts);
    let released = &look.expiring.fragments;
    let verdict = gather::fragments(repository, &look.facts, &decided, released, request.store.as_deref())?;
    let mut folders = BTreeSet::new();
    for path in &verdict.entries {
        held()?;
        repository.storage().remove(path)?;
        folders.insert(fsio::parent(path).to_owned());
        failpoint::hit(failpoint::EXPIRE_LOG);
    }
    folders.iter().try_for_each(|folder| repository.storage().sync(folder))?;
    folders.clear();
    for hash in verdict.remove.keys() {
        held()?;
        let path = repository.fragment_path(hash)?;
        repository.storage().remove(&path)?;
        folders.insert(fsio::parent(&path).to_owned());
        failpoint::hit(failpoint::EXPIRE_FRAGMENT);
    }
    folders.iter().try_for_each(|folder| repository.storage().sync(folder))
}

/// The locks under which nothing of other members begins to need a fragment.
pub(crate) fn lock_others(others: &[Repository]) -> Result<Vec<Lock>> {
    let mut locks = Vec::new();
    for other in others {
        locks.push(other.lock_backup()?);
        locks.push(other.lock_recoveries()?);
    }
    Ok(locks)
}

/// The lock of the fragments, exclusively. Copies in progress are waited for.
pub(crate) fn lock_fragments(repository: &Repository) -> Result<Lock> {
    let began = Instant::now();
    let mut pause = Duration::from_millis(20);
    loop {
        match repository.lock_fragments() {
            Err(error) if error.kind == ErrorKind::Locked && began.elapsed() < FRAGMENT_LOCK => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(500));
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests;
