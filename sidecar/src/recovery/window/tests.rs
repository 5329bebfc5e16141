//! Windows over archives that are made up: plans are the oracle, asked for every position and time.

use super::*;
use crate::recovery::plan::tests::{Archive, SIZE, commit_at, time};
use crate::wal::name::{Segment, WalName};
use proptest::prelude::*;

fn remove(archive: &Archive, timeline: u32, number: u64) {
    let lost = Segment::numbered(timeline, number, SIZE);
    let _ = std::fs::remove_file(archive.repository.wal_path(&lost.to_string(), WalName::Segment(lost)));
}

fn can(archive: &Archive, timeline: u32, target: Target) -> bool {
    archive.plan_on(target, Some(timeline)).is_ok_and(|plan| plan.require_complete().is_ok())
}

/// Every position and time around every end of an interval, and many between, has a plan exactly when it is in an interval.
fn agrees(archive: &Archive, last: u64) {
    for window in windows(&archive.repository).unwrap() {
        let mut lsns: Vec<u64> = (1..=last * 2 + 4).map(|half| half * SIZE / 2 + 41).collect();
        let mut times: Vec<Timestamp> = (0..=last as i64 * 10 + 30).step_by(3).map(time).collect();
        for one in &window.intervals {
            lsns.extend([one.from_lsn.0 - 1, one.from_lsn.0, one.to_lsn.0, one.to_lsn.0 + 1]);
            for time in [one.from_time, one.to_time].into_iter().flatten() {
                let micro = SignedDuration::from_micros(1);
                times.extend([time - micro, time, time + micro]);
            }
        }
        for lsn in lsns {
            let inside = window.intervals.iter().any(|one| (one.from_lsn.0..=one.to_lsn.0).contains(&lsn));
            assert_eq!(can(archive, window.timeline, Target::Lsn(Lsn(lsn))), inside, "{} in {window:#?}", Lsn(lsn));
        }
        for time in times {
            let inside = window
                .intervals
                .iter()
                .any(|one| one.from_time.is_some_and(|from| from <= time) && one.to_time.is_some_and(|to| time <= to));
            assert_eq!(can(archive, window.timeline, Target::Time(time)), inside, "{time} in {window:#?}");
        }
    }
}

#[test]
fn one_interval_without_gaps() {
    let archive = Archive::new();
    for number in 1..=8 {
        archive.wal(1, number, number as i64 * 10);
    }
    archive.backup(1, 2, 20);
    archive.backup(1, 5, 50);
    let window = windows(&archive.repository).unwrap().remove(0);
    let interval = Interval {
        from_lsn: Lsn(2 * SIZE + 200),
        to_lsn: Lsn(9 * SIZE),
        from_time: Some(time(20)),
        to_time: Some(time(80)),
        backups: 2,
    };
    assert_eq!((window.intervals, window.gaps), (vec![interval], vec![]));
    agrees(&archive, 8);
}

#[test]
fn a_gap_ends_an_interval_and_the_next_backup_begins_another() {
    let archive = Archive::new();
    for number in 1..=10 {
        archive.wal(1, number, number as i64 * 10);
    }
    archive.backup(1, 2, 20);
    archive.backup(1, 7, 70);
    remove(&archive, 1, 5);
    let window = windows(&archive.repository).unwrap().remove(0);
    assert_eq!(window.intervals.len(), 2);
    assert_eq!(window.intervals[0].to_lsn, commit_at(4));
    assert_eq!(window.gaps.len(), 1);
    assert!(window.gaps[0].why.contains(&Segment::numbered(1, 5, SIZE).to_string()), "{window:?}");
    agrees(&archive, 10);
}

#[test]
fn without_backups_there_is_no_window() {
    let archive = Archive::new();
    archive.wal(1, 1, 10);
    assert!(windows(&archive.repository).unwrap().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn windows_and_plans_never_disagree(
        backups in proptest::collection::btree_set(1..14u64, 1..4),
        lost in proptest::collection::vec(1..15u64, 0..3),
        fork in proptest::option::of(4..12u64),
    ) {
        let archive = Archive::new();
        for number in 1..=14 {
            archive.wal(1, number, number as i64 * 10);
        }
        for number in &backups {
            archive.backup(1, *number, *number as i64 * 10);
        }
        if let Some(at) = fork {
            archive.put("00000002.history", format!("1\t{}\tx\n", Lsn(at * SIZE + 100)).as_bytes());
            for number in at..at + 4 {
                archive.wal(2, number, number as i64 * 10 + 5);
            }
        }
        lost.iter().for_each(|number| remove(&archive, 1, *number));
        agrees(&archive, 18);
    }
}
