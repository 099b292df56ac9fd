// SPDX-License-Identifier: GPL-2.0

//! What vmem is: regions, their mappings, and the daemon that fills them.
//!
//! ```text
//!     /dev/vmem/control ── creates, attaches ──┐
//!     region or map descriptor ── RegionFile ──┤
//!     VMA ── MapFile ── Mapped ────────────────┴── Handle ── Region ── Staging, Pages, Daemon
//!
//!     /dev/vmem/control ── adopts ── AdoptedFile ── Memory ── SharedMemory
//!                                         └── Tracked ── Hold, Tracking (the log)
//!     VMA ── clone of the memory's file ────────────────────────┤
//!     VMA of a region ── MapFile ── Mapped ─────────────────────┤
//!     snapshot descriptor ── ImageFile, its VMAs ── OpenImage ──┴── Keeper ── Image ── Copies
//! ```
//!
//! Whoever can reach a region has a [`registry::Handle`]; with the last one the region, its name and
//! its node go. A region knows none of its users: its mappings are found in the address space of the
//! staging file.
//!
//! The order of locks stands in `Documentation/locking.rst`.

pub(crate) mod adopted;
pub(crate) mod attachment;
pub(crate) mod control;
mod copy_before_write;
pub(crate) mod daemon;
mod dirty;
pub(crate) mod discard;
pub(crate) mod fault;
mod image;
mod image_file;
pub(crate) mod info;
pub(crate) mod memories;
pub(crate) mod name;
pub(crate) mod pages;
mod plane;
pub(crate) mod primitives;
pub(crate) mod region;
pub(crate) mod region_file;
pub(crate) mod registry;
pub(crate) mod serve;
pub(crate) mod shard;
mod snapshot;
mod timed_out;
pub(crate) mod tracked;
mod tracked_region;
pub(crate) mod tracking;
