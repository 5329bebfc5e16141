//! The WAL archive of a member.
//!
//! A file is a zstd frame with the content, followed by a zstd skippable frame with a note, so `zstd -d` gives the
//! content back. The skippable frame is: magic `0x184D2A5A` and the length of what follows as little-endian 32-bit
//! numbers; the note as JSON; its CRC-32C and its length as little-endian 32-bit numbers; the eight bytes `STRATAW1`.
//! The note holds BLAKE3 and size of the content, BLAKE3 of the frame, and for a segment what it says of itself. Being
//! at the end, the note is read without the content, and a file that was cut off has none. No byte of the file is left
//! unchecked.
//!
//! In a repository with recipients the frame is in an age file ([`super::crypt`]), followed by the same note, which stays readable: it says what the archive
//! holds, and the checksum of what is stored in front of it. History files are never encrypted: which timeline left which one where is needed by
//! everything that looks at the archive, and they say nothing else.

use super::Repository;
use super::crypt::{self, Keys};
use crate::error::{Error, ErrorKind, Result};
use crate::wal::name::{Segment, WalName};
use crate::wal::scan::SegmentSummary;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

const SKIPPABLE: u32 = 0x184D_2A5A;
const MAGIC: &[u8; 8] = b"STRATAW1";
const FOOTER: usize = 16;

/// What an archived file says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalNote {
    /// The name of the file in `pg_wal`.
    pub name: String,
    /// Size of the content.
    pub bytes: u64,
    /// BLAKE3 of the content.
    pub blake3: String,
    /// BLAKE3 of what is in front of the note: the zstd frame, or the age file with it. Set by [`encode`].
    #[serde(default)]
    pub frame_blake3: String,
    /// When it was archived.
    pub archived_at: Timestamp,
    /// For a segment: the one before it on its timeline was in the archive already. So its loss can be told from a
    /// beginning.
    #[serde(default)]
    pub follows: bool,
    /// What a segment says of itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment: Option<SegmentSummary>,
}

impl WalNote {
    /// About this content, archived now. It neither follows another nor is a segment.
    pub fn of(name: &str, content: &[u8]) -> Self {
        Self {
            name: name.to_owned(),
            bytes: content.len() as u64,
            blake3: blake3::hash(content).to_hex().to_string(),
            frame_blake3: String::new(),
            archived_at: Timestamp::now(),
            follows: false,
            segment: None,
        }
    }
}

/// Builds an archive file.
pub fn encode(note: &WalNote, content: &[u8], level: i32, keys: &Keys) -> Result<Vec<u8>> {
    let failed =
        |error: std::io::Error| Error::new(ErrorKind::Io, format!("could not compress {}: {error}", note.name));
    let mut out = zstd::bulk::compress(content, level).map_err(failed)?;
    if !matches!(WalName::parse(&note.name), Some(WalName::History(_))) {
        out = keys.seal(out)?;
    }
    let note = WalNote { frame_blake3: blake3::hash(&out).to_hex().to_string(), ..note.clone() };
    let note = serde_json::to_vec(&note)
        .map_err(|error| Error::new(ErrorKind::Io, format!("could not write JSON: {error}")))?;
    out.extend_from_slice(&trailer(&note));
    Ok(out)
}

/// The bytes that hold a note behind what it is about.
pub(super) fn trailer(note: &[u8]) -> Vec<u8> {
    // A note is a few hundred bytes.
    let length = note.len() as u32;
    let mut out = Vec::with_capacity(note.len() + FOOTER + 8);
    out.extend_from_slice(&SKIPPABLE.to_le_bytes());
    out.extend_from_slice(&(length + FOOTER as u32).to_le_bytes());
    out.extend_from_slice(note);
    out.extend_from_slice(&crc32c::crc32c(note).to_le_bytes());
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(MAGIC);
    out
}

fn footer(bytes: &[u8]) -> Option<(u32, u64)> {
    let footer = bytes.get(bytes.len().checked_sub(FOOTER)?..)?;
    let crc = u32::from_le_bytes(footer.get(..4)?.try_into().ok()?);
    let length = u32::from_le_bytes(footer.get(4..8)?.try_into().ok()?);
    (footer.get(8..) == Some(MAGIC.as_slice())).then_some((crc, u64::from(length)))
}

/// Takes an archive file apart and checks all of it. `path` names it in errors. One that is encrypted for others is [`ErrorKind::NoKey`].
pub fn decode(bytes: &[u8], path: &Path, keys: &Keys) -> Result<(WalNote, Vec<u8>)> {
    let (note, frame) = check_stored(bytes, path)?;
    let bad = |why: String| Error::damaged(format_args!("the archived WAL file \"{}\"", path.display()), why);
    let what = format_args!("the archived WAL file \"{}\"", path.display());
    let content = zstd::bulk::decompress(&keys.content(frame, what)?, note.bytes as usize)
        .map_err(|error| bad(format!("it does not decompress: {error}")))?;
    if content.len() as u64 != note.bytes || blake3::hash(&content).to_hex().as_str() != note.blake3 {
        return Err(bad("its checksum does not match its content".to_owned()));
    }
    Ok((note, content))
}

/// Checks what can be checked of an archive file without an identity: every byte that is stored. Returns its note, and what is in front of it.
pub fn check_stored<'a>(bytes: &'a [u8], path: &Path) -> Result<(WalNote, &'a [u8])> {
    let bad = |why: String| Error::damaged(format_args!("the archived WAL file \"{}\"", path.display()), why);
    let (note, frame_end) = note_of(bytes, bytes.len() as u64).map_err(&bad)?;
    let frame = bytes.get(..frame_end).unwrap_or_default();
    let header = bytes.get(frame_end..frame_end + 8).and_then(|header| header.split_first_chunk::<4>());
    let rest = (bytes.len() - frame_end - 8) as u32;
    if header.is_none_or(|(magic, length)| *magic != SKIPPABLE.to_le_bytes() || length != rest.to_le_bytes()) {
        return Err(bad("the header of its note does not match".to_owned()));
    }
    if blake3::hash(frame).to_hex().as_str() != note.frame_blake3 {
        return Err(bad("its checksum does not match".to_owned()));
    }
    check_name(&note, path).map_err(bad)?;
    Ok((note, frame))
}

/// The note in the last bytes of a file of `size` bytes, and where what it is about ends.
pub(super) fn split(tail: &[u8], size: u64) -> Result<(&[u8], u64), String> {
    let (crc, length) = footer(tail).ok_or("its end is missing")?;
    let before = length + FOOTER as u64 + 8;
    if before > size || before > tail.len() as u64 {
        return Err("its note is longer than the file".to_owned());
    }
    let begin = tail.len() - length as usize - FOOTER;
    let note = tail.get(begin..begin + length as usize).unwrap_or_default();
    if crc32c::crc32c(note) != crc {
        return Err("the checksum of its note does not match".to_owned());
    }
    Ok((note, size - before))
}

/// Parses the note from the last bytes of a file of `size` bytes; also says where the frame with the content ends.
fn note_of(tail: &[u8], size: u64) -> Result<(WalNote, usize), String> {
    let (note, end) = split(tail, size)?;
    let note: WalNote = serde_json::from_slice(note).map_err(|error| format!("its note does not parse: {error}"))?;
    if note.bytes > 1 << 31 {
        return Err(format!("its note says that it has {} bytes", note.bytes));
    }
    Ok((note, end as usize))
}

fn check_name(note: &WalNote, path: &Path) -> Result<(), String> {
    let expected = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".zst"));
    match expected {
        Some(expected) if expected == note.name => Ok(()),
        _ => Err(format!("it holds {}", note.name)),
    }
}

impl Repository {
    /// The directory of the archive.
    pub fn wal_dir(&self) -> PathBuf {
        self.member_dir().join("wal")
    }

    /// Where a file of `pg_wal` is archived.
    pub fn wal_path(&self, name: &str, kind: WalName) -> PathBuf {
        match kind {
            WalName::History(_) => self.wal_dir().join(format!("{name}.zst")),
            _ => self.wal_dir().join(format!("{:08X}", kind.timeline())).join(format!("{name}.zst")),
        }
    }

    /// Reads and checks an archived file; none when it is not there.
    pub fn read_wal(&self, name: &str) -> Result<Option<(WalNote, Vec<u8>)>> {
        let Some(kind) = WalName::parse(name) else { return Ok(None) };
        let path = self.wal_path(name, kind);
        match self.storage().read(&path)? {
            Some(bytes) => decode(&bytes, &path, self.keys()).map(Some),
            None => Ok(None),
        }
    }

    /// Reads and checks an archived file as far as that is possible: without an identity that opens it, what is stored. None when it is not there.
    pub fn check_wal(&self, name: &str) -> Result<Option<WalNote>> {
        let Some(kind) = WalName::parse(name) else { return Ok(None) };
        let path = self.wal_path(name, kind);
        let Some(bytes) = self.storage().read(&path)? else { return Ok(None) };
        match crypt::unless_sealed(decode(&bytes, &path, self.keys()))? {
            Some((note, _)) => Ok(Some(note)),
            None => check_stored(&bytes, &path).map(|(note, _)| Some(note)),
        }
    }

    /// Reads only the note of an archived file, and its size in the archive; none when it is not there.
    pub fn read_wal_note(&self, name: &str) -> Result<Option<(WalNote, u64)>> {
        let Some(kind) = WalName::parse(name) else { return Ok(None) };
        let path = self.wal_path(name, kind);
        let Some((tail, size)) = self.storage().read_end(&path, 4096)? else { return Ok(None) };
        let bad = |why: String| Error::damaged(format_args!("the archived WAL file \"{}\"", path.display()), why);
        let (note, _) = note_of(&tail, size).map_err(&bad)?;
        check_name(&note, &path).map_err(bad)?;
        Ok(Some((note, size)))
    }

    /// True when the archive has the segment.
    pub fn has_segment(&self, segment: Segment) -> Result<bool> {
        let name = segment.to_string();
        self.storage().exists(&self.wal_path(&name, WalName::Segment(segment)))
    }

    /// The timelines that have a directory or a history, ascending.
    pub fn wal_timelines(&self) -> Result<Vec<u32>> {
        let mut timelines: Vec<u32> = self
            .storage()
            .list(&self.wal_dir())?
            .iter()
            .filter_map(|name| match name.strip_suffix(".history.zst") {
                Some(timeline) => u32::from_str_radix(timeline, 16).ok(),
                None => (name.len() == 8).then(|| u32::from_str_radix(name, 16).ok()).flatten(),
            })
            .collect();
        timelines.sort_unstable();
        timelines.dedup();
        Ok(timelines)
    }

    /// The whole segments of a timeline, ascending.
    pub fn segments(&self, timeline: u32) -> Result<Vec<Segment>> {
        let dir = self.wal_dir().join(format!("{timeline:08X}"));
        Ok(self.storage().list(&dir)?.iter().filter_map(|name| Segment::parse(name.strip_suffix(".zst")?)).collect())
    }

    /// The names of everything that is archived, without `.zst`: timeline by timeline, then the histories.
    pub fn wal_names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for timeline in self.wal_timelines()? {
            let dir = self.wal_dir().join(format!("{timeline:08X}"));
            names.extend(self.storage().list(&dir)?);
        }
        names.extend(self.storage().list(&self.wal_dir())?.into_iter().filter(|name| name.ends_with(".history.zst")));
        Ok(names.iter().filter_map(|name| name.strip_suffix(".zst").map(str::to_owned)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "000000010000000000000001";

    fn sample() -> (WalNote, Vec<u8>, Vec<u8>) {
        let content: Vec<u8> = (0..100_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        let note = WalNote { archived_at: Timestamp::UNIX_EPOCH, ..WalNote::of(NAME, &content) };
        let file = encode(&note, &content, 1, &Keys::none()).unwrap();
        (note, content, file)
    }

    fn path() -> PathBuf {
        PathBuf::from(format!("/r/{NAME}.zst"))
    }

    #[test]
    fn content_and_note_come_back() {
        let (note, content, file) = sample();
        let (found, found_content) = decode(&file, &path(), &Keys::none()).unwrap();
        assert_eq!(found_content, content);
        assert_eq!(WalNote { frame_blake3: String::new(), ..found }, note);
    }

    #[test]
    fn a_plain_zstd_decoder_reads_the_content() {
        let (_, content, file) = sample();
        assert_eq!(zstd::stream::decode_all(file.as_slice()).unwrap(), content);
    }

    #[test]
    fn damage_anywhere_is_found() {
        let (_, _, file) = sample();
        for at in (0..file.len()).step_by(97).chain(file.len() - 400..file.len()) {
            let mut changed = file.clone();
            changed[at] ^= 0x10;
            let error = decode(&changed, &path(), &Keys::none()).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Damaged, "byte {at}");
            assert!(error.message.contains(NAME));
        }
        for length in [0, 1, 15, 16, 100, file.len() - 1] {
            assert!(decode(&file[..length], &path(), &Keys::none()).is_err(), "length {length}");
        }
    }

    #[test]
    fn what_is_encrypted_is_checked_without_an_identity() {
        let dir = tempfile::tempdir().unwrap();
        let (file, one) = crypt::tests::identity(dir.path(), "one");
        let (note, content, _) = sample();
        let (writes, reads) = (crypt::tests::keys(&[&one], None), crypt::tests::keys(&[], Some(&file)));
        let stored = encode(&note, &content, 1, &writes).unwrap();
        assert_eq!(decode(&stored, &path(), &reads).unwrap().1, content);
        assert_eq!(decode(&stored, &path(), &writes).unwrap_err().kind, ErrorKind::NoKey);
        assert_eq!(check_stored(&stored, &path()).unwrap().0.blake3, note.blake3);
        for at in (0..stored.len()).step_by(97) {
            let mut changed = stored.clone();
            changed[at] ^= 0x10;
            assert_eq!(check_stored(&changed, &path()).unwrap_err().kind, ErrorKind::Damaged, "byte {at}");
        }
        let history = WalNote::of("00000002.history", b"1\t0/3000000\tx\n");
        let stored = encode(&history, b"1\t0/3000000\tx\n", 1, &writes).unwrap();
        assert!(decode(&stored, Path::new("/r/00000002.history.zst"), &Keys::none()).is_ok());
    }

    #[test]
    fn a_file_under_another_name_is_refused() {
        let (_, _, file) = sample();
        let other = PathBuf::from("/r/000000010000000000000002.zst");
        assert!(decode(&file, &other, &Keys::none()).unwrap_err().message.contains(NAME));
    }
}
