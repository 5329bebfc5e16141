//! A full disk during a move and during a backup: a clean failure, nothing half done, and success once there is room.
//! The disks are small tmpfs mounts; the suite needs root.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use strata_tests::process::{self, give_to_server, run};
use strata_tests::{Agent, Cluster, Options, Strata, checks, recovered, twin};

/// A small file system of its own.
struct Disk(PathBuf);

impl Disk {
    fn mount(megabytes: u32) -> Self {
        let dir = tempfile::Builder::new().prefix("strata-disk-").tempdir().unwrap().keep();
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m,mode=755"), "tmpfs"])
            .arg(&dir))
        .unwrap();
        give_to_server(&dir).unwrap();
        Self(dir)
    }

    /// Takes all room but `kilobytes`; gives it back when the file is removed.
    fn fill(&self, leave_kilobytes: u64) -> PathBuf {
        let path = self.0.join("filler");
        let mut file = fs::File::create(&path).unwrap();
        let block = vec![7_u8; 64 << 10];
        while file.write_all(&block).is_ok() {}
        let full = file.metadata().unwrap().len();
        file.set_len(full.saturating_sub(leave_kilobytes << 10)).unwrap();
        path
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg("--lazy").arg(&self.0));
        let _ = fs::remove_dir(&self.0);
    }
}

fn skipped() -> bool {
    if !process::is_root() {
        eprintln!("skipped: mounting a small disk needs root");
    }
    !process::is_root()
}

#[test]
fn a_move_onto_a_full_disk_fails_cleanly_and_works_later() {
    if skipped() {
        return;
    }
    let disk = Disk::mount(16);
    let store = disk.path().join("store");
    let cluster = Cluster::with(Options::new().store(&store)).unwrap();
    let mut c = cluster.connect().unwrap();
    c.batch_execute(
        "CREATE TABLE w (id int PRIMARY KEY, v text);
         INSERT INTO w SELECT i, md5(i::text) || md5((-i)::text) FROM generate_series(1, 60000) i;
         CREATE TABLE h AS TABLE w",
    )
    .unwrap();
    let filler = disk.fill(200);
    let (code, said) = checks::failure(&mut c, "SELECT strata.to_warm('w')").unwrap();
    assert_eq!(code, "53100", "{said}");
    assert!(said.contains(store.to_str().unwrap()), "the error names the place: {said}");
    twin::assert_same(&mut c, "w", "h").unwrap();
    assert_eq!(twin::value(&mut c, "SELECT count(*) FROM strata.fragment").unwrap(), "0");
    fs::remove_file(filler).unwrap();
    checks::store_is_exact(&cluster).unwrap();
    checks::rewarm(&mut c, "w").unwrap();
    twin::assert_same(&mut c, "w", "h").unwrap();
    checks::store_is_exact(&cluster).unwrap();
}

#[test]
fn a_backup_onto_a_full_disk_fails_cleanly_and_works_later() {
    if skipped() {
        return;
    }
    let disk = Disk::mount(96);
    let cluster = Cluster::with(Options::new().archiving()).unwrap();
    let mut c = cluster.connect().unwrap();
    c.batch_execute(
        "CREATE TABLE w (id int PRIMARY KEY, v text);
         INSERT INTO w SELECT i, md5(i::text) FROM generate_series(1, 60000) i;
         CREATE TABLE h AS TABLE w",
    )
    .unwrap();
    checks::rewarm(&mut c, "w").unwrap();
    let strata = Strata::configure_at(&cluster, &disk.path().join("repo")).unwrap();
    strata.archive(&cluster).unwrap();
    let agent = Agent::start(&cluster, &strata).unwrap();
    recovered::wait_archived(&mut c).unwrap();
    let filler = disk.fill(300);
    let (code, said) = checks::failure(&mut c, "SELECT strata.backup()").unwrap();
    assert!(said.to_lowercase().contains("space") || said.contains("full") || code == "53100", "{code} {said}");
    assert!(said.contains(disk.path().to_str().unwrap()), "the error names the place: {said}");
    let complete = twin::value(&mut c, "SELECT count(*) FROM strata.backups WHERE state = 'complete'").unwrap();
    assert_eq!(complete, "0");
    // The server is not held up: it goes on, and keeps the WAL that could not be archived.
    c.batch_execute("INSERT INTO w VALUES (100000, 'while full'); INSERT INTO h VALUES (100000, 'while full')")
        .unwrap();
    fs::remove_file(filler).unwrap();
    recovered::wait_archived(&mut c).unwrap();
    c.execute("SELECT strata.backup()", &[]).unwrap();
    assert_eq!(strata.run(&["verify"]).unwrap().code, 0);
    drop(agent);
    let back = recovered::recover(&strata, "latest", &["--full"]).unwrap();
    twin::assert_same(&mut back.cluster.connect().unwrap(), "w", "h").unwrap();
}
