//! Third-party tools: a program that stores what comes through a pipe, and gives it back.
//!
//! ```text
//!   hot data ─ tar ─┐                                        ┌─► restic, borg, rclone, any command ─► outfile
//!   fragments ─ tar ─┼─► (zstd) ─► BLAKE3 ─► pipe ───────────┤      (on the second server)
//!   labels, WAL ─ tar┘                                       └─► exit code, identifier, size, last lines ─► StoredObject
//! ```
//!
//! A backup through a tool is a backup like any other: its catalog entry and its manifest are in the repository's directory, and
//! so is the WAL. Only the bytes of hot data and fragments are elsewhere, in *objects*: each is one tar stream, one run of the
//! tool, and one document ([`crate::repository::objects`]).
//!
//! Promises. An object counts only when the tool has ended well (or with an exit code that the configuration calls a warning)
//! and its identifier is known. A fragment goes through the tool once in its life: later backups name the object it is in, and
//! an object is forgotten only when nobody needs a fragment of it. What is read back is checked against our own checksums, piece by
//! piece, before it is used. A tool that fails, hangs, is killed or is missing makes a failed backup that says why in the tool's own
//! last words; it is ended with its process group, and what it may have stored is forgotten.
//!
//! Secrets are read from files or from our environment, and are given to the tool in its environment only: they are in no argument, and
//! what the tool says is kept without them.
//!
//! Lock order: backup lock, then objects lock. No lock is held while a fragment is read back.

pub mod fragments;
pub mod output;
pub mod receive;
pub mod run;
pub mod send;
pub mod tar;
pub mod trial;
pub mod upkeep;

use crate::config::Config;
use crate::config::tool::{CommandSpec, Operation, ToolSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::repository::objects::StoredObject;
use run::{Outcome, Process};
use std::path::Path;

/// A tool of a member.
#[derive(Debug)]
pub struct Tool {
    spec: ToolSpec,
    system: String,
    member: String,
}

/// What placeholders of an object stand for.
struct ObjectValues<'a> {
    member: &'a str,
    backup: &'a str,
    object: &'a str,
    name: &'a str,
    identifier: &'a str,
    infile: &'a str,
}

impl Tool {
    /// The tool of a configuration, when it has one.
    pub fn of(config: &Config) -> Result<Option<Self>> {
        let Some(tool) = &config.tool else { return Ok(None) };
        let spec = tool.resolve().map_err(|why| Error::new(ErrorKind::Config, why))?;
        Ok(Some(Self { spec, system: config.system.clone(), member: config.member.name.clone() }))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// What is configured.
    pub fn spec(&self) -> &ToolSpec {
        &self.spec
    }

    fn command(&self, operation: Operation) -> Result<&CommandSpec> {
        self.spec.command(operation).ok_or_else(|| {
            Error::new(ErrorKind::Config, format!("the tool {} has no command to {operation}", self.spec.name))
                .with_hint(format!("Set tool.{operation}.command."))
        })
    }

    /// Starts a command for an object.
    fn start(&self, operation: Operation, values: &ObjectValues<'_>) -> Result<Process> {
        let command = self.command(operation)?;
        let what = format!("{operation} of {}", values.name);
        Process::start(&self.spec, command, &what, &|name| match name {
            "system" => &self.system,
            "member" => values.member,
            "backup" => values.backup,
            "object" => values.object,
            "name" => values.name,
            "identifier" => values.identifier,
            "infile" => values.infile,
            _ => "",
        })
    }

    fn start_stored(&self, operation: Operation, object: &StoredObject) -> Result<Process> {
        // A tool whose output names no identifier knows the object by its name.
        let identifier = object.identifier.as_deref().unwrap_or(&object.name);
        self.start(
            operation,
            &ObjectValues {
                member: &object.member,
                backup: &object.backup,
                object: &object.object,
                name: &object.name,
                identifier,
                infile: "",
            },
        )
    }

    /// Runs a command that is about no object. None when the tool has no such command.
    pub fn plain(&self, operation: Operation) -> Result<Option<Outcome>> {
        let Some(command) = self.spec.command(operation) else { return Ok(None) };
        let process = Process::start(&self.spec, command, operation.key(), &|name| match name {
            "system" => &self.system,
            "member" => &self.member,
            _ => "",
        })?;
        process.finish().map(Some)
    }

    /// Fails unless `object` was stored by this tool.
    pub fn require_own(&self, object: &StoredObject) -> Result<()> {
        if object.tool == self.spec.name {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Config,
            format!(
                "{} was stored with the tool {}, and the configuration has {}",
                object.name, object.tool, self.spec.name
            ),
        )
        .with_hint("Configure that tool as [tool], with its name as tool.name."))
    }
}

/// The error for an object when no tool is configured.
pub fn not_configured(object: &StoredObject) -> Error {
    Error::new(
        ErrorKind::Config,
        format!("{} is held by the tool {}, and the configuration has no [tool]", object.name, object.tool),
    )
    .with_hint("Configure the tool as it was when the backup was taken.")
}

/// A path as text.
fn text(path: &Path) -> String {
    path.display().to_string()
}
