//! Processes that die, and two that meet.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Server, files, kill9, wait_for};
use std::process::Stdio;

fn filled() -> Server {
    let server = Server::start();
    server.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, repeat(md5(g::text), 8) FROM generate_series(1, 150000) g");
    server
}

#[test]
fn a_backup_that_is_killed_leaves_nothing_half_recorded() {
    let server = filled();
    server.create_catalog();
    let backups = server.repository.join("systems/test/one/backups");
    for pause in [0, 5, 30, 80, 150] {
        let mut child = server.command(&["backup"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_for("the folder of the backup", || {
            std::fs::read_dir(&backups).is_ok_and(|mut entries| entries.next().is_some())
                || child.try_wait().unwrap().is_some()
        });
        std::thread::sleep(std::time::Duration::from_millis(pause));
        kill9(&mut child);
    }
    let recorded = server.json(&["info"])["backups"].as_array().unwrap().len();
    server.run(&["verify"]).ok();
    let backup = server.json(&["backup"]);
    let info = server.json(&["info"]);
    assert_eq!(info["backups"].as_array().unwrap().len(), recorded + 1);
    assert_eq!(info["unfinished_backups"], serde_json::json!([]), "the next backup clears what was left");
    assert_eq!(std::fs::read_dir(&backups).unwrap().count(), recorded + 1);
    assert_eq!(server.sql("SELECT count(*) FROM strata.backup WHERE state = 'running'"), "0");
    assert_eq!(
        server.sql(&format!("SELECT state FROM strata.backup WHERE backup_id = {}", backup["id"]).replace('"', "'")),
        "complete"
    );
    server.run(&["verify"]).ok();
    server.archive();
    let digest = server.sql("SELECT count(*), sum(hashtext(v)) FROM t");
    assert_eq!(server.recover("latest", &[]).sql("SELECT count(*), sum(hashtext(v)) FROM t"), digest);
}

#[test]
fn two_backups_never_meet() {
    let server = filled();
    server.json(&["backup"]);
    let lock = strata_sidecar::repository::lock::Lock::acquire(&server.file("backup.lock"), "the test").unwrap();
    server.run(&["backup"]).failed(5, "another process holds the lock");
    drop(lock);
    server.json(&["backup"]);
}

#[test]
fn a_push_that_is_killed_is_made_again() {
    let server = filled();
    server.json(&["backup"]);
    for round in 0..12 {
        server.sql(&format!("UPDATE t SET v = '{round}' WHERE id % 20 = {round}; SELECT pg_switch_wal()"));
        let postmaster = std::fs::read_to_string(server.data().join("postmaster.pid")).unwrap();
        let postmaster: u32 = postmaster.lines().next().unwrap().parse().unwrap();
        for pid in common::descendants(postmaster) {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if name.starts_with("strata") {
                let _ =
                    std::process::Command::new("kill").args(["-9", &pid.to_string()]).stderr(Stdio::null()).status();
            }
        }
    }
    server.archive();
    server.run(&["verify"]).ok();
    let digest = server.sql("SELECT count(*), sum(hashtext(v)) FROM t");
    assert_eq!(server.recover("latest", &[]).sql("SELECT count(*), sum(hashtext(v)) FROM t"), digest);
}

#[test]
fn archived_wal_is_never_overwritten() {
    let server = filled();
    let name = server.archive();
    let archived = server.file(&format!("{name}.zst"));
    let before = std::fs::read(&archived).unwrap();
    let copy = server.dir.join(&name);
    std::fs::write(&copy, zstd::stream::decode_all(before.as_slice()).unwrap()).unwrap();
    common::give(&copy);
    let push = ["wal", "push", copy.to_str().unwrap()];
    // The same again is fine, as after a crash of the server.
    let said = server.json(&push);
    assert_eq!(said["already_archived"], true, "{said}");
    let mut changed = std::fs::read(&copy).unwrap();
    let last = changed.len() - 1;
    changed[last] ^= 1;
    std::fs::write(&copy, &changed).unwrap();
    server.run(&push).failed(1, "is in the archive already");
    // Another cluster, a short file, and no WAL at all.
    let other = Server::start();
    other.sql("SELECT pg_switch_wal()");
    let foreign = files(&other.data().join("pg_wal")).into_iter().find(|f| f.file_name().unwrap().len() == 24).unwrap();
    server.run(&["wal", "push", foreign.to_str().unwrap()]).failed(1, "another PostgreSQL cluster");
    std::fs::write(&copy, &changed[..5000]).unwrap();
    server.run(&push).failed(6, &name);
    server.run(&["wal", "push", "/etc/hostname"]).failed(2, "/etc/hostname");
    assert_eq!(std::fs::read(&archived).unwrap(), before);
    // The fetch: what is there, and what is not.
    let target = server.dir.join("RECOVERYXLOG");
    server.run(&["wal", "fetch", &name, target.to_str().unwrap()]).ok();
    assert_eq!(std::fs::metadata(&target).unwrap().len(), 16 << 20);
    server.run(&["wal", "fetch", "0000000100000000000000FF", target.to_str().unwrap()]).failed(1, "not in the archive");
    common::flip(&archived);
    server.run(&["wal", "fetch", &name, target.to_str().unwrap()]).failed(6, &name);
}

#[test]
fn a_recovery_that_is_killed_leaves_nothing_that_opens_as_the_old_server() {
    let server = filled();
    // With these lines a directory that is started too early would fetch the log and archive as the old server.
    let fetch = format!("{} --config {} wal fetch %f %p", server.program().display(), server.config.display());
    server.sql(&format!("ALTER SYSTEM SET restore_command = '{fetch}'"));
    server.sql("ALTER SYSTEM SET archive_mode = 'on'");
    server.json(&["backup"]);
    server.sql("DELETE FROM t WHERE id % 3 = 0");
    server.archive();
    let digest = server.sql("SELECT count(*), sum(hashtext(v)) FROM t");
    server.down();
    for (point, opens) in [("recover:label", false), ("recover:configured", false), ("recover:armed", true)] {
        let port = common::free_port();
        let back =
            common::Recovered { dir: server.dir.join(point.replace(':', "-")), sockets: server.dir.clone(), port };
        let (into, port) = (back.dir.display().to_string(), port.to_string());
        let args = ["recover", "--to", "latest", "--into", &into, "--port", &port];
        let said = server.command(&args).env("STRATA_FAILPOINT", point).stdin(Stdio::null()).output().unwrap();
        assert_ne!(said.status.code(), Some(0), "{point}: {said:?}");
        let log = back.dir.with_extension("log");
        let started = common::as_user(common::bin().join("pg_ctl"))
            .args(["start", "-w", "-s", "-t", "60", "-D", &into, "-l"])
            .arg(&log)
            .args(["-o", &format!("-p {port}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        assert_eq!(started.success(), opens, "{point}: {text}");
        if opens {
            wait_for("the end of the recovery", || back.sql("SELECT pg_is_in_recovery()") == "f");
            assert_eq!(back.sql("SHOW archive_mode"), "off");
            assert_eq!(back.sql("SELECT count(*), sum(hashtext(v)) FROM t"), digest);
        } else {
            assert!(text.contains("checkpoint record"), "{point}: {text}");
            server.run(&args).failed(1, "is not empty");
        }
    }
}
