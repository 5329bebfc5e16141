//! Damage to a fragment, a manifest, a data pack, a WAL segment: `verify` finds it and names it, a query that meets it says
//! so, and everything else stays readable.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use strata_tests::{Cluster, Options, Strata, checks, process, recovered, twin};

/// Two partitions in warm, their twin, a backup, and archived WAL after it.
fn prepared() -> (Cluster, Strata) {
    let cluster = Cluster::with(Options::new().archiving()).unwrap();
    let mut c = cluster.connect().unwrap();
    c.batch_execute(
        "CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10000);
         CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10000) TO (20000);
         INSERT INTO p SELECT i, md5(i::text) FROM generate_series(1, 19999) i;
         CREATE TABLE h AS TABLE p",
    )
    .unwrap();
    for t in ["p1", "p2"] {
        checks::rewarm(&mut c, t).unwrap();
    }
    let (strata, agent) = Strata::with_agent(&cluster).unwrap();
    c.execute("SELECT strata.backup()", &[]).unwrap();
    for t in ["p", "h"] {
        c.batch_execute(&format!("UPDATE {t} SET v = 'late' WHERE id % 1000 = 1")).unwrap();
    }
    recovered::wait_archived(&mut c).unwrap();
    agent.stop();
    (cluster, strata)
}

/// Flips a bit in the middle of a file, keeping its length.
fn flip(file: &Path, at: f64) {
    let mut bytes = fs::read(file).unwrap();
    let i = ((bytes.len() - 1) as f64 * at) as usize;
    bytes[i] ^= 0x10;
    fs::write(file, bytes).unwrap();
}

fn fragment_of(cluster: &Cluster, c: &mut postgres::Client, table: &str) -> PathBuf {
    let hash =
        twin::value(c, &format!("SELECT hash FROM strata.fragment WHERE relid = '{table}'::regclass LIMIT 1")).unwrap();
    cluster.fragment_files().into_iter().find(|f| f.to_string_lossy().contains(&hash)).unwrap()
}

#[test]
fn a_damaged_fragment_is_an_error_that_names_it_and_the_rest_is_readable() {
    let (cluster, strata) = prepared();
    let mut c = cluster.connect().unwrap();
    let file = fragment_of(&cluster, &mut c, "p1");
    let good = fs::read(&file).unwrap();
    let hash = file.file_stem().unwrap().to_string_lossy().into_owned();
    for at in [0.0, 0.2, 0.5, 0.8, 0.999, 1.0] {
        fs::write(&file, &good).unwrap();
        flip(&file, at);
        let mut c = cluster.connect().unwrap();
        match c.batch_execute("CREATE TEMP TABLE x AS SELECT * FROM p1 WHERE id > 0") {
            // A byte that no reader of these columns needs may stay unread; then the rows must be right.
            Ok(()) => twin::assert_same(&mut c, "x", "(SELECT * FROM h WHERE id < 10000)").unwrap(),
            Err(error) => {
                let e = error.as_db_error().unwrap();
                let all = format!("{} {} {}", e.message(), e.detail().unwrap_or(""), e.hint().unwrap_or(""));
                assert_eq!(e.code().code(), "XX001", "{all}");
                assert!(all.contains(&hash), "the error names the fragment: {all}");
                assert!(all.contains("p1"), "the error names the table: {all}");
                assert!(e.hint().is_some_and(|h| !h.is_empty()), "the error says what to do: {all}");
            }
        }
        twin::assert_same(&mut c, "p2", "(SELECT * FROM h WHERE id >= 10000)").unwrap();
    }
    // The middle of the file is data: that must have been noticed.
    fs::write(&file, &good).unwrap();
    flip(&file, 0.5);
    let mut c = cluster.connect().unwrap();
    assert_eq!(checks::failure(&mut c, "SELECT count(*), max(v) FROM p1").unwrap().0, "XX001");
    // A short file, too.
    fs::write(&file, &good[..good.len() / 2]).unwrap();
    let mut c = cluster.connect().unwrap();
    assert_eq!(checks::failure(&mut c, "SELECT count(*), max(v) FROM p1").unwrap().0, "XX001");
    // A missing one: without an agent nobody can bring it; with one it comes back from the repository.
    fs::remove_file(&file).unwrap();
    let mut c = cluster.connect().unwrap();
    let (code, said) = checks::failure(&mut c, "SELECT count(*), max(v) FROM p1").unwrap();
    assert!(["58000", "XX001", "58P01"].contains(&code.as_str()), "{code} {said}");
    assert!(said.contains("agent"), "the error says that an agent would help: {said}");
    let agent = strata_tests::Agent::start(&cluster, &strata).unwrap();
    twin::assert_same(&mut cluster.connect().unwrap(), "p", "h").unwrap();
    assert_eq!(fs::read(&file).unwrap(), good);
    drop(agent);
}

/// Files of the repository whose path contains `part`.
fn repository_files(strata: &Strata, part: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    process::files_below(strata.repository())
        .into_iter()
        .filter(|f| fs::metadata(f).unwrap().len() > 0)
        .filter(|f| part(&f.strip_prefix(strata.repository()).unwrap().to_string_lossy()))
        .collect()
}

#[test]
fn verify_finds_every_kind_of_damage_and_names_the_file() {
    let (_cluster, strata) = prepared();
    assert_eq!(strata.try_run(&["verify"]).unwrap().code, 0, "a good repository is good");
    let all = repository_files(&strata, |p| !p.contains("lock"));
    assert!(all.len() > 5, "{all:?}");
    let mut kinds = std::collections::BTreeSet::new();
    for file in &all {
        let good = fs::read(file).unwrap();
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        kinds.insert(file.strip_prefix(strata.repository()).unwrap().to_string_lossy().into_owned());
        let in_message = file.file_stem().unwrap().to_string_lossy().into_owned();
        for (damage, make) in [
            ("flipped", (|f: &Path| flip(f, 0.5)) as fn(&Path)),
            ("cut", |f: &Path| {
                let b = fs::read(f).unwrap();
                fs::write(f, &b[..b.len() / 2]).unwrap();
            }),
        ] {
            make(file);
            let said = strata.try_run(&["verify"]).unwrap();
            assert_eq!(said.code, 6, "{damage} {}: {}", file.display(), said.all());
            assert!(
                said.all().contains(&in_message) || said.all().contains(&name),
                "{damage} {}: {}",
                file.display(),
                said.all()
            );
            fs::write(file, &good).unwrap();
        }
    }
    assert_eq!(strata.try_run(&["verify"]).unwrap().code, 0, "everything was put back: {kinds:?}");
}

#[test]
fn a_missing_file_of_the_repository_is_found() {
    let (_cluster, strata) = prepared();
    for part in ["wal", "fragment"] {
        let files = repository_files(&strata, |p| p.contains(part) && !p.contains("lock") && !p.ends_with(".json"));
        assert!(!files.is_empty(), "{part}: {:?}", repository_files(&strata, |_| true));
        let file = &files[0];
        let good = fs::read(file).unwrap();
        fs::remove_file(file).unwrap();
        let said = strata.try_run(&["verify"]).unwrap();
        assert_ne!(said.code, 0, "without {}: {}", file.display(), said.all());
        let stem = file.file_stem().unwrap().to_string_lossy().into_owned();
        let stem = stem.split('.').next().unwrap();
        assert!(said.all().contains(stem), "without {}: {}", file.display(), said.all());
        fs::write(file, good).unwrap();
        process::give_to_server(file).unwrap();
    }
    assert_eq!(strata.try_run(&["verify"]).unwrap().code, 0);
}

#[test]
fn recovery_with_a_damaged_fragment_in_the_repository_keeps_the_rest_readable() {
    let (cluster, strata) = prepared();
    let mut c = cluster.connect().unwrap();
    let hash = twin::value(&mut c, "SELECT hash FROM strata.fragment WHERE relid = 'p1'::regclass LIMIT 1").unwrap();
    let in_repository = repository_files(&strata, |p| p.contains(&hash));
    assert!(!in_repository.is_empty());
    flip(&in_repository[0], 0.5);
    let back = recovered::recover(&strata, "latest", &[]).unwrap();
    let mut b = back.cluster.connect().unwrap();
    twin::assert_same(&mut b, "p2", "(SELECT * FROM h WHERE id >= 10000)").unwrap();
    let (code, said) = checks::failure(&mut b, "SELECT count(*), max(v) FROM p1").unwrap();
    assert!(["XX001", "58000"].contains(&code.as_str()), "{code} {said}");
    assert!(said.contains(&hash), "{said}");
}

#[test]
fn a_gap_in_the_wal_stops_a_recovery_across_it() {
    let (cluster, strata) = prepared();
    let mut c = cluster.connect().unwrap();
    let before = twin::value(&mut c, "SELECT clock_timestamp()").unwrap();
    let mut segments = Vec::new();
    for i in 0..3 {
        c.batch_execute(&format!("INSERT INTO h VALUES ({}, 'gap')", 50_000 + i)).unwrap();
        segments.push(twin::value(&mut c, "SELECT pg_walfile_name(pg_current_wal_lsn())").unwrap());
        recovered::wait_archived(&mut c).unwrap();
    }
    let lost = repository_files(&strata, |p| p.contains(&segments[1]));
    assert!(!lost.is_empty(), "{segments:?}");
    lost.iter().for_each(|f| fs::remove_file(f).unwrap());
    let said = strata.try_run(&["verify"]).unwrap();
    assert_ne!(said.code, 0, "{}", said.all());
    assert!(said.all().contains(&segments[1]), "{}", said.all());
    let place = recovered::place().unwrap();
    let into = place.join("data").display().to_string();
    let said = strata.try_run(&["recover", "--to", "latest", "--into", &into]).unwrap();
    assert_ne!(said.code, 0, "recovery crossed a gap: {}", said.all());
    assert!(said.all().contains(&segments[1]), "{}", said.all());
    fs::remove_dir_all(&place).unwrap();
    let back = recovered::recover(&strata, &before, &[]).unwrap();
    twin::assert_same(&mut back.cluster.connect().unwrap(), "p", "h").unwrap();
}
