// SPDX-License-Identifier: GPL-2.0-or-later
//! A QEMU that takes a guest: its start, its log, and how it ended.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use vmem_process::{log_tail, printable, scope};

use crate::connection::{COMMAND_LIMIT, Qmp};
use crate::error::Error;

/// How long QEMU may take to listen at its socket.
const START: Duration = Duration::from_secs(60);

/// A QEMU, and whether this program has started it.
#[derive(Debug)]
pub struct Qemu {
    child: Option<Child>,
    log: PathBuf,
    /// The length of the log before QEMU was started.
    before: u64,
    /// This program has changed the state of QEMU.
    changed: bool,
}

impl Qemu {
    /// A QEMU that this program has not started.
    pub fn existing() -> Self {
        Self {
            child: None,
            log: PathBuf::new(),
            before: 0,
            changed: false,
        }
    }

    /// Starts QEMU with this command line. Its output goes to `log`. `name` becomes a part of the name of its scope (see [`scope`]).
    ///
    /// # Errors
    ///
    /// [`Error::Start`].
    pub fn start(command: &[String], log: &Path, name: &str) -> Result<Self, Error> {
        let [program, arguments @ ..] = command else {
            return Ok(Self::existing());
        };
        let failed = |source| Error::Start {
            program: program.clone(),
            source,
        };
        let output = File::options().create(true).append(true).open(log).map_err(failed)?;
        let before = output.metadata().map_err(failed)?.len();
        let child = scope::command(program, "qemu", name)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone().map_err(failed)?)
            .stderr(output)
            // QEMU outlives this program. A process group of its own keeps signals of the terminal from QEMU.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        Ok(Self {
            child: Some(child),
            log: log.to_owned(),
            before,
            changed: false,
        })
    }

    /// Connects to QEMU, once QEMU listens. Gives up early when QEMU has failed or `is_wanted` returns false.
    ///
    /// # Errors
    ///
    /// Those of [`Qmp::connect`].
    pub fn connect(&mut self, path: &Path, is_wanted: impl Fn() -> bool) -> Result<Qmp, Error> {
        let until = Instant::now() + START;
        loop {
            let error = match Qmp::connect_retry(path, COMMAND_LIMIT, Duration::from_millis(500)) {
                Err(error @ Error::Connect { .. }) => error,
                other => return other,
            };
            if self.has_failed() || !is_wanted() || self.child.is_none() || Instant::now() >= until {
                return Err(error);
            }
        }
    }

    /// The last lines that QEMU has written.
    pub fn last_words(&self) -> String {
        const LINES: usize = 3;
        let text = log_tail(&self.log, self.before);
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let last = lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default();
        last.iter().map(|line| printable(line)).collect::<Vec<_>>().join("; ")
    }

    /// QEMU's exit status and last messages, if QEMU has failed or fails within a moment.
    pub fn failure(&mut self) -> Option<String> {
        const MOMENT: Duration = Duration::from_millis(500);
        let until = Instant::now() + MOMENT;
        let child = self.child.as_mut()?;
        loop {
            match child.try_wait() {
                // A QEMU that becomes a daemon exits with status 0.
                Ok(Some(status)) if status.success() => return None,
                Ok(Some(status)) => return Some(format!("QEMU has ended ({status}): {}", self.last_words())),
                Ok(None) if Instant::now() < until => sleep(Duration::from_millis(20)),
                _ => return None,
            }
        }
    }

    /// Whether the process that this program started has failed. A QEMU that becomes a daemon exits with status 0.
    pub fn has_failed(&mut self) -> bool {
        let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
        ended.is_some_and(|status| !status.success())
    }

    /// Records that QEMU is prepared for a guest from now on.
    pub fn set_changed(&mut self) {
        self.changed = true;
    }

    /// Kills QEMU if this program has started it, because its guest has not arrived. Returns whether another guest can be prepared.
    pub fn end(&mut self) -> bool {
        let Some(child) = &mut self.child else { return !self.changed };
        // QEMU may have ended just now.
        let _ = child.kill();
        // A QEMU that became a daemon has exited with status 0, and still runs.
        child.wait().is_ok_and(|status| !status.success())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Starts a shell script instead of QEMU.
    fn started(script: &str, log: &Path) -> Qemu {
        let command = ["sh", "-c", script].map(str::to_owned);
        Qemu::start(&command, log, "in.guest0").expect("a process")
    }

    #[test]
    fn last_messages_of_a_failed_qemu_are_reported_and_stay_in_the_log() {
        let directory = tempfile::tempdir().expect("a directory");
        let log = directory.path().join("qemu.log");
        for _ in 0..2 {
            let mut qemu = started("echo qemu: first; echo qemu: last >&2; exit 3", &log);
            let error = qemu.connect(Path::new("/nobody/qmp"), || true).expect_err("no QEMU");
            assert!(matches!(error, Error::Connect { .. }), "{error}");
            let failure = qemu.failure().expect("it has failed");
            assert_eq!(failure, "QEMU has ended (exit status: 3): qemu: first; qemu: last");
        }
        let log = std::fs::read_to_string(log).expect("a log");
        assert_eq!(log.lines().count(), 4, "{log}");
    }

    #[test]
    fn another_guest_can_be_prepared_only_if_this_qemu_left_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let log = directory.path().join("qemu.log");
        assert!(started("exec sleep 1000", &log).end(), "it has not ended");
        let mut in_the_background = started("exit 0", &log);
        let child = in_the_background.child.as_mut().expect("a process");
        child.wait().expect("a process");
        assert!(!in_the_background.end(), "it has another process, and the regions");
        let mut found = Qemu::existing();
        assert!(found.end(), "nobody has touched it");
        found.set_changed();
        assert!(!found.end());
    }
}
