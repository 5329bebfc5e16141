//! What copies and checks whole databases: pg_dump with pg_restore in each format, pg_dumpall, pg_amcheck; and tablespaces.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use postgres::Client;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use strata_tests::process::{give_to_server, run};
use strata_tests::{Cluster, Options, checks, twin};

fn quiet() -> Options {
    Options::new().set("strata.policy_interval", "0").set("strata.fragment_rows", "1000")
}

/// A warm table of every kind of index with its heap twin, and a managed partitioned table with a warm and a hot partition.
fn tables(c: &mut Client) {
    for t in ["w", "h"] {
        c.batch_execute(&format!(
            "CREATE TABLE {t} (id int PRIMARY KEY, k int NOT NULL, v text, f float8, tags int[], EXCLUDE USING hash (f WITH =));
             CREATE INDEX ON {t} (k); CREATE INDEX ON {t} (lower(v)); CREATE INDEX ON {t} (v) WHERE k = 3; CREATE UNIQUE INDEX ON {t} (f);
             CREATE INDEX ON {t} USING hash (k); CREATE INDEX ON {t} USING gin (tags); CREATE INDEX ON {t} USING brin (id);
             INSERT INTO {t} SELECT i, i % 20, md5(i::text), i / 7.0, ARRAY[i % 5, i % 9] FROM generate_series(1, 4000) i"
        ))
        .unwrap();
    }
    c.batch_execute(
        "CREATE TABLE p (at date NOT NULL, v int) PARTITION BY RANGE (at);
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM ('2020-01-01') TO ('2020-02-01');
         CREATE TABLE p2 PARTITION OF p FOR VALUES FROM ('2020-02-01') TO ('2020-03-01');
         INSERT INTO p SELECT date '2020-01-01' + i % 60, i FROM generate_series(0, 999) i;
         SELECT strata.manage('p', hot_for => '30 days', ahead => 0)",
    )
    .unwrap();
    checks::rewarm(c, "w").unwrap();
    checks::rewarm(c, "p1").unwrap();
    for t in ["w", "h"] {
        c.batch_execute(&format!(
            "UPDATE {t} SET v = 'changed' WHERE id % 9 = 1; DELETE FROM {t} WHERE id % 8 = 2; INSERT INTO {t} VALUES (9000, 3, 'late', -1, '{{7}}')"
        ))
        .unwrap();
    }
}

const AMS: &str = "SELECT string_agg(c.relname || ' ' || amname, ', ' ORDER BY c.relname) FROM pg_class c JOIN pg_am a ON a.oid = c.relam
                    WHERE c.relname IN ('w', 'h', 'p1', 'p2')";

/// What was restored is what was dumped, and goes on living.
fn restored(c: &mut Client, from: &mut Client, what: &str, tiers: &str) {
    for t in ["w", "h", "p"] {
        assert_eq!(twin::digest(c, t).unwrap(), twin::digest(from, t).unwrap(), "{what}: {t}");
    }
    assert_eq!(twin::value(c, AMS).unwrap(), tiers, "{what}");
    assert_eq!(twin::value(c, "SELECT relid || ' ' || hot_for FROM strata.policy").unwrap(), "p 30 days", "{what}");
    // Nothing of the other server's catalog came along: the rows are in the delta store.
    assert_eq!(twin::value(c, "SELECT count(*) FROM strata.fragment").unwrap(), "0", "{what}");
    checks::rewarm(c, "w").unwrap();
    assert_ne!(twin::value(c, "SELECT count(*) FROM strata.fragment").unwrap(), "0", "{what}");
    twin::assert_same(c, "w", "h").unwrap();
    checks::key_is_exact(c, "w", "id").unwrap();
    assert_eq!(checks::failure(c, "INSERT INTO w VALUES (9000, 1, 'twice', -2, NULL)").unwrap().0, "23505", "{what}");
}

#[test]
fn a_dump_is_restored_in_every_format_and_in_both_tiers() {
    let cluster = Cluster::with(quiet()).unwrap();
    let mut c = cluster.connect().unwrap();
    tables(&mut c);
    let warm = "h heap, p1 warm, p2 heap, w warm";
    for (format, jobs, options, tiers) in [
        ("custom", "1", [].as_slice(), warm),
        ("directory", "2", [].as_slice(), warm),
        ("tar", "1", ["--single-transaction"].as_slice(), warm),
        ("custom", "1", ["--no-table-access-method"].as_slice(), "h heap, p1 heap, p2 heap, w heap"),
    ] {
        let what = format!("{format} {options:?}");
        let file = cluster.dir().join("dump");
        let mut dump = cluster.program("pg_dump");
        dump.args(["--format", format, "--file"]).arg(&file);
        if jobs != "1" {
            dump.args(["--jobs", jobs]);
        }
        run(&mut dump).unwrap();
        c.batch_execute("CREATE DATABASE copy TEMPLATE template0").unwrap();
        let mut restore = cluster.program("pg_restore");
        restore.args(["--exit-on-error", "--dbname=copy"]).args(options);
        if jobs != "1" {
            restore.args(["--jobs", jobs]);
        }
        run(restore.arg(&file)).unwrap();
        restored(&mut cluster.connect_to("copy").unwrap(), &mut c, &what, tiers);
        c.batch_execute("DROP DATABASE copy WITH (FORCE)").unwrap();
        let _ = std::fs::remove_file(&file).or_else(|_| std::fs::remove_dir_all(&file));
    }
}

#[test]
fn pg_dumpall_goes_into_a_new_server() {
    let cluster = Cluster::with(quiet()).unwrap();
    let mut c = cluster.connect().unwrap();
    tables(&mut c);
    c.batch_execute("CREATE ROLE operator LOGIN IN ROLE strata_operate; ALTER TABLE p OWNER TO operator; ALTER TABLE p1 OWNER TO operator").unwrap();
    let file = cluster.dir().join("all.sql");
    run(cluster.program("pg_dumpall").arg("--file").arg(&file)).unwrap();
    let new = Cluster::initialized(&quiet()).unwrap();
    new.up().unwrap();
    let said = new.program("psql").args(["-X", "-q", "-f"]).arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    let errors: Vec<&str> = said.lines().filter(|l| l.contains("ERROR") || l.contains("FATAL")).collect();
    assert!(errors.len() == 1 && errors[0].contains("role \"postgres\" already exists"), "{said}");
    let mut n = new.connect().unwrap();
    restored(&mut n, &mut c, "pg_dumpall", "h heap, p1 warm, p2 heap, w warm");
    n.batch_execute("SET ROLE operator; SELECT strata.to_hot('p1'); SELECT strata.to_warm('p1'); RESET ROLE").unwrap();
}

/// By itself pg_amcheck takes heap tables and their indexes only; asked for indexes, it checks those of warm tables as well, and heapallindexed
/// looks for every row that an index is to have.
#[test]
fn pg_amcheck_checks_the_indexes_of_warm_tables() {
    let cluster = Cluster::with(quiet()).unwrap();
    let mut c = cluster.connect().unwrap();
    tables(&mut c);
    c.batch_execute(
        "CREATE EXTENSION amcheck; ALTER TABLE w ADD UNIQUE (k, id) DEFERRABLE; CREATE INDEX ON w ((id + k))",
    )
    .unwrap();
    let amcheck = |what: &str, wanted: &[&str]| {
        let mut check = cluster.program("pg_amcheck");
        check
            .args(["--verbose", "--heapallindexed", "--parent-check", "--rootdescend", "--on-error-stop"])
            .args(wanted)
            .arg("postgres");
        let said = check.output().unwrap();
        let text = format!("{}\n{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
        assert!(said.status.success(), "{what} {wanted:?}: {text}");
        text
    };
    let round = |what: &str| {
        let text = amcheck(what, &[]);
        assert!(text.contains("checking heap table \"postgres.public.h\""), "{what}: {text}");
        assert!(!text.contains("postgres.public.w\""), "{what}: {text}");
        let text = amcheck(what, &["--index=*.*"]);
        for checked in ["w_pkey", "w_k_idx", "w_lower_idx", "w_v_idx", "w_f_idx", "w_k_id_key", "w_expr_idx", "h_pkey"]
        {
            assert!(
                text.contains(&format!("checking btree index \"postgres.public.{checked}\"")),
                "{what}: {checked}: {text}"
            );
        }
    };
    round("after changes");
    c.batch_execute("VACUUM w").unwrap();
    c.batch_execute("SELECT strata.consolidate('w')").unwrap();
    round("after a consolidation");
    c.batch_execute("REINDEX TABLE w; SELECT strata.to_hot('p1'); SELECT strata.to_warm('p1')").unwrap();
    round("after REINDEX");
    c.batch_execute("REINDEX TABLE CONCURRENTLY w").unwrap();
    round("after REINDEX CONCURRENTLY");
    checks::rewarm(&mut c, "w").unwrap();
    round("after a move");
    let (code, text) = checks::failure(&mut c, "SELECT * FROM verify_heapam('w')").unwrap();
    assert!(["0A000", "42809"].contains(&code.as_str()) && text.contains("heap AM"), "{code} {text}");
    // An entry that is not there is found: the check above could have failed.
    c.batch_execute(
        "UPDATE pg_index SET indisready = false WHERE indexrelid = 'w_k_idx'::regclass; INSERT INTO w VALUES (9001, 4, 'unseen', -3, NULL);
         UPDATE pg_index SET indisready = true WHERE indexrelid = 'w_k_idx'::regclass",
    )
    .unwrap();
    let (code, text) = checks::failure(&mut c, "SELECT bt_index_check('w_k_idx', true)").unwrap();
    assert_eq!(code, "XX001", "{text}");
}

fn space(cluster: &Cluster, c: &mut Client, name: &str) {
    let dir = cluster.dir().join(name);
    std::fs::create_dir(&dir).unwrap();
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700)).unwrap();
    give_to_server(&dir).unwrap();
    c.batch_execute(&format!("CREATE TABLESPACE {name} LOCATION '{}'", dir.display())).unwrap();
}

#[test]
fn tables_and_indexes_stay_in_their_tablespaces() {
    let cluster = Cluster::with(quiet()).unwrap();
    let mut c = cluster.connect().unwrap();
    space(&cluster, &mut c, "one");
    space(&cluster, &mut c, "two");
    c.batch_execute(
        "CREATE TABLE w (id int, v text) TABLESPACE one; CREATE UNIQUE INDEX w_id ON w (id) TABLESPACE two; CREATE INDEX w_v ON w USING hash (v);
         ALTER TABLE w ADD PRIMARY KEY (id) USING INDEX TABLESPACE one; INSERT INTO w SELECT i, md5(i::text) FROM generate_series(1, 3000) i;
         CREATE TABLE h AS TABLE w",
    )
    .unwrap();
    let places = "SELECT string_agg(relname || ' ' || coalesce(spcname, '-'), ', ' ORDER BY relname)
                    FROM pg_class c LEFT JOIN pg_tablespace t ON t.oid = c.reltablespace WHERE relname IN ('w', 'w_id', 'w_pkey', 'w_v')";
    let at = "w one, w_id two, w_pkey one, w_v -";
    for step in [
        "SELECT strata.to_warm('w')",
        "SELECT strata.consolidate('w')",
        "VACUUM FULL w",
        "SELECT strata.to_hot('w')",
        "SELECT strata.to_warm('w')",
    ] {
        c.batch_execute(step).unwrap();
        assert_eq!(twin::value(&mut c, places).unwrap(), at, "{step}");
        for t in ["w", "h"] {
            c.batch_execute(&format!("UPDATE {t} SET v = v || '!' WHERE id % 7 = 1; DELETE FROM {t} WHERE id % 400 = 1 OR id = (SELECT min(id) FROM {t})")).unwrap();
        }
        twin::assert_same(&mut c, "w", "h").unwrap();
        checks::key_is_exact(&mut c, "w", "id").unwrap();
    }
    for (step, now) in [
        ("ALTER TABLE w SET TABLESPACE two", "w two, w_id two, w_pkey one, w_v -"),
        ("ALTER INDEX w_v SET TABLESPACE two", "w two, w_id two, w_pkey one, w_v two"),
        ("SELECT strata.consolidate('w')", "w two, w_id two, w_pkey one, w_v two"),
        ("ALTER TABLE w SET TABLESPACE pg_default", "w -, w_id two, w_pkey one, w_v two"),
        ("SELECT strata.to_hot('w')", "w -, w_id two, w_pkey one, w_v two"),
    ] {
        c.batch_execute(step).unwrap();
        assert_eq!(twin::value(&mut c, places).unwrap(), now, "{step}");
        twin::assert_same(&mut c, "w", "h").unwrap();
        checks::key_is_exact(&mut c, "w", "id").unwrap();
    }
    checks::store_is_exact(&cluster).unwrap();
    assert!(Path::new(cluster.store()).exists());
    // A tablespace that holds a warm table is not dropped, and can be when it does not.
    assert_eq!(checks::failure(&mut c, "DROP TABLESPACE two").unwrap().0, "55000");
    c.batch_execute("DROP TABLE w").unwrap();
    c.batch_execute("DROP TABLESPACE two").unwrap();
}
