//! The segment that is being received by streaming: what came of it, and what of that is stored.
//!
//! ```text
//!   content ├──────── stored, in pieces ────────┼── received ──┤ .............. ┤
//!           0                                 stored         length            size
//! ```
//!
//! Only what is stored is said to be received durably. When the segment is full it goes into the archive whole, as `archive_command` would
//! have put it there, and its pieces are removed after that. When the archive has it already, the two must be the same. A process
//! that dies leaves pieces; the next one goes on behind what they cover.

use super::name::{Segment, WalName};
use super::push::Prepared;
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::repository::Repository;
use crate::repository::pieces::Piece;
use strata_catalog::Lsn;

/// From this many pieces on they are put together into one.
const MANY: usize = 64;

/// A segment that is being received.
#[derive(Debug)]
pub struct Incoming {
    repository: Repository,
    level: i32,
    segment: Segment,
    size: u64,
    content: Vec<u8>,
    stored: usize,
    pieces: Vec<Piece>,
}

impl Incoming {
    /// Begins a segment, or goes on with what is stored of it. Pieces that are of no use (damaged, behind a hole) are removed, since
    /// the server still has all of the segment.
    pub fn resume(repository: Repository, segment: Segment, size: u64, level: i32) -> Result<Self> {
        let pieces: Vec<Piece> = repository.pieces()?.into_iter().filter(|piece| piece.segment == segment).collect();
        let (content, pieces) = match repository.streamed(segment) {
            Ok(content) if content.len() as u64 <= size => (content, pieces),
            Ok(_) => (Vec::new(), discard(&repository, pieces)?),
            // Without an identity they cannot be gone on with: the segment is received again from its beginning, and they stay until it is whole.
            Err(error) if error.kind == ErrorKind::NoKey => (Vec::new(), pieces),
            Err(error) if matches!(error.kind, ErrorKind::Damaged | ErrorKind::Gap) => {
                tracing::warn!("what was streamed of {segment} is received again: {error}");
                (Vec::new(), discard(&repository, pieces)?)
            }
            Err(error) => return Err(error),
        };
        let stored = content.len();
        Ok(Self { repository, level, segment, size, content, stored, pieces })
    }

    /// The segment.
    pub fn segment(&self) -> Segment {
        self.segment
    }

    /// The position of the next byte.
    pub fn received(&self) -> Lsn {
        Lsn(self.segment.start(self.size).0 + self.content.len() as u64)
    }

    /// Everything before this position is stored.
    pub fn stored(&self) -> Lsn {
        Lsn(self.segment.start(self.size).0 + self.stored as u64)
    }

    /// True when something was received that is not stored.
    pub fn is_dirty(&self) -> bool {
        self.stored < self.content.len()
    }

    /// True when the segment is there to its end.
    pub fn is_full(&self) -> bool {
        self.content.len() as u64 >= self.size
    }

    /// Takes bytes that begin at `start`. Returns how many of them belong to this segment.
    pub fn append(&mut self, start: Lsn, bytes: &[u8]) -> Result<usize> {
        if start != self.received() {
            return Err(Error::new(
                ErrorKind::Connection,
                format!("the server sent WAL from {start} on instead of {}", self.received()),
            ));
        }
        let room = (self.size as usize).saturating_sub(self.content.len()).min(bytes.len());
        self.content.extend_from_slice(bytes.get(..room).unwrap_or_default());
        Ok(room)
    }

    /// Stores what was received since, durably.
    pub fn store(&mut self) -> Result<()> {
        if !self.is_dirty() {
            return Ok(());
        }
        let piece = self.piece(self.stored);
        let bytes = self.content.get(self.stored..).unwrap_or_default();
        self.repository.store_piece(piece, bytes, self.level)?;
        self.stored = self.content.len();
        self.pieces.push(piece);
        failpoint::hit(failpoint::STREAM_STORED);
        if self.pieces.len() >= MANY {
            let whole = self.piece(0);
            self.repository.store_piece(whole, &self.content, self.level)?;
            let old = std::mem::replace(&mut self.pieces, vec![whole]);
            self.repository.remove_pieces(old.into_iter().filter(|piece| *piece != whole))?;
        }
        Ok(())
    }

    fn piece(&self, begin: usize) -> Piece {
        // A segment has at most a gigabyte.
        Piece { segment: self.segment, begin: begin as u32, end: self.content.len() as u32 }
    }

    /// Puts the full segment into the archive. Returns the one that follows.
    pub fn finish(self) -> Result<Segment> {
        let name = self.segment.to_string();
        let kind = WalName::Segment(self.segment);
        let (repository, level) = (self.repository.clone(), self.level);
        Prepared::of(repository, &name, kind, &self.content, None, level)?.publish()?;
        failpoint::hit(failpoint::STREAM_WHOLE);
        self.repository.remove_pieces(self.pieces)?;
        Ok(Segment::numbered(self.segment.timeline, self.segment.number(self.size) + 1, self.size))
    }
}

fn discard(repository: &Repository, pieces: Vec<Piece>) -> Result<Vec<Piece>> {
    repository.remove_pieces(pieces)?;
    Ok(Vec::new())
}

/// Removes pieces of segments that are whole in the archive: what a process left that died just before it removed them.
pub fn sweep(repository: &Repository) -> Result<()> {
    for piece in repository.pieces()? {
        if repository.has_segment(piece.segment)? {
            repository.remove_pieces([piece])?;
        }
    }
    Ok(())
}
