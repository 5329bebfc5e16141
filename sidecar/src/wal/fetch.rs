//! `strata wal fetch`: PostgreSQL's `restore_command`.
//!
//! A file that is not there is exit code 1, which PostgreSQL takes as the end of the log. A damaged file or a gap must
//! not look like that: then PostgreSQL would open the server short of its target. The exit code cannot say so (above 125
//! PostgreSQL stops, but so it does for a shutdown), therefore every recovery that `strata recover` prepares names its
//! target by position or time, and PostgreSQL itself refuses to open when the log ends before the target. Here the
//! reason is written to the log.

use super::name::{Segment, WalName};
use crate::config::Config;
use crate::error::{AtPath, Error, ErrorKind, Result};
use crate::recovery::spool;
use crate::repository::Repository;
use std::path::Path;

/// Restores the file `name` to `path`.
pub fn fetch(config: &Config, name: &str, path: &Path) -> Result<()> {
    let kind = WalName::parse(name).ok_or_else(|| {
        Error::new(ErrorKind::Usage, format!("\"{name}\" is not the name of a WAL file"))
            .with_hint("Set restore_command = 'strata --config FILE wal fetch %f %p'.")
    })?;
    if spool::take(config, name, path) {
        return Ok(());
    }
    let repository = Repository::open(config)?;
    let content = match kind {
        // Only a recovery that has a target in it knows what to do with the beginning of a segment.
        WalName::Segment(segment) if config.repository.read_only => repository.read_segment(segment)?,
        _ => repository.read_wal(name)?.map(|(_, content)| content),
    };
    match content {
        Some(content) => std::fs::write(path, &content).at("write", path),
        None => Err(absent(&repository, name, kind)?),
    }
}

fn absent(repository: &Repository, name: &str, kind: WalName) -> Result<Error> {
    if let WalName::Segment(wanted) = kind {
        let later = |segment: &Segment| (segment.log, segment.seg) > (wanted.log, wanted.seg);
        if let Some(next) = repository.segments(wanted.timeline)?.into_iter().find(later) {
            return Ok(Error::new(ErrorKind::Gap, format!("the WAL segment {name} is missing from the archive"))
                .detail(format!("A later one, {next}, is there.")));
        }
    }
    Ok(Error::new(ErrorKind::Missing, format!("{name} is not in the archive")))
}
