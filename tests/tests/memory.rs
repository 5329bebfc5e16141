//! The memory budget of fragments: the same rows whether they are loaded, paged or read directly; what is chosen, and why; and
//! that nothing keeps more than it may: one backend over data five times the budget, many that share it, backends that
//! end or die.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use postgres::Client;
use std::fs;
use std::time::{Duration, Instant};
use strata_tests::process::{as_server, wait_for};
use strata_tests::script;
use strata_tests::{Cluster, Options, checks, twin};

const MB: i64 = 1 << 20;

/// A server with two warm tables that compress badly, and their heap twins: `w` in six partitions of together `mb` MB, and `v`.
fn server(options: Options, rows: u32) -> Cluster {
    let cluster = Cluster::with(options.set("autovacuum", "off").set("strata.memory_budget", "256MB")).unwrap();
    let mut c = cluster.connect().unwrap();
    let step = rows / 6;
    c.batch_execute(&format!(
        "SET strata.fragment_rows = 20000;
         CREATE TABLE h (id int PRIMARY KEY, a bigint, n numeric(12,2), g text, t text);
         INSERT INTO h SELECT i, hashint8extended(i, 1), (hashint4(i) % 1000000) / 100.0, 'g' || i % 7, md5(i::text) FROM generate_series(1, {rows}) i;
         CREATE INDEX ON h ((a % 1000)); ANALYZE h;
         CREATE TABLE w (id int PRIMARY KEY, a bigint, n numeric(12,2), g text, t text) PARTITION BY RANGE (id)"
    ))
    .unwrap();
    for p in 0..6 {
        let (from, to) = (p * step, if p == 5 { rows + 1 } else { (p + 1) * step });
        c.batch_execute(&format!("CREATE TABLE w{p} PARTITION OF w FOR VALUES FROM ({from}) TO ({to})")).unwrap();
    }
    c.batch_execute(&format!(
        "INSERT INTO w SELECT * FROM h; CREATE INDEX ON w ((a % 1000));
         CREATE TABLE k (id int PRIMARY KEY, x int); INSERT INTO k SELECT i, i % 11 FROM generate_series(1, {rows}, 37) i;
         CREATE TABLE v (LIKE k INCLUDING ALL); INSERT INTO v SELECT * FROM k"
    ))
    .unwrap();
    for t in ["w0", "w1", "w2", "w3", "w4", "w5", "v"] {
        checks::rewarm(&mut c, t).unwrap();
    }
    // Rows in the delta store as well, and deleted ones.
    for t in ["h", "w"] {
        c.batch_execute(&format!("UPDATE {t} SET g = 'new' WHERE id % 5003 = 1; DELETE FROM {t} WHERE id % 4999 = 2"))
            .unwrap();
    }
    c.batch_execute("ANALYZE").unwrap();
    drop(c);
    // The worker that has promoted rows ends soon.
    let mut c = cluster.connect().unwrap();
    wait_for("others to end", Duration::from_secs(20), || {
        number(&mut c, "SELECT count(*) FROM strata.stat_access") == 0
    })
    .unwrap();
    cluster
}

/// Sets the budget of the running server, and waits until this session has it.
fn budget(c: &mut Client, value: &str) {
    c.batch_execute(&format!("ALTER SYSTEM SET strata.memory_budget = '{value}'")).unwrap();
    c.batch_execute("SELECT pg_reload_conf()").unwrap();
    wait_for("the budget", Duration::from_secs(20), || {
        twin::value(c, "SHOW strata.memory_budget").is_ok_and(|v| v == value)
    })
    .unwrap();
}

fn number(c: &mut Client, sql: &str) -> i64 {
    twin::value(c, sql).unwrap().parse().unwrap()
}

/// The bytes of all fragments of `w`.
fn data_set(c: &mut Client) -> i64 {
    number(c, "SELECT sum(bytes) FROM strata.fragments WHERE \"table\"::text ~ '^w[0-9]$'")
}

fn mine(c: &mut Client, column: &str) -> i64 {
    number(c, &format!("SELECT {column} FROM strata.stat_access WHERE pid = pg_backend_pid()"))
}

/// The plan with what was done, its numbers of time left out.
fn explain(c: &mut Client, sql: &str) -> String {
    let sql = format!("EXPLAIN (ANALYZE, VERBOSE, COSTS OFF, TIMING OFF, SUMMARY OFF) {sql}");
    let rows = twin::rows(c, &sql).unwrap();
    rows.into_iter().filter_map(|r| r.into_iter().next().flatten()).collect::<Vec<_>>().join("\n")
}

/// The values of a property in a plan.
fn property(plan: &str, name: &str) -> Vec<String> {
    let prefix = format!("{name}: ");
    plan.lines().filter_map(|l| l.trim().strip_prefix(&prefix).map(str::to_owned)).collect()
}

const QUERIES: [&str; 16] = [
    "SELECT count(*), sum(a), sum(n), min(id), max(t) FROM {w}",
    "SELECT g, count(*), sum(n), avg(n), max(a) FROM {w} GROUP BY g ORDER BY g",
    "SELECT * FROM {w} WHERE id BETWEEN 7800 AND 8300 ORDER BY id",
    "SELECT id, t FROM {w} WHERE n < -9900 ORDER BY id",
    "SELECT t FROM {w} WHERE t < '01' COLLATE \"C\" ORDER BY t COLLATE \"C\"",
    "SELECT * FROM {w} WHERE id = 12346",
    "SELECT * FROM {w} WHERE id IN (3, 10003, 20003, 999999) ORDER BY id",
    "SELECT count(*), sum(a) FROM {w} WHERE a % 1000 = 7",
    "SELECT k.x, count(*), sum(w.n) FROM k JOIN {w} w USING (id) GROUP BY 1 ORDER BY 1",
    "SELECT v.x, count(*), sum(w.n) FROM {v} v JOIN {w} w USING (id) GROUP BY 1 ORDER BY 1",
    "SELECT DISTINCT ON (g) g, id FROM {w} ORDER BY g, id",
    "SELECT md5(string_agg(t, '' ORDER BY id)) FROM {w}",
    "SELECT count(*) FROM {w} a JOIN {w} b ON a.id = b.id + 1 WHERE a.g <> b.g",
    "SELECT x.id, w.t FROM (SELECT id FROM k ORDER BY id LIMIT 40) x, LATERAL (SELECT t FROM {w} w WHERE w.id = x.id) w ORDER BY 1",
    "SELECT sum(length(w::text)) FROM {w} w WHERE id < 10000",
    "SELECT id FROM {w} WHERE g = 'new' ORDER BY id",
];

#[test]
fn the_same_rows_in_every_mode() {
    let cluster = server(Options::new(), 24_000);
    let mut admin = cluster.connect().unwrap();
    let run = |c: &mut Client, sql: &str, names: [&str; 2]| {
        script::outcome(c, &sql.replace("{w}", names[0]).replace("{v}", names[1])).unwrap()
    };
    let expected: Vec<_> = QUERIES.iter().map(|q| run(&mut admin, q, ["h", "k"])).collect();
    let settings = [
        "SELECT 1",
        "SET strata.enable_warm_scan = off",
        "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off",
        "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0; SET max_parallel_workers_per_gather = 2",
    ];
    for (memory, modes) in
        [("256MB", &["auto", "loaded"][..]), ("256kB", &["auto", "loaded", "paged", "direct"]), ("0", &["auto"])]
    {
        budget(&mut admin, memory);
        for mode in modes {
            for setting in settings {
                let mut c = cluster.connect().unwrap();
                c.batch_execute(&format!("SET strata.access_mode = {mode}; {setting}")).unwrap();
                // Again, over what the first round has left in memory.
                for round in 0..if setting == settings[0] { 2 } else { 1 } {
                    for (query, wanted) in QUERIES.iter().zip(&expected) {
                        let got = run(&mut c, query, ["w", "v"]);
                        assert!(
                            got == *wanted,
                            "{memory}, {mode}, {setting}, round {round}: {query}\n{got:?}\n{wanted:?}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn explain_and_views_say_what_was_chosen_and_why() {
    let cluster = server(Options::new(), 120_000);
    let mut c = cluster.connect().unwrap();
    let all = "SELECT count(t) FROM w WHERE t > ''";
    let one = "SELECT count(t) FROM w WHERE t > '' AND id BETWEEN 100 AND 200";
    let row = "SELECT t FROM w WHERE id = 777";
    let bytes = data_set(&mut c);

    // Fits: read, then read whole, then in memory.
    let first = explain(&mut c, all);
    assert_eq!(property(&first, "Access"), vec!["loaded"; 6], "{first}");
    assert!(property(&first, "Access Reason").iter().all(|r| r.contains("of fragments fit into 25")), "{first}");
    assert!(property(&first, "Fragment Reads").iter().all(|r| !r.starts_with("0 ")), "{first}");
    explain(&mut c, all);
    let kept = mine(&mut c, "kept_bytes");
    assert!(kept >= bytes * 9 / 10, "whole fragments are resident: {kept} of {bytes}");
    let other = explain(&mut c, "SELECT sum(a), sum(n), max(id) FROM w WHERE t > '' AND a <> 5");
    assert!(property(&other, "Fragment Reads").iter().all(|r| r.starts_with("0 (0 kB)")), "{other}");
    let found = explain(&mut c, row);
    assert_eq!(property(&found, "Access"), ["loaded"], "{found}");
    assert!(property(&found, "Fragment Reads")[0].starts_with("0 "), "{found}");

    // The sum of the partitions does not fit, each by itself does.
    let small = format!("{}kB", bytes / 1024 / 2);
    budget(&mut c, &small);
    let paged = explain(&mut c, all);
    assert_eq!(property(&paged, "Access"), vec!["paged"; 6], "{paged}");
    assert!(property(&paged, "Access Reason")[0].contains("do not fit into"), "{paged}");
    assert!(mine(&mut c, "kept_bytes") <= bytes / 2, "a lower budget holds");
    let pruned = explain(&mut c, one);
    assert_eq!(property(&pruned, "Access"), ["loaded"], "one partition survives: {pruned}");
    let again = explain(&mut c, all);
    let from_memory: i64 =
        property(&again, "Fragment Reads").iter().map(|r| r.rsplit(' ').next().unwrap().parse::<i64>().unwrap()).sum();
    assert!(from_memory > 0, "what found room stays: {again}");
    // A single row of all partitions: only the one that has it is opened. With a parameter that is known too late, all are.
    let looked = explain(&mut c, "SELECT w.t FROM k JOIN w USING (id) WHERE k.id = 38");
    assert!(!property(&looked, "Access").is_empty(), "{looked}");
    c.batch_execute("SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_memoize = off").unwrap();
    let nested = explain(&mut c, "SELECT sum(w.n) FROM k JOIN w USING (id) WHERE k.x = 3");
    assert!(nested.contains("Key Lookup"), "{nested}");
    assert!(property(&nested, "Access").iter().all(|a| a == "direct"), "{nested}");
    c.batch_execute("RESET ALL").unwrap();

    // Two tables that fit by themselves, but not together. In a new session, which has nothing at hand, and with no other that keeps anything.
    drop(c);
    let mut c = cluster.connect().unwrap();
    wait_for("the other session to end", Duration::from_secs(60), || {
        number(&mut c, "SELECT count(*) FROM strata.stat_access") == 0
    })
    .unwrap();
    c.batch_execute("CREATE TABLE u AS TABLE w0").unwrap();
    checks::rewarm(&mut c, "u").unwrap();
    let each = number(&mut c, "SELECT sum(bytes) FROM strata.fragments WHERE \"table\"::text = 'u'");
    budget(&mut c, &format!("{}kB", each * 3 / 2 / 1024));
    for (sql, access) in [
        ("SELECT count(t) FROM u WHERE t > ''", "loaded"),
        ("SELECT count(u.t) FROM u JOIN w0 ON u.t = w0.t WHERE u.t > ''", "paged"),
        ("SELECT count(u.t) FROM u JOIN u w0 ON u.t = w0.t WHERE u.t > ''", "loaded"),
    ] {
        let plan = explain(&mut c, sql);
        assert!(property(&plan, "Access").iter().all(|a| a == access), "{access}: {plan}");
    }

    // The view.
    let last = |c: &mut Client| {
        let sql = "SELECT last_access, last_reason, last_fragments > 0, last_at > now() - interval '1 minute', database \
                   FROM strata.stat_access WHERE pid = pg_backend_pid()";
        twin::rows(c, sql).unwrap().remove(0).into_iter().map(|v| v.unwrap()).collect::<Vec<_>>()
    };
    c.batch_execute(all).unwrap();
    let said = last(&mut c);
    assert_eq!(
        (said[0].as_str(), said[2].as_str(), said[3].as_str(), said[4].as_str()),
        ("paged", "t", "t", "postgres")
    );
    assert!(said[1].contains("do not fit into"), "{said:?}");
    for (mode, reason) in [("direct", "strata.access_mode says so"), ("loaded", "strata.access_mode says so")] {
        c.batch_execute(&format!("SET strata.access_mode = {mode}; {all}")).unwrap();
        let said = last(&mut c);
        assert_eq!((said[0].as_str(), said[1].as_str()), (mode, reason));
    }
    assert!(c.batch_execute("SET strata.access_mode = 'mapped'").is_err());
    c.batch_execute("RESET strata.access_mode").unwrap();
    budget(&mut c, "0");
    let off = explain(&mut c, all);
    assert_eq!(property(&off, "Access"), vec!["direct"; 6], "{off}");
    assert_eq!(property(&off, "Access Reason")[0], "strata.memory_budget is 0");
    assert_eq!(mine(&mut c, "kept_bytes"), 0);
    let plain = twin::plan(&mut c, all).unwrap();
    assert!(!plain.contains("Access"), "only VERBOSE says it: {plain}");
    let json: String = twin::value(&mut c, &format!("EXPLAIN (ANALYZE, VERBOSE, FORMAT JSON) {all}")).unwrap();
    for name in [
        "\"Access\": \"direct\"",
        "\"Access Reason\"",
        "\"Fragment Reads\"",
        "\"Fragment Read Bytes\"",
        "\"Fragment Reads From Memory\"",
    ] {
        assert!(json.contains(name), "{name}: {json}");
    }

    // The server's row, and who may see it.
    let sum = "SELECT m.kept_bytes = sum(a.kept_bytes) AND m.needed_bytes = sum(a.needed_bytes) AND m.processes = count(*) \
               FROM strata.stat_memory m, strata.stat_access a GROUP BY m.kept_bytes, m.needed_bytes, m.processes";
    assert_eq!(twin::value(&mut c, sum).unwrap(), "t");
    let machine =
        "SELECT machine_bytes > 0 AND available_bytes > 0 AND limit_bytes <= budget_bytes FROM strata.stat_memory";
    assert_eq!(twin::value(&mut c, machine).unwrap(), "t");
    c.batch_execute("CREATE ROLE nobody; SET ROLE nobody").unwrap();
    for view in ["memory", "access"] {
        let (code, _) = checks::failure(&mut c, &format!("SELECT * FROM strata.stat_{view}")).unwrap();
        assert_eq!(code, "42501");
    }
    c.batch_execute(
        "RESET ROLE; GRANT strata_read TO nobody; SET ROLE nobody; TABLE strata.stat_memory; TABLE strata.stat_access",
    )
    .unwrap();
}

/// A field of /proc/PID/status, in bytes.
fn status(pid: i32, field: &str) -> i64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|l| l.starts_with(&format!("{field}:"))).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<i64>().unwrap() * 1024
}

fn pid(c: &mut Client) -> i32 {
    number(c, "SELECT pg_backend_pid()") as i32
}

/// From here on the process gets no memory of its own beyond `bytes` (RLIMIT_DATA).
fn limit_data(pid: i32, bytes: i64) {
    let mut command = as_server("prlimit");
    let done = command.args(["--pid", &pid.to_string(), &format!("--data={bytes}")]).status().unwrap();
    assert!(done.success());
}

/// What a backend needs apart from what it keeps: the columns of a block and what decoding them takes, sorts and hash tables
/// (work_mem), PostgreSQL's own caches, what the allocator has not given back.
const BESIDE: i64 = 40 * MB;

#[test]
fn one_backend_keeps_within_the_budget_whatever_it_reads() {
    let options =
        Options::new().set("shared_buffers", "16MB").set("work_mem", "2MB").set("maintenance_work_mem", "4MB");
    let cluster = server(options, 300_000);
    let mut c = cluster.connect().unwrap();
    let bytes = data_set(&mut c);
    let small = bytes / 5;
    budget(&mut c, &format!("{}kB", small / 1024));
    let queries: Vec<String> = [
        "SELECT count(*), sum(a), sum(n), min(t), max(g) FROM {w}",
        "SELECT count(w::text) FROM {w} w",
        "SELECT g, count(*), sum(n) FROM {w} GROUP BY g ORDER BY g",
        "SELECT count(*), sum(n) FROM k JOIN {w} USING (id)",
        "SELECT count(*), sum(a) FROM {w} WHERE a % 1000 = 7",
        "SELECT count(t) FROM {w} WHERE id % 3 = 0",
    ]
    .map(str::to_owned)
    .to_vec();
    let expected: Vec<_> = queries.iter().map(|q| script::outcome(&mut c, &q.replace("{w}", "h")).unwrap()).collect();

    // Under a limit: data segments and private mappings of the backend cannot grow beyond it. A backend that wants more dies.
    for settings in [
        "SELECT 1",
        "SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_seqscan = off",
        "SET strata.enable_warm_scan = off",
        "SET strata.access_mode = loaded",
    ] {
        let mut c = cluster.connect().unwrap();
        c.batch_execute(&format!(
            "SET max_parallel_workers_per_gather = 0; {settings}; SELECT count(*) FROM k WHERE id < 5"
        ))
        .unwrap();
        let pid = pid(&mut c);
        let limit = status(pid, "VmData") + small + BESIDE;
        limit_data(pid, limit);
        for _ in 0..if settings == "SELECT 1" { 2 } else { 1 } {
            for (query, wanted) in queries.iter().zip(&expected) {
                let got = script::outcome(&mut c, &query.replace("{w}", "w")).unwrap();
                assert!(got == *wanted, "{settings}: {query}: {got:?} {wanted:?}");
                assert!(mine(&mut c, "kept_bytes") <= small, "{settings}: {query}");
            }
        }
        // Its own account of the peak, and the kernel's, which counts shared pages apart.
        let peak = mine(&mut c, "peak_bytes");
        assert!(peak <= small + 16 * MB, "{settings}: {peak} bytes at most, {small} are the budget");
        assert!(peak > small / 2, "{settings}: the budget is used ({peak} of {small})");
        assert!(status(pid, "VmData") <= limit);
    }
    // Moves and consolidation too, with their own rows in memory.
    let before = twin::sum_digest(&mut c, "w").unwrap();
    let mut m = cluster.connect().unwrap();
    m.batch_execute("SET strata.consolidate_threshold = 0; SELECT count(*) FROM w WHERE id < 5").unwrap();
    let id = pid(&mut m);
    let limit = status(id, "VmData") + 32 * MB + small + BESIDE;
    limit_data(id, limit);
    m.batch_execute("SELECT strata.consolidate('w0'); SELECT strata.to_hot('w1'); SELECT strata.to_warm('w1')")
        .unwrap();
    assert_eq!(twin::sum_digest(&mut c, "w").unwrap(), before);

    // The limit is one that other settings would not keep to: with room for all of it, all of it is kept.
    budget(&mut c, "256MB");
    // A fragment is read whole by the second statement that comes for it; one that was written meanwhile begins anew.
    let mut kept = 0;
    for _ in 0..6 {
        c.batch_execute(&queries[1].replace("{w}", "w")).unwrap();
        kept = mine(&mut c, "kept_bytes");
        if kept >= bytes * 9 / 10 {
            break;
        }
    }
    assert!(kept >= bytes * 9 / 10, "{kept} bytes are kept of {bytes}");
    let id = pid(&mut c);
    assert!(status(id, "RssAnon") > small + bytes / 2, "and the kernel sees them");
}

#[test]
fn backends_share_one_budget() {
    let cluster = server(Options::new(), 120_000);
    let mut admin = cluster.connect().unwrap();
    let bytes = data_set(&mut admin);
    budget(&mut admin, &format!("{}kB", bytes * 3 / 2 / 1024));
    let limit = number(&mut admin, "SELECT limit_bytes FROM strata.stat_memory");
    let all = "SELECT count(t), sum(a), sum(n) FROM w WHERE t > ''";
    let mut first = cluster.connect().unwrap();
    for _ in 0..3 {
        first.batch_execute(all).unwrap();
    }
    let kept = mine(&mut first, "kept_bytes");
    assert!(kept >= bytes * 9 / 10, "the first has room for everything: {kept} of {bytes}");

    // The first is idle. The second has not the room that it needs, asks, and gets its share.
    let mut second = cluster.connect().unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        second.batch_execute(all).unwrap();
        let total = number(&mut admin, "SELECT kept_bytes FROM strata.stat_memory");
        assert!(total <= limit, "{total} of {limit}");
        if mine(&mut second, "kept_bytes") > limit / 4 {
            break;
        }
        assert!(Instant::now() < end, "the second got {} of {limit}", mine(&mut second, "kept_bytes"));
        std::thread::sleep(Duration::from_millis(100));
    }
    let given = number(&mut admin, "SELECT sum(given_back_bytes) FROM strata.stat_access");
    assert!(given > 0, "the first has given back");
    assert!(mine(&mut first, "kept_bytes") <= limit / 2 + MB);

    // Eight at once, parallel workers too.
    let threads: Vec<_> = (0..8)
        .map(|i| {
            let mut c = cluster.connect().unwrap();
            std::thread::spawn(move || {
                if i % 2 == 0 {
                    c.batch_execute("SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0").unwrap();
                }
                (0..4).map(|_| twin::rows(&mut c, all).unwrap()).collect::<Vec<_>>()
            })
        })
        .collect();
    while threads.iter().any(|t| !t.is_finished()) {
        let total = number(&mut admin, "SELECT kept_bytes FROM strata.stat_memory");
        assert!(total <= limit, "{total} of {limit}");
        std::thread::sleep(Duration::from_millis(10));
    }
    let wanted = twin::rows(&mut admin, &all.replace("w ", "h ")).unwrap();
    for t in threads {
        assert!(t.join().unwrap().iter().all(|r| *r == wanted));
    }

    // A lower budget holds for who goes on, and a session that has ended by FATAL has left nothing.
    budget(&mut admin, "1MB");
    first.batch_execute(all).unwrap();
    assert!(mine(&mut first, "kept_bytes") <= MB);
    let kept = format!(
        "SELECT count(*) FROM strata.stat_access WHERE pid <> pg_backend_pid() AND pid IN ({}, {})",
        pid(&mut first),
        pid(&mut second)
    );
    assert_eq!(number(&mut admin, &kept), 2);
    admin.batch_execute(&format!("SELECT pg_terminate_backend({})", pid(&mut first))).unwrap();
    drop(second);
    wait_for("the sessions to end", Duration::from_secs(20), || number(&mut admin, &kept) == 0).unwrap();
    admin.batch_execute("TABLE w0").unwrap();
    let sums =
        "SELECT m.kept_bytes - sum(a.kept_bytes) FROM strata.stat_memory m, strata.stat_access a GROUP BY m.kept_bytes";
    wait_for("the sum", Duration::from_secs(20), || number(&mut admin, sums) == 0).unwrap();

    // After a crash nothing is counted that nobody has.
    let mut third = cluster.connect().unwrap();
    third.batch_execute(all).unwrap();
    strata_tests::process::kill9(pid(&mut third));
    std::thread::sleep(Duration::from_millis(200));
    cluster.wait_ready(Duration::from_secs(30)).unwrap();
    let mut c = cluster.connect().unwrap();
    assert_eq!(number(&mut c, "SELECT kept_bytes + needed_bytes FROM strata.stat_memory"), 0);
    assert_eq!(twin::rows(&mut c, all).unwrap(), wanted);
}

#[test]
fn a_budget_that_the_machine_does_not_have_is_cut_and_said() {
    let cluster = Cluster::with(Options::new().set("strata.memory_budget", "1000GB")).unwrap();
    let mut c = cluster.connect().unwrap();
    let cut = "SELECT limit_bytes <= machine_bytes / 2 AND budget_bytes = 1000 * 1024^3 FROM strata.stat_memory";
    assert_eq!(twin::value(&mut c, cut).unwrap(), "t");
    assert!(cluster.log().contains("strata.memory_budget is more than half of the memory"), "{}", cluster.log());
    assert!(c.batch_execute("SET strata.memory_budget = '1MB'").is_err(), "it is the server's");
}
