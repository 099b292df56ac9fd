// SPDX-License-Identifier: GPL-2.0-or-later
//! Adopted memory: vmem's dirty log.

use vmem::{Adopted, Control, DirtyMap, PageIndex, PageRange, Tracking};
use vmem_bench_sys::Memory;

use super::Tracker;
use crate::contents::Contents;
use crate::failure::{Failure, Outcome};
use crate::filled::filled_file;

/// Shared memory that is adopted.
pub(crate) struct AdoptedMemory {
    /// Before the memory: the log ends while there are pages to give back.
    tracking: Option<Tracking>,
    adopted: Adopted,
    memory: Memory,
    found: Option<DirtyMap>,
}

impl AdoptedMemory {
    /// So many pages, not yet tracked.
    pub(crate) fn new(pages: u64, contents: &Contents) -> Outcome<Self> {
        let (file, memory) = filled_file(pages, contents)?;
        let adopted = Control::open()?.adopt(&file)?;
        Ok(Self {
            tracking: None,
            adopted,
            memory,
            found: None,
        })
    }

    /// What is adopted.
    pub(crate) fn adopted(&self) -> &Adopted {
        &self.adopted
    }

    /// Ends the log; the memory stays adopted.
    pub(crate) fn end(&mut self) -> Outcome {
        match self.tracking.take() {
            Some(tracking) => Ok(tracking.stop()?),
            None => Ok(()),
        }
    }
}

impl Tracker for AdoptedMemory {
    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn begin(&mut self) -> Outcome {
        self.tracking = Some(self.adopted.track()?);
        Ok(())
    }

    fn clean(&mut self) -> Outcome {
        let tracking = self.tracking.as_ref();
        let tracking = tracking.ok_or_else(|| Failure::Wrong("the memory is not tracked".into()))?;
        self.found = Some(tracking.clean_map(self.adopted.pages()).complete()?);
        Ok(())
    }

    fn written(&self) -> Option<Vec<u64>> {
        let runs = self.found.as_ref()?.runs();
        Some(runs.flat_map(PageRange::iter).map(PageIndex::get).collect())
    }
}
