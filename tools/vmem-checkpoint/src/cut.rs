// SPDX-License-Identifier: GPL-2.0-or-later
//! The instant of a guest's checkpoint: its device state and its memory, at the same time.
//!
//! QEMU saves devices only as a migration. The guest goes on until QEMU itself stops it at the end of that migration, when all that can be
//! sent while the guest runs has been sent. Then QEMU writes the devices' state, and waits for the word that it was loaded (the capability
//! `return-path`). In this moment the memory does not change, and the snapshot is armed. Then the migration is cancelled, and QEMU continues
//! the guest, or leaves it paused if it was.
//!
//! So nobody else need watch over the guest: QEMU continues it whenever the migration does not succeed, and it cannot succeed, since nothing
//! here ever says so. A process that dies, by a signal, a panic or SIGKILL, closes the socket of the stream, and with it ends the migration.
//! A process of our own that waits for our death and says `cont` would need a monitor of its own, could be killed with us (a control group,
//! the OOM killer), and could continue a guest that its operator has paused meanwhile.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;
use vmem_cli::Signals;
use vmem_qemu::migration::Settings;
use vmem_qemu::{COMMAND_LIMIT, Qmp, guest, migration, obstacles, stream};

use crate::error::Error;
use crate::events::Events;
use crate::state_reader::{Progress, StateReader};
use crate::statistics::Pause;

/// What QEMU needs for it: `x-ignore-shared` leaves out the memory, `return-path` has QEMU wait, `events` says when the guest stood still.
const CAPABILITIES: [&str; 3] = ["events", "return-path", "x-ignore-shared"];

/// How often a wait for QEMU looks for a signal.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// How often it looks whether QEMU waits for something.
const EVENT_INTERVAL: Duration = Duration::from_millis(100);

/// How long QEMU may take to continue the guest, after it has cancelled its migration.
const RESUMPTION: Duration = Duration::from_secs(20);

/// Limits of a cut.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How long QEMU may take to save the devices.
    pub timeout: Duration,
    /// Bytes of the device state.
    pub device_state: usize,
}

/// A guest at one instant.
#[derive(Debug)]
pub struct Cut<T> {
    /// What was armed at the instant.
    pub armed: T,
    /// QEMU's device state.
    pub device_state: Vec<u8>,
    /// Whether the guest ran. If not, it was paused, and stays so.
    pub runs: bool,
    /// How long the guest stood still, if QEMU says so.
    pub pause: Option<Pause>,
}

/// Takes the device state, and calls `arm` while the guest stands still for it. `prepare` is called just before, while the guest runs, if it
/// does, which it is told. `resumed` is called as soon as the guest is again what it was. `socket` is where `qmp` is connected to.
///
/// Whatever happens, a guest that ran runs again, and a paused one is paused: after an error, a signal or a panic, and after the death of
/// this process. QEMU's settings are as before, unless this process is killed.
///
/// # Errors
///
/// [`Error::Status`], [`Error::TimedOut`], [`Error::NotSaved`], [`Error::StateTooLong`], a signal, those of the two functions, and those of
/// QMP. [`Error::NotResumed`] if QEMU does not say that the guest runs again. [`Error::SettingsKept`] if QEMU's settings are not as before.
pub fn cut<T>(
    mut qmp: Qmp,
    socket: &Path,
    limits: Limits,
    signals: &Signals,
    prepare: impl FnOnce(bool) -> Result<(), Error>,
    arm: impl FnOnce(&mut Qmp) -> Result<T, Error>,
    resumed: impl FnOnce(),
) -> Result<Cut<T>, Error> {
    // The settings are another client's, too: all that takes time and needs none of them is done before they change.
    let runs = begin(&mut qmp, signals, prepare)?;
    let (stream, uri) = stream::open(&mut qmp)?;
    let reader = StateReader::start(stream, limits.device_state).map_err(Error::Thread)?;
    let settings = Settings::of(&mut qmp, &CAPABILITIES)?;
    let cut = match settings.change(&mut qmp) {
        // QEMU switches on all capabilities or none. Without them, nothing has changed.
        Err(error) if is_of_capabilities(&error) => return Err(error.into()),
        Err(error) => Err(error.into()),
        Ok(()) => save(&mut qmp, reader, &uri, limits, signals, runs, arm),
    };
    resumed();
    match restore(qmp, socket, &settings) {
        Ok(()) => cut,
        Err(kept) => {
            if let Err(error) = cut {
                tracing::error!("the checkpoint is not made: {}", vmem_cli::chain(&error));
            }
            Err(kept)
        }
    }
}

/// Checks that the guest can be cut, and prepares that. Returns whether it runs.
pub(crate) fn begin(qmp: &mut Qmp, signals: &Signals, prepare: impl FnOnce(bool) -> Result<(), Error>) -> Result<bool, Error> {
    let status = guest::status(qmp)?;
    let runs = match status.as_str() {
        "running" => true,
        "paused" => false,
        _ => return Err(Error::Status(status)),
    };
    obstacles::check(qmp)?;
    prepare(runs)?;
    signals.check()?;
    Ok(runs)
}

/// Whether QEMU has refused to change its capabilities.
fn is_of_capabilities(error: &vmem_qemu::Error) -> bool {
    matches!(error, vmem_qemu::Error::Refused { command, .. } if command == "migrate-set-capabilities")
}

/// Restores QEMU's settings. Another client may use QEMU's migration next, and with these settings its stream would lack the memory.
fn restore(mut qmp: Qmp, socket: &Path, settings: &Settings) -> Result<(), Error> {
    let Err(error) = settings.restore(&mut qmp) else {
        return Ok(());
    };
    tracing::warn!("QEMU's settings are restored once more: {}", vmem_cli::chain(&error));
    // QEMU serves one connection at a time.
    drop(qmp);
    let again = Qmp::connect(socket, COMMAND_LIMIT).and_then(|mut qmp| settings.restore(&mut qmp));
    again.map_err(Error::SettingsKept)
}

fn save<T>(
    qmp: &mut Qmp,
    reader: StateReader,
    uri: &str,
    limits: Limits,
    signals: &Signals,
    runs: bool,
    arm: impl FnOnce(&mut Qmp) -> Result<T, Error>,
) -> Result<Cut<T>, Error> {
    let mut events = Events::default();
    events.skip(qmp)?;
    match qmp.execute("migrate", json!({"uri": uri})) {
        // Nothing has begun.
        Err(error @ vmem_qemu::Error::Refused { .. }) => return Err(error.into()),
        // A QEMU that does not answer may have begun.
        Err(error) => {
            drop(reader);
            return Err(resume(qmp, runs).map_or_else(Error::NotResumed, |_| error.into()));
        }
        Ok(_) => {}
    }
    let saved = wait_saved(qmp, &reader, limits.timeout, signals, &mut events);
    let saved_at = now();
    // The memory does not change between here and the cancellation.
    let armed = saved.and_then(|()| arm(qmp));
    let armed_at = now();
    let cancelled = qmp.execute("migrate_cancel", json!({}));
    // With the stream closed, QEMU ends a migration that it did not cancel.
    let device_state = reader.finish();
    let resumed = resume(qmp, runs);
    if let Err(error) = cancelled {
        tracing::debug!("migrate_cancel: {}", vmem_cli::chain(&error));
    }
    // Its operator may have paused or continued it since it was asked first.
    let runs = resumed.map_err(Error::NotResumed)?;
    let armed = armed?;
    let device_state = device_state
        .ok_or_else(|| Error::NotSaved("it went on writing after what looked like the end of the device state".to_owned()))?;
    events.collect(qmp)?;
    Ok(Cut {
        armed,
        device_state,
        runs,
        pause: events.pause(saved_at, armed_at),
    })
}

/// Waits until QEMU has written all of the device state.
fn wait_saved(
    qmp: &mut Qmp,
    reader: &StateReader,
    timeout: Duration,
    signals: &Signals,
    events: &mut Events,
) -> Result<(), Error> {
    let deadline = Instant::now() + timeout;
    let mut look = Instant::now() + EVENT_INTERVAL;
    loop {
        match reader.wait(POLL_INTERVAL) {
            // Memory that QEMU sends with the devices is the guest's, and may have bytes that look like the end. QEMU stops the guest before the
            // real one, and writes nothing after it.
            Progress::Complete => {
                let is_stopped = is_stopped(&guest::status(qmp)?);
                if is_stopped && reader.wait(Duration::ZERO) == Progress::Complete {
                    return Ok(());
                }
                signals.check()?;
                std::thread::sleep(POLL_INTERVAL);
            }
            Progress::TooLong => return Err(Error::StateTooLong(crate::MAX_DEVICE_STATE)),
            Progress::Ended => {
                let reason = migration::status(qmp)?.1;
                return Err(Error::NotSaved(
                    reason.unwrap_or_else(|| "it has closed the stream".to_owned()),
                ));
            }
            Progress::Going => signals.check()?,
        }
        if Instant::now() >= deadline {
            return Err(Error::TimedOut(timeout));
        }
        if Instant::now() >= look {
            look = Instant::now() + EVENT_INTERVAL;
            if events.collect(qmp)? {
                // Another client has switched on pause-before-switchover.
                qmp.execute("migrate-continue", json!({"state": "pre-switchover"}))?;
            }
        }
    }
}

/// Whether QEMU has stopped the guest for a migration.
fn is_stopped(status: &str) -> bool {
    matches!(status, "finish-migrate" | "postmigrate")
}

/// Waits until QEMU has ended its migration, and the guest runs if it ran. Returns whether it runs.
fn resume(qmp: &mut Qmp, runs: bool) -> Result<bool, vmem_qemu::Error> {
    migration::cancel(qmp)?;
    let until = Instant::now() + RESUMPTION;
    loop {
        let status = guest::status(qmp)?;
        // QEMU continues the guest by itself, a moment after its migration has ended. A guest that is paused now was paused by somebody
        // else, and one that has ended stays so.
        match status.as_str() {
            "running" => return Ok(true),
            "paused" => return Ok(false),
            // It has ended since, for example: what counts is how it was.
            status if !is_stopped(status) => return Ok(runs),
            _ => {}
        }
        if runs && Instant::now() + RESUMPTION / 2 >= until {
            match qmp.execute("cont", json!({})) {
                Err(error) if Instant::now() >= until => return Err(error),
                _ => {}
            }
        } else if Instant::now() >= until {
            return Ok(false);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// The time since 1970, which QEMU's events have.
pub(crate) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
pub(crate) mod tests;
