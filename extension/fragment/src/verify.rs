//! Proving that a fragment is what was written: its hash, every checksum, every value, and that zones, filters and sort
//! order hold.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;

use crate::column::Column;
use crate::error::{FragmentError, Result};
use crate::filter;
use crate::footer::{HEADER_LEN, Piece};
use crate::fragment::{Fragment, hash_of_name};
use crate::value::Value;
use crate::zone::Zone;

/// What was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The BLAKE3 of the file.
    pub hash: String,
    /// Its length.
    pub bytes: u64,
    /// Its rows.
    pub rows: u64,
    /// Its blocks.
    pub blocks: usize,
    /// Its columns.
    pub columns: usize,
}

/// Verifies the fragment at `path`, whose name must be the one that its content gives.
pub fn verify_file(path: &Path) -> Result<Summary> {
    if hash_of_name(path).is_none() {
        return Err(FragmentError::input(format!("{} is not named as a fragment is", path.display())));
    }
    Fragment::open(path, None)?.verify()
}

impl Fragment {
    /// Reads everything and checks it. The hash is compared with the one given to [`Fragment::open`] and with the file's
    /// name, if that has the form of one.
    pub fn verify(&self) -> Result<Summary> {
        let hash = self.hash()?;
        let named = hash_of_name(&self.path);
        for expected in [self.expected_hash.as_deref(), named].into_iter().flatten() {
            if expected != hash {
                // Where it is damaged says more than that it is.
                self.verify_content()?;
                return Err(FragmentError::damaged(&self.path, format!("its hash is {hash} instead of {expected}")));
            }
        }
        self.verify_content()?;
        Ok(Summary {
            hash,
            bytes: self.bytes(),
            rows: self.rows(),
            blocks: self.blocks().len(),
            columns: self.schema().columns.len(),
        })
    }

    fn hash(&self) -> Result<String> {
        let file = self.open_file()?;
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; 1 << 20];
        let mut at = 0;
        loop {
            match file.read_at(&mut buffer, at) {
                Ok(0) => return Ok(hasher.finalize().to_hex().to_string()),
                Ok(n) => {
                    hasher.update(&buffer[..n]);
                    at += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(FragmentError::io(&self.path, e)),
            }
        }
    }

    fn verify_content(&self) -> Result<()> {
        self.verify_places()?;
        let mut last: Option<Vec<Value>> = None;
        for block in 0..self.blocks().len() {
            let columns = (0..self.schema().columns.len()).map(|c| self.verify_chunk(block, c).map(Rc::new));
            let columns: Vec<Rc<Column>> = columns.collect::<Result<_>>()?;
            last = self.verify_order(block, &columns, last)?;
            self.verify_filters(block, &columns)?;
        }
        Ok(())
    }

    /// Checks that chunks and filters follow each other without gap or overlap, so that no byte is unchecked.
    fn verify_places(&self) -> Result<()> {
        let chunks = self.footer.columns.iter().flatten().map(|c| &c.piece);
        let pieces: Vec<&Piece> = chunks.chain(self.footer.filters.iter().flat_map(|f| &f.blocks)).collect();
        let mut at = HEADER_LEN as u64;
        for p in pieces {
            if p.offset != at {
                return Err(FragmentError::damaged(
                    &self.path,
                    format!("footer: a piece at {} instead of {at}", p.offset),
                ));
            }
            at += p.len;
        }
        if at != self.body_end {
            let what = format!("footer: pieces end at {at} instead of {}", self.body_end);
            return Err(FragmentError::damaged(&self.path, what));
        }
        Ok(())
    }

    fn verify_chunk(&self, block: usize, col: usize) -> Result<Column> {
        let column = self.read_chunk(block, col)?.column().map_err(|e| self.damaged_chunk(block, col, &e))?;
        if Zone::of(&column) != *self.zone(block, col) {
            return Err(self.damaged_chunk(block, col, "its zone map does not fit its values"));
        }
        Ok(column)
    }

    fn verify_order(
        &self,
        block: usize,
        columns: &[Rc<Column>],
        mut last: Option<Vec<Value>>,
    ) -> Result<Option<Vec<Value>>> {
        if self.schema().sort_key.is_empty() {
            return Ok(None);
        }
        for row in 0..self.blocks()[block].rows as usize {
            let key: Vec<Value> = self.schema().sort_key.iter().map(|c| columns[*c].value(row)).collect();
            if last.as_ref().is_some_and(|l| *l > key) {
                let what = format!("block {block}, row {row}: out of sort order");
                return Err(FragmentError::damaged(&self.path, what));
            }
            last = Some(key);
        }
        Ok(last)
    }

    fn verify_filters(&self, block: usize, columns: &[Rc<Column>]) -> Result<()> {
        for (f, of_key) in self.footer.filters.iter().enumerate() {
            let bits = self.filter(f, block)?;
            let key = &self.schema().keys[of_key.key];
            for row in 0..self.blocks()[block].rows as usize {
                let values: Vec<Value> = key.columns.iter().map(|c| columns[*c].value(row)).collect();
                if filter::hash(&values).is_some_and(|h| !filter::may_contain(&bits, h)) {
                    let what = format!("filter of key {:?}, block {block}: row {row} is not in it", key.name);
                    return Err(FragmentError::damaged(&self.path, what));
                }
            }
        }
        Ok(())
    }
}
