//! Damage in the repository is found and named, and never recovered from in silence.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Server, files, flip};

fn prepared() -> Server {
    let server = Server::start();
    server.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 20000) g");
    server.json(&["backup"]);
    for step in 0..4 {
        server.sql(&format!("INSERT INTO t VALUES ({}, 'x')", -1 - step));
        server.archive();
    }
    server
}

#[test]
fn a_part_is_verified_when_a_part_is_asked_for() {
    let server = Server::start();
    server.sql("CREATE TABLE t AS SELECT g FROM generate_series(1, 1000) g");
    server.json(&["backup"]);
    let name = server.archive();
    let whole = server.json(&["verify"]);
    assert_eq!(whole["left_out"], 0);
    common::flip(&server.file(&format!("{name}.zst")));
    server.run(&["verify", "--since", "2001-01-01 00:00:00Z"]).failed(6, &name);
    let none = server.json(&["verify", "--since", "2100-01-01 00:00:00Z"]);
    assert!(none["left_out"].as_u64().unwrap() > 1 && none["bytes"] == 0, "{none}");
    server.run(&["verify", "--sample", "100%"]).failed(6, &name);
    // A sample of a thousandth reads next to nothing, and sees all the same that something is not there.
    let part = server.run(&["--output", "json", "verify", "--sample", "0.001"]).ok().json();
    assert!(part["bytes"].as_u64() < whole["bytes"].as_u64(), "{part}");
    std::fs::remove_file(server.file(&format!("{name}.zst"))).unwrap();
    server.archive();
    server.run(&["verify", "--sample", "0.001%"]).failed(6, &name);
    server.run(&["verify", "--sample", "0"]).failed(2, "above 0%");
}

#[test]
fn verify_names_what_is_damaged() {
    let server = prepared();
    server.run(&["verify"]).ok();
    let segment = "000000010000000000000003";
    for part in [
        "repository.json",
        "member.json",
        "manifest.json",
        ".pack",
        "catalog/",
        &format!("{segment}.zst"),
        ".backup.zst",
    ] {
        let file = server.file(part);
        let name =
            file.file_name().unwrap().to_str().unwrap().trim_end_matches(".zst").trim_end_matches(".json").to_owned();
        let good = std::fs::read(&file).unwrap();
        flip(&file);
        server.run(&["verify"]).failed(6, &name);
        std::fs::write(&file, &good[..good.len() / 2]).unwrap();
        server.run(&["verify"]).failed(6, &name);
        if part != "repository.json" && !part.contains(".backup") && part != "catalog/" && part != "member.json" {
            std::fs::remove_file(&file).unwrap();
            server.run(&["verify"]).failed(6, &name);
        }
        std::fs::write(&file, good).unwrap();
        common::give(&file);
    }
    let report = server.json(&["verify"]);
    assert_eq!(report["damage"], serde_json::json!([]));
    assert_eq!(report["backups"], 1);
}

#[test]
fn verify_misses_the_end_of_the_log_that_a_backup_needs() {
    let server = prepared();
    let backup = server.json(&["backup"]);
    server.run(&["verify"]).ok();
    server.down();
    let (first, last) = (backup["start_wal"].as_str().unwrap(), backup["stop_wal"].as_str().unwrap());
    for file in files(&server.repository.join("systems/test/one/wal/00000001")) {
        if file.file_name().unwrap().to_str().unwrap() >= first {
            std::fs::remove_file(file).unwrap();
        }
    }
    server.run(&["verify"]).failed(6, last);
}

#[test]
fn one_damaged_thing_does_not_hide_the_others() {
    let server = prepared();
    let second = server.json(&["backup"]);
    let id = second["id"].as_str().unwrap();
    server.archive();
    flip(&server.file(&format!("catalog/{id}.json")));
    let last = server.json(&["plan"])["wal_to"].as_str().unwrap().to_owned();
    let info = server.json(&["info"]);
    assert_eq!(info["backups"].as_array().unwrap().len(), 1);
    assert!(info["damage"][0].as_str().unwrap().contains(id), "{info}");
    let said = server.run(&["plan"]).ok();
    assert!(said.err.contains(id), "what is left out is said: {said:?}");
    assert_eq!(server.recover("latest", &[]).sql("SELECT count(*) FROM t"), "20004");
    // The note at the end of the newest segment.
    let file = server.file(&format!("{last}.zst"));
    let mut bytes = std::fs::read(&file).unwrap();
    let at = bytes.len() - 30;
    bytes[at] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    assert!(server.json(&["info"])["damage"].as_array().unwrap().iter().any(|d| d.as_str().unwrap().contains(&last)));
}

#[test]
fn a_lost_tablespace_is_named() {
    let server = prepared();
    let space = server.dir.join("space");
    std::fs::create_dir(&space).unwrap();
    common::give(&space);
    server.sql(&format!("CREATE TABLESPACE s LOCATION '{}'", space.display()));
    server.run(&["backup"]).ok();
    std::fs::rename(&space, server.dir.join("unmounted")).unwrap();
    server.run(&["backup"]).failed(6, space.to_str().unwrap());
}

#[test]
fn a_damaged_pack_is_not_laid_out() {
    let server = prepared();
    let pack = server.file(".pack");
    flip(&pack);
    let into = server.dir.join("back");
    let said = server.run(&["recover", "--to", "latest", "--into", into.to_str().unwrap(), "--port", "1"]);
    said.failed(6, pack.to_str().unwrap());
    assert!(!into.join("postmaster.pid").exists());
}

#[test]
fn a_gap_is_refused_before_anything_is_written() {
    let server = prepared();
    let info = server.json(&["info"]);
    let last = info["wal"][0]["last"].as_str().unwrap().to_owned();
    let before = server.json(&["plan", "--to", "latest"]);
    let number = u64::from_str_radix(&last[16..], 16).unwrap() - 1;
    let lost = format!("{}{number:08X}", &last[..16]);
    std::fs::remove_file(server.file(&format!("{lost}.zst"))).unwrap();
    server.run(&["verify"]).failed(6, &lost);
    server.run(&["plan", "--to", "latest"]).failed(1, &lost);
    let gaps = &server.json(&["info"])["wal"][0]["gaps"];
    assert_eq!(gaps[0]["from"], lost.as_str());
    let into = server.dir.join("back");
    server.run(&["recover", "--to", "latest", "--into", into.to_str().unwrap()]).failed(1, &lost);
    assert!(!into.exists());
    // Up to the gap everything is there.
    let id = before["backup"]["id"].as_str().unwrap();
    server.run(&["plan", "--to", id]).ok();
    assert_eq!(server.recover(id, &[]).sql("SELECT count(*) FROM t"), "20000");
}

#[test]
fn a_server_never_opens_short_of_its_target() {
    let server = prepared();
    // The content is damaged while the note at the end, which planning reads, is whole.
    let plan = server.json(&["plan", "--to", "latest"]);
    let last = plan["wal_to"].as_str().unwrap();
    let file = server.file(&format!("{last}.zst"));
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[20] ^= 0x40;
    std::fs::write(&file, bytes).unwrap();
    let into = server.dir.join("back");
    let port = common::free_port().to_string();
    let said = server.run(&["recover", "--to", "0/1", "--into", into.to_str().unwrap(), "--port", &port]);
    said.failed(1, "before the end of the first backup");
    let lsn = plan["stop"]["value"].as_str().unwrap();
    let said = server.run(&["recover", "--to", lsn, "--into", into.to_str().unwrap(), "--port", &port]);
    common::stop(&into, "immediate");
    let said = said.failed(1, "recovery ended before configured recovery target was reached");
    assert!(said.err.contains("verify"), "{said:?}");
    assert!(said.err.contains("before the next try"), "{said:?}");
}

#[test]
fn the_servers_reason_is_told_when_its_messages_go_to_a_collector() {
    let server = Server::start_with("logging_collector = on\nlog_destination = 'stderr,csvlog'", None);
    server.sql("CREATE TABLE t (id int)");
    server.json(&["backup"]);
    let last = server.archive();
    let plan = server.json(&["plan", "--to", "latest"]);
    let file = server.file(&format!("{last}.zst"));
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[20] ^= 0x40;
    std::fs::write(&file, bytes).unwrap();
    let into = server.dir.join("back");
    let port = common::free_port().to_string();
    let lsn = plan["stop"]["value"].as_str().unwrap();
    let said = server.run(&["recover", "--to", lsn, "--into", into.to_str().unwrap(), "--port", &port]);
    common::stop(&into, "immediate");
    said.failed(1, "recovery ended before configured recovery target was reached");
}

#[test]
fn a_damaged_page_of_the_server_is_named_and_the_backup_says_so() {
    let server = Server::start();
    server.sql("CREATE TABLE t (id int, v text); INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 20000) g; CHECKPOINT");
    let below = server.sql("SELECT pg_relation_filepath('t')");
    server.down();
    let file = server.data().join(&below);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[8192 * 7 + 5000] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    server.up();
    let said = server.run(&["--output", "json", "backup"]);
    assert_eq!(said.json()["damaged_pages"], 1, "{said:?}");
    said.failed(6, &format!("page 7 of \\\"{below}\\\""));
}
