//! Recovery over an existing data directory: only what differs from the backup is written.
//!
//! The directory must be that of the same cluster, and no server may run in it. Everything in it that the backup does not have is removed, the log in
//! `pg_wal` included; what the backup has is read and compared part by part with the manifest's checksums, and read from the repository
//! only where it differs. So at the end the directory is what a recovery into an empty one would have made.
//!
//! While this goes on no server must start there: replay over a mixture of two states would not be noticed. So the first step renames
//! `global/pg_control` to [`HELD`], without which no server starts, and the last one, behind `backup_label` and the configuration,
//! gives it back its name. A recovery that is interrupted between is made again with the same command.

use super::restore::{TablespacePlace, running_in};
use crate::error::{AtPath, Error, ErrorKind, Result};
use crate::postgres::program;
use crate::repository::fsio;
use crate::repository::lock::Lock;
use crate::repository::manifest::Manifest;
use serde::Serialize;
use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// The file without which no server starts.
pub const CONTROL: &str = "global/pg_control";
/// Its name while the directory is neither old nor new.
pub const HELD: &str = "global/pg_control.recovering";

/// What was found to be there already.
#[derive(Debug, Default)]
pub struct Kept(AtomicU64);

/// Bytes that were not written.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct DeltaReport {
    /// Bytes that were there already.
    pub kept_bytes: u64,
    /// Bytes that were written.
    pub written_bytes: u64,
}

impl Kept {
    /// True when a file has this content at this place already. It counts as kept.
    pub fn has(&self, path: &Path, offset: u64, bytes: usize, blake3: &str) -> bool {
        let mut content = vec![0; bytes];
        let same = File::open(path).and_then(|file| file.read_exact_at(&mut content, offset)).is_ok()
            && blake3::hash(&content).to_hex().as_str() == blake3;
        if same {
            self.0.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        same
    }

    /// What was kept and written of a backup.
    pub fn report(&self, manifest: &Manifest) -> DeltaReport {
        let kept_bytes = self.0.load(Ordering::Relaxed);
        let all: u64 = manifest.files.iter().map(|file| file.bytes).sum();
        DeltaReport { kept_bytes, written_bytes: all.saturating_sub(kept_bytes) }
    }
}

/// Takes an existing directory for a recovery of this cluster. Nothing is changed.
pub fn claim(into: &Path, system_identifier: u64) -> Result<Lock> {
    if let Some(pid) = running_in(into) {
        return Err(Error::new(ErrorKind::Conflict, format!("a server runs in \"{}\"", into.display()))
            .detail(format!("Its process is {pid}."))
            .with_hint("A recovery never goes over a running server. Stop it first."));
    }
    let control = [CONTROL, HELD].map(|name| into.join(name)).into_iter().find(|path| path.is_file());
    let found = match control {
        Some(path) => program::system_identifier(&path)?,
        None => {
            return Err(Error::new(ErrorKind::Conflict, format!("\"{}\" is not a data directory", into.display()))
                .with_hint("Without --delta, a recovery goes into a directory that is absent or empty."));
        }
    };
    if found != system_identifier {
        return Err(Error::new(ErrorKind::Conflict, format!("\"{}\" is another PostgreSQL cluster", into.display()))
            .detail(format!("Its system identifier is {found}, the backup's is {system_identifier}.")));
    }
    let lock = Lock::of_directory(into, &format!("a recovery into \"{}\"", into.display()))?;
    match running_in(into) {
        Some(pid) => Err(Error::new(ErrorKind::Conflict, format!("a server was started in \"{}\"", into.display()))
            .detail(format!("Its process is {pid}."))),
        None => Ok(lock),
    }
}

/// Makes the directory ready: no server starts in it any more, and it has nothing that the backup does not have.
pub fn prepare(into: &Path, manifest: &Manifest, places: &[TablespacePlace]) -> Result<()> {
    let (control, held) = (into.join(CONTROL), into.join(HELD));
    if control.exists() {
        std::fs::rename(&control, &held).at("rename to", &held)?;
    }
    fsio::fsync_dir(fsio::parent(&held))?;
    let files: HashSet<PathBuf> = manifest.files.iter().map(|file| PathBuf::from(&file.path)).collect();
    let mut directories: HashSet<PathBuf> =
        manifest.directories.iter().map(|directory| PathBuf::from(&directory.path)).collect();
    directories.extend(files.iter().filter_map(|path| path.parent()).map(Path::to_owned));
    let wanted = Wanted { files, directories };
    clean(into, Path::new(""), &wanted)?;
    for place in places.iter().filter(|place| place.path.is_dir()) {
        clean(&place.path, &Path::new("pg_tblspc").join(place.oid.to_string()), &wanted)?;
    }
    for file in &manifest.files {
        let path = into.join(held_name(&file.path));
        let Ok(meta) = std::fs::symlink_metadata(&path) else { continue };
        let covered: u64 = file.parts.iter().map(|part| part.bytes).sum();
        // Bytes that no part covers are zeros, which an old file may not have.
        if !meta.is_file() || covered != file.bytes && covered > 0 {
            std::fs::remove_file(&path).at("remove", &path)?;
            continue;
        }
        if meta.len() > file.bytes {
            let open = File::options().write(true).open(&path).at("open", &path)?;
            open.set_len(file.bytes).at("truncate", &path)?;
        }
        let mode = std::fs::Permissions::from_mode(file.mode);
        std::fs::set_permissions(&path, mode).at("set the permissions of", &path)?;
    }
    Ok(())
}

struct Wanted {
    files: HashSet<PathBuf>,
    directories: HashSet<PathBuf>,
}

/// Removes what is not wanted below a directory, whose name in the backup is `name`. Links to directories are followed only where the
/// backup has a directory, as for a `pg_wal` elsewhere.
fn clean(dir: &Path, name: &Path, wanted: &Wanted) -> Result<()> {
    for entry in std::fs::read_dir(dir).at("list", dir)? {
        let entry = entry.at("list", dir)?;
        let (path, name) = (entry.path(), name.join(entry.file_name()));
        let kind = entry.file_type().at("look at", &path)?;
        let is_link_to_space = name.parent() == Some(Path::new("pg_tblspc")) && kind.is_symlink();
        if is_link_to_space && wanted.directories.contains(&name) {
            continue;
        }
        if wanted.directories.contains(&name) && path.is_dir() {
            clean(&path, &name, wanted)?;
        } else if kind.is_dir() {
            std::fs::remove_dir_all(&path).at("remove", &path)?;
        } else if name != Path::new(HELD) && !(wanted.files.contains(&name) && kind.is_file()) {
            std::fs::remove_file(&path).at("remove", &path)?;
        }
    }
    Ok(())
}

/// The name that a file of the backup has until the directory is whole.
pub fn held_name(path: &str) -> &str {
    if path == CONTROL { HELD } else { path }
}

/// The directory is whole: from now on a server may start in it.
pub fn release(into: &Path) -> Result<()> {
    let (control, held) = (into.join(CONTROL), into.join(HELD));
    // What was written before must not be lost when this is not.
    let dir = File::open(into).at("open", into)?;
    rustix::fs::syncfs(&dir).at("sync the file system of", into)?;
    std::fs::rename(&held, &control).at("rename to", &control)?;
    fsio::fsync_dir(fsio::parent(&control))
}
