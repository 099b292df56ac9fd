// SPDX-License-Identifier: GPL-2.0

//! What vmem is: regions, their mappings, and the daemon that fills them.
//!
//! ```text
//!     /dev/vmem/control ── creates, attaches ──┐
//!     region or map descriptor ── RegionFile ──┤
//!     file of a region ── NamedFile ───────────┤
//!     VMA ── MapFile ── Mapped ────────────────┴── Handle ── Region ── Staging, Pages, Daemon
//!
//!     /dev/vmem/control ── adopts ── AdoptedFile ── AdoptedMemory ── SharedMemory
//!                                         └── Tracked ── OpsOverride, Tracking (the log)
//!     VMA ── clone of the memory's file ────────────────────────┤
//!     VMA of a region ── MapFile ── Mapped ─────────────────────┤
//!     snapshot descriptor ── ImageFile, its VMAs ── OpenImage ──┴── CopyBeforeWrite ── Image ── Copies
//! ```
//!
//! Every user of a region holds a [`registry::Handle`]. When the last handle is dropped, the
//! region, its name and its node are removed. A region keeps no list of its users: its mappings are
//! found in the address space of the staging file.
//!
//! `Documentation/locking.rst` has the order of the locks.

pub(crate) mod adopted;
pub(crate) mod attachment;
mod backing;
mod backing_read;
pub(crate) mod control;
mod copy_before_write;
pub(crate) mod daemon;
pub(crate) mod directory;
mod dirty;
pub(crate) mod discard;
pub(crate) mod fault;
mod file_io;
mod file_times;
mod filled;
mod image;
mod image_file;
pub(crate) mod info;
pub(crate) mod memories;
pub(crate) mod name;
pub(crate) mod named_file;
pub(crate) mod pages;
mod plane;
pub(crate) mod primitives;
pub(crate) mod region;
pub(crate) mod region_file;
pub(crate) mod registry;
pub(crate) mod serve;
mod set_backing;
pub(crate) mod shard;
mod snapshot;
mod timed_out;
mod touch;
pub(crate) mod tracked;
mod tracked_region;
pub(crate) mod tracking;
