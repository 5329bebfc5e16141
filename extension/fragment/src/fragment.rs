//! Reading a fragment.
//!
//! [`Fragment::open`] reads and checks header, footer and tail, no values. A chunk is read when it is asked for, checked
//! against its checksum, and only then given to the decoder; so damage is an error that names the block and the column,
//! never a wrong value, and what is not damaged stays readable.
//!
//! What stays in memory is decided by the [`Access`] that the fragment was begun with ([`Fragment::begin`]) and by the budget of
//! the process; see [`crate::memory`].

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::cache::{Cache, Item, Key};
use crate::codec::{self, Context, Lazy, Reading};
use crate::column::{Column, Dictionary};
use crate::error::{FragmentError, Result};
use crate::files::{FileId, read_at};
use crate::footer::{self, Chunk, Footer, HEADER_LEN, Piece, TAIL_LEN};
use crate::memory::{self, Access, Charge, Taken};
use crate::schema::Schema;
use crate::value::Value;
use crate::zone::Zone;

/// After this many single values a chunk is decoded whole, which costs about as much.
const SINGLE_VALUES: u32 = 16;
/// The same for text that is not a dictionary: whole, it is a megabyte and 1.3 ms for what one value takes 8 µs for.
const SINGLE_TEXTS: u32 = 160;

/// Consecutive rows of a fragment that are encoded together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// The position of its first row in the fragment.
    pub first_row: u64,
    /// Its number of rows.
    pub rows: u32,
}

/// A fragment open for reading. It belongs to one thread.
#[derive(Debug)]
pub struct Fragment {
    pub(crate) path: PathBuf,
    pub(crate) expected_hash: Option<String>,
    pub(crate) footer: Footer,
    pub(crate) body_end: u64,
    file: FileId,
    bytes: u64,
    rows: u64,
    blocks: Vec<Block>,
    zones: Vec<Zone>,
    context: Context,
    cache: Rc<RefCell<Cache>>,
    access: Cell<Access>,
    /// The statement that has begun it last.
    begun: Cell<u64>,
    /// It was read whole once.
    whole: Cell<bool>,
    charge: Charge,
}

/// The hash in the name of a fragment file, if it has the form of one.
pub(crate) fn hash_of_name(path: &Path) -> Option<&str> {
    let hash = path.file_name()?.to_str()?.strip_suffix(".frag")?;
    let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    (hash.len() == 64 && hash.bytes().all(digit)).then_some(hash)
}

impl Fragment {
    /// Opens a fragment: reads and checks everything but its values.
    ///
    /// With a hash, the file's name must be the one that it gives. Whether the content has that hash is checked by
    /// [`Fragment::verify`], not here.
    pub fn open(path: &Path, expected_hash: Option<&str>) -> Result<Self> {
        if let (Some(expected), Some(named)) = (expected_hash, hash_of_name(path))
            && expected != named
        {
            return Err(FragmentError::input(format!("hash {expected} does not name {}", path.display())));
        }
        let id = FileId::new();
        let file = id.open(path)?;
        let bytes = file.metadata().map_err(|e| FragmentError::io(path, e))?.len();
        if bytes < (HEADER_LEN + TAIL_LEN) as u64 {
            return Err(FragmentError::damaged(path, format!("{bytes} bytes are too few for a fragment")));
        }
        let header = read_at(&file, path, 0, HEADER_LEN, "header")?;
        // Most footers come with the tail, in one read.
        let near_len = bytes.min(32 << 10) as usize;
        let near = read_at(&file, path, bytes - near_len as u64, near_len, "tail")?;
        let tail = &near[near_len - TAIL_LEN..];
        let place = footer::locate(path, &header, tail, bytes)?;
        let footer_len = usize::try_from(place.end - place.start)
            .map_err(|_| FragmentError::damaged(path, "tail: impossible length of the footer"))?;
        let far;
        let encoded = match near_len.checked_sub(TAIL_LEN + footer_len) {
            Some(start) => &near[start..near_len - TAIL_LEN],
            None => {
                far = read_at(&file, path, place.start, footer_len, "footer")?;
                &far
            }
        };
        let footer = Footer::decode(path, &header, encoded, tail, place.start)?;
        if let Some(encoding) = footer.encodings.iter().find(|e| !codec::is_known(e)) {
            return Err(FragmentError::UnsupportedEncoding { path: path.to_path_buf(), encoding: encoding.clone() });
        }
        let mut blocks = Vec::with_capacity(footer.blocks.len());
        let mut first_row = 0;
        for rows in &footer.blocks {
            blocks.push(Block { first_row, rows: *rows });
            first_row += u64::from(*rows);
        }
        let zones = footer.columns.iter().filter_map(|chunks| {
            let (first, rest) = chunks.split_first()?;
            Some(rest.iter().fold(first.zone.clone(), |z, c| z.merge(&c.zone)))
        });
        let cache = Rc::default();
        memory::register(&cache);
        let mut fragment = Self {
            path: path.to_path_buf(),
            expected_hash: expected_hash.map(str::to_string),
            zones: zones.collect(),
            body_end: place.start,
            context: Context::new(&footer.encodings),
            file: id,
            bytes,
            rows: footer.rows(),
            blocks,
            footer,
            cache,
            access: Cell::default(),
            begun: Cell::new(0),
            whole: Cell::new(false),
            charge: Charge::default(),
        };
        fragment.charge.set(fragment.footer_bytes());
        Ok(fragment)
    }

    /// A scan begins to read, with this access. What is to be loaded is read whole when a second statement comes for it: a session
    /// that ends with its first statement does not pay for columns that nobody asks for. With `at_once` it is read whole now.
    pub fn begin(&self, access: Access, at_once: bool) {
        self.access.set(access);
        let statement = memory::statement();
        let before = self.begun.replace(statement);
        let again = before != 0 && before != statement;
        if access == Access::Loaded && (at_once || again) && !self.whole.replace(true) {
            self.load();
        }
    }

    /// Reads all pieces that are not kept, in the order of the file, and keeps them; stops when there is no more room, and is tried
    /// again by the next statement. What cannot be read is left out: whoever asks for it gets the error.
    fn load(&self) {
        for col in 0..self.footer.columns.len() {
            for block in 0..self.blocks.len() {
                if self.cache.borrow().contains(Key::Chunk(block, col)) {
                    continue;
                }
                let Ok(chunk) = self.read_chunk(block, col) else { continue };
                let item = Item::Chunk(Rc::new((chunk, Cell::new(0))));
                if !self.keep(Key::Chunk(block, col), item, |bytes| memory::take(bytes, Access::Loaded), false) {
                    self.whole.set(false);
                    return;
                }
            }
        }
        for filter in 0..self.footer.filters.len() {
            for block in 0..self.blocks.len() {
                let _ = self.filter(filter, block);
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its columns and keys.
    pub fn schema(&self) -> &Schema {
        &self.footer.schema
    }

    /// The edition of Vortex that it is encoded with.
    pub fn edition(&self) -> &str {
        &self.footer.edition
    }

    /// The Vortex encodings that it uses.
    pub fn encodings(&self) -> &[String] {
        &self.footer.encodings
    }

    /// Its number of rows.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The length of the file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Its blocks, in the order of rows.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// The block of a row and the row's position in it, or `None` if there is no such row.
    pub fn block_of(&self, row: u64) -> Option<(usize, u32)> {
        let block = self.blocks.partition_point(|b| b.first_row <= row).checked_sub(1)?;
        let b = self.blocks.get(block)?;
        let inside = row - b.first_row;
        (inside < u64::from(b.rows)).then_some((block, inside as u32))
    }

    /// The zone of a column in a block.
    ///
    /// # Panics
    /// When there is no such block or column.
    pub fn zone(&self, block: usize, col: usize) -> &Zone {
        &self.footer.columns[col][block].zone
    }

    /// The zone of a column over the whole fragment.
    ///
    /// # Panics
    /// When there is no such column.
    pub fn fragment_zone(&self, col: usize) -> &Zone {
        &self.zones[col]
    }

    /// The bytes that a column of a block takes in the file.
    pub fn chunk_bytes(&self, block: usize, col: usize) -> Result<u64> {
        Ok(self.chunk(block, col)?.piece.len)
    }

    /// How a column of a block is encoded, for people.
    pub fn describe_chunk(&self, block: usize, col: usize) -> Result<String> {
        Ok(self.read_chunk(block, col)?.describe())
    }

    /// Reads and decodes a column of a block.
    pub fn read(&self, block: usize, col: usize) -> Result<Rc<Column>> {
        if let Some(Item::Column(c)) = self.cache.borrow_mut().get(Key::Column(block, col)) {
            return Ok(c);
        }
        let chunk = self.chunk_for_scan(block, col)?;
        let column = Rc::new(chunk.0.column().map_err(|e| self.damaged_chunk(block, col, &e))?);
        // Text is slow to decode, and often compressed well: worth the memory, if nothing else needs it.
        if self.access.get() == Access::Loaded && self.footer.schema.columns[col].ty.is_bytes() {
            self.keep(Key::Column(block, col), Item::Column(Rc::clone(&column)), memory::take_spare, true);
        }
        Ok(column)
    }

    /// Reads a column of whole numbers or decimals of a block as 64-bit integers (of decimals the unscaled values); `None` if
    /// they are kept in another way or may not fit.
    pub fn read_integers(&self, block: usize, col: usize) -> Result<Option<Column>> {
        let chunk = self.chunk_for_scan(block, col)?;
        chunk.0.integers().map_err(|e| self.damaged_chunk(block, col, &e))
    }

    /// Reads a column of a block as codes into its distinct values; `None` if it is not stored like that.
    pub fn read_dictionary(&self, block: usize, col: usize) -> Result<Option<Dictionary>> {
        let chunk = self.chunk_for_scan(block, col)?;
        chunk.0.dictionary().map_err(|e| self.damaged_chunk(block, col, &e))
    }

    /// A column of a block that is needed for single rows, kept for the next time that it or a value of it is asked for.
    pub fn column(&self, block: usize, col: usize) -> Result<Rc<Column>> {
        let key = Key::Column(block, col);
        if let Some(Item::Column(c)) = self.cache.borrow_mut().get(key) {
            return Ok(c);
        }
        let kept = self.cached_chunk(block, col);
        let column = match kept {
            Some(chunk) => chunk.0.column(),
            None => self.read_chunk(block, col)?.column(),
        };
        let column = Rc::new(column.map_err(|e| self.damaged_chunk(block, col, &e))?);
        let access = self.access.get();
        let loaded = access == Access::Loaded;
        // In a loaded fragment the chunks come first, decoded columns go before them.
        if self.keep(key, Item::Column(Rc::clone(&column)), |bytes| memory::take_for_row(bytes, access), loaded)
            && !loaded
        {
            let chunk = self.cache.borrow_mut().remove(Key::Chunk(block, col));
            drop(chunk);
        }
        Ok(column)
    }

    /// Whether a column of a block is kept decoded.
    pub(crate) fn is_decoded(&self, block: usize, col: usize) -> bool {
        self.cache.borrow().contains(Key::Column(block, col))
    }

    /// Of a range of rows, those that equal a number, found in the packed chunk, which is kept. In the range the values are in ascending
    /// order, nulls last. `None` if the column is not of whole numbers, or must be decoded for that.
    pub(crate) fn equal(
        &self,
        block: usize,
        col: usize,
        range: Range<u32>,
        number: i128,
    ) -> Result<Option<Range<u32>>> {
        if !self.footer.schema.columns[col].ty.is_integer() || self.chunk(block, col)?.repr.whole().is_none() {
            return Ok(None);
        }
        Ok(self.chunk_for_row(block, col)?.0.equal(range, number))
    }

    /// A chunk of which single values are read, kept for the next of them.
    fn chunk_for_row(&self, block: usize, col: usize) -> Result<Rc<(Lazy, Cell<u32>)>> {
        if let Some(chunk) = self.cached_chunk(block, col) {
            return Ok(chunk);
        }
        let chunk = Rc::new((self.read_chunk(block, col)?, Cell::new(0)));
        let access = self.access.get();
        let item = Item::Chunk(Rc::clone(&chunk));
        self.keep(Key::Chunk(block, col), item, |bytes| memory::take_for_row(bytes, access), false);
        Ok(chunk)
    }

    /// One value. Reads one chunk, which is kept.
    pub fn value(&self, block: usize, col: usize, row_in_block: u32) -> Result<Value> {
        let rows = self.blocks.get(block).map_or(0, |b| b.rows);
        if row_in_block >= rows {
            return Err(FragmentError::input(format!("row {row_in_block} of block {block}, which has {rows}")));
        }
        let kept = self.cache.borrow_mut().get(Key::Column(block, col));
        if let Some(Item::Column(c)) = kept {
            return Ok(c.value(row_in_block as usize));
        }
        let chunk = self.chunk_for_row(block, col)?;
        let loaded = self.access.get() == Access::Loaded;
        let counted = chunk.1.get() + 1;
        let limit = match chunk.0.reading() {
            Reading::Direct => u32::MAX,
            Reading::Frames(_) | Reading::Text => SINGLE_TEXTS,
            Reading::Other => SINGLE_VALUES,
        };
        chunk.1.set(counted.min(limit));
        if counted >= limit && limit < u32::MAX {
            let column = match chunk.0.reading() {
                Reading::Frames(bytes) => self.spare_column(block, col, &chunk.0, bytes)?,
                // About as much as text is compressed by.
                Reading::Text if loaded => self.spare_column(block, col, &chunk.0, 4 * chunk.0.memory())?,
                _ => {
                    // Where there is no room to keep it decoded, it is decoded again only after as many single values again.
                    chunk.1.set(0);
                    Some(self.column(block, col)?)
                }
            };
            if let Some(column) = column {
                return Ok(column.value(row_in_block as usize));
            }
        }
        chunk.0.value(row_in_block).map_err(|e| self.damaged_chunk(block, col, &e))
    }

    /// Decodes text that takes about so many bytes, if there is room to spare for it, and keeps it in place of its chunk.
    fn spare_column(&self, block: usize, col: usize, chunk: &Lazy, bytes: usize) -> Result<Option<Rc<Column>>> {
        if self.access.get() == Access::Direct {
            return Ok(None);
        }
        let Some(taken) = memory::take_spare(bytes) else { return Ok(None) };
        memory::give(bytes, taken);
        let column = Rc::new(chunk.column().map_err(|e| self.damaged_chunk(block, col, &e))?);
        if self.keep(Key::Column(block, col), Item::Column(Rc::clone(&column)), memory::take_spare, true) {
            let chunk = self.cache.borrow_mut().remove(Key::Chunk(block, col));
            drop(chunk);
        }
        Ok(Some(column))
    }

    /// The memory that the fragment takes: its footer, and what it keeps of its values.
    pub fn memory_bytes(&self) -> usize {
        self.charge.bytes() + self.cache.borrow().bytes()
    }

    /// The memory that it takes as long as it is open.
    pub fn footer_bytes(&self) -> usize {
        let chunks = self.footer.columns.iter().flatten();
        size_of::<Self>() + chunks.map(|c| size_of::<Chunk>() + c.zone.memory()).sum::<usize>()
    }

    /// Forgets what was kept of values.
    pub fn clear_cache(&self) {
        let cache = std::mem::take(&mut *self.cache.borrow_mut());
        drop(cache);
        self.whole.set(false);
    }

    /// Keeps an item if memory can be taken for it.
    fn keep(&self, key: Key, item: Item, take: impl FnOnce(usize) -> Option<Taken>, spare: bool) -> bool {
        let memory = item.memory();
        // Making room may remove entries of this cache: it is not borrowed meanwhile, nor when what was replaced is dropped.
        let Some(taken) = take(memory) else { return false };
        let old = self.cache.borrow_mut().put(key, item, memory, taken, spare);
        drop(old);
        true
    }

    /// A chunk that a scan reads, kept if the access says so and there is room.
    fn chunk_for_scan(&self, block: usize, col: usize) -> Result<Rc<(Lazy, Cell<u32>)>> {
        if let Some(chunk) = self.cached_chunk(block, col) {
            return Ok(chunk);
        }
        let chunk = Rc::new((self.read_chunk(block, col)?, Cell::new(0)));
        let access = self.access.get();
        if access != Access::Direct {
            let item = Item::Chunk(Rc::clone(&chunk));
            self.keep(Key::Chunk(block, col), item, |bytes| memory::take(bytes, access), false);
        }
        Ok(chunk)
    }

    /// The filter of a key (by position among the filters) and block.
    pub(crate) fn filter(&self, filter: usize, block: usize) -> Result<Rc<Vec<u8>>> {
        let key = Key::Filter(filter, block);
        if let Some(Item::Filter(f)) = self.cache.borrow_mut().get(key) {
            return Ok(f);
        }
        let piece = self.footer.filters.get(filter).and_then(|f| f.blocks.get(block));
        let piece = piece.ok_or_else(|| FragmentError::input(format!("filter {filter} of block {block}")))?;
        let bytes = Rc::new(self.piece(piece, &format!("filter {filter} of block {block}"))?);
        let access = self.access.get();
        self.keep(key, Item::Filter(Rc::clone(&bytes)), |n| memory::take_for_row(n, access), false);
        Ok(bytes)
    }

    fn cached_chunk(&self, block: usize, col: usize) -> Option<Rc<(Lazy, Cell<u32>)>> {
        match self.cache.borrow_mut().get(Key::Chunk(block, col)) {
            Some(Item::Chunk(c)) => Some(c),
            _ => None,
        }
    }

    fn chunk(&self, block: usize, col: usize) -> Result<&Chunk> {
        self.footer.columns.get(col).and_then(|c| c.get(block)).ok_or_else(|| {
            let (columns, blocks) = (self.footer.columns.len(), self.blocks.len());
            FragmentError::input(format!("column {col} of {columns}, block {block} of {blocks}"))
        })
    }

    /// Reads a chunk and checks it.
    pub(crate) fn read_chunk(&self, block: usize, col: usize) -> Result<Lazy> {
        let chunk = self.chunk(block, col)?;
        let bytes = self.piece(&chunk.piece, &self.name_chunk(block, col))?;
        let ty = self.footer.schema.columns[col].ty;
        let (values_len, nulls) = (chunk.values_len as usize, chunk.zone.null_count);
        Lazy::parse(bytes, values_len, &chunk.repr, ty, chunk.zone.rows, nulls, &self.context)
            .map_err(|e| self.damaged_chunk(block, col, &e))
    }

    fn piece(&self, piece: &Piece, what: &str) -> Result<Vec<u8>> {
        if piece.len == 0 {
            return Ok(Vec::new());
        }
        let file = self.file.open(&self.path)?;
        let len = usize::try_from(piece.len).map_err(|_| FragmentError::damaged(&self.path, what))?;
        let bytes = read_at(&file, &self.path, piece.offset, len, what)?;
        memory::count_read(len);
        let found = crc32c::crc32c(&bytes);
        if found != piece.crc32c {
            let what = format!("{what}: checksum {found:08x} instead of {:08x}", piece.crc32c);
            return Err(FragmentError::damaged(&self.path, what));
        }
        Ok(bytes)
    }

    fn name_chunk(&self, block: usize, col: usize) -> String {
        format!("column {:?} of block {block}", self.footer.schema.columns[col].name)
    }

    pub(crate) fn damaged_chunk(&self, block: usize, col: usize, e: &str) -> FragmentError {
        FragmentError::damaged(&self.path, format!("{}: {e}", self.name_chunk(block, col)))
    }

    pub(crate) fn open_file(&self) -> Result<Rc<std::fs::File>> {
        self.file.open(&self.path)
    }
}
