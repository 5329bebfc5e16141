//! Plans over archives that are made up: segments of 1 MB with a commit each.

use super::*;
use crate::config::Config;
use crate::repository::fragments::{Dropped, FragmentLogEntry};
use crate::repository::manifest::{Manifest, Server};
use crate::repository::walstore::{self, WalNote};
use crate::repository::{FORMAT, Identity, fsio};
use crate::wal::name::WalName;
use crate::wal::scan::SegmentSummary;
use crate::wal::walker::SegmentHeader;
use std::path::Path;
use strata_catalog::FragmentRow;

pub(crate) const SIZE: u64 = 1 << 20;

pub(crate) fn time(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

/// A segment whose only record is a commit at `second`, right behind the page header.
fn segment(timeline: u32, number: u64, second: i64) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&0xd110u16.to_le_bytes());
    bytes.extend_from_slice(&2u16.to_le_bytes());
    bytes.extend_from_slice(&timeline.to_le_bytes());
    bytes.extend_from_slice(&(number * SIZE).to_le_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&1u64.to_le_bytes());
    bytes.extend_from_slice(&(SIZE as u32).to_le_bytes());
    bytes.extend_from_slice(&8192u32.to_le_bytes());
    let micros = time(second).as_microsecond() - 946_684_800_000_000;
    let mut record = vec![0; 24];
    record[0] = 34;
    record[17] = 1;
    record.extend_from_slice(&[255, 8]);
    record.extend_from_slice(&micros.to_le_bytes());
    bytes.extend_from_slice(&record);
    bytes.resize(SIZE as usize, 0);
    bytes
}

/// Where that record begins.
pub(crate) fn commit_at(number: u64) -> Lsn {
    Lsn(number * SIZE + 40)
}

/// When a position was written, about.
pub(crate) fn time_at(lsn: u64) -> Timestamp {
    time((lsn / (SIZE / 10)) as i64)
}

/// A row that names a fragment.
pub(crate) fn fragment_row(id: i64, hash: &str, created: u64) -> FragmentRow {
    FragmentRow {
        fragment_id: id,
        relid: 1,
        relation: None,
        hash: hash.to_owned(),
        row_count: 1,
        bytes: 1,
        created_at: time_at(created),
        created_lsn: Lsn(created),
    }
}

pub(crate) struct Archive {
    pub(crate) _dir: tempfile::TempDir,
    pub(crate) config: Config,
    pub(crate) repository: Repository,
}

impl Archive {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("system = \"s\"\n[member]\n[repository]\npath = \"{}\"\n", dir.path().join("r").display());
        let config = Config::parse(&text, Path::new("/x")).unwrap();
        let repository = Repository::open_or_create(&config).unwrap();
        repository.claim(&Identity { system_identifier: 1, segment_size: SIZE as u32 }).unwrap();
        Self { _dir: dir, config, repository }
    }

    pub(crate) fn put(&self, name: &str, content: &[u8]) {
        let kind = WalName::parse(name).unwrap();
        let segment = SegmentHeader::read(content).map(|header| SegmentSummary::of(name, &header, content).unwrap());
        let note = WalNote { archived_at: Timestamp::UNIX_EPOCH, segment, ..WalNote::of(name, content) };
        let path = self.repository.wal_path(name, kind);
        fsio::create_dirs(fsio::parent(&path)).unwrap();
        fsio::write_new(&path, &walstore::encode(&note, content, 1, self.repository.keys()).unwrap()).unwrap();
    }

    pub(crate) fn wal(&self, timeline: u32, number: u64, second: i64) {
        self.put(&Segment::numbered(timeline, number, SIZE).to_string(), &segment(timeline, number, second));
    }

    /// Eight segments on timeline 1, which timeline 2 left in the sixth for two more, and a backup in the second.
    pub(crate) fn branched() -> Self {
        let archive = Self::new();
        for number in 1..=8 {
            archive.wal(1, number, number as i64 * 10);
        }
        archive.put("00000002.history", format!("1\t{}\tx\n", Lsn(6 * SIZE + 100)).as_bytes());
        for number in 6..=8 {
            archive.wal(2, number, 100 + number as i64 * 10);
        }
        archive.backup(1, 2, 20);
        archive
    }

    /// A fragment in the repository, and a row that names it. Those of one number have one content.
    pub(crate) fn fragment(&self, id: i64, created: u64) -> FragmentRow {
        let content = format!("fragment {id}");
        let hash = blake3::hash(content.as_bytes()).to_hex().to_string();
        let from = self.repository.root().join(".x.tmp");
        std::fs::write(&from, content).unwrap();
        self.repository.put_fragment(&hash, &from).unwrap();
        fragment_row(id, &hash, created)
    }

    /// A backup that fills one segment and is consistent at its end.
    pub(crate) fn backup(&self, timeline: u32, number: u64, second: i64) -> String {
        self.backup_with(timeline, number, second, Vec::new())
    }

    /// With the fragments that the catalogs named at its end.
    pub(crate) fn backup_with(&self, timeline: u32, number: u64, second: i64, fragments: Vec<FragmentRef>) -> String {
        let fragments_named = fragments.len() as u64;
        let (id, _) = self.repository.create_backup_dir(time(second)).unwrap();
        let manifest = Manifest {
            format: FORMAT,
            id: id.clone(),
            server: Server {
                version: 150000,
                data_directory: "/d".into(),
                store: "/s".into(),
                bin_directory: None,
                data_checksums: false,
                settings: Vec::new(),
            },
            backup_label: String::new(),
            tablespace_map: String::new(),
            tablespaces: Vec::new(),
            directories: Vec::new(),
            packs: Vec::new(),
            files: Vec::new(),
            fragments,
            damaged_pages: Vec::new(),
            encrypted: None,
        };
        let manifest_blake3 = self.repository.write_manifest(&manifest).unwrap();
        let name = Segment::numbered(timeline, number, SIZE).to_string();
        self.repository
            .record_backup(&BackupEntry {
                id: id.clone(),
                label: None,
                system: "s".into(),
                member: "main".into(),
                server_version: 150000,
                system_identifier: 1,
                segment_size: SIZE as u32,
                timeline,
                start_lsn: Lsn(number * SIZE + 40),
                stop_lsn: Lsn(number * SIZE + 200),
                start_wal: name.clone(),
                stop_wal: name,
                started_at: time(second),
                stopped_at: time(second),
                completed_at: time(second),
                files: 0,
                data_bytes: 0,
                stored_bytes: 0,
                fragments: fragments_named,
                fragment_bytes: 0,
                fragments_copied: 0,
                fragment_bytes_copied: 0,
                fragments_missing: 0,
                damaged_pages: 0,
                manifest_blake3,
                tool: None,
            })
            .unwrap();
        id
    }

    pub(crate) fn plan(&self, target: Target) -> Result<Plan> {
        self.plan_on(target, None)
    }

    pub(crate) fn plan_on(&self, target: Target, timeline: Option<u32>) -> Result<Plan> {
        plan(&self.repository, &PlanRequest { target, timeline, backup: None, exclusive: false })
    }
}

/// Backups in segments 2 and 5, commits at 10, 20, … seconds in segments 1, 2, … 8.
fn usual() -> (Archive, String, String) {
    let archive = Archive::new();
    for number in 1..=8 {
        archive.wal(1, number, number as i64 * 10);
    }
    let first = archive.backup(1, 2, 20);
    let second = archive.backup(1, 5, 50);
    (archive, first, second)
}

#[test]
fn the_newest_backup_before_the_target_is_chosen() {
    let (archive, first, second) = usual();
    let cases = [
        (Target::Latest, &second, 8, StopAt::Lsn(commit_at(8))),
        (Target::Time(time(65)), &second, 7, StopAt::Time(time(65))),
        (Target::Time(time(50)), &second, 6, StopAt::Time(time(50))),
        (Target::Time(time(45)), &first, 5, StopAt::Time(time(45))),
        (Target::Lsn(commit_at(4)), &first, 4, StopAt::Lsn(commit_at(4))),
        (Target::Lsn(Lsn(commit_at(6).0 + 1)), &second, 7, StopAt::Lsn(Lsn(commit_at(6).0 + 1))),
        (Target::Backup(first.clone()), &first, 2, StopAt::Consistent),
    ];
    for (target, backup, last, stop) in cases {
        let plan = archive.plan(target.clone()).unwrap();
        assert_eq!(plan.backup.id, *backup, "{target}");
        assert_eq!(plan.wal_to, Segment::numbered(1, last, SIZE).to_string(), "{target}");
        assert_eq!(plan.stop, stop, "{target}");
        plan.require_complete().unwrap();
    }
}

#[test]
fn a_position_behind_the_last_record_stops_there_when_nothing_can_be_missing() {
    let (archive, ..) = usual();
    // The last segment is closed, so everything before its end is in the archive.
    let plan = archive.plan(Target::Lsn(Lsn(9 * SIZE))).unwrap();
    assert_eq!(plan.stop, StopAt::Lsn(commit_at(8)));
    let error = archive.plan(Target::Lsn(Lsn(9 * SIZE + 1))).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unreachable);
}

#[test]
fn a_time_that_the_archive_does_not_reach_is_refused() {
    let (archive, ..) = usual();
    let plan = archive.plan(Target::Time(time(80))).unwrap();
    assert_eq!(plan.stop, StopAt::Lsn(commit_at(8)), "no commit is later, so everything is wanted");
    let error = archive.plan(Target::Time(time(81))).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unreachable);
    assert!(error.message.contains(&time(80).to_string()), "{error}");
}

#[test]
fn a_target_before_the_first_backup_is_refused() {
    let (archive, first, _) = usual();
    for target in [Target::Time(time(19)), Target::Lsn(Lsn(SIZE))] {
        let error = archive.plan(target).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unreachable);
        assert!(error.detail.unwrap().contains(&first));
    }
}

#[test]
fn a_gap_is_named_and_only_matters_where_it_is() {
    let (archive, ..) = usual();
    let lost = Segment::numbered(1, 7, SIZE);
    std::fs::remove_file(archive.repository.wal_path(&lost.to_string(), WalName::Segment(lost))).unwrap();
    archive.plan(Target::Time(time(55))).unwrap().require_complete().unwrap();
    let error = archive.plan(Target::Latest).unwrap().require_complete().unwrap_err();
    assert_eq!(error.kind, ErrorKind::Gap);
    assert!(error.message.contains(&lost.to_string()));
}

#[test]
fn the_way_leads_over_the_switch_to_another_timeline() {
    let (archive, _, second) = usual();
    archive.put("00000002.history", format!("1\t{}\tbefore x\n", Lsn(6 * SIZE + 100)).as_bytes());
    for (number, second) in [(6, 60), (7, 170), (8, 180)] {
        archive.wal(2, number, second);
    }
    let plan = archive.plan(Target::Latest).unwrap();
    assert_eq!((plan.timeline, plan.backup.id.as_str()), (2, second.as_str()));
    assert_eq!(plan.stop, StopAt::Lsn(commit_at(8)));
    assert_eq!(plan.wal_to, Segment::numbered(2, 8, SIZE).to_string());
    plan.require_complete().unwrap();
    // The old timeline is still there for who asks for it.
    let plan = archive.plan_on(Target::Time(time(75)), Some(1)).unwrap();
    assert_eq!(plan.wal_to, Segment::numbered(1, 8, SIZE).to_string());
    // A backup that was taken on timeline 1 after the switch does not lead to timeline 2.
    let late = archive.backup(1, 7, 71);
    assert_eq!(archive.plan(Target::Latest).unwrap().backup.id, second);
    assert_eq!(archive.plan(Target::Backup(late.clone())).unwrap().backup.id, late);
    assert_eq!(archive.plan_on(Target::Latest, Some(9)).unwrap_err().kind, ErrorKind::Missing);
}

#[test]
fn a_fragment_that_was_dropped_on_another_branch_is_still_wanted() {
    let (archive, ..) = usual();
    archive.put("00000002.history", format!("1\t{}\tbefore x\n", Lsn(6 * SIZE + 100)).as_bytes());
    for (number, second) in [(6, 160), (7, 170), (8, 180)] {
        archive.wal(2, number, second);
    }
    let log = |hash: &str, dropped: u64| {
        let fragment = FragmentRow { created_at: time(55), ..fragment_row(1, &hash.repeat(64), 5 * SIZE + 500) };
        let entry = FragmentLogEntry {
            database_oid: 5,
            database: "d".into(),
            fragment,
            timeline: 1,
            completed_at: time(55),
            dropped: vec![Dropped { at: time(75), lsn: Lsn(dropped), timeline: 1 }],
        };
        archive.repository.log_fragment(&entry).unwrap();
    };
    log("a", 6 * SIZE + 50);
    log("b", 7 * SIZE + 200);
    let wanted = |timeline| -> Vec<String> {
        let plan = archive.plan_on(Target::Latest, Some(timeline)).unwrap();
        plan.fragment_list.into_iter().map(|fragment| fragment.hash).collect()
    };
    assert_eq!(wanted(1), Vec::<String>::new());
    assert_eq!(wanted(2), ["b".repeat(64)]);
}

#[test]
fn a_row_that_is_gone_takes_no_fragment_from_another_that_is_there() {
    let entry = |id: i64, created: u64| FragmentLogEntry {
        database_oid: 5,
        database: "d".into(),
        fragment: FragmentRow { created_at: time(15), ..fragment_row(id, &"a".repeat(64), created) },
        timeline: 1,
        completed_at: time(15),
        dropped: Vec::new(),
    };
    let gone = Dropped { at: time(65), lsn: Lsn(6 * SIZE + 50), timeline: 1 };
    // In the backup or not, and whichever of the two is gone.
    for (manifest, first) in [(true, true), (true, false), (false, true), (false, false)] {
        let archive = Archive::new();
        for number in 1..=8 {
            archive.wal(1, number, number as i64 * 10);
        }
        let created = if manifest { SIZE } else { 3 * SIZE };
        let rows = [entry(1, created), entry(2, created + 8)];
        let named = manifest.then(|| FragmentRef {
            database_oid: 5,
            database: "d".into(),
            relation: None,
            hash: "a".repeat(64),
            bytes: 1,
            rows: 1,
            created_at: time(15),
            created_lsn: Lsn(created),
            missing: false,
        });
        archive.backup_with(1, 2, 20, named.into_iter().collect());
        for row in &rows {
            archive.repository.log_fragment(row).unwrap();
        }
        let wanted = |target| archive.plan(target).unwrap().fragment_list.len();
        let (dropped, left) = if first { (&rows[0], &rows[1]) } else { (&rows[1], &rows[0]) };
        archive.repository.log_dropped(dropped, gone).unwrap();
        assert_eq!((wanted(Target::Latest), wanted(Target::Time(time(75)))), (1, 1), "{manifest} {first}");
        archive.repository.log_dropped(left, gone).unwrap();
        assert_eq!((wanted(Target::Latest), wanted(Target::Lsn(commit_at(5)))), (0, 1), "{manifest} {first}");
    }
}

#[test]
fn a_damaged_entry_in_the_catalog_hides_no_other_backup() {
    let (archive, first, second) = usual();
    let entry = archive.repository.member_dir().join(format!("catalog/{second}.json"));
    std::fs::write(&entry, "rubbish").unwrap();
    assert_eq!(archive.plan(Target::Latest).unwrap().backup.id, first);
    std::fs::write(archive.repository.member_dir().join(format!("catalog/{first}.json")), "rubbish").unwrap();
    assert_eq!(archive.plan(Target::Latest).unwrap_err().kind, ErrorKind::Damaged);
}

#[test]
fn without_backups_there_is_no_plan() {
    let archive = Archive::new();
    archive.wal(1, 1, 10);
    assert_eq!(archive.plan(Target::Latest).unwrap_err().kind, ErrorKind::Unreachable);
}
