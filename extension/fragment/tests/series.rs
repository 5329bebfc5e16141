//! Measurements of many series, sorted by time and then by series, come back and are small; so do columns whose values change their
//! kind midway.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Row, read_all, same, schema, write};
use strata_fragment::{Fragment, PhysicalType, Value};

/// A generator of numbers that is good enough for walks.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

const TYPES: [PhysicalType; 8] = [
    PhysicalType::I64,
    PhysicalType::Utf8,
    PhysicalType::F64,
    PhysicalType::F64,
    PhysicalType::F32,
    PhysicalType::I32,
    PhysicalType::Decimal { precision: 30, scale: 2 },
    PhysicalType::F64,
];

/// `times` rows of each of `series`; those for which `gap` says so are missing, and those for which `null` says so have nulls.
fn rows(times: u64, series: u64, gap: impl Fn(u64, u64) -> bool, null: impl Fn(u64, u64) -> bool) -> Vec<Row> {
    let mut dice = Dice(7);
    let mut level: Vec<i64> = (0..series).map(|_| dice.below(100_000) as i64 - 50_000).collect();
    let mut rows = Vec::new();
    for time in 0..times {
        for s in 0..series {
            level[s as usize] += dice.below(7) as i64 - 3;
            if gap(time, s) {
                continue;
            }
            let v = level[s as usize];
            let mut row = vec![
                Value::I64(1_000_000_000_000 + time as i64 * 10_000_000),
                Value::Bytes(format!("host_{s:03}").into_bytes()),
                Value::F64(v as f64),
                Value::F64(v as f64 / 100.0),
                Value::F32(v as f32),
                Value::I32(v as i32),
                Value::I128(i128::from(v) * 25),
                Value::F64((v as f64).sqrt()),
            ];
            if null(time, s) {
                row[2..].iter_mut().step_by(2).for_each(|v| *v = Value::Null);
            }
            rows.push(row);
        }
    }
    rows
}

/// Writes rows, checks that all come back in every way, and returns the fragment.
fn proven(dir: &std::path::Path, block_rows: u32, rows: &[Row]) -> Fragment {
    let w = write(dir, &schema(&TYPES, &[0, 1], &[&[0, 1]]), block_rows, rows);
    let f = Fragment::open(&w.path, Some(&w.hash)).unwrap();
    f.verify().unwrap();
    let expected: Vec<&Row> = w.order.iter().map(|i| &rows[*i as usize]).collect();
    for (i, (a, b)) in read_all(&f).iter().zip(&expected).enumerate() {
        assert!(same(a, b), "row {i}: {a:?} instead of {b:?}");
    }
    for i in (0..expected.len()).step_by(expected.len() / 40) {
        let (block, inside) = f.block_of(i as u64).unwrap();
        for (col, v) in expected[i].iter().enumerate() {
            f.clear_cache();
            assert!(f.value(block, col, inside).unwrap().identical(v), "row {i}, column {col}");
        }
        assert_eq!(f.lookup(&[0, 1], &expected[i][..2]).unwrap(), [i as u64]);
    }
    for (block, info) in f.blocks().iter().enumerate() {
        for col in [5, 6] {
            let Some(column) = f.read_integers(block, col).unwrap() else { continue };
            for i in 0..info.rows as usize {
                let whole = &expected[info.first_row as usize + i][col];
                assert!(column.value(i) == *whole, "row {i}: {:?} instead of {whole:?}", column.value(i));
            }
        }
    }
    f
}

fn description(f: &Fragment, col: usize) -> String {
    f.describe_chunk(0, col).unwrap()
}

#[test]
fn series_are_kept_as_differences_to_the_time_before() {
    let dir = tempfile::tempdir().unwrap();
    let f = proven(dir.path(), 8_192, &rows(500, 60, |_, _| false, |_, _| false));
    for col in 2..7 {
        let how = description(&f, col);
        assert!(how.contains("differences to 60 rows before"), "column {col}: {how}");
        // Seven steps are three bits; without differences it would be 17.
        let bits = f.chunk_bytes(0, col).unwrap() * 8 / 8_192;
        assert!(bits <= 5, "column {col}: {bits} bits");
    }
    assert!(description(&f, 2).starts_with("whole float") && description(&f, 3).starts_with("float with 2 decimals"));
    assert!(description(&f, 7).starts_with("float:"), "{}", description(&f, 7));
    assert!(description(&f, 1).contains("dict"), "{}", description(&f, 1));
}

#[test]
fn series_with_gaps_and_nulls_come_back() {
    let dir = tempfile::tempdir().unwrap();
    // One missing at times; one that ends; nulls in all, in some, and of one series.
    proven(dir.path(), 4_096, &rows(200, 50, |t, s| (t * 7 + s) % 61 == 0, |_, _| false));
    proven(dir.path(), 4_096, &rows(200, 50, |t, s| s == 17 && t > 60, |t, s| s == 3 || t == 90));
    proven(dir.path(), 4_096, &rows(200, 50, |_, _| false, |t, s| (t + s) % 2 == 0));
    proven(dir.path(), 1_000, &rows(300, 7, |t, s| t % 5 == s, |_, _| true));
}

#[test]
fn special_floats_among_whole_ones_come_back() {
    let dir = tempfile::tempdir().unwrap();
    for special in [-0.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 9_007_199_254_740_993.0, 5e-324, 1e300, 0.1] {
        let mut rows = rows(100, 50, |_, _| false, |_, _| false);
        for at in [0, 2_500, 4_999] {
            rows[at][2] = Value::F64(special);
            rows[at][4] = Value::F32(special as f32);
        }
        proven(dir.path(), 4_096, &rows);
    }
    let extremes = [i32::MIN, i32::MAX, 0];
    let mut rows = rows(100, 50, |_, _| false, |_, _| false);
    for (i, row) in rows.iter_mut().enumerate() {
        if i % 700 < 3 {
            row[5] = Value::I32(extremes[i % 3]);
            row[6] = Value::I128(i128::from(i64::MIN) * i128::from(extremes[i % 3]));
        }
    }
    proven(dir.path(), 4_096, &rows);
}

#[test]
fn a_column_may_change_its_kind_midway() {
    let dir = tempfile::tempdir().unwrap();
    let types = [PhysicalType::Utf8, PhysicalType::Decimal { precision: 38, scale: 0 }, PhysicalType::Binary];
    for change in [0, 1, 500, 1_023, 1_024, 1_025, 3_000] {
        let rows: Vec<Row> = (0..9_000u64)
            .map(|i| {
                // Few distinct texts, then ever new ones; short decimals, then long ones; few long values, then one of many bytes.
                let text = if i < change { format!("kind {}", i % 9) } else { format!("event number {i}") };
                let number = if i < change { i128::from(i) } else { i128::MAX / 3 - i128::from(i) };
                let bytes = vec![i as u8 % 3; if i == change { 2 << 20 } else { 300 }];
                let mut row = vec![Value::Bytes(text.into_bytes()), Value::I128(number), Value::Bytes(bytes)];
                if i % 13 == 5 {
                    row[(i % 3) as usize] = Value::Null;
                }
                row
            })
            .collect();
        let w = write(dir.path(), &schema(&types, &[1, 0], &[&[0]]), 4_096, &rows);
        let f = Fragment::open(&w.path, None).unwrap();
        f.verify().unwrap();
        for (a, i) in read_all(&f).iter().zip(&w.order) {
            assert!(same(a, &rows[*i as usize]), "change at {change}, row {i}");
        }
        let mut order: Vec<u32> = (0..9_000).collect();
        let key = |i: &u32| (rows[*i as usize][1].clone(), rows[*i as usize][0].clone());
        order.sort_by_key(key);
        assert_eq!(w.order, order, "change at {change}");
    }
}

#[test]
fn integers_of_every_shape_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut dice = Dice(3);
    let n = 20_000u64;
    let shapes: [Vec<i64>; 10] = [
        (0..n).map(|i| i as i64 * 7 - 5).collect(),
        (0..n).map(|i| (i / 700) as i64 * i64::from(i32::MAX)).collect(),
        (0..n).map(|_| dice.below(1 << 20) as i64).collect(),
        (0..n).map(|i| if i % 997 == 0 { i64::MIN } else { 3 }).collect(),
        (0..n).map(|i| if i % 2 == 0 { i64::MAX } else { i64::MIN }).collect(),
        (0..n).map(|i| (i as i64 - 10_000) << 40).collect(),
        (0..n).map(|_| [1, 1_000_003, 77_777_777, 5_000_000_000][dice.below(4) as usize]).collect(),
        (0..n)
            .scan(0i64, |sum, _| {
                *sum += dice.below(5_000) as i64;
                Some(*sum)
            })
            .collect(),
        (0..n).map(|i| if i == 12_345 { 1 } else { 0 }).collect(),
        (0..n).map(|_| (dice.below(1 << 31) << 33 | dice.below(1 << 31)) as i64).collect(),
    ];
    let types = vec![PhysicalType::I64; shapes.len()];
    let rows: Vec<Row> = (0..n as usize).map(|i| shapes.iter().map(|s| Value::I64(s[i])).collect()).collect();
    let w = write(dir.path(), &schema(&types, &[], &[]), 8_192, &rows);
    let f = Fragment::open(&w.path, None).unwrap();
    f.verify().unwrap();
    for (i, (a, b)) in read_all(&f).iter().zip(&rows).enumerate() {
        assert!(same(a, b), "row {i}");
    }
    for i in (0..n).step_by(331) {
        let (block, inside) = f.block_of(i).unwrap();
        for (col, wanted) in rows[i as usize].iter().enumerate() {
            f.clear_cache();
            assert!(f.value(block, col, inside).unwrap().identical(wanted), "row {i}, column {col}");
        }
    }
    let how: Vec<String> = (0..shapes.len()).map(|c| description(&f, c)).collect();
    assert!(how[0].contains("sequence") && how[1].contains("runend"), "{how:?}");
    assert!(how[7].contains("differences to the row before"), "{how:?}");
}
