//! What a fragment keeps of what it has read. How much, and what goes when, is decided in [`crate::memory`].

use std::cell::Cell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;

use crate::codec::Lazy;
use crate::column::Column;
use crate::memory::{self, Taken};

/// What an entry takes beside what it holds: its place in the table, the tree of the encodings.
const ENTRY_BYTES: usize = 512;

/// What is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// A chunk, by block and column.
    Chunk(usize, usize),
    /// A decoded chunk, by block and column.
    Column(usize, usize),
    /// A filter, by its position and block.
    Filter(usize, usize),
}

#[derive(Debug, Clone)]
pub(crate) enum Item {
    /// A checked chunk, and how often single values were read from it.
    Chunk(Rc<(Lazy, Cell<u32>)>),
    Column(Rc<Column>),
    Filter(Rc<Vec<u8>>),
}

impl Item {
    /// The memory that it takes as an entry.
    pub(crate) fn memory(&self) -> usize {
        ENTRY_BYTES
            + match self {
                Self::Chunk(c) => c.0.memory(),
                Self::Column(c) => size_of::<Column>() + c.memory_bytes(),
                Self::Filter(f) => f.capacity(),
            }
    }
}

/// Something that is kept, and the memory that was taken for it, which is given back when it goes.
#[derive(Debug)]
pub(crate) struct Entry {
    item: Item,
    used: u64,
    memory: usize,
    taken: Taken,
    /// Kept because there was room to spare.
    spare: bool,
}

impl Entry {
    /// The memory that was taken for it.
    pub(crate) fn memory(&self) -> usize {
        self.memory
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        memory::give(self.memory, self.taken);
    }
}

/// Mixes a few small numbers, as in `rustc-hash`: keys are asked for several times a row, and nobody chooses them.
#[derive(Default)]
pub(crate) struct Mixer(u64);

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        // The table uses the highest and the lowest bits.
        self.0 ^ self.0 >> 32
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|b| self.write_u64(u64::from(*b)));
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0.rotate_left(5) ^ n).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }

    fn write_isize(&mut self, n: isize) {
        self.write_u64(n as u64);
    }
}

#[derive(Debug, Default)]
pub(crate) struct Cache {
    items: HashMap<Key, Entry, BuildHasherDefault<Mixer>>,
    bytes: usize,
}

impl Cache {
    pub(crate) fn get(&mut self, key: Key) -> Option<Item> {
        let entry = self.items.get_mut(&key)?;
        entry.used = memory::tick();
        memory::count_hit();
        Some(entry.item.clone())
    }

    pub(crate) fn contains(&self, key: Key) -> bool {
        self.items.contains_key(&key)
    }

    /// Keeps an item for which `memory` was taken; gives back the entry that was there.
    pub(crate) fn put(&mut self, key: Key, item: Item, memory: usize, taken: Taken, spare: bool) -> Option<Entry> {
        let old = self.remove(key);
        self.bytes += memory;
        self.items.insert(key, Entry { item, used: memory::tick(), memory, taken, spare });
        old
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<Entry> {
        let entry = self.items.remove(&key)?;
        self.bytes -= entry.memory;
        Some(entry)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The entries of a kind, each with whether it was kept to spare, and when it was used last.
    pub(crate) fn entries(&self, taken: Taken) -> impl Iterator<Item = (bool, u64, Key)> {
        self.items.iter().filter(move |(_, e)| e.taken == taken).map(|(k, e)| (!e.spare, e.used, *k))
    }
}
