//! What a server says of itself.

use super::Session;
use crate::error::{Error, ErrorKind, Result};
use std::path::PathBuf;
use strata_catalog::{Lsn, names};
use tokio_postgres::types::PgLsn;

/// The oldest and the newest major version that are supported.
pub const MAJORS: std::ops::RangeInclusive<u32> = 15..=18;

/// A server.
#[derive(Clone, Debug)]
pub struct ServerInfo {
    /// `server_version_num`.
    pub version: u32,
    /// PostgreSQL's system identifier.
    pub system_identifier: u64,
    /// The size of WAL segments.
    pub segment_size: u32,
    /// The size of blocks.
    pub block_size: u32,
    /// Does it keep checksums of pages?
    pub data_checksums: bool,
    /// Is it a standby, or still recovering?
    pub in_recovery: bool,
    /// The data directory.
    pub data_directory: PathBuf,
    /// The store, when the extension's setting is known to the server.
    pub store: Option<PathBuf>,
    /// The agent's socket, when it is set.
    pub agent_socket: Option<PathBuf>,
    /// The directory of its programs, when it tells.
    pub bin_directory: Option<PathBuf>,
    /// `wal_level`.
    pub wal_level: String,
    /// `archive_mode`.
    pub archive_mode: String,
    /// `archive_command`.
    pub archive_command: String,
    /// `archive_library`.
    pub archive_library: String,
    /// Settings that come from configuration files, by name.
    pub settings: Vec<(String, String)>,
}

/// Settings that belong to the place where a server ran, not to its data.
const LOCAL_SETTINGS: [&str; 13] = [
    "config_file",
    "data_directory",
    "external_pid_file",
    "hba_file",
    "ident_file",
    "listen_addresses",
    "log_directory",
    "logging_collector",
    "archive_command",
    "archive_library",
    "archive_mode",
    "restore_command",
    "cluster_name",
];

impl ServerInfo {
    /// Asks a server.
    pub async fn ask(session: &Session) -> Result<Self> {
        let row = session
            .query_one(
                "SELECT current_setting('server_version_num')::int, \
                        (SELECT system_identifier FROM pg_control_system()), \
                        pg_size_bytes(current_setting('wal_segment_size'))::int, \
                        current_setting('block_size')::int, \
                        current_setting('data_checksums')::bool, \
                        pg_is_in_recovery(), \
                        current_setting('data_directory', true), \
                        current_setting('strata.store', true), \
                        current_setting('strata.agent_socket', true), \
                        current_setting('wal_level'), \
                        current_setting('archive_mode'), \
                        current_setting('archive_command', true), \
                        current_setting('archive_library', true)",
                &[],
            )
            .await?;
        let version = row.get::<_, i32>(0).unsigned_abs();
        if !MAJORS.contains(&(version / 10000)) {
            return Err(Error::new(
                ErrorKind::Config,
                format!(
                    "the server is PostgreSQL {}, but {} to {} are supported",
                    version / 10000,
                    MAJORS.start(),
                    MAJORS.end()
                ),
            ));
        }
        let text = |at: usize| row.get::<_, Option<String>>(at).filter(|text| !text.is_empty());
        let data_directory = text(6).ok_or_else(|| {
            Error::new(ErrorKind::Config, "the server does not tell its data directory to this user")
                .with_hint("GRANT pg_read_all_settings to the user of member.conninfo, or connect as a superuser.")
        })?;
        let bin_directory = session
            .query_opt("SELECT setting FROM pg_config WHERE name = 'BINDIR'", &[])
            .await
            .ok()
            .flatten()
            .map(|row| PathBuf::from(row.get::<_, String>(0)));
        let settings = session
            .query(
                "SELECT name, current_setting(name) FROM pg_settings WHERE source = 'configuration file' ORDER BY name",
                &[],
            )
            .await?
            .iter()
            .map(|row| (row.get::<_, String>(0), row.get::<_, String>(1)))
            .filter(|(name, _)| !LOCAL_SETTINGS.contains(&name.as_str()) && !name.starts_with("ssl"))
            .collect();
        Ok(Self {
            version,
            system_identifier: row.get::<_, i64>(1) as u64,
            segment_size: row.get::<_, i32>(2).unsigned_abs(),
            block_size: row.get::<_, i32>(3).unsigned_abs(),
            data_checksums: row.get(4),
            in_recovery: row.get(5),
            data_directory: PathBuf::from(data_directory),
            store: text(7).map(PathBuf::from),
            agent_socket: text(8).map(PathBuf::from),
            bin_directory,
            wal_level: row.get(9),
            archive_mode: row.get(10),
            archive_command: text(11).unwrap_or_default(),
            archive_library: text(12).unwrap_or_default(),
            settings,
        })
    }

    /// The store: what the configuration says, else the server, else the default place.
    pub fn store_or(&self, configured: Option<&PathBuf>) -> PathBuf {
        configured.or(self.store.as_ref()).cloned().unwrap_or_else(|| names::default_store(&self.data_directory))
    }
}

/// A position as the client library has it.
pub fn lsn(value: PgLsn) -> Lsn {
    Lsn(value.into())
}

/// A position as the client library wants it.
pub fn pg_lsn(value: Lsn) -> PgLsn {
    PgLsn::from(value.0)
}

/// A database that can be connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Database {
    /// Its oid.
    pub oid: u32,
    /// Its name.
    pub name: String,
}

/// The databases that can be connected to.
pub async fn databases(session: &Session) -> Result<Vec<Database>> {
    let rows = session
        .query("SELECT oid, datname::text FROM pg_database WHERE datallowconn AND datconnlimit <> -2 ORDER BY oid", &[])
        .await?;
    Ok(rows.iter().map(|row| Database { oid: row.get(0), name: row.get(1) }).collect())
}

/// True when the database of the session has the catalog of the extension.
pub async fn has_catalog(session: &Session) -> Result<bool> {
    let row = session.query_one("SELECT to_regclass('strata.fragment') IS NOT NULL", &[]).await?;
    Ok(row.get(0))
}

/// True when the session's server is a standby, or still recovering.
pub async fn in_recovery(session: &Session) -> Result<bool> {
    Ok(session.query_one("SELECT pg_is_in_recovery()", &[]).await?.get(0))
}
