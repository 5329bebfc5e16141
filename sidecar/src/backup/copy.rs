//! Copies the listed files into packs, with several workers.
//!
//! ```text
//!   files ──► work list ──► worker: read → check pages → BLAKE3 → zstd → own pack
//!              (pieces of large files, bundles of small ones; largest first)
//! ```
//!
//! A worker takes the next item when it is free; it shares nothing else. A piece of a large file is one frame; a bundle
//! of small files is one frame. Files that change are copied in whatever state they are read: replay repairs them. What
//! is appended behind the size that was listed is not needed, since the WAL has it; small files are read to their end, or to a
//! limit when they grow fast (a log). `global/pg_control` is not protected by the WAL, so [`control_file`] reads it until it is whole.
//! A file that vanished is left out, since its removal is in the WAL.

use super::scan::ScannedFile;
use crate::error::{Error, Result};
use crate::postgres::page::{self, PAGE, PageState};
use crate::progress::Progress;
use crate::repository::manifest::{DamagedPage, FileEntry, Pack, Part};
use crate::repository::pack::PackWriter;
use std::fs::File;
use std::io::ErrorKind as IoKind;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Large files are cut into pieces of this size.
const PIECE: u64 = 4 << 20;
/// Files up to this size are bundled.
const SMALL: u64 = 256 << 10;
/// A bundle is closed at this size.
const BUNDLE: u64 = 2 << 20;
/// How often a page with a wrong checksum is read again: it may be half written just now.
const REREADS: u32 = 5;
/// So many damaged pages of a file are waited for; a disk that lost a whole file shall not hold a backup up for hours.
const PATIENT: usize = 100;
/// The checksum of the control file stands between these places in all versions.
const CONTROL_LEAST: usize = 128;
const CONTROL_LIMIT: usize = 512;
/// A small file that grew is read up to this size.
const GROWN: u64 = 1 << 20;

/// How to copy.
#[derive(Clone, Debug)]
pub struct CopyOptions {
    /// How many workers.
    pub workers: usize,
    /// The level of zstd.
    pub level: i32,
    /// Check pages of a server that keeps checksums, whose backup began here.
    pub check_pages_from: Option<u64>,
}

/// What was copied.
#[derive(Debug, Default)]
pub struct Copied {
    /// The packs.
    pub packs: Vec<Pack>,
    /// The files.
    pub files: Vec<FileEntry>,
    /// Pages with a wrong checksum.
    pub damaged_pages: Vec<DamagedPage>,
}

enum Item {
    Piece { file: usize, offset: u64, bytes: u64 },
    Bundle(Vec<usize>),
}

impl Part {
    /// A piece whose place in a pack is not known yet.
    fn of(content: &[u8], offset: u64, skip: u32) -> Self {
        let blake3 = blake3::hash(content).to_hex().to_string();
        Self { offset, bytes: content.len() as u64, blake3, pack: 0, frame: 0, frame_bytes: 0, skip }
    }
}

impl Item {
    fn bytes(&self, files: &[ScannedFile]) -> u64 {
        match self {
            Self::Piece { bytes, .. } => *bytes,
            Self::Bundle(members) => members.iter().filter_map(|at| files.get(*at)).map(|file| file.size).sum(),
        }
    }
}

fn plan(files: &[ScannedFile]) -> Vec<Item> {
    let mut items = Vec::new();
    let mut bundle = Vec::new();
    let mut bundled = 0;
    for (at, file) in files.iter().enumerate() {
        if file.size > SMALL {
            let mut offset = 0;
            while offset < file.size {
                let bytes = PIECE.min(file.size - offset);
                items.push(Item::Piece { file: at, offset, bytes });
                offset += bytes;
            }
            continue;
        }
        bundle.push(at);
        bundled += file.size;
        if bundled >= BUNDLE || bundle.len() >= 1000 {
            items.push(Item::Bundle(std::mem::take(&mut bundle)));
            bundled = 0;
        }
    }
    if !bundle.is_empty() {
        items.push(Item::Bundle(bundle));
    }
    // Pieces stay in the order of the files, which is the order on disk more often than not.
    items
}

/// Copies `files` into packs in `dir`. `numbers` is the first free worker number, so that two calls for one folder do
/// not meet in a pack's name.
pub fn copy(
    files: &[ScannedFile],
    dir: &Path,
    numbers: usize,
    options: &CopyOptions,
    progress: &Progress,
    cancelled: &AtomicBool,
) -> Result<Copied> {
    let items = plan(files);
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let workers = options.workers.clamp(1, items.len().max(1));
    let results: Vec<Result<Done>> = std::thread::scope(|scope| {
        let (next, failed, items) = (&next, &failed, &items);
        let handles: Vec<_> = (0..workers)
            .map(|worker| {
                scope.spawn(move || {
                    let run = || {
                        let mut worker = Worker::new(files, dir, numbers + worker, options)?;
                        while !failed.load(Ordering::Relaxed) && !cancelled.load(Ordering::Relaxed) {
                            let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                            worker.item(item)?;
                            progress.advance(item.bytes(files));
                        }
                        worker.finish()
                    };
                    let result = run();
                    if result.is_err() {
                        failed.store(true, Ordering::Relaxed);
                    }
                    result
                })
            })
            .collect();
        handles.into_iter().map(|handle| handle.join().unwrap_or_else(|_| Err(worker_died()))).collect()
    });
    assemble(files, results)
}

fn worker_died() -> Error {
    Error::new(crate::error::ErrorKind::Io, "a worker of the copy ended unexpectedly")
}

/// Copies `global/pg_control`. The server writes it in place, so a read may see half of a write: it is read until its own
/// checksum is right.
pub fn control_file(file: &ScannedFile, dir: &Path, number: usize, options: &CopyOptions) -> Result<Copied> {
    let mut worker = Worker::new(std::slice::from_ref(file), dir, number, options)?;
    let mut tries = 0;
    let content = loop {
        let content = std::fs::read(&file.source).map_err(|error| Error::io("read", &file.source, error))?;
        if control_is_whole(&content) {
            break content;
        }
        tries += 1;
        if tries == 50 {
            return Err(Error::damaged(
                format_args!("\"{}\"", file.source.display()),
                "its checksum does not match its content",
            ));
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    worker.content.extend_from_slice(&content);
    worker.done.seen.push(0);
    worker.store(vec![(0, Part::of(&content, 0, 0))])?;
    let files = std::slice::from_ref(file);
    assemble(files, vec![worker.finish()])
}

/// True when the control file's CRC-32C is right. Where it stands depends on the version: it is the first number that is
/// the checksum of all bytes before it.
fn control_is_whole(content: &[u8]) -> bool {
    let end = content.len().min(CONTROL_LIMIT);
    (CONTROL_LEAST..end.saturating_sub(3)).step_by(4).any(|at| {
        let (Some(before), Some(found)) = (content.get(..at), content.get(at..at + 4)) else { return false };
        crc32c::crc32c(before).to_le_bytes() == found
    })
}

struct Done {
    packs: Vec<Pack>,
    parts: Vec<(usize, Part)>,
    seen: Vec<usize>,
    damaged: Vec<DamagedPage>,
}

fn assemble(files: &[ScannedFile], results: Vec<Result<Done>>) -> Result<Copied> {
    let mut copied = Copied::default();
    let mut parts: Vec<Vec<Part>> = files.iter().map(|_| Vec::new()).collect();
    let mut seen = vec![false; files.len()];
    for result in results {
        let done = result?;
        let base = copied.packs.len() as u32;
        copied.packs.extend(done.packs);
        for (file, mut part) in done.parts {
            part.pack += base;
            if let Some(of_file) = parts.get_mut(file) {
                of_file.push(part);
            }
        }
        for file in done.seen {
            if let Some(flag) = seen.get_mut(file) {
                *flag = true;
            }
        }
        copied.damaged_pages.extend(done.damaged);
    }
    for ((file, mut parts), seen) in files.iter().zip(parts).zip(seen) {
        if !seen {
            continue;
        }
        parts.sort_by_key(|part| part.offset);
        copied.files.push(FileEntry {
            path: file.path.clone(),
            mode: file.mode,
            modified: file.modified,
            bytes: parts.last().map_or(0, |part| part.offset + part.bytes),
            parts,
        });
    }
    copied.damaged_pages.sort_by(|a, b| (&a.path, a.page).cmp(&(&b.path, b.page)));
    Ok(copied)
}

struct Worker<'a> {
    files: &'a [ScannedFile],
    options: &'a CopyOptions,
    packs: PackWriter,
    compressor: zstd::bulk::Compressor<'static>,
    content: Vec<u8>,
    frame: Vec<u8>,
    done: Done,
    open: Option<(usize, File)>,
}

impl<'a> Worker<'a> {
    fn new(files: &'a [ScannedFile], dir: &Path, number: usize, options: &'a CopyOptions) -> Result<Self> {
        let compressor = zstd::bulk::Compressor::new(options.level)
            .map_err(|error| Error::new(crate::error::ErrorKind::Config, format!("zstd refused its level: {error}")))?;
        Ok(Self {
            files,
            options,
            packs: PackWriter::new(dir, number),
            compressor,
            content: Vec::new(),
            frame: Vec::new(),
            done: Done { packs: Vec::new(), parts: Vec::new(), seen: Vec::new(), damaged: Vec::new() },
            open: None,
        })
    }

    fn finish(mut self) -> Result<Done> {
        self.done.packs = self.packs.finish()?;
        Ok(self.done)
    }

    fn item(&mut self, item: &Item) -> Result<()> {
        self.content.clear();
        let mut parts: Vec<(usize, Part)> = Vec::new();
        match item {
            Item::Piece { file, offset, bytes } => parts.extend(self.read(*file, *offset, *bytes)?),
            Item::Bundle(members) => {
                for file in members {
                    // A file that grew meanwhile is read to its end, unless it is one that the WAL extends.
                    let Some(scanned) = self.files.get(*file) else { continue };
                    let bytes = if scanned.first_block.is_some() { scanned.size } else { scanned.size.max(GROWN) };
                    parts.extend(self.read(*file, 0, bytes)?);
                }
            }
        }
        self.store(parts)
    }

    /// Compresses what was read and appends it to the pack.
    fn store(&mut self, parts: Vec<(usize, Part)>) -> Result<()> {
        if self.content.is_empty() {
            return Ok(());
        }
        self.frame.clear();
        self.frame.reserve(zstd::zstd_safe::compress_bound(self.content.len()));
        self.compressor
            .compress_to_buffer(&self.content, &mut self.frame)
            .map_err(|error| Error::new(crate::error::ErrorKind::Io, format!("zstd failed: {error}")))?;
        let place = self.packs.append(&self.frame)?;
        for (file, mut part) in parts {
            part.pack = place.pack;
            part.frame = place.offset;
            part.frame_bytes = place.bytes;
            self.done.parts.push((file, part));
        }
        Ok(())
    }

    /// Appends up to `bytes` of a file from `offset` on to the content of the frame.
    fn read(&mut self, at: usize, offset: u64, bytes: u64) -> Result<Option<(usize, Part)>> {
        let Some(scanned) = self.files.get(at) else { return Ok(None) };
        if self.open.as_ref().is_none_or(|(open, _)| *open != at) {
            match File::open(&scanned.source) {
                Ok(file) => self.open = Some((at, file)),
                Err(error) if error.kind() == IoKind::NotFound => return Ok(None),
                Err(error) => return Err(Error::io("open", &scanned.source, error)),
            }
        }
        let Some((_, file)) = &self.open else { return Ok(None) };
        self.done.seen.push(at);
        let begin = self.content.len();
        let mut left = bytes;
        while left > 0 {
            let filled = self.content.len();
            let room = left.min(if bytes <= GROWN { SMALL } else { PIECE }) as usize;
            self.content.resize(filled + room, 0);
            let buffer = self.content.get_mut(filled..).unwrap_or_default();
            let got = match file.read_at(buffer, offset + (filled - begin) as u64) {
                Ok(got) => Some(got),
                Err(error) if error.kind() == IoKind::Interrupted => None,
                Err(error) => return Err(Error::io("read", &scanned.source, error)),
            };
            self.content.truncate(filled + got.unwrap_or(0));
            if got == Some(0) {
                break;
            }
            left -= got.unwrap_or(0) as u64;
        }
        let content = self.content.get(begin..).unwrap_or_default();
        if content.is_empty() {
            return Ok(None);
        }
        if let (Some(first), Some(start)) = (scanned.first_block, self.options.check_pages_from) {
            let first = first + offset / PAGE as u64;
            check_pages(scanned, file, content, first, offset, start, &mut self.done.damaged);
        }
        // A frame holds at most a thousand small files, each with at most a megabyte.
        Ok(Some((at, Part::of(content, offset, begin as u32))))
    }
}

fn check_pages(
    scanned: &ScannedFile,
    file: &File,
    content: &[u8],
    first_block: u64,
    offset: u64,
    start: u64,
    damaged: &mut Vec<DamagedPage>,
) {
    let (pages, _) = content.as_chunks::<PAGE>();
    let before = damaged.len();
    for (at, found) in pages.iter().enumerate() {
        let block = (first_block + at as u64) as u32;
        if page::judge(found, block, start) != PageState::Bad {
            continue;
        }
        let position = offset + (at * PAGE) as u64;
        let mut again = [0; PAGE];
        let bad = (0..REREADS).all(|_| {
            if damaged.len() - before < PATIENT {
                std::thread::sleep(Duration::from_millis(20));
            }
            // A page that cannot be read any more was cut off; that is in the WAL.
            file.read_exact_at(&mut again, position).is_ok() && page::judge(&again, block, start) == PageState::Bad
        });
        if bad {
            damaged.push(DamagedPage { path: scanned.path.clone(), page: position / PAGE as u64 });
        }
    }
}

#[cfg(test)]
mod tests;
