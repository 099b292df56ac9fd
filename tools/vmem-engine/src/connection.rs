// SPDX-License-Identifier: GPL-2.0
//! A source on one lane that is opened again when it is lost.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmem::PageRange;
use vmem_source::{Answer, Lane, PageSource, Readiness, SourceError};

use crate::error::Error;
use crate::event::Event;
use crate::shared::Shared;
use crate::stats::add;

/// Opens the source for a lane.
pub type Connect = Arc<dyn Fn(Lane) -> Result<Box<dyn PageSource>, SourceError> + Send + Sync>;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A connection that has been there for this long, and owes no answer, is a good one: what comes after it is a new outage.
const PROVEN: Duration = if cfg!(test) {
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
}

/// A source that is open, and how its numbers relate to those of the regions.
struct Open {
    source: Box<dyn PageSource>,
    since: Instant,
    /// Pages asked for that have not come.
    owed: u64,
    exports: Vec<usize>,
    regions: HashMap<usize, usize>,
}

/// A time without a single answer, over several connections.
struct Outage {
    since: Instant,
    pause: Duration,
}

impl Outage {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            pause: FIRST_PAUSE,
        }
    }
}

impl Connection {
    /// Takes over an open source.
    pub(crate) fn open(shared: Arc<Shared>, lane: Lane, connect: Connect, source: Box<dyn PageSource>) -> Result<Self, Error> {
        let open = Open::new(&shared, source)?;
        Ok(Self {
            shared,
            lane,
            connect,
            open,
            outage: None,
        })
    }

    /// Opens a source, which has been open on another lane: it is tried for as a lost one is.
    pub(crate) fn connect(shared: Arc<Shared>, lane: Lane, connect: Connect) -> Result<Self, Error> {
        let source = match connect(lane) {
            Ok(source) => source,
            Err(error) => retry(&shared, lane, &connect, &mut Outage::new(), error)?,
        };
        Self::open(shared, lane, connect, source)
    }

    /// Asks for pages of a region.
    pub(crate) fn ask(&mut self, region: usize, ranges: &[PageRange]) -> Result<(), SourceError> {
        self.open.owed += ranges.iter().map(|range| range.count()).sum::<u64>();
        self.open.source.ask(self.open.exports[region], ranges)
    }

    /// Says that pages of a region are there for good.
    pub(crate) fn release(&mut self, region: usize, ranges: &[PageRange]) -> Result<(), SourceError> {
        self.open.source.release(self.open.exports[region], ranges)
    }

    pub(crate) fn readiness(&self) -> Readiness<'_> {
        self.open.source.readiness()
    }

    /// Waits for an answer; returns it with the region that it is for.
    pub(crate) fn next(&mut self) -> Result<(usize, Answer<'_>), SourceError> {
        let answer = self.open.source.next()?;
        self.outage = None;
        self.open.owed = self.open.owed.saturating_sub(answer.pages());
        match self.open.regions.get(&answer.export()) {
            Some(region) => Ok((*region, answer)),
            None => Err(SourceError::BadQuestion(
                "an answer for an export that was not asked".to_owned(),
            )),
        }
    }

    /// Opens the source again after `error`. When this returns, nothing is in flight any more.
    pub(crate) fn reconnect(&mut self, error: SourceError) -> Result<(), Error> {
        if self.open.owed == 0 && self.open.since.elapsed() > PROVEN {
            self.outage = None;
        }
        let outage = self.outage.get_or_insert_with(Outage::new);
        let source = retry(&self.shared, self.lane, &self.connect, outage, error)?;
        self.open = Open::new(&self.shared, source)?;
        add(&self.shared.stats.reconnects, 1);
        Ok(())
    }
}

/// Opens the source after `error`, however often that takes, unless it takes too long or cannot get better.
fn retry(
    shared: &Shared,
    lane: Lane,
    connect: &Connect,
    outage: &mut Outage,
    mut error: SourceError,
) -> Result<Box<dyn PageSource>, Error> {
    let mut told = false;
    loop {
        if !error.is_transient() || outage.since.elapsed() >= shared.options.retry {
            return Err(Error::Source(error));
        }
        if !told {
            shared.report(Event::Disconnected { lane, error });
            told = true;
        }
        if shared.stop.wait(outage.pause) {
            return Err(Error::Halted);
        }
        outage.pause = (outage.pause * 2).min(LONGEST_PAUSE);
        match connect(lane) {
            Ok(source) => {
                shared.report(Event::Reconnected { lane });
                return Ok(source);
            }
            Err(again) => error = again,
        }
    }
}

impl Open {
    /// Finds the regions' memory in a source. It must be the very memory that the regions were begun with.
    fn new(shared: &Shared, source: Box<dyn PageSource>) -> Result<Self, Error> {
        let mut exports = Vec::new();
        let mut regions = HashMap::new();
        for (region, expected) in shared.exports.iter().enumerate() {
            let found = source.exports().iter().position(|export| export == expected);
            let number = found.ok_or_else(|| Error::OtherMemory(expected.name.clone()))?;
            exports.push(number);
            regions.insert(number, region);
        }
        Ok(Self {
            source,
            since: Instant::now(),
            owed: 0,
            exports,
            regions,
        })
    }
}
