//! Streaming: what the server was told to be stored is never lost, whoever dies, and the loss of the host loses less than a second.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Recovered, Server, kill9, wait_for};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const DIGEST: &str = "SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0) FROM t";

fn server() -> Server {
    let server = Server::start();
    let text = std::fs::read_to_string(&server.config).unwrap();
    std::fs::write(&server.config, text + "[wal]\nstream = true\n").unwrap();
    server.sql("CREATE TABLE t (id int, v text)");
    server
}

struct Agent(Child);

impl Agent {
    fn start(server: &Server) -> Self {
        Self::start_with(server, "none")
    }

    fn start_with(server: &Server, failpoint: &str) -> Self {
        let log = std::fs::File::options().create(true).append(true).open(server.dir.join("agent.log")).unwrap();
        let mut command = Command::new("env");
        if common::is_root() {
            command = Command::new("runuser");
            command.args(["-u", "postgres", "--", "env"]);
        }
        command.arg(format!("STRATA_FAILPOINT={failpoint}")).arg(server.program());
        command.arg("--config").arg(&server.config).args(["-v", "agent"]).current_dir("/");
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }

    fn kill9(mut self) {
        kill9(&mut self.0);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        kill9(&mut self.0);
    }
}

/// What the agent says of streaming; null when it is not there.
fn stream(server: &Server) -> Value {
    let asked = || -> Option<Value> {
        let mut socket = UnixStream::connect(server.store().join("agent.sock")).ok()?;
        writeln!(socket, "{}", json!({"op": "ping"})).ok()?;
        let line = BufReader::new(socket).lines().last()?.ok()?;
        Some(serde_json::from_str::<Value>(&line).ok()?["result"]["stream"].clone())
    };
    asked().unwrap_or(Value::Null)
}

fn wait_for_stream(server: &Server) {
    wait_for("streaming", || stream(server)["streaming"] == true);
}

/// Waits until everything that is committed is in the repository.
fn wait_for_stored(server: &Server) {
    let now = server.sql("SELECT pg_current_wal_flush_lsn()");
    let stored = format!(
        "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'strata_one' AND restart_lsn >= '{now}'::pg_lsn"
    );
    wait_for("the stream", || server.sql(&stored) == "1");
}

/// The host is lost.
fn lose(server: &Server, agent: Agent) {
    let pid = std::fs::read_to_string(server.data().join("postmaster.pid")).unwrap();
    let postmaster: u32 = pid.lines().next().unwrap().parse().unwrap();
    let mut pids: Vec<String> = common::descendants(postmaster).iter().map(u32::to_string).collect();
    pids.extend(common::descendants(agent.0.id()).iter().map(u32::to_string));
    let _ = Command::new("kill").arg("-9").args(&pids).stderr(Stdio::null()).status();
    drop(agent);
    std::fs::remove_dir_all(server.data()).unwrap();
    std::fs::remove_dir_all(server.store()).unwrap();
}

/// A client that commits one row after the other. Returns when each was acknowledged.
fn commit(server: &Server, client: u32, stop: &AtomicBool) -> Vec<Instant> {
    let config = format!("host={} port={} user=postgres dbname=postgres", server.dir.display(), server.port);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (session, connection) = tokio_postgres::connect(&config, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        let mut acknowledged = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let (id, n) = (client as i32, acknowledged.len().to_string());
            match session.execute("INSERT INTO t VALUES ($1, $2)", &[&id, &n]).await {
                Ok(_) => acknowledged.push(Instant::now()),
                Err(_) => break,
            }
        }
        acknowledged
    })
}

/// Loses the host under load. Returns how much time of acknowledged commits was lost.
fn lost_under_load() -> Duration {
    let server = server();
    server.json(&["backup"]);
    let agent = Agent::start(&server);
    wait_for_stream(&server);
    let stop = AtomicBool::new(false);
    let (acknowledged, told, lost_at) = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..2)
            .map(|client| {
                scope.spawn({
                    let (server, stop) = (&server, &stop);
                    move || commit(server, client, stop)
                })
            })
            .collect();
        wait_for("some commits", || server.sql("SELECT count(*) FROM t").parse::<u32>().unwrap() > 200);
        server.sql("SELECT pg_switch_wal()");
        std::thread::sleep(Duration::from_secs(2));
        // What the server was told to be stored.
        let told = server.sql("SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 'strata_one'");
        let lost_at = Instant::now();
        lose(&server, agent);
        stop.store(true, Ordering::Relaxed);
        let acknowledged: Vec<Vec<Instant>> = clients.into_iter().map(|client| client.join().unwrap()).collect();
        (acknowledged, told, lost_at)
    });
    assert_ne!(server.json(&["info"])["wal"][0]["streamed_to"], Value::Null);
    server.run(&["verify"]).ok();
    let back = server.recover("latest", &[]);
    assert_eq!(back.sql(&format!("SELECT pg_current_wal_lsn() >= '{told}'::pg_lsn")), "t", "what was told is there");
    let mut lost = Duration::ZERO;
    for (client, acknowledged) in acknowledged.iter().enumerate() {
        let there: usize = back.sql(&format!("SELECT count(*) FROM t WHERE id = {client}")).parse().unwrap();
        let last = back.sql(&format!("SELECT coalesce(max(v::int), -1) + 1 FROM t WHERE id = {client}"));
        assert_eq!(there.to_string(), last, "commits of a session are lost from the end only");
        assert!(acknowledged.len() > 50, "{}", acknowledged.len());
        if let Some(first) = acknowledged.get(there) {
            lost = lost.max(lost_at.saturating_duration_since(*first));
        }
    }
    lost
}

#[test]
fn the_loss_of_the_host_loses_less_than_a_second() {
    // A machine that is busy with other things may stall anybody once.
    let mut all = Vec::new();
    for _ in 0..5 {
        let lost = lost_under_load();
        all.push(lost);
        if lost < Duration::from_secs(1) {
            println!("lost: {all:?}");
            return;
        }
    }
    panic!("lost: {all:?}");
}

#[test]
fn both_ways_at_once_whoever_dies() {
    let server = server();
    server.json(&["backup"]);
    let points = ["stream:stored:3", "stream:whole:1", "stream:whole:2", "push:published:1", "none"];
    for (round, point) in points.into_iter().enumerate() {
        let mut agent = Agent::start_with(&server, point);
        for step in 0..5 {
            server.sql(&format!("INSERT INTO t SELECT g, '{round}.{step}' FROM generate_series(1, 3000) g"));
            if step % 2 == 0 {
                server.sql("SELECT pg_switch_wal()");
            }
        }
        if point == "none" {
            // The other side dies.
            wait_for_stream(&server);
            common::stop(&server.data(), "immediate");
            server.up();
            server.sql("INSERT INTO t VALUES (-1, 'after the crash')");
            wait_for_stored(&server);
            agent.kill9();
        } else {
            wait_for("the failpoint", || {
                server.sql("INSERT INTO t VALUES (0, 'more'); SELECT pg_switch_wal()");
                agent.0.try_wait().unwrap().is_some()
            });
        }
    }
    let agent = Agent::start(&server);
    server.sql("INSERT INTO t VALUES (-2, 'the last one')");
    wait_for_stored(&server);
    let check = server.json(&["check", "--agent"]);
    let streaming = check["checks"].as_array().unwrap().iter().find(|check| check["name"] == "streaming").unwrap();
    assert_eq!(streaming["state"], "ok", "{check}");
    server.sql("INSERT INTO t VALUES (-3, 'in a segment that is not whole')");
    wait_for_stored(&server);
    let digest = server.sql(DIGEST);
    lose(&server, agent);
    server.run(&["verify"]).ok();
    assert_eq!(server.json(&["info"])["wal"][0]["gaps"], json!([]));
    assert_eq!(server.recover("latest", &[]).sql(DIGEST), digest);
    // By hand, without this program's read-ahead.
    let into = server.dir.join("later");
    let port = common::free_port();
    let args =
        ["recover", "--to", "latest", "--no-start", "--into", into.to_str().unwrap(), "--port", &port.to_string()];
    server.json(&args);
    let later = Recovered { dir: into, sockets: server.dir.clone(), port };
    common::start(&later.dir);
    wait_for("the end of the recovery", || later.sql("SELECT pg_is_in_recovery()") == "f");
    assert_eq!(later.sql(DIGEST), digest);
}

#[test]
fn a_piece_that_is_lost_or_damaged_is_named() {
    let server = server();
    server.json(&["backup"]);
    let agent = Agent::start(&server);
    wait_for_stream(&server);
    let stream = server.repository.join("systems/test/one/stream");
    let mut n = 0;
    let pieces = || {
        let all: Vec<_> = common::files(&stream);
        let newest = all.last().and_then(|path| path.file_name()?.to_str()?.get(..24).map(str::to_owned));
        all.into_iter()
            .filter(|path| newest.as_ref().is_some_and(|name| path.to_str().unwrap().contains(name)))
            .collect::<Vec<_>>()
    };
    wait_for("some pieces", || {
        n += 1;
        server.sql(&format!("INSERT INTO t VALUES ({n}, 'x')"));
        wait_for_stored(&server);
        (3..30).contains(&pieces().len())
    });
    let digest = server.sql(DIGEST);
    let pieces = pieces();
    lose(&server, agent);
    let middle = &pieces[1];
    let saved = std::fs::read(middle).unwrap();
    common::flip(middle);
    server.run(&["verify"]).failed(6, middle.file_name().unwrap().to_str().unwrap());
    server.run(&["plan"]).failed(6, middle.file_name().unwrap().to_str().unwrap());
    std::fs::remove_file(middle).unwrap();
    server.run(&["verify"]).failed(6, "is missing from byte");
    server.run(&["plan"]).failed(1, "is missing from byte");
    std::fs::write(middle, saved).unwrap();
    common::give(middle);
    assert_eq!(server.recover("latest", &[]).sql(DIGEST), digest);
}

#[test]
fn the_stream_follows_the_server_onto_a_new_timeline() {
    let server = server();
    server.json(&["backup"]);
    let agent = Agent::start(&server);
    wait_for_stream(&server);
    server.sql("INSERT INTO t SELECT g, 'on the first' FROM generate_series(1, 1000) g");
    wait_for_stored(&server);
    // In place, to the end of its own log.
    server.down();
    std::fs::write(server.data().join("recovery.signal"), "").unwrap();
    let auto = server.data().join("postgresql.auto.conf");
    let text = std::fs::read_to_string(&auto).unwrap();
    std::fs::write(&auto, text + "restore_command = 'false'\n").unwrap();
    common::give(&server.data());
    server.up();
    wait_for("the new timeline", || server.sql("SELECT pg_is_in_recovery()") == "f");
    server.sql("INSERT INTO t SELECT g, 'on the second' FROM generate_series(1, 1000) g");
    wait_for_stored(&server);
    wait_for("the stream of timeline 2", || stream(&server)["timeline"] == 2);
    server.sql("INSERT INTO t VALUES (-1, 'the last one')");
    wait_for_stored(&server);
    let digest = server.sql(DIGEST);
    lose(&server, agent);
    server.run(&["verify"]).ok();
    let back = server.recover("latest", &[]);
    assert_eq!(back.sql(DIGEST), digest);
    assert_eq!(back.sql("SELECT timeline_id FROM pg_control_checkpoint()"), "3");
    let back = server.recover("latest", &["--timeline", "1"]);
    assert_eq!(
        back.sql("SELECT count(*) FROM t"),
        "1000",
        "the end of the first one, from what was streamed or left of it"
    );
}

#[test]
fn the_end_of_a_timeline_comes_from_what_the_server_left_of_it() {
    let server = Server::start();
    server.sql("CREATE TABLE t (id int, v text)");
    server.json(&["backup"]);
    server.archive();
    server.sql("INSERT INTO t SELECT g, 'in a segment that is not whole' FROM generate_series(1, 1000) g");
    let name = server.sql("SELECT pg_walfile_name(pg_current_wal_lsn())");
    let digest = server.sql(DIGEST);
    common::stop(&server.data(), "immediate");
    // As a server does that is promoted.
    let partial = server.dir.join(format!("{name}.partial"));
    std::fs::copy(server.data().join("pg_wal").join(&name), &partial).unwrap();
    common::give(&partial);
    server.json(&["wal", "push", partial.to_str().unwrap()]);
    std::fs::remove_dir_all(server.data()).unwrap();
    assert_eq!(server.recover("latest", &[]).sql(DIGEST), digest);
    server.run(&["verify"]).ok();
}
