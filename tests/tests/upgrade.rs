//! pg_upgrade of a server with warm tables, from the version under test to each newer one that is beside it: fragments, marks, row ids,
//! policies and rights are there, changes go on. `strata` must be installed in the newer versions' trees (`make install PG=17`); a
//! version that is not there, or has no Strata, is skipped, and the test says so. `make test-versions` fetches 17 and 18.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use postgres::Client;
use std::path::{Path, PathBuf};
use std::process::Command;
use strata_tests::process::{as_server, run};
use strata_tests::{Cluster, Options, checks, process, source_dir, twin};

/// The installed script of the extension. Two servers that have the same one have the same build, or one that fits.
fn script(sharedir: &Path) -> Option<Vec<u8>> {
    let folder = std::fs::read_dir(sharedir.join("extension")).ok()?;
    let of_strata = |name: &str| name.starts_with("strata--") && name.ends_with(".sql");
    let script = folder.flatten().find(|e| e.file_name().to_str().is_some_and(of_strata))?;
    std::fs::read(script.path()).ok()
}

/// The newer versions that are beside the one under test, oldest first: major and the directory of programs.
fn newer(than: u32) -> Vec<(u32, PathBuf)> {
    let mut found = Vec::new();
    let own = std::env::var("PG_CONFIG").unwrap_or_else(|_| "pg_config".into());
    let own = String::from_utf8(run(Command::new(own).arg("--sharedir")).unwrap().stdout).unwrap();
    let own = script(Path::new(own.trim()));
    assert!(own.is_some(), "the extension is not installed in the server under test");
    for major in than + 1..=18 {
        let tree = source_dir().join("../.ci/tree");
        let where_is = Command::new(tree).args(["--where", &major.to_string()]).output().unwrap();
        let there = PathBuf::from(String::from_utf8(where_is.stdout).unwrap().trim());
        let usual = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin/pg_config"));
        let Some(config) = [usual, there].into_iter().find(|p| p.exists()) else {
            println!("SKIPPED: pg_upgrade to {major}: there is no PostgreSQL {major} here");
            continue;
        };
        let said = |what: &str| {
            let output = run(Command::new(&config).arg(format!("--{what}"))).unwrap();
            PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
        };
        if !said("pkglibdir").join("strata.so").exists() || !said("sharedir").join("extension/strata.control").exists()
        {
            println!("SKIPPED: pg_upgrade to {major}: Strata is not installed there (make install PG={major})");
            continue;
        }
        if script(&said("sharedir")) != own {
            println!("SKIPPED: pg_upgrade to {major}: Strata there is of another build (make install PG={major})");
            continue;
        }
        found.push((major, said("bindir")));
    }
    found
}

/// What the catalog has, that must be the same afterwards. (PostgreSQL 17 has one more privilege, which owners have of themselves. No
/// list of rights at all means the owner's, which a dump leaves out.)
fn catalog(c: &mut Client) -> Vec<Vec<Option<String>>> {
    twin::rows(
        c,
        "SELECT 'fragment', relid::regclass::text, filenode::text, hash, first_row_id::text, row_count::text, deleted_rows::text, md5(row_ids::text)
           FROM strata.fragment
         UNION ALL SELECT 'deletion', relid::regclass::text, row_id::text, filenode::text, delta::text, '', '', '' FROM strata.deletion
         UNION ALL SELECT 'warm_table', relid::regclass::text, next_row_id::text, '', '', '', '', '' FROM strata.warm_table
         UNION ALL SELECT 'policy', relid::text, hot_for::text, ahead::text, '', '', '', '' FROM strata.policy
         UNION ALL SELECT 'rights', p.oid::regprocedure::text, p.proacl::text, '', '', '', '', '' FROM pg_proc p WHERE pronamespace = 'strata'::regnamespace
         UNION ALL SELECT 'rights', r.oid::regclass::text, replace(coalesce(r.relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::\"char\", relowner))::text, 'arwdDxtm', 'arwdDxt'), '', '', '', '', '' FROM pg_class r WHERE relnamespace = 'strata'::regnamespace
         ORDER BY 1, 2, 3, 4",
    )
    .unwrap()
}

/// Upgrades `old`, which is stopped, to the programs in `bin`; an error says what pg_upgrade said.
fn upgrade(old: &mut Cluster, bin: &Path, options: &Options, how: &str) -> Result<Cluster, String> {
    let new = Cluster::initialized(&options.clone().programs(bin).store(old.store())).unwrap();
    old.leave_store();
    let mut command = as_server(bin.join("pg_upgrade"));
    command
        .current_dir(new.dir())
        .args(["--username=postgres", how, "--no-sync"])
        .arg("--old-bindir")
        .arg(old.programs())
        .arg("--new-bindir")
        .arg(bin)
        .arg("--old-datadir")
        .arg(old.data())
        .arg("--new-datadir")
        .arg(new.data())
        .arg("--socketdir")
        .arg(new.dir());
    let Err(error) = run(&mut command) else { return Ok(new) };
    let logs = process::files_below(&new.data().join("pg_upgrade_output.d"));
    let errors: Vec<String> = logs
        .iter()
        .flat_map(|f| {
            String::from_utf8_lossy(&std::fs::read(f).unwrap_or_default())
                .lines()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .filter(|line| line.contains("ERROR") || line.contains("FATAL"))
        .collect();
    Err(format!("{}\n{error:#}", errors.join("\n")))
}

/// Whether these two versions of PostgreSQL, as they are installed here, can upgrade a server with one heap table and without Strata.
fn without_strata(major: u32, bin: &Path) -> Result<(), String> {
    let options = Options::new().plain();
    let mut old = Cluster::with(options.clone()).unwrap();
    old.connect().unwrap().batch_execute("CREATE TABLE t AS SELECT 1 AS a").unwrap();
    old.stop("fast").unwrap();
    println!("the same from {} to {major} without Strata", old.programs().display());
    upgrade(&mut old, bin, &options, "--copy").map(drop)
}

#[test]
fn warm_tables_survive_pg_upgrade() {
    let version: u32 = {
        let text =
            run(Command::new(std::env::var("PG_CONFIG").unwrap_or_else(|_| "pg_config".into())).arg("--version"))
                .unwrap();
        let text = String::from_utf8(text.stdout).unwrap();
        text.split(|c: char| !c.is_ascii_digit()).find(|w| !w.is_empty()).unwrap().parse().unwrap()
    };
    let targets = newer(version);
    if targets.is_empty() {
        println!("SKIPPED: there is nothing to upgrade {version} to");
        return;
    }
    for (i, (major, bin)) in targets.iter().enumerate() {
        to(*major, bin, if i % 2 == 0 { "--copy" } else { "--link" });
    }
}

fn to(major: u32, bin: &Path, how: &str) {
    let options = Options::new().set("strata.policy_interval", "0").set("strata.fragment_rows", "1500");
    let mut server = Cluster::with(options.clone()).unwrap();
    let mut c = server.connect().unwrap();
    for t in ["w", "h"] {
        c.batch_execute(&format!(
            "CREATE TABLE {t} (id int PRIMARY KEY, k int, v text, extra jsonb); CREATE INDEX ON {t} USING hash (k); CREATE INDEX ON {t} (v) WHERE k = 3;
             INSERT INTO {t} SELECT i, i % 50, md5(i::text), jsonb_build_object('n', i) FROM generate_series(1, 6000) i"
        ))
        .unwrap();
    }
    c.batch_execute(
        "CREATE TABLE p (at date, v int) PARTITION BY RANGE (at); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM ('2020-01-01') TO ('2020-02-01');
         INSERT INTO p SELECT date '2020-01-01' + i % 31, i FROM generate_series(1, 500) i; SELECT strata.manage('p', hot_for => '30 days', ahead => 0)",
    )
    .unwrap();
    checks::rewarm(&mut c, "w").unwrap();
    checks::rewarm(&mut c, "p1").unwrap();
    let change = |c: &mut Client, n: i32| {
        for t in ["w", "h"] {
            c.batch_execute(&format!(
                "UPDATE {t} SET v = 'change {n}' WHERE id % 11 = {n}; DELETE FROM {t} WHERE id % 13 = {n};
                 INSERT INTO {t} SELECT i, 3, 'late', NULL FROM generate_series(10000 + 100 * {n}, 10050 + 100 * {n}) i;
                 ALTER TABLE {t} ADD COLUMN c{n} int DEFAULT {n}; ALTER TABLE {t} DROP COLUMN c{n}"
            ))
            .unwrap();
        }
    };
    change(&mut c, 1);
    c.batch_execute("SELECT strata.consolidate('w')").unwrap();
    change(&mut c, 2);
    c.batch_execute("CREATE TABLE dropped AS SELECT 1 AS a; SELECT strata.to_warm('dropped'); DROP TABLE dropped")
        .unwrap();

    println!("pg_upgrade {how} from {} to {major}", server.programs().display());
    let before = (catalog(&mut c), twin::digest(&mut c, "p").unwrap());
    drop(c);
    server.stop("fast").unwrap();
    let new = match upgrade(&mut server, bin, &options, how) {
        Ok(new) => new,
        Err(said) => {
            if let Err(why) = without_strata(major, bin) {
                println!(
                    "SKIPPED: these versions cannot be upgraded without Strata either: {}",
                    why.lines().next().unwrap_or_default()
                );
                return;
            }
            panic!("{said}");
        }
    };
    new.up().unwrap();
    let mut c = new.connect().unwrap();
    let after = (catalog(&mut c), twin::digest(&mut c, "p").unwrap());
    let lost: Vec<_> = before.0.iter().filter(|row| !after.0.contains(row)).collect();
    let new_rows: Vec<_> = after.0.iter().filter(|row| !before.0.contains(row)).collect();
    assert!(
        lost.is_empty() && new_rows.is_empty(),
        "the catalog after pg_upgrade to {major}: {lost:#?} became {new_rows:#?}"
    );
    assert_eq!(after.1, before.1, "rows of p after pg_upgrade to {major}");
    twin::assert_same(&mut c, "w", "h").unwrap();
    checks::key_is_exact(&mut c, "w", "id").unwrap();
    change(&mut c, 3);
    twin::assert_same(&mut c, "w", "h").unwrap();
    // A cluster has another identifier after pg_upgrade: the store is handed over by hand.
    let (code, text) = checks::failure(&mut c, "SELECT strata.consolidate('w')").unwrap();
    assert_eq!(code, "55000", "{text}");
    std::fs::remove_file(new.store().join("primary")).unwrap();
    c.batch_execute("SELECT strata.consolidate('w')").unwrap();
    checks::rewarm(&mut c, "w").unwrap();
    twin::assert_same(&mut c, "w", "h").unwrap();
    checks::key_is_exact(&mut c, "w", "id").unwrap();
    // What pg_upgrade does not carry over.
    let hidden =
        "SELECT bool_and(relrewrite = oid) FROM pg_class WHERE relnamespace = 'strata'::regnamespace AND relkind = 'r'";
    assert_eq!(twin::value(&mut c, hidden).unwrap(), "f");
    c.batch_execute("SELECT strata.hide_catalog()").unwrap();
    assert_eq!(twin::value(&mut c, hidden).unwrap(), "t");
    c.batch_execute("CALL strata.run_policies()").unwrap();
    checks::store_is_exact(&new).unwrap();
    change(&mut c, 4);
    // The extension knows every member.
    c.batch_execute("DROP EXTENSION strata CASCADE; CREATE EXTENSION strata").unwrap();
}
