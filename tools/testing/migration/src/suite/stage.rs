// SPDX-License-Identifier: GPL-2.0-or-later
//! What the tests play on: the rig, and a guest that goes from test to test.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};

use crate::client::Client;
use crate::guest::{Guest, Load, Memory};
use crate::harm::{ensure_unharmed, is_tried_again};
use crate::machine::Machine;
use crate::method::vmem::Prepared;
use crate::network::Host;
use crate::rig::Rig;
use crate::vmemctl::Vmemctl;

/// Pages that a guest writes in a second: enough that an old page is found, and few enough that the machine has time for the rest.
const PAGES: u32 = 1000;

/// The rig, and the guest that a test has left intact.
pub(crate) struct Stage {
    pub(crate) rig: Rig,
    parked: Mutex<Option<Machine>>,
}

/// A guest in a test: it writes all over its memory, and a client talks to it.
pub(crate) struct Actor {
    pub(crate) guest: Guest,
    client: Client,
    work: u64,
}

/// A guest on its way.
pub(crate) struct Journey {
    pub(crate) prepared: Prepared,
    pub(crate) migrate: Vmemctl,
}

impl Stage {
    pub(crate) fn new(rig: Rig) -> Self {
        Self {
            rig,
            parked: Mutex::default(),
        }
    }

    /// The parked guest, wherever it runs, or a new one.
    pub(crate) fn guest(&self) -> Result<(Actor, Machine)> {
        let guest = Guest::default();
        let parked = self.lock().take();
        if let Some(mut machine) = parked {
            match Actor::new(guest.clone()) {
                Ok(actor) => return Ok((actor, machine)),
                // The test before has found it intact. An emulated SVM stops a guest now and then.
                Err(error) if is_tried_again(1, &error) => {
                    let runs = machine.guest_runs();
                    eprintln!("the parked guest does not answer ({error:#}; running: {runs:?}): another one is booted");
                }
                Err(error) => return Err(error).context("the parked guest does not answer"),
            }
        }
        let machine = Machine::boot(Host::First, &guest, Memory::Shared)?;
        Ok((Actor::new(guest)?, machine))
    }

    /// As [`Stage::guest`], but one whose memory is files, as that of a guest is that has never moved.
    pub(crate) fn guest_in_files(&self) -> Result<(Actor, Machine)> {
        let is_in_files = |machine: &Machine| Path::new(&machine.slot.shared_memory(0)).exists();
        if !self.lock().as_ref().is_some_and(is_in_files) {
            self.clear();
        }
        self.guest()
    }

    /// The guest must be intact and run in this machine; the next test may have it.
    pub(crate) fn park(&self, actor: Actor, machine: Machine) -> Result<()> {
        let machine = actor.intact(machine)?;
        *self.lock() = Some(machine);
        Ok(())
    }

    /// Whether a guest is parked.
    pub(crate) fn is_parked(&self) -> bool {
        self.lock().is_some()
    }

    /// There is no parked guest any more.
    pub(crate) fn clear(&self) {
        drop(self.lock().take());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Machine>> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Actor {
    /// The guest begins to write, and the client to talk.
    pub(crate) fn new(guest: Guest) -> Result<Self> {
        guest.work(Load::Writing(PAGES))?;
        let work = guest.report()?.touches.work;
        let client = Client::start(guest.service()?)?;
        Ok(Self { guest, client, work })
    }

    /// The guest runs in this machine, all its pages are right and none is older than it was, and the client was answered all the time.
    pub(crate) fn intact(self, mut machine: Machine) -> Result<Machine> {
        ensure!(machine.guest_runs()?, "the guest does not run where it should");
        self.guest.work(Load::Idle)?;
        let verdict = self.guest.verify()?;
        ensure_unharmed!(verdict.work >= self.work, "the guest has gone back to an earlier state");
        self.client.stop()?;
        Ok(machine)
    }

    /// Starts to move the guest to the other host.
    pub(crate) fn set_out(&self, source: Machine, receive: &[&str], migrate: &[&str]) -> Result<Journey> {
        let prepared = Prepared::new(&self.guest, source, receive)?;
        let migrate = Vmemctl::migrate(&prepared.source.slot, &self.guest, migrate)?;
        Ok(Journey { prepared, migrate })
    }

    /// Moves the guest to the other host.
    pub(crate) fn move_over(&self, source: Machine) -> Result<Machine> {
        self.set_out(source, &[], &[])?.arrive()
    }
}

impl Journey {
    /// Waits until the guest runs at its destination; its memory is on the way.
    pub(crate) fn wait_switched(&mut self) -> Result<()> {
        self.migrate.wait_for(&self.prepared.source.slot, "running").map(drop)
    }

    /// Waits until the guest is at its destination with all its memory.
    pub(crate) fn arrive(mut self) -> Result<Machine> {
        self.migrate.expect(&self.prepared.source.slot, 0)?;
        self.prepared.arrived()
    }

    /// Waits until the migration has failed. The guest's machine is where it was.
    pub(crate) fn fail(mut self, code: i32) -> Result<Machine> {
        let source = self.prepared.source;
        self.migrate.expect(&source.slot, code).context("it should fail")?;
        Ok(source)
    }
}
