// SPDX-License-Identifier: GPL-2.0
//! What was found, in one line.

use serde_json::{Value, json};

/// Whether vmem can be used with what was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// As it should be.
    Good,
    /// vmem can be used; something of it cannot, or will not for long.
    Note,
    /// vmem cannot be used.
    Missing,
}

impl State {
    /// The word for people and programs.
    pub fn word(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Note => "note",
            Self::Missing => "missing",
        }
    }
}

/// One thing that vmem needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at, in one word.
    pub subject: &'static str,
    /// Whether vmem can be used with it.
    pub state: State,
    /// What was found.
    pub text: String,
    /// What to type to mend it.
    pub mend: Option<String>,
}

impl Finding {
    pub(crate) fn good(subject: &'static str, text: impl Into<String>) -> Self {
        Self {
            subject,
            state: State::Good,
            text: text.into(),
            mend: None,
        }
    }

    pub(crate) fn note(subject: &'static str, text: impl Into<String>) -> Self {
        Self {
            state: State::Note,
            ..Self::good(subject, text)
        }
    }

    pub(crate) fn missing(subject: &'static str, text: impl Into<String>) -> Self {
        Self {
            state: State::Missing,
            ..Self::good(subject, text)
        }
    }

    /// With what to type.
    pub(crate) fn mend(self, command: impl Into<String>) -> Self {
        Self {
            mend: Some(command.into()),
            ..self
        }
    }

    /// A line for people.
    pub fn line(&self) -> String {
        let mend = self
            .mend
            .as_ref()
            .map_or(String::new(), |command| format!("; type: {command}"));
        format!("{:<7}  {:<12}  {}{mend}", self.state.word(), self.subject, self.text)
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        json!({
            "event": "finding",
            "subject": self.subject,
            "state": self.state.word(),
            "text": self.text,
            "mend": self.mend,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends_with_what_to_type() {
        let finding = Finding::missing("module", "not loaded").mend("modprobe vmem");
        assert_eq!(finding.line(), "missing  module        not loaded; type: modprobe vmem");
        assert_eq!(finding.json()["mend"], "modprobe vmem");
        assert_eq!(Finding::good("kernel", "7.3").line(), "ok       kernel        7.3");
        assert!(Finding::good("kernel", "7.3").json()["mend"].is_null());
    }
}
