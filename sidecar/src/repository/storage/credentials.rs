//! Credentials: from a file in the form of the AWS tools, or from the environment. The file is read again when it changes, so keys are
//! renewed without a restart.

use crate::config::S3Config;
use crate::error::{Error, ErrorKind, Result};
use rusty_s3::Credentials;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

const HINT: &str = "repository.s3.credentials_file names a file with [default], aws_access_key_id = … and aws_secret_access_key = …; without it AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY count.";

/// Where credentials come from.
#[derive(Debug)]
pub enum Source {
    /// A section of a file.
    File(FileCredentials),
    /// The environment, as it was at the start.
    Environment(Arc<Credentials>),
}

impl Source {
    /// What a configuration names.
    pub fn of(config: &S3Config) -> Result<Self> {
        if let Some(file) = &config.credentials_file {
            return Ok(Self::File(FileCredentials::open(file, &config.profile)?));
        }
        match Credentials::from_env() {
            Some(found) if !found.key().is_empty() && !found.secret().is_empty() => {
                Ok(Self::Environment(Arc::new(found)))
            }
            _ => Err(Error::new(
                ErrorKind::Refused,
                format!("there are no credentials for the bucket \"{}\"", config.bucket),
            )
            .with_hint(HINT)),
        }
    }

    /// The credentials as they are now.
    pub fn get(&self) -> Result<Arc<Credentials>> {
        match self {
            Self::File(file) => file.get(),
            Self::Environment(found) => Ok(found.clone()),
        }
    }
}

/// Credentials from a section of a file.
#[derive(Debug)]
pub struct FileCredentials {
    file: PathBuf,
    profile: String,
    known: Mutex<Option<(SystemTime, Arc<Credentials>)>>,
}

impl FileCredentials {
    /// Reads them for the first time, so that what is wrong is said at once.
    fn open(file: &Path, profile: &str) -> Result<Self> {
        let this = Self { file: file.to_owned(), profile: profile.to_owned(), known: Mutex::new(None) };
        this.get()?;
        Ok(this)
    }

    fn get(&self) -> Result<Arc<Credentials>> {
        let wrong = |why: String| {
            Error::new(
                ErrorKind::Refused,
                format!("the credentials in \"{}\" cannot be used: {why}", self.file.display()),
            )
            .with_hint(HINT)
        };
        let changed = std::fs::metadata(&self.file).and_then(|meta| meta.modified());
        let changed = changed.map_err(|error| wrong(error.to_string()))?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, credentials)) = known.as_ref().filter(|(when, _)| *when == changed) {
            return Ok(credentials.clone());
        }
        let text = std::fs::read_to_string(&self.file).map_err(|error| wrong(error.to_string()))?;
        let credentials = Arc::new(parse(&text, &self.profile).map_err(wrong)?);
        *known = Some((changed, credentials.clone()));
        Ok(credentials)
    }
}

/// The credentials of a section. What is wrong names no value.
fn parse(text: &str, profile: &str) -> Result<Credentials, String> {
    let (mut inside, mut found) = (false, false);
    let (mut key, mut secret, mut token) = (None, None, None);
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(['#', ';'])) {
        if let Some(section) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            inside = section.trim() == profile;
            found |= inside;
            continue;
        }
        let Some((name, value)) = line.split_once('=').filter(|_| inside) else { continue };
        let value = Some(value.trim().to_owned());
        match name.trim() {
            "aws_access_key_id" => key = value,
            "aws_secret_access_key" => secret = value,
            "aws_session_token" => token = value,
            _ => {}
        }
    }
    if !found {
        return Err(format!("it has no section [{profile}]"));
    }
    match (key, secret, token) {
        (Some(key), Some(secret), None) => Ok(Credentials::new(key, secret)),
        (Some(key), Some(secret), Some(token)) => Ok(Credentials::new_with_token(key, secret, token)),
        _ => Err(format!("section [{profile}] lacks aws_access_key_id or aws_secret_access_key")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_section_that_is_named_is_read() {
        let text = "# keys\n[default]\naws_access_key_id = a\naws_secret_access_key = b=c\n\n[other]\naws_access_key_id=x\naws_secret_access_key=y\naws_session_token=z\n";
        let one = parse(text, "default").unwrap();
        assert_eq!((one.key(), one.secret(), one.token()), ("a", "b=c", None));
        assert_eq!(parse(text, "other").unwrap().token(), Some("z"));
        assert!(parse(text, "third").unwrap_err().contains("third"));
        assert!(parse("[default]\naws_access_key_id = a\n", "default").unwrap_err().contains("lacks"));
    }

    #[test]
    fn a_changed_file_is_read_again_and_no_secret_is_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let write = |secret: &str, age: u64| {
            let text = format!("[p]\naws_access_key_id = a\naws_secret_access_key = {secret}\n");
            std::fs::write(file.path(), text).unwrap();
            file.as_file().set_modified(SystemTime::now() - std::time::Duration::from_secs(age)).unwrap();
        };
        write("one", 100);
        let credentials = FileCredentials::open(file.path(), "p").unwrap();
        write("geheim", 0);
        assert_eq!(credentials.get().unwrap().secret(), "geheim");
        assert!(!format!("{credentials:?}").contains("geheim"));
        assert_eq!(FileCredentials::open(Path::new("/nowhere"), "p").unwrap_err().kind, ErrorKind::Refused);
    }
}
