//! The fragments of a backup: which ones the catalogs name, and copying those that the repository does not have.

use crate::error::{ErrorKind, Result};
use crate::postgres::server::{self, Database};
use crate::postgres::{Conninfo, Session};
use crate::progress::Progress;
use crate::recovery::timeline::Chain;
use crate::repository::fragments::FragmentLogEntry;
use crate::repository::manifest::FragmentRef;
use crate::repository::objects::StoredObject;
use crate::repository::{Repository, fsio};
use jiff::Timestamp;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use strata_catalog::{FragmentRow, names};

/// As far as the clock of a file system may be behind ours.
const CLOCKS: Duration = Duration::from_secs(5);

/// The fragments of one database.
#[derive(Clone, Debug)]
pub struct DatabaseFragments {
    /// The database.
    pub database: Database,
    /// The rows of its `strata.fragment`.
    pub rows: Vec<FragmentRow>,
}

/// Reads `strata.fragment` of the session's database.
pub async fn read_rows(session: &Session) -> Result<Vec<FragmentRow>> {
    let rows = session
        .query(
            "SELECT f.fragment_id, f.relid, c.oid::regclass::text, f.hash, f.row_count, f.bytes, f.created_at, f.created_lsn \
             FROM strata.fragment f LEFT JOIN pg_class c ON c.oid = f.relid ORDER BY f.fragment_id",
            &[],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| FragmentRow {
            fragment_id: row.get(0),
            relid: row.get(1),
            relation: row.get(2),
            hash: row.get(3),
            row_count: row.get(4),
            bytes: row.get(5),
            created_at: row.get(6),
            created_lsn: server::lsn(row.get(7)),
        })
        .collect())
}

/// Reads the fragments of every database that has the extension.
pub async fn read_all(conninfo: &Conninfo, session: &Session) -> Result<Vec<DatabaseFragments>> {
    let mut found = Vec::new();
    for database in server::databases(session).await? {
        let other = match conninfo.database(&database.name).connect().await {
            Ok(other) => other,
            Err(error) => {
                // Dropped since it was listed: then it has no fragments that anybody can read.
                if server::databases(session).await?.contains(&database) {
                    return Err(error);
                }
                continue;
            }
        };
        if server::has_catalog(&other).await? {
            found.push(DatabaseFragments { rows: read_rows(&other).await?, database });
        }
    }
    Ok(found)
}

/// Two reads made into one: whatever either saw.
pub fn union(first: Vec<DatabaseFragments>, second: Vec<DatabaseFragments>) -> Vec<DatabaseFragments> {
    let mut all: BTreeMap<u32, DatabaseFragments> = BTreeMap::new();
    let mut seen = HashSet::new();
    for one in second.into_iter().chain(first) {
        let entry = all
            .entry(one.database.oid)
            .or_insert_with(|| DatabaseFragments { database: one.database.clone(), rows: Vec::new() });
        for row in one.rows {
            if seen.insert((one.database.oid, row.fragment_id, row.hash.clone())) {
                entry.rows.push(row);
            }
        }
    }
    all.into_values().collect()
}

/// What copying fragments came to.
#[derive(Clone, Debug, Default)]
pub struct FragmentsCopied {
    /// All fragments that the catalogs named.
    pub fragments: Vec<FragmentRef>,
    /// How many of them were copied now.
    pub copied: u64,
    /// Their bytes.
    pub bytes_copied: u64,
    /// The objects in which they went through a third-party tool.
    pub objects: Vec<StoredObject>,
    /// Those that are neither in the store nor in the repository, or are damaged in the store, each with the reason.
    pub failed: Vec<(FragmentRef, String)>,
}

/// Copies the fragments that came into the store after `since` and that the repository does not have: a row that came and
/// went between two looks at the catalog has left its file.
pub fn copy_recent(repository: &Repository, store: &Path, since: SystemTime) -> Result<()> {
    for (hash, path) in recent(store, since)? {
        match repository.put_fragment(&hash, &path) {
            Err(error) if matches!(error.kind, ErrorKind::Missing | ErrorKind::Damaged) => {
                tracing::debug!("no row named the fragment {hash}, and it was not copied: {error}");
            }
            other => drop(other?),
        }
    }
    Ok(())
}

/// The fragments that came into a store after `since`: hash and file.
pub fn recent(store: &Path, since: SystemTime) -> Result<Vec<(String, PathBuf)>> {
    let since = since.checked_sub(CLOCKS).unwrap_or(since);
    let mut files = files_of_store(store)?;
    files.retain(|(_, path)| {
        std::fs::metadata(path).and_then(|meta| meta.modified()).is_ok_and(|modified| modified >= since)
    });
    Ok(files)
}

/// The fragments in a store: hash and file.
pub fn files_of_store(store: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for database in fsio::list(store)?.iter().filter(|name| name.bytes().all(|b| b.is_ascii_digit())) {
        for folder in fsio::list(&store.join(database))?.iter().filter(|name| name.len() == 2) {
            let folder = store.join(database).join(folder);
            for name in fsio::list(&folder)? {
                let hash = name.strip_suffix(".frag").filter(|hash| names::is_fragment_hash(hash));
                found.extend(hash.map(|hash| (hash.to_owned(), folder.join(&name))));
            }
        }
    }
    Ok(found)
}

/// Copies one fragment unless the repository has it, and logs it. `way` leads to the timeline of the server that has the row. Returns the bytes
/// copied, and the entry.
pub fn keep(
    repository: &Repository,
    database: &Database,
    row: &FragmentRow,
    store: &Path,
    way: &Chain,
) -> Result<(u64, FragmentLogEntry)> {
    let below = names::fragment_relative_path(database.oid, &row.hash).unwrap_or_default();
    // From the look at the repository until the log names the fragment, nobody may remove it.
    let shared = repository.share_fragments()?;
    let copied = repository.put_fragment(&row.hash, &store.join(below))?;
    let entry = FragmentLogEntry {
        database_oid: database.oid,
        database: database.name.clone(),
        fragment: row.clone(),
        timeline: way.holding(row.created_lsn),
        completed_at: Timestamp::now(),
        dropped: Vec::new(),
    };
    repository.log_fragment(&entry)?;
    shared.require_held()?;
    Ok((copied, entry))
}

/// Copies the fragments that the repository does not have. Those that are not `needed` may be gone meanwhile: their rows
/// were seen before the backup's end but not after. `way` leads to the server's timeline.
pub fn copy(
    repository: &Repository,
    all: &[DatabaseFragments],
    needed: impl Fn(u32, i64) -> bool,
    store: &Path,
    way: &Chain,
    progress: &Progress,
) -> Result<FragmentsCopied> {
    let unsigned = |n: i64| u64::try_from(n).unwrap_or(0);
    let total = all.iter().flat_map(|one| &one.rows).map(|row| unsigned(row.bytes)).sum();
    progress.phase_bytes("fragments", total, "copying the fragments that the repository does not have");
    let mut done = FragmentsCopied::default();
    for one in all {
        for row in &one.rows {
            let mut fragment = FragmentRef {
                database_oid: one.database.oid,
                database: one.database.name.clone(),
                relation: row.relation.clone(),
                hash: row.hash.clone(),
                bytes: unsigned(row.bytes),
                rows: unsigned(row.row_count),
                created_at: row.created_at,
                created_lsn: row.created_lsn,
                missing: false,
            };
            match keep(repository, &one.database, row, store, way) {
                Ok((bytes, _)) => {
                    done.copied += u64::from(bytes > 0);
                    done.bytes_copied += bytes;
                    done.fragments.push(fragment);
                }
                // Anything but a fragment that the store has lost is the repository's trouble.
                Err(error) if !matches!(error.kind, ErrorKind::Missing | ErrorKind::Damaged) => return Err(error),
                Err(error) if !needed(one.database.oid, row.fragment_id) => {
                    tracing::debug!("fragment {} is gone with its table: {error}", row.hash);
                }
                Err(error) => {
                    fragment.missing = true;
                    done.failed.push((fragment.clone(), error.to_string()));
                    done.fragments.push(fragment);
                }
            }
            progress.advance(unsigned(row.bytes));
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_file_whose_row_came_and_went_is_copied_and_older_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("system = \"s\"\n[member]\n[repository]\npath = \"{}/r\"\n", dir.path().display());
        let repository = Repository::open_or_create(&Config::parse(&text, Path::new("/x")).unwrap()).unwrap();
        let store = dir.path().join("store");
        let put = |content: &str, age: u64, hash: Option<&str>| {
            let hash = hash.map_or_else(|| blake3::hash(content.as_bytes()).to_hex().to_string(), str::to_owned);
            let path = store.join(names::fragment_relative_path(5, &hash).unwrap());
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, content).unwrap();
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
            hash
        };
        let (new, old) = (put("new", 0, None), put("old", 3600, None));
        put("damaged", 0, Some(&"0".repeat(64)));
        std::fs::write(store.join("strata.toml"), "").unwrap();
        copy_recent(&repository, &store, SystemTime::now()).unwrap();
        let there: Vec<String> = repository.fragments().unwrap().into_iter().map(|(hash, _)| hash).collect();
        assert_eq!(there, [new]);
        copy_recent(&repository, &store, SystemTime::now() - Duration::from_secs(7200)).unwrap();
        assert!(repository.has_fragment(&old).unwrap());
        copy_recent(&repository, &dir.path().join("nowhere"), SystemTime::now()).unwrap();
    }
}
