//! What the goals measure: queries over whole tables, and statements that touch one row each. `{t}` is the table.

/// A query that is run on heap, on warm and in DuckDB.
pub struct Query {
    pub name: &'static str,
    pub table: &'static str,
    pub sql: &'static str,
    pub goal: QueryGoal,
}

/// Most CPU time of warm, in milliseconds where it is not a ratio.
#[derive(Clone, Copy)]
pub enum QueryGoal {
    /// At most 1/12 of heap's, at most three times DuckDB's.
    TwelfthOfHeap,
    /// At most TimescaleDB's for the same work (`ANCHORS`: on two cores in November 2026), at most three times DuckDB's.
    Timescale(f64),
    /// At most TimescaleDB's.
    Metadata(f64),
}

pub const QUERIES: &[Query] = &[
    Query {
        name: "TPC-H Q1",
        table: "lineitem",
        sql: "SELECT l_returnflag, l_linestatus, sum(l_quantity) AS sum_qty, sum(l_extendedprice) AS sum_base_price,
                     sum(l_extendedprice * (1 - l_discount)) AS sum_disc_price,
                     sum(l_extendedprice * (1 - l_discount) * (1 + l_tax)) AS sum_charge,
                     avg(l_quantity) AS avg_qty, avg(l_extendedprice) AS avg_price, avg(l_discount) AS avg_disc,
                     count(*) AS count_order
              FROM {t} WHERE l_shipdate <= date '1998-12-01' - interval '90' day
              GROUP BY l_returnflag, l_linestatus ORDER BY l_returnflag, l_linestatus",
        goal: QueryGoal::TwelfthOfHeap,
    },
    Query {
        name: "TPC-H Q6",
        table: "lineitem",
        sql: "SELECT sum(l_extendedprice * l_discount) AS revenue FROM {t}
              WHERE l_shipdate >= date '1994-01-01' AND l_shipdate < date '1994-01-01' + interval '1' year
                AND l_discount BETWEEN 0.06 - 0.01 AND 0.06 + 0.01 AND l_quantity < 24",
        goal: QueryGoal::TwelfthOfHeap,
    },
    Query {
        name: "count and sum by month",
        table: "lineitem",
        sql: "SELECT date_trunc('month', l_shipdate)::date AS month, count(*), sum(l_extendedprice) FROM {t} GROUP BY 1 ORDER BY 1",
        goal: QueryGoal::TwelfthOfHeap,
    },
    Query {
        name: "count(*)",
        table: "lineitem",
        sql: "SELECT count(*) FROM {t}",
        goal: QueryGoal::Metadata(6.0),
    },
    Query {
        name: "min and max of a column",
        table: "lineitem",
        sql: "SELECT min(l_orderkey), max(l_orderkey) FROM {t}",
        goal: QueryGoal::Metadata(6.0),
    },
    Query {
        name: "metrics: full aggregate",
        table: "metrics",
        sql: "SELECT count(*), sum(usage_user), avg(usage_system), max(usage_idle) FROM {t}",
        goal: QueryGoal::Timescale(108.0),
    },
    Query {
        name: "metrics: by host",
        table: "metrics",
        sql: "SELECT host, count(*), avg(usage_user), max(usage_user) FROM {t} GROUP BY host ORDER BY host",
        goal: QueryGoal::Timescale(90.0),
    },
    Query {
        name: "metrics: by hour and host, 12 h",
        table: "metrics",
        sql: "SELECT date_trunc('hour', ts) AS hour, host, avg(usage_user), max(usage_system) FROM {t}
              WHERE ts >= timestamp '2026-01-01 06:00' AND ts < timestamp '2026-01-01 18:00' GROUP BY 1, 2 ORDER BY 1, 2",
        goal: QueryGoal::Timescale(92.0),
    },
    Query {
        name: "metrics: high CPU, 12 h",
        table: "metrics",
        sql: "SELECT count(*), max(usage_user) FROM {t}
              WHERE usage_user > 90 AND ts >= timestamp '2026-01-01 06:00' AND ts < timestamp '2026-01-01 18:00'",
        goal: QueryGoal::Timescale(6.0),
    },
    Query {
        name: "metrics: narrow range, 5 min",
        table: "metrics",
        sql: "SELECT host, max(usage_user) FROM {t}
              WHERE ts >= timestamp '2026-01-01 09:00' AND ts < timestamp '2026-01-01 09:05' GROUP BY host ORDER BY host",
        goal: QueryGoal::Timescale(2.0),
    },
    Query {
        name: "metrics: last point per host",
        table: "metrics",
        sql: "SELECT DISTINCT ON (host) host, ts, usage_user, usage_system, usage_idle FROM {t} ORDER BY host, ts DESC",
        goal: QueryGoal::Timescale(332.0),
    },
];

/// A statement over one row of lineitem by its key `$1::date, $2, $3`, and how much CPU it may use on warm, as a multiple of heap.
pub struct Single {
    pub name: &'static str,
    pub sql: &'static str,
    pub most: f64,
}

const KEY: &str = "l_shipdate = $1::text::date AND l_orderkey = $2::bigint AND l_linenumber = $3::bigint::int";

pub fn singles() -> Vec<Single> {
    let columns = "2, 3, $3::bigint::int, 10, 100.5, 0.01, 0.02, 'N', 'O', $1::text::date, $1::text::date, $1::text::date, 'NONE', 'AIR', 'late'";
    let statement = |name, most, sql: String| Single { name, sql: sql.leak(), most };
    vec![
        statement("row by key, 16 columns, prepared", 2.0, format!("SELECT * FROM {{t}} WHERE {KEY}")),
        statement("UPDATE of one row", 3.0, format!("UPDATE {{t}} SET l_quantity = l_quantity + 1 WHERE {KEY}")),
        statement("DELETE of one row", 3.0, format!("DELETE FROM {{t}} WHERE {KEY}")),
        statement("late INSERT", 2.0, format!("INSERT INTO {{t}} VALUES ($2::bigint + 1000000000, {columns})")),
        statement(
            "upsert of a new row",
            2.0,
            format!(
                "INSERT INTO {{t}} VALUES ($2::bigint + 2000000000, {columns})
                 ON CONFLICT (l_shipdate, l_orderkey, l_linenumber) DO UPDATE SET l_quantity = excluded.l_quantity"
            ),
        ),
        statement(
            "upsert of a row that is there",
            2.0,
            format!(
                "INSERT INTO {{t}} VALUES ($2::bigint, {columns})
                 ON CONFLICT (l_shipdate, l_orderkey, l_linenumber) DO UPDATE SET l_quantity = excluded.l_quantity"
            ),
        ),
    ]
}

/// An index nested-loop join with a table of keys.
pub const JOIN: &str = "SELECT count(*), sum(l.l_extendedprice), max(l.l_comment) FROM bench_keys k
    JOIN {t} l ON l.l_shipdate = k.shipdate AND l.l_orderkey = k.orderkey AND l.l_linenumber = k.linenumber";
