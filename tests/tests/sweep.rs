//! A sweep removes no file that a transaction has written which may still commit, whatever snapshot it has and however it ends itself.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use postgres::Client;
use std::time::Duration;
use strata_tests::process::wait_for;
use strata_tests::{Cluster, Options, checks, twin};

const LIMIT: Duration = Duration::from_secs(60);

fn cluster() -> Cluster {
    let options =
        Options::new().set("strata.policy_interval", "0").set("autovacuum", "off").set("strata.snapshot_wait", "0");
    Cluster::with(options).unwrap()
}

/// A heap table with rows from `first` on, and its twin.
fn table(c: &mut Client, name: &str, first: usize) {
    for t in [name, &format!("{name}_twin")] {
        c.batch_execute(&format!(
            "CREATE TABLE {t} (id int PRIMARY KEY, v text);
             INSERT INTO {t} SELECT i, 'v' || i FROM generate_series({first}, {first} + 999) i"
        ))
        .unwrap();
    }
}

fn same(cluster: &Cluster, name: &str) {
    // A session of its own has no file open.
    twin::assert_same(&mut cluster.connect().unwrap(), name, &format!("{name}_twin")).unwrap();
}

fn sweep(c: &mut Client) -> i64 {
    twin::value(c, "SELECT strata.sweep(0)").unwrap().parse().unwrap()
}

#[test]
fn files_of_transactions_that_are_open_or_prepared_stay() {
    let cluster = cluster();
    let mut c = cluster.connect().unwrap();
    for (i, name) in ["a", "b", "d"].into_iter().enumerate() {
        table(&mut c, name, 10_000 * i);
    }
    let mut mover = cluster.connect().unwrap();
    mover.batch_execute("SET strata.fragment_rows = 100; BEGIN; SELECT strata.to_warm('a')").unwrap();
    assert_eq!(sweep(&mut c), 0, "of an open transaction");
    mover.batch_execute("COMMIT").unwrap();
    same(&cluster, "a");

    // More than are locked one by one, and a table whose transaction does not commit.
    mover.batch_execute("SET strata.fragment_rows = 10").unwrap();
    for name in ["b", "d"] {
        mover.batch_execute(&format!("BEGIN; SELECT strata.to_warm('{name}')")).unwrap();
        mover.batch_execute(&format!("PREPARE TRANSACTION '{name}'")).unwrap();
    }
    assert_eq!(sweep(&mut c), 0, "of prepared transactions");
    drop((c, mover));
    cluster.crash().unwrap();
    let mut c = cluster.connect().unwrap();
    assert_eq!(sweep(&mut c), 0, "of prepared transactions, after a crash");
    c.batch_execute("COMMIT PREPARED 'b'").unwrap();
    c.batch_execute("ROLLBACK PREPARED 'd'").unwrap();
    same(&cluster, "b");
    assert!(sweep(&mut c) > 0, "what was rolled back is removed");
    ["a", "b", "d"].into_iter().for_each(|name| same(&cluster, name));
    checks::store_is_exact(&cluster).unwrap();
}

#[test]
fn it_removes_what_it_can_beside_a_move_that_does_not_end() {
    let cluster = cluster();
    let mut c = cluster.connect().unwrap();
    table(&mut c, "a", 0);
    table(&mut c, "b", 10_000);
    c.batch_execute("SET strata.fragment_rows = 100").unwrap();
    c.execute("SELECT strata.to_warm('b')", &[]).unwrap();
    let dropped = cluster.fragment_files();
    c.batch_execute("DROP TABLE b").unwrap();
    let mut mover = cluster.connect().unwrap();
    mover.batch_execute("SET strata.fragment_rows = 100; BEGIN; SELECT strata.to_warm('a')").unwrap();
    let files = cluster.fragment_files().len();
    assert_eq!(sweep(&mut c), dropped.len() as i64);
    assert!(dropped.iter().all(|file| !file.exists()));
    assert_eq!(cluster.fragment_files().len(), files - dropped.len());
    mover.batch_execute("COMMIT").unwrap();
    same(&cluster, "a");
    checks::store_is_exact(&cluster).unwrap();
}

#[test]
fn an_old_snapshot_does_not_make_new_files_orphans() {
    let cluster = cluster();
    let mut c = cluster.connect().unwrap();
    table(&mut c, "t", 0);
    let mut old = cluster.connect().unwrap();
    old.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class").unwrap();
    c.execute("SELECT strata.to_warm('t')", &[]).unwrap();
    assert_eq!(sweep(&mut old), 0);
    old.batch_execute("COMMIT").unwrap();
    same(&cluster, "t");
    checks::store_is_exact(&cluster).unwrap();
}

#[test]
fn a_sweep_that_is_rolled_back_to_a_savepoint_or_prepared_removes_nothing_that_is_used() {
    let cluster = cluster();
    let mut c = cluster.connect().unwrap();
    table(&mut c, "t", 0);
    c.execute("SELECT strata.to_warm('t')", &[]).unwrap();
    c.batch_execute("BEGIN; SAVEPOINT a; DROP TABLE t; SELECT strata.sweep(0); ROLLBACK TO a; COMMIT").unwrap();
    same(&cluster, "t");
    c.batch_execute("BEGIN; DROP TABLE t; SELECT strata.sweep(0)").unwrap();
    c.batch_execute("PREPARE TRANSACTION 'p'").unwrap();
    // The session goes on with transactions that commit.
    c.batch_execute("CREATE TABLE other (id int)").unwrap();
    c.batch_execute("ROLLBACK PREPARED 'p'").unwrap();
    same(&cluster, "t");
    // A sweep in a transaction that drops the table and commits does remove its files.
    c.batch_execute("BEGIN; DROP TABLE t; SELECT strata.sweep(0); COMMIT").unwrap();
    assert!(cluster.fragment_files().is_empty());
    checks::store_is_exact(&cluster).unwrap();
}

#[test]
fn a_file_that_gets_its_name_again_during_the_sweep_stays() {
    let cluster = cluster();
    let mut c = cluster.connect().unwrap();
    table(&mut c, "t", 0);
    c.execute("SELECT strata.to_warm('t')", &[]).unwrap();
    let hashes = "SELECT string_agg(hash, ' ' ORDER BY hash) FROM strata.fragment";
    let before = twin::value(&mut c, hashes).unwrap();
    c.batch_execute("DROP TABLE t; CREATE TABLE t AS TABLE t_twin; ALTER TABLE t ADD PRIMARY KEY (id)").unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut sweeper = cluster.connect().unwrap();
            sweeper.batch_execute("SET strata.failpoint = 'drop:committed=sleep:3000'").unwrap();
            sweep(&mut sweeper);
        });
        // Then the sweep has committed, and has not removed the files.
        wait_for("the sweep to commit", LIMIT, || {
            twin::value(&mut c, "SELECT count(*) FROM strata.fragment").is_ok_and(|n| n == "0")
        })
        .unwrap();
        c.execute("SELECT strata.to_warm('t')", &[]).unwrap();
    });
    assert_eq!(twin::value(&mut c, hashes).unwrap(), before, "the same content");
    same(&cluster, "t");
    checks::store_is_exact(&cluster).unwrap();
}
