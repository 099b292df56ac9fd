// SPDX-License-Identifier: GPL-2.0-or-later
//! Adopted memory: vmem's snapshots.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use vmem::PAGE_SIZE;
use vmem_bench_sys::Memory;
use vmem_sys::calls;

use super::Keeper;
use crate::contents::Contents;
use crate::failure::{During, Failure, Outcome};
use crate::tracker::{AdoptedMemory, Tracker};

/// Memory that is tracked.
pub(crate) struct Snapshots {
    image: Option<File>,
    memory: AdoptedMemory,
}

impl Snapshots {
    /// So many pages.
    pub(crate) fn new(pages: u64, contents: &Contents) -> Outcome<Self> {
        let mut memory = AdoptedMemory::new(pages, contents)?;
        memory.begin()?;
        Ok(Self { image: None, memory })
    }
}

impl Keeper for Snapshots {
    fn memory(&self) -> &Memory {
        self.memory.memory()
    }

    fn take(&mut self) -> Outcome<Option<Duration>> {
        let snapshot = calls::snapshot(&[self.memory.adopted().as_fd()], 0, 0).during("VMEM_SNAPSHOT")?;
        self.image = snapshot.images.into_iter().next().map(File::from);
        Ok(Some(Duration::from_nanos(snapshot.closed_ns)))
    }

    fn read(&mut self, first: u64, to: &mut [u8]) -> Outcome {
        let image = self
            .image
            .as_ref()
            .ok_or_else(|| Failure::Wrong("there is no snapshot".into()))?;
        image.read_exact_at(to, first * PAGE_SIZE as u64).during("read of a snapshot")
    }

    fn end(&mut self) -> Outcome {
        self.image = None;
        Ok(())
    }
}
