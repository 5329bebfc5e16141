//! From the rows of a block to the bytes of a chunk.
//!
//! Whole numbers, floats that are decimals, and columns with few distinct texts are laid out by counting (`pack`), which takes
//! a tenth of the time of trying encodings on samples; the rest is left to Vortex's sampling compressor and to zstd.
//! Whatever was chosen, the chunk is decoded and compared before it counts.

use std::borrow::Cow;

use vortex::array::arrays::{DictArray, PrimitiveArray, VarBinViewArray};
use vortex::array::serde::SerializeOptions;
use vortex::array::validity::Validity;
use vortex::array::{ArrayContext, ArrayRef, ExecutionCtx, IntoArray, VortexSessionExecute};
use vortex::buffer::Buffer;
use vortex::compressor::BtrBlocksCompressor;
use vortex::dtype::{DType, NativePType, Nullability};
use vortex::editions::{ComponentKind, EditionSessionExt};
use vortex::encodings::zstd::Zstd;

use super::decode::Lazy;
use super::whole::{Whole, Word, Words, decimals, reduce, reduce_wide, with_words};
use super::{Context, Repr, SESSION, guard, pack, text};
use crate::column::{Column, ColumnData};
use crate::nulls::NullSet;
use crate::rows::{Codes, Rows};
use crate::schema::PhysicalType;
use crate::value::Value;

/// Bytes of at least this average length are also tried with zstd, unless the other encoding makes them this many times smaller.
const WIDE: usize = 20;
const SMALL_ENOUGH: usize = 4;
/// The part of the other encoding's size that zstd must stay below to be taken, in percent.
const ZSTD_GAIN: usize = 92;
const ZSTD_LEVEL: i32 = 3;
/// Uncompressed bytes of a zstd frame, which is what reading one value decompresses: about 7 µs.
const ZSTD_FRAME: usize = 8 << 10;
/// Bytes that both are tried on.
const SAMPLE: usize = 128 << 10;
/// A block that takes so much more than the one that the choice was made for, in percent, has the next choose again.
const WORSE: usize = 115;
/// The longest constant, which is kept in the footer.
const LONGEST_CONSTANT: usize = 256;
/// Distinct values of a dictionary with more bytes than this are compressed too.
const LARGE_DICTIONARY: usize = 4096;

/// A chunk ready to be written: the Vortex array, then the null set.
pub(crate) struct Encoded {
    pub(crate) repr: Repr,
    pub(crate) bytes: Vec<u8>,
    pub(crate) nulls_len: usize,
}

/// What was chosen for wide text of a column, and the percentage that was left of it.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Habit(Option<(bool, usize)>);

/// Encodes the chunks of one fragment and collects the encodings that they use.
pub(crate) struct Encoder {
    compressor: BtrBlocksCompressor,
    context: ArrayContext,
}

/// What is tried, one after the other, until a chunk comes back as it was.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Way {
    Counted,
    Sampled,
    Plain,
}

/// What a chunk means, and its array.
type Chosen = (Repr, Vec<u8>);

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

    /// Encodes a column of one block and proves that decoding gives it back. `lags` are numbers of rows before which a similar
    /// value may be found.
    pub(crate) fn encode(
        &self,
        rows: &Rows<'_>,
        ty: PhysicalType,
        lags: &[u32],
        habit: &mut Habit,
    ) -> Result<Encoded, String> {
        let mut reason = String::new();
        for way in [Way::Counted, Way::Sampled, Way::Plain] {
            let encoded = guard(|| self.attempt(rows, ty, way, lags, habit)).and_then(|e| self.prove(e, rows, ty));
            match encoded {
                Ok(e) => return Ok(e),
                Err(e) => reason = e,
            }
        }
        Err(reason)
    }

    /// Decodes a chunk as a reader would, and compares bit for bit. What is compared is what the reader makes of the chunk: numbers
    /// that it gives as 64 bits, and distinct values with the code of each row, need no other form for that.
    fn prove(&self, e: Encoded, rows: &Rows<'_>, ty: PhysicalType) -> Result<Encoded, String> {
        let values_len = e.bytes.len() - e.nulls_len;
        let (count, null_count) = (rows.len() as u32, rows.null_count() as u32);
        let context = Context::new(&self.encodings());
        let back = Lazy::parse(e.bytes.clone(), values_len, &e.repr, ty, count, null_count, &context)?;
        let same = match rows {
            Rows::Column(c) => back.column()?.identical(c),
            Rows::Narrow { values, nulls } => match back.integers()? {
                Some(Column { data: ColumnData::I64(found), nulls: found_nulls }) => match nulls {
                    None => found_nulls.is_none() && found == *values,
                    Some(nulls) => {
                        let live = nulls.iter().zip(found.iter().zip(values));
                        found_nulls.as_ref() == Some(nulls)
                            && found.len() == values.len()
                            && live.filter(|(null, _)| !**null).all(|(_, (a, b))| a == b)
                    }
                },
                _ => back.column()?.identical(&rows.to_column(ty)),
            },
            Rows::Codes(c) => match back.dictionary()? {
                Some(found) => same_codes(&found, c),
                None => back.column()?.identical(&rows.to_column(ty)),
            },
        };
        if same { Ok(e) } else { Err("decoding gives other values".to_string()) }
    }

    pub(super) fn attempt(
        &self,
        rows: &Rows<'_>,
        ty: PhysicalType,
        way: Way,
        lags: &[u32],
        habit: &mut Habit,
    ) -> Result<Encoded, String> {
        let (repr, mut bytes) = match rows {
            _ if rows.null_count() == rows.len() => (Repr::Empty, Vec::new()),
            Rows::Narrow { values, nulls } if way == Way::Counted => {
                self.numbers(&live(values, nulls.as_deref()), ty, lags)?
            }
            Rows::Codes(c) if way == Way::Counted => match self.dictionary(c)? {
                Some(chosen) => chosen,
                None => self.column(&rows.to_column(ty), ty, way, lags, habit)?,
            },
            Rows::Column(c) => self.column(c, ty, way, lags, habit)?,
            Rows::Narrow { .. } | Rows::Codes(_) => self.column(&rows.to_column(ty), ty, way, lags, habit)?,
        };
        let nulls = match rows.nulls() {
            Some(nulls) if !matches!(repr, Repr::Empty) && nulls.contains(&true) => NullSet::encode(nulls),
            _ => Vec::new(),
        };
        bytes.extend_from_slice(&nulls);
        Ok(Encoded { repr, bytes, nulls_len: nulls.len() })
    }

    /// A column that is not all null.
    fn column(
        &self,
        column: &Column,
        ty: PhysicalType,
        way: Way,
        lags: &[u32],
        habit: &mut Habit,
    ) -> Result<Chosen, String> {
        let nulls = column.nulls.as_deref();
        fn wide<T: Copy + Into<i64>>(v: &[T], nulls: Option<&[bool]>) -> Vec<i64> {
            live(v, nulls).iter().map(|v| (*v).into()).collect()
        }
        let whole = match &column.data {
            ColumnData::Bool(v) => wide(v, nulls),
            ColumnData::I16(v) => wide(v, nulls),
            ColumnData::I32(v) => wide(v, nulls),
            ColumnData::I64(v) => live(v, nulls).into_owned(),
            ColumnData::I128(v) => return self.decimals_of_any_width(&live(v, nulls), ty, way),
            ColumnData::F32(v) => return self.floats(&live(v, nulls), way, lags),
            ColumnData::F64(v) => return self.floats(&live(v, nulls), way, lags),
            data @ (ColumnData::Bytes { .. } | ColumnData::Fixed { .. }) => {
                let rows = (0..column.len()).filter(|i| !column.is_null(*i));
                let values: Vec<&[u8]> = rows.map(|i| data.bytes(i)).collect();
                let whole = match data {
                    ColumnData::Bytes { data, .. } | ColumnData::Fixed { data, .. } => data.is_ascii(),
                    _ => false,
                };
                return self.bytes(&values, whole, way, habit);
            }
        };
        match way {
            Way::Counted => self.numbers(&whole, ty, lags),
            Way::Sampled | Way::Plain => match constant(&whole, |a, b| a == b) {
                Some(v) => Ok((Repr::Constant(number_value(v.into(), ty)?), Vec::new())),
                None => {
                    let (whole, words) = reduce(&whole);
                    Ok((integer(&whole), self.sampled(words_array(words), way)?))
                }
            },
        }
    }

    /// Whole numbers, at least one.
    fn numbers(&self, values: &[i64], ty: PhysicalType, lags: &[u32]) -> Result<Chosen, String> {
        if let Some(v) = constant(values, |a, b| a == b) {
            return Ok((Repr::Constant(number_value(v.into(), ty)?), Vec::new()));
        }
        let (whole, words) = reduce(values);
        let (whole, bytes) = with_words!(words, w => self.words(whole, w, lags))?;
        Ok((integer(&whole), bytes))
    }

    fn decimals_of_any_width(&self, values: &[i128], ty: PhysicalType, way: Way) -> Result<Chosen, String> {
        if let Some(v) = constant(values, |a, b| a == b) {
            return Ok((Repr::Constant(number_value(v, ty)?), Vec::new()));
        }
        match reduce_wide(values) {
            Some((whole, words)) if way == Way::Counted => {
                let (whole, bytes) = with_words!(words, w => self.words(whole, w, &[]))?;
                Ok((integer(&whole), bytes))
            }
            Some((whole, words)) => Ok((integer(&whole), self.sampled(words_array(words), way)?)),
            None => {
                let bytes = values.iter().map(|v| Some(v.to_le_bytes()));
                let array = VarBinViewArray::from_iter(bytes, DType::Binary(Nullability::NonNullable));
                Ok((Repr::Binary, self.sampled(array.into_array(), way)?))
            }
        }
    }

    /// Words that are not all equal, laid out by counting.
    fn words<T: Word>(&self, mut whole: Whole, x: Vec<T>, lags: &[u32]) -> Result<(Whole, Vec<u8>), String> {
        let mut ctx = SESSION.create_execution_ctx();
        if let Some(array) = pack::sequence(&x, &mut ctx)? {
            return Ok((whole, self.serialize(&array)?));
        }
        let plain = pack::layout(&x);
        if let Some(d) = pack::steps(&x, lags, &plain) {
            (whole.lag, whole.offset) = (d.lag, d.offset);
            return Ok((whole, self.serialize(&pack::build(d.words, &d.layout, &mut ctx)?)?));
        }
        let other = match pack::repeats(&x, &plain) {
            true => {
                let array = PrimitiveArray::new(Buffer::from(x.clone()), Validity::NonNullable).into_array();
                Some(self.sampled(array, Way::Sampled)?)
            }
            false => None,
        };
        let packed = self.serialize(&pack::build(x, &plain, &mut ctx)?)?;
        Ok((whole, other.filter(|o| o.len() < packed.len()).unwrap_or(packed)))
    }

    fn floats<T: Float>(&self, values: &[T], way: Way, lags: &[u32]) -> Result<Chosen, String> {
        if let Some(v) = constant(values, |a, b| a.same(*b)) {
            return Ok((Repr::Constant(v.value()), Vec::new()));
        }
        if way == Way::Counted
            && let Some((digits, numbers)) = decimals(values.iter().map(|v| (*v).into()), T::same_as_f64)
        {
            let (whole, words) = reduce(&numbers);
            let (whole, bytes) = with_words!(words, w => self.words(whole, w, lags))?;
            // Vortex's decimals are faster to read than a division each.
            if digits == 0 || whole.lag > 0 {
                return Ok((Repr::Decimal { digits, whole }, bytes));
            }
        }
        let array = PrimitiveArray::new(Buffer::from(values.to_vec()), Validity::NonNullable).into_array();
        Ok((Repr::Float, self.sampled(array, way)?))
    }

    /// Few distinct values as a dictionary; `None` if they are too many for that.
    fn dictionary(&self, c: &Codes<'_>) -> Result<Option<Chosen>, String> {
        if let [only] = c.values.as_slice()
            && only.len() <= LONGEST_CONSTANT
        {
            return Ok(Some((Repr::Constant(Value::Bytes(only.to_vec())), Vec::new())));
        }
        if c.values.len() * 2 > c.codes.len() {
            return Ok(None);
        }
        let mut ctx = SESSION.create_execution_ctx();
        let codes = match c.values.len() <= 256 {
            true => {
                let narrow: Vec<u8> = c.codes.iter().map(|c| *c as u8).collect();
                let layout = pack::layout(&narrow);
                pack::build(narrow, &layout, &mut ctx)?
            }
            false => pack::build(c.codes.clone(), &pack::layout(&c.codes), &mut ctx)?,
        };
        let utf8 = c.values.iter().all(|v| std::str::from_utf8(v).is_ok());
        let (repr, mut values) = bytes_array(utf8, c.values.iter().copied());
        if c.values.iter().map(|v| v.len()).sum::<usize>() > LARGE_DICTIONARY {
            values = self.compressor.compress(&values, &mut ctx).map_err(text)?;
        }
        let array = DictArray::try_new(codes, values).map_err(text)?.into_array();
        Ok(Some((repr, self.serialize(&array)?)))
    }

    /// Byte strings, at least one. `ascii`: all of them are known to be.
    fn bytes(&self, values: &[&[u8]], ascii: bool, way: Way, habit: &mut Habit) -> Result<Chosen, String> {
        if let Some(v) = constant(values, |a, b| a == b)
            && v.len() <= LONGEST_CONSTANT
        {
            return Ok((Repr::Constant(Value::Bytes(v.to_vec())), Vec::new()));
        }
        // Vortex compresses text better than binary, so whatever is valid text is stored as that.
        let utf8 = ascii || values.iter().all(|v| std::str::from_utf8(v).is_ok());
        let (repr, array) = bytes_array(utf8, values.iter().copied());
        let total: usize = values.iter().map(|v| v.len()).sum();
        if way == Way::Plain || total < WIDE * values.len() {
            return Ok((repr, self.sampled(array, way)?));
        }
        let (zstd, before) = match habit.0 {
            Some((zstd, left)) => (zstd, Some(left)),
            None => (self.choose(values, utf8, total)?, None),
        };
        let bytes = match zstd {
            true => self.serialize(&Self::zstd(array, values.len(), total)?)?,
            false => self.sampled(array, way)?,
        };
        let now = bytes.len() * 100 / total.max(1);
        let left = before.unwrap_or(now.max(1));
        habit.0 = (now * 100 <= left * WORSE).then_some((zstd, left));
        Ok((repr, bytes))
    }

    /// Whether zstd is better for wide text, tried on some of it.
    fn choose(&self, values: &[&[u8]], utf8: bool, total: usize) -> Result<bool, String> {
        let rows = (SAMPLE * values.len() / total.max(1)).clamp(1, values.len());
        let some = &values[(values.len() - rows) / 2..][..rows];
        let bytes = some.iter().map(|v| v.len()).sum::<usize>();
        let (_, array) = bytes_array(utf8, some.iter().copied());
        let usual = self.sampled(array.clone(), Way::Sampled)?.len();
        if usual * SMALL_ENOUGH < bytes {
            return Ok(false);
        }
        let packed = self.serialize(&Self::zstd(array, rows, bytes)?)?.len();
        Ok(packed * 100 < usual * ZSTD_GAIN)
    }

    fn zstd(array: ArrayRef, rows: usize, bytes: usize) -> Result<ArrayRef, String> {
        let mut ctx: ExecutionCtx = SESSION.create_execution_ctx();
        let views = array.execute::<VarBinViewArray>(&mut ctx).map_err(text)?;
        let per_frame = (ZSTD_FRAME * rows / bytes.max(1)).max(1);
        let packed = Zstd::from_var_bin_view_without_dict(&views, ZSTD_LEVEL, per_frame, &mut ctx).map_err(text)?;
        Ok(packed.into_array())
    }

    /// The array as Vortex's sampling compressor would have it, or as it is.
    fn sampled(&self, array: ArrayRef, way: Way) -> Result<Vec<u8>, String> {
        match way {
            Way::Plain => self.serialize(&array),
            Way::Counted | Way::Sampled => {
                let mut ctx = SESSION.create_execution_ctx();
                self.serialize(&self.compressor.compress(&array, &mut ctx).map_err(text)?)
            }
        }
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

fn integer(whole: &Whole) -> Repr {
    match whole.lag {
        0 => Repr::Integer { bits: whole.bits, base: whole.base, scale: whole.scale },
        _ => Repr::Steps(*whole),
    }
}

fn words_array(words: Words) -> ArrayRef {
    fn array<T: NativePType>(v: Vec<T>) -> ArrayRef {
        PrimitiveArray::new(Buffer::from(v), Validity::NonNullable).into_array()
    }
    with_words!(words, w => array(w))
}

fn bytes_array<T: AsRef<[u8]>>(utf8: bool, values: impl Iterator<Item = T>) -> (Repr, ArrayRef) {
    let (repr, dtype) = match utf8 {
        true => (Repr::Text, DType::Utf8(Nullability::NonNullable)),
        false => (Repr::Binary, DType::Binary(Nullability::NonNullable)),
    };
    (repr, VarBinViewArray::from_iter(values.map(Some), dtype).into_array())
}

/// The value of rows that are all the same.
fn constant<T: Copy>(values: &[T], same: impl Fn(&T, &T) -> bool) -> Option<T> {
    let (first, rest) = values.split_first()?;
    rest.iter().all(|v| same(v, first)).then_some(*first)
}

/// The values of rows that are not null.
fn live<'a, T: Copy>(values: &'a [T], nulls: Option<&[bool]>) -> Cow<'a, [T]> {
    match nulls {
        None => Cow::Borrowed(values),
        Some(nulls) => values.iter().zip(nulls).filter(|(_, null)| !**null).map(|(v, _)| *v).collect(),
    }
}

/// A number as a value of a column.
pub(crate) fn number_value(v: i128, ty: PhysicalType) -> Result<Value, String> {
    let wrong = || format!("{v} in a column of type {ty:?}");
    Ok(match ty {
        PhysicalType::Bool => Value::Bool(v != 0),
        PhysicalType::I16 => Value::I16(v.try_into().map_err(|_| wrong())?),
        PhysicalType::I32 => Value::I32(v.try_into().map_err(|_| wrong())?),
        PhysicalType::I64 => Value::I64(v.try_into().map_err(|_| wrong())?),
        PhysicalType::Decimal { .. } => Value::I128(v),
        _ => return Err(wrong()),
    })
}

fn same_codes(found: &crate::column::Dictionary, c: &Codes<'_>) -> bool {
    let Column { data, nulls: None } = &found.values else { return false };
    let values = data.len() == c.values.len() && c.values.iter().enumerate().all(|(i, v)| data.bytes(i) == *v);
    let mut expected = c.codes.iter().map(|c| u32::from(*c));
    let codes = match &c.nulls {
        None => found.codes.len() == c.codes.len() && found.codes.iter().zip(expected).all(|(a, b)| *a == b),
        Some(nulls) => {
            let each =
                nulls.iter().map(|null| if *null { Some(crate::column::Dictionary::NULL) } else { expected.next() });
            found.codes.len() == nulls.len() && found.codes.iter().zip(each).all(|(a, b)| Some(*a) == b)
        }
    };
    values && codes
}

/// Floats of either width.
trait Float: NativePType + Into<f64> {
    fn same(self, other: Self) -> bool;
    fn value(self) -> Value;
    /// Whether two numbers are the same floats of this width, bit for bit.
    fn same_as_f64(a: f64, b: f64) -> bool;
}

impl Float for f32 {
    fn same(self, other: Self) -> bool {
        self.to_bits() == other.to_bits()
    }
    fn value(self) -> Value {
        Value::F32(self)
    }
    fn same_as_f64(a: f64, b: f64) -> bool {
        (a as Self).to_bits() == (b as Self).to_bits()
    }
}

impl Float for f64 {
    fn same(self, other: Self) -> bool {
        self.to_bits() == other.to_bits()
    }
    fn value(self) -> Value {
        Value::F64(self)
    }
    fn same_as_f64(a: f64, b: f64) -> bool {
        a.to_bits() == b.to_bits()
    }
}
