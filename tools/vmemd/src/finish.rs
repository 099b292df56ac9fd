// SPDX-License-Identifier: GPL-2.0
//! The end of a region: from its last page to plain memory.

use std::sync::Arc;

use serde::Serialize;
use vmem::Error;
use vmem_source::page::range;

use crate::engine::sink::{Sink, State};
use crate::failure::Failure;

/// Pages put into page tables in one step (64 MiB), between two looks at everything else.
const POPULATE_PAGES: u64 = 16384;

/// How far a region has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
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
pub(crate) struct Choices {
    /// Put all pages into page tables first.
    pub(crate) populate: bool,
    /// Do not wait for somebody to map it.
    pub(crate) detach_unmapped: bool,
}

/// A region on its way to its end.
pub(crate) struct Finish {
    name: String,
    pages: u64,
    sink: Arc<dyn Sink>,
    phase: Phase,
    state: State,
    populated: u64,
}

impl Finish {
    /// The region `name` of `pages` pages, which `sink` leads to.
    pub(crate) fn new(name: String, pages: u64, sink: Arc<dyn Sink>) -> Result<Self, Failure> {
        let state = sink
            .state()
            .map_err(Failure::kernel(format!("cannot look at region {name}")))?;
        Ok(Self {
            name,
            pages,
            sink,
            phase: Phase::Filling,
            state,
            populated: 0,
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// How many pages it has.
    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// As of the latest look.
    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// Whether nothing is left to do.
    pub(crate) fn settled(&self) -> bool {
        matches!(self.phase, Phase::Plain | Phase::Unreadable)
    }

    /// Looks at the region.
    pub(crate) fn look(&mut self) -> Result<(), Failure> {
        self.state = self.sink.state().map_err(|error| self.failed("look at", error))?;
        Ok(())
    }

    /// Whether, as of the latest look, pages are absent and all of these unreadable. It need not be the source that cannot read them: a page
    /// whose touch has timed out counts as unreadable until it comes.
    pub(crate) fn is_present_or_unreadable(&self) -> bool {
        let State { present, unreadable, .. } = self.state;
        present < self.pages && present + unreadable == self.pages
    }

    /// Goes one step on, if it can; none takes long. True if there is another one at once.
    ///
    /// `known` says that the source cannot read what is unreadable as of the latest look.
    pub(crate) fn step(&mut self, choices: Choices, known: bool) -> Result<bool, Failure> {
        if self.settled() {
            return Ok(false);
        }
        self.look()?;
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

    fn populate(&mut self) -> Result<Phase, Failure> {
        let left = self.pages - self.populated;
        let Some(pages) = range(self.populated, left.min(POPULATE_PAGES)) else {
            return self.make_plain();
        };
        match self.sink.make_present(&[pages]).complete() {
            Ok(_) => self.populated += pages.count(),
            Err(Error::Interrupted { .. }) => {}
            // It would only have saved faults, for example of a program at the limit of its memory.
            Err(_) => self.populated = self.pages,
        }
        Ok(Phase::Populating)
    }

    fn make_plain(&self) -> Result<Phase, Failure> {
        match self.sink.make_plain() {
            // One that was made at that very moment is left over; the next call takes it.
            Ok(()) if self.sink.state().is_ok_and(|state| state.mappings > 0) => Ok(Phase::Populating),
            Ok(()) => Ok(Phase::Plain),
            Err(Error::Interrupted { .. }) => Ok(Phase::Populating),
            Err(error) => Err(self.failed("make plain memory of", error)),
        }
    }

    fn failed(&self, what: &str, error: Error) -> Failure {
        Failure::kernel(format!("cannot {what} region {}", self.name))(error)
    }
}
