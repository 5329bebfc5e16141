//! What an ERROR says besides SQLSTATE, message, detail and hint.
//!
//! An ERROR of a C function that was called from Rust becomes an unwind, and is raised again where Rust ends. pgrx carries
//! those four over and nothing else: the CONTEXT lines of the code inside (which function, which statement), the names of
//! the table and the constraint, the inner query and the positions would be gone. Here they are kept:
//!
//! ```text
//!   outer callbacks … ─ C: ereport(ERROR) in a callback of ours ─ pgrx raises it again
//!                         │ errfinish: inner callbacks, then `capture`         │ errfinish: `replay`, then outer callbacks
//!                         └──────────────► KEPT ─► unwinding past Frame ─► `arm` pushes `replay`
//! ```
//!
//! `capture` is an error context callback below those of the C code inside and above those outside, so it sees exactly what
//! the inner ones said. If Rust code swallows the ERROR instead, what was kept is dropped by the next call that succeeds, or
//! stays unused, because `replay` only adds to an error with the same SQLSTATE.
//!
//! An error that starts in Rust gets names of database objects in the same way: [`name_constraint`].

use core::ffi::{c_char, c_int, c_void};
use pgrx::pg_sys;
use std::cell::RefCell;
use std::ffi::{CStr, CString};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};

// Not those of pgrx: it makes each call a boundary of its own, which has no place inside `errfinish`.
unsafe extern "C-unwind" {
    fn CopyErrorData() -> *mut pg_sys::ErrorData;
    fn FreeErrorData(data: *mut pg_sys::ErrorData);
    fn geterrcode() -> c_int;
    fn errcontext_msg(format: *const c_char, ...) -> c_int;
    fn errdetail_log(format: *const c_char, ...) -> c_int;
    fn err_generic_string(field: c_int, text: *const c_char) -> c_int;
    fn errposition(position: c_int) -> c_int;
    fn internalerrposition(position: c_int) -> c_int;
    fn internalerrquery(query: *const c_char) -> c_int;
}

#[derive(Default)]
struct Kept {
    sqlstate: c_int,
    context: Option<CString>,
    detail_log: Option<CString>,
    /// Schema, table, column, data type, constraint: in the order of [`NAMES`].
    names: [Option<CString>; 5],
    position: c_int,
    inner_position: c_int,
    inner_query: Option<CString>,
}

/// The fields of the protocol (`postgres_ext.h`) for [`Kept::names`].
const NAMES: [u8; 5] = *b"stcdn";
const SCHEMA: usize = 0;
const TABLE: usize = 1;
const CONSTRAINT: usize = 4;

thread_local! {
    static KEPT: RefCell<Option<Kept>> = const { RefCell::new(None) };
}

/// Whether [`KEPT`] has something: asked after every call.
static FULL: AtomicBool = AtomicBool::new(false);

static mut REPLAY: pg_sys::ErrorContextCallback =
    pg_sys::ErrorContextCallback { previous: null_mut(), callback: Some(replay), arg: null_mut() };

/// Calls `f`; an ERROR that leaves it keeps everything it says.
#[inline]
pub fn kept<R>(f: impl FnOnce() -> R) -> R {
    struct Frame(pg_sys::ErrorContextCallback);
    impl Drop for Frame {
        #[inline]
        fn drop(&mut self) {
            // SAFETY: whatever was pushed above this frame has ended with `f`.
            unsafe { pg_sys::error_context_stack = self.0.previous };
            if FULL.load(Ordering::Relaxed) {
                if std::thread::panicking() { arm() } else { drop(take()) }
            }
        }
    }
    // SAFETY: a backend has one thread; the frame stays where it is until it is dropped, which takes it off the stack.
    unsafe {
        let mut frame = Frame(pg_sys::ErrorContextCallback {
            previous: pg_sys::error_context_stack,
            callback: Some(capture),
            arg: null_mut(),
        });
        pg_sys::error_context_stack = &raw mut frame.0;
        f()
    }
}

/// The error that is raised next, with `sqlstate`, is about a constraint of a table.
pub fn name_constraint(sqlstate: c_int, table: pg_sys::Oid, constraint: &CStr) {
    let mut kept = Kept { sqlstate, ..Kept::default() };
    // SAFETY: both functions return NULL or a C string.
    unsafe {
        kept.names[SCHEMA] = owned(pg_sys::get_namespace_name(pg_sys::get_rel_namespace(table)));
        kept.names[TABLE] = owned(pg_sys::get_rel_name(table));
    }
    kept.names[CONSTRAINT] = Some(constraint.to_owned());
    keep(kept);
    arm();
}

fn keep(kept: Kept) {
    KEPT.set(Some(kept));
    FULL.store(true, Ordering::Relaxed);
}

fn take() -> Option<Kept> {
    FULL.store(false, Ordering::Relaxed);
    KEPT.take()
}

/// Puts `replay` on the stack of callbacks.
fn arm() {
    // SAFETY: a backend has one thread; the callbacks on the stack are live.
    unsafe {
        let replay = &raw mut REPLAY;
        let mut at = pg_sys::error_context_stack;
        while !at.is_null() {
            if std::ptr::eq(at, replay) {
                return;
            }
            at = (*at).previous;
        }
        (*replay).previous = pg_sys::error_context_stack;
        pg_sys::error_context_stack = replay;
    }
}

unsafe fn owned(text: *const c_char) -> Option<CString> {
    // SAFETY: the caller's promise: NULL or a C string.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_owned())
}

/// Called by `errfinish` after the callbacks of the code inside.
unsafe extern "C-unwind" fn capture(_: *mut c_void) {
    // SAFETY: an error is being reported; the copy must not be made in ErrorContext, where `errfinish` runs callbacks.
    unsafe {
        let error_context = pg_sys::CurrentMemoryContext;
        pg_sys::CurrentMemoryContext = pg_sys::TopMemoryContext;
        let data = CopyErrorData();
        let d = &*data;
        if d.elevel == pgrx::PgLogLevel::ERROR as c_int {
            keep(Kept {
                sqlstate: d.sqlerrcode,
                context: owned(d.context),
                detail_log: owned(d.detail_log),
                names: [d.schema_name, d.table_name, d.column_name, d.datatype_name, d.constraint_name]
                    .map(|name| owned(name)),
                position: d.cursorpos,
                inner_position: d.internalpos,
                inner_query: owned(d.internalquery),
            });
        }
        FreeErrorData(data);
        pg_sys::CurrentMemoryContext = error_context;
    }
}

/// Called by `errfinish` when the error is raised again, before the callbacks of the code outside.
unsafe extern "C-unwind" fn replay(_: *mut c_void) {
    // SAFETY: an error is being reported; the functions copy what they are given.
    unsafe {
        // A NOTICE on the way does not have that SQLSTATE.
        if KEPT.with_borrow(|kept| kept.as_ref().is_none_or(|k| k.sqlstate != geterrcode())) {
            return;
        }
        let Some(kept) = take() else { return };
        if let Some(text) = &kept.context {
            errcontext_msg(c"%s".as_ptr(), text.as_ptr());
        }
        if let Some(text) = &kept.detail_log {
            errdetail_log(c"%s".as_ptr(), text.as_ptr());
        }
        for (field, name) in NAMES.into_iter().zip(&kept.names) {
            if let Some(name) = name {
                err_generic_string(c_int::from(field), name.as_ptr());
            }
        }
        errposition(kept.position);
        internalerrposition(kept.inner_position);
        if let Some(query) = &kept.inner_query {
            internalerrquery(query.as_ptr());
        }
    }
}
