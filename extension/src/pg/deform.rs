//! Taking heap tuples apart, as `heap_deform_tuple` does.
//!
//! A move takes every tuple of a table apart. The C function is called through a guard against longjmp, which costs as much as
//! its work for a tuple of few attributes; and it looks up each attribute's properties again. Its rules are PostgreSQL's on-disk
//! format (`access/htup_details.h`, `access/tupmacs.h`), which has been the same for all versions here.

use super::compat;
use pgrx::pg_sys;

/// What the place of a value depends on.
#[derive(Clone, Copy)]
struct Attribute {
    /// Bytes; -1: a varlena; -2: a NUL-terminated string.
    len: i16,
    /// 1, 2, 4 or 8.
    align: usize,
    by_value: bool,
}

/// Takes tuples of one table apart.
pub struct Deformer {
    desc: pg_sys::TupleDesc,
    attributes: Vec<Attribute>,
    /// The values of the tuple taken apart last, by attribute.
    pub values: Vec<pg_sys::Datum>,
    /// Which of them are null.
    pub nulls: Vec<bool>,
}

impl Deformer {
    /// For tuples with this descriptor.
    ///
    /// # Safety
    /// The descriptor stays valid and unchanged while this is used.
    pub unsafe fn new(desc: pg_sys::TupleDesc) -> Self {
        // SAFETY: the caller's promise; all attributes up to natts exist.
        unsafe {
            let natts = (*desc).natts as usize;
            let attribute = |i| {
                let attribute = compat::attribute(desc, i);
                let align = match attribute.attalign as u8 {
                    pg_sys::TYPALIGN_CHAR => 1,
                    pg_sys::TYPALIGN_SHORT => 2,
                    pg_sys::TYPALIGN_INT => 4,
                    _ => 8,
                };
                Attribute { len: attribute.attlen, align, by_value: attribute.attbyval }
            };
            Self {
                desc,
                attributes: (0..natts).map(attribute).collect(),
                values: vec![pg_sys::Datum::null(); natts],
                nulls: vec![true; natts],
            }
        }
    }

    /// Sets `values` and `nulls` to those of `tuple`; what is passed by reference points into it.
    ///
    /// # Safety
    /// `tuple` is a whole tuple with the descriptor, in memory or on a pinned page.
    pub unsafe fn take_apart(&mut self, tuple: &mut pg_sys::HeapTupleData) {
        // SAFETY: the caller's promise. A tuple has as many attributes as its header says; the offsets are those at which
        // `heap_fill_tuple` put them.
        unsafe {
            let header = tuple.t_data;
            let present = usize::from((*header).t_infomask2 & pg_sys::HEAP_NATTS_MASK as u16);
            if present < self.attributes.len() {
                // Attributes that were added later have their missing values.
                let (values, nulls) = (self.values.as_mut_ptr(), self.nulls.as_mut_ptr());
                return pg_sys::heap_deform_tuple(tuple, self.desc, values, nulls);
            }
            let bitmap = ((*header).t_infomask & pg_sys::HEAP_HASNULL as u16 != 0)
                .then(|| header.cast::<u8>().add(std::mem::offset_of!(pg_sys::HeapTupleHeaderData, t_bits)));
            let start = header.cast::<u8>().add(usize::from((*header).t_hoff));
            let mut offset = 0usize;
            for (i, attribute) in self.attributes.iter().enumerate() {
                if bitmap.is_some_and(|b| *b.add(i >> 3) & (1 << (i & 7)) == 0) {
                    (self.values[i], self.nulls[i]) = (pg_sys::Datum::null(), true);
                    continue;
                }
                // A short varlena is not aligned; what precedes an aligned one is zero, which no header's first byte is.
                if attribute.len != -1 || *start.add(offset) == 0 {
                    offset = (offset + attribute.align - 1) & !(attribute.align - 1);
                }
                let at = start.add(offset);
                self.nulls[i] = false;
                self.values[i] = match (attribute.by_value, attribute.len) {
                    (true, 1) => pg_sys::Datum::from(*at.cast::<i8>()),
                    (true, 2) => pg_sys::Datum::from(*at.cast::<i16>()),
                    (true, 4) => pg_sys::Datum::from(*at.cast::<i32>()),
                    (true, _) => pg_sys::Datum::from(*at.cast::<i64>()),
                    (false, _) => pg_sys::Datum::from(at),
                };
                offset += match attribute.len {
                    -1 => pgrx::varsize_any(at.cast()),
                    -2 => std::ffi::CStr::from_ptr(at.cast()).to_bytes_with_nul().len(),
                    len => len as usize,
                };
            }
        }
    }
}
