//! WAL: names and formats of PostgreSQL's log files, and the two commands that PostgreSQL runs, [`command`] (with [`push`],
//! [`pusher`], [`outbox`], [`backlog`]) and [`fetch`].
//!
//! Both start without a connection and without a runtime, since PostgreSQL starts them once per segment.

pub mod backlog;
pub mod command;
pub mod fetch;
pub mod name;
pub mod outbox;
pub mod push;
pub mod pusher;
pub mod scan;
pub mod stream;
pub mod walker;
