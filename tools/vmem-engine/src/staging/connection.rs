// SPDX-License-Identifier: GPL-2.0-or-later
//! A connection that stages pages.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use vmem::PageRange;
use vmem_source::{ExportHoles, StagingEvent, StagingSource};
use vmem_wait::StopEvent;

use super::mapped::Mapped;
use super::region::StagedRegion;
use crate::error::Error;
use crate::exports::Exports;
use crate::readiness::wait;
use crate::seed::{Announcer, Seed};
use crate::stats::{Stats, add};
use crate::survey::Survey;

/// A connection whose rounds have ended.
pub(super) struct Finished {
    pub(super) number: usize,
    pub(super) source: Box<dyn StagingSource>,
    pub(super) remainder: VecDeque<(usize, PageRange)>,
}

/// The thread of a connection.
pub(super) struct Rounds {
    pub(super) number: usize,
    pub(super) source: Box<dyn StagingSource>,
    pub(super) exports: Exports,
    pub(super) regions: Arc<Vec<StagedRegion>>,
    pub(super) stop: Arc<StopEvent>,
    /// The holes of all memory, which the first connection asks for before pages.
    pub(super) survey: Survey,
    pub(super) mapped: Arc<Mapped>,
    pub(super) announcer: Announcer,
    pub(super) seed: Option<Arc<Seed>>,
    /// Batches that were asked for and have not ended.
    pub(super) outstanding: u64,
    /// The most pages of a batch.
    pub(super) batch: u64,
    /// The most batches outstanding.
    pub(super) most: u64,
    pub(super) remainder: VecDeque<(usize, PageRange)>,
    pub(super) stats: Arc<Stats>,
}

impl Rounds {
    pub(super) fn run(mut self, result: &Sender<Result<Finished, Error>>) {
        let outcome = match self.stage() {
            Ok(false) => return,
            Ok(true) => Ok(Finished {
                number: self.number,
                source: self.source,
                remainder: self.remainder,
            }),
            Err(error) => Err(error),
        };
        // If nobody waits for it, staging was given up.
        let _ = result.send(outcome);
    }

    /// Stages until the rounds of the connection have ended. False if it was stopped before.
    fn stage(&mut self) -> Result<bool, Error> {
        let mut is_over = false;
        if self.number > 0 && !self.mapped.wait(&self.stop) {
            return Ok(false);
        }
        loop {
            if self.number == 0 && self.survey.is_asked() && !self.survey.is_outstanding() {
                self.mapped.complete();
            }
            let is_due = !is_over && self.announcer.is_due();
            if is_due && self.outstanding == 0 && !self.survey.is_outstanding() {
                let (announcer, source) = (&mut self.announcer, &mut self.source);
                announcer.announce(|key, prefixes| source.announce(key, prefixes))?;
                continue;
            }
            while let Some((region, pages)) = (!is_due).then(|| self.survey.next()).flatten() {
                self.source.map(self.exports.number(region), pages)?;
            }
            while self.survey.is_asked() && !is_due && !is_over && self.outstanding < self.most {
                self.source.next(self.batch)?;
                self.outstanding += 1;
            }
            if wait(&self.stop, self.source.readiness())? {
                return Ok(false);
            }
            match self.source.next_event()? {
                StagingEvent::Pages(answer) => {
                    if let Some(region) = self.exports.region(answer.export()) {
                        self.regions[region].stage(&answer, self.seed.as_deref(), &self.stats)?;
                        add(&self.stats.staged, answer.pages());
                        add(&self.stats.wire, answer.wire_bytes());
                    }
                }
                StagingEvent::Holes(ExportHoles { export, holes }) => {
                    self.survey.received(holes.pages);
                    if let Some(region) = self.exports.region(export) {
                        self.regions[region].stage_holes(&holes);
                        add(&self.stats.staged, holes.count());
                    }
                }
                StagingEvent::Batch { over, .. } => {
                    is_over |= over;
                    self.outstanding = self.outstanding.saturating_sub(1);
                }
                StagingEvent::Remainder(pages) => {
                    if let Some(region) = self.exports.region(pages.export) {
                        self.remainder.extend(pages.ranges.into_iter().map(|range| (region, range)));
                    }
                }
                StagingEvent::End => return Ok(true),
            }
        }
    }
}
