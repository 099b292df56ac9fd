// SPDX-License-Identifier: GPL-2.0-or-later
//! The instant of a clone's checkpoint: its device state and the pages that it has for itself, at the same time.
//!
//! Private memory cannot be protected by a snapshot, and QEMU leaves only shared memory out of a migration. So QEMU saves the devices alone, into a
//! pipe ([`DeviceSave`]), and the guest stands still while its pages are copied: until the rest of the devices is read. Nobody else need watch
//! over the guest: QEMU continues it when the pipe is read to its end, or closed by the end of this process. With disks, the guest is stopped
//! before ([`Standstill`]): the overlays are made after that, and before it runs again.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use serde_json::json;
use vmem_cli::Signals;
use vmem_process::Process;
use vmem_qemu::{COMMAND_LIMIT, DeviceSave, Qmp, guest};

use crate::cut::{Cut, Limits, begin, now};
use crate::disks::{Plan, with_overlays};
use crate::error::Error;
use crate::events::Events;
use crate::standstill::Standstill;

/// How often a wait for QEMU looks for a signal.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// What a cut is bound by, and does besides.
pub(crate) struct How<'a> {
    pub(crate) limits: Limits,
    pub(crate) signals: &'a Signals,
    /// Overlays that the disks get at the instant.
    pub(crate) plan: Option<&'a Plan>,
    /// With them, the command of the deputy.
    pub(crate) deputy: &'a [OsString],
}

/// As [`cut`](crate::cut::cut), with `copy` instead of the snapshot: the guest stands still as long as it takes. `process` is QEMU's.
///
/// # Errors
///
/// As for [`cut`](crate::cut::cut). [`Error::Overlays`] if the disks have their overlays already.
pub(crate) fn cut<T>(
    mut qmp: Qmp,
    process: &Process,
    how: &How<'_>,
    prepare: impl FnOnce(bool) -> Result<(), Error>,
    copy: impl FnOnce() -> Result<T, Error>,
    resumed: impl FnOnce(),
) -> Result<Cut<T>, Error> {
    let runs = begin(&mut qmp, how.signals, prepare)?;
    let mut events = Events::default();
    events.skip(&mut qmp)?;
    // QEMU executes no other command while it saves the devices, and would continue the guest before it makes the overlays.
    let standstill = match how.plan {
        Some(_) if runs => Some(Standstill::begin(&mut qmp, how.deputy)?),
        _ => None,
    };
    let Saved {
        result: saved,
        stopped_at,
        copied_at,
        set,
    } = save(&mut qmp, process, how, copy);
    let overlaid = match (&saved, how.plan) {
        (Ok(_), Some(plan)) => plan.make(&mut qmp),
        _ => Ok(()),
    };
    let continued = standstill.map_or(Ok(()), |standstill| standstill.end(&mut qmp));
    // QEMU answers when the guest runs again.
    let answered = set.map(|set| qmp.execute("remove-fd", json!({"fdset-id": set})));
    resumed();
    let named = |error| with_overlays(how.plan.map_or(Vec::new(), Plan::files), error);
    let saved = saved.and_then(|saved| overlaid.map(|()| saved));
    // That the guest stands still counts more than that there is no checkpoint.
    let (armed, device_state) = match (saved, continued) {
        (saved, Ok(())) => saved?,
        (Ok(_), Err(still)) => return Err(named(still)),
        (Err(error), Err(still)) => {
            tracing::error!("the checkpoint is not made: {}", vmem_cli::chain(&error));
            return Err(still);
        }
    };
    if let Some(Err(error)) = answered {
        tracing::debug!("remove-fd: {}", vmem_cli::chain(&error));
    }
    let status = guest::status(&mut qmp).map_err(|error| named(Error::NotResumed(error)))?;
    events.collect(&mut qmp).map_err(|error| named(error.into()))?;
    Ok(Cut {
        armed,
        device_state,
        // Its operator may have paused it since it was asked first.
        runs: runs && status != "paused",
        pause: events.pause(stopped_at, copied_at),
    })
}

/// What came of saving the devices.
struct Saved<T> {
    /// What was copied, and the devices.
    result: Result<(T, Vec<u8>), Error>,
    /// When the guest was seen to stand still, and when all was copied.
    stopped_at: Duration,
    copied_at: Duration,
    /// A set of QEMU's descriptors that is to be removed.
    set: Option<u64>,
}

/// Saves the devices, and copies while the guest stands still.
fn save<T>(qmp: &mut Qmp, process: &Process, how: &How<'_>, copy: impl FnOnce() -> Result<T, Error>) -> Saved<T> {
    let mut save = match DeviceSave::begin(qmp, process) {
        Ok(save) => save,
        Err(error) => {
            return Saved {
                result: Err(error.into()),
                stopped_at: now(),
                copied_at: now(),
                set: None,
            };
        }
    };
    let set = Some(save.set());
    let stopped = wait_stopped(&mut save, qmp, how.limits.timeout, how.signals);
    let stopped_at = now();
    let copied = stopped.and_then(|()| copy());
    let copied_at = now();
    let result = match copied {
        Ok(copied) => {
            let saved = save.finish(qmp, how.limits.device_state, Instant::now() + COMMAND_LIMIT);
            saved.map(|state| (copied, state)).map_err(Error::from)
        }
        Err(error) => {
            // QEMU cannot write any more, and continues a guest that it has stopped.
            drop(save);
            Err(error)
        }
    };
    Saved {
        result,
        stopped_at,
        copied_at,
        set,
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cut::tests::fake::{DEVICES, FakeQemu, Habit};

    const LIMITS: Limits = Limits {
        timeout: Duration::from_secs(20),
        device_state: 1 << 20,
    };

    /// A cut of a guest with disks, or without. `copy` hears the state of the guest.
    fn cut_of(qemu: &FakeQemu, has_disks: bool, copy: impl FnOnce(&str) -> Result<(), Error>) -> Result<Cut<()>, Error> {
        let directory = tempfile::tempdir().expect("a directory");
        let mut qmp = qemu.connect();
        let plan = has_disks.then(|| Plan::of(&mut qmp, directory.path(), "guest0").expect("a disk"));
        let own = Process::open(std::process::id().try_into().expect("a number")).expect("this process");
        let how = How {
            limits: LIMITS,
            signals: &Signals::default(),
            plan: plan.as_ref(),
            deputy: &[],
        };
        cut(qmp, &own, &how, |_| Ok(()), || copy(&qemu.status()), || ())
    }

    /// The commands that change something, in their order.
    fn changes(qemu: &FakeQemu) -> Vec<String> {
        let mut all = qemu.commands();
        all.retain(|name| ["stop", "xen-save-devices-state", "transaction", "cont"].contains(&name.as_str()));
        all
    }

    #[test]
    fn overlays_are_made_after_the_devices_are_saved_and_before_the_guest_runs() {
        let qemu = FakeQemu::start("running", Habit::default());
        let made = cut_of(&qemu, true, |status| {
            assert_eq!(status, "save-vm");
            Ok(())
        })
        .expect("a cut");
        assert_eq!((made.device_state.len(), made.runs), (DEVICES, true));
        assert_eq!(changes(&qemu), ["stop", "xen-save-devices-state", "transaction", "cont"]);
        assert!(made.pause.is_some() && qemu.status() == "running");
        let paused = FakeQemu::start("paused", Habit::default());
        assert!(!cut_of(&paused, true, |_| Ok(())).expect("a cut").runs);
        assert_eq!(changes(&paused), ["xen-save-devices-state", "transaction"]);
        let without = FakeQemu::start("running", Habit::default());
        cut_of(&without, false, |_| Ok(())).expect("a cut");
        assert_eq!(changes(&without), ["xen-save-devices-state"], "QEMU continues it by itself");
    }

    #[test]
    fn guest_runs_on_whatever_fails_and_its_overlays_are_named() {
        let qemu = FakeQemu::start("running", Habit::default());
        let error = cut_of(&qemu, true, |_| Err(Error::OtherMemory)).expect_err("no copy");
        assert!(matches!(error, Error::OtherMemory), "{error:?}");
        assert_eq!(changes(&qemu), ["stop", "xen-save-devices-state", "cont"]);
        assert_eq!(qemu.status(), "running");
        let refuses = Habit {
            refuses_overlays: true,
            ..Habit::default()
        };
        let qemu = FakeQemu::start("running", refuses);
        let error = cut_of(&qemu, true, |_| Ok(())).expect_err("no overlay");
        assert!(!matches!(error, Error::Overlays { .. }), "{error:?}");
        assert_eq!(qemu.status(), "running");
        let refuses = Habit {
            refuses_cont: true,
            ..Habit::default()
        };
        let error = cut_of(&FakeQemu::start("running", refuses), true, |_| Err(Error::OtherMemory));
        assert!(matches!(error, Err(Error::NotResumed(_))), "{error:?}");
        let error = cut_of(&FakeQemu::start("running", refuses), true, |_| Ok(())).expect_err("it stands still");
        assert!(
            matches!(&error, Error::Overlays { overlays, source } if overlays.len() == 1 && matches!(**source, Error::NotResumed(_))),
            "{error:?}"
        );
    }
}
