//! Fragments that earlier versions wrote stay readable.
//!
//! `tests/golden` has, for each format version, a fragment and the values that are in it. Neither is ever edited. The
//! fragment of a new format version is made by the ignored test here, before the release that has that version.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use common::{Row, read_all, schema, write};
use strata_fragment::{FORMAT_VERSION, Fragment, PhysicalType, Value, verify_file};

/// Format version and hash.
const GOLDEN: [(u32, &str); 2] = [
    (1, "0a9276b79ba6a49dce02f143baa8a4ca11d49b59d60ea9f5788f98c9509dc62e"),
    (2, "048e224b40470aedd8fad29131d991e8272189deeb471f48ca0d70466e1e895b"),
];

fn folder() -> PathBuf {
    // Asked when the test runs: a target directory may be shared by several clones.
    let crate_dir = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&crate_dir).join("tests/golden")
}

fn dump(rows: &[Row]) -> String {
    let mut out = String::new();
    for row in rows {
        for (i, v) in row.iter().enumerate() {
            let end = if i + 1 == row.len() { '\n' } else { '\t' };
            match v {
                Value::Null => write!(out, "null{end}"),
                Value::Bool(v) => write!(out, "{v}{end}"),
                Value::I16(v) => write!(out, "{v}{end}"),
                Value::I32(v) => write!(out, "{v}{end}"),
                Value::I64(v) => write!(out, "{v}{end}"),
                Value::I128(v) => write!(out, "{v}{end}"),
                Value::F32(v) => write!(out, "{:08x}{end}", v.to_bits()),
                Value::F64(v) => write!(out, "{:016x}{end}", v.to_bits()),
                Value::Bytes(v) => {
                    v.iter().try_for_each(|b| write!(out, "{b:02x}")).and_then(|()| write!(out, ".{end}"))
                }
            }
            .unwrap();
        }
    }
    out
}

#[test]
fn fragments_of_every_version_are_read() {
    for (version, hash) in GOLDEN {
        let path = folder().join(format!("{hash}.frag"));
        assert_eq!(fs::read(&path).unwrap()[8], version as u8);
        let summary = verify_file(&path).unwrap();
        assert_eq!(summary.hash, hash);
        let f = Fragment::open(&path, Some(hash)).unwrap();
        let rows = read_all(&f);
        let expected = fs::read_to_string(folder().join(format!("format-{version}.tsv"))).unwrap();
        assert_eq!(dump(&rows), expected, "values of version {version}");
        // The same by single values, and by the key that has filters.
        for (i, row) in rows.iter().enumerate().step_by(7) {
            let (block, inside) = f.block_of(i as u64).unwrap();
            for (col, v) in row.iter().enumerate() {
                assert!(f.value(block, col, inside).unwrap().identical(v));
            }
            assert_eq!(f.lookup(&[0], &row[..1]).unwrap(), [i as u64]);
        }
        assert_eq!(f.schema().keys.len(), 1);
    }
}

#[test]
fn the_current_version_has_a_golden_file() {
    assert_eq!(GOLDEN.last().map(|g| g.0), Some(FORMAT_VERSION));
}

/// Makes the golden file of a new format version; its hash then goes into `GOLDEN`.
#[test]
#[ignore = "makes the golden file of a new format version"]
fn make_golden_file() {
    let types = [
        PhysicalType::I64,
        PhysicalType::I64,
        PhysicalType::I32,
        PhysicalType::I16,
        PhysicalType::I32,
        PhysicalType::Bool,
        PhysicalType::F64,
        PhysicalType::F64,
        PhysicalType::F32,
        PhysicalType::Decimal { precision: 12, scale: 2 },
        PhysicalType::Decimal { precision: 38, scale: 5 },
        PhysicalType::Utf8,
        PhysicalType::Utf8,
        PhysicalType::Utf8,
        PhysicalType::Utf8,
        PhysicalType::Binary,
        PhysicalType::Fixed(16),
        PhysicalType::I32,
        // Twenty series that walk, a row each in turn.
        PhysicalType::Utf8,
        PhysicalType::F64,
        PhysicalType::F64,
        PhysicalType::F32,
        PhysicalType::I64,
        PhysicalType::Decimal { precision: 20, scale: 2 },
    ];
    let mut walks = [500i64; 20];
    let words = ["order", "item", "late", "paid", "cash", "card", "north", "south", "blue", "green", "wide", "left"];
    let places = ["ATL", "ORD", "LAX", "Zürich", ""];
    let special = [f64::NAN, -0.0, 0.0, f64::INFINITY, f64::NEG_INFINITY, -f64::NAN, 5e-324];
    let rows: Vec<Row> = (0..2100i64)
        .map(|i| {
            let noise = (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_u64 as i64);
            let n = (noise >> 33) & 0x7fff;
            let series = (i % 20) as usize;
            walks[series] += (noise >> 60) & 3;
            let walk = walks[series] * 7 - i / 20 * 10 + series as i64 * 100;
            let sentence: Vec<&str> = (0..9).map(|k| words[((noise >> (k * 5)) & 15) as usize % words.len()]).collect();
            let mut row = vec![
                Value::I64(noise),
                Value::I64(31_536_000_000_000 + i / 20 * 60_000_000),
                Value::I32((n % 1200) as i32 - 60),
                Value::I16(if n % 50 == 0 { n as i16 } else { 3 }),
                Value::I32(n as i32 % 40 * 1001),
                Value::Bool(n % 3 == 0),
                Value::F64((n % 10_000) as f64 / 100.0),
                if i % 100 < 7 {
                    Value::F64(special[(i % 7) as usize])
                } else {
                    Value::F64(f64::from_bits(noise as u64))
                },
                Value::F32(n as f32 * 0.5),
                Value::I128(i128::from(n) * 25),
                Value::I128(i128::from(noise) * i128::from(noise) * 3),
                Value::Bytes(places[(n % 5) as usize].as_bytes().to_vec()),
                Value::Bytes(format!("https://example.org/{}/{n}", words[(n % 12) as usize]).into_bytes()),
                Value::Bytes(format!("{} {}", sentence.join(" "), sentence.join("-")).into_bytes()),
                Value::Bytes(b"the same everywhere".to_vec()),
                Value::Bytes(noise.to_le_bytes()[..(n % 9) as usize].to_vec()),
                Value::Bytes([noise.to_be_bytes(), i.to_be_bytes()].concat()),
                Value::Null,
                Value::Bytes(format!("series {series:02}").into_bytes()),
                Value::F64(walk as f64),
                Value::F64(walk as f64 / 100.0),
                Value::F32(walk as f32),
                Value::I64(i * 1000 + (noise >> 56 & 127)),
                Value::I128(i128::from(walk) * 25),
            ];
            for (c, v) in row.iter_mut().enumerate().skip(2).filter(|(c, _)| ![18, 21].contains(c)) {
                // Few nulls, many nulls, and in a block of its own only nulls.
                let many = c % 4 == 1 && n % 10 < 9;
                if many || (c % 3 == 0 && n % 17 == 0) || (c == 4 && i >= 2048) {
                    *v = Value::Null;
                }
            }
            row
        })
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let w = write(dir.path(), &schema(&types, &[1, 18], &[&[0]]), 2048, &rows);
    let f = Fragment::open(&w.path, Some(&w.hash)).unwrap();
    for (block, col) in (0..f.blocks().len()).flat_map(|b| (0..types.len()).map(move |c| (b, c))) {
        println!("{block} {col}: {}", f.describe_chunk(block, col).unwrap());
    }
    println!("{:?} {:?}", f.edition(), f.encodings());
    let expected: Vec<Row> = w.order.iter().map(|i| rows[*i as usize].clone()).collect();
    let values = folder().join(format!("format-{FORMAT_VERSION}.tsv"));
    assert!(!values.exists(), "{} is there and is never edited", values.display());
    fs::create_dir_all(folder()).unwrap();
    fs::copy(&w.path, folder().join(w.path.file_name().unwrap())).unwrap();
    fs::write(values, dump(&expected)).unwrap();
    println!("the hash of version {FORMAT_VERSION} is {}", w.hash);
}
