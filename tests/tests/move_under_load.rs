//! A partition moves to warm, and back, while pgbench reads and writes it: no transaction fails, and the longest stall
//! is printed.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::time::{Duration, Instant};
use strata_tests::pgbench::Load;
use strata_tests::{Cluster, checks, twin};

const READ: &str = "\\set id random(1, 200000)
SELECT * FROM events WHERE at = '2001-01-01'::date + (:id::int % 59) AND id = :id;
";
const RANGE: &str = "\\set day random(0, 58)
SELECT count(*), sum(n) FROM events WHERE at = '2001-01-01'::date + :day::int;
";
const WRITE: &str = "\\set id random(1, 200000)
UPDATE events SET n = n + 1 WHERE at = '2001-01-01'::date + (:id::int % 59) AND id = :id;
";
const INSERT: &str = "\\set id random(1000000, 2000000000)
INSERT INTO events VALUES (:id, '2001-01-01'::date + (:id::int % 59), 'late', 0) ON CONFLICT DO NOTHING;
";
const DELETE: &str = "\\set id random(1, 20000)
DELETE FROM events WHERE at = '2001-01-01'::date + (:id::int % 59) AND id = :id;
";

#[test]
fn no_transaction_fails_while_partitions_move() {
    let cluster = Cluster::start().unwrap();
    let mut c = cluster.connect().unwrap();
    c.batch_execute(
        "CREATE TABLE events (id bigint, at date, v text, n int, PRIMARY KEY (at, id)) PARTITION BY RANGE (at);
         CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM ('2001-01-01') TO ('2001-02-01');
         CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM ('2001-02-01') TO ('2001-03-01');
         INSERT INTO events SELECT i, '2001-01-01'::date + i % 59, 'event ' || i, 0 FROM generate_series(1, 200000) i;
         ANALYZE events;
         -- The oracle: every change, in the same transaction, into a heap table.
         CREATE TABLE twin (LIKE events INCLUDING ALL);
         INSERT INTO twin TABLE events;
         CREATE FUNCTION follow() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
           IF TG_OP = 'INSERT' THEN INSERT INTO twin VALUES (new.*);
           ELSIF TG_OP = 'DELETE' THEN DELETE FROM twin WHERE at = old.at AND id = old.id;
           ELSE UPDATE twin SET n = new.n WHERE at = old.at AND id = old.id;
           END IF;
           RETURN NULL;
         END $$;
         CREATE TRIGGER follow AFTER INSERT OR UPDATE OR DELETE ON events FOR EACH ROW EXECUTE FUNCTION follow();",
    )
    .unwrap();
    let seconds = 25;
    let mut load = Load::start(&cluster, &[READ, RANGE, WRITE, INSERT, DELETE], 4, seconds).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let (mut moves, mut rows) = (Vec::new(), Vec::new());
    for sql in [
        "to_warm('events_1')",
        "to_warm('events_2')",
        "consolidate('events_1')",
        "to_hot('events_1')",
        "to_warm('events_1')",
        "consolidate('events_2')",
    ] {
        let start = Instant::now();
        let moved: i64 = if sql.starts_with("consolidate") {
            let row = c.query_one(&format!("SELECT rows_removed + rows_absorbed FROM strata.{sql}"), &[]).unwrap();
            row.get(0)
        } else {
            c.query_one(&format!("SELECT strata.{sql}"), &[]).unwrap().get(0)
        };
        moves.push(format!("{sql} {moved} rows in {:.2} s", start.elapsed().as_secs_f64()));
        rows.push(moved);
        if !load.running() {
            break;
        }
    }
    let report = load.finish().unwrap();
    println!("moves under load: {}", moves.join("; "));
    println!(
        "pgbench: {} transactions, {} failed, longest stall {:.0} ms (by script, read range write insert delete: {:?})",
        report.transactions,
        report.failed,
        report.longest_ms,
        report.longest_by_script.iter().map(|ms| ms.round()).collect::<Vec<_>>()
    );
    assert_eq!(report.failed, 0);
    assert!(moves.len() >= 2, "at least two moves happened under load");
    assert!(rows[0] > 90_000, "the first move moved the whole partition: {moves:?}");
    assert!(report.transactions > 500, "the load did something");
    twin::assert_same(&mut c, "events", "twin").unwrap();
    checks::store_is_exact(&cluster).unwrap();
}
