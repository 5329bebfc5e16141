//! The manifest of a backup: everything that is needed to lay its files out again, and their checksums.
//!
//! In a repository with recipients it is encrypted, in `manifest.age`, and `manifest.json` is what is left of it: packs and fragments by name, size and
//! checksum, so that retention, plans and checks of what is stored need no identity.

use super::fsio::Published;
use super::objects::StoredObject;
use super::{Repository, sealed};
use crate::error::{Error, ErrorKind, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use strata_catalog::Lsn;

/// The name of an encrypted manifest.
const ENCRYPTED: &str = "manifest.age";

/// The manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of this document.
    pub format: u32,
    /// The backup.
    pub id: String,
    /// The server as it was.
    pub server: Server,
    /// The content of `backup_label`.
    pub backup_label: String,
    /// The content of `tablespace_map`; empty when there are no tablespaces.
    pub tablespace_map: String,
    /// The tablespaces outside the data directory.
    pub tablespaces: Vec<Tablespace>,
    /// The directories, parents first.
    pub directories: Vec<Directory>,
    /// The packs.
    pub packs: Vec<Pack>,
    /// The files, by path.
    pub files: Vec<FileEntry>,
    /// The fragments that the catalogs named at the end of the backup.
    pub fragments: Vec<FragmentRef>,
    /// Pages whose checksum was wrong on the server.
    pub damaged_pages: Vec<DamagedPage>,
    /// Where the whole manifest is, when this is what is left of an encrypted one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encrypted: Option<EncryptedManifest>,
}

/// The whole manifest, encrypted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncryptedManifest {
    /// Its file name in the backup's folder.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// BLAKE3 of it, as it is stored.
    pub blake3: String,
    /// The recipients that open the backup.
    pub recipients: Vec<String>,
}

impl Manifest {
    /// What is left of it without an identity.
    fn outline(&self, encrypted: EncryptedManifest) -> Self {
        Self {
            server: Server {
                version: self.server.version,
                data_directory: PathBuf::new(),
                store: PathBuf::new(),
                bin_directory: None,
                data_checksums: self.server.data_checksums,
                settings: Vec::new(),
            },
            backup_label: String::new(),
            tablespace_map: String::new(),
            tablespaces: Vec::new(),
            directories: Vec::new(),
            files: Vec::new(),
            damaged_pages: Vec::new(),
            encrypted: Some(encrypted),
            ..self.clone()
        }
    }
}

/// The server as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// `server_version_num`.
    pub version: u32,
    /// The data directory.
    pub data_directory: PathBuf,
    /// The store.
    pub store: PathBuf,
    /// The directory of its programs, when the server told it.
    pub bin_directory: Option<PathBuf>,
    /// Does it keep checksums of pages?
    pub data_checksums: bool,
    /// Settings from its configuration files: what a data directory without them needs.
    pub settings: Vec<(String, String)>,
}

/// A tablespace outside the data directory. Its files are listed under `pg_tblspc/OID/`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tablespace {
    /// Its oid.
    pub oid: u32,
    /// Where it was.
    pub path: PathBuf,
}

/// A directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// Its path in the data directory.
    pub path: String,
    /// Its permission bits.
    pub mode: u32,
}

/// A pack: zstd frames, one behind the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pack {
    /// Its file name in the backup's folder.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// BLAKE3 of it.
    pub blake3: String,
    /// The object in which a third-party tool holds it. Then it is a tar stream (of which a zstd frame may be what is stored), `bytes` and
    /// `blake3` are those of what went through the pipe, and a part's `frame` is where its content begins in the tar stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<Box<StoredObject>>,
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its path in the data directory.
    pub path: String,
    /// Its permission bits.
    pub mode: u32,
    /// Seconds since 1970 of its last change, as seen when the backup listed it.
    pub modified: i64,
    /// Its size: the end of its last part.
    pub bytes: u64,
    /// Its content, piece by piece. A file without parts is empty.
    pub parts: Vec<Part>,
}

/// A piece of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Where it belongs in the file.
    pub offset: u64,
    /// Its size.
    pub bytes: u64,
    /// BLAKE3 of it.
    pub blake3: String,
    /// The pack: its position in [`Manifest::packs`].
    pub pack: u32,
    /// Where its frame begins in the pack.
    pub frame: u64,
    /// The size of its frame in the pack.
    pub frame_bytes: u32,
    /// Where it begins in the content of the frame.
    pub skip: u32,
}

/// A fragment that a catalog named.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FragmentRef {
    /// The database.
    pub database_oid: u32,
    /// The database's name.
    pub database: String,
    /// The warm table, when it was still there.
    pub relation: Option<String>,
    /// BLAKE3 of the fragment's file.
    pub hash: String,
    /// Its size.
    pub bytes: u64,
    /// The rows it was written with.
    pub rows: u64,
    /// When it was written.
    pub created_at: Timestamp,
    /// Where the WAL stood then.
    pub created_lsn: Lsn,
    /// It was neither in the store nor in the repository.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub missing: bool,
}

/// A page whose checksum was wrong on the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedPage {
    /// The file.
    pub path: String,
    /// The page's number in the file.
    pub page: u64,
}

impl Repository {
    /// Where a backup's manifest is.
    pub fn manifest_path(&self, id: &str) -> PathBuf {
        self.backup_dir(id).join("manifest.json")
    }

    /// Reads and checks a backup's manifest. `blake3` is what the catalog says of it. One that is encrypted for others is [`ErrorKind::NoKey`].
    pub fn manifest(&self, id: &str, blake3: &str) -> Result<Manifest> {
        let outline = self.outline(id, blake3)?;
        let Some(encrypted) = &outline.encrypted else { return Ok(outline) };
        let path = self.backup_dir(id).join(&encrypted.name);
        let what = format!("the manifest \"{}\"", path.display());
        let bytes = self.encrypted_manifest(&outline)?;
        let manifest: Manifest = sealed::unseal(&self.keys().open(&bytes, &what)?, &what)?;
        if manifest.format != super::FORMAT || manifest.id != id {
            return Err(Error::damaged(what, format_args!("it has format {} and id {}", manifest.format, manifest.id)));
        }
        Ok(manifest)
    }

    /// The stored bytes of the encrypted manifest behind an outline, checked; empty when there is none.
    pub fn encrypted_manifest(&self, outline: &Manifest) -> Result<Vec<u8>> {
        let Some(encrypted) = &outline.encrypted else { return Ok(Vec::new()) };
        let path = self.backup_dir(&outline.id).join(&encrypted.name);
        let what = || format!("the manifest \"{}\"", path.display());
        let bytes = self.storage().read(&path)?.ok_or_else(|| Error::damaged(what(), "it is not there"))?;
        if bytes.len() as u64 != encrypted.bytes || blake3::hash(&bytes).to_hex().as_str() != encrypted.blake3 {
            return Err(Error::damaged(what(), "its checksum does not match"));
        }
        Ok(bytes)
    }

    /// Reads and checks what needs no identity of a backup's manifest: which packs and which fragments belong to it.
    pub fn outline(&self, id: &str, blake3: &str) -> Result<Manifest> {
        let path = self.manifest_path(id);
        let what = || format!("the manifest \"{}\"", path.display());
        let bytes = match self.storage().read(&path)? {
            Some(bytes) => bytes,
            None => return Err(Error::damaged(what(), "it is not there")),
        };
        if blake3::hash(&bytes).to_hex().as_str() != blake3 {
            return Err(Error::damaged(what(), "it is not the one that the catalog knows by its checksum"));
        }
        let manifest: Manifest = sealed::unseal(&bytes, what())?;
        if manifest.format != super::FORMAT || manifest.id != id {
            return Err(Error::damaged(
                what(),
                format_args!("it has format {} and id {}", manifest.format, manifest.id),
            ));
        }
        Ok(manifest)
    }

    /// Writes a backup's manifest and returns its BLAKE3.
    pub fn write_manifest(&self, manifest: &Manifest) -> Result<String> {
        let mut bytes = sealed::seal(manifest)?;
        let path = self.manifest_path(&manifest.id);
        if self.keys().encrypts() {
            let stored = self.keys().seal(bytes)?;
            let encrypted = EncryptedManifest {
                name: ENCRYPTED.to_owned(),
                bytes: stored.len() as u64,
                blake3: blake3::hash(&stored).to_hex().to_string(),
                recipients: self.keys().names(),
            };
            let to = self.backup_dir(&manifest.id).join(ENCRYPTED);
            if self.storage().write_new(&to, &stored)? == Published::Existing {
                return Err(Error::new(ErrorKind::Conflict, format!("\"{}\" is there already", to.display())));
            }
            bytes = sealed::seal(&manifest.outline(encrypted))?;
        }
        match self.storage().write_new(&path, &bytes)? {
            Published::New => {}
            Published::Existing => {
                return Err(Error::new(ErrorKind::Conflict, format!("\"{}\" is there already", path.display())));
            }
        }
        Ok(blake3::hash(&bytes).to_hex().to_string())
    }
}
