//! An encrypted repository: only who has an identity reads it, everybody finds damage in it, and it comes back without Strata.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::s3::S3;
use common::{Recovered, Server, add_fragment, files, give, kill9, psql, wait_for};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const DIGEST: &str = "SELECT count(*), coalesce(sum(hashtext(v)), 0) FROM t";
const AGE: &[u8] = b"age-encryption.org/v1\n";
/// What no file of a repository may show.
const MARK: &str = "geheime-zeile";

/// Identities, in files that the servers' user reads, and their recipients.
struct Keys(tempfile::TempDir);

impl Keys {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("strata-k-").tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        Self(dir)
    }

    /// Makes an identity, with Debian's age.
    fn make(&self, name: &str) -> (PathBuf, String) {
        let file = self.0.path().join(name);
        let made = Command::new("age-keygen").arg("-o").arg(&file).output().expect("age-keygen, of the package age");
        assert!(made.status.success(), "{made:?}");
        give(&file);
        let shown = Command::new("age-keygen").arg("-y").arg(&file).output().unwrap();
        (file, String::from_utf8(shown.stdout).unwrap().trim().to_owned())
    }

    /// One file with the identities of several.
    fn together(&self, name: &str, files: &[&Path]) -> PathBuf {
        let file = self.0.path().join(name);
        let text: String = files.iter().map(|one| std::fs::read_to_string(one).unwrap()).collect();
        std::fs::write(&file, text).unwrap();
        give(&file);
        file
    }
}

/// Says in the configuration for whom is encrypted, and what opens.
fn keyed(server: &Server, recipients: &[&str], identity: Option<&Path>) {
    let text = std::fs::read_to_string(&server.config).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with("recipients =") && !line.starts_with("identity_file ="));
    let mut text: String = lines.flat_map(|line| [line, "\n"]).collect();
    let mut more = format!("[repository]\nrecipients = {}\n", json!(recipients));
    if let Some(file) = identity {
        more.push_str(&format!("identity_file = \"{}\"\n", file.display()));
    }
    text = text.replace("[repository]\n", &more);
    std::fs::write(&server.config, text).unwrap();
}

fn filled(server: &Server) -> String {
    server.create_catalog();
    server.sql(&format!(
        "CREATE TABLE t (id bigint PRIMARY KEY, v text); INSERT INTO t SELECT g, '{MARK}' || md5(g::text) FROM generate_series(1, 20000) g"
    ));
    add_fragment(server, 1)
}

/// What stands in the repository as it is, by the last part of its name.
fn stored(server: &Server, part: &str) -> Vec<PathBuf> {
    let all: Vec<PathBuf> = files(&server.repository)
        .into_iter()
        .filter(|path| path.ends_with(part) || path.display().to_string().ends_with(part))
        .collect();
    assert!(!all.is_empty(), "no {part}");
    all
}

#[test]
fn who_has_an_identity_reads_it_and_who_has_none_works_with_it() {
    let keys = Keys::new();
    let ((first, one), (second, two), (foreign, _)) = (keys.make("first"), keys.make("second"), keys.make("foreign"));
    let server = Server::start();
    keyed(&server, &[&one, &two], None);
    let hash = filled(&server);
    let warned = server.run(&["backup"]).ok();
    for recipient in [&one, &two] {
        assert!(warned.err.contains(&format!("identity of the recipient {recipient}")), "{warned:?}");
    }
    server.sql("UPDATE t SET v = v || 'x' WHERE id % 7 = 0");
    let second_backup = server.json(&["backup"]);
    assert_eq!(second_backup["fragments_copied"], 0);
    server.archive();
    let digest = server.sql(DIGEST);

    // Nothing is there in the clear that should not be.
    for part in [".pack", ".frag", "manifest.age"] {
        for path in stored(&server, part) {
            assert!(std::fs::read(&path).unwrap().starts_with(AGE), "{}", path.display());
        }
    }
    for path in files(&server.repository) {
        let bytes = std::fs::read(&path).unwrap();
        let plain = zstd::stream::decode_all(bytes.as_slice()).unwrap_or(bytes);
        for shown in [MARK, "base/1/", "listen_addresses", "START WAL LOCATION"] {
            let found = plain.windows(shown.len()).any(|window| window == shown.as_bytes());
            assert!(!found, "\"{shown}\" is in {}", path.display());
        }
    }
    assert!(stored(&server, &format!("{hash}.frag")).len() == 1);

    // Without an identity.
    let verified = server.json(&["verify"]);
    assert!(verified["encrypted"].as_u64().unwrap() > 4 && verified["damage"] == json!([]), "{verified}");
    let checked = server.json(&["check"]);
    let encryption = checked["checks"].as_array().unwrap().iter().find(|one| one["name"] == "encryption").unwrap();
    assert_eq!(encryption["state"], "warning", "{encryption}");
    assert_eq!(server.json(&["info"])["backups"].as_array().unwrap().len(), 2);
    server.run(&["plan", "--to", "latest"]).ok();
    let into = server.dir.join("never").display().to_string();
    server.run(&["recover", "--to", "latest", "--into", &into]).failed(3, "repository.identity_file");
    keyed(&server, &[&one, &two], Some(&foreign));
    server.run(&["recover", "--to", "latest", "--into", &into]).failed(3, "none of the identities");

    // With either.
    for identity in [&first, &second] {
        keyed(&server, &[&one, &two], Some(identity));
        let verified = server.json(&["verify"]);
        assert_eq!((&verified["encrypted"], &verified["damage"]), (&json!(0), &json!([])));
        let back = server.recover("latest", &["--full"]);
        assert_eq!(back.sql(DIGEST), digest);
        let there = files(&back.store()).into_iter().find(|file| file.ends_with(format!("{}/{hash}.frag", &hash[..2])));
        strata_fragment::verify_file(&there.unwrap()).unwrap();
    }
    // Both were shown, so nobody doubts any more, and what is kept is known without them.
    keyed(&server, &[&one, &two], None);
    let quiet = server.run(&["backup"]).ok();
    assert!(!quiet.err.contains("identity"), "{quiet:?}");
    let text = std::fs::read_to_string(&server.config).unwrap();
    std::fs::write(&server.config, format!("{text}\n[retention]\nkeep_backups = 1\n")).unwrap();
    server.json(&["expire"]);
    assert_eq!(server.json(&["info"])["backups"].as_array().unwrap().len(), 1);
    server.json(&["verify"]);
    assert_eq!(stored(&server, ".frag").len(), 1);
}

#[test]
fn damage_is_found_with_and_without_an_identity() {
    let keys = Keys::new();
    let (identity, one) = keys.make("one");
    let server = Server::start();
    keyed(&server, &[&one], None);
    filled(&server);
    server.json(&["backup"]);
    let segment = server.archive();
    server.archive();
    for known in [None, Some(identity.as_path())] {
        keyed(&server, &[&one], known);
        server.json(&["verify"]);
        for part in [".pack", ".frag", "manifest.age", &format!("{segment}.zst")] {
            let path = stored(&server, part)[0].clone();
            let name = path.file_name().unwrap().to_str().unwrap();
            let name = name.trim_end_matches(".zst").trim_end_matches(".frag");
            let whole = std::fs::read(&path).unwrap();
            let mut changed = whole.clone();
            changed[whole.len() / 2] ^= 1;
            let mut header = whole.clone();
            header[60] ^= 1;
            for content in [&whole[..whole.len() - 1], &changed, &header] {
                std::fs::write(&path, content).unwrap();
                server.run(&["verify"]).failed(6, name);
            }
            std::fs::remove_file(&path).unwrap();
            server.run(&["verify"]).failed(6, name);
            std::fs::write(&path, &whole).unwrap();
            give(&path);
        }
        server.json(&["verify"]);
    }
}

#[test]
fn keys_are_changed_and_what_was_written_before_stays_readable() {
    let keys = Keys::new();
    let ((old, one), (new, two)) = (keys.make("old"), keys.make("new"));
    let both = keys.together("both", &[&old, &new]);
    let server = Server::start();
    // A part of the repository is from before anything was encrypted.
    let hash = filled(&server);
    server.json(&["backup"]);
    keyed(&server, &[&one], Some(&old));
    let first = server.json(&["backup"]);
    let rekeyed = server.json(&["repository", "rekey"]);
    assert_eq!((&rekeyed["rekeyed"], &rekeyed["current"]), (&json!(1), &json!(0)));
    assert!(std::fs::read(&stored(&server, ".frag")[0]).unwrap().starts_with(AGE));
    let of_first = server.sql(DIGEST);

    keyed(&server, &[&two], Some(&new));
    server.sql("UPDATE t SET v = v || 'x' WHERE id % 5 = 0");
    server.json(&["backup"]);
    server.archive();
    let digest = server.sql(DIGEST);
    assert_eq!(server.json(&["repository", "rekey", "--dry-run"])["rekeyed"], 1);
    server.run(&["repository", "rekey"]).failed(3, "none of the identities");
    keyed(&server, &[&two], Some(&both));
    assert_eq!(server.json(&["repository", "rekey"])["rekeyed"], 1);
    assert_eq!(server.json(&["repository", "rekey"])["current"], 1);
    let states = server.json(&["repository", "keys"]);
    let current: Vec<&str> = states
        .as_array()
        .unwrap()
        .iter()
        .filter(|state| state["current"] == true)
        .map(|state| state["recipient"].as_str().unwrap())
        .collect();
    assert_eq!(current, [two.as_str()]);
    assert_eq!(server.json(&["verify"])["encrypted"], 0);
    let old_one = server.recover(first["id"].as_str().unwrap(), &["--full"]);
    assert_eq!(old_one.sql(DIGEST), of_first);
    drop(old_one);
    // The new identity alone opens what is new, and the fragments.
    keyed(&server, &[&two], Some(&new));
    let back = server.recover("latest", &["--full"]);
    assert_eq!(back.sql(DIGEST), digest);
    assert!(files(&back.store()).iter().any(|file| file.ends_with(format!("{}/{hash}.frag", &hash[..2]))));
    assert!(server.json(&["verify"])["encrypted"].as_u64().unwrap() > 0);
}

struct Agent(Child);

impl Agent {
    fn start(server: &Server) -> Self {
        let log = std::fs::File::options().create(true).append(true).open(server.dir.join("agent.log")).unwrap();
        let mut command = server.command(&["-v", "agent"]);
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        kill9(&mut self.0);
    }
}

fn wait_for_stored(server: &Server) {
    let now = server.sql("SELECT pg_current_wal_flush_lsn()");
    let stored = format!(
        "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'strata_one' AND restart_lsn >= '{now}'::pg_lsn"
    );
    wait_for("the stream", || server.sql(&stored) == "1");
}

#[test]
fn what_is_streamed_is_encrypted_and_goes_on_without_an_identity() {
    let keys = Keys::new();
    let (identity, one) = keys.make("one");
    let server = Server::start();
    keyed(&server, &[&one], None);
    let text = std::fs::read_to_string(&server.config).unwrap();
    std::fs::write(&server.config, text + "[wal]\nstream = true\n").unwrap();
    server.sql("CREATE TABLE t (id int, v text)");
    server.json(&["backup"]);
    for round in 0..3 {
        let agent = Agent::start(&server);
        server.sql(&format!("INSERT INTO t SELECT g, '{MARK}' || {round} FROM generate_series(1, 500) g"));
        wait_for_stored(&server);
        drop(agent);
    }
    for piece in files(&server.repository).iter().filter(|path| path.display().to_string().contains("/stream/")) {
        assert!(std::fs::read(piece).unwrap().starts_with(AGE), "{}", piece.display());
    }
    server.run(&["info"]).ok();
    server.json(&["verify"]);
    let digest = server.sql(DIGEST);
    // The host is lost: what was streamed is all that there is of the last segment.
    keyed(&server, &[&one], Some(&identity));
    assert_eq!(server.json(&["verify"])["encrypted"], 0);
    assert_eq!(server.recover("latest", &[]).sql(DIGEST), digest);
}

#[test]
fn a_bucket_is_encrypted_as_a_directory_is() {
    let keys = Keys::new();
    let (identity, one) = keys.make("one");
    let s3 = S3::start();
    let server = Server::start_in("", None, Some(&s3.section("bucket", "repo/one", s3.secret(), "60s")));
    keyed(&server, &[&one], None);
    let hash = filled(&server);
    server.json(&["backup"]);
    server.archive();
    let digest = server.sql(DIGEST);
    let (storage, root) = s3.storage("repo/one");
    let all = storage.walk(&root).unwrap();
    let sealed = [".pack", ".frag", "manifest.age", ".zst"];
    for one in all.iter().filter(|one| sealed.iter().any(|end| one.path.to_string_lossy().ends_with(end))) {
        assert!(storage.read(&one.path).unwrap().unwrap().starts_with(AGE), "{}", one.path.display());
    }
    assert!(server.json(&["verify"])["encrypted"].as_u64().unwrap() > 2);
    keyed(&server, &[&one], Some(&identity));
    assert_eq!(server.json(&["verify"])["encrypted"], 0);
    let back = server.recover("latest", &["--full"]);
    assert_eq!(back.sql(DIGEST), digest);
    assert!(files(&back.store()).iter().any(|file| file.ends_with(format!("{}/{hash}.frag", &hash[..2]))));
}

/// The way of `docs/design/repository-format.md`, with age, zstd and a JSON reader.
const BY_HAND: &str = r#"
set -euo pipefail
member=$1 backup=$2 key=$3 into=$4 frag=$5
b=$member/backups/$backup
open() { if [ "$(head -c 21 "$1")" = age-encryption.org/v1 ]; then age -d -i "$key" "$1"; else cat "$1"; fi; }
# What is in front of the note at the end of an archived file, or of an encrypted fragment.
front() {
    n=$(tail -c 12 "$1" | head -c 4 | od -An -tu4 | tr -d ' ')
    head -c -$((n + 24)) "$1" > "$2"
}
open "$b/manifest.age" > "$into.manifest"
mkdir -m 700 "$into"
jq -r '.content.directories[] | "\(.path)"' "$into.manifest" | while read -r d; do mkdir -m 700 -p "$into/$d"; done
jq -r '.content.files[].path' "$into.manifest" | while read -r f; do : > "$into/$f"; done
jq -r '.content as $m | $m.files[] as $f | $f.parts[] | [$f.path, .offset, .bytes, $m.packs[.pack].name, .frame, .frame_bytes, .skip] | @tsv' "$into.manifest" |
sort -t "$(printf '\t')" -k4,4 -k5,5n | while IFS="$(printf '\t')" read -r path offset bytes pack frame frame_bytes skip; do
    if [ "$pack:$frame" != "${last:-}" ]; then
        { tail -c +$((frame + 1)) "$b/$pack" || true; } | head -c "$frame_bytes" > "$into.stored"
        open "$into.stored" | zstd -dqc > "$into.frame"
        last=$pack:$frame
    fi
    { tail -c +$((skip + 1)) "$into.frame" || true; } | head -c "$bytes" | dd of="$into/$path" bs=1M seek="$offset" oflag=seek_bytes conv=notrunc status=none
done
jq -rj '.content.backup_label' "$into.manifest" > "$into/backup_label"
mkdir "$into.wal"
for f in "$member"/wal/*/*.zst; do
    front "$f" "$into.stored"
    open "$into.stored" | zstd -dqc > "$into.wal/$(basename "$f" .zst)"
done
front "$frag" "$into.stored"
open "$into.stored" > "$into.frag"
"#;

#[test]
fn it_comes_back_without_strata() {
    let keys = Keys::new();
    let (identity, one) = keys.make("one");
    let server = Server::start();
    keyed(&server, &[&one], None);
    let hash = filled(&server);
    let backup = server.json(&["backup"]);
    server.sql("UPDATE t SET v = v || 'x' WHERE id % 7 = 0");
    server.archive();
    let digest = server.sql(DIGEST);
    let into = server.dir.join("by-hand");
    let done = Command::new("bash")
        .args(["-c", BY_HAND, "by-hand"])
        .arg(server.repository.join("systems/test/one"))
        .arg(backup["id"].as_str().unwrap())
        .arg(&identity)
        .arg(&into)
        .arg(stored(&server, ".frag")[0].as_os_str())
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let fragment = std::fs::read(into.with_extension("frag")).unwrap();
    assert_eq!(blake3::hash(&fragment).to_hex().as_str(), hash);
    let back = Recovered { dir: into.clone(), sockets: server.dir.clone(), port: common::free_port() };
    let wal = into.with_extension("wal");
    let conf = into.join("postgresql.auto.conf");
    let text = std::fs::read_to_string(&conf).unwrap_or_default();
    std::fs::write(
        &conf,
        format!(
            "{text}\nport = {}\nrestore_command = 'cp {}/%f %p'\narchive_mode = off\nrecovery_target_timeline = 'current'\n",
            back.port,
            wal.display()
        ),
    )
    .unwrap();
    std::fs::write(into.join("recovery.signal"), "").unwrap();
    for path in [&into, &wal] {
        give(path);
    }
    common::start(&into);
    wait_for("the end of the recovery", || {
        psql(&server.dir, back.port, "postgres", "SELECT pg_is_in_recovery()") == "f"
    });
    assert_eq!(back.sql(DIGEST), digest);
}
