//! Checks what a third-party tool holds: by the tool's own check, by its list, and by reading everything back.

use super::{Findings, each};
use crate::config::tool::Operation;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Progress;
use crate::recovery::restore;
use crate::repository::Repository;
use crate::repository::catalog::BackupEntry;
use crate::repository::objects::{ObjectState, StoredObject};
use crate::tool::{not_configured, receive};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Checks everything. Returns how many objects there are, and how many of them were read back.
pub(super) fn check(
    repository: &Repository,
    entries: &[BackupEntry],
    listing: bool,
    findings: &Findings,
    progress: &Progress,
) -> Result<(u64, u64)> {
    let (documents, damaged) = repository.objects()?;
    for error in damaged {
        findings.failed("object", "objects", error);
    }
    let mut objects: BTreeMap<String, StoredObject> = BTreeMap::new();
    for object in documents {
        if object.state == ObjectState::Started {
            findings.note(format!("{} was not finished; the next backup has the tool forget it", object.name));
            continue;
        }
        objects.insert(object.name.clone(), object);
    }
    // A catalog entry knows its objects without their documents.
    for object in entries.iter().filter_map(|entry| entry.tool.as_ref()).flat_map(|tool| &tool.objects) {
        if objects.insert(object.name.clone(), object.clone()).is_none() {
            findings.add("object", &object.name, "its document is not in the repository");
        }
    }
    let count = objects.len() as u64;
    let Some(first) = objects.values().next() else { return Ok((0, 0)) };
    let Some(tool) = repository.tool() else {
        findings.add("tool", &first.tool, not_configured(first).message);
        return Ok((count, 0));
    };
    progress.phase("tool", 0, format!("{} checks its repository", tool.name()));
    if let Err(error) = tool.plain(Operation::Verify) {
        findings.add("tool", tool.name(), said(&error));
    }
    match tool.list() {
        Ok(Some(list)) => {
            for object in objects.values().filter(|object| object.tool == tool.name()) {
                if list.find(object).is_none() {
                    findings.add("object", &object.name, format!("{} does not list it", tool.name()));
                }
            }
        }
        Ok(None) => findings.note(format!("{} has no command to list what it holds", tool.name())),
        Err(error) => findings.add("tool", tool.name(), said(&error)),
    }
    if listing {
        return Ok((count, 0));
    }
    let manifests: Vec<_> = entries
        .iter()
        .filter(|entry| entry.tool.is_some())
        .filter_map(|entry| repository.manifest(&entry.id, &entry.manifest_blake3).ok())
        .collect();
    let mut pieces = BTreeMap::new();
    for manifest in &manifests {
        // What is wrong with a manifest was said already.
        for (object, parts) in restore::streams(manifest).unwrap_or_default() {
            pieces.insert(object.name.as_str(), parts);
        }
    }
    let all: Vec<&StoredObject> = objects.values().collect();
    progress.phase_bytes("objects", all.iter().map(|object| object.bytes).sum(), "reading back what the tool holds");
    let read = AtomicU64::new(0);
    each(&all, tool.spec().streams, |object| {
        let checked = match pieces.get(object.name.as_str()) {
            Some(parts) => restore::read_stream(tool, object, parts, |_, _| Ok(())),
            None => receive::check_object(repository, object, |hash, problem| findings.add("fragment", hash, problem)),
        };
        match checked {
            Ok(()) => drop(read.fetch_add(1, Ordering::Relaxed)),
            Err(error) => {
                findings.add("object", &object.name, said(&error));
                for fragment in &object.fragments {
                    if error.kind != ErrorKind::Config {
                        findings.note(format!("the fragment {} is in {}", fragment.hash, object.name));
                    }
                }
            }
        }
        findings.read(object.bytes, progress);
    });
    Ok((count, read.into_inner()))
}

/// An error on one line, with the tool's last words.
fn said(error: &Error) -> String {
    match &error.detail {
        Some(detail) => format!("{}. {}", error.message, detail.replace('\n', " | ")),
        None => error.message.clone(),
    }
}
