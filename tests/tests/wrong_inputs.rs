//! Wrong inputs get a clear error that names the value; nothing is half done.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::fs;
use strata_tests::{Cluster, Options, Strata, checks, process, recovered, twin};

#[test]
fn sql_functions_say_what_was_wrong() {
    let cluster = Cluster::start().unwrap();
    let mut c = cluster.connect().unwrap();
    c.batch_execute(
        "CREATE TABLE plain (id int PRIMARY KEY, at date);
         CREATE TABLE parted (id int, at date, PRIMARY KEY (at, id)) PARTITION BY RANGE (at);
         CREATE TABLE listed (id int, k text) PARTITION BY LIST (k);
         CREATE TABLE hashed (id int) PARTITION BY HASH (id);
         CREATE TABLE by_text (k text) PARTITION BY RANGE (k);
         CREATE VIEW v AS SELECT 1 AS a; CREATE INDEX i ON plain (at); CREATE SEQUENCE s; CREATE UNLOGGED TABLE u (a int);
         CREATE TEMP TABLE tmp (a int); CREATE TABLE warm_already (a int) USING warm",
    )
    .unwrap();
    for (sql, code, says) in [
        ("SELECT strata.to_warm('nowhere')", "42P01", "nowhere"),
        ("SELECT strata.to_warm('v')", "42809", "v"),
        ("SELECT strata.to_warm('i')", "42809", "i"),
        ("SELECT strata.to_warm('s')", "42809", "s"),
        ("SELECT strata.to_warm('pg_class')", "", "pg_class"),
        ("SELECT strata.to_warm('strata.fragment')", "", "fragment"),
        ("SELECT strata.to_warm('parted')", "42809", "parted"),
        ("SELECT strata.to_warm('warm_already')", "42809", "warm_already"),
        ("SELECT strata.to_hot('plain')", "42809", "plain"),
        ("SELECT strata.to_hot('v')", "42809", "v"),
        ("SELECT strata.manage('nowhere', '1 day')", "42P01", "nowhere"),
        ("SELECT strata.manage('plain', '1 day')", "42809", "plain"),
        ("SELECT strata.manage('listed', '1 day')", "", "listed"),
        ("SELECT strata.manage('hashed', '1 day')", "", "hashed"),
        ("SELECT strata.manage('by_text', '1 day')", "", "by_text"),
        ("SELECT strata.manage('parted', '-1 day')", "22023", ""),
        ("SELECT strata.manage('parted', '0')", "22023", ""),
        ("SELECT strata.manage('parted', '1 day', '-1 day')", "22023", ""),
        ("SELECT strata.manage('parted', '1 day', ahead => -1)", "22023", "-1"),
        ("SELECT strata.manage('parted', 'yesterday')", "22007", "yesterday"),
        ("SELECT strata.manage('parted', NULL)", "", ""),
        ("SELECT strata.unmanage('parted')", "", "parted"),
        ("SELECT strata.backup()", "58000", "agent"),
        ("SELECT strata.recovery_plan('latest')", "58000", "agent"),
        ("SELECT strata.recover('latest', '/nowhere')", "58000", "agent"),
        ("SET strata.fragment_rows = 0", "22023", "strata.fragment_rows"),
        ("SET strata.no_such_setting = 1", "42602", "strata.no_such_setting"),
    ] {
        let (found, said) = checks::failure(&mut c, sql).unwrap();
        assert!(code.is_empty() || found == code, "{sql}: {found} instead of {code}: {said}");
        assert!(!found.starts_with("XX"), "{sql} must not look like damage or a bug: {found} {said}");
        assert!(said.contains(says), "{sql}: \"{says}\" is not named: {said}");
    }
    assert_eq!(twin::value(&mut c, "SELECT count(*) FROM strata.policy").unwrap(), "0", "nothing is half done");
    assert_eq!(twin::value(&mut c, "SELECT count(*) FROM strata.fragment").unwrap(), "0");
    checks::store_is_exact(&cluster).unwrap();
}

#[test]
fn rights_are_needed() {
    let cluster = Cluster::start().unwrap();
    let mut c = cluster.connect().unwrap();
    c.batch_execute(
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 10);
         CREATE ROLE nobody_special LOGIN; CREATE ROLE owner_of LOGIN; GRANT CREATE ON SCHEMA public TO owner_of; SET ROLE nobody_special",
    )
    .unwrap();
    for sql in [
        "SELECT strata.to_warm('t')",
        "SELECT strata.to_hot('t')",
        "SELECT strata.manage('t', '1 day')",
        "SELECT strata.backup()",
        "SELECT strata.sweep()",
        "SELECT * FROM strata.deletion",
        "SET strata.failpoint = 'move:before_swap=kill'",
        "SELECT strata.recover('latest', '/tmp/x')",
    ] {
        let (code, said) = checks::failure(&mut c, sql).unwrap();
        assert_eq!(code, "42501", "{sql}: {said}");
    }
    // A table's owner, who is nobody special otherwise, can use warm tables like any other.
    c.batch_execute("RESET ROLE; ALTER TABLE t OWNER TO owner_of; SELECT strata.to_warm('t'); SET ROLE owner_of")
        .unwrap();
    c.batch_execute("INSERT INTO t VALUES (11); UPDATE t SET id = 100 WHERE id = 5; DELETE FROM t WHERE id = 6; SELECT * FROM t FOR UPDATE").unwrap();
    assert_eq!(twin::value(&mut c, "SELECT count(*) || ' ' || sum(id) FROM t").unwrap(), "10 155");
    c.batch_execute("TRUNCATE t; DROP TABLE t").unwrap();
}

#[test]
fn the_command_line_says_what_was_wrong() {
    let cluster = Cluster::with(Options::new().archiving()).unwrap();
    let mut c = cluster.connect().unwrap();
    c.batch_execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)").unwrap();
    let strata = Strata::configure(&cluster).unwrap();
    let fails = |args: &[&str], code: i32, says: &str| {
        let said = strata.try_run(args).unwrap();
        assert_eq!(said.code, code, "{args:?}: {}", said.all());
        assert!(said.stderr.contains(says), "{args:?}: \"{says}\" is not named: {}", said.all());
        assert!(!said.all().contains("panicked"), "{}", said.all());
    };
    fails(&["no-such-command"], 2, "no-such-command");
    fails(&["recover", "--into", "/tmp/x", "--sideways"], 2, "--sideways");
    fails(&["plan", "--to", "next tuesday"], 2, "next tuesday");
    // Nothing is archived yet.
    let said = strata.try_run(&["check"]).unwrap();
    assert_ne!(said.code, 0, "archiving is not set up: {}", said.all());

    strata.archive(&cluster).unwrap();
    strata.run(&["check"]).unwrap();
    let early = twin::value(&mut c, "SELECT clock_timestamp()").unwrap();
    fails(&["plan", "--to", "latest"], 1, "backup");
    let empty = strata.json(&["info"]).unwrap();
    assert!(empty["backups"].as_array().is_some_and(Vec::is_empty), "an empty list is []: {empty}");
    let _agent = strata_tests::Agent::start(&cluster, &strata).unwrap();
    std::thread::sleep(std::time::Duration::from_secs(1));
    strata.run(&["backup"]).unwrap();
    recovered::wait_archived(&mut c).unwrap();

    let place = recovered::place().unwrap();
    let into = place.join("data").display().to_string();
    // Before the first backup, and after the end of the log.
    fails(&["recover", "--to", &early, "--into", &into], 1, "backup");
    fails(&["recover", "--to", "FFFF/0", "--into", &into], 1, "FFFF/0");
    assert!(!place.join("data/PG_VERSION").exists(), "nothing is half done");
    // A directory that is in use, and one that is not empty.
    fails(
        &["recover", "--to", "latest", "--into", &cluster.data().display().to_string()],
        1,
        &cluster.data().display().to_string(),
    );
    fs::create_dir(place.join("data")).unwrap();
    fs::write(place.join("data/mine"), "precious").unwrap();
    process::give_to_server(&place.join("data")).unwrap();
    fails(&["recover", "--to", "latest", "--into", &into], 1, &into);
    assert_eq!(fs::read_to_string(place.join("data/mine")).unwrap(), "precious");
    // The same through SQL: the agent's error arrives.
    let (code, said) = checks::failure(&mut c, &format!("SELECT strata.recover('latest', '{into}')")).unwrap();
    assert!(said.contains(&into), "{code} {said}");
    let (_, said) = checks::failure(&mut c, "SELECT strata.recovery_plan('next tuesday')").unwrap();
    assert!(said.contains("next tuesday"), "{said}");
    fs::remove_dir_all(&place).unwrap();

    // The configuration.
    let bad = cluster.dir().join("bad.toml");
    fs::write(&bad, fs::read_to_string(strata.config()).unwrap() + "\nspeed = 11\n").unwrap();
    let run_with = |file: &str| {
        let out =
            process::as_server(strata_tests::sidecar::program()).args(["--config", file, "info"]).output().unwrap();
        (out.status.code().unwrap(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let (code, said) = run_with(bad.to_str().unwrap());
    assert!(code == 3 && said.contains("speed"), "{code} {said}");
    let (code, said) = run_with("/no/such/strata.toml");
    assert!(code == 3 && said.contains("/no/such/strata.toml"), "{code} {said}");

    // The server is gone.
    cluster.stop("fast").unwrap();
    let said = strata.try_run(&["backup"]).unwrap();
    assert_eq!(said.code, 4, "{}", said.all());
}
