//! Open files of fragments, at most [`LIMIT`] of them per thread.
//!
//! A database backend may know many more fragments than it may have files open, and PostgreSQL plans with nearly all
//! descriptors itself. So a fragment does not own a descriptor; it asks for one here, where those not used for longest
//! are closed. A fragment's file is never changed under its name, so opening it again gives the same bytes; if it does
//! not, checksums say so.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{FragmentError, Result};

const LIMIT: usize = 24;

thread_local! {
    /// The file used last is last.
    static OPEN: RefCell<Vec<(u64, Rc<File>)>> = const { RefCell::new(Vec::new()) };
}

/// What one fragment calls its file by.
#[derive(Debug)]
pub(crate) struct FileId(u64);

impl FileId {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// The file, opened if it is not open.
    pub(crate) fn open(&self, path: &Path) -> Result<Rc<File>> {
        OPEN.with_borrow_mut(|open| {
            if let Some(at) = open.iter().position(|(id, _)| *id == self.0) {
                let entry = open.remove(at);
                let file = Rc::clone(&entry.1);
                open.push(entry);
                return Ok(file);
            }
            if open.len() >= LIMIT {
                open.remove(0);
            }
            let file = match File::open(path) {
                Err(e) if out_of_descriptors(&e) && !open.is_empty() => {
                    open.clear();
                    File::open(path)
                }
                other => other,
            };
            let file = Rc::new(file.map_err(|e| FragmentError::io(path, e))?);
            open.push((self.0, Rc::clone(&file)));
            Ok(file)
        })
    }
}

impl Drop for FileId {
    fn drop(&mut self) {
        // Without the thread's storage there is nothing to close any more.
        let _ = OPEN.try_with(|open| open.borrow_mut().retain(|(id, _)| *id != self.0));
    }
}

fn out_of_descriptors(e: &io::Error) -> bool {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    matches!(e.raw_os_error(), Some(ENFILE | EMFILE))
}

/// Reads exactly `len` bytes at `offset`. A file that ends before is damaged.
pub(crate) fn read_at(file: &File, path: &Path, offset: u64, len: usize, what: &str) -> Result<Vec<u8>> {
    let mut out = vec![0; len];
    match file.read_exact_at(&mut out, offset) {
        Ok(()) => Ok(out),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            Err(FragmentError::damaged(path, format!("{what}: the file ends before it")))
        }
        Err(e) => Err(FragmentError::io(path, e)),
    }
}
