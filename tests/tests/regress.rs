//! The SQL interface through PostgreSQL's own regression tester: `regress/sql/*.sql` against `regress/expected/*.out`.
//!
//! Here the expectation is what the functions promise: their answers, their errors, who may call them. What rows come back
//! from a warm table is the business of `heap_twin`, which has an oracle.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::Path;
use strata_tests::process::{give_to_server, pg_config, run};
use strata_tests::{Cluster, Options, source_dir};

/// Copies the files of `from` to `to`, for the server's user.
fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    give_to_server(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        fs::copy(entry.path(), &target).unwrap();
        give_to_server(&target).unwrap();
    }
}

#[test]
fn the_sql_interface_answers_as_written_down() {
    let source = source_dir().join("regress");
    // Policies run when a script says so.
    let cluster = Cluster::with(Options::new().set("strata.policy_interval", "0")).unwrap();
    // As the server's user: the clone may be somewhere that it cannot read.
    let input = cluster.dir().join("regress");
    fs::create_dir_all(&input).unwrap();
    give_to_server(&input).unwrap();
    for part in ["sql", "expected"] {
        copy_files(&source.join(part), &input.join(part));
    }
    let mut scripts: Vec<String> = fs::read_dir(source.join("sql"))
        .unwrap()
        .flatten()
        .filter_map(|e| e.file_name().to_string_lossy().strip_suffix(".sql").map(str::to_owned))
        .collect();
    scripts.sort();
    assert!(!scripts.is_empty());
    let program = pg_config("pkglibdir").unwrap().join("pgxs/src/test/regress/pg_regress");
    let out = run(cluster
        .program(program.to_str().unwrap())
        .args(["--use-existing", "--dbname=postgres", "--user=postgres"])
        .arg(format!("--bindir={}", pg_config("bindir").unwrap().display()))
        .arg(format!("--inputdir={}", input.display()))
        .arg(format!("--outputdir={}", input.display()))
        .arg(format!("--host={}", cluster.sockets().display()))
        .arg(format!("--port={}", cluster.port()))
        .args(&scripts)
        .current_dir(&input));
    // STRATA_REGRESS_RESULTS=DIR keeps what came out, to be read and then copied to regress/expected.
    if let Some(keep) = std::env::var_os("STRATA_REGRESS_RESULTS") {
        for entry in fs::read_dir(input.join("results")).unwrap().flatten() {
            fs::copy(entry.path(), Path::new(&keep).join(entry.file_name())).unwrap();
        }
    }
    if let Err(error) = out {
        let diff = fs::read_to_string(input.join("regression.diffs")).unwrap_or_default();
        panic!("{error:#}\n{diff}");
    }
    println!("{} scripts: {}", scripts.len(), scripts.join(" "));
}
