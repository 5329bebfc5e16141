//! What a third-party tool holds for the system: one sealed document for each object that went through its pipe.
//!
//! ```text
//! systems/SYSTEM/objects/NAME.json          an object: from before the tool is started until it has forgotten the object
//! systems/SYSTEM/fragments/<hh>/<hash>.json the object in which a fragment is, when it is not here itself
//! systems/SYSTEM/objects.lock
//! ```
//!
//! Crash reasoning. The document is written as `started` before the tool runs, and replaced by `stored` when the tool has succeeded
//! and everything that it said is known. A fragment's own document names the object and is written between the two, so it
//! counts only when the object's says `stored`. Whoever dies in between leaves a `started` document: the next backup has the
//! tool forget that object and removes the document. So nothing that the tool holds is ever without a name here.

use super::Repository;
use super::lock::Lock;
use super::storage::Listed;
use crate::error::{Error, ErrorKind, Result};
use crate::tool::run;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use strata_catalog::names;

/// What an object holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectKind {
    /// Files of the data directory.
    Hot,
    /// Fragments.
    Fragments,
    /// The end of a backup: the labels, the manifest, and perhaps WAL.
    Log,
}

/// How far an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectState {
    /// The tool may hold it, or a part of it.
    Started,
    /// The tool holds it.
    Stored,
}

/// A fragment in an object's stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectFragment {
    /// BLAKE3 of it.
    pub hash: String,
    /// Where it begins in the tar stream.
    pub offset: u64,
    /// Its size.
    pub bytes: u64,
}

/// An object that a tool holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredObject {
    /// Its name, unique for the tool.
    pub name: String,
    /// What it holds.
    pub kind: ObjectKind,
    /// How far it is.
    pub state: ObjectState,
    /// The tool.
    pub tool: String,
    /// The member that wrote it.
    pub member: String,
    /// The backup that it was written for, or `log-` and a time for fragments that came between backups.
    pub backup: String,
    /// Its name in that backup.
    pub object: String,
    /// When the tool was started.
    pub started_at: Timestamp,
    /// When the tool had ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// The tool's own identifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identifier: Option<String>,
    /// The tool's exit code: 0, or one that is a warning.
    pub exit_code: i32,
    /// The tool's last lines.
    pub messages: Vec<String>,
    /// Bytes that went through the pipe.
    pub bytes: u64,
    /// BLAKE3 of them.
    pub blake3: String,
    /// They are a zstd frame, and its content is the tar stream.
    pub compressed: bool,
    /// Bytes that the tool says it stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored_bytes: Option<u64>,
    /// The fragments in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fragments: Vec<ObjectFragment>,
}

/// Where a fragment is.
#[derive(Debug, Serialize, Deserialize)]
struct FragmentPlace {
    object: String,
}

impl Repository {
    /// The directory of the tool's objects.
    pub fn objects_dir(&self) -> PathBuf {
        self.system_dir().join("objects")
    }

    fn object_path(&self, name: &str) -> PathBuf {
        self.objects_dir().join(format!("{name}.json"))
    }

    fn place_path(&self, hash: &str) -> Result<PathBuf> {
        Ok(self.fragment_path(hash)?.with_extension("json"))
    }

    /// Takes the lock under which fragments go through the tool, so that none goes twice. It waits for another process as long
    /// as that one may take, if `wait` says so.
    pub fn lock_objects(&self, wait: Option<Duration>) -> Result<Lock> {
        self.storage().create_folder(&self.system_dir())?;
        let path = self.system_dir().join("objects.lock");
        let what = format!("fragments of system \"{}\" that go through the tool", self.system());
        let began = Instant::now();
        loop {
            match self.storage().lock(&path, &what) {
                Err(error)
                    if error.kind == ErrorKind::Locked
                        && wait.is_some_and(|longest| began.elapsed() < longest)
                        && !run::interrupted() =>
                {
                    std::thread::sleep(Duration::from_millis(50));
                }
                other => return other,
            }
        }
    }

    /// Writes an object's document, in place of the one that is there.
    pub fn write_object(&self, object: &StoredObject) -> Result<()> {
        self.writable()?;
        self.storage().write_sealed(&self.object_path(&object.name), object)
    }

    /// Reads an object's document.
    pub fn object(&self, name: &str) -> Result<Option<StoredObject>> {
        if name.contains('/') {
            return Ok(None);
        }
        let path = self.object_path(name);
        match self.storage().read_sealed::<StoredObject>(&path)? {
            Some(object) if object.name != name => {
                Err(Error::damaged(format_args!("\"{}\"", path.display()), format_args!("it holds {}", object.name)))
            }
            other => Ok(other),
        }
    }

    /// All objects. Documents that are damaged come as errors beside them.
    pub fn objects(&self) -> Result<(Vec<StoredObject>, Vec<Error>)> {
        let (mut objects, mut damaged) = (Vec::new(), Vec::new());
        for name in self.storage().list(&self.objects_dir())? {
            let Some(name) = name.strip_suffix(".json") else { continue };
            match self.object(name) {
                Ok(object) => objects.extend(object),
                Err(error) if error.kind == ErrorKind::Damaged => damaged.push(error),
                Err(error) => return Err(error),
            }
        }
        Ok((objects, damaged))
    }

    /// Removes the document of an object that the tool has forgotten, after those of its fragments.
    pub fn remove_object(&self, object: &StoredObject) -> Result<()> {
        self.writable()?;
        for fragment in &object.fragments {
            let path = self.place_path(&fragment.hash)?;
            // Another object may hold the fragment by now.
            if self.storage().read_sealed::<FragmentPlace>(&path)?.is_some_and(|place| place.object == object.name) {
                self.storage().remove(&path)?;
            }
        }
        self.storage().remove(&self.object_path(&object.name))?;
        self.storage().sync(&self.objects_dir())
    }

    /// Records that the tool holds an object: first where its fragments are, then the object itself.
    pub fn record_stored(&self, object: &StoredObject) -> Result<()> {
        for fragment in &object.fragments {
            let path = self.place_path(&fragment.hash)?;
            self.storage().write_sealed(&path, &FragmentPlace { object: object.name.clone() })?;
        }
        self.write_object(object)
    }

    /// The object in which the tool holds a fragment, with the fragment's place in it.
    pub fn fragment_object(&self, hash: &str) -> Result<Option<(StoredObject, ObjectFragment)>> {
        let Some(place) = self.storage().read_sealed::<FragmentPlace>(&self.place_path(hash)?)? else {
            return Ok(None);
        };
        let Some(object) = self.object(&place.object)?.filter(|object| object.state == ObjectState::Stored) else {
            return Ok(None);
        };
        let found = object.fragments.iter().find(|fragment| fragment.hash == hash).cloned();
        Ok(found.map(|fragment| (object, fragment)))
    }

    /// The fragments that documents say are in the tool, in order.
    pub fn placed_fragments(&self) -> Result<Vec<String>> {
        let all = self.storage().walk(&self.fragments_dir())?;
        let hash = |one: &Listed| {
            let hash = one.path.file_name()?.to_str()?.strip_suffix(".json")?;
            names::is_fragment_hash(hash).then(|| hash.to_owned())
        };
        Ok(all.iter().filter_map(hash).collect())
    }
}
