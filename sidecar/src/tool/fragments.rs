//! Fragments on their way into a tool: in bundles, each bundle one object, several at the same time.

use super::Tool;
use super::send::NewObject;
use super::tar::Kind;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Progress;
use crate::repository::objects::{ObjectFragment, ObjectKind, StoredObject};
use crate::repository::{Repository, fsio};
use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// A fragment of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FragmentFile {
    /// BLAKE3 of it.
    pub hash: String,
    /// The file.
    pub path: PathBuf,
}

/// Fragments, each with what is wrong with it.
pub type Failed = Vec<(String, Error)>;

/// What came of sending fragments.
#[derive(Debug, Default)]
pub struct Sent {
    /// The objects that the tool holds now.
    pub objects: Vec<StoredObject>,
    /// Fragments that the store does not have, or has damaged.
    pub failed: Failed,
}

impl Sent {
    /// The fragments that went through the pipe: how many, and their bytes.
    pub fn copied(&self) -> (u64, u64) {
        let all = self.objects.iter().flat_map(|object| &object.fragments);
        all.fold((0, 0), |(count, bytes), fragment| (count + 1, bytes + fragment.bytes))
    }
}

/// Sends those of the files that neither the repository nor the tool has. `announce` is told which ones go in which object
/// before any of them does. Another process that is sending is waited for as long as `wait` says.
#[allow(clippy::too_many_arguments)]
pub fn send(
    repository: &Repository,
    tool: &Tool,
    backup: &str,
    infile: &Path,
    files: Vec<FragmentFile>,
    wait: Option<Duration>,
    announce: impl FnOnce(&[(String, Vec<FragmentFile>)]) -> Result<()>,
    progress: &Progress,
) -> Result<Sent> {
    let _lock = repository.lock_objects(wait)?;
    let mut seen = HashSet::new();
    let mut wanted = Vec::new();
    for file in files {
        if seen.insert(file.hash.clone()) && !repository.has_fragment(&file.hash)? {
            wanted.push(file);
        }
    }
    let bundles = bundles(wanted, tool.spec().bundle_bytes);
    announce(&bundles)?;
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let sent = Mutex::new(Sent::default());
    let lock = || sent.lock().unwrap_or_else(PoisonError::into_inner);
    let results: Vec<Result<()>> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..tool.spec().streams.clamp(1, bundles.len().max(1)))
            .map(|_| {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let Some((object, files)) = bundles.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                        let new = NewObject {
                            kind: ObjectKind::Fragments,
                            backup,
                            object,
                            // A fragment is compressed.
                            compress_level: 0,
                            infile,
                        };
                        match bundle(repository, tool, &new, files, progress) {
                            Ok((object, failed)) => {
                                let mut sent = lock();
                                sent.objects.extend(object);
                                sent.failed.extend(failed);
                            }
                            Err(error) => {
                                stop.store(true, Ordering::Relaxed);
                                return Err(error);
                            }
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        let died = || Err(Error::new(ErrorKind::Io, "a worker that sends fragments ended unexpectedly"));
        handles.into_iter().map(|handle| handle.join().unwrap_or_else(|_| died())).collect()
    });
    results.into_iter().collect::<Result<()>>()?;
    Ok(sent.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Groups files up to a size; those that cannot be looked at take no room.
fn bundles(files: Vec<FragmentFile>, largest: u64) -> Vec<(String, Vec<FragmentFile>)> {
    let mut bundles: Vec<(u64, Vec<FragmentFile>)> = Vec::new();
    for file in files {
        let bytes = std::fs::metadata(&file.path).map_or(0, |meta| meta.len());
        match bundles.last_mut() {
            Some((size, bundle)) if *size + bytes <= largest => {
                *size += bytes;
                bundle.push(file);
            }
            _ => bundles.push((bytes, vec![file])),
        }
    }
    bundles.into_iter().enumerate().map(|(number, (_, files))| (format!("fragments-{number:05}.tar"), files)).collect()
}

/// Sends one bundle. Files that are not there or not what they should be are left out before the tool is started.
fn bundle(
    repository: &Repository,
    tool: &Tool,
    new: &NewObject<'_>,
    files: &[FragmentFile],
    progress: &Progress,
) -> Result<(Option<StoredObject>, Failed)> {
    let mut failed = Vec::new();
    let mut sound = Vec::new();
    for file in files {
        let what = format!("the fragment \"{}\"", file.path.display());
        match fsio::hash_file(&file.path) {
            Ok(Some((hash, bytes))) if hash == file.hash => sound.push((file, bytes)),
            Ok(Some((hash, _))) => {
                let why = format!("its content has the hash {hash}");
                failed.push((file.hash.clone(), Error::damaged(what, why)));
            }
            Ok(None) => {
                let error = Error::new(ErrorKind::Missing, format!("there is no fragment \"{}\"", file.path.display()));
                failed.push((file.hash.clone(), error));
            }
            Err(error) => failed.push((file.hash.clone(), Error::damaged(what, error.message))),
        }
    }
    if sound.is_empty() {
        return Ok((None, failed));
    }
    let mut sending = tool.send(repository, new)?;
    let mut places = Vec::new();
    let mut buffer = vec![0; 1 << 20];
    for (file, bytes) in sound {
        sending.begin(&format!("{}.frag", file.hash), Kind::File, 0o640, 0, bytes)?;
        places.push(ObjectFragment { hash: file.hash.clone(), offset: sending.position(), bytes });
        let mut from = File::open(&file.path).map_err(|error| Error::io("open", &file.path, error))?;
        let mut hasher = blake3::Hasher::new();
        loop {
            let got = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(got) => got,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Error::io("read", &file.path, error)),
            };
            let piece = buffer.get(..got).unwrap_or_default();
            hasher.update(piece);
            sending.data(piece)?;
            progress.advance(got as u64);
        }
        if hasher.finalize().to_hex().as_str() != file.hash {
            let what = format!("the fragment \"{}\"", file.path.display());
            return Err(Error::new(ErrorKind::Io, format!("{what} changed while it was read")));
        }
        sending.end()?;
    }
    Ok((Some(sending.finish(places)?), failed))
}
