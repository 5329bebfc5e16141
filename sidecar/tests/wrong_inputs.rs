//! Wrong inputs: a clear error that names the value, the right exit code, and nothing half done.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::Server;

#[test]
fn each_wrong_input_has_its_exit_code() {
    let server = Server::start();
    server.run(&["frobnicate"]).failed(2, "frobnicate");
    server.run(&["recover", "--to", "latest"]).failed(2, "--into");
    server.run(&["info"]).failed(1, "no repository");
    let early = server.sql("SELECT clock_timestamp()");
    server.run(&["check"]).ok();
    server.run(&["check", "--agent"]).failed(4, "agent.sock");
    server.run(&["plan"]).failed(1, "no backup");
    assert_eq!(server.json(&["info"])["backups"], serde_json::json!([]));
    server.run(&["plan", "--to", "next tuesday"]).failed(2, "next tuesday");
    server.json(&["backup"]);
    server.archive();
    let into = server.dir.join("back");
    let into = into.to_str().unwrap();
    server.run(&["recover", "--to", &early, "--into", into]).failed(1, "before the end of the first backup");
    server.run(&["recover", "--to", "FFFF/0", "--into", into]).failed(1, "FFFF/0");
    server.run(&["recover", "--to", "2999-01-01 00:00:00Z", "--into", into]).failed(1, "after the end of the archive");
    server.run(&["recover", "--to", "20200101T000000Z", "--into", into]).failed(1, "20200101T000000Z");
    server.run(&["recover", "--to", "latest", "--timeline", "7", "--into", into]).failed(1, "timeline 7");
    server.run(&["recover", "--to", "latest", "--into", into, "--tablespace", "9=/x"]).failed(2, "tablespace \"9\"");
    let data = server.data();
    server.run(&["recover", "--to", "latest", "--into", data.to_str().unwrap()]).failed(1, "a server runs in");
    assert!(!std::path::Path::new(into).exists(), "nothing is half done");
    let port = server.port.to_string();
    server.run(&["recover", "--to", "latest", "--into", into, "--port", &port]).failed(1, &port);
    assert!(!std::path::Path::new(into).exists(), "a port that is taken is seen before anything is laid out");
    server.run(&["recover", "--to", "latest", "--into", into]).failed(1, &port);
    server.run(&["backup", "--label", "one\nSTART TIMELINE: 7"]).failed(2, "one line");
    std::fs::create_dir(into).unwrap();
    std::fs::write(format!("{into}/mine"), "precious").unwrap();
    common::give(std::path::Path::new(into));
    server.run(&["recover", "--to", "latest", "--into", into]).failed(1, "is not empty");
    assert_eq!(std::fs::read_to_string(format!("{into}/mine")).unwrap(), "precious");
    if common::is_root() {
        let root = |args: &[&str]| {
            let mut command = std::process::Command::new(server.program());
            common::Said::from(command.arg("--config").arg(&server.config).args(args).output().unwrap())
        };
        root(&["check"]).failed(1, "runuser");
        let segment = data.join("pg_wal").join(server.sql("SELECT pg_walfile_name(pg_current_wal_lsn())"));
        root(&["wal", "push", segment.to_str().unwrap()]).failed(1, "belongs to user id");
        let output = std::process::Command::new(server.program())
            .arg("--config")
            .arg(&server.config)
            .args(["recover", "--to", "latest", "--into", "/nonexistent/x"])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("runuser"));
    }

    let hash = "0".repeat(64);
    let store = server.store();
    server.run(&["fragment", "fetch", &hash, "--database", "5", "--store", store.to_str().unwrap()]).failed(1, &hash);
    server.run(&["fragment", "fetch", "zz", "--database", "5", "--store", store.to_str().unwrap()]).failed(2, "zz");
    server.run(&["fragment", "inspect", "/nonexistent.frag"]).failed(1, "/nonexistent.frag");

    server.down();
    server.run(&["backup"]).failed(4, "could not connect");
    server.run(&["check"]).failed(4, "could not connect");
}

#[test]
fn a_server_that_does_not_archive_is_a_configuration_error() {
    let server = Server::start_with("archive_mode = off", None);
    server.run(&["backup"]).failed(3, "archive_mode");
    server.run(&["check"]).failed(3, "archive_mode");
    let server = Server::start_with("archive_command = 'false'", None);
    let config = std::fs::read_to_string(&server.config).unwrap().replace("20s", "1s");
    std::fs::write(&server.config, config).unwrap();
    let said = server.run(&["backup"]).failed(1, "did not arrive in the repository");
    assert!(said.err.contains("archive_command is: false"), "{said:?}");
    assert_eq!(server.json(&["info"])["backups"], serde_json::json!([]));
    server.run(&["check"]).failed(1, "did not arrive");
    // An archiver that gets on, but not here.
    server.sql("ALTER SYSTEM SET archive_command = 'true'");
    server.sql("SELECT pg_reload_conf()");
    server.run(&["backup"]).failed(1, "did not arrive in the repository");
}

#[test]
fn the_configuration_is_checked() {
    let server = Server::start();
    let good = std::fs::read_to_string(&server.config).unwrap();
    std::fs::write(&server.config, good.replace("[backup]", "[backup]\nspeed = 11")).unwrap();
    server.run(&["info"]).failed(3, "speed");
    std::fs::write(&server.config, good.replace("host=", "hots=")).unwrap();
    server.run(&["backup"]).failed(3, "conninfo");
    std::fs::remove_file(&server.config).unwrap();
    let config = server.config.display().to_string();
    server.run(&["info"]).failed(3, &config);
}

#[test]
fn a_conninfo_that_leads_to_another_server_is_noticed() {
    let (server, other) = (Server::start(), Server::start());
    let good = std::fs::read_to_string(&server.config).unwrap();
    let line = format!("[member]\ndata_directory = \"{}\"", other.data().display());
    std::fs::write(&server.config, good.replace("[member]", &line)).unwrap();
    for command in ["backup", "check"] {
        server.run(&[command]).failed(3, other.data().to_str().unwrap());
    }
    assert!(!server.repository.exists(), "nothing is half done");
}

#[test]
fn a_repository_that_must_be_there_is_not_made_by_a_push() {
    let server = Server::start_with("archive_mode = off", None);
    let good = std::fs::read_to_string(&server.config).unwrap();
    std::fs::write(&server.config, good.replace("[repository]", "[repository]\ncreate = false")).unwrap();
    let name = server.sql("SELECT pg_walfile_name(pg_switch_wal() - 1)");
    let segment = server.data().join("pg_wal").join(name);
    let push = ["wal", "push", segment.to_str().unwrap()];
    server.run(&push).failed(1, "repository.create is false");
    assert!(!server.repository.exists());
    std::fs::write(&server.config, good).unwrap();
    server.run(&push).ok();
}

#[test]
fn errors_are_json_when_that_is_asked_for() {
    let server = Server::start();
    let said = server.run(&["--output", "json", "plan", "--to", "nowhere"]);
    let error: serde_json::Value = serde_json::from_str(&said.err).unwrap();
    assert_eq!(error["error"]["kind"], "usage");
    assert_eq!(error["error"]["retryable"], false);
    assert!(error["error"]["message"].as_str().unwrap().contains("nowhere"));
    let said = server.run(&["--progress", "json", "--output", "json", "backup"]).ok();
    let first: serde_json::Value = serde_json::from_str(said.err.lines().next().unwrap()).unwrap();
    assert_eq!(first["event"], "progress");
    said.json();
}
