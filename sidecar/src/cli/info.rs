//! `strata info`.

use super::output::{self, Output};
use crate::config::Config;
use crate::error::Result;
use crate::recovery::window::{self, TimelineWindow};
use crate::repository::Repository;
use crate::repository::drills::DrillEntry;
use crate::repository::info::Info;
use serde::Serialize;

#[derive(Debug, clap::Args)]
pub struct Args {}

pub fn run(_args: &Args, config: &Config, out: &Output) -> Result<()> {
    let repository = Repository::open(config)?;
    let shown = Shown {
        info: repository.info()?,
        recovery_window: window::windows(&repository)?,
        last_drill: repository.last_drill()?,
    };
    out.result(&shown, || {
        text(&shown.info) + &window_text(&shown.recovery_window) + &drill_text(shown.last_drill.as_ref())
    })
}

#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    info: Info,
    /// From when to when every moment can be recovered.
    recovery_window: Vec<TimelineWindow>,
    /// The newest drill.
    last_drill: Option<DrillEntry>,
}

fn time(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S%.3fZ").to_string()
}

fn drill_text(drill: Option<&DrillEntry>) -> String {
    let Some(drill) = drill else { return "\nno drill was recorded: \"strata drill\" tries a recovery\n".to_owned() };
    let verdict = if drill.passed { "passed" } else { "FAILED" };
    let backup = drill.backup_id.as_deref().unwrap_or("no backup");
    format!("\nlast drill: {} to {} from {backup}: {verdict}\n", time(drill.finished_at), drill.target)
}

fn window_text(windows: &[TimelineWindow]) -> String {
    let mut rows = Vec::new();
    let mut gaps = String::new();
    for window in windows {
        let name = if window.current { format!("{} (current)", window.timeline) } else { window.timeline.to_string() };
        for one in &window.intervals {
            rows.push(vec![
                name.clone(),
                one.from_time.map(time).unwrap_or_default(),
                one.to_time.map(time).unwrap_or_default(),
                one.from_lsn.to_string(),
                one.to_lsn.to_string(),
                one.backups.to_string(),
            ]);
        }
        for gap in &window.gaps {
            let to = gap.to_lsn.map_or("on".to_owned(), |to| format!("to {to}"));
            gaps.push_str(&format!("not recoverable: timeline {name} from {} {to}: {}\n", gap.from_lsn, gap.why));
        }
    }
    if rows.is_empty() {
        return gaps;
    }
    let head = ["every moment on timeline", "from", "to", "from position", "to position", "backups>"];
    format!("\n{}{gaps}", output::table(&head, rows))
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
                    timeline.streamed_to.map(|lsn| lsn.to_string()).unwrap_or_default(),
                    timeline.gaps.len().to_string(),
                ]
            })
            .collect();
        text.push('\n');
        text.push_str(&output::table(
            &["timeline>", "first segment", "last segment", "segments>", "last commit", "streamed to", "gaps>"],
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
