//! From a column to the bytes of a chunk.

use vortex::array::arrays::{PrimitiveArray, VarBinViewArray};
use vortex::array::serde::SerializeOptions;
use vortex::array::validity::Validity;
use vortex::array::{ArrayContext, ArrayRef, ExecutionCtx, IntoArray, VortexSessionExecute};
use vortex::buffer::Buffer;
use vortex::compressor::BtrBlocksCompressor;
use vortex::dtype::{DType, Nullability};
use vortex::editions::{ComponentKind, EditionSessionExt};
use vortex::encodings::zstd::Zstd;

use super::{Context, Repr, SESSION, decode, guard, text};
use crate::column::{Column, ColumnData};
use crate::nulls::NullSet;
use crate::schema::PhysicalType;
use crate::value::Value;

/// Bytes of at least this average length are also tried with zstd, unless the other encoding makes them this many times smaller.
const WIDE: usize = 20;
const SMALL_ENOUGH: usize = 4;
/// The part of the other encoding's size that zstd must stay below to be taken, in percent.
const ZSTD_GAIN: usize = 92;
const ZSTD_LEVEL: i32 = 3;
/// Uncompressed bytes of a zstd frame, which is what reading one value decompresses: about 30 µs.
const ZSTD_FRAME: usize = 32 << 10;

/// A chunk ready to be written: the Vortex array, then the null set.
pub(crate) struct Encoded {
    pub(crate) repr: Repr,
    pub(crate) bytes: Vec<u8>,
    pub(crate) nulls_len: usize,
}

/// Encodes the chunks of one fragment and collects the encodings that they use.
pub(crate) struct Encoder {
    compressor: BtrBlocksCompressor,
    context: ArrayContext,
}

impl Encoder {
    pub(crate) fn new() -> Self {
        let allowed = SESSION.enabled_component_ids(ComponentKind::Array);
        Self {
            compressor: BtrBlocksCompressor::from_session(&SESSION),
            context: ArrayContext::empty().with_allowed_ids(allowed.into_iter().collect()),
        }
    }

    /// The encodings so far; their positions are what serialized arrays refer to.
    pub(crate) fn encodings(&self) -> Vec<String> {
        self.context.to_ids().iter().map(|id| id.as_str().to_string()).collect()
    }

    /// Encodes a column of one block and proves that decoding gives it back.
    pub(crate) fn encode(&self, column: &Column, ty: PhysicalType) -> Result<Encoded, String> {
        let mut reason = String::new();
        for compress in [true, false] {
            let encoded = guard(|| self.attempt(column, compress)).and_then(|e| {
                let values_len = e.bytes.len() - e.nulls_len;
                let (rows, null_count) = (column.len() as u32, column.null_count() as u32);
                let context = Context::new(&self.encodings());
                let back = decode(e.bytes.clone(), values_len, &e.repr, ty, rows, null_count, &context)?;
                if back.identical(column) { Ok(e) } else { Err("decoding gives other values".to_string()) }
            });
            match encoded {
                Ok(e) => return Ok(e),
                Err(e) => reason = e,
            }
        }
        Err(reason)
    }

    fn attempt(&self, column: &Column, compress: bool) -> Result<Encoded, String> {
        let dense = Dense::of(column);
        let (repr, array) = dense.to_array();
        let mut bytes = match array {
            None => Vec::new(),
            Some(array) if compress => self.compress(array, &repr, &dense)?,
            Some(array) => self.serialize(&array)?,
        };
        let nulls = match &column.nulls {
            Some(nulls) if !matches!(repr, Repr::Empty) && nulls.contains(&true) => NullSet::encode(nulls),
            _ => Vec::new(),
        };
        bytes.extend_from_slice(&nulls);
        Ok(Encoded { repr, bytes, nulls_len: nulls.len() })
    }

    fn compress(&self, array: ArrayRef, repr: &Repr, dense: &Dense<'_>) -> Result<Vec<u8>, String> {
        let mut ctx = SESSION.create_execution_ctx();
        let usual = self.serialize(&self.compressor.compress(&array, &mut ctx).map_err(text)?)?;
        let wide = matches!(repr, Repr::Text | Repr::Binary) && dense.bytes >= WIDE * dense.rows.len();
        if !wide || usual.len() * SMALL_ENOUGH < dense.bytes {
            return Ok(usual);
        }
        let packed = self.serialize(&Self::zstd(array, dense, &mut ctx)?)?;
        Ok(if packed.len() * 100 < usual.len() * ZSTD_GAIN { packed } else { usual })
    }

    fn zstd(array: ArrayRef, dense: &Dense<'_>, ctx: &mut ExecutionCtx) -> Result<ArrayRef, String> {
        let views = array.execute::<VarBinViewArray>(ctx).map_err(text)?;
        let per_frame = (ZSTD_FRAME * dense.rows.len() / dense.bytes.max(1)).max(1);
        let packed = Zstd::from_var_bin_view_without_dict(&views, ZSTD_LEVEL, per_frame, ctx).map_err(text)?;
        Ok(packed.into_array())
    }

    fn serialize(&self, array: &ArrayRef) -> Result<Vec<u8>, String> {
        let options = SerializeOptions { offset: 0, include_padding: true };
        let parts = array.serialize(&self.context, &SESSION, &options).map_err(text)?;
        let mut out = Vec::with_capacity(parts.iter().map(|p| p.len()).sum());
        for p in &parts {
            out.extend_from_slice(p.as_slice());
        }
        Ok(out)
    }
}

/// The rows of a column that are not null.
struct Dense<'a> {
    data: &'a ColumnData,
    rows: Vec<usize>,
    bytes: usize,
}

impl<'a> Dense<'a> {
    fn of(column: &'a Column) -> Self {
        let rows: Vec<usize> = (0..column.len()).filter(|i| !column.is_null(*i)).collect();
        let bytes = rows.iter().map(|i| column.data.bytes(*i).len()).sum();
        Self { data: &column.data, rows, bytes }
    }

    fn to_array(&self) -> (Repr, Option<ArrayRef>) {
        let Some(first) = self.rows.first() else {
            return (Repr::Empty, None);
        };
        let value = self.data.value(*first);
        if self.is_constant(&value) {
            return (Repr::Constant(value), None);
        }
        match self.data {
            ColumnData::Bool(v) => integers(self.rows.iter().map(|i| i128::from(v[*i]))),
            ColumnData::I16(v) => integers(self.rows.iter().map(|i| v[*i].into())),
            ColumnData::I32(v) => integers(self.rows.iter().map(|i| v[*i].into())),
            ColumnData::I64(v) => integers(self.rows.iter().map(|i| v[*i].into())),
            ColumnData::I128(v) => match fits(self.rows.iter().map(|i| v[*i])) {
                true => integers(self.rows.iter().map(|i| v[*i])),
                false => bytes(false, self.rows.iter().map(|i| v[*i].to_le_bytes())),
            },
            ColumnData::F32(v) => floats(self.rows.iter().map(|i| v[*i])),
            ColumnData::F64(v) => floats(self.rows.iter().map(|i| v[*i])),
            data @ (ColumnData::Bytes { .. } | ColumnData::Fixed { .. }) => {
                // Vortex compresses text better than binary, so whatever is valid text is stored as that.
                let utf8 = self.rows.iter().all(|i| std::str::from_utf8(data.bytes(*i)).is_ok());
                bytes(utf8, self.rows.iter().map(|i| data.bytes(*i)))
            }
        }
    }

    fn is_constant(&self, value: &Value) -> bool {
        // A long value is better kept out of the footer, which is read whole.
        const LONGEST: usize = 256;
        match value {
            Value::Bytes(b) if b.len() > LONGEST => false,
            Value::Bytes(b) => self.rows.iter().all(|i| self.data.bytes(*i) == b.as_slice()),
            _ => self.rows.iter().all(|i| self.data.value(*i).identical(value)),
        }
    }
}

/// Whether the differences between the values fit 64 bits.
fn fits(values: impl Iterator<Item = i128>) -> bool {
    let (min, max) = values.fold((i128::MAX, i128::MIN), |(min, max), v| (min.min(v), max.max(v)));
    max.checked_sub(min).is_some_and(|d| u64::try_from(d).is_ok())
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// Values whose differences fit 64 bits, not all equal.
fn integers(values: impl Iterator<Item = i128> + Clone) -> (Repr, Option<ArrayRef>) {
    let base = values.clone().min().unwrap_or_default();
    let rest = values.map(|v| v.wrapping_sub(base) as u64);
    let mut scale = 0;
    let mut max = 0;
    for x in rest.clone() {
        max = max.max(x);
        if scale != 1 && (scale == 0 || !x.is_multiple_of(scale)) {
            scale = gcd(scale, x);
        }
    }
    let scale = scale.max(1);
    let rest = rest.map(move |x| if scale == 1 { x } else { x / scale });
    fn array<T: vortex::dtype::NativePType>(v: Vec<T>) -> ArrayRef {
        PrimitiveArray::new(Buffer::from(v), Validity::NonNullable).into_array()
    }
    let (bits, array) = match max / scale {
        0..=0xff => (8, array(rest.map(|x| x as u8).collect())),
        0x100..=0xffff => (16, array(rest.map(|x| x as u16).collect())),
        0x1_0000..=0xffff_ffff => (32, array(rest.map(|x| x as u32).collect())),
        _ => (64, array(rest.collect())),
    };
    (Repr::Integer { bits, base, scale }, Some(array))
}

fn floats<T: vortex::dtype::NativePType>(values: impl Iterator<Item = T>) -> (Repr, Option<ArrayRef>) {
    let buffer: Buffer<T> = values.collect::<Vec<T>>().into();
    (Repr::Float, Some(PrimitiveArray::new(buffer, Validity::NonNullable).into_array()))
}

fn bytes<T: AsRef<[u8]>>(utf8: bool, values: impl Iterator<Item = T>) -> (Repr, Option<ArrayRef>) {
    let (repr, dtype) = match utf8 {
        true => (Repr::Text, DType::Utf8(Nullability::NonNullable)),
        false => (Repr::Binary, DType::Binary(Nullability::NonNullable)),
    };
    (repr, Some(VarBinViewArray::from_iter(values.map(Some), dtype).into_array()))
}
