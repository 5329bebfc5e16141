use super::*;
use proptest::prelude::*;

const SEGMENT: usize = 1 << 20;
const PAGE_SIZE: usize = 8192;

/// Writes WAL as PostgreSQL lays it out: what the walker must read back.
struct Writer {
    bytes: Vec<u8>,
    base: u64,
    /// Bytes of the record that is being written which are still to come.
    left: usize,
}

impl Writer {
    fn new(base: u64) -> Self {
        Self { bytes: Vec::new(), base, left: 0 }
    }

    fn page_header(&mut self) {
        let at = self.bytes.len();
        let long = at.is_multiple_of(SEGMENT);
        let mut info = if long { LONG_HEADER } else { 0 };
        if self.left > 0 {
            info |= FIRST_IS_CONTRECORD;
        }
        self.bytes.extend_from_slice(&0xd110u16.to_le_bytes());
        self.bytes.extend_from_slice(&info.to_le_bytes());
        self.bytes.extend_from_slice(&1u32.to_le_bytes());
        self.bytes.extend_from_slice(&(self.base + at as u64).to_le_bytes());
        self.bytes.extend_from_slice(&(self.left as u32).to_le_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        if long {
            self.bytes.extend_from_slice(&77u64.to_le_bytes());
            self.bytes.extend_from_slice(&(SEGMENT as u32).to_le_bytes());
            self.bytes.extend_from_slice(&(PAGE_SIZE as u32).to_le_bytes());
        }
    }

    fn put(&mut self, record: &[u8]) -> (Lsn, Lsn) {
        while !self.bytes.len().is_multiple_of(8) {
            self.bytes.push(0);
        }
        let mut start = None;
        for (at, byte) in record.iter().enumerate() {
            if self.bytes.len().is_multiple_of(PAGE_SIZE) {
                self.left = record.len() - at;
                if at == 0 {
                    self.left = 0;
                }
                self.page_header();
            }
            start.get_or_insert(Lsn(self.base + self.bytes.len() as u64));
            self.bytes.push(*byte);
        }
        self.left = 0;
        (start.unwrap(), Lsn(self.base + self.bytes.len() as u64))
    }

    fn fill_segment(&mut self) {
        let end = self.bytes.len().next_multiple_of(SEGMENT);
        self.bytes.resize(end, 0);
    }
}

fn record(manager: u8, info: u8, main: &[u8], padding: usize) -> Vec<u8> {
    let mut bytes = vec![0; RECORD_HEADER];
    bytes.extend_from_slice(&[253, 1, 0, 255, main.len() as u8]);
    bytes.extend_from_slice(main);
    bytes.resize(bytes.len() + padding, 9);
    let total = bytes.len() as u32;
    bytes[0..4].copy_from_slice(&total.to_le_bytes());
    bytes[16] = info;
    bytes[17] = manager;
    bytes
}

fn commit(micros: i64) -> Vec<u8> {
    record(RM_XACT, 0x80, &(micros - PG_EPOCH).to_le_bytes(), 0)
}

fn walk(bytes: &[u8]) -> (Vec<Record>, bool) {
    let mut walker = Walker::new();
    let mut seen = Vec::new();
    for segment in bytes.chunks(SEGMENT) {
        walker.feed("x", segment, |record| seen.push(record)).unwrap();
    }
    (seen, walker.in_record())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn records_are_found_wherever_pages_and_segments_cut_them(lengths in proptest::collection::vec(0usize..60_000, 1..80)) {
        let mut writer = Writer::new(4 << 20);
        let places: Vec<(Lsn, Lsn)> = lengths.iter().map(|length| writer.put(&record(10, 0, b"x", *length))).collect();
        writer.fill_segment();
        let (seen, open) = walk(&writer.bytes);
        let found: Vec<(Lsn, Lsn)> = seen.iter().map(|record| (record.start, record.end)).collect();
        prop_assert_eq!(found, places);
        prop_assert!(!open);
    }

    #[test]
    fn any_bytes_are_walked_without_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), PAGE_SIZE..3 * PAGE_SIZE), at in 0usize..PAGE_SIZE) {
        let mut writer = Writer::new(0);
        writer.put(&commit(0));
        let head = &writer.bytes[..writer.bytes.len().min(at)];
        bytes[..head.len()].copy_from_slice(head);
        let _ = Walker::new().feed("x", &bytes, |_| ());
    }
}

#[test]
fn times_of_commits_and_restore_points_are_read() {
    let mut writer = Writer::new(0);
    writer.put(&record(10, 0, b"abc", 500));
    writer.put(&commit(1_700_000_000_000_000));
    writer.put(&record(RM_XLOG, XLOG_RESTORE_POINT, &(1_700_000_001_000_000 - PG_EPOCH).to_le_bytes(), 64));
    writer.put(&record(RM_XACT, 0x10, b"12345678", 0));
    writer.put(&record(RM_TABLESPACE, 0, b"1234/x", 0));
    writer.fill_segment();
    let (seen, _) = walk(&writer.bytes);
    let time = |second| Some(Timestamp::from_second(second).unwrap());
    assert_eq!(
        seen.iter().map(|r| r.transaction_time).collect::<Vec<_>>(),
        [None, time(1_700_000_000), None, None, None]
    );
    assert_eq!(seen[2].restore_point_time, time(1_700_000_001));
    assert!(seen[4].creates_tablespace);
}

#[test]
fn nothing_is_read_behind_a_switch() {
    let mut writer = Writer::new(0);
    writer.put(&commit(0));
    let (start, _) = writer.put(&record(RM_XLOG, XLOG_SWITCH, b"", 0));
    writer.put(&commit(0));
    writer.fill_segment();
    let (seen, _) = walk(&writer.bytes);
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[1].start, start);
}

#[test]
fn a_walk_may_begin_in_the_middle_of_a_record() {
    let mut writer = Writer::new(0);
    writer.put(&record(10, 0, b"x", SEGMENT + 300_000));
    let (start, _) = writer.put(&commit(0));
    writer.fill_segment();
    let mut walker = Walker::new();
    let mut seen = Vec::new();
    walker.feed("x", &writer.bytes[SEGMENT..2 * SEGMENT], |record| seen.push(record.start)).unwrap();
    assert_eq!(seen, [start]);
}

#[test]
fn a_record_that_goes_on_is_open() {
    let mut writer = Writer::new(0);
    writer.put(&record(10, 0, b"x", SEGMENT));
    let mut walker = Walker::new();
    walker.feed("x", &writer.bytes[..SEGMENT], |_| panic!("no record ends here")).unwrap();
    assert!(walker.in_record());
}

#[test]
fn a_segment_that_does_not_follow_is_refused() {
    let mut writer = Writer::new(0);
    writer.put(&record(10, 0, b"x", 3 * SEGMENT));
    let mut walker = Walker::new();
    walker.feed("a", &writer.bytes[..SEGMENT], |_| ()).unwrap();
    let error = walker.feed("b", &writer.bytes[2 * SEGMENT..3 * SEGMENT], |_| ()).unwrap_err();
    assert_eq!(error.kind, crate::error::ErrorKind::Damaged);
}
