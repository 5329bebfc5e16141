//! Copies the listed files to the backup's target, with several workers.
//!
//! ```text
//!   files ──► work list ──► worker: read → check pages → BLAKE3 ──► its writer: zstd → own pack, or tar → own pipe
//!              (pieces of large files, bundles of small ones; for a stream whole files)
//! ```
//!
//! A worker takes the next item when it is free; it shares nothing else. Where its bytes go is the target's business ([`super::target`]):
//! in packs a piece of a large file is one frame, and so is a bundle of small files; in a stream the pieces of a file follow each other. Files that change are copied in whatever state they are read: replay repairs them. What
//! is appended behind the size that was listed is not needed, since the WAL has it; small files are read to their end, or to a
//! limit when they grow fast (a log). `global/pg_control` is not protected by the WAL, so it is read until it is whole, and last.
//! A file that vanished is left out, since its removal is in the WAL.

use super::scan::ScannedFile;
use super::target::{Target, Writer};
use crate::error::{Error, Result};
use crate::postgres::page::{self, PAGE, PageState};
use crate::progress::Progress;
use crate::repository::manifest::{DamagedPage, FileEntry, Pack, Part};
use std::fs::File;
use std::io::ErrorKind as IoKind;
use std::os::unix::fs::FileExt;
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
    Whole(usize),
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
            Self::Whole(at) => files.get(*at).map_or(0, |file| file.size),
        }
    }
}

fn plan(files: &[ScannedFile], last: Option<usize>, streams: bool) -> Vec<Item> {
    let all = || files.iter().enumerate().filter(|(at, _)| Some(*at) != last);
    if streams {
        return all().map(|(at, _)| Item::Whole(at)).collect();
    }
    let mut items = Vec::new();
    let mut bundle = Vec::new();
    let mut bundled = 0;
    for (at, file) in all() {
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

/// Copies `files` to a target. The one that is `last` is read when all others are done: the control file, which must not be
/// older than what it describes, and is not protected by the WAL.
pub fn copy(
    files: &[ScannedFile],
    last: Option<usize>,
    target: &dyn Target,
    options: &CopyOptions,
    progress: &Progress,
    cancelled: &AtomicBool,
) -> Result<Copied> {
    let items = plan(files, last, target.streams());
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let workers = target.workers(options.workers).clamp(1, items.len().max(1));
    let running: Vec<Result<Worker<'_>>> = std::thread::scope(|scope| {
        let (next, failed, items) = (&next, &failed, &items);
        let handles: Vec<_> = (0..workers)
            .map(|number| {
                scope.spawn(move || {
                    let run = || {
                        let mut worker = Worker::new(files, target.writer(number)?, options);
                        while !failed.load(Ordering::Relaxed) && !cancelled.load(Ordering::Relaxed) {
                            let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                            worker.item(item)?;
                            progress.advance(item.bytes(files));
                        }
                        Ok(worker)
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
    // One that failed is the reason; the others are dropped, which ends what they had begun.
    let mut running = running.into_iter().collect::<Result<Vec<_>>>()?;
    if cancelled.load(Ordering::Relaxed) {
        return Err(Error::new(crate::error::ErrorKind::Io, "the copy was cancelled"));
    }
    if let (Some(last), Some(worker)) = (last, running.first_mut()) {
        worker.control_file(last)?;
    }
    let finished: Vec<Result<Done>> = std::thread::scope(|scope| {
        let handles: Vec<_> = running.into_iter().map(|worker| scope.spawn(|| worker.finish())).collect();
        handles.into_iter().map(|handle| handle.join().unwrap_or_else(|_| Err(worker_died()))).collect()
    });
    assemble(files, finished)
}

fn worker_died() -> Error {
    Error::new(crate::error::ErrorKind::Io, "a worker of the copy ended unexpectedly")
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
    writer: Box<dyn Writer>,
    content: Vec<u8>,
    done: Done,
    open: Option<(usize, File)>,
}

impl<'a> Worker<'a> {
    fn new(files: &'a [ScannedFile], writer: Box<dyn Writer>, options: &'a CopyOptions) -> Self {
        let done = Done { packs: Vec::new(), parts: Vec::new(), seen: Vec::new(), damaged: Vec::new() };
        Self { files, options, writer, content: Vec::new(), done, open: None }
    }

    fn finish(mut self) -> Result<Done> {
        self.done.packs = self.writer.finish()?;
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
            Item::Whole(file) => return self.whole(*file),
        }
        self.store(parts)
    }

    /// A file from its beginning to its end, piece by piece. Its size is settled before its first byte is written.
    fn whole(&mut self, at: usize) -> Result<()> {
        let Some(scanned) = self.files.get(at) else { return Ok(()) };
        let small = scanned.size <= SMALL;
        let first = match (small, scanned.first_block) {
            (true, None) => scanned.size.max(GROWN),
            _ => scanned.size.min(PIECE),
        };
        let part = self.read(at, 0, first)?;
        // It vanished.
        if self.done.seen.last() != Some(&at) {
            return Ok(());
        }
        let read = self.content.len() as u64;
        let ends = small || read < first;
        let bytes = match ends {
            true => read,
            // What is appended from now on is in the WAL; what is cut off is filled with zeros in the stream.
            false => {
                let now = self.open.as_ref().and_then(|(_, file)| file.metadata().ok()).map_or(0, |meta| meta.len());
                scanned.size.min(now).max(read)
            }
        };
        self.writer.begin(scanned, bytes)?;
        self.store(part.into_iter().collect())?;
        let mut offset = read;
        while !ends && offset < bytes {
            self.content.clear();
            let part = self.read(at, offset, PIECE.min(bytes - offset))?;
            let got = self.content.len() as u64;
            self.store(part.into_iter().collect())?;
            if got == 0 {
                break;
            }
            offset += got;
        }
        self.writer.end()
    }

    /// The control file. The server writes it in place, so a read may see half of a write: it is read until its own checksum
    /// is right.
    fn control_file(&mut self, at: usize) -> Result<()> {
        let Some(file) = self.files.get(at) else { return Ok(()) };
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
        self.content.clear();
        self.content.extend_from_slice(&content);
        self.done.seen.push(at);
        self.writer.begin(file, content.len() as u64)?;
        self.store(vec![(at, Part::of(&content, 0, 0))])?;
        self.writer.end()
    }

    /// Gives what was read to the writer.
    fn store(&mut self, mut parts: Vec<(usize, Part)>) -> Result<()> {
        if self.content.is_empty() {
            return Ok(());
        }
        self.writer.store(&self.content, &mut parts)?;
        self.done.parts.extend(parts);
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
