//! A trial of a tool: one small object goes through every command and is compared.

use super::Tool;
use super::send::NewObject;
use super::tar::Kind;
use crate::config::tool::Operation;
use crate::error::{Error, ErrorKind, Result};
use crate::repository::Repository;
use crate::repository::objects::ObjectKind;
use jiff::Timestamp;
use serde::Serialize;

/// What the trial came to.
#[derive(Clone, Debug, Serialize)]
pub struct Trial {
    /// The tool.
    pub tool: String,
    /// The object that went through it.
    pub object: String,
    /// The tool's own identifier of it.
    pub identifier: Option<String>,
    /// Bytes that went through the pipe.
    pub bytes: u64,
    /// The tool's list named it; none when the tool has no list.
    pub listed: Option<bool>,
    /// The tool has forgotten it; none when it cannot.
    pub forgotten: Option<bool>,
}

/// More than a pipe holds, so that a tool that does not read is seen.
const BYTES: u64 = 8 << 20;

/// Sends an object, lists it, reads it back, compares it, and has the tool forget it.
pub fn run(repository: &Repository, tool: &Tool) -> Result<Trial> {
    repository.writable()?;
    tool.plain(Operation::Prepare)?;
    let backup = format!("trial-{}", Timestamp::now().strftime("%Y%m%dT%H%M%S.%6fZ"));
    let infile = repository.objects_dir().join("trial");
    let level = tool.spec().compress_level;
    let new = NewObject {
        kind: ObjectKind::Log,
        backup: &backup,
        object: if level > 0 { "trial.tar.zst" } else { "trial.tar" },
        compress_level: level,
        infile: &infile,
    };
    let mut sending = tool.send(repository, &new)?;
    sending.begin("trial", Kind::File, 0o600, 0, BYTES)?;
    // Neither all alike nor repeated, so that nothing shrinks it away.
    let mut content = blake3::Hasher::new().update(backup.as_bytes()).finalize_xof();
    let mut piece = vec![0; 1 << 20];
    for _ in 0..BYTES / piece.len() as u64 {
        content.fill(&mut piece);
        sending.data(&piece)?;
    }
    sending.end()?;
    let object = sending.finish(Vec::new())?;
    let listed = tool.list()?.map(|list| list.find(&object).is_some());
    let received = tool.receive(&object).and_then(super::receive::Receiving::finish);
    let forgotten = match tool.spec().command(Operation::Forget) {
        None => None,
        Some(_) => match tool.forget(repository, std::slice::from_ref(&object), false) {
            (_, None) => Some(true),
            (_, Some(error)) if received.is_ok() => return Err(error),
            _ => Some(false),
        },
    };
    received?;
    if listed == Some(false) {
        return Err(Error::new(
            ErrorKind::Tool,
            format!("the list of the tool {} does not have {}, which it had just stored", tool.name(), object.name),
        )
        .with_hint("tool.list.objects must find every object in the output of tool.list.command."));
    }
    Ok(Trial {
        tool: tool.name().to_owned(),
        object: object.name,
        identifier: object.identifier,
        bytes: object.bytes,
        listed,
        forgotten,
    })
}
