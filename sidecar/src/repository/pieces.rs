//! Pieces of WAL segments that are not whole yet, as the agent receives them by streaming.
//!
//! A piece is a file of `stream/` in the member's folder, `NAME.BEGIN-END.zst`: the bytes from BEGIN up to END of the segment NAME, both as
//! eight hexadecimal digits, in the format of the archive's files ([`super::walstore`]), with the piece's name in the note. Like every file of
//! a repository it is written durably under a temporary name, published and never changed. So what was streamed is compressed, checked by
//! checksum, and cannot be torn, on a directory as on any other target that stores whole files.
//!
//! The content of a segment is what its pieces cover from its beginning on without a hole; pieces may overlap, as after many were put
//! together into one. When the whole segment is in the archive, its pieces count for nothing and are removed.
//!
//! The end of a timeline that another one left has such a beginning of a segment as well: `NAME.partial`, archived by the server that was promoted.
//! [`Repository::partial`] gives what is known of a segment from either.

use super::walstore::{self, WalNote};
use super::{Repository, crypt, fsio};
use crate::error::{Error, ErrorKind, Result};
use crate::wal::name::{Segment, WalName};
use crate::wal::scan::SegmentSummary;
use crate::wal::walker::SegmentHeader;
use std::fmt;
use std::path::PathBuf;
use strata_catalog::Lsn;

/// The name of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Piece {
    /// The segment that it is a piece of.
    pub segment: Segment,
    /// Where it begins in the segment.
    pub begin: u32,
    /// Where it ends.
    pub end: u32,
}

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:08X}-{:08X}", self.segment, self.begin, self.end)
    }
}

impl Piece {
    /// Parses a name, without `.zst`.
    pub fn parse(name: &str) -> Option<Self> {
        let (segment, place) = name.split_once('.')?;
        let (begin, end) = place.split_once('-')?;
        let number = |text: &str| u32::from_str_radix(text, 16).ok();
        let piece = Self { segment: Segment::parse(segment)?, begin: number(begin)?, end: number(end)? };
        (piece.begin < piece.end && piece.to_string() == name).then_some(piece)
    }
}

/// The beginning of a segment.
#[derive(Clone, Debug)]
pub struct Partial {
    /// What it says of itself.
    pub summary: SegmentSummary,
    /// The segment, filled up with zeros, as PostgreSQL reads it.
    pub content: Vec<u8>,
    /// Bytes of it in the repository.
    pub stored: u64,
}

impl Repository {
    /// The folder of the pieces.
    pub fn stream_dir(&self) -> PathBuf {
        self.member_dir().join("stream")
    }

    fn piece_path(&self, piece: Piece) -> PathBuf {
        self.stream_dir().join(format!("{piece}.zst"))
    }

    /// All pieces, in the order of their names.
    pub fn pieces(&self) -> Result<Vec<Piece>> {
        Ok(self
            .storage()
            .list(&self.stream_dir())?
            .iter()
            .filter_map(|name| Piece::parse(name.strip_suffix(".zst")?))
            .collect())
    }

    /// Stores a piece, durably.
    pub fn store_piece(&self, piece: Piece, content: &[u8], level: i32) -> Result<()> {
        self.writable()?;
        let note = WalNote::of(&piece.to_string(), content);
        let path = self.piece_path(piece);
        match self.storage().write_new(&path, &walstore::encode(&note, content, level, self.keys())?)? {
            fsio::Published::New => Ok(()),
            // Whoever put it there may have died before it was durable. What it holds is looked at by whoever reads it.
            fsio::Published::Existing => self.storage().confirm(&path, self.root()),
        }
    }

    /// Reads one piece; none when it is not there (any more).
    pub fn read_piece(&self, piece: Piece) -> Result<Option<Vec<u8>>> {
        let path = self.piece_path(piece);
        let Some(bytes) = self.storage().read(&path)? else { return Ok(None) };
        let (_, content) = walstore::decode(&bytes, &path, self.keys())?;
        match content.len() == (piece.end - piece.begin) as usize {
            true => Ok(Some(content)),
            false => Err(Error::damaged(
                format_args!("the streamed WAL \"{}\"", path.display()),
                format_args!("it has {} bytes", content.len()),
            )),
        }
    }

    /// Removes the pieces of a segment.
    pub fn remove_pieces(&self, pieces: impl IntoIterator<Item = Piece>) -> Result<()> {
        self.writable()?;
        for piece in pieces {
            self.storage().remove(&self.piece_path(piece))?;
        }
        Ok(())
    }

    /// What the pieces of a segment cover from its beginning on. A piece that is missing between others is a gap.
    pub fn streamed(&self, segment: Segment) -> Result<Vec<u8>> {
        let mut pieces: Vec<Piece> = self.pieces()?.into_iter().filter(|piece| piece.segment == segment).collect();
        // Of those that begin at the same place the longest first.
        pieces.sort_by_key(|piece| (piece.begin, std::cmp::Reverse(piece.end)));
        let mut content = Vec::new();
        for piece in pieces {
            if piece.end as usize <= content.len() {
                continue;
            }
            if piece.begin as usize > content.len() {
                return Err(Error::new(
                    ErrorKind::Gap,
                    format!("the streamed WAL of {segment} is missing from byte {} to {}", content.len(), piece.begin),
                ));
            }
            // One that is gone was put together with others, or its segment is whole; whoever asks looks again.
            let Some(bytes) = self.read_piece(piece)? else { return Ok(content) };
            content.extend_from_slice(bytes.get(content.len() - piece.begin as usize..).unwrap_or_default());
        }
        Ok(content)
    }

    /// The beginning of a segment that is not whole in the archive: what was streamed of it, or what the end of a timeline
    /// left, whichever has more. None when there is neither.
    pub fn partial(&self, segment: Segment) -> Result<Option<Partial>> {
        let Some(identity) = self.identity()? else { return Ok(None) };
        let size = identity.segment_size as usize;
        let name = segment.to_string();
        let summary = |content: &[u8]| -> Result<Option<SegmentSummary>> {
            match SegmentHeader::read(content) {
                Some(header) => SegmentSummary::of(&name, &header, content).map(Some),
                None => Ok(None),
            }
        };
        let mut best: Option<Partial> = None;
        // Whoever has no identity knows the end of the log by whole segments only.
        let mut streamed = crypt::unless_sealed(self.streamed(segment))?.unwrap_or_default();
        if !streamed.is_empty() {
            let stored = streamed.len() as u64;
            streamed.resize(size, 0);
            if let Some(summary) = summary(&streamed)? {
                best = Some(Partial { summary, content: streamed, stored });
            }
        }
        let end = |partial: &Option<Partial>| partial.as_ref().and_then(|partial| partial.summary.last_record_end);
        if let Some((note, content)) = crypt::unless_sealed(self.read_wal(&format!("{name}.partial")))?.flatten()
            && let Some(summary) = summary(&content)?
        {
            let left = Some(Partial { summary, content, stored: note.bytes });
            if best.is_none() || end(&left) > end(&best) {
                best = left;
            }
        }
        Ok(best)
    }

    /// The newest segment of a timeline of which the repository has only the beginning; none when what is newest is whole.
    pub fn newest_partial(&self, timeline: u32) -> Result<Option<Segment>> {
        let streamed = self.pieces()?.into_iter().map(|piece| piece.segment).filter(|s| s.timeline == timeline).max();
        let dir = self.wal_dir().join(format!("{timeline:08X}"));
        let names = self.storage().list(&dir)?;
        let left = names.iter().filter_map(|name| match WalName::parse(name.strip_suffix(".zst")?)? {
            WalName::Partial(segment) => Some(segment),
            _ => None,
        });
        let whole = names.iter().filter_map(|name| Segment::parse(name.strip_suffix(".zst")?)).max();
        let newest = streamed.into_iter().chain(left).max().filter(|newest| whole.is_none_or(|whole| *newest > whole));
        // Of what nobody here can open nothing is known.
        match newest {
            Some(newest) if !self.opens_partial(newest)? => Ok(None),
            other => Ok(other),
        }
    }

    /// False when what is there of a segment's beginning is encrypted, and no identity at hand opens it.
    fn opens_partial(&self, segment: Segment) -> Result<bool> {
        let partial = format!("{segment}.partial");
        let first = self.pieces()?.into_iter().find(|piece| piece.segment == segment);
        let path = match first {
            Some(piece) => self.piece_path(piece),
            None => self.wal_path(&partial, WalName::Partial(segment)),
        };
        let Some(reader) = self.storage().open(&path)? else { return Ok(true) };
        let mut head = [0; crypt::MAGIC.len()];
        if reader.read_exact_at(&mut head, 0).is_err() || !crypt::is_sealed(&head) {
            return Ok(true);
        }
        let read = match first {
            Some(piece) => self.read_piece(piece).map(drop),
            None => self.read_wal(&partial).map(drop),
        };
        Ok(!matches!(read, Err(error) if error.kind == ErrorKind::NoKey))
    }

    /// A segment as recovery reads it: whole, or its beginning when the archive has no more.
    pub fn read_segment(&self, segment: Segment) -> Result<Option<Vec<u8>>> {
        if let Some((_, content)) = self.read_wal(&segment.to_string())? {
            return Ok(Some(content));
        }
        let partial = self.partial(segment)?;
        // It may have become whole while its pieces were looked at.
        match self.read_wal(&segment.to_string())? {
            Some((_, content)) => Ok(Some(content)),
            None => Ok(partial.map(|partial| partial.content)),
        }
    }

    /// Up to where a segment was streamed.
    pub fn streamed_to(&self, segment: Segment, segment_size: u64) -> Result<Option<Lsn>> {
        let end = self.pieces()?.into_iter().filter(|piece| piece.segment == segment).map(|piece| piece.end).max();
        Ok(end.map(|end| Lsn(segment.start(segment_size).0 + u64::from(end))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::path::Path;

    fn repository(root: &Path) -> Repository {
        let text = format!("system = \"s\"\n[member]\nname = \"m\"\n[repository]\npath = \"{}\"\n", root.display());
        Repository::open_or_create(&Config::parse(&text, Path::new("/x")).unwrap()).unwrap()
    }

    #[test]
    fn names_are_told_from_others() {
        let segment = Segment { timeline: 1, log: 0, seg: 3 };
        let piece = Piece { segment, begin: 0x2000, end: 0xA1B2C3 };
        assert_eq!(piece.to_string(), "000000010000000000000003.00002000-00A1B2C3");
        assert_eq!(Piece::parse(&piece.to_string()), Some(piece));
        for bad in [
            "000000010000000000000003",
            "000000010000000000000003.partial",
            "000000010000000000000003.00002000-00002000",
            "000000010000000000000003.2000-A1B2C3",
            "000000010000000000000003.00002000-00a1b2c3",
        ] {
            assert_eq!(Piece::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn pieces_cover_the_beginning_and_a_hole_is_a_gap() {
        let dir = tempfile::tempdir().unwrap();
        let repository = repository(dir.path());
        let segment = Segment { timeline: 1, log: 0, seg: 3 };
        let all: Vec<u8> = (0..1000u32).map(|n| n as u8).collect();
        let store = |begin: u32, end: u32| {
            let piece = Piece { segment, begin, end };
            repository.store_piece(piece, &all[begin as usize..end as usize], 1).unwrap();
            piece
        };
        assert_eq!(repository.streamed(segment).unwrap(), Vec::<u8>::new());
        store(0, 100);
        let second = store(100, 300);
        store(300, 310);
        store(0, 300);
        store(250, 400);
        assert_eq!(repository.streamed(segment).unwrap(), all[..400]);
        repository.remove_pieces([second]).unwrap();
        assert_eq!(repository.streamed(segment).unwrap(), all[..400]);
        store(500, 600);
        assert_eq!(repository.streamed(segment).unwrap_err().kind, ErrorKind::Gap);
        let path = repository.piece_path(Piece { segment, begin: 0, end: 300 });
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[5] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(repository.streamed(segment).unwrap_err().kind, ErrorKind::Damaged);
    }
}
