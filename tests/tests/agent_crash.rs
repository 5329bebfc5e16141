//! kill -9 of the agent in the middle of a backup, and of the archive command in the middle of WAL archiving: nothing is
//! lost, nothing is half there, and the next run succeeds.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::time::{Duration, Instant};
use strata_tests::process::{self, kill9, wait_for};
use strata_tests::{Agent, Cluster, Options, Strata, checks, recovered, twin};

fn prepared() -> (Cluster, Strata) {
    let cluster = Cluster::with(Options::new().archiving().set("max_wal_size", "2GB")).unwrap();
    let mut c = cluster.connect().unwrap();
    for t in ["w", "h"] {
        c.batch_execute(&format!(
            "CREATE TABLE {t} (id int PRIMARY KEY, v text); INSERT INTO {t} SELECT i, md5(i::text) FROM generate_series(1, 200000) i"
        ))
        .unwrap();
    }
    checks::rewarm(&mut c, "w").unwrap();
    let strata = Strata::configure(&cluster).unwrap();
    strata.archive(&cluster).unwrap();
    (cluster, strata)
}

#[test]
fn an_agent_that_is_killed_during_a_backup_leaves_nothing_half_done() {
    let (cluster, strata) = prepared();
    let mut r = StdRng::seed_from_u64(3);
    let mut killed = 0;
    for _ in 0..5 {
        let agent = Agent::start(&cluster, &strata).unwrap();
        let dsn = cluster.dsn("postgres");
        let asked = std::thread::spawn(move || {
            let mut c = postgres::Client::connect(&dsn, postgres::NoTls).unwrap();
            c.query_one("SELECT strata.backup()", &[]).map(|_| ()).map_err(|e| checks::sqlstate(&e))
        });
        std::thread::sleep(Duration::from_millis(r.random_range(50..900)));
        agent.kill9();
        if let Err(code) = asked.join().unwrap() {
            assert_eq!(code, "58000", "the function says that the agent went away");
            killed += 1;
        }
    }
    assert!(killed > 0, "at least one backup was killed");
    let _agent = Agent::start(&cluster, &strata).unwrap();
    let mut c = cluster.connect().unwrap();
    for t in ["w", "h"] {
        c.batch_execute(&format!("UPDATE {t} SET v = 'x' WHERE id % 5000 = 0")).unwrap();
    }
    c.execute("SELECT strata.backup()", &[]).unwrap();
    assert_eq!(strata.run(&["verify"]).unwrap().code, 0);
    let states = twin::rows(&mut c, "SELECT state, count(*) FROM strata.backups GROUP BY state").unwrap();
    assert!(
        !states.iter().any(|r| r[0].as_deref() == Some("running")),
        "no backup of a dead agent looks alive: {states:?}"
    );
    let jobs =
        twin::rows(&mut c, "SELECT job_id FROM strata.jobs WHERE kind = 'backup' AND state = 'running'").unwrap();
    assert!(jobs.is_empty(), "no job of a dead agent looks alive: {jobs:?}");
    assert_eq!(twin::value(&mut c, "SELECT pg_is_in_recovery()").unwrap(), "f");
    let back = recovered::recover(&strata, "latest", &["--full"]).unwrap();
    let mut b = back.cluster.connect().unwrap();
    twin::assert_same(&mut b, "w", "h").unwrap();
    checks::key_is_exact(&mut b, "w", "id").unwrap();
}

#[test]
fn an_archive_command_that_is_killed_loses_no_wal() {
    let (cluster, strata) = prepared();
    let mut c = cluster.connect().unwrap();
    let agent = Agent::start(&cluster, &strata).unwrap();
    c.execute("SELECT strata.backup()", &[]).unwrap();
    let mut kills = 0;
    let end = Instant::now() + Duration::from_secs(12);
    let mut n = 0;
    while Instant::now() < end {
        n += 1;
        for t in ["w", "h"] {
            c.batch_execute(&format!("UPDATE {t} SET v = 'u{n}' WHERE id % 40 = {}; INSERT INTO {t} SELECT 1000000 + {n} * 1000 + g, 'n' FROM generate_series(1, 500) g", n % 40)).unwrap();
        }
        c.batch_execute("SELECT pg_switch_wal()").unwrap();
        let until = Instant::now() + Duration::from_millis(300);
        while Instant::now() < until {
            for pid in pushers(&cluster) {
                kill9(pid);
                kills += 1;
            }
            std::thread::sleep(Duration::from_millis(1));
            if kills % 3 == 2 {
                // Let some of them through.
                std::thread::sleep(Duration::from_millis(40));
            }
        }
    }
    println!("killed {kills} archive commands");
    assert!(kills > 0);
    // A killed archive command ends PostgreSQL's archiver. The postmaster starts another one after ten seconds at the earliest,
    // but only looks when something happens: a connection, for example.
    wait_for("the archiver to come back", Duration::from_secs(60), || {
        cluster.connect().is_ok_and(|mut new| {
            let archivers = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'archiver'";
            twin::value(&mut new, archivers).is_ok_and(|n| n == "1")
        })
    })
    .unwrap();
    c = cluster.connect().unwrap();
    recovered::wait_archived(&mut c).unwrap();
    drop(agent);
    assert_eq!(strata.run(&["verify"]).unwrap().code, 0);
    let back = recovered::recover(&strata, "latest", &[]).unwrap();
    let mut b = back.cluster.connect().unwrap();
    twin::assert_same(&mut b, "w", "h").unwrap();
}

/// Running `strata … wal push` processes of this cluster.
fn pushers(cluster: &Cluster) -> Vec<i32> {
    let Some(postmaster) = cluster.postmaster() else { return Vec::new() };
    process::descendants(postmaster)
        .into_iter()
        .filter(|pid| {
            std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
                let line = String::from_utf8_lossy(&line).into_owned();
                line.starts_with(&*strata_tests::sidecar::program().to_string_lossy()) && line.contains("push")
            })
        })
        .collect()
}
