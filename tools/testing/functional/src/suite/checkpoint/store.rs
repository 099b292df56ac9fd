// SPDX-License-Identifier: GPL-2.0-or-later
//! A store in a directory, and vmemctl with it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use vmem::PAGE_SIZE;

use crate::failure::{Outcome, ensure};
use crate::schema;
use crate::suite::vmemd::beside;
use crate::world::wait_until;

/// A store, removed at the end of its test.
pub(super) struct Store {
    pub(super) directory: PathBuf,
    /// What `--store` says: a directory in this one, or a place in S3.
    location: String,
    /// What commands have in their environment.
    environment: Vec<(String, String)>,
}

impl Store {
    pub(super) fn new() -> Outcome<Self> {
        Self::at("/dev/shm/vmem-checkpoints/store", &[])
    }

    /// An empty one at this place, for commands with this environment.
    pub(super) fn at(location: &str, environment: &[(&str, &str)]) -> Outcome<Self> {
        let directory = PathBuf::from("/dev/shm/vmem-checkpoints");
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir(&directory)?;
        let environment = environment
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let store = Self {
            directory,
            location: location.to_owned(),
            environment: environment.collect(),
        };
        store.run("init", &[])?;
        Ok(store)
    }

    /// A store that this key opens.
    pub(super) fn encrypted(key: &Path) -> Outcome<Self> {
        let store = Self::new()?;
        fs::remove_dir_all(store.directory.join("store"))?;
        store.run("init", &["--encrypt", "--key-file", &key.to_string_lossy()])?;
        Ok(store)
    }

    pub(super) fn command(&self, command: &str) -> Outcome<Command> {
        self.command_at(command, &self.location)
    }

    /// A command on another store that this environment is good for.
    pub(super) fn command_at(&self, command: &str, location: &str) -> Outcome<Command> {
        let mut vmemctl = self.without_store(command)?;
        vmemctl.args(["--store", location]);
        Ok(vmemctl)
    }

    /// A command that finds the store by itself.
    pub(super) fn without_store(&self, command: &str) -> Outcome<Command> {
        let mut vmemctl = beside("vmemctl")?;
        vmemctl
            .args(["checkpoint", command])
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        vmemctl.arg("--state").arg(self.directory.join("state"));
        Ok(vmemctl)
    }

    /// What a command printed that has succeeded.
    pub(super) fn run(&self, command: &str, arguments: &[&str]) -> Outcome<String> {
        let output = self.end(command, arguments)?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.success(),
            "{command} {arguments:?}: {:?} {stderr}",
            output.status
        );
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        schema::CHECKPOINT.check(&said)?;
        Ok(said)
    }

    pub(super) fn end(&self, command: &str, arguments: &[&str]) -> Outcome<Output> {
        Ok(self.command(command)?.args(arguments).stdin(Stdio::null()).output()?)
    }

    /// Begins a restore of this checkpoint, as far as a line of its output with this event.
    pub(super) fn restore(&self, checkpoint: &str, arguments: &[&str], event: &str) -> Outcome<Restore> {
        self.begin("restore", checkpoint, arguments, event)
    }

    /// Begins a command that goes on, of this checkpoint, as far as a line of its output with this event.
    pub(super) fn begin(&self, command: &str, checkpoint: &str, arguments: &[&str], event: &str) -> Outcome<Restore> {
        let mut command = self.command(command)?;
        command.args(["--json", checkpoint]).args(arguments);
        Restore::start(command, event)
    }

    /// As [`restore`](Self::restore), as far as its regions are there. What it reads of the store is written to this file, by `strace`.
    pub(super) fn restore_traced(&self, checkpoint: &str, arguments: &[&str], trace: &Path) -> Outcome<Restore> {
        let restore = self.command("restore")?;
        let mut command = Command::new("strace");
        command
            .args(["--follow-forks", "--seccomp-bpf", "--kill-on-exit", "--quiet=all"])
            .args(["--trace=pread64", "--decode-fds=path", "--string-limit=0", "--output"])
            .arg(trace)
            .arg(restore.get_program())
            .args(restore.get_args())
            .args(["--json", checkpoint])
            .args(arguments)
            .envs(restore.get_envs().filter_map(|(name, value)| Some((name, value?))));
        Restore::start(command, "ready")
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A page of words that follow from a seed, not 0, and do not compress to much less.
pub(super) fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let words = (0..PAGE_SIZE / 8).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_ne_bytes()
    });
    words.collect()
}

/// What `--pid` and `--memory` say of a file that this process has open.
pub(super) fn memory_of(file: &impl AsRawFd) -> (String, String) {
    let pid = std::process::id().to_string();
    let memory = format!("/proc/{pid}/fd/{}", file.as_raw_fd());
    (pid, memory)
}

/// Waits until nobody needs this region any more.
pub(super) fn wait_gone(region: &str) -> Outcome {
    wait_until("the region is gone", || Ok(!Path::new("/dev/vmem").join(region).exists()))
}

/// A restore, or a base, that goes on.
pub(super) struct Restore {
    child: Child,
    output: BufReader<ChildStdout>,
    /// The first line of its output with the event that was waited for.
    said: String,
}

impl Restore {
    pub(super) fn start(mut command: Command, event: &str) -> Outcome<Self> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().ok_or("no output")?;
        let mut restore = Self {
            child,
            output: BufReader::new(output),
            said: String::new(),
        };
        restore.said = restore.hear(event)?;
        Ok(restore)
    }

    /// The line that was waited for.
    pub(super) fn said(&self) -> &str {
        &self.said
    }

    /// Its first region, if it was waited for until its regions are there.
    pub(super) fn region(&self) -> Outcome<String> {
        let (_, rest) = self.said.split_once("\"region\":\"").ok_or(self.said.clone())?;
        Ok(rest.split('"').next().unwrap_or_default().to_owned())
    }

    /// Reads until this event.
    pub(super) fn hear(&mut self, event: &str) -> Outcome<String> {
        let wanted = format!("\"event\":\"{event}\"");
        let mut seen = String::new();
        loop {
            let line = self.line()?;
            ensure!(!line.is_empty(), "it has ended without {event}: {seen}");
            ensure!(!line.contains("\"event\":\"checkpoint-failed\""), "{line}");
            // Nested events of vmemd have other names.
            if line.contains(&wanted) {
                return Ok(line);
            }
            seen.push_str(&line);
        }
    }

    /// Reads until this event. Returns the last line before it that has this text.
    pub(super) fn hear_last(&mut self, event: &str, text: &str) -> Outcome<String> {
        let wanted = format!("\"event\":\"{event}\"");
        let mut last = None;
        loop {
            let line = self.line()?;
            ensure!(!line.is_empty(), "it has ended without {event}");
            if line.starts_with(&format!("{{{wanted}")) {
                return Ok(last.ok_or(format!("no line with {text}"))?);
            }
            if line.contains(text) {
                last = Some(line);
            }
        }
    }

    /// The next line; empty at the end.
    fn line(&mut self) -> Outcome<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        schema::CHECKPOINT.check(&line)?;
        Ok(line)
    }

    /// Its process.
    pub(super) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Waits until all memory is there.
    pub(super) fn end(mut self) -> Outcome {
        self.hear("complete")?;
        let status = self.child.wait()?;
        ensure!(status.success(), "restore: {status}");
        Ok(())
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
