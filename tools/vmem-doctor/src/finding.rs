// SPDX-License-Identifier: GPL-2.0-or-later
//! What was found, in one line.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;
use serde_json::Value;

/// Whether vmem can be used with what was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum State {
    /// As it should be.
    #[serde(rename = "ok")]
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

/// What was looked at. The words stay the same from version to version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Subject {
    /// The running kernel.
    Kernel,
    /// What the module is built with.
    Headers,
    /// The module.
    Module,
    /// The signature of the module.
    Signature,
    /// `/dev/vmem/control`.
    Device,
    /// The file system of regions.
    Files,
    /// The directory of the records of moves.
    Records,
    /// The daemon that vmemctl starts.
    Vmemd,
    /// QEMU.
    Qemu,
    /// The files of `--tls`.
    Certificates,
}

impl Subject {
    /// The word for people and programs.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Headers => "headers",
            Self::Module => "module",
            Self::Signature => "signature",
            Self::Device => "device",
            Self::Files => "files",
            Self::Records => "records",
            Self::Vmemd => "vmemd",
            Self::Qemu => "qemu",
            Self::Certificates => "certificates",
        }
    }
}

impl Display for Subject {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// One thing that vmem needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename = "finding")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Finding {
    /// What was looked at.
    pub subject: Subject,
    /// Whether vmem can be used with it.
    pub state: State,
    /// What was found. For people.
    pub text: String,
    /// What to type to mend it: commands, as a shell takes them. Null if there is nothing to type.
    pub mend: Option<String>,
}

impl Finding {
    pub(crate) fn good(subject: Subject, text: impl Into<String>) -> Self {
        Self {
            subject,
            state: State::Good,
            text: text.into(),
            mend: None,
        }
    }

    pub(crate) fn note(subject: Subject, text: impl Into<String>) -> Self {
        Self {
            state: State::Note,
            ..Self::good(subject, text)
        }
    }

    pub(crate) fn missing(subject: Subject, text: impl Into<String>) -> Self {
        Self {
            state: State::Missing,
            ..Self::good(subject, text)
        }
    }

    /// With what to type: commands only, as a shell takes them.
    pub(crate) fn mend(self, command: impl Into<String>) -> Self {
        let command = command.into();
        #[cfg(test)]
        tests::is_for_a_shell(&command);
        Self {
            mend: Some(command),
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
        // Texts: serializing them does not fail.
        serde_json::to_value(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Each finding of each test is tested: the text is a list of commands, and has no words for people.
    pub(super) fn is_for_a_shell(commands: &str) {
        let output = Command::new("bash").args(["-n", "-c", commands]).output().expect("bash");
        assert!(
            output.status.success(),
            "{commands}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        for command in commands.split("; ") {
            let program = command.split(' ').next().unwrap_or_default();
            let is_known = [
                "apt",
                "chmod",
                "chown",
                "date",
                "dkms",
                "mkdir",
                "modprobe",
                "mokutil",
                "mount",
                "mv",
                "openssl",
                "rm",
                "sudo",
                "systemctl",
                "umount",
                "vmem-kernel-rust",
                "vmemctl",
            ]
            .contains(&program);
            assert!(is_known || program.ends_with("/scripts/sign-file"), "{commands}");
            assert!(!command.contains(','), "{commands}");
        }
    }

    #[test]
    #[should_panic = "and boot it"]
    fn words_for_people_are_no_commands() {
        is_for_a_shell("apt install linux-image-amd64, and boot it");
    }

    #[test]
    fn line_ends_with_what_to_type() {
        let finding = Finding::missing(Subject::Module, "not loaded").mend("modprobe vmem");
        assert_eq!(finding.line(), "missing  module        not loaded; type: modprobe vmem");
        assert_eq!(finding.json()["mend"], "modprobe vmem");
        assert_eq!(Finding::good(Subject::Kernel, "7.3").line(), "ok       kernel        7.3");
        assert!(Finding::good(Subject::Kernel, "7.3").json()["mend"].is_null());
    }
}
