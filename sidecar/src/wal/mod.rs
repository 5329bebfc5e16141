//! WAL: names and formats of PostgreSQL's log files, and the two commands that PostgreSQL runs, [`push`] and [`fetch`].
//!
//! Both start without a connection and without a runtime, since PostgreSQL starts them once per segment.

pub mod fetch;
pub mod name;
pub mod push;
pub mod scan;
pub mod walker;
