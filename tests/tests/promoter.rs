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
        scope.spawn(move || user.batch_execute("UPDATE w SET v = 'x' WHERE id = 5").unwrap_err());
        let promoting = "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
                         WHERE backend_type = 'strata promoter' AND locktype = 'tuple'";
        wait_for("the promoter to begin", LIMIT, || twin::value(&mut c, promoting).is_ok_and(|n| n == "1")).unwrap();
        c.batch_execute(&format!("SELECT pg_terminate_backend({pid})")).unwrap();
        c.batch_execute("SELECT strata.consolidate('w')").unwrap();
        assert_eq!(twin::value(&mut c, promoting).unwrap(), "0", "the swap did not wait for the promotion");
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
