//! kill -9 of the server in the middle of a move, a promotion and a drop; at named points, and at random moments under
//! load. After each: nothing lost, nothing doubled, nothing orphaned, and the same work succeeds when it is done again.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use postgres::Client;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use strata_tests::checks::{self, sqlstate};
use strata_tests::process::wait_for;
use strata_tests::{Cluster, Options, script, twin};

const LIMIT: Duration = Duration::from_secs(60);

/// Where a move may end too early.
const MOVE_POINTS: [&str; 4] =
    ["move:fragment_unnamed", "move:fragment_written", "move:before_swap", "move:before_commit"];

/// `w` and its heap twin `h`, with two thousand rows each.
fn tables(client: &mut Client) {
    for t in ["w", "h"] {
        client
            .batch_execute(&format!(
                "CREATE TABLE {t} (id int PRIMARY KEY, k int, v text);
                 CREATE INDEX ON {t} (k);
                 INSERT INTO {t} SELECT i, i % 50, 'v' || i FROM generate_series(1, 2000) i"
            ))
            .unwrap();
    }
}

/// Runs SQL that kills its own server, and waits until the server is back.
fn dies(cluster: &Cluster, sql: &str) -> Client {
    let mut c = cluster.connect().unwrap();
    let error = c.batch_execute(sql).expect_err("the failpoint should have killed the server");
    let code = sqlstate(&error);
    assert!(error.is_closed() || code.is_empty() || code.starts_with("57P"), "{sql}: {error:?}");
    drop(c);
    // The postmaster may still be about to notice.
    std::thread::sleep(Duration::from_millis(300));
    cluster.wait_ready(LIMIT).unwrap();
    cluster.connect().unwrap()
}

fn set_failpoint(cluster: &Cluster, value: &str) {
    let mut c = cluster.connect().unwrap();
    c.batch_execute(&format!("ALTER SYSTEM SET strata.failpoint = '{value}'")).unwrap();
    c.batch_execute("SELECT pg_reload_conf()").unwrap();
    wait_for("the failpoint to be set", LIMIT, || {
        let shown = twin::value(&mut cluster.connect().unwrap(), "SHOW strata.failpoint");
        shown.is_ok_and(|s| s == value)
    })
    .unwrap();
}

fn exact(cluster: &Cluster, c: &mut Client) {
    twin::assert_same(c, "w", "h").unwrap();
    checks::key_is_exact(c, "w", "id").unwrap();
    checks::store_is_exact(cluster).unwrap();
    checks::index_is_exact(c).unwrap();
}

#[test]
fn a_move_that_is_killed_leaves_the_table_as_it_was() {
    let cluster = Cluster::start().unwrap();
    tables(&mut cluster.connect().unwrap());
    for point in MOVE_POINTS {
        let mut c = dies(&cluster, &format!("SET strata.failpoint = '{point}=kill'; SELECT strata.to_warm('w')"));
        exact(&cluster, &mut c);
        let tier = twin::value(&mut c, "SELECT count(*) FROM strata.fragment").unwrap();
        assert_eq!(tier, "0", "after {point}");
        checks::rewarm(&mut c, "w").unwrap();
        exact(&cluster, &mut c);
        for t in ["w", "h"] {
            c.batch_execute(&format!(
                "UPDATE {t} SET v = v || '!' WHERE id % 40 = 3; DELETE FROM {t} WHERE id % 90 = 4"
            ))
            .unwrap();
        }
        exact(&cluster, &mut c);
        c.execute("SELECT strata.to_hot('w')", &[]).unwrap();
        exact(&cluster, &mut c);
    }
}

#[test]
fn a_move_that_fails_leaves_the_table_as_it_was() {
    let cluster = Cluster::start().unwrap();
    let mut c = cluster.connect().unwrap();
    tables(&mut c);
    for point in MOVE_POINTS {
        c.batch_execute(&format!("SET strata.failpoint = '{point}=error'")).unwrap();
        let (_, said) = checks::failure(&mut c, "SELECT strata.to_warm('w')").unwrap();
        assert!(said.contains(point), "{said}");
        c.batch_execute("RESET strata.failpoint").unwrap();
        exact(&cluster, &mut c);
    }
    checks::rewarm(&mut c, "w").unwrap();
    exact(&cluster, &mut c);
}

/// Rows that are deleted beside a move are left out of it; when it fails after that, the next one does not leave out others in their place.
#[test]
fn a_move_that_fails_after_rows_went_beside_it_leaves_no_trace() {
    let cluster = Cluster::start().unwrap();
    let mut c = cluster.connect().unwrap();
    tables(&mut c);
    for end in ["error", "kill"] {
        let mut mover = cluster.connect().unwrap();
        let moving = std::thread::spawn(move || {
            mover.batch_execute(&format!(
                "SET strata.failpoint = 'move:before_swap=sleep:1500,move:before_commit={end}'; SELECT strata.to_warm('w')"
            ))
        });
        let copying =
            "SELECT count(*) FROM pg_locks WHERE relation = 'w'::regclass AND mode = 'ShareUpdateExclusiveLock'";
        wait_for("the move to begin", LIMIT, || twin::value(&mut c, copying).is_ok_and(|n| n == "1")).unwrap();
        std::thread::sleep(Duration::from_millis(700));
        for t in ["w", "h"] {
            c.batch_execute(&format!("DELETE FROM {t} WHERE id IN (SELECT id FROM {t} ORDER BY id LIMIT 500)"))
                .unwrap();
        }
        assert!(moving.join().unwrap().is_err(), "the failpoint was not reached");
        std::thread::sleep(Duration::from_millis(300));
        cluster.wait_ready(LIMIT).unwrap();
        c = cluster.connect().unwrap();
        // Not `exact`: a sweep would tidy up what must do no harm.
        twin::assert_same(&mut c, "w", "h").unwrap();
    }
    c.execute("SELECT strata.to_warm('w')", &[]).unwrap();
    exact(&cluster, &mut c);
}

/// Kill and error, in a move back and in a consolidation: with rows that are to be left out, absorbed and kept.
#[test]
fn a_move_back_and_a_consolidation_that_end_in_the_middle_change_nothing() {
    let cluster = Cluster::start().unwrap();
    let mut c = cluster.connect().unwrap();
    tables(&mut c);
    c.batch_execute("CREATE INDEX ON w ((k + 1)); CREATE INDEX ON h ((k + 1)); SET strata.fragment_rows = 300")
        .unwrap();
    checks::rewarm(&mut c, "w").unwrap();
    c.execute("SELECT strata.to_hot('w')", &[]).unwrap();
    let work = [
        ("SELECT strata.to_hot('w')", ["move:before_swap", "move:before_commit"].as_slice()),
        (
            "SELECT strata.consolidate('w')",
            ["move:fragment_written", "consolidate:before_swap", "consolidate:before_commit"].as_slice(),
        ),
    ];
    for (round, (statement, points)) in work.into_iter().enumerate() {
        for (n, point) in points.iter().enumerate() {
            let mut c = cluster.connect().unwrap();
            c.batch_execute("SET strata.fragment_rows = 300; SET strata.consolidate_threshold = 0.02").unwrap();
            checks::rewarm(&mut c, "w").unwrap();
            for t in ["w", "h"] {
                c.batch_execute(&format!(
                    "UPDATE {t} SET v = v || '!', k = k + 1 WHERE id % 40 = {n}; DELETE FROM {t} WHERE id % 90 = {n};
                     INSERT INTO {t} SELECT g, 7, 'late' FROM generate_series({0}, {0} + 50) g",
                    10_000 + round * 1000 + n * 100
                ))
                .unwrap();
            }
            exact(&cluster, &mut c);
            let marks = twin::value(&mut c, "SELECT count(*) FROM strata.deletion").unwrap();
            let same = |c: &mut Client| {
                exact(&cluster, c);
                assert_eq!(
                    twin::value(c, "SELECT count(*) FROM strata.deletion").unwrap(),
                    marks,
                    "{statement} {point}"
                );
                let by_index =
                    |t: &str| format!("SET enable_seqscan = off; SELECT count(*), sum(id) FROM {t} WHERE k + 1 = 9");
                let (w, h) = (script::outcome(c, &by_index("w")).unwrap(), script::outcome(c, &by_index("h")).unwrap());
                assert_eq!(w, h, "{statement} {point}");
            };
            let settings = "SET strata.fragment_rows = 300; SET strata.consolidate_threshold = 0.02";
            c.batch_execute(&format!("SET strata.failpoint = '{point}=error'")).unwrap();
            let (_, said) = checks::failure(&mut c, statement).unwrap();
            assert!(said.contains(point), "{said}");
            c.batch_execute("RESET strata.failpoint").unwrap();
            same(&mut c);
            drop(c);
            let mut c = dies(&cluster, &format!("{settings}; SET strata.failpoint = '{point}=kill'; {statement}"));
            same(&mut c);
            c.batch_execute(settings).unwrap();
            c.execute(statement, &[]).unwrap();
            exact(&cluster, &mut c);
        }
    }
}

#[test]
fn a_promotion_that_is_killed_loses_and_doubles_nothing() {
    let cluster = Cluster::start().unwrap();
    let mut c = cluster.connect().unwrap();
    tables(&mut c);
    checks::rewarm(&mut c, "w").unwrap();
    drop(c);
    let mut id = 10;
    for promoter in ["on", "off"] {
        for point in ["promote:inserted", "promote:marked", "promote:before_commit"] {
            for (change, twin_change) in [
                (format!("UPDATE w SET v = 'x' WHERE id = {id}"), format!("UPDATE h SET v = 'x' WHERE id = {id}")),
                (format!("DELETE FROM w WHERE id = {}", id + 1), format!("DELETE FROM h WHERE id = {}", id + 1)),
            ] {
                cluster
                    .connect()
                    .unwrap()
                    .batch_execute(&format!("ALTER SYSTEM SET strata.enable_promoter = {promoter}"))
                    .unwrap();
                set_failpoint(&cluster, &format!("{point}=kill"));
                let mut c = dies(&cluster, &change);
                drop(std::mem::replace(&mut c, {
                    set_failpoint(&cluster, "");
                    cluster.connect().unwrap()
                }));
                exact(&cluster, &mut c);
                c.batch_execute(&format!("{change}; {twin_change}")).unwrap();
                exact(&cluster, &mut c);
            }
            id += 10;
        }
    }
    // A lock is a promotion as well.
    set_failpoint(&cluster, "promote:marked=kill");
    let mut c = dies(&cluster, &format!("SELECT * FROM w WHERE id = {id} FOR UPDATE"));
    set_failpoint(&cluster, "");
    exact(&cluster, &mut c);
}

#[test]
fn a_drop_that_is_killed_is_a_drop_and_its_files_go() {
    let cluster = Cluster::start().unwrap();
    let mut c = cluster.connect().unwrap();
    tables(&mut c);
    c.batch_execute("CREATE TABLE d (id int PRIMARY KEY, v text); INSERT INTO d SELECT i, md5(i::text) FROM generate_series(1, 1000) i").unwrap();
    checks::rewarm(&mut c, "w").unwrap();
    checks::rewarm(&mut c, "d").unwrap();
    drop(c);

    // The drop commits, and the server dies before anything could remove the files.
    let before = cluster.fragment_files().len();
    let mut c = cluster.connect().unwrap();
    c.batch_execute("DROP TABLE d").unwrap();
    cluster.crash().unwrap();
    // The sweep's transaction commits, and the server dies before it removes the files.
    let mut c = dies(&cluster, "SET strata.failpoint = 'drop:committed=kill'; SELECT strata.sweep(0)");
    assert_eq!(cluster.fragment_files().len(), before, "nothing was removed yet");
    assert_eq!(checks::failure(&mut c, "SELECT * FROM d").unwrap().0, "42P01");
    exact(&cluster, &mut c);
    assert!(cluster.fragment_files().len() < before);

    c.batch_execute("CREATE TABLE d AS SELECT i AS id FROM generate_series(1, 1000) i").unwrap();
    checks::rewarm(&mut c, "d").unwrap();
    let before = cluster.fragment_files().len();
    c.batch_execute("BEGIN; DROP TABLE d; ROLLBACK").unwrap();
    assert_eq!(cluster.fragment_files().len(), before, "a drop that is rolled back removes nothing");
    c.batch_execute("BEGIN; TRUNCATE d").unwrap();
    cluster.crash().unwrap();
    let mut c = cluster.connect().unwrap();
    assert_eq!(
        twin::value(&mut c, "SELECT count(*) FROM d").unwrap(),
        "1000",
        "an open TRUNCATE that is killed did nothing"
    );
    c.batch_execute("TRUNCATE d").unwrap();
    cluster.crash().unwrap();
    let mut c = cluster.connect().unwrap();
    assert_eq!(twin::value(&mut c, "SELECT count(*) FROM d").unwrap(), "0");
    exact(&cluster, &mut c);
    c.batch_execute("DROP TABLE d").unwrap();
    exact(&cluster, &mut c);
}

/// Changes `w` and `h` alike, one transaction after the other, until told to stop; an error ends it only when the
/// connection is gone. Each transaction notes its number in `done`, in the same transaction.
fn writer(dsn: &str, worker: u64, round: u64, stop: &AtomicBool, acknowledged: &AtomicU64) {
    let Ok(mut c) = Client::connect(dsn, postgres::NoTls) else {
        return;
    };
    let mut r = StdRng::seed_from_u64(round * 100 + worker);
    let mut n = acknowledged.load(Ordering::SeqCst);
    while !stop.load(Ordering::SeqCst) {
        n += 1;
        // Workers keep to rows of their own: what they do to the twins is then the same in any order.
        let id = r.random_range(0..500) * 4 + worker;
        let change = |t: &str| match n % 5 {
            0 => format!("DELETE FROM {t} WHERE id = {id}"),
            1 => format!("INSERT INTO {t} VALUES ({id}, 1, 'n{n}') ON CONFLICT (id) DO UPDATE SET v = 'c{n}'"),
            2 => format!(
                "SAVEPOINT s; UPDATE {t} SET v = 'gone' WHERE id = {id}; ROLLBACK TO s; UPDATE {t} SET k = k + 1 WHERE id = {id}"
            ),
            _ => format!("UPDATE {t} SET v = 'u{n}' WHERE id = {id}"),
        };
        let sql =
            format!("BEGIN; {}; {}; UPDATE done SET n = {n} WHERE worker = {worker}; COMMIT", change("w"), change("h"));
        match c.batch_execute(&sql) {
            Ok(()) => acknowledged.store(n, Ordering::SeqCst),
            Err(error) if error.code().is_some_and(|c| !c.code().starts_with("57")) => {
                // A deadlock or a serialization failure with a move is fine, but the connection must live on.
                let code = sqlstate(&error);
                assert!(code.starts_with("40"), "{sql}: {error:?}");
                c.batch_execute("ROLLBACK").unwrap();
                n -= 1;
            }
            Err(_) => return,
        }
    }
}

#[test]
fn random_kills_under_load_lose_no_commit() {
    let cluster = Cluster::with(Options::new().set("max_wal_size", "64MB")).unwrap();
    let mut c = cluster.connect().unwrap();
    tables(&mut c);
    c.batch_execute("CREATE TABLE done (worker int PRIMARY KEY, n bigint); INSERT INTO done SELECT i, 0 FROM generate_series(0, 3) i").unwrap();
    checks::rewarm(&mut c, "w").unwrap();
    drop(c);
    let acknowledged: Vec<Arc<AtomicU64>> = (0..4).map(|_| Arc::new(AtomicU64::new(0))).collect();
    let mut r = StdRng::seed_from_u64(7);
    for round in 0..5 {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads: Vec<_> = (0..4u64)
            .map(|worker| {
                let (dsn, stop, acknowledged) =
                    (cluster.dsn("postgres"), stop.clone(), acknowledged[worker as usize].clone());
                std::thread::spawn(move || writer(&dsn, worker, round, &stop, &acknowledged))
            })
            .collect();
        let (dsn, flag) = (cluster.dsn("postgres"), stop.clone());
        threads.push(std::thread::spawn(move || {
            let Ok(mut c) = Client::connect(&dsn, postgres::NoTls) else {
                return;
            };
            while !flag.load(Ordering::SeqCst) {
                for sql in [
                    "SELECT strata.consolidate('w')",
                    "SELECT strata.to_hot('w')",
                    "SELECT strata.to_warm('w')",
                    "VACUUM w",
                ] {
                    if c.batch_execute(sql).is_err_and(|e| e.is_closed() || e.code().is_none()) {
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }));
        std::thread::sleep(Duration::from_millis(r.random_range(800..2500)));
        cluster.kill9().unwrap();
        stop.store(true, Ordering::SeqCst);
        threads.into_iter().for_each(|t| t.join().unwrap());
        cluster.up().unwrap();
        let mut c = cluster.connect().unwrap();
        for (worker, acknowledged) in acknowledged.iter().enumerate() {
            let n: i64 = c.query_one(&format!("SELECT n FROM done WHERE worker = {worker}"), &[]).unwrap().get(0);
            let heard = acknowledged.load(Ordering::SeqCst) as i64;
            assert!(n == heard || n == heard + 1, "worker {worker}: acknowledged {heard}, recovered {n}");
            acknowledged.store(n as u64, Ordering::SeqCst);
        }
        exact(&cluster, &mut c);
    }
    assert!(acknowledged.iter().all(|a| a.load(Ordering::SeqCst) > 10), "the load did something: {acknowledged:?}");
}
