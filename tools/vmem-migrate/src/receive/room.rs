// SPDX-License-Identifier: GPL-2.0-or-later
//! Memory that arriving guests will take. A guest that lacks memory would be killed when its pages arrive, after it has left its source.
//! Several guests may arrive at once, so the missing memory of each is reserved.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use vmem::{Access, MapHandle};
use vmem_process::{Identity, Process};

use crate::error::Cause;
use crate::message::Backend;
use crate::record::{Incoming, StateDir};

/// The file with the reservation of a guest.
const RESERVED: &str = "reserved";

/// The file whose lock `receive` holds while it checks whether there is memory for another guest.
const LOCK: &str = "memory.lock";

/// How long another `receive` may hold the lock.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The memory that a guest will take.
#[derive(Debug, Serialize, Deserialize)]
struct Reservation {
    bytes: u64,
    /// The vmemctl that has reserved it.
    vmemctl: Identity,
}

/// Reserves memory for the guest of `state_dir`. Refused if this host does not have the memory.
pub(super) fn reserve(state: &Path, state_dir: &StateDir, memory: &[Backend], overcommit: bool) -> Result<(), Cause> {
    let wanted = memory.iter().try_fold(0_u64, |sum, backend| sum.checked_add(backend.bytes));
    let wanted = wanted.ok_or_else(|| Cause::other("the guest has more memory than there can be"))?;
    let available = vmem::available_memory().map_err(Cause::call("cannot read how much memory this host has"))?;
    reserve_of(if overcommit { u64::MAX } else { available }, state, state_dir, wanted)
}

fn reserve_of(available: u64, state: &Path, state_dir: &StateDir, wanted: u64) -> Result<(), Cause> {
    let _lock = lock(&state.join(LOCK))?;
    let own = state_dir.path(RESERVED);
    let promised = promised(state, &own)?;
    if wanted > available.saturating_sub(promised) {
        return Err(Cause::other(format!(
            "the guest has {} MiB of memory; {} MiB are available here, of which {} MiB are for guests that are on their way \
             (use --overcommit to receive it nevertheless)",
            wanted >> 20,
            available >> 20,
            promised >> 20
        )));
    }
    let failed = || Cause::call(own.display().to_string());
    let own_pid = i32::try_from(std::process::id()).unwrap_or_default();
    let reservation = Reservation {
        bytes: wanted,
        vmemctl: Process::open(own_pid).and_then(|own| own.identity()).map_err(failed())?,
    };
    let text = serde_json::to_vec(&reservation).map_err(|error| failed()(error.into()))?;
    fs::write(&own, text).map_err(failed())
}

fn lock(path: &Path) -> Result<File, Cause> {
    let failed = || Cause::call(path.display().to_string());
    let file = File::options().create(true).append(true).open(path).map_err(failed())?;
    let until = Instant::now() + TIMEOUT;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < until => sleep(Duration::from_millis(10)),
            Err(error) => return Err(failed()(error.into())),
        }
    }
}

/// The bytes that the other guests of `state` will still take.
fn promised(state: &Path, own: &Path) -> Result<u64, Cause> {
    let entries = fs::read_dir(state).map_err(Cause::call(state.display().to_string()))?;
    let directories = entries.flatten().map(|entry| entry.path());
    let files = directories
        .map(|directory| directory.join(RESERVED))
        .filter(|path| path != own);
    Ok(files.filter_map(|path| lacks(&path).ok()).fold(0, u64::saturating_add))
}

/// The bytes that the guest of a reservation still lacks. If the file is missing, the move of its guest has ended meanwhile.
fn lacks(path: &Path) -> io::Result<u64> {
    let reservation: Reservation = serde_json::from_slice(&fs::read(path)?)?;
    match fs::read(path.with_file_name("record")) {
        Ok(text) => {
            let record: Incoming = serde_json::from_slice(&text)?;
            Ok(record.regions.iter().map(|name| absent(name)).fold(0, u64::saturating_add))
        }
        // Without a record, the guest is being prepared. If its vmemctl has been killed, it never will be received.
        Err(_) if Process::find(&reservation.vmemctl).is_none() => Ok(0),
        Err(_) => Ok(reservation.bytes),
    }
}

/// The bytes that a region lacks. A region that does not exist lacks none, because its guest has ended.
fn absent(name: &str) -> u64 {
    let info = MapHandle::open(name, Access::ReadOnly).and_then(|handle| handle.info());
    match info {
        Ok(info) if !info.plain => info.size.saturating_sub(info.present.saturating_mul(vmem::PAGE_SIZE as u64)),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_guest_is_refused_if_the_first_reserved_the_memory() {
        let state = tempfile::tempdir().expect("a directory");
        let state_dir = |guest: &str| StateDir::new(state.path(), "in", guest).expect("a state directory");
        let reserve = |state_dir: &StateDir| reserve_of(10 << 20, state.path(), state_dir, 6 << 20);
        let (first, second) = (state_dir("a"), state_dir("b"));
        reserve(&first).expect("room for one");
        reserve(&first).expect("its own does not count");
        let refused = reserve(&second).expect_err("no room for two").to_string();
        assert!(refused.contains("6 MiB are for guests"), "{refused}");
        first.remove();
        reserve(&second).expect("the first has ended");
    }

    #[test]
    fn reservation_of_a_killed_vmemctl_does_not_count() {
        let state = tempfile::tempdir().expect("a directory");
        let state_dir = |guest: &str| StateDir::new(state.path(), "in", guest).expect("a state directory");
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("a process");
        let identity = Process::of_child(&child).and_then(|child| child.identity());
        child.kill().expect("a child");
        child.wait().expect("a child");
        let dead = Reservation {
            bytes: 6 << 20,
            vmemctl: identity.expect("a process"),
        };
        let first = state_dir("a");
        fs::write(first.path(RESERVED), serde_json::to_vec(&dead).expect("text")).expect("a file");
        reserve_of(10 << 20, state.path(), &state_dir("b"), 6 << 20).expect("room");
    }
}
