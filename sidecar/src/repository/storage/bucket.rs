//! A bucket of an S3-compatible object storage.
//!
//! A name below the root is the object's key behind the prefix; there are no folders. An object is whole, durable and seen by every reader
//! when its upload is complete: that is the service's own promise, and with the MD5 that each upload names it refuses what does not arrive as it
//! was sent. "Unless it is there" is a conditional put (`If-None-Match: *`); a service without it is not enough. Large objects go up in parts;
//! an upload that fails is aborted, and the parts of a process that died stay unseen until the bucket's own rule removes them.
//! For large objects "unless it is there" is a look before the last step: they are named by their content, or only the holder of a
//! lock writes them.

use super::client::{Answer, Ask, Client, VALID};
use super::{Listed, lease};
use crate::config::S3Config;
use crate::error::{Error, ErrorKind, Result};
use crate::repository::fsio::Published;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest, Md5};
use rusty_s3::actions::{
    CompleteMultipartUpload, CompleteMultipartUploadResponse, CreateMultipartUpload, ListObjectsV2,
};
use rusty_s3::{Bucket as Place, Credentials, S3Action};
use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};
use ureq::http::Method;

/// A part of an upload, and what is read at once.
pub const PART: usize = 8 << 20;
/// So often an upload is completed when the service fails in the middle of its answer.
const COMPLETIONS: usize = 3;
/// An upload that was begun so long ago is not going up any more.
pub const ABANDONED: Duration = Duration::from_secs(2 * 24 * 3600);
/// So many parts of an upload are on their way at once.
const IN_FLIGHT: usize = 4;

/// A bucket.
pub struct Bucket {
    client: Client,
    root: PathBuf,
    prefix: String,
    pub(super) leases: Mutex<HashMap<PathBuf, Weak<lease::Lease>>>,
}

impl std::fmt::Debug for Bucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bucket").field("root", &self.root).finish_non_exhaustive()
    }
}

/// An object as it was seen.
pub(super) struct Seen {
    pub bytes: Vec<u8>,
    pub etag: String,
    pub modified: SystemTime,
}

/// When something is put.
pub(super) enum If<'a> {
    /// Always.
    Any,
    /// Nothing is there.
    Absent,
    /// What is there has this state.
    Same(&'a str),
}

impl Bucket {
    /// The bucket of a configuration. Within a process there is one client for each.
    pub fn open(config: &S3Config, root: PathBuf) -> Result<Arc<Self>> {
        static OPEN: OnceLock<Mutex<HashMap<S3Config, Arc<Bucket>>>> = OnceLock::new();
        let mut open = OPEN.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = open.get(config) {
            return Ok(bucket.clone());
        }
        let client = Client::new(config)?;
        let bucket = Arc::new(Self { client, root, prefix: config.prefix.clone(), leases: Mutex::default() });
        open.insert(config.clone(), bucket.clone());
        Ok(bucket)
    }

    fn key(&self, path: &Path) -> Result<String> {
        let below = path.strip_prefix(&self.root).ok().and_then(Path::to_str);
        let below = below.ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("\"{}\" cannot be a name in the bucket", path.display()))
        })?;
        Ok(match (self.prefix.as_str(), below) {
            ("", below) => below.to_owned(),
            (prefix, "") => prefix.to_owned(),
            (prefix, below) => format!("{prefix}/{below}"),
        })
    }

    fn path(&self, key: &str) -> PathBuf {
        self.root.join(key.strip_prefix(&self.prefix).unwrap_or(key).trim_start_matches('/'))
    }

    /// Asks about an object.
    fn ask(
        &self,
        verb: &'static str,
        path: &Path,
        method: Method,
        headers: Vec<(&'static str, String)>,
        body: Option<&[u8]>,
        limit: Option<Duration>,
    ) -> Result<Answer> {
        let key = self.key(path)?;
        let ask = Ask { verb, path, method: method.clone(), headers, body, limit };
        self.client.ask(&ask, |place, credentials| {
            let credentials = Some(credentials);
            let address = match method {
                Method::HEAD => place.head_object(credentials, &key).sign(VALID),
                Method::PUT => place.put_object(credentials, &key).sign(VALID),
                Method::DELETE => place.delete_object(credentials, &key).sign(VALID),
                _ => place.get_object(credentials, &key).sign(VALID),
            };
            address.into()
        })
    }

    /// Reads an object with its state; none when it is not there. With a limit of its own.
    pub(super) fn see(&self, path: &Path, limit: Option<Duration>) -> Result<Option<Seen>> {
        let answer = self.ask("read", path, Method::GET, Vec::new(), None, limit)?;
        if answer.status == 404 {
            return Ok(None);
        }
        let (Some(etag), Some(modified)) = (answer.etag, answer.modified) else { return Err(strange(path)) };
        Ok(Some(Seen { bytes: answer.body, etag, modified }))
    }

    /// Reads a whole object.
    pub fn read(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        let answer = self.ask("read", path, Method::GET, Vec::new(), None, None)?;
        Ok((answer.status != 404).then_some(answer.body))
    }

    /// Reads an object's end, and its size.
    pub fn read_end(self: &Arc<Self>, path: &Path, most: u64) -> Result<Option<(Vec<u8>, u64)>> {
        let Some(object) = self.open_object(path)? else { return Ok(None) };
        let take = object.size.min(most);
        let mut tail = vec![0; take as usize];
        object.read_exact_at(&mut tail, object.size - take).map_err(|error| Error::reading(path, error))?;
        Ok(Some((tail, object.size)))
    }

    /// The size of an object, and when it was put.
    pub fn look(&self, path: &Path) -> Result<Option<(u64, SystemTime)>> {
        let answer = self.ask("look at", path, Method::HEAD, Vec::new(), None, None)?;
        if answer.status == 404 {
            return Ok(None);
        }
        match (answer.length, answer.modified) {
            (Some(length), Some(modified)) => Ok(Some((length, modified))),
            _ => Err(strange(path)),
        }
    }

    /// Opens an object for reading.
    pub fn open_object(self: &Arc<Self>, path: &Path) -> Result<Option<Object>> {
        let size = self.look(path)?.map(|(size, _)| size);
        Ok(size.map(|size| Object { bucket: self.clone(), path: path.to_owned(), size }))
    }

    /// A page of what begins with `prefix`: objects, folders, and where the next page begins.
    fn page(&self, folder: &Path, flat: bool, most: usize, from: Option<&str>) -> Result<Page> {
        let key = self.key(folder)?;
        let prefix = if key.is_empty() { key } else { format!("{key}/") };
        let ask = Ask::new("list", folder, Method::GET);
        let answer = self.client.ask(&ask, |place, credentials| {
            let mut list = ListObjectsV2::new(place, Some(credentials));
            list.with_prefix(prefix.as_str());
            list.with_max_keys(most);
            if !flat {
                list.with_delimiter("/");
            }
            if let Some(from) = from {
                list.with_continuation_token(from);
            }
            list.sign(VALID).into()
        })?;
        let text = String::from_utf8_lossy(&answer.body);
        let page = ListObjectsV2::parse_response(&text).map_err(|_| strange(folder))?;
        let objects = page.contents.into_iter().filter(|one| !one.key.ends_with('/'));
        Ok(Page {
            objects: objects.map(|one| (one.key, one.size.unwrap_or(0))).collect(),
            folders: page.common_prefixes.into_iter().map(|one| one.prefix).collect(),
            next: page.next_continuation_token.filter(|next| !next.is_empty()),
        })
    }

    fn pages(&self, folder: &Path, flat: bool) -> Result<Page> {
        let mut all = Page::default();
        loop {
            let page = self.page(folder, flat, 1000, all.next.as_deref())?;
            all.objects.extend(page.objects);
            all.folders.extend(page.folders);
            all.next = page.next;
            if all.next.is_none() {
                return Ok(all);
            }
        }
    }

    /// The names of the objects in a folder, and those of the folders.
    pub fn list(&self, folder: &Path) -> Result<(Vec<String>, Vec<String>)> {
        let all = self.pages(folder, false)?;
        let name = |key: &str| key.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned();
        let mut objects: Vec<String> = all.objects.iter().map(|(key, _)| name(key)).collect();
        let mut folders: Vec<String> = Vec::new();
        for folder_key in &all.folders {
            let name = name(folder_key);
            // Some services keep a folder for a while when all that was in it is gone.
            if self.has_folder(&folder.join(&name))? {
                folders.push(name);
            }
        }
        objects.sort_unstable();
        folders.sort_unstable();
        Ok((objects, folders))
    }

    /// All objects below a folder, in order.
    pub fn walk(&self, folder: &Path) -> Result<Vec<Listed>> {
        let all = self.pages(folder, true)?;
        let mut found: Vec<Listed> =
            all.objects.iter().map(|(key, bytes)| Listed { path: self.path(key), bytes: *bytes }).collect();
        found.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// True when something is below a folder.
    pub fn has_folder(&self, folder: &Path) -> Result<bool> {
        Ok(!self.page(folder, true, 2, None)?.objects.is_empty())
    }

    /// Writes an object in place of what is there.
    pub fn write(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        self.put_if(path, bytes, If::Any, None).map(drop)
    }

    /// Writes an object unless one is there.
    pub fn write_new(&self, path: &Path, bytes: &[u8]) -> Result<Published> {
        let answer = self.put(path, bytes, If::Absent, None)?;
        match answer.status {
            // An answer that was lost on its way: what is there is ours.
            404 | 412 if answer.again && self.read(path)?.as_deref() == Some(bytes) => Ok(Published::New),
            404 | 412 => Ok(Published::Existing),
            _ => Ok(Published::New),
        }
    }

    /// Writes an object if it has the state that is asked for, and returns its new state; none when it has not.
    pub(super) fn put_if(
        &self,
        path: &Path,
        bytes: &[u8],
        when: If<'_>,
        limit: Option<Duration>,
    ) -> Result<Option<String>> {
        let answer = self.put(path, bytes, when, limit)?;
        match answer.status {
            404 | 412 => Ok(None),
            _ => answer.etag.map(Some).ok_or_else(|| strange(path)),
        }
    }

    fn put(&self, path: &Path, bytes: &[u8], when: If<'_>, limit: Option<Duration>) -> Result<Answer> {
        let mut headers = vec![("content-md5", md5(bytes))];
        match when {
            If::Any => {}
            If::Absent => headers.push(("if-none-match", "*".to_owned())),
            If::Same(etag) => headers.push(("if-match", etag.to_owned())),
        }
        self.ask("write", path, Method::PUT, headers, Some(bytes), limit)
    }

    /// Proves that conditional writes are understood: a service that takes them for others would let two processes write one name.
    pub fn require_conditions(&self, path: &Path) -> Result<()> {
        let first = self.put_if(path, b"one", If::Any, None)?.ok_or_else(|| strange(path))?;
        let over = self.put_if(path, b"two", If::Absent, None)?.is_some();
        let changed = self.put_if(path, b"three", If::Same(&first), None)?;
        let stale = self.put_if(path, b"four", If::Same(&first), None)?.is_some();
        self.remove(path)?;
        if !over && changed.is_some() && !stale { Ok(()) } else { Err(conditions()) }
    }

    /// Begins to write an object piece by piece.
    pub fn create(self: &Arc<Self>, path: &Path) -> Result<BucketUpload> {
        let key = self.key(path)?;
        Ok(BucketUpload {
            bucket: self.clone(),
            path: path.to_owned(),
            key,
            buffer: Vec::new(),
            id: None,
            flying: VecDeque::new(),
            etags: Vec::new(),
        })
    }

    /// Removes an object.
    pub fn remove(&self, path: &Path) -> Result<()> {
        self.ask("remove", path, Method::DELETE, Vec::new(), None, None).map(drop)
    }

    /// Aborts the uploads below a folder that were begun so long ago and never completed: whoever began them died. Returns how many.
    pub fn sweep(&self, folder: &Path, age: Duration) -> Result<usize> {
        let prefix = format!("{}/", self.key(folder)?);
        let ask = Ask::new("list", folder, Method::GET);
        let answer = self.client.ask(&ask, |place, credentials| {
            let mut url = place.object_url("");
            url.set_query(None);
            let query = [("max-uploads", "1000"), ("prefix", prefix.as_str()), ("uploads", "")];
            rusty_s3::signing::sign(
                &jiff::Timestamp::now(),
                rusty_s3::Method::Get,
                url,
                credentials.key(),
                credentials.secret(),
                credentials.token(),
                place.region(),
                VALID.as_secs(),
                query.into_iter(),
                std::iter::empty(),
            )
            .into()
        })?;
        let text = String::from_utf8_lossy(&answer.body);
        let abandoned = abandoned(&text, jiff::Timestamp::now(), age);
        for upload in &abandoned {
            let Some(key) = upload.0.strip_prefix(&prefix) else { continue };
            self.abort(&folder.join(key), &upload.1)?;
        }
        Ok(abandoned.len())
    }

    /// Aborts an upload.
    fn abort(&self, path: &Path, id: &str) -> Result<()> {
        let key = self.key(path)?;
        let ask = Ask::new("abort", path, Method::DELETE);
        let sign = |place: &Place, credentials: &Credentials| {
            place.abort_multipart_upload(Some(credentials), &key, id).sign(VALID).into()
        };
        self.client.ask(&ask, sign).map(drop)
    }

    /// Removes all objects below a folder.
    pub fn remove_all(&self, folder: &Path) -> Result<()> {
        self.walk(folder)?.iter().try_for_each(|one| self.remove(&one.path))
    }
}

#[derive(Default)]
struct Page {
    objects: Vec<(String, u64)>,
    folders: Vec<String>,
    next: Option<String>,
}

/// The keys and identifiers of the uploads in a list that were begun so long before `now`.
fn abandoned(list: &str, now: jiff::Timestamp, age: Duration) -> Vec<(String, String)> {
    let inner = |text: &str, name: &str| -> Option<String> {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        // Keys of a repository are of plain letters; one that needs to be escaped is not one.
        rest.split_once("</").map(|(inner, _)| inner.to_owned()).filter(|inner| !inner.contains('&'))
    };
    list.split("<Upload>")
        .skip(1)
        .filter_map(|one| {
            let begun: jiff::Timestamp = inner(one, "Initiated")?.parse().ok()?;
            let old = now.duration_since(begun) >= jiff::SignedDuration::try_from(age).ok()?;
            old.then_some((inner(one, "Key")?, inner(one, "UploadId")?))
        })
        .collect()
}

/// A service that takes conditional writes for others.
pub(super) fn conditions() -> Error {
    Error::new(ErrorKind::Refused, "the object storage does not understand conditional writes").with_hint(
        "Strata needs If-None-Match and If-Match on PUT. Use another service, or a newer version of this one.",
    )
}

fn md5(bytes: &[u8]) -> String {
    STANDARD.encode(Md5::digest(bytes))
}

/// An answer that no S3 service gives.
fn strange(path: &Path) -> Error {
    Error::new(
        ErrorKind::Io,
        format!("the object storage gave an answer about \"{}\" that is not S3's", path.display()),
    )
    .with_hint("Is repository.s3.endpoint the address of an S3 service?")
}

/// An object that is being read.
#[derive(Debug)]
pub struct Object {
    bucket: Arc<Bucket>,
    path: PathBuf,
    /// Its size.
    pub size: u64,
}

impl Object {
    /// Fills the buffer from `offset` on. What the service says is an error of ours inside.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        let end = offset + buffer.len() as u64;
        if end > self.size {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if buffer.is_empty() {
            return Ok(());
        }
        let range = vec![("range", format!("bytes={offset}-{}", end - 1))];
        let answer =
            self.bucket.ask("read", &self.path, Method::GET, range, None, None).map_err(std::io::Error::other)?;
        match answer.status {
            // It was expired meanwhile.
            404 => Err(std::io::ErrorKind::NotFound.into()),
            206 if answer.body.len() == buffer.len() => {
                buffer.copy_from_slice(&answer.body);
                Ok(())
            }
            _ => Err(std::io::Error::other(strange(&self.path))),
        }
    }
}

/// An object that goes up. Dropped before it is published, it is aborted.
pub struct BucketUpload {
    bucket: Arc<Bucket>,
    path: PathBuf,
    key: String,
    buffer: Vec<u8>,
    id: Option<String>,
    flying: VecDeque<JoinHandle<Result<String>>>,
    etags: Vec<String>,
}

impl BucketUpload {
    /// Appends bytes.
    pub fn write_all(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            // The last part is sent at the end, so that a small object goes up in one piece.
            if self.buffer.len() == PART {
                self.send()?;
            }
            let (take, rest) = bytes.split_at(bytes.len().min(PART - self.buffer.len()));
            self.buffer.extend_from_slice(take);
            bytes = rest;
        }
        Ok(())
    }

    /// Sends what is in the buffer as a part.
    fn send(&mut self) -> Result<()> {
        let id = match &self.id {
            Some(id) => id.clone(),
            None => self.id.insert(self.begin()?).clone(),
        };
        while self.flying.len() >= IN_FLIGHT {
            self.land()?;
        }
        let number = u16::try_from(self.etags.len() + self.flying.len() + 1).unwrap_or(u16::MAX);
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(PART));
        let (bucket, path, key) = (self.bucket.clone(), self.path.clone(), self.key.clone());
        let part = move || {
            let headers = vec![("content-md5", md5(&piece))];
            let ask = Ask { headers, body: Some(&piece), ..Ask::new("write", &path, Method::PUT) };
            let answer = bucket.client.ask(&ask, |place, credentials| {
                place.upload_part(Some(credentials), &key, number, &id).sign(VALID).into()
            })?;
            answer.etag.filter(|_| answer.status == 200).ok_or_else(|| strange(&path))
        };
        let thread = std::thread::Builder::new().name("strata-part".to_owned()).spawn(part);
        self.flying.push_back(thread.map_err(|error| Error::io("write", &self.path, error))?);
        Ok(())
    }

    fn begin(&self) -> Result<String> {
        let ask = Ask { body: Some(b""), ..Ask::new("write", &self.path, Method::POST) };
        let answer = self.bucket.client.ask(&ask, |place, credentials| {
            CreateMultipartUpload::new(place, Some(credentials), &self.key).sign(VALID).into()
        })?;
        let text = String::from_utf8_lossy(&answer.body);
        let begun = CreateMultipartUpload::parse_response(&text).map_err(|_| strange(&self.path))?;
        Ok(begun.upload_id().to_owned())
    }

    /// Waits for the oldest part that is on its way.
    fn land(&mut self) -> Result<()> {
        let Some(part) = self.flying.pop_front() else { return Ok(()) };
        let died = |_| Err(Error::new(ErrorKind::Io, "a thread that uploads ended unexpectedly"));
        self.etags.push(part.join().unwrap_or_else(died)?);
        Ok(())
    }

    fn complete(&mut self) -> Result<()> {
        self.send()?;
        while !self.flying.is_empty() {
            self.land()?;
        }
        let Some(id) = self.id.clone() else { return Ok(()) };
        let etags = || self.etags.iter().map(String::as_str);
        let place = &self.bucket.client.place;
        let body = CompleteMultipartUpload::new(place, None, &self.key, &id, etags()).body();
        let ask = Ask { body: Some(body.as_bytes()), ..Ask::new("write", &self.path, Method::POST) };
        for again in (0..COMPLETIONS).rev() {
            let answer = self.bucket.client.ask(&ask, |place, credentials| {
                CompleteMultipartUpload::new(place, Some(credentials), &self.key, &id, etags()).sign(VALID).into()
            })?;
            let text = String::from_utf8_lossy(&answer.body);
            if answer.status != 404 && CompleteMultipartUploadResponse::parse(&text).is_ok() {
                self.id = None;
                return Ok(());
            }
            // An answer that was lost on its way: the upload is not known any more because it is complete.
            if answer.status == 404 && self.bucket.look(&self.path)?.is_some() {
                self.id = None;
                return Ok(());
            }
            // Success that turns out to be an error in the middle of the answer may be asked for again.
            if again == 0 || answer.status == 404 {
                let said: String = text.chars().filter(|c| !c.is_control()).take(300).collect();
                return Err(Error::new(ErrorKind::Io, format!("could not write \"{}\"", self.path.display()))
                    .detail(format!("The object storage answered with status {}: {said}", answer.status)));
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        Ok(())
    }

    /// Makes it whole, in place of what was there.
    pub fn publish(mut self) -> Result<()> {
        match self.id {
            None => self.bucket.write(&self.path, &self.buffer),
            Some(_) => self.complete(),
        }
    }

    /// Makes it whole unless an object of its name is there.
    pub fn publish_new(mut self) -> Result<Published> {
        if self.id.is_none() {
            return self.bucket.write_new(&self.path, &self.buffer);
        }
        if self.bucket.look(&self.path)?.is_some() {
            return Ok(Published::Existing);
        }
        self.complete().map(|()| Published::New)
    }
}

impl Drop for BucketUpload {
    fn drop(&mut self) {
        for part in self.flying.drain(..) {
            let _ = part.join();
        }
        let Some(id) = self.id.take() else { return };
        if let Err(error) = self.bucket.abort(&self.path, &id) {
            tracing::warn!("the parts of an upload stay until the bucket's own rule removes them: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_old_uploads_are_abandoned() {
        let one = |key: &str, begun: &str| {
            format!("<Upload><Key>{key}</Key><UploadId>u-{key}</UploadId><Initiated>{begun}</Initiated></Upload>")
        };
        let list = format!(
            "<ListMultipartUploadsResult>{}{}{}</ListMultipartUploadsResult>",
            one("a/b", "2026-01-01T00:00:00.000Z"),
            one("a/c", "2026-01-09T23:00:00Z"),
            one("a&amp;d", "2026-01-01T00:00:00Z")
        );
        let now = "2026-01-10T00:00:00Z".parse().unwrap();
        assert_eq!(abandoned(&list, now, ABANDONED), [("a/b".to_owned(), "u-a/b".to_owned())]);
    }
}
