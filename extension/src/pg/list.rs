//! PostgreSQL's lists.

use pgrx::pg_sys;

/// The pointers in a list; none for NIL.
///
/// # Safety
/// `list` is NIL or a list of pointers to `T`, not changed while the iterator is used.
pub unsafe fn items<T>(list: *mut pg_sys::List) -> impl ExactSizeIterator<Item = *mut T> {
    // SAFETY: the caller's promise; a list has `length` elements.
    let length = unsafe { if list.is_null() { 0 } else { (*list).length as usize } };
    // SAFETY: as above.
    (0..length).map(move |i| unsafe { (*(*list).elements.add(i)).ptr_value.cast::<T>() })
}

/// The numbers in a list of integers.
///
/// # Safety
/// `list` is NIL or a list of integers.
pub unsafe fn integers(list: *mut pg_sys::List) -> Vec<i32> {
    // SAFETY: the caller's promise.
    unsafe {
        if list.is_null() {
            return Vec::new();
        }
        (0..(*list).length as usize).map(|i| (*(*list).elements.add(i)).int_value).collect()
    }
}

/// A list of integers.
///
/// # Safety
/// Allocates in the current memory context.
pub unsafe fn from_integers(values: &[i32]) -> *mut pg_sys::List {
    // SAFETY: the caller's promise.
    values.iter().fold(std::ptr::null_mut(), |list, v| unsafe { pg_sys::lappend_int(list, *v) })
}

/// A list of pointers.
///
/// # Safety
/// Allocates in the current memory context.
pub unsafe fn from_items<T>(values: impl IntoIterator<Item = *mut T>) -> *mut pg_sys::List {
    // SAFETY: the caller's promise.
    values.into_iter().fold(std::ptr::null_mut(), |list, v| unsafe { pg_sys::lappend(list, v.cast()) })
}

/// Whether a node has this tag.
///
/// # Safety
/// `node` is NULL or a node.
pub unsafe fn is_a<T>(node: *mut T, tag: pg_sys::NodeTag) -> bool {
    // SAFETY: the caller's promise; every node begins with its tag.
    unsafe { !node.is_null() && (*node.cast::<pg_sys::Node>()).type_ == tag }
}
