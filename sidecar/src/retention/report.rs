//! What an expire removed, or would remove, and why it keeps the rest.

use super::decide::{Decision, Facts, KeptWal};
use super::gather::{self, FragmentVerdict, WalFile};
use crate::error::Error;
use crate::wal::name::Segment;
use jiff::Timestamp;
use serde::Serialize;
use strata_catalog::Lsn;

/// The report.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Nothing was removed: this is what would be.
    pub dry_run: bool,
    /// All backups, oldest first.
    pub backups: Vec<BackupVerdict>,
    /// The WAL.
    pub wal: WalVerdict,
    /// The fragments.
    pub fragments: FragmentsVerdict,
}

/// A backup.
#[derive(Clone, Debug, Serialize)]
pub struct BackupVerdict {
    /// Its id.
    pub id: String,
    /// The timeline it was taken on.
    pub timeline: u32,
    /// From where on it is consistent.
    pub stop_lsn: Lsn,
    /// When that was.
    pub stopped_at: Timestamp,
    /// Its bytes in the repository.
    pub stored_bytes: u64,
    /// It goes.
    pub remove: bool,
    /// Why it is kept, one sentence a rule.
    pub kept_because: Vec<String>,
    /// Why it cannot be recovered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unusable: Option<String>,
}

/// The WAL.
#[derive(Clone, Debug, Default, Serialize)]
pub struct WalVerdict {
    /// The names of the files that go.
    pub remove: Vec<String>,
    /// Their bytes in the archive.
    pub remove_bytes: u64,
    /// Segments that go, as runs: the first one and the last one.
    pub remove_runs: Vec<(String, String)>,
    /// How many files stay.
    pub kept: u64,
    /// Their bytes.
    pub kept_bytes: u64,
    /// Why, by runs of segments.
    pub kept_because: Vec<KeptRun>,
}

/// A run of segments that stays.
#[derive(Clone, Debug, Serialize)]
pub struct KeptRun {
    /// The first segment.
    pub from: String,
    /// The last one; none for all that follow.
    pub to: Option<String>,
    /// Why.
    pub why: String,
}

/// The fragments.
#[derive(Clone, Debug, Default, Serialize)]
pub struct FragmentsVerdict {
    /// The hashes of those that go.
    pub remove: Vec<String>,
    /// Their bytes.
    pub remove_bytes: u64,
    /// Entries of the fragment log that go.
    pub remove_entries: u64,
    /// Those that stay, by the reason.
    pub kept_because: Vec<KeptFragments>,
    /// Why none goes this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub all_kept: Option<String>,
}

/// Fragments that stay for one reason.
#[derive(Clone, Debug, Serialize)]
pub struct KeptFragments {
    /// The reason.
    pub why: String,
    /// How many.
    pub fragments: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Their hashes.
    pub hashes: Vec<String>,
}

impl Report {
    pub(super) fn new(
        dry_run: bool,
        facts: &Facts,
        decision: &Decision,
        wal: &[WalFile],
        fragments: &FragmentVerdict,
    ) -> Self {
        let size = facts.segment_size;
        let any = !facts.backups.is_empty();
        let (remove, keep): (Vec<&WalFile>, Vec<&WalFile>) =
            wal.iter().partition(|file| any && decision.why_wal(file.kind, size).is_none());
        let owned: Vec<WalFile> = remove.iter().map(|file| (*file).clone()).collect();
        let name = |timeline, number| Segment::numbered(timeline, number, size).to_string();
        let run = |kept: &KeptWal| KeptRun {
            from: name(kept.timeline, kept.from),
            to: kept.to.map(|to| name(kept.timeline, to)),
            why: kept.why.clone(),
        };
        Self {
            dry_run,
            backups: facts
                .backups
                .iter()
                .map(|fact| {
                    let kept = decision.backups.get(&fact.entry.id);
                    BackupVerdict {
                        id: fact.entry.id.clone(),
                        timeline: fact.entry.timeline,
                        stop_lsn: fact.entry.stop_lsn,
                        stopped_at: fact.entry.stopped_at,
                        stored_bytes: fact.entry.stored_bytes,
                        remove: kept.is_none(),
                        kept_because: kept.cloned().unwrap_or_default(),
                        unusable: fact.unusable.clone(),
                    }
                })
                .collect(),
            wal: WalVerdict {
                remove: remove.iter().map(|file| file.name.clone()).collect(),
                remove_bytes: remove.iter().map(|file| file.bytes).sum(),
                remove_runs: gather::runs(&owned, size)
                    .into_iter()
                    .map(|run| (name(run.timeline, run.from), name(run.timeline, run.to)))
                    .collect(),
                kept: keep.len() as u64,
                kept_bytes: keep.iter().map(|file| file.bytes).sum(),
                kept_because: decision.wal.iter().map(run).collect(),
            },
            fragments: FragmentsVerdict {
                remove: fragments.remove.keys().cloned().collect(),
                remove_bytes: fragments.remove.values().sum(),
                remove_entries: fragments.entries.len() as u64,
                kept_because: fragments
                    .keep
                    .iter()
                    .map(|(why, kept)| KeptFragments {
                        why: why.clone(),
                        fragments: kept.len() as u64,
                        bytes: kept.values().sum(),
                        hashes: kept.keys().cloned().collect(),
                    })
                    .collect(),
                all_kept: fragments.all_kept.clone(),
            },
        }
    }

    /// The numbers, for the job's row: lists of names may be long.
    pub fn summary(&self) -> serde_json::Value {
        serde_json::json!({
            "backups": self.backups.iter().filter(|one| one.remove).map(|one| one.id.as_str()).collect::<Vec<_>>(),
            "wal_files": self.wal.remove.len(),
            "wal_bytes": self.wal.remove_bytes,
            "fragments": self.fragments.remove.len(),
            "fragment_bytes": self.fragments.remove_bytes,
        })
    }

    /// The fragments could not be locked, so none went.
    pub(super) fn fragments_postponed(&mut self, error: &Error) {
        self.fragments.remove.clear();
        self.fragments.remove_bytes = 0;
        self.fragments.remove_entries = 0;
        self.fragments.all_kept = Some(format!("{}; they go next time", error.message));
    }
}
