// SPDX-License-Identifier: GPL-2.0-or-later
//! Moves guests or makes checkpoints of them, again and again, and says what became of each: what is to be counted is how often a guest or its
//! machine dies, and by what.
//!
//! The machine may end at any moment. So each step is told before it is taken, on a line of its own, and `tools/testing/migration/endure` counts.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, ensure};

use crate::client::Client;
use crate::counters::Counters;
use crate::evidence;
use crate::guest::{Guest, Load, Memory};
use crate::harm::{ensure_unharmed, is_harm};
use crate::machine::Machine;
use crate::method::Method;
use crate::network::Host;
use crate::patience::choose_patience;
use crate::scratch::Scratch;
use crate::slot::Slot;
use crate::vmemctl::Vmemctl;

/// A guest that does not answer for so long is lost.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a guest works between two moves.
const BETWEEN: Duration = Duration::from_millis(300);
/// How long a guest that is not moved works instead.
const REST: Duration = Duration::from_secs(4);

/// Checkpoints that are made at once, a second apart: a full one, and increments.
const CHECKPOINTS: &str = "4";

/// What is done to a guest.
#[derive(Clone, Copy)]
pub(crate) enum Deed {
    /// It is moved to the other host.
    Move(Method),
    /// `vmemctl checkpoint create` makes checkpoints of it.
    Checkpoint,
    /// It works.
    Rest,
}

impl Deed {
    fn name(self) -> String {
        match self {
            Self::Move(method) => method.short(),
            Self::Checkpoint => "checkpoint".to_owned(),
            Self::Rest => "rest".to_owned(),
        }
    }

    fn memory(self) -> Memory {
        match self {
            Self::Move(method) => method.memory(),
            Self::Checkpoint | Self::Rest => Memory::Shared,
        }
    }
}

/// What is done.
pub(crate) struct Endurance {
    /// One after the other.
    pub(crate) deeds: Vec<Deed>,
    pub(crate) load: Load,
    /// How often it is done to one guest.
    pub(crate) times: u32,
    /// When nothing more is begun.
    pub(crate) until: Instant,
    pub(crate) guest: Guest,
    /// How many more guests work meanwhile, and are not moved.
    pub(crate) beside: u8,
}

/// A guest, and who talks to it.
struct Subject {
    machine: Machine,
    client: Client,
    work: u64,
}

impl Endurance {
    /// Goes on until the time is up.
    pub(crate) fn run(&self) {
        // Without KVM all takes several times as long.
        evidence::keep_dead();
        choose_patience(if self.guest.variant.emulated { 5 * PATIENCE } else { PATIENCE });
        let mut neighbours: Vec<Option<Subject>> = (0..self.beside).map(|_| None).collect();
        while self.is_time() {
            for deed in &self.deeds {
                if self.is_time() {
                    self.meet(&mut neighbours);
                    self.run_one(*deed);
                }
            }
        }
        self.meet(&mut neighbours);
    }

    /// Sees that the guests beside are well, and boots those that are not there.
    fn meet(&self, neighbours: &mut [Option<Subject>]) {
        for (number, place) in (1..).zip(neighbours) {
            let guest = Guest {
                number,
                ..self.guest.clone()
            };
            let lost = place.take().and_then(|subject| match guest.verify() {
                Ok(_) => {
                    *place = Some(subject);
                    None
                }
                Err(error) => Some(error),
            });
            if let Some(error) = lost {
                tell_loss("beside", "lost", &error);
            }
            if place.is_none() && self.is_time() {
                say("beside", "boots");
                match self.boot(&guest, Deed::Rest) {
                    Ok(subject) => {
                        say("beside", "booted");
                        *place = Some(subject);
                    }
                    Err(error) => tell_loss("beside", "no-boot", &error),
                }
            }
        }
    }

    fn is_time(&self) -> bool {
        Instant::now() < self.until
    }

    /// Boots a guest, and does it until the guest is lost or it was done often enough.
    fn run_one(&self, deed: Deed) {
        let name = deed.name();
        let name = name.as_str();
        say(name, "boots");
        let mut subject = match self.boot(&self.guest, deed) {
            Ok(subject) => subject,
            Err(error) => return tell_loss(name, "no-boot", &error),
        };
        say(name, "booted");
        for _ in 0..self.times {
            if !self.is_time() {
                break;
            }
            say(name, &format!("moves {}", subject.machine.slot.name()));
            let (since, counters) = (Instant::now(), Counters::start());
            subject = match self.act(deed, subject) {
                Ok(subject) => subject,
                Err(error) => return tell_loss(name, "lost", &error),
            };
            println!(
                "endure: {name} moved {:.1}{}",
                since.elapsed().as_secs_f64(),
                counters.rates()
            );
        }
        if let Err(error) = subject.client.stop() {
            tell_loss(name, "lost", &error);
        }
    }

    fn boot(&self, guest: &Guest, deed: Deed) -> Result<Subject> {
        let machine = Machine::boot_once(Host::First, guest, deed.memory())?;
        guest.work(self.load)?;
        Ok(Subject {
            machine,
            client: Client::start(guest.service()?)?,
            work: 0,
        })
    }

    /// Each of the guest's pages is right then.
    fn act(&self, deed: Deed, subject: Subject) -> Result<Subject> {
        let Subject { machine, client, work } = subject;
        let mut machine = match deed {
            Deed::Move(method) => {
                let moved = method.prepare(&self.guest, machine)?.run()?;
                ensure!(moved.done, "it was not moved");
                moved.machine
            }
            Deed::Checkpoint => {
                keep(&machine.slot)?;
                machine
            }
            Deed::Rest => {
                sleep(REST);
                machine
            }
        };
        let verdict = self
            .guest
            .verify()
            .or_else(|error| {
                machine.keep_registers();
                machine.check().and(Err(error))
            })
            .with_context(|| format!("{}: QEMU says {}", machine.slot.name(), machine.status()))?;
        ensure_unharmed!(verdict.work >= work, "the guest has gone back to an earlier state");
        sleep(BETWEEN);
        Ok(Subject {
            machine,
            client,
            work: verdict.work,
        })
    }
}

/// Makes checkpoints in a store of their own.
fn keep(slot: &Slot) -> Result<()> {
    let store = Scratch::store("endurance", slot)?;
    let qmp = slot.qmp();
    let qmp = qmp.to_str().context("a path that is no text")?;
    let words = ["--store", store.path()?, "--qmp", qmp, "--every", "1", "--count", CHECKPOINTS];
    Vmemctl::checkpoint(slot, &[], "create", &words)?.expect(slot, 0)
}

fn say(name: &str, what: &str) {
    println!("endure: {name} {what}");
}

/// A guest whose memory is wrong is told apart from one that is lost.
fn tell_loss(name: &str, how: &str, error: &Error) {
    let how = if is_harm(error) { "wrong" } else { how };
    println!("endure: {name} {how}: {}", format!("{error:#}").replace('\n', " | "));
}
