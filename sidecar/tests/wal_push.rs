//! `archive_command`: looks ahead, says nothing that is not so wherever it dies, and what happens when the repository is away.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Said, Server, kill9, wait_for};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const DIGEST: &str = "SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0) FROM t";

/// A server with lines for its `strata.toml`, whose repository must be there.
fn server(toml: &str) -> Server {
    let server = Server::start();
    server.archive();
    let text = std::fs::read_to_string(&server.config).unwrap();
    std::fs::write(&server.config, text.replace("[repository]\n", "[repository]\ncreate = false\n") + toml).unwrap();
    server
}

/// Its first segments go to the repository, and from then on whatever the test says.
fn archiving_by_hand(server: &Server) {
    server.sql("CREATE TABLE t (id int, v text); INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 1000) g");
    server.json(&["backup"]);
    server.archive();
    server.sql("ALTER SYSTEM SET archive_command = 'false'");
    server.sql("SELECT pg_reload_conf()");
    wait_for("the setting", || server.sql("SHOW archive_command") == "false");
}

/// Fills some segments. Returns their names.
fn fill(server: &Server, segments: usize) -> Vec<String> {
    (0..segments)
        .map(|n| {
            server.sql(&format!("INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 2000 * {}) g", n + 1));
            server.sql("SELECT pg_walfile_name(pg_switch_wal() - 1)")
        })
        .collect()
}

fn archived(server: &Server, name: &str) -> Option<PathBuf> {
    let path = server.repository.join(format!("systems/test/one/wal/{}/{name}.zst", &name[..8]));
    path.exists().then_some(path)
}

/// `strata wal push` as PostgreSQL runs it.
fn push(server: &Server, name: &str, failpoint: Option<&str>) -> Said {
    let mut command = Command::new("env");
    if common::is_root() {
        command = Command::new("runuser");
        command.args(["-u", "postgres", "--", "env"]);
    }
    command.arg(format!("STRATA_FAILPOINT={}", failpoint.unwrap_or("none")));
    command.arg(server.program()).arg("--config").arg(&server.config).args(["wal", "push"]);
    let output = command.arg(format!("pg_wal/{name}")).current_dir(server.data()).stdin(Stdio::null()).output();
    Said::from(output.unwrap())
}

#[track_caller]
fn same(server: &Server, name: &str) {
    let archived = archived(server, name).unwrap_or_else(|| panic!("{name} is said to be archived and is not"));
    let content = zstd::stream::decode_all(std::fs::read(archived).unwrap().as_slice()).unwrap();
    assert!(content == std::fs::read(server.data().join("pg_wal").join(name)).unwrap(), "{name} differs");
}

/// What is archived of `names` has no hole.
#[track_caller]
fn no_hole(server: &Server, names: &[String]) {
    let there: Vec<bool> = names.iter().map(|name| archived(server, name).is_some()).collect();
    assert!(!there.windows(2).any(|pair| !pair[0] && pair[1]), "{there:?}");
}

#[test]
fn one_push_archives_all_that_waits() {
    let server = server("");
    archiving_by_hand(&server);
    let names = fill(&server, 6);
    push(&server, &names[0], None).ok();
    same(&server, &names[0]);
    wait_for("the segments behind it", || {
        no_hole(&server, &names);
        names.iter().all(|name| archived(&server, name).is_some())
    });
    for name in &names {
        same(&server, name);
        // PostgreSQL hands them over all the same.
        push(&server, name, None).ok();
    }
    server.run(&["verify"]).ok();
    // Another file under the name of one that was noted.
    let more = fill(&server, 3);
    push(&server, &more[0], None).ok();
    wait_for("the last one", || archived(&server, &more[2]).is_some());
    let file = server.data().join("pg_wal").join(&more[1]);
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    push(&server, &more[1], None).failed(1, "is in the archive already");
}

#[test]
fn whoever_dies_nothing_is_said_that_is_not_so() {
    let server = server("");
    archiving_by_hand(&server);
    for place in ["push:prepared", "push:published", "push:noted"] {
        for count in [1, 2, 4] {
            let names = fill(&server, 4);
            let point = format!("{place}:{count}");
            for (at, name) in names.iter().enumerate() {
                // As PostgreSQL: again until it succeeds. The first one has the failpoint, its pusher as well.
                let mut failpoint = (at == 0).then_some(point.as_str());
                wait_for("a push", || push(&server, name, failpoint.take()).code == 0);
                same(&server, name);
                no_hole(&server, &names);
            }
        }
    }
    server.run(&["verify"]).ok();
    server.sql("ALTER SYSTEM RESET archive_command");
    server.sql("SELECT pg_reload_conf()");
    server.archive();
    let digest = server.sql(DIGEST);
    assert_eq!(server.recover("latest", &[]).sql(DIGEST), digest);
}

#[test]
fn a_pusher_that_fails_says_why() {
    let server = server("");
    archiving_by_hand(&server);
    let names = fill(&server, 3);
    // The second one is archived already, with another content.
    let mut bytes = std::fs::read(server.data().join("pg_wal").join(&names[1])).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let copy = server.dir.join(&names[1]);
    std::fs::write(&copy, bytes).unwrap();
    common::give(&copy);
    server.json(&["wal", "push", copy.to_str().unwrap()]);
    push(&server, &names[0], None).ok();
    push(&server, &names[1], None).failed(1, "is in the archive already");
    push(&server, &names[2], None).ok();
}

/// What the agent says of the backlog.
fn ping(server: &Server) -> Value {
    let mut stream = UnixStream::connect(server.store().join("agent.sock")).unwrap();
    writeln!(stream, "{}", json!({"op": "ping"})).unwrap();
    let line = BufReader::new(stream).lines().last().unwrap().unwrap();
    serde_json::from_str::<Value>(&line).unwrap()["result"]["backlog"].clone()
}

fn log(server: &Server) -> String {
    std::fs::read_to_string(server.data().with_extension("log")).unwrap()
}

fn check_of(server: &Server, name: &str) -> Value {
    let said = server.run(&["--output", "json", "check"]);
    let all = said.json();
    all["checks"].as_array().unwrap().iter().find(|check| check["name"] == name).unwrap().clone()
}

fn away(server: &Server) -> PathBuf {
    let away = server.dir.join("away");
    std::fs::rename(&server.repository, &away).unwrap();
    away
}

fn back(server: &Server, away: &Path) {
    std::fs::rename(away, &server.repository).unwrap();
    let waits = "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'";
    wait_for("the archiver", || server.sql(waits) == "0");
}

#[test]
fn while_the_repository_is_away_wal_is_kept_with_an_alarm() {
    let server = server("[wal]\nkeep_limit = \"64MB\"\n");
    server.sql("CREATE TABLE t (id int, v text)");
    server.json(&["backup"]);
    assert_eq!(check_of(&server, "backlog")["state"], "ok");
    let mut agent = server.command(&["agent"]).stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for("the agent", || UnixStream::connect(server.store().join("agent.sock")).is_ok());
    let heard = server.dir.join("heard");
    let script = format!("LISTEN strata_wal;\n{}", "SELECT pg_sleep(0.1);\n".repeat(3000));
    let mut listener = Command::new(common::bin().join("psql"))
        .args(["-XAtq", "-U", "postgres", "-d", "postgres", "-h"])
        .arg(&server.dir)
        .args(["-p", &server.port.to_string()])
        .stdin(Stdio::piped())
        .stdout(std::fs::File::create(&heard).unwrap())
        .spawn()
        .unwrap();
    listener.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let away = away(&server);
    let names = fill(&server, 5);
    wait_for("the alarm in the server's log", || log(&server).contains("ALARM: "));
    wait_for("the agent's status", || ping(&server)["pressure"] == "full");
    assert!(ping(&server)["bytes"].as_u64().unwrap() >= 64 << 20, "{}", ping(&server));
    wait_for("a notification", || std::fs::read_to_string(&heard).unwrap().contains("\"pressure\":\"full\""));
    let check = check_of(&server, "backlog");
    assert_eq!(check["state"], "failed", "{check}");
    assert!(check["message"].as_str().unwrap().contains("the limit is 67108864 bytes; all is kept"), "{check}");
    assert!(names.iter().all(|name| server.data().join("pg_wal").join(name).exists()));
    back(&server, &away);
    for name in &names {
        assert!(archived(&server, name).is_some());
    }
    wait_for("the end of the alarm", || ping(&server)["pressure"] == "ok");
    assert_eq!(check_of(&server, "backlog")["state"], "ok");
    kill9(&mut listener);
    kill9(&mut agent);
    server.run(&["verify"]).ok();
    assert_eq!(server.recover("latest", &[]).sql(DIGEST), server.sql(DIGEST));
}

#[test]
fn what_is_dropped_at_the_limit_is_said_to_be() {
    let server = server("[wal]\nkeep_limit = \"48MB\"\nat_limit = \"drop\"\n");
    server.sql("CREATE TABLE t (id int, v text)");
    server.json(&["backup"]);
    let before = server.sql(DIGEST);
    let away = away(&server);
    let names = fill(&server, 6);
    wait_for("a drop", || log(&server).contains(&format!("segment {} is DROPPED", names[0])));
    let waits = "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'";
    wait_for("the limit", || server.sql(waits).parse::<u32>().unwrap() < 3);
    back(&server, &away);
    server.archive();
    assert!(archived(&server, &names[0]).is_none());
    let check = check_of(&server, "backlog");
    assert_eq!(check["state"], "failed", "{check}");
    assert!(check["message"].as_str().unwrap().contains("was dropped at the limit"), "{check}");
    server.run(&["plan", "--to", "latest"]).failed(1, &names[0]);
    assert_ne!(server.run(&["verify"]).code, 0);
    assert_ne!(server.json(&["info"])["wal"][0]["gaps"], json!([]));
    server.json(&["backup"]);
    assert_eq!(check_of(&server, "backlog")["state"], "ok");
    server.archive();
    assert_ne!(before, server.sql(DIGEST));
    assert_eq!(server.recover("latest", &[]).sql(DIGEST), server.sql(DIGEST));
}
