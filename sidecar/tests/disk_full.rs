//! A repository whose disk is full: a clean failure that names the place, and success when there is room again.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Server, give, is_root};
use std::path::{Path, PathBuf};
use std::process::Command;

struct Disk(PathBuf);

impl Disk {
    fn mount(megabytes: u32) -> Self {
        assert!(is_root(), "this test mounts a small disk, so it must run as the superuser");
        let dir = tempfile::Builder::new().prefix("strata-d-").tempdir().unwrap().keep();
        let options = format!("size={megabytes}m,mode=755");
        assert!(
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&dir).status().unwrap().success()
        );
        give(&dir);
        Self(dir)
    }

    fn fill(&self, leave: u64) -> PathBuf {
        let file = self.0.join("filler");
        let mut bytes = vec![0; 1 << 20];
        // Grows until the disk is full.
        while std::fs::write(&file, &bytes).is_ok() {
            bytes.resize(bytes.len() + (1 << 20), 0);
        }
        let size = std::fs::metadata(&file).unwrap().len();
        std::fs::File::options().write(true).open(&file).unwrap().set_len(size.saturating_sub(leave)).unwrap();
        file
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
        let _ = std::fs::remove_dir(&self.0);
    }
}

fn failed_and_nothing_recorded(server: &Server, disk: &Path) {
    let said = server.run(&["backup"]).failed(1, "No space left");
    assert!(said.err.contains(disk.to_str().unwrap()), "{said:?}");
    let info = server.json(&["info"]);
    assert_eq!(info["backups"], serde_json::json!([]));
    assert_eq!(info["unfinished_backups"], serde_json::json!([]), "the room is given back");
}

#[test]
fn a_backup_onto_a_full_disk_fails_cleanly_and_works_later() {
    let disk = Disk::mount(80);
    let repository = disk.0.join("repo");
    std::fs::create_dir(&repository).unwrap();
    give(&repository);
    let server = Server::start_with("", Some(&repository));
    server.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 20000) g");
    server.archive();
    let filler = disk.fill(400 << 10);
    failed_and_nothing_recorded(&server, &disk.0);
    // The server goes on, and keeps the WAL that found no room.
    server.sql("INSERT INTO t SELECT g, md5(g::text) FROM generate_series(20001, 60000) g; SELECT pg_switch_wal()");
    std::thread::sleep(std::time::Duration::from_secs(2));
    std::fs::remove_file(filler).unwrap();
    server.archive();
    server.json(&["backup"]);
    server.archive();
    server.run(&["verify"]).ok();
    let digest = server.sql("SELECT count(*), sum(hashtext(v)) FROM t");
    assert_eq!(server.recover("latest", &[]).sql("SELECT count(*), sum(hashtext(v)) FROM t"), digest);
}
