// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemctl version` and `vmemctl doctor`: what this machine has of vmem, and what it lacks.

use std::path::Path;

use serde::Serialize;
use vmem_cli::output;
use vmem_doctor::{Finding, Host, State, Versions, findings};
use vmem_migrate::report;

/// The exit code if the versions do not fit.
const EXIT_VERSIONS: u8 = 8;

/// The exit code if the machine lacks something without which vmem cannot be used, or something prevents a move.
pub(crate) const EXIT_UNUSABLE: u8 = 9;

/// The last line of `vmemctl doctor`.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) enum DoctorLine {
    /// The last line.
    Doctor {
        /// Whether vmem can be used on this machine.
        usable: bool,
    },
}

/// Prints the versions. Returns the exit code.
pub(crate) fn version(json: bool) -> u8 {
    let versions = Versions::of(&Host::this());
    if json {
        output::json(&versions.json().to_string());
    } else {
        versions.lines().iter().for_each(|line| output::out(line));
    }
    match versions.fit() {
        Some(false) => EXIT_VERSIONS,
        Some(true) | None => 0,
    }
}

/// Prints what was found. Returns the exit code.
pub(crate) fn doctor(json: bool, tls: Option<&Path>) -> u8 {
    let findings = findings(&Host::this(), tls);
    if json {
        findings.iter().for_each(|finding| output::json(&finding.json().to_string()));
        report::print(&DoctorLine::Doctor {
            usable: is_usable(&findings),
        });
    } else {
        findings.iter().for_each(|finding| output::out(&finding.line()));
    }
    if is_usable(&findings) { 0 } else { EXIT_UNUSABLE }
}

fn is_usable(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.state != State::Missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_is_usable_with_notes_and_without_what_is_missing() {
        let finding = |state| Finding {
            subject: vmem_doctor::Subject::Kernel,
            state,
            text: String::new(),
            mend: None,
        };
        assert!(is_usable(&[finding(State::Good), finding(State::Note)]));
        assert!(!is_usable(&[finding(State::Good), finding(State::Missing)]));
    }
}
