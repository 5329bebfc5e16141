use super::*;

fn config(text: &str) -> ToolConfig {
    toml::from_str(text).unwrap_or_else(|error| panic!("{error}"))
}

fn wrong(text: &str) -> String {
    match toml::from_str::<ToolConfig>(text) {
        Ok(config) => config.resolve().map(drop).unwrap_err(),
        Err(error) => error.message().to_owned(),
    }
}

/// A tool of its own, with one more line.
fn own(line: &str) -> String {
    format!(
        "name = \"own\"\n{line}\n[backup]\ncommand = [\"cp\", \"/dev/stdin\", \"/b/{{name}}\"]\n[restore]\ncommand = [\"cat\", \"/b/{{name}}\"]\n"
    )
}

#[test]
fn every_preset_is_usable_as_it_is() {
    for (name, _) in PRESETS {
        let spec = config(&format!("preset = \"{name}\"\nrepository = \"/b\"")).resolve().unwrap();
        assert_eq!(spec.name, name);
        for operation in [Operation::Backup, Operation::Restore, Operation::List, Operation::Forget, Operation::Init] {
            assert!(spec.command(operation).is_some(), "{name} {operation}");
        }
        assert!(wrong(&format!("preset = \"{name}\"")).contains("tool.repository is missing"), "{name}");
    }
}

#[test]
fn what_the_file_says_wins_key_by_key() {
    let all = config(
        "preset = \"restic\"\nrepository = \"/b\"\nstreams = 7\n[env]\nRESTIC_CACHE_DIR = \"/c\"\n\
         [backup]\nwarnings = [3]\n[restore]\ncommand = [\"x\", \"{name}\"]\n",
    );
    let spec = all.resolve().unwrap();
    assert_eq!(spec.streams, 7);
    let backup = spec.command(Operation::Backup).unwrap();
    assert_eq!(backup.warnings, [3]);
    assert!(backup.identifier.is_some() && backup.words.len() > 3, "the rest is the preset's");
    assert_eq!(spec.command(Operation::Restore).unwrap().words.len(), 2);
    let value =
        |name: &str| spec.env.iter().find(|(other, _)| other == name).map(|(_, value)| value.fill(false, |_| "R"));
    assert_eq!(value("RESTIC_CACHE_DIR").as_deref(), Some("/c"));
    assert_eq!(value("RESTIC_REPOSITORY").as_deref(), Some("R"));
    // Another command does not inherit the pattern for the output of the preset's.
    let all = config("preset = \"restic\"\nrepository = \"/b\"\n[backup]\ncommand = [\"x\", \"{name}\"]\n");
    assert!(all.resolve().unwrap().command(Operation::Backup).unwrap().identifier.is_none());
}

#[test]
fn what_is_shown_can_be_read_again() {
    let merged = config(
        "preset = \"borg\"\nrepository = \"/b\"\ntimeout = \"2h\"\n[secrets]\nBORG_PASSPHRASE = { file = \"/p\" }",
    )
    .merged()
    .unwrap();
    let text = toml::to_string(&merged).unwrap();
    assert_eq!(config(&text), merged);
}

#[test]
fn wrong_tools_are_refused_and_say_why() {
    let cases = [
        ("preset = \"tar\"", "tool.preset is \"tar\""),
        ("name = \"x\"", "tool.backup.command is missing"),
        ("preset = \"restic\"\nrepositry = \"/b\"", "repositry"),
        ("preset = \"restic\"\nrepository = \"/b\"\n[backup]\ncomand = []", "comand"),
        ("preset = \"restic\"\nrepository = \"/b\"\nstate = \"here\"", "tool.state is \"here\""),
        (
            "preset = \"restic\"\nrepository = \"/b\"\n[env]\nRESTIC_PASSWORD = \"geheim\"",
            "tool.env.RESTIC_PASSWORD looks like a secret",
        ),
        ("preset = \"restic\"\nrepository = \"/b\"\n[env]\n\"A B\" = \"x\"", "\"A B\""),
        ("preset = \"restic\"\nrepository = \"/b\"\n[secrets]\nX = {}", "either file or env"),
        (
            "preset = \"restic\"\nrepository = \"/b\"\n[secrets]\nX = { file = \"/a\", env = \"B\" }",
            "either file or env",
        ),
        ("preset = \"restic\"\nrepository = \"/b\"\n[secrets]\nX = { file = \"a\" }", "absolute path"),
        ("preset = \"restic\"\nrepository = \"/b\"\n[secrets]\nX = \"geheim\"", "a secret is {"),
        (
            "preset = \"restic\"\nrepository = \"/b\"\n[list]\nobjects = \"(\"",
            "tool.list.objects: not a regular expression",
        ),
        ("preset = \"restic\"\nrepository = \"/b\"\n[list]\nobjects = \"(.)\"", "(?P<name>"),
        (
            "preset = \"restic\"\nrepository = \"/b\"\n[backup]\nidentifier = \"x\"",
            "tool.backup.identifier: it has no group",
        ),
        ("preset = \"restic\"\nrepository = \"/b\"\n[backup]\nwarnings = [0]", "tool.backup.warnings has 0"),
        ("preset = \"restic\"\nrepository = \"/b\"\n[backup]\ntimeout = \"0s\"", "above zero"),
        ("preset = \"restic\"\nrepository = \"/b\"\n[forget]\nidentifier = \"(x)\"", "only tool.backup has it"),
        ("preset = \"restic\"\nrepository = \"/b\"\n[forget]\npipe = \"fifo\"", "carries no data"),
        ("preset = \"command\"\nrepository = \"/b\"\n[backup]\nshell = false", "must be a list of words"),
        ("preset = \"command\"\nrepository = \"/b\"\n[restore]\nshell = true", "must be one text"),
    ];
    for (text, needle) in cases {
        let said = wrong(text);
        assert!(said.contains(needle), "{text}\nsays {said}");
        assert!(!said.contains("geheim"), "{said}");
    }
    let cases = [
        ("streams = 0", "tool.streams is 0"),
        ("compress_level = 30", "tool.compress_level is 30"),
        ("[verify]\ncommand = [\"x\", \"{name}\"]", "{name} is not known here"),
        ("[verify]\ncommand = []", "names no program"),
        ("[verify]\ncommand = [\"{repository}\"]\n", "program's name has a placeholder"),
        ("[forget]\ncommand = [\"x\"]", "cannot tell one object from another"),
    ];
    for (line, needle) in cases {
        let said = wrong(&own(line));
        assert!(said.contains(needle), "{line}\nsays {said}");
    }
    let fifo = own("").replace("[restore]", "pipe = \"fifo\"\n[restore]");
    assert!(wrong(&fifo).contains("does not have {pipe}"));
    assert!(wrong(&own("").replace("/dev/stdin", "{pipe}")).contains("{pipe} is not known here"));
    assert!(config(&own("")).resolve().is_ok());
}
