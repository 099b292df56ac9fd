// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemctl check`: what would prevent a guest from being moved, as far as that can be known without an offer. Nothing of the guest is changed.

use std::path::Path;

use serde::Serialize;
use vmem_cli::{Signals, bytes, chain, output, with_port};
use vmem_qemu::{BackendFile, COMMAND_LIMIT, GuestMemory, MemoryBackend, Qmp, guest, obstacles};

use crate::Phase;
use crate::dirty_rate;
use crate::error::{Cause, Error};
use crate::key::Key;
use crate::message::Purpose;
use crate::migrate::{movable_status, session};
use crate::network::Security;
use crate::options::{Check, Common, DEFAULT_PORT};
use crate::record::{Outgoing, StateDir};
use crate::report::print;

/// What a finding means for a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
enum Severity {
    /// As it should be.
    #[serde(rename = "ok")]
    Good,
    /// The guest can be moved, though not in every way.
    Note,
    /// The guest cannot be moved.
    Obstacle,
}

impl Severity {
    fn word(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Note => "note",
            Self::Obstacle => "obstacle",
        }
    }
}

/// What was looked at. The words stay the same from version to version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
enum Subject {
    /// The guest's QEMU, and its QMP socket.
    Qemu,
    /// The guest's state.
    Status,
    /// What QEMU says against a migration.
    Migration,
    /// The records of moves on this host.
    Record,
    /// The guest's memory backends.
    Memory,
    /// Whether the memory can be sent in rounds.
    Rounds,
    /// The files of `--tls`.
    Certificate,
    /// The vmemctl on the other host.
    Destination,
}

impl Subject {
    fn word(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Status => "status",
            Self::Migration => "migration",
            Self::Record => "record",
            Self::Memory => "memory",
            Self::Rounds => "rounds",
            Self::Certificate => "certificate",
            Self::Destination => "destination",
        }
    }
}

/// A line of `vmemctl check`.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum CheckLine<'a> {
    /// One thing that was looked at.
    Finding(&'a Finding),
    /// The last line.
    Check {
        /// Whether the guest can be moved, as far as this host can tell.
        movable: bool,
    },
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Finding {
    /// What was looked at.
    subject: Subject,
    /// What it means for a move.
    #[serde(rename = "state")]
    severity: Severity,
    /// What was found, for people.
    text: String,
}

/// What was found so far.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, subject: Subject, severity: Severity, text: impl Into<String>) {
        let text = text.into();
        self.0.push(Finding { subject, severity, text });
    }

    fn good(&mut self, subject: Subject, text: impl Into<String>) {
        self.add(subject, Severity::Good, text);
    }

    fn obstacle(&mut self, subject: Subject, text: impl Into<String>) {
        self.add(subject, Severity::Obstacle, text);
    }

    /// The value, or an obstacle.
    fn unless_failed<T, E: Into<Cause>>(&mut self, subject: Subject, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.obstacle(subject, chain(&error.into()))).ok()
    }

    fn can_be_moved(&self) -> bool {
        self.0.iter().all(|finding| finding.severity != Severity::Obstacle)
    }
}

/// Prints what was found. Returns whether the guest can be moved, as far as this host can tell.
pub fn run(cli: &Common, args: &Check) -> Result<bool, Error> {
    let signals = Signals::catch().map_err(Cause::call("cannot catch signals"))?;
    let (state, args) = (cli.state.clone(), args.clone());
    let security = Security::new(cli);
    // QEMU and the network may take long to answer.
    let work = move || {
        let mut findings = Findings::default();
        if let Some(mut qmp) = findings.unless_failed(Subject::Qemu, Qmp::connect(&args.qmp, COMMAND_LIMIT)) {
            check_guest(&mut findings, &mut qmp, &state);
        }
        let security = findings.unless_failed(Subject::Certificate, security);
        if let Some((security, to)) = security.zip(args.to.as_deref()) {
            check_destination(&mut findings, &security, &with_port(to, DEFAULT_PORT));
        }
        findings
    };
    let findings = signals.unless(work).map_err(Cause::from)?;
    show(&findings, cli.json);
    Ok(findings.can_be_moved())
}

fn show(findings: &Findings, in_json: bool) {
    for finding in &findings.0 {
        if in_json {
            print(&CheckLine::Finding(finding));
        } else {
            let Finding { subject, severity, text } = finding;
            let (word, subject) = (severity.word(), subject.word());
            output::out(&format!("{word:<8} {subject:<11} {text}"));
        }
    }
    if in_json {
        print(&CheckLine::Check {
            movable: findings.can_be_moved(),
        });
    }
}

fn check_guest(findings: &mut Findings, qmp: &mut Qmp, state: &Path) {
    let name = findings.unless_failed(Subject::Qemu, guest::name(qmp));
    if let Some(status) = findings.unless_failed(Subject::Status, movable_status(qmp)) {
        findings.good(Subject::Status, status);
    }
    if let Some(found) = findings.unless_failed(Subject::Migration, obstacles::all(qmp)) {
        found.into_iter().for_each(|text| findings.obstacle(Subject::Migration, text));
    }
    if let (Some(name), Some(key)) = (name, findings.unless_failed(Subject::Qemu, Key::of_guest(qmp))) {
        check_record(findings, state, &name, &key);
    }
    if let Some(memory) = findings.unless_failed(Subject::Memory, guest::memory_backends(qmp)) {
        check_memory(findings, qmp, &memory);
    }
}

/// A move that an earlier vmemctl has begun, or another one is at.
fn check_record(findings: &mut Findings, state: &Path, name: &str, key: &Key) {
    findings.unless_failed(Subject::Record, StateDir::check_earlier(state, "out", name));
    let directory = StateDir::path_of(state, "out", key);
    match StateDir::peek::<Outgoing>(&directory) {
        Ok(Some(record)) if record.phase != Phase::Prepared => findings.obstacle(
            Subject::Record,
            format!(
                "the guest is on its way to {} already; 'vmemctl recover' continues that move",
                record.to
            ),
        ),
        Ok(Some(record)) if StateDir::is_held(&directory) => {
            findings.obstacle(Subject::Record, format!("a vmemctl is moving the guest to {}", record.to));
        }
        Ok(_) => {}
        Err(error) => findings.obstacle(Subject::Record, chain(&error)),
    }
}

fn check_memory(findings: &mut Findings, qmp: &mut Qmp, memory: &[MemoryBackend]) {
    let Some(process) = findings.unless_failed(Subject::Memory, guest::process(qmp)) else {
        return;
    };
    for backend in memory {
        let found = BackendFile::find(&process, &backend.path);
        if findings.unless_failed(Subject::Memory, found).is_some() {
            let text = format!("{}: {} in {}", backend.id, bytes(backend.bytes), backend.path.display());
            findings.good(Subject::Memory, text);
        }
    }
    match GuestMemory::of(qmp)
        .map_err(Cause::from)
        .and_then(|guest| dirty_rate::adopt(&guest).map(drop))
    {
        Ok(()) => findings.good(Subject::Rounds, "the memory can be sent in rounds while the guest runs"),
        Err(cause) => findings.add(
            Subject::Rounds,
            Severity::Note,
            format!("no rounds, so that all memory follows after the guest: {}", chain(&cause)),
        ),
    }
}

/// Whether the vmemctl there would listen to an offer.
fn check_destination(findings: &mut Findings, security: &Security, to: &str) {
    let reached = session().and_then(|session| security.connect(to, &session, Purpose::Migrate));
    if findings.unless_failed(Subject::Destination, reached).is_some() {
        findings.good(Subject::Destination, format!("{to} listens for a guest"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_obstacle_is_enough_and_a_note_is_none() {
        let mut findings = Findings::default();
        findings.good(Subject::Status, "running");
        findings.add(Subject::Rounds, Severity::Note, "no module");
        assert!(findings.can_be_moved());
        let failed: Result<(), Cause> = Err(Cause::other("no route"));
        assert_eq!(findings.unless_failed(Subject::Destination, failed), None);
        assert!(!findings.can_be_moved());
        assert_eq!(findings.0.last().map(|last| last.text.as_str()), Some("no route"));
    }
}
