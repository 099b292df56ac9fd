// SPDX-License-Identifier: GPL-2.0-or-later
//! The way of this project: `vmemctl receive` there, `vmemctl migrate` here.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Moved;
use crate::guest::{Guest, Memory};
use crate::identity;
use crate::machine::Machine;
use crate::network::Host;
use crate::patience::wait_until;
use crate::slot::Slot;
use crate::timeline::{Growing, Timeline, now};
use crate::vmemctl::{Vmemctl, said};

/// From one look at what vmemctl says to the next.
const POLL: Duration = Duration::from_millis(5);

/// A guest at its source, and a vmemctl that waits for it.
pub(crate) struct Prepared {
    pub(crate) source: Machine,
    /// The guest's place at its destination.
    pub(crate) slot: Slot,
    pub(crate) receive: Vmemctl,
}

impl Prepared {
    /// Starts `vmemctl receive`, with these more options.
    pub(crate) fn new(guest: &Guest, source: Machine, options: &[&str]) -> Result<Self> {
        let slot = guest.slot(source.slot.host.other())?;
        let receive = Vmemctl::receive(&slot, guest, options)?;
        Ok(Self { source, slot, receive })
    }

    /// Waits until `receive` is done, after `migrate` or `recover`: the guest is at its destination with all its memory, and its source has ended.
    pub(crate) fn arrived(mut self) -> Result<Machine> {
        self.receive.expect(&self.slot, 0)?;
        let source = &mut self.source;
        wait_until("the source's QEMU has ended", || Ok(!source.runs()?))?;
        Machine::adopt(self.slot)
    }
}

/// The same, with a QEMU that waits for the guest, too: nothing need be started any more when the guest is to move.
pub(crate) struct Ready {
    guest: Guest,
    source: Machine,
    destination: Machine,
    receive: Vmemctl,
    /// More options of `migrate`.
    options: Vec<String>,
    data_bytes: Option<u64>,
}

impl Ready {
    /// Starts `vmemctl receive`, and the destination's QEMU on the regions that it makes.
    pub(super) fn new(guest: &Guest, source: Machine, mode: &str, has_tls: bool) -> Result<Self> {
        let slot = guest.slot(source.slot.host.other())?;
        let mut options = Vec::new();
        if has_tls {
            let directory = identity::write(&Host::BOTH.map(Host::address), Path::new("/tmp/identity-of-ways"))?;
            options.extend(["--tls".to_owned(), directory.display().to_string()]);
        }
        let mut words = options.clone();
        for (backend, mib) in guest.memory_mib.iter().enumerate() {
            words.extend(["--region".to_owned(), format!("{}={mib}M", guest.region(slot.host, backend))]);
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let receive = Vmemctl::receive_as(&slot, guest, &words)?;
        let destination = Machine::incoming_in(slot, guest, Memory::Region)?;
        options.extend(["--mode", mode].map(str::to_owned));
        Ok(Self {
            guest: guest.clone(),
            data_bytes: source.memory_in_use(guest)?,
            source,
            destination,
            receive,
            options,
        })
    }

    /// Moves the guest.
    pub(super) fn run(mut self) -> Result<Moved> {
        let options: Vec<&str> = self.options.iter().map(String::as_str).collect();
        // What was said before.
        let _ = (self.source.events(), self.destination.events());
        let mut timeline = Timeline::begin(self.guest.memory());
        let mut left = Left::new(self.guest.memory());
        let mut migrate = Vmemctl::migrate(&self.source.slot, &self.guest, &options)?;
        let mut log = Growing::new(self.source.slot.log("migrate"));
        while timeline.complete.is_none() {
            let runs = migrate.runs()?;
            for line in log.lines() {
                if let Some(bytes) = left.after(&line) {
                    timeline.note_left(bytes);
                }
                match line["event"].as_str() {
                    Some("remainder") => timeline.saved = Some(now()),
                    Some("done") => timeline.complete = Some(now()),
                    _ => (),
                }
            }
            // Its QEMU ends with the move.
            timeline.note_source(&mut self.source);
            if !runs && timeline.complete.is_none() {
                migrate.expect(&self.source.slot, 0)?;
                bail!("vmemctl migrate does not say what it has done");
            }
            sleep(POLL);
        }
        timeline.note_left(0);
        timeline.note_destination(&mut self.destination);
        migrate.expect(&self.source.slot, 0)?;
        self.receive.expect(&self.destination.slot, 0)?;
        let source = &mut self.source;
        let done = said(&source.slot.read_log("migrate"), "done").context("vmemctl migrate does not say what it has done")?;
        wait_until("the source's QEMU has ended", || Ok(!source.runs()?))?;
        Ok(Moved {
            machine: self.destination,
            left: None,
            done: true,
            reported_downtime: done["downtime_seconds"].as_f64(),
            data_bytes: self.data_bytes,
            timeline,
        })
    }
}

/// How much of the memory is to be sent, from what vmemctl says of the rounds and of what follows.
struct Left {
    /// At the end of the last round.
    bytes: u64,
    /// Bytes that had been staged then, and the latest figure of that.
    staged: (u64, u64),
    /// The guest has stopped after rounds.
    is_stopped: bool,
    /// It runs at its destination.
    runs: bool,
}

impl Left {
    fn new(memory: u64) -> Self {
        Self {
            bytes: memory,
            staged: (0, 0),
            is_stopped: false,
            runs: false,
        }
    }

    /// After this line; None if it says nothing of that.
    fn after(&mut self, line: &Value) -> Option<u64> {
        let vmemd = &line["vmemd"];
        match line["event"].as_str()? {
            "round" => {
                self.bytes = vmemd["left_pages"].as_u64()? * 4096;
                self.staged.0 = self.staged.1;
                Some(self.bytes)
            }
            "remainder" => {
                self.is_stopped = true;
                self.bytes = line["bytes"].as_u64()?;
                Some(self.bytes)
            }
            "running" => {
                self.runs = true;
                None
            }
            "pages" if self.runs => {
                let regions = vmemd["regions"].as_array()?;
                let absent = |region: &Value| Some(region["bytes"].as_u64()?.saturating_sub(region["present_bytes"].as_u64()?));
                // What was said before the staged pages became present does not count.
                Some(regions.iter().map(absent).sum::<Option<u64>>()?.min(self.bytes))
            }
            // Staged pages are not present yet, and no more are staged.
            "pages" if self.is_stopped => None,
            "pages" => {
                self.staged.1 = vmemd["staged_bytes"].as_u64()?;
                Some(self.bytes.saturating_sub(self.staged.1.saturating_sub(self.staged.0)))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_left_follows_the_rounds_and_then_the_pages_at_the_destination() {
        let mut left = Left::new(100 * 4096);
        let pages = |staged: u64, present: u64| json!({"event": "pages", "vmemd": {"staged_bytes": staged * 4096, "regions": [{"bytes": 100 * 4096, "present_bytes": present * 4096}]}});
        let round = json!({"event": "round", "vmemd": {"left_pages": 20}});
        assert_eq!(left.after(&pages(60, 0)), Some(40 * 4096));
        assert_eq!(left.after(&round), Some(20 * 4096));
        assert_eq!(left.after(&pages(75, 0)), Some(5 * 4096));
        assert_eq!(left.after(&json!({"event": "remainder", "bytes": 8192})), Some(8192));
        assert_eq!(left.after(&pages(75, 0)), None);
        assert_eq!(left.after(&json!({"event": "running"})), None);
        assert_eq!(left.after(&pages(75, 0)), Some(8192));
        assert_eq!(left.after(&pages(75, 99)), Some(4096));
        assert_eq!(left.after(&json!({"event": "note", "text": "hm"})), None);
    }
}
