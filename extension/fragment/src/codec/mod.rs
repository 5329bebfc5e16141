//! Encoding and decoding column chunks with Vortex. This is the only room that knows Vortex.
//!
//! A chunk holds the values of one column of one block that are not null, and the set of the rows that are:
//!
//! ```text
//! ┌──────────────────────────────┬────────────────────────┐
//! │ Vortex array, serialized     │ null rows, as Roaring  │   either may be of length zero
//! └──────────────────────────────┴────────────────────────┘
//! ```
//!
//! What the array means is in the chunk's [`Repr`] in the footer. Vortex sees unsigned integers, floats, and bytes, and
//! never a null. Integers are reduced first: the smallest value is subtracted and the greatest common divisor of the
//! differences divided out (timestamps with whole seconds lose 20 bits by that), and what is left is stored in the
//! narrowest unsigned type. That is exact by construction, and decoding is one multiplication and one addition. Floats that are
//! decimals are such integers too. Where that makes them smaller, integers are replaced by their differences to those
//! some rows before ([`whole`]).
//!
//! Of what is left the writer counts what each layout takes (`pack`); only what counting cannot judge is given to
//! Vortex's compressor, which tries encodings on samples. Profiles said why: choosing by samples, for each chunk anew, was most of what
//! encoding cost, and integers mostly end up bit-packed anyway.
//!
//! One value is read without decoding the others where that is possible: [`packed`] for whole numbers and for the codes of few distinct texts,
//! [`frames`] for text in zstd frames; of anything else Vortex is asked for one.
//!
//! Vortex is trusted with nothing. The writer decodes every chunk that it has encoded and compares it bit for bit; one
//! that differs is written uncompressed. The reader checks a chunk's checksum before Vortex sees it, and a panic or error
//! inside Vortex becomes an error.

mod decode;
mod encode;
mod frames;
mod pack;
mod packed;
pub(crate) mod whole;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use vortex::VortexSessionDefault;
use vortex::array::session::ArraySessionExt;
use vortex::encodings::{alp, bytebool, datetime_parts, decimal_byte_parts, fastlanes, fsst, pco, runend, sequence};
use vortex::encodings::{sparse, zigzag, zstd};
use vortex::session::VortexSession;
use vortex::session::registry::Id;

pub(crate) use decode::{Context, Lazy, Reading};
pub(crate) use encode::{Encoder, Habit, number_value};
pub(crate) use packed::partition;
pub(crate) use whole::Whole;

use crate::value::Value;

/// What the Vortex array of a chunk means.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Repr {
    /// There is no array: no row has a value.
    Empty,
    /// There is no array: every row that is not null has this value, bit for bit.
    Constant(Value),
    /// Unsigned integers `x` of this many bits; the value is `base + x * scale`.
    Integer { bits: u8, base: i128, scale: u64 },
    /// Floats of the column's width.
    Float,
    /// Bytes, as a Vortex utf8 array.
    Text,
    /// Bytes, as a Vortex binary array. A decimal is its 16 bytes, little-endian.
    Binary,
    /// Unsigned integers that are differences to those before (format version 2).
    Steps(Whole),
    /// Floats as whole numbers divided by this power of ten, and those as unsigned integers (format version 2).
    Decimal { digits: u8, whole: Whole },
}

impl Repr {
    /// How unsigned integers are to be read, if there are any.
    pub(crate) fn whole(&self) -> Option<Whole> {
        match self {
            Self::Integer { bits, base, scale } => {
                Some(Whole { bits: *bits, base: *base, scale: *scale, lag: 0, offset: 0 })
            }
            Self::Steps(whole) | Self::Decimal { whole, .. } => Some(*whole),
            _ => None,
        }
    }

    /// The first format version that has it.
    pub(crate) fn since(&self) -> u32 {
        match self {
            Self::Steps(_) | Self::Decimal { .. } => 2,
            _ => 1,
        }
    }
}

/// The edition that the default session of this Vortex release writes; recorded in every fragment.
pub(crate) fn edition() -> String {
    vortex::editions::DEFAULT_CORE_EDITION.to_string()
}

/// Everything that a reader may meet and a writer may use. It starts no thread and no runtime.
static SESSION: LazyLock<VortexSession> = LazyLock::new(|| {
    let session = <VortexSession as VortexSessionDefault>::default();
    bytebool::initialize(&session);
    fsst::initialize(&session);
    zigzag::initialize(&session);
    zstd::initialize(&session);
    session.arrays().register(pco::Pco);
    alp::initialize(&session);
    datetime_parts::initialize(&session);
    decimal_byte_parts::initialize(&session);
    fastlanes::initialize(&session);
    runend::initialize(&session);
    sequence::initialize(&session);
    sparse::initialize(&session);
    session
});

/// Whether arrays of this encoding can be read.
pub(crate) fn is_known(encoding: &str) -> bool {
    SESSION.arrays().registry().contains_key(&Id::new(encoding))
}

/// Runs something of Vortex; a panic becomes an error with its message.
fn guard<T>(run: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Err(format!("decoder panicked: {message}"))
    })
}

fn text(e: impl std::fmt::Display) -> String {
    // Vortex errors carry backtraces behind the first line.
    e.to_string().lines().next().unwrap_or_default().to_string()
}
