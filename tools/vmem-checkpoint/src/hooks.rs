// SPDX-License-Identifier: GPL-2.0-or-later
//! Commands of the user around a checkpoint, executed by the shell.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use vmem_cli::Signals;
use vmem_store::{CheckpointName, GuestName};

use crate::error::Error;

const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The commands.
#[derive(Debug, Clone, Default)]
pub struct Hooks {
    /// Before the instant. If it fails, there is no checkpoint.
    pub before: Option<String>,
    /// As soon as the guest or program runs after the instant.
    pub resumed: Option<String>,
    /// When the checkpoint was made, or has failed.
    pub after: Option<String>,
    /// How long each of them may take.
    pub limit: Duration,
    /// The store, for the environment of the commands.
    pub store: String,
}

/// A checkpoint whose commands are executed. Those after the instant are executed on every path, once the one before was begun.
pub(crate) struct Hooked {
    hooks: Hooks,
    guest: GuestName,
    has_resumed: bool,
    is_over: bool,
}

impl Hooked {
    /// Executes the first command.
    ///
    /// # Errors
    ///
    /// [`Error::Hook`]; a signal.
    pub(crate) fn begin(hooks: &Hooks, guest: &GuestName, signals: &Signals) -> Result<Self, Error> {
        let hooked = Self {
            hooks: hooks.clone(),
            guest: guest.clone(),
            has_resumed: false,
            is_over: false,
        };
        if let Some(before) = &hooks.before {
            hooked.run("--before", before, &[], Some(signals))?;
        }
        Ok(hooked)
    }

    /// The instant is over.
    pub(crate) fn resumed(&mut self) {
        self.has_resumed = true;
        if let Some(command) = &self.hooks.resumed {
            self.run_late("--resumed", command, &[]);
        }
    }

    /// The checkpoint was made, or there is an error.
    pub(crate) fn end(&mut self, checkpoint: Result<&CheckpointName, &Error>) {
        self.is_over = true;
        let Some(command) = &self.hooks.after else { return };
        let more = match checkpoint {
            Ok(name) => [
                ("VMEM_RESULT", "made".to_owned()),
                ("VMEM_NUMBER", name.sequence.to_string()),
                ("VMEM_ERROR", String::new()),
            ],
            Err(error) => [
                ("VMEM_RESULT", "failed".to_owned()),
                ("VMEM_NUMBER", String::new()),
                ("VMEM_ERROR", vmem_cli::chain(error)),
            ],
        };
        self.run_late("--after", command, &more);
    }

    /// Executes a command that a signal does not end: it may undo what the first one has done.
    fn run_late(&self, option: &'static str, command: &str, more: &[(&str, String)]) {
        if let Err(error) = self.run(option, command, more, None) {
            tracing::error!("guest {}: {}", self.guest, vmem_cli::chain(&error));
        }
    }

    fn run(&self, option: &'static str, command: &str, more: &[(&str, String)], signals: Option<&Signals>) -> Result<(), Error> {
        let failed = |why: String| Error::Hook { option, why };
        let child = Command::new("/bin/sh")
            .args(["-c", command])
            .env("VMEM_GUEST", self.guest.as_str())
            .env("VMEM_STORE", &self.hooks.store)
            // An environment has no zero bytes.
            .envs(more.iter().map(|(name, value)| (name, value.replace('\0', " "))))
            .stdin(Stdio::null())
            // Standard output is for the reports of this program.
            .stdout(io::stderr())
            .process_group(0)
            .spawn();
        let mut child = child.map_err(|error| failed(format!("the shell cannot be started: {error}")))?;
        let until = Instant::now() + self.hooks.limit;
        loop {
            match child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => return Err(failed(format!("it has failed ({status})"))),
                Ok(None) => {}
                Err(error) => return Err(failed(error.to_string())),
            }
            if let Some(stopped) = signals.and_then(|signals| signals.check().err()) {
                kill(&mut child);
                return Err(stopped.into());
            }
            if Instant::now() >= until {
                kill(&mut child);
                let limit = self.hooks.limit.as_secs_f32();
                return Err(failed(format!("it was killed, because it has not ended within {limit} s")));
            }
            thread::sleep(POLL_INTERVAL);
        }
    }
}

impl Drop for Hooked {
    fn drop(&mut self) {
        if !self.has_resumed {
            self.resumed();
        }
        if !self.is_over {
            self.end(Err(&Error::other("the checkpoint was given up")));
        }
    }
}

/// Kills the shell and what it has started.
fn kill(child: &mut Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // It may have ended just now.
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn hooks(file: &Path, before: &str) -> Hooks {
        let say = |word: &str| {
            format!(
                "echo {word} $VMEM_GUEST $VMEM_STORE $VMEM_RESULT $VMEM_NUMBER $VMEM_ERROR >> {}",
                file.display()
            )
        };
        Hooks {
            before: Some(format!("{}; {before}", say("before"))),
            resumed: Some(say("resumed")),
            after: Some(say("after")),
            limit: Duration::from_secs(20),
            store: "/s".to_owned(),
        }
    }

    fn guest() -> GuestName {
        "guest0".parse().expect("a name")
    }

    fn said(file: &Path) -> Vec<String> {
        let text = fs::read_to_string(file).expect("a file");
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn commands_know_the_guest_the_store_and_the_number() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("said");
        let mut hooked = Hooked::begin(&hooks(&file, "true"), &guest(), &Signals::default()).expect("a success");
        assert_eq!(said(&file), ["before guest0 /s"]);
        hooked.resumed();
        let name = CheckpointName {
            guest: guest(),
            sequence: 7,
        };
        hooked.end(Ok(&name));
        drop(hooked);
        assert_eq!(
            said(&file),
            ["before guest0 /s", "resumed guest0 /s", "after guest0 /s made 7"]
        );
    }

    #[test]
    fn failed_command_before_is_an_error_and_those_after_are_executed() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("said");
        let failed = Hooked::begin(&hooks(&file, "exit 3"), &guest(), &Signals::default())
            .err()
            .expect("a failure");
        assert!(failed.is_passing());
        assert!(failed.to_string().contains("exit status: 3"), "{failed}");
        let lines = said(&file);
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(lines[2].starts_with("after guest0 /s failed"), "{lines:?}");
    }

    #[test]
    fn command_that_takes_too_long_is_killed_with_its_children() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("said");
        let slow = Hooks {
            limit: Duration::from_millis(200),
            ..hooks(&file, "sleep 100 | cat")
        };
        let began = Instant::now();
        let failed = Hooked::begin(&slow, &guest(), &Signals::default()).err().expect("a failure");
        assert!(failed.to_string().contains("within 0.2 s"), "{failed}");
        assert!(began.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn signal_ends_the_command_before_and_not_those_after() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("said");
        let signals = Signals::default();
        signals.raise();
        let stopped = Hooked::begin(&hooks(&file, "sleep 100"), &guest(), &signals)
            .err()
            .expect("a signal");
        assert!(stopped.is_signal());
        assert!(said(&file).iter().any(|line| line.starts_with("after")), "{:?}", said(&file));
    }
}
