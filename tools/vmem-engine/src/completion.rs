// SPDX-License-Identifier: GPL-2.0-or-later
//! The completion of a region: from its last page to plain memory.

use std::sync::Arc;

use vmem::PageRange;

use crate::error::Error;
use crate::sink::{RegionState, Sink};

/// Pages mapped in one step (64 MiB). Between steps, the caller can do other work.
const POPULATE_PAGES: u64 = 16384;

/// The phase of a region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Pages are absent.
    Filling,
    /// All pages are present, and no program maps the region: detaching now would lose them.
    Waiting,
    /// All pages are present, and are being put into page tables.
    Populating,
    /// The region is plain memory.
    Plain,
    /// All pages but unreadable ones are present. The region stays a region.
    Unreadable,
}

/// How regions are completed.
#[derive(Clone, Copy, Debug)]
pub struct CompletionOptions {
    /// Put all pages into the page tables of programs before the region becomes plain memory.
    pub populate: bool,
    /// Do not wait until a program maps the region.
    pub detach_unmapped: bool,
}

/// Completes one region.
pub struct Completion {
    name: String,
    pages: PageRange,
    sink: Arc<dyn Sink>,
    phase: Phase,
    state: RegionState,
    /// Pages that had been read from a file before.
    backed_before: u64,
    populated: u64,
}

impl Completion {
    /// Completes the region `name` with these pages, through `sink`.
    pub fn new(name: String, pages: PageRange, sink: Arc<dyn Sink>) -> Result<Self, Error> {
        let state = sink.state().map_err(Error::region("read the state of", &name))?;
        Ok(Self {
            name,
            pages,
            sink,
            phase: Phase::Filling,
            state,
            backed_before: state.backed,
            populated: 0,
        })
    }

    /// Name of the region.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All pages of the region.
    pub fn pages(&self) -> PageRange {
        self.pages
    }

    /// The phase of the region.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The state as of the latest [`refresh`](Self::refresh) or [`step`](Self::step).
    pub fn state(&self) -> RegionState {
        self.state
    }

    /// Pages that the kernel has read from a file by itself since [`new`](Self::new), as of the latest state.
    pub fn backed(&self) -> u64 {
        self.state.backed.saturating_sub(self.backed_before)
    }

    /// Whether the region is complete.
    pub fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Plain | Phase::Unreadable)
    }

    /// Reads the state of the region.
    pub fn refresh(&mut self) -> Result<(), Error> {
        self.state = self.sink.state().map_err(|error| self.failed("read the state of", error))?;
        Ok(())
    }

    /// Whether pages are absent and all of them unreadable, as of the latest state. The source may still be able to read them: a page whose
    /// touch has timed out counts as unreadable until it arrives.
    pub fn is_present_or_unreadable(&self) -> bool {
        let RegionState { present, unreadable, .. } = self.state;
        present < self.pages.count() && present + unreadable == self.pages.count()
    }

    /// Executes the next step, if there is one; a step is short. Returns whether the caller should execute another step at once.
    ///
    /// `known_unreadable` says that the source cannot read the pages that are unreadable as of the latest state.
    pub fn step(&mut self, options: CompletionOptions, known_unreadable: bool) -> Result<bool, Error> {
        if self.is_done() {
            return Ok(false);
        }
        self.refresh()?;
        let pages = self.pages.count();
        self.phase = match self.phase {
            _ if known_unreadable && self.is_present_or_unreadable() => Phase::Unreadable,
            _ if self.state.present < pages => Phase::Filling,
            _ if self.state.plain => self.make_plain()?,
            Phase::Populating => self.populate()?,
            _ if self.state.mappings == 0 && !options.detach_unmapped => Phase::Waiting,
            _ if options.populate => Phase::Populating,
            _ => self.make_plain()?,
        };
        Ok(self.phase == Phase::Populating)
    }

    fn populate(&mut self) -> Result<Phase, Error> {
        let left = self.pages.count() - self.populated;
        let Some(pages) = PageRange::from_pgoff(self.populated, left.min(POPULATE_PAGES)) else {
            return self.make_plain();
        };
        match self.sink.make_present(&[pages]).complete() {
            Ok(_) => self.populated += pages.count(),
            Err(vmem::Error::Interrupted { .. }) => {}
            // Without it programs only take more faults. It fails for example for a program at the limit of its memory.
            Err(_) => self.populated = self.pages.count(),
        }
        Ok(Phase::Populating)
    }

    fn make_plain(&self) -> Result<Phase, Error> {
        match self.sink.make_plain() {
            // A mapping that was created during the call is left; the next call converts it.
            Ok(()) if self.sink.state().is_ok_and(|state| state.mappings > 0) => Ok(Phase::Populating),
            Ok(()) => Ok(Phase::Plain),
            Err(vmem::Error::Interrupted { .. }) => Ok(Phase::Populating),
            Err(error) => Err(self.failed("make plain memory of", error)),
        }
    }

    fn failed(&self, action: &'static str, error: vmem::Error) -> Error {
        Error::region(action, &self.name)(error)
    }
}
