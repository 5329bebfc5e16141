//! PostgreSQL's programs and the operating system user.

use crate::error::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The name of the user that this process runs as.
pub fn os_user() -> Option<String> {
    let uid = rustix::process::geteuid().as_raw();
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse::<u32>().ok()? == uid).then(|| name.to_owned())
    });
    name.or_else(|| std::env::var("USER").ok())
}

/// True when this process runs as the superuser.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Fails unless this process runs as the owner of `data_directory`, the only one who can read it all and whose files
/// the server's own `archive_command` can work with.
pub fn require_owner(data_directory: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(data_directory).map_err(|error| {
        Error::io("look at the data directory", data_directory, error)
            .with_hint("Run this on the server's machine, as the operating system user that runs PostgreSQL.")
    })?;
    let uid = rustix::process::geteuid().as_raw();
    if meta.uid() == uid {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Forbidden,
        format!("the data directory \"{}\" belongs to another user", data_directory.display()),
    )
    .detail(format!("It belongs to user id {}, and this process has {uid}.", meta.uid()))
    .with_hint(
        "Run this as the operating system user that runs PostgreSQL, for example with \"runuser -u postgres --\".",
    ))
}

/// The system identifier in a `pg_control`.
pub fn system_identifier(control: &Path) -> Result<u64> {
    use std::os::unix::fs::FileExt;
    let mut first = [0; 8];
    std::fs::File::open(control)
        .and_then(|file| file.read_exact_at(&mut first, 0))
        .map_err(|error| Error::io("read", control, error).with_hint("Is this the server's data directory?"))?;
    Ok(u64::from_le_bytes(first))
}

/// Fails unless `data_directory` holds the cluster with this system identifier: a conninfo may lead to another server than the
/// one whose files are here.
pub fn require_cluster(data_directory: &Path, system_identifier: u64) -> Result<()> {
    let found = self::system_identifier(&data_directory.join("global/pg_control"))?;
    if found == system_identifier {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Config,
        format!(
            "\"{}\" is not the data directory of the server that member.conninfo leads to",
            data_directory.display()
        ),
    )
    .detail(format!("It has system identifier {found}; the server has {system_identifier}.")))
}

/// The directory with `postgres` and `pg_ctl` of a major version. Looks at `wanted` first, then where it was when the
/// backup was taken, then where distributions put it, then at the search path.
pub fn bin_directory(wanted: Option<&Path>, known: Option<&Path>, version: u32) -> Result<PathBuf> {
    let major = version / 10000;
    if let Some(dir) = wanted {
        return match version_of(dir) {
            Some(found) if found == major => Ok(dir.to_owned()),
            Some(found) => Err(Error::new(
                ErrorKind::Config,
                format!("\"{}\" has PostgreSQL {found}, but the backup is of PostgreSQL {major}", dir.display()),
            )),
            None => Err(Error::new(ErrorKind::Config, format!("there is no postgres in \"{}\"", dir.display()))),
        };
    }
    let mut candidates: Vec<PathBuf> = known.map(Path::to_owned).into_iter().collect();
    candidates.push(PathBuf::from(format!("/usr/lib/postgresql/{major}/bin")));
    candidates.push(PathBuf::from(format!("/usr/pgsql-{major}/bin")));
    if let Some(path) = std::env::var_os("PATH") {
        candidates.extend(std::env::split_paths(&path));
    }
    candidates.into_iter().find(|dir| version_of(dir) == Some(major)).ok_or_else(|| {
        Error::new(ErrorKind::Config, format!("could not find the programs of PostgreSQL {major}"))
            .with_hint("Set member.bin_directory in the configuration.")
    })
}

/// The major version of the `postgres` in a directory that also has `pg_ctl`.
fn version_of(dir: &Path) -> Option<u32> {
    let postgres = dir.join("postgres");
    if !postgres.is_file() || !dir.join("pg_ctl").is_file() {
        return None;
    }
    let output = Command::new(postgres).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}
