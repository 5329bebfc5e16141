//! The configuration of a recovered server.
//!
//! What is written, and where: `backup_label`, `tablespace_map` and `recovery.signal` for the recovery; the last lines of
//! `postgresql.auto.conf` for what must hold in the new place (they win over all other files); `strata.toml` in the new
//! store for the agent. Archiving is off in a recovered server, so that two servers never archive as the same member;
//! `repository.read_only` in the new `strata.toml` says the same to the sidecar.
//!
//! **Order.** `recovery.signal` comes last, when all else is durable ([`arm`]). Until then the directory has `backup_label` and no WAL, and
//! without the signal PostgreSQL fetches none: it does not open. So a recovery that dies anywhere leaves no directory that opens short of the target, or
//! with the old server's `restore_command` and `archive_mode`. Each file is replaced as a whole.
//!
//! Some distributions keep `postgresql.conf` and `pg_hba.conf` outside the data directory, so a backup does not have
//! them. Then minimal ones are written: the settings that the server had from its files, without those that belong to
//! the old place, and access for the operating system user over the Unix socket only. Settings that would lead a server
//! back to the old place (`data_directory`, `hba_file` and the like) are commented out in a `postgresql.conf` that is there.

use super::ending::Action;
use super::plan::StopAt;
use super::restore::{self, TablespacePlace};
use crate::config::Config;
use crate::error::{AtPath, Error, ErrorKind, Result};
use crate::failpoint;
use crate::repository::fsio;
use crate::repository::manifest::Manifest;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Settings that lead back to the old place.
const PLACE_SETTINGS: [&str; 5] = ["data_directory", "hba_file", "ident_file", "external_pid_file", "config_file"];

/// Where a recovered server lives.
#[derive(Clone, Debug)]
pub struct NewPlace {
    /// The data directory.
    pub data: PathBuf,
    /// The store.
    pub store: PathBuf,
    /// The port, when it was asked for.
    pub port: Option<u16>,
    /// The directory of `postgres`.
    pub bin: PathBuf,
}

/// Where the recovery stops, and what then.
#[derive(Clone, Copy, Debug)]
pub struct Stop {
    /// The timeline to follow.
    pub timeline: u32,
    /// Where.
    pub at: StopAt,
    /// Behind that, not before it.
    pub inclusive: bool,
    /// What then.
    pub action: Action,
}

/// Writes a file with these permissions, in place of what is there. Its name is durable when its directory is synchronized.
fn write(path: &Path, mode: u32, content: impl AsRef<[u8]>) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = path.with_file_name(format!(".{name}.strata.tmp"));
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&aside).at("create", &aside)?;
    // One that was left there keeps its own mode otherwise, and a conninfo may hold a password.
    file.set_permissions(std::fs::Permissions::from_mode(mode)).at("set the permissions of", &aside)?;
    file.write_all(content.as_ref()).and_then(|()| file.sync_all()).at("write", &aside)?;
    std::fs::rename(&aside, path).at("rename a file to", path)
}

/// Makes a directory that has everything else one that recovers when it is started.
pub fn arm(place: &NewPlace, tablespaces: &[TablespacePlace]) -> Result<()> {
    restore::sync_all(&place.data, tablespaces)?;
    write(&place.data.join("recovery.signal"), 0o600, "")?;
    fsio::fsync_dir(&place.data)
}

/// A text as a value in a PostgreSQL configuration file.
pub fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

/// A text as one word of a shell command.
fn shell_word(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// The `restore_command` that runs this program with a configuration.
pub fn restore_command(program: &Path, config: &Path) -> String {
    let word = |path: &Path| shell_word(&path.display().to_string()).replace('%', "%%");
    format!("{} --config {} wal fetch %f \"%p\"", word(program), word(config))
}

/// The setting in a line. Configuration files are bytes: comments and values have any encoding.
fn setting_of(line: &[u8]) -> Option<String> {
    let line = line.trim_ascii_start();
    let end = line.iter().position(|c| !(c.is_ascii_alphanumeric() || *c == b'_' || *c == b'.'))?;
    let name = std::str::from_utf8(line.get(..end)?).ok()?;
    (!name.is_empty()).then(|| name.to_ascii_lowercase())
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split_inclusive(|c| *c == b'\n').map(|line| line.strip_suffix(b"\n").unwrap_or(line))
}

/// `postgresql.auto.conf` with our lines last and without older ones of the same names.
pub fn auto_conf(old: &[u8], settings: &[(String, String)]) -> Vec<u8> {
    let ours = |name: &str| name.starts_with("recovery_target") || settings.iter().any(|(ours, _)| ours == name);
    let mut text: Vec<u8> = lines(old)
        .filter(|line| !setting_of(line).is_some_and(|name| ours(&name)))
        .flat_map(|line| [line, b"\n"])
        .flatten()
        .copied()
        .collect();
    for (name, value) in settings {
        text.extend_from_slice(format!("{name} = {}\n", quote(value)).as_bytes());
    }
    text
}

/// `postgresql.conf` with the settings that lead back to the old place commented out.
fn without_old_place(text: &[u8]) -> Vec<u8> {
    lines(text)
        .flat_map(|line| {
            let old = setting_of(line).is_some_and(|name| PLACE_SETTINGS.contains(&name.as_str()));
            [if old { b"# commented out by strata recover: ".as_slice() } else { b"" }, line, b"\n"]
        })
        .flatten()
        .copied()
        .collect()
}

/// Writes everything that the recovered server needs, but for what [`arm`] does. Returns the path of its `strata.toml`.
pub fn write_all(
    config: &Config,
    manifest: &Manifest,
    place: &NewPlace,
    tablespace_map: &str,
    stop: Stop,
) -> Result<PathBuf> {
    let data = &place.data;
    write(&data.join("backup_label"), 0o600, &manifest.backup_label)?;
    if !tablespace_map.is_empty() {
        write(&data.join("tablespace_map"), 0o600, tablespace_map)?;
    }
    let standby = data.join("standby.signal");
    if standby.exists() {
        std::fs::remove_file(&standby).at("remove", &standby)?;
    }
    failpoint::hit(failpoint::RECOVER_LABEL);

    let conf = data.join("postgresql.conf");
    match fsio::read_optional(&conf)? {
        Some(text) => {
            let cleaned = without_old_place(&text);
            if cleaned != text {
                write(&conf, 0o600, &cleaned)?;
            }
        }
        None => {
            let mut text = String::from("# Written by strata recover: the backup had no postgresql.conf.\n");
            for (name, value) in &manifest.server.settings {
                if !PLACE_SETTINGS.contains(&name.as_str()) {
                    text.push_str(&format!("{name} = {}\n", quote(value)));
                }
            }
            write(&conf, 0o600, text)?;
        }
    }
    if !data.join("pg_hba.conf").exists() {
        let text = "# Written by strata recover: the backup had no pg_hba.conf.\nlocal all all peer\nlocal replication all peer\n";
        write(&data.join("pg_hba.conf"), 0o600, text)?;
    }
    if !data.join("pg_ident.conf").exists() {
        write(&data.join("pg_ident.conf"), 0o600, "# Written by strata recover.\n")?;
    }

    std::fs::create_dir_all(&place.store).at("create the directory", &place.store)?;
    let toml = place.store.join("strata.toml");
    let program = std::env::current_exe()
        .map_err(|error| Error::new(ErrorKind::Io, format!("could not find this program: {error}")))?;
    let mut settings: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: String| settings.push((name.to_owned(), value));
    set("restore_command", restore_command(&program, &toml));
    match stop.at {
        StopAt::Lsn(lsn) => set("recovery_target_lsn", lsn.to_string()),
        StopAt::Time(time) => set("recovery_target_time", time.strftime("%Y-%m-%d %H:%M:%S.%6f+00").to_string()),
        StopAt::Consistent => set("recovery_target", "immediate".to_owned()),
    }
    set("recovery_target_timeline", stop.timeline.to_string());
    set("recovery_target_inclusive", if stop.inclusive { "on" } else { "off" }.to_owned());
    set("recovery_target_action", stop.action.as_str().to_owned());
    set("strata.store", place.store.display().to_string());
    set("strata.agent_socket", String::new());
    if let Some(port) = place.port {
        set("port", port.to_string());
    }
    set("archive_mode", "off".to_owned());
    let auto = data.join("postgresql.auto.conf");
    let old = fsio::read_optional(&auto)?.unwrap_or_default();
    write(&auto, 0o600, auto_conf(&old, &settings))?;
    failpoint::hit(failpoint::RECOVER_CONFIGURED);
    // The recovery itself needs this file; the connection is known only when the server's settings are settled.
    write_strata_toml(config, place, "", &toml)?;
    Ok(toml)
}

/// Writes the configuration of the recovered server's agent.
pub fn write_strata_toml(config: &Config, place: &NewPlace, conninfo: &str, toml: &Path) -> Result<()> {
    let mut new = config.clone();
    new.member.conninfo = conninfo.to_owned();
    new.member.data_directory = Some(place.data.clone());
    new.member.store = Some(place.store.clone());
    new.member.bin_directory = Some(place.bin.clone());
    new.agent.socket = None;
    new.repository.read_only = true;
    let text = toml::to_string(&new)
        .map_err(|error| Error::new(ErrorKind::Config, format!("could not write \"{}\": {error}", toml.display())))?;
    let head = "# Written by strata recover. When this server is the one to go on with, set repository.read_only to false\n\
                # and turn archiving on: archive_mode = on, archive_command = 'strata --config THIS_FILE wal push %p'.\n";
    write(toml, 0o600, format!("{head}{text}"))?;
    fsio::fsync_dir(fsio::parent(toml))
}

/// The value that a setting will have when the server starts.
pub fn effective(place: &NewPlace, name: &str) -> Result<String> {
    let output = Command::new(place.bin.join("postgres"))
        .arg("-D")
        .arg(&place.data)
        .args(["-C", name])
        .output()
        .at("run", &place.bin.join("postgres"))?;
    if !output.status.success() {
        return Err(Error::new(
            ErrorKind::Recovery,
            format!("the recovered configuration in \"{}\" is not usable", place.data.display()),
        )
        .detail(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Fails when the new server's files would lead it to another data directory: a file that `postgresql.conf` includes may
/// say so, and the server would start over the old data.
pub fn require_own_directory(place: &NewPlace) -> Result<()> {
    let leads_to = PathBuf::from(effective(place, "data_directory")?);
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if real(&leads_to) == real(&place.data) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Recovery,
        format!("the recovered configuration leads to another data directory, \"{}\"", leads_to.display()),
    )
    .with_hint(format!(
        "Remove data_directory from the files that \"{}\" includes.",
        place.data.join("postgresql.conf").display()
    )))
}

/// Fails when somebody listens on a port: on this machine's loopback, or on a socket in one of these directories.
pub fn require_free_port<'a>(port: u16, directories: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    let loopback = std::net::SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, port));
    let taken = std::net::TcpStream::connect_timeout(&loopback, std::time::Duration::from_secs(1)).is_ok()
        || directories
            .into_iter()
            .any(|dir| std::os::unix::net::UnixStream::connect(dir.join(format!(".s.PGSQL.{port}"))).is_ok());
    if taken {
        return Err(Error::new(ErrorKind::Conflict, format!("a server uses port {port} already"))
            .with_hint("Name another port with --port."));
    }
    Ok(())
}

/// Sees to a Unix socket directory and, when the server is to be started, a port that nobody uses. Returns both.
pub fn settle_address(place: &NewPlace, start: bool) -> Result<(PathBuf, u16)> {
    let sockets = effective(place, "unix_socket_directories")?;
    let first = sockets.split(',').map(|dir| PathBuf::from(dir.trim().trim_matches('"'))).next().unwrap_or_default();
    let usable = first.is_absolute() && rustix::fs::access(&first, rustix::fs::Access::WRITE_OK).is_ok();
    let directory = if usable {
        first
    } else {
        let fallback = std::env::temp_dir();
        let auto = place.data.join("postgresql.auto.conf");
        let old = std::fs::read(&auto).at("read", &auto)?;
        let ours = [("unix_socket_directories".to_owned(), fallback.display().to_string())];
        let text = auto_conf(&old, &ours);
        // archive_mode stays the last line.
        write(&auto, 0o600, auto_conf(&text, &[("archive_mode".to_owned(), "off".to_owned())]))?;
        fallback
    };
    let port: u16 = effective(place, "port")?
        .parse()
        .map_err(|_| Error::new(ErrorKind::Recovery, "the recovered configuration has no usable port"))?;
    if start {
        require_free_port(port, [directory.as_path()])?;
    }
    Ok((directory, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_settings_come_last_and_replace_older_ones() {
        let old = b"# k\xe9\xe9p\nwork_mem = '64MB'\nArchive_Mode = 'on'\nrecovery_target_xid = '7'\n";
        let ours = [("port".to_owned(), "5433".to_owned()), ("archive_mode".to_owned(), "off".to_owned())];
        let text = auto_conf(old, &ours);
        assert_eq!(text, b"# k\xe9\xe9p\nwork_mem = '64MB'\nport = '5433'\narchive_mode = 'off'\n");
    }

    #[test]
    fn what_leads_to_the_old_place_is_commented_out() {
        let text = without_old_place(b"data_directory = '/old'\n#hba_file = '\xe9'\nport = 1");
        assert_eq!(text, b"# commented out by strata recover: data_directory = '/old'\n#hba_file = '\xe9'\nport = 1\n");
    }

    #[test]
    fn values_and_words_are_quoted() {
        assert_eq!(quote("it's \\x"), "'it''s \\\\x'");
        let command = restore_command(Path::new("/a b/strata"), Path::new("/it's/100%.toml"));
        assert_eq!(command, "'/a b/strata' --config '/it'\\''s/100%%.toml' wal fetch %f \"%p\"");
    }
}
