// SPDX-License-Identifier: GPL-2.0
//! The way of this project: `vmemctl receive` there, `vmemctl migrate` here.

use anyhow::{Context, Result};

use super::Moved;
use crate::guest::Guest;
use crate::machine::Machine;
use crate::patience::wait_until;
use crate::slot::Slot;
use crate::vmemctl::{Vmemctl, said};

/// A guest at its source, and a vmemctl that waits for it.
pub(crate) struct Prepared {
    pub(crate) guest: Guest,
    pub(crate) source: Machine,
    /// The guest's place at its destination.
    pub(crate) slot: Slot,
    pub(crate) receive: Vmemctl,
}

impl Prepared {
    /// Starts `vmemctl receive`, with these more options.
    pub(crate) fn new(guest: &Guest, source: Machine, options: &[&str]) -> Result<Self> {
        let slot = Slot::new(source.slot.host.other(), guest.number)?;
        let receive = Vmemctl::receive(&slot, guest, options)?;
        Ok(Self {
            guest: guest.clone(),
            source,
            slot,
            receive,
        })
    }

    /// Moves the guest in this mode.
    pub(crate) fn run(self, mode: &str) -> Result<Moved> {
        let mut migrate = Vmemctl::migrate(&self.source.slot, &self.guest, &["--mode", mode])?;
        migrate.expect(&self.source.slot, 0)?;
        self.arrived()
    }

    /// `vmemctl migrate` has moved the guest.
    pub(crate) fn arrived(mut self) -> Result<Moved> {
        self.receive.expect(&self.slot, 0)?;
        let source = &mut self.source;
        let done = said(&source.slot.read_log("migrate"), "done").context("vmemctl migrate does not say what it has done")?;
        wait_until("the source's QEMU has ended", || Ok(!source.runs()?))?;
        Ok(Moved {
            machine: Machine::adopt(self.slot)?,
            left: None,
            done: true,
            reported_downtime: done["downtime_seconds"].as_f64(),
            // Pages that came in rounds are counted each time they came, zeros included.
            data_bytes: match done["staged_bytes"].as_u64() {
                None | Some(0) => done["pages"]["data"].as_u64().map(|pages| pages * 4096),
                Some(_) => None,
            },
        })
    }
}
