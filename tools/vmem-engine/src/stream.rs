// SPDX-License-Identifier: GPL-2.0
//! The stream: all pages that are absent, behind the faults.

use std::collections::VecDeque;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmem::PageRange;
use vmem_source::Readiness;

use crate::apply::apply;
use crate::error::Error;
use crate::line::Line;
use crate::shared::{Interruption, PATIENCE, Shared};
use crate::shortage::Shortage;
use crate::told::Told;
use crate::wanted::{Plan, Wanted};

/// Pages in one question (1 MiB): large enough that questions cost nothing, small enough to follow the faults.
const ASK_PAGES: u64 = 256;

/// Runs in one question.
const ASK_RUNS: usize = 256;

/// Runs in all questions that are not answered: few enough that the source's socket takes them while the source is still busy answering,
/// however scattered the pages are. Asking does not wait for an answer to be read.
const MOST_RUNS: usize = 1024;

/// Asks for every page that is absent in these regions, once, and ends when all have come.
pub(crate) fn run(shared: &Arc<Shared>, line: Line, regions: &[usize]) -> Result<(), Error> {
    let plan = absent(shared, regions)?;
    let mut stream = Stream {
        shared,
        line,
        plan,
        asked: Asked::default(),
        shortage: Shortage::default(),
        told: Told::nothing(),
    };
    while !shared.stop.is_set() {
        match stream.turn() {
            Ok(true) => {}
            Ok(false) => break,
            Err(Interruption::Error(error)) => return Err(error),
            Err(Interruption::Source(error)) => {
                stream.line.reopen(error)?;
                stream.asked = Asked::default();
                stream.plan = absent(shared, regions)?;
                // What was said last may not have arrived, and the source's records are not ours.
                stream.told = Told::nothing();
            }
        }
    }
    Ok(())
}

struct Stream<'a> {
    shared: &'a Shared,
    line: Line,
    plan: Plan,
    asked: Asked,
    shortage: Shortage,
    told: Told,
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
        let tell = self.told.is_due(self.shared);
        while !tell && self.asked.pages < self.shared.options.window {
            let (runs, shortage) = (ASK_RUNS.min(MOST_RUNS - self.asked.runs), &self.shortage);
            let Some((region, runs)) = self.plan.next(ASK_PAGES, runs, |region| shortage.allows(region)) else {
                break;
            };
            self.line.ask(region, &runs)?;
            self.shortage.try_again(region);
            self.asked.add(&runs);
        }
        if self.asked.pages == 0 {
            return self.nothing_asked(tell);
        }
        if !self.wait()? {
            let (region, answer) = self.line.next()?;
            self.asked.came(answer.pages());
            let short = apply(self.shared, region, &answer)?;
            if short.is_empty() {
                self.shortage.end(region);
            } else {
                self.plan.put_back(region, &short);
                if self.shortage.set_aside(region) {
                    self.shared.report_short(region);
                }
            }
        }
        Ok(true)
    }

    /// No answer is due. False if none ever will be.
    fn nothing_asked(&mut self, tell: bool) -> Result<bool, Interruption> {
        if tell {
            self.told.tell(self.shared, &mut self.line)?;
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
        self.told.tell_all(self.shared, &mut self.line)?;
        Ok(false)
    }

    /// Waits until there may be an answer. True if it is time to stop instead.
    fn wait(&self) -> Result<bool, Error> {
        let stop = PollFd::new(&self.shared.stop, PollFlags::IN);
        match self.line.readiness() {
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
        let mut wanted = Wanted::none_of(shared.exports[region].pages);
        if regions.contains(&region) {
            sink.absent(&mut |pages| wanted.insert(pages))
                .map_err(shared.failed("read which pages are present in", region))?;
        }
        plan.push(wanted);
    }
    Ok(Plan::new(plan))
}
