// SPDX-License-Identifier: GPL-2.0-or-later
//! The connection of one lane to the source, reopened when it is lost.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmem::PageRange;
use vmem_source::digest::Key;
use vmem_source::{Answer, Lane, PageSource, Readiness, Reply};
use vmem_wait::{BackOff, Pulse};

use crate::error::Error;
use crate::event::Event;
use crate::exports::Exports;
use crate::shared::Shared;
use crate::stats::add;

/// Connects to the source for a lane.
pub type Connect = Arc<dyn Fn(Lane) -> Result<Box<dyn PageSource>, vmem_source::Error> + Send + Sync>;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often a pause looks whether the connection is still needed.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// A connection that has lasted this long without an outstanding page is stable: its loss begins a new outage.
const STABLE: Duration = if cfg!(test) {
    Duration::from_millis(500)
} else {
    Duration::from_secs(10)
};

pub(crate) struct Connection {
    shared: Arc<Shared>,
    lane: Lane,
    connect: Connect,
    open: Open,
    outage: Option<Outage>,
    /// Of the thread of the lane.
    pulse: Pulse,
}

/// An open source, and its exports.
struct Open {
    source: Box<dyn PageSource>,
    since: Instant,
    /// Number of outstanding pages.
    outstanding: u64,
    exports: Exports,
}

/// A time without an answer, which can span several connections.
struct Outage {
    since: Instant,
    back_off: BackOff,
}

impl Outage {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            back_off: BackOff::new(FIRST_PAUSE, LONGEST_PAUSE),
        }
    }
}

impl Connection {
    /// Takes over an open source.
    pub(crate) fn open(
        shared: Arc<Shared>,
        lane: Lane,
        connect: Connect,
        source: Box<dyn PageSource>,
        pulse: Pulse,
    ) -> Result<Self, Error> {
        let open = Open::new(&shared, source)?;
        pulse.works();
        Ok(Self {
            shared,
            lane,
            connect,
            open,
            outage: None,
            pulse,
        })
    }

    /// Connects to the source, which is open on another lane already: retries as after a lost connection. `None` if `is_over` says that the
    /// connection is not needed any more.
    pub(crate) fn connect(
        shared: Arc<Shared>,
        lane: Lane,
        connect: Connect,
        is_over: &dyn Fn() -> bool,
        pulse: Pulse,
    ) -> Result<Option<Self>, Error> {
        let source = match connect(lane) {
            Ok(source) => source,
            Err(error) => match retry(&shared, lane, &connect, &mut Outage::new(), error, is_over, &pulse)? {
                Some(source) => source,
                None => return Ok(None),
            },
        };
        Self::open(shared, lane, connect, source, pulse).map(Some)
    }

    /// Fetches pages of a region.
    pub(crate) fn fetch(&mut self, region: usize, ranges: &[PageRange]) -> Result<(), vmem_source::Error> {
        self.open.begin(ranges);
        self.in_source(|open| open.source.fetch(open.exports.number(region), ranges))
    }

    /// Fetches pages of a region that no program waits for.
    pub(crate) fn fetch_ahead(&mut self, region: usize, ranges: &[PageRange]) -> Result<(), vmem_source::Error> {
        self.open.begin(ranges);
        self.in_source(|open| open.source.fetch_ahead(open.exports.number(region), ranges))
    }

    /// The pages that the source wants to be fetched first, with the numbers of their regions.
    pub(crate) fn preferred(&mut self) -> VecDeque<(usize, PageRange)> {
        let pages = self.open.source.preferred();
        self.open.of_regions(pages).collect()
    }

    /// The pages that came to the source with those of the latest answer, with the numbers of their regions.
    pub(crate) fn nearby(&mut self) -> Vec<(usize, PageRange)> {
        let pages = self.open.source.nearby();
        self.open.of_regions(pages).collect()
    }

    /// Whether the source gives a map of its holes.
    pub(crate) fn can_map(&self) -> bool {
        self.open.source.can_map()
    }

    /// Asks for the holes of a region.
    pub(crate) fn map(&mut self, region: usize, pages: PageRange) -> Result<(), vmem_source::Error> {
        self.in_source(|open| open.source.map(open.exports.number(region), pages))
    }

    /// Whether the source takes digests.
    pub(crate) fn can_hash(&self) -> bool {
        self.open.source.can_hash()
    }

    /// Tells the source of contents that are here.
    pub(crate) fn announce(&mut self, key: &Key, prefixes: &[u64]) -> Result<(), vmem_source::Error> {
        self.in_source(|open| open.source.announce(key, prefixes))
    }

    /// Tells the source that pages of a region have arrived for good.
    pub(crate) fn release(&mut self, region: usize, ranges: &[PageRange]) -> Result<(), vmem_source::Error> {
        self.in_source(|open| open.source.release(open.exports.number(region), ranges))
    }

    /// Makes a call of the source, which may keep the lane.
    fn in_source<T>(&mut self, call: impl FnOnce(&mut Open) -> T) -> T {
        self.pulse.waits(self.shared.options.patience);
        let result = call(&mut self.open);
        self.pulse.works();
        result
    }

    /// How the lane shows that it is alive.
    pub(crate) fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    pub(crate) fn readiness(&self) -> Readiness<'_> {
        self.open.source.readiness()
    }

    /// Waits for an answer, where no map was asked for. Returns it with the number of its region.
    pub(crate) fn next_answer(&mut self) -> Result<(usize, Answer<'_>), vmem_source::Error> {
        match self.next_reply()? {
            (region, Reply::Pages(answer)) => Ok((region, answer)),
            (_, Reply::Holes(_)) => Err(unasked()),
        }
    }

    /// Waits for an answer. Returns it with the number of its region.
    pub(crate) fn next_reply(&mut self) -> Result<(usize, Reply<'_>), vmem_source::Error> {
        self.pulse.waits(self.shared.options.patience);
        let reply = self.open.source.next_reply()?;
        self.pulse.works();
        self.outage = None;
        let export = match &reply {
            Reply::Pages(answer) => {
                self.open.outstanding = self.open.outstanding.saturating_sub(answer.pages());
                answer.export()
            }
            Reply::Holes(holes) => holes.export,
        };
        match self.open.exports.region(export) {
            Some(region) => Ok((region, reply)),
            None => Err(unasked()),
        }
    }

    /// Reconnects after `error`. No page is outstanding afterwards. False if `is_over` says that the connection is not needed any more.
    pub(crate) fn reconnect(&mut self, error: vmem_source::Error, is_over: &dyn Fn() -> bool) -> Result<bool, Error> {
        if self.open.outstanding == 0 && self.open.since.elapsed() > STABLE {
            self.outage = None;
        }
        let outage = self.outage.get_or_insert_with(Outage::new);
        let Some(source) = retry(&self.shared, self.lane, &self.connect, outage, error, is_over, &self.pulse)? else {
            return Ok(false);
        };
        self.open = Open::new(&self.shared, source)?;
        self.pulse.works();
        add(&self.shared.stats.reconnects, 1);
        Ok(true)
    }
}

fn unasked() -> vmem_source::Error {
    vmem_source::Error::InvalidFetch("an answer for an export that was not fetched from".to_owned())
}

/// Reconnects after `error`, until that succeeds, the time limit of retries is over, or an error is not transient. `None` if `is_over` says that
/// the connection is not needed any more.
fn retry(
    shared: &Shared,
    lane: Lane,
    connect: &Connect,
    outage: &mut Outage,
    mut error: vmem_source::Error,
    is_over: &dyn Fn() -> bool,
    pulse: &Pulse,
) -> Result<Option<Box<dyn PageSource>>, Error> {
    let mut reported = false;
    loop {
        if !error.is_transient() || outage.since.elapsed() >= shared.options.retry {
            return Err(error.into());
        }
        if !reported {
            shared.report(Event::Disconnected { lane, error });
            reported = true;
        }
        let until = Instant::now() + outage.back_off.next_pause();
        loop {
            if is_over() {
                return Ok(None);
            }
            let left = until.saturating_duration_since(Instant::now());
            pulse.waits(POLL_INTERVAL);
            if shared.stop.wait(left.min(POLL_INTERVAL)) {
                return Err(Error::Halted);
            }
            if left.is_zero() {
                break;
            }
        }
        pulse.waits(shared.options.patience);
        match connect(lane) {
            Ok(source) => {
                shared.report(Event::Reconnected { lane });
                return Ok(Some(source));
            }
            Err(again) => error = again,
        }
    }
}

impl Open {
    /// Finds the exports of the regions in a source. Their identities must be those that the regions were started with.
    fn new(shared: &Shared, mut source: Box<dyn PageSource>) -> Result<Self, Error> {
        if shared.options.prefetch == 0 {
            source.skip_nearby();
        }
        let exports = Exports::find(source.exports(), &shared.exports)?;
        Ok(Self {
            source,
            since: Instant::now(),
            outstanding: 0,
            exports,
        })
    }

    /// Notes that these pages are outstanding from now on.
    fn begin(&mut self, ranges: &[PageRange]) {
        self.outstanding += ranges.iter().map(|range| range.count()).sum::<u64>();
    }

    /// Pages of exports, with the numbers of their regions; those of exports that no region has are left out.
    fn of_regions(&self, pages: Vec<(usize, PageRange)>) -> impl Iterator<Item = (usize, PageRange)> {
        let pages = pages.into_iter();
        pages.filter_map(|(export, pages)| Some((self.exports.region(export)?, pages)))
    }
}
