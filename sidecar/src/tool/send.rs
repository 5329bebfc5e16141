//! An object on its way into a tool.
//!
//! The order is: document `started` → the tool runs → its result → document `stored`. When anything fails before the last step, the
//! tool is ended without seeing the end of its input, and the document stays for [`super::upkeep`], which has the tool
//! forget what it may have stored.

use super::run::Process;
use super::tar::{Kind, TarWriter};
use super::{ObjectValues, Tool, text};
use crate::config::tool::{Operation, PipeKind};
use crate::error::{Error, ErrorKind, Result};
use crate::repository::Repository;
use crate::repository::objects::{ObjectFragment, ObjectKind, ObjectState, StoredObject};
use jiff::Timestamp;
use std::io::{self, Write};
use std::path::Path;

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub struct NewObject<'a> {
    /// What it holds.
    pub kind: ObjectKind,
    /// The backup, or `log-` and a time.
    pub backup: &'a str,
    /// Its name in the backup.
    pub object: &'a str,
    /// The level of zstd; 0 for none.
    pub compress_level: i32,
    /// The list of what goes through the pipes.
    pub infile: &'a Path,
}

/// A stream into a tool. Dropped before it is finished, it ends the tool.
pub struct Sending {
    repository: Repository,
    object: StoredObject,
    wants_identifier: bool,
    tar: TarWriter<Sink>,
}

enum Sink {
    Plain(Hashed),
    Zstd(zstd::stream::write::Encoder<'static, Hashed>),
}

struct Hashed {
    process: Process,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.process.write(bytes).map_err(io::Error::other)?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(to) => to.write(bytes),
            Self::Zstd(to) => to.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Our own error, that came through a library's.
pub(super) fn unwrapped(error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(ours) => ours,
        Err(error) => Error::new(ErrorKind::Io, format!("the stream to or from the tool failed: {error}")),
    }
}

impl Tool {
    /// Starts the tool for a new object.
    pub fn send(&self, repository: &Repository, new: &NewObject<'_>) -> Result<Sending> {
        let base = format!("{}+{}+{}+{}", self.system, self.member, new.backup, new.object);
        let mut name = base.clone();
        let mut number = 1;
        // A backup that failed may have left fragments under the name.
        while repository.object(&name)?.is_some() {
            number += 1;
            name = format!("{base}-{number}");
        }
        let object = StoredObject {
            name,
            kind: new.kind,
            state: ObjectState::Started,
            tool: self.name().to_owned(),
            member: self.member.clone(),
            backup: new.backup.to_owned(),
            object: new.object.to_owned(),
            started_at: Timestamp::now(),
            ended_at: None,
            identifier: None,
            exit_code: 0,
            messages: Vec::new(),
            bytes: 0,
            blake3: String::new(),
            compressed: new.compress_level > 0,
            stored_bytes: None,
            fragments: Vec::new(),
        };
        repository.write_object(&object)?;
        let infile = text(new.infile);
        let values = ObjectValues {
            member: &object.member,
            backup: &object.backup,
            object: &object.object,
            name: &object.name,
            identifier: "",
            infile: &infile,
        };
        let process = match self.start(Operation::Backup, &values) {
            Ok(process) => process,
            Err(error) => {
                // It was not started, or has seen no byte. With a named pipe it may have seen the pipe's end.
                if self.command(Operation::Backup)?.pipe == PipeKind::Stdio {
                    repository.remove_object(&object)?;
                }
                return Err(error);
            }
        };
        let hashed = Hashed { process, hasher: blake3::Hasher::new(), bytes: 0 };
        let sink = match new.compress_level {
            0 => Sink::Plain(hashed),
            level => Sink::Zstd(zstd::stream::write::Encoder::new(hashed, level).map_err(unwrapped)?),
        };
        let wants_identifier = self.command(Operation::Backup)?.identifier.is_some();
        Ok(Sending { repository: repository.clone(), object, wants_identifier, tar: TarWriter::new(sink) })
    }
}

impl Sending {
    /// Where in the tar stream the next byte goes.
    pub fn position(&self) -> u64 {
        self.tar.position()
    }

    /// Begins a file or a directory.
    pub fn begin(&mut self, path: &str, kind: Kind, mode: u32, modified: i64, bytes: u64) -> Result<()> {
        self.tar.begin(path, kind, mode, modified, bytes).map_err(unwrapped)
    }

    /// Content of the file.
    pub fn data(&mut self, content: &[u8]) -> Result<()> {
        self.tar.data(content).map_err(unwrapped)
    }

    /// Ends the file or directory.
    pub fn end(&mut self) -> Result<()> {
        self.tar.end().map_err(unwrapped)
    }

    /// Ends the stream, waits for the tool, and records the object.
    pub fn finish(self, fragments: Vec<ObjectFragment>) -> Result<StoredObject> {
        let Self { repository, mut object, wants_identifier, tar } = self;
        let hashed = match tar.finish().map_err(unwrapped)? {
            Sink::Plain(hashed) => hashed,
            Sink::Zstd(encoder) => encoder.finish().map_err(unwrapped)?,
        };
        object.bytes = hashed.bytes;
        object.blake3 = hashed.hasher.finalize().to_hex().to_string();
        let outcome = hashed.process.finish()?;
        if outcome.exit_code != 0 {
            let said = outcome.messages.join("; ");
            tracing::warn!(
                "the tool {} ended with the warning {} for {}: {said}",
                object.tool,
                outcome.exit_code,
                object.name
            );
        }
        if let Some(identifier) = &outcome.identifier {
            require_plain(&object, identifier)?;
        } else if wants_identifier {
            return Err(Error::new(
                ErrorKind::Tool,
                format!("the tool {} ended well, but its output names no identifier for {}", object.tool, object.name),
            )
            .detail(format!("Its last lines:\n{}", outcome.messages.join("\n")))
            .with_hint("tool.backup.identifier must match a line of the tool's output."));
        }
        object.identifier = outcome.identifier;
        object.stored_bytes = outcome.stored_bytes;
        object.exit_code = outcome.exit_code;
        object.messages = outcome.messages;
        object.ended_at = Some(Timestamp::now());
        object.state = ObjectState::Stored;
        object.fragments = fragments;
        repository.record_stored(&object)?;
        Ok(object)
    }
}

/// An identifier becomes an argument of a later command, so it must not look like an option or like anything but a name.
fn require_plain(object: &StoredObject, identifier: &str) -> Result<()> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._/:@+=-".contains(&b);
    if (1..=200).contains(&identifier.len()) && !identifier.starts_with('-') && identifier.bytes().all(plain) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Tool,
        format!("the tool {} gave {} an identifier that cannot be used: {identifier:?}", object.tool, object.name),
    )
    .with_hint("tool.backup.identifier must match 1 to 200 letters, digits and \"._/:@+=-\"."))
}
