//! Datums of PostgreSQL to and from the values of fragments.
//!
//! Fixed-width types by value keep their bits (dates, timestamps, enums, OIDs … are whole numbers); `numeric(p,s)` is kept
//! as its unscaled value, which `numeric(p,s)` makes unique; text as text; everything else as its bytes, detoasted and
//! without the length word. So every type can be stored, and comes back bit for bit.

use super::fragments::ColumnSource;
use crate::pg::compat;
use pgrx::pg_sys;
use pgrx::pg_sys::Datum;
use strata_fragment::{Column, ColumnBuilder, ColumnData, PhysicalType, Value};

/// How datums of a column are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// boolean
    Bool,
    /// A whole number of 1, 2, 4 or 8 bytes, passed by value.
    Int(u8),
    /// float4
    F32,
    /// float8
    F64,
    /// numeric with this scale.
    Numeric(u8),
    /// A varlena.
    Varlena,
    /// A NUL-terminated string.
    CString,
    /// Bytes of this length, passed by reference.
    Fixed(u32),
}

/// The kind and physical type of an attribute. `plain_bytes` keeps a numeric as bytes (it holds NaN).
pub fn kind_of(attr: &pg_sys::FormData_pg_attribute, plain_bytes: bool) -> (Kind, PhysicalType) {
    // SAFETY: system-cache look-up.
    let base = unsafe { pg_sys::getBaseType(attr.atttypid) };
    match (base, attr.attlen, attr.attbyval) {
        (pg_sys::BOOLOID, ..) => (Kind::Bool, PhysicalType::Bool),
        (pg_sys::FLOAT4OID, ..) => (Kind::F32, PhysicalType::F32),
        (pg_sys::FLOAT8OID, ..) => (Kind::F64, PhysicalType::F64),
        (pg_sys::NUMERICOID, ..) if !plain_bytes => match numeric_typmod(attr) {
            Some((precision, scale)) => (Kind::Numeric(scale), PhysicalType::Decimal { precision, scale: scale as i8 }),
            None => (Kind::Varlena, PhysicalType::Binary),
        },
        (pg_sys::TEXTOID | pg_sys::VARCHAROID | pg_sys::BPCHAROID, ..) if utf8_database() => {
            (Kind::Varlena, PhysicalType::Utf8)
        }
        (_, 1, true) => (Kind::Int(1), PhysicalType::I16),
        (_, 2, true) => (Kind::Int(2), PhysicalType::I16),
        (_, 4, true) => (Kind::Int(4), PhysicalType::I32),
        (_, _, true) => (Kind::Int(8), PhysicalType::I64),
        (_, -1, _) => (Kind::Varlena, PhysicalType::Binary),
        (_, -2, _) => (Kind::CString, PhysicalType::Binary),
        (_, n, _) => (Kind::Fixed(n as u32), PhysicalType::Fixed(n as u32)),
    }
}

fn utf8_database() -> bool {
    // SAFETY: a plain variable of the backend.
    unsafe { pg_sys::GetDatabaseEncoding() == pg_sys::pg_enc::PG_UTF8 as i32 }
}

/// Precision and scale of a numeric column that is kept as unscaled values.
fn numeric_typmod(attr: &pg_sys::FormData_pg_attribute) -> Option<(u8, u8)> {
    // A domain over numeric(p,s) has its typmod in the domain.
    let mut typmod = attr.atttypmod;
    if attr.atttypid != pg_sys::NUMERICOID {
        // SAFETY: system-cache look-up.
        unsafe { pg_sys::getBaseTypeAndTypmod(attr.atttypid, &mut typmod) };
    }
    let packed = typmod - pg_sys::VARHDRSZ as i32;
    if packed < 0 {
        return None;
    }
    let (precision, scale) = ((packed >> 16) & 0xffff, packed & 0x7ff);
    (precision <= 38 && scale <= precision).then_some((precision as u8, scale as u8))
}

/// The bytes of a varlena, detoasted; freed with the current memory context.
///
/// # Safety
/// `datum` is a varlena.
#[inline]
pub unsafe fn varlena_bytes<'a>(datum: Datum) -> &'a [u8] {
    // SAFETY: the caller's promise. What is neither compressed nor elsewhere is read where it is, without a guarded call.
    unsafe {
        let mut value: *mut pg_sys::varlena = datum.cast_mut_ptr();
        if pgrx::varatt_is_1b_e(value) || pgrx::varatt_is_4b_c(value) {
            value = pg_sys::pg_detoast_datum_packed(value);
        }
        pgrx::varlena_to_byte_slice(value)
    }
}

/// The bytes of a datum that is kept as bytes.
unsafe fn datum_bytes<'a>(kind: Kind, datum: Datum) -> &'a [u8] {
    // SAFETY: kind fits the datum's type.
    unsafe {
        match kind {
            Kind::CString => std::ffi::CStr::from_ptr(datum.cast_mut_ptr()).to_bytes(),
            Kind::Fixed(n) => std::slice::from_raw_parts(datum.cast_mut_ptr::<u8>(), n as usize),
            _ => varlena_bytes(datum),
        }
    }
}

/// Appends a datum; returns about how many bytes that took. A numeric is appended as the number that [`number`] gives.
///
/// # Safety
/// `datum` is of the attribute's type that `kind` was made from, and not a numeric that is kept as a number, unless null.
#[inline]
pub unsafe fn push(builder: &mut ColumnBuilder, kind: Kind, datum: Datum, is_null: bool) -> usize {
    if is_null {
        builder.push_null();
        return size_of::<Datum>();
    }
    // SAFETY: the caller's promise.
    unsafe {
        match kind {
            Kind::Bool => builder.push_bool(datum.value() & 0xff != 0),
            Kind::Int(1) => builder.push_i16(i16::from(datum.value() as i8)),
            Kind::Int(2) => builder.push_i16(datum.value() as i16),
            Kind::Int(4) => builder.push_i32(datum.value() as i32),
            Kind::Int(_) => builder.push_i64(datum.value() as i64),
            Kind::F32 => builder.push_f32(f32::from_bits(datum.value() as u32)),
            Kind::F64 => builder.push_f64(f64::from_bits(datum.value() as u64)),
            Kind::Varlena | Kind::CString | Kind::Fixed(_) | Kind::Numeric(_) => {
                let bytes = datum_bytes(kind, datum);
                builder.push_bytes(bytes);
                return size_of::<Datum>() + bytes.len();
            }
        }
    }
    size_of::<Datum>()
}

/// The unscaled value of a numeric that is kept as a number.
#[derive(Clone, Copy)]
pub enum Number {
    /// Most are.
    Narrow(i64),
    Wide(i128),
}

/// The unscaled value of a numeric's bytes at a scale; None: it has none (see [`numeric_unscaled`]).
#[inline]
pub fn number(bytes: &[u8], scale: u8) -> Option<Number> {
    match numeric_short(bytes, scale.into()) {
        Some(v) => Some(Number::Narrow(v)),
        None => numeric_unscaled(bytes, scale.into()).map(Number::Wide),
    }
}

/// A datum as a value to look up. None: it can equal no value of the column.
///
/// # Safety
/// `datum` is of the attribute's type that `kind` was made from.
pub unsafe fn value(kind: Kind, datum: Datum) -> Option<Value> {
    // SAFETY: the caller's promise.
    unsafe {
        Some(match kind {
            Kind::Bool => Value::Bool(datum.value() & 0xff != 0),
            Kind::Int(1) => Value::I16(i16::from(datum.value() as i8)),
            Kind::Int(2) => Value::I16(datum.value() as i16),
            Kind::Int(4) => Value::I32(datum.value() as i32),
            Kind::Int(_) => Value::I64(datum.value() as i64),
            Kind::F32 => Value::F32(f32::from_bits(datum.value() as u32)),
            Kind::F64 => Value::F64(f64::from_bits(datum.value() as u64)),
            Kind::Numeric(scale) => Value::I128(numeric_unscaled(varlena_bytes(datum), i32::from(scale))?),
            Kind::Varlena | Kind::CString | Kind::Fixed(_) => Value::Bytes(datum_bytes(kind, datum).to_vec()),
        })
    }
}

/// The datum of row `i` of a decoded column; what is passed by reference is palloc'd in the current context.
///
/// # Safety
/// `column` was read from a column of this `kind`, `i` is a row of it and not null.
#[inline]
pub unsafe fn from_column(kind: Kind, column: &Column, i: usize) -> Datum {
    // SAFETY: the caller's promise.
    unsafe {
        match (&column.data, kind) {
            (ColumnData::Bool(v), _) => Datum::from(v[i]),
            (ColumnData::I16(v), Kind::Int(1)) => Datum::from(v[i] as i8),
            (ColumnData::I16(v), _) => Datum::from(v[i]),
            (ColumnData::I32(v), _) => Datum::from(v[i]),
            (ColumnData::I64(v), _) => Datum::from(v[i]),
            (ColumnData::F32(v), _) => Datum::from(v[i].to_bits()),
            (ColumnData::F64(v), _) => Datum::from(v[i].to_bits()),
            (ColumnData::I128(v), Kind::Numeric(scale)) => numeric_datum(v[i], i32::from(scale)),
            (ColumnData::I128(v), _) => numeric_datum(v[i], 0),
            (ColumnData::Bytes { .. } | ColumnData::Fixed { .. }, _) => bytes_datum(kind, column.bytes(i)),
        }
    }
}

/// [`from_column`] for one value; None: it is null.
///
/// # Safety
/// `value` was read from a column of this `kind`.
pub unsafe fn from_value(kind: Kind, value: &Value) -> Option<Datum> {
    // SAFETY: the caller's promise.
    unsafe {
        Some(match value {
            Value::Null => return None,
            Value::Bool(v) => Datum::from(*v),
            Value::I16(v) if kind == Kind::Int(1) => Datum::from(*v as i8),
            Value::I16(v) => Datum::from(*v),
            Value::I32(v) => Datum::from(*v),
            Value::I64(v) => Datum::from(*v),
            Value::F32(v) => Datum::from(v.to_bits()),
            Value::F64(v) => Datum::from(v.to_bits()),
            Value::I128(v) => match kind {
                Kind::Numeric(scale) => numeric_datum(*v, i32::from(scale)),
                _ => numeric_datum(*v, 0),
            },
            Value::Bytes(v) => bytes_datum(kind, v),
        })
    }
}

unsafe fn bytes_datum(kind: Kind, bytes: &[u8]) -> Datum {
    let (header, trailer) = match kind {
        Kind::CString => (0, 1),
        Kind::Fixed(_) => (0, 0),
        _ => (pg_sys::VARHDRSZ, 0),
    };
    // SAFETY: the allocation holds header, bytes and trailer; palloc aligns for any type.
    unsafe {
        let total = header + bytes.len() + trailer;
        let p = pg_sys::palloc(total) as *mut u8;
        if header > 0 {
            p.cast::<u32>().write((total as u32) << 2);
        }
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), p.add(header), bytes.len());
        if trailer > 0 {
            p.add(total - 1).write(0);
        }
        Datum::from(p)
    }
}

/// Where the values of attribute `i` of `tupdesc` come from for rows that were written without it: its missing value, which
/// lives as long as the descriptor.
///
/// # Safety
/// `i` is an attribute of `tupdesc`.
pub unsafe fn missing(tupdesc: pg_sys::TupleDesc, i: usize) -> ColumnSource {
    // SAFETY: the caller's promise.
    unsafe {
        let attr = compat::attribute(tupdesc, i);
        if attr.attisdropped || !attr.atthasmissing {
            return ColumnSource::Missing(Datum::null(), true);
        }
        let mut is_null = false;
        let datum = pg_sys::getmissingattr(tupdesc, i as i32 + 1, &mut is_null);
        ColumnSource::Missing(datum, is_null)
    }
}

/// The display scale of a numeric's bytes; None for NaN and infinities.
pub fn display_scale(bytes: &[u8]) -> Option<i32> {
    let header = u16::from_ne_bytes([*bytes.first()?, *bytes.get(1)?]);
    match header {
        h if h & 0xC000 == 0xC000 => None,
        h if h & 0x8000 != 0 => Some(i32::from((h >> 7) & 0x3F)),
        h => Some(i32::from(h & 0x3FFF)),
    }
}

const NBASE: i128 = 10_000;

/// [`numeric_unscaled`] of a numeric of at most four digits (of base 10,000) that ends where its scale does; None of others, too.
#[inline]
fn numeric_short(bytes: &[u8], scale: i32) -> Option<i64> {
    let (header, digits) = bytes.split_first_chunk::<2>()?;
    let header = u16::from_ne_bytes(*header);
    if header & 0xC000 != 0x8000 || i32::from((header >> 7) & 0x3F) != scale || digits.len() > 8 {
        return None;
    }
    let mut v = 0i64;
    for digit in digits.chunks_exact(2) {
        v = v * 10_000 + i64::from(i16::from_ne_bytes([digit[0], digit[1]]));
    }
    if v == 0 {
        return Some(0);
    }
    let weight = i32::from(header & 0x3F) - if header & 0x40 != 0 { 64 } else { 0 };
    let exponent = (weight + 1 - (digits.len() / 2) as i32) * 4 + scale;
    let (v, rest) = match exponent {
        0 => (v, 0),
        -1 => (v / 10, v % 10),
        -2 => (v / 100, v % 100),
        -3 => (v / 1000, v % 1000),
        1..=18 => (v.checked_mul(10i64.pow(exponent as u32))?, 0),
        _ => return None,
    };
    (rest == 0).then_some(if header & 0x2000 != 0 { -v } else { v })
}

/// The unscaled value at `scale` of a numeric's bytes (without the length word; the format is numeric.c's). None for NaN,
/// infinities, and what has more digits than the scale.
pub fn numeric_unscaled(bytes: &[u8], scale: i32) -> Option<i128> {
    let word = |i: usize| Some(u16::from_ne_bytes([*bytes.get(i)?, *bytes.get(i + 1)?]));
    let header = word(0)?;
    let (negative, weight, display_scale, start) = if header & 0xC000 == 0xC000 {
        return None;
    } else if header & 0x8000 != 0 {
        let mut weight = i32::from(header & 0x003F);
        if header & 0x0040 != 0 {
            weight |= !0x3F;
        }
        (header & 0x2000 != 0, weight, i32::from((header >> 7) & 0x3F), 2)
    } else {
        (header & 0xC000 == 0x4000, i32::from(word(2)? as i16), i32::from(header & 0x3FFF), 4)
    };
    // The value comes back with the column's scale; another display scale would not come back as it was.
    if display_scale != scale {
        return None;
    }
    let mut v: i128 = 0;
    for (i, digit) in bytes[start..].chunks_exact(2).enumerate() {
        let d = i128::from(i16::from_ne_bytes([digit[0], digit[1]]));
        let exponent = (weight - i as i32) * 4 + scale;
        if exponent >= 0 {
            v = v.checked_add(d.checked_mul(10i128.checked_pow(exponent as u32)?)?)?;
        } else {
            let divisor = 10i128.checked_pow(exponent.unsigned_abs())?;
            if d % divisor != 0 {
                return None;
            }
            v = v.checked_add(d / divisor)?;
        }
    }
    Some(if negative { -v } else { v })
}

/// A numeric datum, palloc'd, from an unscaled value.
///
/// # Safety
/// Allocates in the current memory context.
pub unsafe fn numeric_datum(v: i128, scale: i32) -> Datum {
    // Digits of base 10^4 before and after the point; at most 10 + 10 for 38 decimal digits.
    let negative = v < 0;
    let unsigned = v.unsigned_abs();
    let one = 10u128.pow(scale as u32);
    let (mut whole, fraction) = (unsigned / one, unsigned % one);
    let pad = (4 - scale % 4) % 4;
    let fraction_digits = ((scale + pad) / 4) as usize;
    let mut digits = [0i16; 24];
    // The fraction is below 10^38, and padded by at most 10^3 it may pass u128; split off the last digit first.
    let last_scale = 10u128.pow((4 - pad) as u32);
    let mut rest = fraction;
    for i in 0..fraction_digits {
        let at = 12 + fraction_digits - 1 - i;
        if i == 0 && pad != 0 {
            digits[at] = ((rest % last_scale) * 10u128.pow(pad as u32)) as i16;
            rest /= last_scale;
        } else {
            digits[at] = (rest % NBASE as u128) as i16;
            rest /= NBASE as u128;
        }
    }
    let mut first = 12;
    while whole > 0 {
        first -= 1;
        digits[first] = (whole % NBASE as u128) as i16;
        whole /= NBASE as u128;
    }
    let mut end = 12 + fraction_digits;
    while end > first && digits[end - 1] == 0 {
        end -= 1;
    }
    while first < end && digits[first] == 0 {
        first += 1;
    }
    let n = end - first;
    let weight = if n == 0 { 0 } else { 11 - first as i32 };
    let negative = negative && n > 0;
    let short = scale <= 63 && (-64..=63).contains(&weight);
    let total = pg_sys::VARHDRSZ + if short { 2 } else { 4 } + n * 2;
    // SAFETY: the allocation holds `total` bytes; numeric.c reads the digits as 16-bit words, which are aligned.
    unsafe {
        let p = pg_sys::palloc(total) as *mut u8;
        p.cast::<u32>().write((total as u32) << 2);
        let mut q = p.add(pg_sys::VARHDRSZ).cast::<u16>();
        if short {
            let sign = if negative { 0x2000 } else { 0 };
            let weight_sign = if weight < 0 { 0x0040 } else { 0 };
            q.write(0x8000 | sign | ((scale as u16) << 7) | weight_sign | (weight as u16 & 0x3F));
            q = q.add(1);
        } else {
            q.write(if negative { 0x4000 } else { 0 } | (scale as u16 & 0x3FFF));
            q.add(1).cast::<i16>().write(weight as i16);
            q = q.add(2);
        }
        for d in &digits[first..end] {
            q.cast::<i16>().write(*d);
            q = q.add(1);
        }
        Datum::from(p)
    }
}
