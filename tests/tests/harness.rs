//! The harness itself, without Strata: a server that is killed comes back, and nothing is left behind.
#![allow(missing_docs)]

use strata_tests::cluster::{Cluster, Options};
use strata_tests::twin;

#[test]
fn a_killed_server_comes_back_with_its_commits() {
    let cluster = Cluster::with(Options::new().plain()).unwrap();
    let mut c = cluster.connect().unwrap();
    c.batch_execute(
        "CREATE TABLE t AS SELECT i, md5(i::text) FROM generate_series(1, 1000) i; CREATE TABLE u AS TABLE t",
    )
    .unwrap();
    cluster.crash().unwrap();
    let mut c = cluster.connect().unwrap();
    twin::assert_same(&mut c, "t", "u").unwrap();
    c.batch_execute("UPDATE u SET md5 = 'x' WHERE i = 7").unwrap();
    let said = twin::assert_same(&mut c, "t", "u").unwrap_err().to_string();
    assert!(said.contains("(7,x)"), "{said}");
    let dir = cluster.dir().to_path_buf();
    drop(cluster);
    assert!(!dir.exists());
}
