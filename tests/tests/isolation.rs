//! Sessions that meet on the same warm rows: `isolation/specs/*.spec` through PostgreSQL's own isolation tester.
//!
//! Every spec runs twice. First on a server where the access method `warm` is the heap under another name and
//! `strata.to_warm` does nothing: that is the oracle, and what a file in `isolation/expected` says must be what heap does.
//! Then on Strata, against the same expectation.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use strata_tests::process::{give_to_server, pg_config, run};
use strata_tests::{Cluster, Options, checks, source_dir, twin};

/// Heap under the names of Strata.
const HEAP_AS_WARM: &str = "
    CREATE ACCESS METHOD warm TYPE TABLE HANDLER heap_tableam_handler;
    CREATE SCHEMA strata;
    CREATE FUNCTION strata.to_warm(t regclass) RETURNS bigint LANGUAGE plpgsql AS $$
      DECLARE n bigint; BEGIN EXECUTE format('SELECT count(*) FROM %s', t) INTO n; RETURN n; END $$;
    CREATE FUNCTION strata.consolidate(t regclass) RETURNS bigint LANGUAGE plpgsql AS $$
      DECLARE n bigint; BEGIN EXECUTE format('SELECT count(*) FROM %s', t) INTO n; RETURN n; END $$;
    CREATE FUNCTION strata.to_hot(t regclass) RETURNS bigint LANGUAGE plpgsql AS $$
      DECLARE n bigint; BEGIN EXECUTE format('SELECT count(*) FROM %s', t) INTO n; RETURN n; END $$;";

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    give_to_server(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
            give_to_server(&target).unwrap();
        }
    }
}

/// Runs `specs` on `cluster`; gives what differed.
fn tester(cluster: &Cluster, input: &Path, specs: &[String]) -> Result<PathBuf, String> {
    let results = cluster.dir().join("isolation-results");
    fs::create_dir_all(&results).unwrap();
    give_to_server(&results).unwrap();
    let program = pg_config("pkglibdir").unwrap().join("pgxs/src/test/isolation/pg_isolation_regress");
    let out = run(cluster
        .program(program.to_str().unwrap())
        .args(["--use-existing", "--dbname=postgres"])
        .arg(format!("--bindir={}", pg_config("bindir").unwrap().display()))
        .arg(format!("--inputdir={}", input.display()))
        .arg(format!("--outputdir={}", results.display()))
        .arg(format!("--host={}", cluster.sockets().display()))
        .arg(format!("--port={}", cluster.port()))
        .arg("--user=postgres")
        .args(specs)
        .current_dir(&results));
    match out {
        Ok(_) => Ok(results.join("results")),
        Err(error) => {
            let diff = fs::read_to_string(results.join("output_iso/regression.diffs"))
                .or_else(|_| fs::read_to_string(results.join("regression.diffs")))
                .unwrap_or_default();
            Err(format!("{error:#}\n{diff}"))
        }
    }
}

fn results_of(cluster: &Cluster, spec: &str) -> PathBuf {
    let base = cluster.dir().join("isolation-results");
    [base.join("output_iso/results"), base.join("results")]
        .into_iter()
        .map(|d| d.join(format!("{spec}.out")))
        .find(|f| f.exists())
        .unwrap_or_else(|| panic!("no result of {spec} below {}", base.display()))
}

#[test]
fn every_spec_gives_on_warm_what_it_gives_on_heap() {
    let source = source_dir().join("isolation");
    let mut specs: Vec<String> = fs::read_dir(source.join("specs"))
        .unwrap()
        .flatten()
        .filter_map(|e| e.file_name().to_string_lossy().strip_suffix(".spec").map(str::to_owned))
        .collect();
    specs.sort();
    assert!(!specs.is_empty());

    // As the server's user: the clone may be somewhere that it cannot read.
    let heap = Cluster::with(Options::new().plain()).unwrap();
    let input = heap.dir().join("isolation");
    copy_tree(&source, &input);
    fs::create_dir_all(input.join("expected")).unwrap();
    give_to_server(&input.join("expected")).unwrap();
    heap.connect().unwrap().batch_execute(HEAP_AS_WARM).unwrap();
    let (known, new): (Vec<String>, Vec<String>) =
        specs.iter().cloned().partition(|s| input.join("expected").join(format!("{s}.out")).exists());
    if !known.is_empty()
        && let Err(said) = tester(&heap, &input, &known)
    {
        panic!("what isolation/expected says is not what heap does:\n{said}");
    }
    if !new.is_empty() {
        // No expectation is written down: heap says what it is. (The run fails: it compares with an empty file.)
        new.iter().for_each(|spec| fs::write(input.join("expected").join(format!("{spec}.out")), "").unwrap());
        let _ = tester(&heap, &input, &new);
        for spec in &new {
            fs::copy(results_of(&heap, spec), input.join("expected").join(format!("{spec}.out"))).unwrap();
        }
    }

    // Nobody else has a snapshot: a move leaves out rows that some snapshot does not see.
    let options =
        Options::new().set("strata.policy_interval", "0").set("autovacuum", "off").set("strata.snapshot_wait", "100ms");
    let warm = Cluster::with(options).unwrap();
    if let Err(said) = tester(&warm, &input, &specs) {
        panic!("warm is not like heap:\n{said}");
    }
    println!("{} specs: {}", specs.len(), specs.join(" "));
}

/// The row that is read is in a fragment for the old snapshot; the delta row that took its place, and was deleted, is in a store that has
/// been written anew since: nobody can tell who deleted it, and both transactions must not commit. (Heap refuses the first one's UPDATE.)
#[test]
fn a_serializable_transaction_that_is_older_than_a_consolidation_keeps_its_conflicts() {
    let options =
        Options::new().set("strata.policy_interval", "0").set("autovacuum", "off").set("strata.snapshot_wait", "0");
    let cluster = Cluster::with(options).unwrap();
    let mut c = cluster.connect().unwrap();
    c.batch_execute(
        "CREATE TABLE w (id int PRIMARY KEY, v int); INSERT INTO w SELECT i, 0 FROM generate_series(1, 500) i",
    )
    .unwrap();
    c.batch_execute("SELECT strata.to_warm('w')").unwrap();
    c.batch_execute("INSERT INTO w SELECT i, 0 FROM generate_series(1001, 1100) i").unwrap();
    let (mut first, mut second) = (cluster.connect().unwrap(), cluster.connect().unwrap());
    first.batch_execute("BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT count(*) FROM pg_class").unwrap();
    // Whoever deletes the row finds it promoted, and has nothing to mark itself.
    c.batch_execute("SELECT v FROM w WHERE id = 1 FOR UPDATE").unwrap();
    second
        .batch_execute(
            "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT v FROM w WHERE id = 2; DELETE FROM w WHERE id = 1; COMMIT",
        )
        .unwrap();
    let file = "SELECT pg_relation_filenode('w')";
    let before = twin::value(&mut c, file).unwrap();
    c.batch_execute("SELECT strata.consolidate('w')").unwrap();
    assert_ne!(twin::value(&mut c, file).unwrap(), before, "the table has another file");
    // Nor does it concern those who are younger.
    cluster
        .connect()
        .unwrap()
        .batch_execute("BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY; SELECT count(*) FROM w; COMMIT")
        .unwrap();
    let (code, said) =
        checks::failure(&mut first, "SELECT v FROM w WHERE id = 1; UPDATE w SET v = 2 WHERE id = 2; COMMIT").unwrap();
    assert_eq!(code, "40001", "{said}");
    first.batch_execute("ROLLBACK").unwrap();
    // Once more, it goes through.
    first
        .batch_execute(
            "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT v FROM w WHERE id = 1; UPDATE w SET v = 2 WHERE id = 2; COMMIT",
        )
        .unwrap();
    assert_eq!(twin::value(&mut c, "SELECT string_agg(v::text, ',' ORDER BY id) FROM w WHERE id < 4").unwrap(), "2,0");
}
