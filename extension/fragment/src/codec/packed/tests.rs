//! Reading words and values where they lie, and searching them, against decoding everything.

use super::super::encode::{Encoder, Habit, Way};
use super::super::whole::differences;
use super::super::{Context, Lazy, Reading, Repr, SESSION, pack};
use super::*;
use crate::column::{Column, ColumnData};
use crate::rows::Rows;
use crate::schema::PhysicalType;
use crate::value::Value;
use vortex::array::arrays::{DictArray, PrimitiveArray};
use vortex::array::validity::Validity;
use vortex::array::{IntoArray, VortexSessionExecute};
use vortex::buffer::Buffer;
use vortex::compressor::BtrBlocksCompressor;

/// Numbers that look random, the same ones each time.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 ^ self.0 >> 29
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 8) % n.max(1)
    }
}

/// Every word of an array, and of parts of it, is the one that decoding gives; behind the last there is none.
fn same_words<T: Word>(array: &ArrayRef, what: &str) {
    let check = |array: &ArrayRef, what: &str| {
        let packed = Packed::new(array).unwrap_or_else(|| panic!("{what} is not known"));
        let all = super::super::decode::primitive(array.clone()).unwrap();
        let all = all.to_buffer::<T>();
        assert_eq!(packed.len(), all.len(), "{what}");
        for (i, expected) in all.iter().enumerate() {
            assert_eq!(packed.get(i), Some((*expected).into()), "{what}, word {i}");
        }
        assert_eq!(packed.get(all.len()), None, "{what}");
        assert_eq!(packed.get(usize::MAX), None, "{what}");
    };
    check(array, what);
    let n = array.len();
    for part in [n / 3..n, 0..n / 2, n / 2..n / 2 + (n - n / 2).min(7)] {
        // Parts of an array may be an encoding around it, which no chunk has.
        let sliced = array.slice(part.clone()).unwrap();
        if !part.is_empty() && Packed::new(&sliced).is_some() {
            check(&sliced, &format!("{what}, {part:?} of it"));
        }
    }
}

const LENGTHS: [usize; 9] = [1, 2, 127, 128, 1023, 1024, 1025, 2300, 5000];

fn packed_at_every_width<T: Word>() {
    let mut noise = Noise(T::BITS.into());
    for bits in 0..T::BITS {
        for n in LENGTHS {
            for exceptions in [0, 1, n / 9] {
                let limit = mask(bits as usize);
                let mut x: Vec<T> = (0..n).map(|_| T::low(noise.next() & limit)).collect();
                for _ in 0..exceptions {
                    x[noise.below(n as u64) as usize] = T::low(noise.next() | limit.wrapping_add(1));
                }
                let above = x.iter().filter(|w| (**w).into() > limit).count();
                let array = pack::packed(&x, bits, above, &mut SESSION.create_execution_ctx()).unwrap();
                same_words::<T>(&array, &format!("{n} words of {} bits in {bits}, {above} exceptions", T::BITS));
            }
        }
    }
}

#[test]
fn packed_words_of_every_width_are_read_where_they_lie() {
    packed_at_every_width::<u8>();
    packed_at_every_width::<u16>();
    packed_at_every_width::<u32>();
    packed_at_every_width::<u64>();
}

fn other_layouts<T: Word>() {
    let mut noise = Noise(7);
    let mut ctx = SESSION.create_execution_ctx();
    let array = |x: Vec<T>| PrimitiveArray::new(Buffer::from(x), Validity::NonNullable).into_array();
    for n in LENGTHS {
        let raw: Vec<T> = (0..n).map(|_| T::low(noise.next())).collect();
        same_words::<T>(&array(raw.clone()), "raw words");
        let mut runs = Vec::new();
        while runs.len() < n {
            let (word, times) = (T::low(noise.next()), 1 + noise.below(40) as usize);
            runs.extend(std::iter::repeat_n(word, times.min(n - runs.len())));
        }
        let ends = RunEnd::encode(array(runs.clone()), &mut ctx).unwrap();
        same_words::<T>(&ends.into_array(), "runs");
        same_words::<T>(
            &pack::build(runs.clone(), &pack::layout(&runs), &mut ctx).unwrap(),
            "runs as they are written",
        );
        let step = T::low(1 + noise.below(2));
        let mut sequence = vec![T::low(3)];
        while sequence.len() < n.min(100) {
            sequence.push(sequence[sequence.len() - 1].plus(step));
        }
        if let Some(sequence) = pack::sequence(&sequence, &mut ctx).unwrap() {
            same_words::<T>(&sequence, "a sequence");
        }
        let few: Vec<T> = raw.iter().take(7).copied().collect();
        let codes: Vec<u8> = (0..n).map(|_| noise.below(few.len() as u64) as u8).collect();
        let codes = PrimitiveArray::new(Buffer::from(codes), Validity::NonNullable).into_array();
        same_words::<T>(&DictArray::try_new(codes, array(few.clone())).unwrap().into_array(), "a dictionary");
        // What the sampling compressor finds is read where it lies or decoded.
        for x in [raw.clone(), runs, (0..n).map(|i| few[i * i % few.len()]).collect()] {
            let found = BtrBlocksCompressor::from_session(&SESSION).compress(&array(x), &mut ctx).unwrap();
            if Packed::new(&found).is_some() {
                same_words::<T>(&found, "what the compressor found");
            }
        }
    }
}

#[test]
fn words_of_other_layouts_are_read_where_they_lie() {
    other_layouts::<u8>();
    other_layouts::<u16>();
    other_layouts::<u32>();
    other_layouts::<u64>();
}

#[test]
fn differences_are_summed_from_the_nearest_sum_for_every_lag() {
    let mut noise = Noise(3);
    let mut ctx = SESSION.create_execution_ctx();
    for n in [1, 5, 127, 128, 129, 256, 3000, 9000] {
        let x: Vec<u32> = (0..n).map(|_| noise.next() as u32).collect();
        for lag in [1, 2, 3, 10, 100, 127, 128, 4000, 20_000] {
            let offset = noise.next();
            let d: Vec<u32> = differences(&x, lag).iter().map(|d| d.minus(u32::low(offset))).collect();
            let whole = Whole { bits: 32, base: -9, scale: 3, lag: lag as u32, offset };
            for bits in [32, 30] {
                let exceptions = d.iter().filter(|w| u64::from(**w) > mask(bits)).count();
                let array = match bits {
                    32 => PrimitiveArray::new(Buffer::from(d.clone()), Validity::NonNullable).into_array(),
                    _ => pack::packed(&d, bits as u32, exceptions, &mut ctx).unwrap(),
                };
                let numbers = Numbers::new(&array, whole).unwrap();
                for (i, x) in x.iter().enumerate() {
                    assert_eq!(numbers.get(i), Some(i128::from(*x) * 3 - 9), "{i} of {n}, lag {lag}");
                    assert_eq!(numbers.plain(i).map(|(_, w)| w), Some(u64::from(*x)));
                }
                assert_eq!(numbers.get(n), None);
            }
        }
    }
}

/// How the values of a column are distributed: each gives numbers in no order.
const SHAPES: [&str; 7] = ["constant", "few", "near", "far", "outliers", "runs", "series"];

fn numbers(shape: &str, n: usize, noise: &mut Noise) -> Vec<i64> {
    let mut last = 0;
    (0..n)
        .map(|i| match shape {
            "constant" => 17,
            "few" => [5, 1 << 40, -3, 1 << 61][noise.below(4) as usize],
            "near" => 1_000 + noise.below(900) as i64,
            "far" => noise.next() as i64,
            "outliers" if noise.below(50) == 0 => noise.next() as i64 >> 20,
            "outliers" => noise.below(16) as i64,
            "runs" => {
                if noise.below(30) == 0 {
                    last = noise.below(1 << 30) as i64;
                }
                last
            }
            _ => (i / 10) as i64 + 1_000_000 * (i % 10) as i64 + noise.below(3) as i64,
        })
        .collect()
}

fn typed(ty: PhysicalType, numbers: &[i64], nulls: Option<Vec<bool>>) -> Column {
    let is_null = |i: usize| nulls.as_ref().is_some_and(|n| n[i]);
    let mut data = ColumnData::with_capacity(ty, numbers.len());
    for (i, v) in numbers.iter().enumerate() {
        let v = if is_null(i) { 0 } else { *v };
        match &mut data {
            ColumnData::Bool(c) => c.push(v & 1 == 1),
            ColumnData::I16(c) => c.push(v as i16),
            ColumnData::I32(c) => c.push(v as i32),
            ColumnData::I64(c) => c.push(v),
            ColumnData::F32(c) => c.push(v as f32 / 4.0),
            ColumnData::F64(c) => c.push(if v % 1000 == 3 { f64::NAN } else { v as f64 / 10.0 }),
            // Some so far apart that they are kept as bytes.
            ColumnData::I128(c) => c.push(i128::from(v) * if numbers.len().is_multiple_of(2) { 1 << 60 } else { 1 }),
            ColumnData::Bytes { offsets, data } => {
                if !is_null(i) {
                    data.extend_from_slice(format!("text {v}").as_bytes());
                    if ty == PhysicalType::Binary {
                        data.push(0xff);
                    }
                }
                offsets.push(data.len() as u32);
            }
            ColumnData::Fixed { data, .. } => data.extend_from_slice(&i128::from(v).to_le_bytes()),
        }
    }
    Column { data, nulls }
}

const TYPES: [PhysicalType; 10] = [
    PhysicalType::Bool,
    PhysicalType::I16,
    PhysicalType::I32,
    PhysicalType::I64,
    PhysicalType::F32,
    PhysicalType::F64,
    PhysicalType::Decimal { precision: 38, scale: 2 },
    PhysicalType::Utf8,
    PhysicalType::Binary,
    PhysicalType::Fixed(16),
];

fn encoded(column: &Column, ty: PhysicalType, way: Way) -> (Repr, Vec<u8>, usize, Context) {
    let encoder = Encoder::new();
    let rows = Rows::Column(column.clone());
    let e = encoder.attempt(&rows, ty, way, &[1, 10], &mut Habit::default()).unwrap();
    let values = e.bytes.len() - e.nulls_len;
    (e.repr, e.bytes, values, Context::new(&encoder.encodings()))
}

/// Columns of every type and shape, with no nulls, some, nearly only, and only nulls, laid out in every way.
fn for_each_column(mut f: impl FnMut(&Column, PhysicalType, Way, &str)) {
    let mut noise = Noise(11);
    for ty in TYPES {
        for shape in SHAPES {
            for n in [1, 200, 1025, 2500] {
                let mut v = numbers(shape, n, &mut noise);
                for nulls in [0, 10, 95, 100] {
                    let is_null: Vec<bool> = (0..n).map(|_| noise.below(100) < nulls).collect();
                    let nulls = is_null.contains(&true).then_some(is_null);
                    for sorted in [false, true] {
                        if sorted {
                            v.sort_unstable();
                        }
                        let column = typed(ty, &v, nulls.clone());
                        for way in [Way::Counted, Way::Sampled, Way::Plain] {
                            // Trying encodings on samples is slow, and hardly depends on the rest.
                            if way == Way::Counted || sorted == (n == 2500) {
                                let null = column.null_count();
                                let what = format!("{ty:?}, {shape}, {null} of {n} null, sorted {sorted}, {way:?}");
                                f(&column, ty, way, &what);
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn single_values_of_every_type_and_layout_are_those_of_decoding() {
    let mut direct = 0;
    for_each_column(|column, ty, way, what| {
        let (repr, bytes, values, context) = encoded(column, ty, way);
        let (rows, nulls) = (column.len() as u32, column.null_count() as u32);
        let lazy = Lazy::parse(bytes, values, &repr, ty, rows, nulls, &context).unwrap();
        let decoded = lazy.column().unwrap();
        assert!(decoded.identical(column), "{what}");
        direct += usize::from(lazy.reading() == Reading::Direct);
        // All of what is read directly, of the rest some.
        let step = if lazy.reading() == Reading::Direct { 1 } else { 37 };
        for row in (0..rows).step_by(step) {
            let value = lazy.value(row).unwrap_or_else(|e| panic!("{what}, row {row}: {e}"));
            assert!(value.identical(&decoded.value(row as usize)), "{what}, row {row}: {value:?}");
        }
        assert!(lazy.value(rows).is_err(), "{what}");
        if way == Way::Counted && ty.is_integer() && !matches!(repr, Repr::Binary) {
            assert!(lazy.reading() == Reading::Direct, "{what}: {}", lazy.describe());
        }
    });
    assert!(direct > 1000, "{direct}");
}

#[test]
fn searching_packed_numbers_finds_what_decoding_finds() {
    let mut noise = Noise(5);
    let mut searched = 0;
    for ty in TYPES.into_iter().filter(|ty| ty.is_integer()) {
        for shape in SHAPES {
            for (n, null) in [(1, 0), (700, 0), (700, 90), (2600, 0), (2600, 1000), (2600, 2600)] {
                // Two groups, each sorted with its nulls last, as the rows of two values of the key column before are.
                let mut values = Vec::new();
                let mut nulls = Vec::new();
                let cut = n / 3;
                for group in [0..cut, cut..n] {
                    let mut v = numbers(shape, group.len(), &mut noise);
                    v.iter_mut().for_each(|v| {
                        *v = if ty == PhysicalType::I16 { i64::from(*v as i16) } else { i64::from(*v as i32) }
                    });
                    v.sort_unstable();
                    let live = group.len() - group.len() * null / n;
                    nulls.extend((0..group.len()).map(|i| i >= live));
                    values.extend(v);
                }
                let column = typed(ty, &values, nulls.contains(&true).then_some(nulls));
                for way in [Way::Counted, Way::Sampled, Way::Plain] {
                    let (repr, bytes, len, context) = encoded(&column, ty, way);
                    let nulls = column.null_count() as u32;
                    let lazy = Lazy::parse(bytes, len, &repr, ty, n as u32, nulls, &context).unwrap();
                    let mut wanted: Vec<i128> = (0..60)
                        .map(|_| noise.below(n as u64) as usize)
                        .filter_map(|i| column.value(i).as_i128())
                        .collect();
                    wanted.extend(wanted.clone().iter().flat_map(|v| [v - 1, v + 1]));
                    wanted.extend([0, i128::MIN, i128::MAX, i128::from(i64::MIN), 1 << 70]);
                    for range in [0..cut, cut..n, cut + (n - cut) / 3..n, cut..cut] {
                        let range = range.start as u32..range.end as u32;
                        for v in &wanted {
                            let Some(found) = lazy.equal(range.clone(), *v) else { continue };
                            searched += 1;
                            let expected = range.clone().filter(|r| column.value(*r as usize).as_i128() == Some(*v));
                            let what =
                                format!("{ty:?}, {shape}, {n} rows, {way:?}, {v} in {range:?}: {}", lazy.describe());
                            assert!(found.start >= range.start && found.end <= range.end, "{what}: {found:?}");
                            assert!(found.clone().eq(expected), "{what}: {found:?}");
                        }
                        // Beyond the chunk nothing is found.
                        assert!(lazy.equal(range.start..n as u32 + 1, 0).is_none());
                    }
                }
            }
        }
    }
    assert!(searched > 10_000, "{searched}");
}

/// A chunk whose checksum was made for its damage too: whatever comes out, nothing panics, and nothing is read outside of it.
#[test]
fn damaged_chunks_that_a_checksum_covers_give_values_or_errors() {
    let mut noise = Noise(13);
    let mut same = 0;
    let mut seen = 0;
    for_each_column(|column, ty, way, _| {
        seen += 1;
        if column.len() != 1025 || seen % 3 != 0 {
            return;
        }
        let (repr, bytes, values, context) = encoded(column, ty, way);
        if bytes.is_empty() {
            return;
        }
        for _ in 0..4 {
            let mut bytes = bytes.clone();
            let at = noise.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << noise.below(8);
            let (rows, nulls) = (column.len() as u32, column.null_count() as u32);
            let Ok(lazy) = Lazy::parse(bytes, values, &repr, ty, rows, nulls, &context) else { continue };
            let decoded = lazy.column();
            for row in [0, 1, 500, 1023, 1024] {
                if let (Ok(value), Ok(decoded)) = (lazy.value(row), &decoded) {
                    same += usize::from(value.identical(&decoded.value(row as usize)));
                }
            }
            if let Some(found) = lazy.equal(0..rows, 17) {
                assert!(found.start <= found.end && found.end <= rows);
            }
            let _ = lazy.equal(rows / 2..rows, -3);
        }
    });
    assert!(same > 1000, "{same}");
}

#[test]
fn a_number_that_the_column_cannot_have_is_not_there() {
    let column = Column { data: ColumnData::I64((0..3000).map(|i| i * 10).collect()), nulls: None };
    let (repr, bytes, values, context) = encoded(&column, PhysicalType::I64, Way::Counted);
    let lazy = Lazy::parse(bytes, values, &repr, PhysicalType::I64, 3000, 0, &context).unwrap();
    assert_eq!(lazy.equal(0..3000, 29_990), Some(2999..3000));
    for v in [5, -10, 30_000, i128::MAX, i128::MIN] {
        assert!(lazy.equal(0..3000, v).is_some_and(|found| found.is_empty()), "{v}");
    }
    assert_eq!(lazy.value(7), Ok(Value::I64(70)));
}
