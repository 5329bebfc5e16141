//! What a process keeps of the fragments that it has read, within a budget.
//!
//! Fragments are read through the page cache of the operating system, which is shared by all processes and needs no
//! budget. What a process keeps for itself is what reading leaves behind: *chunks* whose checksums were verified and
//! whose encodings were taken apart, *decoded columns*, *filters*. Everything that is kept is an entry here, has a size, and was
//! taken from the [`Budget`] before it was kept; what cannot be taken is not kept, and read again the next time. So a
//! budget holds whatever is read, and no reading ever fails for want of memory.
//!
//! How much is kept depends on the [`Access`] that a scan was given:
//!
//! ```text
//!            whole fragment    chunk read by a scan         chunk, column, filter read for one row
//!   loaded   read and kept     kept                         kept
//!   paged    no                kept where there is room     kept where there is room
//!   direct   no                not kept                     at hand: the last HAND bytes of a process
//! ```
//!
//! **Who makes room.** A process pushes out its own entries only, those not used for longest first. A scan must not push out what
//! it will want again: a scan in order over more than there is room for would find nothing of itself on its next
//! run. So a *paged* scan leaves alone what the last [`REMEMBERED`] paged statements have used, itself included: what has found
//! room stays and serves the next run, the rest is read again; what nobody wants any more goes. A *loaded* one leaves alone what
//! the current statement has used.
//!
//! **At hand.** Looking up a row needs the same few chunks several times within moments. They are kept in any case, up to [`HAND`]
//! bytes a process; this, and what is being decoded ([`Charge`]), is *forced*: counted against the budget, but never refused.
//!
//! **Packed or decoded.** Look-ups read numbers and codes where they lie in a chunk (`codec::packed`), and need nothing else. Text that is slow to read by itself
//! is decoded when many values of a chunk were asked for, if there is room to spare, and takes the place of the chunk.
//!
//! Why chunks before columns: see `docs/design/access-modes.md`, which has what was measured.

pub mod machine;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use crate::cache::Cache;

/// What look-ups may keep at hand in any case, in bytes.
pub const HAND: usize = 4 << 20;
/// A paged scan pushes out only what so many paged statements, itself included, have not used.
pub const REMEMBERED: usize = 4;

/// How a scan reads, and what it keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// All fragments fit into memory: they are read whole and stay.
    Loaded,
    /// What is asked for is read, and kept where there is room.
    Paged,
    /// What is asked for is read, and not kept.
    #[default]
    Direct,
}

/// Where memory is taken from.
pub trait Budget {
    /// Takes memory that will be kept. False: there is no room.
    fn take(&self, bytes: usize) -> bool;
    /// Gives back what was taken.
    fn give(&self, bytes: usize);
    /// Takes (or gives back, below zero) memory that is needed now.
    fn force(&self, bytes: isize);
}

/// A budget of one process for itself.
struct Alone {
    limit: usize,
    taken: Cell<usize>,
}

impl Budget for Alone {
    fn take(&self, bytes: usize) -> bool {
        let all = self.taken.get().saturating_add(bytes);
        if all <= self.limit {
            self.taken.set(all);
        }
        all <= self.limit
    }

    fn give(&self, bytes: usize) {
        self.taken.set(self.taken.get().saturating_sub(bytes));
    }

    fn force(&self, bytes: isize) {
        self.taken.set(self.taken.get().saturating_add_signed(bytes));
    }
}

/// What was read and kept since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Pieces (chunks, filters) that were read from files.
    pub reads: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// Times that something kept was used instead.
    pub hits: u64,
    /// Bytes that were pushed out to make room.
    pub evicted_bytes: u64,
}

impl Counters {
    /// What was counted since `before`.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            reads: self.reads - before.reads,
            read_bytes: self.read_bytes - before.read_bytes,
            hits: self.hits - before.hits,
            evicted_bytes: self.evicted_bytes - before.evicted_bytes,
        }
    }
}

thread_local! {
    static POOL: Pool = Pool::default();
}

struct Pool {
    budget: RefCell<Rc<dyn Budget>>,
    caches: RefCell<Vec<Weak<RefCell<Cache>>>>,
    /// Grows with each use of an entry.
    clock: Cell<u64>,
    /// The number of the current statement, and the clock when it began.
    statement: Cell<(u64, u64)>,
    /// The clock when the last paged statements began.
    paged: Cell<[u64; REMEMBERED]>,
    /// What entries take, apart from those at hand; those at hand.
    kept: Cell<usize>,
    hand: Cell<usize>,
    /// For this bar there was nothing to push out (see `make_room`), until the clock of the bar moves.
    exhausted: Cell<u64>,
    counters: Cell<Counters>,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            budget: RefCell::new(Rc::new(Alone { limit: 256 << 20, taken: Cell::new(0) })),
            caches: RefCell::default(),
            clock: Cell::new(1),
            statement: Cell::new((0, 0)),
            paged: Cell::default(),
            kept: Cell::new(0),
            hand: Cell::new(0),
            exhausted: Cell::new(u64::MAX),
            counters: Cell::default(),
        }
    }
}

/// From here on memory comes from this budget. What is kept is forgotten.
pub fn install(budget: Rc<dyn Budget>) {
    trim(0);
    POOL.with(|p| {
        let held = p.kept.get() + p.hand.get();
        debug_assert!(held == 0, "{held} bytes are kept that nobody has");
        *p.budget.borrow_mut() = budget;
    });
}

/// A statement begins; `paged` if it reads more than there is room for.
pub fn begin_statement(paged: bool) {
    POOL.with(|p| {
        let now = p.clock.get();
        p.statement.set((p.statement.get().0 + 1, now));
        if paged {
            let mut starts = p.paged.get();
            starts.rotate_right(1);
            starts[0] = now;
            p.paged.set(starts);
        }
    });
}

/// The number of the current statement.
pub(crate) fn statement() -> u64 {
    POOL.with(|p| p.statement.get().0)
}

/// The memory that entries take: those that are kept, and those at hand.
pub fn kept() -> (usize, usize) {
    POOL.with(|p| (p.kept.get(), p.hand.get()))
}

/// What this process has counted.
pub fn counters() -> Counters {
    POOL.with(|p| p.counters.get())
}

/// Pushes out entries, those not used for longest first, until at most `bytes` are kept; for 0, what is at hand as well.
pub fn trim(bytes: usize) {
    POOL.with(|p| {
        let kept = p.kept.get();
        if kept > bytes {
            p.evict(kept - bytes, u64::MAX, Taken::Kept);
        }
        if bytes == 0 {
            p.evict(p.hand.get(), u64::MAX, Taken::AtHand);
        }
    });
}

/// Memory that is in use for a moment: decoded columns of the block that is being read, rows that will be a fragment.
#[derive(Debug, Default)]
pub struct Charge(usize);

impl Charge {
    /// So many bytes.
    pub fn new(bytes: usize) -> Self {
        let mut charge = Self(0);
        charge.set(bytes);
        charge
    }

    /// So many bytes now.
    pub fn set(&mut self, bytes: usize) {
        force(bytes as isize - self.0 as isize);
        self.0 = bytes;
    }

    /// So many bytes more.
    pub fn add(&mut self, bytes: usize) {
        self.set(self.0 + bytes);
    }

    /// How many bytes.
    pub fn bytes(&self) -> usize {
        self.0
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.set(0);
    }
}

fn force(bytes: isize) {
    // Without the thread's storage the process is at its end, and so is its part in the budget.
    let _ = POOL.try_with(|p| p.budget.borrow().force(bytes));
}

/// The clock, moved on: when an entry was used last.
#[inline]
pub(crate) fn tick() -> u64 {
    POOL.with(|p| {
        let now = p.clock.get() + 1;
        p.clock.set(now);
        now
    })
}

/// Counts a use of something kept.
#[inline]
pub(crate) fn count_hit() {
    POOL.with(|p| {
        let mut c = p.counters.get();
        c.hits += 1;
        p.counters.set(c);
    });
}

/// Counts a piece that was read from a file.
pub(crate) fn count_read(bytes: usize) {
    POOL.with(|p| {
        let mut c = p.counters.get();
        c.reads += 1;
        c.read_bytes += bytes as u64;
        p.counters.set(c);
    });
}

/// A cache takes part.
pub(crate) fn register(cache: &Rc<RefCell<Cache>>) {
    POOL.with(|p| {
        let mut caches = p.caches.borrow_mut();
        if caches.len() == caches.capacity() {
            caches.retain(|c| c.strong_count() > 0);
        }
        caches.push(Rc::downgrade(cache));
    });
}

/// What was taken for an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    Kept,
    AtHand,
}

/// Memory for an entry that a scan has read. No cache may be borrowed.
pub(crate) fn take(bytes: usize, access: Access) -> Option<Taken> {
    POOL.with(|p| match access {
        Access::Direct => None,
        Access::Paged | Access::Loaded => p.make_room(bytes, access).then_some(Taken::Kept),
    })
}

/// Memory for an entry that spares time, if there is room to spare. No cache may be borrowed.
pub(crate) fn take_spare(bytes: usize) -> Option<Taken> {
    POOL.with(|p| {
        let found = p.budget().take(bytes);
        if found {
            p.kept.set(p.kept.get() + bytes);
        }
        found.then_some(Taken::Kept)
    })
}

/// Memory for an entry that is needed for one row. No cache may be borrowed.
pub(crate) fn take_for_row(bytes: usize, access: Access) -> Option<Taken> {
    take(bytes, access).or_else(|| POOL.with(|p| p.at_hand(bytes).then_some(Taken::AtHand)))
}

/// Gives back what was taken.
pub(crate) fn give(bytes: usize, taken: Taken) {
    let _ = POOL.try_with(|p| match taken {
        Taken::Kept => {
            p.kept.set(p.kept.get().saturating_sub(bytes));
            p.budget.borrow().give(bytes);
        }
        Taken::AtHand => {
            p.hand.set(p.hand.get().saturating_sub(bytes));
            p.budget.borrow().force(-(bytes as isize));
        }
    });
}

impl Pool {
    fn budget(&self) -> Rc<dyn Budget> {
        Rc::clone(&self.budget.borrow())
    }

    fn make_room(&self, bytes: usize, access: Access) -> bool {
        // The budget may have this process trimmed, so nothing is borrowed while it is asked.
        let budget = self.budget();
        let mut found = budget.take(bytes);
        if !found {
            let bar = match access {
                Access::Paged => self.paged.get()[REMEMBERED - 1],
                Access::Loaded | Access::Direct => self.statement.get().1,
            };
            if self.exhausted.get() == bar {
                return false;
            }
            // More than is needed now: looking for victims goes over all entries.
            let freed = self.evict(bytes + self.kept.get() / 8, bar, Taken::Kept);
            if freed < bytes {
                self.exhausted.set(bar);
            }
            found = freed > 0 && budget.take(bytes);
        }
        if found {
            self.kept.set(self.kept.get() + bytes);
        }
        found
    }

    fn at_hand(&self, bytes: usize) -> bool {
        if bytes > HAND {
            return false;
        }
        if self.hand.get() + bytes > HAND {
            self.evict(bytes + HAND / 8, u64::MAX, Taken::AtHand);
        }
        self.hand.set(self.hand.get() + bytes);
        self.budget().force(bytes as isize);
        true
    }

    /// Pushes out at least `bytes` of the entries of a kind, if there are so many that were last used before `bar`: first what
    /// was kept to spare, then what was not used for longest.
    fn evict(&self, bytes: usize, bar: u64, taken: Taken) -> usize {
        let caches: Vec<Rc<RefCell<Cache>>> = self.caches.borrow().iter().filter_map(Weak::upgrade).collect();
        let mut victims = Vec::new();
        for (number, cache) in caches.iter().enumerate() {
            if let Ok(cache) = cache.try_borrow() {
                let old = cache.entries(taken).filter(|(needed, used, _)| !needed || *used < bar);
                victims.extend(old.map(|(needed, used, key)| ((needed, used), number, key)));
            }
        }
        victims.sort_unstable_by_key(|v| v.0);
        let mut freed = 0;
        for (_, number, key) in victims {
            if freed >= bytes {
                break;
            }
            // What is removed is dropped when the cache is no longer borrowed: that gives the memory back.
            let removed = caches[number].try_borrow_mut().ok().and_then(|mut c| c.remove(key));
            freed += removed.map_or(0, |e| e.memory());
        }
        let mut c = self.counters.get();
        c.evicted_bytes += freed as u64;
        self.counters.set(c);
        freed
    }
}
