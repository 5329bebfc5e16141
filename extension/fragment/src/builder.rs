//! Collecting rows in memory until they are written as a fragment.
//!
//! Columns grow independently; [`Builder::end_row`] is what makes a row, and refuses one that has not got exactly one
//! value in every column. Nothing is sorted or encoded before [`Builder::finish`].

use std::path::Path;

use crate::collect::ColumnBuilder;
use crate::error::{FragmentError, Result};
use crate::schema::Schema;
use crate::value::Value;
use crate::writer::{self, Written};

/// How a fragment is laid out.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BuilderOptions {
    /// The number of rows in a block, at most 65,536.
    pub block_rows: u32,
    /// A block ends early when one of its columns has this many bytes of values.
    pub block_bytes: usize,
}

impl Default for BuilderOptions {
    fn default() -> Self {
        Self { block_rows: 32_768, block_bytes: 16 << 20 }
    }
}

impl BuilderOptions {
    /// The defaults, with blocks of this many rows.
    pub fn with_block_rows(block_rows: u32) -> Self {
        Self { block_rows, ..Self::default() }
    }
}

/// The most rows that a block can have.
pub const MAX_BLOCK_ROWS: u32 = 65_536;

/// Rows that will be a fragment.
#[derive(Debug)]
pub struct Builder {
    schema: Schema,
    options: BuilderOptions,
    columns: Vec<ColumnBuilder>,
    rows: usize,
}

impl Builder {
    /// No rows yet. Fails if the schema or the options make no sense.
    pub fn new(schema: Schema, options: BuilderOptions) -> Result<Self> {
        schema.check()?;
        if !(1..=MAX_BLOCK_ROWS).contains(&options.block_rows) {
            let n = options.block_rows;
            return Err(FragmentError::input(format!("blocks of {n} rows (1 to {MAX_BLOCK_ROWS} are possible)")));
        }
        let columns = schema.columns.iter().map(|c| ColumnBuilder::new(c.ty)).collect();
        Ok(Self { schema, options, columns, rows: 0 })
    }

    /// The schema.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// Column `i`, to add a value to.
    ///
    /// # Panics
    /// When there is no such column.
    #[inline]
    pub fn column(&mut self, i: usize) -> &mut ColumnBuilder {
        &mut self.columns[i]
    }

    /// Ends a row: every column must have got exactly one value since the last one, of its own type.
    #[inline]
    pub fn end_row(&mut self) -> Result<()> {
        let rows = self.rows + 1;
        if rows > MAX_ROWS || !self.columns.iter().all(|c| c.len() == rows && c.wrong().is_none()) {
            return Err(self.wrong_row(rows));
        }
        self.rows = rows;
        Ok(())
    }

    /// What is wrong with a row that [`Builder::end_row`] refuses.
    #[cold]
    fn wrong_row(&self, rows: usize) -> FragmentError {
        for (c, spec) in self.columns.iter().zip(&self.schema.columns) {
            match c.wrong() {
                None if c.len() == rows => {}
                None => {
                    let (name, n) = (&spec.name, c.len());
                    return FragmentError::input(format!("row {rows}, column {name:?}: {n} values instead of {rows}"));
                }
                Some(wrong) => {
                    return FragmentError::input(format!("row {rows}, column {:?}: {wrong}", spec.name));
                }
            }
        }
        FragmentError::input(format!("more than {MAX_ROWS} rows in a fragment"))
    }

    /// Adds a row.
    pub fn push_row<'a>(&mut self, values: impl IntoIterator<Item = &'a Value>) -> Result<()> {
        for (n, v) in values.into_iter().enumerate() {
            match self.columns.get_mut(n) {
                Some(c) => c.push(v),
                None => return Err(FragmentError::input(format!("a row with more than {n} values"))),
            }
        }
        self.end_row()
    }

    /// The number of rows so far.
    #[inline]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The memory that the rows take. Writing takes about the size of one block more.
    pub fn memory_bytes(&self) -> usize {
        self.columns.iter().map(ColumnBuilder::memory_bytes).sum()
    }

    /// Sorts the rows, writes them below `dir` under the name that their content gives, and makes that durable.
    ///
    /// When this returns, file and folders are on stable storage. When it fails, nothing is left behind. A crash leaves
    /// at most a file whose name ends in [`crate::TEMPORARY_SUFFIX`].
    pub fn finish(self, dir: &Path) -> Result<Written> {
        self.finish_named(dir, |_| {})
    }

    /// As [`Builder::finish`]; `naming` is called with the fragment's hash when the file is complete, before it has its name.
    pub fn finish_named(self, dir: &Path, naming: impl FnOnce(&str)) -> Result<Written> {
        if self.rows == 0 {
            return Err(FragmentError::input("a fragment without rows"));
        }
        if let Some((i, c)) = self.columns.iter().enumerate().find(|(_, c)| c.len() != self.rows) {
            let name = &self.schema.columns[i].name;
            return Err(FragmentError::input(format!("column {name:?} has {} values for {} rows", c.len(), self.rows)));
        }
        writer::write(dir, self.schema, &self.options, self.columns, self.rows, naming)
    }
}

/// The most rows that a fragment can have. About a million is what the format is made for.
pub const MAX_ROWS: usize = 1 << 28;
