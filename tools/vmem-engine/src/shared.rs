// SPDX-License-Identifier: GPL-2.0
//! What the threads of an engine share.

use std::collections::BTreeMap;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use vmem::{PageIndex, PageRange};
use vmem_source::stop::Stop;
use vmem_source::{Export, SourceError};

use crate::error::Error;
use crate::event::Event;
use crate::in_flight::InFlight;
use crate::permission::Release;
use crate::sink::Sink;
use crate::stats::Stats;

/// How to go about it.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Stream what nobody has asked for.
    pub background: bool,
    /// Pages that the stream may have in flight.
    pub window: u64,
    /// The most pages that are asked for urgently ahead of a program that goes through memory in equal steps.
    pub prefetch: u64,
    /// How long a lost source is tried for.
    pub retry: Duration,
}

/// How long a lane waits in such a way that it can be stopped, before it leaves the waiting to its source, which has a time-out.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

/// What all threads share.
pub(crate) struct Shared {
    /// Of each region: its export, its pages, its name, and where its pages go.
    pub(crate) exports: Vec<Export>,
    pub(crate) pages: Vec<PageRange>,
    pub(crate) names: Vec<String>,
    pub(crate) sinks: Vec<Arc<dyn Sink>>,
    pub(crate) options: Options,
    pub(crate) stats: Arc<Stats>,
    pub(crate) in_flight: InFlight,
    /// Pages asked for urgently that the stream has not heard of.
    pub(crate) faulted: Mutex<Vec<(usize, PageIndex)>>,
    pub(crate) release: Arc<Release>,
    /// When it was said last of a region that there is no memory for it.
    pub(crate) short: Mutex<BTreeMap<usize, Instant>>,
    pub(crate) stop: Stop,
    pub(crate) events: Sender<Event>,
}

impl Shared {
    /// Tells the stream of faults. If it does not listen, nothing is lost but that it goes the same way again.
    pub(crate) fn notify_stream(&self, region: usize, pages: &[PageIndex]) {
        const ENOUGH: usize = 4096;
        let mut faulted = self.faulted.lock().unwrap_or_else(PoisonError::into_inner);
        if self.options.background && faulted.len() < ENOUGH {
            faulted.extend(pages.iter().map(|page| (region, *page)));
        }
    }

    /// What the stream has not heard of.
    pub(crate) fn faulted(&self) -> Vec<(usize, PageIndex)> {
        std::mem::take(&mut *self.faulted.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// There is no memory for a region. Said now and then: a region at a limit comes and goes.
    pub(crate) fn report_no_memory(&self, region: usize) {
        const ENOUGH: Duration = Duration::from_secs(60);
        let mut short = self.short.lock().unwrap_or_else(PoisonError::into_inner);
        if short.get(&region).is_none_or(|then| then.elapsed() >= ENOUGH) {
            short.insert(region, Instant::now());
            let name = self.names[region].clone();
            self.report(Event::NoMemory { name });
        }
    }

    /// Wraps what a call on a region failed with.
    pub(crate) fn failed(&self, what: &str, region: usize) -> impl FnOnce(vmem::Error) -> Error + use<> {
        Error::region(format!("cannot {what} region {}", self.names[region]))
    }

    pub(crate) fn report(&self, event: Event) {
        // Who does not listen any more is about to end.
        let _ = self.events.send(event);
    }
}

/// What ends a turn early.
pub(crate) enum Interruption {
    Source(SourceError),
    Error(Error),
}

impl From<Error> for Interruption {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<SourceError> for Interruption {
    fn from(error: SourceError) -> Self {
        Self::Source(error)
    }
}
