//! What the planner tells the executor of a WarmScan.

use super::first::First;
use crate::pg::list::{from_integers, integers};
use pgrx::pg_sys;
use pgrx::pg_sys::Oid;

/// Which rows a scan returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    All,
    Fragments,
    Delta,
}

/// What the planner tells the executor, kept as a list of integers in the plan.
#[derive(Clone, Copy, Debug)]
pub struct Private {
    pub part: Part,
    /// The index whose key is looked up, and how many of its columns.
    pub lookup: Option<(Oid, usize)>,
    /// Only rows that can come first are needed.
    pub first: Option<First>,
}

impl Private {
    /// As a list that can be copied and sent to parallel workers.
    ///
    /// # Safety
    /// Allocates in the current memory context.
    pub unsafe fn to_list(self) -> *mut pg_sys::List {
        let part = match self.part {
            Part::All => 0,
            Part::Fragments => 1,
            Part::Delta => 2,
        };
        let (index, keys) = self.lookup.unwrap_or((Oid::INVALID, 0));
        let (key, by, largest) = self.first.map_or((0, 0, false), |f| (f.key, f.by, f.largest));
        // SAFETY: the caller's promise.
        unsafe { from_integers(&[part, index.to_u32() as i32, keys as i32, key.into(), by.into(), i32::from(largest)]) }
    }

    /// What [`Private::to_list`] made.
    ///
    /// # Safety
    /// `list` is NIL or a list of integers.
    pub unsafe fn from_list(list: *mut pg_sys::List) -> Self {
        // SAFETY: made by `to_list`.
        let values = unsafe { integers(list) };
        let get = |i: usize| values.get(i).copied().unwrap_or(0);
        Self {
            part: match get(0) {
                1 => Part::Fragments,
                2 => Part::Delta,
                _ => Part::All,
            },
            first: (get(3) != 0).then(|| First { key: get(3) as i16, by: get(4) as i16, largest: get(5) != 0 }),
            lookup: (get(1) != 0).then(|| (Oid::from(get(1) as u32), get(2) as usize)),
        }
    }
}
