// SPDX-License-Identifier: GPL-2.0
//! The urgent lane: pages that programs wait for.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmem::{PageIndex, PageRange};
use vmem_pages::push;
use vmem_source::export::{MAX_ASK_PAGES, MAX_ASK_RANGES};
use vmem_source::{Lane, Readiness, SourceError};

use crate::apply::apply;
use crate::connection::Connection;
use crate::error::Error;
use crate::prefetch::Prefetch;
use crate::shared::{Interruption, PATIENCE, Shared};
use crate::shortage::Shortage;
use crate::stats::add;

/// Pages in flight at a time, those ahead of requests among them. Further requests stay in the kernel. All questions together are so short
/// (little more than 16 KiB) that the source's socket takes them while the source is still busy answering: asking does not wait for an
/// answer to be read.
const WINDOW: usize = 1024;

/// Requests taken from one region at a time: few enough that its first ones are on their way early, and that other regions have their turn.
const BATCH: usize = 64;

/// Serves requests until it is stopped.
pub(crate) fn run(shared: &Arc<Shared>, connection: Connection) -> Result<(), Error> {
    Lane::Urgent.take_thread();
    let mut lane = Urgent {
        shared,
        connection,
        asked: 0,
        prefetch: Prefetch::new(shared.exports.iter().map(|export| export.pages), shared.options.prefetch),
        latest: 0,
        shortage: Shortage::default(),
        plain: HashSet::new(),
        heard: Instant::now(),
    };
    while !shared.stop.is_set() {
        match lane.turn() {
            Ok(()) => {}
            Err(Interruption::Error(error)) => return Err(error),
            Err(Interruption::Source(error)) => lane.recover(error)?,
        }
    }
    Ok(())
}

struct Urgent<'a> {
    shared: &'a Shared,
    connection: Connection,
    /// Pages asked for on this connection that have not come.
    asked: usize,
    prefetch: Prefetch,
    /// The region whose requests were taken last.
    latest: usize,
    shortage: Shortage,
    /// Regions that have become plain memory.
    plain: HashSet<usize>,
    /// When the source was heard of last, or was asked something after it had nothing to say.
    heard: Instant,
}

impl Urgent<'_> {
    /// Waits until there is something to do, and does it.
    fn turn(&mut self) -> Result<(), Interruption> {
        let (answer, wanted) = self.wait()?;
        if answer {
            let (region, answer) = self.connection.next()?;
            self.heard = Instant::now();
            self.asked = self.asked.saturating_sub(answer.pages() as usize);
            for (pages, _) in answer.contents() {
                self.prefetch.came(region, pages);
            }
            let short = apply(self.shared, region, &answer)?;
            self.note_shortage(region, !short.is_empty())?;
        }
        for region in self.shortage.due() {
            self.retry(region)?;
        }
        if let Some(region) = wanted {
            self.latest = region;
            let pages = match self.shared.sinks[region].take(BATCH) {
                // Nobody will ever want a page of it again.
                Err(vmem::Error::Plain) => {
                    self.plain.insert(region);
                    Vec::new()
                }
                taken => taken.map_err(self.shared.failed("take requests of", region))?,
            };
            if !pages.is_empty() {
                add(&self.shared.stats.requests, pages.len() as u64);
                self.shared.in_flight.insert(region, &pages);
                self.shared.notify_stream(region, &pages);
                let room = WINDOW.saturating_sub(self.asked + pages.len());
                let ahead = self.prefetch.wanted(region, &pages, room);
                add(&self.shared.stats.ahead, ahead.len() as u64);
                // What is on its way already is not asked for again.
                let prefetched = |page: &PageIndex| self.prefetch.expects(region, *page);
                let (_, asked): (Vec<_>, Vec<_>) = pages.into_iter().partition(prefetched);
                self.ask(region, asked)?;
                self.ask(region, ahead)?;
            }
        }
        Ok(())
    }

    /// There was no memory for pages of the region that came, or there was: then all that is in flight is asked for again.
    fn note_shortage(&mut self, region: usize, short: bool) -> Result<(), SourceError> {
        if short {
            if self.shortage.set_aside(region) {
                self.shared.report_no_memory(region);
            }
        } else if self.shortage.has(region) {
            self.shortage.end(region);
            self.ask(region, self.shared.in_flight.of(region))?;
        }
        Ok(())
    }

    /// Asks for a few pages of a region that was short.
    fn retry(&mut self, region: usize) -> Result<(), SourceError> {
        let mut pages = self.shared.in_flight.of(region);
        pages.truncate(BATCH);
        if pages.is_empty() {
            self.shortage.end(region);
            return Ok(());
        }
        self.shortage.retry(region);
        self.ask(region, pages)
    }

    /// Waits for an answer, for a region's requests, or for the end. Regions have turns.
    fn wait(&self) -> Result<(bool, Option<usize>), Error> {
        let room = self.asked < WINDOW;
        let regions: Vec<usize> = (0..self.shared.sinks.len())
            .filter(|region| room && !self.plain.contains(region) && !self.shortage.has(*region))
            .collect();
        let mut fds = vec![PollFd::new(&self.shared.stop, PollFlags::IN)];
        fds.extend(
            regions
                .iter()
                .map(|region| PollFd::from_borrowed_fd(self.shared.sinks[*region].fd(), PollFlags::IN)),
        );
        let mut patience = PATIENCE;
        match self.connection.readiness() {
            Readiness::When(fd) => fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN)),
            Readiness::Always => patience = Duration::ZERO,
        }
        // A source that has questions to answer and does not is left to its own time-out, even if requests keep coming.
        let left = (self.asked > 0).then(|| patience.saturating_sub(self.heard.elapsed()));
        let left = left.into_iter().chain(self.shortage.wait()).min();
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Error::local("cannot wait for requests")(error.into())),
        }
        let ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        let late = self.asked > 0 && self.heard.elapsed() >= patience;
        let answer = late || fds.get(1 + regions.len()).is_some_and(ready);
        let mut wanted = regions
            .iter()
            .zip(&fds[1..])
            .filter(|(_, fd)| ready(fd))
            .map(|(region, _)| *region);
        let first = wanted.clone().next();
        let next = wanted.find(|region| *region > self.latest);
        Ok((answer, next.or(first)))
    }

    fn ask(&mut self, region: usize, mut pages: Vec<PageIndex>) -> Result<(), SourceError> {
        pages.sort_unstable();
        if self.asked == 0 && !pages.is_empty() {
            self.heard = Instant::now();
        }
        for pages in pages.chunks(MAX_ASK_PAGES as usize) {
            for ranges in runs(pages).chunks(MAX_ASK_RANGES) {
                self.connection.ask(region, ranges)?;
            }
        }
        self.asked += pages.len();
        Ok(())
    }

    /// Opens the source again, and asks again for all that is in flight.
    fn recover(&mut self, error: SourceError) -> Result<(), Error> {
        let mut error = error;
        loop {
            self.connection.reconnect(error)?;
            self.asked = 0;
            self.prefetch.forget();
            match self.ask_for_all_in_flight() {
                Ok(()) => return Ok(()),
                Err(again) => error = again,
            }
        }
    }

    fn ask_for_all_in_flight(&mut self) -> Result<(), SourceError> {
        for same_region in self.shared.in_flight.pages().chunk_by(|a, b| a.0 == b.0) {
            let pages = same_region.iter().map(|(_, page)| *page).collect();
            self.ask(same_region[0].0, pages)?;
        }
        Ok(())
    }
}

/// Sorted pages as runs.
fn runs(pages: &[PageIndex]) -> Vec<PageRange> {
    let mut runs = Vec::new();
    pages.iter().for_each(|page| push(&mut runs, (*page).into()));
    runs
}
