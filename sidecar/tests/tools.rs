//! Backups through third-party tools: the real restic, borg, rclone and zstd, and everything that can go wrong with a tool.
//!
//! The catalog tables are made without the extension; fragments are files of any content under their hash.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Recovered, Said, Server, files, give, is_root, kill9, wait_for};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const DIGEST: &str = "SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0) FROM t";
const SECRET: &str = "geheim-of-the-test";

/// The tools that Strata comes configured for.
const TOOLS: [(&str, &str); 4] = [("restic", "restic"), ("borg", "borg"), ("rclone", "rclone"), ("command", "zstd")];

fn require(program: &str) {
    let found = Command::new("sh").args(["-c", "command -v \"$0\"", program]).stdout(Stdio::null()).status().unwrap();
    assert!(
        found.success(),
        "{program} is needed by this test: \".ci/setup\" installs it (Debian: restic, borgbackup, rclone, zstd)"
    );
}

/// A server with some rows.
fn filled() -> Server {
    let server = Server::start();
    server.create_catalog();
    server.sql(
        "CREATE TABLE t (id int PRIMARY KEY, v text); \
         INSERT INTO t SELECT g, repeat(md5(g::text), 4) FROM generate_series(1, 60000) g",
    );
    server
}

/// Adds a section to the configuration.
fn configure(server: &Server, section: &str) {
    let text = std::fs::read_to_string(&server.config).unwrap();
    let text = text.split("[tool]").next().unwrap();
    std::fs::write(&server.config, format!("{text}{section}")).unwrap();
}

/// The section for one of the tools, with its repository and all that it keeps in the server's directory.
fn section(server: &Server, preset: &str, more: &str) -> String {
    let dir = server.dir.display();
    let secret = server.dir.join("secret");
    std::fs::write(&secret, format!("{SECRET}\n")).unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    give(&secret);
    let secret = match preset {
        "restic" => format!("[tool.secrets]\nRESTIC_PASSWORD = {{ file = \"{}\" }}\n", secret.display()),
        "borg" => format!("[tool.secrets]\nBORG_PASSPHRASE = {{ file = \"{}\" }}\n", secret.display()),
        _ => String::new(),
    };
    format!(
        "[tool]\npreset = \"{preset}\"\nrepository = \"{dir}/second\"\nstate = \"{dir}/state\"\n{more}\n\
         [tool.env]\nHOME = \"{dir}\"\n{secret}"
    )
}

/// A server whose backups go through a tool.
fn with_tool(preset: &str, more: &str) -> Server {
    let server = filled();
    configure(&server, &section(&server, preset, more));
    server.run(&["tool", "init"]).ok();
    server
}

fn store_of_database(server: &Server) -> PathBuf {
    server.store().join(server.sql("SELECT oid FROM pg_database WHERE datname = 'postgres'"))
}

/// A fragment in the store, and its row. Returns its hash.
fn add_fragment(server: &Server, seed: u32, bytes: u32) -> String {
    let content: Vec<u8> = (0..bytes).map(|n| ((n ^ seed).wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let hash = blake3::hash(&content).to_hex().to_string();
    let dir = store_of_database(server).join(&hash[..2]);
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join(format!("{hash}.frag")), content).unwrap();
    give(&server.store());
    server.sql(&format!(
        "INSERT INTO strata.fragment (relid, filenode, hash, first_row_id, row_count, bytes, heap_bytes) \
         VALUES ('t'::regclass, 1, '{hash}', {seed}, 1000, {bytes}, 100)"
    ));
    hash
}

/// The fragments in a store that are what their names say.
fn fragments(store: &Path) -> Vec<String> {
    let sound = |path: &PathBuf| {
        let hash = path.file_stem()?.to_str()?.to_owned();
        let same = blake3::hash(&std::fs::read(path).ok()?).to_hex().as_str() == hash;
        (path.extension()? == "frag" && same).then_some(hash)
    };
    files(store).iter().filter_map(sound).collect()
}

fn objects(server: &Server) -> Vec<Value> {
    server.json(&["tool", "list"])["objects"].as_array().unwrap().clone()
}

fn object_names(server: &Server, part: &str) -> Vec<String> {
    let names =
        objects(server).iter().map(|one| one["object"]["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    names.into_iter().filter(|name| name.contains(part)).collect()
}

/// No entry, no document of an object of hot data, and a server that is not in backup mode: nothing half recorded.
fn nothing_recorded(server: &Server, complete: usize) {
    let info = server.json(&["info"]);
    assert_eq!(info["backups"].as_array().unwrap().len(), complete, "{info}");
    assert_eq!(info["unfinished_backups"], json!([]), "{info}");
    let backups: Vec<&str> =
        info["backups"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap()).collect();
    for file in files(&server.repository.join("systems/test/objects")) {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        // What was being written when a process died is nothing for anybody.
        if name.starts_with('.') {
            continue;
        }
        let named = name.contains("+fragments-") || backups.iter().any(|id| name.contains(&format!("+{id}+")));
        assert!(named, "{name} is left");
    }
    assert_eq!(server.sql("SELECT count(*) FROM strata.backup WHERE state = 'running'"), "0");
    assert_eq!(
        server
            .sql("SELECT count(*) FROM pg_stat_activity WHERE query ~ 'pg_backup_start'  AND pid <> pg_backend_pid()"),
        "0"
    );
}

/// The whole way: back up, back up again, lose everything but the repository and what the tool holds, recover.
fn whole_way(preset: &str, program: &str) {
    require(program);
    let server = with_tool(preset, "");
    let tried = server.json(&["tool", "check"]);
    assert_ne!(tried["listed"], json!(false), "{tried}");
    assert_eq!(tried["forgotten"], json!(true), "{tried}");
    let mut hashes: Vec<String> = (1..=3).map(|seed| add_fragment(&server, seed, 300_000)).collect();

    let first = server.json(&["backup", "--label", "through a tool"]);
    assert_eq!(first["tool"]["name"], json!(preset), "{first}");
    assert_eq!(first["fragments_copied"], json!(3), "{first}");
    assert!(first["fragment_bytes_copied"].as_u64().unwrap() >= 900_000, "{first}");
    for object in first["tool"]["objects"].as_array().unwrap() {
        assert_eq!((&object["exit_code"], &object["state"]), (&json!(0), &json!("stored")), "{object}");
        assert!(object["bytes"].as_u64().unwrap() > 0, "{object}");
        let identified = object["identifier"].is_string();
        assert_eq!(identified, matches!(preset, "restic" | "borg"), "{object}");
    }
    assert_eq!(
        files(&server.repository)
            .iter()
            .filter(|file| file.extension().is_some_and(|end| end == "pack" || end == "frag"))
            .count(),
        0
    );
    // What comes back from the tool is in the catalog of the database as well.
    assert_eq!(server.sql("SELECT state || ' ' || tool FROM strata.backup"), format!("complete {preset}"));
    assert_eq!(
        server.sql(
            "SELECT bool_and(o->>'exit_code' = '0') FROM strata.backup, jsonb_array_elements(tool_result->'objects') o"
        ),
        "t"
    );
    let infile = std::fs::read_to_string(server.file("infile.jsonl")).unwrap();
    let lines: Vec<Value> = infile.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(
        lines.iter().any(|line| line["kind"] == "hot") && lines.iter().any(|line| line["kind"] == "log"),
        "{infile}"
    );
    for hash in &hashes {
        assert!(lines.iter().any(|line| line["hash"] == json!(hash) && line["object"].is_string()), "{infile}");
    }

    // A fragment goes through once in its life.
    hashes.push(add_fragment(&server, 4, 50_000));
    server.sql("UPDATE t SET v = 'changed' WHERE id % 100 = 0");
    let second = server.json(&["backup"]);
    assert_eq!((&second["fragments"], &second["fragments_copied"]), (&json!(4), &json!(1)), "{second}");
    assert_eq!(server.json(&["backup"])["fragments_copied"], json!(0));
    assert!(objects(&server).iter().all(|one| one["listed"] != json!(false)));
    let verified = server.json(&["verify"]);
    assert_eq!(verified["objects"], verified["objects_read"], "{verified}");
    assert!(verified["objects"].as_u64().unwrap() >= 7, "{verified}");
    assert_eq!(server.json(&["verify", "--listing"])["objects_read"], json!(0));
    assert!(server.run(&["info"]).ok().out.contains(preset));
    assert!(server.run(&["plan"]).ok().out.contains(&format!("of the tool {preset}")));

    server.sql("DELETE FROM t WHERE id % 7 = 0");
    let digest = server.sql(DIGEST);
    server.archive();
    server.down();
    std::fs::remove_dir_all(server.data()).unwrap();
    std::fs::remove_dir_all(server.store()).unwrap();
    hashes.sort();
    let back = server.recover("latest", &["--full"]);
    assert_eq!(back.sql(DIGEST), digest);
    assert_eq!(back.sql("SHOW archive_mode"), "off");
    let mut there = fragments(&back.store());
    there.sort();
    assert_eq!(there, hashes);
    // Without --full they come in the background, through the tool as well.
    let back = server.recover(first["id"].as_str().unwrap(), &[]);
    assert_eq!(back.sql("SELECT count(*) FROM t"), "60000");
    wait_for("the fragments", || fragments(&back.store()).len() == 3);
    no_secret_anywhere(&server);
}

/// The secret is in its own file and nowhere else.
fn no_secret_anywhere(server: &Server) {
    for file in files(&server.dir).iter().filter(|file| !file.ends_with("secret") && !file.starts_with(server.data())) {
        let text = std::fs::read(file).unwrap_or_default();
        assert!(!text.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()), "{}", file.display());
    }
}

#[test]
fn restic_from_backup_to_recovery() {
    whole_way("restic", "restic");
}

#[test]
fn borg_from_backup_to_recovery() {
    whole_way("borg", "borg");
}

#[test]
fn rclone_from_backup_to_recovery() {
    whole_way("rclone", "rclone");
}

#[test]
fn a_plain_command_from_backup_to_recovery() {
    whole_way("command", "zstd");
}

#[test]
fn named_pipes_carry_a_backup_both_ways() {
    let server = filled();
    let second = server.dir.join("second");
    std::fs::create_dir(&second).unwrap();
    give(&second);
    let section = format!(
        "[tool]\nname = \"copy\"\nrepository = \"{}\"\nstate = \"{}/state\"\nstreams = 3\nbundle_megabytes = 1\n\
         [tool.backup]\npipe = \"fifo\"\ncommand = [\"cp\", \"{{pipe}}\", \"{{repository}}/{{name}}\"]\n\
         [tool.restore]\npipe = \"fifo\"\ncommand = [\"cp\", \"{{repository}}/{{name}}\", \"{{pipe}}\"]\n",
        second.display(),
        server.dir.display()
    );
    configure(&server, &section);
    for seed in 0..6 {
        add_fragment(&server, seed, 400_000);
    }
    let backup = server.json(&["backup"]);
    assert_eq!(backup["tool"]["fragment_objects"], json!(3), "bundles of at most a megabyte: {backup}");
    assert_eq!(backup["tool"]["objects"].as_array().unwrap().len(), 4, "three streams and the last one: {backup}");
    server.run(&["verify"]).ok();
    let digest = server.sql(DIGEST);
    server.archive();
    let back = server.recover("latest", &["--full"]);
    assert_eq!((back.sql(DIGEST), fragments(&back.store()).len()), (digest, 6));
    assert_eq!(std::fs::read_dir(server.dir.join("state")).unwrap().count(), 0, "no named pipe stays");
    // Without a command to forget, nothing can be forgotten, and that is said.
    server.run(&["tool", "forget", backup["id"].as_str().unwrap(), "--last"]).failed(3, "no command to forget");
}

#[test]
fn a_careful_person_lays_a_backup_out_with_tar() {
    require("zstd");
    let server = with_tool("command", "wal = \"both\"");
    let hash = add_fragment(&server, 1, 100_000);
    let backup = server.json(&["backup"]);
    let digest = server.sql(DIGEST);
    server.sql("DELETE FROM t");
    server.down();
    let back = Recovered { dir: server.dir.join("by-hand"), sockets: server.dir.clone(), port: server.port };
    let id = backup["id"].as_str().unwrap();
    // As docs/design/tools.md says.
    let script = format!(
        "set -e; mkdir -m 700 by-hand store; \
         for f in second/*+{id}+hot-*.tar.zst second/*+{id}+log.tar.zst; do zstd -dc \"$f\" | tar -xpf - -C by-hand; done; \
         for f in second/*+fragments-*.tar.zst; do zstd -dc \"$f\" | tar -xf - -C store; done; \
         rm by-hand/strata-manifest.json; touch by-hand/recovery.signal; \
         printf \"restore_command = 'false'\\nrecovery_target = 'immediate'\\nrecovery_target_action = 'promote'\\narchive_mode = off\\n\" >> by-hand/postgresql.auto.conf"
    );
    let said = common::as_user("sh").args(["-c", &script]).current_dir(&server.dir).output().unwrap();
    assert!(said.status.success(), "{said:?}");
    common::start(&back.dir);
    wait_for("the end of the recovery", || back.sql("SELECT pg_is_in_recovery()") == "f");
    assert_eq!(back.sql(DIGEST), digest);
    assert_eq!(fragments(&server.dir.join("store")), [hash]);
}

/// A tool of zstd and files, whose way to store is a script of the test's.
fn scripted(server: &Server, store: &str, more: &str) {
    let second = server.dir.join("second");
    std::fs::create_dir_all(&second).unwrap();
    give(&second);
    let text = section(server, "command", more);
    configure(server, &format!("{text}[tool.backup]\nshell = true\ncommand = '''{store}'''\n"));
}

/// What a sound tool does.
const SOUND: &str = "zstd -q -1 -c > {repository}/{name}.zst";

#[track_caller]
fn failed_backup(server: &Server, complete: usize, code: i32, needles: &[&str]) -> Said {
    let said = server.run(&["backup"]);
    assert_eq!(said.code, code, "{said:?}");
    for needle in needles {
        assert!(said.err.contains(needle), "no \"{needle}\" in {said:?}");
    }
    nothing_recorded(server, complete);
    let error = server
        .sql("SELECT error FROM strata.backup WHERE state = 'failed' ORDER BY started_at DESC, backup_id DESC LIMIT 1");
    for needle in needles {
        assert!(error.contains(needle), "no \"{needle}\" in {error}");
    }
    said
}

#[test]
fn a_tool_that_fails_makes_a_failed_backup_in_its_own_words() {
    require("zstd");
    let server = filled();
    for seed in 0..3 {
        add_fragment(&server, seed, 200_000);
    }
    scripted(&server, SOUND, "");
    server.json(&["backup"]);
    let partial = "head -c 200000 > {repository}/{name}.zst.part;";
    let hot = |script: &str| format!("case {{object}} in hot-*) {script} ;; *) {SOUND} ;; esac");
    let cases = [
        (
            hot(&format!("{partial} echo 'the disk is on fire' >&2; exit 1")),
            "",
            vec!["hot-", "exit code 1", "the disk is on fire"],
        ),
        (hot(&format!("{partial} kill -9 $$")), "", vec!["killed by signal 9"]),
        (hot(&format!("{partial} sleep 1000")), "timeout = \"1s\"", vec!["longer than its limit of 1s"]),
        (hot(&format!("{partial} sleep 1000")), "stall = \"1s\"", vec!["no byte went through its pipe for 1s"]),
        (hot("cat > /dev/null; sleep 1000"), "timeout = \"1s\"", vec!["longer than its limit of 1s"]),
        (hot("no-such-program-here"), "", vec!["exit code 127", "no-such-program-here", "Is the program installed?"]),
        (
            hot("head -c 300000000 /dev/zero | tr '\\0' x >&2; echo >&2; echo at last >&2; exit 5"),
            "",
            vec!["exit code 5", "at last"],
        ),
        // The last stream fails after all else went well.
        (
            format!("case {{object}} in log.*) echo not this one >&2; exit 8 ;; *) {SOUND} ;; esac"),
            "",
            vec!["log.tar", "exit code 8", "not this one"],
        ),
    ];
    for (script, limits, needles) in cases {
        scripted(&server, &script, limits);
        let began = Instant::now();
        failed_backup(&server, 1, 1, &needles);
        assert!(began.elapsed() < Duration::from_secs(120), "{script}");
        let left: Vec<String> =
            files(&server.dir.join("second")).iter().map(|file| file.display().to_string()).collect();
        assert!(!left.iter().any(|name| name.ends_with(".part")), "what was begun is forgotten: {left:?}");
    }
    let text = section(&server, "command", "");
    configure(&server, &format!("{text}[tool.backup]\ncommand = [\"no-such-program-here\", \"{{name}}\"]\n"));
    failed_backup(&server, 1, 1, &["could not start \"no-such-program-here\"", "Install it"]);
    // An exit code that the configuration calls a warning is none of these.
    let warned = format!("{SOUND}; echo one file was odd >&2; exit 3");
    scripted(&server, &warned, "");
    failed_backup(&server, 1, 1, &["exit code 3"]);
    let text = std::fs::read_to_string(&server.config).unwrap();
    std::fs::write(&server.config, text.replace("[tool.backup]", "[tool.backup]\nwarnings = [3]")).unwrap();
    let backup = server.json(&["backup"]);
    assert_eq!(backup["tool"]["objects"][0]["exit_code"], json!(3), "{backup}");
    assert_eq!(backup["tool"]["objects"][0]["messages"], json!(["one file was odd"]), "{backup}");
    assert!(
        server.run(&["backup"]).ok().out.contains("warning of the tool: hot-000.tar: exit code 3: one file was odd")
    );
    server.run(&["verify"]).ok();
    let digest = server.sql(DIGEST);
    server.archive();
    assert_eq!(server.recover("latest", &["--full"]).sql(DIGEST), digest);
}

#[test]
fn a_secret_that_a_tool_prints_is_masked() {
    require("zstd");
    let server = filled();
    scripted(
        &server,
        &format!(
            "echo using $THE_SECRET >&2; echo \"stored as $THE_SECRET\"; {SOUND}; tr '\\0' ' ' < /proc/$$/cmdline >&2"
        ),
        "",
    );
    let text = std::fs::read_to_string(&server.config).unwrap();
    let secret = server.dir.join("secret");
    std::fs::write(
        &server.config,
        format!("{text}[tool.secrets]\nTHE_SECRET = {{ file = \"{}\" }}\n", secret.display()),
    )
    .unwrap();
    let backup = server.json(&["backup"]);
    let messages = backup["tool"]["objects"][0]["messages"].to_string();
    assert!(messages.contains("using ***") && messages.contains("stored as ***"), "{messages}");
    no_secret_anywhere(&server);
    let shown = server.run(&["tool", "show"]).ok().out;
    assert!(shown.contains("THE_SECRET") && !shown.contains(SECRET), "{shown}");
    let text = std::fs::read_to_string(&server.config).unwrap();
    std::fs::write(&server.config, text.replace("; zstd", "; exit 2; zstd")).unwrap();
    let said = failed_backup(&server, 1, 1, &["using ***", "exit code 2"]);
    assert!(!said.err.contains(SECRET), "{said:?}");
    assert_eq!(
        server.sql(&format!(
            "SELECT count(*) FROM strata.backup WHERE error ~ '{SECRET}' OR tool_result::text ~ '{SECRET}'"
        )),
        "0"
    );
    std::fs::remove_file(&secret).unwrap();
    failed_backup(&server, 1, 3, &["tool.secrets.THE_SECRET", "secret"]);
}

#[test]
fn a_tool_whose_disk_is_full_fails_cleanly_and_works_later() {
    require("zstd");
    assert!(is_root(), "this test mounts a small disk, so it must run as the superuser");
    let server = with_tool("command", "");
    server.sql(
        "INSERT INTO t SELECT g, md5(random()::text) || md5(random()::text) FROM generate_series(100001, 300000) g",
    );
    let second = server.dir.join("second");
    let mounted = |options: &str| {
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&second).status().unwrap();
        assert!(status.success());
        give(&second);
    };
    mounted("size=1m,mode=755");
    failed_backup(&server, 0, 1, &["No space left on device"]);
    assert_eq!(files(&second), Vec::<PathBuf>::new(), "the room is given back");
    mounted("remount,size=200m");
    server.json(&["backup"]);
    server.run(&["verify"]).ok();
    assert!(Command::new("umount").arg("--lazy").arg(&second).status().unwrap().success());
}

#[test]
fn a_backup_that_is_killed_leaves_nothing_that_counts() {
    for (preset, program) in [("restic", "restic"), ("command", "zstd")] {
        require(program);
        let server = with_tool(preset, "");
        server.sql("INSERT INTO t SELECT g, md5(g::text) FROM generate_series(100001, 600000) g");
        add_fragment(&server, 1, 300_000);
        let objects_dir = server.repository.join("systems/test/objects");
        for pause in [0, 100, 400] {
            let mut child = server.command(&["backup"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            wait_for("the first object", || !files(&objects_dir).is_empty() || child.try_wait().unwrap().is_some());
            std::thread::sleep(Duration::from_millis(pause));
            // The program alone: its tool sees the end of its input and may well store what it got.
            let pids = common::descendants(child.id());
            let own = pids.iter().find(|pid| {
                std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "strata")
            });
            if let Some(own) = own {
                let _ = Command::new("kill").args(["-9", &own.to_string()]).stderr(Stdio::null()).status();
            }
            kill9(&mut child);
        }
        std::thread::sleep(Duration::from_secs(2));
        let complete = server.json(&["info"])["backups"].as_array().unwrap().len();
        let backup = server.json(&["backup"]);
        nothing_recorded(&server, complete + 1);
        let listed = server.json(&["tool", "list"]);
        assert_eq!(listed["unknown"], json!([]), "the tool holds nothing that nobody knows: {listed}");
        server.run(&["verify"]).ok();
        assert_eq!(server.sql("SELECT count(*) FROM strata.backup WHERE state = 'running'"), "0");
        let digest = server.sql(DIGEST);
        server.archive();
        let back = server.recover("latest", &["--full"]);
        assert_eq!((back.sql(DIGEST), fragments(&back.store()).len()), (digest, 1), "{backup}");
    }
}

/// Makes what a tool holds a day older.
fn a_day_later(server: &Server) -> strata_sidecar::repository::Repository {
    let text = std::fs::read_to_string(&server.config).unwrap();
    let config = strata_sidecar::config::Config::parse(&text, &server.config).unwrap();
    let repository = strata_sidecar::repository::Repository::open(&config).unwrap();
    for mut object in repository.objects().unwrap().0 {
        object.ended_at = object.ended_at.map(|at| at - jiff::SignedDuration::from_hours(25));
        repository.write_object(&object).unwrap();
    }
    give(&server.repository);
    repository
}

#[test]
fn forgetting_keeps_what_others_need() {
    for (preset, program) in [("command", "zstd"), ("restic", "restic"), ("borg", "borg")] {
        require(program);
        let server = with_tool(preset, "bundle_megabytes = 0");
        let kept = add_fragment(&server, 1, 100_000);
        let dropped = add_fragment(&server, 2, 100_000);
        let first = server.json(&["backup"])["id"].as_str().unwrap().to_owned();
        server.run(&["tool", "forget", &first]).failed(1, "the only backup");
        server.run(&["tool", "forget", "20200101T000000Z"]).failed(1, "20200101T000000Z");
        server.sql(&format!("DELETE FROM strata.fragment WHERE hash = '{dropped}'"));
        // The fragment log knows it until its row is seen to be gone; here nobody watches, so the note is made by hand.
        for file in files(&server.repository.join("systems/test/one/fragment-log")) {
            if file.display().to_string().contains(&dropped) {
                std::fs::remove_file(file).unwrap();
            }
        }
        let second = server.json(&["backup"])["id"].as_str().unwrap().to_owned();
        let done = server.json(&["tool", "forget", &first]);
        assert_eq!(done["kept"], json!(2), "a fragment that is young stays whoever names it: {done}");
        assert_eq!(object_names(&server, &format!("+{first}+hot")), Vec::<String>::new());
        assert_eq!(object_names(&server, "+fragments-").len(), 2);
        assert_eq!(server.json(&["tool", "list"])["unknown"], json!([]));
        let repository = a_day_later(&server);
        let third = server.json(&["backup"])["id"].as_str().unwrap().to_owned();
        let done = server.json(&["tool", "forget", &second]);
        assert_eq!(done["kept"], json!(1), "{done}");
        assert!(repository.has_fragment(&kept).unwrap() && !repository.has_fragment(&dropped).unwrap());
        server.run(&["verify"]).ok();
        let digest = server.sql(DIGEST);
        server.archive();
        let back = server.recover("latest", &["--full"]);
        assert_eq!((back.sql(DIGEST), fragments(&back.store())), (digest, vec![kept]));
        server.json(&["tool", "forget", &third, "--last"]);
        server.run(&["plan"]).failed(1, "no backup");
    }
}

#[test]
fn damage_in_what_a_tool_holds_is_found_and_named() {
    require("rclone");
    let server = with_tool("rclone", "compress_level = 0");
    let hash = add_fragment(&server, 1, 500_000);
    let other = add_fragment(&server, 2, 500_000);
    server.json(&["backup"]);
    server.archive();
    server.run(&["verify"]).ok();
    let second = server.dir.join("second");
    let stored =
        |part: &str| files(&second).into_iter().find(|file| file.display().to_string().contains(part)).unwrap();
    let holds = |hash: &str| {
        let all = objects(&server);
        let one = all.iter().find(|one| one["object"]["fragments"].to_string().contains(hash)).unwrap();
        one["object"]["name"].as_str().unwrap().to_owned()
    };
    let damaged = |file: &Path, change: &dyn Fn(&Path), needle: &str| {
        let before = std::fs::read(file).unwrap();
        change(file);
        let said = server.run(&["verify"]).failed(6, needle);
        std::fs::write(file, before).unwrap();
        give(file);
        said
    };
    let cut = |file: &Path| std::fs::File::options().write(true).open(file).unwrap().set_len(10_000).unwrap();
    let hot = stored("+hot-000");
    let name = hot.file_name().unwrap().to_str().unwrap();
    damaged(&hot, &|file| common::flip(file), name);
    damaged(&hot, &cut, name);
    let fragment = second.join(holds(&hash));
    damaged(&fragment, &|file| common::flip(file), &hash);
    let gone = damaged(&fragment, &|file| std::fs::remove_file(file).unwrap(), "does not list it");
    assert!(gone.err.contains(&holds(&hash)), "{gone:?}");
    assert!(server.run(&["verify"]).ok().out.contains("none"));
    // A recovery stops at hot data that is damaged, and names a fragment that is; the other one comes.
    let before = std::fs::read(&hot).unwrap();
    common::flip(&hot);
    let into = server.dir.join("broken");
    server.run(&["recover", "--to", "latest", "--into", into.to_str().unwrap(), "--no-start"]).failed(6, name);
    std::fs::write(&hot, before).unwrap();
    give(&hot);
    common::flip(&fragment);
    let into = server.dir.join("back");
    let port = common::free_port();
    let said = server.run(&[
        "recover",
        "--to",
        "latest",
        "--into",
        into.to_str().unwrap(),
        "--port",
        &port.to_string(),
        "--full",
    ]);
    let back = Recovered { dir: into, sockets: server.dir.clone(), port };
    said.failed(1, &hash);
    assert_eq!(fragments(&back.store()), [other]);
    assert_eq!(back.sql("SELECT count(*) FROM t"), "60000");
}

#[test]
fn without_the_tool_a_plan_says_which_one_it_needs() {
    require("zstd");
    let server = with_tool("command", "");
    server.json(&["backup"]);
    server.archive();
    let text = std::fs::read_to_string(&server.config).unwrap();
    std::fs::write(&server.config, text.split("[tool]").next().unwrap()).unwrap();
    server.run(&["plan"]).failed(3, "held by the tool command");
    let into = server.dir.join("back");
    server.run(&["recover", "--to", "latest", "--into", into.to_str().unwrap()]).failed(3, "held by the tool command");
    assert!(!into.exists());
    server.run(&["verify"]).failed(6, "no [tool]");
    server.run(&["tool", "show"]).failed(3, "no [tool]");
    // Backups of both kinds live in one catalog.
    let native = server.json(&["backup"]);
    assert!(native["tool"].is_null(), "{native}");
    server.archive();
    server.run(&["plan"]).ok();
    for (name, _) in TOOLS {
        let shown = server.run(&["tool", "show", "--preset", name]).ok().out;
        configure(
            &server,
            &shown.replacen("[tool]", "[tool]\nname = \"x\"\nrepository = \"/x\"", 1).replacen(
                &format!("name = \"{name}\"\n"),
                "",
                1,
            ),
        );
        server.run(&["tool", "show"]).ok();
    }
    server.run(&["tool", "show", "--preset", "tar"]).failed(2, "restic, borg, rclone, command");
}

#[test]
fn the_second_server_orders_a_backup_from_the_agent() {
    require("zstd");
    let server = with_tool("command", "");
    let log = std::fs::File::create(server.dir.join("agent.log")).unwrap();
    let mut agent =
        server.command(&["-v", "agent"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
    let socket = server.store().join("agent.sock");
    wait_for("the agent", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    // A fragment goes through the tool soon after it was made, and once.
    let hash = add_fragment(&server, 1, 200_000);
    wait_for("the fragment", || object_names(&server, "+fragments-").len() == 1);
    let order = |more: &[&str]| {
        let mut command = common::as_user(server.program());
        command.args(["--output", "json", "--config", "/nonexistent", "backup", "--on"]).arg(&socket).args(more);
        Said::from(command.current_dir("/").output().unwrap())
    };
    let backup = order(&["--label", "ordered"]).ok().json();
    assert_eq!(
        (&backup["label"], &backup["fragments"], &backup["fragments_copied"]),
        (&json!("ordered"), &json!(1), &json!(0)),
        "{backup}"
    );
    assert_eq!(server.sql("SELECT state FROM strata.job WHERE kind = 'backup'"), "done");
    assert_eq!(object_names(&server, "+fragments-").len(), 1);
    order(&["--label", "two\nlines"]).failed(2, "one line");
    // A recovery to a moment behind the last backup has the fragments that were made since.
    let later = add_fragment(&server, 2, 200_000);
    wait_for("the other fragment", || object_names(&server, "+fragments-").len() == 2);
    wait_for("its log entry", || files(&server.repository.join("systems/test/one/fragment-log")).len() == 2);
    server.archive();
    let pids = common::descendants(agent.id());
    let _ = Command::new("kill").args(["-TERM", &pids.last().unwrap().to_string()]).status();
    agent.wait().unwrap();
    order(&[]).failed(4, "no agent answers");
    std::fs::remove_dir_all(server.store()).unwrap();
    let back = server.recover("latest", &["--full"]);
    let mut both = vec![hash, later];
    both.sort();
    let mut there = fragments(&back.store());
    there.sort();
    assert_eq!(there, both);
}

#[test]
fn a_fragment_that_comes_back_while_its_object_is_forgotten_is_sent_again() {
    require("zstd");
    let server = filled();
    scripted(&server, SOUND, "bundle_megabytes = 0");
    let text = std::fs::read_to_string(&server.config).unwrap();
    let dir = server.dir.display();
    let forget = format!(
        "touch {dir}/forgetting; for i in $(seq 1200); do [ -e {dir}/go ] && break; sleep 0.05; done; rm -f {{repository}}/{{name}}.zst {{repository}}/{{name}}.zst.part"
    );
    std::fs::write(&server.config, format!("{text}[tool.forget]\nshell = true\ncommand = '''{forget}'''\n")).unwrap();
    let hash = add_fragment(&server, 1, 100_000);
    let first = server.json(&["backup"])["id"].as_str().unwrap().to_owned();
    // Its row goes, the log forgets it, and the object is old.
    server.sql("DELETE FROM strata.fragment");
    let log = server.repository.join("systems/test/one/fragment-log");
    files(&log).iter().for_each(|file| std::fs::remove_file(file).unwrap());
    let kept = files(&server.store()).into_iter().find(|file| file.display().to_string().contains(&hash)).unwrap();
    std::fs::remove_file(&kept).unwrap();
    let repository = a_day_later(&server);
    server.json(&["backup"]);
    let agent_log = server.dir.join("agent.log");
    let out = std::fs::File::create(&agent_log).unwrap();
    let mut agent =
        server.command(&["-v", "agent"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(out).spawn().unwrap();
    let socket = server.store().join("agent.sock");
    wait_for("the agent", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    let forgetting = std::thread::scope(|scope| {
        let forgetting = scope.spawn(|| server.run(&["tool", "forget", &first]));
        wait_for("the tool to be asked", || server.dir.join("forgetting").exists());
        // The same rows once more: the agent must not rely on what is about to go. It waits for its turn, or is sure already.
        assert_eq!(add_fragment(&server, 1, 100_000), hash);
        wait_for("the agent to look", || {
            !files(&log).is_empty() || std::fs::read_to_string(&agent_log).unwrap().contains("holds the lock")
        });
        std::fs::write(server.dir.join("go"), "").unwrap();
        forgetting.join().unwrap()
    });
    forgetting.ok();
    wait_for("the fragment log", || !files(&log).is_empty());
    assert!(repository.has_fragment(&hash).unwrap(), "the log names what the repository has");
    kill9(&mut agent);
    server.run(&["verify"]).ok();
}

#[test]
fn an_expire_leaves_what_a_tool_holds_and_removes_the_rest() {
    require("zstd");
    let server = filled();
    let taken = || server.json(&["backup"])["id"].as_str().unwrap().to_owned();
    let native = taken();
    server.archive();
    server.archive();
    configure(&server, &section(&server, "command", ""));
    server.run(&["tool", "init"]).ok();
    let held = taken();
    let digest = server.sql(DIGEST);
    server.sql("DELETE FROM t WHERE id % 2 = 0");
    server.archive();
    server.archive();
    let last = taken();
    let text = std::fs::read_to_string(&server.config).unwrap();
    std::fs::write(&server.config, format!("{text}\n[retention]\nkeep_backups = 1\n")).unwrap();
    let recorded = || -> Vec<String> {
        let info = server.json(&["info"]);
        info["backups"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect()
    };
    let wal = || files(&server.repository.join("systems/test/one/wal")).len();
    let before = wal();
    let done = server.json(&["expire"]);
    assert_eq!(recorded(), [held.clone(), last.clone()], "{native} went: {done}");
    assert!(done["backups"].to_string().contains("strata tool forget"), "{done}");
    assert!(wal() < before, "{done}");
    server.run(&["verify"]).ok();
    let back = server.recover(&held, &[]);
    assert_eq!(back.sql(DIGEST), digest);
    drop(back);
    let before = wal();
    // The agent of the recovery is done soon.
    wait_for("the tool to forget", || server.run(&["tool", "forget", &held]).code == 0);
    server.json(&["expire"]);
    assert_eq!(recorded(), [last]);
    assert!(wal() < before, "the log of the one that is forgotten goes");
    server.run(&["verify"]).ok();
}
