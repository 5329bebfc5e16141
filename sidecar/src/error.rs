//! Errors of the sidecar.
//!
//! One table, [`ErrorKind::row`], says for each kind of error its name (what the agent's clients see), the exit code of
//! the command line, whether the same call may succeed later without anybody's help, and a hint for people. An [`Error`]
//! is a kind, a message that names the value or path that was wrong, and optionally facts (detail) and a better hint.
//!
//! Rules: a message is short, begins in lower case and names what was wrong; facts go to the detail; a hint is a
//! sentence. No message holds a password. An error is logged where it is handled, once.

use std::fmt;
use std::path::Path;

/// What went wrong, as far as a program cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The command line, or a request's argument, is wrong.
    Usage,
    /// The configuration is wrong, or the server's settings are.
    Config,
    /// The server, or the agent, cannot be reached.
    Connection,
    /// The place where backups are refuses to serve: its credentials, its name, what it can do.
    Refused,
    /// Something is encrypted, and no identity that opens it is at hand.
    NoKey,
    /// Another process does the same work.
    Locked,
    /// Something that was stored is not what it was: a checksum, a format.
    Damaged,
    /// A piece of the log is missing between two that are there.
    Gap,
    /// A recovery target that the repository cannot reach.
    Unreachable,
    /// Something that should be in the repository is not there.
    Missing,
    /// Something else is there already, and nothing is ever overwritten.
    Conflict,
    /// PostgreSQL refused a statement.
    Postgres,
    /// WAL does not arrive in the repository in time.
    Archive,
    /// The recovered server did not open.
    Recovery,
    /// A place to store has no room left.
    DiskFull,
    /// A file could not be read or written.
    Io,
    /// The operation is not allowed here.
    Forbidden,
    /// A third-party tool failed.
    Tool,
}

/// What the table says about a kind.
#[derive(Clone, Copy, Debug)]
pub struct ErrorRow {
    /// Its name on the agent's socket and in JSON.
    pub name: &'static str,
    /// The exit code; never above 125, where PostgreSQL would stop its archiver.
    pub exit_code: u8,
    /// May the same call succeed later?
    pub retryable: bool,
    /// What to do, when the error itself says nothing better.
    pub hint: Option<&'static str>,
}

impl ErrorKind {
    /// The table.
    pub const fn row(self) -> ErrorRow {
        const fn row(name: &'static str, exit_code: u8, retryable: bool, hint: Option<&'static str>) -> ErrorRow {
            ErrorRow { name, exit_code, retryable, hint }
        }
        match self {
            Self::Usage => row("usage", 2, false, Some("See --help.")),
            Self::Config => row("configuration", 3, false, None),
            Self::Connection => row("connection", 4, true, None),
            Self::Refused => row("refused", 3, false, None),
            Self::NoKey => row(
                "no_key",
                3,
                false,
                Some("Name a file with the identity of one of its recipients as repository.identity_file."),
            ),
            Self::Locked => row("locked", 5, true, Some("Wait for the other process to end.")),
            Self::Damaged => {
                row("damaged", 6, false, Some("Run \"strata verify\" to see all damage in the repository."))
            }
            Self::Gap => row("gap", 1, false, Some("Take a new backup: recovery never crosses a gap in the log.")),
            Self::Unreachable => {
                row("unreachable", 1, false, Some("\"strata info\" shows what the repository reaches."))
            }
            Self::Missing => row("missing", 1, false, None),
            Self::Conflict => row("conflict", 1, false, None),
            Self::Postgres => row("postgres", 1, false, None),
            Self::Archive => row("archive", 1, true, Some("Run \"strata check\" to test archiving.")),
            Self::Recovery => row("recovery", 1, false, None),
            Self::DiskFull => row("disk_full", 1, true, Some("Make room and run the same command again.")),
            Self::Io => row("io", 1, true, None),
            Self::Forbidden => row("forbidden", 1, false, None),
            Self::Tool => row("tool", 1, true, Some("\"strata tool show\" prints the commands of the tool.")),
        }
    }

    /// All kinds.
    pub const ALL: [Self; 18] = [
        Self::Usage,
        Self::Config,
        Self::Connection,
        Self::Refused,
        Self::NoKey,
        Self::Locked,
        Self::Damaged,
        Self::Gap,
        Self::Unreachable,
        Self::Missing,
        Self::Conflict,
        Self::Postgres,
        Self::Archive,
        Self::Recovery,
        Self::DiskFull,
        Self::Io,
        Self::Forbidden,
        Self::Tool,
    ];

    /// True when it is about a place, not about one of the things in it: it says nothing about what is there.
    pub fn is_of_place(self) -> bool {
        matches!(self, Self::Connection | Self::Refused | Self::Io | Self::DiskFull)
    }

    /// The kind with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.row().name == name)
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().name)
    }
}

/// An error of the sidecar.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What went wrong, as far as a program cares.
    pub kind: ErrorKind,
    /// What went wrong, for people.
    pub message: String,
    /// Facts about it.
    pub detail: Option<String>,
    hint: Option<String>,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The result type of the sidecar.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with a message.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), detail: None, hint: None, source: None }
    }

    /// Adds facts.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Replaces the kind's hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Keeps the error that caused this one.
    #[must_use]
    pub fn caused_by(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref().or(self.kind.row().hint)
    }

    /// An input or output error on a path. `verb` completes "could not …".
    pub fn io(verb: &str, path: &Path, source: impl Into<std::io::Error>) -> Self {
        let source: std::io::Error = source.into();
        let kind = match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::DiskFull,
            _ => ErrorKind::Io,
        };
        Self::new(kind, format!("could not {verb} \"{}\": {source}", path.display())).caused_by(source)
    }

    /// An error of a reader of the repository, which may hold one of ours.
    pub fn reading(path: &Path, source: std::io::Error) -> Self {
        source.downcast::<Self>().unwrap_or_else(|source| Self::io("read", path, source))
    }

    /// Damage in something that was stored.
    pub fn damaged(what: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Damaged, format!("{what} is damaged: {why}"))
    }

    /// The whole error as the text of a log line or of `strata.job.error`.
    pub fn full_text(&self) -> String {
        let mut text = self.message.clone();
        if let Some(detail) = &self.detail {
            text.push_str("\nDETAIL:  ");
            text.push_str(detail);
        }
        if let Some(hint) = self.hint() {
            text.push_str("\nHINT:  ");
            text.push_str(hint);
        }
        text
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(db) => {
                let mut out = Self::new(ErrorKind::Postgres, format!("PostgreSQL says: {}", db.message()));
                out.detail = Some(match db.detail() {
                    Some(detail) => format!("SQLSTATE {}: {detail}", db.code().code()),
                    None => format!("SQLSTATE {}", db.code().code()),
                });
                out.hint = db.hint().map(str::to_owned);
                out.caused_by(error)
            }
            None => {
                Self::new(ErrorKind::Connection, format!("lost the connection to the server: {error}")).caused_by(error)
            }
        }
    }
}

/// Turns input and output results into [`Error`]s that name the path.
pub trait AtPath<T> {
    /// `verb` completes "could not … PATH".
    fn at(self, verb: &str, path: &Path) -> Result<T>;
}

impl<T> AtPath<T> for std::io::Result<T> {
    fn at(self, verb: &str, path: &Path) -> Result<T> {
        self.map_err(|error| Error::io(verb, path, error))
    }
}

impl<T> AtPath<T> for Result<T, rustix::io::Errno> {
    fn at(self, verb: &str, path: &Path) -> Result<T> {
        self.map_err(|error| Error::io(verb, path, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_exit_code_stops_the_archiver_or_says_success() {
        for kind in ErrorKind::ALL {
            let code = kind.row().exit_code;
            assert!((1..=125).contains(&code), "{kind}");
        }
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = ErrorKind::ALL.iter().map(|kind| kind.row().name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ErrorKind::ALL.len());
    }

    #[test]
    fn an_own_hint_wins_over_the_table() {
        let error = Error::new(ErrorKind::Locked, "x");
        assert_eq!(error.hint(), Some("Wait for the other process to end."));
        assert_eq!(error.with_hint("Do this.").hint(), Some("Do this."));
    }

    #[test]
    fn a_full_disk_has_its_own_kind_and_names_the_path() {
        let error = Error::io("write", Path::new("/r/x"), rustix::io::Errno::NOSPC);
        assert_eq!(error.kind, ErrorKind::DiskFull);
        assert!(error.message.contains("/r/x"), "{error}");
    }
}
