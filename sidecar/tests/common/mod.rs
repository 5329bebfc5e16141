//! A real PostgreSQL for the tests of the sidecar: its own data directory, port and repository, run as the user
//! `postgres` when the tests run as the superuser. Everything is stopped and removed when it is dropped.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod promises;
pub mod s3;

use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use strata_fragment::{Builder, BuilderOptions, ColumnSpec, PhysicalType, Schema, Value as Cell};

/// The user that runs the servers.
const USER: &str = "postgres";

/// Puts the program under test where the servers' user can run it.
fn install(path: &Path) {
    let built = Path::new(env!("CARGO_BIN_EXE_strata"));
    if std::fs::hard_link(built, path).is_err() {
        std::fs::copy(built, path).unwrap();
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A command as the servers' user.
pub fn as_user(program: impl AsRef<Path>) -> Command {
    if !is_root() {
        return Command::new(program.as_ref());
    }
    let mut command = Command::new("runuser");
    command.args(["-u", USER, "--"]).arg(program.as_ref());
    command
}

pub fn give(path: &Path) {
    if is_root() {
        assert!(Command::new("chown").arg("-R").arg(USER).arg(path).status().unwrap().success());
    }
}

/// The directory of PostgreSQL's programs: of the installation that PG_CONFIG names, as for the other suites.
pub fn bin() -> PathBuf {
    let program = std::env::var_os("PG_CONFIG").unwrap_or_else(|| "pg_config".into());
    let output = Command::new(program).arg("--bindir").output().expect("pg_config is needed by these tests");
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(60), "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What a run of `strata` said.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    pub fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }

    /// It failed with this exit code and named this.
    #[track_caller]
    pub fn failed(self, code: i32, needle: &str) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        assert!(self.err.contains(needle), "no \"{needle}\" in {self:?}");
        self
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A server with a configuration of `strata`.
pub struct Server {
    pub dir: PathBuf,
    pub port: u16,
    pub repository: PathBuf,
    pub config: PathBuf,
    _temporary: tempfile::TempDir,
}

impl Server {
    /// A running server that archives into its repository.
    pub fn start() -> Self {
        Self::start_with("", None)
    }

    /// With lines for `postgresql.conf`, and perhaps another place for the repository.
    pub fn start_with(settings: &str, repository: Option<&Path>) -> Self {
        Self::start_in(settings, repository, None)
    }

    /// With a `[repository]` of its own.
    pub fn start_in(settings: &str, repository: Option<&Path>, section: Option<&str>) -> Self {
        let temporary = tempfile::Builder::new().prefix("strata-t-").tempdir().unwrap();
        let dir = temporary.path().to_owned();
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        give(&dir);
        install(&dir.join("strata"));
        let port = free_port();
        let config = dir.join("strata.toml");
        let repository = repository.map_or_else(|| dir.join("repo"), Path::to_owned);
        let section = section.map_or_else(|| format!("path = \"{}\"", repository.display()), str::to_owned);
        std::fs::write(
            &config,
            format!(
                "system = \"test\"\n[member]\nname = \"one\"\nconninfo = \"host={} port={port} user=postgres dbname=postgres\"\n\
                 [repository]\n{section}\n[backup]\narchive_timeout = \"20s\"\n[agent]\nfragment_interval = \"200ms\"\nmirror_interval = \"500ms\"\n",
                dir.display()
            ),
        )
        .unwrap();
        let initdb = as_user(bin().join("initdb"))
            .args(["-U", "postgres", "-A", "trust", "-k", "--no-sync", "-D"])
            .arg(dir.join("data"))
            .output()
            .unwrap();
        assert!(initdb.status.success(), "{initdb:?}");
        let conf = format!(
            "port = {port}\nlisten_addresses = ''\nunix_socket_directories = '{}'\nfsync = off\nmax_wal_size = '256MB'\n\
             archive_mode = on\narchive_command = '{} --config {} wal push %p'\n{settings}\n",
            dir.display(),
            dir.join("strata").display(),
            config.display()
        );
        let file = dir.join("data/postgresql.conf");
        let old = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, old + &conf).unwrap();
        let server = Self { dir, port, repository, config, _temporary: temporary };
        server.up();
        server
    }

    /// The program under test.
    pub fn program(&self) -> PathBuf {
        self.dir.join("strata")
    }

    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub fn store(&self) -> PathBuf {
        self.dir.join("data.strata")
    }

    pub fn up(&self) {
        start(&self.data());
    }

    pub fn down(&self) {
        stop(&self.data(), "fast");
    }

    #[track_caller]
    pub fn sql(&self, sql: &str) -> String {
        psql(&self.dir, self.port, "postgres", sql)
    }

    /// `strata ARGS` with the server's configuration.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = as_user(self.program());
        command.arg("--config").arg(&self.config).args(args).current_dir("/");
        command
    }

    pub fn run(&self, args: &[&str]) -> Said {
        Said::from(self.command(args).stdin(Stdio::null()).output().unwrap())
    }

    /// Runs it with JSON output; it must succeed.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let mut all = vec!["--output", "json"];
        all.extend(args);
        self.run(&all).ok().json()
    }

    /// Closes the WAL segment and waits until it is archived. Returns its name.
    pub fn archive(&self) -> String {
        let name = self.sql("SELECT pg_create_restore_point('x'); SELECT pg_walfile_name(pg_switch_wal() - 1)");
        let name = name.lines().last().unwrap().to_owned();
        let archived = format!("SELECT coalesce(last_archived_wal, '') >= '{name}' FROM pg_stat_archiver");
        wait_for("the archiver", || self.sql(&archived) == "t");
        name
    }

    /// `strata recover` into a new directory; the recovered server is open.
    #[track_caller]
    pub fn recover(&self, target: &str, more: &[&str]) -> Recovered {
        let recovered = Recovered {
            dir: self.dir.join(format!("back-{}", free_port())),
            sockets: self.dir.clone(),
            port: free_port(),
        };
        let (into, port) = (recovered.dir.display().to_string(), recovered.port.to_string());
        let mut args = vec!["recover", "--to", target, "--into", &into, "--port", &port];
        args.extend(more);
        self.json(&args);
        recovered
    }

    /// The only file of the repository whose path has this in it.
    #[track_caller]
    pub fn file(&self, part: &str) -> PathBuf {
        let found: Vec<PathBuf> =
            files(&self.repository).into_iter().filter(|path| path.display().to_string().contains(part)).collect();
        assert!(!found.is_empty(), "no {part} in {:?}", files(&self.repository));
        found[0].clone()
    }

    /// Lays the catalog tables out without the extension, as far as the sidecar uses them.
    pub fn create_catalog(&self) {
        let schema = include_str!("../../../sql/schema/20_tables.sql");
        let tables: String = schema
            .lines()
            .filter(|line| !line.contains("pg_extension_config_dump"))
            .flat_map(|line| [line, "\n"])
            .collect();
        self.sql(&format!("CREATE SCHEMA strata; {tables}"));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        stop(&self.data(), "immediate");
    }
}

/// A recovered server.
pub struct Recovered {
    pub dir: PathBuf,
    pub sockets: PathBuf,
    pub port: u16,
}

impl Recovered {
    #[track_caller]
    pub fn sql(&self, sql: &str) -> String {
        psql(&self.sockets, self.port, "postgres", sql)
    }

    pub fn store(&self) -> PathBuf {
        let mut path = self.dir.clone().into_os_string();
        path.push(".strata");
        PathBuf::from(path)
    }
}

impl Drop for Recovered {
    fn drop(&mut self) {
        stop(&self.dir, "immediate");
    }
}

pub fn start(data: &Path) {
    let log = data.with_extension("log");
    let status = as_user(bin().join("pg_ctl"))
        .args(["start", "-w", "-s", "-D"])
        .arg(data)
        .arg("-l")
        .arg(&log)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{}", std::fs::read_to_string(&log).unwrap_or_default());
}

pub fn stop(data: &Path, mode: &str) {
    if data.join("postmaster.pid").exists() {
        let _ = as_user(bin().join("pg_ctl"))
            .args(["stop", "-s", "-w", "-m", mode, "-D"])
            .arg(data)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

#[track_caller]
pub fn psql(sockets: &Path, port: u16, database: &str, sql: &str) -> String {
    let output = Command::new(bin().join("psql"))
        .args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", database, "-h"])
        .arg(sockets)
        .args(["-p", &port.to_string(), "-c", sql])
        .output()
        .unwrap();
    assert!(output.status.success(), "{sql}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// All files below a directory, sorted.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Changes one byte in the middle of a file.
pub fn flip(file: &Path) {
    let mut bytes = std::fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x20;
    std::fs::write(file, bytes).unwrap();
}

/// kill -9 for a process and everything below it.
pub fn kill9(child: &mut Child) {
    // Stopped first: runuser may be about to start what is to be killed.
    let _ = Command::new("kill").args(["-STOP", &child.id().to_string()]).stderr(Stdio::null()).status();
    for pid in descendants(child.id()) {
        let _ = Command::new("kill").args(["-9", &pid.to_string()]).stderr(Stdio::null()).status();
    }
    let _ = child.wait();
}

/// A process and everything below it.
pub fn descendants(top: u32) -> Vec<u32> {
    let mut all = vec![top];
    let mut at = 0;
    while at < all.len() {
        let pid = all[at];
        let path = format!("/proc/{pid}/task/{pid}/children");
        let children = std::fs::read_to_string(path).unwrap_or_default();
        all.extend(children.split_whitespace().filter_map(|text| text.parse::<u32>().ok()));
        at += 1;
    }
    all
}

/// The database in which the tests work.
pub fn database_oid(server: &Server) -> u32 {
    server.sql("SELECT oid FROM pg_database WHERE datname = 'postgres'").parse().unwrap()
}

/// Writes a fragment of some rows into the store and its row into the catalog. Returns its hash.
pub fn add_fragment(server: &Server, seed: i64) -> String {
    let dir = server.store().join(database_oid(server).to_string());
    std::fs::create_dir_all(&dir).unwrap();
    let column = ColumnSpec { name: "id".into(), attnum: 1, ty: PhysicalType::I64 };
    let schema = Schema { columns: vec![column], sort_key: vec![0], keys: Vec::new() };
    let mut builder = Builder::new(schema, BuilderOptions::default()).unwrap();
    for row in 0..1000 {
        builder.push_row(&[Cell::I64(seed * 1000 + row)]).unwrap();
    }
    let written = builder.finish(&dir).unwrap();
    give(&server.store());
    let hash = files(&dir)
        .into_iter()
        .max_by_key(|file| file.metadata().unwrap().modified().unwrap())
        .map(|file| file.file_stem().unwrap().to_str().unwrap().to_owned())
        .unwrap();
    assert_eq!(hash, written.hash);
    server.sql(&format!(
        "INSERT INTO strata.fragment (relid, filenode, hash, first_row_id, row_count, bytes, heap_bytes) \
         VALUES ('t'::regclass, 1, '{hash}', {seed} * 1000, 1000, {}, 100)",
        written.bytes
    ));
    hash
}
