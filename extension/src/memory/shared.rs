//! Shared memory: who keeps how much. The header of [`super`] has the design.

use crate::guc;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed};
use strata_fragment::memory::machine::Machine;
use strata_fragment::memory::{self, Budget, Charge};

/// The limit is looked at again after so many microseconds.
const REFRESH: i64 = 1_000_000;
/// Who was refused within so many microseconds counts as one who wants a share.
const WANTED: i64 = 10_000_000;
/// Others are asked at most so often.
const ASK: i64 = 1_000_000;

/// What all processes share; the slots lie behind it.
#[repr(C, align(64))]
pub struct Shared {
    kept: AtomicI64,
    forced: AtomicI64,
    /// Most that may be kept and forced together.
    limit: AtomicU64,
    /// The setting that the limit was made from, and when.
    setting: AtomicU64,
    refreshed: AtomicI64,
    machine_total: AtomicU64,
    machine_available: AtomicU64,
    machine_limited: AtomicBool,
    /// The setting of which the log says that it is too large.
    warned: AtomicU64,
    slots: u32,
}

/// One process.
#[repr(C, align(64))]
#[derive(Default)]
pub struct Slot {
    pid: AtomicI32,
    database: AtomicU32,
    kept: AtomicI64,
    forced: AtomicI64,
    peak: AtomicI64,
    asked: AtomicBool,
    /// When it was refused, and when it asked others.
    refused: AtomicI64,
    asking: AtomicI64,
    given_back: AtomicU64,
    /// Scans by access: loaded, paged, direct.
    pub scans: [AtomicU64; 3],
    reads: AtomicU64,
    read_bytes: AtomicU64,
    hits: AtomicU64,
    evicted: AtomicU64,
    /// The last choice.
    pub last: Last,
}

/// The last choice of a process, for the view.
#[derive(Default)]
pub struct Last {
    /// A table of the data set.
    pub relid: AtomicU32,
    /// Access and reason, as numbers.
    pub access: AtomicU32,
    /// See [`super::access`].
    pub why: AtomicU32,
    /// Bytes of the data set, its fragments, and the room there was.
    pub data_set: AtomicU64,
    /// Fragments of the data set.
    pub fragments: AtomicU64,
    /// What could be kept.
    pub room: AtomicU64,
    /// When.
    pub at: AtomicI64,
}

thread_local! {
    static SHARED: Cell<*const Shared> = const { Cell::new(std::ptr::null()) };
    static SLOT: Cell<*const Slot> = const { Cell::new(std::ptr::null()) };
    static ATTACHED: Cell<bool> = const { Cell::new(false) };
}

fn processes() -> usize {
    // SAFETY: set before shared memory is requested.
    unsafe { pg_sys::MaxBackends.max(1) as usize }
}

/// The size of the shared memory.
pub fn size() -> usize {
    size_of::<Shared>() + processes() * size_of::<Slot>() + 64
}

/// Attaches to the shared memory, made of zeros if it is new. Called from the start-up hook.
///
/// # Safety
/// Called in shmem_startup_hook.
pub unsafe fn attach() {
    let mut found = false;
    // SAFETY: the size was requested; all-zero bytes are valid; AddinShmemInitLock keeps others out.
    unsafe {
        let start = pg_sys::ShmemInitStruct(c"strata memory".as_ptr(), size(), &mut found).cast::<u8>();
        let shared = start.add(start.align_offset(64)).cast::<Shared>();
        if !found {
            start.write_bytes(0, size());
            (*shared).slots = processes() as u32;
        }
        SHARED.set(shared);
        if !found && !pg_sys::IsUnderPostmaster {
            (*shared).refresh(0);
        }
    }
}

/// What all processes share, if there is shared memory.
pub fn shared() -> Option<&'static Shared> {
    let p = SHARED.get();
    // SAFETY: shared memory stays mapped; everything in it that changes is atomic.
    (!p.is_null()).then(|| unsafe { &*p })
}

/// The slot of this process, if it has one.
pub fn slot() -> Option<&'static Slot> {
    let p = SLOT.get();
    // SAFETY: as above.
    (!p.is_null()).then(|| unsafe { &*p })
}

/// The time, in microseconds.
pub fn now() -> i64 {
    // SAFETY: reads the clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

/// Takes part in the budget, from the first use of a fragment on.
pub fn enter() {
    if ATTACHED.replace(true) {
        return;
    }
    let Some(shared) = shared() else {
        memory::install(Rc::new(Own::default()));
        return;
    };
    // SAFETY: plain variables of the process; the callbacks have no state of their own.
    unsafe {
        let pid = pg_sys::MyProcPid;
        let free = |s: &&Slot| s.pid.compare_exchange(0, pid, Relaxed, Relaxed).is_ok();
        if let Some(slot) = shared.slots().iter().find(free) {
            slot.clear();
            slot.database.store(pg_sys::MyDatabaseId.to_u32(), Relaxed);
            SLOT.set(slot);
            pg_sys::before_shmem_exit(Some(leave), pg_sys::Datum::from(0));
        }
        pg_sys::RegisterXactCallback(Some(transaction_ended), std::ptr::null_mut());
    }
    memory::install(Rc::new(Server));
    shared.refresh(now());
}

/// The process ends: what it had is free. Its memory goes with it.
#[pg_guard]
unsafe extern "C-unwind" fn leave(_code: i32, _arg: pg_sys::Datum) {
    let (Some(shared), Some(slot)) = (shared(), slot()) else { return };
    SLOT.set(std::ptr::null());
    shared.kept.fetch_sub(slot.kept.swap(0, Relaxed), Relaxed);
    shared.forced.fetch_sub(slot.forced.swap(0, Relaxed), Relaxed);
    slot.pid.store(0, Relaxed);
}

#[pg_guard]
unsafe extern "C-unwind" fn transaction_ended(event: pg_sys::XactEvent::Type, _arg: *mut core::ffi::c_void) {
    use pg_sys::XactEvent::{XACT_EVENT_ABORT, XACT_EVENT_COMMIT};
    if event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT {
        give_back_if_asked();
    }
}

/// Gives back what is above the fair share, if somebody has asked for it or the limit is exceeded.
pub fn give_back_if_asked() {
    let (Some(shared), Some(slot)) = (shared(), slot()) else { return };
    let over = shared.used() > shared.limit.load(Relaxed) as i64 && slot.kept.load(Relaxed) > 0;
    if slot.asked.swap(false, Relaxed) || over {
        let before = slot.kept.load(Relaxed);
        memory::trim(shared.share(now()));
        slot.given_back.fetch_add((before - slot.kept.load(Relaxed)).max(0) as u64, Relaxed);
    }
}

/// The budget of this process as a part of the server's.
struct Server;

impl Budget for Server {
    fn take(&self, bytes: usize) -> bool {
        let (Some(shared), Some(slot)) = (shared(), slot()) else { return false };
        if slot.asked.load(Relaxed) {
            give_back_if_asked();
        }
        let n = bytes as i64;
        let kept = shared.kept.fetch_add(n, Relaxed) + n;
        if kept + shared.forced.load(Relaxed).max(0) > shared.limit.load(Relaxed) as i64 {
            shared.kept.fetch_sub(n, Relaxed);
            shared.refused(slot);
            return false;
        }
        slot.kept.fetch_add(n, Relaxed);
        slot.note_peak();
        true
    }

    fn give(&self, bytes: usize) {
        let (Some(shared), Some(slot)) = (shared(), slot()) else { return };
        slot.kept.fetch_sub(bytes as i64, Relaxed);
        shared.kept.fetch_sub(bytes as i64, Relaxed);
    }

    fn force(&self, bytes: isize) {
        let (Some(shared), Some(slot)) = (shared(), slot()) else { return };
        slot.forced.fetch_add(bytes as i64, Relaxed);
        shared.forced.fetch_add(bytes as i64, Relaxed);
        slot.note_peak();
    }
}

/// The budget of a process without shared memory.
#[derive(Default)]
struct Own {
    taken: Cell<i64>,
}

impl Budget for Own {
    fn take(&self, bytes: usize) -> bool {
        let all = self.taken.get() + bytes as i64;
        let fits = all <= guc::memory_budget() as i64 / 16;
        if fits {
            self.taken.set(all);
        }
        fits
    }

    fn give(&self, bytes: usize) {
        self.taken.set(self.taken.get() - bytes as i64);
    }

    fn force(&self, bytes: isize) {
        self.taken.set(self.taken.get() + bytes as i64);
    }
}

impl Slot {
    fn clear(&self) {
        for n in [&self.given_back, &self.reads, &self.read_bytes, &self.hits, &self.evicted, &self.last.data_set] {
            n.store(0, Relaxed);
        }
        self.scans.iter().for_each(|n| n.store(0, Relaxed));
        for n in [&self.kept, &self.forced, &self.peak, &self.refused, &self.asking, &self.last.at] {
            n.store(0, Relaxed);
        }
        self.asked.store(false, Relaxed);
    }

    fn note_peak(&self) {
        let all = self.kept.load(Relaxed) + self.forced.load(Relaxed);
        if all > self.peak.load(Relaxed) {
            self.peak.store(all, Relaxed);
        }
    }

    /// Shows what this process has counted.
    pub fn publish(&self) {
        let c = memory::counters();
        for (to, n) in [(&self.reads, c.reads), (&self.read_bytes, c.read_bytes), (&self.hits, c.hits)] {
            to.store(n, Relaxed);
        }
        self.evicted.store(c.evicted_bytes, Relaxed);
    }
}

impl Shared {
    fn slots(&self) -> &[Slot] {
        // SAFETY: one allocation, see `size`; a Slot is all atomics.
        unsafe { std::slice::from_raw_parts((&raw const *self).add(1).cast::<Slot>(), self.slots as usize) }
    }

    /// What is kept and forced.
    fn used(&self) -> i64 {
        self.kept.load(Relaxed) + self.forced.load(Relaxed)
    }

    /// Most that may be kept.
    pub fn limit(&self) -> u64 {
        self.limit.load(Relaxed)
    }

    /// Whether the machine, not the setting, makes the limit.
    pub fn is_short(&self) -> bool {
        self.limit.load(Relaxed) < self.setting.load(Relaxed)
    }

    /// What others than this process leave.
    pub fn room(&self) -> u64 {
        let mine = slot().map_or(0, |s| s.kept.load(Relaxed));
        (self.limit() as i64 - self.used() + mine).max(0) as u64
    }

    /// What each process that wants something may keep: an equal part of what is not needed for other things.
    pub fn share(&self, now: i64) -> usize {
        let wants = |s: &&Slot| {
            s.pid.load(Relaxed) != 0 && (s.kept.load(Relaxed) > 0 || now - s.refused.load(Relaxed) < WANTED)
        };
        let n = self.slots().iter().filter(wants).count().max(1);
        (self.limit() as i64 - self.forced.load(Relaxed)).max(0) as usize / n
    }

    /// Somebody was refused: who keeps more than his share is asked to give back.
    fn refused(&self, slot: &Slot) {
        let now = now();
        slot.refused.store(now, Relaxed);
        if now - slot.asking.load(Relaxed) < ASK {
            return;
        }
        slot.asking.store(now, Relaxed);
        let share = self.share(now) as i64;
        if slot.kept.load(Relaxed) >= share {
            return;
        }
        for other in self.slots() {
            let pid = other.pid.load(Relaxed);
            if pid == 0 || std::ptr::eq(other, slot) || other.kept.load(Relaxed) <= share {
                continue;
            }
            other.asked.store(true, Relaxed);
            // SAFETY: the signal is only sent if the process still has its place; it may come without need, as this
            // one often does. -1 is no process number: the place is found by the id.
            unsafe { pg_sys::SendProcSignal(pid, pg_sys::ProcSignalReason::PROCSIG_CATCHUP_INTERRUPT, -1) };
        }
    }

    /// Computes the limit, if that was long ago or the setting is another one.
    pub fn refresh(&self, now: i64) {
        let setting = guc::memory_budget();
        let last = self.refreshed.load(Relaxed);
        if (now - last).abs() < REFRESH && self.setting.load(Relaxed) == setting && now != 0 {
            return;
        }
        if self.refreshed.compare_exchange(last, now, Relaxed, Relaxed).is_err() {
            return;
        }
        let machine =
            memory::machine::read().unwrap_or(Machine { total: u64::MAX, available: u64::MAX, limited: false });
        // Others need memory too: PostgreSQL's buffers, its processes, the page cache through which fragments are read.
        let most = machine.total / 2;
        let free = (self.used().max(0) as u64).saturating_add(machine.available / 2);
        self.machine_total.store(machine.total, Relaxed);
        self.machine_available.store(machine.available, Relaxed);
        self.machine_limited.store(machine.limited, Relaxed);
        self.setting.store(setting, Relaxed);
        self.limit.store(setting.min(most).min(free), Relaxed);
        if setting <= most {
            self.warned.store(0, Relaxed);
        } else if self.warned.swap(setting, Relaxed) != setting {
            let whose = if machine.limited { "this control group" } else { "this machine" };
            ereport!(
                LOG,
                PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
                format!("strata.memory_budget is more than half of the memory of {whose}"),
                format!("{} of {} are used; {} are set.", text(most), text(machine.total), text(setting))
            );
        }
    }
}

/// Rows that are being made a fragment take at least this much, and at most so much.
const LEAST_ROWS: usize = 32 << 20;
const MOST_ROWS: usize = 384 << 20;
/// What sorting takes for each row.
const SORTED_ROW: usize = 32;

/// The memory of the rows of a fragment that is being made. How many rows a fragment gets is for good, so what happens to be kept at the moment
/// must not decide it: the rows are forced, and may take half of the limit, less what all processes need for other things.
#[derive(Default)]
pub struct Building {
    charge: Charge,
    most: usize,
}

impl Building {
    /// The rows take so much memory now. True: no more of them fit.
    pub fn is_full(&mut self, bytes: usize, rows: usize) -> bool {
        let bytes = bytes + rows * SORTED_ROW;
        if bytes >= self.charge.bytes() + (1 << 20) {
            enter();
            let others =
                shared().map_or(0, |s| s.forced.load(Relaxed).max(0) as usize).saturating_sub(self.charge.bytes());
            let limit = shared().map_or(guc::memory_budget(), Shared::limit) as usize;
            self.most = (limit / 2).min(limit.saturating_sub(others)).clamp(LEAST_ROWS, MOST_ROWS);
            self.charge.set(bytes);
        }
        bytes >= self.most.max(LEAST_ROWS)
    }
}

/// Bytes for people.
pub fn text(bytes: u64) -> String {
    match bytes {
        0..10_240 => format!("{bytes} bytes"),
        10_240..10_485_760 => format!("{} kB", bytes.div_ceil(1024)),
        10_485_760..10_737_418_240 => format!("{} MB", bytes.div_ceil(1 << 20)),
        _ => format!("{} GB", bytes.div_ceil(1 << 30)),
    }
}

/// The server's numbers, for the view.
pub struct Totals {
    /// `strata.memory_budget`, and what of it may be used.
    pub setting: u64,
    /// What of it may be used.
    pub limit: u64,
    /// What is kept and what is forced.
    pub kept: i64,
    /// What is needed at the moment.
    pub forced: i64,
    /// Processes that take part.
    pub processes: i64,
    /// The machine's memory, and what of it is available; whether a control group limits it.
    pub total: u64,
    /// What is available.
    pub available: u64,
    /// Whether a control group limits it.
    pub limited: bool,
}

/// See [`Totals`]; None without shared memory.
pub fn totals() -> Option<Totals> {
    let shared = shared()?;
    shared.refresh(now());
    Some(Totals {
        setting: shared.setting.load(Relaxed),
        limit: shared.limit(),
        kept: shared.kept.load(Relaxed),
        forced: shared.forced.load(Relaxed),
        processes: shared.slots().iter().filter(|s| s.pid.load(Relaxed) != 0).count() as i64,
        total: shared.machine_total.load(Relaxed),
        available: shared.machine_available.load(Relaxed),
        limited: shared.machine_limited.load(Relaxed),
    })
}

/// One process, for the view.
pub struct Process {
    /// Its id and its database.
    pub pid: i32,
    /// Its database.
    pub database: pg_sys::Oid,
    /// Bytes that it keeps, that it needs at the moment, and the most of both together.
    pub bytes: [i64; 3],
    /// Scans by access.
    pub scans: [i64; 3],
    /// Pieces read, their bytes, uses of what was kept, bytes pushed out, bytes given back.
    pub counters: [i64; 5],
    /// The last choice, if there was one: table, access, reason, data set, fragments, room, time.
    pub last: Option<(pg_sys::Oid, u32, u32, i64, i64, i64, i64)>,
}

/// All processes that take part.
pub fn list() -> Vec<Process> {
    slot().inspect(|s| s.publish());
    let Some(shared) = shared() else { return Vec::new() };
    let of = |s: &Slot| {
        let n = |a: &AtomicU64| a.load(Relaxed) as i64;
        let l = &s.last;
        Process {
            pid: s.pid.load(Relaxed),
            database: pg_sys::Oid::from(s.database.load(Relaxed)),
            bytes: [s.kept.load(Relaxed), s.forced.load(Relaxed), s.peak.load(Relaxed)],
            scans: [n(&s.scans[0]), n(&s.scans[1]), n(&s.scans[2])],
            counters: [n(&s.reads), n(&s.read_bytes), n(&s.hits), n(&s.evicted), n(&s.given_back)],
            last: (l.at.load(Relaxed) != 0).then(|| {
                let (relid, access, why) = (l.relid.load(Relaxed), l.access.load(Relaxed), l.why.load(Relaxed));
                let at = l.at.load(Relaxed);
                (pg_sys::Oid::from(relid), access, why, n(&l.data_set), n(&l.fragments), n(&l.room), at)
            }),
        }
    };
    shared.slots().iter().filter(|s| s.pid.load(Relaxed) != 0).map(of).collect()
}
