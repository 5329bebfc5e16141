//! A backup by Strata, with the table in warm, against one by pgBackRest, with the table on heap.

use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use strata_tests::process::{self, as_server, give_to_server, tree_bytes};
use strata_tests::report::{Screen, bytes, time};
use strata_tests::{Agent, Cluster, Options, Strata, flights, recovered};

/// What one tool did.
struct Done {
    first: Duration,
    second: Duration,
    second_copied: u64,
    stored: u64,
    restore: Duration,
}

/// Runs it.
pub fn run(screen: &mut Screen) -> Result<()> {
    screen.chapter("Backup: Strata (flights in warm) against pgBackRest (flights on heap)");
    let file = flights::fetch(&mut |s| screen.say(s))?;
    let strata = strata(&file)?;
    let other = match as_server("/usr/bin/pgbackrest").arg("version").output() {
        Ok(out) if out.status.success() => Some(pgbackrest(&file)?),
        _ => None,
    };
    let column =
        |f: &dyn Fn(&Done) -> String| vec![f(&strata), other.as_ref().map_or_else(|| "not installed".into(), f)];
    let row = |name: &str, f: &dyn Fn(&Done) -> String| {
        let mut r = vec![name.to_owned()];
        r.extend(column(f));
        r
    };
    let mut table = vec![
        row("first backup", &|d| time(d.first)),
        row("second backup, nothing new", &|d| time(d.second)),
        row("bytes it added to the repository", &|d| bytes(d.second_copied)),
        row("bytes in the repository", &|d| bytes(d.stored)),
        row("restore until the server answers", &|d| time(d.restore)),
    ];
    if let Some(o) = &other {
        let ratio = |a: Duration, b: Duration| format!("{:.1}x", b.as_secs_f64() / a.as_secs_f64());
        let sizes = |a: u64, b: u64| format!("{:.1}x", b as f64 / a.max(1) as f64);
        let ratios = [
            ratio(strata.first, o.first),
            ratio(strata.second, o.second),
            sizes(strata.second_copied, o.second_copied),
            sizes(strata.stored, o.stored),
            ratio(strata.restore, o.restore),
        ];
        table.iter_mut().zip(ratios).for_each(|(r, x)| r.push(x));
    }
    screen.table(&["", "Strata", "pgBackRest", "ratio"], &table);
    Ok(())
}

fn cluster(file: &Path, warm: bool) -> Result<Cluster> {
    let options = Options::new().archiving().set("shared_buffers", "512MB").set("max_wal_size", "4GB");
    let cluster = Cluster::with(options.set("strata.policy_interval", "0"))?;
    let mut c = cluster.connect()?;
    flights::load(file, &mut c)?;
    if warm {
        for month in 1..=6 {
            c.batch_execute(&format!("SELECT strata.to_warm('flights_2001_{month:02}')"))?;
        }
        c.batch_execute("VACUUM ANALYZE flights")?;
    }
    c.batch_execute("CHECKPOINT")?;
    Ok(cluster)
}

fn strata(file: &Path) -> Result<Done> {
    let cluster = cluster(file, true)?;
    let strata = Strata::configure(&cluster)?;
    strata.archive(&cluster)?;
    let agent = Agent::start(&cluster, &strata)?;
    let backup = || -> Result<Duration> {
        let start = Instant::now();
        strata.run(&["backup"])?;
        Ok(start.elapsed())
    };
    let first = backup()?;
    let before = tree_bytes(strata.repository());
    let second = backup()?;
    let stored = tree_bytes(strata.repository());
    recovered::wait_archived(&mut cluster.connect()?)?;
    drop(agent);
    let back = recovered::recover(&strata, "latest", &[])?;
    back.cluster.connect()?.query_one("SELECT count(*) FROM flights WHERE date < '2001-01-02'", &[])?;
    Ok(Done { first, second, second_copied: stored - before, stored, restore: back.took })
}

fn pgbackrest(file: &Path) -> Result<Done> {
    let cluster = cluster(file, false)?;
    let dir = cluster.dir().join("pgbackrest");
    for d in ["", "repo", "log", "spool", "lock"] {
        fs::create_dir_all(dir.join(d))?;
        give_to_server(&dir.join(d))?;
    }
    let conf = dir.join("pgbackrest.conf");
    let d = dir.display();
    let text = format!(
        "[global]\nrepo1-path={d}/repo\nrepo1-retention-full=9\nlog-path={d}/log\nspool-path={d}/spool\nlock-path={d}/lock\n\
         compress-type=zst\ncompress-level=1\nprocess-max=2\nstart-fast=y\nlog-level-console=warn\n\
         [main]\npg1-path={}\npg1-socket-path={}\npg1-port={}\npg1-user=postgres\n",
        cluster.data().display(),
        cluster.sockets().display(),
        cluster.port()
    );
    fs::write(&conf, text).with_context(|| format!("write {}", conf.display()))?;
    let tool = |args: &[&str]| -> Command {
        let mut command = as_server("/usr/bin/pgbackrest");
        command.arg(format!("--config={}", conf.display())).arg("--stanza=main").args(args);
        command
    };
    cluster.connect()?.batch_execute(&format!(
        "ALTER SYSTEM SET archive_command = 'pgbackrest --config={} --stanza=main archive-push %p'",
        conf.display()
    ))?;
    cluster.connect()?.batch_execute("SELECT pg_reload_conf()")?;
    process::run(&mut tool(&["stanza-create"]))?;
    let backup = |kind: &str| -> Result<Duration> {
        let start = Instant::now();
        process::run(&mut tool(&["backup", &format!("--type={kind}")]))?;
        Ok(start.elapsed())
    };
    let first = backup("full")?;
    let before = tree_bytes(&dir.join("repo"));
    let second = backup("incr")?;
    let stored = tree_bytes(&dir.join("repo"));

    let place = recovered::place()?;
    let data = place.join("data");
    fs::create_dir(&data)?;
    give_to_server(&data)?;
    fs::set_permissions(&data, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    let start = Instant::now();
    process::run(&mut tool(&["restore", &format!("--pg1-path={}", data.display()), "--archive-mode=off"]))?;
    let port = recovered::free_port()?;
    let status = cluster
        .program("pg_ctl")
        .args(["start", "--wait", "--silent", "-D"])
        .arg(&data)
        .arg("-l")
        .arg(place.join("log"))
        .arg("-o")
        .arg(format!("-c port={port} -c unix_socket_directories='{}' -c listen_addresses=''", place.display()))
        .status()?;
    anyhow::ensure!(status.success(), "the restored server did not start: {}", fs::read_to_string(place.join("log"))?);
    let back = Cluster::adopt(&place, &data)?;
    back.connect()?.query_one("SELECT count(*) FROM flights WHERE date < '2001-01-02'", &[])?;
    Ok(Done { first, second, second_copied: stored - before, stored, restore: start.elapsed() })
}
