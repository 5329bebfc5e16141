//! One table from what can go wrong in the extension to SQLSTATE, message, DETAIL and HINT.

use crate::pg::qualified_name;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::pg_sys::{BlockNumber, OffsetNumber, Oid, errcodes::PgSqlErrorCode as Code};
use strata_fragment::FragmentError;

/// What can go wrong.
#[derive(Debug)]
pub enum StrataError {
    /// The library is loaded, the extension is not created in this database.
    NotInstalled,
    /// A fragment's file is damaged.
    DamagedFragment { relid: Oid, hash: String, what: String },
    /// A fragment's file is missing and could not be had from the agent.
    MissingFragment { relid: Oid, hash: String, path: String, why: String },
    /// Reading or writing a fragment failed.
    FragmentIo { relid: Oid, what: String, disk_full: bool },
    /// A virtual TID that names no row.
    NoSuchRow { relid: Oid, row_id: u64 },
    /// The delta row of an old snapshot's row is in a file that is gone.
    Relocated { relid: Oid, row_id: u64 },
    /// NOWAIT met a row that another transaction is promoting.
    RowBusy { relid: Oid },
    /// The promoter failed.
    Promoter { relid: Oid, message: String },
    /// A key of a fragment row already has this value.
    DuplicateKey { constraint: String, detail: Option<String> },
    /// A unique index over rows that are not unique.
    CannotCreateUnique { index: String, detail: Option<String> },
    /// A row is too large for a btree: sizes in bytes.
    Oversized { relid: Oid, index: String, size: usize, limit: usize, at: (BlockNumber, OffsetNumber) },
    /// An argument names something unsuitable.
    WrongObject { message: String, hint: String },
    /// Privileges are missing.
    NotOwner { relid: Oid },
    /// The lock for the swap could not be had.
    SwapTimeout { relid: Oid, seconds: u64 },
    /// The store belongs to another server.
    StoreOfAnother { claim: String, system: u64 },
    /// No agent answers.
    NoAgent { socket: String, why: String },
    /// The agent answered with an error.
    Agent { kind: String, message: String, detail: Option<String>, hint: Option<String> },
}

impl StrataError {
    /// Raises the error; never returns.
    pub fn raise(self) -> ! {
        let (code, message, detail, hint) = self.parts();
        let mut report = ErrorReport::new(code, message, "strata");
        if let Some(detail) = detail {
            report = report.set_detail(detail);
        }
        if let Some(hint) = hint {
            report = report.set_hint(hint);
        }
        report.report(pgrx::PgLogLevel::ERROR);
        unreachable!("an ERROR does not return")
    }

    /// The error for a failure of the fragment library while reading or writing `relid`.
    pub fn from_fragment(relid: Oid, hash: &str, error: FragmentError) -> Self {
        match error {
            FragmentError::Damaged { what, .. } => Self::DamagedFragment { relid, hash: hash.to_owned(), what },
            FragmentError::Missing { path } => Self::MissingFragment {
                relid,
                hash: hash.to_owned(),
                path: path.display().to_string(),
                why: "the file is not in the store".to_owned(),
            },
            FragmentError::Io { path, source } => Self::FragmentIo {
                relid,
                what: format!("{}: {source}", path.display()),
                disk_full: source.kind() == std::io::ErrorKind::StorageFull,
            },
            other => Self::DamagedFragment { relid, hash: hash.to_owned(), what: other.to_string() },
        }
    }

    fn parts(self) -> (Code, String, Option<String>, Option<String>) {
        match self {
            Self::NotInstalled => (
                Code::ERRCODE_UNDEFINED_OBJECT,
                "extension \"strata\" is not created in this database".into(),
                None,
                Some("Run CREATE EXTENSION strata.".into()),
            ),
            Self::DamagedFragment { relid, hash, what } => (
                Code::ERRCODE_DATA_CORRUPTED,
                format!("fragment {hash} of table {} is damaged", qualified_name(relid)),
                Some(what),
                Some(format!(
                    "Remove the damaged file and fetch the fragment from the repository: strata fragment fetch {hash}. Other fragments stay readable."
                )),
            ),
            Self::MissingFragment { relid, hash, path, why } => (
                Code::ERRCODE_DATA_CORRUPTED,
                format!("fragment {hash} of table {} is missing", qualified_name(relid)),
                Some(format!("{path}: {why}")),
                Some(format!(
                    "Start the agent (strata agent), which fetches fragments on demand, or run: strata fragment fetch {hash}."
                )),
            ),
            Self::FragmentIo { relid, what, disk_full } => (
                if disk_full { Code::ERRCODE_DISK_FULL } else { Code::ERRCODE_IO_ERROR },
                format!("could not read or write a fragment of table {}", qualified_name(relid)),
                Some(what),
                disk_full.then(|| "Free space in strata.store and try again.".into()),
            ),
            Self::NoSuchRow { relid, row_id } => (
                Code::ERRCODE_DATA_CORRUPTED,
                format!("row {row_id} of table {} is in no fragment", qualified_name(relid)),
                None,
                Some("An index may be damaged; REINDEX the table.".into()),
            ),
            Self::Relocated { relid, row_id } => (
                Code::ERRCODE_T_R_SERIALIZATION_FAILURE,
                "could not serialize access due to concurrent update".into(),
                Some(format!(
                    "Row {row_id} of table {} was promoted and the table was rewritten since.",
                    qualified_name(relid)
                )),
                None,
            ),
            Self::RowBusy { relid } => (
                Code::ERRCODE_LOCK_NOT_AVAILABLE,
                format!("could not obtain lock on row in relation {}", qualified_name(relid)),
                None,
                None,
            ),
            Self::Promoter { relid, message } => (
                Code::ERRCODE_INTERNAL_ERROR,
                format!("could not promote a fragment row of table {}", qualified_name(relid)),
                Some(message),
                None,
            ),
            Self::DuplicateKey { constraint, detail } => (
                Code::ERRCODE_UNIQUE_VIOLATION,
                format!("duplicate key value violates unique constraint \"{constraint}\""),
                detail,
                None,
            ),
            Self::CannotCreateUnique { index, detail } => {
                (Code::ERRCODE_UNIQUE_VIOLATION, format!("could not create unique index \"{index}\""), detail, None)
            }
            Self::Oversized { relid, index, size, limit, at } => (
                Code::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
                format!("index row size {size} exceeds btree version 4 maximum {limit} for index \"{index}\""),
                Some(format!(
                    "Index row references tuple ({},{}) in relation {}.",
                    at.0,
                    at.1,
                    qualified_name(relid)
                )),
                Some(
                    "Values larger than 1/3 of a buffer page cannot be indexed.\nConsider a function index of an MD5 hash of the value, or use full text indexing.".into(),
                ),
            ),
            Self::WrongObject { message, hint } => (Code::ERRCODE_WRONG_OBJECT_TYPE, message, None, Some(hint)),
            Self::NotOwner { relid } => (
                Code::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("must be owner of table {}", qualified_name(relid)),
                None,
                None,
            ),
            Self::SwapTimeout { relid, seconds } => (
                Code::ERRCODE_LOCK_NOT_AVAILABLE,
                format!("could not lock table {} for the swap within {seconds} s", qualified_name(relid)),
                Some("Transactions that use the table did not end.".into()),
                Some("Try again later, or raise strata.swap_timeout.".into()),
            ),
            Self::StoreOfAnother { claim, system } => (
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "the store belongs to another server".into(),
                Some(format!("{claim} names the server with the system identifier {system}.")),
                Some("Give this server a store of its own (strata.store). If that server is no more, or was upgraded to this one, remove the file.".into()),
            ),
            Self::NoAgent { socket, why } => (
                Code::ERRCODE_SYSTEM_ERROR,
                "no strata agent is connected".into(),
                Some(format!("{socket}: {why}")),
                Some("Start one beside this server: strata agent --config strata.toml".into()),
            ),
            Self::Agent { kind, message, detail, hint } => (
                match kind.as_str() {
                    "usage" | "invalid_target" => Code::ERRCODE_INVALID_PARAMETER_VALUE,
                    "damaged" => Code::ERRCODE_DATA_CORRUPTED,
                    "locked" => Code::ERRCODE_OBJECT_IN_USE,
                    _ => Code::ERRCODE_SYSTEM_ERROR,
                },
                message,
                detail,
                hint,
            ),
        }
    }
}
