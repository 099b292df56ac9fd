// SPDX-License-Identifier: GPL-2.0-or-later
//! A page of the documentation that is typed: its commands, who types each, and what each prints.

use anyhow::{Context, Result, ensure};

/// How a block of commands begins.
const BLOCK: &str = ".. code-block:: console";
/// Stands for any text in a line that is printed.
const ANY: &str = "[...]";

/// A command of the page.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Typed {
    /// Whose prompt is in front of it.
    pub(crate) prompt: String,
    /// The command; of several lines if they end with a backslash.
    pub(crate) command: String,
    /// Lines that it prints, among others, in this order.
    pub(crate) printed: Vec<String>,
}

/// The commands of a page, in their order.
pub(crate) fn commands(page: &str) -> Result<Vec<Typed>> {
    let mut found: Vec<Typed> = Vec::new();
    let mut lines = page.lines().peekable();
    while let Some(line) = lines.next() {
        if line != BLOCK {
            continue;
        }
        while let Some(line) = lines.next_if(|line| line.is_empty() || line.starts_with("   ")) {
            let line = line.strip_prefix("   ").unwrap_or_default();
            let unfinished = found.last_mut().filter(|typed| typed.command.ends_with('\\'));
            if let Some(typed) = unfinished {
                typed.command += &format!("\n{line}");
            } else if let Some((prompt, command)) = prompted(line) {
                found.push(Typed {
                    prompt: prompt.to_owned(),
                    command: command.to_owned(),
                    printed: Vec::new(),
                });
            } else if !line.is_empty() {
                let typed = found.last_mut();
                let typed = typed.with_context(|| format!("{line:?} is printed before there is a command"))?;
                typed.printed.push(line.to_owned());
            }
        }
    }
    ensure!(!found.is_empty(), "the page has no command");
    Ok(found)
}

/// A line with a prompt: a word that ends with `#` or `$`.
fn prompted(line: &str) -> Option<(&str, &str)> {
    let (prompt, command) = line.split_once(' ')?;
    let name = prompt.strip_suffix(['#', '$'])?;
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_name.then_some((name, command))
}

/// The first of these lines that has not been printed, after those before it.
pub(crate) fn missing<'a>(wanted: &'a [String], printed: &str) -> Option<&'a str> {
    let mut lines = printed.lines();
    let mut is_there = |wanted: &str| lines.any(|line| matches(wanted, line));
    wanted.iter().map(String::as_str).find(|wanted| !is_there(wanted))
}

/// Whether the line is this pattern. Any number of blanks is one.
fn matches(pattern: &str, line: &str) -> bool {
    let one_blank = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (pattern, line) = (one_blank(pattern), one_blank(line));
    let parts: Vec<&str> = pattern.split(ANY).collect();
    let [first, others @ .., last] = parts.as_slice() else {
        return line == pattern;
    };
    let mut rest = line.strip_prefix(first).and_then(|rest| rest.strip_suffix(last));
    for part in others {
        rest = rest.and_then(|rest| rest.split_once(part)).map(|(_, after)| after);
    }
    rest.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(prompt: &str, command: &str, printed: &[&str]) -> Typed {
        Typed {
            prompt: prompt.into(),
            command: command.into(),
            printed: printed.iter().map(|line| (*line).into()).collect(),
        }
    }

    #[test]
    fn commands_are_those_of_the_blocks() {
        let page = "Text\n\n.. code-block:: console\n\n   host0# one \\\n       two\n   said # twice\n\n   host1# three &\n\nhost0# none\n\n::\n\n   host0# neither\n";
        let expected = [
            typed("host0", "one \\\n    two", &["said # twice"]),
            typed("host1", "three &", &[]),
        ];
        assert_eq!(commands(page).expect("commands"), expected);
        assert!(commands("nothing").is_err());
        assert!(commands(".. code-block:: console\n\n   said\n").is_err());
    }

    #[test]
    fn lines_are_printed_in_their_order() {
        let wanted = ["a [...] c".to_owned(), "stop [...] ms".to_owned(), "d".to_owned()];
        assert_eq!(missing(&wanted, "x\na b c\nstop       23 ms\nd\n"), None);
        assert_eq!(missing(&wanted, "x\na b c\nstop       23 s\nd\n"), Some("stop [...] ms"));
        assert_eq!(missing(&wanted, "d\na b c\nstop 1 ms\n"), Some("d"));
        assert_eq!(missing(&wanted, ""), Some("a [...] c"));
    }

    #[test]
    fn pattern_holds_for_a_whole_line() {
        assert!(matches("[...] listening [...]", "vmemctl: listening on 1"));
        assert!(matches("valid until [...]", "valid until 2030-01-01"));
        assert!(!matches("valid until", "valid until 2030-01-01"));
        assert!(!matches("until [...]", "valid until 2030-01-01"));
        assert!(!matches("a [...] c", "a b c d"));
    }
}
