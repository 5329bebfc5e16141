//! Targets by transaction, name and exact time, before or behind what they name, and what the server does when it is there.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Server, start, wait_for};

const ROWS: &str = "SELECT coalesce(string_agg(id::text, ',' ORDER BY id), 'none') FROM t";

/// A server whose rows and transactions are known.
struct Known {
    server: Server,
    first: String,
    second: String,
    second_at: String,
    prepared: String,
}

fn known() -> Known {
    let server = Server::start_with("max_prepared_transactions = 2\ntrack_commit_timestamp = on", None);
    server.sql("CREATE TABLE t (id int)");
    server.json(&["backup"]);
    let insert = |id: u32| server.sql(&format!("INSERT INTO t VALUES ({id}); SELECT pg_current_xact_id()::xid"));
    let first = insert(1);
    server.sql("SELECT pg_create_restore_point('before the release')");
    let second = insert(2);
    let second_at = server.sql(&format!("SELECT pg_xact_commit_timestamp('{second}'::xid)"));
    insert(3);
    let prepared =
        server.sql("BEGIN; INSERT INTO t VALUES (4); SELECT pg_current_xact_id()::xid; PREPARE TRANSACTION 'p'");
    insert(5);
    server.sql("COMMIT PREPARED 'p'");
    insert(6);
    server.archive();
    Known { server, first, second, second_at, prepared }
}

#[test]
fn a_target_is_reached_or_just_not_passed() {
    let Known { server, first, second, second_at, prepared } = known();
    let xid = |xid: &str| format!("xid:{xid}");
    for (target, inclusive, exclusive) in [
        (xid(&first), "1", "none"),
        ("name:before the release".to_owned(), "1", "1"),
        (xid(&second), "1,2", "1"),
        (second_at, "1,2", "1"),
        (xid(&prepared), "1,2,3,4,5", "1,2,3,5"),
    ] {
        assert_eq!(server.recover(&target, &[]).sql(ROWS), inclusive, "{target}");
        assert_eq!(server.recover(&target, &["--exclusive"]).sql(ROWS), exclusive, "before {target}");
    }
    let back = server.recover("immediate", &[]);
    assert_eq!(back.sql(ROWS), "none");
    assert_eq!(back.sql("SELECT string_agg(name, ' ') FROM pg_file_settings WHERE name ~ '^recovery_target'"), "");
}

#[test]
fn what_is_not_there_or_there_twice_is_no_target() {
    let Known { server, .. } = known();
    server.archive();
    // Each call made a restore point of this name.
    let plan = |target: &str| server.run(&["plan", "--to", target]);
    plan("name:x").failed(2, "the restore point \"x\" is 2 times in the archive");
    plan("name:y").failed(1, "the restore point \"y\" is not in the archive");
    plan("xid:4000000").failed(1, "the end of transaction 4000000 is not in the archive");
    plan("xid:many").failed(2, "\"many\" is not a transaction id");
    server.run(&["plan", "--to", "latest", "--exclusive"]).failed(2, "has nothing that it could stop before");
    let plan = server.json(&["plan", "--to", "name:before the release"]);
    assert_eq!(plan["target"], "name:before the release", "{plan}");
    assert_eq!(plan["stop"]["by"], "lsn", "{plan}");
}

#[test]
fn a_server_pauses_or_stops_at_the_target() {
    let Known { server, second, .. } = known();
    let target = format!("xid:{second}");
    let back = server.recover(&target, &["--action", "pause"]);
    assert_eq!(back.sql("SELECT pg_is_in_recovery()"), "t");
    assert_eq!(back.sql("SELECT pg_get_wal_replay_pause_state()"), "paused");
    assert_eq!(back.sql(ROWS), "1,2");
    back.sql("SELECT pg_wal_replay_resume()");
    wait_for("the promotion", || back.sql("SELECT pg_is_in_recovery()") == "f");
    back.sql("INSERT INTO t VALUES (7)");
    assert_eq!(back.sql(ROWS), "1,2,7");

    let back = server.recover(&target, &["--action", "shutdown"]);
    assert!(!back.dir.join("postmaster.pid").exists());
    assert!(back.dir.join("recovery.signal").exists());
    let auto = back.dir.join("postgresql.auto.conf");
    let text = std::fs::read_to_string(&auto).unwrap();
    assert!(text.contains("recovery_target_action = 'shutdown'"), "{text}");
    std::fs::write(&auto, text.replace("= 'shutdown'", "= 'promote'")).unwrap();
    start(&back.dir);
    wait_for("the promotion", || back.sql("SELECT pg_is_in_recovery()") == "f");
    assert_eq!(back.sql(ROWS), "1,2");
}
