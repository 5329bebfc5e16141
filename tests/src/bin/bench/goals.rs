//! The goals of speed and size: the same work on heap, on warm and in DuckDB, on this machine, in one run.
//!
//! ```text
//!  load heap ─ load and move warm ─ load DuckDB ─► sizes ─► queries ─► rows by key ─► join ─► changes ─► many fragments
//!                                                    answers are compared before figures count    │
//!                                                                                       tables are compared
//! ```
//!
//! Goals are on CPU time: of the backend and of Strata's workers (a promotion is done by one of them), from the kernel's
//! scheduler. A small run (`--smoke`) does all of the work on small tables and holds no goal against it, only the answers.

use super::duck::{Duck, Rows, Tools};
use super::meter::{Cost, Meter};
use super::tables::{self, MetricsSize, Table};
use super::verdict::{self, Bar, Goals, number};
use super::work::{self, QueryGoal};
use anyhow::{Context, Result, bail};
use postgres::{Client, Statement};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use strata_tests::report::{Screen, bytes, time};
use strata_tests::{Cluster, Options, flights, twin};

/// How large a run is.
struct Scale {
    lineitem: &'static str,
    metrics: MetricsSize,
    /// Single rows for each statement; keys of the join.
    singles: usize,
    keys: usize,
    /// CPU time that a query is repeated for.
    measured: Duration,
    fragments: &'static [usize],
}

const FULL: Scale = Scale {
    lineitem: "1",
    metrics: MetricsSize { hosts: 100, days: 6, seconds: 10 },
    singles: 400,
    keys: 10_000,
    measured: Duration::from_millis(60),
    fragments: &[10, 100, 1_000, 10_000],
};
const SMOKE: Scale = Scale {
    lineitem: "0.01",
    metrics: MetricsSize { hosts: 10, days: 2, seconds: 60 },
    singles: 20,
    keys: 200,
    measured: Duration::from_millis(1),
    fragments: &[10, 40],
};

/// What is run: everything, or only these parts. A table that is named is loaded and moved; queries are those of the tables that are
/// there, and rows by key need lineitem.
#[derive(Default)]
pub struct Parts(Option<Vec<String>>);

const PARTS: [&str; 5] = ["lineitem", "metrics", "queries", "keys", "fragments"];

impl Parts {
    fn has(&self, part: &str) -> bool {
        self.0.as_ref().is_none_or(|only| only.iter().any(|p| p == part))
    }
}

impl std::str::FromStr for Parts {
    type Err = anyhow::Error;

    fn from_str(list: &str) -> Result<Self> {
        let parts: Vec<String> = list.split(',').map(str::to_owned).collect();
        if let Some(unknown) = parts.iter().find(|p| !PARTS.contains(&p.as_str())) {
            bail!("\"{unknown}\" is no part of the goals; there are {}", PARTS.join(", "));
        }
        let has = |part: &str| parts.iter().any(|p| p == part);
        if has("keys") && !has("lineitem") {
            bail!("\"keys\" needs \"lineitem\"");
        }
        Ok(Self(Some(parts)))
    }
}

/// The run so far.
struct Run<'a> {
    screen: &'a mut Screen,
    scale: &'static Scale,
    cluster: &'a Cluster,
    c: Client,
    meter: Meter,
    goals: Goals,
    bars: Vec<Bar>,
}

/// Runs it; true: all goals are met.
pub fn run(screen: &mut Screen, smoke: bool, parts: &Parts, out: &Path) -> Result<bool> {
    let scale = if smoke { &SMOKE } else { &FULL };
    let cache = flights::cache_directory()?;
    fs::create_dir_all(out).with_context(|| format!("make {}", out.display()))?;
    screen.chapter("Tables");
    let tools = Tools::find(&cache, &mut |s| screen.say(s))?;
    let mut tables = Vec::new();
    if parts.has("lineitem") {
        tables.push(tables::lineitem(tools.lineitem(&cache, scale.lineitem)?));
    }
    if parts.has("metrics") {
        tables.push(tables::metrics(&cache, scale.metrics)?);
    }
    let cluster = Cluster::with(
        Options::new()
            .set("shared_buffers", if smoke { "128MB" } else { "3GB" })
            .set("max_wal_size", "8GB")
            .set("jit", "off")
            .set("max_parallel_workers_per_gather", "0")
            .set("max_parallel_maintenance_workers", "0")
            .set("autovacuum", "off")
            .set("strata.policy_interval", "0")
            .set("synchronous_commit", "off"),
    )?;
    let mut c = cluster.connect()?;
    let meter = Meter::of(&mut c)?;
    let mut run = Run { screen, scale, cluster: &cluster, c, meter, goals: Goals::default(), bars: Vec::new() };
    let place = tempfile::tempdir_in(&cache)?;
    let file = place.path().join("bench.duckdb");
    let mut duck = if parts.has("queries") { Some(tools.open(&file)?) } else { None };
    for table in &tables {
        run.load(table, duck.as_mut(), &file)?;
    }
    if let Some(mut duck) = duck {
        run.queries(&mut duck, &tables)?;
    }
    if let Some(lineitem) = tables.first().filter(|_| parts.has("keys")) {
        run.keys(lineitem)?;
    }
    if parts.has("fragments") {
        run.fragments()?;
    }
    verdict::plot(&run.bars, &out.join("bench.svg"))?;
    run.screen.say(&format!("CPU times are drawn in {}", out.join("bench.svg").display()));
    if smoke {
        run.screen.proven("all answers agree; no goals at this size");
        return Ok(true);
    }
    let missed = run.goals.print(run.screen);
    let of = run.goals.0.len();
    run.screen.say(&format!("{} of {of} goals met", of - missed));
    Ok(missed == 0)
}

fn on(sql: &str, table: &str) -> String {
    sql.replace("{t}", table)
}

impl Run<'_> {
    /// Loads a table everywhere, moves it, and compares the two forms in PostgreSQL.
    fn load(&mut self, table: &Table, duck: Option<&mut Duck>, file: &Path) -> Result<()> {
        let warm = format!("{}_warm", table.name);
        let rows = table.load(&mut self.c, table.name)?;
        table.load(&mut self.c, &warm)?;
        let moved = table.to_warm(&mut self.c, &self.meter, &warm)?;
        let before = fs::metadata(file).map_or(0, |m| m.len());
        if let Some(duck) = duck {
            table.load_duck(duck)?;
        }
        let in_duck = fs::metadata(file).map_or(0, |m| m.len()).saturating_sub(before);
        self.same_rows(table.name, &warm)?;
        let heap = tables::pages(&mut self.c, table.name)?;
        let size = tables::warm_bytes(&mut self.c, &warm, self.cluster.store())?;
        let rate = rows as f64 / moved.cpu.as_secs_f64();
        self.screen.say(&format!(
            "{}: {rows} rows; heap {}, warm {} ({} of it the fragment index; 1/{:.1}), DuckDB without key {}; moved in {} of CPU, {} of wall time",
            table.name,
            bytes(heap),
            bytes(size),
            bytes(tables::index_bytes(&mut self.c, &warm)?),
            heap as f64 / size as f64,
            bytes(in_duck),
            time(moved.cpu),
            time(moved.wall)
        ));
        let most = if table.name == "lineitem" { 150.0 } else { 40.0 };
        self.goals.at_most(&format!("size of {} with its key", table.name), size as f64 / 1e6, most, "MB");
        self.goals.at_least(&format!("move of {}", table.name), rate / 1e3, 800.0, "thousand rows per CPU second");
        Ok(())
    }

    fn same_rows(&mut self, heap: &str, warm: &str) -> Result<()> {
        let (a, b) = (twin::sum_digest(&mut self.c, heap)?, twin::sum_digest(&mut self.c, warm)?);
        if a != b {
            bail!("{heap} and {warm} differ: {a:?} and {b:?}");
        }
        Ok(())
    }

    /// What a query costs here, and its rows.
    fn query(&mut self, sql: &str) -> Result<(Rows, Cost)> {
        let rows = twin::rows(&mut self.c, sql)?;
        let Self { c, meter, scale, .. } = self;
        let cost = meter.repeat(scale.measured, || c.simple_query(sql).map(drop).map_err(Into::into))?;
        Ok((rows, cost))
    }

    fn queries(&mut self, duck: &mut Duck, tables: &[Table]) -> Result<()> {
        self.screen.chapter("Queries: milliseconds of CPU (wall)");
        let mut lines = Vec::new();
        for q in work::QUERIES.iter().filter(|q| tables.iter().any(|t| t.name == q.table)) {
            let warm_table = format!("{}_warm", q.table);
            let (heap_rows, heap) = self.query(&on(q.sql, q.table))?;
            let (warm_rows, warm) = self.query(&on(q.sql, &warm_table))?;
            let (duck_rows, duck) = duck.measure(&on(q.sql, q.table), self.scale.measured)?;
            if heap_rows != warm_rows {
                bail!("\"{}\" answers differently on warm:\n{heap_rows:?}\n{warm_rows:?}", q.name);
            }
            if let Some(what) = difference(&heap_rows, &duck_rows) {
                bail!("\"{}\" answers differently in DuckDB: {what}", q.name);
            }
            let (h, w, d) = (heap.ms(), warm.ms(), duck.ms());
            let cell = |c: &Cost| format!("{} ({})", number(c.ms()), number(c.wall.as_secs_f64() * 1000.0));
            let ratios = [format!("1/{}", number(h / w)), format!("{}x", number(w / d.max(0.001)))];
            lines.push([vec![q.name.to_owned(), cell(&heap), cell(&warm), cell(&duck)], ratios.to_vec()].concat());
            self.bars.push((q.name.to_owned(), [Some(h), Some(w), Some(d)]));
            match q.goal {
                QueryGoal::TwelfthOfHeap => {
                    self.goals.at_most(&format!("{}, of heap", q.name), w / h, 1.0 / 12.0, "of heap's CPU")
                }
                QueryGoal::Timescale(ms) | QueryGoal::Metadata(ms) => {
                    self.goals.at_most(&format!("{}, TimescaleDB's", q.name), w, ms, "ms of CPU");
                }
            }
            if !matches!(q.goal, QueryGoal::Metadata(_)) {
                self.goals.at_most(&format!("{}, of DuckDB", q.name), w / d.max(0.001), 3.0, "times DuckDB's CPU");
            }
        }
        self.screen.table(&["", "heap", "warm", "DuckDB", "warm/heap", "warm/DuckDB"], &lines);
        Ok(())
    }

    /// Keys of rows from all over the table: other ones for each `n`.
    fn pick(&mut self, n: usize, count: usize) -> Result<Vec<(String, i64, i64)>> {
        let sql = format!(
            "SELECT l_shipdate::text, l_orderkey, l_linenumber::bigint FROM lineitem
             WHERE hashint8(l_orderkey) & 15 = {n} ORDER BY md5(l_orderkey::text || l_linenumber), l_linenumber LIMIT {count}"
        );
        Ok(self.c.query(&sql, &[])?.iter().map(|r| (r.get(0), r.get(1), r.get(2))).collect())
    }

    /// Rows by key, the join, and changes; afterwards the tables must still be the same.
    fn keys(&mut self, table: &Table) -> Result<()> {
        self.screen.chapter("Single rows, through 84 partitions: microseconds of CPU (wall)");
        let warm_table = format!("{}_warm", table.name);
        let mut lines = Vec::new();
        for (n, single) in work::singles().iter().enumerate() {
            let keys = self.pick(n, 2 * self.scale.singles)?;
            let heap = self.single(&on(single.sql, table.name), &keys)?;
            let warm = self.single(&on(single.sql, &warm_table), &keys)?;
            self.compare(single.name, &mut lines, heap, warm, single.most);
        }
        self.c.batch_execute(
            "CREATE TABLE bench_keys (shipdate date, orderkey bigint, linenumber int);
             SET enable_hashjoin = off; SET enable_mergejoin = off",
        )?;
        self.c.batch_execute(&format!(
            "INSERT INTO bench_keys SELECT l_shipdate, l_orderkey, l_linenumber FROM lineitem
             WHERE hashint8(l_orderkey) & 15 = 9 ORDER BY md5(l_orderkey::text || l_linenumber), l_linenumber LIMIT {};
             ANALYZE bench_keys",
            self.scale.keys
        ))?;
        let (a, heap) = self.query(&on(work::JOIN, table.name))?;
        let (b, warm) = self.query(&on(work::JOIN, &warm_table))?;
        if a != b {
            bail!("the join answers differently on warm: {a:?} and {b:?}");
        }
        let n = self.scale.keys;
        self.compare("nested-loop join, each key", &mut lines, heap.each(n), warm.each(n), 3.0);
        self.c.batch_execute("RESET enable_hashjoin; RESET enable_mergejoin")?;
        self.screen.table(&["", "heap", "warm", "warm/heap"], &lines);
        self.same_rows(table.name, &warm_table)
    }

    fn compare(&mut self, name: &str, lines: &mut Vec<Vec<String>>, heap: Cost, warm: Cost, most: f64) {
        let us = |c: &Cost| format!("{} ({})", number(c.ms() * 1000.0), number(c.wall.as_secs_f64() * 1e6));
        let ratio = warm.ms() / heap.ms().max(1e-6);
        lines.push(vec![name.to_owned(), us(&heap), us(&warm), format!("{}x", number(ratio))]);
        self.bars.push((name.to_owned(), [Some(heap.ms()), Some(warm.ms()), None]));
        self.goals.at_most(name, ratio, most, "times heap's CPU");
    }

    /// What a statement costs for each key, in a transaction each; the first half of the keys is for the plan and the caches.
    fn single(&mut self, sql: &str, keys: &[(String, i64, i64)]) -> Result<Cost> {
        let statement = self.c.prepare(sql)?;
        let Self { c, meter, .. } = self;
        let (first, rest) = keys.split_at(keys.len() / 2);
        execute(c, &statement, first)?;
        let ((), cost) = meter.measure(|| execute(c, &statement, rest))?;
        Ok(cost.each(rest.len()))
    }

    /// A query that needs one fragment, as there are more and more of them.
    ///
    /// Keys in the order of the fragments are told apart by bounds, and the cost shall stay the same. For random keys (the uuid) one
    /// page of each segment is asked, and segments grow with the logarithm of the number of fragments.
    fn fragments(&mut self) -> Result<()> {
        self.screen.chapter("Pruned queries as fragments grow: microseconds of CPU (wall)");
        const EACH: usize = 100;
        let mut lines = Vec::new();
        let mut known: HashMap<&str, Vec<f64>> = HashMap::new();
        for &n in self.scale.fragments {
            // Each a transaction of its own: a move takes rows that every snapshot sees.
            for sql in [
                "DROP TABLE IF EXISTS grown".to_owned(),
                "CREATE TABLE grown (id bigint PRIMARY KEY, v int, note text, uid uuid UNIQUE)".to_owned(),
                format!(
                    "INSERT INTO grown SELECT i, i % 1000, 'note ' || i, md5(i::text)::uuid FROM generate_series(1, {}) i",
                    n * EACH
                ),
                format!("SET strata.fragment_rows = {EACH}"),
                "SELECT strata.to_warm('grown')".to_owned(),
                "RESET strata.fragment_rows".to_owned(),
                "VACUUM ANALYZE grown".to_owned(),
            ] {
                self.c.batch_execute(&sql)?;
            }
            let there: i64 = self
                .c
                .query_one(
                    "SELECT count(*) FROM strata.fragment WHERE relid = 'grown'::regclass AND filenode <> 0",
                    &[],
                )?
                .get(0);
            anyhow::ensure!(there == n as i64, "{there} fragments were made, not {n}");
            let middle = n * EACH / 2;
            let mut line = vec![n.to_string()];
            for (name, sql) in [
                ("row by key", format!("SELECT * FROM grown WHERE id = {middle}")),
                (
                    "narrow range",
                    format!("SELECT count(*), max(v) FROM grown WHERE id BETWEEN {middle} AND {}", middle + 50),
                ),
                ("row by random key", format!("SELECT * FROM grown WHERE uid = md5('{middle}')::uuid")),
            ] {
                let rows = twin::rows(&mut self.c, &sql)?;
                anyhow::ensure!(
                    rows.len() == 1
                        && rows[0][0] == Some(if name == "narrow range" { "51".into() } else { middle.to_string() }),
                    "{sql} answers {rows:?}"
                );
                let statement = self.c.prepare(&sql)?;
                let Self { c, meter, .. } = self;
                let mut batch = || -> Result<()> {
                    for _ in 0..50 {
                        c.query(&statement, &[])?;
                    }
                    Ok(())
                };
                batch()?;
                let cost = meter.repeat(Duration::from_millis(1), batch)?.each(50);
                line.push(format!("{} ({})", number(cost.ms() * 1000.0), number(cost.wall.as_secs_f64() * 1e6)));
                known.entry(name).or_default().push(cost.ms());
            }
            let (segments, asked) = self.probes(&format!("SELECT * FROM grown WHERE uid = md5('{middle}')::uuid"))?;
            let index = tables::index_bytes(&mut self.c, "grown")?;
            line.push(format!("{segments} ({asked})"));
            line.push(format!("{} ({})", bytes(index), number(index as f64 / (n * EACH) as f64)));
            known.entry("segments").or_default().push(segments);
            lines.push(line);
        }
        self.screen.table(
            &[
                "fragments",
                "row by key",
                "narrow range",
                "row by random key",
                "segments probed (fragments)",
                "index (bytes a row)",
            ],
            &lines,
        );
        let (from, to) = (self.scale.fragments[0], self.scale.fragments[self.scale.fragments.len() - 1]);
        for name in ["row by key", "narrow range"] {
            let costs = known.remove(name).unwrap_or_default();
            if let (Some(first), Some(last)) = (costs.first(), costs.last()) {
                self.goals.at_most(
                    &format!("{name}, {from} to {to} fragments"),
                    last / first,
                    1.5,
                    "times as much CPU",
                );
            }
        }
        let segments = known.remove("segments").unwrap_or_default();
        if let Some(last) = segments.last() {
            let most = 3.0 * ((to as f64).log(4.0).floor() + 1.0);
            self.goals.at_most(
                &format!("segments probed for a random key among {to} fragments"),
                *last,
                most,
                "segments",
            );
        }
        Ok(())
    }

    /// The segments and the fragments that a look-up asks.
    fn probes(&mut self, sql: &str) -> Result<(f64, f64)> {
        let plan = twin::rows(&mut self.c, &format!("EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) {sql}"))?;
        let figure = |name: &str| -> Result<f64> {
            let line = plan.iter().filter_map(|r| r[0].as_deref()).find_map(|l| l.trim().strip_prefix(name));
            Ok(line.with_context(|| format!("{name} in {plan:?}"))?.trim().parse()?)
        };
        Ok((figure("Segments Probed:")?, figure("Fragments Probed:")?))
    }
}

fn execute(c: &mut Client, statement: &Statement, keys: &[(String, i64, i64)]) -> Result<()> {
    for (date, order, line) in keys {
        let rows = c.execute(statement, &[date, order, line])?;
        anyhow::ensure!(rows == 1, "{rows} rows for the key {date}, {order}, {line}");
    }
    Ok(())
}

/// What differs between PostgreSQL's rows and DuckDB's; numbers may differ in the last digits (DuckDB's averages are floats).
fn difference(postgres: &Rows, duck: &Rows) -> Option<String> {
    if postgres.len() != duck.len() {
        return Some(format!("{} rows and {}", postgres.len(), duck.len()));
    }
    let same = |a: &Option<String>, b: &Option<String>| match (a, b) {
        (Some(a), Some(b)) if a == b => true,
        (Some(a), Some(b)) => match (a.parse::<f64>(), b.parse::<f64>()) {
            (Ok(x), Ok(y)) => (x - y).abs() <= 1e-9 * x.abs().max(y.abs()),
            _ => false,
        },
        (a, b) => a == b,
    };
    postgres.iter().zip(duck).find_map(|(p, d)| {
        let equal = p.len() == d.len() && p.iter().zip(d).all(|(a, b)| same(a, b));
        (!equal).then(|| format!("{p:?} and {d:?}"))
    })
}

/// Where the plot goes if nobody says.
pub fn default_output() -> Result<PathBuf> {
    Ok(flights::cache_directory()?.join("bench"))
}
