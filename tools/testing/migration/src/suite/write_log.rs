// SPDX-License-Identifier: GPL-2.0-or-later
//! A log of the writes to a guest's memory that is not its mover's. There is one at a time: so it shows whether the mover's has ended.

use anyhow::{Result, bail};
use vmem::{Adopted, Control, ProcessMemory, Tracking};

use crate::machine::Machine;
use crate::patience::wait_until;

/// A log; it ends when dropped.
pub(super) struct WriteLog {
    _tracking: Tracking,
    _adopted: Adopted,
}

impl WriteLog {
    /// Begins to log the writes to the first backend of a guest whose memory is files.
    pub(super) fn begin(source: &Machine) -> Result<Self> {
        let pids = source.slot.host.processes_of("qemu-system-x86")?;
        let [pid] = pids[..] else {
            bail!("{} of QEMU run", pids.len())
        };
        let memory = ProcessMemory::open(pid.as_raw_nonzero().get(), source.slot.shared_memory(0))?;
        let adopted = Control::open()?.adopt(&memory)?;
        Ok(Self {
            _tracking: adopted.track()?,
            _adopted: adopted,
        })
    }
}

/// Waits until nobody logs the writes to this guest's memory any more.
pub(super) fn wait_until_over(source: &Machine) -> Result<()> {
    wait_until("the writes are not logged any more", || Ok(WriteLog::begin(source).is_ok()))
}
