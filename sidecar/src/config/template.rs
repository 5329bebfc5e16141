//! Texts with named placeholders: `{name}` stands for a value, `{{` and `}}` for the braces themselves.

/// A part of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// Stands as it is.
    Text(String),
    /// Stands for a value.
    Value(String),
}

/// A parsed text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Word>);

impl Template {
    /// Parses a text. Only placeholders of `allowed` may be in it.
    pub fn parse(text: &str, allowed: &[&str]) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '{' | '}' if chars.peek() == Some(&c) => {
                    chars.next();
                    plain.push(c);
                }
                '}' => return Err("a \"}\" stands alone; write \"}}\" for a brace".to_owned()),
                '{' => {
                    let mut name = String::new();
                    loop {
                        match chars.next() {
                            Some('}') => break,
                            Some(c) if c != '{' => name.push(c),
                            _ => return Err("a \"{\" is not closed; write \"{{\" for a brace".to_owned()),
                        }
                    }
                    if !allowed.contains(&name.as_str()) {
                        let allowed: Vec<String> = allowed.iter().map(|name| format!("{{{name}}}")).collect();
                        return Err(format!(
                            "the placeholder {{{name}}} is not known here; there are {} (write \"{{{{\" for a brace)",
                            allowed.join(" ")
                        ));
                    }
                    if !plain.is_empty() {
                        parts.push(Word::Text(std::mem::take(&mut plain)));
                    }
                    parts.push(Word::Value(name));
                }
                c => plain.push(c),
            }
        }
        if !plain.is_empty() {
            parts.push(Word::Text(plain));
        }
        Ok(Self(parts))
    }

    /// Its parts.
    pub fn parts(&self) -> &[Word] {
        &self.0
    }

    /// True when the placeholder is in it.
    pub fn uses(&self, name: &str) -> bool {
        self.0.iter().any(|part| matches!(part, Word::Value(value) if value == name))
    }

    /// The text with its values. `shell` quotes each value as one word for `sh`.
    pub fn fill<'a>(&self, shell: bool, value: impl Fn(&str) -> &'a str) -> String {
        self.0
            .iter()
            .map(|part| match part {
                Word::Text(text) => text.clone(),
                Word::Value(name) if shell => shell_word(value(name)),
                Word::Value(name) => value(name).to_owned(),
            })
            .collect()
    }
}

/// A value as (a part of) one word for `sh`. What needs no quotes gets none, so that names stay readable in a process list.
fn shell_word(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-+:@%,=".contains(&b);
    if !text.is_empty() && text.bytes().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(text: &str, shell: bool) -> String {
        Template::parse(text, &["a", "b"])
            .unwrap()
            .fill(shell, |name| if name == "a" { "it's $(x)" } else { "b/1.tar" })
    }

    #[test]
    fn values_take_their_places_and_double_braces_are_braces() {
        assert_eq!(fill("x{a}{b}y", false), "xit's $(x)b/1.tary");
        assert_eq!(fill("{{a}} {b}", false), "{a} b/1.tar");
        assert_eq!(fill("", false), "");
    }

    #[test]
    fn a_shell_gets_each_value_as_one_word() {
        assert_eq!(fill("cat > {a}/{b}", true), "cat > 'it'\\''s $(x)'/b/1.tar");
        let said = std::process::Command::new("sh").args(["-c", &fill("printf %s {a}", true)]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&said.stdout), "it's $(x)");
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, needle) in [("{c}", "{c}"), ("{a", "not closed"), ("a}", "stands alone"), ("{a{b}}", "not closed")] {
            let why = Template::parse(text, &["a", "b"]).unwrap_err();
            assert!(why.contains(needle), "{text}: {why}");
        }
    }
}
