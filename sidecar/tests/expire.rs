//! `strata expire` on a real server: what is kept comes back as it was, whatever kills the expire and when.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Server, files, kill9};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use strata_sidecar::repository::lock::Lock;

const DIGEST: &str = "SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0) FROM t";

struct Moment {
    time: String,
    lsn: String,
    digest: String,
}

/// Changes something, and remembers a moment behind it.
fn step(server: &Server, round: usize) -> Moment {
    server.sql(&format!(
        "UPDATE t SET v = '{round}' WHERE id % 17 = {round} % 17; INSERT INTO t VALUES (1000000 + {round}, 'x')"
    ));
    let digest = server.sql(DIGEST);
    let lsn = server.sql("SELECT pg_current_wal_insert_lsn()");
    std::thread::sleep(std::time::Duration::from_millis(20));
    let time = server.sql("SELECT clock_timestamp()");
    std::thread::sleep(std::time::Duration::from_millis(20));
    Moment { time, lsn, digest }
}

fn rules(server: &Server, rules: &str) {
    let text = std::fs::read_to_string(&server.config).unwrap();
    let text = text.split("[retention]").next().unwrap();
    std::fs::write(&server.config, format!("{text}[retention]\n{rules}\n")).unwrap();
}

/// A server with backups, and a moment before and after each.
fn filled(backups: usize) -> (Server, Vec<String>, Vec<Moment>) {
    let server = Server::start();
    server.create_catalog();
    server.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 3000) g");
    let (mut ids, mut moments) = (Vec::new(), Vec::new());
    for round in 0..backups {
        moments.push(step(&server, round * 2));
        ids.push(server.json(&["backup"])["id"].as_str().unwrap().to_owned());
        moments.push(step(&server, round * 2 + 1));
        server.archive();
    }
    (server, ids, moments)
}

fn recorded(server: &Server) -> Vec<String> {
    let info = server.json(&["info"]);
    info["backups"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn what_is_kept_comes_back_and_the_rest_is_gone() {
    let (server, ids, moments) = filled(4);
    server.run(&["expire"]).failed(3, "says nothing about what is kept");
    rules(&server, "keep_backups = 2");
    let before = files(&server.repository).len();
    let dry = server.json(&["expire", "--dry-run"]);
    assert_eq!(files(&server.repository).len(), before);
    let said = server.run(&["expire", "--dry-run"]).ok().out;
    assert!(said.contains("would be removed") && said.contains("keep_backups: number 2 of 2"), "{said}");
    let done = server.json(&["expire"]);
    assert_eq!(done["wal"]["remove"], dry["wal"]["remove"]);
    assert!(!done["wal"]["remove"].as_array().unwrap().is_empty());
    assert_eq!(recorded(&server), ids[2..]);
    assert_eq!(
        server.sql(
            "SELECT state || ' ' || (result ->> 'wal_files') FROM strata.job WHERE kind = 'expire' AND state = 'done'"
        ),
        format!("done {}", done["wal"]["remove"].as_array().unwrap().len())
    );
    server.run(&["verify"]).ok();
    // Both ends of what is kept, and what is before it.
    server.run(&["plan", "--to", &moments[4].time]).failed(1, "before the end of the first backup");
    for moment in [&moments[5], &moments[7]] {
        assert_eq!(server.recover(&moment.lsn, &[]).sql(DIGEST), moment.digest, "{}", moment.lsn);
    }
    assert_eq!(server.recover(&moments[6].time, &[]).sql(DIGEST), moments[6].digest);
    // A backup goes on as before.
    server.json(&["backup"]);
    server.run(&["verify"]).ok();
}

#[test]
fn an_expire_that_is_killed_anywhere_is_finished_by_the_next() {
    let (server, ids, moments) = filled(4);
    rules(&server, "keep_backups = 2");
    // The last one has a backup in between, after which an older copy of the repository would lack WAL.
    let points = [
        "expire:decided",
        "expire:entry",
        "expire:entry:2",
        "expire:manifest",
        "expire:wal",
        "expire:wal:3",
        "expire:removed",
        "expire:manifest:2",
    ];
    let copy = server.dir.join("copy");
    let clone = |from: &std::path::Path, to: &std::path::Path| {
        let _ = std::fs::remove_dir_all(to);
        assert!(std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
    };
    clone(&server.repository, &copy);
    for point in points {
        clone(&copy, &server.repository);
        let mut command = server.command(&["expire"]);
        let said = command.env("STRATA_FAILPOINT", point).stdin(Stdio::null()).output().unwrap();
        assert_ne!(said.status.code(), Some(0), "{point}: {said:?}");
        // Nothing that is in the catalog lacks anything.
        server.run(&["verify"]).ok();
        for moment in [&moments[5], &moments[7]] {
            server.run(&["plan", "--to", &moment.time]).ok();
        }
        // A backup in between is not kept from its work.
        if point == "expire:manifest:2" {
            server.json(&["backup"]);
        }
        server.json(&["expire"]);
        assert_eq!(recorded(&server).len(), 2, "{point}");
        let text = format!("{:?}", files(&server.repository));
        assert!(!text.contains("/expire.json") && !text.contains(&format!("backups/{}/", ids[0])), "{point}: {text}");
        server.run(&["verify"]).ok();
    }
    assert_eq!(server.recover("latest", &[]).sql(DIGEST), server.sql(DIGEST));
}

#[test]
fn killed_at_random_under_load_nothing_kept_is_lost() {
    let (server, _, _) = filled(2);
    rules(&server, "keep_backups = 2");
    let mut moments = Vec::new();
    for round in 0..10 {
        server.json(&["backup"]);
        moments.push(step(&server, 100 + round));
        server.archive();
        let mut child = server.command(&["expire"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(7 * round as u64));
        kill9(&mut child);
        server.run(&["verify"]).ok();
        server.run(&["plan", "--to", &moments[round].time]).ok();
    }
    server.json(&["expire"]);
    server.run(&["verify"]).ok();
    for moment in &moments[8..] {
        assert_eq!(server.recover(&moment.lsn, &[]).sql(DIGEST), moment.digest);
    }
}

#[test]
fn an_expire_and_a_backup_never_meet() {
    let (server, _, _) = filled(1);
    rules(&server, "keep_backups = 1");
    let lock = Lock::acquire(&server.file("backup.lock"), "the test").unwrap();
    server.run(&["expire"]).failed(5, "another process holds the lock");
    server.run(&["expire", "--dry-run"]).ok();
    drop(lock);
    let text = std::fs::read_to_string(&server.config).unwrap();
    std::fs::write(&server.config, text.replace("[repository]\n", "[repository]\nread_only = true\n")).unwrap();
    server.run(&["expire"]).failed(1, "read-only");
}

#[test]
fn a_backup_expires_when_it_shall() {
    let (server, ids, _) = filled(2);
    rules(&server, "keep_backups = 1\nautomatic = true");
    let backup = server.json(&["backup"]);
    assert_eq!(backup["expired"]["backups"], serde_json::json!(ids), "{backup}");
    assert_eq!(recorded(&server), [backup["id"].as_str().unwrap()]);
    server.run(&["verify"]).ok();
    assert_eq!(server.recover("latest", &[]).sql(DIGEST), server.sql(DIGEST));
}

/// PostgreSQL's programs, with a `pg_ctl` that waits for a file before it starts a server. Returns their directory.
fn slow_programs(server: &Server) -> std::path::PathBuf {
    let (dir, real) = (server.dir.join("bin"), common::bin());
    std::fs::create_dir(&dir).unwrap();
    for entry in std::fs::read_dir(&real).unwrap() {
        let name = entry.unwrap().file_name();
        if name != "pg_ctl" {
            std::os::unix::fs::symlink(real.join(&name), dir.join(&name)).unwrap();
        }
    }
    let (at, real) = (server.dir.display(), real.display());
    let script = format!(
        "#!/bin/sh\ntouch {at}/starting\nfor i in $(seq 1200); do [ -e {at}/go ] && break; sleep 0.05; done\nexec {real}/pg_ctl \"$@\"\n"
    );
    std::fs::write(dir.join("pg_ctl"), script).unwrap();
    std::fs::set_permissions(dir.join("pg_ctl"), std::fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

#[test]
fn nothing_is_expired_below_a_recovery() {
    let (server, ids, moments) = filled(3);
    rules(&server, "keep_backups = 1");
    let text = std::fs::read_to_string(&server.config).unwrap();
    let programs = format!("[member]\nbin_directory = \"{}\"\n", slow_programs(&server).display());
    std::fs::write(&server.config, text.replace("[member]\n", &programs)).unwrap();
    let begin = |name: &str| {
        let back =
            common::Recovered { dir: server.dir.join(name), sockets: server.dir.clone(), port: common::free_port() };
        let (into, port) = (back.dir.display().to_string(), back.port.to_string());
        let mut command = server.command(&["recover", "--to", &moments[1].lsn, "--into", &into, "--port", &port]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        common::wait_for("the recovery", || server.dir.join("starting").exists());
        (back, child)
    };
    let refused = || server.run(&["expire"]).failed(5, "a recovery of member \"one\" runs");
    // One that dies holds nothing.
    let (back, mut child) = begin("killed");
    refused();
    server.run(&["expire", "--dry-run"]).ok();
    kill9(&mut child);
    common::wait_for("the lock", || Lock::acquire(&server.file("recover.lock"), "the test").is_ok());
    drop(back);
    std::fs::remove_file(server.dir.join("starting")).unwrap();

    let (back, mut child) = begin("back");
    refused();
    // A backup does not mind, and expires another time.
    std::fs::write(&server.config, std::fs::read_to_string(&server.config).unwrap() + "automatic = true\n").unwrap();
    let backup = server.json(&["backup"]);
    assert!(backup["expired"]["error"].as_str().unwrap().contains("a recovery"), "{backup}");
    std::fs::write(server.dir.join("go"), "").unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(back.sql(DIGEST), moments[1].digest);
    // Its agent is done soon.
    common::wait_for("the expire", || server.run(&["expire"]).code == 0);
    assert_eq!(recorded(&server), [backup["id"].as_str().unwrap()], "{ids:?}");
    server.run(&["verify"]).ok();
}
