//! What PostgreSQL's btree (nbtree) keeps for a scan, and what is on its pages.
//!
//! pgrx does not bind `nbtree.h`. Declared here is what a reader of the tree needs: the position of a scan ([`Scan`], in the
//! layout of each version), pages ([`PageCopy`]), and the search for a link in the level above the leaves ([`link_to`]). The layout
//! of a scan's state is not part of PostgreSQL's promises to extensions; whoever uses it compares what it reads with what the
//! scan itself returned ([`Scan::is_at`]) first.
//!
//! A page is copied under its share lock, and looked at when lock and pin are gone: nobody waits for a reader, and a reader never
//! holds two locks.

use super::{compat, ext, guarded, tid};
use core::ffi::{c_char, c_int, c_void};
use pgrx::pg_sys::*;
use std::mem::{offset_of, size_of};

/// `MaxTIDsPerBTreePage`
const MAX_ITEMS: usize =
    (BLCKSZ as usize - offset_of!(PageHeaderData, pd_linp) - size_of::<Opaque>()) / size_of::<ItemPointerData>();
const PAGE: usize = BLCKSZ as usize;

/// `BTPageOpaqueData`: the end of each page.
#[repr(C)]
#[derive(Clone, Copy)]
struct Opaque {
    prev: BlockNumber,
    next: BlockNumber,
    level: u32,
    flags: u16,
    cycle: u16,
}

/// `BTP_LEAF`
const LEAF: u16 = 1;
/// `BTP_DELETED`, `BTP_META`, `BTP_HALF_DEAD`: pages without entries to follow.
const IGNORED: u16 = 1 << 2 | 1 << 3 | 1 << 4;
/// `INDEX_ALT_TID_MASK`: the TID of a tuple says something else.
const ALTERNATIVE_TID: u16 = 0x2000;
/// `INDEX_NULL_MASK`
const HAS_NULLS: u16 = 0x8000;
/// `BT_IS_POSTING`
const POSTING: u16 = 0x2000;
/// `BT_OFFSET_MASK`
const OFFSET_MASK: u16 = 0x0fff;
/// `SK_BT_REQFWD`, `SK_BT_REQBKWD`: the scan ends where the key fails in this direction.
const REQUIRED_FORWARD: i32 = 0x0001_0000;
const REQUIRED_BACKWARD: i32 = 0x0002_0000;
/// `SK_BT_NULLS_FIRST`
const NULLS_FIRST: i32 = 0x0200_0000;

/// `BTScanPosItem`
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Item {
    /// Where the row is.
    pub tid: ItemPointerData,
    /// Where the entry is on the page.
    pub offset: OffsetNumber,
    _tuple: u16,
}

/// `BTScanPosData`: the entries of the current leaf that match the scan's keys.
#[repr(C)]
pub struct Position {
    _buffer: Buffer,
    #[cfg(not(feature = "pg18"))]
    _lsn: XLogRecPtr,
    /// The leaf.
    pub page: BlockNumber,
    #[cfg(feature = "pg18")]
    _previous: BlockNumber,
    /// Its neighbour to the right.
    pub next: BlockNumber,
    #[cfg(feature = "pg18")]
    _lsn: XLogRecPtr,
    #[cfg(feature = "pg18")]
    _direction: ScanDirection::Type,
    #[cfg(feature = "pg18")]
    _next_tuple: c_int,
    _more_left: bool,
    _more_right: bool,
    #[cfg(feature = "pg17")]
    _direction: ScanDirection::Type,
    #[cfg(not(feature = "pg18"))]
    _next_tuple: c_int,
    /// The first, the last and the current one of `items`.
    pub first: c_int,
    /// See `first`.
    pub last: c_int,
    /// See `first`.
    pub index: c_int,
    items: [Item; MAX_ITEMS],
}

/// `BTScanOpaqueData`, up to the current position.
#[repr(C)]
pub struct Scan {
    _possible: bool,
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    _arrays_started: bool,
    key_count: c_int,
    keys: ScanKey,
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    _array_keys: ScanKey,
    /// Keys `= ANY (array)`; in PostgreSQL 18 also columns that the scan skips over.
    pub arrays: c_int,
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    _array_count: c_int,
    #[cfg(feature = "pg18")]
    _skips: bool,
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    _needs_primitive_scan: bool,
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    _behind: bool,
    #[cfg(feature = "pg18")]
    _opposite: bool,
    _array_info: *mut c_void,
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    _order_procedures: *mut FmgrInfo,
    _array_context: MemoryContext,
    _killed: *mut c_int,
    _killed_count: c_int,
    #[cfg(feature = "pg18")]
    _drops_pin: bool,
    _current_tuples: *mut c_char,
    _marked_tuples: *mut c_char,
    _mark: c_int,
    /// Where the scan is.
    pub position: Position,
}

impl Scan {
    /// The state of a btree scan.
    ///
    /// # Safety
    /// `scan` is an open scan of a btree; the result is used while nothing else changes it.
    pub unsafe fn of<'a>(scan: IndexScanDesc) -> &'a Self {
        // SAFETY: the caller's promise.
        unsafe { &*(*scan).opaque.cast::<Self>() }
    }

    /// Whether the state says that the scan is at this row: it does not if its layout is not the one that is declared here.
    pub fn is_at(&self, at: &ItemPointerData) -> bool {
        let p = &self.position;
        p.page != InvalidBlockNumber
            && 0 <= p.first
            && p.first <= p.index
            && p.index <= p.last
            && self.item(p.index).is_some_and(|i| tid::block(&i.tid) == tid::block(at) && i.tid.ip_posid == at.ip_posid)
            && (0..=INDEX_MAX_KEYS as i32 * 2).contains(&self.key_count)
    }

    /// An entry of the current leaf.
    pub fn item(&self, index: c_int) -> Option<&Item> {
        self.position.items.get(usize::try_from(index).ok()?)
    }

    /// The keys as the scan has prepared them; they live as long as it does.
    fn keys(&self) -> &[ScanKeyData] {
        if self.keys.is_null() {
            return &[];
        }
        // SAFETY: nbtree keeps `key_count` of them.
        unsafe { std::slice::from_raw_parts(self.keys, self.key_count as usize) }
    }

    /// What an entry is to this scan, as far as can be told without its row. Comparisons of rows and keys that stand for several
    /// values are taken to match.
    ///
    /// # Safety
    /// The entry is one of the scan's index, whose descriptor is given.
    pub unsafe fn verdict(&self, entry: &Entry<'_>, descriptor: TupleDesc, forward: bool) -> Verdict {
        let here = if forward { REQUIRED_FORWARD } else { REQUIRED_BACKWARD };
        for key in self.keys() {
            let flags = key.sk_flags;
            if flags & (SK_ROW_HEADER | SK_ROW_MEMBER | SK_SEARCHARRAY) as i32 != 0
                || key.sk_attno as u16 > entry.columns
            {
                continue;
            }
            // SAFETY: the caller's promise; the function is the key's own, called as nbtree calls it.
            let value = unsafe { entry.column(key.sk_attno, descriptor) };
            let (holds, ends) = match value {
                value if flags & SK_ISNULL as i32 != 0 => {
                    (value.is_none() == (flags & SK_SEARCHNULL as i32 != 0), here)
                }
                // Nulls are at one end of the index: past them, or before the first value.
                None if flags & NULLS_FIRST != 0 => {
                    (false, if forward { 0 } else { REQUIRED_FORWARD | REQUIRED_BACKWARD })
                }
                None => (false, if forward { REQUIRED_FORWARD | REQUIRED_BACKWARD } else { 0 }),
                Some(value) => {
                    let function = (&raw const key.sk_func).cast_mut();
                    // SAFETY: as above.
                    (
                        unsafe { FunctionCall2Coll(function, key.sk_collation, value, key.sk_argument) }.value() != 0,
                        here,
                    )
                }
            };
            if !holds {
                return if flags & ends != 0 { Verdict::Past } else { Verdict::Other };
            }
        }
        Verdict::Match
    }

    /// Whether all keys are on the first column of the index, so that what holds for two entries holds for those between them.
    pub fn is_one_range(&self) -> bool {
        self.keys().iter().all(|k| k.sk_attno == 1 && k.sk_flags & SK_SEARCHARRAY as i32 == 0)
    }
}

/// What an entry is to a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Match,
    /// Not wanted, but others behind it may be.
    Other,
    /// The scan ends before it.
    Past,
}

/// A copy of a page.
#[repr(C, align(8))]
pub struct PageCopy([u8; PAGE]);

/// An entry on a page: a row or some of them with the same key on a leaf, a link above.
pub struct Entry<'a> {
    bytes: &'a [u8],
    /// How many columns it has.
    pub columns: u16,
}

impl Entry<'_> {
    fn tuple(&self) -> IndexTuple {
        self.bytes.as_ptr().cast_mut().cast()
    }

    fn u16_at(&self, at: usize) -> u16 {
        match self.bytes.get(at..at + 2) {
            Some(b) => u16::from_ne_bytes([b[0], b[1]]),
            None => 0,
        }
    }

    fn info(&self) -> u16 {
        self.u16_at(offset_of!(IndexTupleData, t_info))
    }

    /// The block number in the TID: of a row, of a page below, or where a list of TIDs begins.
    fn block(&self) -> u32 {
        u32::from(self.u16_at(0)) << 16 | u32::from(self.u16_at(2))
    }

    /// The page below that a link leads to.
    pub fn link(&self) -> BlockNumber {
        self.block()
    }

    /// The value of a column from 1; None for null.
    ///
    /// # Safety
    /// The entry has that column, and the index this descriptor.
    unsafe fn column(&self, number: i16, descriptor: TupleDesc) -> Option<Datum> {
        let bit = number as usize - 1;
        let nulls = self.info() & HAS_NULLS != 0;
        if nulls && self.bytes.get(size_of::<IndexTupleData>() + bit / 8).is_none_or(|b| b >> (bit % 8) & 1 == 0) {
            return None;
        }
        // SAFETY: the caller's promise; the column is not null.
        Some(unsafe { nocache_index_getattr(self.tuple(), i32::from(number), descriptor) })
    }

    /// Calls `f` with the block of each row, in the order of the index or in the opposite one.
    pub fn blocks(&self, forward: bool, mut f: impl FnMut(BlockNumber)) {
        let count = self.u16_at(4);
        if self.info() & ALTERNATIVE_TID == 0 {
            return f(self.block());
        }
        if count & POSTING == 0 {
            return;
        }
        let (start, count) = (self.block() as usize, usize::from(count & OFFSET_MASK));
        let mut one = |i: usize| {
            let at = start + i * size_of::<ItemPointerData>();
            f(u32::from(self.u16_at(at)) << 16 | u32::from(self.u16_at(at + 2)));
        };
        if forward { (0..count).for_each(&mut one) } else { (0..count).rev().for_each(&mut one) }
    }
}

impl PageCopy {
    /// An empty one, to read pages into.
    pub fn new() -> Box<Self> {
        Box::new(Self([0; PAGE]))
    }

    /// Copies a page of an index. False if it is not a page of a tree.
    ///
    /// # Safety
    /// `index` is an open btree with that block.
    pub unsafe fn read(&mut self, index: Relation, block: BlockNumber) -> bool {
        // SAFETY: the caller's promise; pin and lock are gone when this returns, or by the end of the transaction after an ERROR.
        unsafe {
            let buffer = ReadBuffer(index, block);
            LockBuffer(buffer, BUFFER_LOCK_SHARE as i32);
            std::ptr::copy_nonoverlapping(BufferGetPage(buffer).cast::<u8>(), self.0.as_mut_ptr(), PAGE);
            UnlockReleaseBuffer(buffer);
        }
        let special = self.header(offset_of!(PageHeaderData, pd_special)) as usize;
        special == PAGE - size_of::<Opaque>() && self.opaque().flags & IGNORED == 0
    }

    fn header(&self, at: usize) -> u16 {
        u16::from_ne_bytes([self.0[at], self.0[at + 1]])
    }

    fn opaque(&self) -> Opaque {
        // SAFETY: within the page and aligned.
        unsafe { *self.0.as_ptr().add(PAGE - size_of::<Opaque>()).cast() }
    }

    /// Whether it is a leaf.
    pub fn is_leaf(&self) -> bool {
        self.opaque().flags & LEAF != 0
    }

    /// Levels above the leaves.
    pub fn level(&self) -> u32 {
        self.opaque().level
    }

    /// The neighbour in this direction; None at the end.
    pub fn neighbour(&self, forward: bool) -> Option<BlockNumber> {
        let block = if forward { self.opaque().next } else { self.opaque().prev };
        (block != 0 && block != InvalidBlockNumber).then_some(block)
    }

    /// The offsets of its entries: without the high key, which all pages but the rightmost begin with.
    pub fn offsets(&self) -> std::ops::RangeInclusive<OffsetNumber> {
        let first = if self.opaque().next == 0 { 1 } else { 2 };
        let lower = usize::from(self.header(offset_of!(PageHeaderData, pd_lower))).min(PAGE);
        let end = lower.saturating_sub(offset_of!(PageHeaderData, pd_linp)) / size_of::<ItemIdData>();
        first..=end as OffsetNumber
    }

    /// The entry at an offset, if it is not known to be dead; `columns` are those of the index.
    pub fn entry(&self, offset: OffsetNumber, columns: u16) -> Option<Entry<'_>> {
        let at = offset_of!(PageHeaderData, pd_linp) + (usize::from(offset).checked_sub(1)?) * size_of::<ItemIdData>();
        let word = u32::from_ne_bytes(self.0.get(at..at + 4)?.try_into().ok()?);
        let (start, state, length) = ((word & 0x7fff) as usize, word >> 15 & 3, (word >> 17) as usize);
        if state == LP_DEAD {
            return None;
        }
        let bytes = self.0.get(start..start + length).filter(|b| b.len() >= size_of::<IndexTupleData>())?;
        let mut entry = Entry { bytes, columns };
        let count = entry.u16_at(4);
        if entry.info() & ALTERNATIVE_TID != 0 && count & POSTING == 0 {
            entry.columns = count & OFFSET_MASK;
        }
        Some(entry)
    }
}

/// The page of the level above that has the link to a leaf, and where on it: by searching the tree for an entry of the leaf, as
/// an insertion would. None if the leaf is the root, or is no leaf with entries any more. Approximate while the tree changes.
///
/// # Safety
/// `index` is an open btree of `heap`; allocates in the current memory context.
pub unsafe fn link_to(
    index: Relation,
    heap: Relation,
    leaf: BlockNumber,
    page: &mut PageCopy,
) -> Option<(BlockNumber, OffsetNumber)> {
    // SAFETY: the caller's promise. `_bt_search` for reading changes nothing and takes no predicate lock; the leaf that it comes
    // to is given back at once.
    unsafe {
        if !page.read(index, leaf) || !page.is_leaf() {
            return None;
        }
        let columns = (*(*index).rd_att).natts as u16;
        let entry = page.offsets().find_map(|o| page.entry(o, columns))?;
        let tuple = CopyIndexTuple(entry.tuple());
        let key = guarded(|| ext::_bt_mkscankey(index, tuple));
        let mut buffer = 0;
        let stack = guarded(|| compat::btree_search(index, heap, key, &mut buffer));
        if buffer != 0 {
            guarded(|| ext::_bt_relbuf(index, buffer));
        }
        let link = stack.as_ref().map(|s| (s.block, s.offset));
        guarded(|| ext::_bt_freestack(stack));
        link
    }
}
