//! A real S3 server: SeaweedFS on ports of its own, with one user and one bucket.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use strata_sidecar::config::RepositoryConfig;
use strata_sidecar::repository::storage::Storage;

/// What the secrets of all servers begin with; no message may show it.
pub const SECRET: &str = "geheimer-schluessel";

/// A running server. Killed and removed when it is dropped.
pub struct S3 {
    ports: Ports,
    /// Only this server knows it, so what takes it is this server.
    secret: String,
    child: Option<Child>,
    dir: tempfile::TempDir,
}

/// Ten ports outside of what the kernel gives to connections.
struct Ports {
    numbers: Vec<u16>,
    /// Keeps others who start servers away from them, and leaves nothing behind.
    _guard: UnixListener,
}

/// Ports that nobody listens on.
fn ports() -> Ports {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    loop {
        let block = (std::process::id() + COUNT.fetch_add(1, Ordering::Relaxed) * 331) % 1000;
        let name = SocketAddr::from_abstract_name(format!("strata-test-s3-{block}")).unwrap();
        let Ok(guard) = UnixListener::bind_addr(&name) else { continue };
        let numbers: Vec<u16> = (0..10).map(|n| (20000 + block * 10 + n) as u16).collect();
        let bound: Vec<_> = numbers.iter().map(|port| TcpListener::bind(("127.0.0.1", *port))).collect();
        if bound.iter().all(Result::is_ok) {
            return Ports { numbers, _guard: guard };
        }
    }
}

fn unique() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    let text = format!("{} {now} {:?}", std::process::id(), std::thread::current().id());
    blake3::hash(text.as_bytes()).to_hex().chars().take(16).collect()
}

fn program() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.ci/weed");
    let output = Command::new(script).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

impl S3 {
    /// Starts it, with the bucket `bucket`.
    pub fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("strata-s3-").tempdir().unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        let mut this = Self { ports: ports(), secret: format!("{SECRET}-{}", unique()), child: None, dir };
        let users = format!(
            r#"{{"identities": [{{"name": "strata", "credentials": [{{"accessKey": "strata", "secretKey": "{}"}}], "actions": ["Admin", "Read", "Write", "List"]}}]}}"#,
            this.secret
        );
        std::fs::write(this.dir.path().join("users.json"), users).unwrap();
        for _ in 0..10 {
            if this.up() {
                return this;
            }
            this.kill();
            this.ports = ports();
        }
        panic!("no S3 server: {}", std::fs::read_to_string(this.dir.path().join("log")).unwrap_or_default());
    }

    /// Starts it, again on the same ports. False when it ended instead, as when somebody took a port meanwhile. Another server on its port does
    /// not take its secret.
    pub fn up(&mut self) -> bool {
        let log = std::fs::File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let names = [
            "s3.port",
            "s3.port.grpc",
            "master.port",
            "master.port.grpc",
            "volume.port",
            "volume.port.grpc",
            "filer.port",
            "filer.port.grpc",
            "admin.port",
            "admin.port.grpc",
        ];
        let ports = names.iter().zip(&self.ports.numbers).map(|(name, port)| format!("-{name}={port}"));
        let child = Command::new(program())
            .args(["-logtostderr=true", "mini", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-bucket=bucket"])
            .args(["-master.telemetry=false", "-webdav=false", "-admin.ui=false", "-s3.autoCreateBucket=false"])
            .args(["-s3.port.iceberg=0", "-s3.port.lance=0"])
            .arg(format!("-dir={}", self.dir.path().join("data").display()))
            .arg(format!("-s3.config={}", self.dir.path().join("users.json").display()))
            .args(ports)
            .current_dir(self.dir.path())
            .env("TMPDIR", self.dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        let storage = Storage::of(&self.config("ready", "200ms")).unwrap();
        let path = self.config("ready", "200ms").root().join("ready");
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(60) {
            if storage.write(&path, b"ready").is_ok() && storage.remove(&path).is_ok() {
                return true;
            }
            if self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_some()) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        false
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Its secret.
    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// The credentials, for the servers' user as well.
    pub fn credentials(&self, secret: &str) -> PathBuf {
        let file = self.dir.path().join(format!("credentials-{}", blake3::hash(secret.as_bytes()).to_hex()));
        let text = format!("[default]\naws_access_key_id = strata\naws_secret_access_key = {secret}\n");
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(self.dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        file
    }

    /// `s3 = …` of a configuration.
    pub fn section(&self, bucket: &str, prefix: &str, secret: &str, retry: &str) -> String {
        format!(
            "s3 = {{ endpoint = \"http://127.0.0.1:{}\", allow_http = true, bucket = \"{bucket}\", prefix = \"{prefix}\", credentials_file = \"{}\", retry_timeout = \"{retry}\" }}",
            self.ports.numbers[0],
            self.credentials(secret).display()
        )
    }

    /// The same, parsed.
    pub fn config(&self, prefix: &str, retry: &str) -> RepositoryConfig {
        toml::from_str(&self.section("bucket", prefix, &self.secret, retry)).unwrap()
    }

    /// What is below a prefix, and how to get at it.
    pub fn storage(&self, prefix: &str) -> (Storage, PathBuf) {
        let config = self.config(prefix, "20s");
        (Storage::of(&config).unwrap(), config.root())
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.kill();
        // SeaweedFS leaves sockets that have its ports in their names.
        for file in std::fs::read_dir("/tmp").into_iter().flatten().flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            let port = name.strip_suffix(".sock").and_then(|name| name.rsplit('-').next()?.parse().ok());
            if name.starts_with("seaweedfs-") && port.is_some_and(|port| self.ports.numbers.contains(&port)) {
                let _ = std::fs::remove_file(file.path());
            }
        }
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().filter(|line| !line.starts_with('I')).collect();
            eprintln!("the S3 server said: {}", lines[lines.len().saturating_sub(20)..].join("\n"));
        }
    }
}
