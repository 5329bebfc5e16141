//! The section `[tool]` of `strata.toml`: a third-party program that carries a backup's bytes.
//!
//! A preset is a TOML file of the same form that ships with the program (`strata tool show` prints it); what `strata.toml` says wins,
//! key by key. Everything is checked when the file is read, so a template that cannot work is an error before anything runs.
//!
//! ```text
//!   preset ─┐
//!           ├─ merge ─► ToolConfig ─ resolve ─► ToolSpec   (templates parsed, patterns compiled, limits set)
//!   file  ──┘
//! ```

use super::template::{Template, Word};
use super::{check_name, optional_duration};
use regex::Regex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// The presets: their names and texts.
pub const PRESETS: [(&str, &str); 4] = [
    ("restic", include_str!("../tool/presets/restic.toml")),
    ("borg", include_str!("../tool/presets/borg.toml")),
    ("rclone", include_str!("../tool/presets/rclone.toml")),
    ("command", include_str!("../tool/presets/command.toml")),
];

/// The section as it is written: everything may be left out when a preset has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ToolConfig {
    /// Where the rest comes from: `restic`, `borg`, `rclone`, `command`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// What backups say they were written with; by default the preset's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The tool's own repository: what `{repository}` stands for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// A directory for named pipes and the tool's caches: what `{state}` stands for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<PathBuf>,
    /// How many pipes, and so runs of the tool, at the same time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streams: Option<usize>,
    /// The level of zstd for the streams of hot data; 0 leaves them as they are, for tools that deduplicate or compress.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compress_level: Option<i32>,
    /// Fragments go through the tool in bundles of at most so many megabytes; 0 makes each a bundle of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bundle_megabytes: Option<u64>,
    /// Where WAL goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wal: Option<WalThrough>,
    /// How long one run of the tool may take.
    #[serde(with = "optional_duration", skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// How long the tool may take no byte from its pipe, or give none into it.
    #[serde(with = "optional_duration", skip_serializing_if = "Option::is_none")]
    pub stall: Option<Duration>,
    /// Environment variables of the tool that are no secrets. Placeholders are allowed.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Environment variables of the tool whose values come from a file or from this program's own environment.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, SecretConfig>,
    /// Stores what comes through the pipe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup: Option<CommandConfig>,
    /// Gives it back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restore: Option<CommandConfig>,
    /// Names what is stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub list: Option<CommandConfig>,
    /// The tool's own check of its repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verify: Option<CommandConfig>,
    /// Removes one stored object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forget: Option<CommandConfig>,
    /// Makes the tool's repository: `strata tool init`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<CommandConfig>,
    /// Runs once before each backup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prepare: Option<CommandConfig>,
    /// Runs once after objects were forgotten: gives their room back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prune: Option<CommandConfig>,
}

/// One command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CommandConfig {
    /// The program and its arguments; with `shell = true` one text for `sh -c`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<CommandLine>,
    /// Run the command through a shell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shell: Option<bool>,
    /// How the data comes and goes: `stdio`, or `fifo` for a named pipe whose path is `{pipe}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pipe: Option<PipeKind>,
    /// Exit codes that are warnings: the work is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warnings: Option<Vec<i32>>,
    /// How to find the tool's own identifier in its output: a regular expression for one line, whose first group it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identifier: Option<String>,
    /// How to find the number of bytes that the tool stored, in the same way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stored_bytes: Option<String>,
    /// How to find the objects in the output of `list`: a regular expression with the groups `name`, `identifier` or both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub objects: Option<String>,
    /// How long one run may take, in place of `tool.timeout`.
    #[serde(with = "optional_duration", skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
}

/// The program and its arguments, or a text for the shell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a command is a list of words; with shell = true it is one text")]
pub enum CommandLine {
    /// An argument vector.
    Words(Vec<String>),
    /// A text for the shell.
    Script(String),
}

/// Where a secret comes from; exactly one of the two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "SecretForm")]
pub struct SecretConfig {
    /// The first line of this file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// This environment variable of the sidecar.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<String>,
}

/// How a secret is written. A text in its place may be the secret itself, so no error shows what was found.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a secret is { file = \"/path\" } or { env = \"NAME\" }")]
enum SecretForm {
    Table(SecretTable),
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct SecretTable {
    file: Option<PathBuf>,
    env: Option<String>,
}

impl From<SecretForm> for SecretConfig {
    fn from(SecretForm::Table(table): SecretForm) -> Self {
        Self { file: table.file, env: table.env }
    }
}

/// How data comes to a tool and back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PipeKind {
    /// Standard input and output.
    #[default]
    Stdio,
    /// A named pipe.
    Fifo,
}

/// Where WAL goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WalThrough {
    /// Into the repository's directory only, by `strata wal push`.
    #[default]
    Repository,
    /// There, and with each backup the WAL that it needs goes through the tool as well.
    Both,
}

/// What a command is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Stores what comes through the pipe.
    Backup,
    /// Gives it back.
    Restore,
    /// Names what is stored.
    List,
    /// The tool's own check.
    Verify,
    /// Removes one stored object.
    Forget,
    /// Makes the tool's repository.
    Init,
    /// Runs before each backup.
    Prepare,
    /// Gives room back.
    Prune,
}

impl Operation {
    /// Its key in `[tool]`.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Restore => "restore",
            Self::List => "list",
            Self::Verify => "verify",
            Self::Forget => "forget",
            Self::Init => "init",
            Self::Prepare => "prepare",
            Self::Prune => "prune",
        }
    }

    /// The placeholders that its command may have, besides `{pipe}`.
    pub const fn placeholders(self) -> &'static [&'static str] {
        match self {
            Self::Backup => &["repository", "state", "system", "member", "backup", "object", "name", "infile"],
            Self::Restore | Self::Forget => {
                &["repository", "state", "system", "member", "backup", "object", "name", "identifier"]
            }
            _ => &["repository", "state", "system", "member"],
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.key())
    }
}

/// A tool whose templates and limits are known to be usable.
#[derive(Clone, Debug)]
pub struct ToolSpec {
    /// What backups say they were written with.
    pub name: String,
    /// What `{repository}` stands for.
    pub repository: String,
    /// A directory for named pipes and caches.
    pub state: PathBuf,
    /// How many runs at the same time.
    pub streams: usize,
    /// The level of zstd for hot data; 0 for none.
    pub compress_level: i32,
    /// The size of a bundle of fragments; 0 for one fragment each.
    pub bundle_bytes: u64,
    /// Where WAL goes.
    pub wal: WalThrough,
    /// How long no byte may move.
    pub stall: Duration,
    /// Environment variables that are no secrets.
    pub env: Vec<(String, Template)>,
    /// Environment variables that are.
    pub secrets: Vec<(String, SecretConfig)>,
    commands: BTreeMap<Operation, CommandSpec>,
}

/// A command that can be run.
#[derive(Clone, Debug)]
pub struct CommandSpec {
    /// What it is for.
    pub operation: Operation,
    /// The program and its arguments, or the one text for the shell.
    pub words: Vec<Template>,
    /// Run it through a shell.
    pub shell: bool,
    /// How data comes and goes.
    pub pipe: PipeKind,
    /// Exit codes that are warnings.
    pub warnings: Vec<i32>,
    /// Finds the tool's own identifier.
    pub identifier: Option<Regex>,
    /// Finds the bytes that it stored.
    pub stored_bytes: Option<Regex>,
    /// Finds the objects in a list.
    pub objects: Option<Regex>,
    /// How long one run may take.
    pub timeout: Duration,
}

impl ToolSpec {
    /// The command for an operation, when there is one.
    pub fn command(&self, operation: Operation) -> Option<&CommandSpec> {
        self.commands.get(&operation)
    }
}

/// How long a run may take when nobody says.
const TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// How long no byte may move when nobody says.
const STALL: Duration = Duration::from_secs(15 * 60);
/// Words in the names of variables that hold secrets, unless the name ends in one of [`REFERENCES`].
const SECRET_WORDS: [&str; 5] = ["PASSWORD", "PASSPHRASE", "SECRET", "TOKEN", "PRIVATE_KEY"];
const REFERENCES: [&str; 4] = ["_FILE", "_COMMAND", "_FD", "_PATH"];

macro_rules! fill {
    ($into:expr, $from:expr, $($field:ident),+) => { $( if $into.$field.is_none() { $into.$field = $from.$field; } )+ };
}

impl ToolConfig {
    /// What the section says, with the preset where it says nothing.
    pub fn merged(&self) -> Result<Self, String> {
        let mut all = self.clone();
        let Some(preset) = &self.preset else { return Ok(all) };
        let names = || PRESETS.map(|(name, _)| format!("\"{name}\"")).join(", ");
        let (_, text) = PRESETS
            .iter()
            .find(|(name, _)| name == preset)
            .ok_or_else(|| format!("tool.preset is \"{preset}\", but must be one of {}", names()))?;
        let from: Self =
            toml::from_str(text).map_err(|error| format!("the preset \"{preset}\" is wrong: {}", error.message()))?;
        all.name.get_or_insert_with(|| preset.clone());
        fill!(all, from, repository, state, streams, compress_level, bundle_megabytes, wal, timeout, stall);
        for (name, value) in from.env {
            if !all.secrets.contains_key(&name) {
                all.env.entry(name).or_insert(value);
            }
        }
        for (name, value) in from.secrets {
            if !all.env.contains_key(&name) {
                all.secrets.entry(name).or_insert(value);
            }
        }
        let pairs = [
            (&mut all.backup, from.backup),
            (&mut all.restore, from.restore),
            (&mut all.list, from.list),
            (&mut all.verify, from.verify),
            (&mut all.forget, from.forget),
            (&mut all.init, from.init),
            (&mut all.prepare, from.prepare),
            (&mut all.prune, from.prune),
        ];
        for (ours, preset) in pairs {
            match (ours.as_mut(), preset) {
                // Another command has another output: only what is said beside it counts.
                (Some(ours), Some(_)) if ours.command.is_some() => {}
                (Some(ours), Some(preset)) => {
                    fill!(ours, preset, command, shell, pipe, warnings, identifier, stored_bytes, objects, timeout);
                }
                (None, preset) => *ours = preset,
                (Some(_), None) => {}
            }
        }
        Ok(all)
    }

    /// Checks everything. An error names the key and what is allowed.
    pub fn resolve(&self) -> Result<ToolSpec, String> {
        let all = self.merged()?;
        let name = all.name.clone().ok_or("tool.name is missing; a tool without a preset needs one")?;
        check_name("tool.name", &name)?;
        let state = all.state.clone().unwrap_or_else(default_state);
        if !state.is_absolute() {
            return Err(format!("tool.state is \"{}\", but must be an absolute path", state.display()));
        }
        let streams = all.streams.unwrap_or(1);
        if !(1..=64).contains(&streams) {
            return Err(format!("tool.streams is {streams}, but must be between 1 and 64"));
        }
        let compress_level = all.compress_level.unwrap_or(0);
        if !(0..=22).contains(&compress_level) {
            return Err(format!("tool.compress_level is {compress_level}, but must be between 0 (none) and 22"));
        }
        let bundle = all.bundle_megabytes.unwrap_or(0);
        if bundle > 1 << 20 {
            return Err(format!("tool.bundle_megabytes is {bundle}, but must be at most {}", 1 << 20));
        }
        let repository = all.repository.clone().unwrap_or_default();
        let mut commands = BTreeMap::new();
        for (operation, command) in all.commands() {
            let spec = command.resolve(operation, all.timeout.unwrap_or(TIMEOUT))?;
            if repository.is_empty() && spec.words.iter().any(|word| word.uses("repository")) {
                return Err(format!("tool.repository is missing, and tool.{operation}.command has {{repository}}"));
            }
            commands.insert(operation, spec);
        }
        let env = all.variables()?;
        if repository.is_empty() && env.iter().any(|(_, value)| value.uses("repository")) {
            return Err("tool.repository is missing, and a variable of tool.env has {repository}".to_owned());
        }
        for needed in [Operation::Backup, Operation::Restore] {
            if !commands.contains_key(&needed) {
                return Err(format!("tool.{needed}.command is missing"));
            }
        }
        Ok(ToolSpec {
            env,
            secrets: all.checked_secrets()?,
            name,
            repository,
            state,
            streams,
            compress_level,
            bundle_bytes: bundle << 20,
            wal: all.wal.unwrap_or_default(),
            stall: all.stall.unwrap_or(STALL),
            commands,
        })
    }

    fn commands(&self) -> impl Iterator<Item = (Operation, &CommandConfig)> {
        [
            (Operation::Backup, &self.backup),
            (Operation::Restore, &self.restore),
            (Operation::List, &self.list),
            (Operation::Verify, &self.verify),
            (Operation::Forget, &self.forget),
            (Operation::Init, &self.init),
            (Operation::Prepare, &self.prepare),
            (Operation::Prune, &self.prune),
        ]
        .into_iter()
        .filter_map(|(operation, command)| Some((operation, command.as_ref()?)))
    }

    fn variables(&self) -> Result<Vec<(String, Template)>, String> {
        let mut found = Vec::new();
        for (name, value) in &self.env {
            check_variable("tool.env", name)?;
            let upper = name.to_ascii_uppercase();
            let holds = SECRET_WORDS.iter().any(|word| upper.contains(word));
            if holds && !REFERENCES.iter().any(|end| upper.ends_with(end)) {
                return Err(format!(
                    "tool.env.{name} looks like a secret, which does not belong into this file; use [tool.secrets] with \
                     {name} = {{ file = \"/path\" }} or {{ env = \"NAME\" }}"
                ));
            }
            if self.secrets.contains_key(name) {
                return Err(format!("{name} is in [tool.env] and in [tool.secrets]"));
            }
            let template = Template::parse(value, &["repository", "state", "system", "member"])
                .map_err(|why| format!("tool.env.{name}: {why}"))?;
            found.push((name.clone(), template));
        }
        Ok(found)
    }

    fn checked_secrets(&self) -> Result<Vec<(String, SecretConfig)>, String> {
        let mut found = Vec::new();
        for (name, secret) in &self.secrets {
            check_variable("tool.secrets", name)?;
            match (&secret.file, &secret.env) {
                (Some(file), None) if file.is_absolute() => {}
                (Some(file), None) => {
                    return Err(format!(
                        "tool.secrets.{name}.file is \"{}\", but must be an absolute path",
                        file.display()
                    ));
                }
                (None, Some(variable)) => check_variable(&format!("tool.secrets.{name}.env"), variable)?,
                _ => return Err(format!("tool.secrets.{name} must have either file or env")),
            }
            found.push((name.clone(), secret.clone()));
        }
        Ok(found)
    }
}

impl CommandConfig {
    fn resolve(&self, operation: Operation, timeout: Duration) -> Result<CommandSpec, String> {
        let key = |name: &str| format!("tool.{operation}.{name}");
        let shell = self.shell.unwrap_or(false);
        let pipe = self.pipe.unwrap_or_default();
        let texts = match (&self.command, shell) {
            (None, _) => return Err(format!("{} is missing", key("command"))),
            (Some(CommandLine::Words(words)), false) => words.clone(),
            (Some(CommandLine::Script(script)), true) => vec![script.clone()],
            (Some(CommandLine::Words(_)), true) => {
                return Err(format!(
                    "{} is a list of words, but with shell = true it must be one text",
                    key("command")
                ));
            }
            (Some(CommandLine::Script(_)), false) => {
                return Err(format!(
                    "{} is one text, but without shell = true it must be a list of words",
                    key("command")
                ));
            }
        };
        if texts.first().is_none_or(|first| first.trim().is_empty()) {
            return Err(format!("{} names no program", key("command")));
        }
        let carries = matches!(operation, Operation::Backup | Operation::Restore);
        if pipe == PipeKind::Fifo && !carries {
            return Err(format!("{} is \"fifo\", but {operation} carries no data", key("pipe")));
        }
        let mut allowed = operation.placeholders().to_vec();
        if pipe == PipeKind::Fifo {
            allowed.push("pipe");
        }
        let mut words = Vec::new();
        for text in &texts {
            if text.contains('\0') {
                return Err(format!("{} holds a NUL character", key("command")));
            }
            words.push(Template::parse(text, &allowed).map_err(|why| format!("{}: {why}", key("command")))?);
        }
        if pipe == PipeKind::Fifo && !words.iter().any(|word| word.uses("pipe")) {
            return Err(format!("{} is \"fifo\", but {} does not have {{pipe}}", key("pipe"), key("command")));
        }
        if !shell && words.first().is_some_and(|word| word.parts().iter().any(|part| matches!(part, Word::Value(_)))) {
            return Err(format!("{}: the program's name has a placeholder", key("command")));
        }
        let told_apart = ["name", "identifier"].iter().any(|one| words.iter().any(|word| word.uses(one)));
        let by_parts = ["member", "backup", "object"].iter().all(|one| words.iter().any(|word| word.uses(one)));
        if (carries || operation == Operation::Forget) && !told_apart && !by_parts {
            return Err(format!(
                "{} has neither {{name}} nor {{identifier}} nor all of {{member}}, {{backup}} and {{object}}, so it cannot tell one object from another",
                key("command")
            ));
        }
        let mut warnings = self.warnings.clone().unwrap_or_default();
        warnings.sort_unstable();
        if let Some(wrong) = warnings.iter().find(|code| !(1..=255).contains(*code)) {
            return Err(format!("{} has {wrong}, but exit codes that can be warnings are 1 to 255", key("warnings")));
        }
        let pattern = |name: &str, text: &Option<String>, groups: bool| match text {
            None => Ok(None),
            Some(text) => compile(text, groups).map(Some).map_err(|why| format!("{}: {why}", key(name))),
        };
        for (name, text) in [("identifier", &self.identifier), ("stored_bytes", &self.stored_bytes)] {
            if text.is_some() && operation != Operation::Backup {
                return Err(format!("{} has no meaning: only tool.backup has it", key(name)));
            }
        }
        if self.objects.is_some() != (operation == Operation::List) {
            return Err(match operation {
                Operation::List => format!("{} is missing: how are objects found in the output?", key("objects")),
                _ => format!("{} has no meaning: only tool.list has it", key("objects")),
            });
        }
        Ok(CommandSpec {
            operation,
            words,
            shell,
            pipe,
            warnings,
            identifier: pattern("identifier", &self.identifier, false)?,
            stored_bytes: pattern("stored_bytes", &self.stored_bytes, false)?,
            objects: pattern("objects", &self.objects, true)?,
            timeout: self.timeout.unwrap_or(timeout),
        })
    }
}

fn compile(text: &str, named: bool) -> Result<Regex, String> {
    let regex = Regex::new(text).map_err(|error| {
        // The library's text has several lines; the last one says what is wrong.
        let why = error.to_string();
        format!("not a regular expression: {}", why.lines().last().unwrap_or_default().trim())
    })?;
    match named {
        true if !regex.capture_names().flatten().any(|name| matches!(name, "name" | "identifier")) => {
            Err("it needs a group (?P<name>…) or (?P<identifier>…)".to_owned())
        }
        false if regex.captures_len() < 2 => Err("it has no group".to_owned()),
        _ => Ok(regex),
    }
}

fn check_variable(key: &str, name: &str) -> Result<(), String> {
    let good = !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if good { Ok(()) } else { Err(format!("{key} has \"{name}\", which is not the name of an environment variable")) }
}

/// One directory for each operating system user, that only this user can enter.
fn default_state() -> PathBuf {
    PathBuf::from(format!("/var/tmp/strata-{}", rustix::process::geteuid().as_raw()))
}

#[cfg(test)]
mod tests;
