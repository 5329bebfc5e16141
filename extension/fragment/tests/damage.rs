//! Damaged files: every flipped bit and every cut is found by `verify`, and reading gives the right value or an error.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::needless_range_loop)]

mod common;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use common::{Row, schema, write};
use strata_fragment::{Fragment, FragmentError, PhysicalType, Value, Written, verify_file};

fn rows(n: i64) -> Vec<Row> {
    (0..n)
        .map(|i| {
            let noise = i.wrapping_mul(0x9e37_79b9_7f4a_7c15_u64 as i64);
            let text = ["ATL", "ORD", "a somewhat longer text that is not in every row"][(noise & 3).min(2) as usize];
            vec![
                Value::I64(i * 3),
                if i % 5 == 0 { Value::Null } else { Value::I32((noise >> 45) as i32) },
                Value::Bytes(text.as_bytes().to_vec()),
                Value::F64((i * 1_000 + (noise >> 60 & 7)) as f64),
                Value::Bytes(format!("key {noise:x}").into_bytes()),
            ]
        })
        .collect()
}

fn table(dir: &Path, n: i64, block_rows: u32) -> (Written, Vec<Row>) {
    let types = [PhysicalType::I64, PhysicalType::I32, PhysicalType::Utf8, PhysicalType::F64, PhysicalType::Utf8];
    let rows = rows(n);
    (write(dir, &schema(&types, &[0], &[&[0], &[4]]), block_rows, &rows), rows)
}

fn is_damage(e: &FragmentError, path: &Path) -> bool {
    match e {
        FragmentError::Damaged { path: p, .. } | FragmentError::UnsupportedVersion { path: p, .. } => p == path,
        _ => false,
    }
}

/// Reads a damaged file in every way; each answer is the right one or an error that names the file.
fn read_damaged(path: &Path, rows: &[Row], picks: &[usize], what: &str) {
    let f = match Fragment::open(path, None) {
        Ok(f) => f,
        Err(e) => return assert!(is_damage(&e, path), "{what}: {e}"),
    };
    let check = |e: &FragmentError| assert!(is_damage(e, path), "{what}: {e}");
    for (block, info) in f.blocks().iter().enumerate() {
        for col in 0..5 {
            match f.read(block, col) {
                Ok(c) => {
                    for i in 0..info.rows as usize {
                        let expected = &rows[info.first_row as usize + i][col];
                        assert!(c.value(i).identical(expected), "{what}: wrong value");
                    }
                }
                Err(e) => check(&e),
            }
        }
    }
    for row in picks {
        let (block, inside) = f.block_of(*row as u64).unwrap();
        for col in 0..5 {
            match f.value(block, col, inside) {
                Ok(v) => assert!(v.identical(&rows[*row][col]), "{what}: wrong value"),
                Err(e) => check(&e),
            }
        }
        for col in [0, 4] {
            match f.lookup(&[col], &[rows[*row][col].clone()]) {
                Ok(found) => assert_eq!(found, [*row as u64], "{what}"),
                Err(e) => check(&e),
            }
        }
    }
}

/// Changes bytes of a file in place, and back.
struct Flipper(fs::File, Vec<u8>);

impl Flipper {
    fn new(path: &Path) -> Self {
        let good = fs::read(path).unwrap();
        Self(fs::OpenOptions::new().write(true).open(path).unwrap(), good)
    }

    fn with(&self, at: usize, mask: u8, run: impl FnOnce()) {
        self.0.write_all_at(&[self.1[at] ^ mask], at as u64).unwrap();
        run();
        self.0.write_all_at(&[self.1[at]], at as u64).unwrap();
    }
}

/// A place for damaged copies under the name of the original.
fn copy_place(dir: &Path, w: &Written) -> PathBuf {
    let copies = dir.join("copies");
    fs::create_dir_all(&copies).unwrap();
    copies.join(w.path.file_name().unwrap())
}

#[test]
fn every_flipped_bit_of_a_small_file_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let (w, rows) = table(dir.path(), 40, 16);
    let file = Flipper::new(&w.path);
    for at in 0..file.1.len() {
        for mask in [1, 2, 4, 8, 16, 32, 64, 128, 255] {
            file.with(at, mask, || {
                let what = format!("byte {at} of {} xor {mask}", file.1.len());
                let found = verify_file(&w.path).expect_err(&what);
                assert!(is_damage(&found, &w.path), "{what}: {found}");
                if mask == 1 || mask == 255 {
                    read_damaged(&w.path, &rows, &[0, 17, 39], &what);
                }
            });
        }
    }
    verify_file(&w.path).unwrap();
}

#[test]
fn flipped_bytes_of_a_larger_file_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let (w, rows) = table(dir.path(), 40_000, 9_000);
    let file = Flipper::new(&w.path);
    let len = file.1.len();
    let mut seed = 7u64;
    for round in 0..150 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Every third near the end, where the footer is.
        let near_end = len - 1 - (seed >> 33) as usize % 2_000;
        let at = if round % 3 == 0 { near_end } else { (seed >> 33) as usize % len };
        file.with(at, 1 << (seed >> 20 & 7), || {
            let what = format!("byte {at}");
            let found = verify_file(&w.path).expect_err(&what);
            assert!(is_damage(&found, &w.path), "{what}: {found}");
            read_damaged(&w.path, &rows, &[0, 8_999, 20_001, 39_999], &what);
        });
    }
    verify_file(&w.path).unwrap();
}

#[test]
fn every_cut_and_every_addition_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let (w, rows) = table(dir.path(), 40, 16);
    let good = fs::read(&w.path).unwrap();
    let copy = copy_place(dir.path(), &w);
    for len in 0..good.len() {
        fs::write(&copy, &good[..len]).unwrap();
        let what = format!("cut to {len}");
        assert!(is_damage(&verify_file(&copy).expect_err(&what), &copy));
        read_damaged(&copy, &rows, &[0, 39], &what);
    }
    for extra in [&[0u8][..], &[0; 24], &good] {
        fs::write(&copy, [&good, extra].concat()).unwrap();
        assert!(verify_file(&copy).is_err());
        read_damaged(&copy, &rows, &[0, 39], "extended");
    }
}

#[test]
fn a_damaged_chunk_is_named_and_the_others_stay_readable() {
    let dir = tempfile::tempdir().unwrap();
    let (w, rows) = table(dir.path(), 4_000, 1_000);
    let f = Fragment::open(&w.path, Some(&w.hash)).unwrap();
    // Chunks lie column after column, so the third block's chunk of column 3 begins behind these.
    let before: u64 = (0..3)
        .flat_map(|c| (0..4).map(move |b| (b, c)))
        .chain([(0, 3), (1, 3)])
        .map(|(b, c)| f.chunk_bytes(b, c).unwrap())
        .sum();
    let mut bad = fs::read(&w.path).unwrap();
    bad[16 + before as usize + 5] ^= 64;
    fs::write(&w.path, bad).unwrap();
    let e = f.read(2, 3).unwrap_err().to_string();
    assert!(e.contains(w.path.to_str().unwrap()) && e.contains("\"c3\" of block 2") && e.contains("checksum"), "{e}");
    assert_eq!(f.value(2, 3, 9).unwrap_err().to_string(), e);
    assert_eq!(f.verify().unwrap_err().to_string(), e);
    for (block, col) in (0..4).flat_map(|b| (0..5).map(move |c| (b, c))).filter(|bc| *bc != (2, 3)) {
        let c = f.read(block, col).unwrap();
        assert!((0..1_000).all(|i| c.value(i).identical(&rows[block * 1_000 + i][col])));
    }
}

#[test]
fn a_sound_file_under_a_wrong_name_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let (w, _) = table(dir.path(), 40, 16);
    let wrong = w.path.with_file_name(format!("{}.frag", "0".repeat(64)));
    fs::copy(&w.path, &wrong).unwrap();
    assert!(matches!(verify_file(&wrong), Err(FragmentError::Damaged { .. })));
    assert!(matches!(Fragment::open(&wrong, Some(&w.hash)), Err(FragmentError::InvalidInput { .. })));
    let unnamed = w.path.with_file_name("copy");
    fs::copy(&w.path, &unnamed).unwrap();
    assert!(matches!(verify_file(&unnamed), Err(FragmentError::InvalidInput { .. })));
    Fragment::open(&unnamed, Some(&w.hash)).unwrap().verify().unwrap();
    assert!(Fragment::open(&unnamed, Some(&"0".repeat(64))).unwrap().verify().is_err());
}

#[test]
fn a_missing_file_is_missing_also_after_opening() {
    let dir = tempfile::tempdir().unwrap();
    let (w, _) = table(dir.path(), 40, 16);
    let others: Vec<_> = (0..40).map(|i| table(dir.path(), 41 + i, 16).0).collect();
    let f = Fragment::open(&w.path, None).unwrap();
    fs::remove_file(&w.path).unwrap();
    // So many others that the descriptor has been given up.
    let others: Vec<_> = others.iter().map(|w| Fragment::open(&w.path, None).unwrap()).collect();
    assert!(matches!(f.read(0, 0), Err(FragmentError::Missing { path }) if path == w.path));
    assert!(matches!(Fragment::open(&w.path, None), Err(FragmentError::Missing { .. })));
    assert!(others.iter().all(|o| o.read(0, 0).is_ok()));
}

#[test]
fn a_later_version_is_named_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let (w, _) = table(dir.path(), 40, 16);
    let mut later = fs::read(&w.path).unwrap();
    let n = later.len();
    later[8] = 3;
    later[n - 16] = 3;
    fs::write(&w.path, later).unwrap();
    match Fragment::open(&w.path, None) {
        Err(FragmentError::UnsupportedVersion { found: 3, supported: 2, path }) => assert_eq!(path, w.path),
        other => panic!("{other:?}"),
    }
}
