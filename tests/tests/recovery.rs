//! Recovery to ten random moments of a random workload, each compared with what the heap oracle recorded then; by time, by
//! LSN and to the latest; with moves, promotions, drops and a second backup in between.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use postgres::Client;
use rand::rngs::StdRng;
use rand::seq::index::sample;
use rand::{Rng, SeedableRng};
use strata_tests::{Cluster, Options, Strata, checks, recovered, twin};

/// What the oracle knew after a step.
struct Moment {
    step: usize,
    time: String,
    lsn: String,
    /// Rows and digest of the heap twin.
    digest: (i64, String),
    /// Warm tables that were there: name and digest of their twins.
    extra: Option<(i64, String)>,
}

/// One transaction over the table that `{t}` stands for.
fn change(r: &mut StdRng, n: usize) -> String {
    let id = r.random_range(1..4000);
    match r.random_range(0..8) {
        0 => format!("INSERT INTO {{t}} SELECT 10000 + {n} * 100 + g, {n}, 'new ' || g FROM generate_series(0, 60) g"),
        1 => format!("DELETE FROM {{t}} WHERE id BETWEEN {id} AND {id} + 20"),
        2 => format!("INSERT INTO {{t}} VALUES ({id}, 1, 'up {n}') ON CONFLICT (id) DO UPDATE SET v = 'conflict {n}'"),
        3 => format!("UPDATE {{t}} SET v = 'undone' WHERE id > {id}; ROLLBACK TO s; DELETE FROM {{t}} WHERE id = {id}"),
        4 => format!("UPDATE {{t}} SET id = -id WHERE id = {id}"),
        _ => format!("UPDATE {{t}} SET v = 'step {n}', k = k + 1 WHERE id BETWEEN {id} AND {id} + 30"),
    }
}

fn oracle(c: &mut Client, step: usize) -> Moment {
    let digest = twin::digest(c, "h").unwrap();
    let there = twin::value(c, "SELECT to_regclass('h2') IS NOT NULL").unwrap() == "t";
    let extra = there.then(|| twin::digest(c, "h2").unwrap());
    // A commit is at this time and at this place in the log at the latest; the next one is later.
    let lsn = twin::value(c, "SELECT pg_current_wal_insert_lsn()").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    let time = twin::value(c, "SELECT clock_timestamp()").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    Moment { step, time, lsn, digest, extra }
}

#[test]
fn ten_random_moments_come_back_as_the_oracle_recorded_them() {
    let cluster = Cluster::with(Options::new().archiving().set("strata.fragment_rows", "1500")).unwrap();
    let mut c = cluster.connect().unwrap();
    for t in ["w", "h"] {
        c.batch_execute(&format!(
            "CREATE TABLE {t} (id int PRIMARY KEY, k int, v text); INSERT INTO {t} SELECT i, i % 30, md5(i::text) FROM generate_series(1, 4000) i"
        ))
        .unwrap();
    }
    let (strata, agent) = Strata::with_agent(&cluster).unwrap();
    strata.run(&["check"]).unwrap();
    checks::rewarm(&mut c, "w").unwrap();
    c.execute("SELECT strata.backup('first')", &[]).unwrap();

    let mut r = StdRng::seed_from_u64(20010101);
    let mut moments = Vec::new();
    for step in 0..60 {
        let sql = change(&mut r, step);
        c.batch_execute(&format!(
            "BEGIN; SAVEPOINT s; {}; SAVEPOINT s; {}; {}",
            sql.replace("{t}", "w"),
            sql.replace("{t}", "h"),
            if r.random_bool(0.9) { "COMMIT" } else { "ROLLBACK" }
        ))
        .unwrap();
        match step {
            12 | 41 => drop(checks::rewarm(&mut c, "w").unwrap()),
            20 => {
                c.batch_execute(
                    "CREATE TABLE w2 (id int PRIMARY KEY, v text); INSERT INTO w2 SELECT i, md5(i::text) FROM generate_series(1, 2000) i;
                     CREATE TABLE h2 AS TABLE w2",
                )
                .unwrap();
                checks::rewarm(&mut c, "w2").unwrap();
            }
            25 => drop(c.execute("SELECT strata.to_hot('w')", &[]).unwrap()),
            28 => drop(checks::rewarm(&mut c, "w").unwrap()),
            30 => drop(c.execute("SELECT strata.backup('second')", &[]).unwrap()),
            18 | 38 | 48 => {
                // Files that a recovery to an earlier moment needs are replaced.
                c.batch_execute(
                    "SET strata.fragment_rows = 400; SET strata.consolidate_threshold = 0.01; SELECT strata.consolidate('w')",
                )
                .unwrap();
            }
            35 => drop(c.execute("SELECT pg_switch_wal()", &[]).unwrap()),
            45 => c.batch_execute("DROP TABLE w2; DROP TABLE h2; SELECT strata.sweep(0)").unwrap(),
            50 => cluster.crash().map(|()| c = cluster.connect().unwrap()).unwrap(),
            _ => {}
        }
        moments.push(oracle(&mut c, step));
    }
    twin::assert_same(&mut c, "w", "h").unwrap();
    recovered::wait_archived(&mut c).unwrap();
    let last = oracle(&mut c, 60);
    recovered::wait_archived(&mut c).unwrap();
    drop(c);
    agent.stop();
    cluster.kill9().unwrap();
    std::fs::remove_dir_all(cluster.data()).unwrap();
    std::fs::remove_dir_all(cluster.store()).unwrap();

    let mut chosen: Vec<usize> = sample(&mut r, moments.len(), 10).into_vec();
    chosen.sort_unstable();
    for (i, &n) in chosen.iter().enumerate() {
        let m = &moments[n];
        let target = if i % 2 == 0 { &m.time } else { &m.lsn };
        come_back(&strata, target, m);
    }
    come_back(&strata, "latest", &last);
}

fn come_back(strata: &Strata, target: &str, m: &Moment) {
    let plan = strata.json(&["plan", "--to", target]).unwrap();
    let back =
        recovered::recover(strata, target, &[]).unwrap_or_else(|e| panic!("step {} ({target}): {e:#}\n{plan}", m.step));
    let mut c = back.cluster.connect().unwrap();
    let found = twin::digest(&mut c, "w").unwrap();
    assert_eq!(found, m.digest, "step {} ({target}): w is not what the oracle recorded", m.step);
    twin::assert_same(&mut c, "w", "h").unwrap();
    checks::key_is_exact(&mut c, "w", "id").unwrap();
    match &m.extra {
        Some(digest) => assert_eq!(&twin::digest(&mut c, "w2").unwrap(), digest, "step {} ({target}): w2", m.step),
        None => {
            assert_eq!(checks::failure(&mut c, "SELECT * FROM w2").unwrap().0, "42P01", "step {} ({target})", m.step)
        }
    }
    // Open for writing, on a timeline of its own, and not archiving into the old one's repository.
    c.batch_execute("UPDATE w SET v = 'after' WHERE id = (SELECT min(id) FROM w WHERE id > 0)").unwrap();
    assert_eq!(twin::value(&mut c, "SELECT pg_is_in_recovery()").unwrap(), "f");
    let archiving =
        twin::value(&mut c, "SELECT current_setting('archive_mode') || ' ' || current_setting('archive_command')")
            .unwrap();
    assert!(
        archiving.starts_with("off") || archiving.contains("disabled") || !archiving.contains("wal push"),
        "a recovered system archives: {archiving}"
    );
    println!(
        "step {:2} ({target}): {} rows, open in {:.1} s with {} fragments",
        m.step,
        m.digest.0,
        back.took.as_secs_f64(),
        back.fragments_when_open
    );
}
