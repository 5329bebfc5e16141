//! What planning reads from a repository. One plan reads little; the recovery window asks for many plans, and what they read is
//! remembered here between them. Names and contents are those of the moment at which they were read first.

use crate::error::{Error, ErrorKind, Result};
use crate::repository::Repository;
use crate::repository::catalog::BackupEntry;
use crate::repository::expired::Expired;
use crate::repository::fragments::FragmentLogEntry;
use crate::repository::manifest::FragmentRef;
use crate::wal::name::Segment;
use crate::wal::scan::SegmentSummary;
use std::cell::{OnceCell, RefCell};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// What is known of a file of the archive: what a segment says of itself, and its size in the archive.
#[derive(Clone, Debug)]
pub struct Note {
    /// The segment's own summary.
    pub segment: Option<SegmentSummary>,
    /// Its size in the archive.
    pub stored: u64,
    /// Only the beginning of the segment is there: what was streamed, or what the end of a timeline left.
    pub partial: bool,
}

/// A repository as plans see it.
pub struct View<'a> {
    /// The repository.
    pub repository: &'a Repository,
    /// Its backups.
    pub backups: Vec<BackupEntry>,
    /// What cannot be read of its catalog.
    pub damaged: Vec<Error>,
    expired: Option<Expired>,
    notes: RefCell<HashMap<String, Option<Note>>>,
    segments: RefCell<HashMap<u32, Rc<Vec<Segment>>>>,
    manifests: RefCell<HashMap<String, Rc<Vec<FragmentRef>>>>,
    log: OnceCell<Vec<FragmentLogEntry>>,
    fragments: OnceCell<HashSet<String>>,
}

impl<'a> View<'a> {
    /// Reads the catalog.
    pub fn open(repository: &'a Repository) -> Result<Self> {
        let (backups, damaged) = repository.backups()?;
        Ok(Self {
            repository,
            backups,
            damaged,
            expired: repository.expired()?,
            notes: RefCell::default(),
            segments: RefCell::default(),
            manifests: RefCell::default(),
            log: OnceCell::new(),
            fragments: OnceCell::new(),
        })
    }

    /// Was it removed on purpose?
    pub fn is_expired(&self, segment: Segment) -> bool {
        self.expired.as_ref().is_some_and(|expired| expired.has(segment))
    }

    /// The note of an archived file; none when it is not there.
    pub fn note(&self, name: &str) -> Result<Option<Note>> {
        if let Some(known) = self.notes.borrow().get(name) {
            return Ok(known.clone());
        }
        let whole = || -> Result<Option<Note>> {
            let note = self.repository.read_wal_note(name)?;
            Ok(note.map(|(note, stored)| Note { segment: note.segment, stored, partial: false }))
        };
        let mut note = whole()?;
        if let (None, Some(segment)) = (&note, Segment::parse(name)) {
            let partial = self.repository.partial(segment)?;
            // It may have become whole while its pieces were looked at.
            note = whole()?.or(partial.map(|partial| Note {
                segment: Some(partial.summary),
                stored: partial.stored,
                partial: true,
            }));
        }
        self.notes.borrow_mut().insert(name.to_owned(), note.clone());
        Ok(note)
    }

    /// The archived segments of a timeline, ascending. The last one may be there with its beginning only.
    pub fn segments(&self, timeline: u32) -> Result<Rc<Vec<Segment>>> {
        if let Some(known) = self.segments.borrow().get(&timeline) {
            return Ok(known.clone());
        }
        let partial = self.repository.newest_partial(timeline)?;
        let mut segments = self.repository.segments(timeline)?;
        segments.extend(partial.filter(|partial| segments.last().is_none_or(|last| partial > last)));
        let segments = Rc::new(segments);
        self.segments.borrow_mut().insert(timeline, segments.clone());
        Ok(segments)
    }

    /// The fragments that a backup's manifest names.
    pub fn manifest(&self, backup: &BackupEntry) -> Result<Rc<Vec<FragmentRef>>> {
        if let Some(known) = self.manifests.borrow().get(&backup.id) {
            return Ok(known.clone());
        }
        let fragments = Rc::new(self.repository.outline(&backup.id, &backup.manifest_blake3)?.fragments);
        self.manifests.borrow_mut().insert(backup.id.clone(), fragments.clone());
        Ok(fragments)
    }

    /// The fragment log.
    pub fn log(&self) -> Result<&[FragmentLogEntry]> {
        if let Some(known) = self.log.get() {
            return Ok(known);
        }
        let log = self.repository.fragment_log()?;
        Ok(self.log.get_or_init(|| log))
    }

    /// From now on it is known which fragments there are, without a look at each.
    pub fn list_fragments(&self) -> Result<()> {
        let names = self.repository.fragments()?.into_iter().map(|(hash, _)| hash).collect();
        let _ = self.fragments.set(names);
        Ok(())
    }

    /// True when the repository has the fragment.
    pub fn has_fragment(&self, hash: &str) -> Result<bool> {
        match self.fragments.get() {
            Some(names) if names.contains(hash) => Ok(true),
            // It may be in what a tool holds.
            _ => self.repository.has_fragment(hash),
        }
    }

    /// The timelines of the archive and of the backups, ascending.
    pub fn timelines(&self) -> Result<Vec<u32>> {
        let mut all = self.repository.wal_timelines()?;
        all.extend(self.backups.iter().map(|backup| backup.timeline));
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    /// An error when there is no backup.
    pub fn require_backups(&mut self) -> Result<()> {
        for error in &self.damaged {
            tracing::warn!("a backup is left out: {error}");
        }
        if !self.backups.is_empty() {
            return Ok(());
        }
        if !self.damaged.is_empty() {
            return Err(self.damaged.swap_remove(0));
        }
        let (member, system) = (self.repository.member(), self.repository.system());
        Err(Error::new(
            ErrorKind::Unreachable,
            format!("there is no backup of member \"{member}\" of system \"{system}\""),
        )
        .with_hint("Take one with \"strata backup\"."))
    }
}
