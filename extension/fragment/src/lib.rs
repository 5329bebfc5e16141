//! Fragments: immutable, compressed, columnar files of up to about a million rows.
//!
//! A fragment is written once, by [`Builder`], and named by the hash of its content. [`Fragment`] reads it: whole columns
//! of a block, single values, and rows by the values of their columns. This crate knows nothing of PostgreSQL; it stores
//! seven physical types, and what they mean is the caller's affair.
//!
//! What it promises:
//!
//! - **A file under its final name is whole and durable.** It is written under another name, synchronized and renamed.
//! - **Damage is an error.** Every byte is covered by a checksum that is verified before anything is decoded. A damaged
//!   chunk names its block and column; the others stay readable. Nothing panics on damaged content.
//! - **What comes back is what went in**, bit for bit: the writer decodes what it has encoded and compares.
//! - **Bounds hold.** A zone map never excludes a value that is there, a filter never a key.
//!
//! ```text
//!   rows ──► builder ──► writer ──► codec::encode ──► file ──► fragment ──► codec::decode ──► columns
//!                          │  zone, filter, footer                │  lookup, verify; memory, cache: what is kept
//! ```
//!
//! The format is described in `docs/design/fragment-format.md`. [`FORMAT_VERSION`] is part of every file.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod builder;
mod cache;
mod codec;
mod collect;
mod column;
mod error;
mod files;
mod filter;
mod footer;
mod fragment;
mod intern;
mod lookup;
pub mod memory;
mod nulls;
mod rows;
mod schema;
pub mod segment;
mod value;
mod verify;
mod writer;
mod zone;

pub use builder::{Builder, BuilderOptions, MAX_BLOCK_ROWS, MAX_ROWS};
pub use collect::{ColumnBuilder, MAX_VALUE_BYTES};
pub use column::{Column, ColumnData, Dictionary};
pub use error::{FragmentError, Result};
pub use footer::FORMAT_VERSION;
pub use fragment::{Block, Fragment};
pub use schema::{ColumnSpec, KeySpec, PhysicalType, Schema};
pub use value::Value;
pub use verify::{Summary, verify_file};
pub use writer::{TEMPORARY_SUFFIX, Written, fragment_path, is_abandoned, make_folder, remove_abandoned};
pub use zone::{BOUND_BYTES, Zone};
