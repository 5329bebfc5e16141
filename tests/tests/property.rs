//! Random schemas, data, changes and queries: a warm table gives what its heap twin gives, for as long as it is told to.
//!
//! Two databases of one server get the same statements. In one of them the tables are heaps; in the other they are warm, and are moved,
//! consolidated and moved back in between. Every result is compared: rows in order where the statement says so, else as bags; errors by
//! SQLSTATE. Everything follows from a seed, which is printed with the statements when something differs.
//!
//! | environment | |
//! |---|---|
//! | `STRATA_PROPERTY_SECONDS` | how long (20) |
//! | `STRATA_SEED` | the first seed (0); with `STRATA_SEEDS=1` only this one |
//! | `STRATA_SEEDS` | how many at most |
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

#[path = "property/schema.rs"]
mod schema;
#[path = "property/sessions.rs"]
mod sessions;
#[path = "property/statements.rs"]
mod statements;
#[path = "property/types.rs"]
mod types;

use postgres::Client;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use schema::Table;
use statements::Compare;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use strata_tests::twin::{Outcome, run};
use strata_tests::{Cluster, Options, twin};

/// Steps of one seed.
const STEPS: u32 = 90;

/// The two databases, and the model of what is in them.
struct Twins {
    seed: u64,
    heap: Client,
    warm: Client,
    trace: Vec<String>,
    tables: Vec<Table>,
    /// The model when the transaction began, and at its savepoint.
    begun: Option<Vec<Table>>,
    saved: Option<Vec<Table>>,
    prepared: Vec<sessions::Prepared>,
    counts: Counts,
}

/// By first word: statements that went through, and that failed on both sides.
type Counts = BTreeMap<String, (usize, usize)>;

impl Twins {
    fn fail(&self, what: &str) -> ! {
        panic!("seed {}: {what}\nafter:\n{};", self.seed, self.trace.join(";\n"))
    }

    fn count(&mut self, sql: &str, done: bool) -> bool {
        let verb = sql.split_whitespace().next().unwrap_or_default().to_owned();
        let (through, failed) = self.counts.entry(verb).or_default();
        *(if done { through } else { failed }) += 1;
        done
    }

    /// Runs a statement on both; says whether it went through.
    fn both(&mut self, sql: &str, compare: Compare) -> bool {
        self.trace.push(sql.to_owned());
        let (heap, warm) = (run(&mut self.heap, sql), run(&mut self.warm, sql));
        match (heap, warm) {
            (Outcome::Done(mut a, m), Outcome::Done(mut b, n)) => {
                if compare != Compare::Ordered {
                    a.sort();
                    b.sort();
                }
                if a != b || m != n {
                    let missing: Vec<_> = a.iter().filter(|row| !b.contains(row)).take(3).collect();
                    let extra: Vec<_> = b.iter().filter(|row| !a.contains(row)).take(3).collect();
                    self.fail(&format!(
                        "{sql}\nheap gives {} rows {m:?}, warm {} rows {n:?}\nonly on heap: {missing:#?}\nonly on warm: {extra:#?}",
                        a.len(),
                        b.len()
                    ));
                }
                self.count(sql, true)
            }
            (Outcome::Failed(a, x), Outcome::Failed(b, y)) => {
                let of_rows = |code: &str| code.starts_with("22") || code.starts_with("23");
                if a != b && !(compare == Compare::Changes && of_rows(&a) && of_rows(&b)) {
                    self.fail(&format!("{sql}\nheap: {a} {x}\nwarm: {b} {y}"));
                }
                if a == "lost" || a.starts_with("XX") {
                    self.fail(&format!("{sql}\nheap: {a} {x}\nwarm: {b} {y}"));
                }
                self.count(sql, false)
            }
            (a, b) => self.fail(&format!("{sql}\nheap: {a:?}\nwarm: {b:?}")),
        }
    }

    /// A statement of its own, or inside the transaction behind a savepoint that a failure goes back to.
    fn step(&mut self, sql: &str, compare: Compare) -> bool {
        if self.begun.is_none() {
            return self.both(sql, compare);
        }
        self.both("SAVEPOINT step", Compare::Bag);
        let done = self.both(sql, compare);
        self.both(if done { "RELEASE step" } else { "ROLLBACK TO step" }, Compare::Bag);
        done
    }

    /// Only on the warm side; it must not fail, but for what `allowed` says.
    fn warm_only(&mut self, sql: &str) {
        self.trace.push(format!("-- warm: {sql}"));
        if let Outcome::Failed(code, message) = run(&mut self.warm, sql) {
            self.fail(&format!("{sql}\nwarm: {code} {message}"));
        }
    }

    fn compare_tables(&mut self) {
        let names: Vec<String> = self.tables.iter().map(|t| t.name.clone()).collect();
        for t in names {
            self.both(&format!("SELECT {t}::text FROM {t}"), Compare::Bag);
        }
        self.both("SELECT tab, op, o, w FROM log", Compare::Bag);
    }

    /// A move, a consolidation, or nothing if the table is what it would become.
    fn moves(&mut self, r: &mut StdRng) {
        let t = &self.tables[r.random_range(0..self.tables.len())];
        let leaf = t.leaves[r.random_range(0..t.leaves.len())].clone();
        let is_warm = twin::value(
            &mut self.warm,
            &format!("SELECT a.amname = 'warm' FROM pg_class c JOIN pg_am a ON a.oid = c.relam WHERE c.oid = '{leaf}'::regclass"),
        )
        .unwrap();
        let inside = self.begun.is_some();
        let sql = match (is_warm == "t", r.random_range(0..5)) {
            (true, 0) => format!("ALTER TABLE {leaf} SET ACCESS METHOD heap"),
            (true, 1) if !inside => format!("SELECT strata.to_hot('{leaf}')"),
            (true, _) if !inside => format!("SELECT strata.consolidate('{leaf}')"),
            (false, 0) => format!("ALTER TABLE {leaf} SET ACCESS METHOD warm"),
            (false, _) if !inside => format!("SELECT strata.to_warm('{leaf}')"),
            _ => return,
        };
        let rows = r.random_range(40..400);
        if !inside {
            self.warm_only(&format!("SET strata.fragment_rows = {rows}"));
            self.warm_only(&sql);
        } else {
            // Deferred triggers of the transaction may be in the way.
            self.trace.push(format!("-- warm: {sql}"));
            let _ = run(&mut self.warm, "SAVEPOINT moves");
            match run(&mut self.warm, &sql) {
                Outcome::Done(..) => drop(run(&mut self.warm, "RELEASE moves")),
                Outcome::Failed(code, _) if code == "55006" => drop(run(&mut self.warm, "ROLLBACK TO moves")),
                Outcome::Failed(code, message) => self.fail(&format!("{sql}\nwarm: {code} {message}")),
            }
        }
    }

    fn maintenance(&mut self, r: &mut StdRng) {
        let t = self.tables[r.random_range(0..self.tables.len())].clone();
        let name = &t.name;
        let sql = match r.random_range(0..9) {
            0 | 1 => format!("VACUUM {name}"),
            2 => format!("VACUUM (FREEZE, ANALYZE) {name}"),
            3 => format!("VACUUM FULL {name}"),
            4 => format!("REINDEX TABLE {name}"),
            5 => format!("REINDEX TABLE CONCURRENTLY {name}"),
            6 => match t.indexes.first().filter(|_| !t.is_partitioned()) {
                Some(index) => format!("CLUSTER {name} USING {index}"),
                None => format!("ANALYZE {name}"),
            },
            _ => format!("ANALYZE {name}"),
        };
        self.both(&sql, Compare::Bag);
    }

    fn settings(&mut self, r: &mut StdRng) {
        let sql = [
            "RESET ALL",
            "SET enable_seqscan = off",
            "SET enable_hashjoin = off; SET enable_mergejoin = off",
            "SET enable_hashagg = off",
            "SET enable_bitmapscan = off",
            "SET enable_indexscan = off",
            "SET strata.enable_warm_scan = off",
            "SET strata.enable_aggregate_pushdown = off",
            "SET strata.enable_promoter = off",
            "SET enable_partitionwise_join = on; SET enable_partitionwise_aggregate = on",
            "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0",
            "SET plan_cache_mode = force_generic_plan",
        ][r.random_range(0..12)];
        if self.begun.is_none() {
            self.both(sql, Compare::Bag);
        }
    }

    fn transaction(&mut self, r: &mut StdRng) {
        if self.begun.is_none() {
            let level = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"][r.random_range(0..3)];
            self.both(&format!("BEGIN ISOLATION LEVEL {level}"), Compare::Bag);
            self.begun = Some(self.tables.clone());
            return;
        }
        match r.random_range(0..6) {
            0 => {
                self.both("SAVEPOINT a", Compare::Bag);
                self.saved = Some(self.tables.clone());
            }
            1 if self.saved.is_some() => {
                self.both("ROLLBACK TO a", Compare::Bag);
                self.tables = self.saved.clone().unwrap();
            }
            2 if r.random_range(0..3) == 0 => self.two_phase(r),
            2..=4 => {
                if self.both("COMMIT", Compare::Changes) {
                    self.begun = None;
                } else {
                    // A deferred constraint.
                    self.tables = self.begun.take().unwrap();
                }
                self.saved = None;
            }
            _ => {
                self.both("ROLLBACK", Compare::Bag);
                self.tables = self.begun.take().unwrap();
                self.saved = None;
            }
        }
    }

    fn any_step(&mut self, r: &mut StdRng) {
        let t = self.tables[r.random_range(0..self.tables.len())].clone();
        let u = self.tables[r.random_range(0..self.tables.len())].clone();
        match r.random_range(0..118) {
            100..=104 => self.cursor(r, &t),
            105..=109 => self.prepared(r, &t),
            110..=112 => self.copy(r, &t),
            113..=117 => self.as_reader(r, &t, &u),
            0..=34 => {
                let (sql, compare) = statements::change(r, &t);
                self.step(&sql, compare);
            }
            35..=62 => {
                let (sql, compare) = statements::query(r, &t, &u);
                self.step(&sql, compare);
            }
            63..=71 => self.transaction(r),
            72..=83 => self.moves(r),
            84..=90 => {
                let mut changed = t.clone();
                let sql = changed.ddl(r);
                if self.step(&sql, Compare::Changes) {
                    let at = self.tables.iter().position(|x| x.name == t.name).unwrap();
                    self.tables[at] = changed;
                }
            }
            91..=95 if self.begun.is_none() => self.maintenance(r),
            _ => self.settings(r),
        }
    }
}

/// A database whose tables are made by an access method.
fn database(cluster: &Cluster, method: &str) {
    cluster
        .create_database(method)
        .unwrap()
        .batch_execute(&format!(
            "ALTER DATABASE {method} SET default_table_access_method = {method};
             ALTER DATABASE {method} SET search_path = work;
             ALTER DATABASE {method} SET statement_timeout = '60s';
             ALTER DATABASE {method} SET extra_float_digits = 0;
             ALTER DATABASE {method} SET client_min_messages = error;
             ALTER DATABASE {method} SET strata.consolidate_threshold = 0"
        ))
        .unwrap();
}

/// Runs one seed; counts its statements.
fn seed(cluster: &Cluster, seed: u64, counts: Counts) -> Counts {
    let mut r = StdRng::seed_from_u64(seed);
    let connect = |method: &str| {
        let mut c = cluster.connect_to(method).unwrap();
        c.batch_execute("DROP SCHEMA IF EXISTS work CASCADE; CREATE SCHEMA work").unwrap();
        c
    };
    let (heap, warm) = (connect("heap"), connect("warm"));
    let mut twins = Twins {
        seed,
        heap,
        warm,
        trace: Vec::new(),
        tables: Vec::new(),
        begun: None,
        saved: None,
        prepared: Vec::new(),
        counts,
    };
    for prelude in [sessions::PRELUDE, types::PRELUDE, Table::PRELUDE] {
        assert!(twins.both(prelude, Compare::Bag), "{prelude}");
    }
    for i in 0..r.random_range(1..3) {
        let (table, made) = Table::random(&mut r, &format!("t{i}"));
        for sql in made {
            if !twins.both(&sql, Compare::Bag) && sql.starts_with("CREATE TABLE") {
                twins.fail(&format!("not made: {sql}"));
            }
        }
        for rows in [40, 25, 60] {
            let (sql, compare) = statements::insert(&mut r, &table, rows);
            twins.both(&sql, compare);
            if r.random() {
                twins.warm_only(&format!("SELECT strata.consolidate('{}')", table.leaves[0]));
            }
        }
        if r.random_range(0..4) == 0 {
            twins.secure(&mut r, &table);
        }
        if !table.key.is_empty() && r.random_range(0..3) == 0 {
            let (child, made) = sessions::child(&mut r, &table);
            for sql in made {
                assert!(twins.both(&sql, Compare::Bag), "{sql}");
            }
            for _ in 0..2 {
                let sql = sessions::adopt(&mut r, &table, &child);
                twins.both(&sql, Compare::Changes);
            }
            twins.tables.push(child);
        }
        twins.tables.push(table);
    }
    for i in 0..STEPS {
        twins.any_step(&mut r);
        if i % 10 == 9 && twins.begun.is_none() {
            twins.compare_tables();
        }
    }
    if twins.begun.is_some() {
        twins.both("ROLLBACK", Compare::Bag);
        twins.tables = twins.begun.take().unwrap();
    }
    twins.compare_tables();
    twins.counts
}

#[test]
fn random_schemas_data_and_statements_are_the_same_on_both() {
    let number = |name: &str| std::env::var(name).ok().map(|s| s.parse::<u64>().unwrap());
    let seconds = number("STRATA_PROPERTY_SECONDS").unwrap_or(20);
    let first = number("STRATA_SEED").unwrap_or(0);
    let most = number("STRATA_SEEDS").unwrap_or(u64::MAX);
    let options = Options::new()
        .set("autovacuum", "off")
        .set("log_min_messages", "fatal")
        .set("strata.policy_interval", "0")
        .set("strata.snapshot_wait", "0")
        .set("max_locks_per_transaction", "256")
        .set("fsync", "off");
    let cluster = Cluster::with(options).unwrap();
    cluster.connect().unwrap().batch_execute("CREATE ROLE property_reader").unwrap();
    database(&cluster, "heap");
    database(&cluster, "warm");
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut seeds, mut counts) = (0, Counts::new());
    while seeds < most && (seeds == 0 || Instant::now() < end) {
        counts = seed(&cluster, first + seeds, counts);
        seeds += 1;
    }
    let (done, failed) = counts.values().fold((0, 0), |(a, b), (done, failed)| (a + done, b + failed));
    for (verb, (done, failed)) in &counts {
        println!("{verb:12} {done:8} {failed:8}");
    }
    println!(
        "seeds {first} to {}: {done} statements went through on both sides, {failed} failed on both",
        first + seeds - 1
    );
    assert!(done > 2 * failed, "too many statements fail to show anything");
}
