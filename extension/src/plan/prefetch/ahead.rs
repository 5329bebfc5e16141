//! What lies ahead of a btree scan: leaves from the level above, and the table blocks that their entries point to.
//!
//! ```text
//!   level above    [ … │ ● │ ● │ ● │ ● │ ● │ ● │ … ] ──► its neighbour, prefetched when this page is read
//!                        │   │   │   │   │   │
//!   leaves               ▼   ▼   ▼   ▼   ▼   ▼
//!                      scan read read asked asked known
//!                       │    └─┬──┘
//!   table              ▼      ▼
//!                   blocks of their entries: asked for up to the distance
//! ```
//!
//! A leaf is asked for some steps before it is read, and read (copied) only once the blocks ahead run short, so reading it seldom
//! waits. Entries that the scan's keys exclude are left out; where a key says that the scan ends, nothing is read behind. All of it
//! may be wrong a moment later, when a page is split, emptied, deleted or used again: then blocks are asked for that nobody
//! wants, or are not asked for. The scan itself follows the links between leaves, as always.

use super::{Counters, SEQUENTIAL};
use crate::pg::btree::{self, PageCopy, Scan, Verdict};
use crate::pg::tid;
use pgrx::pg_sys;
use pgrx::pg_sys::BlockNumber;
use std::collections::VecDeque;

/// Leaves that are read ahead of the scan, at most.
const READ_LEAVES: usize = 16;
/// Steps to leaves that are on no list, after which the place in the level above is looked up again.
const LOST: u32 = 8;
/// Places in the set of blocks asked for lately; a power of two.
const SEEN: usize = 1024;
/// Blocks one after the other, from which on the operating system reads ahead by itself.
const STREAK: u32 = 4;

/// A leaf that was read ahead.
struct Leaf {
    page: BlockNumber,
    /// The table blocks of its entries in the order of the scan, each run of the same block once.
    blocks: Vec<BlockNumber>,
    /// So many of them were asked for.
    asked: usize,
}

/// The place in the level above the leaves.
#[derive(Default)]
struct Above {
    /// The leaves behind those that were read, from the one nearest to the scan on.
    leaves: VecDeque<BlockNumber>,
    /// So many of them were asked for.
    asked: usize,
    /// The page of the level above with the links behind those.
    next: Option<BlockNumber>,
}

/// What lies ahead of a scan.
pub struct Ahead {
    forward: bool,
    /// The rest of the leaf that the scan is on: index of the entry in the scan's list, its block.
    current: Vec<(i32, BlockNumber)>,
    /// So many of them are behind the scan, and so many were asked for.
    passed: usize,
    asked: usize,
    read: VecDeque<Leaf>,
    above: Option<Above>,
    /// Steps to leaves that were on no list, in a row.
    lost: u32,
    page: Box<PageCopy>,
    seen: Box<[BlockNumber; SEEN]>,
    last: BlockNumber,
    streak: u32,
    /// The size of the table when it was last looked at.
    table_blocks: BlockNumber,
    visibility: pg_sys::Buffer,
    context: pg_sys::MemoryContext,
}

impl Ahead {
    /// For a scan in one direction. `context` is reset now and then.
    pub fn new(forward: bool, context: pg_sys::MemoryContext) -> Self {
        Self {
            forward,
            current: Vec::new(),
            passed: 0,
            asked: 0,
            read: VecDeque::new(),
            above: None,
            lost: 0,
            page: PageCopy::new(),
            seen: Box::new([pg_sys::InvalidBlockNumber; SEEN]),
            last: pg_sys::InvalidBlockNumber,
            streak: 0,
            table_blocks: 0,
            visibility: 0,
            context,
        }
    }

    /// Blocks (runs of them) that were asked for and not come to yet.
    pub fn outstanding(&self) -> usize {
        self.asked.saturating_sub(self.passed) + self.read.iter().map(|l| l.asked).sum::<usize>()
    }

    /// The scan has come to a leaf: takes its entries, and drops what is behind. `step`: from the neighbour.
    ///
    /// # Safety
    /// `desc` is a btree scan that is at an entry.
    pub unsafe fn arrive(&mut self, desc: pg_sys::IndexScanDesc, step: bool) {
        // SAFETY: the caller's promise.
        let scan = unsafe { Scan::of(desc) };
        let position = &scan.position;
        let in_above = |a: &Above| a.leaves.iter().position(|l| *l == position.page);
        let mut asked = 0;
        if let Some(i) = self.read.iter().position(|l| l.page == position.page) {
            asked = self.read.drain(..=i).next_back().map_or(0, |l| l.asked);
            self.lost = 0;
        } else if let Some((i, above)) = self.above.as_mut().and_then(|a| in_above(a).map(|i| (i, a))) {
            above.leaves.drain(..=i);
            above.asked = above.asked.saturating_sub(i + 1);
            self.read.clear();
            self.lost = 0;
        } else {
            // A leaf that was split off, or a step of another process in between.
            self.lost += 1;
            if !step || self.lost > LOST {
                self.read.clear();
                self.above = None;
                self.lost = 0;
            }
        }
        self.current.clear();
        let (first, last, at) = (position.first, position.last, position.index);
        let mut add = |i: i32| {
            if let Some(item) = scan.item(i) {
                let block = tid::block(&item.tid);
                if self.current.last().is_none_or(|c| c.1 != block) {
                    self.current.push((i, block));
                }
            }
        };
        if self.forward {
            (at.max(first)..=last).for_each(&mut add)
        } else {
            (first..=at.min(last)).rev().for_each(&mut add)
        }
        self.passed = 0;
        // SAFETY: the caller's promise.
        unsafe {
            if (*desc).xs_want_itup {
                let mut current = std::mem::take(&mut self.current);
                current.retain(|(_, block)| self.must_fetch(desc, *block));
                self.current = current;
                self.release();
            }
        }
        self.asked = asked.min(self.current.len());
    }

    /// The scan has come to an entry of the current leaf; gives how many blocks it has come to.
    pub fn pass(&mut self, index: i32) -> usize {
        let before = self.passed;
        while let Some((i, _)) = self.current.get(self.passed)
            && if self.forward { *i <= index } else { *i >= index }
        {
            self.passed += 1;
        }
        self.asked = self.asked.max(self.passed);
        self.passed - before
    }

    /// The entry at which there is something to do next, beyond the range of indexes if it is on the next leaf.
    pub fn wake(&self) -> i32 {
        let beyond = if self.forward { i32::MAX } else { i32::MIN };
        self.current.get(self.passed).map_or(beyond, |c| c.0)
    }

    /// Asks for table blocks until `distance` of them are outstanding, and for the next `leaves` leaves if `beyond` the current one.
    ///
    /// # Safety
    /// `desc` is the scan, at an entry of the leaf it arrived at last.
    pub unsafe fn ask(
        &mut self,
        desc: pg_sys::IndexScanDesc,
        distance: usize,
        leaves: usize,
        beyond: bool,
        counters: &mut Counters,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            // Another participant of a parallel scan may take the next leaf; an index-only scan may need no rows.
            let reads = beyond
                && (*desc).parallel_scan.is_null()
                && !((*desc).xs_want_itup && self.current.is_empty() && self.read.is_empty());
            if beyond {
                self.ask_for_leaves(desc, leaves, counters);
            }
            let mut outstanding = self.outstanding();
            while outstanding < distance {
                if let Some((_, block)) = self.current.get(self.asked) {
                    let block = *block;
                    self.asked += 1;
                    self.ask_for_block(desc, block, counters);
                    outstanding += 1;
                } else if let Some(i) = self.read.iter().position(|l| l.asked < l.blocks.len()) {
                    let block = self.read[i].blocks[self.read[i].asked];
                    self.read[i].asked += 1;
                    self.ask_for_block(desc, block, counters);
                    outstanding += 1;
                } else if !reads || self.read.len() >= READ_LEAVES || !self.read_leaf(desc) {
                    break;
                }
            }
            self.release();
        }
    }

    /// Gives back the pin of the visibility map.
    fn release(&mut self) {
        if self.visibility != 0 {
            // SAFETY: pinned by `must_fetch`.
            unsafe { pg_sys::ReleaseBuffer(self.visibility) };
            self.visibility = 0;
        }
    }

    /// Keeps `leaves` leaves asked for.
    unsafe fn ask_for_leaves(&mut self, desc: pg_sys::IndexScanDesc, leaves: usize, counters: &mut Counters) {
        // SAFETY: as for `ask`.
        unsafe {
            let scan = Scan::of(desc);
            let index = (*desc).indexRelation;
            if self.above.is_none() {
                let mut above = Above::default();
                let old = pg_sys::MemoryContextSwitchTo(self.context);
                let link = btree::link_to(index, (*desc).heapRelation, scan.position.page, &mut self.page);
                pg_sys::MemoryContextSwitchTo(old);
                pg_sys::MemoryContextReset(self.context);
                if let Some((block, offset)) = link {
                    self.read_links(desc, scan, &mut above, block, Some(offset));
                }
                self.above = Some(above);
            }
            let Some(mut above) = self.above.take() else { return };
            while above.leaves.len() < leaves
                && let Some(block) = above.next.take()
            {
                self.read_links(desc, scan, &mut above, block, None);
            }
            while above.asked < leaves.min(above.leaves.len()) {
                let result = pg_sys::PrefetchBuffer(index, pg_sys::ForkNumber::MAIN_FORKNUM, above.leaves[above.asked]);
                counters.leaves += u64::from(result.initiated_io);
                above.asked += 1;
            }
            self.above = Some(above);
        }
    }

    /// Takes the links on a page of the level above: those behind `from`, or all.
    unsafe fn read_links(
        &mut self,
        desc: pg_sys::IndexScanDesc,
        scan: &Scan,
        above: &mut Above,
        block: BlockNumber,
        from: Option<u16>,
    ) {
        // SAFETY: as for `ask`.
        unsafe {
            let index = (*desc).indexRelation;
            let descriptor = (*index).rd_att;
            let columns = (*descriptor).natts as u16;
            if !self.page.read(index, block) || self.page.is_leaf() || self.page.level() != 1 {
                return;
            }
            let offsets = self.page.offsets();
            let (first, last) = (*offsets.start(), *offsets.end());
            // Where the page has changed since it was searched, the leaf itself is looked for.
            let here = from.map(|from| {
                let leads = |o: &u16| self.page.entry(*o, columns).is_some_and(|e| e.link() == scan.position.page);
                if leads(&from) { from } else { offsets.clone().find(leads).unwrap_or(from) }
            });
            let wanted: Vec<u16> = match (here, self.forward) {
                (None, true) => (first..=last).collect(),
                (None, false) => (first..=last).rev().collect(),
                (Some(here), true) => (here.max(first - 1) + 1..=last).collect(),
                (Some(here), false) => (first..here.min(last + 1)).rev().collect(),
            };
            above.next = self.page.neighbour(self.forward);
            let old = pg_sys::MemoryContextSwitchTo(self.context);
            for offset in wanted {
                let Some(entry) = self.page.entry(offset, columns) else { continue };
                // A link has the least key of its leaf, so one that is past the end has no wanted leaf behind it going forward,
                // and is the last one going backward.
                let past = scan.arrays == 0 && scan.verdict(&entry, descriptor, self.forward) == Verdict::Past;
                if !past || !self.forward {
                    above.leaves.push_back(entry.link());
                }
                if past {
                    above.next = None;
                    break;
                }
            }
            pg_sys::MemoryContextSwitchTo(old);
            pg_sys::MemoryContextReset(self.context);
            if let Some(next) = above.next {
                pg_sys::PrefetchBuffer(index, pg_sys::ForkNumber::MAIN_FORKNUM, next);
            }
        }
    }

    /// Reads the next leaf. False if there is none.
    unsafe fn read_leaf(&mut self, desc: pg_sys::IndexScanDesc) -> bool {
        // SAFETY: as for `ask`.
        unsafe {
            let Some(above) = &mut self.above else { return false };
            let Some(block) = above.leaves.pop_front() else { return false };
            above.asked = above.asked.saturating_sub(1);
            let (scan, index) = (Scan::of(desc), (*desc).indexRelation);
            let descriptor = (*index).rd_att;
            let columns = (*descriptor).natts as u16;
            let mut leaf = Leaf { page: block, blocks: Vec::new(), asked: 0 };
            if self.page.read(index, block) && self.page.is_leaf() {
                let old = pg_sys::MemoryContextSwitchTo(self.context);
                let forward = self.forward;
                let offsets = self.page.offsets();
                let order: Vec<u16> = if forward { offsets.clone().collect() } else { offsets.clone().rev().collect() };
                let verdict = |o: u16| self.page.entry(o, columns).map(|e| scan.verdict(&e, descriptor, forward));
                let ends = [order.first(), order.last()].map(|o| o.and_then(|o| verdict(*o)));
                let all = scan.is_one_range() && ends == [Some(Verdict::Match); 2];
                let mut past = false;
                for offset in order {
                    let Some(entry) = self.page.entry(offset, columns) else { continue };
                    match if all { Verdict::Match } else { scan.verdict(&entry, descriptor, forward) } {
                        Verdict::Match => entry.blocks(forward, |b| {
                            if leaf.blocks.last() != Some(&b) {
                                leaf.blocks.push(b);
                            }
                        }),
                        Verdict::Other => {}
                        Verdict::Past => {
                            past = true;
                            break;
                        }
                    }
                }
                pg_sys::MemoryContextSwitchTo(old);
                pg_sys::MemoryContextReset(self.context);
                if past && let Some(above) = &mut self.above {
                    above.leaves.clear();
                    above.asked = 0;
                    above.next = None;
                }
            }
            if (*desc).xs_want_itup {
                leaf.blocks.retain(|b| self.must_fetch(desc, *b));
            }
            self.read.push_back(leaf);
            true
        }
    }

    /// Whether an index-only scan has to look at a block of the table.
    unsafe fn must_fetch(&mut self, desc: pg_sys::IndexScanDesc, block: BlockNumber) -> bool {
        // SAFETY: as for `ask`, which gives the pin of the map back.
        block < tid::FIRST_VIRTUAL_BLOCK
            && unsafe {
                let status = pg_sys::visibilitymap_get_status((*desc).heapRelation, block, &mut self.visibility);
                u32::from(status) & pg_sys::VISIBILITYMAP_ALL_VISIBLE == 0
            }
    }

    /// Asks for a block of the table, unless that was done lately or the operating system does it.
    unsafe fn ask_for_block(&mut self, desc: pg_sys::IndexScanDesc, block: BlockNumber, counters: &mut Counters) {
        counters.looked_at += 1;
        // Rows in fragments are in no block.
        if block >= tid::FIRST_VIRTUAL_BLOCK || block == self.last {
            return;
        }
        self.streak = if block == self.last.wrapping_add(1) { self.streak + 1 } else { 0 };
        self.last = block;
        let place = (block.wrapping_mul(0x9e37_79b1) >> 22) as usize % SEEN;
        if self.streak >= STREAK || self.seen[place] == block {
            return;
        }
        self.seen[place] = block;
        // SAFETY: as for `ask`.
        unsafe {
            let table = (*desc).heapRelation;
            if block >= self.table_blocks {
                self.table_blocks = pg_sys::RelationGetNumberOfBlocksInFork(table, pg_sys::ForkNumber::MAIN_FORKNUM);
            }
            if block < self.table_blocks {
                let result = pg_sys::PrefetchBuffer(table, pg_sys::ForkNumber::MAIN_FORKNUM, block);
                counters.blocks += u64::from(result.initiated_io);
            }
        }
    }
}

/// Whether a scan has shown itself sequential by so many steps from leaf to leaf.
pub fn goes_beyond(steps: u32, desc: pg_sys::IndexScanDesc) -> bool {
    // SAFETY: an open scan of a btree.
    let arrays = unsafe { Scan::of(desc).arrays };
    steps >= SEQUENTIAL && arrays == 0
}
