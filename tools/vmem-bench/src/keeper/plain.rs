// SPDX-License-Identifier: GPL-2.0-or-later
//! Memory of which nothing is kept: what the faults alone cost.

use std::time::Duration;

use vmem_bench_sys::Memory;

use super::Keeper;
use crate::contents::Contents;
use crate::failure::Outcome;
use crate::tracker::{Plain, Tracker};

/// Ordinary memory.
pub(crate) struct Nothing(Plain);

impl Nothing {
    /// So many pages.
    pub(crate) fn new(pages: u64, contents: &Contents) -> Outcome<Self> {
        Ok(Self(Plain::new(pages, contents)?))
    }
}

impl Keeper for Nothing {
    fn memory(&self) -> &Memory {
        self.0.memory()
    }

    fn take(&mut self) -> Outcome<Option<Duration>> {
        self.0.clean()?;
        Ok(None)
    }

    fn read(&mut self, _first: u64, _to: &mut [u8]) -> Outcome {
        Ok(())
    }

    fn end(&mut self) -> Outcome {
        Ok(())
    }
}
