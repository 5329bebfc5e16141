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
