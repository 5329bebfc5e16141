//! From the bytes of a chunk to a column, a dictionary, or one value.

use std::cell::OnceCell;
use std::ops::Range;

use vortex::array::arrays::dict::DictArraySlotsExt;
use vortex::array::arrays::{Dict, PrimitiveArray, VarBinView, VarBinViewArray};
use vortex::array::serde::SerializedArray;
use vortex::array::{ArrayRef, VortexSessionExecute};
use vortex::buffer::ByteBuffer;
use vortex::dtype::{DType, Nullability, PType};
use vortex::session::registry::{Id, ReadContext};

use super::frames::Frames;
use super::packed::{Numbers, Packed, partition};
use super::whole::{Target, Whole, Word, power};
use super::{Repr, SESSION, guard, text};
use crate::column::{Column, ColumnData, Dictionary};
use crate::nulls::NullSet;
use crate::schema::PhysicalType;
use crate::value::Value;

/// Runs something on the words of an array, whatever their width.
macro_rules! with_ptype {
    ($array:expr, $w:ident => $body:expr) => {
        match $array.ptype() {
            PType::U8 => words(&$array, |$w: &[u8]| $body),
            PType::U16 => words(&$array, |$w: &[u16]| $body),
            PType::U32 => words(&$array, |$w: &[u32]| $body),
            PType::U64 => words(&$array, |$w: &[u64]| $body),
            other => Err(format!("integers stored as {other}")),
        }
    };
}

fn words<T: Word, R>(array: &PrimitiveArray, run: impl FnOnce(&[T]) -> R) -> R {
    run(array.to_buffer::<T>().as_slice())
}

/// The encodings that a fragment's arrays refer to by position.
#[derive(Debug)]
pub(crate) struct Context(ReadContext);

impl Context {
    pub(crate) fn new(encodings: &[String]) -> Self {
        Self(ReadContext::new(encodings.iter().map(|e| Id::new(e)).collect::<Vec<_>>()))
    }
}

/// A chunk whose array is parsed but not decoded.
#[derive(Debug)]
pub(crate) struct Lazy {
    array: Option<ArrayRef>,
    repr: Repr,
    ty: PhysicalType,
    nulls: Option<NullSet>,
    rows: u32,
    single: OnceCell<Option<Single>>,
}

/// How one value is read without decoding others.
#[derive(Debug)]
enum Single {
    Numbers(Numbers),
    /// Codes, and the distinct values.
    Codes(Packed, VarBinViewArray),
    /// Text in frames.
    Frames(Frames),
}

/// What reading single values of a chunk costs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Reading {
    /// Less than looking for what was decoded: they are read where they lie.
    Direct,
    /// A frame of text is decompressed for each; decoded, all of them take so much memory.
    Frames(usize),
    /// Some microseconds, and decoding all of them a thousand times that.
    Text,
    /// About a tenth of what decoding all of them costs.
    Other,
}

impl Lazy {
    /// Takes a chunk apart. Its checksum must have been checked.
    pub(crate) fn parse(
        chunk: Vec<u8>,
        values_len: usize,
        repr: &Repr,
        ty: PhysicalType,
        rows: u32,
        null_count: u32,
        context: &Context,
    ) -> Result<Self, String> {
        if values_len > chunk.len() {
            return Err(format!("{values_len} bytes of values in a chunk of {}", chunk.len()));
        }
        // Vortex copies what is not aligned; what the allocator gives is aligned for all that it stores.
        let chunk = ByteBuffer::from(chunk);
        let (values, nulls) = (chunk.slice(..values_len), chunk.slice(values_len..));
        let all_null = matches!(repr, Repr::Empty);
        if all_null != (null_count == rows) || (nulls.is_empty() != (all_null || null_count == 0)) {
            return Err(format!("{null_count} nulls of {rows} rows contradict the chunk"));
        }
        let nulls = match nulls.is_empty() {
            true => None,
            false => Some(NullSet::decode(nulls.as_slice(), rows, null_count)?),
        };
        let words = |bits: u8| match bits {
            8 => Ok(PType::U8.into()),
            16 => Ok(PType::U16.into()),
            32 => Ok(PType::U32.into()),
            64 => Ok(PType::U64.into()),
            other => Err(format!("integers of {other} bits")),
        };
        let dtype = match (repr, ty) {
            (Repr::Empty | Repr::Constant(_), _) => None,
            (Repr::Integer { bits, .. } | Repr::Steps(Whole { bits, .. }), ty)
                if ty.is_integer() || ty == PhysicalType::Bool =>
            {
                Some(words(*bits)?)
            }
            (Repr::Decimal { digits, whole }, PhysicalType::F32 | PhysicalType::F64) if power(*digits).is_some() => {
                Some(words(whole.bits)?)
            }
            (Repr::Float, PhysicalType::F32) => Some(PType::F32.into()),
            (Repr::Float, PhysicalType::F64) => Some(PType::F64.into()),
            (Repr::Text, ty) if ty.is_bytes() => Some(DType::Utf8(Nullability::NonNullable)),
            (Repr::Binary, ty) if ty.is_bytes() || ty.is_integer() => Some(DType::Binary(Nullability::NonNullable)),
            (repr, ty) => return Err(format!("representation {repr:?} of a column of type {ty:?}")),
        };
        let dense = (rows - null_count) as usize;
        let array = match dtype {
            None if values.is_empty() => None,
            None => return Err(format!("{} bytes of values where none belong", values.len())),
            Some(dtype) => Some(guard(|| {
                let parts = SerializedArray::try_from(values).map_err(text)?;
                parts.decode(&dtype, dense, &context.0, &SESSION).map_err(text)
            })?),
        };
        if let Repr::Constant(v) = repr
            && (v.is_null() || !ty.accepts(v))
        {
            return Err(format!("constant {v:?} in a column of type {ty:?}"));
        }
        Ok(Self { array, repr: repr.clone(), ty, nulls, rows, single: OnceCell::new() })
    }

    /// Whether it is bytes of which every value is kept by itself.
    fn is_plain_text(&self) -> bool {
        matches!(self.repr, Repr::Text | Repr::Binary) && self.array.as_ref().is_some_and(|a| !a.is::<Dict>())
    }

    /// The memory that this takes, apart from what decoding needs.
    pub(crate) fn memory(&self) -> usize {
        let array = self.array.as_ref().map_or(0, |a| a.nbytes() as usize);
        let single = match (self.repr.whole(), &self.array) {
            (Some(whole), _) => Numbers::memory(&whole, self.rows as usize),
            (None, Some(array)) => Frames::memory(array),
            (None, None) => 0,
        };
        size_of::<Self>() + array + single + self.nulls.as_ref().map_or(0, NullSet::memory)
    }

    /// How the chunk is encoded, for people.
    pub(crate) fn describe(&self) -> String {
        fn tree(array: &ArrayRef) -> String {
            let children: Vec<String> = array.children_iter().map(tree).collect();
            let inner = if children.is_empty() { String::new() } else { format!("({})", children.join(", ")) };
            format!("{}{inner}", array.encoding_id().as_str())
        }
        let whole = |w: &Whole| {
            let times = if w.scale == 1 { String::new() } else { format!(" times {}", w.scale) };
            let steps = match w.lag {
                0 => String::new(),
                1 => ", differences to the row before".to_string(),
                lag => format!(", differences to {lag} rows before"),
            };
            format!("of {} bits{times}{steps}", w.bits)
        };
        let repr = match &self.repr {
            Repr::Empty => "empty".to_string(),
            Repr::Constant(_) => "constant".to_string(),
            r @ (Repr::Integer { .. } | Repr::Steps(_)) => {
                r.whole().map_or(String::new(), |w| format!("integer {}", whole(&w)))
            }
            Repr::Decimal { digits: 0, whole: w } => format!("whole float {}", whole(w)),
            Repr::Decimal { digits, whole: w } => format!("float with {digits} decimals {}", whole(w)),
            Repr::Float => "float".to_string(),
            Repr::Text => "text".to_string(),
            Repr::Binary => "binary".to_string(),
        };
        self.array.as_ref().map_or(repr.clone(), |a| format!("{repr}: {}", tree(a)))
    }

    /// Decodes everything.
    pub(crate) fn column(&self) -> Result<Column, String> {
        let nulls = self.null_rows();
        let dense = guard(|| self.dense())?;
        let expected = nulls.as_ref().map_or(self.rows as usize, |n| n.iter().filter(|null| !**null).count());
        if dense.len() != expected {
            return Err(format!("{} values instead of {expected}", dense.len()));
        }
        let data = match &nulls {
            Some(nulls) => dense.spread(nulls),
            None => dense,
        };
        Ok(Column { data, nulls })
    }

    /// [`Self::column`] of whole numbers of any width as 64-bit integers, whatever the column's type; `None` if they are not
    /// kept as such or may not fit. Unscaled decimals take half the memory this way.
    pub(crate) fn integers(&self) -> Result<Option<Column>, String> {
        let dense = match (&self.repr, &self.array) {
            (Repr::Constant(v), _) => {
                let whole = match v {
                    Value::I16(v) => Some(i64::from(*v)),
                    Value::I32(v) => Some(i64::from(*v)),
                    Value::I64(v) => Some(*v),
                    Value::I128(v) => i64::try_from(*v).ok(),
                    _ => None,
                };
                let Some(v) = whole else { return Ok(None) };
                ColumnData::I64(vec![v; self.dense_rows()])
            }
            (repr @ (Repr::Integer { .. } | Repr::Steps(_)), Some(array)) => {
                // The largest value that the width allows must fit, so that no value wraps.
                let Some(whole) = repr.whole().filter(|w| w.fits_i64() && self.ty.is_integer()) else {
                    return Ok(None);
                };
                guard(|| restore(&primitive(array.clone())?, &whole, Target::Whole(PhysicalType::I64)))?
            }
            _ => return Ok(None),
        };
        let expected = self.dense_rows();
        if dense.len() != expected {
            return Err(format!("{} values instead of {expected}", dense.len()));
        }
        let nulls = self.null_rows();
        let data = match &nulls {
            Some(nulls) => dense.spread(nulls),
            None => dense,
        };
        Ok(Some(Column { data, nulls }))
    }

    /// How single values are read where they lie, if they can be.
    fn single(&self) -> Option<&Single> {
        let find = || {
            let array = self.array.as_ref()?;
            if array.len() != self.dense_rows() {
                return None;
            }
            if let Some(whole) = self.repr.whole() {
                return Numbers::new(array, whole).map(Single::Numbers);
            }
            if !self.ty.is_bytes() {
                return None;
            }
            if let Some(frames) = Frames::new(array) {
                return Some(Single::Frames(frames));
            }
            let dict = array.as_opt::<Dict>()?;
            let values = dict.values().as_opt::<VarBinView>().filter(|v| !v.dtype().is_nullable())?;
            Some(Single::Codes(Packed::new(dict.codes())?, values.into_owned()))
        };
        self.single.get_or_init(|| guard(|| Ok(find())).unwrap_or(None)).as_ref()
    }

    /// What reading single values costs.
    pub(crate) fn reading(&self) -> Reading {
        match self.single() {
            Some(Single::Numbers(_) | Single::Codes(..)) => Reading::Direct,
            Some(Single::Frames(frames)) => Reading::Frames(frames.decoded_bytes()),
            None if matches!(self.repr, Repr::Empty | Repr::Constant(_)) => Reading::Direct,
            None if self.is_plain_text() => Reading::Text,
            None => Reading::Other,
        }
    }

    /// The rows of a range that equal a number, without decoding the others. In the range the values are in ascending order, nulls last.
    /// `None` if that needs decoding.
    pub(crate) fn equal(&self, range: Range<u32>, number: i128) -> Option<Range<u32>> {
        if !self.ty.is_integer() {
            return None;
        }
        let Single::Numbers(numbers) = self.single()? else { return None };
        if range.end > self.rows {
            return None;
        }
        let Some(nulls) = &self.nulls else {
            let found = numbers.equal(range.start as usize..range.end as usize, number)?;
            return Some(found.start as u32..found.end as u32);
        };
        let live = range.start..partition(range, |row| !nulls.contains(row));
        let (first, before) = (nulls.dense(live.start), live.start);
        let found = numbers.equal(first..first + live.len(), number)?;
        let row = |dense: usize| before + (dense - first) as u32;
        Some(row(found.start)..row(found.end))
    }

    fn bytes_value(&self, bytes: &[u8]) -> Option<Value> {
        match self.ty {
            PhysicalType::Fixed(width) if bytes.len() != width as usize => None,
            _ => Some(Value::Bytes(bytes.to_vec())),
        }
    }

    /// A value that is not null, read where it lies.
    fn direct(&self, dense: usize) -> Option<Value> {
        match self.single()? {
            Single::Numbers(numbers) => {
                if self.ty.is_integer() {
                    return super::number_value(numbers.get(dense)?, self.ty).ok();
                }
                let (whole, word) = numbers.plain(dense)?;
                one(&whole.restore(&[word], self.target()).ok()?).ok()
            }
            Single::Codes(codes, values) => {
                let code = usize::try_from(codes.get(dense)?).ok().filter(|code| *code < values.len())?;
                self.bytes_value(values.bytes_at(code).as_slice())
            }
            Single::Frames(frames) => frames.with(dense, |bytes| self.bytes_value(bytes))?,
        }
    }

    fn null_rows(&self) -> Option<Vec<bool>> {
        match (&self.repr, &self.nulls) {
            (Repr::Empty, _) => Some(vec![true; self.rows as usize]),
            (_, nulls) => nulls.as_ref().map(|n| n.to_bools(self.rows)),
        }
    }

    fn dense_rows(&self) -> usize {
        match (&self.repr, &self.nulls) {
            (Repr::Empty, _) => 0,
            (_, Some(n)) => n.dense(self.rows),
            (_, None) => self.rows as usize,
        }
    }

    /// Codes and distinct values, if the chunk is stored like that.
    pub(crate) fn dictionary(&self) -> Result<Option<Dictionary>, String> {
        if !self.ty.is_bytes() {
            return Ok(None);
        }
        let (dense, values) = match (&self.repr, &self.array) {
            (Repr::Empty, _) => (Vec::new(), ColumnData::with_capacity(self.ty, 0)),
            (Repr::Constant(v), _) => (vec![0; self.dense_rows()], repeat(v, self.ty, 1)?),
            (_, Some(array)) => {
                let Some(dict) = array.as_opt::<Dict>() else {
                    return Ok(None);
                };
                guard(|| {
                    let codes = dict.codes().clone();
                    if codes.dtype().is_nullable() || dict.values().dtype().is_nullable() {
                        return Err("nulls inside a dictionary".to_string());
                    }
                    Ok((codes_of(codes)?, self.bytes_of(dict.values().clone())?))
                })?
            }
            (_, None) => return Ok(None),
        };
        check_codes(&dense, self.dense_rows(), &values)?;
        let codes = match self.null_rows() {
            None => dense,
            Some(nulls) => {
                let mut next = dense.into_iter();
                nulls.iter().map(|n| if *n { Dictionary::NULL } else { next.next().unwrap_or(0) }).collect()
            }
        };
        Ok(Some(Dictionary { codes, values: Column { data: values, nulls: None } }))
    }

    /// One value, decoding as little as Vortex can.
    pub(crate) fn value(&self, row: u32) -> Result<Value, String> {
        if row >= self.rows {
            return Err(format!("row {row} of a block of {} rows", self.rows));
        }
        let null = matches!(self.repr, Repr::Empty) || self.nulls.as_ref().is_some_and(|n| n.contains(row));
        if null {
            return Ok(Value::Null);
        }
        let array = match (&self.repr, &self.array) {
            (Repr::Constant(v), _) => return one(&repeat(v, self.ty, 1)?),
            (_, Some(array)) => array,
            (_, None) => return Err("chunk without values".to_string()),
        };
        let dense = self.nulls.as_ref().map_or(row as usize, |n| n.dense(row));
        // What cannot be read like that is decoded, which also says what is wrong with it.
        if let Ok(Some(value)) = guard(|| Ok(self.direct(dense))) {
            return Ok(value);
        }
        let target = self.target();
        if let Some(whole) = self.repr.whole().filter(|w| w.lag > 0) {
            let data = guard(|| {
                let words = primitive(array.clone())?;
                with_ptype!(words, w => whole.restore_one(w, dense, target))
            })?;
            return one(&data);
        }
        guard(|| {
            let scalar = array.execute_scalar(dense, &mut SESSION.create_execution_ctx()).map_err(text)?;
            let missing = || "a null inside an array without nulls".to_string();
            let data = match &self.repr {
                repr if let Some(whole) = repr.whole() => {
                    let x = scalar.as_primitive().as_::<u64>().ok_or_else(missing)?;
                    whole.restore(&[x], target)?
                }
                Repr::Float if self.ty == PhysicalType::F32 => {
                    ColumnData::F32(vec![scalar.as_primitive().typed_value::<f32>().ok_or_else(missing)?])
                }
                Repr::Float => ColumnData::F64(vec![scalar.as_primitive().typed_value::<f64>().ok_or_else(missing)?]),
                Repr::Text => {
                    let v = scalar.as_utf8().value().ok_or_else(missing)?;
                    self.bytes_from(1, v.as_str().len(), [v.as_str().as_bytes()].into_iter())?
                }
                _ => {
                    let v = scalar.as_binary().value().ok_or_else(missing)?;
                    self.bytes_from(1, v.len(), [v.as_slice()].into_iter())?
                }
            };
            one(&data)
        })
    }

    /// What unsigned integers are decoded as.
    fn target(&self) -> Target {
        match &self.repr {
            Repr::Decimal { digits, .. } => Target::Decimal(self.ty, *digits),
            _ => Target::Whole(self.ty),
        }
    }

    fn dense(&self) -> Result<ColumnData, String> {
        let array = match (&self.repr, &self.array) {
            (Repr::Constant(v), _) => return repeat(v, self.ty, self.dense_rows()),
            (_, Some(array)) => array.clone(),
            (_, None) => return Ok(ColumnData::with_capacity(self.ty, 0)),
        };
        match &self.repr {
            repr if let Some(whole) = repr.whole() => restore(&primitive(array)?, &whole, self.target()),
            Repr::Float if self.ty == PhysicalType::F32 => {
                Ok(ColumnData::F32(primitive(array)?.to_buffer::<f32>().as_slice().to_vec()))
            }
            Repr::Float => Ok(ColumnData::F64(primitive(array)?.to_buffer::<f64>().as_slice().to_vec())),
            _ => match array.as_opt::<Dict>() {
                Some(dict) => {
                    let codes = codes_of(dict.codes().clone())?;
                    let values = self.bytes_of(dict.values().clone())?;
                    check_codes(&codes, self.dense_rows(), &values)?;
                    self.expand(&codes, &values)
                }
                None => self.bytes_of(array),
            },
        }
    }

    /// The values of a utf8 or binary array.
    fn bytes_of(&self, array: ArrayRef) -> Result<ColumnData, String> {
        let mut ctx = SESSION.create_execution_ctx();
        let views = array.execute::<VarBinViewArray>(&mut ctx).map_err(text)?;
        let resolved = views.resolved_views();
        let total = resolved.views().iter().map(|v| v.len() as usize).sum();
        self.bytes_from(resolved.len(), total, resolved.views().iter().map(|v| resolved.view_bytes(v)))
    }

    fn expand(&self, codes: &[u32], values: &ColumnData) -> Result<ColumnData, String> {
        if let (ColumnData::I128(values), PhysicalType::Decimal { .. }) = (values, self.ty) {
            return Ok(ColumnData::I128(codes.iter().map(|c| values[*c as usize]).collect()));
        }
        let lens: Vec<u32> = (0..values.len()).map(|i| values.bytes(i).len() as u32).collect();
        let total: u64 = codes.iter().map(|c| u64::from(lens[*c as usize])).sum();
        if u32::try_from(total).is_err() {
            return Err(format!("{total} bytes of values in one block"));
        }
        match (self.ty, lens.iter().max()) {
            (PhysicalType::Utf8 | PhysicalType::Binary, Some(0..=16)) => Ok(expand_short::<16>(codes, &lens, values)),
            (PhysicalType::Utf8 | PhysicalType::Binary, Some(17..=32)) => Ok(expand_short::<32>(codes, &lens, values)),
            _ => self.bytes_from(codes.len(), total as usize, codes.iter().map(|c| values.bytes(*c as usize))),
        }
    }

    fn bytes_from<'a>(
        &self,
        rows: usize,
        total: usize,
        values: impl Iterator<Item = &'a [u8]>,
    ) -> Result<ColumnData, String> {
        match self.ty {
            PhysicalType::Utf8 | PhysicalType::Binary => {
                if u32::try_from(total).is_err() {
                    return Err(format!("{total} bytes of values in one block"));
                }
                let mut offsets = Vec::with_capacity(rows + 1);
                let mut data = Vec::with_capacity(total);
                offsets.push(0);
                for v in values {
                    data.extend_from_slice(v);
                    offsets.push(data.len() as u32);
                }
                Ok(ColumnData::Bytes { offsets, data })
            }
            PhysicalType::Fixed(width) => {
                let width = width as usize;
                let mut data = Vec::with_capacity(total);
                for v in values {
                    if v.len() != width {
                        return Err(format!("a value of {} bytes in a column of width {width}", v.len()));
                    }
                    data.extend_from_slice(v);
                }
                Ok(ColumnData::Fixed { width, data })
            }
            PhysicalType::Decimal { .. } => values
                .map(|v| v.try_into().map(i128::from_le_bytes))
                .collect::<Result<_, _>>()
                .map(ColumnData::I128)
                .map_err(|_| "a decimal that is not of 16 bytes".to_string()),
            other => Err(format!("bytes in a column of type {other:?}")),
        }
    }
}

fn check_codes(codes: &[u32], rows: usize, values: &ColumnData) -> Result<(), String> {
    // Looking at all of them is faster than stopping at the first.
    let largest = codes.iter().fold(0, |max, c| max.max(*c));
    if codes.len() != rows || (rows > 0 && largest as usize >= values.len()) {
        return Err("a dictionary code that names no value".to_string());
    }
    Ok(())
}

/// Repeats values of at most `N` bytes: copying always `N` is several times faster than copying as many as there are.
fn expand_short<const N: usize>(codes: &[u32], lens: &[u32], values: &ColumnData) -> ColumnData {
    let mut padded = vec![[0; N]; lens.len()];
    for (i, to) in padded.iter_mut().enumerate() {
        let v = values.bytes(i);
        to[..v.len()].copy_from_slice(v);
    }
    let total: usize = codes.iter().map(|c| lens[*c as usize] as usize).sum();
    let mut data = vec![0; total + N];
    let mut offsets = Vec::with_capacity(codes.len() + 1);
    let mut at = 0;
    offsets.push(0);
    for c in codes {
        data[at..at + N].copy_from_slice(&padded[*c as usize]);
        at += lens[*c as usize] as usize;
        offsets.push(at as u32);
    }
    data.truncate(total);
    ColumnData::Bytes { offsets, data }
}

pub(super) fn primitive(array: ArrayRef) -> Result<PrimitiveArray, String> {
    array.execute::<PrimitiveArray>(&mut SESSION.create_execution_ctx()).map_err(text)
}

fn codes_of(codes: ArrayRef) -> Result<Vec<u32>, String> {
    let codes = primitive(codes)?;
    Ok(match codes.ptype() {
        PType::U8 => codes.to_buffer::<u8>().iter().map(|c| u32::from(*c)).collect(),
        PType::U16 => codes.to_buffer::<u16>().iter().map(|c| u32::from(*c)).collect(),
        PType::U32 => codes.to_buffer::<u32>().as_slice().to_vec(),
        PType::U64 => {
            let wide = codes.to_buffer::<u64>();
            let narrow: Result<_, _> = wide.iter().map(|c| u32::try_from(*c)).collect();
            narrow.map_err(|_| "a dictionary code of more than 32 bits".to_string())?
        }
        other => return Err(format!("dictionary codes stored as {other}")),
    })
}

/// All values of the words of a chunk.
fn restore(words: &PrimitiveArray, whole: &Whole, target: Target) -> Result<ColumnData, String> {
    with_ptype!(words, w => whole.restore(w, target))
}

fn repeat(value: &Value, ty: PhysicalType, n: usize) -> Result<ColumnData, String> {
    Ok(match (value, ty) {
        (Value::Bool(v), PhysicalType::Bool) => ColumnData::Bool(vec![*v; n]),
        (Value::I16(v), PhysicalType::I16) => ColumnData::I16(vec![*v; n]),
        (Value::I32(v), PhysicalType::I32) => ColumnData::I32(vec![*v; n]),
        (Value::I64(v), PhysicalType::I64) => ColumnData::I64(vec![*v; n]),
        (Value::F32(v), PhysicalType::F32) => ColumnData::F32(vec![*v; n]),
        (Value::F64(v), PhysicalType::F64) => ColumnData::F64(vec![*v; n]),
        (Value::I128(v), PhysicalType::Decimal { .. }) => ColumnData::I128(vec![*v; n]),
        (Value::Bytes(v), PhysicalType::Utf8 | PhysicalType::Binary) => {
            let end = (v.len() as u64).checked_mul(n as u64).and_then(|e| u32::try_from(e).ok());
            if end.is_none() {
                return Err(format!("{n} times {} bytes in one block", v.len()));
            }
            let offsets = (0..=n).map(|i| (i * v.len()) as u32).collect();
            ColumnData::Bytes { offsets, data: v.repeat(n) }
        }
        (Value::Bytes(v), PhysicalType::Fixed(width)) if v.len() == width as usize => {
            ColumnData::Fixed { width: width as usize, data: v.repeat(n) }
        }
        _ => return Err(format!("constant {value:?} in a column of type {ty:?}")),
    })
}

fn one(data: &ColumnData) -> Result<Value, String> {
    if data.len() == 1 { Ok(data.value(0)) } else { Err(format!("{} values instead of one", data.len())) }
}
