//! Physical standbys: reads while the primary moves, changes, consolidates, drops and sweeps; snapshots that are older than a move; stores of
//! their own, shared and cascading; promotion.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use postgres::Client;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::time::Duration;
use strata_tests::process::wait_for;
use strata_tests::{Agent, Cluster, Options, Strata, checks, twin};

fn quiet() -> Options {
    Options::new().set("strata.policy_interval", "0").set("autovacuum", "off").set("strata.fragment_rows", "1000")
}

/// A warm table `w` and its heap twin `h`, all of `w` in fragments.
fn tables(c: &mut Client) {
    for t in ["w", "h"] {
        c.batch_execute(&format!(
            "CREATE TABLE {t} (id int PRIMARY KEY, k int, v text);
             INSERT INTO {t} SELECT i, i % 30, md5(i::text) FROM generate_series(1, 4000) i;
             CREATE INDEX ON {t} USING hash (k)"
        ))
        .unwrap();
    }
    checks::rewarm(c, "w").unwrap();
}

/// The same statement on the warm table and on its twin, in one transaction.
fn both(c: &mut Client, sql: &str) {
    c.batch_execute(&format!("BEGIN; {}; {}; COMMIT", sql.replace("{t}", "w"), sql.replace("{t}", "h"))).unwrap();
}

/// In one snapshot, `w` and `h` are the same, by scan and by key.
fn same_in_one_snapshot(c: &mut Client) -> (i64, String) {
    c.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY").unwrap();
    twin::assert_same(c, "w", "h").unwrap();
    checks::key_is_exact(c, "w", "id").unwrap();
    let found = twin::digest(c, "w").unwrap();
    c.batch_execute("COMMIT").unwrap();
    found
}

fn change(r: &mut StdRng, n: usize) -> String {
    let id = r.random_range(1..4000);
    match r.random_range(0..6) {
        0 => format!("INSERT INTO {{t}} SELECT 10000 + {n} * 100 + g, {n}, 'new ' || g FROM generate_series(0, 60) g"),
        1 => format!("DELETE FROM {{t}} WHERE id BETWEEN {id} AND {id} + 200"),
        2 => format!("INSERT INTO {{t}} VALUES ({id}, 1, 'up {n}') ON CONFLICT (id) DO UPDATE SET v = 'conflict {n}'"),
        3 => format!("UPDATE {{t}} SET id = -id WHERE id = {id}"),
        _ => format!("UPDATE {{t}} SET v = 'step {n}', k = k + 1 WHERE id BETWEEN {id} AND {id} + 30"),
    }
}

/// The primary, a standby of it, a standby of that, each with a store of its own and an agent; everything that a primary does to a
/// warm table, looked at on both; then the standby is promoted and goes on, and the third follows it.
#[test]
fn standbys_with_stores_of_their_own_follow_and_take_over() {
    let primary = Cluster::with(quiet().archiving()).unwrap();
    let mut p = primary.connect().unwrap();
    tables(&mut p);
    let (strata, agent) = Strata::with_agent(&primary).unwrap();
    let standby = primary.standby(Options::default()).unwrap();
    let cascaded = standby.standby(Options::default()).unwrap();
    let followers: Vec<(&Cluster, Agent)> = [&standby, &cascaded]
        .into_iter()
        .map(|s| {
            let own = Strata::configure_at(s, strata.repository()).unwrap();
            (s, Agent::start(s, &own).unwrap())
        })
        .collect();

    let mut r = StdRng::seed_from_u64(3);
    for step in 0..24 {
        both(&mut p, &change(&mut r, step));
        match step % 8 {
            1 => drop(p.execute("SELECT strata.consolidate('w')", &[]).unwrap()),
            3 => drop(p.execute("SELECT strata.to_hot('w')", &[]).unwrap()),
            4 => drop(checks::rewarm(&mut p, "w").unwrap()),
            5 => drop(p.execute("SELECT strata.sweep(0)", &[]).unwrap()),
            6 => p.batch_execute("ALTER TABLE w ALTER v TYPE varchar; ALTER TABLE h ALTER v TYPE varchar").unwrap(),
            7 => ["VACUUM w", "VACUUM FULL w"].iter().for_each(|v| p.batch_execute(v).unwrap()),
            _ => {}
        }
        let expected = twin::digest(&mut p, "h").unwrap();
        for (s, _) in &followers {
            s.wait_replayed(&mut p).unwrap();
            let found = same_in_one_snapshot(&mut s.connect().unwrap());
            assert_eq!(found, expected, "step {step}: the standby in {} is somewhere else", s.dir().display());
        }
    }
    // What a standby may not do, it says as heap does.
    let mut s = standby.connect().unwrap();
    for wrong in ["UPDATE w SET k = 1", "SELECT * FROM w LIMIT 1 FOR UPDATE", "SELECT strata.to_hot('w')"] {
        assert_eq!(checks::failure(&mut s, wrong).unwrap().0, "25006", "{wrong}");
    }
    // All fragments come by themselves; those of which the primary has removed the row go.
    let complete = |c: &Cluster| {
        let mut client = c.connect().unwrap();
        client.execute("SELECT strata.sweep(0)", &[]).unwrap();
        let named = twin::rows(&mut client, "SELECT DISTINCT hash FROM strata.fragment ORDER BY 1").unwrap().len();
        c.fragment_files().len() == named && named > 0
    };
    for (s, agent) in &followers {
        wait_for("the store of a standby to be complete", Duration::from_secs(60), || complete(s))
            .unwrap_or_else(|e| panic!("{e:#}\n{}", agent.said()));
    }

    // The primary dies; its store and its repository's agent with it.
    let expected = twin::digest(&mut p, "h").unwrap();
    drop(p);
    agent.stop();
    primary.kill9().unwrap();
    standby.promote().unwrap();
    let mut p = standby.connect().unwrap();
    assert_eq!(same_in_one_snapshot(&mut p), expected);
    for step in 24..36 {
        both(&mut p, &change(&mut r, step));
        match step % 4 {
            1 => drop(p.execute("SELECT strata.consolidate('w')", &[]).unwrap()),
            2 => drop(checks::rewarm(&mut p, "w").unwrap()),
            3 => drop(p.execute("SELECT strata.sweep(0)", &[]).unwrap()),
            _ => {}
        }
        twin::assert_same(&mut p, "w", "h").unwrap();
        let expected = twin::digest(&mut p, "h").unwrap();
        cascaded.wait_replayed(&mut p).unwrap();
        assert_eq!(same_in_one_snapshot(&mut cascaded.connect().unwrap()), expected, "step {step}");
    }
    cascaded.wait_replayed(&mut p).unwrap();
    checks::store_is_exact(&standby).unwrap();
    // The new primary's agent goes on with the repository.
    let moved = "SELECT hash FROM strata.fragment ORDER BY fragment_id DESC LIMIT 1";
    let hash = twin::value(&mut p, moved).unwrap();
    wait_for("a fragment of the new primary in the repository", Duration::from_secs(30), || {
        strata.repository().join(format!("system/test/fragments/{}/{hash}.frag", &hash[..2])).exists()
            || strata_tests::process::files_below(strata.repository())
                .iter()
                .any(|f| f.to_string_lossy().ends_with(&format!("{hash}.frag")))
    })
    .unwrap();
}

/// What happens to the table while a standby has an old snapshot.
const SWAPS: [(&str, &str); 5] = [
    ("to_warm", "SELECT strata.to_hot('w'); {change}; SELECT strata.to_warm('w')"),
    ("to_hot", "{change}; SELECT strata.to_hot('w')"),
    ("consolidation of fragments", "{delete}; SELECT strata.consolidate('w')"),
    ("consolidation with the delta store", "{change}; SELECT strata.consolidate('w')"),
    ("a rewriting ALTER TABLE", "{change}; ALTER TABLE w ALTER k TYPE bigint; ALTER TABLE h ALTER k TYPE bigint"),
];

/// Changes both tables, swaps `w`, in several transactions.
fn swap(c: &mut Client, script: &str) {
    let change = "UPDATE {t} SET v = 'changed' WHERE id % 3 = 0; DELETE FROM {t} WHERE id % 7 = 0;
                  INSERT INTO {t} SELECT i, 0, 'late' FROM generate_series(5000, 5300) i";
    let delete = "DELETE FROM {t} WHERE id % 2 = 0";
    for statement in script.split(';').map(str::trim) {
        match statement {
            "{change}" => both(c, change),
            "{delete}" => both(c, delete),
            other => c.batch_execute(other).unwrap(),
        }
    }
}

/// A snapshot that a standby took before the rows of `w` changed, and that reads `w` for the first time after the swap, sees what its twin
/// shows it or is cancelled. Returns whether it was cancelled.
fn old_snapshot(primary: &Cluster, standby: &Cluster, name: &str, script: &str) -> bool {
    let mut p = primary.connect().unwrap();
    standby.wait_replayed(&mut p).unwrap();
    let mut s = standby.connect().unwrap();
    s.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY").unwrap();
    let then = twin::digest(&mut s, "h2").unwrap();
    swap(&mut p, script);
    let now = twin::digest(&mut p, "h").unwrap();
    assert_ne!(then, now, "{name}: nothing changed");
    standby.wait_replayed(&mut p).unwrap();
    match twin::digest(&mut s, "w") {
        Ok(found) => {
            assert_eq!(found, then, "{name}: the old snapshot sees something that never was");
            false
        }
        Err(error) => {
            // Cancelled in a statement, or, between two statements, the whole session.
            let code = error.downcast_ref::<postgres::Error>().map(checks::sqlstate).unwrap_or_default();
            assert!(["40001", "57P01", ""].contains(&code.as_str()), "{name}: {error:#}");
            assert!(standby.log().contains("conflict with recovery"), "{name}: {error:#}");
            true
        }
    }
}

/// `h2` is a copy of the rows that no swap changes: reading it takes the snapshot without a lock on `w` or `h`.
fn with_copy(c: &mut Client) {
    c.batch_execute("DROP TABLE IF EXISTS w, h, h2").unwrap();
    tables(c);
    c.batch_execute("CREATE TABLE h2 AS TABLE h").unwrap();
}

#[test]
fn a_snapshot_of_a_standby_that_is_older_than_a_swap_is_right_or_cancelled() {
    let primary = Cluster::with(quiet().set("strata.snapshot_wait", "0")).unwrap();
    let mut p = primary.connect().unwrap();
    let store = primary.store().to_path_buf();
    let standby =
        primary.standby(Options::default().store(&store).set("max_standby_streaming_delay", "100ms")).unwrap();
    for (name, script) in SWAPS {
        with_copy(&mut p);
        let cancelled = old_snapshot(&primary, &standby, name, script);
        // Each of these loses something that the snapshot would need.
        assert!(cancelled, "{name}: the standby was not told");
        same_in_one_snapshot(&mut standby.connect().unwrap());
    }
    drop(standby);
    let reporting = primary
        .standby(
            Options::default().store(&store).set("hot_standby_feedback", "on").set("wal_receiver_status_interval", "1"),
        )
        .unwrap();
    // A standby that reports its snapshots has them answered. (A rewriting ALTER TABLE asks nobody, on heap as well.)
    for (name, script) in &SWAPS[..4] {
        with_copy(&mut p);
        let reported = "SELECT count(*) FROM pg_stat_replication WHERE backend_xmin IS NOT NULL";
        wait_for("the standby to report", Duration::from_secs(20), || twin::value(&mut p, reported).unwrap() == "1")
            .unwrap();
        assert!(!held(&primary, &reporting, name, script), "{name}: cancelled although the primary knew of it");
        reporting.wait_replayed(&mut p).unwrap();
        same_in_one_snapshot(&mut reporting.connect().unwrap());
    }
}

/// [`old_snapshot`] once the primary knows of the snapshot.
fn held(primary: &Cluster, standby: &Cluster, name: &str, script: &str) -> bool {
    let mut p = primary.connect().unwrap();
    standby.wait_replayed(&mut p).unwrap();
    let mut s = standby.connect().unwrap();
    s.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY").unwrap();
    let then = twin::digest(&mut s, "h2").unwrap();
    let xmin = twin::value(&mut s, "SELECT txid_snapshot_xmin(txid_current_snapshot())").unwrap();
    // Transactions that are over move the horizon on, up to what the standby has reported.
    let reported =
        format!("SELECT backend_xmin::text = '{xmin}' FROM pg_stat_replication WHERE backend_xmin IS NOT NULL");
    wait_for("the standby to report its snapshot", Duration::from_secs(20), || {
        p.batch_execute("CREATE TABLE x (); DROP TABLE x").unwrap();
        twin::value(&mut p, &reported).is_ok_and(|v| v == "t")
    })
    .unwrap();
    swap(&mut p, script);
    standby.wait_replayed(&mut p).unwrap();
    match twin::digest(&mut s, "w") {
        Ok(found) => {
            assert_eq!(found, then, "{name}: the old snapshot sees something that never was");
            false
        }
        Err(_) => true,
    }
}

#[test]
fn a_swap_of_rows_that_a_standbys_snapshots_see_cancels_none_of_them() {
    let primary = Cluster::with(quiet()).unwrap();
    let mut p = primary.connect().unwrap();
    let standby =
        primary.standby(Options::default().store(primary.store()).set("max_standby_streaming_delay", "100ms")).unwrap();
    for (name, script) in &SWAPS[..4] {
        with_copy(&mut p);
        let (changes, last) = script.rsplit_once(';').unwrap();
        swap(&mut p, changes);
        standby.wait_replayed(&mut p).unwrap();
        let mut s = standby.connect().unwrap();
        s.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY").unwrap();
        let then = twin::digest(&mut s, "h").unwrap();
        // The horizon of the primary moves past the snapshot.
        p.batch_execute("CREATE TABLE x (); DROP TABLE x").unwrap();
        p.batch_execute(last).unwrap();
        standby.wait_replayed(&mut p).unwrap();
        assert_eq!(twin::digest(&mut s, "w").unwrap(), then, "{name}");
        s.batch_execute("COMMIT").unwrap();
        let conflicts = "SELECT sum(confl_snapshot + confl_lock) FROM pg_stat_database_conflicts";
        assert_eq!(twin::value(&mut s, conflicts).unwrap(), "0", "{name}");
    }
}

/// A standby reads the primary's store: files stay until it has replayed that they are not needed; after its promotion the old
/// primary removes none of the new one's.
#[test]
fn a_shared_store_keeps_what_a_standby_still_reads() {
    let primary = Cluster::with(quiet()).unwrap();
    let mut p = primary.connect().unwrap();
    tables(&mut p);
    let standby = primary.standby(Options::default().store(primary.store())).unwrap();
    standby.wait_replayed(&mut p).unwrap();
    let mut s = standby.connect().unwrap();
    let expected = same_in_one_snapshot(&mut s);

    s.execute("SELECT pg_wal_replay_pause()", &[]).unwrap();
    wait_for("replay to pause", Duration::from_secs(20), || {
        twin::value(&mut s, "SELECT pg_get_wal_replay_pause_state()").unwrap() == "paused"
    })
    .unwrap();
    both(&mut p, "DELETE FROM {t} WHERE id % 2 = 0");
    p.batch_execute("SELECT strata.consolidate('w')").unwrap();
    p.batch_execute("SELECT strata.to_hot('w'); SELECT strata.to_warm('w')").unwrap();
    let files = primary.fragment_files().len();
    for _ in 0..3 {
        p.execute("SELECT strata.sweep(0)", &[]).unwrap();
    }
    assert_eq!(primary.fragment_files().len(), files, "a file went that the standby may read");
    // A new session opens every file.
    assert_eq!(same_in_one_snapshot(&mut standby.connect().unwrap()), expected);
    assert_eq!(twin::value(&mut s, "SELECT strata.sweep(0)").unwrap(), "0", "a standby swept the primary's store");

    s.execute("SELECT pg_wal_replay_resume()", &[]).unwrap();
    standby.wait_replayed(&mut p).unwrap();
    let named = |c: &mut Client| twin::rows(c, "SELECT DISTINCT hash FROM strata.fragments").unwrap().len();
    wait_for("files that nobody needs to go", Duration::from_secs(30), || {
        p.execute("SELECT strata.sweep(0)", &[]).unwrap();
        primary.fragment_files().len() == named(&mut p)
    })
    .unwrap();
    standby.wait_replayed(&mut p).unwrap();
    same_in_one_snapshot(&mut standby.connect().unwrap());

    // A standby that is away holds files too, if it has a slot.
    p.batch_execute("SELECT pg_create_physical_replication_slot('away', true)").unwrap();
    standby.stop("fast").unwrap();
    both(&mut p, "DELETE FROM {t} WHERE id % 3 = 0");
    p.batch_execute("SELECT strata.consolidate('w')").unwrap();
    let files = primary.fragment_files().len();
    for _ in 0..3 {
        p.execute("SELECT strata.sweep(0)", &[]).unwrap();
    }
    assert_eq!(primary.fragment_files().len(), files, "a file went that a standby with a slot may need");
    p.batch_execute("SELECT pg_drop_replication_slot('away')").unwrap();
    p.execute("SELECT strata.sweep(0)", &[]).unwrap();
    assert!(primary.fragment_files().len() < files);

    // The standby takes over while the old primary still runs.
    standby.up().unwrap();
    standby.wait_replayed(&mut p).unwrap();
    standby.promote().unwrap();
    let mut s = standby.connect().unwrap();
    both(&mut s, "UPDATE {t} SET v = 'on the new timeline' WHERE id % 5 = 0");
    s.batch_execute("SELECT strata.to_hot('w'); SELECT strata.to_warm('w')").unwrap();
    let files = primary.fragment_files();
    assert_eq!(
        twin::value(&mut p, "SELECT strata.sweep(0)").unwrap(),
        "0",
        "the old primary swept the new one's store"
    );
    assert_eq!(primary.fragment_files(), files);
    twin::assert_same(&mut standby.connect().unwrap(), "w", "h").unwrap();
    s.execute("SELECT strata.sweep(0)", &[]).unwrap();
    twin::assert_same(&mut standby.connect().unwrap(), "w", "h").unwrap();
    assert_eq!(primary.fragment_files().len(), named(&mut s));
}

/// Two unrelated servers never write to one store.
#[test]
fn a_store_of_another_system_is_refused() {
    let one = Cluster::with(quiet()).unwrap();
    let mut c = one.connect().unwrap();
    tables(&mut c);
    let other = Cluster::with(quiet()).unwrap();
    let mut o = other.connect().unwrap();
    o.batch_execute(&format!("ALTER SYSTEM SET strata.store = '{}'", one.store().display())).unwrap();
    o.batch_execute("SELECT pg_reload_conf(); CREATE TABLE t AS SELECT 1 AS a").unwrap();
    let mut o = other.connect().unwrap();
    wait_for("the setting", Duration::from_secs(10), || {
        twin::value(&mut o, "SHOW strata.store").unwrap() == one.store().display().to_string()
    })
    .unwrap();
    let (code, text) = checks::failure(&mut o, "SELECT strata.to_warm('t')").unwrap();
    assert_eq!(code, "55000", "{text}");
    assert!(text.contains("primary"), "{text}");
    let files = one.fragment_files();
    assert_eq!(twin::value(&mut o, "SELECT strata.sweep(0)").unwrap(), "0");
    assert_eq!(one.fragment_files(), files);
    twin::assert_same(&mut c, "w", "h").unwrap();
}
