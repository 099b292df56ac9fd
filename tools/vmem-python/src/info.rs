// SPDX-License-Identifier: GPL-2.0-or-later
//! State and counters of a region.

use pyo3::prelude::*;

/// State and counters of a region at one moment. Counters of pages are in pages of `PAGE_SIZE` bytes.
#[pyclass(frozen, get_all, eq, module = "vmem")]
#[derive(PartialEq)]
pub(crate) struct Info {
    /// Number of the region, never used twice.
    id: u64,
    /// Size in bytes, whole pages.
    size: u64,
    /// Length in bytes, as the region was created.
    length: u64,
    /// Whether a daemon is attached.
    attached: bool,
    /// Whether the daemon has declared that it serves.
    ready: bool,
    /// Whether the region has become plain memory.
    plain: bool,
    /// Pages present.
    present: u64,
    /// Pages marked unreadable.
    unreadable: u64,
    /// Absent pages that are requested.
    requested: u64,
    /// Requested pages whose request the daemon has not taken.
    queued: u64,
    /// Threads that wait for a page.
    waiters: u64,
    /// The longest time that one of them has waited, in seconds.
    oldest_wait: f64,
    /// Faults on absent pages since creation.
    faults: u64,
    /// Requests raised since creation.
    requests: u64,
    /// Faults answered with SIGBUS since creation.
    sigbus: u64,
    /// Mappings that are not yet plain, in all processes.
    mappings: u64,
    /// Pages read from their backing file since creation.
    backed: u64,
}

impl From<vmem::Info> for Info {
    fn from(info: vmem::Info) -> Self {
        Self {
            id: info.id,
            size: info.size,
            length: info.length,
            attached: info.attached,
            ready: info.ready,
            plain: info.plain,
            present: info.present,
            unreadable: info.unreadable,
            requested: info.requested,
            queued: info.queued,
            waiters: info.waiters,
            oldest_wait: info.oldest_wait.as_secs_f64(),
            faults: info.faults,
            requests: info.requests,
            sigbus: info.sigbus,
            mappings: info.mappings,
            backed: info.backed,
        }
    }
}

#[pymethods]
impl Info {
    fn __repr__(&self) -> String {
        format!(
            "<vmem.Info: region {}, {} bytes, {} pages present, {} unreadable, {} requested{}>",
            self.id,
            self.size,
            self.present,
            self.unreadable,
            self.requested,
            if self.plain { ", plain" } else { "" }
        )
    }
}
