// SPDX-License-Identifier: GPL-2.0-or-later
//! An engine and its threads.

use std::collections::{BTreeSet, VecDeque};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use vmem_source::{Lane, PageSource};
use vmem_wait::StopEvent;

use crate::connection::{Connect, Connection};
use crate::error::Error;
use crate::event::Event;
use crate::in_flight::InFlight;
use crate::permission::{Permission, Release};
use crate::shared::{Options, Shared};
use crate::staging::Staged;
use crate::stats::Stats;
use crate::stream::{self, Begin, Group};
use crate::target::Target;
use crate::urgent;

/// A running engine.
pub struct Engine {
    shared: Arc<Shared>,
    events: Receiver<Event>,
    connect: Connect,
    /// Regions that a stream was started for.
    streamed: BTreeSet<usize>,
    /// Number of lanes that have not ended.
    running: usize,
    halted: bool,
}

impl Engine {
    /// Starts to fill `targets`. `first` is an open source for the urgent lane; further ones are opened by `connect`. If pages of the targets
    /// were `staged`, the stream has those connections and begins with the remainder. Returns the engine, and a sender of events that
    /// [`next_event`](Self::next_event) receives.
    ///
    /// # Errors
    ///
    /// [`Error::MemoryChanged`]: a target is not in `first`. [`Error::Local`]: a thread or a descriptor cannot be created.
    pub fn start(
        targets: Vec<Target>,
        first: Box<dyn PageSource>,
        staged: Option<Staged>,
        connect: Connect,
        options: Options,
        stats: Arc<Stats>,
        release: Arc<Release>,
    ) -> Result<(Self, Sender<Event>), Error> {
        let (sender, events) = channel();
        let (mut exports, mut names, mut sinks) = (Vec::new(), Vec::new(), Vec::new());
        for target in targets {
            exports.push(target.export);
            names.push(target.name);
            sinks.push(target.sink);
        }
        let (background, streams) = (options.background, options.streams);
        let shared = Arc::new(Shared {
            exports,
            names,
            sinks,
            options,
            stats,
            in_flight: InFlight::default(),
            faulted: Mutex::default(),
            release,
            short: Mutex::default(),
            stop: StopEvent::new().map_err(Error::local("make an eventfd"))?,
            events: sender.clone(),
        });
        let mut engine = Self {
            shared: Arc::clone(&shared),
            events,
            connect: Arc::clone(&connect),
            streamed: BTreeSet::new(),
            running: 0,
            halted: false,
        };
        let pulse = shared.watch("urgent");
        let connection = Connection::open(Arc::clone(&shared), Lane::Urgent, connect, first, pulse)?;
        engine.spawn("urgent", &shared, move |shared| urgent::run(shared, connection))?;
        if background {
            engine.stream((0..shared.sinks.len()).collect(), staged, streams)?;
        }
        Ok((engine, sender))
    }

    /// Fetches the pages of a region that count as unreadable, unless a stream has fetched them before. Returns true if one has: then the source
    /// cannot read them. Otherwise a touch may have timed out before its page was fetched; whether the source can read the page is known when
    /// the engine is idle again.
    ///
    /// # Errors
    ///
    /// A thread cannot be started.
    pub fn fetch_unreadable(&mut self, region: usize) -> Result<bool, Error> {
        let was_streamed = self.streamed.contains(&region);
        if !was_streamed {
            self.stream(vec![region], None, 1)?;
        }
        Ok(was_streamed)
    }

    /// Starts a stream of up to `streams` connections that fetches all absent pages of these regions.
    fn stream(&mut self, regions: Vec<usize>, staged: Option<Staged>, streams: usize) -> Result<(), Error> {
        self.streamed.extend(&regions);
        let shared = Arc::clone(&self.shared);
        let (sources, first) = staged.map_or((Vec::new(), VecDeque::new()), |staged| (staged.sources, staged.remainder));
        let members = streams.max(sources.len()).max(1);
        let group = Arc::new(Group::new(&shared, &regions, first, members)?);
        let mut begins: Vec<Begin> = sources.into_iter().map(Begin::Open).collect();
        if begins.is_empty() {
            begins.push(Begin::Connect);
        }
        begins.resize_with(members, || Begin::Join);
        for begin in begins {
            let (group, connect) = (Arc::clone(&group), Arc::clone(&self.connect));
            self.spawn("stream", &shared, move |shared| stream::run(shared, &group, begin, connect))?;
        }
        Ok(())
    }

    /// Waits for the next event, at most for `timeout`. After [`halt`](Self::halt), events of the connections are dropped.
    pub fn next_event(&mut self, timeout: Duration) -> Option<Event> {
        // The channel stays connected: the engine holds a sender itself.
        let event = self.events.recv_timeout(timeout).ok()?;
        if let Event::Ended(_) = event {
            self.running -= 1;
        }
        (!self.halted || matches!(event, Event::Signal)).then_some(event)
    }

    /// Stops fetching: the lanes end. No page is needed any more.
    pub fn halt(&mut self) {
        self.halted = true;
        self.shared.stop.set();
    }

    /// Whether the source has been notified of every page, or never will be.
    pub fn is_release_complete(&self) -> bool {
        matches!(self.shared.release.get(), Permission::Never | Permission::Done)
    }

    /// Whether no page is outstanding: the stream has ended, and the urgent lane waits for requests.
    pub fn is_idle(&self) -> bool {
        // The urgent lane ends only when the engine is halted.
        self.running <= 1 && self.shared.in_flight.pages().is_empty()
    }

    /// Stops the threads, and waits for them for up to one second. A thread that waits for a slow source is left behind. It can do no harm: a
    /// page is filled as a whole or not at all.
    pub fn stop(mut self) {
        const STOP_TIMEOUT: Duration = Duration::from_secs(1);
        self.halt();
        let until = Instant::now() + STOP_TIMEOUT;
        while self.running > 0 && Instant::now() < until {
            self.next_event(until.saturating_duration_since(Instant::now()));
        }
    }

    fn spawn(
        &mut self,
        name: &str,
        shared: &Arc<Shared>,
        run: impl FnOnce(&Arc<Shared>) -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
        let shared = Arc::clone(shared);
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let mut guard = LaneGuard {
                    shared: &shared,
                    result: None,
                };
                guard.result = Some(run(&shared));
            })
            .map_err(Error::local("start a thread"))?;
        self.running += 1;
        Ok(())
    }
}

/// Reports the end of a lane when it is dropped, also if the lane panics, so that the caller does not wait for it.
struct LaneGuard<'a> {
    shared: &'a Shared,
    result: Option<Result<(), Error>>,
}

impl Drop for LaneGuard<'_> {
    fn drop(&mut self) {
        let panicked = || Err(Error::local("continue")(std::io::Error::other("a thread has panicked")));
        let result = self.result.take().unwrap_or_else(panicked);
        self.shared.report(Event::Ended(result));
    }
}
