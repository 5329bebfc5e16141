//! `make demo`: the main job on three million real flights, from a fresh server to a recovered one.
//!
//! Two servers: the one that the demo ages, backs up and destroys, and a second, plain one with a heap twin of the table.
//! Every change is made on both; nothing that Strata does can reach the twin. What is proven is compared with it, row by row.
//! The demo fails (exit code 1) when something is not as promised; it stops and removes what it started, unless `KEEP=1`.

mod changes;
mod recovery;

use anyhow::{Context, Result, bail};
use postgres::Client;
use std::process::ExitCode;
use strata_tests::report::{Screen, bytes, count, time};
use strata_tests::{Agent, Cluster, Options, Strata, flights, process, queries, twin};

/// What the last screen says.
#[derive(Default)]
struct Proven {
    lines: Vec<String>,
    short: Vec<String>,
}

impl Proven {
    fn check(&mut self, screen: &Screen, ok: bool, text: String) {
        if ok {
            screen.proven(&text);
            self.lines.push(text);
        } else {
            screen.short(&text);
            self.short.push(text);
        }
    }
}

fn main() -> ExitCode {
    let mut screen = Screen::new();
    if let Err(error) = strata_tests::cluster::stop_on_signal() {
        eprintln!("strata: {error:#}");
        return ExitCode::FAILURE;
    }
    match run(&mut screen) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("\nThe demo stopped: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(screen: &mut Screen) -> Result<ExitCode> {
    let keep = std::env::var("KEEP").is_ok_and(|k| !k.is_empty() && k != "0");
    let mut proven = Proven::default();
    println!("Strata: a table ages, is backed up, is destroyed, and comes back to a chosen moment.");

    screen.chapter("Three million flights in a partitioned table with a primary key");
    let file = flights::fetch(&mut |s| screen.say(s))?;
    let settings = |o: Options| {
        o.set("shared_buffers", "512MB")
            .set("max_wal_size", "2GB")
            .set("jit", "off")
            .set("max_parallel_workers_per_gather", "0")
            .set("strata.policy_interval", "0")
    };
    let mut main = Cluster::with(settings(Options::new().archiving()))?;
    let other = Cluster::with(
        Options::new().plain().set("shared_buffers", "256MB").set("max_wal_size", "2GB").set("fsync", "off"),
    )?;
    screen.say(&format!(
        "PostgreSQL {} with the extension in {}; a plain one for the twin.",
        server_version(&main)?,
        main.dir().display()
    ));
    let (mut c, mut h) = (main.connect()?, other.connect()?);
    screen.command("=#", flights::TABLE);
    let loaded = flights::load(&file, &mut c)?;
    flights::load(&file, &mut h)?;
    screen.say(&format!("{} flights loaded, with a heap twin.", count(loaded)));

    screen.chapter("The table on heap: size, queries, plans");
    let heap_bytes = flights::total_bytes(&mut c)?;
    screen.say(&format!(
        "Heap with its indexes: {}. Each query below: best of three, one process, cache warm.",
        bytes(heap_bytes)
    ));
    let before = queries::measure(&mut c)?;
    show_plan(screen, &mut c)?;

    let (warm_bytes, after) = age(screen, &main, &mut c, &mut proven, &before, heap_bytes)?;

    screen.chapter("UPDATE and DELETE of warm rows");
    for sql in changes::CHANGES_OF_WARM_ROWS {
        screen.command("=#", sql);
        let n = c.execute(*sql, &[])?;
        let m = h.execute(*sql, &[])?;
        screen.say(&format!("{} rows", count(n as i64)));
        if n != m {
            bail!("{sql}: {n} rows on warm, {m} on the heap twin");
        }
    }
    let same = changes::compare(&mut c, &mut h)?;
    proven.check(
        screen,
        true,
        format!("warm rows take UPDATE and DELETE: {} rows equal to the heap twin's, one by one", count(same)),
    );

    screen.chapter("A backup: hot data, WAL, and each fragment once");
    let strata = Strata::configure(&main)?;
    strata.archive(&main)?;
    let agent = Agent::start(&main, &strata)?;
    screen.command("$", "strata check");
    strata.run(&["check"])?;
    // The agent has copied the fragments as soon as it saw them: they are a log, like WAL.
    backup(screen, &mut c, "the first")?;
    let held = recovery::fragment_bytes_held(&strata);
    let second = backup(screen, &mut c, "with nothing new in warm")?;
    let copied =
        second["fragment_bytes_copied"].as_u64().context("the backup says how many fragment bytes it copied")?;
    proven.check(
        screen,
        copied == 0 && held > 0 && recovery::fragment_bytes_held(&strata) == held,
        format!("each fragment was copied once ({}); a second backup copied {copied} bytes of fragments", bytes(held)),
    );

    screen.chapter("More changes, and an accident");
    for sql in changes::LATER_CHANGES {
        screen.command("=#", sql);
        let (n, m) = (c.execute(*sql, &[])?, h.execute(*sql, &[])?);
        if n != m {
            bail!("{sql}: {n} rows on warm, {m} on the heap twin");
        }
    }
    let moment = twin::value(&mut c, "SELECT clock_timestamp()")?;
    screen.say(&format!("It is {moment}. This is the moment that we will want back."));
    std::thread::sleep(std::time::Duration::from_millis(200));
    for sql in changes::ACCIDENT {
        screen.command("=#", sql);
        c.batch_execute(sql)?;
    }
    screen.say(&format!("{} of {} flights are left.", count(changes::rows(&mut c)?), count(changes::rows(&mut h)?)));
    recovery::wait_archived(&mut c, &strata)?;

    screen.chapter("The data directory and the store are deleted");
    drop(c);
    main.kill9()?;
    agent.kill9();
    std::fs::remove_dir_all(main.data())?;
    std::fs::remove_dir_all(main.store())?;
    screen.command("$", &format!("kill -9 …; rm -rf {} {}", main.data().display(), main.store().display()));

    screen.chapter("Recovery to the moment between the changes");
    let (back, mut b) = recovery::recover(screen, &main, &strata, &moment)?;
    let on_demand = recovery::first_queries(screen, &back, &mut b)?;
    let same = changes::compare(&mut b, &mut h)?;
    proven.check(
        screen,
        true,
        format!("recovered to {moment}: {} rows equal to the heap twin's, one by one", count(same)),
    );
    proven.check(screen, on_demand.open_before_all_fragments, on_demand.text.clone());
    b.batch_execute("BEGIN; UPDATE flights SET delay = delay + 1 WHERE date = '2001-02-03 10:00'; ROLLBACK")?;

    last_screen(screen, &proven, heap_bytes, warm_bytes, &before, &after);
    back.farewell(screen, &mut main, keep)?;
    Ok(if proven.short.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints one query's plan, as it was run.
fn show_plan(screen: &Screen, c: &mut Client) -> Result<()> {
    let (explain, lines) = queries::plan(c)?;
    screen.command("=#", &explain);
    lines.iter().for_each(|line| screen.quote(line));
    Ok(())
}

/// Moves the old months to warm; measures sizes and queries again.
fn age(
    screen: &mut Screen,
    main: &Cluster,
    c: &mut Client,
    proven: &mut Proven,
    before: &[queries::Measured],
    heap_bytes: u64,
) -> Result<(u64, Vec<queries::Measured>)> {
    screen.chapter("Six months age into warm fragments");
    let manage =
        "SELECT strata.manage('flights', hot_for => now() - '2001-07-15', partition_by => '1 month', ahead => 0)";
    screen.command("=#", manage);
    c.batch_execute(manage)?;
    screen.command("=#", "CALL strata.run_policies()");
    let start = std::time::Instant::now();
    c.batch_execute("CALL strata.run_policies()")?;
    let took = start.elapsed();
    // As if today were 2001-07-15: July, with its first flights, stays hot.
    c.batch_execute("SELECT strata.unmanage('flights')")?;
    c.batch_execute("VACUUM ANALYZE flights")?;
    screen.table(&["partition", "tier", "rows", "heap", "warm", "compression"], &changes::partitions(c)?);
    let store = process::tree_bytes(main.store());
    let warm_bytes = flights::total_bytes(c)? + store;
    screen.say(&format!(
        "Moved in {}. {} in the store and {} of pages and indexes, instead of {}.",
        time(took),
        bytes(store),
        bytes(warm_bytes - store),
        bytes(heap_bytes)
    ));
    let ratio = heap_bytes as f64 / warm_bytes as f64;
    proven.check(
        screen,
        ratio >= 8.0,
        format!("warm takes 1/{ratio:.1} of heap, indexes included (promised: at most 1/8)"),
    );

    screen.chapter("The same queries on the warm table");
    let after = queries::measure(c)?;
    show_plan(screen, c)?;
    screen.table(&["query", "heap", "warm", "faster"], &queries::compare(before, &after)?);
    let slowest = queries::slowest_aggregate(before, &after);
    proven.check(
        screen,
        slowest >= 3.0,
        format!("every aggregate query is at least {slowest:.1} times as fast as on heap (promised: 3), same answers"),
    );
    Ok((warm_bytes, after))
}

fn backup(screen: &Screen, c: &mut Client, label: &str) -> Result<serde_json::Value> {
    let sql = format!("SELECT strata.backup('{label}')");
    screen.command("=#", &sql);
    let start = std::time::Instant::now();
    let result: serde_json::Value = c.query_one(&sql, &[])?.get(0);
    let field = |name: &str| bytes(result[name].as_u64().unwrap_or(0));
    screen.say(&format!(
        "{}: {} of hot data as {}; {} fragments of {}, {} of them copied now.",
        time(start.elapsed()),
        field("data_bytes"),
        field("stored_bytes"),
        result["fragments"],
        field("fragment_bytes"),
        field("fragment_bytes_copied")
    ));
    Ok(result)
}

fn last_screen(
    screen: &mut Screen,
    proven: &Proven,
    heap_bytes: u64,
    warm_bytes: u64,
    before: &[queries::Measured],
    after: &[queries::Measured],
) {
    screen.chapter("What was proven");
    for line in &proven.lines {
        screen.proven(line);
    }
    for line in &proven.short {
        screen.short(line);
    }
    let ratios: Vec<f64> = before.iter().zip(after).map(|(b, a)| b.time.as_secs_f64() / a.time.as_secs_f64()).collect();
    screen.say(&format!(
        "Size: {} → {} (1/{:.1}). Queries: {:.1} to {:.1} times as fast. The whole took {}.",
        bytes(heap_bytes),
        bytes(warm_bytes),
        heap_bytes as f64 / warm_bytes as f64,
        ratios.iter().copied().fold(f64::INFINITY, f64::min),
        ratios.iter().copied().fold(0.0, f64::max),
        time(screen.elapsed())
    ));
}

fn server_version(cluster: &Cluster) -> Result<String> {
    twin::value(&mut cluster.connect()?, "SELECT split_part(current_setting('server_version'), ' ', 1)")
}
