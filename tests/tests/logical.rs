//! Logical decoding and replication: a warm row's change is decoded like a heap row's, a move is not decoded at all, and the
//! catalog of one server never reaches another.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use postgres::Client;
use std::time::Duration;
use strata_tests::process::wait_for;
use strata_tests::{Cluster, Options, twin};

/// What a slot has to tell since it was last asked, without begin and commit.
fn changes(client: &mut Client, slot: &str) -> Vec<String> {
    let sql = format!(
        "SELECT data FROM pg_logical_slot_get_changes('{slot}', NULL, NULL, 'include-xids', '0', 'skip-empty-xacts', '1')"
    );
    let found: Vec<String> = client.query(&sql, &[]).unwrap().iter().map(|r| r.get(0)).collect();
    found.into_iter().filter(|c| !matches!(c.as_str(), "BEGIN" | "COMMIT")).collect()
}

const CREATE: &str = "
    CREATE TABLE {t} (id int PRIMARY KEY, k int NOT NULL, v text);
    INSERT INTO {t} SELECT i, i % 7, repeat('v' || i, CASE WHEN i % 50 = 0 THEN 2000 ELSE 1 END) FROM generate_series(1, 300) i";

/// Each is run on the warm table and on its heap twin.
const STATEMENTS: [&str; 10] = [
    "UPDATE {t} SET v = 'changed' WHERE id = 7",
    "UPDATE {t} SET id = 1007 WHERE id = 8",
    "UPDATE {t} SET k = 3 WHERE id = 50",
    "DELETE FROM {t} WHERE id = 9",
    "DELETE FROM {t} WHERE id = 100",
    "INSERT INTO {t} VALUES (400, 1, 'new')",
    "INSERT INTO {t} VALUES (10, 1, 'upsert') ON CONFLICT (id) DO UPDATE SET v = excluded.v",
    "SELECT * FROM {t} WHERE id = 11 FOR UPDATE",
    "BEGIN; UPDATE {t} SET v = 'undone' WHERE id = 12; SAVEPOINT s; DELETE FROM {t} WHERE id = 13; ROLLBACK TO s; COMMIT",
    "ALTER TABLE {t} REPLICA IDENTITY FULL; UPDATE {t} SET k = 0 WHERE id = 150; DELETE FROM {t} WHERE id = 200",
];

#[test]
fn changes_of_warm_rows_are_decoded_as_on_heap_and_moves_not_at_all() {
    let cluster = Cluster::with(Options::new().set("strata.policy_interval", "0").set("autovacuum", "off")).unwrap();
    let mut client = cluster.connect().unwrap();
    for table in ["w", "h"] {
        client.batch_execute(&CREATE.replace("{t}", table)).unwrap();
    }
    client.execute("SELECT pg_create_logical_replication_slot('s', 'test_decoding')", &[]).unwrap();
    client.execute("SELECT strata.to_warm('w')", &[]).unwrap();
    assert_eq!(changes(&mut client, "s"), Vec::<String>::new(), "a move to warm was decoded");
    let mut decoded = 0;
    for statement in STATEMENTS {
        let [warm, heap] = ["w", "h"].map(|t| {
            client.batch_execute(&statement.replace("{t}", t)).unwrap();
            changes(&mut client, "s")
        });
        let renamed: Vec<String> = warm.iter().map(|c| c.replace("table public.w:", "table public.h:")).collect();
        assert_eq!(renamed, heap, "{statement}");
        decoded += heap.len();
    }
    assert!(decoded >= STATEMENTS.len(), "the heap twin decoded next to nothing");
    for quiet in [
        "SELECT strata.to_hot('w')",
        "SELECT strata.to_warm('w')",
        "SELECT strata.sweep(0)",
        "VACUUM FULL w",
        "CLUSTER w USING w_pkey",
        "ALTER TABLE w ALTER k TYPE bigint",
        "INSERT INTO strata.job (kind) VALUES ('verify')",
        "DELETE FROM strata.job",
    ] {
        client.batch_execute(quiet).unwrap();
        assert_eq!(changes(&mut client, "s"), Vec::<String>::new(), "{quiet} was decoded");
    }
    client.execute("ALTER TABLE h ALTER k TYPE bigint", &[]).unwrap();
    twin::assert_same(&mut client, "w", "h").unwrap();
}

#[test]
fn a_publication_for_all_tables_replicates_rows_and_not_the_catalog() {
    let options = || Options::new().set("strata.policy_interval", "0").set("autovacuum", "off");
    let (from, to) = (Cluster::with(options()).unwrap(), Cluster::with(options()).unwrap());
    let (mut publisher, mut subscriber) = (from.connect().unwrap(), to.connect().unwrap());
    publisher.batch_execute(&CREATE.replace("{t}", "t")).unwrap();
    publisher.execute("SELECT strata.to_warm('t')", &[]).unwrap();
    publisher.batch_execute("DELETE FROM t WHERE id = 1; UPDATE t SET k = 5 WHERE id = 2").unwrap();
    publisher.batch_execute("CREATE PUBLICATION everything FOR ALL TABLES").unwrap();

    // The subscriber has warm data of its own, which must stay what it is.
    subscriber.batch_execute(&CREATE.replace("{t}", "own")).unwrap();
    subscriber.execute("SELECT strata.to_warm('own')", &[]).unwrap();
    subscriber.batch_execute("DELETE FROM own WHERE id < 10").unwrap();
    subscriber.batch_execute("CREATE TABLE t (id int PRIMARY KEY, k int NOT NULL, v text) USING warm").unwrap();
    let catalog = "SELECT relid::regclass, row_count, hash FROM strata.fragment ORDER BY fragment_id";
    let deletions = "SELECT relid::regclass, row_id FROM strata.deletion ORDER BY 1, 2";
    let before = (twin::rows(&mut subscriber, catalog).unwrap(), twin::rows(&mut subscriber, deletions).unwrap());
    let conninfo = format!("host={} port={} user=postgres dbname=postgres", from.sockets().display(), from.port());
    subscriber.batch_execute(&format!("CREATE SUBSCRIPTION s CONNECTION '{conninfo}' PUBLICATION everything")).unwrap();

    let in_step = |what: &str, publisher: &mut Client, subscriber: &mut Client| {
        let expected = twin::digest(publisher, "t").unwrap();
        wait_for(what, Duration::from_secs(60), || twin::digest(subscriber, "t").unwrap() == expected)
            .unwrap_or_else(|error| panic!("{error:#}\n{}", to.log()));
    };
    in_step("the first copy", &mut publisher, &mut subscriber);
    wait_for("all tables in step", Duration::from_secs(60), || {
        twin::value(&mut subscriber, "SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel").unwrap() == "t"
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", to.log()));
    let after = (twin::rows(&mut subscriber, catalog).unwrap(), twin::rows(&mut subscriber, deletions).unwrap());
    assert_eq!(after, before, "the first copy of the publisher's catalog got into the subscriber's");

    // Changes of fragment rows on one side are applied to fragment rows on the other.
    subscriber.batch_execute("SELECT strata.to_hot('t'); SELECT strata.to_warm('t')").unwrap();
    publisher
        .batch_execute(
            "UPDATE t SET v = 'changed' WHERE id BETWEEN 20 AND 40; DELETE FROM t WHERE id BETWEEN 41 AND 60;
             INSERT INTO t SELECT i, 0, 'late' FROM generate_series(500, 520) i; UPDATE t SET id = id + 10000 WHERE id = 70",
        )
        .unwrap();
    publisher.batch_execute("SELECT strata.to_hot('t'); SELECT strata.to_warm('t')").unwrap();
    publisher.batch_execute("UPDATE t SET k = 6 WHERE id = 99").unwrap();
    in_step("the changes", &mut publisher, &mut subscriber);
    let own = "SELECT relid::regclass, row_count, hash FROM strata.fragment WHERE relid = 'own'::regclass";
    assert_eq!(twin::rows(&mut subscriber, own).unwrap(), before.0, "the subscriber's own fragments");
    subscriber.batch_execute("DROP SUBSCRIPTION s").unwrap();
}
