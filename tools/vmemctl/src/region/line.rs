// SPDX-License-Identifier: GPL-2.0-or-later
//! The lines of `vmemctl region --json`, as types. The schema in `Documentation/schema` is made from them, and the comments are the descriptions
//! there.

use std::borrow::Cow;

use serde::Serialize;
use vmem::{Descriptor, Info, PageRange};

use super::State;

/// A line of `region list`.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) enum ListLine<'a> {
    /// A region, or adopted memory.
    Region {
        /// Its name; null without a node.
        name: Option<&'a str>,
        /// Its number.
        id: u64,
        /// Its size in bytes.
        bytes: u64,
        /// The state of the region, or that of adopted memory; null if neither is known.
        state: Option<State>,
        /// Pages that are present; null of adopted memory that is no region.
        present: Option<u64>,
        /// Whether writes to it are logged.
        tracked: bool,
        /// Mappings that are not plain.
        mappings: u64,
        /// The descriptors of it.
        holders: Vec<Holder<'a>>,
    },
}

/// A line of the other commands.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) enum RegionLine<'a> {
    /// `info`: a region.
    Region {
        /// Its name.
        name: &'a str,
        /// Whether writes to it are logged.
        tracked: bool,
        /// The descriptors of it.
        holders: Vec<Holder<'a>>,
        /// State and counters.
        #[serde(flatten)]
        counters: Counters,
    },
    /// `info --pid`: shared memory of a process.
    Memory {
        /// The number of the process.
        pid: i32,
        /// The descriptor of the process.
        fd: i32,
        /// The path of the file.
        path: Cow<'a, str>,
        /// The size of the file in bytes.
        bytes: u64,
        /// Bytes of the file that take memory.
        allocated_bytes: u64,
        /// State and counters if it is a region; else null.
        region: Option<Counters>,
        /// Why its writes cannot be logged, for people; null if they can.
        obstacle: Option<String>,
    },
    /// `watch`: the memory that is watched.
    Watch {
        /// What it is, for people.
        memory: &'a str,
        /// Its bytes.
        bytes: u64,
        /// Its mappings.
        mappings: u64,
        /// Pages that are in the log from the beginning.
        held: u64,
    },
    /// `watch`: the writes since the previous sample.
    Sample {
        /// Seconds since the start.
        seconds: f64,
        /// Pages that were written.
        pages: u64,
        /// Pages that stay in the log.
        held: u64,
        /// Pages that were written in a second.
        pages_per_second: f64,
        /// Bytes of the pages that were written in a second.
        bytes_per_second: f64,
    },
    /// `watch`: the parts of the memory that were written.
    Histogram {
        /// The parts.
        parts: Vec<WrittenPart>,
    },
    /// `snapshot`: the file is complete.
    Snapshot {
        /// The file.
        file: Cow<'a, str>,
        /// Its size in bytes.
        bytes: u64,
        /// Bytes of it that are no holes.
        data_bytes: u64,
        /// Absent pages that were left out.
        left_out: u64,
        /// Pages that were copied aside for writers.
        copied: u64,
        /// Seconds for which writers were held up.
        closed_seconds: f64,
        /// Seconds since the start of the command.
        total_seconds: f64,
    },
}

/// State and counters of a region.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Counters {
    /// Its number.
    id: u64,
    /// Its size in bytes.
    bytes: u64,
    /// Its state.
    state: State,
    /// Pages that are present.
    present: u64,
    /// Pages that the daemon cannot read.
    unreadable: u64,
    /// Pages that are requested.
    requested: u64,
    /// Pages of them that the daemon has not taken.
    queued: u64,
    /// Threads that wait for pages.
    waiters: u64,
    /// Seconds for which the longest of them has waited.
    oldest_wait_seconds: f64,
    /// Touches of absent pages.
    faults: u64,
    /// Requests for pages.
    requests: u64,
    /// Touches that have ended with SIGBUS.
    sigbus: u64,
    /// Mappings that are not plain.
    mappings: u64,
}

impl Counters {
    pub(super) fn of(info: &Info) -> Self {
        Self {
            id: info.id,
            bytes: info.size,
            state: super::state(info),
            present: info.present,
            unreadable: info.unreadable,
            requested: info.requested,
            queued: info.queued,
            waiters: info.waiters,
            oldest_wait_seconds: info.oldest_wait.as_secs_f64(),
            faults: info.faults,
            requests: info.requests,
            sigbus: info.sigbus,
            mappings: info.mappings,
        }
    }
}

/// A descriptor of a process.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Holder<'a> {
    /// The number of the process.
    pid: i32,
    /// The name of its program.
    command: &'a str,
    /// The descriptor.
    fd: i32,
}

impl<'a> Holder<'a> {
    pub(super) fn of(descriptor: &'a Descriptor) -> Self {
        Self {
            pid: descriptor.pid,
            command: &descriptor.command,
            fd: descriptor.fd,
        }
    }
}

/// A part of a memory, and how much it was written.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct WrittenPart {
    /// The number of its first page.
    pgoff: u64,
    /// Its pages.
    pages: u64,
    /// Written pages, summed over all samples.
    written: u64,
}

impl From<(PageRange, u64)> for WrittenPart {
    fn from((pages, written): (PageRange, u64)) -> Self {
        Self {
            pgoff: pages.first().get(),
            pages: pages.count(),
            written,
        }
    }
}
