//! Fragments of a recovered server: served on demand, and fetched in the background until all are there.

use crate::backup::{blocking, fragments as catalog};
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::Conninfo;
use crate::progress::Progress;
use crate::repository::Repository;
use crate::repository::objects::{ObjectFragment, StoredObject};
use crate::socket::{Answer, EventSender, Handler};
use crate::tool::receive::fetch_fragments;
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use strata_catalog::{Request, names};

/// A fragment that a store needs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Wanted {
    /// The database.
    pub database_oid: u32,
    /// The database's name.
    pub database: String,
    /// The warm table, when it is known.
    pub relation: Option<String>,
    /// BLAKE3 of the file.
    pub hash: String,
    /// Its size.
    pub bytes: u64,
}

/// A fragment that could not be fetched.
#[derive(Clone, Debug, Serialize)]
pub struct NotFetched {
    /// The fragment.
    #[serde(flatten)]
    pub fragment: Wanted,
    /// Why.
    pub error: String,
}

/// What fetching came to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Fetched {
    /// Fragments that the catalogs name.
    #[serde(skip)]
    pub fragments: u64,
    /// Their bytes.
    #[serde(skip)]
    pub fragment_bytes: u64,
    /// Fragments that were fetched, on demand or in the background.
    pub fetched: u64,
    /// Their bytes.
    pub fetched_bytes: u64,
    /// Those that could not be fetched.
    pub missing: Vec<NotFetched>,
}

impl Fetched {
    /// An error that names what could not be fetched.
    pub fn require_complete(&self) -> Result<()> {
        let Some(first) = self.missing.first() else { return Ok(()) };
        let relation = first.fragment.relation.as_deref().unwrap_or("a table that is gone");
        let all: Vec<String> = self
            .missing
            .iter()
            .map(|one| format!("{} of {}: {}", one.fragment.hash, one.fragment.database, one.error))
            .collect();
        Err(Error::new(
            ErrorKind::Missing,
            format!(
                "{} fragments could not be fetched, the first is {} of {relation}",
                self.missing.len(),
                first.fragment.hash
            ),
        )
        .detail(all.join("\n"))
        .with_hint("The server is open; queries that need these fragments fail until they are in the repository."))
    }
}

/// Reads what the catalogs of a server want in its store.
pub async fn wanted(conninfo: &Conninfo) -> Result<Vec<Wanted>> {
    let session = conninfo.connect().await?;
    let mut all = Vec::new();
    for one in catalog::read_all(conninfo, &session).await? {
        for row in one.rows {
            all.push(Wanted {
                database_oid: one.database.oid,
                database: one.database.name.clone(),
                relation: row.relation,
                hash: row.hash,
                bytes: u64::try_from(row.bytes).unwrap_or(0),
            });
        }
    }
    all.sort();
    all.dedup_by(|a, b| a.database_oid == b.database_oid && a.hash == b.hash);
    Ok(all)
}

/// What is wanted, in the pieces in which it is fetched: single fragments, and what lies in one object of a tool, which is read once for
/// all of it.
fn groups(repository: &Repository, store: &Path, wanted: &[Wanted]) -> Result<Vec<Group>> {
    let mut groups = Vec::new();
    let mut objects: BTreeMap<String, (StoredObject, Vec<Place>)> = BTreeMap::new();
    for (at, one) in wanted.iter().enumerate() {
        let to = names::fragment_relative_path(one.database_oid, &one.hash).map(|below| store.join(below));
        let (Some(to), Ok(from)) = (to, repository.fragment_path(&one.hash)) else {
            groups.push(Group::Single(at));
            continue;
        };
        if to.exists() || repository.storage().exists(&from)? {
            groups.push(Group::Single(at));
            continue;
        }
        match repository.fragment_object(&one.hash) {
            Ok(Some((object, fragment))) => {
                objects.entry(object.name.clone()).or_insert_with(|| (object, Vec::new())).1.push((at, fragment, to));
            }
            // What is wrong is said when it is fetched.
            _ => groups.push(Group::Single(at)),
        }
    }
    groups.extend(objects.into_values().map(|(object, fragments)| Group::Object(Box::new(object), fragments)));
    Ok(groups)
}

/// A fragment in an object: its place in the list, where it lies, and where it goes.
type Place = (usize, ObjectFragment, PathBuf);

enum Group {
    Single(usize),
    Object(Box<StoredObject>, Vec<Place>),
}

impl Group {
    /// Fetches it. For each fragment its place in the list, and its size and whether it is new.
    fn fetch(&self, repository: &Repository, store: &Path, wanted: &[Wanted]) -> Vec<(usize, Result<(u64, bool)>)> {
        match self {
            Self::Single(at) => {
                let fetched =
                    wanted.get(*at).map(|one| (*at, repository.get_fragment(one.database_oid, &one.hash, store)));
                fetched.into_iter().collect()
            }
            Self::Object(object, fragments) => {
                let targets: Vec<_> =
                    fragments.iter().map(|(_, fragment, to)| (fragment.clone(), to.clone())).collect();
                match fetch_fragments(repository, object, &targets) {
                    Ok(results) => fragments
                        .iter()
                        .zip(results)
                        .map(|((at, fragment, _), result)| (*at, result.map(|new| (fragment.bytes, new))))
                        .collect(),
                    Err(error) => {
                        let said = error.full_text();
                        let same = || Err(Error::new(error.kind, said.clone()));
                        fragments.iter().map(|(at, ..)| (*at, same())).collect()
                    }
                }
            }
        }
    }
}

/// Fetches what is wanted with several workers. Fragments that cannot be fetched are named in the result.
pub async fn fetch_all(
    repository: &Repository,
    store: &Path,
    wanted: Vec<Wanted>,
    workers: usize,
    progress: &Progress,
) -> Result<Fetched> {
    let (repository, store, progress) = (repository.clone(), store.to_owned(), progress.clone());
    blocking(move || {
        let total = wanted.iter().map(|one| one.bytes).sum();
        progress.phase_bytes("fragments", total, "fetching fragments");
        let next = AtomicUsize::new(0);
        let missing = Mutex::new(Vec::new());
        let (fetched, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        let groups = groups(&repository, &store, &wanted)?;
        std::thread::scope(|scope| {
            for _ in 0..workers.clamp(1, groups.len().max(1)) {
                scope.spawn(|| {
                    while let Some(group) = groups.get(next.fetch_add(1, Ordering::Relaxed)) {
                        for (at, result) in group.fetch(&repository, &store, &wanted) {
                            let Some(one) = wanted.get(at) else { continue };
                            match result {
                                Ok((size, true)) => {
                                    fetched.fetch_add(1, Ordering::Relaxed);
                                    bytes.fetch_add(size, Ordering::Relaxed);
                                }
                                Ok((_, false)) => {}
                                Err(error) => missing
                                    .lock()
                                    .unwrap_or_else(PoisonError::into_inner)
                                    .push(NotFetched { fragment: one.clone(), error: error.to_string() }),
                            }
                            progress.advance(one.bytes);
                        }
                    }
                });
            }
        });
        Ok(Fetched {
            fragments: wanted.len() as u64,
            fragment_bytes: total,
            fetched: fetched.into_inner(),
            fetched_bytes: bytes.into_inner(),
            missing: missing.into_inner().unwrap_or_else(PoisonError::into_inner),
        })
    })
    .await
}

/// Serves `ping` and `fetch_fragment` of one store, and nothing else.
pub struct FetchOnly {
    /// Where fragments come from.
    pub repository: Repository,
    /// Where they go.
    pub store: PathBuf,
}

/// Brings one fragment into a store. Done when it is durable there and its content was checked.
pub async fn fetch_one(
    repository: Repository,
    store: PathBuf,
    database_oid: u32,
    hash: String,
) -> Result<serde_json::Value> {
    blocking(move || {
        let (bytes, fetched) = repository.get_fragment(database_oid, &hash, &store)?;
        Ok(json!({"hash": hash, "bytes": bytes, "fetched": fetched}))
    })
    .await
}

impl Handler for FetchOnly {
    fn handle(self: Arc<Self>, request: Request, _events: EventSender) -> Answer {
        Box::pin(async move {
            match request {
                Request::Ping => {
                    Ok(json!({"version": env!("CARGO_PKG_VERSION"), "serves": ["ping", "fetch_fragment"]}))
                }
                Request::FetchFragment { database_oid, hash } => {
                    fetch_one(self.repository.clone(), self.store.clone(), database_oid, hash).await
                }
                _ => Err(Error::new(ErrorKind::Forbidden, "this server is being recovered: only fragments are served")
                    .with_hint("Start \"strata agent\" with the strata.toml in its store when the recovery is over.")),
            }
        })
    }
}
