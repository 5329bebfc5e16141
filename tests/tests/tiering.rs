//! Policies, partitions made ahead, the background worker, and what the views say.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::time::Duration;
use strata_tests::process::wait_for;
use strata_tests::{Cluster, Options, checks, twin};

/// A partitioned table with six old months, and its twin.
const EVENTS: &str = "
    CREATE TABLE events (id bigint, at timestamptz, v text, PRIMARY KEY (at, id)) PARTITION BY RANGE (at);
    DO $$
    DECLARE m date;
    BEGIN
      FOR i IN 0..6 LOOP
        m := date_trunc('month', now())::date - make_interval(months => i);
        EXECUTE format('CREATE TABLE events_%s PARTITION OF events FOR VALUES FROM (%L) TO (%L)', to_char(m, 'YYYYMM'), m, m + interval '1 month');
      END LOOP;
    END $$;
    INSERT INTO events SELECT i, date_trunc('month', now()) - make_interval(days => i % 150), 'event ' || i FROM generate_series(1, 20000) i;
    CREATE TABLE twin AS TABLE events;
    ANALYZE events;";

#[test]
fn a_policy_moves_what_is_old_and_makes_partitions_ahead() {
    let cluster = Cluster::with(Options::new().set("strata.policy_interval", "0")).unwrap();
    let mut c = cluster.connect().unwrap();
    c.batch_execute(EVENTS).unwrap();
    let partitions = |c: &mut postgres::Client| -> i64 {
        c.query_one("SELECT count(*) FROM pg_inherits WHERE inhparent = 'events'::regclass", &[]).unwrap().get(0)
    };
    assert_eq!(partitions(&mut c), 7);
    c.batch_execute("SELECT strata.manage('events', hot_for => '60 days', partition_by => '1 month', ahead => 3)")
        .unwrap();
    c.batch_execute("CALL strata.run_policies()").unwrap();
    assert_eq!(partitions(&mut c), 10, "three months ahead");
    twin::assert_same(&mut c, "events", "twin").unwrap();
    let tiers = twin::rows(
        &mut c,
        "SELECT partition::text, tier, rows, warm_bytes, compression FROM strata.partitions ORDER BY 1",
    )
    .unwrap();
    let warm = tiers.iter().filter(|r| r[1].as_deref() == Some("warm")).count();
    assert!((4..=5).contains(&warm), "months that ended more than 60 days ago: {tiers:#?}");
    for row in tiers.iter().filter(|r| r[1].as_deref() == Some("warm") && r[2].as_deref() != Some("0")) {
        assert!(row[3].as_ref().unwrap().parse::<i64>().unwrap() > 0, "{row:?}");
        assert!(row[4].as_ref().unwrap().parse::<f64>().unwrap() > 1.0, "{row:?}");
    }
    let moves = twin::value(&mut c, "SELECT count(*) FROM strata.jobs WHERE kind = 'move' AND state = 'done'").unwrap();
    assert!(moves.parse::<usize>().unwrap() >= warm, "{moves} moves for {warm} partitions");
    c.batch_execute("CALL strata.run_policies()").unwrap();
    let again = twin::value(&mut c, "SELECT count(*) FROM strata.jobs WHERE kind = 'move'").unwrap();
    assert_eq!(again, moves, "a second run finds nothing to do");
    c.batch_execute("SELECT strata.unmanage('events')").unwrap();
    assert_eq!(twin::value(&mut c, "SELECT count(*) FROM strata.policy").unwrap(), "0");
    checks::store_is_exact(&cluster).unwrap();
    twin::assert_same(&mut c, "events", "twin").unwrap();
}

#[test]
fn the_background_worker_runs_policies_by_itself() {
    let cluster = Cluster::with(Options::new().set("strata.policy_interval", "1")).unwrap();
    let mut c = cluster.connect().unwrap();
    // Limits are for sessions of users. (This one has begun already.)
    c.batch_execute(
        "ALTER DATABASE postgres SET default_transaction_isolation = 'serializable';
         DO $$ BEGIN
           IF EXISTS (SELECT FROM pg_settings WHERE name = 'transaction_timeout') THEN
             ALTER DATABASE postgres SET transaction_timeout = '5ms';
           END IF;
         END $$",
    )
    .unwrap();
    c.batch_execute(EVENTS).unwrap();
    c.batch_execute("SELECT strata.manage('events', hot_for => '60 days')").unwrap();
    wait_for("the worker to move partitions", Duration::from_secs(60), || {
        twin::value(&mut c, "SELECT count(*) FROM strata.partitions WHERE tier = 'warm'")
            .is_ok_and(|n| n.parse::<i32>().unwrap() >= 4)
    })
    .unwrap();
    twin::assert_same(&mut c, "events", "twin").unwrap();
}

#[test]
fn index_expressions_run_as_the_owner_of_the_table() {
    let cluster = Cluster::with(Options::new().set("strata.policy_interval", "0")).unwrap();
    let mut c = cluster.connect().unwrap();
    c.batch_execute(
        "CREATE ROLE owner_of_t; GRANT CREATE ON SCHEMA public TO owner_of_t; SET ROLE owner_of_t;
         CREATE FUNCTION public.key_of(v text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN
           IF current_user <> 'owner_of_t' THEN RAISE EXCEPTION 'run as %', current_user; END IF;
           RETURN pg_catalog.upper(v);
         END $$;
         CREATE TABLE t (id int PRIMARY KEY, v text);
         INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 2000) i;
         CREATE INDEX t_key ON t (public.key_of(v));
         RESET ROLE",
    )
    .unwrap();
    // Rows that come and change while the superuser moves the table get their index entries from the move.
    for (run, function) in ["to_warm", "to_hot", "to_warm", "consolidate"].into_iter().enumerate() {
        c.batch_execute("SET strata.failpoint = 'move:before_swap=sleep:1500'").unwrap();
        std::thread::scope(|s| {
            let mover = s.spawn(|| c.batch_execute(&format!("SELECT strata.{function}('t')")));
            std::thread::sleep(std::time::Duration::from_millis(700));
            let mut owner = cluster.connect().unwrap();
            owner
                .batch_execute(&format!(
                    "SET ROLE owner_of_t; INSERT INTO t VALUES ({run} + 10000, 'late{run}'); UPDATE t SET v = 'changed{run}' WHERE id = {run} + 1"
                ))
                .unwrap();
            mover.join().unwrap().unwrap();
        });
        c.batch_execute(
            "RESET strata.failpoint; SET enable_seqscan = off; SET strata.enable_warm_scan = off; SET ROLE owner_of_t",
        )
        .unwrap();
        for what in ["late", "changed"] {
            let sql = format!("SELECT count(*) FROM t WHERE public.key_of(v) = upper('{what}{run}')");
            assert_eq!(twin::value(&mut c, &sql).unwrap(), "1", "{function}: {sql}");
        }
        c.batch_execute("RESET ROLE; RESET enable_seqscan; RESET strata.enable_warm_scan").unwrap();
    }
}

#[test]
fn late_rows_go_to_warm_partitions_and_stay_there() {
    let cluster = Cluster::with(Options::new().set("strata.policy_interval", "0")).unwrap();
    let mut c = cluster.connect().unwrap();
    c.batch_execute(EVENTS).unwrap();
    c.batch_execute("SELECT strata.manage('events', hot_for => '60 days')").unwrap();
    c.batch_execute("CALL strata.run_policies()").unwrap();
    for t in ["events", "twin"] {
        c.batch_execute(&format!(
            "INSERT INTO {t} SELECT i, date_trunc('month', now()) - make_interval(days => i % 150), 'late ' || i FROM generate_series(30001, 30500) i;
             UPDATE {t} SET v = 'changed' WHERE id % 97 = 0;
             DELETE FROM {t} WHERE id % 89 = 0"
        ))
        .unwrap();
    }
    twin::assert_same(&mut c, "events", "twin").unwrap();
    c.batch_execute("CALL strata.run_policies()").unwrap();
    c.batch_execute("VACUUM ANALYZE events").unwrap();
    twin::assert_same(&mut c, "events", "twin").unwrap();
    assert_eq!(
        checks::failure(&mut c, "INSERT INTO events SELECT * FROM events WHERE id = 30001").unwrap().0,
        "23505",
        "the key holds over both tiers"
    );
    checks::store_is_exact(&cluster).unwrap();
}

#[test]
fn set_access_method_moves_a_table_both_ways() {
    let cluster = Cluster::start().unwrap();
    let mut c = cluster.connect().unwrap();
    c.batch_execute("CREATE TABLE w (id int PRIMARY KEY, v text); INSERT INTO w SELECT i, md5(i::text) FROM generate_series(1, 5000) i; CREATE TABLE h AS TABLE w").unwrap();
    c.batch_execute("ALTER TABLE w SET ACCESS METHOD warm").unwrap();
    assert!(!cluster.fragment_files().is_empty(), "rows are in fragments");
    twin::assert_same(&mut c, "w", "h").unwrap();
    c.batch_execute(
        "UPDATE w SET v = 'x' WHERE id = 7; UPDATE h SET v = 'x' WHERE id = 7; ALTER TABLE w SET ACCESS METHOD heap",
    )
    .unwrap();
    twin::assert_same(&mut c, "w", "h").unwrap();
    checks::store_is_exact(&cluster).unwrap();
    assert!(cluster.fragment_files().is_empty(), "a hot table has no fragments");
    c.batch_execute("BEGIN; ALTER TABLE w SET ACCESS METHOD warm; ROLLBACK").unwrap();
    twin::assert_same(&mut c, "w", "h").unwrap();
    checks::store_is_exact(&cluster).unwrap();
    c.batch_execute("CREATE TABLE n (id int PRIMARY KEY, v text) USING warm; INSERT INTO n SELECT * FROM h").unwrap();
    twin::assert_same(&mut c, "n", "h").unwrap();
}

#[test]
fn explain_says_what_was_pruned() {
    let cluster = Cluster::start().unwrap();
    let mut c = cluster.connect().unwrap();
    c.batch_execute(
        "SET strata.fragment_rows = 10000; SET max_parallel_workers_per_gather = 0;
         CREATE TABLE w (id int PRIMARY KEY, d date, v text);
         INSERT INTO w SELECT i, date '2001-01-01' + i / 100, md5(i::text) FROM generate_series(1, 50000) i",
    )
    .unwrap();
    checks::rewarm(&mut c, "w").unwrap();
    c.batch_execute("ANALYZE w").unwrap();
    let plan =
        twin::plan(&mut c, "SELECT sum(length(v)) FROM w WHERE d BETWEEN '2001-02-01' AND '2001-02-03'").unwrap();
    assert!(plan.contains("Custom Scan (WarmScan)"), "{plan}");
    let lines: Vec<String> = twin::rows(
        &mut c,
        "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) SELECT sum(length(v)) FROM w WHERE d BETWEEN '2001-02-01' AND '2001-02-03'",
    )
    .unwrap()
    .into_iter()
    .filter_map(|r| r[0].clone())
    .collect();
    let said = lines.join("\n").to_lowercase();
    assert!(said.contains("fragments") && said.contains("pruned"), "{said}");
    assert!(said.contains("blocks"), "{said}");
}

/// A recovery may want a moment at which a dropped table was there: its fragments stay until the fragment log has them.
#[test]
fn a_sweep_waits_for_the_fragment_log() {
    let cluster = Cluster::with(Options::new().set("strata.policy_interval", "0")).unwrap();
    let mut c = cluster.connect().unwrap();
    for sql in [
        "CREATE TABLE t AS SELECT generate_series(1, 1000) AS id",
        "SELECT strata.to_warm('t')",
        "CREATE TABLE hashes AS SELECT hash FROM strata.fragment",
        "INSERT INTO strata.log_backup VALUES ('s', 'm', 'wal', '000000010000000000000001', 1, '0/1000000', '0/2000000', 1, 1, '', now())",
        "DROP TABLE t",
    ] {
        c.batch_execute(sql).unwrap();
    }
    let hour_ago = std::time::SystemTime::now() - Duration::from_secs(2 * 3600);
    for file in cluster.fragment_files() {
        std::fs::File::open(&file).unwrap().set_modified(hour_ago).unwrap();
    }
    let files = cluster.fragment_files().len();
    assert!(files > 0);
    c.batch_execute("SELECT strata.sweep()").unwrap();
    assert_eq!(cluster.fragment_files().len(), files, "the log does not have them yet");
    c.batch_execute(
        "INSERT INTO strata.log_backup SELECT 's', 'm', 'fragment', d.oid || '/' || hash, 1, NULL, NULL, 1, 1, hash, now()
         FROM hashes, pg_database d WHERE d.datname = current_database()",
    )
    .unwrap();
    c.batch_execute("SELECT strata.sweep()").unwrap();
    assert!(cluster.fragment_files().is_empty(), "the log has them");
    assert_eq!(twin::value(&mut c, "SELECT count(*) FROM strata.fragment").unwrap(), "0");
}

/// Deleted rows leave the fragments, rows of the delta store go into fragments, and a run of the policy does it.
#[test]
fn a_run_consolidates_worn_partitions() {
    let cluster = Cluster::with(Options::new().set("strata.policy_interval", "0")).unwrap();
    let mut c = cluster.connect().unwrap();
    c.batch_execute(EVENTS).unwrap();
    c.batch_execute("SELECT strata.manage('events', hot_for => '1 day', ahead => 0)").unwrap();
    c.batch_execute("CALL strata.run_policies()").unwrap();
    let jobs = |c: &mut postgres::Client| {
        twin::value(c, "SELECT count(*) FROM strata.jobs WHERE kind = 'consolidate' AND state = 'done'").unwrap()
    };
    c.batch_execute("CALL strata.run_policies()").unwrap();
    assert_eq!(jobs(&mut c), "0", "nothing is worn");
    for t in ["events", "twin"] {
        c.batch_execute(&format!("DELETE FROM {t} WHERE id % 3 = 0; UPDATE {t} SET v = v || '!' WHERE id % 5 = 0"))
            .unwrap();
    }
    let marks = twin::value(&mut c, "SELECT count(*) FROM strata.deletion").unwrap();
    assert_ne!(marks, "0");
    let bytes = "SELECT sum(bytes) FROM strata.fragments";
    let before: i64 = twin::value(&mut c, bytes).unwrap().parse().unwrap();
    c.batch_execute("CALL strata.run_policies()").unwrap();
    assert_ne!(jobs(&mut c), "0");
    assert_eq!(twin::value(&mut c, "SELECT count(*) FROM strata.jobs WHERE state = 'failed'").unwrap(), "0");
    let after: i64 = twin::value(&mut c, bytes).unwrap().parse().unwrap();
    assert!(after < before, "{before} bytes before, {after} after");
    assert_eq!(twin::value(&mut c, "SELECT count(*) FROM strata.deletion").unwrap(), "0");
    assert_eq!(twin::value(&mut c, "SELECT sum(deleted_rows) FROM strata.fragments").unwrap(), "0");
    twin::assert_same(&mut c, "events", "twin").unwrap();
    checks::store_is_exact(&cluster).unwrap();
    let done = jobs(&mut c);
    c.batch_execute("CALL strata.run_policies()").unwrap();
    assert_eq!(jobs(&mut c), done, "a second run finds nothing to do");
    twin::assert_same(&mut c, "events", "twin").unwrap();
}

/// VACUUM of a worn table has it consolidated, without a policy.
#[test]
fn a_vacuum_has_a_worn_table_consolidated() {
    let cluster = Cluster::with(Options::new().set("strata.policy_interval", "0").set("autovacuum", "off")).unwrap();
    let mut c = cluster.connect().unwrap();
    for t in ["w", "h"] {
        c.batch_execute(&format!(
            "CREATE TABLE {t} AS SELECT g AS id, 'row ' || g AS v FROM generate_series(1, 30000) g"
        ))
        .unwrap();
    }
    checks::rewarm(&mut c, "w").unwrap();
    let deleted = "SELECT sum(deleted_rows) FROM strata.fragments";
    for t in ["w", "h"] {
        c.batch_execute(&format!("DELETE FROM {t} WHERE id % 20 = 0")).unwrap();
    }
    c.batch_execute("VACUUM w").unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(twin::value(&mut c, deleted).unwrap(), "1500", "a twentieth is not worth it");
    for t in ["w", "h"] {
        c.batch_execute(&format!("DELETE FROM {t} WHERE id % 3 = 0")).unwrap();
    }
    c.batch_execute("SET strata.consolidate_on_vacuum = off").unwrap();
    c.batch_execute("VACUUM w").unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert_ne!(twin::value(&mut c, deleted).unwrap(), "0", "it was switched off");
    c.batch_execute("RESET strata.consolidate_on_vacuum").unwrap();
    c.batch_execute("VACUUM w").unwrap();
    wait_for("the consolidation", Duration::from_secs(30), || twin::value(&mut c, deleted).is_ok_and(|v| v == "0"))
        .unwrap();
    assert_eq!(twin::value(&mut c, "SELECT count(*) FROM strata.deletion").unwrap(), "0");
    twin::assert_same(&mut c, "w", "h").unwrap();
    checks::store_is_exact(&cluster).unwrap();
}

/// A policy by heat: what is not used becomes warm, what is used again becomes hot again.
#[test]
fn heat_moves_partitions_both_ways() {
    let cluster = Cluster::with(Options::new().set("strata.policy_interval", "0").set("autovacuum", "off")).unwrap();
    let mut c = cluster.connect().unwrap();
    c.batch_execute(EVENTS).unwrap();
    let run = |c: &mut postgres::Client| {
        c.batch_execute("SELECT pg_stat_force_next_flush()").unwrap();
        c.batch_execute("CALL strata.run_policies()").unwrap();
    };
    let tiers = |c: &mut postgres::Client, tier: &str| -> i64 {
        c.query_one("SELECT count(*) FROM strata.partitions WHERE tier = $1", &[&tier]).unwrap().get(0)
    };
    for (arguments, code) in [
        ("", "22004"),
        ("cold_below => 0", "22023"),
        ("cold_below => 5, hot_above => 4", "22023"),
        ("hot_for => '1 day', hot_above => 4", "22023"),
        ("cold_below => 5, half_life => '0'", "22023"),
    ] {
        let arguments = if arguments.is_empty() { String::new() } else { format!(", {arguments}") };
        let (found, said) = checks::failure(&mut c, &format!("SELECT strata.manage('events'{arguments})")).unwrap();
        assert_eq!(found, code, "{said}");
    }
    c.batch_execute(
        "SELECT strata.manage('events', cold_below => 5, hot_above => 50, half_life => '2 seconds', ahead => 0)",
    )
    .unwrap();
    run(&mut c);
    assert_eq!(tiers(&mut c, "warm"), 0, "nobody has watched them yet");
    std::thread::sleep(Duration::from_millis(2500));
    run(&mut c);
    assert_eq!(
        (tiers(&mut c, "warm"), tiers(&mut c, "hot")),
        (6, 1),
        "all but the month that goes on are past, and unused"
    );

    let used = twin::value(&mut c, "SELECT min(partition::text) FROM strata.partitions").unwrap();
    for _ in 0..400 {
        c.batch_execute(&format!("SELECT count(*) FROM {used} WHERE id < 10")).unwrap();
    }
    run(&mut c);
    let hot = format!(
        "SELECT tier || ' ' || (heat > 50) || ' ' || (last_read IS NOT NULL) FROM strata.partitions WHERE partition::text = '{used}'"
    );
    assert_eq!(twin::value(&mut c, &hot).unwrap(), "hot true true");
    assert_eq!(tiers(&mut c, "warm"), 5, "only that one");
    let job = "SELECT count(*) FROM strata.jobs WHERE kind = 'move' AND phase = 'to hot' AND state = 'done'";
    assert_eq!(twin::value(&mut c, job).unwrap(), "1");
    run(&mut c);
    assert_eq!(twin::value(&mut c, &hot).unwrap(), "hot true true", "it stays there while it is used");
    wait_for("the partition to cool down", Duration::from_secs(60), || {
        std::thread::sleep(Duration::from_millis(500));
        run(&mut c);
        tiers(&mut c, "warm") == 6
    })
    .unwrap();
    twin::assert_same(&mut c, "events", "twin").unwrap();
    c.batch_execute("DROP TABLE events").unwrap();
    assert_eq!(twin::value(&mut c, "SELECT count(*) FROM strata.heat").unwrap(), "0");
}

#[test]
fn a_limit_slows_moves_down_and_nobody_else() {
    let cluster = Cluster::with(Options::new().set("strata.policy_interval", "0")).unwrap();
    let mut c = cluster.connect().unwrap();
    c.batch_execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, repeat('v', 100) FROM generate_series(1, 20000) i;
         CREATE TABLE twin AS TABLE t; SET strata.move_rate = '2MB'",
    )
    .unwrap();
    let bytes: i64 = c.query_one("SELECT pg_relation_size('t')", &[]).unwrap().get(0);
    // The first fifth of a second is not limited.
    let least = Duration::from_secs_f64(bytes as f64 / f64::from(2 << 20) - 0.3);
    for sql in ["SELECT strata.to_warm('t')", "SELECT strata.to_hot('t')"] {
        let begin = std::time::Instant::now();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut other = cluster.connect().unwrap();
                std::thread::sleep(Duration::from_millis(300));
                other
                    .batch_execute(
                        "SET lock_timeout = '1s'; INSERT INTO t VALUES (0, 'late'); DELETE FROM t WHERE id = 0",
                    )
                    .unwrap();
                begin.elapsed()
            });
            c.batch_execute(sql).unwrap();
            assert!(begin.elapsed() >= least, "{sql}: {:?} for {bytes} bytes, at least {least:?}", begin.elapsed());
            assert!(reader.join().unwrap() < begin.elapsed(), "a writer waited for the whole of {sql}");
        });
        twin::assert_same(&mut c, "t", "twin").unwrap();
    }
    let canceled =
        c.batch_execute("SET statement_timeout = '100ms'; SET strata.move_rate = '64kB'; SELECT strata.to_warm('t')");
    let error = canceled.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "57014", "{error}");
    c.batch_execute("RESET statement_timeout; RESET strata.move_rate; SELECT strata.to_warm('t')").unwrap();
    twin::assert_same(&mut c, "t", "twin").unwrap();
    checks::store_is_exact(&cluster).unwrap();
}

/// Changes of every kind that are in progress while a table moves, and are then taken back or kept.
#[test]
fn what_is_in_progress_while_a_table_moves_is_neither_lost_nor_kept() {
    let cluster = Cluster::with(Options::new().set("autovacuum", "off").set("strata.snapshot_wait", "0")).unwrap();
    std::thread::scope(|scope| {
        for (number, (setup, sql)) in [
            ("", "SELECT strata.to_warm('TABLE')"),
            (
                "SELECT strata.to_warm('TABLE'); UPDATE TABLE SET v = v || '.' WHERE id <= 300",
                "SELECT strata.consolidate('TABLE')",
            ),
            (
                "SELECT strata.to_warm('TABLE'); UPDATE TABLE SET v = v || '.' WHERE id <= 300",
                "SELECT strata.to_hot('TABLE')",
            ),
        ]
        .into_iter()
        .enumerate()
        {
            for end in ["ROLLBACK", "COMMIT"] {
                let cluster = &cluster;
                let table = format!("m{number}_{}", end.to_lowercase());
                let sql = sql.replace("TABLE", &table);
                let setup = setup.replace("TABLE", &table);
                scope.spawn(move || {
                    let mut c = cluster.connect().unwrap();
                    let make = format!("CREATE TABLE {table} (id int PRIMARY KEY, k int, v text); CREATE INDEX ON {table} (k);
                        INSERT INTO {table} SELECT i, i % 50, 'v' || i FROM generate_series(1, 1000) i");
                    c.batch_execute(&make).unwrap();
                    let all: Vec<String> = setup.split(';').map(str::to_owned).collect();
                    all.iter().for_each(|sql| c.batch_execute(sql).unwrap());
                    c.batch_execute(&format!("CREATE TABLE {table}_twin AS TABLE {table}; ALTER TABLE {table}_twin ADD PRIMARY KEY (id)")).unwrap();
                    let mut open = cluster.connect().unwrap();
                    open.batch_execute("BEGIN").unwrap();
                    for name in [table.clone(), format!("{table}_twin")] {
                        open.batch_execute(&format!(
                            "DELETE FROM {name} WHERE id % 10 = 1; UPDATE {name} SET k = k + 1 WHERE id % 10 = 2;
                             UPDATE {name} SET id = id + 5000 WHERE id % 10 = 3; SELECT * FROM {name} WHERE id % 10 = 4 FOR UPDATE;
                             SAVEPOINT s; DELETE FROM {name} WHERE id % 10 = 5; UPDATE {name} SET v = 's' WHERE id % 10 = 6; ROLLBACK TO s;
                             UPDATE {name} SET v = 'again' WHERE id % 20 = 5; INSERT INTO {name} VALUES (7001, 1, 'new');
                             INSERT INTO {name} SELECT i, 2, 'one' FROM generate_series(1, 100) i ON CONFLICT (id) DO UPDATE SET v = 'upsert' WHERE excluded.id % 3 = 0"
                        ))
                        .unwrap();
                    }
                    let pid: i32 = c.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
                    let moves = std::thread::spawn(move || {
                        c.batch_execute(&sql).unwrap();
                        c
                    });
                    // Everything is read, and only the exclusive lock is missing.
                    let mut watch = cluster.connect().unwrap();
                    let activity = format!(
                        "SELECT concat_ws(' ', wait_event_type, wait_event, state, query) FROM pg_stat_activity WHERE pid = {pid}"
                    );
                    let mut seen = String::new();
                    let waited = wait_for("the swap", Duration::from_secs(60), || {
                        seen = twin::value(&mut watch, &activity).unwrap();
                        seen.starts_with("Lock ")
                    });
                    if let Err(error) = waited {
                        panic!("{table}: {error:#}; the move is at: {seen}");
                    }
                    open.batch_execute(end).unwrap();
                    let mut c = moves.join().unwrap();
                    twin::assert_same(&mut c, &table, &format!("{table}_twin")).unwrap();
                    checks::key_is_exact(&mut c, &table, "id").unwrap();
                    let rest = format!("UPDATE {table} SET v = v || '!' WHERE id % 5 IN (0, 1, 2, 3)");
                    for sql in [rest.clone(), rest.replace(&table, &format!("{table}_twin"))] {
                        c.batch_execute(&sql).unwrap();
                    }
                    twin::assert_same(&mut c, &table, &format!("{table}_twin")).unwrap();
                });
            }
        }
    });
}
