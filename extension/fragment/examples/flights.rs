//! Measures fragments on a table of flights: size, writing, decoding, single values and lookups.
//!
//! Usage: `flights CSV [ROWS_PER_FRAGMENT [BLOCK_ROWS]]`, where each line is
//! `timestamp in microseconds,delay,distance,origin,destination`; ids are given in order.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::time::{Duration, Instant};

use strata_fragment::{Builder, BuilderOptions, ColumnSpec, Fragment, KeySpec, PhysicalType, Schema, Value, Written};

const NAMES: [&str; 6] = ["id", "flown_at", "delay", "distance", "origin", "destination"];

fn schema() -> Schema {
    use PhysicalType::{I32, I64, Utf8};
    let columns = NAMES.iter().zip([I64, I64, I32, I32, Utf8, Utf8]).enumerate();
    Schema {
        columns: columns.map(|(i, (n, ty))| ColumnSpec { name: n.to_string(), attnum: i as i16 + 1, ty }).collect(),
        sort_key: vec![1, 0],
        keys: vec![KeySpec { name: "flights_pkey".to_string(), columns: vec![0, 1] }],
    }
}

fn micros(d: Duration, n: usize) -> f64 {
    d.as_secs_f64() * 1e6 / n as f64
}

fn main() {
    let mut args = std::env::args().skip(1);
    let csv = std::fs::read_to_string(args.next().expect("the CSV file")).unwrap();
    let per_fragment = args.next().map_or(1_000_000, |n| n.parse().unwrap());
    let block_rows = args.next().map_or(BuilderOptions::default().block_rows, |n| n.parse().unwrap());
    let dir = std::env::temp_dir().join(format!("strata-flights-{}", std::process::id()));

    let mut written: Vec<Written> = Vec::new();
    let mut keys = Vec::new();
    let mut rows = 0;
    let (mut pushing, mut finishing) = (Duration::ZERO, Duration::ZERO);
    let mut lines = csv.lines().peekable();
    while lines.peek().is_some() {
        let start = Instant::now();
        let mut b = Builder::new(schema(), BuilderOptions::with_block_rows(block_rows)).unwrap();
        for line in lines.by_ref().take(per_fragment) {
            let f: Vec<&str> = line.split(',').collect();
            let at: i64 = f[0].parse().unwrap();
            b.column(0).push_i64(rows);
            b.column(1).push_i64(at);
            b.column(2).push_i32(f[1].parse().unwrap());
            b.column(3).push_i32(f[2].parse().unwrap());
            b.column(4).push_bytes(f[3].as_bytes());
            b.column(5).push_bytes(f[4].as_bytes());
            b.end_row().unwrap();
            if rows % 997 == 0 {
                keys.push((written.len(), rows, at));
            }
            rows += 1;
        }
        pushing += start.elapsed();
        let start = Instant::now();
        written.push(b.finish(&dir).unwrap());
        finishing += start.elapsed();
    }
    let bytes: u64 = written.iter().map(|w| w.bytes).sum();
    println!(
        "{rows} rows, {} fragments of blocks of {block_rows}: {bytes} bytes, {:.2} a row",
        written.len(),
        bytes as f64 / rows as f64
    );
    println!("write: {:.0} rows/s (sort, encode, check, fsync)", rows as f64 / finishing.as_secs_f64());

    let start = Instant::now();
    let mut opened = 0;
    while start.elapsed() < Duration::from_millis(300) {
        Fragment::open(&written[0].path, None).unwrap();
        opened += 1;
    }
    println!("open: {:.0} us", micros(start.elapsed(), opened));
    let fragments: Vec<Fragment> = written.iter().map(|w| Fragment::open(&w.path, Some(&w.hash)).unwrap()).collect();
    let blocks: usize = fragments.iter().map(|f| f.blocks().len()).sum();
    let values: u64 = fragments
        .iter()
        .flat_map(|f| (0..f.blocks().len()).flat_map(move |b| (0..6).map(move |c| f.chunk_bytes(b, c).unwrap())))
        .sum();
    println!("outside of chunks: {} bytes", bytes - values);
    for (c, name) in NAMES.iter().enumerate() {
        let size: u64 =
            fragments.iter().flat_map(|f| (0..f.blocks().len()).map(move |b| f.chunk_bytes(b, c).unwrap())).sum();
        let mut best = Duration::MAX;
        for _ in 0..5 {
            let start = Instant::now();
            for f in &fragments {
                for b in 0..f.blocks().len() {
                    std::hint::black_box(f.read(b, c).unwrap());
                }
            }
            best = best.min(start.elapsed());
        }
        let mut codes = Duration::MAX;
        let mut dictionaries = 0;
        for _ in 0..3 {
            let start = Instant::now();
            let all =
                fragments.iter().flat_map(|f| (0..f.blocks().len()).map(move |b| f.read_dictionary(b, c).unwrap()));
            dictionaries = all.filter(Option::is_some).count();
            codes = codes.min(start.elapsed());
        }
        println!(
            "{name}: {size} bytes; read {:.1} ms, {:.0} us a block; as dictionary {dictionaries} of {blocks} blocks, {:.0} us a block",
            best.as_secs_f64() * 1e3,
            micros(best, blocks),
            micros(codes, blocks),
        );
        println!("    {}", fragments[0].describe_chunk(1, c).unwrap());
    }
    // Keys in no particular order.
    keys.sort_by_key(|(_, id, _)| (id * 7919) % 1_000_003);
    for round in ["empty cache", "warm cache"] {
        let start = Instant::now();
        for (f, id, at) in &keys {
            if round == "empty cache" {
                fragments[*f].clear_cache();
            }
            let found = fragments[*f].lookup(&[0, 1], &[Value::I64(*id), Value::I64(*at)]).unwrap();
            assert_eq!(found.len(), 1);
        }
        println!("lookup by key, {round}: {:.1} us", micros(start.elapsed(), keys.len()));
    }
    for (c, name) in NAMES.iter().enumerate() {
        let f = &fragments[0];
        let start = Instant::now();
        for b in 0..f.blocks().len() {
            f.clear_cache();
            std::hint::black_box(f.value(b, c, 77).unwrap());
        }
        println!("one value of {name}, empty cache: {:.1} us", micros(start.elapsed(), f.blocks().len()));
    }
    let start = Instant::now();
    for f in &fragments {
        f.verify().unwrap();
    }
    println!("verify: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    std::fs::remove_dir_all(&dir).unwrap();
}
