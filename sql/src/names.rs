//! Names that both sides use.

use std::path::{Path, PathBuf};

/// The schema of the extension.
pub const SCHEMA: &str = "strata";
/// The extension's name in `pg_extension`.
pub const EXTENSION: &str = "strata";
/// The setting that holds the store's directory.
pub const GUC_STORE: &str = "strata.store";
/// The setting that holds the path of the agent's socket; empty means [`default_socket`].
pub const GUC_AGENT_SOCKET: &str = "strata.agent_socket";
/// The table of fragments.
pub const TABLE_FRAGMENT: &str = "strata.fragment";
/// The table of jobs.
pub const TABLE_JOB: &str = "strata.job";
/// The table of backups.
pub const TABLE_BACKUP: &str = "strata.backup";
/// The table of log backups.
pub const TABLE_LOG_BACKUP: &str = "strata.log_backup";
/// The notification channel on which a database says that its `strata.fragment` changed. The payload has no meaning.
/// Listeners must not rely on it: they poll as well.
pub const CHANNEL_FRAGMENT: &str = "strata_fragment";
/// The file name of the agent's socket in the store.
pub const SOCKET_NAME: &str = "agent.sock";
/// The file name extension of a fragment.
pub const FRAGMENT_EXTENSION: &str = "frag";

/// The store that a data directory has when nobody says otherwise: its path with `.strata` behind it.
pub fn default_store(data_directory: &Path) -> PathBuf {
    let mut path = data_directory.as_os_str().to_owned();
    path.push(".strata");
    PathBuf::from(path)
}

/// The agent's socket of a store when `strata.agent_socket` is empty.
pub fn default_socket(store: &Path) -> PathBuf {
    store.join(SOCKET_NAME)
}

/// True for the hexadecimal form of a fragment's hash: 64 lower-case digits.
pub fn is_fragment_hash(hash: &str) -> bool {
    hash.len() == 64 && hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// A fragment's path below the store: `DATABASE_OID/<first two digits>/<hash>.frag`. None when `hash` is not a hash.
pub fn fragment_relative_path(database_oid: u32, hash: &str) -> Option<PathBuf> {
    if !is_fragment_hash(hash) {
        return None;
    }
    let prefix = hash.get(..2)?;
    Some(PathBuf::from(format!("{database_oid}/{prefix}/{hash}.{FRAGMENT_EXTENSION}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fragment_lives_under_its_database_and_prefix() {
        let hash = "ab".repeat(32);
        assert_eq!(fragment_relative_path(16384, &hash), Some(PathBuf::from(format!("16384/ab/{hash}.frag"))));
    }

    #[test]
    fn what_is_no_hash_has_no_path() {
        for bad in ["", "../../etc/passwd", &"AB".repeat(32), &"ab".repeat(31), &"zz".repeat(32)] {
            assert_eq!(fragment_relative_path(1, bad), None, "{bad}");
        }
    }

    #[test]
    fn the_store_stands_beside_the_data_directory() {
        assert_eq!(default_store(Path::new("/srv/pg")), PathBuf::from("/srv/pg.strata"));
        assert_eq!(default_socket(Path::new("/srv/pg.strata")), PathBuf::from("/srv/pg.strata/agent.sock"));
    }
}
