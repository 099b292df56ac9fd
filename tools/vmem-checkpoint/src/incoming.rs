// SPDX-License-Identifier: GPL-2.0-or-later
//! Gives the device state of a checkpoint to a QEMU whose memory is in regions that are filled from the store.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use serde_json::json;
use vmem_cli::Signals;
use vmem_qemu::migration::Settings;
use vmem_qemu::{Qmp, guest, migration, obstacles, stream};

use crate::error::Error;

/// How often QEMU is asked.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Has QEMU load the state, and continue the guest if `runs`. QEMU was started with `-incoming defer`.
///
/// QEMU touches the guest's memory for it, and does not answer while it waits for a page: this waits as long as `is_wanted` says so.
///
/// # Errors
///
/// QEMU is not ready for a guest, or cannot load the state: the guest has not run. A signal, or that the guest is not wanted any more.
pub fn load(qmp: &mut Qmp, state: Vec<u8>, runs: bool, signals: &Signals, is_wanted: &dyn Fn() -> bool) -> Result<(), Error> {
    let status = guest::status(qmp)?;
    if status != "inmigrate" {
        return Err(Error::other(format!("QEMU is {status}: start it with -incoming defer")));
    }
    obstacles::check(qmp)?;
    // QEMU would start the guest by itself as soon as it has the state.
    qmp.execute("stop", json!({}))?;
    let settings = Settings::of(qmp, &["events", "return-path", "x-ignore-shared"])?;
    settings.change(qmp)?;
    let (socket, uri) = stream::open(qmp)?;
    let answers = socket.try_clone().map_err(Error::Thread)?;
    let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| thread::Builder::new().name(name.to_owned()).spawn(work);
    spawn("device-state", Box::new(move || send(socket, &state))).map_err(Error::Thread)?;
    spawn("answers", Box::new(move || drain(answers))).map_err(Error::Thread)?;
    qmp.execute("migrate-incoming", json!({"uri": uri}))?;
    wait_loaded(qmp, signals, is_wanted)?;
    // A guest that is saved or moved next would otherwise lack its memory in the stream.
    patiently(signals, is_wanted, || settings.restore(qmp))?;
    if runs {
        patiently(signals, is_wanted, || qmp.execute("cont", json!({})).map(drop))?;
    }
    Ok(())
}

fn wait_loaded(qmp: &mut Qmp, signals: &Signals, is_wanted: &dyn Fn() -> bool) -> Result<(), Error> {
    loop {
        let (status, reason) = patiently(signals, is_wanted, || migration::status(qmp))?;
        match status.as_str() {
            "completed" => return Ok(()),
            "failed" | "none" | "cancelled" => {
                let reason = reason.unwrap_or_else(|| "QEMU's log may say why".to_owned());
                return Err(Error::other(format!("QEMU cannot load the guest's device state: {reason}")));
            }
            _ => thread::sleep(POLL_INTERVAL),
        }
    }
}

/// Asks QEMU until it answers.
fn patiently<T>(
    signals: &Signals,
    is_wanted: &dyn Fn() -> bool,
    mut ask: impl FnMut() -> Result<T, vmem_qemu::Error>,
) -> Result<T, Error> {
    loop {
        signals.check()?;
        match ask() {
            Err(vmem_qemu::Error::TimedOut { .. }) if is_wanted() => {}
            answer => return Ok(answer?),
        }
    }
}

/// Sends the state. If QEMU does not want all of it, it says so by the state of its migration.
fn send(mut to: UnixStream, state: &[u8]) {
    if let Err(error) = to.write_all(state) {
        tracing::debug!("QEMU has closed the stream: {error}");
    }
    // The other direction is QEMU's, for its answers.
    let _ = to.shutdown(std::net::Shutdown::Write);
}

/// Reads QEMU's answers, which nobody needs. QEMU would wait for room otherwise.
fn drain(mut from: UnixStream) {
    let mut bytes = [0; 256];
    while from.read(&mut bytes).is_ok_and(|read| read > 0) {}
}
