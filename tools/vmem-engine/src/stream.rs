// SPDX-License-Identifier: GPL-2.0
//! The stream: all pages that are absent, behind the faults.

use std::collections::VecDeque;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmem::{PageRange, PageSet};
use vmem_source::Readiness;

use crate::apply::apply;
use crate::connection::Connection;
use crate::error::Error;
use crate::plan::Plan;
use crate::released::Released;
use crate::shared::{Interruption, PATIENCE, Shared};
use crate::shortage::Shortage;

/// Pages in one question (1 MiB): large enough that questions cost nothing, small enough to follow the faults.
const ASK_PAGES: u64 = 256;

/// Runs in one question.
const ASK_RUNS: usize = 256;

/// Runs in all questions that are not answered: few enough that the source's socket takes them while the source is still busy answering,
/// however scattered the pages are. Asking does not wait for an answer to be read.
const MOST_RUNS: usize = 1024;

/// Asks for every page that is absent in these regions, once, and ends when all have come.
pub(crate) fn run(shared: &Arc<Shared>, connection: Connection, regions: &[usize]) -> Result<(), Error> {
    let plan = absent(shared, regions)?;
    let mut stream = Stream {
        shared,
        connection,
        plan,
        asked: Asked::default(),
        shortage: Shortage::default(),
        released: Released::none(),
    };
    while !shared.stop.is_set() {
        match stream.turn() {
            Ok(true) => {}
            Ok(false) => break,
            Err(Interruption::Error(error)) => return Err(error),
            Err(Interruption::Source(error)) => {
                stream.connection.reconnect(error)?;
                stream.asked = Asked::default();
                stream.plan = absent(shared, regions)?;
                // What was said last may not have arrived, and the source's records are not ours.
                stream.released = Released::none();
            }
        }
    }
    Ok(())
}

struct Stream<'a> {
    shared: &'a Shared,
    connection: Connection,
    plan: Plan,
    asked: Asked,
    shortage: Shortage,
    released: Released,
}

/// Questions on this connection that are not answered in full.
#[derive(Default)]
struct Asked {
    /// The pages and runs of each; pages that have come are taken off.
    questions: VecDeque<(u64, usize)>,
    pages: u64,
    runs: usize,
}

impl Asked {
    fn add(&mut self, runs: &[PageRange]) {
        let pages = runs.iter().map(|run| run.count()).sum();
        self.questions.push_back((pages, runs.len()));
        self.pages += pages;
        self.runs += runs.len();
    }

    /// The next `pages` have come: questions are answered in their order.
    fn came(&mut self, mut pages: u64) {
        self.pages = self.pages.saturating_sub(pages);
        while let Some((left, runs)) = self.questions.front_mut() {
            let taken = pages.min(*left);
            *left -= taken;
            pages -= taken;
            if *left > 0 {
                break;
            }
            self.runs -= *runs;
            self.questions.pop_front();
        }
    }
}

impl Stream<'_> {
    /// Fills the window, and takes one answer. False when there is none to come.
    fn turn(&mut self) -> Result<bool, Interruption> {
        for (region, page) in self.shared.faulted() {
            self.plan.follow(region, page);
        }
        // The source is told while it has nothing to answer. It does not read what we say before it has sent its answers, and we do not
        // read those while we talk: with much to say, both would wait for each other.
        let tell = self.released.is_due(self.shared);
        while !tell && self.asked.pages < self.shared.options.window {
            let (runs, shortage) = (ASK_RUNS.min(MOST_RUNS - self.asked.runs), &self.shortage);
            let Some((region, runs)) = self.plan.next(ASK_PAGES, runs, |region| shortage.allows(region)) else {
                break;
            };
            self.connection.ask(region, &runs)?;
            self.shortage.retry(region);
            self.asked.add(&runs);
        }
        if self.asked.pages == 0 {
            return self.nothing_asked(tell);
        }
        if !self.wait()? {
            let (region, answer) = self.connection.next()?;
            self.asked.came(answer.pages());
            let short = apply(self.shared, region, &answer)?;
            if short.is_empty() {
                self.shortage.end(region);
            } else {
                self.plan.requeue(region, &short);
                if self.shortage.set_aside(region) {
                    self.shared.report_no_memory(region);
                }
            }
        }
        Ok(true)
    }

    /// No answer is due. False if none ever will be.
    fn nothing_asked(&mut self, tell: bool) -> Result<bool, Interruption> {
        if tell {
            self.released.tell(self.shared, &mut self.connection)?;
            return Ok(true);
        }
        for region in self.shortage.all() {
            if !self.plan.wants(region) {
                self.shortage.end(region);
            }
        }
        if let Some(pause) = self.shortage.wait() {
            self.shared.stop.wait(pause);
            return Ok(true);
        }
        self.released.release_all(self.shared, &mut self.connection)?;
        Ok(false)
    }

    /// Waits until there may be an answer. True if it is time to stop instead.
    fn wait(&self) -> Result<bool, Error> {
        let stop = PollFd::new(&self.shared.stop, PollFlags::IN);
        match self.connection.readiness() {
            Readiness::Always => Ok(self.shared.stop.is_set()),
            Readiness::When(fd) => {
                let mut fds = [stop, PollFd::from_borrowed_fd(fd, PollFlags::IN)];
                let patience = Timespec::try_from(PATIENCE).ok();
                match poll(&mut fds, patience.as_ref()) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => Ok(!fds[0].revents().is_empty()),
                    Err(error) => Err(Error::local("cannot wait for pages")(error.into())),
                }
            }
        }
    }
}

/// All that is absent now in these regions.
fn absent(shared: &Shared, regions: &[usize]) -> Result<Plan, Error> {
    let mut plan = Vec::new();
    for (region, sink) in shared.sinks.iter().enumerate() {
        let mut wanted = PageSet::none_of(shared.pages[region]);
        if regions.contains(&region) {
            sink.absent(&mut |pages| wanted.insert(pages))
                .map_err(shared.failed("read which pages are present in", region))?;
        }
        plan.push(wanted);
    }
    Ok(Plan::new(plan))
}
