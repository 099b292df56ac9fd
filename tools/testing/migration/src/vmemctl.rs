// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemctl`, as a user runs it.

use std::process::{Child, Output};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::command::spawn;
use crate::guest::Guest;
use crate::patience::wait_until;
use crate::slot::Slot;
use crate::variant::Variant;

/// The program.
const PROGRAM: &str = "build/target/release/vmemctl";

/// A running vmemctl; killed when dropped.
pub(crate) struct Vmemctl {
    process: Child,
    log: String,
}

impl Vmemctl {
    /// Waits for a guest in this slot; returns when it listens.
    pub(crate) fn receive(slot: &Slot, guest: &Guest, options: &[&str]) -> Result<Self> {
        let qemu = guest.taker(slot);
        let mut words: Vec<&str> = options.to_vec();
        words.push("--");
        words.extend(qemu.iter().map(String::as_str));
        Self::receive_as(slot, guest, &words)
    }

    /// Waits for a guest in this slot, with these options and without a command that starts QEMU.
    pub(crate) fn receive_as(slot: &Slot, guest: &Guest, options: &[&str]) -> Result<Self> {
        let mut receive = Self::start_receive(slot, guest, options)?;
        wait_until("vmemctl receive listens", || {
            let listens = slot.read_log("receive").contains("listening");
            ensure!(
                listens || receive.process.try_wait()?.is_none(),
                "vmemctl receive has ended: {}",
                slot.read_log("receive")
            );
            Ok(listens)
        })?;
        Ok(receive)
    }

    /// Goes on with the guest that another vmemctl took in this slot.
    pub(crate) fn resume(slot: &Slot, guest: &Guest) -> Result<Self> {
        Self::start_receive(slot, guest, &["--resume"])
    }

    fn start_receive(slot: &Slot, guest: &Guest, options: &[&str]) -> Result<Self> {
        let listen = format!("{}:{}", slot.host.address(), guest.port());
        let qmp = slot.qmp();
        let mut words = vec!["receive", "--qmp", path(&qmp)?];
        words.extend(unless_given(options, "--listen", &listen));
        words.extend_from_slice(options);
        Self::start(slot, guest.variant, "receive", &words)
    }

    /// Moves the guest in this slot to the other host.
    pub(crate) fn migrate(slot: &Slot, guest: &Guest, options: &[&str]) -> Result<Self> {
        let to = format!("{}:{}", slot.host.other().address(), guest.port());
        let qmp = slot.qmp();
        let mut words = vec!["migrate", "--qmp", path(&qmp)?];
        words.extend(unless_given(options, "--to", &to));
        // What goes wrong while pages are missing is tested with as many missing as possible.
        words.extend(unless_given(options, "--mode", "postcopy"));
        words.extend_from_slice(options);
        Self::start(slot, guest.variant, "migrate", &words)
    }

    /// Goes on with a migration of the guest that was in this slot.
    pub(crate) fn recover(slot: &Slot) -> Result<Self> {
        Self::start(slot, Variant::default(), "recover", &["recover"])
    }

    /// Begins a command about checkpoints, with these variables in its environment. Its messages go to the log of its name.
    pub(crate) fn checkpoint(slot: &Slot, environment: &[(&str, String)], command: &str, words: &[&str]) -> Result<Self> {
        let state = slot.state();
        let mut vmemctl = slot
            .host
            .command(&[PROGRAM, "checkpoint", command, "--json", "--state", path(&state)?]);
        vmemctl
            .args(words)
            .envs(environment.iter().map(|(name, value)| (name, value)));
        Ok(Self {
            process: spawn(&mut vmemctl, &slot.log(command))?,
            log: command.to_owned(),
        })
    }

    /// Runs a command about the migrations of this slot to its end.
    pub(crate) fn run(slot: &Slot, words: &[&str]) -> Result<Output> {
        let state = slot.state();
        let mut command = slot.host.command(&[PROGRAM, "--json", "--state", path(&state)?]);
        let command = command.args(words);
        command.output().with_context(|| format!("cannot run {command:?}"))
    }

    /// As before. It must succeed. Returns what it says.
    pub(crate) fn tell(slot: &Slot, words: &[&str]) -> Result<Vec<Value>> {
        let Output { status, stdout, stderr } = Self::run(slot, words)?;
        let stderr = String::from_utf8_lossy(&stderr);
        ensure!(status.success(), "vmemctl {words:?} has ended with {status}: {stderr}");
        let lines = String::from_utf8_lossy(&stdout);
        let lines = lines.lines().map(serde_json::from_str);
        lines.collect::<Result<_, _>>().context("a line that is no JSON")
    }

    /// Measures how fast the guest in this slot writes.
    pub(crate) fn dirty_rate(slot: &Slot, options: &[&str]) -> Result<Self> {
        let qmp = slot.qmp();
        let mut words = vec!["dirty-rate", "--qmp", path(&qmp)?];
        words.extend_from_slice(options);
        Self::start(slot, Variant::default(), "dirty-rate", &words)
    }

    fn start(slot: &Slot, variant: Variant, log: &str, words: &[&str]) -> Result<Self> {
        let mut command = slot.host.command(variant.before_vmemctl());
        let state = slot.state();
        command.args([PROGRAM, "--json", "--state", path(&state)?]);
        if !words.contains(&"--tls") {
            command.arg("--insecure");
        }
        command.args(words);
        let process = spawn(&mut command, &slot.log(log))?;
        Ok(Self {
            process,
            log: log.to_owned(),
        })
    }

    /// Waits for its end; returns its exit code.
    pub(crate) fn end(&mut self) -> Result<i32> {
        let mut status = None;
        wait_until(&format!("vmemctl {} ends", self.log), || {
            status = self.process.try_wait()?;
            Ok(status.is_some())
        })?;
        let code = status.and_then(|status| status.code());
        code.context("vmemctl was killed")
    }

    /// Waits for its end, which must be this one.
    pub(crate) fn expect(&mut self, slot: &Slot, code: i32) -> Result<()> {
        let last = |log: &str| slot.read_log(log).lines().rev().take(3).collect::<Vec<_>>().join(" | ");
        let ended = self.end().with_context(|| format!("it has said last: {}", last(&self.log)))?;
        ensure!(
            ended == code,
            "vmemctl {} has ended with {ended} and not {code}: {}",
            self.log,
            last(&self.log)
        );
        Ok(())
    }

    /// Waits until it has said something of this kind.
    pub(crate) fn wait_for(&mut self, slot: &Slot, event: &str) -> Result<Value> {
        let mut found = None;
        wait_until(&format!("vmemctl {} says {event}", self.log), || {
            found = said(&slot.read_log(&self.log), event);
            ensure!(
                found.is_some() || self.process.try_wait()?.is_none(),
                "vmemctl {} has ended: {}",
                self.log,
                slot.read_log(&self.log)
            );
            Ok(found.is_some())
        })?;
        found.context("it is gone")
    }

    /// Whether it runs.
    pub(crate) fn runs(&mut self) -> Result<bool> {
        Ok(self.process.try_wait()?.is_none())
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.process), signal)?)
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }
}

impl Drop for Vmemctl {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.kill();
    }
}

/// An option with this value, unless the options have one.
fn unless_given<'a>(options: &[&str], option: &'a str, value: &'a str) -> Vec<&'a str> {
    match options.contains(&option) {
        true => Vec::new(),
        false => vec![option, value],
    }
}

/// The last line of a log that is of this kind.
pub(crate) fn said(log: &str, event: &str) -> Option<Value> {
    let mut lines = log.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.find(|line| line["event"] == event)
}

fn path(path: &std::path::Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}
