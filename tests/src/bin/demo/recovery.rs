//! The way back.

use anyhow::{Context, Result, bail};
use postgres::Client;
use std::time::Instant;
use strata_tests::recovered::{self, Recovered};
use strata_tests::report::{Screen, bytes, count, time};
use strata_tests::{Cluster, Strata, process, twin};

/// Waits until everything up to now is in the repository.
pub fn wait_archived(c: &mut Client, strata: &Strata) -> Result<()> {
    recovered::wait_archived(c).with_context(|| format!("archive into {}", strata.repository().display()))
}

/// Bytes of the fragment files in the repository.
pub fn fragment_bytes_held(strata: &Strata) -> u64 {
    process::files_below(strata.repository())
        .iter()
        .filter(|f| f.extension().is_some_and(|e| e == "frag"))
        .filter_map(|f| std::fs::metadata(f).ok())
        .map(|m| m.len())
        .sum()
}

/// The server that came back.
pub struct Back {
    recovered: Recovered,
    all_fragments: i64,
    bytes: u64,
}

/// What the first queries showed.
pub struct OnDemand {
    /// Whether the server answered before all fragments were back.
    pub open_before_all_fragments: bool,
    /// The sentence.
    pub text: String,
}

/// Plans, recovers, connects.
pub fn recover(screen: &Screen, main: &Cluster, strata: &Strata, moment: &str) -> Result<(Back, Client)> {
    screen.command("$", &format!("strata plan --to '{moment}'"));
    let plan = strata.run(&["plan", "--to", moment])?;
    screen.quote(&strata_tests::cluster::head(&plan.stdout, 14));
    let back = recovered::recover(strata, moment, &[])?;
    screen.command("$", &format!("strata recover --to '{moment}' --into {}", back.cluster.data().display()));
    let mut c = back.cluster.connect()?;
    let rows = twin::rows(&mut c, "SELECT count(*), sum(bytes) FROM strata.fragment")?;
    let number = |i: usize| rows.first().and_then(|r| r[i].clone()).and_then(|v| v.parse::<i64>().ok()).unwrap_or(0);
    anyhow::ensure!(!main.data().exists() && !main.store().exists(), "the old server should be gone");
    screen.say(&format!("Open after {}, from the repository alone.", time(back.took)));
    let all = Back { recovered: back, all_fragments: number(0), bytes: u64::try_from(number(1)).unwrap_or(0) };
    Ok((all, c))
}

/// Queries while fragments are still on their way.
pub fn first_queries(screen: &Screen, back: &Back, c: &mut Client) -> Result<OnDemand> {
    let here = back.recovered.fragments_when_open;
    let sql = "SELECT * FROM flights WHERE date = '2001-01-01 00:01' AND id = 2";
    let start = Instant::now();
    screen.command("=#", sql);
    let row = twin::rows(c, sql)?;
    let took = start.elapsed();
    let Some(row) = row.first() else { bail!("the flight is not there: {sql}") };
    screen.quote(&row.iter().map(|v| v.as_deref().unwrap_or("")).collect::<Vec<_>>().join(" | "));
    screen.say(&format!("First warm row after {}.", time(took)));
    let text = format!(
        "open in {} with {here} of {} fragments in the store; the others ({} in all) came when queries touched them, or in the background",
        time(back.recovered.took),
        count(back.all_fragments),
        bytes(back.bytes)
    );
    Ok(OnDemand { open_before_all_fragments: (here as i64) < back.all_fragments, text })
}

impl Back {
    /// Says how to connect, or stops everything.
    pub fn farewell(mut self, screen: &Screen, main: &mut Cluster, keep: bool) -> Result<()> {
        if !self.recovered.fetched_all()? {
            bail!("not all fragments could be fetched:\n{}", self.recovered.said());
        }
        let cluster = &self.recovered.cluster;
        let psql = format!("psql -h {} -p {} -U postgres", cluster.sockets().display(), cluster.port());
        if keep {
            screen.say("The recovered server goes on. Connect with:");
            screen.command("$", &psql);
            screen.say(&format!(
                "Stop it with: runuser -u {} -- {}/pg_ctl stop -D {}",
                process::SERVER_USER,
                process::pg_config("bindir")?.display(),
                cluster.data().display()
            ));
            self.recovered.cluster.keep();
            // The old directory still has the socket and the repository.
            main.keep();
        } else {
            screen.say(&format!("`make demo KEEP=1` leaves the recovered server running, to connect with: {psql}"));
            screen.say("Stopped and removed everything that was started.");
        }
        Ok(())
    }
}
