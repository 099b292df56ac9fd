// SPDX-License-Identifier: GPL-2.0
//! An engine: its threads, and whoever watches them.

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use vmem_pages::range;
use vmem_source::stop::Stop;
use vmem_source::{Export, Lane, PageSource, SourceError};

use crate::connection::{Connect, Connection};
use crate::error::Error;
use crate::event::Event;
use crate::in_flight::InFlight;
use crate::permission::{Permission, Release};
use crate::shared::{Options, Shared};
use crate::sink::Sink;
use crate::stats::Stats;
use crate::{stream, urgent};

/// A region to be filled.
pub struct Target {
    /// What of the source fills it.
    pub export: Export,
    /// What it is called here.
    pub name: String,
    /// Where its pages go.
    pub sink: Arc<dyn Sink>,
}

/// An engine at work.
pub struct Engine {
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
    /// Starts to fill `targets`. `first` is a source that is open already, on the urgent lane; others are made with `connect`. Returns the engine,
    /// and the sending end of what [`next_event`](Self::next_event) gives.
    ///
    /// # Errors
    ///
    /// A target is not in `first`, or has no pages; a thread or a descriptor cannot be made.
    pub fn start(
        targets: Vec<Target>,
        first: Box<dyn PageSource>,
        connect: Connect,
        options: Options,
        stats: Arc<Stats>,
        release: Arc<Release>,
    ) -> Result<(Self, Sender<Event>), Error> {
        let (sender, events) = channel();
        let (mut exports, mut pages, mut names, mut sinks) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for target in targets {
            let none = || SourceError::BadQuestion(format!("{} has no pages", target.export.name));
            pages.push(range(0, target.export.pages).ok_or_else(none).map_err(Error::Source)?);
            exports.push(target.export);
            names.push(target.name);
            sinks.push(target.sink);
        }
        let shared = Arc::new(Shared {
            exports,
            pages,
            names,
            sinks,
            options,
            stats,
            in_flight: InFlight::default(),
            faulted: Mutex::default(),
            release,
            short: Mutex::default(),
            stop: Stop::new().map_err(Error::local("cannot make an eventfd"))?,
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
        let connection = Connection::open(Arc::clone(&shared), Lane::Urgent, connect, first)?;
        engine.spawn("urgent", &shared, move |shared| urgent::run(shared, connection))?;
        if options.background {
            engine.stream((0..shared.sinks.len()).collect())?;
        }
        Ok((engine, sender))
    }

    /// Asks the source for the pages of a region that count as unreadable, unless it was asked before; true if it was. A touch can have timed
    /// out before anybody asked for its page. Where there is no stream, the pages are asked for once, and what the source says of them is known
    /// when the engine is idle again.
    ///
    /// # Errors
    ///
    /// A thread cannot be started.
    pub fn ask_for_unreadable(&mut self, region: usize) -> Result<bool, Error> {
        let asked = self.asked.contains(&region);
        if !asked {
            self.stream(vec![region])?;
        }
        Ok(asked)
    }

    /// Asks for all that is absent in these regions.
    fn stream(&mut self, regions: Vec<usize>) -> Result<(), Error> {
        self.asked.extend(&regions);
        let (shared, connect) = (Arc::clone(&self.shared), Arc::clone(&self.connect));
        self.spawn("stream", &shared, move |shared| {
            let connection = Connection::connect(Arc::clone(shared), Lane::Stream, connect)?;
            stream::run(shared, connection, &regions)
        })
    }

    /// The next event, if one comes within `timeout`. After [`halt`](Self::halt) what becomes of the connections is none any more.
    pub fn next_event(&mut self, timeout: Duration) -> Option<Event> {
        // While one sending end is with the caller, it is not disconnected.
        let event = self.events.recv_timeout(timeout).ok()?;
        if let Event::Ended(_) = event {
            self.running -= 1;
        }
        (!self.halted || matches!(event, Event::Signal)).then_some(event)
    }

    /// No page will be needed any more: takes leave of the source.
    pub fn halt(&mut self) {
        self.halted = true;
        self.shared.stop.set();
    }

    /// Whether the source has nothing to hear any more of what is here.
    pub fn is_release_complete(&self) -> bool {
        matches!(self.shared.release.get(), Permission::Never | Permission::Done)
    }

    /// Whether nothing is on its way: the stream has ended, and nothing is asked for urgently.
    pub fn is_idle(&self) -> bool {
        // The urgent lane does not end by itself.
        self.running <= 1 && self.shared.in_flight.pages().is_empty()
    }

    /// Ends the threads, and waits for them for a moment. One that waits for a slow source is left behind: it can do no harm, because a
    /// page is filled as a whole or not at all.
    pub fn stop(mut self) {
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
        run: impl FnOnce(&Arc<Shared>) -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
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
            .map_err(Error::local("cannot start a thread"))?;
        self.running += 1;
        Ok(())
    }
}

/// Reports the end of a lane, also of one that has panicked: nobody shall wait for it.
struct Ending<'a> {
    shared: &'a Shared,
    result: Option<Result<(), Error>>,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let panicked = || Err(Error::local("cannot go on")(std::io::Error::other("a thread has panicked")));
        let result = self.result.take().unwrap_or_else(panicked);
        self.shared.report(Event::Ended(result));
    }
}
