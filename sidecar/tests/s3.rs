//! A repository in a bucket, against a real S3 server: everything that works in a directory, and what can go wrong besides.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::s3::{S3, SECRET};
use common::{Server, add_fragment, files, kill9, promises, wait_for};
use serde_json::json;
use std::process::{Child, Stdio};
use std::time::Duration;
use strata_sidecar::ErrorKind;
use strata_sidecar::repository::fsio::Published;
use strata_sidecar::repository::storage::{Storage, bucket};

const DIGEST: &str = "SELECT count(*), coalesce(sum(hashtext(v)), 0) FROM t";

fn server(s3: &S3, retry: &str) -> Server {
    let server = Server::start_in("", None, Some(&s3.section("bucket", "repo/one", s3.secret(), retry)));
    server.sql("CREATE TABLE t (id bigint PRIMARY KEY, v text); INSERT INTO t SELECT g, repeat(md5(g::text), 8) FROM generate_series(1, 50000) g");
    server
}

/// Starts a backup and waits until its folder has something in it.
fn begun(s3: &S3, server: &Server) -> Child {
    let (storage, root) = s3.storage("repo/one");
    let backups = root.join("systems/test/one/backups");
    let before = storage.folders(&backups).unwrap().len();
    // Large enough that it does not end before it is seen.
    server.sql("INSERT INTO t SELECT g, md5(g::text || clock_timestamp()) || md5(random()::text) FROM generate_series((SELECT max(id) + 1 FROM t), (SELECT max(id) + 300000 FROM t)) g");
    let mut child = server.command(&["backup"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the folder of the backup", || {
        storage.folders(&backups).unwrap().len() > before || child.try_wait().unwrap().is_some()
    });
    child
}

#[test]
fn a_bucket_keeps_the_promises_of_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    promises::keeps_its_promises(&strata_sidecar::repository::storage::Storage::Directory, dir.path());
    let s3 = S3::start();
    let (storage, root) = s3.storage("promises");
    promises::keeps_its_promises(&storage, &root);
    let left: Vec<String> = storage.walk(&root).unwrap().iter().map(|one| one.path.display().to_string()).collect();
    let stays =
        ["s3://bucket/promises/lock", "s3://bucket/promises/lock.clock", "s3://bucket/promises/lock.shares.clock"];
    assert_eq!(left, stays, "a lock that was given up, and what the service was asked for its time with");
}

#[test]
fn an_upload_that_is_not_completed_leaves_nothing() {
    let s3 = S3::start();
    let (storage, root) = s3.storage("uploads");
    let Storage::Bucket(bucket) = &storage else { panic!("no bucket") };
    let begin = || {
        let mut upload = storage.create(&root.join("folder/object")).unwrap();
        upload.write_all(&vec![7; 20 << 20]).unwrap();
        upload
    };
    drop(begin());
    assert_eq!(bucket.sweep(&root, Duration::ZERO).unwrap(), 0, "it was aborted");
    // As in a process that dies.
    std::mem::forget(begin());
    assert_eq!(bucket.sweep(&root.join("elsewhere"), Duration::ZERO).unwrap(), 0);
    assert_eq!(bucket.sweep(&root, bucket::ABANDONED).unwrap(), 0, "it may still be going on");
    assert_eq!(bucket.sweep(&root, Duration::ZERO).unwrap(), 1);
    assert_eq!(bucket.sweep(&root, Duration::ZERO).unwrap(), 0);
    assert_eq!(storage.walk(&root).unwrap(), []);
}

/// What every lock relies on: of those who put the same name on the condition that nothing is there, or that it is as they saw it, one succeeds.
#[test]
fn of_many_who_take_a_lock_at_once_one_has_it() {
    let s3 = S3::start();
    let (storage, root) = s3.storage("race");
    for round in 0..15 {
        // A new name each time, and one that somebody gave up.
        for path in [root.join(format!("new-{round}")), root.join("again")] {
            let gate = std::sync::Barrier::new(4);
            let taken: Vec<_> = std::thread::scope(|scope| {
                let one = || {
                    gate.wait();
                    storage.lock(&path, "the test")
                };
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(one)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let held: Vec<_> = taken.iter().filter_map(|one| one.as_ref().ok()).collect();
            assert_eq!(held.len(), 1, "{}: {taken:?}", path.display());
            held[0].require_held().unwrap();
            for error in taken.iter().filter_map(|one| one.as_ref().err()) {
                assert_eq!(error.kind, ErrorKind::Locked);
            }
        }
    }
    // Of two who write the same name the second does not replace the first.
    let path = root.join("document");
    let gate = std::sync::Barrier::new(4);
    let new = std::thread::scope(|scope| {
        let one = |n: u8| {
            gate.wait();
            storage.write_new(&path, &[n; 100]).unwrap()
        };
        let threads: Vec<_> = (0..4).map(|n| scope.spawn(move || one(n))).collect();
        threads.into_iter().filter(|_| true).map(|t| t.join().unwrap()).filter(|p| *p == Published::New).count()
    });
    assert_eq!(new, 1);
}

/// No address with its signature, and no secret, is in a log, however much of it is asked for.
#[test]
fn nothing_secret_is_said() {
    let s3 = S3::start();
    let server = server(&s3, "20s");
    let mut command = server.command(&["backup"]);
    let said = common::Said::from(command.env("STRATA_LOG", "trace").output().unwrap()).ok();
    assert!(said.err.lines().count() > 20, "{}", said.err);
    for secret in [s3.secret(), "X-Amz-Signature", "X-Amz-Credential"] {
        assert!(!said.err.contains(secret) && !said.out.contains(secret), "{secret} is in {}", said.err);
    }
}

#[test]
fn the_whole_round() {
    let s3 = S3::start();
    let server = server(&s3, "60s");
    server.create_catalog();
    let hash = add_fragment(&server, 1);
    let first = server.json(&["backup", "--label", "first"]);
    assert_eq!(first["fragments_copied"], 1);
    server.sql("UPDATE t SET v = 'changed' WHERE id % 7 = 0");
    let second = server.json(&["backup"]);
    assert_eq!((&second["fragments"], &second["fragments_copied"]), (&json!(1), &json!(0)));
    server.sql("DELETE FROM t WHERE id % 11 = 0");
    server.archive();
    let digest = server.sql(DIGEST);
    server.json(&["verify"]);
    server.run(&["check"]).ok();
    let info = server.json(&["info"]);
    assert_eq!(info["backups"].as_array().unwrap().len(), 2);
    assert_eq!(info["repository"], "s3://bucket/repo/one");
    assert_eq!(info["fragments"], 1);

    for target in ["latest", second["id"].as_str().unwrap()] {
        let back = server.recover(target, &["--full"]);
        if target == "latest" {
            assert_eq!(back.sql(DIGEST), digest);
        }
        assert!(files(&back.store()).iter().any(|file| file.ends_with(format!("{}/{hash}.frag", &hash[..2]))));
    }

    let text = std::fs::read_to_string(&server.config).unwrap();
    std::fs::write(&server.config, format!("{text}\n[retention]\nkeep_backups = 1\n")).unwrap();
    server.json(&["expire"]);
    let info = server.json(&["info"]);
    assert_eq!(info["backups"].as_array().unwrap().len(), 1);
    assert_eq!(info["unfinished_backups"], json!([]));
    server.json(&["verify"]);
    assert_eq!(server.recover("latest", &["--full"]).sql(DIGEST), digest);
    let (storage, root) = s3.storage("repo/one");
    let left: Vec<String> = storage.walk(&root).unwrap().iter().map(|one| one.path.display().to_string()).collect();
    let locks: Vec<&str> = left.iter().filter(|path| path.contains(".lock")).map(|path| &path[21..]).collect();
    assert_eq!(locks, ["systems/test/one/backup.lock", "systems/test/one/recover.lock"], "{left:?}");
}

#[test]
fn what_is_wrong_with_the_bucket_is_named() {
    let mut s3 = S3::start();
    let server = server(&s3, "1s");
    server.json(&["backup"]);
    let text = std::fs::read_to_string(&server.config).unwrap();
    let with = |section: String| {
        let begin = text.find("s3 = ").unwrap();
        let end = begin + text[begin..].find('\n').unwrap();
        std::fs::write(&server.config, format!("{}{section}{}", &text[..begin], &text[end..])).unwrap();
    };
    with(s3.section("bucket", "repo/one", "ein-falscher-schluessel", "1s"));
    for command in [["info"], ["backup"], ["verify"]] {
        let said = server.run(&command).failed(3, "refused it");
        assert!(said.err.contains("credentials_file") && !said.err.contains("ein-falscher"), "{said:?}");
    }
    with(s3.section("no-such-bucket", "repo/one", s3.secret(), "1s"));
    let said = server.run(&["backup"]).failed(3, "no such bucket");
    assert!(!said.err.contains(SECRET), "{said:?}");
    with(s3.section("bucket", "elsewhere", s3.secret(), "1s"));
    server.run(&["info"]).failed(1, "there is no repository at \"s3://bucket/elsewhere\"");
    with(s3.section("bucket", "repo/one", s3.secret(), "1s"));
    s3.kill();
    for command in [["info"], ["backup"], ["verify"]] {
        server.run(&command).failed(4, "does not answer");
    }
    assert!(s3.up());
    server.json(&["verify"]);
}

#[test]
fn a_server_that_dies_in_a_backup_leaves_nothing_half_recorded() {
    let mut s3 = S3::start();
    let server = server(&s3, "1s");
    server.json(&["backup"]);
    let child = begun(&s3, &server);
    s3.kill();
    let said = common::Said::from(child.wait_with_output().unwrap());
    assert!(matches!(said.code, 4 | 5), "{said:?}");
    assert!(s3.up());
    assert_eq!(server.json(&["info"])["backups"].as_array().unwrap().len(), 1);
    // The lock of a process that is gone is nobody's.
    server.json(&["backup"]);
    let info = server.json(&["info"]);
    assert_eq!(info["backups"].as_array().unwrap().len(), 2);
    assert_eq!(info["unfinished_backups"], json!([]));
    server.archive();
    server.json(&["verify"]);
    let digest = server.sql(DIGEST);
    assert_eq!(server.recover("latest", &[]).sql(DIGEST), digest);
}

#[test]
fn two_backups_never_meet_and_a_dead_one_is_followed() {
    let s3 = S3::start();
    let server = server(&s3, "20s");
    server.json(&["backup"]);
    let (storage, root) = s3.storage("repo/one");
    let path = root.join("systems/test/one/backup.lock");
    let lock = storage.lock(&path, "the test").unwrap();
    let said = server.run(&["backup"]).failed(5, "another process holds the lock");
    assert!(said.err.contains(&format!("process {}", std::process::id())), "{said:?}");
    lock.require_held().unwrap();
    drop(lock);
    let mut child = begun(&s3, &server);
    kill9(&mut child);
    server.json(&["backup"]);
    assert_eq!(server.json(&["info"])["unfinished_backups"], json!([]));
    // Whoever lost his lock to another one is told by the service, and does not take it from that one.
    let lost = storage.lock(&path, "the test").unwrap();
    storage.remove(&path).unwrap();
    let other = storage.lock(&path, "the test").unwrap();
    wait_for("the loss", || lost.require_held().is_err());
    drop(lost);
    other.require_held().unwrap();
    assert_eq!(storage.lock(&path, "the test").unwrap_err().kind, ErrorKind::Locked);
}

#[test]
fn what_is_cut_off_changed_or_lost_is_found() {
    let s3 = S3::start();
    let server = server(&s3, "20s");
    server.create_catalog();
    let hash = add_fragment(&server, 1);
    server.json(&["backup"]);
    // One that another one follows: that the newest was ever there, nothing says.
    let segment = server.archive();
    server.archive();
    server.json(&["verify"]);
    let (storage, root) = s3.storage("repo/one");
    let find = |part: &str| {
        let all = storage.walk(&root).unwrap();
        all.into_iter()
            .find(|one| one.path.to_string_lossy().contains(part))
            .unwrap_or_else(|| panic!("no {part}"))
            .path
    };
    for part in [".pack", &format!("{segment}.zst"), &format!("{hash}.frag"), "manifest.json"] {
        let path = find(part);
        // What each finding must name: the object itself, by its name or by its path.
        let name = path.file_name().unwrap().to_str().unwrap().trim_end_matches(".zst").trim_end_matches(".frag");
        let whole = storage.read(&path).unwrap().unwrap();
        let mut changed = whole.clone();
        changed[whole.len() / 2] ^= 1;
        for (how, content) in [("cut off", &whole[..whole.len() - 1]), ("changed", &changed)] {
            storage.write(&path, content).unwrap();
            let said = server.run(&["verify"]).failed(6, name);
            assert!(said.err.contains("1 things in the repository are damaged"), "{part} {how}: {}", said.err);
        }
        storage.remove(&path).unwrap();
        server.run(&["verify"]).failed(6, name);
        storage.write(&path, &whole).unwrap();
    }
    server.json(&["verify"]);
}
