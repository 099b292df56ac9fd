// SPDX-License-Identifier: GPL-2.0-or-later
//! A shell on a host, or beside the hosts, in which somebody types.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::network::Host;
use crate::page::{Typed, missing};
use crate::patience::wait_at_most;
use crate::scratch::Scratch;

/// How long a command may take: a guest boots, moves or is restored in it.
const PATIENCE: Duration = Duration::from_secs(600);
/// What the shell prints after a command, and the command's status after it.
const END: &str = "@@ended ";

/// A shell that goes on from command to command; killed when dropped, which does not end what it has started.
pub(crate) struct Shell {
    process: Child,
    input: ChildStdin,
    log: Scratch,
}

impl Shell {
    /// One on this host, or, without one, where the guest's clients are. It has mounts of its own, and runs this script first.
    pub(crate) fn new(host: Option<Host>, script: &str) -> Result<Self> {
        let name = host.map_or("client", Host::name);
        let words = ["unshare", "--mount", "bash"];
        let mut command = match host {
            Some(host) => host.command(&words),
            None => {
                let mut command = Command::new(words[0]);
                command.args(&words[1..]);
                command
            }
        };
        let log = Scratch::new(&format!("shell-{name}"));
        let output = fs::File::create(&log.0).context("the shell's output")?;
        let process = command
            .stdin(Stdio::piped())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn();
        let mut process = process.context("cannot start a shell")?;
        let input = process.stdin.take().context("a shell without input")?;
        let mut shell = Self { process, input, log };
        shell.run(script, &[])?;
        Ok(shell)
    }

    /// Where its host's files are, for other processes.
    pub(crate) fn files(&self) -> PathBuf {
        format!("/proc/{}/root", self.process.id()).into()
    }

    /// Types a command, and waits until it has ended and has printed what it should. What has been begun before may print meanwhile.
    pub(crate) fn type_in(&mut self, typed: &Typed) -> Result<()> {
        self.run(&typed.command, &typed.printed)
    }

    /// The same, of a command that is not on the page.
    pub(crate) fn run(&mut self, command: &str, printed: &[String]) -> Result<()> {
        let before = self.output()?.len();
        // What was printed last may be a part of a line.
        writeln!(self.input, "{command}\nprintf '\\n{END}%s\\n' $?")?;
        let mut said = String::new();
        let waited = wait_at_most(PATIENCE, "the command has ended", || {
            said = self.output()?.get(before..).unwrap_or_default().to_owned();
            if let Some(status) = said.lines().find_map(|line| line.strip_prefix(END)) {
                ensure!(status == "0", "it has ended with {status}");
                return Ok(missing(printed, &said).is_none());
            }
            if self.process.try_wait()?.is_some() {
                bail!("the shell has ended");
            }
            Ok(false)
        });
        let missing = missing(printed, &said);
        waited.with_context(|| format!("{command}\n{said}\nis not there: {missing:?}"))
    }

    fn output(&self) -> Result<String> {
        let bytes = fs::read(&self.log.0).context("the shell's output")?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
