//! Lists a data directory for a base backup.
//!
//! Left out is what `pg_basebackup` leaves out: what a server makes anew when it starts, temporary files and relations,
//! and all forks but the init fork of unlogged relations. Files may come and go while the list is made.

use crate::error::{AtPath, Error, ErrorKind, Result};
use crate::postgres::page;
use crate::repository::manifest::{Directory, Tablespace};
use std::collections::HashSet;
use std::io::ErrorKind as IoKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Directories whose content is left out.
const EMPTY_DIRECTORIES: [&str; 8] =
    ["pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans", "pg_wal"];

/// Files of the data directory itself that are left out.
const LEFT_OUT_FILES: [&str; 9] = [
    "backup_label",
    "backup_label.old",
    "backup_manifest",
    "current_logfiles.tmp",
    "postgresql.auto.conf.tmp",
    "postmaster.opts",
    "postmaster.pid",
    "tablespace_map",
    "tablespace_map.old",
];

/// A file to copy.
#[derive(Clone, Debug)]
pub struct ScannedFile {
    /// Its path in the data directory.
    pub path: String,
    /// Where it is read.
    pub source: PathBuf,
    /// Its size when it was listed.
    pub size: u64,
    /// Its permission bits.
    pub mode: u32,
    /// Seconds since 1970 of its last change.
    pub modified: i64,
    /// For a file of pages: the number of its first page in its relation.
    pub first_block: Option<u64>,
}

/// What is there to copy.
#[derive(Debug, Default)]
pub struct Scan {
    /// Directories, parents first.
    pub directories: Vec<Directory>,
    /// Files.
    pub files: Vec<ScannedFile>,
    /// Tablespaces outside the data directory.
    pub tablespaces: Vec<Tablespace>,
    /// Links to tablespaces whose directories are not there: dropped just now, or lost.
    pub lost_tablespaces: Vec<PathBuf>,
}

impl Scan {
    /// The bytes of all files when they were listed.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

/// Lists the data directory. Paths in `leave_out` are not entered (a store or a repository inside it).
pub fn scan(data_directory: &Path, leave_out: &[&Path]) -> Result<Scan> {
    let mut scanner = Scanner { scan: Scan::default(), leave_out };
    scanner.directory(data_directory, "")?;
    scanner.scan.directories.sort_by(|a, b| a.path.cmp(&b.path));
    scanner.scan.files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(scanner.scan)
}

struct Scanner<'a> {
    scan: Scan,
    leave_out: &'a [&'a Path],
}

impl Scanner<'_> {
    fn directory(&mut self, dir: &Path, below: &str) -> Result<()> {
        let entries = match std::fs::read_dir(dir) {
            Ok(entries) => entries,
            // A database that was dropped meanwhile; the drop is in the WAL.
            Err(error) if error.kind() == IoKind::NotFound && !below.is_empty() => return Ok(()),
            Err(error) => return Err(Error::io("list", dir, error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.at("list", dir)?.file_name();
            names.push(name.into_string().map_err(|name| {
                Error::new(ErrorKind::Io, format!("a name in \"{}\" is not UTF-8: {name:?}", dir.display()))
                    .with_hint("Move the file out of the data directory.")
            })?);
        }
        let database = is_database_directory(below);
        let unlogged: HashSet<String> = if database {
            names.iter().filter_map(|name| name.strip_suffix("_init").map(str::to_owned)).collect()
        } else {
            HashSet::new()
        };
        for name in names {
            let path = if below.is_empty() { name.clone() } else { format!("{below}/{name}") };
            let source = dir.join(&name);
            if left_out(below, &name)
                || self.leave_out.contains(&source.as_path())
                || (database && (is_temporary_relation(&name) || is_unlogged_data(&name, &unlogged)))
            {
                continue;
            }
            self.entry(path, source, &name, below)?;
        }
        Ok(())
    }

    fn entry(&mut self, path: String, source: PathBuf, name: &str, below: &str) -> Result<()> {
        let meta = match std::fs::symlink_metadata(&source) {
            Ok(meta) => meta,
            Err(error) if error.kind() == IoKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::io("look at", &source, error)),
        };
        let kind = meta.file_type();
        if kind.is_symlink() {
            return self.symlink(path, source, name, below);
        }
        if kind.is_dir() {
            self.scan.directories.push(Directory { path: path.clone(), mode: meta.permissions().mode() & 0o7777 });
            if EMPTY_DIRECTORIES.contains(&path.as_str()) {
                return self.wal_subdirectories(&path, &source);
            }
            return self.directory(&source, &path);
        }
        if !kind.is_file() {
            tracing::warn!("left out \"{}\": neither a file nor a directory", source.display());
            return Ok(());
        }
        let relation =
            (is_database_directory(below) || below == "global").then(|| page::relation_segment(name)).flatten();
        self.scan.files.push(ScannedFile {
            path,
            source,
            size: meta.len(),
            mode: meta.permissions().mode() & 0o7777,
            modified: meta.mtime(),
            first_block: relation.map(|segment| segment * page::BLOCKS_PER_FILE),
        });
        Ok(())
    }

    /// A link is a tablespace, or `pg_wal` on another disk (which comes back as a directory), or a file that somebody
    /// linked into the data directory (which comes back as a file).
    fn symlink(&mut self, path: String, source: PathBuf, name: &str, below: &str) -> Result<()> {
        let meta = match std::fs::metadata(&source) {
            Ok(meta) => meta,
            Err(error) if error.kind() == IoKind::NotFound => {
                if below == "pg_tblspc" {
                    self.scan.lost_tablespaces.push(source);
                } else {
                    tracing::warn!("left out \"{}\": its target is not there", source.display());
                }
                return Ok(());
            }
            Err(error) => return Err(Error::io("look at", &source, error)),
        };
        if below == "pg_tblspc"
            && let Ok(oid) = name.parse()
        {
            let target = std::fs::canonicalize(&source).at("follow", &source)?;
            self.scan.tablespaces.push(Tablespace { oid, path: target });
            self.scan.directories.push(Directory { path: path.clone(), mode: meta.permissions().mode() & 0o7777 });
            return self.directory(&source, &path);
        }
        let mode = meta.permissions().mode() & 0o7777;
        if meta.is_dir() {
            self.scan.directories.push(Directory { path: path.clone(), mode });
            if path == "pg_wal" {
                return self.wal_subdirectories(&path, &source);
            }
            if EMPTY_DIRECTORIES.contains(&path.as_str()) {
                return Ok(());
            }
            return self.directory(&source, &path);
        }
        if !meta.is_file() {
            tracing::warn!("left out \"{}\": it leads to neither a file nor a directory", source.display());
            return Ok(());
        }
        let modified = meta.mtime();
        self.scan.files.push(ScannedFile { path, source, size: meta.len(), mode, modified, first_block: None });
        Ok(())
    }

    /// The directories in `pg_wal` are kept, empty.
    fn wal_subdirectories(&mut self, path: &str, source: &Path) -> Result<()> {
        if path != "pg_wal" {
            return Ok(());
        }
        for name in ["archive_status", "summaries"] {
            if let Ok(meta) = std::fs::metadata(source.join(name)) {
                let mode = meta.permissions().mode() & 0o7777;
                self.scan.directories.push(Directory { path: format!("{path}/{name}"), mode });
            }
        }
        Ok(())
    }
}

fn left_out(below: &str, name: &str) -> bool {
    name.starts_with("pgsql_tmp")
        || name.starts_with("pg_internal.init")
        || (below.is_empty() && LEFT_OUT_FILES.contains(&name))
}

/// `base/OID` and `pg_tblspc/OID/PG_…/OID`.
fn is_database_directory(path: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let parts: Vec<&str> = path.split('/').collect();
    match parts.as_slice() {
        ["base", oid] => number(oid),
        ["pg_tblspc", tablespace, version, oid] => number(tablespace) && version.starts_with("PG_") && number(oid),
        _ => false,
    }
}

/// `tBACKEND_NUMBER`, with a fork and a segment perhaps.
fn is_temporary_relation(name: &str) -> bool {
    let Some((backend, rest)) = name.strip_prefix('t').and_then(|rest| rest.split_once('_')) else { return false };
    !backend.is_empty() && backend.bytes().all(|b| b.is_ascii_digit()) && page::relation_segment(rest).is_some()
}

fn is_unlogged_data(name: &str, unlogged: &HashSet<String>) -> bool {
    if unlogged.is_empty() || page::relation_segment(name).is_none() {
        return false;
    }
    let base = name.split('.').next().unwrap_or(name);
    let (number, fork) = base.split_once('_').unwrap_or((base, "main"));
    fork != "init" && unlogged.contains(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(path: PathBuf) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, b"12345678").unwrap();
    }

    #[test]
    fn what_a_server_makes_anew_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("data");
        let kept = [
            "PG_VERSION",
            "base/1/1259",
            "base/1/1259_vm",
            "base/1/20000_init",
            "global/1262",
            "global/pg_control",
            "base/1/pg_filenode.map",
            "pg_xact/0000",
            "postgresql.conf",
            "base/1/20001.1",
        ];
        let gone = [
            "postmaster.pid",
            "backup_label",
            "base/1/20000",
            "base/1/20000.1",
            "base/1/20000_fsm",
            "base/1/t3_20003",
            "base/1/t3_20003_fsm",
            "base/pgsql_tmp/x",
            "pg_replslot/s/state",
            "pg_wal/000000010000000000000001",
            "pg_stat_tmp/x",
            "base/1/pg_internal.init",
            "global/pg_internal.init.77",
            "store/1/x.frag",
            "pg_notify/0000",
        ];
        for name in kept.iter().chain(&gone) {
            touch(root.join(name));
        }
        std::fs::create_dir_all(root.join("pg_wal/archive_status")).unwrap();
        let space = dir.path().join("space");
        touch(space.join("PG_15_202209061/1/30000"));
        touch(space.join("PG_15_202209061/pgsql_tmp/x"));
        std::fs::create_dir_all(root.join("pg_tblspc")).unwrap();
        std::os::unix::fs::symlink(&space, root.join("pg_tblspc/25000")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("gone"), root.join("pg_tblspc/25001")).unwrap();
        // What would block whoever opens it.
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("socket"), root.join("linked")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("gone"), root.join("dangling")).unwrap();

        let scan = scan(&root, &[&root.join("store")]).unwrap();
        let mut expected: Vec<String> = kept.iter().map(|name| (*name).to_owned()).collect();
        expected.push("pg_tblspc/25000/PG_15_202209061/1/30000".to_owned());
        expected.sort();
        let found: Vec<String> = scan.files.iter().map(|file| file.path.clone()).collect();
        assert_eq!(found, expected);
        let directories: Vec<&str> = scan.directories.iter().map(|dir| dir.path.as_str()).collect();
        for needed in ["pg_wal", "pg_wal/archive_status", "pg_replslot", "pg_stat_tmp", "base/1", "pg_tblspc/25000"] {
            assert!(directories.contains(&needed), "{needed}");
        }
        assert_eq!(scan.tablespaces.len(), 1);
        assert_eq!(scan.lost_tablespaces, [root.join("pg_tblspc/25001")]);
        let paged = |path: &str| scan.files.iter().find(|file| file.path == path).unwrap().first_block;
        assert_eq!(paged("base/1/20001.1"), Some(page::BLOCKS_PER_FILE));
        assert_eq!(paged("global/1262"), Some(0));
        assert_eq!(paged("pg_xact/0000"), None);
        assert_eq!(paged("pg_tblspc/25000/PG_15_202209061/1/30000"), Some(0));
    }
}
