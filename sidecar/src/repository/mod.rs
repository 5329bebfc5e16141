//! The native repository: a directory, or a bucket ([`storage`]), whose layout is documented (`docs/design/repository-format.md`) and readable with
//! `zstd`, `b3sum` and a JSON viewer.
//!
//! ```text
//! repository.json
//! systems/SYSTEM/fragments/<hh>/<hash>.frag             each fragment once in the system's life
//! systems/SYSTEM/fragments.lock                         held while fragments are looked for, or removed
//! systems/SYSTEM/MEMBER/member.json                     which cluster this is
//!                       backup.lock
//!                       recover.lock                    shared by recoveries, held while something is removed
//!                       expired.json                    WAL that was removed on purpose
//!                       expire.json                     while an expire removes backups and fragments
//!                       catalog/ID.json                 one entry a complete backup: the truth
//!                       backups/ID/manifest.json, *.pack
//!                       wal/<timeline>/<name>.zst       segments; wal/<timeline>.history.zst
//!                       fragment-log/<database>/<hash>-<id>-<timeline>.json
//! systems/SYSTEM/objects/NAME.json                      what a third-party tool holds (see [`objects`])
//! ```
//!
//! Promises. A file with its final name is whole and durable. Nothing that is published is overwritten, except the
//! `dropped` notes in an entry of the fragment log, the notes about what was removed on purpose ([`expired`]), and the documents of what a tool holds. A backup exists iff its catalog entry does; the entry is written last.
//! So a process may die anywhere: what it leaves are files with temporary names and a backup folder without an entry,
//! and the next backup removes both.

pub mod catalog;
pub mod crypt;
pub mod drills;
pub mod expired;
pub mod fragments;
pub mod fsio;
pub mod info;
pub mod keys;
pub mod lock;
pub mod manifest;
pub mod objects;
pub mod pack;
pub mod pieces;
pub mod sealed;
pub mod storage;
pub mod walstore;

use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::tool::Tool;
use crypt::Keys;
use fsio::Published;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use storage::Storage;

/// What names begin with under which a bucket is tried.
const CONDITIONS: &str = ".conditions-";

/// The version of the layout that this program writes and reads.
pub const FORMAT: u32 = 1;

/// How long an agent that begins may hold the backup lock.
const AGENT_BEGINS: Duration = Duration::from_secs(2);

#[derive(Debug, Serialize, Deserialize)]
struct RepositoryFile {
    format: u32,
    created_at: Timestamp,
}

/// What `member.json` holds: the cluster that the member is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// PostgreSQL's system identifier.
    pub system_identifier: u64,
    /// The size of its WAL segments.
    pub segment_size: u32,
}

/// A member's part of a repository.
#[derive(Clone, Debug)]
pub struct Repository {
    root: PathBuf,
    storage: Storage,
    system: String,
    member: String,
    read_only: bool,
    tool: Option<Arc<Tool>>,
    keys: Arc<Keys>,
}

/// The name of this machine, for people.
fn this_host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

impl Repository {
    /// Opens the repository of a configuration. It must exist.
    pub fn open(config: &Config) -> Result<Self> {
        let repository = Self::at(config)?;
        match repository.read_head()? {
            Some(()) => Ok(repository),
            None => Err(Error::new(
                ErrorKind::Missing,
                format!("there is no repository at \"{}\"", repository.root.display()),
            )
            .with_hint("The first backup, or the first archived WAL segment, creates it.")),
        }
    }

    /// Opens the repository of a configuration for writing, and creates what is not there yet.
    pub fn open_or_create(config: &Config) -> Result<Self> {
        let repository = Self::at(config)?;
        repository.writable()?;
        repository.require_user()?;
        if repository.read_head()?.is_none() {
            if !config.repository.create {
                return Err(Error::new(
                    ErrorKind::Missing,
                    format!("there is no repository at \"{}\"", repository.root.display()),
                )
                .detail("repository.create is false in the configuration.")
                .with_hint(
                    "Is its file system mounted? Set repository.create to true to make a new repository there.",
                ));
            }
            // Another process may have made it just now.
            if repository.holds_other_things()? && repository.read_head()?.is_none() {
                return Err(Error::new(
                    ErrorKind::Config,
                    format!("\"{}\" is not a repository and is not empty", repository.root.display()),
                )
                .with_hint("Name an empty directory, or one that holds a repository, as repository.path."));
            }
            if let Storage::Bucket(bucket) = &repository.storage {
                let mut unique = blake3::Hasher::new();
                unique.update(format!("{} {:?}", std::process::id(), std::time::SystemTime::now()).as_bytes());
                let name = format!("{CONDITIONS}{}", unique.finalize().to_hex());
                bucket.require_conditions(&repository.root.join(name))?;
            }
            let head = RepositoryFile { format: FORMAT, created_at: Timestamp::now() };
            repository.storage.write_new_sealed(&repository.root.join("repository.json"), &head)?;
        }
        repository.storage.create_folder(&repository.member_dir())?;
        Ok(repository)
    }

    fn at(config: &Config) -> Result<Self> {
        Ok(Self {
            root: config.repository.root(),
            storage: Storage::of(&config.repository)?,
            system: config.system.clone(),
            member: config.member.name.clone(),
            read_only: config.repository.read_only,
            tool: Tool::of(config)?.map(Arc::new),
            keys: Keys::of(&config.repository)?,
        })
    }

    /// The third-party tool that carries hot data and fragments, when one is configured.
    pub fn tool(&self) -> Option<&Tool> {
        self.tool.as_deref()
    }

    /// For whom what is written is encrypted, and what opens what is read.
    pub fn keys(&self) -> &Arc<Keys> {
        &self.keys
    }

    /// The members that the repository has of the system.
    pub fn members(&self) -> Result<Vec<String>> {
        let dir = self.system_dir();
        let mut members = Vec::new();
        for name in self.storage.folders(&dir)? {
            if self.storage.exists(&dir.join(&name).join("member.json"))? {
                members.push(name);
            }
        }
        Ok(members)
    }

    /// Another member's part of the same system.
    pub fn of_member(&self, member: &str) -> Self {
        Self { member: member.to_owned(), ..self.clone() }
    }

    fn read_head(&self) -> Result<Option<()>> {
        let path = self.root.join("repository.json");
        match self.storage.read_sealed::<RepositoryFile>(&path)? {
            Some(head) if head.format == FORMAT => Ok(Some(())),
            Some(head) => Err(Error::new(
                ErrorKind::Config,
                format!(
                    "the repository \"{}\" has format {}, but this program knows format {FORMAT}",
                    self.root.display(),
                    head.format
                ),
            )),
            None => Ok(None),
        }
    }

    /// Fails when the configuration says that this repository is only read.
    pub fn writable(&self) -> Result<()> {
        if self.read_only {
            return Err(Error::new(
                ErrorKind::Forbidden,
                format!("the repository \"{}\" is read-only for this server", self.root.display()),
            )
            .detail("repository.read_only is true, as it is for a server that was just recovered.")
            .with_hint("When this server is the one to go on with, set it to false and turn archiving on."));
        }
        Ok(())
    }

    /// The superuser can write into everybody's repository, and its files there would be in the way of the owner.
    pub fn require_user(&self) -> Result<()> {
        let owner = std::fs::metadata(&self.root).map_or(0, |meta| meta.uid());
        if owner == 0 || !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Forbidden,
            format!(
                "the repository \"{}\" belongs to user id {owner}, and this process is the superuser",
                self.root.display()
            ),
        )
        .with_hint("Run this as the user that runs PostgreSQL, for example with \"runuser -u postgres --\"."))
    }

    /// True when the configuration says that this repository is only read.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The place that it is in.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// What all its names begin with: its directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The system's name.
    pub fn system(&self) -> &str {
        &self.system
    }

    /// The member's name.
    pub fn member(&self) -> &str {
        &self.member
    }

    /// The system's directory.
    pub fn system_dir(&self) -> PathBuf {
        self.root.join("systems").join(&self.system)
    }

    /// The member's directory.
    pub fn member_dir(&self) -> PathBuf {
        self.system_dir().join(&self.member)
    }

    /// Takes the lock that keeps two backups of the member apart.
    pub fn lock_backup(&self) -> Result<lock::Lock> {
        let what = format!("backups of member \"{}\" of system \"{}\"", self.member, self.system);
        self.storage.lock(&self.member_dir().join("backup.lock"), &what)
    }

    /// Takes the same lock for a command. An agent that starts holds it for a moment, so it is tried again for a moment.
    pub fn wait_for_backup_lock(&self) -> Result<lock::Lock> {
        let began = Instant::now();
        loop {
            match self.lock_backup() {
                Err(error) if error.kind == ErrorKind::Locked && began.elapsed() < AGENT_BEGINS => {
                    std::thread::sleep(Duration::from_millis(100));
                }
                other => return other,
            }
        }
    }

    fn recover_lock(&self) -> PathBuf {
        self.member_dir().join("recover.lock")
    }

    /// Takes the lock under which what a recovery of the member may need is removed, or fails at once when one runs.
    pub fn lock_recoveries(&self) -> Result<lock::Lock> {
        self.storage.lock(&self.recover_lock(), "recoveries").map_err(|error| match error.kind {
            ErrorKind::Locked => Error::new(
                ErrorKind::Locked,
                format!("a recovery of member \"{}\" runs, and nothing is removed below it", self.member),
            )
            .detail(format!("It holds the lock \"{}\".", self.recover_lock().display()))
            .with_hint("Try again when it has fetched all fragments, or has ended."),
            _ => error,
        })
    }

    /// Keeps backups, WAL and fragments of the member from being removed, for as long as the lock is held. Fails at once while
    /// something is removed. None when nothing can be locked here: the repository is another user's, or is read from elsewhere.
    pub fn share_recoveries(&self) -> Result<Option<lock::Lock>> {
        let owner = std::fs::metadata(&self.root).is_ok_and(|meta| meta.uid() == rustix::process::geteuid().as_raw());
        // A file of somebody else would be in the owner's way.
        self.storage.try_share(&self.recover_lock(), owner)
    }

    fn fragment_lock(&self) -> PathBuf {
        self.system_dir().join("fragments.lock")
    }

    /// Takes the lock under which fragments are removed, or fails at once when somebody uses fragments.
    pub fn lock_fragments(&self) -> Result<lock::Lock> {
        self.storage.lock(&self.fragment_lock(), &format!("the fragments of system \"{}\"", self.system))
    }

    /// Keeps fragments from being removed, for as long as the lock is held. Whoever trusts that a fragment is in the
    /// repository holds it from before it looks until something durable names the fragment.
    pub fn share_fragments(&self) -> Result<lock::Lock> {
        self.storage.create_folder(&self.system_dir())?;
        self.storage.share(&self.fragment_lock())
    }

    /// The cluster that the member is, when that is known.
    pub fn identity(&self) -> Result<Option<Identity>> {
        self.storage.read_sealed(&self.member_dir().join("member.json"))
    }

    /// Checks that the member is the cluster `found`, and remembers it when the member is new.
    pub fn claim(&self, found: &Identity) -> Result<()> {
        let known = match self.identity()? {
            Some(known) => known,
            None => {
                let path = self.member_dir().join("member.json");
                match self.storage.write_new_sealed(&path, found)? {
                    Published::New => return Ok(()),
                    Published::Existing => self.storage.read_sealed_required(&path)?,
                }
            }
        };
        if known == *found {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Conflict,
            format!("member \"{}\" of system \"{}\" is another PostgreSQL cluster", self.member, self.system),
        )
        .detail(format!(
            "The repository holds system identifier {} with segments of {} bytes; this server has {} with {}.",
            known.system_identifier, known.segment_size, found.system_identifier, found.segment_size
        ))
        .with_hint("Give the new cluster another member name or another repository."))
    }

    /// Removes what interrupted writes left anywhere in the member's part, and among the system's fragments.
    pub fn sweep_temporary(&self) -> Result<()> {
        // In a bucket nothing is there before it is whole; what was not completed is found in one list.
        if let Storage::Bucket(bucket) = &self.storage {
            return match bucket.sweep(&self.system_dir(), storage::bucket::ABANDONED) {
                Err(error) if matches!(error.kind, ErrorKind::Refused | ErrorKind::Io) => {
                    tracing::warn!("uploads of processes that died are not looked for: {}", error.full_text());
                    Ok(())
                }
                other => other.map(drop),
            };
        }
        let member = self.member_dir();
        let mut dirs = vec![
            member.clone(),
            member.join("catalog"),
            self.wal_dir(),
            self.stream_dir(),
            self.root.clone(),
            self.objects_dir(),
        ];
        for above in [self.wal_dir(), self.fragments_dir(), member.join("fragment-log")] {
            dirs.extend(self.storage.folders(&above)?.into_iter().map(|name| above.join(name)));
        }
        dirs.iter().try_for_each(|dir| self.storage.sweep(dir))
    }

    /// Proves that the repository takes files: writes one, makes it durable, and removes it.
    pub fn probe(&self) -> Result<()> {
        let path = self.member_dir().join(format!(".probe-{}.tmp", std::process::id()));
        self.storage.write(&path, b"probe")?;
        self.storage.remove(&path)
    }

    /// True when there is more than what a new file system or a write in progress puts there.
    fn holds_other_things(&self) -> Result<bool> {
        // Somebody who was asking whether a bucket knows conditions may have died.
        let ours = |name: &str| name == "lost+found" || name.starts_with(CONDITIONS);
        Ok(self.storage.list(&self.root)?.iter().any(|name| !ours(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn config(root: &Path) -> Config {
        let text = format!("system = \"s\"\n[member]\nname = \"m\"\n[repository]\npath = \"{}\"\n", root.display());
        Config::parse(&text, Path::new("/x")).unwrap()
    }

    #[test]
    fn a_repository_is_created_once_and_opened_after() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(&dir.path().join("repo"));
        assert_eq!(Repository::open(&config).unwrap_err().kind, ErrorKind::Missing);
        Repository::open_or_create(&config).unwrap();
        Repository::open_or_create(&config).unwrap().probe().unwrap();
        Repository::open(&config).unwrap();
    }

    #[test]
    fn a_directory_with_other_things_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("thesis.doc"), "x").unwrap();
        let error = Repository::open_or_create(&config(dir.path())).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Config);
    }

    #[test]
    fn a_repository_that_must_be_there_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(&dir.path().join("mount"));
        std::fs::create_dir_all(dir.path().join("mount/lost+found")).unwrap();
        config.repository.create = false;
        assert_eq!(Repository::open_or_create(&config).unwrap_err().kind, ErrorKind::Missing);
        config.repository.create = true;
        Repository::open_or_create(&config).unwrap();
        config.repository.create = false;
        Repository::open_or_create(&config).unwrap();
    }

    #[test]
    fn a_lost_catalog_does_not_make_backups_rubbish() {
        let dir = tempfile::tempdir().unwrap();
        let repository = Repository::open_or_create(&config(dir.path())).unwrap();
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let mut ids = Vec::new();
        for _ in 0..2 {
            let (id, folder) = repository.create_backup_dir(now).unwrap();
            ids.push(id);
            repository.require_catalog(&ids).unwrap();
            std::fs::write(folder.join("manifest.json"), "x").unwrap();
        }
        repository.require_catalog(&ids[..1]).unwrap();
        assert_eq!(repository.require_catalog(&ids).unwrap_err().kind, ErrorKind::Damaged);
        std::fs::remove_dir(repository.member_dir().join("catalog")).unwrap();
        let error = repository.require_catalog(&ids[..1]).unwrap_err();
        assert!(error.message.contains(&ids[0]), "{error}");
    }

    #[test]
    fn a_member_stays_the_cluster_that_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let repository = Repository::open_or_create(&config(dir.path())).unwrap();
        let one = Identity { system_identifier: 1, segment_size: 16 << 20 };
        repository.claim(&one).unwrap();
        repository.claim(&one).unwrap();
        let other = Identity { system_identifier: 2, ..one };
        assert_eq!(repository.claim(&other).unwrap_err().kind, ErrorKind::Conflict);
    }

    #[test]
    fn a_read_only_repository_takes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        Repository::open_or_create(&config).unwrap();
        config.repository.read_only = true;
        assert_eq!(Repository::open_or_create(&config).unwrap_err().kind, ErrorKind::Forbidden);
        assert!(Repository::open(&config).is_ok());
    }
}
