// SPDX-License-Identifier: GPL-2.0-or-later
//! What is compared of snapshots: ways to keep what a program's memory held at one instant.

mod adopted;
mod plain;
mod write_protect;

use std::time::Duration;

use vmem_bench_sys::Memory;

use crate::contents::Contents;
use crate::failure::Outcome;
use crate::peer::VMEM;
use crate::tracker::PLAIN;

/// Memory of a shmem file whose pages are all there, and a way to keep what it holds.
pub(crate) trait Keeper {
    /// The memory that the program writes to.
    fn memory(&self) -> &Memory;

    /// Keeps what it holds now. Says for how long writers were held up, if they were.
    fn take(&mut self) -> Outcome<Option<Duration>>;

    /// Reads what was kept of these pages, so many bytes.
    fn read(&mut self, first: u64, to: &mut [u8]) -> Outcome;

    /// Does not keep it any more.
    fn end(&mut self) -> Outcome;
}

/// A way to keep it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeeperKind {
    /// vmem: `SNAPSHOT` of memory that is tracked.
    Vmem,
    /// userfaultfd's write protection, with a daemon that copies a page and ends its protection.
    WpDaemon,
    /// None: pages are taken out of the page tables, and that is all.
    Plain,
}

pub(crate) const WP_COPIES: &str = "uffd-wp, copies";

impl KeeperKind {
    /// How the tables call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Vmem => VMEM,
            Self::WpDaemon => WP_COPIES,
            Self::Plain => PLAIN,
        }
    }

    /// Makes memory of `pages` pages, with the contents that they have.
    pub(crate) fn make(self, pages: u64, contents: &Contents) -> Outcome<Box<dyn Keeper>> {
        Ok(match self {
            Self::Vmem => Box::new(adopted::Snapshots::new(pages, contents)?),
            Self::WpDaemon => Box::new(write_protect::Copying::new(pages, contents)?),
            Self::Plain => Box::new(plain::Nothing::new(pages, contents)?),
        })
    }
}
