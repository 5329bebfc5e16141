//! Row types of the catalog tables that both sides read or write.

use crate::lsn::Lsn;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! text_enum {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$vmeta])* #[serde(rename = $text)] $variant),+ }

        impl $name {
            /// The text that the catalog holds.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// The value with this text.
            pub fn from_text(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$variant),)+ _ => None }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(self.as_str()) }
        }
    };
}

text_enum! {
    /// `strata.job.kind`.
    JobKind {
        /// A partition moves between the tiers.
        Move = "move",
        /// Fragments of a warm partition are written again.
        Consolidate = "consolidate",
        /// A backup is taken.
        Backup = "backup",
        /// A recovery is planned.
        RecoveryPlan = "recovery_plan",
        /// A recovery runs.
        Recover = "recover",
        /// The repository is verified.
        Verify = "verify",
        /// What is not kept is removed from the repository.
        Expire = "expire",
        /// A recovery is tried in a scratch directory.
        Drill = "drill",
    }
}

text_enum! {
    /// `strata.job.state`.
    JobState {
        /// It goes on.
        Running = "running",
        /// It ended well.
        Done = "done",
        /// It ended with an error.
        Failed = "failed",
    }
}

text_enum! {
    /// `strata.backup.state`.
    BackupState {
        /// It goes on.
        Running = "running",
        /// It is in the repository, durably, and can be recovered.
        Complete = "complete",
        /// It was not finished; nothing of it is in the repository's catalog.
        Failed = "failed",
    }
}

text_enum! {
    /// `strata.log_backup.kind`.
    LogKind {
        /// A WAL segment.
        Wal = "wal",
        /// A timeline history file.
        History = "history",
        /// An entry of the fragment log.
        Fragment = "fragment",
    }
}

/// A row of `strata.fragment`, with the name of its table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FragmentRow {
    /// The fragment's number in its database.
    pub fragment_id: i64,
    /// The warm table.
    pub relid: u32,
    /// The warm table's name with its schema; none when the table is not there any more.
    pub relation: Option<String>,
    /// BLAKE3 of the file.
    pub hash: String,
    /// How many rows it was written with.
    pub row_count: i64,
    /// The file's size.
    pub bytes: i64,
    /// When it was written.
    pub created_at: Timestamp,
    /// Where the WAL stood when it was written.
    pub created_lsn: Lsn,
}

/// A row of `strata.backup`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupRow {
    /// The backup's id, unique in its member.
    pub backup_id: String,
    /// The system.
    pub system: String,
    /// The member.
    pub member: String,
    /// The repository's path.
    pub repository: String,
    /// How far it is.
    pub state: BackupState,
    /// The timeline it was taken on.
    pub timeline: Option<i32>,
    /// Where WAL replay begins.
    pub start_lsn: Option<Lsn>,
    /// From where on the backup is consistent.
    pub stop_lsn: Option<Lsn>,
    /// When it began.
    pub started_at: Timestamp,
    /// When the copy of the hot data ended.
    pub stopped_at: Option<Timestamp>,
    /// Bytes of hot data.
    pub data_bytes: Option<i64>,
    /// Bytes that the hot data takes in the repository.
    pub stored_bytes: Option<i64>,
    /// Fragments that belong to it.
    pub fragments: Option<i64>,
    /// Their bytes.
    pub fragment_bytes: Option<i64>,
    /// Fragments that this backup copied.
    pub fragments_copied: Option<i64>,
    /// Their bytes.
    pub fragment_bytes_copied: Option<i64>,
    /// Why it failed.
    pub error: Option<String>,
    /// The third-party tool that the data went through.
    pub tool: Option<String>,
    /// What it gave back.
    pub tool_result: Option<serde_json::Value>,
}

/// A row of `strata.log_backup`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogBackupRow {
    /// The system.
    pub system: String,
    /// The member.
    pub member: String,
    /// What kind of log.
    pub kind: LogKind,
    /// The segment's or file's name; for the fragment log `DATABASE_OID/HASH`.
    pub name: String,
    /// The timeline it belongs to.
    pub timeline: Option<i32>,
    /// Where it begins.
    pub start_lsn: Option<Lsn>,
    /// Where it ends.
    pub end_lsn: Option<Lsn>,
    /// Its size.
    pub bytes: i64,
    /// Its size in the repository.
    pub stored_bytes: i64,
    /// BLAKE3 of its content.
    pub checksum: String,
    /// When it was durable in the repository.
    pub completed_at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_have_the_texts_of_the_check_constraints() {
        let schema = include_str!("../schema/20_tables.sql");
        let kinds = [
            JobKind::Move,
            JobKind::Consolidate,
            JobKind::Backup,
            JobKind::RecoveryPlan,
            JobKind::Recover,
            JobKind::Verify,
            JobKind::Expire,
            JobKind::Drill,
        ];
        for kind in kinds {
            assert!(schema.contains(&format!("'{kind}'")), "{kind}");
            assert_eq!(JobKind::from_text(kind.as_str()), Some(kind));
        }
        for state in [BackupState::Running, BackupState::Complete, BackupState::Failed] {
            assert!(schema.contains(&format!("'{state}'")), "{state}");
        }
        for kind in [LogKind::Wal, LogKind::History, LogKind::Fragment] {
            assert!(schema.contains(&format!("'{kind}'")), "{kind}");
        }
        assert_eq!(JobState::from_text("paused"), None);
    }
}
