//! Each fragment is copied exactly once in its life: a second backup copies none of them, a later one only the new ones.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use serde_json::Value;
use strata_tests::{Cluster, Options, Strata, checks, process, recovered, twin};

fn number(result: &Value, name: &str) -> u64 {
    result[name].as_u64().unwrap_or_else(|| panic!("no {name} in {result}"))
}

#[test]
fn a_second_backup_copies_no_fragment_bytes() {
    let cluster = Cluster::with(Options::new().archiving()).unwrap();
    let mut c = cluster.connect().unwrap();
    for t in ["a", "b"] {
        c.batch_execute(&format!(
            "CREATE TABLE {t} (id int PRIMARY KEY, v text); INSERT INTO {t} SELECT i, md5((i * 7)::text) FROM generate_series(1, 30000) i"
        ))
        .unwrap();
    }
    c.batch_execute("CREATE TABLE a_twin AS TABLE a; CREATE TABLE b_twin AS TABLE b").unwrap();
    checks::rewarm(&mut c, "a").unwrap();
    let (strata, _agent) = Strata::with_agent(&cluster).unwrap();
    let backup = |c: &mut postgres::Client| -> Value { c.query_one("SELECT strata.backup()", &[]).unwrap().get(0) };
    let store = || cluster.fragment_files().iter().map(|f| std::fs::metadata(f).unwrap().len()).sum::<u64>();

    let first = backup(&mut c);
    assert!(number(&first, "fragments") > 0, "{first}");
    // The agent may have archived the fragments before the backup began: then it is the fragment log that copied them.
    let held = strata_bytes(&strata);
    assert!(held >= store(), "the repository has {held} bytes of fragments, the store {}", store());
    let second = backup(&mut c);
    assert_eq!(number(&second, "fragment_bytes_copied"), 0, "{second}");
    assert_eq!(number(&second, "fragment_bytes"), number(&first, "fragment_bytes"));
    assert_eq!(strata_bytes(&strata), held, "no fragment file was added");

    c.batch_execute("UPDATE a SET v = 'x' WHERE id % 1000 = 0; UPDATE a_twin SET v = 'x' WHERE id % 1000 = 0").unwrap();
    let third = backup(&mut c);
    assert_eq!(number(&third, "fragment_bytes_copied"), 0, "changed rows are in the delta store: {third}");

    checks::rewarm(&mut c, "b").unwrap();
    let fourth = backup(&mut c);
    assert!(number(&fourth, "fragments") > number(&third, "fragments"), "{fourth}");
    assert!(strata_bytes(&strata) > held);
    let rows = twin::rows(&mut c, "SELECT state FROM strata.backups").unwrap();
    assert_eq!(rows.len(), 4);
    assert!(rows.iter().all(|r| r[0].as_deref() == Some("complete")), "{rows:?}");
    assert_eq!(strata.run(&["verify"]).unwrap().code, 0);

    let back = recovered::recover(&strata, "latest", &["--full"]).unwrap();
    let mut b = back.cluster.connect().unwrap();
    twin::assert_same(&mut b, "a", "a_twin").unwrap();
    twin::assert_same(&mut b, "b", "b_twin").unwrap();
    checks::key_is_exact(&mut b, "a", "id").unwrap();
}

/// Bytes of the fragments in the repository.
fn strata_bytes(strata: &Strata) -> u64 {
    process::files_below(strata.repository())
        .iter()
        .filter(|f| f.extension().is_some_and(|e| e == "frag"))
        .map(|f| std::fs::metadata(f).unwrap().len())
        .sum()
}
