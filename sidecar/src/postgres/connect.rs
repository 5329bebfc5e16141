//! Connections.
//!
//! The conninfo has libpq's form; what it does not say comes from libpq's environment variables, then from libpq's
//! defaults (a Unix socket, the operating system user). Connections are to the server beside us, so there is no TLS: a
//! conninfo that demands it is refused rather than weakened.

use crate::error::{Error, ErrorKind, Result};
use std::path::Path;
use std::time::Duration;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::{Client, NoTls};

/// How long a connection may take.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How to connect to a server.
#[derive(Clone, Debug)]
pub struct Conninfo {
    config: tokio_postgres::Config,
}

impl Conninfo {
    /// Parses a conninfo and fills it from the environment.
    pub fn parse(text: &str) -> Result<Self> {
        Self::parse_with(text, &|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn parse_with(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let bad = |why: String| {
            Error::new(ErrorKind::Config, format!("member.conninfo is wrong: {why}")).with_hint(
                "It has libpq's form, for example \"host=/var/run/postgresql user=postgres dbname=postgres\".",
            )
        };
        let mut config: tokio_postgres::Config = text.parse().map_err(|error: tokio_postgres::Error| {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            bad(source.unwrap_or_else(|| error.to_string()))
        })?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            match env("PGHOST") {
                Some(host) => config.host(host),
                None if Path::new("/var/run/postgresql").is_dir() => config.host("/var/run/postgresql"),
                None => config.host("/tmp"),
            };
        }
        if config.get_ports().is_empty()
            && let Some(port) = env("PGPORT")
        {
            config.port(port.parse().map_err(|_| bad(format!("PGPORT is \"{port}\"")))?);
        }
        if config.get_user().is_none() {
            match env("PGUSER").or_else(crate::postgres::program::os_user) {
                Some(user) => config.user(user),
                None => return Err(bad("it names no user".to_owned())),
            };
        }
        if config.get_dbname().is_none() {
            config.dbname(env("PGDATABASE").unwrap_or_else(|| "postgres".to_owned()));
        }
        if config.get_password().is_none()
            && let Some(password) = env("PGPASSWORD")
        {
            config.password(password);
        }
        if config.get_ssl_mode() == SslMode::Require {
            return Err(bad(
                "it requires TLS, which connections to the server beside the sidecar do not use".to_owned()
            ));
        }
        if config.get_application_name().is_none() {
            config.application_name("strata");
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        Ok(Self { config })
    }

    /// The same server, another database.
    #[must_use]
    pub fn database(&self, name: &str) -> Self {
        let mut config = self.config.clone();
        config.dbname(name);
        Self { config }
    }

    /// The same user and database on the server with this socket directory and port.
    #[must_use]
    pub fn moved(&self, socket_directory: &Path, port: u16) -> Self {
        let mut config = tokio_postgres::Config::new();
        config.host_path(socket_directory).port(port).connect_timeout(CONNECT_TIMEOUT).application_name("strata");
        if let Some(user) = self.config.get_user() {
            config.user(user);
        }
        if let Some(dbname) = self.config.get_dbname() {
            config.dbname(dbname);
        }
        if let Some(password) = self.config.get_password() {
            config.password(password);
        }
        Self { config }
    }

    /// All of it.
    pub(super) fn config(&self) -> &tokio_postgres::Config {
        &self.config
    }

    /// The user.
    pub fn user(&self) -> &str {
        self.config.get_user().unwrap_or_default()
    }

    /// The database.
    pub fn dbname(&self) -> &str {
        self.config.get_dbname().unwrap_or_default()
    }

    /// Where it leads to, without the password.
    pub fn describe(&self) -> String {
        let host = match self.config.get_hosts().first() {
            Some(Host::Tcp(host)) => host.clone(),
            Some(Host::Unix(path)) => path.display().to_string(),
            None => "?".to_owned(),
        };
        let port = self.config.get_ports().first().copied().unwrap_or(5432);
        format!("host={host} port={port} user={} dbname={}", self.user(), self.dbname())
    }

    /// The conninfo in libpq's form, with the password when there is one: for a file that only its owner reads.
    pub fn text(&self) -> String {
        let value = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
        let mut text = String::new();
        match self.config.get_hosts().first() {
            Some(Host::Tcp(host)) => text.push_str(&format!("host={} ", value(host))),
            Some(Host::Unix(path)) => text.push_str(&format!("host={} ", value(&path.display().to_string()))),
            None => {}
        }
        if let Some(port) = self.config.get_ports().first() {
            text.push_str(&format!("port={port} "));
        }
        if let Some(password) = self.config.get_password() {
            text.push_str(&format!("password={} ", value(&String::from_utf8_lossy(password))));
        }
        text.push_str(&format!("user={} dbname={}", value(self.user()), value(self.dbname())));
        text
    }

    /// Connects.
    pub async fn connect(&self) -> Result<Session> {
        let connected = tokio::time::timeout(CONNECT_TIMEOUT * 2, self.config.connect(NoTls)).await;
        let failed = |why: String| {
            Error::new(ErrorKind::Connection, format!("could not connect to the server: {why}"))
                .detail(format!("Tried {}.", self.describe()))
        };
        let (client, connection) = match connected {
            Ok(Ok(pair)) => pair,
            Ok(Err(error)) => {
                let why = match (error.as_db_error(), std::error::Error::source(&error)) {
                    (Some(db), _) => db.message().to_owned(),
                    (None, Some(source)) => source.to_string(),
                    (None, None) => error.to_string(),
                };
                return Err(failed(why).caused_by(error));
            }
            Err(_) => return Err(failed("no answer in time".to_owned())),
        };
        // It ends by itself, with a word to the server, when the client is dropped.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("connection ended: {error}");
            }
        });
        // What we run must not depend on what a role or database has set. A backup's session is idle for as long as the copy
        // takes (transaction_timeout is there from PostgreSQL 17 on); rows about work must not wait for a standby that is gone.
        client
            .batch_execute(
                "SET search_path = pg_catalog; SET statement_timeout = 0; SET lock_timeout = 0; \
                 SET idle_in_transaction_session_timeout = 0; SET idle_session_timeout = 0; \
                 SELECT set_config('transaction_timeout', '0', false) \
                     WHERE current_setting('transaction_timeout', true) IS NOT NULL; \
                 SET default_transaction_read_only = off; SET synchronous_commit = local; \
                 SET timezone = 'UTC'; SET client_min_messages = warning",
            )
            .await?;
        Ok(Session { client })
    }
}

/// An open connection. Dropping it closes it.
pub struct Session {
    client: Client,
}

impl std::ops::Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_conninfo_wins_over_the_environment_and_that_over_the_defaults() {
        let env = |name: &str| match name {
            "PGHOST" => Some("/env".to_owned()),
            "PGPORT" => Some("6000".to_owned()),
            "PGUSER" => Some("env".to_owned()),
            _ => None,
        };
        let conninfo = Conninfo::parse_with("host=/here user=me", &env).unwrap();
        assert_eq!(conninfo.describe(), "host=/here port=6000 user=me dbname=postgres");
        let conninfo = Conninfo::parse_with("", &env).unwrap();
        assert_eq!(conninfo.describe(), "host=/env port=6000 user=env dbname=postgres");
        assert_eq!(conninfo.database("shop").dbname(), "shop");
    }

    #[test]
    fn no_password_is_ever_shown() {
        let conninfo = Conninfo::parse_with("host=h user=u password=geheim", &|_| None).unwrap();
        assert!(!conninfo.describe().contains("geheim"));
        assert!(!format!("{conninfo:?}").contains("geheim"));
    }

    #[test]
    fn wrong_ones_are_configuration_errors() {
        for bad in ["host", "port=many", "nonsense=1", "host=h user=u sslmode=require"] {
            let error = Conninfo::parse_with(bad, &|_| None).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Config, "{bad}");
        }
    }
}
