//! The access of a scan: loaded, paged or direct, and why.
//!
//! The *data set* is what the statement reads: the fragments of all warm tables and partitions of which its plan has a scan,
//! those not counted that PostgreSQL has pruned when the executor started. A table counts once, however often it is scanned.
//! Whether the data set fits is decided for the statement, not for each table by itself.
//!
//! | | a scan of blocks | rows by key or by TID |
//! |---|---|---|
//! | the data set fits what the process may keep | loaded | loaded |
//! | it does not | paged | direct |
//! | `strata.memory_budget` is 0 | direct | direct |
//!
//! What a process may keep is what others leave of the limit, itself included, or its fair share if that is more: then others
//! are asked to give back. `strata.access_mode` overrides the choice, never the budget. Reads that will not be repeated keep
//! nothing: index builds, ANALYZE, moves and consolidation, all that background workers do, and the blocks that a parallel worker takes,
//! whose memory ends with it.

use super::shared::{self, text};
use crate::am::fragments::TableFragments;
use crate::guc;
use pgrx::PgMemoryContexts;
use pgrx::pg_sys;
use pgrx::pg_sys::Oid;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering::Relaxed;
use strata_fragment::memory::{self, Access};

/// How rows are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Blocks in order.
    Blocks,
    /// Single rows.
    Rows,
}

/// Why an access was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The data set fits.
    Fits,
    /// It does not.
    Large,
    /// It does not, because the machine has no memory left.
    Short,
    /// It does not, because others keep too much.
    Others,
    /// There is no budget.
    Off,
    /// `strata.access_mode` says so.
    Forced,
    /// It is not read again.
    Once,
}

/// What a statement reads.
#[derive(Clone, Copy, Debug, Default)]
pub struct DataSet {
    /// One of its tables.
    pub relid: Oid,
    /// Bytes of its fragments.
    pub bytes: u64,
    /// Their number.
    pub fragments: u64,
}

/// What was chosen.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// The access.
    pub access: Access,
    /// Why.
    pub why: Why,
    /// For what.
    pub data: DataSet,
    /// What the process may keep.
    pub room: u64,
    /// Fragments are read whole at their first use.
    pub at_once: bool,
}

/// What is read once and not kept.
pub const ONCE: Choice = Choice {
    access: Access::Direct,
    why: Why::Once,
    data: DataSet { relid: Oid::INVALID, bytes: 0, fragments: 0 },
    room: 0,
    at_once: false,
};

#[derive(Default)]
struct Statement {
    tables: HashSet<Oid>,
    data: DataSet,
    /// Chosen for blocks, for rows.
    chosen: [Option<Choice>; 2],
}

thread_local! {
    /// By the address of the executor's state.
    static STATEMENTS: RefCell<HashMap<usize, Statement>> = RefCell::default();
    /// When the client's statement began in which a table was last scanned outside of a plan of ours.
    static CLIENT_STATEMENT: Cell<i64> = const { Cell::new(0) };
    /// What was chosen last for rows of a table: for which statement, table and size.
    static LAST_ROWS: Cell<Option<(Asked, Choice)>> = const { Cell::new(None) };
}

/// When the client's statement began, a table, its size.
type Asked = (i64, Oid, u64);

/// Forgets a statement when its memory goes.
struct Forget(usize);

impl Drop for Forget {
    fn drop(&mut self) {
        let _ = STATEMENTS.try_with(|s| s.borrow_mut().remove(&self.0));
    }
}

/// A scan of a table is part of a statement.
///
/// # Safety
/// `estate` is the executor's state of it.
pub unsafe fn register(estate: *mut pg_sys::EState, relid: Oid, table: &TableFragments) {
    let new = STATEMENTS.with_borrow_mut(|s| {
        let new = !s.contains_key(&(estate as usize));
        let statement = s.entry(estate as usize).or_default();
        if statement.tables.insert(relid) {
            statement.data.relid = relid;
            statement.data.bytes += table.bytes();
            statement.data.fragments += table.list.len() as u64;
        }
        new
    });
    if new {
        // SAFETY: the caller's promise; the context is deleted with the state.
        unsafe { PgMemoryContexts::For((*estate).es_query_cxt).leak_and_drop_on_delete(Forget(estate as usize)) };
    }
}

/// What would be chosen for a scan in a statement whose scans are registered, or was.
pub fn known(estate: *mut pg_sys::EState, pattern: Pattern) -> Choice {
    let (known, data) = STATEMENTS.with_borrow(|s| {
        let statement = s.get(&(estate as usize));
        statement.map_or((None, DataSet::default()), |s| (s.chosen[pattern as usize], s.data))
    });
    known.unwrap_or_else(|| choose(data, pattern))
}

/// The access of a scan in a statement whose scans are registered.
pub fn of_statement(estate: *mut pg_sys::EState, pattern: Pattern) -> Choice {
    let at = pattern as usize;
    let (known, data, begun) = STATEMENTS.with_borrow(|s| {
        s.get(&(estate as usize))
            .map_or((None, DataSet::default(), false), |s| (s.chosen[at], s.data, s.chosen.iter().any(Option::is_some)))
    });
    known.unwrap_or_else(|| {
        let choice = choose(data, pattern);
        if !begun || choice.access == Access::Paged {
            memory::begin_statement(choice.access == Access::Paged);
        }
        choice.note();
        STATEMENTS.with_borrow_mut(|s| {
            if let Some(statement) = s.get_mut(&(estate as usize)) {
                statement.chosen[at] = Some(choice);
            }
        });
        choice
    })
}

/// The access of a scan of one table outside of a plan of ours.
pub fn of_table(relid: Oid, table: &TableFragments, pattern: Pattern) -> Choice {
    // SAFETY: reads a variable.
    let statement = unsafe { pg_sys::GetCurrentStatementStartTimestamp() };
    if pattern == Pattern::Rows {
        // Asked for each row: once a statement and table will do.
        let key = (statement, relid, table.bytes());
        let known = LAST_ROWS.get().filter(|(of, _)| *of == key).map(|(_, choice)| choice);
        return known.unwrap_or_else(|| {
            let choice = choose(DataSet { relid, bytes: key.2, fragments: table.list.len() as u64 }, pattern);
            LAST_ROWS.set(Some((key, choice)));
            choice
        });
    }
    let choice = choose(DataSet { relid, bytes: table.bytes(), fragments: table.list.len() as u64 }, pattern);
    if CLIENT_STATEMENT.replace(statement) != statement {
        memory::begin_statement(choice.access == Access::Paged);
        choice.note();
    }
    choice
}

fn choose(data: DataSet, pattern: Pattern) -> Choice {
    shared::enter();
    shared::give_back_if_asked();
    // SAFETY: plain variables of the process. Parallel workers choose as their leader does.
    if unsafe { !pg_sys::MyBgworkerEntry.is_null() && pg_sys::ParallelWorkerNumber < 0 } {
        return ONCE;
    }
    let large = if pattern == Pattern::Rows { Access::Direct } else { Access::Paged };
    let (limit, room, share, short) = match shared::shared() {
        Some(s) => {
            let now = shared::now();
            s.refresh(now);
            let room = s.room();
            // Counting the processes is needed only where room is short.
            let share = if data.bytes > room { s.share(now) as u64 } else { 0 };
            (s.limit(), room, share, s.is_short())
        }
        None => {
            let own = guc::memory_budget() / 16;
            (own, own, own, false)
        }
    };
    let room = room.max(share.min(limit));
    let (access, why) = if guc::memory_budget() == 0 {
        (Access::Direct, Why::Off)
    } else if data.bytes <= room {
        (Access::Loaded, Why::Fits)
    } else if short && data.bytes <= guc::memory_budget() {
        (large, Why::Short)
    } else if data.bytes <= limit {
        (large, Why::Others)
    } else {
        (large, Why::Large)
    };
    let (access, why, at_once) = match guc::ACCESS_MODE.get() {
        _ if why == Why::Off => (access, why, false),
        guc::AccessMode::Auto => (access, why, false),
        guc::AccessMode::Loaded => (Access::Loaded, Why::Forced, true),
        guc::AccessMode::Paged => (Access::Paged, Why::Forced, false),
        guc::AccessMode::Direct => (Access::Direct, Why::Forced, false),
    };
    Choice { access, why, data, room, at_once }
}

impl Choice {
    /// Leaves it in the slot of this process, for the view.
    fn note(&self) {
        let Some(slot) = shared::slot() else { return };
        slot.scans[self.access as usize].fetch_add(1, Relaxed);
        let last = &slot.last;
        last.relid.store(self.data.relid.to_u32(), Relaxed);
        last.access.store(self.access as u32, Relaxed);
        last.why.store(self.why as u32, Relaxed);
        last.data_set.store(self.data.bytes, Relaxed);
        last.fragments.store(self.data.fragments, Relaxed);
        last.room.store(self.room, Relaxed);
        last.at.store(shared::now(), Relaxed);
        slot.publish();
    }

    /// The reason, in words.
    pub fn reason(&self) -> String {
        reason(self.why as u32, self.data.bytes, self.room)
    }
}

/// The name of an access by its number.
pub fn name(access: u32) -> &'static str {
    match access {
        0 => "loaded",
        1 => "paged",
        _ => "direct",
    }
}

/// A reason by its number, in words.
pub fn reason(why: u32, data_set: u64, room: u64) -> String {
    let (data, room) = (text(data_set), text(room));
    match why {
        w if w == Why::Fits as u32 => format!("{data} of fragments fit into {room}"),
        w if w == Why::Large as u32 => format!("{data} of fragments do not fit into {room}"),
        w if w == Why::Short as u32 => {
            format!(
                "{data} of fragments do not fit into {room}, which is what the memory that the machine has left allows"
            )
        }
        w if w == Why::Others as u32 => {
            format!("{data} of fragments do not fit into {room}, which is what other processes leave")
        }
        w if w == Why::Off as u32 => "strata.memory_budget is 0".into(),
        w if w == Why::Forced as u32 => "strata.access_mode says so".into(),
        _ => "read once".into(),
    }
}
