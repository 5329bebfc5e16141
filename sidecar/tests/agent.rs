//! The agent: fragments go to the repository and come back, jobs are recorded, and it may die at any time.
//!
//! The catalog tables are made without the extension; fragments are written by the fragment crate.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Server, add_fragment, database_oid, files, give, kill9, wait_for};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

struct Agent(Child);

impl Agent {
    fn start(server: &Server) -> Self {
        let log = std::fs::File::options().create(true).append(true).open(server.dir.join("agent.log")).unwrap();
        let child =
            server.command(&["-v", "agent"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        wait_for("the agent", || {
            server.store().join("agent.sock").exists() && UnixStream::connect(socket(server)).is_ok()
        });
        Self(child)
    }

    fn kill9(mut self) {
        kill9(&mut self.0);
    }

    /// SIGTERM; returns the exit code.
    fn stop(mut self) -> Option<i32> {
        self.end()
    }

    fn end(&mut self) -> Option<i32> {
        let pids = common::descendants(self.0.id());
        let deepest = pids.last()?.to_string();
        let _ = std::process::Command::new("kill").args(["-TERM", &deepest]).stderr(Stdio::null()).status();
        self.0.wait().ok()?.code()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            self.end();
        }
    }
}

fn socket(server: &Server) -> PathBuf {
    server.store().join("agent.sock")
}

/// Asks the agent; returns all events.
fn ask(server: &Server, request: &Value) -> Vec<Value> {
    let mut stream = UnixStream::connect(socket(server)).unwrap();
    writeln!(stream, "{request}").unwrap();
    BufReader::new(stream).lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect()
}

#[track_caller]
fn result(server: &Server, request: &Value) -> Value {
    let events = ask(server, request);
    let last = events.last().unwrap();
    assert_eq!(last["event"], "result", "{events:?}");
    last["result"].clone()
}

fn prepared() -> Server {
    let server = Server::start();
    server.create_catalog();
    server.sql("CREATE TABLE t (id bigint)");
    server
}

fn in_repository(server: &Server, hash: &str) -> bool {
    files(&server.repository).iter().any(|file| file.ends_with(format!("{}/{hash}.frag", &hash[..2])))
}

fn in_store(store: &Path, hash: &str) -> bool {
    files(store).iter().any(|file| file.ends_with(format!("{}/{hash}.frag", &hash[..2])))
}

#[test]
fn each_fragment_is_copied_once_and_logged() {
    let server = prepared();
    let first = add_fragment(&server, 1);
    let backup = server.json(&["backup"]);
    assert_eq!((&backup["fragments"], &backup["fragments_copied"]), (&json!(1), &json!(1)));
    let again = server.json(&["backup"]);
    assert_eq!((&again["fragments"], &again["fragment_bytes_copied"]), (&json!(1), &json!(0)));

    let agent = Agent::start(&server);
    let second = add_fragment(&server, 2);
    wait_for("the fragment log", || in_repository(&server, &second));
    assert!(in_repository(&server, &first));
    let last = server.json(&["backup"]);
    assert_eq!((&last["fragments"], &last["fragment_bytes_copied"]), (&json!(2), &json!(0)));
    wait_for("the mirror", || {
        server.sql("SELECT count(*) FROM strata.log_backup WHERE kind = 'fragment'") == "2"
            && server.sql("SELECT count(*) FROM strata.log_backup WHERE kind = 'wal'").parse::<i32>().unwrap() > 0
            && server.sql("SELECT count(*) FROM strata.backup WHERE state = 'complete'") == "3"
    });
    assert_eq!(agent.stop(), Some(0));
    assert!(!socket(&server).exists(), "a clean end takes the socket away");
    server.run(&["verify"]).ok();
}

#[test]
fn a_fragment_that_lives_for_a_moment_is_kept_all_the_same() {
    let server = prepared();
    let agent = Agent::start(&server);
    // Its row is gone before anybody looks at the catalog.
    let hash = add_fragment(&server, 1);
    server.sql("DELETE FROM strata.fragment");
    wait_for("the fragment", || in_repository(&server, &hash));
    // What was made just before the end is kept as well.
    let last = add_fragment(&server, 2);
    assert_eq!(agent.stop(), Some(0));
    assert!(in_repository(&server, &last));
    let log = files(&server.repository.join("systems/test/one/fragment-log"));
    assert!(log.iter().any(|file| file.display().to_string().contains(&last)), "{log:?}");
}

#[test]
fn a_plan_names_the_fragments_that_were_there_at_its_target() {
    let server = prepared();
    let first = add_fragment(&server, 1);
    server.json(&["backup"]);
    let _agent = Agent::start(&server);
    let second = add_fragment(&server, 2);
    wait_for("the fragment log", || in_repository(&server, &second));
    std::thread::sleep(std::time::Duration::from_secs(1));
    let both = server.sql("SELECT clock_timestamp()");
    server.sql(&format!("DELETE FROM strata.fragment WHERE hash = '{first}'"));
    std::thread::sleep(std::time::Duration::from_secs(2));
    server.archive();
    server.archive();
    let hashes = |target: &str| -> Vec<String> {
        let plan = server.json(&["plan", "--to", target]);
        plan["fragment_list"].as_array().unwrap().iter().map(|f| f["hash"].as_str().unwrap().to_owned()).collect()
    };
    let mut expected = vec![first.clone(), second.clone()];
    expected.sort();
    assert_eq!(hashes(&both), expected);
    assert_eq!(hashes("latest"), std::slice::from_ref(&second));

    // What the plan cannot find is named, and stops the recovery.
    std::fs::remove_file(server.file(&format!("{second}.frag"))).ok();
    let copy = files(&server.repository).into_iter().find(|file| file.ends_with(format!("{second}.frag")));
    if let Some(copy) = copy {
        std::fs::remove_file(copy).unwrap();
    }
    server.run(&["plan", "--to", "latest"]).failed(1, &second);
    server.run(&["verify"]).failed(6, &second);
    let into = server.dir.join("back");
    server.run(&["recover", "--to", "latest", "--into", into.to_str().unwrap()]).failed(1, &second);
    assert!(!into.exists());
}

#[test]
fn fragments_come_back_on_demand_and_in_the_background() {
    let server = prepared();
    let hashes: Vec<String> = (0..5).map(|seed| add_fragment(&server, seed)).collect();
    let agent = Agent::start(&server);
    server.json(&["backup"]);
    server.archive();
    // On demand, into the server's own store.
    let lost = files(&server.store()).into_iter().find(|file| file.display().to_string().contains(&hashes[2])).unwrap();
    std::fs::remove_file(&lost).unwrap();
    let request = json!({"op": "fetch_fragment", "database_oid": database_oid(&server), "hash": hashes[2]});
    let answer = result(&server, &request);
    assert_eq!(answer["hash"], hashes[2].as_str());
    assert!(lost.exists());
    strata_fragment::verify_file(&lost).unwrap();
    let unknown = json!({"op": "fetch_fragment", "database_oid": 5, "hash": "0".repeat(64)});
    let events = ask(&server, &unknown);
    assert_eq!((&events[0]["event"], &events[0]["kind"]), (&json!("error"), &json!("missing")));
    drop(agent);

    let back = server.recover("latest", &[]);
    wait_for("all fragments", || hashes.iter().all(|hash| in_store(&back.store(), hash)));
    // The process that brought them ends by itself.
    wait_for("the end of the background agent", || UnixStream::connect(back.store().join("agent.sock")).is_err());
    drop(back);
    let back = server.recover("latest", &["--full"]);
    assert!(hashes.iter().all(|hash| in_store(&back.store(), hash)), "--full waits for all");
    // Its own agent serves, and does not write into the repository of the old server.
    let config = back.store().join("strata.toml");
    let said = common::as_user(server.program()).arg("--config").arg(&config).arg("backup").output().unwrap();
    assert_eq!(said.status.code(), Some(3), "archiving is off: {said:?}");
}

#[test]
fn a_damaged_fragment_of_the_store_is_replaced_when_that_is_asked_for() {
    let server = prepared();
    let hash = add_fragment(&server, 1);
    server.json(&["backup"]);
    // As the error about a damaged fragment says: no store and no database are named.
    let fetch = ["--output", "json", "fragment", "fetch", &hash];
    assert_eq!(server.run(&fetch).ok().json()["outcome"], "sound");
    let file = files(&server.store()).into_iter().find(|file| file.display().to_string().contains(&hash)).unwrap();
    common::flip(&file);
    assert_eq!(server.run(&fetch).ok().json()["outcome"], "replaced");
    strata_fragment::verify_file(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert_eq!(server.run(&fetch).ok().json()["outcome"], "fetched");
    strata_fragment::verify_file(&file).unwrap();
    // What is damaged in the repository never gets there.
    common::flip(&server.file(&format!("{hash}.frag")));
    common::flip(&file);
    server.run(&fetch).failed(6, &hash);
}

#[test]
fn fragments_of_a_dropped_database_are_gone_in_the_log() {
    let server = prepared();
    server.sql("CREATE DATABASE other TEMPLATE postgres");
    let agent = Agent::start(&server);
    let oid: u32 = server.sql("SELECT oid FROM pg_database WHERE datname = 'other'").parse().unwrap();
    let hash = "ab".repeat(32);
    let insert = format!(
        "INSERT INTO strata.fragment (relid, filenode, hash, first_row_id, row_count, bytes, heap_bytes) \
         VALUES ('t'::regclass, 1, '{hash}', 0, 1, 1, 1)"
    );
    // Before there is a repository, its directory must have nothing in it.
    wait_for("the repository", || server.repository.join("repository.json").exists());
    // The repository has it already, as that of a copied database.
    let kept = server.repository.join(format!("systems/test/fragments/ab/{hash}.frag"));
    std::fs::create_dir_all(kept.parent().unwrap()).unwrap();
    std::fs::write(&kept, "x").unwrap();
    give(&server.repository);
    common::psql(&server.dir, server.port, "other", &insert);
    let entry = server.repository.join(format!("systems/test/one/fragment-log/{oid}/{hash}-1-00000001.json"));
    wait_for("the fragment log", || entry.exists());
    server.sql("DROP DATABASE other WITH (FORCE)");
    wait_for("the note", || std::fs::read_to_string(&entry).unwrap().contains("dropped"));
    drop(agent);
}

#[test]
fn jobs_are_recorded_with_their_progress_and_result() {
    let server = prepared();
    let _agent = Agent::start(&server);
    let ping = result(&server, &json!({"op": "ping"}));
    assert_eq!((&ping["system"], &ping["member"]), (&json!("test"), &json!("one")));
    let events = ask(&server, &json!({"op": "backup", "label": "by socket"}));
    assert!(events.iter().any(|event| event["event"] == "progress" && event["phase"] == "data"), "{events:?}");
    let backup = &events.last().unwrap()["result"];
    assert_eq!(backup["label"], "by socket");
    let row = server.sql("SELECT kind, state, result->>'id', error IS NULL FROM strata.job");
    assert_eq!(row, format!("backup|done|{}|t", backup["id"].as_str().unwrap()));
    server.archive();
    let plan = result(&server, &json!({"op": "recovery_plan", "target": "latest"}));
    assert_eq!(plan["missing"], json!([]));
    let into = server.dir.join("by-socket");
    let request = json!({"op": "recover", "target": "latest", "into": into, "port": common::free_port(), "full": true});
    let recovered = result(&server, &request);
    common::stop(&into, "immediate");
    assert!(recovered["seconds_to_open"].as_f64().unwrap() > 0.0);
    // Again into the same directory: refused, and recorded as failed.
    let events = ask(&server, &request);
    assert_eq!(events.last().unwrap()["kind"], "conflict");
    assert_eq!(
        server.sql("SELECT kind, state FROM strata.job ORDER BY job_id"),
        "backup|done\nrecovery_plan|done\nrecover|done\nrecover|failed"
    );
    for bad in ["nonsense", "{}", "{\"op\":\"recovery_plan\",\"target\":\"soon\"}"] {
        let mut stream = UnixStream::connect(socket(&server)).unwrap();
        writeln!(stream, "{bad}").unwrap();
        let line = BufReader::new(stream).lines().next().unwrap().unwrap();
        let event: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&event["event"], &event["kind"]), (&json!("error"), &json!("usage")), "{bad}");
    }
}

#[test]
fn an_agent_that_was_killed_starts_again_and_clears_up() {
    let server = prepared();
    let agent = Agent::start(&server);
    server.run(&["agent"]).failed(5, "another process holds the lock");
    server.sql("INSERT INTO t SELECT generate_series(1, 300000)");
    let mut stream = UnixStream::connect(socket(&server)).unwrap();
    writeln!(stream, "{}", json!({"op": "backup"})).unwrap();
    wait_for("the job", || server.sql("SELECT count(*) FROM strata.job") == "1");
    agent.kill9();
    assert!(socket(&server).exists(), "a killed one leaves its socket");
    let _agent = Agent::start(&server);
    wait_for("the dead job to be marked", || {
        server.sql("SELECT count(*) FROM strata.job WHERE state = 'running'") == "0"
    });
    assert_eq!(server.sql("SELECT count(*) FROM strata.backup WHERE state = 'running'"), "0");
    let backup = result(&server, &json!({"op": "backup"}));
    assert!(backup["id"].is_string());
    server.run(&["verify"]).ok();
}

#[test]
fn the_agent_survives_the_server() {
    let server = prepared();
    let _agent = Agent::start(&server);
    server.down();
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert!(result(&server, &json!({"op": "ping"}))["pid"].is_u64());
    let events = ask(&server, &json!({"op": "backup"}));
    assert_eq!(events.last().unwrap()["kind"], "connection");
    server.up();
    let hash = add_fragment(&server, 9);
    wait_for("the fragment log", || in_repository(&server, &hash));
    // Other databases can be dropped and copied while it watches.
    for _ in 0..5 {
        server.sql("CREATE DATABASE other");
        std::thread::sleep(std::time::Duration::from_millis(300));
        server.sql("DROP DATABASE other");
    }
}

#[test]
fn a_missing_fragment_does_not_keep_the_hot_data_from_being_backed_up() {
    let server = prepared();
    let hash = add_fragment(&server, 1);
    let file = files(&server.store()).into_iter().find(|file| file.display().to_string().contains(&hash)).unwrap();
    let good = std::fs::read(&file).unwrap();
    common::flip(&file);
    let said = server.run(&["--output", "json", "backup"]);
    assert_eq!(said.json()["fragments_missing"], 1);
    said.failed(6, &hash);
    server.run(&["verify"]).failed(6, &hash);
    std::fs::write(&file, good).unwrap();
    server.run(&["backup"]).ok();
    // The first backup still lacks it by its own account, but the repository has it now.
    server.run(&["plan", "--to", "latest"]).ok();
}

#[test]
fn the_schedule_works_by_the_clock_and_makes_up_what_was_missed_once() {
    let server = prepared();
    let text = std::fs::read_to_string(&server.config).unwrap();
    // Each second, so that each is due at once.
    let more = "[schedule]\nexpire = \"* * * * * *\"\nbackup = \"0 3 1 1 *\"\n[retention]\nkeep_backups = 1\n";
    std::fs::write(&server.config, format!("{text}{more}")).unwrap();
    server.json(&["backup"]);
    let last = server.json(&["backup"])["id"].as_str().unwrap().to_owned();
    let recorded = || -> Vec<String> {
        let info = server.json(&["info"]);
        info["backups"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect()
    };
    let agent = Agent::start(&server);
    wait_for("the scheduled expire", || recorded() == [last.clone()]);
    wait_for("the job", || {
        server.sql("SELECT count(*) > 0 FROM strata.job WHERE kind = 'expire' AND state = 'done'") == "t"
    });
    assert_eq!(agent.stop(), Some(0));
    // A backup that was due many times while no agent ran is made up once.
    let path = server.repository.join("systems/test/one/schedule.json");
    let seal = |content: &Value| strata_sidecar::repository::sealed::seal(content).unwrap();
    std::fs::write(&path, seal(&json!({"backup": "2001-01-01T00:00:00Z", "expire": "2200-01-01T00:00:00Z"}))).unwrap();
    give(&path);
    let agent = Agent::start(&server);
    wait_for("the missed backup", || recorded().len() == 2);
    std::thread::sleep(std::time::Duration::from_secs(4));
    assert_eq!(recorded().len(), 2);
    wait_for("the mirror", || server.sql("SELECT count(*) FROM strata.backup WHERE state = 'complete'") == "2");
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn what_was_expired_goes_from_the_mirror() {
    let server = prepared();
    let hash = add_fragment(&server, 1);
    let agent = Agent::start(&server);
    server.json(&["backup"]);
    wait_for("the fragment log", || in_repository(&server, &hash));
    server.sql("DELETE FROM strata.fragment");
    std::thread::sleep(std::time::Duration::from_secs(1));
    server.archive();
    wait_for("the mirror", || server.sql("SELECT count(*) FROM strata.log_backup WHERE kind = 'fragment'") == "1");
    // The second backup is behind the fragment's life.
    server.json(&["backup"]);
    server.archive();
    wait_for("the mirror", || server.sql("SELECT count(*) FROM strata.backup WHERE state = 'complete'") == "2");
    let text = std::fs::read_to_string(&server.config).unwrap();
    std::fs::write(&server.config, format!("{text}[retention]\nkeep_backups = 1\n")).unwrap();
    let done = server.json(&["expire"]);
    assert_eq!(done["fragments"]["remove"], json!([hash]), "{done}");
    assert!(!in_repository(&server, &hash));
    wait_for("the mirror", || {
        server.sql("SELECT count(*) FROM strata.backup WHERE state = 'complete'") == "1"
            && server.sql("SELECT count(*) FROM strata.log_backup WHERE kind = 'fragment'") == "0"
    });
    let first = done["wal"]["remove"][0].as_str().unwrap();
    assert_eq!(server.sql(&format!("SELECT count(*) FROM strata.log_backup WHERE name = '{first}'")), "0");
    server.run(&["verify"]).ok();
    assert_eq!(agent.stop(), Some(0));
    // A fragment that comes back with the same content is copied again.
    let agent = Agent::start(&server);
    assert_eq!(add_fragment(&server, 1), hash);
    wait_for("the fragment", || in_repository(&server, &hash));
    assert_eq!(agent.stop(), Some(0));
}
