//! Sessions that are ended while the promoter works for them.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::time::Duration;
use strata_tests::process::wait_for;
use strata_tests::{Cluster, Options, checks, twin};

const LIMIT: Duration = Duration::from_secs(60);

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
    let set = |c: &mut postgres::Client, value: &str| {
        c.batch_execute(&format!("ALTER SYSTEM SET strata.failpoint = '{value}'")).unwrap();
        c.batch_execute("SELECT pg_reload_conf()").unwrap();
        wait_for("the parameter", LIMIT, || {
            twin::value(&mut cluster.connect().unwrap(), "SHOW strata.failpoint").is_ok_and(|v| v == value)
        })
        .unwrap();
    };
    set(&mut c, "promote:begun=sleep:4000");
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
    set(&mut c, "");
    twin::assert_same(&mut c, "w", "h").unwrap();
    for t in ["w", "h"] {
        cluster.connect().unwrap().batch_execute(&format!("UPDATE {t} SET v = 'y' WHERE id IN (5, 6)")).unwrap();
    }
    twin::assert_same(&mut c, "w", "h").unwrap();
    checks::store_is_exact(&cluster).unwrap();
}

/// Limits are for the sessions of users: the promoter waits for a row as long as the session that asks would.
#[test]
fn a_limit_for_sessions_does_not_end_a_promotion() {
    let cluster = Cluster::with(Options::new().set("strata.policy_interval", "0").set("autovacuum", "off")).unwrap();
    let mut c = cluster.connect().unwrap();
    c.batch_execute(
        "CREATE TABLE w (id int PRIMARY KEY, n int); INSERT INTO w SELECT i, 0 FROM generate_series(1, 1000) i",
    )
    .unwrap();
    checks::rewarm(&mut c, "w").unwrap();
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
