//! What the watch writes into the fragment log, over an archive that is made up.

use super::*;
use crate::recovery::plan::tests::{Archive, SIZE, commit_at, time};
use crate::recovery::target::Target;
use std::sync::atomic::AtomicBool;

/// A server that was recovered to a moment before the end of its log goes on in the same repository, on timeline 2. Its watch sees a row
/// that timeline 1 has lost since, and does not see one that came there later.
#[test]
fn what_happens_on_one_timeline_leaves_the_log_of_another_as_it_was() {
    let archive = Archive::branched();
    let repository = &archive.repository;
    let (early, late, unseen) =
        (archive.fragment(1, 5 * SIZE), archive.fragment(2, 7 * SIZE + 10), archive.fragment(3, 3 * SIZE));
    // The same number and content as one of timeline 1, and another row all the same.
    let again = FragmentRow { created_lsn: Lsn(7 * SIZE + 800), ..late.clone() };
    let entry = |row: &FragmentRow| FragmentLogEntry {
        database_oid: 5,
        database: "d".into(),
        fragment: row.clone(),
        timeline: 1,
        completed_at: time(75),
        dropped: Vec::new(),
    };
    repository.log_fragment(&entry(&early)).unwrap();
    repository.log_fragment(&entry(&late)).unwrap();
    let behind = |timeline, lsn| Dropped { at: time(165), lsn: Lsn(lsn), timeline };
    repository.log_dropped(&entry(&early), behind(1, 7 * SIZE + 200)).unwrap();
    let wanted = |timeline, number| -> Vec<i64> {
        let plan = archive.plan_on(Target::Lsn(commit_at(number)), Some(timeline)).unwrap();
        plan.require_complete().unwrap();
        let id = |hash: &str| [&early, &late, &unseen].iter().find(|row| row.hash == hash).unwrap().fragment_id;
        let mut ids: Vec<i64> = plan.fragment_list.iter().map(|one| id(&one.hash)).collect();
        ids.sort_unstable();
        ids
    };
    assert_eq!((wanted(1, 7), wanted(1, 8)), (vec![1, 2], vec![2]));

    let shared = Shared {
        config: archive.config.clone(),
        conninfo: crate::postgres::Conninfo::parse("host=/nowhere user=x").unwrap(),
        store: archive.repository.root().join("no-store"),
        standby: AtomicBool::new(false),
        backlog: std::sync::Mutex::default(),
        stream: std::sync::Mutex::default(),
    };
    let database = Database { oid: 5, name: "d".into() };
    let way = Chain::read(repository, 2).unwrap().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut databases = load(repository, &way).await.unwrap();
        let known = databases.entry(5).or_default();
        assert_eq!(known.logged.len(), 1, "what came on timeline 1 behind the branch is not its own");
        let mut look = async |rows: &[FragmentRow], lsn| {
            known.keep(&shared, repository, &database, rows, &way).await.unwrap();
            known.note_dropped(repository, rows, behind(2, lsn)).await.unwrap();
        };
        look(std::slice::from_ref(&early), 6 * SIZE + 300).await;
        assert_eq!((wanted(1, 7), wanted(1, 8), wanted(2, 8)), (vec![1, 2], vec![2], vec![1]));
        look(&[early.clone(), again.clone()], 7 * SIZE + 850).await;
        assert_eq!((wanted(1, 8), wanted(2, 8)), (vec![2], vec![1, 2]));
        // Gone on both, each in its time.
        look(std::slice::from_ref(&again), 7 * SIZE + 900).await;
        assert_eq!((wanted(1, 7), wanted(1, 8)), (vec![1, 2], vec![2]));
        assert_eq!((wanted(2, 7), wanted(2, 8)), (vec![1], vec![2]));
        // One that came before the branch, and that nobody saw on timeline 1, belongs to both.
        look(&[again.clone(), unseen.clone()], 7 * SIZE + 950).await;
        look(&[], 7 * SIZE + 990).await;
        assert_eq!((wanted(1, 7), wanted(1, 8)), (vec![1, 2, 3], vec![2, 3]));
        assert_eq!((wanted(2, 7), wanted(2, 8)), (vec![1, 3], Vec::new()));
    });
    assert_eq!(repository.fragment_log().unwrap().len(), 4);
}
