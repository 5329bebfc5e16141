//! `[repository]`: where backups are. A directory, or a bucket of an S3-compatible object storage.

use super::duration;
use crate::repository::crypt;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where backups are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepositoryConfig {
    /// The directory. Either this or `s3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Never write: no backup, no WAL, no fragment log. `strata recover` sets it for the server that it brings back.
    #[serde(default)]
    pub read_only: bool,
    /// Make the repository when there is none. False keeps WAL from going to the wrong place when the repository's file system
    /// is not mounted.
    #[serde(default = "yes")]
    pub create: bool,
    /// What is written is encrypted for these, in age's form (`age1…`). Nothing is encrypted without them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recipients: Vec<String>,
    /// A file with the identities that open what is encrypted, as `age-keygen` writes it. Whoever only backs up needs none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity_file: Option<PathBuf>,
    /// The bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Config>,
}

fn yes() -> bool {
    true
}

/// A bucket of an S3-compatible object storage. No secret stands in the configuration: credentials come from a file, or from the
/// environment (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3Config {
    /// The bucket. It must exist.
    pub bucket: String,
    /// What all names in it begin with.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prefix: String,
    /// Where the service is, `https://HOST[:PORT]`; AWS when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The region.
    #[serde(default = "region")]
    pub region: String,
    /// A file with credentials in the AWS tools' form. It is read again when it changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_file: Option<PathBuf>,
    /// The section of that file.
    #[serde(default = "profile")]
    pub profile: String,
    /// Certificates of authorities, in PEM, that are trusted in place of the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// The bucket is named in the path of a request, not in its host name.
    #[serde(default = "yes")]
    pub path_style: bool,
    /// Speak without TLS. Only where nobody else can listen.
    #[serde(default)]
    pub allow_http: bool,
    /// How long a request that failed for a passing reason is tried again.
    #[serde(default = "retry_timeout", with = "duration")]
    pub retry_timeout: Duration,
}

fn region() -> String {
    "us-east-1".to_owned()
}

fn profile() -> String {
    "default".to_owned()
}

fn retry_timeout() -> Duration {
    Duration::from_secs(60)
}

impl RepositoryConfig {
    /// A repository in a directory.
    pub fn directory(path: &Path) -> Self {
        Self {
            path: Some(path.to_owned()),
            read_only: false,
            create: true,
            recipients: Vec::new(),
            identity_file: None,
            s3: None,
        }
    }

    /// The place that all its names begin with: a directory, or `s3://BUCKET/PREFIX`.
    pub fn root(&self) -> PathBuf {
        match (&self.path, &self.s3) {
            (Some(path), _) => path.clone(),
            (None, Some(s3)) => {
                let root = PathBuf::from(format!("s3://{}", s3.bucket));
                if s3.prefix.is_empty() { root } else { root.join(&s3.prefix) }
            }
            (None, None) => PathBuf::new(),
        }
    }

    /// What is wrong with it.
    pub(super) fn check(&self) -> Result<(), String> {
        for text in &self.recipients {
            crypt::recipient(text).map_err(|error| format!("repository.recipients: {error}"))?;
        }
        let Some(s3) = &self.s3 else {
            return self.path.as_ref().map(drop).ok_or_else(|| "repository names neither path nor s3".to_owned());
        };
        if self.path.is_some() {
            return Err("repository names both path and s3, but is in one place".to_owned());
        }
        let name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
        if s3.bucket.is_empty() || !s3.bucket.bytes().all(name) {
            return Err(format!("repository.s3.bucket is \"{}\", which is not the name of a bucket", s3.bucket));
        }
        let part = |part: &str| !part.is_empty() && part != "." && part != ".." && part.bytes().all(name);
        if !s3.prefix.is_empty() && !s3.prefix.split('/').all(part) {
            return Err(format!(
                "repository.s3.prefix is \"{}\", but must be names of letters, digits, \"_\", \"-\" and \".\", with \"/\" only between them",
                s3.prefix
            ));
        }
        if let Some(endpoint) = &s3.endpoint {
            if endpoint.contains('@') {
                return Err("repository.s3.endpoint must not hold a user or password".to_owned());
            }
            let plain = endpoint.starts_with("http://");
            if !plain && !endpoint.starts_with("https://") {
                return Err(format!("repository.s3.endpoint is \"{endpoint}\", but must begin with https://"));
            }
            if plain && !s3.allow_http {
                return Err(format!(
                    "repository.s3.endpoint is \"{endpoint}\", without TLS; set repository.s3.allow_http if nobody else can listen"
                ));
            }
        }
        for (key, path) in [("credentials_file", &s3.credentials_file), ("ca_file", &s3.ca_file)] {
            if let Some(path) = path.as_ref().filter(|path| !path.is_absolute()) {
                return Err(format!("repository.s3.{key} is \"{}\", but must be an absolute path", path.display()));
            }
        }
        Ok(())
    }
}
