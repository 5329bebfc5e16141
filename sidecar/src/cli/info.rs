//! `strata info`.

use super::output::{self, Output};
use crate::config::Config;
use crate::error::Result;
use crate::repository::Repository;
use crate::repository::info::Info;

#[derive(Debug, clap::Args)]
pub struct Args {}

pub fn run(_args: &Args, config: &Config, out: &Output) -> Result<()> {
    let info = Repository::open(config)?.info()?;
    out.result(&info, || text(&info))
}

fn text(info: &Info) -> String {
    let bytes = output::bytes;
    let mut text = output::pairs(&[
        ("system", format!("{} / {}", info.system, info.member)),
        ("repository", info.repository.clone()),
        ("backups", format!("{} ({})", info.backups.len(), bytes(info.backup_bytes))),
        ("wal", bytes(info.wal_bytes)),
        ("fragments", format!("{} ({})", info.fragments, bytes(info.fragment_bytes))),
    ]);
    for tool in &info.tools {
        text.push_str(&output::pairs(&[(
            "tool",
            format!(
                "{}: {} ({}), {} fragments in them, {} not finished",
                tool.name,
                output::count(tool.objects, "object"),
                bytes(tool.bytes),
                tool.fragments,
                tool.unfinished
            ),
        )]));
    }
    if !info.backups.is_empty() {
        let rows = info
            .backups
            .iter()
            .map(|backup| {
                vec![
                    backup.id.clone(),
                    backup.stopped_at.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
                    backup.timeline.to_string(),
                    backup.stop_lsn.to_string(),
                    bytes(backup.data_bytes),
                    bytes(backup.stored_bytes),
                    backup.fragments.to_string(),
                    backup.tool.as_ref().map_or("repository", |tool| &tool.name).to_owned(),
                    backup.label.clone().unwrap_or_default(),
                ]
            })
            .collect();
        text.push('\n');
        text.push_str(&output::table(
            &["backup", "consistent at", "timeline>", "position", "data>", "stored>", "fragments>", "held by", "label"],
            rows,
        ));
    }
    if !info.wal.is_empty() {
        let rows = info
            .wal
            .iter()
            .map(|timeline| {
                vec![
                    timeline.timeline.to_string(),
                    timeline.first.clone().unwrap_or_default(),
                    timeline.last.clone().unwrap_or_default(),
                    timeline.segments.to_string(),
                    timeline
                        .last_commit_at
                        .map(|time| time.strftime("%Y-%m-%d %H:%M:%SZ").to_string())
                        .unwrap_or_default(),
                    timeline.gaps.len().to_string(),
                ]
            })
            .collect();
        text.push('\n');
        text.push_str(&output::table(
            &["timeline>", "first segment", "last segment", "segments>", "last commit", "gaps>"],
            rows,
        ));
    }
    for damage in &info.damage {
        text.push_str(&format!("damaged: {damage}\n"));
    }
    for timeline in &info.wal {
        for gap in &timeline.gaps {
            let count = output::count(gap.segments, "segment");
            text.push_str(&format!("gap: {} to {} ({count})\n", gap.from, gap.to));
        }
    }
    text
}
