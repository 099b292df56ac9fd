// SPDX-License-Identifier: GPL-2.0
//! The stream: all pages that are absent, behind the faults.

use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmem_source::Readiness;
use vmem_source::source::MAX_ASK_RANGES;

use super::apply::apply;
use super::line::Line;
use super::release::Told;
use super::wanted::{Plan, Wanted};
use super::{Interruption, PATIENCE, Shared};
use crate::failure::Failure;

/// Pages in one question (1 MiB): large enough that questions cost nothing, small enough to follow the faults.
const ASK_PAGES: u64 = 256;

/// Asks for every page that is absent, once, and ends when all have come.
pub(super) fn run(shared: &Arc<Shared>, line: Line) -> Result<(), Failure> {
    let plan = absent(shared)?;
    let mut stream = Stream {
        shared,
        line,
        plan,
        asked: 0,
        told: Told::nothing(),
    };
    while !shared.stop.is_set() {
        match stream.turn() {
            Ok(true) => {}
            Ok(false) => break,
            Err(Interruption::Failure(failure)) => return Err(failure),
            Err(Interruption::Source(error)) => {
                stream.line.reopen(error)?;
                stream.asked = 0;
                stream.plan = absent(shared)?;
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
    /// Pages asked for on this connection that have not come.
    asked: u64,
    told: Told,
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
        while !tell && self.asked < self.shared.options.window {
            let Some((region, runs)) = self.plan.next(ASK_PAGES, MAX_ASK_RANGES) else {
                break;
            };
            self.line.ask(region, &runs)?;
            self.asked += runs.iter().map(|run| run.count()).sum::<u64>();
        }
        if tell && self.asked == 0 {
            self.told.tell(self.shared, &mut self.line)?;
            return Ok(true);
        }
        if self.asked == 0 {
            self.told.tell_all(self.shared, &mut self.line)?;
            return Ok(false);
        }
        if !self.wait()? {
            let (region, answer) = self.line.next()?;
            self.asked = self.asked.saturating_sub(answer.pages());
            apply(self.shared, region, &answer)?;
        }
        Ok(true)
    }

    /// Waits until there may be an answer. True if it is time to stop instead.
    fn wait(&self) -> Result<bool, Failure> {
        let stop = PollFd::new(&self.shared.stop, PollFlags::IN);
        match self.line.readiness() {
            Readiness::Always => Ok(self.shared.stop.is_set()),
            Readiness::When(fd) => {
                let mut fds = [stop, PollFd::from_borrowed_fd(fd, PollFlags::IN)];
                let patience = Timespec::try_from(PATIENCE).ok();
                match poll(&mut fds, patience.as_ref()) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => Ok(!fds[0].revents().is_empty()),
                    Err(error) => Err(Failure::local("cannot wait for pages")(error.into())),
                }
            }
        }
    }
}

/// All that is absent now, in all regions.
fn absent(shared: &Shared) -> Result<Plan, Failure> {
    let mut regions = Vec::new();
    for (region, sink) in shared.sinks.iter().enumerate() {
        let mut wanted = Wanted::none_of(shared.exports[region].pages);
        sink.absent(&mut |pages| wanted.insert(pages))
            .map_err(shared.failed("read which pages are present in", region))?;
        regions.push(wanted);
    }
    Ok(Plan::new(regions))
}
