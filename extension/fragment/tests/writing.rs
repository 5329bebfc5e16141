//! Writing: names, leftovers, refused input, a full disk.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{Row, read_all, same, schema, write};
use strata_fragment::{
    Builder, BuilderOptions, Fragment, FragmentError, PhysicalType, Schema, TEMPORARY_SUFFIX, Value, fragment_path,
    is_abandoned, remove_abandoned, verify_file,
};

fn files(dir: &Path) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for e in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        match e.file_type().unwrap().is_dir() {
            true => out.extend(files(&e.path())),
            false => out.push(e.file_name().into_string().unwrap()),
        }
    }
    out
}

fn simple() -> (Schema, Vec<Row>) {
    let rows = (0..100).map(|i| vec![Value::I32(i), Value::Bytes(format!("{i}").into_bytes())]).collect();
    (schema(&[PhysicalType::I32, PhysicalType::Utf8], &[0], &[]), rows)
}

#[test]
fn equal_content_has_one_name() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("made/on/demand");
    let (schema, rows) = simple();
    let a = write(&store, &schema, 10, &rows);
    let b = write(&store, &schema, 10, &rows);
    assert_eq!((&a.hash, &a.path, a.bytes, a.rows), (&b.hash, &b.path, b.bytes, b.rows));
    assert_eq!(a.path, fragment_path(&store, &a.hash));
    assert_eq!(a.path, store.join(&a.hash[..2]).join(format!("{}.frag", a.hash)));
    assert_eq!(files(dir.path()), [format!("{}.frag", a.hash)]);
    let bytes = fs::read(&a.path).unwrap();
    assert_eq!(a.hash, blake3::hash(&bytes).to_hex().to_string());
    assert_eq!(bytes.len() as u64, a.bytes);
    let c = write(&store, &schema, 11, &rows);
    assert_ne!(c.hash, a.hash);
}

#[test]
fn a_damaged_file_of_the_same_name_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (schema, rows) = simple();
    let a = write(dir.path(), &schema, 10, &rows);
    fs::write(&a.path, b"not a fragment").unwrap();
    write(dir.path(), &schema, 10, &rows);
    verify_file(&a.path).unwrap();
}

#[test]
fn writers_of_the_same_content_do_not_disturb_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let hashes: Vec<String> = std::thread::scope(|s| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                s.spawn(|| {
                    let (schema, rows) = simple();
                    (0..20).map(|_| write(dir.path(), &schema, 10, &rows).hash).next_back().unwrap()
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert!(hashes.iter().all(|h| *h == hashes[0]));
    assert_eq!(files(dir.path()), [format!("{}.frag", hashes[0])]);
    verify_file(&fragment_path(dir.path(), &hashes[0])).unwrap();
}

#[test]
fn nothing_is_left_when_the_name_cannot_be_given() {
    let dir = tempfile::tempdir().unwrap();
    let (schema, rows) = simple();
    let w = write(dir.path(), &schema, 10, &rows);
    fs::remove_dir_all(w.path.parent().unwrap()).unwrap();
    fs::write(w.path.parent().unwrap(), b"in the way").unwrap();
    let mut b = Builder::new(schema, BuilderOptions::with_block_rows(10)).unwrap();
    for r in &rows {
        b.push_row(r).unwrap();
    }
    assert!(matches!(b.finish(dir.path()), Err(FragmentError::Io { .. })));
    assert_eq!(files(dir.path()), [&w.hash[..2]]);
}

/// A file of a writer that lives is kept, one of a writer that is gone is removed.
#[test]
fn only_what_nobody_writes_is_abandoned() {
    let dir = tempfile::tempdir().unwrap();
    let (schema, rows) = simple();
    let temporary =
        || files(dir.path()).into_iter().find(|f| f.ends_with(TEMPORARY_SUFFIX)).map(|f| dir.path().join(f));
    let mut b = Builder::new(schema, BuilderOptions::with_block_rows(10)).unwrap();
    for r in &rows {
        b.push_row(r).unwrap();
    }
    let written = b
        .finish_named(dir.path(), |_| {
            let file = temporary().unwrap();
            assert!(!is_abandoned(&file));
            remove_abandoned(&file).unwrap();
            assert!(file.exists());
        })
        .unwrap();
    verify_file(&written.path).unwrap();
    assert_eq!(temporary(), None);

    let left = dir.path().join(format!("1-0{TEMPORARY_SUFFIX}"));
    fs::write(&left, b"half of").unwrap();
    assert!(is_abandoned(&left));
    remove_abandoned(&left).unwrap();
    assert!(!left.exists() && !is_abandoned(&left));
    remove_abandoned(&left).unwrap();
}

/// The test runs itself again in a process that may not write files of more than a few blocks.
#[test]
fn nothing_is_left_when_the_disk_is_full() {
    const PLACE: &str = "STRATA_FRAGMENT_TEST_FULL";
    if let Ok(place) = std::env::var(PLACE) {
        let mut b = Builder::new(schema(&[PhysicalType::I64], &[], &[]), BuilderOptions::default()).unwrap();
        for i in 0..200_000i64 {
            b.push_row(&[Value::I64(i.wrapping_mul(0x9e37_79b9_7f4a_7c15_u64 as i64))]).unwrap();
        }
        match b.finish(Path::new(&place)) {
            Err(FragmentError::Io { path, .. }) => assert!(path.starts_with(&place)),
            other => panic!("{other:?}"),
        }
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let status = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$0\" --exact nothing_is_left_when_the_disk_is_full"])
        .arg(std::env::current_exe().unwrap())
        .env(PLACE, dir.path())
        .status()
        .unwrap();
    assert!(status.success());
    assert!(files(dir.path()).is_empty());
}

#[test]
fn wrong_input_is_refused() {
    let (schema, rows) = simple();
    let dir = tempfile::tempdir().unwrap();
    let builder = || Builder::new(schema.clone(), BuilderOptions::default()).unwrap();
    let refused = |r: Result<(), FragmentError>, part: &str| match r {
        Err(FragmentError::InvalidInput { what }) => assert!(what.contains(part), "{what}"),
        other => panic!("{other:?} for {part}"),
    };
    refused(builder().push_row(&[Value::I32(1)]), "\"c1\": 0 values");
    refused(builder().push_row(&[Value::Bytes(vec![]), Value::Bytes(vec![])]), "\"c0\"");
    refused(builder().push_row(&[Value::I64(1), Value::Null]), "i64");
    refused(builder().push_row(&[Value::Null, Value::Null, Value::Null]), "more than 2");
    refused(builder().finish(dir.path()).map(|_| ()), "without rows");
    let mut half = builder();
    half.push_row(&rows[0]).unwrap();
    half.column(0).push_i32(1);
    refused(half.finish(dir.path()).map(|_| ()), "2 values for 1 rows");
    for (sort, keys) in [(vec![2], vec![]), (vec![0, 0], vec![]), (vec![], vec![vec![]]), (vec![], vec![vec![0, 5]])] {
        let keys: Vec<&[usize]> = keys.iter().map(|k: &Vec<usize>| k.as_slice()).collect();
        let s = common::schema(&[PhysicalType::I32, PhysicalType::Utf8], &sort, &keys);
        assert!(matches!(Builder::new(s, BuilderOptions::default()), Err(FragmentError::InvalidInput { .. })));
    }
    assert!(Builder::new(schema.clone(), BuilderOptions::with_block_rows(0)).is_err());
    assert!(Builder::new(schema.clone(), BuilderOptions::with_block_rows(65_537)).is_err());
    assert!(files(dir.path()).is_empty());

    let f = Fragment::open(&write(dir.path(), &schema, 10, &rows).path, None).unwrap();
    assert!(matches!(f.lookup(&[0], &[Value::Bytes(vec![])]), Err(FragmentError::InvalidInput { .. })));
    assert!(matches!(f.lookup(&[7], &[Value::I32(1)]), Err(FragmentError::InvalidInput { .. })));
    assert!(matches!(f.lookup(&[], &[]), Err(FragmentError::InvalidInput { .. })));
    assert!(matches!(f.lookup(&[0, 0], &[Value::I32(1), Value::I32(1)]), Err(FragmentError::InvalidInput { .. })));
    assert!(matches!(f.read(99, 0), Err(FragmentError::InvalidInput { .. })));
    assert!(matches!(f.value(0, 0, 10), Err(FragmentError::InvalidInput { .. })));
    // Other widths of number are compared by value.
    assert_eq!(f.lookup(&[0], &[Value::I64(42)]).unwrap(), [42]);
    assert!(f.lookup(&[0], &[Value::I64(1 << 40)]).unwrap().is_empty());
}

#[test]
fn rows_are_sorted_with_nulls_last_and_ties_as_they_came() {
    let dir = tempfile::tempdir().unwrap();
    let n = |v: Option<f64>| v.map_or(Value::Null, Value::F64);
    let keys = [None, Some(f64::NAN), Some(1.0), Some(-0.0), Some(0.0), Some(f64::INFINITY), Some(1.0), None];
    let rows: Vec<Row> = keys.iter().enumerate().map(|(i, k)| vec![Value::I16(i as i16), n(*k)]).collect();
    let w = write(dir.path(), &schema(&[PhysicalType::I16, PhysicalType::F64], &[1], &[]), 3, &rows);
    assert_eq!(w.order, [3, 4, 2, 6, 5, 1, 0, 7]);
    let f = Fragment::open(&w.path, None).unwrap();
    let expected: Vec<Row> = w.order.iter().map(|i| rows[*i as usize].clone()).collect();
    assert!(read_all(&f).iter().zip(&expected).all(|(a, b)| same(a, b)));
    assert_eq!(f.lookup(&[1], &[Value::F64(f64::NAN)]).unwrap(), [5]);
    assert_eq!(f.lookup(&[1], &[Value::F64(0.0)]).unwrap(), [0, 1]);
    assert_eq!(f.lookup(&[1, 0], &[Value::F64(1.0), Value::I16(6)]).unwrap(), [3]);
    assert!(f.lookup(&[1], &[Value::Null]).unwrap().is_empty());
}
