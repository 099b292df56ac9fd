// SPDX-License-Identifier: GPL-2.0-or-later
//! The urgent lane: fetches pages that programs wait for.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmem::{PageIndex, PageRange, PageSet};
use vmem_source::export::{MAX_FETCH_PAGES, MAX_FETCH_RANGES};
use vmem_source::{Lane, Readiness};

use crate::apply::apply;
use crate::connection::Connection;
use crate::error::Error;
use crate::prefetch::Prefetch;
use crate::shared::{Interruption, POLL_TIMEOUT, Shared};
use crate::shortage::Shortage;
use crate::stats::add;

/// The most outstanding pages, including those fetched ahead of requests. Further requests stay in the kernel. All outstanding fetches together
/// are so short (little more than 16 KiB) that they fit into the source's socket while the source is busy with answers: a fetch never waits
/// until an answer is read.
const WINDOW: usize = 1024;

/// Requests taken from one region at a time: few enough that the first ones are fetched early, and that other regions get their turn.
const BATCH: usize = 64;

/// Pages between two that are looked at together: their bits take less time than another call.
const NEAR: u64 = 1 << 12;

/// Serves requests until the engine is halted.
pub(crate) fn run(shared: &Arc<Shared>, connection: Connection) -> Result<(), Error> {
    Lane::Urgent.set_thread_priority();
    let mut lane = Urgent {
        shared,
        connection,
        outstanding: 0,
        prefetch: Prefetch::new(
            shared.exports.iter().map(|export| export.pages.count()),
            shared.options.prefetch,
        ),
        latest: 0,
        shortage: Shortage::default(),
        plain: HashSet::new(),
        last_progress: Instant::now(),
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
    /// Number of outstanding pages of this connection.
    outstanding: usize,
    prefetch: Prefetch,
    /// The region whose requests were taken last.
    latest: usize,
    shortage: Shortage,
    /// Regions that have become plain memory.
    plain: HashSet<usize>,
    /// When the latest answer arrived, or the first fetch was sent after all pages had arrived.
    last_progress: Instant,
}

impl Urgent<'_> {
    /// Waits until there is an answer, a request or a region to retry, and processes it.
    fn turn(&mut self) -> Result<(), Interruption> {
        let (answer, wanted) = self.wait()?;
        if answer {
            let (region, answer) = self.connection.next_answer()?;
            self.last_progress = Instant::now();
            self.outstanding = self.outstanding.saturating_sub(answer.pages() as usize);
            let mut is_requested = false;
            for (pages, _) in answer.contents() {
                is_requested |= pages.iter().any(|page| !self.prefetch.expects(region, page));
                self.prefetch.received(region, pages);
            }
            let short = apply(self.shared, region, &answer)?;
            self.update_shortage(region, !short.is_empty())?;
            if is_requested && short.is_empty() {
                self.fetch_nearby()?;
            }
        }
        for region in self.shortage.due() {
            self.retry(region)?;
        }
        if let Some(region) = wanted {
            self.latest = region;
            let pages = match self.shared.sinks[region].take(BATCH) {
                // The region has no requests any more.
                Err(vmem::Error::Plain) => {
                    self.plain.insert(region);
                    Vec::new()
                }
                taken => taken.map_err(self.shared.failed("take requests of", region))?,
            };
            if !pages.is_empty() {
                add(&self.shared.stats.requests, pages.len() as u64);
                if let Some(touches) = &self.shared.options.touches {
                    touches.record(region, &pages);
                }
                self.shared.in_flight.insert(region, &pages);
                self.shared.notify_stream(region, &pages);
                let room = WINDOW.saturating_sub(self.outstanding + pages.len());
                let ahead = self.prefetch.request(region, &pages, room);
                add(&self.shared.stats.ahead, ahead.len() as u64);
                // Pages that were fetched ahead are outstanding: they are not fetched again.
                let prefetched = |page: &PageIndex| self.prefetch.expects(region, *page);
                let (_, missing): (Vec<_>, Vec<_>) = pages.into_iter().partition(prefetched);
                self.fetch(region, missing)?;
                self.fetch_ahead(region, ahead)?;
            }
        }
        Ok(())
    }

    /// Fetches absent pages that the source has at hand after the latest answer: programs often touch what was stored together.
    fn fetch_nearby(&mut self) -> Result<(), Interruption> {
        if self.shared.options.prefetch == 0 {
            return Ok(());
        }
        let nearby = self.connection.nearby();
        for together in nearby.chunk_by(|one, next| one.0 == next.0 && is_near(one.1, next.1)) {
            let (Some((region, first)), Some((_, last))) = (together.first(), together.last()) else {
                continue;
            };
            let (region, count) = (*region, last.end() - first.first().get());
            let Some(around) = PageRange::new(first.first(), count) else {
                continue;
            };
            let mut absent = PageSet::none_of(around);
            self.shared.sinks[region]
                .absent(around, &mut |run| absent.insert(run))
                .map_err(self.shared.failed("read which pages are present in", region))?;
            let absent = together
                .iter()
                .flat_map(|(_, pages)| pages.iter())
                .filter(|page| absent.contains(*page));
            let room = WINDOW.saturating_sub(self.outstanding);
            let ahead = self.prefetch.expect(region, absent, room);
            add(&self.shared.stats.ahead, ahead.len() as u64);
            self.fetch_ahead(region, ahead)?;
        }
        Ok(())
    }

    /// Defers the region if there was no memory for its pages. If there is memory again, fetches all of its pages in flight again.
    fn update_shortage(&mut self, region: usize, short: bool) -> Result<(), vmem_source::Error> {
        if short {
            if self.shortage.defer(region) {
                self.shared.report_no_memory(region);
            }
        } else if self.shortage.has(region) {
            self.shortage.end(region);
            self.fetch(region, self.shared.in_flight.of(region))?;
        }
        Ok(())
    }

    /// Fetches a few pages of a deferred region.
    fn retry(&mut self, region: usize) -> Result<(), vmem_source::Error> {
        let mut pages = self.shared.in_flight.of(region);
        pages.truncate(BATCH);
        if pages.is_empty() {
            self.shortage.end(region);
            return Ok(());
        }
        self.shortage.retry(region);
        self.fetch(region, pages)
    }

    /// Waits for an answer, for requests, or for the end. Regions take turns. Returns whether an answer may be there, and the region whose
    /// requests are to be taken.
    fn wait(&self) -> Result<(bool, Option<usize>), Error> {
        let room = self.outstanding < WINDOW;
        let regions: Vec<usize> = (0..self.shared.sinks.len())
            .filter(|region| room && !self.plain.contains(region) && !self.shortage.has(*region))
            .collect();
        let mut fds = vec![PollFd::new(&self.shared.stop, PollFlags::IN)];
        fds.extend(
            regions
                .iter()
                .map(|region| PollFd::from_borrowed_fd(self.shared.sinks[*region].fd(), PollFlags::IN)),
        );
        let mut limit = POLL_TIMEOUT;
        match self.connection.readiness() {
            Readiness::When(fd) => fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN)),
            Readiness::Always => limit = Duration::ZERO,
        }
        // If the source does not answer, this thread waits in the source, which has a time limit, even if requests keep coming.
        let left = (self.outstanding > 0).then(|| limit.saturating_sub(self.last_progress.elapsed()));
        let left = left.into_iter().chain(self.shortage.wait()).min();
        match left {
            Some(left) => self.connection.pulse().waits(left),
            // The next one comes when a program touches a page.
            None => self.connection.pulse().rests(),
        }
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        let woken = poll(&mut fds, timeout.as_ref());
        self.connection.pulse().works();
        match woken {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Error::local("wait for requests")(error.into())),
        }
        let ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        let late = self.outstanding > 0 && self.last_progress.elapsed() >= limit;
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

    fn fetch(&mut self, region: usize, pages: Vec<PageIndex>) -> Result<(), vmem_source::Error> {
        self.fetch_with(pages, |connection, ranges| connection.fetch(region, ranges))
    }

    /// Fetches pages that no program waits for.
    fn fetch_ahead(&mut self, region: usize, pages: Vec<PageIndex>) -> Result<(), vmem_source::Error> {
        self.fetch_with(pages, |connection, ranges| connection.fetch_ahead(region, ranges))
    }

    fn fetch_with(
        &mut self,
        mut pages: Vec<PageIndex>,
        fetch: impl Fn(&mut Connection, &[PageRange]) -> Result<(), vmem_source::Error>,
    ) -> Result<(), vmem_source::Error> {
        pages.sort_unstable();
        if self.outstanding == 0 && !pages.is_empty() {
            self.last_progress = Instant::now();
        }
        for pages in pages.chunks(MAX_FETCH_PAGES as usize) {
            for ranges in runs(pages).chunks(MAX_FETCH_RANGES) {
                fetch(&mut self.connection, ranges)?;
            }
        }
        self.outstanding += pages.len();
        Ok(())
    }

    /// Reconnects, and fetches all pages in flight again.
    fn recover(&mut self, error: vmem_source::Error) -> Result<(), Error> {
        let mut error = error;
        loop {
            self.connection.reconnect(error, &|| false)?;
            self.outstanding = 0;
            self.prefetch.clear();
            match self.fetch_all_in_flight() {
                Ok(()) => return Ok(()),
                Err(again) => error = again,
            }
        }
    }

    fn fetch_all_in_flight(&mut self) -> Result<(), vmem_source::Error> {
        for same_region in self.shared.in_flight.pages().chunk_by(|a, b| a.0 == b.0) {
            let pages = same_region.iter().map(|(_, page)| *page).collect();
            self.fetch(same_region[0].0, pages)?;
        }
        Ok(())
    }
}

/// Whether `next` begins so little behind `one` that the presence of both is asked for at once.
fn is_near(one: PageRange, next: PageRange) -> bool {
    next.first().get().checked_sub(one.end()).is_some_and(|gap| gap < NEAR)
}

/// Joins sorted pages to runs.
fn runs(pages: &[PageIndex]) -> Vec<PageRange> {
    let mut runs = Vec::new();
    pages.iter().for_each(|page| PageRange::from(*page).append_to(&mut runs));
    runs
}
