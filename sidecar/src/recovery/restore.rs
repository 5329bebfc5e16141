//! Lays the files of a backup out in a new data directory.
//!
//! Workers take frames in the order of the packs, check every piece against the manifest's checksum before it is written,
//! and write it where it belongs. What a third-party tool holds comes as one stream for each object: a worker takes an object, and the
//! pieces in the order in which they come. Nothing is made durable file by file: PostgreSQL makes the whole data directory durable
//! itself before it begins to recover, and a directory that is not started is synced as a whole at the end.

use super::delta::{Kept, held_name};
use crate::error::{AtPath, Error, ErrorKind, Result};
use crate::progress::Progress;
use crate::repository::Repository;
use crate::repository::crypt::Keys;
use crate::repository::lock::Lock;
use crate::repository::manifest::{Manifest, Part, Tablespace};
use crate::repository::objects::StoredObject;
use crate::repository::pack::PackReader;
use crate::repository::storage::Storage;
use crate::tool::{Tool, not_configured};
use std::collections::HashMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Where a tablespace goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablespacePlace {
    /// Its oid.
    pub oid: u32,
    /// The new directory.
    pub path: PathBuf,
}

/// A piece of a file in a frame.
struct Piece<'a> {
    path: &'a str,
    mode: u32,
    offset: u64,
    skip: usize,
    bytes: usize,
    blake3: &'a str,
}

struct Frame<'a> {
    pack: usize,
    offset: u64,
    stored: u32,
    content: usize,
    pieces: Vec<Piece<'a>>,
}

/// The frames of a backup in the order in which they are stored.
fn frames(manifest: &Manifest) -> Result<Vec<Frame<'_>>> {
    let mut found: HashMap<(u32, u64), Frame<'_>> = HashMap::new();
    for file in &manifest.files {
        check_path(&file.path)?;
        for part in &file.parts {
            let (skip, bytes) = (part.skip as usize, part.bytes as usize);
            let frame = found.entry((part.pack, part.frame)).or_insert_with(|| Frame {
                pack: part.pack as usize,
                offset: part.frame,
                stored: part.frame_bytes,
                content: 0,
                pieces: Vec::new(),
            });
            frame.content = frame.content.max(skip + bytes);
            frame.pieces.push(Piece {
                path: &file.path,
                mode: file.mode,
                offset: part.offset,
                skip,
                bytes,
                blake3: &part.blake3,
            });
        }
    }
    let mut frames: Vec<_> = found.into_values().collect();
    frames.sort_by_key(|frame| (frame.pack, frame.offset));
    Ok(frames)
}

/// Paths in a manifest never leave the data directory.
fn check_path(path: &str) -> Result<()> {
    let good = !path.is_empty()
        && !path.starts_with('/')
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    if good { Ok(()) } else { Err(Error::damaged("the manifest", format_args!("it has the path \"{path}\""))) }
}

/// Fails unless `dir` is absent or an empty directory, and no server runs there.
pub fn require_empty(dir: &Path) -> Result<()> {
    let mut entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("use", dir, error)),
    };
    if entries.next().is_none() {
        return Ok(());
    }
    Err(match running_in(dir) {
        Some(pid) => Error::new(ErrorKind::Conflict, format!("a server runs in \"{}\"", dir.display()))
            .detail(format!("Its process is {pid}."))
            .with_hint("A recovery never goes over a running server. Name a new directory."),
        None => Error::new(ErrorKind::Conflict, format!("the directory \"{}\" is not empty", dir.display()))
            .with_hint("Name a new directory, or empty this one."),
    })
}

/// The process of the server that runs in a data directory, if one does.
pub fn running_in(dir: &Path) -> Option<String> {
    let text = std::fs::read_to_string(dir.join("postmaster.pid")).ok()?;
    let pid = text.lines().next()?.trim().to_owned();
    Path::new("/proc").join(&pid).exists().then_some(pid)
}

fn create_private_dir(path: &Path, mode: u32) -> Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).at("set the permissions of", path)
        }
        Err(error) => Err(Error::io("create the directory", path, error)),
    }
}

/// Where the tablespaces of a backup go: what `mapping` says (by oid or by old path), else, over an existing directory (`delta`), where its link
/// leads, else beside the data directory.
pub fn place_tablespaces(
    tablespaces: &[Tablespace],
    into: &Path,
    mapping: &[(String, PathBuf)],
    delta: bool,
) -> Result<Vec<TablespacePlace>> {
    let mut unused: Vec<&str> = mapping.iter().map(|(from, _)| from.as_str()).collect();
    let mut places = Vec::new();
    for tablespace in tablespaces {
        let oid = tablespace.oid.to_string();
        let old = tablespace.path.display().to_string();
        let mapped = mapping.iter().find(|(from, _)| *from == oid || *from == old);
        if let Some((from, _)) = mapped {
            unused.retain(|other| other != from);
        }
        let path = mapped.map_or_else(
            || {
                if let Some(place) = std::fs::read_link(into.join("pg_tblspc").join(&oid)).ok().filter(|_| delta) {
                    return place;
                }
                let mut name = into.as_os_str().to_owned();
                name.push(".tablespaces");
                PathBuf::from(name).join(&oid)
            },
            |(_, path)| path.clone(),
        );
        if !delta {
            require_empty(&path)?;
        }
        let wrong = |why: String| {
            Error::new(ErrorKind::Usage, format!("the tablespace {oid} cannot go to \"{}\"", path.display()))
                .detail(why)
        };
        if path.starts_with(into) || into.starts_with(&path) {
            return Err(wrong("A tablespace and the data directory must stand side by side.".to_owned()));
        }
        if let Some(other) = places.iter().find(|other: &&TablespacePlace| other.path == path) {
            return Err(wrong(format!("The tablespace {} goes there.", other.oid)));
        }
        places.push(TablespacePlace { oid: tablespace.oid, path });
    }
    match unused.first() {
        Some(from) => Err(Error::new(ErrorKind::Usage, format!("the backup has no tablespace \"{from}\""))
            .with_hint("--tablespace takes OID=DIR or OLDDIR=DIR.")),
        None => Ok(places),
    }
}

/// The content of `tablespace_map` for the new places.
pub fn tablespace_map(places: &[TablespacePlace]) -> String {
    let mut map = String::new();
    for place in places {
        let path = place.path.display().to_string().replace('\\', "\\\\").replace('\n', "\\\n").replace('\r', "\\\r");
        map.push_str(&format!("{} {path}\n", place.oid));
    }
    map
}

/// Takes the new data directory for this recovery: makes it when it is absent, and keeps other recoveries out.
pub fn claim(into: &Path) -> Result<Lock> {
    require_empty(into)?;
    if let Some(above) = into.parent() {
        std::fs::create_dir_all(above).at("create the directory", above)?;
    }
    create_private_dir(into, 0o700)?;
    let lock = Lock::of_directory(into, &format!("a recovery into \"{}\"", into.display()))?;
    // The other one may have been done meanwhile.
    require_empty(into)?;
    Ok(lock)
}

/// Lays a backup out in `into`, which is empty, or was prepared by [`super::delta`] and keeps what is right already.
pub fn restore(
    repository: &Repository,
    manifest: &Manifest,
    into: &Path,
    places: &[TablespacePlace],
    kept: Option<&Kept>,
    workers: usize,
    progress: &Progress,
) -> Result<()> {
    for directory in &manifest.directories {
        check_path(&directory.path)?;
        let path = into.join(&directory.path);
        let tablespace = directory.path.strip_prefix("pg_tblspc/").and_then(|oid| oid.parse::<u32>().ok());
        match places.iter().find(|place| Some(place.oid) == tablespace) {
            Some(place) => {
                if let Some(above) = place.path.parent() {
                    std::fs::create_dir_all(above).at("create the directory", above)?;
                }
                create_private_dir(&place.path, directory.mode)?;
                match std::fs::read_link(&path) {
                    Ok(old) if old == place.path => continue,
                    Ok(_) => std::fs::remove_file(&path).at("remove", &path)?,
                    Err(_) => {}
                }
                std::os::unix::fs::symlink(&place.path, &path).at("link", &path)?;
            }
            None => create_private_dir(&path, directory.mode)?,
        }
    }
    let total = manifest.files.iter().map(|file| file.bytes).sum();
    progress.phase_bytes("restore", total, "laying the hot data out");
    for file in manifest.files.iter().filter(|file| file.parts.is_empty()) {
        check_path(&file.path)?;
        create_file(&into.join(&file.path), file.mode)?.set_len(0).at("truncate", &into.join(&file.path))?;
    }
    if let Some(first) = manifest.packs.iter().find_map(|pack| pack.object.as_deref()) {
        let tool = repository.tool().ok_or_else(|| not_configured(first))?;
        let streams = streams(manifest)?;
        let workers = tool.spec().streams;
        return in_parallel(
            workers,
            &streams,
            || (),
            |(), (object, pieces)| stream(tool, object, pieces, into, kept.is_some(), progress),
        );
    }
    let frames = frames(manifest)?;
    let dir = repository.backup_dir(&manifest.id);
    let (storage, keys) = (repository.storage(), repository.keys());
    let worker = || Worker { storage, keys, manifest, dir: &dir, into, kept, pack: None, content: Vec::new() };
    in_parallel(workers, &frames, worker, |worker, frame| {
        worker.frame(frame)?;
        progress.advance(frame.pieces.iter().map(|piece| piece.bytes as u64).sum());
        Ok(())
    })
}

/// Runs `work` on each item with several workers, until one fails.
fn in_parallel<T: Sync, W>(
    workers: usize,
    items: &[T],
    worker: impl Fn() -> W + Sync,
    work: impl Fn(&mut W, &T) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let results: Vec<Result<()>> = std::thread::scope(|scope| {
        let (next, failed, worker, work) = (&next, &failed, &worker, &work);
        let handles: Vec<_> = (0..workers.clamp(1, items.len().max(1)))
            .map(|_| {
                scope.spawn(move || {
                    let mut worker = worker();
                    while !failed.load(Ordering::Relaxed) {
                        let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                        if let Err(error) = work(&mut worker, item) {
                            failed.store(true, Ordering::Relaxed);
                            return Err(error);
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        handles
            .into_iter()
            .map(|handle| {
                handle
                    .join()
                    .unwrap_or_else(|_| Err(Error::new(ErrorKind::Io, "a worker of the restore ended unexpectedly")))
            })
            .collect()
    });
    results.into_iter().collect()
}

/// A piece of a file in a tool's stream.
pub struct StreamPiece<'a> {
    path: &'a str,
    mode: u32,
    part: &'a Part,
}

/// The objects of a backup that a tool holds, each with its pieces in the order of the stream.
pub fn streams(manifest: &Manifest) -> Result<Vec<(&StoredObject, Vec<StreamPiece<'_>>)>> {
    let mut streams = Vec::new();
    for pack in &manifest.packs {
        let object = pack.object.as_deref().ok_or_else(|| {
            Error::damaged("the manifest", format_args!("it does not say where the tool has \"{}\"", pack.name))
        })?;
        streams.push((object, Vec::new()));
    }
    for file in &manifest.files {
        check_path(&file.path)?;
        for part in &file.parts {
            let (_, pieces) = streams
                .get_mut(part.pack as usize)
                .ok_or_else(|| Error::damaged("the manifest", format_args!("it has no pack number {}", part.pack)))?;
            pieces.push(StreamPiece { path: &file.path, mode: file.mode, part });
        }
    }
    for (_, pieces) in &mut streams {
        pieces.sort_by_key(|piece| piece.part.frame);
    }
    Ok(streams)
}

/// Reads an object to its end. Each piece is checked, then `take` gets it; at the end the stream as a whole is checked.
pub fn read_stream(
    tool: &Tool,
    object: &StoredObject,
    pieces: &[StreamPiece<'_>],
    mut take: impl FnMut(&StreamPiece<'_>, &[u8]) -> Result<()>,
) -> Result<()> {
    let mut receiving = tool.receive(object)?;
    let mut content = Vec::new();
    for piece in pieces {
        receiving.skip_to(piece.part.frame)?;
        content.resize(piece.part.bytes as usize, 0);
        receiving.read_exact(&mut content)?;
        if blake3::hash(&content).to_hex().as_str() != piece.part.blake3 {
            return Err(Error::damaged(
                format_args!("the object {} of the tool {}", object.name, object.tool),
                format_args!("the checksum of \"{}\" at {} does not match", piece.path, piece.part.offset),
            ));
        }
        take(piece, &content)?;
    }
    receiving.finish()
}

/// Lays out the files of one object.
fn stream(
    tool: &Tool,
    object: &StoredObject,
    pieces: &[StreamPiece<'_>],
    into: &Path,
    delta: bool,
    progress: &Progress,
) -> Result<()> {
    let mut open: Option<(PathBuf, File)> = None;
    read_stream(tool, object, pieces, |piece, content| {
        let path = target(into, delta, piece.path);
        if open.as_ref().is_none_or(|(name, _)| *name != path) {
            open = Some((path.clone(), create_file(&path, piece.mode)?));
        }
        let Some((_, file)) = &open else { return Ok(()) };
        file.write_all_at(content, piece.part.offset).at("write", &path)?;
        progress.advance(content.len() as u64);
        Ok(())
    })
}

struct Worker<'a> {
    storage: &'a Storage,
    keys: &'a Arc<Keys>,
    manifest: &'a Manifest,
    dir: &'a Path,
    into: &'a Path,
    kept: Option<&'a Kept>,
    pack: Option<(usize, PackReader)>,
    content: Vec<u8>,
}

/// Where a file of the backup goes.
fn target(into: &Path, delta: bool, path: &str) -> PathBuf {
    into.join(if delta { held_name(path) } else { path })
}

impl Worker<'_> {
    /// Which pieces of a frame are there already.
    fn kept(&self, frame: &Frame<'_>) -> Vec<bool> {
        let is_kept = |piece: &Piece<'_>| {
            self.kept.is_some_and(|kept| {
                kept.has(&target(self.into, true, piece.path), piece.offset, piece.bytes, piece.blake3)
            })
        };
        frame.pieces.iter().map(is_kept).collect()
    }

    fn frame(&mut self, frame: &Frame<'_>) -> Result<()> {
        let kept = self.kept(frame);
        if kept.iter().all(|kept| *kept) {
            return Ok(());
        }
        if self.pack.as_ref().is_none_or(|(open, _)| *open != frame.pack) {
            let pack =
                self.manifest.packs.get(frame.pack).ok_or_else(|| {
                    Error::damaged("the manifest", format_args!("it has no pack number {}", frame.pack))
                })?;
            self.pack = Some((frame.pack, PackReader::open(self.storage, self.keys, &self.dir.join(&pack.name))?));
        }
        let Some((_, reader)) = &mut self.pack else { return Ok(()) };
        reader.frame(frame.offset, frame.stored, &mut self.content, frame.content)?;
        for (piece, _) in frame.pieces.iter().zip(kept).filter(|(_, kept)| !kept) {
            let content = self.content.get(piece.skip..piece.skip + piece.bytes).unwrap_or_default();
            if blake3::hash(content).to_hex().as_str() != piece.blake3 {
                return Err(Error::damaged(
                    format_args!("the pack \"{}\"", reader.path().display()),
                    format_args!("the checksum of \"{}\" at {} does not match", piece.path, piece.offset),
                ));
            }
            let path = target(self.into, self.kept.is_some(), piece.path);
            create_file(&path, piece.mode)?.write_all_at(content, piece.offset).at("write", &path)?;
        }
        Ok(())
    }
}

fn create_file(path: &Path, mode: u32) -> Result<File> {
    OpenOptions::new().write(true).create(true).truncate(false).mode(mode).open(path).at("create", path)
}

/// Makes everything below `dir` durable.
pub fn sync_all(dir: &Path, places: &[TablespacePlace]) -> Result<()> {
    for path in std::iter::once(dir).chain(places.iter().map(|place| place.path.as_path())) {
        let file = File::open(path).at("open", path)?;
        rustix::fs::syncfs(&file).at("sync the file system of", path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_leaves_the_data_directory() {
        for good in ["a", "base/1/2", "a.b"] {
            assert!(check_path(good).is_ok(), "{good}");
        }
        for bad in ["", "/etc/passwd", "../x", "a/../../x", "a//b", "./a"] {
            assert!(check_path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_directory_with_something_in_it_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        require_empty(dir.path()).unwrap();
        require_empty(&dir.path().join("new")).unwrap();
        std::fs::write(dir.path().join("x"), "").unwrap();
        assert_eq!(require_empty(dir.path()).unwrap_err().kind, ErrorKind::Conflict);
        std::fs::write(dir.path().join("postmaster.pid"), format!("{}\n", std::process::id())).unwrap();
        assert!(require_empty(dir.path()).unwrap_err().message.contains("runs"));
    }

    #[test]
    fn two_recoveries_never_share_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let into = dir.path().join("a/data");
        let first = claim(&into).unwrap();
        assert_eq!(claim(&into).unwrap_err().kind, ErrorKind::Locked);
        drop(first);
        let _again = claim(&into).unwrap();
    }

    #[test]
    fn tablespaces_go_where_they_are_told_or_beside_the_data() {
        let dir = tempfile::tempdir().unwrap();
        let into = dir.path().join("data");
        let tablespaces = [
            Tablespace { oid: 1, path: "/old/one".into() },
            Tablespace { oid: 2, path: "/old/two".into() },
            Tablespace { oid: 3, path: "/old/three".into() },
        ];
        let one = dir.path().join("one");
        let two = dir.path().join("two\nlines");
        let mapping = [("1".to_owned(), one.clone()), ("/old/two".to_owned(), two)];
        let places = place_tablespaces(&tablespaces, &into, &mapping, false).unwrap();
        assert_eq!(places[0].path, one);
        assert_eq!(places[2].path, dir.path().join("data.tablespaces/3"));
        assert!(tablespace_map(&places).contains("two\\\nlines"));
        for wrong in [
            vec![("9".to_owned(), one.clone())],
            vec![("1".to_owned(), one.clone()), ("2".to_owned(), one)],
            vec![("1".to_owned(), into.join("inside"))],
        ] {
            assert_eq!(
                place_tablespaces(&tablespaces, &into, &wrong, false).unwrap_err().kind,
                ErrorKind::Usage,
                "{wrong:?}"
            );
        }
    }
}
