// SPDX-License-Identifier: GPL-2.0-or-later
//! A QEMU as the distribution ships it.

use std::fs::{self, File};
use std::io::Read;
use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use vmem::PAGE_SIZE;
use vmem_qemu::{Event, Qmp};

use crate::command::spawn;
use crate::evidence;
use crate::guest::{Guest, Memory};
use crate::harm::is_tried_again;
use crate::network::Host;
use crate::patience::{patience, wait_until};
use crate::slot::Slot;

/// How long QEMU may think about a command.
const LIMIT: Duration = Duration::from_secs(60);

/// A QEMU; it ends when this is dropped.
pub(crate) struct Machine {
    pub(crate) slot: Slot,
    /// None: somebody else has started it.
    process: Option<Child>,
    qmp: Qmp,
}

impl Machine {
    /// Starts a QEMU which boots a guest, and waits until that is ready.
    pub(crate) fn boot(host: Host, guest: &Guest, memory: Memory) -> Result<Self> {
        let mut failures = 0;
        loop {
            failures += 1;
            match Self::boot_once(host, guest, memory) {
                Err(error) if is_tried_again(failures, &error) => eprintln!("a guest did not come up: {error:#}; once more"),
                booted => return booted,
            }
        }
    }

    /// As [`Machine::boot`], once.
    pub(crate) fn boot_once(host: Host, guest: &Guest, memory: Memory) -> Result<Self> {
        let mut machine = Self::start_booting(host, guest, memory)?;
        machine.wait_until_ready()?;
        Ok(machine)
    }

    /// Starts a QEMU which boots a guest.
    pub(crate) fn start_booting(host: Host, guest: &Guest, memory: Memory) -> Result<Self> {
        let slot = guest.slot(host)?;
        let arguments = guest.arguments(&slot, memory);
        Self::start(slot, guest, &arguments)
    }

    /// Waits until the guest has booted.
    pub(crate) fn wait_until_ready(&mut self) -> Result<()> {
        let console = self.slot.console();
        wait_until(&format!("the guest in {} is ready", self.slot.name()), || {
            self.check()?;
            let text = fs::read_to_string(&console).unwrap_or_default();
            ensure!(!text.contains("Kernel panic"), "the guest's kernel has panicked:\n{text}");
            sleep(Duration::from_millis(50));
            Ok(text.contains("\"ready\""))
        })
    }

    /// Starts a QEMU which waits for a guest.
    pub(crate) fn incoming(host: Host, guest: &Guest, memory: Memory) -> Result<Self> {
        Self::incoming_in(guest.slot(host)?, guest, memory)
    }

    /// As [`Machine::incoming`], in this slot.
    pub(crate) fn incoming_in(slot: Slot, guest: &Guest, memory: Memory) -> Result<Self> {
        let mut arguments = guest.arguments(&slot, memory);
        arguments.extend(["-incoming", "defer"].map(str::to_owned));
        Self::start(slot, guest, &arguments)
    }

    fn start(slot: Slot, guest: &Guest, arguments: &[String]) -> Result<Self> {
        let mut command = slot.host.command(&guest.qemu(slot.host));
        command.args(arguments);
        let mut process = spawn(&mut command, &slot.log("qemu"))?;
        match Qmp::connect_retry(&slot.own_qmp(), LIMIT, patience()) {
            Ok(qmp) => Ok(Self {
                slot,
                process: Some(process),
                qmp,
            }),
            Err(error) => {
                let _ = process.kill();
                let _ = process.wait();
                Err(error).with_context(|| format!("QEMU does not answer: {}", slot.read_log("qemu")))
            }
        }
    }

    /// Takes over a QEMU that somebody else has started in this slot.
    pub(crate) fn adopt(slot: Slot) -> Result<Self> {
        let qmp = Qmp::connect_retry(&slot.own_qmp(), LIMIT, patience()).context("QEMU does not answer")?;
        Ok(Self {
            slot,
            process: None,
            qmp,
        })
    }

    /// Whether a machine runs whose QEMU somebody else has started in this slot, and still needs.
    pub(crate) fn is_running(slot: &Slot) -> Result<bool> {
        let mut qmp = Qmp::connect(&slot.own_qmp(), LIMIT)?;
        Ok(qmp.execute("query-status", json!({}))?["running"] == json!(true))
    }

    /// Runs a QMP command.
    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        Ok(self.qmp.execute(command, arguments)?)
    }

    /// What QEMU has said by itself since the last call. Nothing if it has ended, and all of that is known.
    pub(crate) fn events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Ok(Some(event)) = self.qmp.next_event(Instant::now()) {
            events.push(event);
        }
        events
    }

    /// How much of the guest's memory is not zero, page by page, if that is in files. Bytes.
    pub(crate) fn memory_in_use(&self, guest: &Guest) -> Result<Option<u64>> {
        let mut bytes = 0;
        for backend in 0..guest.memory_mib.len() {
            let Ok(mut file) = File::open(self.slot.shared_memory(backend)) else {
                return Ok(None);
            };
            let mut page = [0; PAGE_SIZE];
            while file.read(&mut page)? == PAGE_SIZE {
                bytes += if page == [0; PAGE_SIZE] { 0 } else { PAGE_SIZE as u64 };
            }
        }
        Ok(Some(bytes))
    }

    /// Whether the machine runs, as QEMU says; not whether QEMU does.
    pub(crate) fn guest_runs(&mut self) -> Result<bool> {
        Ok(self.execute("query-status", json!({}))?["running"] == json!(true))
    }

    /// What QEMU says of the machine, or why it says nothing.
    pub(crate) fn status(&mut self) -> String {
        match self.execute("query-status", json!({})) {
            Ok(status) => status["status"].to_string(),
            Err(error) => format!("nothing ({error:#})"),
        }
    }

    /// Whether QEMU runs.
    pub(crate) fn runs(&mut self) -> Result<bool> {
        match &mut self.process {
            Some(process) => Ok(process.try_wait()?.is_none()),
            None => Ok(self.qmp.execute("query-status", json!({})).is_ok()),
        }
    }

    /// That QEMU and its machine have not given up.
    pub(crate) fn check(&mut self) -> Result<()> {
        ensure!(self.runs()?, "QEMU has ended: {}", self.slot.read_log("qemu"));
        let status = self.execute("query-status", json!({}))?;
        ensure!(
            !DEAD.iter().any(|dead| status["status"] == json!(dead)),
            "the guest has ended: {status}: {}",
            self.slot.read_log("qemu")
        );
        Ok(())
    }
}

/// What QEMU says of a machine whose guest has ended.
const DEAD: [&str; 3] = ["shutdown", "internal-error", "guest-panicked"];

impl Machine {
    /// Keeps what the processor and the interrupt controllers of a guest hold, a few times: whether it goes on, and what it waits for.
    pub(crate) fn keep_registers(&mut self) {
        let mut kept = String::new();
        for _ in 0..3 {
            for command in ["info status", "info registers", "info lapic", "info pic"] {
                match self.execute("human-monitor-command", json!({"command-line": command})) {
                    Ok(answer) => kept += &format!("{command}\n{}\n", answer.as_str().unwrap_or_default()),
                    Err(error) => {
                        kept += &format!("{command}: {error:#}\n");
                        break;
                    }
                }
            }
            sleep(Duration::from_millis(300));
        }
        let _ = fs::write(self.slot.log("registers"), kept);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let status = evidence::keeps_dead().then(|| self.status()).unwrap_or_default();
        if DEAD.iter().any(|dead| status.contains(dead)) {
            self.keep_registers();
        }
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        } else if let Some(pid) = running(&self.slot) {
            self.slot.keep_errors(pid);
            let _ = kill_process(pid, Signal::KILL);
            let _ = wait_until("QEMU is gone", || Ok(running(&self.slot).is_none()));
        }
    }
}

/// The QEMU that has noted its number in the slot, if it still runs.
pub(crate) fn running(slot: &Slot) -> Option<Pid> {
    let pid = fs::read_to_string(slot.pid())
        .ok()?
        .trim()
        .parse()
        .ok()
        .and_then(Pid::from_raw)?;
    let command = fs::read_to_string(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).ok()?;
    command.contains(slot.pid().to_str()?).then_some(pid)
}
