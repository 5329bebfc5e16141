//! The tables of the goals: TPC-H lineitem by months, and a devops table by days, on heap and for the warm tier.

use super::meter::{Cost, Meter};
use anyhow::{Context, Result};
use postgres::Client;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use strata_tests::process;

/// A table of the benchmark; on heap it has its name, on warm `NAME_warm`.
pub struct Table {
    pub name: &'static str,
    /// Its columns, as PostgreSQL and DuckDB understand them.
    columns: &'static str,
    pub key: &'static str,
    partition_by: &'static str,
    partitions: Vec<[String; 3]>,
    file: PathBuf,
}

/// TPC-H's columns in TPC-H's types.
const LINEITEM: &str = "l_orderkey bigint NOT NULL, l_partkey bigint NOT NULL, l_suppkey bigint NOT NULL, l_linenumber int NOT NULL,
    l_quantity decimal(15,2) NOT NULL, l_extendedprice decimal(15,2) NOT NULL, l_discount decimal(15,2) NOT NULL,
    l_tax decimal(15,2) NOT NULL, l_returnflag char(1) NOT NULL, l_linestatus char(1) NOT NULL, l_shipdate date NOT NULL,
    l_commitdate date NOT NULL, l_receiptdate date NOT NULL, l_shipinstruct char(25) NOT NULL, l_shipmode char(10) NOT NULL,
    l_comment varchar(44) NOT NULL";

/// The ten metrics of the Time Series Benchmark Suite's `cpu` table.
pub const METRICS: [&str; 10] = [
    "usage_user",
    "usage_system",
    "usage_idle",
    "usage_nice",
    "usage_iowait",
    "usage_irq",
    "usage_softirq",
    "usage_steal",
    "usage_guest",
    "usage_guest_nice",
];
const METRICS_COLUMNS: &str = "ts timestamp NOT NULL, host text NOT NULL, usage_user double precision, usage_system double precision,
    usage_idle double precision, usage_nice double precision, usage_iowait double precision, usage_irq double precision,
    usage_softirq double precision, usage_steal double precision, usage_guest double precision, usage_guest_nice double precision";

/// How large the metrics are.
#[derive(Clone, Copy)]
pub struct MetricsSize {
    pub hosts: usize,
    pub days: usize,
    pub seconds: usize,
}

/// lineitem from its CSV file: 84 monthly partitions.
pub fn lineitem(file: PathBuf) -> Table {
    let first = |i: usize| format!("{}-{:02}-01", 1992 + i / 12, i % 12 + 1);
    let partitions = (0..84).map(|i| [format!("{}{:02}", 1992 + i / 12, i % 12 + 1), first(i), first(i + 1)]).collect();
    Table {
        name: "lineitem",
        columns: LINEITEM,
        key: "l_shipdate, l_orderkey, l_linenumber",
        partition_by: "l_shipdate",
        partitions,
        file,
    }
}

/// The metrics, made once as CSV: each a random walk between 0 and 100 with normal steps of variance 1, kept as whole numbers,
/// as the Time Series Benchmark Suite makes them. Daily partitions.
pub fn metrics(cache: &Path, size: MetricsSize) -> Result<Table> {
    let file = cache.join(format!("metrics-{}x{}d-{}s.csv", size.hosts, size.days, size.seconds));
    if !file.exists() {
        let temporary = file.with_extension("csv.tmp");
        let mut out = BufWriter::new(File::create(&temporary)?);
        write_metrics(size, &mut out).with_context(|| format!("write {}", temporary.display()))?;
        out.flush()?;
        fs::rename(&temporary, &file)?;
    }
    let day = |i: usize| format!("2026-01-{:02}", i + 1);
    let partitions = (0..size.days).map(|i| [format!("{:02}", i + 1), day(i), day(i + 1)]).collect();
    Ok(Table { name: "metrics", columns: METRICS_COLUMNS, key: "ts, host", partition_by: "ts", partitions, file })
}

fn write_metrics(size: MetricsSize, out: &mut impl Write) -> Result<()> {
    let mut random = StdRng::seed_from_u64(1);
    let mut state: Vec<[f64; 10]> =
        (0..size.hosts).map(|_| std::array::from_fn(|_| random.random_range(0.0..100.0))).collect();
    writeln!(out, "ts,host,{}", METRICS.join(","))?;
    for second in (0..size.days * 86_400).step_by(size.seconds) {
        let (day, s) = (second / 86_400 + 1, second % 86_400);
        for (host, values) in state.iter_mut().enumerate() {
            write!(out, "2026-01-{day:02} {:02}:{:02}:{:02},host_{host}", s / 3600, s / 60 % 60, s % 60)?;
            for v in values {
                // Box and Muller.
                let (a, b): (f64, f64) = (random.random_range(f64::EPSILON..1.0), random.random());
                let step = (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos();
                *v = (*v + step).clamp(0.0, 100.0);
                write!(out, ",{}", v.floor())?;
            }
            writeln!(out)?;
        }
    }
    Ok(())
}

impl Table {
    /// Creates it under a name, loads it, and gives it its primary key.
    pub fn load(&self, c: &mut Client, name: &str) -> Result<u64> {
        c.batch_execute(&format!("CREATE TABLE {name} ({}) PARTITION BY RANGE ({})", self.columns, self.partition_by))?;
        for [suffix, from, to] in &self.partitions {
            c.batch_execute(&format!(
                "CREATE TABLE {name}_{suffix} PARTITION OF {name} FOR VALUES FROM ('{from}') TO ('{to}')"
            ))?;
        }
        let file = File::open(&self.file).with_context(|| format!("open {}", self.file.display()))?;
        let mut copy = c.copy_in(&format!("COPY {name} FROM STDIN WITH (FORMAT csv, HEADER)"))?;
        std::io::copy(&mut BufReader::with_capacity(1 << 18, file), &mut copy)?;
        let rows = copy.finish()?;
        c.batch_execute(&format!("ALTER TABLE {name} ADD PRIMARY KEY ({})", self.key))?;
        c.batch_execute(&format!("VACUUM ANALYZE {name}"))?;
        Ok(rows)
    }

    /// Moves all partitions to warm.
    pub fn to_warm(&self, c: &mut Client, meter: &Meter, name: &str) -> Result<Cost> {
        let (_, cost) = meter.measure(|| {
            for [suffix, ..] in &self.partitions {
                c.batch_execute(&format!("SELECT strata.to_warm('{name}_{suffix}')"))?;
            }
            Ok(())
        })?;
        c.batch_execute(&format!("VACUUM ANALYZE {name}"))?;
        Ok(cost)
    }

    /// Creates and loads it in DuckDB, in the order of the file.
    pub fn load_duck(&self, duck: &mut super::duck::Duck) -> Result<()> {
        duck.execute(&format!("CREATE TABLE {} ({})", self.name, self.columns))?;
        duck.execute(&format!(
            "INSERT INTO {} SELECT * FROM read_csv('{}', header = true)",
            self.name,
            self.file.display()
        ))?;
        duck.execute("CHECKPOINT")
    }
}

/// Bytes in the data directory of all partitions: heap or delta store, indexes, TOAST, maps.
pub fn pages(c: &mut Client, name: &str) -> Result<u64> {
    let sql =
        format!("SELECT sum(pg_total_relation_size(relid))::bigint FROM pg_partition_tree('{name}') WHERE isleaf");
    Ok(u64::try_from(c.query_one(&sql, &[])?.get::<_, i64>(0))?)
}

/// Bytes of a warm table: what is in the data directory, its fragments, and its part of the catalog.
pub fn warm_bytes(c: &mut Client, name: &str, store: &Path) -> Result<u64> {
    let sql = format!(
        "SELECT coalesce(sum(bytes), 0)::bigint FROM strata.fragment WHERE filenode <> 0 AND relid IN (SELECT relid FROM pg_partition_tree('{name}'))"
    );
    let fragments = u64::try_from(c.query_one(&sql, &[])?.get::<_, i64>(0))?;
    anyhow::ensure!(fragments <= process::tree_bytes(store), "{name} has more bytes of fragments than the store");
    Ok(pages(c, name)? + fragments + index_bytes(c, name)?)
}

/// The bytes of a table's, or its partitions', fragment index.
pub fn index_bytes(c: &mut Client, name: &str) -> Result<u64> {
    let sql = format!(
        "SELECT coalesce(sum(directory_bytes + page_bytes), 0)::bigint FROM strata.segments WHERE \"table\" IN (SELECT relid FROM pg_partition_tree('{name}'))"
    );
    Ok(u64::try_from(c.query_one(&sql, &[])?.get::<_, i64>(0))?)
}
