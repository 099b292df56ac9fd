// SPDX-License-Identifier: GPL-2.0-or-later
//! State that the threads of an engine share.

use std::collections::BTreeMap;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use vmem::PageIndex;
use vmem_source::Export;
use vmem_wait::{Liveness, Pulse, StopEvent};

use crate::error::Error;
use crate::event::Event;
use crate::in_flight::InFlight;
use crate::permission::Release;
use crate::seed::Seed;
use crate::sink::Sink;
use crate::stats::Stats;
use crate::touches::Touches;

/// Options of an engine.
#[derive(Clone, Debug)]
pub struct Options {
    /// Stream the pages that no program has touched.
    pub background: bool,
    /// The most connections of the stream, at least one.
    pub streams: usize,
    /// The threads of the stream give way to programs ([`Lane::yield_thread_priority`](vmem_source::Lane::yield_thread_priority)): for a source whose
    /// pages cost processor time on this machine.
    pub yields: bool,
    /// The most outstanding pages of the stream; each connection has an equal share.
    pub window: u64,
    /// The most pages that the urgent lane fetches ahead of a program that touches memory in equal steps.
    pub prefetch: u64,
    /// How long the engine tries to reconnect to a lost source.
    pub retry: Duration,
    /// Where the lanes show that they are alive.
    pub liveness: Option<Liveness>,
    /// How long a lane may be at one call of the source and show no sign of life: the source has a time limit of its own, and may try again by
    /// itself.
    pub patience: Duration,
    /// Pages become present without the engine, too: the stream looks which ones are absent before each fetch.
    pub backed: bool,
    /// Contents that the stream need not fetch.
    pub seed: Option<Arc<Seed>>,
    /// Where requests are recorded.
    pub touches: Option<Arc<Touches>>,
}

/// How long a lane waits for an answer so that it can be stopped. After that, it waits in the source, which has a time limit of its own.
pub(crate) const POLL_TIMEOUT: Duration = Duration::from_secs(1);

/// State that all threads share.
pub(crate) struct Shared {
    /// Of each region: its export, its name, and where its pages go.
    pub(crate) exports: Vec<Export>,
    pub(crate) names: Vec<String>,
    pub(crate) sinks: Vec<Arc<dyn Sink>>,
    pub(crate) options: Options,
    pub(crate) stats: Arc<Stats>,
    pub(crate) in_flight: InFlight,
    /// Pages that the urgent lane fetches, for the stream to skip.
    pub(crate) faulted: Mutex<Vec<(usize, PageIndex)>>,
    pub(crate) release: Arc<Release>,
    /// When [`Event::NoMemory`] was reported last for each region.
    pub(crate) short: Mutex<BTreeMap<usize, Instant>>,
    pub(crate) stop: StopEvent,
    pub(crate) events: Sender<Event>,
}

impl Shared {
    /// How the thread of a lane shows that it is alive.
    pub(crate) fn watch(&self, lane: &str) -> Pulse {
        self.options.liveness.clone().unwrap_or_default().watch(lane)
    }

    /// Notifies the stream of faults. If the queue is full, the stream fetches those pages a second time.
    pub(crate) fn notify_stream(&self, region: usize, pages: &[PageIndex]) {
        const MAX_QUEUED: usize = 4096;
        let mut faulted = self.faulted.lock().unwrap_or_else(PoisonError::into_inner);
        if self.options.background && faulted.len() < MAX_QUEUED {
            faulted.extend(pages.iter().map(|page| (region, *page)));
        }
    }

    /// Takes the faults that the stream has not seen.
    pub(crate) fn take_faulted(&self) -> Vec<(usize, PageIndex)> {
        std::mem::take(&mut *self.faulted.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reports that there is no memory for a region, at most once a minute: a region at a limit can change state often.
    pub(crate) fn report_no_memory(&self, region: usize) {
        const REPORT_INTERVAL: Duration = Duration::from_secs(60);
        let mut short = self.short.lock().unwrap_or_else(PoisonError::into_inner);
        if short.get(&region).is_none_or(|then| then.elapsed() >= REPORT_INTERVAL) {
            short.insert(region, Instant::now());
            let name = self.names[region].clone();
            self.report(Event::NoMemory { name });
        }
    }

    /// Wraps the error of a call on a region.
    pub(crate) fn failed(&self, action: &'static str, region: usize) -> impl FnOnce(vmem::Error) -> Error + use<> {
        Error::region(action, &self.names[region])
    }

    pub(crate) fn report(&self, event: Event) {
        // The receiver is gone if the engine has been dropped.
        let _ = self.events.send(event);
    }
}

/// Why a turn of a lane ended early.
pub(crate) enum Interruption {
    Source(vmem_source::Error),
    Error(Error),
}

impl From<Error> for Interruption {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<vmem_source::Error> for Interruption {
    fn from(error: vmem_source::Error) -> Self {
        Self::Source(error)
    }
}
