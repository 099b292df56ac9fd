// SPDX-License-Identifier: GPL-2.0-or-later
//! The guest continues at the source, because the move was given up before COMMIT or the destination has said FAILED.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use vmem_cli::chain;
use vmem_qemu::{Qmp, guest, migration};

use crate::channel::Channel;
use crate::endpoint::Endpoint;
use crate::error::Cause;
use crate::message::FromDestination;
use crate::record::Outgoing;
use crate::report::Report;

/// How long the destination's QEMU may take to release the guest's disks.
const LOCKS: Duration = Duration::from_secs(20);

/// How long a destination that has received ABORT may take to end its QEMU and to say FAILED.
const FAREWELL: Duration = Duration::from_secs(15);

/// ABORT to a destination whose QEMU may hold the guest's disks until it arrives.
pub(super) struct Farewell<'a> {
    /// The connection on which ABORT was sent, if it was sent.
    pub(super) channel: Option<&'a mut Channel>,
    pub(super) endpoint: Endpoint,
    pub(super) reason: String,
}

impl Farewell<'_> {
    /// Returns when the destination has ended its QEMU, or has received ABORT on a new connection. That ABORT was sent on the old
    /// connection does not prove that the destination has received it.
    pub(super) fn send(self) -> Result<(), Cause> {
        let deadline = Instant::now() + FAREWELL;
        if let Some(channel) = self.channel {
            loop {
                match channel.recv(deadline) {
                    Ok(Some(FromDestination::Failed { .. })) => return Ok(()),
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => break,
                }
            }
        }
        self.endpoint.abort(self.reason)
    }
}

/// Runs `main`, and `other` in a thread beside it. `main` can ask whether `other` has ended. Without `other`, the answer is always yes.
pub(super) fn beside<T, U: Send>(
    other: Option<impl FnOnce() -> U + Send>,
    main: impl FnOnce(&dyn Fn() -> bool) -> T,
) -> (T, Option<U>) {
    let Some(other) = other else { return (main(&|| true), None) };
    thread::scope(|scope| {
        let thread = scope.spawn(other);
        let done = main(&|| thread.is_finished());
        (done, thread.join().ok())
    })
}

/// Cancels QEMU's migration, and continues the guest if it ran. The destination may hold the disks until shortly after `is_told`, so a
/// refused `cont` is repeated for [`LOCKS`] after that.
pub(super) fn resume_guest(qmp: &mut Qmp, runs: bool, is_told: &dyn Fn() -> bool) -> Result<(), Cause> {
    migration::cancel(qmp)?;
    let mut until = Instant::now() + LOCKS;
    while runs && guest::status(qmp)? != "running" {
        if !is_told() {
            until = Instant::now() + LOCKS;
        }
        match qmp.execute("cont", json!({})) {
            Err(vmem_qemu::Error::Refused { .. }) if Instant::now() < until => thread::sleep(Duration::from_millis(200)),
            result => drop(result?),
        }
    }
    Ok(())
}

/// Restores QEMU's settings. If that fails, the guest is not affected.
pub(super) fn restore(qmp: &mut Qmp, record: &Outgoing, report: &Report) {
    let restored = record.settings.as_ref().map(|settings| settings.restore(qmp));
    if let Some(Err(error)) = restored {
        report.note(&format!("QEMU keeps the settings of this migration: {}", chain(&error)));
    }
}
