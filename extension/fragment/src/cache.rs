//! What a fragment keeps of what it has read: bounded by bytes, least recently used goes first.

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;

use crate::codec::Lazy;
use crate::column::Column;

/// The most that one fragment keeps, unless one entry alone is larger.
pub(crate) const CAPACITY: usize = 16 << 20;

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
    fn memory(&self) -> usize {
        match self {
            Self::Chunk(c) => c.0.memory(),
            Self::Column(c) => size_of::<Column>() + c.memory_bytes(),
            Self::Filter(f) => f.capacity(),
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Cache {
    items: HashMap<Key, (u64, usize, Item)>,
    clock: u64,
    bytes: usize,
}

impl Cache {
    pub(crate) fn get(&mut self, key: Key) -> Option<Item> {
        self.clock += 1;
        let entry = self.items.get_mut(&key)?;
        entry.0 = self.clock;
        Some(entry.2.clone())
    }

    pub(crate) fn put(&mut self, key: Key, item: Item) {
        self.remove(key);
        let memory = item.memory();
        while self.bytes + memory > CAPACITY {
            let Some(oldest) = self.items.iter().min_by_key(|(_, e)| e.0).map(|(k, _)| *k) else {
                break;
            };
            self.remove(oldest);
        }
        self.clock += 1;
        self.bytes += memory;
        self.items.insert(key, (self.clock, memory, item));
    }

    pub(crate) fn remove(&mut self, key: Key) {
        if let Some((_, memory, _)) = self.items.remove(&key) {
            self.bytes -= memory;
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}
