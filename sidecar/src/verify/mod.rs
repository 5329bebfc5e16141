//! Checks everything in a member's repository by its checksums, and that nothing is missing that should be there.
//!
//! Each finding names one thing and says what is wrong with it. Nothing stops at the first finding. What an interrupted
//! write left behind is not damage and is counted apart.

mod selection;
mod tool;
mod wal;

use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Progress;
use crate::repository::Repository;
use crate::repository::catalog::BackupEntry;
use crate::repository::fragments::FragmentLogEntry;
use crate::repository::manifest::{Manifest, Pack, Part};
use crate::repository::pack::PackReader;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

pub use selection::Selection;

/// What was looked at, and what was found.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Complete backups.
    pub backups: u64,
    /// Folders of backups that were interrupted; the next backup removes them.
    pub interrupted_backups: Vec<String>,
    /// Archived WAL files.
    pub wal_files: u64,
    /// Fragments.
    pub fragments: u64,
    /// Entries of the fragment log.
    pub fragment_log_entries: u64,
    /// Objects that a third-party tool holds.
    pub objects: u64,
    /// Those of them that were read back and checked.
    pub objects_read: u64,
    /// Bytes that were read in the repository, and from the tool.
    pub bytes: u64,
    /// Packs, WAL files and fragments whose content was left out, as it was asked for.
    pub left_out: u64,
    /// Packs, manifests, WAL files and fragments that no identity at hand opens: of these what is stored was checked, not what is in it.
    pub encrypted: u64,
    /// What is damaged or missing.
    pub damage: Vec<Finding>,
    /// What is good to know and no damage.
    pub notes: Vec<String>,
}

/// One thing that is damaged or missing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// What kind of thing: `repository`, `backup`, `wal`, `fragment`, `fragment_log`, `tool`, `object`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// What is wrong.
    pub problem: String,
}

/// Where the parts of the check put what they find.
struct Findings {
    found: Mutex<BTreeSet<Finding>>,
    notes: Mutex<BTreeSet<String>>,
    unreachable: Mutex<Option<Error>>,
    bytes: AtomicU64,
    left_out: AtomicU64,
    sealed: AtomicU64,
    selection: Selection,
}

impl Findings {
    /// Shall the content of this file be read?
    fn takes(&self, repository: &Repository, path: &Path) -> bool {
        let takes = self.selection.takes(repository.storage(), path);
        if !takes {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
        takes
    }

    fn add(&self, kind: &'static str, name: impl Into<String>, problem: impl Into<String>) {
        let finding = Finding { kind, name: name.into(), problem: problem.into() };
        self.found.lock().unwrap_or_else(PoisonError::into_inner).insert(finding);
    }

    /// What could not be read is damage, unless it could not be asked for: a repository that cannot be reached says nothing about what is in it.
    fn failed(&self, kind: &'static str, name: impl Into<String>, error: Error) {
        if matches!(error.kind, ErrorKind::Connection | ErrorKind::Refused) {
            return self.unreachable(error);
        }
        self.add(kind, name, error.message);
    }

    /// Of something that is encrypted for others only what is stored could be checked.
    fn sealed(&self) {
        self.sealed.fetch_add(1, Ordering::Relaxed);
    }

    /// The check is not complete for this reason.
    fn unreachable(&self, error: Error) {
        self.unreachable.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    fn note(&self, text: String) {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).insert(text);
    }

    fn read(&self, bytes: u64, progress: &Progress) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        progress.advance(bytes);
    }
}

/// Checks the repository. Catalog, manifests, logs and what must be there are always looked at; `selection` says of which files
/// the content is read. With `listing`, of what a third-party tool holds only the tool's own check and its list count, and nothing is
/// read back.
pub fn run(config: &Config, listing: bool, selection: Selection, progress: &Progress) -> Result<Report> {
    let repository = Repository::open(config)?;
    let findings = Findings {
        found: Mutex::new(BTreeSet::new()),
        notes: Mutex::new(BTreeSet::new()),
        unreachable: Mutex::new(None),
        bytes: AtomicU64::new(0),
        left_out: AtomicU64::new(0),
        sealed: AtomicU64::new(0),
        selection,
    };
    let mut report = Report::default();
    if let Err(error) = look(config, &repository, listing, &findings, &mut report, progress) {
        findings.unreachable(error);
    }
    report.bytes = findings.bytes.into_inner();
    report.left_out = findings.left_out.into_inner();
    report.encrypted = findings.sealed.into_inner();
    report.notes = findings.notes.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().collect();
    report.damage = findings.found.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().collect();
    match findings.unreachable.into_inner().unwrap_or_else(PoisonError::into_inner) {
        // What was found before is said all the same.
        Some(error) if report.damage.is_empty() => Err(error),
        Some(error) => {
            report.notes.push(format!("the check is not complete: {}", error.message));
            Ok(report)
        }
        None => Ok(report),
    }
}

/// Looks at everything, and adds what it finds. An error ends it.
fn look(
    config: &Config,
    repository: &Repository,
    listing: bool,
    findings: &Findings,
    report: &mut Report,
    progress: &Progress,
) -> Result<()> {
    let workers = config.backup.workers();
    if let Err(error) = repository.identity() {
        findings.failed("repository", "member.json", error);
    }
    let mut entries = Vec::new();
    for id in repository.backup_ids()? {
        report.backups += 1;
        match repository.backup(&id) {
            Ok(Some(entry)) => entries.push(entry),
            Ok(None) => findings.add("backup", &id, "its name in the catalog is not that of a backup"),
            Err(error) => findings.failed("backup", &id, error),
        }
    }
    report.interrupted_backups = repository.unfinished_backups()?;
    let mut needed: BTreeMap<String, String> = BTreeMap::new();
    for entry in &entries {
        backup(repository, entry, workers, findings, &mut needed, progress);
    }
    report.wal_files = wal::check(repository, &entries, workers, findings, progress)?;
    for path in repository.fragment_log_paths()? {
        report.fragment_log_entries += 1;
        match repository.storage().read_sealed_required::<FragmentLogEntry>(&path) {
            Ok(entry) => {
                needed
                    .entry(entry.fragment.hash)
                    .or_insert_with(|| format!("the fragment log of database \"{}\"", entry.database));
            }
            Err(error) => {
                let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                findings.failed("fragment_log", name, error);
            }
        }
    }
    report.fragments = fragments(repository, &needed, workers, findings, progress)?;
    if let Err(error) = repository.note_identities() {
        findings.note(format!("that the identities are at hand is not noted: {}", error.message));
    }
    (report.objects, report.objects_read) = tool::check(repository, &entries, listing, findings, progress)?;
    Ok(())
}

impl Report {
    /// An error that names what is damaged; nothing when all is well.
    pub fn require_sound(&self) -> Result<()> {
        let Some(first) = self.damage.first() else { return Ok(()) };
        let all: Vec<String> =
            self.damage.iter().map(|one| format!("{} {}: {}", one.kind, one.name, one.problem)).collect();
        Err(Error::new(
            ErrorKind::Damaged,
            format!(
                "{} things in the repository are damaged or missing, the first is {} {}",
                self.damage.len(),
                first.kind,
                first.name
            ),
        )
        .detail(all.join("\n"))
        .with_hint("Take a new backup, and put the damaged files back from another copy when there is one."))
    }
}

/// Runs `work` on each item with several workers.
fn each<T: Sync>(items: &[T], workers: usize, work: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..workers.clamp(1, items.len().max(1)) {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(item);
                }
            });
        }
    });
}

fn backup(
    repository: &Repository,
    entry: &BackupEntry,
    workers: usize,
    findings: &Findings,
    needed: &mut BTreeMap<String, String>,
    progress: &Progress,
) {
    progress.phase_bytes("backup", entry.stored_bytes, format!("verifying backup {}", entry.id));
    let manifest = match repository.manifest(&entry.id, &entry.manifest_blake3) {
        Ok(manifest) => manifest,
        Err(error) if error.kind == ErrorKind::NoKey => {
            return outline(repository, entry, workers, findings, needed, progress);
        }
        Err(error) => return findings.failed("backup", &entry.id, error),
    };
    needs(&manifest, needed);
    // What a tool holds is looked at with all else that it holds.
    let through_tool = manifest.packs.iter().any(|pack| pack.object.is_some());
    let mut by_pack: Vec<Vec<&Part>> = manifest.packs.iter().map(|_| Vec::new()).collect();
    for file in &manifest.files {
        let mut size = 0;
        for part in &file.parts {
            size = size.max(part.offset + part.bytes);
            match by_pack.get_mut(part.pack as usize) {
                Some(parts) => parts.push(part),
                None => findings.add(
                    "backup",
                    &entry.id,
                    format!("\"{}\" is in pack {}, which does not exist", file.path, part.pack),
                ),
            }
        }
        if size != file.bytes {
            findings.add("backup", &entry.id, format!("\"{}\" has {size} bytes instead of {}", file.path, file.bytes));
        }
    }
    if through_tool {
        return;
    }
    let packs: Vec<usize> = (0..manifest.packs.len()).collect();
    each(&packs, workers, |at| {
        if let Err(error) =
            pack(repository, &manifest, *at, by_pack.get(*at).map_or(&[], Vec::as_slice), findings, progress)
        {
            findings.failed("backup", &entry.id, error);
        }
    });
}

/// Notes what a backup needs. A fragment that it had to do without may have come into the repository later; then all is well.
fn needs(manifest: &Manifest, needed: &mut BTreeMap<String, String>) {
    for fragment in &manifest.fragments {
        needed.entry(fragment.hash.clone()).or_insert_with(|| format!("backup {}", manifest.id));
    }
}

/// Checks what is stored of an encrypted backup.
fn outline(
    repository: &Repository,
    entry: &BackupEntry,
    workers: usize,
    findings: &Findings,
    needed: &mut BTreeMap<String, String>,
    progress: &Progress,
) {
    findings.sealed();
    let manifest = match repository.outline(&entry.id, &entry.manifest_blake3) {
        Ok(manifest) => manifest,
        Err(error) => return findings.failed("backup", &entry.id, error),
    };
    needs(&manifest, needed);
    each(&manifest.packs, workers, |pack| {
        let path = repository.backup_dir(&entry.id).join(&pack.name);
        let checked = stored_pack(repository, &path, pack, findings, progress);
        if let Err(error) = checked {
            findings.failed("backup", &entry.id, error);
        }
    });
}

/// Checks a pack by the checksum of all that is stored.
fn stored_pack(
    repository: &Repository,
    path: &Path,
    pack: &Pack,
    findings: &Findings,
    progress: &Progress,
) -> Result<()> {
    let what = format!("the pack \"{}\"", path.display());
    let Some(reader) = repository.storage().open(path)? else {
        return Err(Error::damaged(what, "it is not there"));
    };
    if reader.size() != pack.bytes {
        return Err(Error::damaged(what, format_args!("it has {} bytes instead of {}", reader.size(), pack.bytes)));
    }
    if !findings.takes(repository, path) {
        return Ok(());
    }
    findings.sealed();
    let mut hasher = blake3::Hasher::new();
    reader.for_each_piece(path, |piece| {
        hasher.update(piece);
        findings.read(piece.len() as u64, progress);
        Ok(())
    })?;
    if hasher.finalize().to_hex().as_str() != pack.blake3 {
        return Err(Error::damaged(what, "its checksum does not match"));
    }
    Ok(())
}

/// Checks a pack in one pass: its frames follow each other without a gap, each piece has its checksum, and all together
/// have the pack's.
fn pack(
    repository: &Repository,
    manifest: &Manifest,
    at: usize,
    parts: &[&Part],
    findings: &Findings,
    progress: &Progress,
) -> Result<()> {
    let Some(pack) = manifest.packs.get(at) else { return Ok(()) };
    let mut frames: BTreeMap<u64, Vec<&Part>> = BTreeMap::new();
    for part in parts {
        frames.entry(part.frame).or_default().push(part);
    }
    let path = repository.backup_dir(&manifest.id).join(&pack.name);
    let mut reader = PackReader::open(repository.storage(), repository.keys(), &path)?;
    let what = format!("the pack \"{}\"", reader.path().display());
    if reader.size() != pack.bytes {
        return Err(Error::damaged(what, format_args!("it has {} bytes instead of {}", reader.size(), pack.bytes)));
    }
    if !findings.takes(repository, &path) {
        return Ok(());
    }
    let mut hasher = blake3::Hasher::new();
    let mut expected = 0;
    let mut content = Vec::new();
    for (offset, parts) in frames {
        let Some(first) = parts.first() else { continue };
        if offset != expected {
            return Err(Error::damaged(what, format_args!("the manifest names no frame at {expected}")));
        }
        let length = parts.iter().map(|part| part.skip as usize + part.bytes as usize).max().unwrap_or(0);
        hasher.update(reader.frame(offset, first.frame_bytes, &mut content, length)?);
        for part in &parts {
            let begin = part.skip as usize;
            let piece = content.get(begin..begin + part.bytes as usize).unwrap_or_default();
            if blake3::hash(piece).to_hex().as_str() != part.blake3 {
                return Err(Error::damaged(what, format_args!("a checksum in the frame at {offset} does not match")));
            }
        }
        expected += u64::from(first.frame_bytes);
        findings.read(u64::from(first.frame_bytes), progress);
    }
    if expected != pack.bytes || hasher.finalize().to_hex().as_str() != pack.blake3 {
        return Err(Error::damaged(what, "its checksum does not match"));
    }
    Ok(())
}

/// What is in an encrypted fragment, when an identity is at hand.
fn sealed_fragment(repository: &Repository, hash: &str, path: &Path, findings: &Findings) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("strata-").tempdir();
    let dir = dir.map_err(|error| Error::io("create a directory in", &std::env::temp_dir(), error))?;
    // Its name is part of what is checked.
    let file = dir.path().join(path.file_name().unwrap_or_else(|| OsStr::new("fragment")));
    match repository.storage().get_checked(path, &file, hash, repository.keys()) {
        Err(error) if error.kind == ErrorKind::NoKey => {
            findings.sealed();
            Ok(())
        }
        Err(error) => Err(error),
        Ok(_) => strata_fragment::verify_file(&file)
            .map(drop)
            .map_err(|error| Error::damaged(format_args!("\"{}\"", path.display()), error)),
    }
}

fn fragments(
    repository: &Repository,
    needed: &BTreeMap<String, String>,
    workers: usize,
    findings: &Findings,
    progress: &Progress,
) -> Result<u64> {
    let there = repository.fragments()?;
    progress.phase_bytes("fragments", there.iter().map(|(_, bytes)| bytes).sum(), "verifying fragments");
    let gone: Mutex<BTreeSet<String>> = Mutex::default();
    each(&there, workers, |(hash, bytes)| {
        let checked = repository.fragment_path(hash).and_then(|path| {
            if !findings.takes(repository, &path) {
                return Ok(());
            }
            findings.bytes.fetch_add(*bytes, Ordering::Relaxed);
            if repository.storage().check_sealed(&path, hash)? {
                return sealed_fragment(repository, hash, &path, findings);
            }
            // What was listed a moment ago may have been expired. Whether it is needed is seen below.
            let Some(file) = repository.storage().as_file(&path)? else {
                gone.lock().unwrap_or_else(PoisonError::into_inner).insert(hash.clone());
                return Ok(());
            };
            strata_fragment::verify_file(&file.path)
                .map(drop)
                .map_err(|error| Error::damaged(format_args!("\"{}\"", path.display()), error))
        });
        if let Err(error) = checked {
            findings.failed("fragment", hash, error);
        }
        progress.advance(*bytes);
    });
    let gone = gone.into_inner().unwrap_or_else(PoisonError::into_inner);
    let there: BTreeSet<&str> =
        there.iter().map(|(hash, _)| hash.as_str()).filter(|hash| !gone.contains(*hash)).collect();
    for (hash, by) in needed {
        if !there.contains(hash.as_str()) && repository.fragment_object(hash)?.is_none() {
            findings.add("fragment", hash, format!("it is not in the repository, though {by} names it"));
        }
    }
    Ok(there.len() as u64)
}
