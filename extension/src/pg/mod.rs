//! Safe-ish wrappers over PostgreSQL's C interface; with the access-method callbacks, the only place of unsafe code.
//!
//! What differs between the major versions of PostgreSQL is in [`compat`], the state of btree scans in [`btree`], and nowhere else. What pgrx does not bind is
//! declared in [`ext`]; those functions are called through [`guarded`], which turns a longjmp into a Rust unwind.

pub mod btree;
pub mod catalog;
pub mod compat;
pub mod deform;
pub mod diagnostics;
pub mod ext;
pub mod failpoint;
pub mod list;
pub mod segment_rows;
pub mod standby;
pub mod stat;
pub mod swap;
pub mod tid;

use pgrx::pg_sys;
#[cfg(target_env = "gnu")]
use std::ffi::c_int;

/// Has malloc keep some of what is freed instead of giving it back to the kernel at once. A block's columns are a few hundred kilobytes each,
/// got and freed for every block; with glibc's defaults each gets fresh pages, and faulting them in was a fifth of an aggregate.
/// Up to 8 MB stay with a backend that has read blocks.
pub fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    {
        const M_TRIM_THRESHOLD: c_int = -1;
        const M_MMAP_THRESHOLD: c_int = -3;
        unsafe extern "C" {
            fn mallopt(parameter: c_int, value: c_int) -> c_int;
        }
        // SAFETY: glibc's, with parameters that it knows; no other thread runs while a library is loaded.
        unsafe {
            mallopt(M_MMAP_THRESHOLD, 4 << 20);
            mallopt(M_TRIM_THRESHOLD, 8 << 20);
        }
    }
}

/// Calls a raw C function (a heap callback, a function of [`ext`]) so that an ERROR inside becomes an unwind, which keeps
/// all that the ERROR says ([`diagnostics`]).
///
/// # Safety
/// `f` may do nothing but call C functions whose preconditions hold.
#[inline]
pub unsafe fn guarded<R: Copy>(f: impl FnOnce() -> R) -> R {
    // SAFETY: the caller's promise; the closure holds nothing that needs dropping between setjmp and longjmp.
    diagnostics::kept(|| unsafe { pg_sys::ffi::pg_guard_ffi_boundary(f) })
}

/// An open relation that is closed (its lock kept until the end of the transaction) when it goes out of scope.
pub struct OpenRelation(pub pg_sys::Relation);

impl OpenRelation {
    /// Opens `oid` with `lock`; the relation must exist.
    pub fn open(oid: pg_sys::Oid, lock: u32) -> Self {
        // SAFETY: relation_open raises an ERROR for an OID that is no relation.
        Self(unsafe { pg_sys::relation_open(oid, lock as pg_sys::LOCKMODE) })
    }

    /// Opens `oid` if it exists.
    pub fn try_open(oid: pg_sys::Oid, lock: u32) -> Option<Self> {
        // SAFETY: try_relation_open returns NULL for an OID that is no relation.
        let rel = unsafe { pg_sys::try_relation_open(oid, lock as pg_sys::LOCKMODE) };
        // Not `then_some`, which would make, and close, what is not open.
        if rel.is_null() { None } else { Some(Self(rel)) }
    }
}

impl Drop for OpenRelation {
    fn drop(&mut self) {
        // After an ERROR the resource owner closes the relation; doing it here as well would count its references twice.
        if !std::thread::panicking() {
            // SAFETY: opened in `open`, closed once.
            unsafe { pg_sys::relation_close(self.0, pg_sys::NoLock as pg_sys::LOCKMODE) }
        }
    }
}

/// The relation's name with its schema, quoted, for messages.
pub fn qualified_name(relid: pg_sys::Oid) -> String {
    // SAFETY: both functions return NULL or a palloc'd C string.
    unsafe {
        let name = pg_sys::get_rel_name(relid);
        if name.is_null() {
            return format!("relation {relid}", relid = relid.to_u32());
        }
        let space = pg_sys::get_namespace_name(pg_sys::get_rel_namespace(relid));
        let quoted = pg_sys::quote_qualified_identifier(space, name);
        std::ffi::CStr::from_ptr(quoted).to_string_lossy().into_owned()
    }
}
