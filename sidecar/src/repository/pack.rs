//! Packs: append-only files of zstd frames.
//!
//! Each worker of a backup writes packs of its own, so workers never wait for each other. A pack is closed (and made
//! durable) when it is full; then a new one begins. A frame holds either a piece of one file or several small files. An encrypted frame is an
//! age file of its own, whose content is the zstd frame.

use super::crypt::Keys;
use super::manifest::Pack;
use super::storage::{Reader, Storage, Upload};
use crate::error::{AtPath, Error, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A pack is closed when it has this many bytes.
const FULL: u64 = 1 << 30;

/// A frame's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FramePlace {
    /// The worker's own number of the pack.
    pub pack: u32,
    /// Where the frame begins.
    pub offset: u64,
    /// Its size.
    pub bytes: u32,
}

/// Writes the packs of one worker.
pub struct PackWriter {
    storage: Storage,
    dir: PathBuf,
    worker: usize,
    open: Option<OpenPack>,
    closed: Vec<Pack>,
    full: u64,
}

struct OpenPack {
    upload: Upload,
    name: String,
    bytes: u64,
    hasher: blake3::Hasher,
}

impl PackWriter {
    /// A writer of packs into a backup's folder.
    pub fn new(storage: &Storage, dir: &Path, worker: usize) -> Self {
        Self { storage: storage.clone(), dir: dir.to_owned(), worker, open: None, closed: Vec::new(), full: FULL }
    }

    /// Appends a frame.
    pub fn append(&mut self, frame: &[u8]) -> Result<FramePlace> {
        if self.open.as_ref().is_some_and(|pack| pack.bytes >= self.full) {
            self.close()?;
        }
        let number = self.closed.len();
        let pack = match &mut self.open {
            Some(pack) => pack,
            None => {
                let name = format!("{:03}-{number:05}.pack", self.worker);
                let upload = self.storage.create_unseen(&self.dir.join(&name))?;
                self.open.insert(OpenPack { upload, name, bytes: 0, hasher: blake3::Hasher::new() })
            }
        };
        pack.upload.write_all(frame)?;
        pack.hasher.update(frame);
        // Frames are made from at most a few megabytes, and packs are counted in the thousands.
        let place = FramePlace { pack: number as u32, offset: pack.bytes, bytes: frame.len() as u32 };
        pack.bytes += frame.len() as u64;
        Ok(place)
    }

    fn close(&mut self) -> Result<()> {
        if let Some(pack) = self.open.take() {
            pack.upload.publish()?;
            self.closed.push(Pack {
                name: pack.name,
                bytes: pack.bytes,
                blake3: pack.hasher.finalize().to_hex().to_string(),
                object: None,
            });
        }
        Ok(())
    }

    /// Makes everything durable and returns the packs in the order of their numbers.
    pub fn finish(mut self) -> Result<Vec<Pack>> {
        self.close()?;
        Ok(self.closed)
    }
}

/// Reads frames of one pack.
pub struct PackReader {
    reader: Reader,
    keys: Arc<Keys>,
    path: PathBuf,
    decompressor: zstd::bulk::Decompressor<'static>,
    stored: Vec<u8>,
}

impl PackReader {
    /// Opens a pack.
    pub fn open(storage: &Storage, keys: &Arc<Keys>, path: &Path) -> Result<Self> {
        let absent = || Error::damaged(format_args!("the pack \"{}\"", path.display()), "it is not there");
        let reader = storage.open(path)?.ok_or_else(absent)?;
        let decompressor = zstd::bulk::Decompressor::new().at("read", path)?;
        Ok(Self { reader, keys: keys.clone(), path: path.to_owned(), decompressor, stored: Vec::new() })
    }

    /// The pack's size.
    pub fn size(&self) -> u64 {
        self.reader.size()
    }

    /// The pack's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads a frame into `content`, which must be as long as the frame's content. Returns the bytes as stored.
    pub fn frame(&mut self, offset: u64, bytes: u32, content: &mut Vec<u8>, expected: usize) -> Result<&[u8]> {
        self.stored.resize(bytes as usize, 0);
        if let Err(error) = self.reader.read_exact_at(&mut self.stored, offset) {
            return Err(match error.kind() {
                std::io::ErrorKind::UnexpectedEof => Error::damaged(
                    format_args!("the pack \"{}\"", self.path.display()),
                    "it is shorter than the manifest says",
                ),
                _ => Error::reading(&self.path, error),
            });
        }
        let what = || format!("the frame at {offset} of the pack \"{}\"", self.path.display());
        let frame = self.keys.content(&self.stored, what())?;
        content.clear();
        content.reserve(expected);
        let got = self.decompressor.decompress_to_buffer(&frame, content).map_err(|error| {
            Error::damaged(
                format_args!("the pack \"{}\"", self.path.display()),
                format_args!("the frame at {offset} does not decompress: {error}"),
            )
        })?;
        if got != expected {
            return Err(Error::damaged(
                format_args!("the pack \"{}\"", self.path.display()),
                format_args!("the frame at {offset} has {got} bytes instead of {expected}"),
            ));
        }
        Ok(&self.stored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::fsio;

    #[test]
    fn frames_come_back_from_several_packs() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = PackWriter::new(&Storage::Directory, dir.path(), 3);
        writer.full = 200;
        let contents: Vec<Vec<u8>> = (0..20u8).map(|n| vec![n; 1000 + usize::from(n)]).collect();
        let places: Vec<FramePlace> =
            contents.iter().map(|c| writer.append(&zstd::bulk::compress(c, 1).unwrap()).unwrap()).collect();
        let packs = writer.finish().unwrap();
        assert!(packs.len() > 1);
        let mut buffer = Vec::new();
        for (content, place) in contents.iter().zip(&places) {
            let pack = &packs[place.pack as usize];
            let mut reader =
                PackReader::open(&Storage::Directory, &Keys::none(), &dir.path().join(&pack.name)).unwrap();
            assert_eq!(reader.size(), pack.bytes);
            reader.frame(place.offset, place.bytes, &mut buffer, content.len()).unwrap();
            assert_eq!(&buffer, content);
            assert!(reader.frame(place.offset, place.bytes, &mut buffer, content.len() + 1).is_err());
        }
        let hash = fsio::hash_file(&dir.path().join(&packs[0].name)).unwrap().unwrap();
        assert_eq!(hash, (packs[0].blake3.clone(), packs[0].bytes));
    }
}
