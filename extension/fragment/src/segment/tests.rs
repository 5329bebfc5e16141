use super::*;
use crate::schema::PhysicalType;
use crate::zone::Zone;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// The segments of a table to which fragments are added so many at a time, as (level, number of fragments).
fn grown(batches: impl IntoIterator<Item = usize>) -> Vec<(u32, usize)> {
    let mut now: Vec<(u32, usize)> = Vec::new();
    for batch in batches {
        let there = now.iter().enumerate().map(|(i, s)| Node { level: s.0, parts: vec![Part::Segment(i)] });
        let new = (0..batch).map(|f| Node { level: 0, parts: vec![Part::Fragment(f)] });
        let folded = fold(there.chain(new));
        now = folded
            .iter()
            .map(|n| {
                let size = |p: &Part| match p {
                    Part::Segment(i) => now[*i].1,
                    Part::Fragment(_) => 1,
                };
                (n.level, n.parts.iter().map(size).sum())
            })
            .collect();
    }
    now
}

#[test]
fn segments_grow_like_the_logarithm() {
    for n in [1usize, 3, 4, 10, 84, 100, 1_000, 10_000] {
        let at_once = grown([n]);
        let one_by_one = grown(std::iter::repeat_n(1, n));
        assert_eq!(at_once, one_by_one, "{n}");
        let levels = (n as f64).log(FAN_OUT as f64).floor() as usize + 1;
        assert!(at_once.len() <= (FAN_OUT - 1) * levels, "{n}: {at_once:?}");
        assert_eq!(at_once.iter().map(|s| s.1).sum::<usize>(), n);
        // The newest has one of its own unless it has just been folded.
        assert!(n % FAN_OUT == 0 || at_once.last() == Some(&(0, 1)), "{n}: {at_once:?}");
    }
}

proptest! {
    #[test]
    fn folding_keeps_every_part_in_its_order(levels in proptest::collection::vec(0u32..5, 0..60)) {
        let nodes = levels.iter().enumerate().map(|(i, l)| Node { level: *l, parts: vec![Part::Segment(i)] });
        let folded = fold(nodes);
        let parts: Vec<Part> = folded.iter().flat_map(|n| n.parts.clone()).collect();
        prop_assert_eq!(parts, (0..levels.len()).map(Part::Segment).collect::<Vec<_>>());
        prop_assert!(folded.windows(2).all(|w| w[0].level >= w[1].level), "{:?}", folded);
        for n in &folded {
            prop_assert!(folded.iter().filter(|o| o.level == n.level).count() < FAN_OUT, "{:?}", folded);
        }
    }

    #[test]
    fn batches_fold_like_single_fragments(batches in proptest::collection::vec(1usize..50, 1..12)) {
        let n = batches.iter().sum();
        prop_assert_eq!(grown(batches), grown([n]));
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_key_map_finds_what_is_in_it(
        hashes in proptest::collection::vec((any::<u32>(), 0u32..40), 0..3000),
        dense in any::<bool>(),
        absent in proptest::collection::vec(any::<u32>(), 50),
    ) {
        let hashes: Vec<(u32, u32)> = hashes.iter().map(|(h, p)| (if dense { h % 5000 } else { *h }, *p)).collect();
        let (map, pages) = written(&hashes, 40);
        let mut truth: BTreeMap<u32, Vec<Place>> = BTreeMap::new();
        for (h, p) in &hashes {
            let places = truth.entry(*h).or_default();
            if !places.contains(&place(*p)) {
                places.push(place(*p));
            }
        }
        let wanted = hashes.iter().map(|(h, _)| *h).chain(absent);
        for h in wanted {
            let mut found = map.probe(&pages[map.page_of(h) as usize - 3], h).unwrap();
            let mut right = truth.get(&h).cloned().unwrap_or_default();
            found.sort_by_key(|p| p.first);
            right.sort_by_key(|p| p.first);
            prop_assert_eq!(found, right, "{}", h);
        }
        let all: Vec<u64> = map.page_range().flat_map(|n| map.entries_of(n, &pages[n as usize - 3]).unwrap()).collect();
        let mut right: Vec<u64> = hashes.iter().map(|(h, p)| u64::from(*h) << 32 | u64::from(*p)).collect();
        right.sort_unstable();
        right.dedup();
        prop_assert_eq!(map.entries, right.len() as u64);
        prop_assert_eq!(all, right);
    }

    #[test]
    fn order_keys_never_disagree_with_the_order(a in value(), b in value()) {
        let (ka, kb) = (order_key(&a).unwrap(), order_key(&b).unwrap());
        if std::mem::discriminant(&a) == std::mem::discriminant(&b) {
            let disagree = (a < b && ka > kb) || (a > b && ka < kb);
            prop_assert!(!disagree, "{:?} {:?}", a, b);
        }
    }
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<i64>().prop_map(Value::I64),
        any::<f64>().prop_map(Value::F64),
        proptest::collection::vec(0u8..3, 0..20).prop_map(Value::Bytes),
    ]
}

fn place(number: u32) -> Place {
    Place { first: u64::from(number) * 10, end: u64::from(number) * 10 + 10 }
}

/// A key map with these hashes and places, its pages numbered from 3.
fn written(hashes: &[(u32, u32)], places: u32) -> (KeyMap, Vec<Vec<u8>>) {
    let mut entries: Vec<u64> = hashes.iter().map(|(h, p)| u64::from(*h) << 32 | u64::from(*p)).collect();
    entries.sort_unstable();
    let mut pages = Vec::new();
    let n = entries.len() as u64;
    let entries = entries.into_iter().map(Ok::<u64, SegmentDamage>);
    let map = write_key_map(77, vec![1, 4], (0..places).map(place).collect(), 3, n, entries, |number, page| {
        assert_eq!(number as usize, pages.len() + 3);
        pages.push(page);
        Ok(())
    })
    .unwrap();
    assert_eq!(map.pages() as usize, pages.len());
    (map, pages)
}

#[test]
fn a_million_random_keys_take_two_bytes_each_and_pages_stay_small() {
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    };
    for places in [1u32, 16] {
        let hashes: Vec<(u32, u32)> = (0..1_000_000).map(|i| (random(), i % places)).collect();
        let (map, pages) = written(&hashes, places);
        let bytes: usize = pages.iter().map(Vec::len).sum();
        let bits = bytes as f64 * 8.0 / 1e6;
        assert!(bits < if places == 1 { 15.0 } else { 19.0 }, "{places} places: {bits} bits a key");
        assert!(pages.iter().all(|p| p.len() < 8_000), "{:?}", pages.iter().map(Vec::len).max());
        let false_hits = (0..100_000).filter(|_| {
            let h = random();
            !map.probe(&pages[map.page_of(h) as usize - 3], h).unwrap().is_empty()
        });
        assert!(false_hits.count() < 100);
    }
}

#[test]
fn every_damaged_byte_of_a_page_is_noticed() {
    let (map, pages) = written(&(0..700u32).map(|i| (i.wrapping_mul(6_000_000), i % 3)).collect::<Vec<_>>(), 3);
    let page = &pages[0];
    assert_eq!(map.check_page(3, page), Ok(()));
    for i in 0..page.len() {
        let mut bad = page.clone();
        bad[i] ^= 0x40;
        assert!(map.check_page(3, &bad).is_err(), "byte {i}");
    }
    assert!(map.check_page(3, &page[..page.len() - 1]).is_err());
    assert!(map.check_page(3, &[]).is_err());
    assert!(map.check_page(4, page).is_err(), "a page in another's place");
}

#[test]
fn equal_keys_have_equal_hashes_and_others_not() {
    assert_eq!(key_hash([&Value::I16(-7)]), key_hash([&Value::I64(-7)]));
    assert_ne!(key_hash([&Value::I16(1)]), key_hash([&Value::Bool(true)]));
    assert_eq!(key_hash([&Value::I16(1), &Value::Null]), None);
    assert_eq!(key_hash([&Value::F64(1.0)]), None);
    let (a, b) = (Value::Bytes(b"ab".to_vec()), Value::Bytes(b"c".to_vec()));
    let (c, d) = (Value::Bytes(b"a".to_vec()), Value::Bytes(b"bc".to_vec()));
    assert_ne!(key_hash([&a, &b]), key_hash([&c, &d]));
    let mut all: Vec<u32> = (0..200_000i64).filter_map(|i| key_hash([&Value::I64(i), &Value::I64(i / 7)])).collect();
    all.sort_unstable();
    all.dedup();
    // By chance about five of so many pairs are equal.
    assert!(all.len() > 199_960, "{}", all.len());
}

fn described(n: usize) -> Vec<Described> {
    (0..n)
        .map(|i| {
            let columns = match i % 2 {
                0 => vec![(1, PhysicalType::I64), (3, PhysicalType::Utf8)],
                _ => vec![(1, PhysicalType::I64)],
            };
            let zone = |min, max| Zone { min: Some(min), max: Some(max), exact: true, null_count: 1, rows: 10 };
            let mut zones = vec![zone(Value::I64(i as i64), Value::I64(i as i64 + 5))];
            if i % 2 == 0 {
                zones.push(zone(Value::Bytes(vec![i as u8]), Value::Bytes(vec![255])));
            }
            let first_row_id = 100 * i as u64;
            let member =
                Member { hash: [i as u8; 32], first_row_id, end: first_row_id + 50, rows: 10, blocks: 1, layout: 0 };
            Described { member, layout: Layout { columns, sort_key: vec![1] }, zones }
        })
        .collect()
}

#[test]
fn a_directory_comes_back_as_it_was() {
    let fragments = described(7);
    let (map, _) = written(&[(1, 0), (9, 1)], 2);
    let bytes = encode_directory(&fragments, vec![map.clone()]);
    let directory = Directory::decode(&bytes).unwrap();
    assert_eq!(directory.key_maps, vec![map]);
    assert_eq!(directory.layouts.len(), 2);
    assert_eq!(directory.zones(1).unwrap()[4], Some(fragments[4].zones[0].clone()));
    assert_eq!(directory.zones(3).unwrap()[5], None);
    assert_eq!(directory.zones(77).unwrap(), vec![None; 7]);
    assert_eq!(directory.member_of(449), Some(4));
    assert_eq!(directory.member_of(450), None);
    let back = directory.described().unwrap();
    for (a, b) in back.iter().zip(&fragments) {
        assert_eq!((&a.layout, &a.zones, a.member.hash), (&b.layout, &b.zones, b.member.hash));
    }
    assert!(directory.members[1].has_hash(&"01".repeat(32)) && !directory.members[1].has_hash("01"));
}

#[test]
fn every_damaged_byte_of_a_directory_is_noticed() {
    let bytes = encode_directory(&described(3), Vec::new());
    for i in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[i] ^= 4;
        assert!(Directory::decode(&bad).is_err(), "byte {i}");
    }
    for n in 0..bytes.len() {
        assert!(Directory::decode(&bytes[..n]).is_err(), "{n} bytes");
    }
}
