// SPDX-License-Identifier: GPL-2.0-or-later
//! Starts a guest on the regions of a base: it shares their pages, and has those that it writes for itself.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use vmem::FilesOption;
use vmem_cli::Signals;
use vmem_qemu::command::Sharing;
use vmem_qemu::{Process, command};
use vmem_store::UserKey;

use crate::base_record::{BaseName, find};
use crate::device_state::device_state;
use crate::error::Error;
use crate::freeze::FROZEN;
use crate::launch::{Launch, NO_GENERATION_ID, open_files, ran};
use crate::overlays;
use crate::restore::note_frozen;
use crate::wakeup::{self, Wakeup};

/// How often signals and processes are looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Which base, and how the clone is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// The base.
    pub base: BaseName,
    /// Opens the store if it is encrypted.
    pub key: Option<UserKey>,
    /// The directory of records, and of QEMU's log.
    pub state: PathBuf,
    /// The socket of the QEMU that `command` starts.
    pub qmp: PathBuf,
    /// The command that starts QEMU, with placeholders.
    pub command: Vec<String>,
    /// The guest stays paused, also if it ran.
    pub paused: bool,
    /// The socket of the guest agent of the QEMU that `command` starts, and how long an answer may take.
    pub agent: Option<(PathBuf, Duration)>,
    /// Where the disks get new overlays, for `{disk:NAME}` in the command.
    pub disks: Option<PathBuf>,
    /// Where QEMU finds the regions.
    pub files: FilesOption,
}

/// A clone that was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// Whether the guest runs.
    pub runs: bool,
    /// The process of its QEMU.
    pub process: i32,
    /// Since the command began.
    pub after: Duration,
}

/// What happens with a clone.
#[derive(Debug)]
pub enum Step<'a> {
    /// It was started.
    Started(Started),
    /// Something that is worth knowing.
    Note(&'a str),
}

/// Starts a clone, and returns when its guest runs; with an agent, when that has answered or has not.
///
/// # Errors
///
/// There is no such base, or it ends meanwhile; QEMU could write to the base; those of a restore. Nothing is left of the clone, unless the
/// guest runs already, and only its agent has not answered.
pub fn clone(options: &Options, signals: &Signals, report: &mut dyn FnMut(Step<'_>)) -> Result<(), Error> {
    let began = Instant::now();
    command::check(&options.command, Sharing::Private)?;
    let base = find(&options.state, &options.base)?;
    let store = base.address()?.store.open(options.key.clone())?;
    if store.config().id.to_string() != base.store {
        return Err(Error::other(format!(
            "base {} is of another store than the one that is there now",
            options.base
        )));
    }
    let image = store.image(&base.checkpoint)?;
    let manifest = image.manifest();
    let runs = !options.paused && ran(manifest);
    let note = &mut |text: &str| report(Step::Note(text));
    let (overlays, command) = overlays::of(manifest, options.disks.as_deref(), &options.command, signals, note)?;
    let regions: Vec<_> = base
        .memories
        .iter()
        .map(|memory| (memory.memory.clone(), memory.region.clone()))
        .collect();
    let files = open_files(&options.files, note);
    let launch = Launch {
        command: &command,
        qmp: &options.qmp,
        logs: &options.state,
        name: format!("clone-{}-{}", options.base, std::process::id()),
        regions: &regions,
        files: &files,
        sharing: Sharing::Private,
        state: device_state(&image)?,
        runs,
    };
    let is_there = || find(&options.state, &options.base).is_ok_and(|found| found == base);
    let (qemu, has_id) = launch.start(signals, &is_there)?;
    // If the base has ended before QEMU mapped it, nobody brings its pages.
    if !is_there() {
        qemu.signal(rustix::process::Signal::KILL);
        return Err(Error::other(format!(
            "base {} has ended while the clone was started",
            options.base
        )));
    }
    overlays.keep();
    if !has_id {
        note(NO_GENERATION_ID);
    }
    report(Step::Started(Started {
        runs,
        process: qemu.number(),
        after: began.elapsed(),
    }));
    let note = &mut |text: &str| report(Step::Note(text));
    let frozen = manifest.labels.get(FROZEN).map(String::as_str);
    match &options.agent {
        None => note_frozen(frozen, note),
        Some(_) if !runs => note(wakeup::NOT_ASKED),
        Some((socket, limit)) => {
            let wakeup = Wakeup::start(socket, *limit, frozen.is_some())?;
            wait(&wakeup, &qemu, signals, note)?;
        }
    }
    Ok(())
}

/// Waits for what comes of the agent.
fn wait(wakeup: &Wakeup, qemu: &Process, signals: &Signals, note: &mut dyn FnMut(&str)) -> Result<(), Error> {
    loop {
        if let Some(result) = wakeup.result() {
            return wakeup::told(result, note);
        }
        signals.check()?;
        if qemu.wait(Duration::ZERO) {
            return Err(Error::other("the clone's QEMU has ended"));
        }
        thread::sleep(POLL_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clone_of_no_base_starts_nothing() {
        let state = tempfile::tempdir().expect("a directory");
        let started = state.path().join("started");
        let options = Options {
            base: "web".parse().expect("a name"),
            key: None,
            state: state.path().to_owned(),
            qmp: state.path().join("qmp"),
            command: ["touch".to_owned(), started.display().to_string()].to_vec(),
            paused: false,
            agent: None,
            disks: None,
            files: FilesOption::Nowhere,
        };
        let error = clone(&options, &Signals::default(), &mut |_| ()).expect_err("there is no base");
        assert!(error.to_string().contains("there is no base web"), "{error}");
        assert!(!started.exists());
    }
}
