//! The promoter: a background worker that promotes fragment rows in transactions of its own.
//!
//! A backend that has to change a fragment row asks for its promotion and waits (microseconds to a millisecond). Why another
//! process: PostgreSQL has no autonomous transactions, and the promotion has to be committed before the heap operation on
//! the delta row starts; see `am::promote`.
//!
//! ```text
//!   shared memory:  requests[64]  FREE → CLAIMED → REQUESTED → RUNNING → DONE | WAIT(xid) | FAILED(message) → FREE
//!                   workers[16]   database → latch of its promoter (started when first needed, ends when idle)
//! ```
//!
//! **Locks.** The requester holds ROW EXCLUSIVE on the table from before the request until its transaction ends, or ROW SHARE and the
//! locks of `am::builds`, and never leaves a request that is running; so the worker needs no table lock of its own, cannot wait for
//! one, and cannot be part of a deadlock that the detector does not see. It takes the lock of the row's virtual TID for the time of the
//! promotion.
//!
//! **Failure.** A worker that dies of an ERROR or is terminated marks its running request failed on exit; a killed one makes
//! the postmaster reset shared memory. A worker that cannot start is noticed by whoever waits, who promotes by itself.
//!
//! A requester gives its slot back however it ends: by an ERROR when the guard is dropped, by FATAL (where nothing is dropped) in a
//! callback that runs before its locks go. A request that nobody has begun is taken back, by compare-and-swap: the worker may begin it
//! at the same time. One that is running is waited for, however long it takes: the worker relies on the requester's lock, and reads the
//! slot.
//!
//! **Durability.** The worker commits asynchronously. Its commit record precedes everything that the requester writes, so
//! it is durable when the requester's commit is.

use super::deletion::{self, RowState};
use super::{handed, handler, promote};
use crate::error::StrataError;
use crate::guc;
use crate::pg::{OpenRelation, compat, tid};
use pgrx::PgTryBuilder;
use pgrx::bgworkers::{BackgroundWorker, SignalWakeFlags};
use pgrx::pg_sys;
use pgrx::pg_sys::Oid;
use pgrx::prelude::*;
use std::cell::{Cell, UnsafeCell};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering};

const REQUESTS: usize = 64;
const WORKERS: usize = 16;
const MESSAGE: usize = 200;
/// A worker without work ends after this time, so that it does not keep a database from being dropped.
const IDLE_MS: i64 = 2000;
/// How long both sides stay awake for each other while a statement promotes one row after the other.
const SPIN: std::time::Duration = std::time::Duration::from_micros(60);
/// A worker that has not come up after this time is given up.
const START_MS: i64 = 5000;

mod state {
    pub const FREE: u32 = 0;
    pub const CLAIMED: u32 = 1;
    pub const REQUESTED: u32 = 2;
    pub const RUNNING: u32 = 3;
    pub const DONE: u32 = 4;
    pub const WAIT: u32 = 5;
    pub const FAILED: u32 = 6;
}

struct Request {
    state: AtomicU32,
    database: AtomicU32,
    relid: AtomicU32,
    row_id: AtomicU64,
    latch: AtomicPtr<pg_sys::Latch>,
    xid: AtomicU32,
    message: [AtomicU8; MESSAGE],
    /// Others of the same statement follow, presumably.
    more: AtomicBool,
    /// The bytes of `tuple` that are the row, if it is handed over.
    length: AtomicU32,
    tuple: UnsafeCell<[u8; handed::MOST_BYTES]>,
}

// SAFETY: all is atomic but the tuple, which its owner writes while the request is CLAIMED and the worker reads while it is
// RUNNING; the state's ordering separates the two.
unsafe impl Sync for Request {}

struct Worker {
    /// Its database, 0 for a free entry.
    database: AtomicU32,
    latch: AtomicPtr<pg_sys::Latch>,
    started: AtomicI64,
}

struct Shared {
    requests: [Request; REQUESTS],
    workers: [Worker; WORKERS],
}

thread_local! {
    static SHARED: Cell<*const Shared> = const { Cell::new(std::ptr::null()) };
    /// The slot that this backend has claimed.
    static CLAIMED: Cell<Option<&'static Request>> = const { Cell::new(None) };
    static WILL_GIVE_BACK: Cell<bool> = const { Cell::new(false) };
}

/// What became of a request.
pub enum Reply {
    /// The row is promoted.
    Done,
    /// This transaction is promoting the row.
    Wait(pg_sys::TransactionId),
    /// There is no promoter; the caller does it.
    Unavailable,
}

/// The size of the shared memory.
pub fn shared_size() -> usize {
    size_of::<Shared>()
}

/// Attaches to the shared memory, made of zeros if it is new. Called from the start-up hook.
///
/// # Safety
/// Called in shmem_startup_hook.
pub unsafe fn attach() {
    let mut found = false;
    // SAFETY: the size was requested; all-zero bytes are a valid Shared; AddinShmemInitLock keeps others out.
    unsafe {
        let p = pg_sys::ShmemInitStruct(c"strata promoter".as_ptr(), shared_size(), &mut found);
        if !found {
            p.cast::<u8>().write_bytes(0, shared_size());
        }
        SHARED.set(p.cast());
    }
}

fn shared() -> Option<&'static Shared> {
    let p = SHARED.get();
    // SAFETY: shared memory stays mapped; everything in it is atomic.
    (!p.is_null()).then(|| unsafe { &*p })
}

/// Whether requests can be made at all.
pub fn available() -> bool {
    guc::ENABLE_PROMOTER.get() && shared().is_some()
}

fn now() -> i64 {
    // SAFETY: reads the clock.
    unsafe { pg_sys::GetCurrentTimestamp() / 1000 }
}

fn my_database() -> u32 {
    // SAFETY: a plain variable of the backend.
    unsafe { pg_sys::MyDatabaseId.to_u32() }
}

/// Asks for the promotion of a row and waits for it. `tuple` is the row, if the caller has it (see `am::handed`); `more`: others of
/// the same statement have gone before, so others will follow.
pub fn request(relid: Oid, row_id: u64, tuple: Option<Vec<u8>>, more: bool) -> Reply {
    let Some(shared) = shared() else { return Reply::Unavailable };
    give_back_on_exit();
    let Some(guard) = claim(shared) else { return Reply::Unavailable };
    let slot = guard.0;
    slot.database.store(my_database(), Ordering::Relaxed);
    slot.relid.store(relid.to_u32(), Ordering::Relaxed);
    slot.row_id.store(row_id, Ordering::Relaxed);
    slot.more.store(more, Ordering::Relaxed);
    let tuple = tuple.filter(|bytes| bytes.len() <= handed::MOST_BYTES).unwrap_or_default();
    slot.length.store(tuple.len() as u32, Ordering::Relaxed);
    // SAFETY: the request is claimed by this backend, and the tuple fits.
    unsafe { slot.tuple.get().cast::<u8>().copy_from_nonoverlapping(tuple.as_ptr(), tuple.len()) };
    // SAFETY: this backend's latch, in shared memory.
    slot.latch.store(unsafe { pg_sys::MyLatch }, Ordering::Relaxed);
    slot.state.store(state::REQUESTED, Ordering::Release);
    loop {
        match slot.state.load(Ordering::Acquire) {
            state::DONE => return Reply::Done,
            state::WAIT => {
                return Reply::Wait(pg_sys::TransactionId::from(slot.xid.load(Ordering::Relaxed)));
            }
            state::FAILED => {
                let message = slot.text();
                drop(guard);
                StrataError::Promoter { relid, message }.raise();
            }
            state::REQUESTED if !wake(shared) && slot.take_back() => return Reply::Unavailable,
            _ => {}
        }
        if !(more && spin_until(|| slot.state.load(Ordering::Acquire) >= state::DONE)) {
            wait_latch(10);
        }
        pgrx::check_for_interrupts!();
    }
}

/// Waits without sleeping for a time that is shorter than going to sleep and waking up again. A statement that changes
/// many fragment rows asks for one promotion after the other, and both sides stay awake meanwhile. For a single row it would only
/// use up a processor: a promotion takes longer than this.
fn spin_until(mut done: impl FnMut() -> bool) -> bool {
    let end = std::time::Instant::now() + SPIN;
    loop {
        for _ in 0..64 {
            if done() {
                return true;
            }
            std::hint::spin_loop();
        }
        if std::time::Instant::now() >= end {
            return false;
        }
    }
}

/// A request slot that is given back when its owner is through, also by an ERROR.
struct Claimed(&'static Request);

impl Drop for Claimed {
    fn drop(&mut self) {
        give_back();
    }
}

/// Gives the slot back that this backend has claimed.
fn give_back() {
    let Some(slot) = CLAIMED.take() else { return };
    loop {
        match slot.state.load(Ordering::Acquire) {
            state::REQUESTED if !slot.take_back() => {}
            state::RUNNING => {
                // SAFETY: asks who the parent is; a plain variable of the backend.
                if unsafe { libc::getppid() != pg_sys::PostmasterPid } {
                    // Everything ends, and nobody will claim the slot any more.
                    return;
                }
                std::thread::sleep(std::time::Duration::from_micros(100));
            }
            _ => break,
        }
    }
    slot.state.store(state::FREE, Ordering::Release);
}

/// Has the slot given back when this backend ends, before its transaction does (callbacks run in the reverse order of their
/// registration, and that of the transaction's end was registered when the backend started).
fn give_back_on_exit() {
    if !WILL_GIVE_BACK.replace(true) {
        // SAFETY: the callback stays loaded.
        unsafe { pg_sys::before_shmem_exit(Some(requester_exits), pg_sys::Datum::from(0)) };
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn requester_exits(_code: i32, _arg: pg_sys::Datum) {
    give_back();
}

fn claim(shared: &'static Shared) -> Option<Claimed> {
    for _ in 0..1000 {
        for slot in &shared.requests {
            let free = slot.state.compare_exchange(state::FREE, state::CLAIMED, Ordering::AcqRel, Ordering::Relaxed);
            if free.is_ok() {
                CLAIMED.set(Some(slot));
                return Some(Claimed(slot));
            }
        }
        pgrx::check_for_interrupts!();
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    None
}

/// Wakes the promoter of this database, or starts it. False: it cannot be started.
fn wake(shared: &'static Shared) -> bool {
    let database = my_database();
    if let Some(w) = shared.workers.iter().find(|w| w.database.load(Ordering::Acquire) == database) {
        let latch = w.latch.load(Ordering::Acquire);
        if !latch.is_null() {
            // SAFETY: latches are in shared memory for ever; a spurious wake-up of its next owner is harmless.
            unsafe { pg_sys::SetLatch(latch) };
            return true;
        }
        if now() - w.started.load(Ordering::Acquire) < START_MS {
            return true;
        }
        // It did not come up.
        let _ = w.database.compare_exchange(database, 0, Ordering::AcqRel, Ordering::Relaxed);
        return false;
    }
    let free = shared
        .workers
        .iter()
        .enumerate()
        .find(|(_, w)| w.database.compare_exchange(0, database, Ordering::AcqRel, Ordering::Relaxed).is_ok());
    let Some((i, w)) = free else { return false };
    w.latch.store(std::ptr::null_mut(), Ordering::Release);
    w.started.store(now(), Ordering::Release);
    let packed = (i as i64) << 32 | i64::from(database);
    let started = pgrx::bgworkers::BackgroundWorkerBuilder::new("strata promoter")
        .set_type("strata promoter")
        .set_library("strata")
        .set_function("strata_promoter_main")
        .set_argument(packed.into_datum())
        .enable_spi_access()
        .set_restart_time(None)
        .load_dynamic()
        .is_ok();
    if !started {
        w.database.store(0, Ordering::Release);
    }
    started
}

fn wait_latch(ms: i64) {
    // SAFETY: this backend's latch.
    unsafe {
        pg_sys::WaitLatch(
            pg_sys::MyLatch,
            (pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH) as i32,
            ms as core::ffi::c_long,
            pg_sys::PG_WAIT_EXTENSION,
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
}

impl Request {
    fn text(&self) -> String {
        let bytes: Vec<u8> = self.message.iter().map(|b| b.load(Ordering::Relaxed)).take_while(|b| *b != 0).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn set_text(&self, text: &str) {
        let bytes = text.bytes().chain(std::iter::repeat(0));
        for (cell, b) in self.message.iter().zip(bytes) {
            cell.store(b, Ordering::Relaxed);
        }
        self.message[MESSAGE - 1].store(0, Ordering::Relaxed);
    }

    /// Withdraws a request that nobody has begun.
    fn take_back(&self) -> bool {
        self.state.compare_exchange(state::REQUESTED, state::CLAIMED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Ends a running request and wakes its owner.
    fn answer(&self, to: u32) {
        let latch = self.latch.load(Ordering::Relaxed);
        self.state.store(to, Ordering::Release);
        // SAFETY: a latch in shared memory.
        unsafe { pg_sys::SetLatch(latch) };
    }
}

thread_local! {
    /// This worker's entry and database, as long as it has the entry.
    static ENTRY: Cell<Option<(&'static Worker, u32)>> = const { Cell::new(None) };
    /// What this worker is doing.
    static RUNNING: Cell<Option<&'static Request>> = const { Cell::new(None) };
}

/// The worker's exit: its entry is free, what it was doing has failed.
#[pg_guard]
unsafe extern "C-unwind" fn on_exit(_code: i32, _arg: pg_sys::Datum) {
    leave();
    if let Some(request) = RUNNING.take() {
        request.set_text("the promoter was terminated");
        request.answer(state::FAILED);
    }
}

/// Leaves the entry to others, unless somebody who did not expect this worker any more has taken it.
fn leave() {
    if let Some((worker, database)) = ENTRY.take() {
        // SAFETY: a plain variable of the process.
        let latch = unsafe { pg_sys::MyLatch };
        let _ = worker.latch.compare_exchange(latch, std::ptr::null_mut(), Ordering::AcqRel, Ordering::Relaxed);
        let _ = worker.database.compare_exchange(database, 0, Ordering::AcqRel, Ordering::Relaxed);
    }
}

/// The worker's main function.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn strata_promoter_main(arg: pg_sys::Datum) {
    let packed = arg.value() as i64;
    let (index, database) = ((packed >> 32) as usize, (packed & 0xffff_ffff) as u32);
    let Some(shared) = shared() else { return };
    let worker = &shared.workers[index];
    ENTRY.set(Some((worker, database)));
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
    // SAFETY: the first things that a background worker does.
    unsafe {
        pg_sys::before_shmem_exit(Some(on_exit), pg_sys::Datum::from(0));
        pg_sys::BackgroundWorkerInitializeConnectionByOid(Oid::from(database), Oid::INVALID, 0);
        pg_sys::synchronous_commit = pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_OFF as i32;
        compat::lift_session_limits();
        pg_sys::DefaultXactReadOnly = false;
        worker.latch.store(pg_sys::MyLatch, Ordering::Release);
    }
    if worker.database.load(Ordering::Acquire) != database {
        // It has taken too long to come up, and was given up.
        return;
    }
    let mut last = now();
    let mut more = false;
    loop {
        while let Some(request) = next(shared, database) {
            more = request.more.load(Ordering::Relaxed);
            run(request);
            last = now();
        }
        if BackgroundWorker::sigterm_received() {
            return;
        }
        if BackgroundWorker::sighup_received() {
            // SAFETY: between transactions.
            unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) };
        }
        if now() - last > IDLE_MS {
            // Who comes after this starts another worker; who came before it is seen once more.
            leave();
            while let Some(request) = next(shared, database) {
                run(request);
            }
            return;
        }
        let asked = || {
            shared.requests.iter().any(|r| {
                r.state.load(Ordering::Acquire) == state::REQUESTED && r.database.load(Ordering::Relaxed) == database
            })
        };
        if !(more && spin_until(asked)) {
            more = false;
            wait_latch(500);
        }
        pgrx::check_for_interrupts!();
    }
}

/// Takes the next request for a database.
fn next(shared: &'static Shared, database: u32) -> Option<&'static Request> {
    let mine = |r: &Request| r.database.load(Ordering::Relaxed) == database;
    for r in shared.requests.iter().filter(|r| mine(r)) {
        if r.state.compare_exchange(state::REQUESTED, state::RUNNING, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            if mine(r) {
                RUNNING.set(Some(r));
                return Some(r);
            }
            // The slot has changed hands meanwhile. Its owner wakes the right worker again as long as nobody begins it.
            r.state.store(state::REQUESTED, Ordering::Release);
        }
    }
    None
}

/// Promotes a row in a transaction.
fn run(request: &'static Request) {
    let relid = Oid::from(request.relid.load(Ordering::Relaxed));
    let row_id = request.row_id.load(Ordering::Relaxed);
    let length = (request.length.load(Ordering::Relaxed) as usize).min(handed::MOST_BYTES);
    // SAFETY: the request is running; so many bytes were written before it was made.
    let tuple =
        (length > 0).then(|| unsafe { std::slice::from_raw_parts(request.tuple.get().cast(), length).to_vec() });
    let waiting = PgTryBuilder::new(|| {
        // SAFETY: a transaction of its own; the requester holds a lock on the table.
        let waiting = unsafe {
            pg_sys::SetCurrentStatementStartTimestamp();
            pg_sys::StartTransactionCommand();
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
            let waiting = promote_one(relid, row_id, tuple.as_deref());
            pg_sys::PopActiveSnapshot();
            pg_sys::CommitTransactionCommand();
            waiting
        };
        Ok(waiting)
    })
    .catch_others(|cause| {
        // SAFETY: ends the failed transaction.
        unsafe { pg_sys::AbortCurrentTransaction() };
        Err(match cause {
            pg_sys::panic::CaughtError::PostgresError(e) | pg_sys::panic::CaughtError::ErrorReport(e) => {
                e.message().to_owned()
            }
            pg_sys::panic::CaughtError::RustPanic { ereport, .. } => ereport.message().to_owned(),
        })
    })
    .execute();
    RUNNING.set(None);
    match waiting {
        Ok(None) => request.answer(state::DONE),
        Ok(Some(xid)) => {
            request.xid.store(u32::from(xid), Ordering::Relaxed);
            request.answer(state::WAIT);
        }
        Err(message) => {
            request.set_text(&message);
            request.answer(state::FAILED);
        }
    }
}

/// The promotion itself; Some: that transaction is promoting the row already.
unsafe fn promote_one(relid: Oid, row_id: u64, tuple: Option<&[u8]>) -> Option<pg_sys::TransactionId> {
    // SAFETY: the requester holds a lock on the table.
    unsafe {
        let rel = OpenRelation::open(relid, pg_sys::NoLock);
        if !handler::is_warm(rel.0) {
            return None;
        }
        // Index expressions run as the table's owner, as in any maintenance. (After an ERROR the end of the transaction restores both.)
        let (mut user, mut context) = (Oid::INVALID, 0);
        pg_sys::GetUserIdAndSecContext(&mut user, &mut context);
        pg_sys::SetUserIdAndSecContext(
            (*(*rel.0).rd_rel).relowner,
            context | pg_sys::SECURITY_RESTRICTED_OPERATION as i32,
        );
        let mut at = tid::from_row_id(row_id);
        pg_sys::LockTuple(rel.0, &mut at, pg_sys::ExclusiveLock as i32);
        let state = deletion::latest(rel.0, row_id);
        let waiting = match state {
            RowState::Live => {
                promote::promote(rel.0, row_id, pg_sys::GetCurrentCommandId(true), tuple);
                None
            }
            RowState::Promoted(_) => None,
            RowState::InProgress(xid) => Some(xid),
        };
        pg_sys::UnlockTuple(rel.0, &mut at, pg_sys::ExclusiveLock as i32);
        pg_sys::SetUserIdAndSecContext(user, context);
        waiting
    }
}
