//! Row locks promote rows while indexes are built: no index misses a promoted row.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use strata_tests::{Cluster, Options, checks, twin};

#[test]
fn an_index_has_the_rows_that_were_promoted_while_it_was_built() {
    let options = Options::new().set("autovacuum", "off").set("max_parallel_maintenance_workers", "0");
    let cluster = Cluster::with(options).unwrap();
    let mut c = cluster.connect().unwrap();
    c.batch_execute(
        "CREATE TABLE w (id int PRIMARY KEY, k int); INSERT INTO w SELECT i, i % 50 FROM generate_series(1, 20000) i;
         CREATE TABLE child (w int REFERENCES w)",
    )
    .unwrap();
    checks::rewarm(&mut c, "w").unwrap();
    let (done, locked) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for session in 0..2u64 {
            let (cluster, done, locked) = (&cluster, &done, &locked);
            scope.spawn(move || {
                let mut c = cluster.connect().unwrap();
                let mut id = session;
                while !done.load(Ordering::Relaxed) && id < 19_000 {
                    id += 2;
                    let sql = if id % 3 == 0 {
                        format!("INSERT INTO child VALUES ({id})")
                    } else {
                        format!("SELECT * FROM w WHERE id = {id} FOR UPDATE")
                    };
                    c.batch_execute(&sql).unwrap();
                    locked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for round in 0..12 {
            let (workers, index) = if round % 2 == 0 { (0, "((k + 1))") } else { (2, "(k, id)") };
            c.batch_execute(&format!(
                "SET max_parallel_maintenance_workers = {workers}; SET min_parallel_table_scan_size = 0;
                 DROP INDEX IF EXISTS i; CREATE {} INDEX i ON w {index}",
                if workers > 0 { "UNIQUE" } else { "" }
            ))
            .unwrap();
            let all = twin::value(&mut c, "SELECT count(*) FROM w").unwrap();
            assert_eq!(all, "20000");
            if workers == 0 {
                c.batch_execute("SET enable_seqscan = off").unwrap();
                let plan = twin::plan(&mut c, "SELECT count(*) FROM w WHERE k + 1 BETWEEN 5 AND 6").unwrap();
                assert!(plan.contains("Index"), "{plan}");
                let found = twin::value(&mut c, "SELECT count(*) FROM w WHERE k + 1 BETWEEN 5 AND 6").unwrap();
                assert_eq!(found, "800", "round {round}");
                c.batch_execute("RESET enable_seqscan").unwrap();
            } else {
                // The look-up asks the btree for promoted rows.
                for id in 1..200 {
                    let sql = format!("SELECT count(*) FROM w WHERE k = {} AND id = {id}", id % 50);
                    assert_eq!(twin::value(&mut c, &sql).unwrap(), "1", "round {round}, row {id}");
                }
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    println!("{} rows were locked meanwhile", locked.load(Ordering::Relaxed));
    assert!(locked.load(Ordering::Relaxed) > 50);
    checks::key_is_exact(&mut c, "w", "id").unwrap();
}

/// A duplicate of a fragment row's key that is written while the index is built concurrently: one of the two fails.
#[test]
fn a_unique_index_that_is_built_concurrently_takes_no_duplicate() {
    let cluster = Cluster::with(Options::new().set("autovacuum", "off")).unwrap();
    let mut c = cluster.connect().unwrap();
    c.batch_execute(
        "CREATE TABLE w (id int PRIMARY KEY, k int); INSERT INTO w SELECT i, i FROM generate_series(1, 1000) i",
    )
    .unwrap();
    checks::rewarm(&mut c, "w").unwrap();
    let pid: i32 = c.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    let build = std::thread::spawn(move || {
        c.batch_execute("SET strata.failpoint = 'index:built=sleep:3000'").unwrap();
        c.batch_execute("CREATE UNIQUE INDEX CONCURRENTLY u ON w (k)").map_err(|error| checks::sqlstate(&error))
    });
    let mut other = cluster.connect().unwrap();
    // The build has its snapshot; the index is not ready.
    strata_tests::process::wait_for("the build", std::time::Duration::from_secs(60), || {
        twin::value(
            &mut other,
            &format!("SELECT coalesce(max(phase), '') FROM pg_stat_progress_create_index WHERE pid = {pid}"),
        )
        .unwrap()
        .starts_with("building index")
    })
    .unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    let written = other.batch_execute("INSERT INTO w VALUES (5001, 5)").map_err(|error| checks::sqlstate(&error));
    let built = build.join().unwrap();
    println!("written: {written:?}, built: {built:?}");
    let refused = Err("23505".to_owned());
    assert!(written == refused && built.is_ok() || written.is_ok() && built == refused, "{written:?} {built:?}");
    let valid = twin::value(&mut other, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'u'::regclass").unwrap();
    assert_eq!(valid == "t", written.is_err());
}
