// SPDX-License-Identifier: GPL-2.0

//! What vmem is: regions, their mappings, and the daemon that fills them.
//!
//! ```text
//!     /dev/vmem/control ── creates, attaches ──┐
//!     region or map descriptor ── RegionFile ──┤
//!     VMA ── MapFile ── Mapped ────────────────┴── Handle ── Region ── Staging, Pages, Daemon
//! ```
//!
//! Whoever can reach a region has a [`registry::Handle`]; with the last one the region, its name and
//! its node go. A region knows none of its users: its mappings are found in the address space of the
//! staging file.
//!
//! # Lock order
//!
//! 1. `REGISTRY`, the list of regions. Not held while a region works.
//! 2. `Shard::fill`: between looking whether pages are present and making them so. Held while pages
//!    are copied from the daemon's memory, which may have to be faulted in: 4.
//! 3. The lock of the staging file's inode (`i_rwsem`), which shmem takes to write and to punch.
//! 4. The mmap lock, or the lock of a VMA, of a process. Held when a fault or mmap() begins.
//! 5. The lock of a folio of the staging file. With it held, a fill tries for 4.
//! 6. `Shard::map`, a spinlock: what is known of each page. A page that is found present under it
//!    stays so.
//! 7. The lock of a wait queue.
//!
//! A fault waits for its page with none of them; if its caller cannot start again, with 4.

pub(crate) mod attachment;
pub(crate) mod control;
pub(crate) mod daemon;
pub(crate) mod discard;
pub(crate) mod fault;
pub(crate) mod info;
pub(crate) mod name;
pub(crate) mod pages;
pub(crate) mod primitives;
pub(crate) mod region;
pub(crate) mod region_file;
pub(crate) mod registry;
pub(crate) mod serve;
pub(crate) mod shard;
