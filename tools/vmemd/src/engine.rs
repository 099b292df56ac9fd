// SPDX-License-Identifier: GPL-2.0
//! Fills regions from a source: faults first, and the rest behind them.
//!
//! Two threads, each with a connection of its own:
//!
//! - `urgent` takes requests from the regions and asks for those pages, and a few that will be wanted next;
//! - `stream` asks for all pages that are absent, in large pieces, going on behind the latest fault.
//!
//! Each keeps a window of questions in flight, and fills what comes at once. Neither knows what the other has in flight: a page that a
//! program waits for is asked for urgently even if the stream has asked for it already, and whoever comes first fills it; a page that is
//! present keeps what it has. So no order of events gives a wrong page, and what it costs is at most one page for each fault.
//!
//! A connection that is lost is made again, and what was in flight is asked for again; meanwhile programs wait. Nothing here holds a
//! table of pages but the stream's bitmap.

mod apply;
mod flight;
mod foresight;
mod line;
pub(crate) mod release;
mod shortage;
pub(crate) mod sink;
pub(crate) mod stats;
mod stream;
#[cfg(test)]
mod tests;
mod urgent;
mod wanted;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use vmem::PageIndex;
use vmem_source::{Export, Lane, PageSource, SourceError};

use crate::failure::Failure;
use crate::stop::Stop;
use flight::Flight;
pub(crate) use line::Connect;
use line::Line;
use release::{Permission, Release};
use sink::Sink;
use stats::Stats;

/// How to go about it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Stream what nobody has asked for.
    pub(crate) background: bool,
    /// Pages that the stream may have in flight.
    pub(crate) window: u64,
    /// The most pages that are asked for urgently ahead of a program that goes through memory in equal steps.
    pub(crate) prefetch: u64,
    /// How long a lost source is tried for.
    pub(crate) retry: Duration,
}

/// What happens, for who watches.
#[derive(Debug)]
pub(crate) enum Event {
    /// A connection was lost, and is being made again.
    Lost {
        /// Which.
        lane: Lane,
        /// Why.
        error: SourceError,
    },
    /// It has been made again.
    Back {
        /// Which.
        lane: Lane,
    },
    /// There is no memory for pages of a region: they are tried again, and others go on.
    Short {
        /// The region.
        name: String,
    },
    /// A lane has ended; with a failure, there is nothing left to hope for.
    Ended(Result<(), Failure>),
    /// A signal asks to end.
    Signal,
}

/// How long a lane waits in such a way that it can be stopped, before it leaves the waiting to its source, which has a time-out.
const PATIENCE: Duration = Duration::from_secs(1);

/// A region to be filled.
pub(crate) struct Target {
    /// What of the source fills it.
    pub(crate) export: Export,
    /// What it is called here.
    pub(crate) name: String,
    /// Where its pages go.
    pub(crate) sink: Arc<dyn Sink>,
}

/// What all threads share.
struct Shared {
    /// Of each region: its export, its name, and where its pages go.
    exports: Vec<Export>,
    names: Vec<String>,
    sinks: Vec<Arc<dyn Sink>>,
    options: Options,
    stats: Arc<Stats>,
    flight: Flight,
    /// Pages asked for urgently that the stream has not heard of.
    faulted: Mutex<Vec<(usize, PageIndex)>>,
    release: Arc<Release>,
    /// When it was said last of a region that there is no memory for it.
    short: Mutex<BTreeMap<usize, Instant>>,
    stop: Stop,
    events: Sender<Event>,
}

impl Shared {
    /// Tells the stream of faults. If it does not listen, nothing is lost but that it goes the same way again.
    fn tell_stream(&self, region: usize, pages: &[PageIndex]) {
        const ENOUGH: usize = 4096;
        let mut faulted = self.faulted.lock().unwrap_or_else(PoisonError::into_inner);
        if self.options.background && faulted.len() < ENOUGH {
            faulted.extend(pages.iter().map(|page| (region, *page)));
        }
    }

    /// What the stream has not heard of.
    fn faulted(&self) -> Vec<(usize, PageIndex)> {
        std::mem::take(&mut *self.faulted.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// There is no memory for a region. Said now and then: a region at a limit comes and goes.
    fn report_short(&self, region: usize) {
        const ENOUGH: Duration = Duration::from_secs(60);
        let mut short = self.short.lock().unwrap_or_else(PoisonError::into_inner);
        if short.get(&region).is_none_or(|then| then.elapsed() >= ENOUGH) {
            short.insert(region, Instant::now());
            let name = self.names[region].clone();
            self.report(Event::Short { name });
        }
    }

    /// Wraps what a call on a region failed with.
    fn failed(&self, what: &str, region: usize) -> impl FnOnce(vmem::Error) -> Failure + use<> {
        Failure::kernel(format!("cannot {what} region {}", self.names[region]))
    }

    fn report(&self, event: Event) {
        // Who does not listen any more is about to end.
        let _ = self.events.send(event);
    }
}

/// What ends a turn early.
enum Interruption {
    Source(SourceError),
    Failure(Failure),
}

impl From<Failure> for Interruption {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl From<SourceError> for Interruption {
    fn from(error: SourceError) -> Self {
        Self::Source(error)
    }
}

/// An engine at work.
pub(crate) struct Engine {
    shared: Arc<Shared>,
    events: Receiver<Event>,
    connect: Connect,
    /// Regions of which all that was absent has been asked for.
    asked: BTreeSet<usize>,
    /// Lanes that have not ended.
    running: usize,
    halted: bool,
}

impl Engine {
    /// Starts to fill `targets`. `first` is a source that is open already, on the urgent lane; others are made with `connect`. `events` is
    /// the sending end of what [`next_event`](Self::next_event) gives.
    pub(crate) fn start(
        targets: Vec<Target>,
        first: Box<dyn PageSource>,
        connect: Connect,
        options: Options,
        stats: Arc<Stats>,
        release: Arc<Release>,
    ) -> Result<(Self, Sender<Event>), Failure> {
        let (sender, events) = channel();
        let (mut exports, mut names, mut sinks) = (Vec::new(), Vec::new(), Vec::new());
        for target in targets {
            exports.push(target.export);
            names.push(target.name);
            sinks.push(target.sink);
        }
        let shared = Arc::new(Shared {
            exports,
            names,
            sinks,
            options,
            stats,
            flight: Flight::default(),
            faulted: Mutex::default(),
            release,
            short: Mutex::default(),
            stop: Stop::new().map_err(Failure::local("cannot make an eventfd"))?,
            events: sender.clone(),
        });
        let mut engine = Self {
            shared: Arc::clone(&shared),
            events,
            connect: Arc::clone(&connect),
            asked: BTreeSet::new(),
            running: 0,
            halted: false,
        };
        let line = Line::open(Arc::clone(&shared), Lane::Urgent, connect, first)?;
        engine.spawn("urgent", &shared, move |shared| urgent::run(shared, line))?;
        if options.background {
            engine.stream((0..shared.sinks.len()).collect())?;
        }
        Ok((engine, sender))
    }

    /// Whether the pages of a region that cannot be read are known to be such at the source. A touch can also have timed out before
    /// anybody asked for its page: where there is no stream, they are asked for once, and it is known when the engine is idle again.
    pub(crate) fn has_asked_for_unreadable(&mut self, region: usize) -> Result<bool, Failure> {
        let asked = self.asked.contains(&region);
        if !asked {
            self.stream(vec![region])?;
        }
        Ok(asked)
    }

    /// Asks for all that is absent in these regions.
    fn stream(&mut self, regions: Vec<usize>) -> Result<(), Failure> {
        self.asked.extend(&regions);
        let (shared, connect) = (Arc::clone(&self.shared), Arc::clone(&self.connect));
        self.spawn("stream", &shared, move |shared| {
            let line = Line::connect(Arc::clone(shared), Lane::Stream, connect)?;
            stream::run(shared, line, &regions)
        })
    }

    /// The next event, if one comes within `timeout`. After [`halt`](Self::halt) what becomes of the connections is none any more.
    pub(crate) fn next_event(&mut self, timeout: Duration) -> Option<Event> {
        // While one sending end is with the caller, it is not disconnected.
        let event = self.events.recv_timeout(timeout).ok()?;
        if let Event::Ended(_) = event {
            self.running -= 1;
        }
        (!self.halted || matches!(event, Event::Signal)).then_some(event)
    }

    /// No page will be needed any more: takes leave of the source.
    pub(crate) fn halt(&mut self) {
        self.halted = true;
        self.shared.stop.set();
    }

    /// Whether the source has nothing to hear any more of what is here.
    pub(crate) fn has_told(&self) -> bool {
        matches!(self.shared.release.get(), Permission::Never | Permission::Done)
    }

    /// Whether nothing is on its way: the stream has ended, and nothing is asked for urgently.
    pub(crate) fn is_idle(&self) -> bool {
        // The urgent lane does not end by itself.
        self.running <= 1 && self.shared.flight.pages().is_empty()
    }

    /// Ends the threads, and waits for them for a moment. One that waits for a slow source is left behind: it can do no harm, because a
    /// page is filled as a whole or not at all.
    pub(crate) fn stop(mut self) {
        const MOMENT: Duration = Duration::from_secs(1);
        self.halt();
        let until = Instant::now() + MOMENT;
        while self.running > 0 && Instant::now() < until {
            self.next_event(until.saturating_duration_since(Instant::now()));
        }
    }

    fn spawn(
        &mut self,
        name: &str,
        shared: &Arc<Shared>,
        run: impl FnOnce(&Arc<Shared>) -> Result<(), Failure> + Send + 'static,
    ) -> Result<(), Failure> {
        let shared = Arc::clone(shared);
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let mut ending = Ending {
                    shared: &shared,
                    result: None,
                };
                ending.result = Some(run(&shared));
            })
            .map_err(Failure::local("cannot start a thread"))?;
        self.running += 1;
        Ok(())
    }
}

/// Reports the end of a lane, also of one that has panicked: nobody shall wait for it.
struct Ending<'a> {
    shared: &'a Shared,
    result: Option<Result<(), Failure>>,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let panicked = || Err(Failure::local("cannot go on")(std::io::Error::other("a thread has panicked")));
        let result = self.result.take().unwrap_or_else(panicked);
        self.shared.report(Event::Ended(result));
    }
}
