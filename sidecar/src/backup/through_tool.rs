//! What a backup through a third-party tool has besides: the infile, the fragments' bundles, and the last stream.
//!
//! The *infile* (`infile.jsonl` in the backup's folder, `{infile}` in a template) says, one JSON line each, what goes through the pipes,
//! before it does: the streams of hot data, then every fragment that the backup needs with the object in which it goes, or that it is
//! held already.
//!
//! The last stream has what is known only at the end: `backup_label`, `tablespace_map`, the manifest, and with `tool.wal = "both"` the WAL
//! from the backup's start to its stop. With these, somebody who has only the tool and tar can lay the backup out and start
//! PostgreSQL on it (`docs/design/tools.md`).

use super::fragments::{DatabaseFragments, recent};
use super::target::ToolTarget;
use crate::config::tool::{Operation, WalThrough};
use crate::error::{AtPath, Error, ErrorKind, Result};
use crate::progress::Progress;
use crate::repository::catalog::ThroughTool;
use crate::repository::manifest::Manifest;
use crate::repository::objects::{ObjectKind, StoredObject};
use crate::repository::storage::{Scratch, Storage};
use crate::repository::{Repository, fsio};
use crate::tool::fragments::{self, FragmentFile, Sent};
use crate::tool::send::NewObject;
use crate::tool::tar::Kind;
use crate::tool::{Tool, upkeep};
use crate::wal::name::Segment;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use strata_catalog::names;

/// How long a backup waits for an agent that sends fragments.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// The list of what goes through the pipes: a file of this machine, for the tool reads it.
#[derive(Clone, Debug)]
pub struct Infile {
    file: Scratch,
    place: PathBuf,
}

impl Infile {
    /// Creates an empty one in a backup's folder.
    pub fn create(storage: &Storage, dir: &Path) -> Result<Self> {
        let place = dir.join("infile.jsonl");
        let this = Self { file: storage.scratch(&place)?, place };
        this.append(&[])?;
        Ok(this)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    fn append(&self, lines: &[Value]) -> Result<()> {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let path = &self.file.path;
        let mut file =
            OpenOptions::new().create(true).append(true).mode(fsio::FILE_MODE).open(path).at("open", path)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).at("write", path)
    }

    /// Puts it into the backup's folder, where it is not there already.
    fn keep(&self, storage: &Storage) -> Result<()> {
        if storage.is_directory() {
            return Ok(());
        }
        storage.write(&self.place, &std::fs::read(&self.file.path).at("read", &self.file.path)?)
    }

    /// The streams of hot data.
    pub fn hot(&self, target: &ToolTarget<'_>, tool: &Tool) -> Result<()> {
        let lines: Vec<Value> =
            (0..tool.spec().streams).map(|number| json!({"kind": "hot", "object": target.object(number)})).collect();
        self.append(&lines)
    }
}

/// Before a backup: the tool's repository can be opened, and what earlier backups left is forgotten.
pub fn prepare(repository: &Repository) -> Result<()> {
    let Some(tool) = repository.tool() else { return Ok(()) };
    tool.plain(Operation::Prepare)?;
    upkeep::clear(repository, tool)
}

/// Sends the fragments that neither the repository nor the tool has: those of the rows, and files that came since the first list.
#[allow(clippy::too_many_arguments)]
pub fn send_fragments(
    repository: &Repository,
    tool: &Tool,
    backup: &str,
    infile: &Infile,
    all: &[DatabaseFragments],
    store: &Path,
    since: SystemTime,
    progress: &Progress,
) -> Result<Sent> {
    let mut files = Vec::new();
    let mut lines = Vec::new();
    for one in all {
        for row in &one.rows {
            let below = names::fragment_relative_path(one.database.oid, &row.hash).unwrap_or_default();
            let path = store.join(below);
            lines.push((
                row.hash.clone(),
                json!({
                    "kind": "fragment",
                    "database_oid": one.database.oid,
                    "database": one.database.name,
                    "relation": row.relation,
                    "hash": row.hash,
                    "bytes": row.bytes,
                    "rows": row.row_count,
                    "file": path,
                }),
            ));
            files.push(FragmentFile { hash: row.hash.clone(), path });
        }
    }
    for (hash, path) in recent(store, since)? {
        if !files.iter().any(|file| file.hash == hash) {
            lines.push((hash.clone(), json!({"kind": "fragment", "hash": hash, "file": path})));
            files.push(FragmentFile { hash, path });
        }
    }
    let total = files.iter().filter_map(|file| std::fs::metadata(&file.path).ok()).map(|meta| meta.len()).sum();
    progress.phase_bytes("fragments", total, format!("sending the fragments that {} does not have", tool.name()));
    let announce = |bundles: &[(String, Vec<FragmentFile>)]| {
        let going: HashMap<&str, &str> = bundles
            .iter()
            .flat_map(|(object, files)| files.iter().map(|file| (file.hash.as_str(), object.as_str())))
            .collect();
        let lines: Vec<Value> = lines
            .into_iter()
            .map(|(hash, mut line)| {
                match going.get(hash.as_str()) {
                    Some(object) => line["object"] = json!(object),
                    None => line["held"] = json!(true),
                }
                line
            })
            .collect();
        infile.append(&lines)
    };
    // What is missing or damaged is found again, and judged, when the rows are gone through.
    fragments::send(repository, tool, backup, infile.path(), files, Some(PATIENCE), announce, progress)
}

/// Sends the last stream. `first` and `last` are the WAL segments that the backup needs.
pub fn close(
    repository: &Repository,
    infile: &Infile,
    manifest: &Manifest,
    first: Segment,
    last: Segment,
    segment_size: u64,
    fragments: Vec<StoredObject>,
) -> Result<ThroughTool> {
    let tool = repository.tool().ok_or_else(|| Error::new(ErrorKind::Config, "the configuration has no [tool]"))?;
    let level = tool.spec().compress_level;
    let object = if level > 0 { "log.tar.zst" } else { "log.tar" };
    infile.append(&[json!({"kind": "log", "object": object})])?;
    infile.keep(repository.storage())?;
    let new =
        NewObject { kind: ObjectKind::Log, backup: &manifest.id, object, compress_level: level, infile: infile.path() };
    let mut sending = tool.send(repository, &new)?;
    let mut file = |path: &str, content: &[u8]| {
        sending.begin(path, Kind::File, 0o600, 0, content.len() as u64)?;
        sending.data(content)?;
        sending.end()
    };
    file("backup_label", manifest.backup_label.as_bytes())?;
    if !manifest.tablespace_map.is_empty() {
        file("tablespace_map", manifest.tablespace_map.as_bytes())?;
    }
    let path = repository.manifest_path(&manifest.id);
    let text = repository.storage().read(&path)?.ok_or_else(|| Error::damaged("the manifest", "it is not there"))?;
    file("strata-manifest.json", &text)?;
    if tool.spec().wal == WalThrough::Both {
        let history = format!("{:08X}.history", last.timeline);
        if let Some((_, content)) = repository.read_wal(&history)? {
            file(&format!("pg_wal/{history}"), &content)?;
        }
        for number in first.number(segment_size)..=last.number(segment_size) {
            let name = Segment::numbered(last.timeline, number, segment_size).to_string();
            let (_, content) = repository.read_wal(&name)?.ok_or_else(|| {
                Error::new(ErrorKind::Gap, format!("the WAL segment {name} is missing from the archive"))
            })?;
            file(&format!("pg_wal/{name}"), &content)?;
        }
    }
    let log = sending.finish(Vec::new())?;
    let mut objects: Vec<StoredObject> =
        manifest.packs.iter().filter_map(|pack| pack.object.as_deref().cloned()).collect();
    objects.push(log);
    let all = || objects.iter().chain(&fragments);
    let stored: Option<u64> = all().map(|object| object.stored_bytes).sum();
    Ok(ThroughTool {
        name: tool.name().to_owned(),
        fragment_objects: fragments.len() as u64,
        piped_bytes: all().map(|object| object.bytes).sum(),
        tool_stored_bytes: stored,
        objects,
    })
}
