//! The heap twin: every script in `slt/` gives the same on heap and on warm, statement by statement; and so does a random
//! workload of DML with transactions and savepoints, for a number of seeds.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use strata_tests::script::{self, Outcome};
use strata_tests::{Cluster, Options, checks, source_dir, twin};

/// Runs `slt/NAME.sql`.
fn compare(name: &str) {
    let file = source_dir().join("slt").join(format!("{name}.sql"));
    let text = std::fs::read_to_string(&file).unwrap();
    if script::self_check() {
        let cluster = Cluster::with(Options::new().plain()).unwrap();
        return script::compare(&cluster, name, &text).unwrap_or_else(|error| panic!("{error:#}"));
    }
    // As it is; and with every change folded into fragments before the next statement.
    let folded = Options::new()
        .set("strata.test_fold", "on")
        .set("strata.consolidate_threshold", "0")
        .set("strata.snapshot_wait", "0");
    for (how, options) in [("", Options::new()), (", folded", folded)] {
        let cluster = Cluster::with(options).unwrap();
        if let Err(error) = script::compare(&cluster, name, &text) {
            panic!("{name}{how}: {error:#}");
        }
    }
}

macro_rules! scripts {
    ($($name:ident),* $(,)?) => {
        $(#[test] fn $name() { compare(stringify!($name)); })*

        #[test]
        fn every_script_has_a_test() {
            let named = [$(concat!(stringify!($name), ".sql")),*];
            for entry in std::fs::read_dir(source_dir().join("slt")).unwrap() {
                let file = entry.unwrap().file_name().into_string().unwrap();
                assert!(named.contains(&file.as_str()), "slt/{file} is not in the list of scripts");
            }
        }
    };
}
scripts!(
    copy,
    cursors,
    ddl,
    dml,
    foreign_keys,
    indexes,
    maintenance,
    merge,
    on_conflict,
    partitions,
    prepared,
    queries,
    serializable,
    statistics,
    system_columns,
    transactions,
    triggers,
    types,
    versions,
);

/// One random statement over the table that `{t}` stands for.
fn statement(r: &mut StdRng) -> String {
    let id = r.random_range(1..400);
    let k = r.random_range(0..20);
    let span = r.random_range(0..12);
    match r.random_range(0..20) {
        0..=2 => format!("INSERT INTO {{t}} VALUES ({id}, {k}, 'i{k}')"),
        3 => format!(
            "INSERT INTO {{t}} VALUES ({id}, {k}, 'c') ON CONFLICT (id) DO UPDATE SET k = {{t}}.k + 1, v = 'conflict' RETURNING *"
        ),
        4 => format!(
            "INSERT INTO {{t}} SELECT g, g % 20, 'bulk' FROM generate_series({id}, {id} + {span}) g ON CONFLICT DO NOTHING"
        ),
        5..=7 => format!("UPDATE {{t}} SET v = v || '{k}', k = {k} WHERE id = {id} RETURNING *"),
        8 => format!("UPDATE {{t}} SET k = k + 1 WHERE id BETWEEN {id} AND {id} + {span} RETURNING id, k"),
        9 => format!("UPDATE {{t}} SET id = id + 1000 WHERE id = {id} RETURNING id"),
        10 => format!("UPDATE {{t}} SET v = left(v, 3) WHERE k = {k} AND id % 3 = 0"),
        11 | 12 => format!("DELETE FROM {{t}} WHERE id = {id} RETURNING *"),
        13 => format!("DELETE FROM {{t}} WHERE k = {k} AND id BETWEEN {id} AND {id} + 60 RETURNING id"),
        14 => format!("SELECT * FROM {{t}} WHERE id BETWEEN {id} AND {id} + {span} ORDER BY id FOR UPDATE"),
        15 => format!("SELECT * FROM {{t}} WHERE k = {k} ORDER BY id"),
        19 => {
            format!("SELECT /* an index with entries of fragment rows */ id FROM {{t}} WHERE k + 1 = {k} ORDER BY id")
        }
        16 => "SELECT count(*), sum(id), sum(k), sum(length(v)) FROM {t}".to_owned(),
        17 => format!("SELECT * FROM {{t}} WHERE id = {id} FOR SHARE"),
        18 => format!(
            "MERGE INTO {{t}} USING (VALUES ({id}), ({id} + 1)) s (id) ON s.id = {{t}}.id WHEN MATCHED AND {{t}}.k > 10 THEN DELETE WHEN MATCHED THEN UPDATE SET v = 'm' WHEN NOT MATCHED THEN INSERT VALUES (s.id, 0, 'm')"
        ),
        _ => format!("SELECT * FROM {{t}} WHERE k > {k} AND v > 'i' ORDER BY id LIMIT 5"),
    }
}

#[test]
fn a_random_workload_is_the_same_on_both() {
    let cluster = Cluster::start().unwrap();
    let seeds: u64 = std::env::var("STRATA_SEEDS").map_or(12, |s| s.parse().unwrap());
    for seed in 0..seeds {
        random_workload(&cluster, seed);
    }
}

fn random_workload(cluster: &Cluster, seed: u64) {
    let mut r = StdRng::seed_from_u64(seed);
    let mut c = cluster.connect().unwrap();
    for t in ["w", "h"] {
        c.batch_execute(&format!(
            "DROP TABLE IF EXISTS {t}; CREATE TABLE {t} (id int PRIMARY KEY, k int, v text); CREATE INDEX ON {t} (k); CREATE INDEX ON {t} ((k + 1));
             INSERT INTO {t} SELECT i, i % 20, 'v' || i FROM generate_series(1, 300) i"
        ))
        .unwrap();
    }
    checks::rewarm(&mut c, "w").unwrap();
    let mut trace = Vec::new();
    let mut both = |c: &mut postgres::Client, template: &str| {
        let on = |t: &str| template.replace("{t}", t);
        trace.push(on("w"));
        // The same statement on both tables, in the same transaction: an error on one must be an error on the other.
        let mut one = |t: &str| {
            c.batch_execute("SAVEPOINT one").unwrap();
            let o = script::outcome(c, &on(t)).unwrap();
            c.batch_execute(if matches!(o, Outcome::Failed(..)) { "ROLLBACK TO one" } else { "RELEASE one" }).unwrap();
            match o {
                Outcome::Failed(code, message) => {
                    Outcome::Failed(code, message.replace("\"w_", "\"h_").replace("\"w\"", "\"h\""))
                }
                done => done,
            }
        };
        let (heap, warm) = (one("h"), one("w"));
        assert_eq!(heap, warm, "seed {seed}, after:\n{}", trace.join(";\n"));
    };
    for _ in 0..12 {
        let level = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"][r.random_range(0..3)];
        c.batch_execute(&format!("BEGIN ISOLATION LEVEL {level}")).unwrap();
        for _ in 0..r.random_range(1..10) {
            match r.random_range(0..12) {
                0 => c.batch_execute("SAVEPOINT a").unwrap(),
                1 => c.batch_execute("SAVEPOINT b; SAVEPOINT a").unwrap(),
                2 => {
                    let sql = "SAVEPOINT a";
                    c.batch_execute(sql).unwrap();
                    both(&mut c, &statement(&mut r));
                    both(&mut c, &statement(&mut r));
                    c.batch_execute("ROLLBACK TO a").unwrap();
                }
                _ => both(&mut c, &statement(&mut r)),
            }
        }
        c.batch_execute(if r.random_bool(0.75) { "COMMIT" } else { "ROLLBACK" }).unwrap();
        if r.random_bool(0.2) {
            c.batch_execute("VACUUM w").unwrap();
        }
        let when_warm = |function: &str| {
            format!(
                "SELECT {function}(c.oid) FROM pg_class c JOIN pg_am a ON a.oid = c.relam WHERE c.oid = 'w'::regclass AND a.amname = 'warm'"
            )
        };
        match r.random_range(0..10) {
            0 | 1 => {
                checks::rewarm(&mut c, "w").unwrap();
            }
            2 => drop(c.execute(&when_warm("strata.to_hot"), &[]).unwrap()),
            3..=6 => {
                let (rows, threshold) = (r.random_range(40..400), r.random_range(0..5));
                c.batch_execute(&format!(
                    "SET strata.fragment_rows = {rows}; SET strata.consolidate_threshold = 0.{threshold}; {}",
                    when_warm("strata.consolidate")
                ))
                .unwrap();
            }
            _ => {}
        }
        if let Err(error) = twin::assert_same(&mut c, "w", "h") {
            panic!("seed {seed}: {error:#}");
        }
    }
}
