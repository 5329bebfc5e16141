//! `strata tool`.

use super::output::{self, Output};
use crate::backup::blocking;
use crate::config::Config;
use crate::config::tool::{Operation, PRESETS, ToolConfig};
use crate::error::{Error, ErrorKind, Result};
use crate::repository::Repository;
use crate::tool::{Tool, trial, upkeep};
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the tool as it is configured, preset and strata.toml together; values of secrets are not shown
    Show {
        /// Print a preset instead: restic, borg, rclone or command
        #[arg(long, value_name = "NAME")]
        preset: Option<String>,
    },
    /// Make the tool's own repository
    Init,
    /// Send one small object through the tool, list it, read it back, compare it, and have it forgotten
    Check,
    /// Show what the tool says it holds, beside what the catalog knows
    List,
    /// Remove a backup that was taken through the tool. Fragments that other backups or the fragment log need stay
    Forget {
        /// The backup's id
        id: String,
        /// Remove it even if it is the member's only backup
        #[arg(long)]
        last: bool,
    },
}

pub async fn run(command: &Command, config: &dyn Fn() -> Result<Config>, out: &Output) -> Result<()> {
    match command {
        Command::Show { preset: Some(name) } => show(&preset(name)?, out),
        Command::Show { preset: None } => {
            let config = config()?;
            show(config.tool.as_ref().ok_or_else(none)?, out)
        }
        Command::Init => {
            let config = config()?;
            let tool = Tool::of(&config)?.ok_or_else(none)?;
            let name = tool.name().to_owned();
            let made = blocking(move || tool.plain(Operation::Init)).await?;
            let made = made.ok_or_else(|| {
                Error::new(ErrorKind::Config, format!("the tool {name} has no command to init"))
                    .with_hint("Set tool.init.command.")
            })?;
            let document = serde_json::json!({"tool": name, "messages": made.messages});
            out.result(&document, || made.messages.join("\n"))
        }
        Command::Check => {
            let tried = with_tool(config()?, |repository, tool| {
                // A backup that begins forgets what is not of a backup.
                let _lock = repository.wait_for_backup_lock()?;
                trial::run(repository, tool)
            })
            .await?;
            out.result(&tried, || {
                let said = |value: Option<bool>| match value {
                    Some(true) => "yes",
                    Some(false) => "no",
                    None => "no command for that",
                };
                output::pairs(&[
                    ("tool", tried.tool.clone()),
                    ("stored and read back", output::bytes(tried.bytes)),
                    ("identifier", tried.identifier.clone().unwrap_or_else(|| "the object's name".to_owned())),
                    ("listed", said(tried.listed).to_owned()),
                    ("forgotten", said(tried.forgotten).to_owned()),
                ])
            })
        }
        Command::List => list(config()?, out).await,
        Command::Forget { id, last } => {
            let (id, last) = (id.clone(), *last);
            let done = with_tool(config()?, move |repository, tool| {
                let _lock = repository.wait_for_backup_lock()?;
                upkeep::clear(repository, tool)?;
                upkeep::forget_backup(repository, tool, &id, last)
            })
            .await?;
            out.result(&done, || {
                format!(
                    "{} forgotten ({}), {} with fragments stay",
                    output::count(done.objects.len() as u64, "object"),
                    output::bytes(done.bytes),
                    output::count(done.kept, "object")
                )
            })
        }
    }
}

fn none() -> Error {
    Error::new(ErrorKind::Config, "the configuration has no [tool]")
        .with_hint("\"strata tool show --preset restic\" prints what a tool is made of.")
}

fn preset(name: &str) -> Result<ToolConfig> {
    // A preset by itself says where the tool's repository is to be named.
    let config = ToolConfig { preset: Some(name.to_owned()), ..ToolConfig::default() };
    config.merged().map(|merged| ToolConfig { preset: None, ..merged }).map_err(|_| {
        let names = PRESETS.map(|(name, _)| name).join(", ");
        Error::new(ErrorKind::Usage, format!("there is no preset \"{name}\"")).with_hint(format!("There are {names}."))
    })
}

fn show(tool: &ToolConfig, out: &Output) -> Result<()> {
    let merged = tool.merged().map_err(|why| Error::new(ErrorKind::Config, why))?;
    let text = toml::to_string(&merged)
        .map_err(|error| Error::new(ErrorKind::Io, format!("could not write TOML: {error}")))?;
    // As it stands in strata.toml.
    let text: String = text
        .lines()
        .map(|line| match line.strip_prefix('[') {
            Some(rest) => format!("[tool.{rest}\n"),
            None => format!("{line}\n"),
        })
        .collect();
    out.result(&merged, || format!("[tool]\n{text}"))
}

async fn with_tool<T: Send + 'static>(
    config: Config,
    work: impl FnOnce(&Repository, &Tool) -> Result<T> + Send + 'static,
) -> Result<T> {
    super::ended_by_signals(blocking(move || {
        if config.tool.is_none() {
            return Err(none());
        }
        let repository = Repository::open_or_create(&config)?;
        let tool = repository.tool().ok_or_else(none)?;
        work(&repository, tool)
    }))
    .await
}

async fn list(config: Config, out: &Output) -> Result<()> {
    let (objects, listing) = blocking(move || {
        let repository = Repository::open(&config)?;
        let listing = repository.tool().ok_or_else(none)?.list()?;
        let (objects, damaged) = repository.objects()?;
        match damaged.into_iter().next() {
            Some(error) => Err(error),
            None => Ok((objects, listing)),
        }
    })
    .await?;
    let listed = |object| listing.as_ref().map(|listing| listing.find(object).is_some());
    let known: Vec<_> =
        objects.iter().map(|object| serde_json::json!({"object": object, "listed": listed(object)})).collect();
    let unknown: Vec<_> = listing
        .iter()
        .flat_map(|listing| &listing.0)
        .filter(|line| match &line.name {
            Some(name) => !objects.iter().any(|object| object.name == *name),
            None => !objects.iter().any(|object| object.identifier == line.identifier),
        })
        .collect();
    let document = serde_json::json!({"objects": known, "unknown": unknown});
    out.result(&document, || {
        let rows = objects
            .iter()
            .map(|object| {
                vec![
                    object.name.clone(),
                    format!("{:?}", object.state).to_lowercase(),
                    output::bytes(object.bytes),
                    object.stored_bytes.map(output::bytes).unwrap_or_default(),
                    object.fragments.len().to_string(),
                    object.exit_code.to_string(),
                    listed(object).map_or("", |listed| if listed { "yes" } else { "NO" }).to_owned(),
                    object.identifier.clone().unwrap_or_default(),
                ]
            })
            .collect();
        let mut text = output::table(
            &["object", "state", "piped>", "stored>", "fragments>", "exit code>", "listed", "identifier"],
            rows,
        );
        for line in &unknown {
            let name = line.name.as_deref().or(line.identifier.as_deref()).unwrap_or_default();
            text.push_str(&format!("not of this catalog: {name}\n"));
        }
        text
    })
}
