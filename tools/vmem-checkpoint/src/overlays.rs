// SPDX-License-Identifier: GPL-2.0-or-later
//! The overlays that the disks of a restored guest get, by `qemu-img`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use vmem_cli::Signals;
use vmem_qemu::command as qemu_command;
use vmem_store::Manifest;

use crate::disks::Disk;
use crate::error::Error;

/// How long `qemu-img` may take: it writes some hundred KiB.
const LIMIT: Duration = Duration::from_secs(60);

const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Makes an overlay in `directory`, if there is one, for each disk of a checkpoint whose guest `command` takes. Returns also the command with
/// the overlays in it.
///
/// # Errors
///
/// A disk is not as it was at the instant, the command names one that the guest does not have, or those of [`Overlays::make`].
pub(crate) fn of(
    manifest: &Manifest,
    directory: Option<&Path>,
    command: &[String],
    signals: &Signals,
    note: &mut dyn FnMut(&str),
) -> Result<(Overlays, Vec<String>), Error> {
    let disks = match command.is_empty() {
        true => Vec::new(),
        false => Disk::all_of(manifest)?,
    };
    disks.iter().try_for_each(Disk::check)?;
    let overlays = match directory {
        Some(directory) => Overlays::make(&disks, directory, manifest.checkpoint.guest.as_str(), signals)?,
        None => {
            disks.iter().for_each(|disk| note(&disk.hint()));
            Overlays::default()
        }
    };
    let command = match directory.is_some() || command.iter().any(|word| word.contains("{disk:")) {
        true => qemu_command::fill_in_disks(command, overlays.files())?,
        false => command.to_vec(),
    };
    Ok((overlays, command))
}

/// Overlays that are removed again, unless a guest has them.
#[derive(Debug, Default)]
pub(crate) struct Overlays {
    /// The names of the disks, and the files.
    files: Vec<(String, PathBuf)>,
    is_kept: bool,
}

impl Overlays {
    /// Makes an overlay for each disk.
    ///
    /// # Errors
    ///
    /// `qemu-img` is not there, or fails; a signal.
    pub(crate) fn make(disks: &[Disk], directory: &Path, guest: &str, signals: &Signals) -> Result<Self, Error> {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let process = std::process::id();
        let mut made = Self::default();
        for (number, disk) in disks.iter().enumerate() {
            // Clones can be started at the same moment, each by a process of its own.
            let file = directory.join(format!("{guest}-restored-{time}-{process}-{number}.qcow2"));
            made.files.push((disk.name.clone(), file.clone()));
            let mut command = Command::new("qemu-img");
            command.args(["create", "-q", "-f", "qcow2", "-F", &disk.format, "-b"]);
            run(command.arg(&disk.file).arg(&file), signals)?;
        }
        Ok(made)
    }

    pub(crate) fn files(&self) -> &[(String, PathBuf)] {
        &self.files
    }

    /// A guest has them.
    pub(crate) fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for Overlays {
    fn drop(&mut self) {
        if !self.is_kept {
            self.files.iter().for_each(|(_, file)| drop(fs::remove_file(file)));
        }
    }
}

/// Runs `qemu-img`, whose messages go to standard error.
fn run(command: &mut Command, signals: &Signals) -> Result<(), Error> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map_err(vmem_cli::Error::call(
            "cannot start qemu-img, which makes overlays for the disks",
        ))?;
    let until = Instant::now() + LIMIT;
    loop {
        let ended = child.try_wait().map_err(vmem_cli::Error::call("cannot wait for qemu-img"))?;
        let why = match (ended, signals.check()) {
            (Some(status), _) if status.success() => return Ok(()),
            (Some(status), _) => return Err(Error::other(format!("qemu-img cannot make an overlay for a disk ({status})"))),
            (None, Err(stopped)) => Error::from(stopped),
            (None, Ok(())) if Instant::now() >= until => Error::other("qemu-img has not made an overlay for a disk within 60 s"),
            (None, Ok(())) => {
                thread::sleep(POLL_INTERVAL);
                continue;
            }
        };
        // It may have ended just now.
        let _ = child.kill();
        let _ = child.wait();
        return Err(why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_program_is_an_error_and_a_signal_ends_it() {
        let signals = Signals::default();
        run(&mut Command::new("true"), &signals).expect("a success");
        let error = run(&mut Command::new("false"), &signals).expect_err("a failure").to_string();
        assert!(error.contains("exit status: 1"), "{error}");
        signals.raise();
        let began = Instant::now();
        let stopped = run(Command::new("sleep").arg("100"), &signals).expect_err("a signal");
        assert!(stopped.is_signal() && began.elapsed() < Duration::from_secs(20), "{stopped}");
    }

    #[test]
    fn overlays_that_no_guest_has_are_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("overlay");
        for is_kept in [true, false] {
            fs::write(&file, b"").expect("a file");
            let overlays = Overlays {
                files: vec![("disk0".to_owned(), file.clone())],
                is_kept: false,
            };
            match is_kept {
                true => overlays.keep(),
                false => drop(overlays),
            }
            assert_eq!(file.exists(), is_kept);
        }
    }
}
