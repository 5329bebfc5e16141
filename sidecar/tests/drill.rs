//! Drills on a real server: a sound repository passes, each kind of damage fails with its name, and nothing is left behind.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Server, files};
use std::path::PathBuf;
use std::process::Stdio;

fn filled() -> (Server, PathBuf) {
    let server = Server::start();
    server.create_catalog();
    server.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 5000) g");
    server.json(&["backup"]);
    server.sql("DELETE FROM t WHERE id > 4000");
    server.archive();
    let scratch = server.dir.join("scratch");
    let text = std::fs::read_to_string(&server.config).unwrap();
    std::fs::write(
        &server.config,
        format!("{text}[drill]\ndirectory = \"{}\"\nchecks = [\"SELECT count(*) = 4000 FROM t\", \"SELECT max(id) FROM t\"]\n", scratch.display()),
    )
    .unwrap();
    (server, scratch)
}

fn left(scratch: &std::path::Path) -> Vec<PathBuf> {
    files(scratch).into_iter().filter(|file| !file.ends_with("strata-drill.lock")).collect()
}

#[test]
fn a_sound_repository_passes_and_is_recorded() {
    let (server, scratch) = filled();
    let drill = server.json(&["drill"]);
    assert_eq!(drill["passed"], true, "{drill}");
    assert_eq!(drill["checks"][1]["value"], "4000");
    assert_eq!(drill["amcheck"]["ran"], true, "{drill}");
    assert_eq!(left(&scratch), Vec::<PathBuf>::new());
    assert_eq!(server.json(&["info"])["last_drill"]["id"], drill["id"]);
    assert!(server.run(&["info"]).ok().out.contains("passed"));
    assert_eq!(server.sql("SELECT state FROM strata.job WHERE kind = 'drill'"), "done");
    server.run(&["verify"]).ok();
    // The server itself was not touched.
    assert_eq!(server.sql("SELECT count(*) FROM t"), "4000");
}

#[test]
fn a_check_that_does_not_hold_is_damage() {
    let (server, scratch) = filled();
    let text = std::fs::read_to_string(&server.config).unwrap();
    std::fs::write(&server.config, text.replace("= 4000", "= 4001")).unwrap();
    let said = server.run(&["drill"]).failed(6, "SELECT count(*) = 4001");
    assert!(said.out.contains("FAILED"), "{said:?}");
    assert_eq!(left(&scratch), Vec::<PathBuf>::new());
    assert_eq!(server.json(&["info"])["last_drill"]["passed"], false);
    assert_eq!(server.sql("SELECT state FROM strata.job WHERE kind = 'drill'"), "failed");
}

#[test]
fn a_corrupt_index_is_found() {
    let (server, _) = filled();
    // An index that does not fit its table: its order is not that of its operator class.
    server.sql(
        "CREATE TABLE w (v text); INSERT INTO w SELECT md5(g::text) FROM generate_series(1, 2000) g; CREATE INDEX w_i ON w (v); CHECKPOINT",
    );
    let path = server.data().join(server.sql("SELECT pg_relation_filepath('w_i')"));
    let lines = server.sql("SELECT pg_relation_size('w_i') / 8192");
    assert!(lines.parse::<u64>().unwrap() > 3);
    server.down();
    // Without checksums a page whose items are swapped is found by amcheck alone.
    let run = common::as_user(common::bin().join("pg_checksums"))
        .args(["--disable", "-N", "-D"])
        .arg(server.data())
        .output()
        .unwrap();
    assert!(run.status.success(), "{run:?}");
    let mut bytes = std::fs::read(&path).unwrap();
    let page = 8192;
    let (a, b) = (page + 24 + 4 * 10, page + 24 + 4 * 20);
    for at in 0..4 {
        bytes.swap(a + at, b + at);
    }
    std::fs::write(&path, bytes).unwrap();
    server.up();
    server.json(&["backup"]);
    server.archive();
    server.run(&["drill"]).failed(6, "pg_amcheck");
}

#[test]
fn what_cannot_be_recovered_fails_and_names_it() {
    let (server, scratch) = filled();
    let name = server.archive();
    common::flip(&server.file(&format!("{name}.zst")));
    server.run(&["drill"]).failed(6, &name);
    assert_eq!(left(&scratch), Vec::<PathBuf>::new());
    // The backup itself is sound.
    let id = server.json(&["info"])["backups"][0]["id"].as_str().unwrap().to_owned();
    let text = std::fs::read_to_string(&server.config).unwrap();
    std::fs::write(&server.config, text.replace("= 4000", "= 5000")).unwrap();
    server.run(&["drill", "--to", &id]).ok();
}

#[test]
fn a_drill_that_is_killed_leaves_what_the_next_one_removes() {
    let (server, scratch) = filled();
    for point in ["drill:open", "drill:checked"] {
        let mut command = server.command(&["drill"]);
        let said = command.env("STRATA_FAILPOINT", point).stdin(Stdio::null()).output().unwrap();
        assert_ne!(said.status.code(), Some(0), "{point}");
        let pid_file = scratch.join("data/postmaster.pid");
        let pid: u32 = std::fs::read_to_string(&pid_file).unwrap().lines().next().unwrap().parse().unwrap();
        assert!(PathBuf::from(format!("/proc/{pid}")).exists(), "the scratch server goes on");
        server.run(&["drill"]).ok();
        assert!(!PathBuf::from(format!("/proc/{pid}/cwd")).exists(), "{point}");
        assert_eq!(left(&scratch), Vec::<PathBuf>::new());
    }
    // Nor is anything removed that is not a drill's.
    let other = server.dir.join("thesis");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("thesis.doc"), "x").unwrap();
    common::give(&other);
    server.run(&["drill", "--scratch", other.to_str().unwrap()]).failed(3, "is not the scratch directory");
    assert!(other.join("thesis.doc").exists());
}

#[test]
fn a_drill_that_is_interrupted_cleans_up() {
    let (server, scratch) = filled();
    let mut child = server.command(&["drill"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    common::wait_for("the scratch server", || scratch.join("data/postmaster.pid").exists());
    for pid in common::descendants(child.id()) {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if name.starts_with("strata") {
            let _ = std::process::Command::new("kill").args(["-TERM", &pid.to_string()]).status();
        }
    }
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert_eq!(left(&scratch), Vec::<PathBuf>::new());
}
