use super::machine::{Machine, read_below};
use super::*;
use crate::{Builder, BuilderOptions, ColumnSpec, Fragment, PhysicalType, Schema, Value};
use std::fs;
use std::path::Path;

/// A budget that says what was taken of it, most of all at once too.
struct Counted {
    limit: Cell<usize>,
    taken: Cell<usize>,
    forced: Cell<isize>,
    peak: Cell<isize>,
}

impl Counted {
    fn install(limit: usize) -> Rc<Self> {
        let budget = Rc::new(Self {
            limit: Cell::new(limit),
            taken: Cell::default(),
            forced: Cell::default(),
            peak: Cell::default(),
        });
        install(Rc::clone(&budget) as Rc<dyn Budget>);
        budget
    }

    fn note(&self) {
        self.peak.set(self.peak.get().max(self.taken.get() as isize + self.forced.get()));
    }
}

impl Budget for Counted {
    fn take(&self, bytes: usize) -> bool {
        let fits = self.taken.get() + bytes <= self.limit.get();
        if fits {
            self.taken.set(self.taken.get() + bytes);
            self.note();
        }
        fits
    }

    fn give(&self, bytes: usize) {
        self.taken.set(self.taken.get().checked_sub(bytes).unwrap());
    }

    fn force(&self, bytes: isize) {
        self.forced.set(self.forced.get() + bytes);
        self.note();
    }
}

const COLUMNS: usize = 4;

/// A fragment of `blocks` blocks of 1,024 rows that compress badly: about 8 kB a chunk. Its last column is text.
fn fragment(dir: &Path, blocks: usize, seed: u64) -> Fragment {
    let ty = |i| if i + 1 == COLUMNS { PhysicalType::Utf8 } else { PhysicalType::I64 };
    let columns = (0..COLUMNS).map(|i| ColumnSpec { name: format!("c{i}"), attnum: i as i16 + 1, ty: ty(i) });
    let schema = Schema { columns: columns.collect(), sort_key: vec![], keys: vec![] };
    let mut b = Builder::new(schema, BuilderOptions::with_block_rows(1024)).unwrap();
    let mut x = seed * 2 + 1;
    for _ in 0..blocks * 1024 {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let v = Value::I64((x ^ (x >> 29)) as i64);
        b.push_row(&[v.clone(), v.clone(), v, Value::Bytes(format!("{x:016x}").into_bytes())]).unwrap();
    }
    let written = b.finish(dir).unwrap();
    Fragment::open(&written.path, None).unwrap()
}

fn chunk_bytes(f: &Fragment) -> usize {
    (0..f.blocks().len())
        .flat_map(|b| (0..COLUMNS).map(move |c| (b, c)))
        .map(|(b, c)| f.chunk_bytes(b, c).unwrap())
        .sum::<u64>() as usize
}

/// Reads one column of all blocks; how many pieces came from the file.
fn scan(f: &Fragment, column: usize, access: Access) -> u64 {
    begin_statement(access == Access::Paged);
    f.begin(access, false);
    let before = counters();
    (0..f.blocks().len()).for_each(|b| drop(f.read(b, column).unwrap()));
    counters().since(&before).reads
}

#[test]
fn a_loaded_fragment_is_read_whole_when_it_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let budget = Counted::install(64 << 20);
    let f = fragment(dir.path(), 16, 1);
    assert_eq!(scan(&f, 0, Access::Loaded), 16);
    assert!(budget.taken.get() < chunk_bytes(&f), "a column is not the whole");
    // The second statement reads the other columns with its own.
    begin_statement(false);
    let before = counters();
    f.begin(Access::Loaded, false);
    assert_eq!(counters().since(&before).reads, 48);
    assert!(budget.taken.get() >= chunk_bytes(&f));
    for c in 0..COLUMNS {
        assert_eq!(scan(&f, c, Access::Loaded), 0, "column {c}");
    }
    drop(f);
    assert_eq!((budget.taken.get(), budget.forced.get()), (0, 0), "all is given back");
}

#[test]
fn at_once_reads_whole_at_once() {
    let dir = tempfile::tempdir().unwrap();
    Counted::install(64 << 20);
    let f = fragment(dir.path(), 4, 1);
    begin_statement(false);
    let before = counters();
    f.begin(Access::Loaded, true);
    assert_eq!(counters().since(&before).reads, 16);
    assert_eq!(scan(&f, 2, Access::Loaded), 0);
}

#[test]
fn a_scan_in_order_over_too_much_finds_its_part_again() {
    let dir = tempfile::tempdir().unwrap();
    let budget = Counted::install(100 << 10);
    let f = fragment(dir.path(), 64, 1);
    let all = scan(&f, 0, Access::Paged);
    assert_eq!(all, 64);
    let kept = budget.taken.get();
    assert!(kept > 80 << 10, "{kept} bytes are kept of {}", budget.limit.get());
    for _ in 0..3 {
        let read = scan(&f, 0, Access::Paged);
        assert!(read < all - 8, "{read} of {all} pieces were read again");
    }
    assert!(budget.peak.get() <= (100 << 10) + budget.forced.get());
}

#[test]
fn what_nobody_wants_any_more_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    Counted::install(100 << 10);
    let (old, new) = (fragment(dir.path(), 32, 1), fragment(dir.path(), 32, 2));
    scan(&old, 0, Access::Paged);
    let first = scan(&new, 0, Access::Paged);
    assert_eq!(first, 32);
    assert!(scan(&new, 0, Access::Paged) == first, "what the old one's scan has used is left alone");
    for _ in 0..REMEMBERED {
        scan(&new, 0, Access::Paged);
    }
    assert!(scan(&new, 0, Access::Paged) < first - 8, "the new one has room now");
    assert!(scan(&old, 0, Access::Paged) > 20);
}

#[test]
fn direct_keeps_what_is_at_hand_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let budget = Counted::install(64 << 20);
    let f = fragment(dir.path(), 300, 1);
    assert_eq!(scan(&f, 0, Access::Direct), 300);
    assert_eq!(scan(&f, 0, Access::Direct), 300, "a scan keeps nothing");
    let footer = budget.forced.get();
    // Single rows: the same ones find their chunks, all of them do not fit.
    for _ in 0..2 {
        for b in 0..300 {
            for c in 0..COLUMNS {
                f.value(b, c, 7).unwrap();
            }
        }
    }
    let before = counters();
    f.value(299, 0, 8).unwrap();
    assert_eq!(counters().since(&before).reads, 0);
    assert!((budget.forced.get() - footer) as usize <= HAND, "{} bytes at hand", budget.forced.get() - footer);
    assert_eq!(budget.taken.get(), 0);
    trim(0);
    assert_eq!(budget.forced.get(), footer);
}

#[test]
fn without_a_budget_everything_is_still_read() {
    let dir = tempfile::tempdir().unwrap();
    let budget = Counted::install(0);
    let f = fragment(dir.path(), 8, 1);
    for access in [Access::Loaded, Access::Paged, Access::Direct] {
        begin_statement(false);
        f.begin(access, true);
        for b in 0..8 {
            assert_eq!(f.read(b, 3).unwrap().len(), 1024);
            let value = f.value(b, 3, 5).unwrap();
            assert_eq!(f.column(b, 3).unwrap().value(5), value);
        }
    }
    assert_eq!(budget.taken.get(), 0);
}

#[test]
fn a_smaller_budget_is_reached_by_trimming() {
    let dir = tempfile::tempdir().unwrap();
    let budget = Counted::install(64 << 20);
    let f = fragment(dir.path(), 16, 1);
    f.begin(Access::Loaded, true);
    let all = budget.taken.get();
    trim(all / 2);
    assert!(budget.taken.get() <= all / 2 && budget.taken.get() > all / 4, "{} of {all}", budget.taken.get());
    assert_eq!(kept().0, budget.taken.get());
    assert!(scan(&f, 0, Access::Loaded) <= 16);
}

#[test]
fn decoded_text_goes_before_chunks_do() {
    let dir = tempfile::tempdir().unwrap();
    let budget = Counted::install(64 << 20);
    let f = fragment(dir.path(), 16, 1);
    f.begin(Access::Loaded, true);
    let chunks = budget.taken.get();
    assert_eq!(scan(&f, COLUMNS - 1, Access::Loaded), 0);
    assert!(budget.taken.get() > chunks, "decoded text is kept where there is room");
    trim(chunks);
    for c in 0..COLUMNS {
        assert_eq!(scan(&f, c, Access::Loaded), 0, "column {c}");
    }
}

#[test]
fn text_of_which_many_values_are_read_is_decoded_only_where_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let column = ColumnSpec { name: "t".into(), attnum: 1, ty: PhysicalType::Utf8 };
    let schema = Schema { columns: vec![column], sort_key: vec![], keys: vec![] };
    let mut b = Builder::new(schema, BuilderOptions::with_block_rows(4096)).unwrap();
    // Long repetitions, which zstd finds and what compresses by symbols of some bytes does not.
    let text = |row: u64| format!("{:x} {row}", u128::from(row % 61 + 7).pow(15)).repeat(2);
    for row in 0..4096 {
        b.push_row(&[Value::Bytes(text(row).into_bytes())]).unwrap();
    }
    let written = b.finish(dir.path()).unwrap();
    for (room, decoded) in [(64 << 20, true), (20_000, false)] {
        let budget = Counted::install(1 << 30);
        let f = Fragment::open(&written.path, None).unwrap();
        assert!(f.describe_chunk(0, 0).unwrap().contains("zstd"), "{}", f.describe_chunk(0, 0).unwrap());
        f.begin(Access::Loaded, true);
        let chunk = budget.taken.get();
        budget.limit.set(chunk + room);
        let before = counters();
        for row in (0..4096).step_by(7) {
            let value = f.value(0, 0, row).unwrap();
            assert_eq!(value, Value::Bytes(text(row.into()).into_bytes()), "row {row}");
        }
        assert_eq!(f.is_decoded(0, 0), decoded, "with room for {room} bytes");
        let done = counters().since(&before);
        assert_eq!((done.reads, done.evicted_bytes), (0, 0));
        // Decoded, it takes the place of its chunk.
        assert_eq!(budget.taken.get() == chunk, !decoded);
        assert_eq!(f.lookup(&[0], &[Value::Bytes(text(77).into_bytes())]).unwrap(), [77]);
    }
}

#[test]
fn charges_are_given_back() {
    let budget = Counted::install(10);
    let mut a = Charge::new(100);
    a.add(20);
    assert_eq!(budget.forced.get(), 120);
    a.set(7);
    assert_eq!((a.bytes(), budget.forced.get()), (7, 7));
    drop(a);
    assert_eq!(budget.forced.get(), 0);
}

fn put(root: &Path, name: &str, text: &str) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

const MEMINFO: &str = "MemTotal:        8000000 kB\nMemFree:          100000 kB\nMemAvailable:    4000000 kB\n";

#[test]
fn the_least_limit_counts() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    assert_eq!(read_below(root), None);
    put(root, "proc/meminfo", MEMINFO);
    let plain = Machine { total: 8_000_000 << 10, available: 4_000_000 << 10, limited: false };
    assert_eq!(read_below(root), Some(plain));

    // Version 1, as a container sees it: the path is the host's.
    put(root, "proc/self/cgroup", "4:memory:/docker/abc\n3:cpu:/\n0::/\n");
    put(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", "1000000000\n");
    put(root, "sys/fs/cgroup/memory/memory.usage_in_bytes", "900000000\n");
    put(root, "sys/fs/cgroup/memory/memory.stat", "cache 5\ninactive_file 1\ntotal_inactive_file 300000000\n");
    assert_eq!(read_below(root), Some(Machine { total: 1_000_000_000, available: 400_000_000, limited: true }));

    // Version 2: the limit is above the process' own group.
    put(root, "proc/self/cgroup", "0::/system.slice/postgres.service\n");
    put(root, "sys/fs/cgroup/system.slice/postgres.service/memory.max", "max\n");
    put(root, "sys/fs/cgroup/system.slice/postgres.service/memory.current", "5\n");
    put(root, "sys/fs/cgroup/system.slice/memory.max", "2000000000\n");
    put(root, "sys/fs/cgroup/system.slice/memory.current", "1500000000\n");
    assert_eq!(read_below(root), Some(Machine { total: 2_000_000_000, available: 500_000_000, limited: true }));
}

#[test]
fn this_machine_says_what_it_has() {
    let machine = machine::read().unwrap();
    assert!(machine.total > 100 << 20 && machine.available > 0, "{machine:?}");
}
