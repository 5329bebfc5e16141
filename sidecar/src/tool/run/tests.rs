use super::*;
use crate::config::tool::ToolConfig;
use std::io::Write;

/// A tool whose commands are these, with a directory of its own.
fn spec(dir: &Path, text: &str) -> ToolSpec {
    let text = format!("name = \"own\"\nrepository = \"{0}\"\nstate = \"{0}/state\"\n{text}\n", dir.display());
    toml::from_str::<ToolConfig>(&text).unwrap_or_else(|error| panic!("{error}")).resolve().unwrap()
}

fn start(spec: &ToolSpec, operation: Operation) -> Result<Process> {
    Process::start(spec, spec.command(operation).unwrap(), "a test", &|name| match name {
        "name" => "an+object.tar",
        "identifier" => "id1",
        _ => "x",
    })
}

/// The two commands that carry data, as shell scripts.
fn scripts(backup: &str, restore: &str) -> String {
    format!(
        "[backup]\nshell = true\ncommand = '''{backup} # {{name}}'''\n[restore]\nshell = true\ncommand = '''{restore} # {{name}}'''\n"
    )
}

fn send(spec: &ToolSpec, bytes: &[u8]) -> Result<Outcome> {
    let mut process = start(spec, Operation::Backup)?;
    process.write(bytes)?;
    process.finish()
}

fn receive(spec: &ToolSpec) -> Result<Vec<u8>> {
    let mut process = start(spec, Operation::Restore)?;
    let (mut all, mut buffer) = (Vec::new(), vec![0; 100_000]);
    loop {
        match process.read(&mut buffer)? {
            0 => break,
            got => all.extend_from_slice(&buffer[..got]),
        }
    }
    process.finish()?;
    Ok(all)
}

fn content() -> Vec<u8> {
    (0..3_000_000u32).map(|n| (n / 3) as u8).collect()
}

/// The processes whose command line has this in it.
fn alive(mark: &str) -> Vec<String> {
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).into_owned())
        .filter(|line| line.contains(mark))
        .collect()
}

#[test]
fn data_goes_in_and_comes_back_through_every_kind_of_pipe() {
    let dir = tempfile::tempdir().unwrap();
    let vectors = "[backup]\ncommand = [\"tee\", \"{repository}/{name}\"]\n[restore]\ncommand = [\"cat\", \"{repository}/{name}\"]\n";
    let fifos = "[backup]\npipe = \"fifo\"\ncommand = [\"cp\", \"{pipe}\", \"{repository}/{name}\"]\n\
                 [restore]\npipe = \"fifo\"\ncommand = [\"cp\", \"{repository}/{name}\", \"{pipe}\"]\n";
    let shell = scripts("cat > {repository}/{name};", "cat {repository}/{name};");
    for text in [vectors, fifos, &shell] {
        for content in [content(), Vec::new(), b"short".to_vec()] {
            let spec = spec(dir.path(), text);
            assert_eq!(send(&spec, &content).unwrap().exit_code, 0, "{text}");
            assert_eq!(std::fs::read(dir.path().join("an+object.tar")).unwrap(), content, "{text}");
            assert_eq!(receive(&spec).unwrap(), content, "{text}");
        }
    }
    let left = std::fs::read_dir(dir.path().join("state")).unwrap().count();
    assert_eq!(left, 0, "no named pipe stays");
}

#[test]
fn arguments_reach_the_tool_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let text = "[backup]\ncommand = [\"sh\", \"-c\", \"printf '%s|' \\\"$@\\\"; cat > /dev/null\", \"sh\", \"a b\", \"$HOME;`x`\", \"*\", \"{name}\"]\n\
                identifier = '(.*)'\n[restore]\ncommand = [\"cat\", \"{name}\"]\n";
    let outcome = send(&spec(dir.path(), text), b"x").unwrap();
    assert_eq!(outcome.identifier.as_deref(), Some("a b|$HOME;`x`|*|an+object.tar|"));
}

#[test]
fn the_result_of_a_run_is_what_the_tool_said() {
    let dir = tempfile::tempdir().unwrap();
    let text = scripts("cat > /dev/null; echo stored 77; echo snapshot abc saved >&2; exit 3;", "true;").replace(
        "[restore]",
        "warnings = [3]\nidentifier = 'snapshot ([a-z]+)'\nstored_bytes = 'stored ([0-9]+)'\n[restore]",
    );
    let outcome = send(&spec(dir.path(), &text), &content()).unwrap();
    assert_eq!((outcome.exit_code, outcome.identifier.as_deref(), outcome.stored_bytes), (3, Some("abc"), Some(77)));
    assert_eq!(outcome.messages, ["stored 77", "snapshot abc saved"]);
    let error = send(&spec(dir.path(), &text.replace("warnings = [3]", "")), &content()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Tool);
    assert!(error.message.contains("exit code 3") && error.detail.unwrap().contains("snapshot abc saved"));
}

#[test]
fn a_tool_that_stops_reading_is_a_failure_that_says_why() {
    let dir = tempfile::tempdir().unwrap();
    for (script, needle) in [
        ("head -c 100 > /dev/null; echo no more >&2; exit 9;", "exit code 9"),
        ("head -c 100 > /dev/null;", "before"),
        ("head -c 100 > /dev/null; kill -9 $$;", "signal 9"),
        ("exec 0<&-; sleep 0.2; exit 4;", "exit code 4"),
    ] {
        let error = send(&spec(dir.path(), &scripts(script, "true;")), &content()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Tool);
        assert!(error.message.contains(needle), "{script}: {error}");
    }
    let error =
        send(&spec(dir.path(), &scripts("echo 'write: No space left on device' >&2; exit 1;", "true;")), &content());
    assert_eq!(error.unwrap_err().kind, ErrorKind::DiskFull);
}

#[test]
fn a_tool_that_hangs_is_ended_with_its_group() {
    let dir = tempfile::tempdir().unwrap();
    let mark = format!("31{}", std::process::id());
    for (script, limits) in [
        (format!("sleep {mark} & sleep {mark};"), "timeout = \"300ms\"\n"),
        (format!("sleep {mark} & sleep {mark};"), "stall = \"300ms\"\n"),
        (format!("cat > /dev/null; sleep {mark};"), "timeout = \"300ms\"\n"),
        (format!("trap '' TERM; sleep {mark}; sleep {mark};"), "timeout = \"300ms\"\n"),
    ] {
        let spec = spec(dir.path(), &format!("{limits}{}", scripts(&script, "true;")));
        let error = send(&spec, &content()).unwrap_err();
        assert!(error.message.contains("300ms"), "{script}: {error}");
        assert_eq!(alive(&mark), Vec::<String>::new(), "{script}");
    }
    // One that never opens its named pipe.
    let fifo = format!(
        "timeout = \"300ms\"\n[backup]\npipe = \"fifo\"\nshell = true\ncommand = \"sleep {mark} # {{pipe}} {{name}}\"\n\
         [restore]\npipe = \"fifo\"\nshell = true\ncommand = \"sleep {mark} # {{pipe}} {{name}}\"\n"
    );
    let spec = spec(dir.path(), &fifo);
    assert!(send(&spec, b"x").unwrap_err().message.contains("300ms"));
    assert!(receive(&spec).unwrap_err().message.contains("300ms"));
    assert_eq!(alive(&mark), Vec::<String>::new());
}

#[test]
fn a_run_that_is_dropped_ends_the_tool_before_it_sees_the_end_of_its_input() {
    let dir = tempfile::tempdir().unwrap();
    let done = dir.path().join("done");
    let script = format!("cat > /dev/null; touch {};", done.display());
    let mut process = start(&spec(dir.path(), &scripts(&script, "true;")), Operation::Backup).unwrap();
    process.write(&content()).unwrap();
    drop(process);
    std::thread::sleep(Duration::from_millis(100));
    assert!(!done.exists());
}

#[test]
fn what_a_tool_leaves_in_its_group_is_killed_and_its_output_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let mark = format!("32{}", std::process::id());
    let began = Instant::now();
    send(&spec(dir.path(), &scripts(&format!("cat > /dev/null; sleep {mark} &"), "true;")), b"x").unwrap();
    assert_eq!(alive(&mark), Vec::<String>::new());
    // One that left the group, and holds the output.
    send(&spec(dir.path(), &scripts("cat > /dev/null; setsid sleep 20 &", "true;")), b"x").unwrap();
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn huge_output_takes_no_memory_and_no_time() {
    let dir = tempfile::tempdir().unwrap();
    let script = "head -c 300000000 /dev/zero | tr '\\0' x >&2 & cat > /dev/null; wait; yes line | head -n 1000000;";
    let outcome = send(&spec(dir.path(), &scripts(script, "true;")), &content()).unwrap();
    assert!(outcome.messages.iter().map(String::len).sum::<usize>() < 20_000);
    let resident = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = resident.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(pages * 4096 < 250 << 20, "{resident}");
}

#[test]
fn secrets_come_from_files_and_reach_only_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    std::fs::File::create(&file).unwrap().write_all(b"geheim-17\nnot this\n").unwrap();
    let secret = format!("[secrets]\nTHE_SECRET = {{ file = \"{}\" }}\n", file.display());
    let script = "cat > /dev/null; tr '\\0' ' ' < /proc/$$/cmdline; echo; test \"$THE_SECRET\" = geheim-17 || exit 7; echo it is $THE_SECRET >&2;";
    let outcome = send(&spec(dir.path(), &format!("{secret}{}", scripts(script, "true;"))), b"x").unwrap();
    let said = outcome.messages.join("\n");
    assert!(said.contains("it is ***") && said.contains("test") && !said.contains("geheim-17 saved"), "{said}");
    let failing = scripts("echo bad password geheim-17 >&2; exit 1;", "true;");
    let error = send(&spec(dir.path(), &format!("{secret}{failing}")), b"x").unwrap_err();
    assert!(
        !error.full_text().contains("geheim") && error.full_text().contains("bad password ***"),
        "{}",
        error.full_text()
    );
    std::fs::write(&file, "").unwrap();
    let error = send(&spec(dir.path(), &format!("{secret}{failing}")), b"x").unwrap_err();
    assert_eq!(error.kind, ErrorKind::Config);
    assert!(error.message.contains("THE_SECRET"), "{error}");
}

#[test]
fn the_environment_of_this_program_does_not_reach_the_tool() {
    let dir = tempfile::tempdir().unwrap();
    let text = format!("[env]\nMINE = \"{{repository}}/x\"\n{}", scripts("cat > /dev/null; env;", "true;"));
    let outcome = send(&spec(dir.path(), &text), b"x").unwrap();
    let said = outcome.messages.join("\n");
    assert!(said.contains(&format!("MINE={}/x", dir.path().display())), "{said}");
    assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some() && !said.contains("CARGO_MANIFEST_DIR"), "{said}");
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let text = "[backup]\ncommand = [\"no-such-program\", \"{name}\"]\n[restore]\ncommand = [\"cat\", \"{name}\"]\n";
    let error = send(&spec(dir.path(), text), b"x").unwrap_err();
    assert_eq!(error.kind, ErrorKind::Tool);
    assert!(error.message.contains("no-such-program") && error.hint().unwrap().contains("Install it"), "{error}");
    let error = send(&spec(dir.path(), &scripts("no-such-program;", "true;")), &content()).unwrap_err();
    assert!(error.hint().unwrap().contains("installed"), "{}", error.full_text());
}

#[test]
fn a_directory_that_others_can_enter_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    std::fs::create_dir(&state).unwrap();
    std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o755)).unwrap();
    let error = send(&spec(dir.path(), &scripts("cat > /dev/null;", "true;")), b"x").unwrap_err();
    assert_eq!(error.kind, ErrorKind::Forbidden);
}
