//! One PostgreSQL server in a directory of its own.
//!
//! ```text
//!   DIR/            temporary, owned by the server's user, short (a socket's path has at most 107 bytes)
//!     data/         PGDATA            data.strata/  the store
//!     log           the server's log  strata.toml, repo/, agent.log  (see `sidecar`)
//!     .s.PGSQL.N    the socket; the server listens nowhere else
//! ```

use crate::process::{self, alive, as_server, descendants, give_to_server, kill9, run, wait_for};
use anyhow::{Context, Result, bail};
use postgres::{Client, NoTls};
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How a cluster is set up.
#[derive(Clone, Debug)]
pub struct Options {
    settings: Vec<(String, String)>,
    extension: bool,
    store: Option<PathBuf>,
    parent: PathBuf,
    bin: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self { settings: Vec::new(), extension: true, store: None, parent: std::env::temp_dir(), bin: None }
    }
}

impl Options {
    /// Options with the extension loaded and created, and quiet small settings.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a line to postgresql.conf; later lines win.
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A server without the extension.
    pub fn plain(mut self) -> Self {
        self.extension = false;
        self
    }

    /// Archives WAL (once an archive command is set); segments stay small so that archiving has something to do.
    pub fn archiving(self) -> Self {
        self.set("archive_mode", "on").set("archive_timeout", "60")
    }

    /// Puts the store somewhere else.
    pub fn store(mut self, path: &Path) -> Self {
        self.store = Some(path.to_path_buf());
        self
    }

    /// Takes the server's programs from `bin` instead of where `PG_CONFIG` says.
    pub fn programs(mut self, bin: &Path) -> Self {
        self.bin = Some(bin.to_path_buf());
        self
    }

    /// Makes the cluster's directory in `parent` instead of the system's temporary directory.
    pub fn parent(mut self, parent: &Path) -> Self {
        self.parent = parent.to_path_buf();
        self
    }
}

/// A running (or stopped) server; dropping it stops it and removes its directory.
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    data: PathBuf,
    store: PathBuf,
    sockets: PathBuf,
    port: u16,
    bin: PathBuf,
    keep: bool,
    /// The store is another server's.
    shares: bool,
}

impl Cluster {
    /// A new server with Strata in the database `postgres`, started.
    pub fn start() -> Result<Self> {
        Self::with(Options::new())
    }

    /// A new server after `options`, started.
    pub fn with(options: Options) -> Result<Self> {
        let cluster = Self::initialized(&options)?;
        cluster.up()?;
        if options.extension {
            cluster.connect()?.batch_execute("CREATE EXTENSION strata")?;
        }
        Ok(cluster)
    }

    /// A new server after `options`, not started and without the extension in its database.
    pub fn initialized(options: &Options) -> Result<Self> {
        let cluster = Self::prepare(options)?;
        run(as_server(cluster.bin.join("initdb")).arg("-D").arg(&cluster.data).args([
            "--no-sync",
            "--data-checksums",
            "--auth=trust",
            "--username=postgres",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
        ]))?;
        let mut conf = String::new();
        for (name, value) in [
            ("listen_addresses", "''"),
            ("unix_socket_directories", &format!("'{}'", cluster.dir.display())),
            ("port", &cluster.port.to_string()),
            ("shared_buffers", "'128MB'"),
            ("max_wal_size", "'512MB'"),
            ("max_connections", "60"),
            ("max_prepared_transactions", "10"),
            ("wal_level", "logical"),
            ("timezone", "'UTC'"),
            ("log_line_prefix", "'%m [%p] %e '"),
            ("deadlock_timeout", "'200ms'"),
        ] {
            writeln!(conf, "{name} = {value}")?;
        }
        if options.extension {
            writeln!(conf, "shared_preload_libraries = 'strata'")?;
            if let Some(store) = &options.store {
                writeln!(conf, "strata.store = '{}'", store.display())?;
            }
        }
        for (name, value) in &options.settings {
            writeln!(conf, "{name} = '{}'", value.replace('\'', "''"))?;
        }
        let file = cluster.data.join("postgresql.conf");
        let text = fs::read_to_string(&file)? + &conf;
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        Ok(cluster)
    }

    /// The directory of a cluster, and what is known of it before it is made.
    fn prepare(options: &Options) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("strata-").tempdir_in(&options.parent)?.keep();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
        give_to_server(&dir)?;
        let cluster = Self {
            store: options.store.clone().unwrap_or_else(|| dir.join("data.strata")),
            bin: options.bin.clone().map_or_else(|| process::pg_config("bindir"), Ok)?,
            sockets: dir.clone(),
            port: 5432,
            keep: std::env::var_os("STRATA_KEEP").is_some(),
            shares: false,
            data: dir.join("data"),
            dir,
        };
        cluster.register();
        Ok(cluster)
    }

    /// A physical standby of this server, streaming from it, started; `options` add settings. Its store is its own and empty, unless
    /// [`Options::store`] says otherwise.
    pub fn standby(&self, options: Options) -> Result<Self> {
        let mut standby = Self::prepare(&options)?;
        standby.shares = options.store.is_some();
        run(self
            .program("pg_basebackup")
            .args(["--checkpoint=fast", "--no-sync", "--write-recovery-conf", "-D"])
            .arg(&standby.data))?;
        let mut conf = String::new();
        if let Some(store) = &options.store {
            writeln!(conf, "strata.store = '{}'", store.display())?;
        }
        for (name, value) in &options.settings {
            writeln!(conf, "{name} = '{}'", value.replace('\'', "''"))?;
        }
        let file = standby.data.join("postgresql.auto.conf");
        let text = fs::read_to_string(&file)? + &conf;
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        standby.up()?;
        Ok(standby)
    }

    /// Waits until this standby has replayed all that `primary` has written.
    pub fn wait_replayed(&self, primary: &mut Client) -> Result<()> {
        let lsn: String = primary.query_one("SELECT pg_current_wal_insert_lsn()::text", &[])?.get(0);
        let mut client = self.connect()?;
        wait_for(&format!("the standby to replay up to {lsn}"), Duration::from_secs(60), || {
            client.query_one("SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", &[&lsn]).is_ok_and(|row| row.get(0))
        })
    }

    /// Ends recovery: the standby becomes a primary.
    pub fn promote(&self) -> Result<()> {
        let promoted: bool = self.connect()?.query_one("SELECT pg_promote(true, 60)", &[])?.get(0);
        anyhow::ensure!(promoted, "the standby was not promoted:\n{}", tail(&self.log(), 40));
        Ok(())
    }

    /// Takes over a running server that another program made in `data` (a recovery), below `dir`, which is removed on drop.
    /// Where it listens is asked from its `postmaster.pid`.
    pub fn adopt(dir: &Path, data: &Path) -> Result<Self> {
        let file = data.join("postmaster.pid");
        let text = fs::read_to_string(&file).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let cluster = Self {
            dir: dir.to_path_buf(),
            store: PathBuf::from(format!("{}.strata", data.display())),
            sockets: PathBuf::from(lines.get(4).copied().unwrap_or_default()),
            port: lines.get(3).and_then(|p| p.parse().ok()).unwrap_or(0),
            data: data.to_path_buf(),
            bin: process::pg_config("bindir")?,
            keep: std::env::var_os("STRATA_KEEP").is_some(),
            shares: false,
        };
        cluster.register();
        Ok(cluster)
    }

    fn register(&self) {
        let entry = (self.data.clone(), self.dir.clone(), self.store.clone());
        RUNNING.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
    }

    fn deregister(&self) {
        RUNNING.lock().unwrap_or_else(PoisonError::into_inner).retain(|(data, ..)| data != &self.data);
    }

    /// The directory that holds everything of this cluster.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// PGDATA.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The store of fragments.
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// The directory of the server's socket.
    pub fn sockets(&self) -> &Path {
        &self.sockets
    }

    /// The server's port: the number in the socket's name.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's log file.
    pub fn log_file(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// The server's log.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_file()).unwrap_or_default()).into_owned()
    }

    /// Leaves the directory and a running server behind when this value is dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// The directory of the server's programs.
    pub fn programs(&self) -> &Path {
        &self.bin
    }

    /// The store goes on with another server: this one leaves it when its value is dropped.
    pub fn leave_store(&mut self) {
        self.shares = true;
    }

    /// A program of this PostgreSQL installation, to be run as the server's user and told how to connect.
    pub fn program(&self, name: &str) -> std::process::Command {
        let mut command = as_server(self.bin.join(name));
        command
            .env("PGHOST", &self.sockets)
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres");
        command
    }

    /// Starts the server and waits until it answers.
    pub fn up(&self) -> Result<()> {
        // Not through `run`: the postmaster inherits pg_ctl's output and would hold a pipe open.
        let status = self
            .program("pg_ctl")
            .args(["start", "--wait", "--silent", "--timeout=120", "-D"])
            .arg(&self.data)
            .arg("-l")
            .arg(self.log_file())
            .arg("-o")
            .arg(format!(
                "-c unix_socket_directories='{}' -c port={} -c listen_addresses=''",
                self.sockets.display(),
                self.port
            ))
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .status()
            .context("start pg_ctl")?;
        if !status.success() {
            bail!("the server in {} did not start:\n{}", self.data.display(), tail(&self.log(), 40));
        }
        Ok(())
    }

    /// Stops the server: `smart`, `fast` or `immediate`.
    pub fn stop(&self, mode: &str) -> Result<()> {
        run(self
            .program("pg_ctl")
            .args(["stop", "--wait", "--silent", "--timeout=120", "-m", mode, "-D"])
            .arg(&self.data))
        .map(drop)
    }

    /// Stops the server in good order and starts it again.
    pub fn restart(&self) -> Result<()> {
        self.stop("fast")?;
        self.up()
    }

    /// The postmaster's process id, if it runs.
    pub fn postmaster(&self) -> Option<i32> {
        postmaster_of(&self.data)
    }

    /// kill -9 of the postmaster and of every process below it, as a power failure would (but for the page cache).
    pub fn kill9(&self) -> Result<()> {
        let Some(postmaster) = self.postmaster() else {
            return Ok(());
        };
        let mut all = descendants(postmaster);
        kill9(postmaster);
        all.iter().for_each(|&p| kill9(p));
        all.push(postmaster);
        wait_for("killed processes to go", Duration::from_secs(20), || !all.iter().any(|&p| alive(p)))?;
        // A zombie that init has not reaped yet still answers the start-up check of the next postmaster.
        if wait_for("the postmaster to be reaped", Duration::from_secs(10), || !process::exists(postmaster)).is_err() {
            fs::remove_file(self.data.join("postmaster.pid"))?;
        }
        Ok(())
    }

    /// kill -9, then start again: crash recovery.
    pub fn crash(&self) -> Result<()> {
        self.kill9()?;
        self.up()
    }

    /// Waits until the server accepts connections (after it restarted itself, for example).
    pub fn wait_ready(&self, limit: Duration) -> Result<()> {
        wait_for("the server to accept connections", limit, || {
            self.connect().is_ok_and(|mut c| c.simple_query("SELECT 1").is_ok())
        })
        .with_context(|| tail(&self.log(), 40))
    }

    /// libpq's connection string for `database`.
    pub fn dsn(&self, database: &str) -> String {
        format!("host={} port={} user=postgres dbname={database}", self.sockets.display(), self.port)
    }

    /// A new connection to the database `postgres`.
    pub fn connect(&self) -> Result<Client> {
        self.connect_to("postgres")
    }

    /// A new connection to `database`.
    pub fn connect_to(&self, database: &str) -> Result<Client> {
        Client::connect(&self.dsn(database), NoTls).with_context(|| format!("connect to {}", self.dsn(database)))
    }

    /// Creates a database with the extension.
    pub fn create_database(&self, name: &str) -> Result<Client> {
        self.connect()?.batch_execute(&format!("CREATE DATABASE {name}"))?;
        let mut client = self.connect_to(name)?;
        client.batch_execute("CREATE EXTENSION strata")?;
        Ok(client)
    }

    /// The fragment files that are in the store now.
    pub fn fragment_files(&self) -> Vec<PathBuf> {
        process::files_below(&self.store).into_iter().filter(|f| f.extension().is_some_and(|e| e == "frag")).collect()
    }

    /// Every file in the store that is neither the agent's nor a fragment, nor says whose store it is: what an interrupted write leaves.
    pub fn stray_files(&self) -> Vec<PathBuf> {
        process::files_below(&self.store)
            .into_iter()
            .filter(|f| f.extension().is_none_or(|e| e != "frag") && !f.to_string_lossy().contains("agent"))
            .filter(|f| f.file_name().is_none_or(|name| name != "primary"))
            .collect()
    }
}

/// Clusters that are to be stopped and removed when this process is told to end: data directory, directory, store.
static RUNNING: Mutex<Vec<(PathBuf, PathBuf, PathBuf)>> = Mutex::new(Vec::new());

/// From here on SIGINT and SIGTERM stop and remove this process' clusters before they end it (a drop would not run).
pub fn stop_on_signal() -> Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM])?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            eprintln!("\nstopping what was started");
            for (data, dir, store) in RUNNING.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
                if let Some(postmaster) = postmaster_of(&data) {
                    let all = descendants(postmaster);
                    kill9(postmaster);
                    all.into_iter().for_each(kill9);
                }
                let _ = fs::remove_dir_all(dir);
                let _ = fs::remove_dir_all(store);
            }
            // What runs beside the servers (an agent) is below this process.
            descendants(i32::try_from(std::process::id()).unwrap_or(0)).into_iter().for_each(kill9);
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

/// The postmaster's process id, if it runs.
fn postmaster_of(data: &Path) -> Option<i32> {
    let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    text.lines().next()?.trim().parse().ok().filter(|&pid| alive(pid))
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {} (last lines) ---\n{}", self.log_file().display(), tail(&self.log(), 60));
        }
        if self.keep {
            self.deregister();
            eprintln!("kept: {}", self.dir.display());
            return;
        }
        if self.stop("immediate").is_err() {
            let _ = self.kill9();
        }
        let _ = fs::remove_dir_all(&self.dir);
        if !self.shares {
            let _ = fs::remove_dir_all(&self.store);
        }
        self.deregister();
    }
}

/// The last `lines` lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// The first `lines` lines of a text, and how many are left out.
pub fn head(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    if all.len() <= lines {
        return all.join("\n");
    }
    format!("{}\n… {} more lines", all[..lines].join("\n"), all.len() - lines)
}
