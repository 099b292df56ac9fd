// SPDX-License-Identifier: GPL-2.0
//! The instant of a clone's checkpoint: its device state and the pages that it has for itself, at the same time.
//!
//! Private memory cannot be protected by a snapshot, and QEMU leaves only shared memory out of a migration. So QEMU saves the devices alone, into a
//! pipe ([`DeviceSave`]), and the guest stands still while its pages are copied: until the rest of the devices is read. Nobody else need watch
//! over the guest: QEMU continues it when the pipe is read to its end, or closed by the end of this process.

use std::time::{Duration, Instant};

use serde_json::json;
use vmem_cli::Signals;
use vmem_process::Process;
use vmem_qemu::{COMMAND_LIMIT, DeviceSave, Qmp, guest};

use crate::cut::{Cut, Limits, begin, now};
use crate::error::Error;
use crate::events::Events;

/// How often a wait for QEMU looks for a signal.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// As [`cut`](crate::cut::cut), with `copy` instead of the snapshot: the guest stands still as long as it takes. `process` is QEMU's.
pub(crate) fn cut<T>(
    mut qmp: Qmp,
    process: &Process,
    limits: Limits,
    signals: &Signals,
    prepare: impl FnOnce(bool) -> Result<(), Error>,
    copy: impl FnOnce() -> Result<T, Error>,
    resumed: impl FnOnce(),
) -> Result<Cut<T>, Error> {
    let runs = begin(&mut qmp, signals, prepare)?;
    let mut events = Events::default();
    events.skip(&mut qmp)?;
    let mut save = DeviceSave::begin(&mut qmp, process)?;
    let set = save.set();
    let stopped = wait_stopped(&mut save, &mut qmp, limits.timeout, signals);
    let stopped_at = now();
    let copied = stopped.and_then(|()| copy());
    let copied_at = now();
    let saved = match copied {
        Ok(copied) => {
            let saved = save.finish(&mut qmp, limits.device_state, Instant::now() + COMMAND_LIMIT);
            saved.map(|state| (copied, state)).map_err(Error::from)
        }
        Err(error) => {
            // QEMU cannot write any more, and continues the guest.
            drop(save);
            Err(error)
        }
    };
    // QEMU answers when the guest runs again.
    let answered = qmp.execute("remove-fd", json!({"fdset-id": set}));
    resumed();
    let (armed, device_state) = saved?;
    if let Err(error) = answered {
        tracing::debug!("remove-fd: {}", vmem_cli::chain(&error));
    }
    let status = guest::status(&mut qmp).map_err(Error::NotResumed)?;
    events.collect(&mut qmp)?;
    Ok(Cut {
        armed,
        device_state,
        // Its operator may have paused it since it was asked first.
        runs: runs && status != "paused",
        pause: events.pause(stopped_at, copied_at),
    })
}

fn wait_stopped(save: &mut DeviceSave, qmp: &mut Qmp, timeout: Duration, signals: &Signals) -> Result<(), Error> {
    let deadline = Instant::now() + timeout;
    while !save.wait_stopped(qmp, POLL_INTERVAL)? {
        signals.check()?;
        if Instant::now() >= deadline {
            return Err(Error::TimedOut(timeout));
        }
    }
    Ok(())
}
