//! Whatever rows are written, the same come back: by column, by value, by dictionary and by lookup.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Row, read_all, same, schema, write};
use proptest::prelude::*;
use strata_fragment::{Dictionary, Fragment, PhysicalType, Value, verify_file};

const TYPES: [PhysicalType; 12] = [
    PhysicalType::Bool,
    PhysicalType::I16,
    PhysicalType::I32,
    PhysicalType::I64,
    PhysicalType::F32,
    PhysicalType::F64,
    PhysicalType::Decimal { precision: 12, scale: 2 },
    PhysicalType::Decimal { precision: 38, scale: 0 },
    PhysicalType::Utf8,
    PhysicalType::Binary,
    PhysicalType::Fixed(1),
    PhysicalType::Fixed(16),
];

fn float_bits() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        any::<i16>().prop_map(|v| (f64::from(v) / 100.0).to_bits()),
        prop::sample::select(vec![
            0.0f64.to_bits(),
            (-0.0f64).to_bits(),
            f64::NAN.to_bits(),
            f64::NAN.to_bits() | 1,
            (-f64::NAN).to_bits(),
            f64::INFINITY.to_bits(),
            f64::NEG_INFINITY.to_bits(),
            f64::MIN_POSITIVE.to_bits(),
            1,
        ]),
    ]
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::sample::select(vec!["", "ATL", "ORD", "LAX", "\u{0}", "müde"]).prop_map(|s| s.as_bytes().to_vec()),
        "[a-e ]{0,90}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..40),
        prop::collection::vec(250u8.., 60..70),
    ]
}

fn value(ty: PhysicalType) -> BoxedStrategy<Value> {
    match ty {
        PhysicalType::Bool => any::<bool>().prop_map(Value::Bool).boxed(),
        PhysicalType::I16 => any::<i16>().prop_map(Value::I16).boxed(),
        PhysicalType::I32 => prop_oneof![any::<i32>(), -3..3i32, Just(i32::MIN)].prop_map(Value::I32).boxed(),
        PhysicalType::I64 => {
            prop_oneof![any::<i64>(), (0..50i64).prop_map(|v| v * 60_000_000), Just(i64::MIN), Just(i64::MAX)]
                .prop_map(Value::I64)
                .boxed()
        }
        PhysicalType::F32 => prop_oneof![
            any::<u32>().prop_map(|b| Value::F32(f32::from_bits(b))),
            float_bits().prop_map(|b| Value::F32(f64::from_bits(b) as f32)),
        ]
        .boxed(),
        PhysicalType::F64 => float_bits().prop_map(|b| Value::F64(f64::from_bits(b))).boxed(),
        PhysicalType::Decimal { precision: 38, .. } => {
            prop_oneof![any::<i128>(), Just(i128::MIN), Just(i128::MAX)].prop_map(Value::I128).boxed()
        }
        PhysicalType::Decimal { .. } => (-9_999i128..99_999).prop_map(Value::I128).boxed(),
        PhysicalType::Utf8 | PhysicalType::Binary => bytes().prop_map(Value::Bytes).boxed(),
        PhysicalType::Fixed(n) => {
            prop_oneof![prop::collection::vec(any::<u8>(), n as usize), prop::collection::vec(0u8..3, n as usize),]
                .prop_map(Value::Bytes)
                .boxed()
        }
    }
}

/// Values of a column: mixed, one value, or few values; with no, some or only nulls.
fn column(ty: PhysicalType, rows: usize) -> BoxedStrategy<Vec<Value>> {
    let values = prop_oneof![
        3 => prop::collection::vec(value(ty), rows),
        1 => value(ty).prop_map(move |v| vec![v; rows]),
        2 => (prop::collection::vec(value(ty), 1..4), prop::collection::vec(any::<prop::sample::Index>(), rows))
            .prop_map(|(few, which)| which.iter().map(|i| i.get(&few).clone()).collect()),
    ];
    (values, prop_oneof![Just(0u32), Just(2), Just(9), Just(10)], prop::collection::vec(0..10u32, rows))
        .prop_map(|(values, nulls, dice)| {
            values.into_iter().zip(dice).map(|(v, d)| if d < nulls { Value::Null } else { v }).collect()
        })
        .boxed()
}

fn table() -> impl Strategy<Value = (Vec<PhysicalType>, Vec<usize>, Vec<Row>, u32)> {
    let types = prop::collection::vec(prop::sample::select(TYPES.to_vec()), 1..5);
    (types, 1..260usize, 1..120u32).prop_flat_map(|(types, rows, block)| {
        let columns: Vec<_> = types.iter().map(|t| column(*t, rows)).collect();
        let width = types.len();
        let sort = prop::sample::subsequence((0..width).collect::<Vec<_>>(), 0..=width.min(2)).prop_shuffle();
        (Just(types), sort, columns, Just(block)).prop_map(|(types, sort, columns, block)| {
            let rows = (0..columns[0].len()).map(|i| columns.iter().map(|c| c[i].clone()).collect());
            (types, sort, rows.collect(), block)
        })
    })
}

/// `PROPTEST_CASES` sets how many cases; here a part of that.
fn config(part: u32) -> ProptestConfig {
    let default = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    ProptestConfig { cases: default.cases / part, ..default }
}

proptest! {
    #![proptest_config(config(1))]

    #[test]
    fn rows_come_back((types, sort, rows, block_rows) in table(), picks in prop::collection::vec(any::<prop::sample::Index>(), 30)) {
        let all: Vec<usize> = (0..types.len()).collect();
        let schema = schema(&types, &sort, &[&all[..1], &all]);
        let dir = tempfile::tempdir().unwrap();
        let w = write(dir.path(), &schema, block_rows, &rows);
        let f = Fragment::open(&w.path, Some(&w.hash)).unwrap();
        prop_assert_eq!(f.schema(), &schema);
        prop_assert_eq!(f.rows() as usize, rows.len());
        prop_assert_eq!(f.bytes(), w.bytes);
        let summary = verify_file(&w.path).unwrap();
        prop_assert_eq!(&summary.hash, &w.hash);

        // The order is the oracle's: a stable sort.
        let mut order: Vec<u32> = (0..rows.len() as u32).collect();
        order.sort_by(|a, b| {
            let (a, b) = (&rows[*a as usize], &rows[*b as usize]);
            sort.iter().map(|c| a[*c].cmp(&b[*c])).find(|o| o.is_ne()).unwrap_or(std::cmp::Ordering::Equal)
        });
        prop_assert_eq!(&w.order, &order);
        let expected: Vec<Row> = order.iter().map(|i| rows[*i as usize].clone()).collect();
        let found = read_all(&f);
        for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
            prop_assert!(same(a, b), "row {}: {:?} instead of {:?}", i, a, b);
        }

        for pick in &picks {
            let row = pick.index(rows.len());
            let col = pick.index(types.len());
            let (block, inside) = f.block_of(row as u64).unwrap();
            prop_assert!(f.value(block, col, inside).unwrap().identical(&expected[row][col]));
            for columns in [&all[..1], &all[col..=col], &all] {
                let values: Vec<Value> = columns.iter().map(|c| expected[row][*c].clone()).collect();
                let oracle: Vec<u64> = (0..rows.len())
                    .filter(|i| columns.iter().zip(&values).all(|(c, v)| !v.is_null() && expected[*i][*c] == *v))
                    .map(|i| i as u64)
                    .collect();
                prop_assert_eq!(f.lookup(columns, &values).unwrap(), oracle);
            }
        }
        prop_assert_eq!(f.block_of(rows.len() as u64), None);

        for (block, info) in f.blocks().iter().enumerate() {
            for (col, ty) in types.iter().enumerate() {
                let zone = f.zone(block, col);
                let Some(d) = f.read_dictionary(block, col).unwrap() else { continue };
                prop_assert!(ty.is_bytes() && d.values.nulls.is_none());
                prop_assert_eq!(d.codes.len(), info.rows as usize);
                for (i, code) in d.codes.iter().enumerate() {
                    let value = if *code == Dictionary::NULL { Value::Null } else { d.values.value(*code as usize) };
                    prop_assert!(value.identical(&expected[info.first_row as usize + i][col]));
                    prop_assert!(value.is_null() || zone.may_contain(&value));
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(config(4))]

    /// Enough rows that all of Vortex's encodings are chosen from.
    #[test]
    fn longer_columns_come_back(
        (ty, values) in (prop::sample::select(TYPES.to_vec()), 1_000..5_000usize)
            .prop_flat_map(|(ty, rows)| (Just(ty), column(ty, rows))),
        sorted in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let rows: Vec<Row> = values.into_iter().map(|v| vec![v]).collect();
        let sort: &[usize] = if sorted { &[0] } else { &[] };
        let w = write(dir.path(), &schema(&[ty], sort, &[&[0]]), 4_000, &rows);
        let f = Fragment::open(&w.path, Some(&w.hash)).unwrap();
        for (i, found) in read_all(&f).iter().enumerate() {
            prop_assert!(same(found, &rows[w.order[i] as usize]), "row {}", i);
        }
        f.verify().unwrap();
    }
}

#[test]
fn large_blocks_of_every_type_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let n = 100_000i64;
    let schema = schema(&TYPES, &[3], &[&[3], &[8]]);
    let rows: Vec<Row> = (0..n)
        .map(|i| {
            let noise = i.wrapping_mul(0x9e37_79b9_7f4a_7c15_u64 as i64);
            let mut row = vec![
                Value::Bool(i % 7 == 0),
                Value::I16(noise as i16),
                Value::I32((noise >> 40) as i32),
                Value::I64(i * 1_000_000 + 17),
                Value::F32(noise as f32),
                Value::F64((noise % 10_000) as f64 / 100.0),
                Value::I128((i % 1000).into()),
                Value::I128(i128::from(noise) * i128::from(noise)),
                Value::Bytes(format!("event {} of kind {}", i, noise % 5).into_bytes()),
                Value::Bytes(noise.to_le_bytes().to_vec()),
                Value::Bytes(vec![(i % 3) as u8]),
                Value::Bytes([noise.to_be_bytes(), i.to_be_bytes()].concat()),
            ];
            for (c, v) in row.iter_mut().enumerate().filter(|(c, _)| *c != 3) {
                if (i + c as i64) % 11 == 0 {
                    *v = Value::Null;
                }
            }
            row
        })
        .collect();
    let w = write(dir.path(), &schema, 32_768, &rows);
    let f = Fragment::open(&w.path, None).unwrap();
    assert_eq!(f.blocks().len(), 4);
    for (a, b) in read_all(&f).iter().zip(&rows) {
        assert!(same(a, b), "{a:?} instead of {b:?}");
    }
    for i in (0..n).step_by(997) {
        assert_eq!(f.lookup(&[3], &[rows[i as usize][3].clone()]).unwrap(), [i as u64]);
        let expected: &[u64] = if rows[i as usize][8].is_null() { &[] } else { &[i as u64] };
        assert_eq!(f.lookup(&[8], &[rows[i as usize][8].clone()]).unwrap(), expected);
    }
    assert!(f.lookup(&[3], &[Value::I64(18)]).unwrap().is_empty());
    assert!(f.lookup(&[8], &[Value::Bytes(b"event -1".to_vec())]).unwrap().is_empty());
    f.verify().unwrap();
}

#[test]
fn wide_values_end_a_block_early() {
    let dir = tempfile::tempdir().unwrap();
    let schema = schema(&[PhysicalType::Binary, PhysicalType::I32], &[], &[]);
    let rows: Vec<Row> = (0..12).map(|i| vec![Value::Bytes(vec![i as u8; 5 << 20]), Value::I32(i)]).collect();
    let w = write(dir.path(), &schema, 1000, &rows);
    let f = Fragment::open(&w.path, None).unwrap();
    assert_eq!(f.blocks().len(), 4);
    assert_eq!(f.block_of(4), Some((1, 1)));
    for (a, b) in read_all(&f).iter().zip(&rows) {
        assert!(same(a, b));
    }
    f.verify().unwrap();
}
