// SPDX-License-Identifier: GPL-2.0-or-later
//! The order of the frames of a source whose program still runs: what may come next, and what it may contain.

use std::collections::{BTreeMap, VecDeque};

use vmem::{PageRange, PageSet};

use super::next_tag;
use super::session::{Membership, Session};
use crate::answer::Run;
use crate::export::{Export, ExportRanges};
use crate::staging::StagingEvent;
use crate::wire::ProtocolError;
use crate::wire::rounds::BatchEnd;

/// Checks frames in the order in which they arrive.
pub(super) struct Rounds {
    exports: Vec<Export>,
    last_tag: u32,
    /// NEXTs without a BATCH, the oldest first.
    outstanding: VecDeque<Next>,
    /// What has come of the answer to the oldest NEXT.
    answer: Answered,
    /// The earliest valid round of the next BATCH.
    least_round: u32,
    phase: Phase,
    /// The pages of the REMAINDER frames by export; `None` for an export without any.
    remainder: Vec<Option<PageSet>>,
    /// With several connections: the place of this one.
    membership: Option<Membership>,
}

struct Next {
    tag: u32,
    max: u64,
}

#[derive(Default)]
struct Answered {
    export: Option<u32>,
    count: u64,
    /// First page and end of ranges that do not overlap. An answer has few pages, so that this is small, whatever the size of the export.
    pages: BTreeMap<u64, u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// The program runs.
    Running,
    /// A BATCH said that the rounds are over: REMAINDER frames are due.
    Listing,
    /// The list is complete, or another connection gets it: empty BATCHes of outstanding NEXTs are due.
    Listed,
}

impl Rounds {
    pub(super) fn new(exports: Vec<Export>, membership: Option<Membership>) -> Self {
        let remainder = vec![None; exports.len()];
        Self {
            exports,
            last_tag: 0,
            outstanding: VecDeque::new(),
            answer: Answered::default(),
            least_round: 1,
            phase: Phase::Running,
            remainder,
            membership,
        }
    }

    /// The session that other connections can join, if the source takes any.
    pub(super) fn session(&self) -> Option<&Session> {
        self.membership.as_ref().map(Membership::session)
    }

    /// Whether another connection gets the list of the remaining pages.
    fn is_joined(&self) -> bool {
        self.membership.as_ref().is_some_and(Membership::is_joined)
    }

    /// What the source is to do next, for the error of a time-out.
    pub(super) fn due(&self) -> &'static str {
        match self.phase {
            Phase::Running => "send the pages of a round",
            Phase::Listing => "send the list of the remaining pages",
            Phase::Listed => "end its rounds",
        }
    }

    /// Whether a NEXT was added, on this connection or another one.
    pub(super) fn has_begun(&self) -> bool {
        self.last_tag != 0 || self.membership.as_ref().is_some_and(Membership::has_begun)
    }

    /// Adds a NEXT, and returns its tag. `None` if the rounds are over.
    pub(super) fn add(&mut self, max: u64) -> Option<u32> {
        if self.phase != Phase::Running {
            return None;
        }
        self.membership.iter().for_each(Membership::begin);
        self.last_tag = next_tag(self.last_tag);
        let tag = self.last_tag;
        self.outstanding.push_back(Next { tag, max });
        Some(tag)
    }

    /// Checks that a frame belongs to the oldest NEXT. Returns the most pages of its answer.
    fn oldest(&self, tag: u32) -> Result<u64, ProtocolError> {
        match self.outstanding.front() {
            Some(next) if next.tag == tag => Ok(next.max),
            other => Err(ProtocolError::Tag {
                got: tag,
                want: other.map(|next| next.tag),
            }),
        }
    }

    /// Checks pages. Returns the number of their export.
    pub(super) fn accept_pages(&mut self, tag: u32, export: u32, runs: &[Run]) -> Result<usize, ProtocolError> {
        match self.phase {
            Phase::Running => {}
            Phase::Listing => return Err(unexpected("PAGES", "REMAINDER or ERROR")),
            Phase::Listed => return Err(ProtocolError::RoundsOver("PAGES")),
        }
        let max = self.oldest(tag)?;
        // All pages of an answer are of one export.
        if self.answer.export.is_some_and(|first| first != export) {
            return Err(ProtocolError::NoExport(export));
        }
        let (index, of) = usize::try_from(export)
            .ok()
            .and_then(|index| self.exports.get(index).map(|of| (index, of)))
            .ok_or(ProtocolError::NoExport(export))?;
        self.answer.export = Some(export);
        for run in runs {
            if run.range.end() > of.pages.end() {
                return Err(outside(run.range));
            }
            self.answer.insert(run.range, max)?;
            if let Some(membership) = &self.membership {
                membership.check(index, run.range)?;
            }
        }
        Ok(index)
    }

    /// Whether the source is to be told that all pages of this connection have arrived, once this BATCH is accepted.
    pub(super) fn is_last(&self, batch: BatchEnd) -> bool {
        batch.over && self.is_joined() && self.phase == Phase::Running
    }

    /// Ends the answer to the oldest NEXT. `None` if the caller knows that the rounds are over.
    pub(super) fn accept_batch(&mut self, tag: u32, batch: BatchEnd) -> Result<Option<StagingEvent<'static>>, ProtocolError> {
        if self.phase == Phase::Listing {
            return Err(unexpected("BATCH", "REMAINDER or ERROR"));
        }
        self.oldest(tag)?;
        if batch.round < self.least_round {
            return Err(ProtocolError::Round {
                got: batch.round,
                least: self.least_round,
            });
        }
        if self.phase == Phase::Listed && !batch.over {
            return Err(ProtocolError::RoundsOver("BATCH"));
        }
        self.outstanding.pop_front();
        self.answer = Answered::default();
        self.least_round = batch.round;
        if self.phase == Phase::Listed {
            return Ok(self.end());
        }
        if batch.over && self.is_joined() {
            self.phase = Phase::Listed;
            if let Some(end) = self.end() {
                return Ok(Some(end));
            }
        } else if batch.over {
            self.phase = Phase::Listing;
        }
        Ok(Some(StagingEvent::Batch {
            round: batch.round,
            over: batch.over,
        }))
    }

    /// Checks that a REMAINDER is due.
    pub(super) fn check_remainder(&self) -> Result<(), ProtocolError> {
        match self.phase {
            Phase::Running => Err(unexpected("REMAINDER", "PAGES, BATCH or ERROR")),
            Phase::Listing => Ok(()),
            Phase::Listed => Err(ProtocolError::RoundsOver("REMAINDER")),
        }
    }

    /// Checks a part of the list; `None` is its end.
    pub(super) fn accept_remainder(
        &mut self,
        pages: Option<ExportRanges>,
    ) -> Result<Option<StagingEvent<'static>>, ProtocolError> {
        let Some(pages) = pages else {
            self.phase = Phase::Listed;
            // As large as the exports.
            self.remainder.clear();
            return Ok(self.end());
        };
        let no_export = || ProtocolError::NoExport(pages.export as u32);
        let of = self.exports.get(pages.export).ok_or_else(no_export)?;
        let listed = self.remainder.get_mut(pages.export).ok_or_else(no_export)?;
        let listed = listed.get_or_insert_with(|| PageSet::none_of(of.pages));
        for range in &pages.ranges {
            if let Some(twice) = listed.runs_of(*range).next() {
                return Err(ProtocolError::Duplicate {
                    what: "the list of the remaining pages",
                    pgoff: twice.first().get(),
                });
            }
            listed.insert(*range);
        }
        Ok(Some(StagingEvent::Remainder(pages)))
    }

    fn end(&self) -> Option<StagingEvent<'static>> {
        self.outstanding.is_empty().then_some(StagingEvent::End)
    }
}

impl Answered {
    /// Adds pages, of which there may be `max`.
    fn insert(&mut self, range: PageRange, max: u64) -> Result<(), ProtocolError> {
        // No overflow: both are less than 2^52.
        self.count += range.count();
        if self.count > max {
            return Err(ProtocolError::BatchTooLarge { got: self.count, max });
        }
        let (first, end) = (range.first().get(), range.end());
        // The last range that begins before this one ends is the only one that can overlap it, because the others end before that begins.
        match self.pages.range(..end).next_back() {
            Some((before, its_end)) if *its_end > first => Err(ProtocolError::Duplicate {
                what: "the answer to a NEXT",
                pgoff: first.max(*before),
            }),
            _ => {
                self.pages.insert(first, end);
                Ok(())
            }
        }
    }
}

fn unexpected(got: &'static str, want: &'static str) -> ProtocolError {
    ProtocolError::Unexpected { got, want }
}

fn outside(range: PageRange) -> ProtocolError {
    ProtocolError::Outside {
        pgoff: range.first().get(),
        nr_pages: range.count(),
    }
}
