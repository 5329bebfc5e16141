//! The fragment index: segments probed grow like the logarithm of the number of fragments; keys, ranges and row ids are found as on heap,
//! whatever becomes of the fragments; a lost or damaged segment costs time and never a row.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use postgres::Client;
use strata_tests::{Cluster, Options, checks, script, twin};

/// `w`, and its heap twin `h`: random uuids as primary key, a number that grows, a second unique key; `rows` rows from `first` on in both.
fn tables(c: &mut Client, rows: usize) {
    for t in ["w", "h"] {
        c.batch_execute(&format!("CREATE TABLE {t} (id uuid PRIMARY KEY, n int NOT NULL, code text UNIQUE, v text)"))
            .unwrap();
    }
    more(c, 1, rows);
}

fn more(c: &mut Client, first: usize, rows: usize) {
    for t in ["w", "h"] {
        c.batch_execute(&format!(
            "INSERT INTO {t} SELECT md5(i::text)::uuid, i, CASE WHEN i % 5 > 0 THEN md5('c' || i) END, 'v' || i
             FROM generate_series({first}, {first} + {rows} - 1) i"
        ))
        .unwrap();
    }
}

fn number(c: &mut Client, sql: &str) -> i64 {
    twin::value(c, sql).unwrap().parse().unwrap()
}

/// What the session's counters of the index (look-ups, segments, fragments) rise by.
fn counted(c: &mut Client, work: impl FnOnce(&mut Client)) -> (f64, f64, f64) {
    let read = |c: &mut Client| {
        let row = c
            .query_one("SELECT lookups, segments_probed, fragments_probed FROM strata.stat_fragment_index", &[])
            .unwrap();
        [0, 1, 2].map(|i| row.get::<_, i64>(i) as f64)
    };
    let before = read(c);
    work(c);
    let after = read(c);
    (after[0] - before[0], after[1] - before[1], after[2] - before[2])
}

/// Keys that are there and keys that are not are found as on heap, by both keys and by row id.
fn keys_are_found(c: &mut Client, rows: usize) {
    for i in (1..=rows + 20).step_by(1 + rows / 40) {
        for condition in [
            format!("id = md5('{i}')::uuid"),
            format!("id = md5('absent {i}')::uuid"),
            format!("code = md5('c{i}')"),
            format!("n BETWEEN {i} AND {}", i + 3),
        ] {
            let of = |t: &str| format!("SELECT * FROM {t} WHERE {condition} ORDER BY n");
            assert_eq!(twin::rows(c, &of("w")).unwrap(), twin::rows(c, &of("h")).unwrap(), "{condition}");
        }
    }
}

fn exact(cluster: &Cluster, c: &mut Client, rows: usize) {
    twin::assert_same(c, "w", "h").unwrap();
    keys_are_found(c, rows);
    checks::store_is_exact(cluster).unwrap();
    checks::index_is_exact(c).unwrap();
}

#[test]
fn segments_probed_grow_like_the_logarithm() {
    let cluster = Cluster::with(Options::new().set("fsync", "off").set("autovacuum", "off")).unwrap();
    let mut c = cluster.connect().unwrap();
    const EACH: usize = 20;
    let mut grown = Vec::new();
    for fragments in [10, 100, 1_000] {
        c.batch_execute(&format!("DROP TABLE IF EXISTS w, h; SET strata.fragment_rows = {EACH}")).unwrap();
        tables(&mut c, fragments * EACH);
        checks::rewarm(&mut c, "w").unwrap();
        assert_eq!(number(&mut c, "SELECT count(*) FROM strata.fragments"), fragments as i64);
        checks::index_is_exact(&mut c).unwrap();
        let segments = number(&mut c, "SELECT count(*) FROM strata.segments");
        let most = 3.0 * ((fragments as f64).log(4.0).floor() + 1.0);
        assert!(segments as f64 <= most, "{segments} segments for {fragments} fragments");
        let keys = 50;
        let (lookups, probed, asked) = counted(&mut c, |c| {
            for i in 1..=keys {
                let i = i * fragments * EACH / keys;
                let rows = twin::rows(c, &format!("SELECT n FROM w WHERE id = md5('{i}')::uuid")).unwrap();
                assert_eq!(rows, [[Some(i.to_string())]], "{fragments} fragments");
            }
        });
        assert_eq!(lookups, keys as f64);
        assert_eq!(probed / lookups, segments as f64);
        assert!(
            (1.0..1.1).contains(&(asked / lookups)),
            "{fragments} fragments: {asked} were asked in {lookups} look-ups"
        );
        let (lookups, _, asked) = counted(&mut c, |c| {
            for i in 1..=keys {
                let rows = twin::rows(c, &format!("SELECT n FROM w WHERE id = md5('absent {i}')::uuid")).unwrap();
                assert!(rows.is_empty());
            }
        });
        // A key outside of all bounds needs no look-up.
        assert!(lookups > 0.8 * keys as f64, "{lookups}");
        assert!(asked < 3.0, "{asked} of {fragments} fragments were asked for {keys} keys that are not there");
        // A range of the column that grows: the same number of fragments, whatever there is.
        let plan = twin::rows(
            &mut c,
            "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) SELECT count(*) FROM w WHERE n BETWEEN 95 AND 98",
        );
        let plan = format!("{:?}", plan.unwrap());
        assert!(plan.contains(&format!("Fragments: {fragments}  pruned: {}", fragments - 1)), "{plan}");
        let plan =
            twin::rows(&mut c, "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) SELECT * FROM w WHERE id = md5('7')::uuid");
        let plan = format!("{:?}", plan.unwrap());
        assert!(
            plan.contains(&format!("Segments Probed: {segments}")) && plan.contains("Fragments Probed: 1"),
            "{plan}"
        );
        grown.push(segments);
    }
    // 100 times as many fragments: not twice as many levels.
    assert!(grown[2] < grown[0] + 12, "{grown:?}");
}

#[test]
fn a_table_with_random_keys_lives_as_on_heap() {
    let cluster = Cluster::with(Options::new().set("fsync", "off")).unwrap();
    let mut c = cluster.connect().unwrap();
    tables(&mut c, 3_000);
    c.batch_execute("SET strata.fragment_rows = 40; SET strata.consolidate_threshold = 0.05").unwrap();
    checks::rewarm(&mut c, "w").unwrap();
    exact(&cluster, &mut c, 3_000);
    let keys = twin::value(&mut c, "SELECT keys::text FROM strata.segments ORDER BY level DESC LIMIT 1").unwrap();
    assert_eq!(keys, "{id,code}");
    let outcome = |c: &mut Client, sql: &str| {
        let w = script::outcome(c, &sql.replace("{t}", "w")).unwrap();
        let h = script::outcome(c, &sql.replace("{t}", "h")).unwrap();
        assert_eq!(format!("{w:?}").replace("w_", "h_"), format!("{h:?}"), "{sql}");
    };
    for round in 0..4 {
        let i = 100 + round * 500;
        for sql in [
            "INSERT INTO {t} VALUES (md5('I')::uuid, 0, 'new', 'x')",
            "INSERT INTO {t} VALUES (md5('x I')::uuid, 0, md5('cI'), 'x')",
            "INSERT INTO {t} VALUES (md5('I')::uuid, 0, NULL, 'x') ON CONFLICT (id) DO UPDATE SET v = {t}.v || '!'",
            "INSERT INTO {t} VALUES (md5('y I')::uuid, 0, md5('cI'), 'x') ON CONFLICT DO NOTHING",
            "INSERT INTO {t} VALUES (md5('z I')::uuid, I, 'zI', 'late') ON CONFLICT (code) DO NOTHING",
            "UPDATE {t} SET v = 'changed' WHERE id = md5('7I')::uuid RETURNING n",
            "UPDATE {t} SET id = md5('moved I')::uuid WHERE n = I + 7 RETURNING n",
            "UPDATE {t} SET code = md5('cI') WHERE n = I + 8",
            "DELETE FROM {t} WHERE n % 50 = 3 AND n BETWEEN I AND I + 400",
            "INSERT INTO {t} SELECT id, n, code, 'back' FROM h WHERE false",
            "SELECT count(*), sum(n) FROM {t} WHERE id IN (SELECT md5(g::text)::uuid FROM generate_series(I, I + 30) g)",
        ] {
            outcome(
                &mut c,
                &sql.replace('I', &i.to_string())
                    .replace(&format!("{i}NSERT"), "INSERT")
                    .replace(&format!("{i}N ("), "IN ("),
            );
        }
        more(&mut c, 10_000 + round * 1_000, 90);
        exact(&cluster, &mut c, 3_000);
        c.execute("SELECT strata.consolidate('w')", &[]).unwrap();
        exact(&cluster, &mut c, 3_000);
    }
    for sql in [
        "VACUUM FULL w",
        "CLUSTER w USING w_pkey",
        "ALTER TABLE w ADD COLUMN added int DEFAULT 5; ALTER TABLE h ADD COLUMN added int DEFAULT 5",
        "VACUUM FULL w",
        "ALTER TABLE w ALTER n TYPE bigint; ALTER TABLE h ALTER n TYPE bigint",
        "SELECT strata.rebuild_index('w')",
        "SELECT strata.to_hot('w')",
        "SELECT strata.to_warm('w')",
        "ALTER TABLE w DROP CONSTRAINT w_pkey; ALTER TABLE h DROP CONSTRAINT h_pkey",
        "ALTER TABLE w ADD PRIMARY KEY (id); ALTER TABLE h ADD PRIMARY KEY (id)",
        "TRUNCATE w, h",
    ] {
        sql.split("; ").for_each(|sql| c.batch_execute(sql).unwrap());
        exact(&cluster, &mut c, 3_000);
    }
    assert_eq!(number(&mut c, "SELECT count(*) FROM strata.segment"), 0);
    assert_eq!(number(&mut c, "SELECT count(*) FROM strata.segment_page"), 0);
}

#[test]
fn segments_follow_the_transaction() {
    let cluster = Cluster::start().unwrap();
    let mut c = cluster.connect().unwrap();
    tables(&mut c, 400);
    c.batch_execute("SET strata.fragment_rows = 20").unwrap();
    c.batch_execute("BEGIN; SELECT strata.to_warm('w'); ROLLBACK").unwrap();
    assert_eq!(number(&mut c, "SELECT count(*) FROM strata.segment"), 0);
    exact(&cluster, &mut c, 400);
    checks::rewarm(&mut c, "w").unwrap();
    let rows =
        "SELECT string_agg(segment_id || ' ' || filenode || ' ' || level, ',' ORDER BY segment_id) FROM strata.segment";
    let before = twin::value(&mut c, rows).unwrap();
    for sql in
        ["CLUSTER w USING w_pkey", "TRUNCATE w", "SELECT strata.rebuild_index('w')", "SELECT strata.consolidate('w')"]
    {
        c.batch_execute(&format!("BEGIN; SAVEPOINT s; {sql}; ROLLBACK TO s; SELECT * FROM w WHERE n = 3; COMMIT"))
            .unwrap();
        assert_eq!(twin::value(&mut c, rows).unwrap(), before, "{sql}");
        exact(&cluster, &mut c, 400);
    }
    // A rewrite keeps the segments and their pages: they go over to the new file.
    let ids = "SELECT string_agg(segment_id::text, ',' ORDER BY segment_id) FROM strata.segment";
    let before = twin::value(&mut c, ids).unwrap();
    c.batch_execute("VACUUM FULL w").unwrap();
    assert_eq!(twin::value(&mut c, ids).unwrap(), before);
    exact(&cluster, &mut c, 400);
    // Consolidation writes fragments again; row ids stay, so the pages do.
    c.batch_execute(
        "DELETE FROM w WHERE n BETWEEN 1 AND 45 AND n % 3 = 0; DELETE FROM h WHERE n BETWEEN 1 AND 45 AND n % 3 = 0",
    )
    .unwrap();
    let fragments = number(&mut c, "SELECT count(*) FROM strata.fragments");
    c.execute("SELECT strata.consolidate('w')", &[]).unwrap();
    assert!(number(&mut c, "SELECT count(*) FROM strata.fragments") <= fragments);
    let oldest = "SELECT segment_id FROM strata.segments ORDER BY first_row_id LIMIT 1";
    assert_eq!(twin::value(&mut c, oldest).unwrap(), before.split(',').next().unwrap());
    exact(&cluster, &mut c, 400);
    c.batch_execute("DROP TABLE w").unwrap();
    c.execute("SELECT strata.sweep(0)", &[]).unwrap();
    assert_eq!(number(&mut c, "SELECT count(*) FROM strata.segment_page"), 0);
}

#[test]
fn a_transaction_that_is_older_than_a_move_rewrites_what_the_move_made() {
    let cluster = Cluster::start().unwrap();
    let mut c = cluster.connect().unwrap();
    tables(&mut c, 300);
    for sql in ["CLUSTER w USING w_pkey", "SELECT strata.consolidate('w')", "TRUNCATE w; INSERT INTO w SELECT * FROM h"]
    {
        c.batch_execute("SET strata.fragment_rows = 20").unwrap();
        let mut old = cluster.connect().unwrap();
        old.batch_execute(
            "SET strata.fragment_rows = 200; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class",
        )
        .unwrap();
        checks::rewarm(&mut c, "w").unwrap();
        match old.batch_execute(&format!("{sql}; COMMIT")) {
            Ok(()) => {}
            // It may be told to try again, as on any concurrent change, but then it did nothing.
            Err(error) => {
                assert!(checks::sqlstate(&error).starts_with("40"), "{sql}: {error:?}");
                old.batch_execute("ROLLBACK").unwrap();
            }
        }
        drop(old);
        exact(&cluster, &mut c, 300);
    }
}

#[test]
fn damage_of_the_index_costs_time_and_never_a_row() {
    let cluster = Cluster::with(Options::new().set("autovacuum", "off")).unwrap();
    let mut c = cluster.connect().unwrap();
    tables(&mut c, 800);
    c.batch_execute("SET strata.fragment_rows = 20;").unwrap();
    checks::rewarm(&mut c, "w").unwrap();
    c.batch_execute("CREATE TABLE pages AS TABLE strata.segment_page").unwrap();
    for damage in [
        "UPDATE strata.segment SET directory = set_byte(directory, 60, 255 - get_byte(directory, 60))",
        "UPDATE strata.segment SET directory = substr(directory, 1, 30) WHERE level = 2",
        "UPDATE strata.segment SET directory = '' WHERE level = 1",
        "DELETE FROM strata.segment WHERE level > 0",
        "DELETE FROM strata.segment",
        "DELETE FROM strata.segment_page; VACUUM strata.segment_page",
        "UPDATE strata.segment_page SET data = set_byte(data, length(data) - 1, 255 - get_byte(data, length(data) - 1)); VACUUM strata.segment_page",
        "UPDATE strata.segment_page SET data = substr(data, 1, 5); VACUUM strata.segment_page",
        // Somebody else's page, whole.
        "UPDATE strata.segment_page p SET data = (SELECT data FROM pages q WHERE q.segment_id <> p.segment_id AND q.data <> p.data LIMIT 1) WHERE page = 0 AND segment_id = (SELECT max(segment_id) FROM strata.segment); VACUUM strata.segment_page",
    ] {
        damage.split("; ").for_each(|sql| c.batch_execute(sql).unwrap());
        let mut d = cluster.connect().unwrap();
        twin::assert_same(&mut d, "w", "h").unwrap();
        keys_are_found(&mut d, 800);
        let (_, said) = checks::failure(&mut d, "INSERT INTO w VALUES (md5('30')::uuid, 1, NULL, 'twice')").unwrap();
        assert!(said.contains("w_pkey"), "{damage}: {said}");
        let damaged = number(&mut d, "SELECT damaged FROM strata.stat_fragment_index");
        assert!(damaged > 0, "{damage}: nobody noticed");
        assert!(cluster.log().contains("rebuild_index"), "{damage}: no hint");
        c.execute("SELECT strata.rebuild_index('w')", &[]).unwrap();
        exact(&cluster, &mut cluster.connect().unwrap(), 800);
    }
    // A fold repairs what it finds as well.
    c.batch_execute("DELETE FROM strata.segment WHERE level = 1").unwrap();
    more(&mut c, 5_000, 60);
    c.execute("SELECT strata.consolidate('w')", &[]).unwrap();
    exact(&cluster, &mut cluster.connect().unwrap(), 800);
}

#[test]
fn without_the_files_absent_keys_and_ranges_are_answered_and_plans_are_made() {
    let cluster = Cluster::with(Options::new().set("autovacuum", "off")).unwrap();
    let mut c = cluster.connect().unwrap();
    tables(&mut c, 600);
    c.batch_execute("SET strata.fragment_rows = 20").unwrap();
    checks::rewarm(&mut c, "w").unwrap();
    drop(c);
    let away = cluster.dir().join("away");
    std::fs::rename(cluster.store(), &away).unwrap();
    let mut c = cluster.connect().unwrap();
    for sql in [
        "SELECT * FROM w WHERE id = md5('not there')::uuid",
        "SELECT * FROM w WHERE code = 'not there'",
        "SELECT * FROM w WHERE n > 10000",
        "SELECT * FROM w WHERE n IS NULL",
        "SELECT * FROM w WHERE id < '00000000-0000-0000-0000-000000000001'",
        "EXPLAIN (COSTS OFF) SELECT * FROM w WHERE id = md5('7')::uuid AND false",
    ] {
        let rows = twin::rows(&mut c, sql).unwrap();
        assert!(rows.is_empty() || sql.starts_with("EXPLAIN"), "{sql}: {rows:?}");
    }
    c.batch_execute(
        "EXPLAIN SELECT * FROM w WHERE n BETWEEN 5 AND 300; EXPLAIN SELECT * FROM w WHERE id = md5('7')::uuid",
    )
    .unwrap();
    // What needs a file says so; a row that is new is not.
    let (code, said) = checks::failure(&mut c, "SELECT * FROM w WHERE id = md5('7')::uuid").unwrap();
    assert!(["XX001", "58P01"].contains(&code.as_str()), "{code} {said}");
    c.batch_execute("INSERT INTO w VALUES (md5('new')::uuid, 0, 'new', 'x'); INSERT INTO h VALUES (md5('new')::uuid, 0, 'new', 'x')").unwrap();
    std::fs::rename(&away, cluster.store()).unwrap();
    exact(&cluster, &mut c, 600);
}

#[test]
fn a_unique_index_that_comes_later_gets_its_pages() {
    let cluster = Cluster::start().unwrap();
    let mut c = cluster.connect().unwrap();
    tables(&mut c, 600);
    c.batch_execute("SET strata.fragment_rows = 20; ALTER TABLE w DROP CONSTRAINT w_code_key; ALTER TABLE h DROP CONSTRAINT h_code_key").unwrap();
    checks::rewarm(&mut c, "w").unwrap();
    let keys = "SELECT keys::text FROM strata.segments ORDER BY level DESC LIMIT 1";
    assert_eq!(twin::value(&mut c, keys).unwrap(), "{id}");
    for sql in
        ["CREATE UNIQUE INDEX w_code_key ON w (code)", "CREATE UNIQUE INDEX CONCURRENTLY w_code_2 ON w (code, n)"]
    {
        c.batch_execute(sql).unwrap();
        exact(&cluster, &mut c, 600);
    }
    c.batch_execute("CREATE UNIQUE INDEX h_code_key ON h (code)").unwrap();
    assert_eq!(twin::value(&mut c, keys).unwrap(), "{id,code}");
    let (_, _, asked) = counted(&mut c, |c| {
        assert_eq!(twin::rows(c, "SELECT n FROM w WHERE code = md5('c77')").unwrap(), [[Some("77".to_owned())]]);
    });
    // The newest fragments, which have a segment of their own, are asked as well until they are folded.
    assert!((1.0..=3.0).contains(&asked), "{asked}");
    let (_, said) = checks::failure(&mut c, "INSERT INTO w VALUES (md5('fresh')::uuid, 0, md5('c77'), 'x')").unwrap();
    assert!(said.contains("w_code_key"), "{said}");
}

/// Small neighbours are merged, but the row ids of a fragment span less than 2^32.
#[test]
fn fragments_whose_row_ids_are_far_apart_are_not_merged() {
    let cluster = Cluster::with(Options::new().set("strata.policy_interval", "0").set("autovacuum", "off")).unwrap();
    let mut c = cluster.connect().unwrap();
    tables(&mut c, 300);
    // An index that holds the row ids.
    c.batch_execute("CREATE INDEX w_next ON w ((n + 1)); SET strata.fragment_rows = 10000").unwrap();
    checks::rewarm(&mut c, "w").unwrap();
    // As after four thousand million rows that came and went.
    c.batch_execute("UPDATE strata.warm_table SET next_row_id = next_row_id + 5000000000").unwrap();
    for first in [301, 601, 901] {
        more(&mut c, first, 300);
        c.execute("SELECT strata.consolidate('w')", &[]).unwrap();
        exact(&cluster, &mut c, first + 299);
    }
    c.batch_execute("DELETE FROM w WHERE n % 3 = 0; DELETE FROM h WHERE n % 3 = 0").unwrap();
    c.execute("SELECT strata.consolidate('w')", &[]).unwrap();
    exact(&cluster, &mut cluster.connect().unwrap(), 1200);
    let fragments = number(&mut c, "SELECT count(*) FROM strata.fragments");
    assert_eq!(fragments, 2, "what is near is merged");
    c.batch_execute("SET enable_seqscan = off; SET strata.enable_warm_scan = off").unwrap();
    for n in [1, 299, 301, 602, 1199] {
        let sql = format!("SELECT n FROM w WHERE n + 1 = {n} + 1");
        assert!(twin::plan(&mut c, &sql).unwrap().contains("w_next"), "{sql}");
        assert_eq!(twin::rows(&mut c, &sql).unwrap(), [[Some(n.to_string())]], "{sql}");
    }
}

/// The numbers of segments begin anew with the extension: what a session has read of the former ones must not count.
#[test]
fn an_extension_that_is_created_again_has_an_index_of_its_own() {
    let cluster = Cluster::with(Options::new().set("strata.policy_interval", "0").set("autovacuum", "off")).unwrap();
    let mut c = cluster.connect().unwrap();
    c.batch_execute("SET strata.fragment_rows = 20").unwrap();
    let mut segments = Vec::new();
    for first in [1, 10_001] {
        tables(&mut c, 0);
        more(&mut c, first, 400);
        checks::rewarm(&mut c, "w").unwrap();
        segments.push(twin::rows(&mut c, "SELECT segment_id, page FROM strata.segment_page ORDER BY 1, 2").unwrap());
        for i in first..first + 400 {
            let found = |c: &mut Client| number(c, &format!("SELECT count(*) FROM w WHERE id = md5('{i}')::uuid"));
            assert_eq!(found(&mut c), 1, "row {i}");
        }
        let again = format!("INSERT INTO w VALUES (md5('{}')::uuid, 1, NULL, 'twice')", first + 100);
        assert_eq!(checks::failure(&mut c, &again).unwrap().0, "23505");
        c.batch_execute("DROP EXTENSION strata CASCADE; DROP TABLE h; CREATE EXTENSION strata").unwrap();
    }
    assert_eq!(segments[0], segments[1], "the same numbers");
}
