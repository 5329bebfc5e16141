//! `strata plan`.

use super::output::{self, Output};
use crate::config::Config;
use crate::error::Result;
use crate::recovery::plan::{self, PlanRequest, StopAt};
use crate::repository::Repository;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to stop; see below
    #[arg(long, value_name = "TARGET", default_value = "latest")]
    to: String,
    /// The timeline to follow; by default the newest in the archive
    #[arg(long, value_name = "NUMBER")]
    timeline: Option<u32>,
    /// Stop just before what the target names, not behind it
    #[arg(long)]
    exclusive: bool,
    /// The backup to begin with, by its id; by default the newest that fits
    #[arg(long, value_name = "ID")]
    backup: Option<String>,
}

pub fn run(args: &Args, config: &Config, out: &Output) -> Result<()> {
    let request = PlanRequest {
        target: args.to.parse()?,
        timeline: args.timeline,
        backup: args.backup.clone(),
        exclusive: args.exclusive,
    };
    let plan = plan::plan(&Repository::open(config)?, &request)?;
    out.result(&plan, || text(&plan))?;
    plan.require_complete()
}

fn text(plan: &plan::Plan) -> String {
    let bytes = output::bytes;
    let stop = match plan.stop {
        StopAt::Lsn(lsn) if !plan.inclusive => format!("before the first record that begins at {lsn} or later"),
        StopAt::Time(time) if !plan.inclusive => format!("before the first commit at {time} or later"),
        StopAt::Lsn(lsn) => format!("behind the first record that begins at {lsn} or later"),
        StopAt::Time(time) => format!("before the first commit later than {time}"),
        StopAt::Consistent => "as soon as the data is consistent".to_owned(),
    };
    let mut text = output::pairs(&[
        ("target", plan.target.clone()),
        ("stop", stop),
        ("timeline", plan.timeline.to_string()),
        (
            "backup",
            match &plan.backup.tool {
                None => format!("{} ({})", plan.backup.id, bytes(plan.backup.stored_bytes)),
                Some(tool) => format!(
                    "{} ({}, {} of the tool {})",
                    plan.backup.id,
                    bytes(plan.backup.stored_bytes),
                    output::count(tool.objects.len() as u64, "object"),
                    tool.name
                ),
            },
        ),
        (
            "wal",
            format!(
                "{} to {} ({}, {})",
                plan.wal_from,
                plan.wal_to,
                output::count(plan.wal_segments, "segment"),
                bytes(plan.wal_stored_bytes)
            ),
        ),
        ("fragments", format!("{} ({})", plan.fragments, bytes(plan.fragment_bytes))),
        (
            "missing",
            if plan.missing.is_empty() {
                "nothing".to_owned()
            } else {
                output::count(plan.missing.len() as u64, "thing")
            },
        ),
    ]);
    for fragment in &plan.fragment_list {
        let relation = fragment.relation.as_deref().unwrap_or("-");
        text.push_str(&format!("  fragment {} {} {relation}\n", fragment.hash, fragment.database));
    }
    for missing in &plan.missing {
        text.push_str(&format!("  missing: {missing}\n"));
    }
    text
}
