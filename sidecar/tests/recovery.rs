//! Recovery to a time, a position, a backup's end and the end of the archive, each compared with what was there.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Server, files, give, start, stop};

const DIGEST: &str = "SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0) FROM t";

struct Moment {
    time: String,
    lsn: String,
    digest: String,
}

fn moment(server: &Server) -> Moment {
    let digest = server.sql(DIGEST);
    let lsn = server.sql("SELECT pg_current_wal_insert_lsn()");
    std::thread::sleep(std::time::Duration::from_millis(20));
    let time = server.sql("SELECT clock_timestamp()");
    std::thread::sleep(std::time::Duration::from_millis(20));
    Moment { time, lsn, digest }
}

#[test]
fn every_moment_comes_back_as_it_was() {
    let server = Server::start();
    server.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 20000) g");
    let backup = server.json(&["backup", "--label", "first"]);
    let at_backup = server.sql(DIGEST);
    let mut moments = Vec::new();
    for step in 0..6 {
        server.sql(&format!("UPDATE t SET v = '{step}' WHERE id % 7 = {step}; DELETE FROM t WHERE id % 1000 = {step}"));
        if step == 3 {
            server.json(&["backup"]);
        }
        if step == 4 {
            server.archive();
        }
        moments.push(moment(&server));
    }
    server.archive();
    let end = server.sql(DIGEST);
    let after = server.sql("SELECT pg_current_wal_lsn()");
    server.down();
    std::fs::remove_dir_all(server.data()).unwrap();

    for (step, moment) in moments.iter().enumerate() {
        let target = if step % 2 == 0 { &moment.time } else { &moment.lsn };
        let back = server.recover(target, &[]);
        assert_eq!(back.sql(DIGEST), moment.digest, "step {step}, {target}");
        assert_eq!(back.sql("SHOW archive_mode"), "off");
        assert_eq!(back.sql("SELECT pg_is_in_recovery()"), "f");
        back.sql("INSERT INTO t VALUES (-1, 'open for writing')");
    }
    for target in ["latest", &after] {
        assert_eq!(server.recover(target, &[]).sql(DIGEST), end, "{target}");
    }
    let id = backup["id"].as_str().unwrap();
    assert_eq!(server.recover(id, &[]).sql(DIGEST), at_backup);
}

#[test]
fn tablespaces_go_to_a_new_place() {
    let server = Server::start();
    let space = server.dir.join("space");
    std::fs::create_dir(&space).unwrap();
    give(&space);
    server.sql(&format!("CREATE TABLESPACE s LOCATION '{}'", space.display()));
    server.sql("CREATE TABLE t (id int) TABLESPACE s; INSERT INTO t SELECT generate_series(1, 1000)");
    server.json(&["backup"]);
    server.archive();
    let digest = server.sql(DIGEST);
    let back = server.recover("latest", &[]);
    assert_eq!(back.sql(DIGEST), digest);
    let location = back.sql("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 's'");
    assert!(location.contains(&format!("{}.tablespaces/", back.dir.display())), "{location}");
    // The old server was not touched.
    server.sql("INSERT INTO t VALUES (0)");

    let elsewhere = server.dir.join("elsewhere");
    let map = format!("{}={}", space.display(), elsewhere.display());
    let back = server.recover("latest", &["--tablespace", &map]);
    assert_eq!(back.sql(DIGEST), digest);
    assert!(!files(&elsewhere).is_empty());
}

#[test]
fn a_log_that_makes_a_tablespace_is_replayed_only_when_that_is_wanted() {
    let server = Server::start();
    server.json(&["backup"]);
    let space = server.dir.join("space");
    std::fs::create_dir(&space).unwrap();
    give(&space);
    server.sql(&format!("CREATE TABLESPACE s LOCATION '{}'", space.display()));
    server.sql("CREATE TABLE t (id int) TABLESPACE s; INSERT INTO t SELECT generate_series(1, 1000)");
    server.archive();
    let digest = server.sql(DIGEST);
    let into = server.dir.join("back");
    let args = ["recover", "--to", "latest", "--into", into.to_str().unwrap()];
    server.run(&args).failed(1, "creates a tablespace");
    server.down();
    assert_eq!(server.recover("latest", &["--allow-tablespaces"]).sql(DIGEST), digest);
}

#[test]
fn a_data_directory_without_configuration_files_becomes_a_server() {
    let server = Server::start_with("max_connections = 37", None);
    // As some distributions have it: the files are elsewhere.
    server.down();
    let etc = server.dir.join("etc");
    std::fs::create_dir(&etc).unwrap();
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        std::fs::rename(server.data().join(name), etc.join(name)).unwrap();
    }
    let conf = etc.join("postgresql.conf");
    let text = std::fs::read_to_string(&conf).unwrap();
    let (data, etc_text) = (server.data().display().to_string(), etc.display().to_string());
    std::fs::write(&conf, format!("{text}\ndata_directory = '{data}'\nhba_file = '{etc_text}/pg_hba.conf'\nident_file = '{etc_text}/pg_ident.conf'\n")).unwrap();
    give(&etc);
    start(&etc);
    server.sql("CREATE TABLE t (id int); INSERT INTO t VALUES (1)");
    server.json(&["backup"]);
    server.archive();
    let into = server.dir.join("back");
    let port = common::free_port().to_string();
    // Without trust, only the operating system user gets in, over the socket.
    server.run(&["recover", "--to", "latest", "--into", &into.display().to_string(), "--port", &port]).ok();
    let count = common::as_user(common::bin().join("psql"))
        .args(["-XAtq", "-U", "postgres", "-h"])
        .arg(&server.dir)
        .args(["-p", &port, "-c", "SELECT count(*) || current_setting('max_connections') FROM t"])
        .output()
        .unwrap();
    stop(&into, "immediate");
    stop(&server.data(), "immediate");
    assert_eq!(String::from_utf8_lossy(&count.stdout).trim(), "137", "{count:?}");
}

#[test]
fn a_recovered_server_can_be_the_one_to_go_on_with() {
    let server = Server::start();
    server.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 5000) g");
    server.json(&["backup"]);
    server.archive();
    let back = server.recover("latest", &[]);
    server.down();
    let config = back.store().join("strata.toml");
    let strata = |args: &[&str]| {
        let mut command = common::as_user(server.program());
        command.arg("--config").arg(&config).args(args).current_dir("/");
        common::Said::from(command.output().unwrap())
    };
    assert_eq!(back.sql("SELECT string_agg(name, ' ') FROM pg_file_settings WHERE name ~ '^recovery_target'"), "");
    // As its strata.toml says: archive, and take a backup. Its first segments were not archived.
    back.sql(
        "INSERT INTO t SELECT g, 'on the new timeline' FROM generate_series(5001, 300000) g; SELECT pg_switch_wal()",
    );
    back.sql("INSERT INTO t VALUES (-1, 'x'); SELECT pg_switch_wal(); CHECKPOINT");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("read_only = true", "read_only = false")).unwrap();
    back.sql("ALTER SYSTEM SET archive_mode = on");
    let push = format!("{} --config {} wal push %p", server.program().display(), config.display());
    back.sql(&format!("ALTER SYSTEM SET archive_command = '{push}'"));
    stop(&back.dir, "fast");
    start(&back.dir);
    let backup = strata(&["--output", "json", "backup"]).ok().json();
    assert_eq!(backup["timeline"], 2, "{backup}");
    strata(&["check"]).ok();
    back.sql("UPDATE t SET v = 'at the end' WHERE id % 10 = 0");
    back.sql("SELECT pg_switch_wal()");
    strata(&["check"]).ok();
    let verified = strata(&["verify"]).ok();
    assert!(verified.out.contains("timeline 2 was not archived from 00000002"), "{verified:?}");
    let digest = back.sql(DIGEST);
    // Nobody recovers across the part that was never archived.
    let plan = server.run(&[
        "plan",
        "--to",
        "latest",
        "--backup",
        server.json(&["info"])["backups"][0]["id"].as_str().unwrap(),
    ]);
    plan.failed(1, "missing from the archive");
    for _ in 0..2 {
        let again = server.recover("latest", &[]);
        assert_eq!(again.sql(DIGEST), digest);
        assert_eq!(again.sql("SELECT timeline_id FROM pg_control_checkpoint()"), "3");
    }
}

#[test]
fn what_a_session_may_not_do_for_long_does_not_end_a_backup() {
    let server = Server::start();
    server.create_catalog();
    server.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 300000) g");
    server.sql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
    server.sql("ALTER DATABASE postgres SET idle_session_timeout = '50ms'");
    if server.sql("SELECT current_setting('transaction_timeout', true) IS NOT NULL") == "t" {
        server.sql("ALTER DATABASE postgres SET transaction_timeout = '100ms'");
    }
    server.sql("ALTER DATABASE postgres SET default_transaction_read_only = on");
    server.sql("SELECT pg_reload_conf()");
    let backup = server.json(&["backup", "--jobs", "1"]);
    let row = format!("SELECT state FROM strata.backup WHERE backup_id = '{}'", backup["id"].as_str().unwrap());
    assert_eq!(server.sql(&row), "complete");
    assert_eq!(server.sql("SELECT state FROM strata.job"), "done");
}

#[test]
fn configuration_files_in_any_encoding_are_kept() {
    let server = Server::start();
    let conf = server.data().join("postgresql.conf");
    let mut bytes = std::fs::read(&conf).unwrap();
    bytes.extend_from_slice(b"# sch\xf6n\nwork_mem = '7MB'\n");
    std::fs::write(&conf, bytes).unwrap();
    server.sql("CREATE TABLE t (id int); INSERT INTO t VALUES (1)");
    server.sql("ALTER SYSTEM SET maintenance_work_mem = '77MB'");
    let auto = server.data().join("postgresql.auto.conf");
    let mut bytes = std::fs::read(&auto).unwrap();
    bytes.extend_from_slice(b"# sch\xf6n\n");
    std::fs::write(&auto, bytes).unwrap();
    server.json(&["backup"]);
    server.archive();
    let back = server.recover("latest", &[]);
    assert_eq!(back.sql("SELECT current_setting('work_mem') || current_setting('maintenance_work_mem')"), "7MB77MB");
}

#[test]
fn a_configuration_that_leads_to_the_old_data_is_refused() {
    let server = Server::start();
    server.sql("CREATE TABLE t (id int)");
    std::fs::write(server.data().join("more.conf"), format!("data_directory = '{}'\n", server.data().display()))
        .unwrap();
    let conf = server.data().join("postgresql.conf");
    let text = std::fs::read_to_string(&conf).unwrap();
    std::fs::write(&conf, text + "include 'more.conf'\n").unwrap();
    give(&server.data());
    server.json(&["backup"]);
    server.archive();
    server.down();
    let into = server.dir.join("back");
    let port = common::free_port().to_string();
    let said = server.run(&["recover", "--to", "latest", "--into", into.to_str().unwrap(), "--port", &port]);
    said.failed(1, "leads to another data directory");
    assert!(!server.data().join("postmaster.pid").exists() && !into.join("postmaster.pid").exists());
}

#[test]
fn nothing_is_started_when_nothing_shall_be() {
    let server = Server::start();
    server.sql("CREATE TABLE t (id int); INSERT INTO t VALUES (1)");
    server.json(&["backup"]);
    server.archive();
    let into = server.dir.join("back");
    let said = server.json(&["recover", "--to", "latest", "--into", &into.display().to_string(), "--no-start"]);
    assert!(said["conninfo"].is_null() && said["seconds_to_open"].is_null(), "{said}");
    assert!(!into.join("postmaster.pid").exists());
    assert!(into.join("recovery.signal").exists());
    let port = said["port"].as_u64().unwrap();
    assert_eq!(port, u64::from(server.port), "the port is the one in the backup");
    server.down();
    start(&into);
    common::wait_for("the end of the recovery", || {
        common::psql(&server.dir, server.port, "postgres", "SELECT pg_is_in_recovery()") == "f"
    });
    assert_eq!(common::psql(&server.dir, server.port, "postgres", "SELECT count(*) FROM t"), "1");
    stop(&into, "immediate");
}

#[test]
fn what_happened_on_the_server_while_it_was_backed_up_does_not_matter() {
    let server = Server::start();
    server.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 200000) g");
    let mut backup = server.command(&["backup", "--jobs", "1"]).stdout(std::process::Stdio::null()).spawn().unwrap();
    let mut round = 0;
    while backup.try_wait().unwrap().is_none() {
        round += 1;
        server.sql(&format!(
            "CREATE TABLE n{round} AS SELECT generate_series(1, 3000) g; DROP TABLE IF EXISTS n{}; \
             UPDATE t SET v = md5(v) WHERE id % 50 = {}; CREATE TEMP TABLE x AS SELECT 1; TRUNCATE n{round}",
            round - 1,
            round % 50
        ));
    }
    assert!(backup.wait().unwrap().success());
    server.sql("CREATE UNLOGGED TABLE u AS SELECT 1 AS a");
    server.archive();
    let digest = server.sql(DIGEST);
    let back = server.recover("latest", &[]);
    assert_eq!(back.sql(DIGEST), digest);
    assert_eq!(back.sql("SELECT count(*) FROM u"), "0", "an unlogged table comes back empty");
    back.sql("REINDEX TABLE t");
}

#[test]
fn both_ends_of_the_window_come_back_and_what_is_outside_is_refused() {
    let server = Server::start();
    server.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 2000) g");
    server.json(&["backup"]);
    let at_backup = server.sql(DIGEST);
    server.sql("UPDATE t SET v = 'x' WHERE id % 3 = 0");
    let inside = moment(&server);
    server.archive();
    // A segment that is lost, and a backup behind it.
    server.sql("UPDATE t SET v = 'lost' WHERE id % 5 = 0");
    let lost_moment = moment(&server);
    let lost = server.archive();
    server.sql("UPDATE t SET v = 'y' WHERE id % 7 = 0");
    server.archive();
    std::fs::remove_file(server.file(&format!("{lost}.zst"))).unwrap();
    server.json(&["backup"]);
    let second = server.sql(DIGEST);
    server.sql("UPDATE t SET v = 'z' WHERE id % 11 = 0");
    server.archive();
    let end = server.sql(DIGEST);

    let info = server.json(&["info"]);
    let window = &info["recovery_window"][0];
    assert_eq!((&window["timeline"], &window["current"]), (&1.into(), &true.into()));
    let intervals = window["intervals"].as_array().unwrap();
    assert_eq!(intervals.len(), 2, "{window}");
    assert!(window["gaps"][0]["why"].as_str().unwrap().contains(&lost), "{window}");
    let text = |at: usize, key: &str| intervals[at][key].as_str().unwrap().to_owned();
    let digest = |target: &str| server.recover(target, &[]).sql(DIGEST);
    for key in ["from_lsn", "from_time"] {
        assert_eq!(digest(&text(0, key)), at_backup, "{key}");
        assert_eq!(digest(&text(1, key)), second, "{key}");
    }
    // Behind the last commit before the gap nobody knows what the lost segment committed when: by position only.
    assert_eq!(digest(&inside.lsn), inside.digest);
    assert_eq!(digest(&text(0, "to_lsn")), inside.digest);
    assert_eq!(digest(&text(1, "to_lsn")), end);
    assert_eq!(digest(&text(1, "to_time")), end);
    for outside in [&lost_moment.time, &lost_moment.lsn] {
        server.run(&["plan", "--to", outside]).failed(1, &lost);
    }
    assert!(server.run(&["info"]).ok().out.contains("not recoverable"));
}
