//! Writing a fragment: sort, encode, write, make durable, give it its name.
//!
//! The order of steps is what a crash may interrupt. The file is written under a temporary name, synchronized, renamed to
//! the name that its hash gives, and the folders are synchronized. So a file under a final name is whole and durable as
//! soon as [`write`] has returned, and a crash before leaves at most a temporary file, which its writer had locked (`flock`) and nobody
//! has any more: [`remove_abandoned`] removes such a file and no other. Two writers of the same content end at the same name; either
//! rename leaves the same bytes there.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::builder::BuilderOptions;
use crate::codec::{self, Encoder, Habit};
use crate::collect::ColumnBuilder;
use crate::error::{FragmentError, Result};
use crate::filter::{self, KeyHasher};
use crate::footer::{self, Chunk, FORMAT_VERSION, Footer, KeyFilter, Piece};
use crate::schema::Schema;
use crate::zone::Zone;

/// How the names of files that are being written end.
pub const TEMPORARY_SUFFIX: &str = ".frag.tmp";

/// A fragment that is on stable storage.
#[derive(Debug, Clone)]
pub struct Written {
    /// The BLAKE3 of the file, in lower-case hexadecimal.
    pub hash: String,
    /// Where it is.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// Its number of rows.
    pub rows: u64,
    /// For each position in the fragment, the row of the builder that is there.
    pub order: Vec<u32>,
}

/// Where the fragment with this hash is below `dir`.
pub fn fragment_path(dir: &Path, hash: &str) -> PathBuf {
    dir.join(hash.get(..2).unwrap_or(hash)).join(format!("{hash}.frag"))
}

pub(crate) fn write(
    dir: &Path,
    schema: Schema,
    options: &BuilderOptions,
    columns: Vec<ColumnBuilder>,
    rows: usize,
    naming: impl FnOnce(&str),
) -> Result<Written> {
    let order = sort(&schema, &columns, rows);
    let blocks = cut(options, &columns, &order);
    make_folder(dir)?;
    let mut out = Output::create(dir)?;
    out.put(&footer::header())?;

    let hashes = key_hashes(&schema, &columns, &order);
    let lags: Vec<Vec<u32>> = blocks.iter().map(|b| lags(&schema, &columns, &order[b.clone()])).collect();
    let encoder = Encoder::new();
    let mut chunks = Vec::with_capacity(columns.len());
    for (column, spec) in columns.into_iter().zip(&schema.columns) {
        let mut of_column = Vec::with_capacity(blocks.len());
        let mut habit = Habit::default();
        for (block, lags) in blocks.iter().zip(&lags) {
            let values = column.gather(&order[block.clone()]);
            let encoded = encoder.encode(&values, spec.ty, lags, &mut habit).map_err(|what| FragmentError::Encode {
                path: dir.to_path_buf(),
                column: spec.name.clone(),
                what,
            })?;
            of_column.push(Chunk {
                piece: out.piece(&encoded.bytes)?,
                values_len: (encoded.bytes.len() - encoded.nulls_len) as u64,
                repr: encoded.repr,
                zone: Zone::of_rows(&values),
            });
        }
        chunks.push(of_column);
    }
    let mut filters = Vec::with_capacity(hashes.len());
    for (key, of_key) in hashes {
        let pieces = blocks.iter().map(|block| {
            let live: Vec<u64> = of_key[block.clone()].iter().flatten().copied().collect();
            out.piece(&filter::build(&live))
        });
        filters.push(KeyFilter { key, blocks: pieces.collect::<Result<_>>()? });
    }
    let footer = Footer {
        version: FORMAT_VERSION,
        edition: codec::edition(),
        encodings: encoder.encodings(),
        schema,
        blocks: blocks.iter().map(|b| b.len() as u32).collect(),
        columns: chunks,
        filters,
    };
    let footer = footer.encode().map_err(|what| FragmentError::input(format!("footer: {what}")))?;
    out.put(&footer)?;
    out.put(&footer::tail(&footer))?;
    let (hash, path, bytes) = out.publish(dir, naming)?;
    Ok(Written { hash, path, bytes, rows: rows as u64, order })
}

/// The order of rows: by the sort key, rows with equal keys as they came.
fn sort(schema: &Schema, columns: &[ColumnBuilder], rows: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..rows as u32).collect();
    let key: Vec<&ColumnBuilder> = schema.sort_key.iter().map(|c| &columns[*c]).collect();
    match pack(&key, rows) {
        Some(Packed::Narrow(mut packed, mask)) => {
            if !packed.is_sorted() {
                packed.sort_unstable();
                order = packed.iter().map(|k| (*k & mask) as u32).collect();
            }
        }
        Some(Packed::Wide(mut packed)) => {
            if !packed.is_sorted() {
                packed.sort_unstable();
                order = packed.iter().map(|k| *k as u32).collect();
            }
        }
        None if key.is_empty() => {}
        None => order.sort_by(|a, b| {
            key.iter().map(|c| c.compare(*a as usize, *b as usize)).find(|o| o.is_ne()).unwrap_or(a.cmp(b))
        }),
    }
    order
}

/// The key of each row as one number, with the row's number behind it.
enum Packed {
    /// And the bits that are the row's.
    Narrow(Vec<u64>, u64),
    Wide(Vec<u128>),
}

/// The packed keys of all rows, if they fit: sorting these is several times faster than comparing columns.
fn pack(key: &[&ColumnBuilder], rows: usize) -> Option<Packed> {
    if key.is_empty() {
        return None;
    }
    let row_bits = u32::BITS - (rows as u32).leading_zeros();
    let mut bits = row_bits;
    let mut columns = Vec::with_capacity(key.len());
    for column in key {
        let numbers = column.ranks()?;
        let width = u64::BITS - numbers.iter().max()?.leading_zeros();
        bits += width;
        columns.push((numbers, width));
    }
    fn shifted<T>(columns: &[(Vec<u64>, u32)], rows: usize, add: impl Fn(&mut T, u64, u32), zero: T) -> Vec<T>
    where
        T: Copy,
    {
        let mut packed = vec![zero; rows];
        for (numbers, width) in columns {
            packed.iter_mut().zip(numbers).for_each(|(p, n)| add(p, *n, *width));
        }
        packed
    }
    if bits <= u64::BITS {
        // A column of one value has a width of zero, and a shift of the whole width is not one.
        let mut packed = shifted(&columns, rows, |p: &mut u64, n, w| *p = p.checked_shl(w).unwrap_or(0) | n, 0);
        packed.iter_mut().zip(0u64..).for_each(|(p, row)| *p = *p << row_bits | row);
        return Some(Packed::Narrow(packed, (1 << row_bits) - 1));
    }
    if bits - row_bits + 32 > u128::BITS {
        return None;
    }
    let mut packed = shifted(&columns, rows, |p: &mut u128, n, w| *p = *p << w | u128::from(n), 0);
    packed.iter_mut().zip(0u128..).for_each(|(p, row)| *p = *p << 32 | row);
    Some(Packed::Wide(packed))
}

/// Numbers of rows before which a value similar to a row's may be found: the row before; and, where rows are sorted by time and
/// then by series, the same series at the time before.
fn lags(schema: &Schema, columns: &[ColumnBuilder], order: &[u32]) -> Vec<u32> {
    const LOOK: usize = 16;
    const LONGEST: usize = 4096;
    let mut lags = vec![1];
    let Some((_, series)) = schema.sort_key.split_first().filter(|(_, series)| !series.is_empty()) else {
        return lags;
    };
    let same = |a: u32, b: u32| series.iter().all(|c| columns[*c].compare(a as usize, b as usize).is_eq());
    let mut distances = Vec::with_capacity(LOOK);
    for i in 0..LOOK {
        let at = order.len() / 2 * i / LOOK;
        let Some((row, behind)) = order.get(at..).and_then(|o| o.split_first()) else { break };
        match behind.iter().take(LONGEST).position(|other| same(*row, *other)) {
            Some(d) => distances.push(d as u32 + 1),
            // Where the first do not repeat, none are series.
            None if distances.is_empty() => return lags,
            None => {}
        }
    }
    distances.sort_unstable();
    // The one in the middle is the one that most have, if most have one.
    if let Some(lag) = distances.get(distances.len() / 2).filter(|lag| **lag > 1)
        && distances.iter().filter(|d| *d == lag).count() * 2 > LOOK
    {
        lags.push(*lag);
    }
    lags
}

/// Cuts the ordered rows into blocks. A block has at least one row, whatever its size.
fn cut(options: &BuilderOptions, columns: &[ColumnBuilder], order: &[u32]) -> Vec<std::ops::Range<usize>> {
    let limit = options.block_bytes.min(1 << 30);
    // Columns of which even a full block of the longest value stays below the limit need no counting.
    let may_exceed = |c: &&ColumnBuilder| c.longest().saturating_mul(options.block_rows as usize) > limit;
    let wide: Vec<&ColumnBuilder> = columns.iter().filter(|c| c.ty().is_bytes()).filter(may_exceed).collect();
    let mut blocks = Vec::new();
    let mut start = 0;
    let mut sizes = vec![0usize; wide.len()];
    for (i, row) in order.iter().enumerate() {
        let full = i - start == options.block_rows as usize;
        let wider = |(size, c): (&usize, &&ColumnBuilder)| size.saturating_add(c.row_bytes(*row as usize)) > limit;
        if i > start && (full || sizes.iter().zip(&wide).any(wider)) {
            blocks.push(start..i);
            start = i;
            sizes.fill(0);
        }
        for (size, c) in sizes.iter_mut().zip(&wide) {
            *size += c.row_bytes(*row as usize);
        }
    }
    blocks.push(start..order.len());
    blocks
}

/// For each key with filters, the hash of each row in fragment order; `None` where the key has a null.
fn key_hashes(schema: &Schema, columns: &[ColumnBuilder], order: &[u32]) -> Vec<(usize, Vec<Option<u64>>)> {
    schema
        .filtered_keys()
        .map(|k| {
            let key: Vec<&ColumnBuilder> = schema.keys[k].columns.iter().map(|c| &columns[*c]).collect();
            let of_row = |row: &u32| {
                let row = *row as usize;
                let mut h = KeyHasher::new();
                let fed = key.iter().all(|c| match c.ty().is_bytes() && !c.is_null(row) {
                    true => h.bytes(c.bytes(row)),
                    false => h.feed(&c.value(row)),
                });
                fed.then(|| h.finish())
            };
            (k, order.iter().map(of_row).collect())
        })
        .collect()
}

/// A file that is being written. Dropping it before it has its name removes it.
struct Output {
    temporary: PathBuf,
    file: Option<BufWriter<File>>,
    hasher: blake3::Hasher,
    len: u64,
}

impl Output {
    fn create(dir: &Path) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            let temporary = dir.join(format!("{}-{n}{TEMPORARY_SUFFIX}", std::process::id()));
            match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary) {
                Ok(file) => {
                    // Where files cannot be locked, age alone says what is abandoned.
                    let _ = file.lock();
                    if !temporary.exists() {
                        // Removed as abandoned, before it was locked.
                        continue;
                    }
                    let file = Some(BufWriter::with_capacity(1 << 20, file));
                    return Ok(Self { temporary, file, hasher: blake3::Hasher::new(), len: 0 });
                }
                // Left by a crashed process that had the same id.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(FragmentError::io(&temporary, e)),
            }
        }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        if let Some(file) = &mut self.file {
            file.write_all(bytes).map_err(|e| FragmentError::io(&self.temporary, e))?;
        }
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn piece(&mut self, bytes: &[u8]) -> Result<Piece> {
        let piece = Piece { offset: self.len, len: bytes.len() as u64, crc32c: crc32c::crc32c(bytes) };
        self.put(bytes)?;
        Ok(piece)
    }

    /// Makes the content durable and gives it its name.
    fn publish(mut self, dir: &Path, naming: impl FnOnce(&str)) -> Result<(String, PathBuf, u64)> {
        let failed = |e| FragmentError::io(&self.temporary, e);
        if let Some(file) = &mut self.file {
            // It stays open, for its lock, until it has its name.
            file.flush().and_then(|()| file.get_ref().sync_all()).map_err(failed)?;
        }
        let hash = self.hasher.finalize().to_hex().to_string();
        let path = fragment_path(dir, &hash);
        let folder = path.parent().unwrap_or(dir);
        make_folder(folder)?;
        naming(&hash);
        // Content that is there already is replaced by the same, or by the right one if it was damaged.
        fs::rename(&self.temporary, &path).map_err(|e| FragmentError::io(&path, e))?;
        self.temporary = PathBuf::new();
        sync_folder(folder)?;
        sync_folder(dir)?;
        Ok((hash, path, self.len))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.temporary.as_os_str().is_empty() {
            drop(self.file.take());
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Whether a file with a temporary name is one that no living process writes, as far as that can be told.
pub fn is_abandoned(temporary: &Path) -> bool {
    File::open(temporary).is_ok_and(|file| !matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// Removes a file with a temporary name unless a living process writes it.
///
/// # Errors
/// Of the file system; a file that is gone is none.
pub fn remove_abandoned(temporary: &Path) -> io::Result<()> {
    let gone = |e: io::Error| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) };
    match File::open(temporary) {
        // The lock is held until the file is removed: who creates one looks whether it is there when it has the lock.
        Ok(file) => match file.try_lock() {
            Err(TryLockError::WouldBlock) => Ok(()),
            _ => fs::remove_file(temporary).or_else(gone),
        },
        Err(e) => gone(e),
    }
}

fn sync_folder(path: &Path) -> Result<()> {
    File::open(path).and_then(|f| f.sync_all()).map_err(|e| FragmentError::io(path, e))
}

/// Makes a folder and those above it, each durable in its parent.
pub fn make_folder(path: &Path) -> Result<()> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().unwrap_or(Path::new("/"));
    make_folder(parent)?;
    match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists || !path.is_dir() => Err(FragmentError::io(path, e)),
        _ if parent.as_os_str().is_empty() => sync_folder(Path::new(".")),
        _ => sync_folder(parent),
    }
}
