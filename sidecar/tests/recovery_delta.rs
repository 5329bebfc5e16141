//! Recovery over an existing data directory writes what differs, and the result is what a recovery into an empty one is.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Server, files, give};
use std::path::Path;

const DIGEST: &str = "SELECT (SELECT count(*) || '/' || coalesce(sum(hashtextextended(t::text, 0)), 0) FROM t) || ' ' || \
     (SELECT count(*) || '/' || coalesce(sum(hashtextextended(s::text, 0)), 0) FROM s)";

fn filled() -> Server {
    let server = Server::start();
    let space = server.dir.join("space");
    std::fs::create_dir(&space).unwrap();
    give(&space);
    server.sql(&format!("CREATE TABLESPACE space LOCATION '{}'", space.display()));
    server.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 100000) g");
    server.sql("CREATE TABLE s (id int, v text) TABLESPACE space; INSERT INTO s SELECT g, md5(g::text) FROM generate_series(1, 1000) g");
    server
}

fn over(server: &Server, into: &Path, target: &str) -> Vec<String> {
    ["recover", "--delta", "--to", target, "--into", into.to_str().unwrap(), "--port", &server.port.to_string()]
        .map(str::to_owned)
        .to_vec()
}

#[test]
fn only_what_differs_is_written() {
    let server = filled();
    server.json(&["backup"]);
    let at_backup = server.sql(DIGEST);
    let table = server.sql("SELECT pg_relation_filepath('t')");
    server.sql(
        "UPDATE t SET v = 'x' WHERE id % 1000 = 0; DELETE FROM s WHERE id % 2 = 0; CREATE TABLE more AS SELECT 1 AS a",
    );
    server.archive();
    let digest = server.sql(DIGEST);
    let place = "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'space'";
    let space = server.sql(place);
    let target = server.sql("SELECT pg_current_wal_lsn()");
    server.sql("INSERT INTO t VALUES (-1, 'behind the target')");
    let data = server.data();
    let args = over(&server, &data, &target);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (into, port) = (data.display().to_string(), common::free_port().to_string());
    server
        .run(&["recover", "--delta", "--to", "latest", "--into", &into, "--port", &port])
        .failed(1, "a server runs in");
    server.down();
    // What the crash that made the recovery necessary did.
    let file = data.join(&table);
    common::flip(&file);
    std::fs::write(data.join("base/stray"), "x").unwrap();
    std::fs::create_dir(data.join("stray")).unwrap();
    std::fs::remove_file(data.join("PG_VERSION")).unwrap();
    give(&data);
    let said = server.json(&args);
    let (kept, written) =
        (said["delta"]["kept_bytes"].as_u64().unwrap(), said["delta"]["written_bytes"].as_u64().unwrap());
    assert!(kept > 20 << 20 && written > 0 && written < kept, "{said}");
    assert_eq!(server.sql(DIGEST), digest);
    assert_eq!(server.sql(place), space);
    assert_eq!(server.sql("SELECT a FROM more"), "1");
    assert!(!data.join("base/stray").exists() && !data.join("stray").exists());
    // The same as into an empty directory.
    assert_eq!(server.recover(&target, &[]).sql(DIGEST), digest);
    // Back in time, over what was recovered.
    server.down();
    let id = server.json(&["info"])["backups"][0]["id"].as_str().unwrap().to_owned();
    let args = over(&server, &data, &id);
    server.json(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(server.sql(DIGEST), at_backup);
    assert_eq!(server.sql("SELECT to_regclass('more') IS NULL"), "t");
}

#[test]
fn a_directory_that_is_something_else_is_left_alone() {
    let server = filled();
    server.json(&["backup"]);
    server.archive();
    let other = Server::start();
    other.sql("CREATE TABLE t (id int)");
    other.down();
    let before = files(&other.data());
    let run = |into: &Path| {
        let args = over(&server, into, "latest");
        server.run(&args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    server.down();
    run(&other.data()).failed(1, "is another PostgreSQL cluster");
    assert_eq!(files(&other.data()), before);
    let photos = server.dir.join("photos");
    std::fs::create_dir(&photos).unwrap();
    std::fs::write(photos.join("one.jpg"), "x").unwrap();
    give(&photos);
    run(&photos).failed(1, "is not a data directory");
    assert!(photos.join("one.jpg").exists());
}

#[test]
fn one_that_was_interrupted_does_not_start_and_is_made_again() {
    let server = filled();
    server.json(&["backup"]);
    server.archive();
    let digest = server.sql(DIGEST);
    let target = server.sql("SELECT pg_current_wal_lsn()");
    server.sql("UPDATE t SET v = 'y'");
    server.down();
    let data = server.data();
    let pack = server.file(".pack");
    let saved = std::fs::read(&pack).unwrap();
    // Each part of it is damaged.
    std::fs::write(&pack, saved.iter().map(|byte| byte ^ 0x55).collect::<Vec<_>>()).unwrap();
    let args = over(&server, &data, &target);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    server.run(&args).failed(6, "pack");
    assert!(!data.join("global/pg_control").exists());
    let started =
        common::as_user(common::bin().join("pg_ctl")).args(["start", "-w", "-s", "-D"]).arg(&data).output().unwrap();
    assert!(!started.status.success(), "{started:?}");
    std::fs::write(&pack, saved).unwrap();
    server.json(&args);
    assert_eq!(server.sql(DIGEST), digest);
}
