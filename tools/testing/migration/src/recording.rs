// SPDX-License-Identifier: GPL-2.0-or-later
//! Records the dirty logs of guests, for the simulator of `tools/vmem-precopy`.

use std::path::Path;

use anyhow::Result;

use crate::guest::{Guest, Load, Memory};
use crate::machine::Machine;
use crate::network::Host;
use crate::slot::Slot;
use crate::vmemctl::Vmemctl;

/// Milliseconds of an interval: no longer than the allowed downtime, because a page that is written twice in an interval counts once.
const INTERVAL: &str = "50";

/// Seconds of the boot that are recorded: on an emulated machine, less than all of it.
const BOOT: u32 = 20;

/// Records a guest that boots, and then one that works, to `boot.trace`, `idle.trace` and `writing.trace` in this directory. The guest writes
/// so many pages a second.
pub(crate) fn record(into: &Path, seconds: u32, pages: u32) -> Result<()> {
    let guest = Guest::default();
    let dirty_rate = |slot: &Slot, name: &str, seconds: u32| {
        let seconds = seconds.to_string();
        let file = into.join(name).with_extension("trace");
        let options = [
            "--seconds",
            &seconds,
            "--interval",
            INTERVAL,
            "--record",
            &file.to_string_lossy(),
        ];
        Vmemctl::dirty_rate(slot, &options)
    };
    let mut machine = Machine::start_booting(Host::First, &guest, Memory::Shared)?;
    dirty_rate(&machine.slot, "boot", BOOT)?.expect(&machine.slot, 0)?;
    machine.wait_until_ready()?;
    for (name, load) in [("idle", Load::Idle), ("writing", Load::Writing(pages))] {
        guest.work(load)?;
        dirty_rate(&machine.slot, name, seconds)?.expect(&machine.slot, 0)?;
    }
    guest.verify()?;
    Ok(())
}
