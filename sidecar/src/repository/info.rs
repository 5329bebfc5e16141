//! What is in a member's repository, for people and programs.

use super::Repository;
use super::catalog::BackupEntry;
use super::objects::ObjectState;
use crate::error::Result;
use crate::wal::name::Segment;
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use strata_catalog::Lsn;

/// Everything that `strata info` shows.
#[derive(Debug, Serialize)]
pub struct Info {
    /// The system.
    pub system: String,
    /// The member.
    pub member: String,
    /// The repository's directory.
    pub repository: String,
    /// The complete backups, oldest first.
    pub backups: Vec<BackupEntry>,
    /// What cannot be read, one sentence each; `strata verify` looks at everything.
    pub damage: Vec<String>,
    /// Folders of backups that run now or were interrupted.
    pub unfinished_backups: Vec<String>,
    /// The WAL archive, timeline by timeline.
    pub wal: Vec<TimelineInfo>,
    /// Fragments of the system.
    pub fragments: u64,
    /// Their bytes.
    pub fragment_bytes: u64,
    /// Bytes of the backups' packs.
    pub backup_bytes: u64,
    /// Bytes of the WAL archive.
    pub wal_bytes: u64,
    /// What third-party tools hold for the system.
    pub tools: Vec<ToolInfo>,
}

/// What one tool holds.
#[derive(Debug, Default, Serialize)]
pub struct ToolInfo {
    /// The tool.
    pub name: String,
    /// How many objects.
    pub objects: u64,
    /// Bytes that went through the pipe for them.
    pub bytes: u64,
    /// Fragments in them.
    pub fragments: u64,
    /// Objects that were begun and not finished: one runs now, or the next backup has the tool forget it.
    pub unfinished: u64,
}

/// The archive of one timeline.
#[derive(Debug, Serialize)]
pub struct TimelineInfo {
    /// The timeline.
    pub timeline: u32,
    /// The first segment.
    pub first: Option<String>,
    /// The last segment.
    pub last: Option<String>,
    /// Where the first one begins.
    pub start_lsn: Option<Lsn>,
    /// Where the last one ends.
    pub end_lsn: Option<Lsn>,
    /// Up to where it was streamed, when that is behind the last segment.
    pub streamed_to: Option<Lsn>,
    /// The latest commit that is known to be in it.
    pub last_commit_at: Option<Timestamp>,
    /// How many segments.
    pub segments: u64,
    /// Their bytes in the archive.
    pub bytes: u64,
    /// Segments that are missing between the first and the last.
    pub gaps: Vec<Gap>,
}

/// A run of missing segments.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// The first one.
    pub from: String,
    /// The last one.
    pub to: String,
    /// How many.
    pub segments: u64,
}

impl Repository {
    /// Collects what is there.
    pub fn info(&self) -> Result<Info> {
        let (backups, damaged) = self.backups()?;
        let mut damage: Vec<String> = damaged.into_iter().map(|error| error.message).collect();
        let identity = self.identity()?;
        let size = identity.map_or(16 << 20, |identity| u64::from(identity.segment_size));
        let mut wal = Vec::new();
        for timeline in self.wal_timelines()? {
            wal.push(self.timeline_info(timeline, size, &mut damage)?);
        }
        let fragments = self.fragments()?;
        let (objects, damaged) = self.objects()?;
        damage.extend(damaged.into_iter().map(|error| error.message));
        let mut tools: BTreeMap<String, ToolInfo> = BTreeMap::new();
        for object in objects {
            let tool = tools
                .entry(object.tool.clone())
                .or_insert_with(|| ToolInfo { name: object.tool, ..ToolInfo::default() });
            match object.state {
                ObjectState::Stored => {
                    tool.objects += 1;
                    tool.bytes += object.bytes;
                    tool.fragments += object.fragments.len() as u64;
                }
                ObjectState::Started => tool.unfinished += 1,
            }
        }
        Ok(Info {
            tools: tools.into_values().collect(),
            system: self.system().to_owned(),
            member: self.member().to_owned(),
            repository: self.root().display().to_string(),
            unfinished_backups: self.unfinished_backups()?,
            fragments: fragments.len() as u64,
            fragment_bytes: fragments.iter().map(|(_, bytes)| bytes).sum(),
            backup_bytes: backups.iter().map(|backup| backup.stored_bytes).sum(),
            wal_bytes: wal.iter().map(|timeline| timeline.bytes).sum(),
            backups,
            damage,
            wal,
        })
    }

    fn timeline_info(&self, timeline: u32, size: u64, damage: &mut Vec<String>) -> Result<TimelineInfo> {
        let segments = self.segments(timeline)?;
        let listed = self.storage().walk(&self.wal_dir().join(format!("{timeline:08X}")))?;
        let is_segment = |path: &Path| {
            let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".zst"));
            name.and_then(Segment::parse).is_some()
        };
        let bytes = listed.iter().filter(|one| is_segment(&one.path)).map(|one| one.bytes).sum();
        let mut last_commit_at = None;
        for segment in segments.iter().rev() {
            last_commit_at = match self.read_wal_note(&segment.to_string()) {
                Ok(note) => note.and_then(|(note, _)| note.segment).and_then(|summary| summary.last_time),
                Err(error) => {
                    damage.push(error.message);
                    None
                }
            };
            if last_commit_at.is_some() {
                break;
            }
        }
        let partial = self.newest_partial(timeline)?;
        if let Some(partial) = partial {
            match self.partial(partial) {
                Ok(partial) => {
                    last_commit_at = partial.and_then(|partial| partial.summary.last_time).or(last_commit_at);
                }
                Err(error) => damage.push(error.message),
            }
        }
        let streamed_to = partial.map_or(Ok(None), |partial| self.streamed_to(partial, size))?;
        let with_partial: Vec<Segment> = segments.iter().copied().chain(partial).collect();
        Ok(TimelineInfo {
            timeline,
            first: segments.first().map(Segment::to_string),
            last: segments.last().map(Segment::to_string),
            start_lsn: segments.first().map(|segment| segment.start(size)),
            end_lsn: segments.last().map(|segment| segment.end(size)),
            streamed_to,
            last_commit_at,
            segments: segments.len() as u64,
            bytes,
            gaps: gaps(&with_partial, size),
        })
    }
}

fn gaps(segments: &[Segment], size: u64) -> Vec<Gap> {
    segments
        .windows(2)
        .filter_map(|pair| match pair {
            [before, after] if after.number(size) > before.number(size) + 1 => {
                let (from, to) = (before.number(size) + 1, after.number(size) - 1);
                Some(Gap {
                    from: Segment::numbered(before.timeline, from, size).to_string(),
                    to: Segment::numbered(before.timeline, to, size).to_string(),
                    segments: to - from + 1,
                })
            }
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_named_by_their_ends() {
        let size = 16 << 20;
        let segments: Vec<Segment> = [1, 2, 5, 6, 8].iter().map(|n| Segment::numbered(1, *n, size)).collect();
        let name = |n| Segment::numbered(1, n, size).to_string();
        assert_eq!(
            gaps(&segments, size),
            [Gap { from: name(3), to: name(4), segments: 2 }, Gap { from: name(7), to: name(7), segments: 1 }]
        );
        assert_eq!(gaps(&segments[..2], size), []);
    }
}
