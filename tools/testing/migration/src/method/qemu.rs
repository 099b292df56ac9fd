// SPDX-License-Identifier: GPL-2.0-or-later
//! QEMU's own ways to move a guest.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::{Method, Moved};
use crate::guest::{Guest, Memory};
use crate::machine::Machine;
use crate::patience::wait_until;
use crate::timeline::Timeline;

const PORT: u16 = 4444;
/// When a migration has not ended by then, it is given up: a guest may write faster than pre-copy copies.
const PATIENCE: Duration = Duration::from_secs(60);
/// From one look at the migration to the next.
const POLL: Duration = Duration::from_millis(10);
/// Bytes per second: no bound, where QEMU would have one.
const UNBOUNDED: u64 = 1 << 40;

/// A guest at its source, and a QEMU that waits for it.
pub(crate) struct Prepared {
    method: Method,
    memory: u64,
    source: Machine,
    destination: Machine,
}

impl Prepared {
    /// Starts the destination's QEMU.
    pub(super) fn new(method: Method, guest: &Guest, mut source: Machine) -> Result<Self> {
        let mut destination = Machine::incoming(source.slot.host.other(), guest, Memory::Anonymous)?;
        // QEMU says when it is done.
        let names = method.capabilities().iter().chain(&["events"]);
        let capabilities: Vec<Value> = names.map(|name| json!({ "capability": name, "state": true })).collect();
        for machine in [&mut source, &mut destination] {
            machine.execute("migrate-set-capabilities", json!({ "capabilities": capabilities }))?;
        }
        source.execute("migrate-set-parameters", json!({ "max-bandwidth": UNBOUNDED }))?;
        let mut prepared = Self {
            method,
            memory: guest.memory(),
            source,
            destination,
        };
        let uri = prepared.uri();
        prepared.destination.execute("migrate-incoming", json!({ "uri": uri }))?;
        Ok(prepared)
    }

    fn uri(&self) -> String {
        format!("tcp:{}:{PORT}", self.destination.slot.host.address())
    }

    /// Moves the guest.
    pub(super) fn run(mut self) -> Result<Moved> {
        let uri = self.uri();
        // What was said before.
        let _ = (self.source.events(), self.destination.events());
        let mut timeline = Timeline::begin(self.memory);
        self.source.execute("migrate", json!({ "uri": uri }))?;
        let mut is_copied = !self.method.is_postcopy();
        let since = Instant::now();
        let last = loop {
            // At once, but for the way that begins with a round; QEMU counts the rounds from 1.
            let last = self.source.execute("query-migrate", json!({}))?;
            let is_round_over = last["ram"]["dirty-sync-count"].as_u64() > Some(1);
            if !is_copied && (is_round_over || self.method != Method::PostcopyAfterRound) {
                self.source.execute("migrate-start-postcopy", json!({}))?;
                is_copied = true;
            }
            if let Some(left) = last["ram"]["remaining"].as_u64() {
                timeline.note_left(left);
            }
            match last["status"].as_str() {
                Some("completed") => break last,
                Some(status @ ("failed" | "cancelled" | "postcopy-paused")) => {
                    bail!("QEMU says that the migration is {status}: {}", last["error-desc"])
                }
                _ if since.elapsed() < PATIENCE => sleep(POLL),
                _ if !self.method.is_postcopy() => return self.give_up(timeline),
                _ => bail!("{} does not end: {last}", self.method.name()),
            }
        };
        // The source is done when it has sent all; the guest has it when the destination is done.
        wait_until("the destination has all", || {
            let status = self.destination.execute("query-migrate", json!({}))?;
            Ok(status["status"] == json!("completed") && self.destination.guest_runs()?)
        })?;
        timeline.note_left(0);
        timeline.note_source(&mut self.source);
        timeline.note_destination(&mut self.destination);
        Ok(Moved {
            machine: self.destination,
            left: Some(self.source),
            done: true,
            data_bytes: None,
            reported_downtime: last["downtime"].as_f64().map(|milliseconds| milliseconds / 1000.0),
            timeline,
        })
    }

    fn give_up(mut self, timeline: Timeline) -> Result<Moved> {
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
            timeline: timeline.given_up(),
        })
    }
}
