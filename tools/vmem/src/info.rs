// SPDX-License-Identifier: GPL-2.0-or-later
//! State and counters of a region.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use vmem_sys::{VMEM_STATE_ATTACHED, VMEM_STATE_PLAIN, VMEM_STATE_READY, vmem_info};

use crate::Error;
use crate::error::call;

/// State and counters of a region at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Info {
    /// Number of the region, never used twice.
    pub id: u64,
    /// Size in bytes.
    pub size: u64,
    /// Whether a daemon is attached.
    pub attached: bool,
    /// Whether the daemon has declared that it serves.
    pub ready: bool,
    /// Whether the region has become plain memory.
    pub plain: bool,
    /// Pages present.
    pub present: u64,
    /// Pages marked unreadable.
    pub unreadable: u64,
    /// Absent pages that are requested.
    pub requested: u64,
    /// Requested pages whose request the daemon has not taken.
    pub queued: u64,
    /// Threads that wait for a page.
    pub waiters: u64,
    /// The longest time that one of them has waited.
    pub oldest_wait: Duration,
    /// Faults on absent pages since creation.
    pub faults: u64,
    /// Requests raised since creation.
    pub requests: u64,
    /// Faults answered with SIGBUS since creation.
    pub sigbus: u64,
    /// Mappings of the region, in all processes, that are not yet plain; 4096 is that many or more.
    pub mappings: u64,
    /// Size of the region's file in bytes: the size that the region was created with.
    pub length: u64,
    /// Pages read from their backing since creation ([`Region::set_backing`](crate::Region::set_backing)).
    pub backed: u64,
}

impl Info {
    pub(crate) fn get(fd: BorrowedFd<'_>) -> Result<Self, Error> {
        let info = vmem_sys::calls::get_info(fd).map_err(|errno| Error::from_errno(call::GET_INFO, errno))?;
        Ok(Self::from_sys(&info))
    }

    /// State and counters from the named numbers of a text.
    pub(crate) fn from_fields(field: impl Fn(&str) -> u64) -> Self {
        Self::from_sys(&vmem_info {
            id: field("id"),
            size: field("size"),
            // The bits of the state fit in 32.
            state: field("state") as u32,
            present: field("present"),
            unreadable: field("unreadable"),
            requested: field("requested"),
            queued: field("queued"),
            waiters: field("waiters"),
            oldest_wait_ns: field("oldest_wait_ns"),
            faults: field("faults"),
            requests: field("requests"),
            sigbus: field("sigbus"),
            mappings: field("mappings"),
            length: field("length"),
            backed: field("backed"),
            ..Default::default()
        })
    }

    fn from_sys(info: &vmem_info) -> Self {
        Self {
            id: info.id,
            size: info.size,
            attached: info.state & VMEM_STATE_ATTACHED != 0,
            ready: info.state & VMEM_STATE_READY != 0,
            plain: info.state & VMEM_STATE_PLAIN != 0,
            present: info.present,
            unreadable: info.unreadable,
            requested: info.requested,
            queued: info.queued,
            waiters: info.waiters,
            oldest_wait: Duration::from_nanos(info.oldest_wait_ns),
            faults: info.faults,
            requests: info.requests,
            sigbus: info.sigbus,
            mappings: info.mappings,
            length: info.length,
            backed: info.backed,
        }
    }
}
