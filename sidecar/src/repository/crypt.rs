//! Encryption on the client, in age's format (<https://age-encryption.org/v1>) for X25519 recipients.
//!
//! ```text
//!   frame of a pack, WAL frame, manifest, fragment ──► age file for all recipients ──► repository
//! ```
//!
//! What is encrypted is always one whole age file that `age --decrypt` reads, so everything comes back without Strata. A pack is a sequence of them,
//! one for each frame, so a piece is read without what is before it. Each has a file key of its own; a recipient costs about 100 bytes and
//! one operation on a curve. Chunks of 64 KiB are authenticated, with their order and their end.
//!
//! **What it promises.** Without an identity the repository gives no content away: no row, no file of the server, no setting. What stays readable,
//! and why, is in `docs/design/repository-format.md`. It does not prove who wrote something: recipients are no secret, so whoever may write into
//! the repository can put other things there, encrypted for the same recipients. Checksums that are stored beside what is encrypted are of the stored bytes, so damage
//! is found by those who have no identity, too.
//!
//! **Reading** goes by what is there: what begins as an age file is one. So a repository may hold things from before and after encryption was turned on, and
//! for several generations of recipients, as long as the identities of all of them are at hand.
//!
//! Nobody who only backs up needs an identity. Identities are read from their file when something must be opened, and are in no message.

use crate::config::RepositoryConfig;
use crate::error::{Error, ErrorKind, Result};
use age::x25519;
use std::borrow::Cow;
use std::fmt::Display;
use std::io::{BufReader, Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

/// What an age file begins with.
pub const MAGIC: &[u8] = b"age-encryption.org/v1\n";

/// What is written is encrypted for these recipients, and what is read is opened with these identities.
pub struct Keys {
    recipients: Vec<x25519::Recipient>,
    file: Option<PathBuf>,
    identities: OnceLock<Vec<x25519::Identity>>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("recipients", &self.names()).field("file", &self.file).finish_non_exhaustive()
    }
}

/// A recipient, from its text.
pub fn recipient(text: &str) -> Result<x25519::Recipient, String> {
    text.parse().map_err(|_| format!("\"{text}\" is not a recipient of age, like age1…, as age-keygen prints it"))
}

/// The identities in a file as age-keygen writes it. What is wrong names no secret.
fn identities(text: &str) -> Result<Vec<x25519::Identity>, String> {
    let mut found = Vec::new();
    for (at, line) in text.lines().map(str::trim).enumerate().filter(|(_, l)| !l.is_empty() && !l.starts_with('#')) {
        let identity = line.parse().map_err(|_| format!("its line {} is not an identity of age", at + 1))?;
        found.push(identity);
    }
    if found.is_empty() { Err("it holds no identity".to_owned()) } else { Ok(found) }
}

impl Keys {
    /// What a configuration names.
    pub fn of(config: &RepositoryConfig) -> Result<Arc<Self>> {
        let wrong = |why: String| Error::new(ErrorKind::Config, format!("repository.recipients: {why}"));
        let recipients = config.recipients.iter().map(|text| recipient(text).map_err(wrong)).collect::<Result<_>>()?;
        Ok(Arc::new(Self { recipients, file: config.identity_file.clone(), identities: OnceLock::new() }))
    }

    /// Nothing is encrypted, and nothing that is can be opened.
    pub fn none() -> Arc<Self> {
        Arc::new(Self { recipients: Vec::new(), file: None, identities: OnceLock::new() })
    }

    /// True when what is written is encrypted.
    pub fn encrypts(&self) -> bool {
        !self.recipients.is_empty()
    }

    /// The recipients, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.recipients.iter().map(ToString::to_string).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The recipients whose identities are at hand, sorted; none without a file of identities.
    pub fn readable(&self) -> Result<Vec<String>> {
        let all = if self.file.is_some() { self.identities()? } else { &[] };
        let mut names: Vec<String> = all.iter().map(|one| one.to_public().to_string()).collect();
        names.sort_unstable();
        Ok(names)
    }

    fn identities(&self) -> Result<&[x25519::Identity]> {
        if let Some(known) = self.identities.get() {
            return Ok(known);
        }
        let Some(file) = &self.file else {
            return Err(Error::new(ErrorKind::NoKey, "it is encrypted, and repository.identity_file is not set"));
        };
        let wrong = |why: String| {
            Error::new(ErrorKind::NoKey, format!("the identities in \"{}\" cannot be used: {why}", file.display()))
        };
        let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
        let found = identities(&text).map_err(wrong)?;
        Ok(self.identities.get_or_init(|| found))
    }

    fn encryptor(&self) -> Result<age::Encryptor> {
        let all = self.recipients.iter().map(|one| one as &dyn age::Recipient);
        age::Encryptor::with_recipients(all)
            .map_err(|error| Error::new(ErrorKind::Config, format!("could not encrypt: {error}")))
    }

    /// What writes an age file for all recipients into `sink`.
    pub fn sealing<W: Write>(&self, sink: W) -> Result<age::stream::StreamWriter<W>> {
        self.encryptor()?.wrap_output(sink).map_err(failed)
    }

    /// The stored form of `plain`: an age file, or itself without recipients.
    pub fn seal(&self, plain: Vec<u8>) -> Result<Vec<u8>> {
        if !self.encrypts() {
            return Ok(plain);
        }
        let mut out = Vec::with_capacity(plain.len() + 1024 + plain.len() / 2048);
        let mut writer = self.sealing(&mut out)?;
        writer.write_all(&plain).map_err(failed)?;
        writer.finish().map_err(failed)?;
        Ok(out)
    }

    /// The content of what is stored, which may be encrypted or not. `what` names it in errors.
    pub fn content<'a>(&self, stored: &'a [u8], what: impl Display) -> Result<Cow<'a, [u8]>> {
        Ok(if is_sealed(stored) { Cow::Owned(self.open(stored, what)?) } else { Cow::Borrowed(stored) })
    }

    /// The content of an age file. `what` names it in errors.
    pub fn open(&self, stored: &[u8], what: impl Display) -> Result<Vec<u8>> {
        let mut plain = Vec::with_capacity(stored.len());
        let opened = self.opening(stored, &what)?.read_to_end(&mut plain);
        opened.map_err(|error| Error::damaged(what, format_args!("it does not decrypt: {error}")))?;
        Ok(plain)
    }

    /// Reads the content of the age file that `source` has.
    pub fn opening<'a, R: Read + 'a>(&self, source: R, what: &impl Display) -> Result<Box<dyn Read + 'a>> {
        let identities = self.identities().map_err(|error| {
            let hint = error.hint().map(str::to_owned);
            let named = Error::new(error.kind, format!("{what} cannot be read: {}", error.message));
            match hint {
                Some(hint) => named.with_hint(hint),
                None => named,
            }
        })?;
        let all = identities.iter().map(|one| one as &dyn age::Identity);
        let opened =
            age::Decryptor::new_buffered(BufReader::with_capacity(1 << 16, source)).and_then(|age| age.decrypt(all));
        match opened {
            Ok(reader) => Ok(Box::new(reader)),
            Err(age::DecryptError::NoMatchingKeys) => Err(Error::new(
                ErrorKind::NoKey,
                format!(
                    "{what} cannot be read: it is encrypted for none of the identities in repository.identity_file"
                ),
            )),
            Err(age::DecryptError::Io(error)) => Err(match error.downcast::<Error>() {
                Ok(error) => error,
                Err(error) => Error::damaged(what, format_args!("it cannot be read: {error}")),
            }),
            Err(error) => Err(Error::damaged(what, format_args!("it does not decrypt: {error}"))),
        }
    }
}

/// What the place says is an error of ours inside.
pub(super) fn failed(error: std::io::Error) -> Error {
    error.downcast::<Error>().unwrap_or_else(|error| Error::new(ErrorKind::Io, format!("could not encrypt: {error}")))
}

/// What was read; none when it is encrypted for others.
pub fn unless_sealed<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Err(error) if error.kind == ErrorKind::NoKey => {
            tracing::debug!("{error}");
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// True when stored bytes are an age file.
pub fn is_sealed(stored: &[u8]) -> bool {
    stored.starts_with(MAGIC)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use age::secrecy::ExposeSecret;
    use std::path::Path;

    /// An identity in a file, and its recipient.
    pub(crate) fn identity(dir: &Path, name: &str) -> (PathBuf, String) {
        let identity = x25519::Identity::generate();
        let file = dir.join(name);
        std::fs::write(&file, format!("# created for a test\n{}\n", identity.to_string().expose_secret())).unwrap();
        (file, identity.to_public().to_string())
    }

    pub(crate) fn keys(recipients: &[&str], file: Option<&Path>) -> Arc<Keys> {
        let mut config = RepositoryConfig::directory(Path::new("/r"));
        config.recipients = recipients.iter().map(|one| (*one).to_owned()).collect();
        config.identity_file = file.map(Path::to_owned);
        Keys::of(&config).unwrap()
    }

    #[test]
    fn each_recipient_opens_it_and_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let (first, one) = identity(dir.path(), "first");
        let (second, two) = identity(dir.path(), "second");
        let (third, _) = identity(dir.path(), "third");
        let plain: Vec<u8> = (0..200_000u32).map(|n| (n / 7) as u8).collect();
        let stored = keys(&[&one, &two], None).seal(plain.clone()).unwrap();
        assert!(is_sealed(&stored));
        for file in [&first, &second] {
            assert_eq!(keys(&[], Some(file)).open(&stored, "x").unwrap(), plain);
        }
        for keys in [keys(&[], Some(&third)), keys(&[&one], None), keys(&[&one], Some(Path::new("/nowhere")))] {
            let error = keys.open(&stored, "the thing").unwrap_err();
            assert_eq!(error.kind, ErrorKind::NoKey);
            assert!(error.message.contains("the thing"), "{error}");
        }
        assert_eq!(keys(&[&one], Some(&second)).readable().unwrap(), [two]);
    }

    #[test]
    fn what_is_changed_or_cut_off_does_not_open() {
        let dir = tempfile::tempdir().unwrap();
        let (file, one) = identity(dir.path(), "one");
        let keys = keys(&[&one], Some(&file));
        let stored = keys.seal(vec![7; 150_000]).unwrap();
        for at in (0..stored.len()).step_by(1009).chain(0..400) {
            let mut changed = stored.clone();
            changed[at] ^= 1;
            assert!(keys.open(&changed, "x").is_err(), "byte {at}");
        }
        for length in [0, 10, 100, 300, 70_000, stored.len() - 1] {
            assert!(keys.open(&stored[..length], "x").is_err(), "length {length}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_without_a_secret() {
        let dir = tempfile::tempdir().unwrap();
        let (file, _) = identity(dir.path(), "one");
        let text = std::fs::read_to_string(&file).unwrap().replace("KEY-1", "KEY-2");
        assert_eq!(identities(&text).err().unwrap(), "its line 2 is not an identity of age");
        assert!(identities("# nothing\n").err().unwrap().contains("no identity"));
        assert!(recipient("age1x").unwrap_err().contains("age-keygen"));
        let keys = keys(&[], Some(&file));
        keys.readable().unwrap();
        assert!(!format!("{keys:?}").contains("SECRET"));
    }
}
