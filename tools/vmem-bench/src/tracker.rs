// SPDX-License-Identifier: GPL-2.0-or-later
//! What is compared of the write side: ways to tell which pages of a program's memory were written to.

mod adopted;
mod plain;
mod soft_dirty;
mod write_protect;

use vmem_bench_sys::Memory;

use crate::contents::Contents;
use crate::failure::Outcome;
use crate::peer::VMEM;

pub(crate) use adopted::AdoptedMemory;
pub(crate) use plain::Plain;

/// Memory of a shmem file whose pages are all there, and a way to log the writes to it.
pub(crate) trait Tracker {
    /// The memory that the program writes to.
    fn memory(&self) -> &Memory;

    /// Begins the log: no page is in it, and each that is written to from now on is.
    fn begin(&mut self) -> Outcome;

    /// Takes the pages out of the log that are in it, and protects them again.
    fn clean(&mut self) -> Outcome;

    /// The pages that the last [`Tracker::clean`] has taken out; `None` if there is no log.
    fn written(&self) -> Option<Vec<u64>>;
}

/// A way to log writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TrackerKind {
    /// vmem: `TRACK`, then `DIRTY` with `CLEAN` and a bitmap.
    Vmem,
    /// userfaultfd with `WP_ASYNC`, and `PAGEMAP_SCAN`.
    WpAsync,
    /// userfaultfd with a daemon that notes each page and ends its protection.
    WpDaemon,
    /// Soft-dirty bits: `clear_refs`, and the pagemap.
    SoftDirty,
    /// None: pages are taken out of the page tables, and that is all.
    Plain,
}

pub(crate) const WP_ASYNC: &str = "uffd-wp async";
pub(crate) const WP_DAEMON: &str = "uffd-wp, daemon";
pub(crate) const KVM_LOG: &str = "KVM's log";
pub(crate) const SOFT_DIRTY: &str = "soft-dirty";
pub(crate) const PLAIN: &str = "shmem, minor fault";

impl TrackerKind {
    /// How the tables call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Vmem => VMEM,
            Self::WpAsync => WP_ASYNC,
            Self::WpDaemon => WP_DAEMON,
            Self::SoftDirty => SOFT_DIRTY,
            Self::Plain => PLAIN,
        }
    }

    /// Makes memory of `pages` pages, with the contents that they have.
    pub(crate) fn make(self, pages: u64, contents: &Contents) -> Outcome<Box<dyn Tracker>> {
        Ok(match self {
            Self::Vmem => Box::new(AdoptedMemory::new(pages, contents)?),
            Self::WpAsync => Box::new(write_protect::Async::new(pages, contents)?),
            Self::WpDaemon => Box::new(write_protect::Daemon::new(pages, contents)?),
            Self::SoftDirty => Box::new(soft_dirty::SoftDirty::new(pages, contents)?),
            Self::Plain => Box::new(Plain::new(pages, contents)?),
        })
    }
}
