// SPDX-License-Identifier: GPL-2.0
//! The end of a region: from its last page to plain memory.

use std::sync::Arc;

use serde::Serialize;
use vmem_pages::range;

use crate::error::Error;
use crate::sink::{RegionState, Sink};

/// Pages put into page tables in one step (64 MiB), between two looks at everything else.
const POPULATE_PAGES: u64 = 16384;

/// How far a region has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Pages are absent.
    Filling,
    /// All pages are present, and no program has mapped the region: ending it now would lose them.
    Waiting,
    /// All pages are present, and are put into page tables.
    Populating,
    /// The region is plain memory.
    Plain,
    /// All pages but unreadable ones are present. It stays a region.
    Unreadable,
}

/// When and how regions end.
#[derive(Clone, Copy, Debug)]
pub struct CompletionOptions {
    /// Put all pages into page tables first.
    pub populate: bool,
    /// Do not wait for somebody to map it.
    pub detach_unmapped: bool,
}

/// A region on its way to its end.
pub struct Completion {
    name: String,
    pages: u64,
    sink: Arc<dyn Sink>,
    phase: Phase,
    state: RegionState,
    populated: u64,
}

impl Completion {
    /// The region `name` of `pages` pages, which `sink` leads to.
    pub fn new(name: String, pages: u64, sink: Arc<dyn Sink>) -> Result<Self, Error> {
        let state = sink.state().map_err(Error::region(format!("cannot look at region {name}")))?;
        Ok(Self {
            name,
            pages,
            sink,
            phase: Phase::Filling,
            state,
            populated: 0,
        })
    }

    /// What it is called here.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many pages it has.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// How far it has come.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// As of the latest look.
    pub fn state(&self) -> RegionState {
        self.state
    }

    /// Whether nothing is left to do.
    pub fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Plain | Phase::Unreadable)
    }

    /// Looks at the region.
    pub fn refresh(&mut self) -> Result<(), Error> {
        self.state = self.sink.state().map_err(|error| self.failed("look at", error))?;
        Ok(())
    }

    /// Whether, as of the latest look, pages are absent and all of these unreadable. It need not be the source that cannot read them: a page
    /// whose touch has timed out counts as unreadable until it comes.
    pub fn is_present_or_unreadable(&self) -> bool {
        let RegionState { present, unreadable, .. } = self.state;
        present < self.pages && present + unreadable == self.pages
    }

    /// Goes one step on, if it can; none takes long. True if there is another one at once.
    ///
    /// `known` says that the source cannot read what is unreadable as of the latest look.
    pub fn step(&mut self, choices: CompletionOptions, known: bool) -> Result<bool, Error> {
        if self.is_done() {
            return Ok(false);
        }
        self.refresh()?;
        let pages = self.pages;
        self.phase = match self.phase {
            _ if known && self.is_present_or_unreadable() => Phase::Unreadable,
            _ if self.state.present < pages => Phase::Filling,
            _ if self.state.plain => self.make_plain()?,
            Phase::Populating => self.populate()?,
            _ if self.state.mappings == 0 && !choices.detach_unmapped => Phase::Waiting,
            _ if choices.populate => Phase::Populating,
            _ => self.make_plain()?,
        };
        Ok(self.phase == Phase::Populating)
    }

    fn populate(&mut self) -> Result<Phase, Error> {
        let left = self.pages - self.populated;
        let Some(pages) = range(self.populated, left.min(POPULATE_PAGES)) else {
            return self.make_plain();
        };
        match self.sink.make_present(&[pages]).complete() {
            Ok(_) => self.populated += pages.count(),
            Err(vmem::Error::Interrupted { .. }) => {}
            // It would only have saved faults, for example of a program at the limit of its memory.
            Err(_) => self.populated = self.pages,
        }
        Ok(Phase::Populating)
    }

    fn make_plain(&self) -> Result<Phase, Error> {
        match self.sink.make_plain() {
            // One that was made at that very moment is left over; the next call takes it.
            Ok(()) if self.sink.state().is_ok_and(|state| state.mappings > 0) => Ok(Phase::Populating),
            Ok(()) => Ok(Phase::Plain),
            Err(vmem::Error::Interrupted { .. }) => Ok(Phase::Populating),
            Err(error) => Err(self.failed("make plain memory of", error)),
        }
    }

    fn failed(&self, what: &str, error: vmem::Error) -> Error {
        Error::region(format!("cannot {what} region {}", self.name))(error)
    }
}
