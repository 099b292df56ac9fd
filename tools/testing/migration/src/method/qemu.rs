// SPDX-License-Identifier: GPL-2.0
//! QEMU's own ways to move a guest.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::{Method, Moved};
use crate::guest::{Guest, Memory};
use crate::machine::Machine;
use crate::patience::wait_until;

const PORT: u16 = 4444;
/// When a migration has not ended by then, it is given up: a guest may write faster than pre-copy copies.
const PATIENCE: Duration = Duration::from_secs(60);
/// From one look at the migration to the next.
const POLL: Duration = Duration::from_millis(5);
/// Bytes per second: no bound, where QEMU would have one.
const UNBOUNDED: u64 = 1 << 40;

/// A guest at its source, and a QEMU that waits for it.
pub(crate) struct Prepared {
    method: Method,
    source: Machine,
    destination: Machine,
}

impl Prepared {
    /// Starts the destination's QEMU.
    pub(super) fn new(method: Method, guest: &Guest, mut source: Machine) -> Result<Self> {
        let mut destination = Machine::incoming(source.slot.host.other(), guest, Memory::Anonymous)?;
        let capabilities: &[&str] = match method {
            // The guest is slowed down until what it writes can be copied.
            Method::Precopy => &["auto-converge"],
            Method::Postcopy => &["postcopy-ram"],
            Method::PostcopyPreempt => &["postcopy-ram", "postcopy-preempt"],
            Method::VmemHybrid | Method::VmemPrecopy | Method::VmemPostcopy => &[],
        };
        let on = |name: &&str| json!({ "capability": name, "state": true });
        let capabilities: Vec<Value> = capabilities.iter().map(on).collect();
        for machine in [&mut source, &mut destination] {
            machine.execute("migrate-set-capabilities", json!({ "capabilities": capabilities }))?;
        }
        source.execute("migrate-set-parameters", json!({ "max-bandwidth": UNBOUNDED }))?;
        let prepared = Self {
            method,
            source,
            destination,
        };
        prepared.listen()
    }

    fn listen(mut self) -> Result<Self> {
        let uri = self.uri();
        self.destination.execute("migrate-incoming", json!({ "uri": uri }))?;
        Ok(self)
    }

    fn uri(&self) -> String {
        format!("tcp:{}:{PORT}", self.destination.slot.host.address())
    }

    /// Moves the guest.
    pub(super) fn run(mut self) -> Result<Moved> {
        let uri = self.uri();
        self.source.execute("migrate", json!({ "uri": uri }))?;
        if self.method != Method::Precopy {
            self.source.execute("migrate-start-postcopy", json!({}))?;
        }
        let since = Instant::now();
        let last = loop {
            let last = self.source.execute("query-migrate", json!({}))?;
            match last["status"].as_str() {
                Some("completed") => break last,
                Some(status @ ("failed" | "cancelled" | "postcopy-paused")) => {
                    bail!("QEMU says that the migration is {status}: {}", last["error-desc"])
                }
                _ if since.elapsed() < PATIENCE => sleep(POLL),
                _ if self.method == Method::Precopy => return self.give_up(),
                _ => bail!("{} does not end: {last}", self.method.name()),
            }
        };
        // The source is done when it has sent all; the guest has it when the destination is done.
        wait_until("the destination has all", || {
            let status = self.destination.execute("query-migrate", json!({}))?;
            Ok(status["status"] == json!("completed") && self.destination.guest_runs()?)
        })?;
        Ok(Moved {
            machine: self.destination,
            left: Some(self.source),
            done: true,
            data_bytes: None,
            reported_downtime: last["downtime"].as_f64().map(|milliseconds| milliseconds / 1000.0),
        })
    }

    fn give_up(mut self) -> Result<Moved> {
        self.source.execute("migrate_cancel", json!({}))?;
        wait_until("the migration is cancelled", || {
            Ok(self.source.execute("query-migrate", json!({}))?["status"] == json!("cancelled"))
        })?;
        Ok(Moved {
            machine: self.source,
            left: None,
            done: false,
            reported_downtime: None,
            data_bytes: None,
        })
    }
}
