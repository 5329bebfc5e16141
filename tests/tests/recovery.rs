//! Recovery to ten random moments of a random workload, each compared with what the heap oracle recorded then; by time, by
//! LSN and to the latest; with moves, promotions, drops and a second backup in between. And moments of a timeline that was left.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use postgres::Client;
use rand::rngs::StdRng;
use rand::seq::index::sample;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use std::time::Duration;
use strata_tests::{Agent, Cluster, Options, Strata, checks, process, recovered, twin};

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

/// `w` and its heap twin `h`.
fn tables(c: &mut Client, rows: u32) {
    for t in ["w", "h"] {
        c.batch_execute(&format!(
            "CREATE TABLE {t} (id int PRIMARY KEY, k int, v text); INSERT INTO {t} SELECT i, i % 30, md5(i::text) FROM generate_series(1, {rows}) i"
        ))
        .unwrap();
    }
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
    tables(&mut c, 4000);
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

fn hashes(c: &mut Client) -> Vec<String> {
    c.query("SELECT hash FROM strata.fragment", &[]).unwrap().iter().map(|row| row.get(0)).collect()
}

/// The entries of the fragment log.
fn log(strata: &Strata) -> Vec<Value> {
    let files = process::files_below(strata.repository());
    let files = files.iter().filter(|file| file.to_string_lossy().contains("/fragment-log/"));
    let read = |file: &std::path::PathBuf| serde_json::from_slice::<Value>(&std::fs::read(file).ok()?).ok();
    files.filter_map(read).map(|mut sealed| sealed["content"].take()).collect()
}

/// The timelines on which a fragment's row was seen to be gone.
fn ends(entry: &Value) -> Vec<u64> {
    entry["dropped"].as_array().into_iter().flatten().map(|end| end["timeline"].as_u64().unwrap()).collect()
}

fn wait_log(strata: &Strata, hashes: &[String], is_it: impl Fn(&Value) -> bool) {
    process::wait_for("the fragment log", Duration::from_secs(60), || {
        let log = log(strata);
        hashes.iter().all(|hash| log.iter().any(|entry| entry["hash"] == **hash && is_it(entry)))
    })
    .unwrap_or_else(|e| panic!("{e:#}: {hashes:?}\n{:#?}", log(strata)));
}

/// Changes both tables in the same way.
fn both(c: &mut Client, value: &str, modulo: i32) {
    for t in ["w", "h"] {
        c.batch_execute(&format!("UPDATE {t} SET v = '{value}' WHERE id % {modulo} = 0")).unwrap();
    }
}

/// Moves the table anew, and has the rows of its old fragments removed.
fn renew(c: &mut Client) {
    checks::rewarm(c, "w").unwrap();
    c.execute("SELECT strata.sweep(0)", &[]).unwrap();
}

/// A server is recovered to an earlier moment and goes on in the same repository. What it never had, and what it has lost since, can be
/// recovered on the timeline that was left, before and after an expire that keeps that.
#[test]
fn a_timeline_that_was_left_keeps_its_fragments() {
    let cluster = Cluster::with(Options::new().archiving().set("strata.fragment_rows", "1500")).unwrap();
    let mut c = cluster.connect().unwrap();
    tables(&mut c, 3000);
    let (strata, agent) = Strata::with_agent(&cluster).unwrap();
    checks::rewarm(&mut c, "w").unwrap();
    let first = hashes(&mut c);
    c.execute("SELECT strata.backup()", &[]).unwrap();
    both(&mut c, "before", 50);
    let branch = oracle(&mut c, 0);
    both(&mut c, "behind", 60);
    // It needs fragments that both timelines had, and lost.
    let early = oracle(&mut c, 1);
    wait_log(&strata, &first, |_| true);
    renew(&mut c);
    let second = hashes(&mut c);
    assert!(second.iter().all(|hash| !first.contains(hash)), "{first:?} {second:?}");
    both(&mut c, "later", 70);
    // It needs fragments that the other timeline never had.
    let late = oracle(&mut c, 2);
    both(&mut c, "last", 80);
    wait_log(&strata, &first, |entry| ends(entry) == [1]);
    wait_log(&strata, &second, |entry| ends(entry).is_empty());
    recovered::wait_archived(&mut c).unwrap();
    drop(c);
    agent.stop();
    cluster.kill9().unwrap();

    let mut server = recovered::recover(&strata, &branch.lsn, &["--full"]).unwrap();
    assert!(server.fetched_all().unwrap(), "{}", server.said());
    let strata = Strata::configure_at(&server.cluster, strata.repository()).unwrap();
    server.cluster.connect().unwrap().batch_execute("ALTER SYSTEM SET archive_mode = on").unwrap();
    strata.archive(&server.cluster).unwrap();
    server.cluster.restart().unwrap();
    let agent = Agent::start(&server.cluster, &strata).unwrap();
    let mut c = server.cluster.connect().unwrap();
    assert_eq!(twin::digest(&mut c, "w").unwrap(), branch.digest);
    both(&mut c, "another way", 90);
    renew(&mut c);
    wait_log(&strata, &first, |entry| ends(entry) == [1, 2]);
    let third = hashes(&mut c);
    wait_log(&strata, &third, |entry| entry["timeline"] == 2 && ends(entry).is_empty());
    wait_log(&strata, &second, |entry| ends(entry).is_empty());
    c.execute("SELECT strata.backup()", &[]).unwrap();
    both(&mut c, "on", 100);
    recovered::wait_archived(&mut c).unwrap();

    let named = |moment: &Moment| -> Vec<String> {
        let plan = strata.json(&["plan", "--to", &moment.lsn, "--timeline", "1"]).unwrap();
        assert_eq!(plan["missing"], serde_json::json!([]));
        plan["fragment_list"].as_array().unwrap().iter().map(|one| one["hash"].as_str().unwrap().to_owned()).collect()
    };
    let come_back = |moment: &Moment, fragments: &[String]| {
        assert!(fragments.iter().all(|hash| named(moment).contains(hash)));
        let mut back = recovered::recover(&strata, &moment.lsn, &["--timeline", "1", "--full"]).unwrap();
        assert!(back.fetched_all().unwrap(), "{}", back.said());
        let mut c = back.cluster.connect().unwrap();
        assert_eq!(twin::digest(&mut c, "w").unwrap(), moment.digest, "step {}", moment.step);
        twin::assert_same(&mut c, "w", "h").unwrap();
    };
    come_back(&early, &first);
    come_back(&late, &second);
    let config = std::fs::read_to_string(strata.config()).unwrap();
    let expire = |rule: &str| {
        std::fs::write(strata.config(), format!("{config}[retention]\n{rule}\n")).unwrap();
        strata.run(&["expire"]).unwrap();
    };
    expire("recovery_window = \"1d\"");
    assert!(first.iter().all(|hash| named(&early).contains(hash)));
    come_back(&late, &second);
    // And they go with the last moment that needs them.
    expire("keep_backups = 1");
    let files = process::files_below(&strata.repository().join("systems/test/fragments"));
    let there = |hash: &String| files.iter().any(|file| file.to_string_lossy().contains(hash.as_str()));
    assert!(!first.iter().any(there) && !second.iter().any(there) && third.iter().all(there), "{files:?}");
    agent.stop();
    let mut back = recovered::recover(&strata, "latest", &["--full"]).unwrap();
    assert!(back.fetched_all().unwrap(), "{}", back.said());
    let mut other = back.cluster.connect().unwrap();
    twin::assert_same(&mut other, "w", "h").unwrap();
    assert_eq!(twin::digest(&mut other, "w").unwrap(), twin::digest(&mut c, "w").unwrap());
}
