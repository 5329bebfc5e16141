//! Sessions that are ended while the promoter works for them.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use postgres::Client;
use std::time::Duration;
use strata_tests::process::wait_for;
use strata_tests::{Cluster, Options, checks, twin};

const LIMIT: Duration = Duration::from_secs(60);

/// Sets the failpoints of all processes.
fn fail_at(cluster: &Cluster, c: &mut Client, value: &str) {
    c.batch_execute(&format!("ALTER SYSTEM SET strata.failpoint = '{value}'")).unwrap();
    c.batch_execute("SELECT pg_reload_conf()").unwrap();
    wait_for("the parameter", LIMIT, || {
        twin::value(&mut cluster.connect().unwrap(), "SHOW strata.failpoint").is_ok_and(|v| v == value)
    })
    .unwrap();
}

/// The promoter relies on the lock of the session that it works for: a consolidation must not change the table's file meanwhile.
#[test]
fn a_session_that_is_ended_keeps_its_lock_until_the_promotion_is_through() {
    let options =
        Options::new().set("strata.policy_interval", "0").set("autovacuum", "off").set("strata.snapshot_wait", "0");
    let cluster = Cluster::with(options).unwrap();
    let mut c = cluster.connect().unwrap();
    for t in ["w", "h"] {
        c.batch_execute(&format!(
            "CREATE TABLE {t} (id int PRIMARY KEY, v text); INSERT INTO {t} SELECT i, 'v' || i FROM generate_series(1, 1000) i"
        ))
        .unwrap();
    }
    checks::rewarm(&mut c, "w").unwrap();
    for t in ["w", "h"] {
        // The consolidation absorbs them, so the table gets another file.
        c.batch_execute(&format!("INSERT INTO {t} SELECT i, 'late' FROM generate_series(2001, 2100) i")).unwrap();
    }
    fail_at(&cluster, &mut c, "promote:begun=sleep:4000");
    let file = "SELECT pg_relation_filenode('w')";
    let before = twin::value(&mut c, file).unwrap();
    let mut user = cluster.connect().unwrap();
    let pid = twin::value(&mut user, "SELECT pg_backend_pid()").unwrap();
    std::thread::scope(|scope| {
        let ended = scope.spawn(move || user.batch_execute("UPDATE w SET v = 'x' WHERE id = 5").is_err());
        let promoting = "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
                         WHERE backend_type = 'strata promoter' AND locktype = 'tuple'";
        wait_for("the promoter to begin", LIMIT, || {
            ended.is_finished() || twin::value(&mut c, promoting).is_ok_and(|n| n == "1")
        })
        .unwrap();
        c.batch_execute(&format!("SELECT pg_terminate_backend({pid})")).unwrap();
        c.batch_execute("SELECT strata.consolidate('w')").unwrap();
        assert_eq!(twin::value(&mut c, promoting).unwrap(), "0", "the swap did not wait for the promotion");
        if !ended.join().unwrap() {
            // On a machine that had stood still it was through already.
            c.batch_execute("UPDATE h SET v = 'x' WHERE id = 5").unwrap();
        }
    });
    assert_ne!(twin::value(&mut c, file).unwrap(), before);
    fail_at(&cluster, &mut c, "");
    twin::assert_same(&mut c, "w", "h").unwrap();
    for t in ["w", "h"] {
        cluster.connect().unwrap().batch_execute(&format!("UPDATE {t} SET v = 'y' WHERE id IN (5, 6)")).unwrap();
    }
    twin::assert_same(&mut c, "w", "h").unwrap();
    checks::store_is_exact(&cluster).unwrap();
}

/// A server with a table of 1,000 fragment rows that count, and a session.
fn counters() -> (Cluster, Client) {
    let cluster = Cluster::with(Options::new().set("strata.policy_interval", "0").set("autovacuum", "off")).unwrap();
    let mut c = cluster.connect().unwrap();
    c.batch_execute(
        "CREATE TABLE w (id int PRIMARY KEY, n int); INSERT INTO w SELECT i, 0 FROM generate_series(1, 1000) i",
    )
    .unwrap();
    checks::rewarm(&mut c, "w").unwrap();
    (cluster, c)
}

/// Limits are for the sessions of users: the promoter waits for a row as long as the session that asks would.
#[test]
fn a_limit_for_sessions_does_not_end_a_promotion() {
    let (cluster, mut c) = counters();
    c.batch_execute("ALTER DATABASE postgres SET lock_timeout = '10ms'").unwrap();
    let (mut first, mut second) = (cluster.connect().unwrap(), cluster.connect().unwrap());
    // The first promotes the row itself, and has its lock meanwhile; the second has the promoter wait for that lock.
    first.batch_execute("SET strata.enable_promoter = off; SET strata.failpoint = 'promote:begun=sleep:2000'").unwrap();
    second.batch_execute("SET lock_timeout = 0").unwrap();
    let update = "UPDATE w SET n = n + 1 WHERE id = 5";
    std::thread::scope(|scope| {
        scope.spawn(|| first.batch_execute(update).unwrap());
        let begun =
            "SELECT (SELECT count(*) FROM pg_locks WHERE locktype = 'tuple') + (SELECT count(*) FROM strata.deletion)";
        wait_for("the first to begin", LIMIT, || twin::value(&mut c, begun).is_ok_and(|n| n != "0")).unwrap();
        second.batch_execute(update).unwrap();
    });
    assert_eq!(twin::value(&mut c, "SELECT n FROM w WHERE id = 5").unwrap(), "2");
}

/// There are 64 places for requests. More sessions than that are ended while they ask for a row.
#[test]
fn sessions_that_are_ended_leave_their_place_to_others() {
    const SESSIONS: usize = 34;
    let (cluster, mut c) = counters();
    fail_at(&cluster, &mut c, "promote:inserted=sleep:2000");
    for round in 0..2 {
        let mut sessions: Vec<Client> = (0..SESSIONS).map(|_| cluster.connect().unwrap()).collect();
        std::thread::scope(|scope| {
            for (i, session) in sessions.iter_mut().enumerate() {
                let id = round * SESSIONS + i + 1;
                scope.spawn(move || session.batch_execute(&format!("UPDATE w SET n = 1 WHERE id = {id}")));
            }
            let asked = "SELECT count(DISTINCT pid) FROM pg_stat_activity LEFT JOIN pg_locks l USING (pid)
                         WHERE query LIKE 'UPDATE w%' AND (state = 'idle' OR l.relation = 'w'::regclass)";
            wait_for("all to ask", LIMIT, || twin::value(&mut c, asked).is_ok_and(|n| n == SESSIONS.to_string()))
                .unwrap();
            c.batch_execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'UPDATE w%'")
                .unwrap();
        });
        let left = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'UPDATE w%'";
        wait_for("all to end", LIMIT, || twin::value(&mut c, left).is_ok_and(|n| n == "0")).unwrap();
    }
    fail_at(&cluster, &mut c, "");
    // The promoter does it, in a transaction of its own (but not where it does not come up in time).
    let mut c = cluster.connect().unwrap();
    let promoted = (900..930).any(|id| {
        c.batch_execute(&format!("BEGIN; SELECT n FROM w WHERE id = {id} FOR UPDATE")).unwrap();
        let own = "SELECT count(*) FROM strata.deletion WHERE xmin::text = pg_current_xact_id()::text";
        let own = twin::value(&mut c, own).unwrap();
        c.batch_execute("COMMIT").unwrap();
        own == "0"
    });
    assert!(promoted, "no place is left");
    assert_eq!(twin::value(&mut c, "SELECT count(*) FROM w").unwrap(), "1000");
}
