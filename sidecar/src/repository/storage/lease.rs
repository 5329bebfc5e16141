//! Locks on a bucket: leases.
//!
//! ```text
//!   backup.lock                      held by one: made by a conditional put, renewed by one, given up by one, taken over by one
//!   backup.lock.clock                written to ask the service for its time; says nothing itself
//!   fragments.lock.shares/<token>    held together with others
//! ```
//!
//! A lease says who holds it, and its holder renews it every fifteen seconds. One that was not renewed for a minute is over: anybody may take
//! it, by a put that holds only if the lease is still the one that was looked at. A holder that could not renew its lease for forty-five
//! seconds takes it for lost. Work calls [`Lock::require_held`](crate::repository::lock::Lock::require_held) before each step that counts,
//! which renews a lease that was not renewed within the last two seconds: so whoever takes a step was the holder a moment ago, by the service's word.
//!
//! A lease that is given up is not removed: a removal knows no condition everywhere, and one that was late would take the lease of whoever came
//! next. It is replaced, if it is still the holder's own, by one that says `free`.
//!
//! **Clocks.** How old a lease is is told by the service alone: by the difference of two of its own `Last-Modified`, that of the lease and that of an
//! object that is written to ask for the time. No machine's clock is compared with another one's. A holder measures its own forty-five
//! seconds with its machine's clock since the boot, which counts while the machine is suspended. What is assumed: the service's clock does not jump by
//! a minute, and no process is stopped for longer than fifteen seconds between its last question and the request behind it. When it is, the names
//! of what it writes are its own (a backup's id), or nothing is replaced (conditional puts).
//!
//! **What a crash leaves** is a lease of a process that is gone. One of this machine is followed at once: the lease names the boot, the PID namespace, the
//! process and when it began. One of another machine is followed when it is over.
//!
//! **A service that takes conditional puts for others** would let two meet without a word. Whoever took a lease as a new one puts it again
//! on the condition that nothing is there, which must be refused.
//!
//! **Sharing.** Who shares puts its own lease first and then looks whether somebody holds the lock alone; who wants it alone takes it first and then looks for
//! shares. Both looks come after the own put, and every reader sees every put, so at least one of two sees the other, and gives way. Within
//! a process all who share have one lease. The lease of a share has a name that nobody else ever has, so it is removed when it is given up.

use super::bucket::{Bucket, If, conditions};
use crate::error::{Error, ErrorKind, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

/// A lease that was not renewed for so long is over.
const OVER: Duration = Duration::from_secs(60);
/// A holder that could not renew for so long has lost it.
const LOST: Duration = Duration::from_secs(45);
/// How often it is renewed.
const RENEW: Duration = Duration::from_secs(15);
/// A holder that asks is told by the service when the last answer is older than this.
const FRESH: Duration = Duration::from_secs(2);
/// How long a request about a lease may take, and how long it is tried again: less than what is left when a renewal failed once.
const LIMIT: Duration = Duration::from_secs(10);
/// What the folder of those who share a lock ends with.
const SHARES: &str = ".shares";
/// The pause before somebody who shares looks again.
const PAUSE: Duration = Duration::from_millis(250);

/// What the object says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    /// Unique.
    token: String,
    /// For people.
    host: String,
    /// The boot and the PID namespace in which `pid` has its meaning.
    machine: String,
    pid: u32,
    /// When the process began, in the kernel's ticks.
    began: u64,
    since: Timestamp,
    /// Counts, so that each renewal is another content.
    renewals: u64,
    /// It was given up.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    free: bool,
}

impl Holder {
    fn this() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let pid = std::process::id();
        let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos());
        let machine = machine();
        let unique = format!("{machine} {pid} {now} {}", COUNT.fetch_add(1, Ordering::Relaxed));
        let token = blake3::hash(unique.as_bytes()).to_hex().chars().take(24).collect();
        Self {
            token,
            host: crate::repository::this_host(),
            machine,
            pid,
            began: began(pid).unwrap_or(0),
            since: Timestamp::now(),
            renewals: 0,
            free: false,
        }
    }

    fn bytes(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|error| Error::new(ErrorKind::Io, format!("could not write JSON: {error}")))
    }

    /// Nobody holds it: it was given up, or its process was one of this machine and is gone.
    fn is_gone(&self) -> bool {
        let here = !self.machine.is_empty() && self.machine == machine();
        self.free || here && ended(self.pid, self.began)
    }
}

fn machine() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    match (boot.trim(), std::fs::read_link("/proc/self/ns/pid")) {
        ("", _) | (_, Err(_)) => String::new(),
        (boot, Ok(namespace)) => format!("{boot} {}", namespace.display()),
    }
}

/// The process that began then is certainly gone.
fn ended(pid: u32, then: u64) -> bool {
    match began(pid) {
        Some(now) => now != then,
        // Another user's process may be hidden in /proc, but not from a signal.
        None => {
            let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
            pid.is_none_or(|pid| {
                rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH) || began_raw(pid) == Some(None)
            })
        }
    }
}

/// When a process began; none when there is none.
fn began(pid: u32) -> Option<u64> {
    began_raw(rustix::process::Pid::from_raw(i32::try_from(pid).ok()?)?)?
}

/// When a process began, and none inside when it is dead and nobody has waited for it yet, for then it holds nothing. None when /proc shows none.
fn began_raw(pid: rustix::process::Pid) -> Option<Option<u64>> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The name in parentheses may hold anything; the 22nd field is the 20th behind it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let dead = fields.next().is_none_or(|state| matches!(state, "Z" | "X"));
    Some(if dead { None } else { fields.nth(18)?.parse().ok() })
}

/// The time since the machine's boot. It goes on while the machine is suspended.
fn since_boot() -> Duration {
    static FIRST: LazyLock<Instant> = LazyLock::new(Instant::now);
    let uptime = std::fs::read_to_string("/proc/uptime").ok();
    let seconds = uptime.and_then(|text| text.split_whitespace().next()?.parse().ok());
    seconds.map_or_else(|| FIRST.elapsed(), Duration::from_secs_f64)
}

/// A lease that is held. Dropped, it is given up.
pub struct Lease {
    bucket: Arc<Bucket>,
    path: PathBuf,
    state: Arc<State>,
    /// Dropped, it ends the thread that renews.
    _held: Sender<()>,
}

struct State {
    /// What was put last, and its state. Whoever puts has it locked.
    put: Mutex<(Holder, String)>,
    /// When that was, since the boot.
    renewed: Mutex<Duration>,
    lost: AtomicBool,
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").field("path", &self.path).finish_non_exhaustive()
    }
}

impl State {
    fn age(&self) -> Duration {
        since_boot().saturating_sub(*self.renewed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed) || self.age() > LOST
    }
}

impl Lease {
    /// Holds what was put at this time since the boot, and renews it from now on.
    fn hold(bucket: &Arc<Bucket>, path: &Path, holder: Holder, etag: String, put_at: Duration) -> Result<Arc<Self>> {
        let state = Arc::new(State {
            put: Mutex::new((holder, etag)),
            renewed: Mutex::new(put_at),
            lost: AtomicBool::new(false),
        });
        let (held, dropped) = channel();
        let lease = Arc::new(Self { bucket: bucket.clone(), path: path.to_owned(), state: state.clone(), _held: held });
        let (bucket, at) = (bucket.clone(), path.to_owned());
        std::thread::Builder::new()
            .name("strata-lease".to_owned())
            .spawn(move || keep(&state, &bucket, &at, &dropped))
            .map_err(|error| Error::io("lock", path, error))?;
        Ok(lease)
    }

    /// Fails when it was lost. What the service said within the last two seconds counts; else it is asked.
    pub fn require_held(&self) -> Result<()> {
        if self.state.age() > FRESH && !self.state.is_lost() {
            renew(&self.state, &self.bucket, &self.path);
        }
        if !self.state.is_lost() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Locked, format!("the lock \"{}\" was lost", self.path.display()))
            .detail("It could not be renewed in time, and another process may hold it by now.")
            .with_hint("Run the same command again when the object storage answers."))
    }
}

/// Renews a lease until it is dropped or lost.
fn keep(state: &State, bucket: &Bucket, path: &Path, dropped: &Receiver<()>) {
    let mut pause = RENEW;
    while dropped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) && !state.is_lost() {
        renew(state, bucket, path);
        // One that failed has little time left.
        pause = if state.age() > RENEW { Duration::from_secs(1) } else { RENEW };
    }
}

/// Puts the lease again, if it is still the holder's own.
fn renew(state: &State, bucket: &Bucket, path: &Path) {
    let mut put = state.put.lock().unwrap_or_else(PoisonError::into_inner);
    if state.lost.load(Ordering::Relaxed) {
        return;
    }
    let began = since_boot();
    let (mut holder, etag) = put.clone();
    holder.renewals += 1;
    let written = put_over(bucket, path, &holder, &etag).and_then(|etag| match etag {
        Some(etag) => Ok(Renewed::Put(etag)),
        None => renew_seen(bucket, path, &mut holder),
    });
    match written {
        Ok(Renewed::Put(etag)) => {
            *put = (holder, etag);
            *state.renewed.lock().unwrap_or_else(PoisonError::into_inner) = began;
        }
        Ok(Renewed::Taken) => state.lost.store(true, Ordering::Relaxed),
        Ok(Renewed::Changed) => {}
        Err(error) => tracing::warn!("the lock is not renewed: {error}"),
    }
}

/// How a lease was renewed.
enum Renewed {
    /// It has this state now.
    Put(String),
    /// It is somebody else's, or nobody's.
    Taken,
    /// It changed while it was looked at.
    Changed,
}

/// Puts a lease on the condition that it still has this state. Returns its new one; none when it has another.
fn put_over(bucket: &Bucket, path: &Path, holder: &Holder, etag: &str) -> Result<Option<String>> {
    bucket.put_if(path, &holder.bytes()?, If::Same(etag), Some(LIMIT))
}

/// Renews a lease that has not the state that it was put with: its own put may have been done and its answer lost; so may one before, that was given
/// up waiting for.
fn renew_seen(bucket: &Bucket, path: &Path, holder: &mut Holder) -> Result<Renewed> {
    let Some(seen) = bucket.see(path, Some(LIMIT))? else { return Ok(Renewed::Taken) };
    let Ok(found) = serde_json::from_slice::<Holder>(&seen.bytes) else { return Ok(Renewed::Taken) };
    if found.token != holder.token || found.free {
        return Ok(Renewed::Taken);
    }
    holder.renewals = holder.renewals.max(found.renewals);
    if found == *holder {
        return Ok(Renewed::Put(seen.etag));
    }
    Ok(put_over(bucket, path, holder, &seen.etag)?.map_or(Renewed::Changed, Renewed::Put))
}

impl Drop for Lease {
    fn drop(&mut self) {
        // A renewal that is on its way is waited for.
        let put = self.state.put.lock().unwrap_or_else(PoisonError::into_inner);
        if self.state.is_lost() {
            return;
        }
        self.state.lost.store(true, Ordering::Relaxed);
        let (holder, etag) = &*put;
        let given_up = match self.path.parent().is_some_and(is_shares) {
            true => self.bucket.remove(&self.path),
            false => Holder { free: true, ..holder.clone() }
                .bytes()
                .and_then(|bytes| self.bucket.put_if(&self.path, &bytes, If::Same(etag), None).map(drop)),
        };
        if let Err(error) = given_up {
            tracing::warn!("the lock is not given up, and is over in a minute: {error}");
        }
    }
}

impl Bucket {
    /// Takes the lock of this name alone, or fails at once.
    pub fn lock(self: &Arc<Self>, path: &Path, what: &str) -> Result<Arc<Lease>> {
        let lease = self.lock_alone(path, what)?;
        let shares = shares(path);
        for share in self.walk(&shares)? {
            if let Some(holder) = self.holder(&share.path)? {
                // Giving the lock up is the lease's own work.
                return Err(locked(what, &share.path, &holder));
            }
            self.remove(&share.path)?;
        }
        Ok(lease)
    }

    fn lock_alone(self: &Arc<Self>, path: &Path, what: &str) -> Result<Arc<Lease>> {
        let own = Holder::this();
        let bytes = own.bytes()?;
        for _ in 0..10 {
            let began = since_boot();
            if let Some(etag) = self.put_if(path, &bytes, If::Absent, None)? {
                let lease = Lease::hold(self, path, own, etag, began)?;
                if self.put_if(path, &bytes, If::Absent, None)?.is_some() {
                    return Err(conditions());
                }
                return Ok(lease);
            }
            let Some(seen) = self.see(path, None)? else { continue };
            let holder = serde_json::from_slice::<Holder>(&seen.bytes).ok();
            match &holder {
                // The answer to our own put was lost.
                Some(holder) if holder.token == own.token => {
                    return Lease::hold(self, path, own, seen.etag, began);
                }
                Some(holder) if holder.free => {}
                Some(holder) if holder.is_gone() => took_over(path),
                _ if self.is_over(path, seen.modified)? => took_over(path),
                Some(holder) => return Err(locked(what, path, holder)),
                None => {
                    return Err(Error::new(ErrorKind::Locked, format!("another process holds the lock for {what}"))
                        .detail(format!("The lock is \"{}\".", path.display())));
                }
            }
            let began = since_boot();
            if let Some(etag) = self.put_if(path, &bytes, If::Same(&seen.etag), None)? {
                return Lease::hold(self, path, own, etag, began);
            }
        }
        Err(Error::new(ErrorKind::Locked, format!("others take the lock for {what} again and again")))
    }

    /// Takes the lock of this name together with others; waits for one who holds it alone.
    pub fn share(self: &Arc<Self>, path: &Path) -> Result<Arc<Lease>> {
        loop {
            match self.share_now(path)? {
                Ok(lease) => return Ok(lease),
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }

    /// Like [`Bucket::share`], but fails at once when somebody holds it alone. None when this user may not write into the bucket.
    pub fn try_share(self: &Arc<Self>, path: &Path) -> Result<Option<Arc<Lease>>> {
        match self.share_now(path) {
            Ok(Ok(lease)) => Ok(Some(lease)),
            Ok(Err(holder)) => Err(locked("what is removed", path, &holder)),
            Err(error) if error.kind == ErrorKind::Refused => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A share, or who holds the lock alone.
    fn share_now(self: &Arc<Self>, path: &Path) -> Result<std::result::Result<Arc<Lease>, Holder>> {
        // One at a time in this process, so that all have one lease.
        let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lease) = leases.get(path).and_then(Weak::upgrade).filter(|lease| !lease.state.is_lost()) {
            return Ok(Ok(lease));
        }
        let (own, began) = (Holder::this(), since_boot());
        let at = shares(path).join(format!("{}.json", own.token));
        let bytes = own.bytes()?;
        // Nobody else has this name: what is there is its own, after an answer that was lost.
        let etag = match self.put_if(&at, &bytes, If::Absent, None)? {
            Some(etag) => etag,
            None => self.see(&at, None)?.ok_or_else(conditions)?.etag,
        };
        let lease = Lease::hold(self, &at, own, etag, began)?;
        if let Some(holder) = self.holder(path)? {
            return Ok(Err(holder));
        }
        leases.insert(path.to_owned(), Arc::downgrade(&lease));
        Ok(Ok(lease))
    }

    /// Who holds a lease that is not over.
    fn holder(self: &Arc<Self>, path: &Path) -> Result<Option<Holder>> {
        let Some(seen) = self.see(path, None)? else { return Ok(None) };
        let holder: Holder = match serde_json::from_slice(&seen.bytes) {
            Ok(holder) => holder,
            Err(error) => return Err(Error::damaged(format_args!("the lock \"{}\"", path.display()), error)),
        };
        if holder.is_gone() || self.is_over(path, seen.modified)? {
            return Ok(None);
        }
        Ok(Some(holder))
    }

    /// A lease that was put at this time of the service is over.
    fn is_over(&self, path: &Path, put: SystemTime) -> Result<bool> {
        // All who ask write the same object, and what any of them reads was put after its own question began.
        // In the folder of those who share there are only their leases.
        let lock = path.parent().filter(|folder| is_shares(folder)).unwrap_or(path);
        let clock = beside(lock, ".clock");
        self.write(&clock, since_boot().as_nanos().to_string().as_bytes())?;
        let now = self.look(&clock)?.map(|(_, modified)| modified);
        Ok(now.and_then(|now| now.duration_since(put).ok()).is_some_and(|age| age > OVER))
    }
}

fn took_over(path: &Path) {
    tracing::info!("taking over the lock \"{}\" of a process that is gone", path.display());
}

fn beside(path: &Path, more: &str) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(more);
    PathBuf::from(beside)
}

/// Where the leases of those who share a lock are.
fn shares(path: &Path) -> PathBuf {
    beside(path, SHARES)
}

fn is_shares(folder: &Path) -> bool {
    folder.as_os_str().as_encoded_bytes().ends_with(SHARES.as_bytes())
}

fn locked(what: &str, path: &Path, holder: &Holder) -> Error {
    Error::new(ErrorKind::Locked, format!("another process holds the lock for {what}")).detail(format!(
        "The lock is \"{}\", held by process {} on {} since {}.",
        path.display(),
        holder.pid,
        holder.host,
        holder.since
    ))
}
