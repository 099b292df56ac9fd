// SPDX-License-Identifier: GPL-2.0-or-later
//! The guest's two clocks: its own, which stands still while the machine is stopped, and its host's, which does not.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::time::{ClockId, DynamicClockId, Timespec, clock_gettime, clock_gettime_dynamic};

/// The clocks.
pub(crate) struct Clocks {
    host: Option<File>,
}

/// What they say.
#[derive(Clone, Copy)]
pub(crate) struct Reading {
    /// The guest's own: `CLOCK_MONOTONIC`.
    pub(crate) own: Duration,
    /// The real time of the host on which the guest runs. `None` where the host does not tell.
    pub(crate) host: Option<Duration>,
}

impl Clocks {
    /// Finds them.
    pub(crate) fn new() -> Self {
        Self {
            host: host_clock().and_then(|path| File::open(path).ok()),
        }
    }

    /// Reads them.
    pub(crate) fn read(&self) -> Reading {
        let host = self.host.as_ref().map(|clock| DynamicClockId::Dynamic(clock.as_fd()));
        Reading {
            own: own(),
            host: host.and_then(|clock| clock_gettime_dynamic(clock).ok()).map(duration),
        }
    }
}

/// The guest's own clock.
pub(crate) fn own() -> Duration {
    duration(clock_gettime(ClockId::Monotonic))
}

fn duration(time: Timespec) -> Duration {
    Duration::try_from(time).unwrap_or_default()
}

/// The clock that asks KVM for the host's time, by a hypercall.
fn host_clock() -> Option<PathBuf> {
    let clocks = fs::read_dir("/sys/class/ptp").ok()?;
    let mut kvm = clocks.flatten().filter(|clock| {
        let name = fs::read_to_string(clock.path().join("clock_name"));
        name.is_ok_and(|name| name.contains("KVM"))
    });
    Some(PathBuf::from("/dev").join(kvm.next()?.file_name()))
}
