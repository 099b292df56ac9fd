// SPDX-License-Identifier: GPL-2.0-or-later
//! QEMU's events, which say how long a guest stood still.

use std::time::{Duration, Instant};

use vmem_qemu::{Event, Qmp};

use crate::statistics::Pause;

/// QEMU's events since the guest was stopped.
#[derive(Default)]
pub(crate) struct Events(Vec<Event>);

impl Events {
    /// Drops what is older.
    pub(crate) fn skip(&mut self, qmp: &mut Qmp) -> Result<(), vmem_qemu::Error> {
        while qmp.next_event(Instant::now())?.is_some() {}
        self.0.clear();
        Ok(())
    }

    /// Takes what has arrived. Whether QEMU waits for `migrate-continue`.
    pub(crate) fn collect(&mut self, qmp: &mut Qmp) -> Result<bool, vmem_qemu::Error> {
        let mut waits = false;
        while let Some(event) = qmp.next_event(Instant::now())? {
            waits |= event.name == "MIGRATION" && event.data["status"] == "pre-switchover";
            // A guest emits few events in this time; a stranger could emit many.
            if matches!(event.name.as_str(), "STOP" | "RESUME") && self.0.len() < 64 {
                self.0.push(event);
            }
        }
        Ok(waits)
    }

    /// How long the guest stood still: from the first STOP to the RESUME after the snapshot was armed.
    pub(crate) fn pause(&self, saved: Duration, armed: Duration) -> Option<Pause> {
        let at = |name: &str, after: Duration| {
            let found = self
                .0
                .iter()
                .filter(|event| event.name == name)
                .filter_map(|event| event.time);
            found.filter(|at| *at >= after).min()
        };
        let stopped = at("STOP", Duration::ZERO)?;
        let resumed = at("RESUME", stopped)?;
        Some(Pause {
            total: resumed - stopped,
            devices: saved.saturating_sub(stopped),
            arming: armed.saturating_sub(saved),
            resuming: resumed.saturating_sub(armed),
        })
    }
}
