//! Who can read what is encrypted.
//!
//! A recipient is a public key, and nothing in it says whether anybody still has the identity that belongs to it. So the repository remembers of each recipient
//! when somebody had its identity at hand (`systems/SYSTEM/keys/<recipient>.json`): every command that is configured with the identity notes it. A recipient of
//! whom nobody ever showed that is a doubt, and a backup and `strata check` say so.

use super::Repository;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Progress;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// So often a note is renewed.
const RENEW: SignedDuration = SignedDuration::from_hours(24);

/// Somebody had the identity of a recipient.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// The recipient.
    pub recipient: String,
    /// When.
    pub shown_at: Timestamp,
    /// On which machine.
    pub host: String,
}

/// What is known of a recipient.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyState {
    /// The recipient.
    pub recipient: String,
    /// What is written now is encrypted for it.
    pub current: bool,
    /// Its identity is in `repository.identity_file`.
    pub here: bool,
    /// When somebody last had its identity.
    pub shown: Option<Shown>,
}

/// What [`Repository::rekey`] did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rekeyed {
    /// Fragments that are encrypted for the recipients of the configuration.
    pub current: u64,
    /// Those that were encrypted anew, or would be.
    pub rekeyed: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Repository {
    fn shown_path(&self, recipient: &str) -> PathBuf {
        self.system_dir().join("keys").join(format!("{recipient}.json"))
    }

    /// Notes of each identity that is at hand that somebody has it. A repository that is only read remembers nothing.
    pub fn note_identities(&self) -> Result<()> {
        if self.is_read_only() {
            return Ok(());
        }
        let host = super::this_host();
        for recipient in self.keys().readable()? {
            let path = self.shown_path(&recipient);
            let known = self.storage().read_sealed::<Shown>(&path).unwrap_or_default();
            if known.is_none_or(|known| Timestamp::now().duration_since(known.shown_at) > RENEW) {
                let shown = Shown { recipient, shown_at: Timestamp::now(), host: host.clone() };
                self.storage().write_sealed(&path, &shown)?;
            }
        }
        Ok(())
    }

    /// All recipients that the configuration or the repository knows.
    pub fn key_states(&self) -> Result<Vec<KeyState>> {
        let (current, here) = (self.keys().names(), self.keys().readable()?);
        let mut all: Vec<String> = current.iter().chain(&here).cloned().collect();
        let noted = self.storage().list(&self.system_dir().join("keys"))?;
        all.extend(noted.iter().filter_map(|name| name.strip_suffix(".json").map(str::to_owned)));
        all.sort_unstable();
        all.dedup();
        let state = |recipient: String| {
            Ok(KeyState {
                current: current.contains(&recipient),
                here: here.contains(&recipient),
                shown: self.storage().read_sealed(&self.shown_path(&recipient))?,
                recipient,
            })
        };
        all.into_iter().map(state).collect()
    }

    /// Why what is written now may be read by nobody. Also notes the identities that are at hand.
    pub fn doubts(&self) -> Result<Vec<String>> {
        if !self.keys().encrypts() {
            return Ok(Vec::new());
        }
        let mut doubts = Vec::new();
        match self.keys().readable() {
            Ok(_) => self.note_identities()?,
            Err(error) => doubts.push(format!("nobody can be shown here to read what is written: {}", error.message)),
        }
        for recipient in self.keys().names() {
            if self.storage().read_sealed::<Shown>(&self.shown_path(&recipient))?.is_none() {
                doubts.push(format!(
                    "nobody was ever shown to have the identity of the recipient {recipient}: run \"strata repository keys\" where it is, with repository.identity_file set"
                ));
            }
        }
        Ok(doubts)
    }

    /// Encrypts the fragments anew that are not encrypted for exactly the recipients of the configuration. Their content, and so their names, stay. It may be
    /// interrupted and run again.
    pub fn rekey(&self, dry_run: bool, progress: &Progress) -> Result<Rekeyed> {
        self.writable()?;
        if !self.keys().encrypts() {
            return Err(Error::new(ErrorKind::Config, "the configuration has no repository.recipients"));
        }
        let (wanted, all) = (self.keys().names(), self.fragments()?);
        progress.phase_bytes("rekey", all.iter().map(|(_, bytes)| bytes).sum(), "encrypting fragments anew");
        let mut done = Rekeyed::default();
        for (hash, stored) in all {
            let path = self.fragment_path(&hash)?;
            // Nobody may remove it between the look and its coming back.
            let shared = self.share_fragments()?;
            let seal = self.storage().seal_of(&path)?;
            if seal.is_some_and(|seal| seal.recipients == wanted) {
                done.current += 1;
            } else if dry_run {
                done.rekeyed += 1;
                done.bytes += stored;
            } else {
                shared.require_held()?;
                if let Some(bytes) = self.storage().reseal(&path, &hash, self.keys())? {
                    done.rekeyed += 1;
                    done.bytes += bytes;
                }
            }
            drop(shared);
            progress.advance(stored);
        }
        Ok(done)
    }
}
