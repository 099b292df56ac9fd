// SPDX-License-Identifier: GPL-2.0
//! The destination's vmemd, supervised in a thread of its own: whatever else `receive` waits for, for QEMU most of all, pages come.

mod fetch;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use vmem_cli::output::err;
use vmem_control::{Duty, Event as DaemonReport, Request, State, Status};

use super::regions::Regions;
use crate::daemon::{Daemon, DaemonError, DaemonEvent, end_leftovers};
use crate::error::Cause;
use crate::record::{Incoming, StateDir};
use crate::supervisor::{Event, Initial, Supervisor};
pub(super) use fetch::LossPolicy;
use fetch::{Exit, Fetch, NOT_YET};

/// How long vmemd may take to reach the source and the regions.
const HOLD: Duration = Duration::from_secs(60);

/// What becomes of the pages.
#[derive(Debug)]
pub(super) enum News {
    /// vmemd says something.
    DaemonReport(DaemonReport),
    /// vmemd has reached the source, as an earlier `receive` knew; or pages come, from a vmemd that does not answer.
    Flow,
    /// vmemd has ended and is started again, or cannot be started yet.
    Trouble(String),
    /// The source is gone. It is tried again and again.
    SourceLost(String),
    /// vmemd is not started again.
    Ended(End),
}

/// Why vmemd is not started again.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum End {
    /// All pages are here, and plain memory. With vmemd's last line, if there was one.
    Complete(Value),
    /// The source is gone, and the policy is not to try again.
    SourceLost(String),
    /// The source cannot read some pages.
    Unreadable,
    /// The source has other memory now.
    OtherMemory(String),
}

/// The pages of a guest on their way.
pub(super) struct PageFetcher {
    supervisor: Option<Supervisor>,
    regions: Regions,
    /// The guest is this host's: a vmemd that ends is followed by another.
    keep: Arc<AtomicBool>,
    /// What the latest vmemd said last.
    summary: Value,
    /// The source is there, as far as is known.
    ready: bool,
    /// Pages that were present when that was looked at last.
    present: u64,
}

impl PageFetcher {
    /// Starts a vmemd that waits for the word to start. It is not started again before [`keep`](Self::keep).
    pub(super) fn hold(record: &Incoming, state_dir: &StateDir, policy: LossPolicy) -> Result<Self, Cause> {
        let mut all = record.vmemd.clone();
        all.push("--hold".to_owned());
        let mut daemon = Daemon::start(&all, &record.session, state_dir)?;
        if let Err(error) = daemon.wait_for(HOLD, holds) {
            daemon.end();
            return Err(error.into());
        }
        let start = starter(record, state_dir);
        Self::supervise(start, Regions::of(record), policy, Initial::Running(daemon), false)
    }

    /// Has pages come to a guest that another `receive` took: lets a vmemd go on that serves still, or starts one.
    pub(super) fn resume(record: &Incoming, state_dir: &StateDir, policy: LossPolicy) -> Result<Self, Cause> {
        let regions = Regions::of(record);
        let first = match Daemon::take_over(&record.session, Duty::Fetch, state_dir) {
            Some(daemon) if regions.look().attached => Initial::Running(daemon),
            // One that does not serve the regions is ending, or will never do so.
            _ => {
                end_leftovers(state_dir);
                Initial::Missing
            }
        };
        let pages = Self::supervise(starter(record, state_dir), regions, policy, first, true)?;
        // One that holds has been told nothing yet.
        pages.start();
        Ok(pages)
    }

    /// Supervises the vmemd that is there `first`, and those that `start` starts after it.
    pub(super) fn supervise(
        start: impl Fn() -> Result<Daemon, DaemonError> + Send + 'static,
        regions: Regions,
        policy: LossPolicy,
        first: Initial,
        keep: bool,
    ) -> Result<Self, Cause> {
        let keep = Arc::new(AtomicBool::new(keep));
        let work = Fetch::new(start, regions.clone(), policy, Arc::clone(&keep));
        let supervisor = Supervisor::new(work, first).map_err(Cause::io("cannot start a thread"))?;
        Ok(Self {
            supervisor: Some(supervisor),
            present: regions.look().present,
            regions,
            keep,
            summary: Value::Null,
            ready: false,
        })
    }

    /// The guest has stopped at the source.
    pub(super) fn start(&self) {
        self.order(Request::Start);
    }

    /// The guest is this host's: from now on vmemd is started again whenever it ends.
    pub(super) fn keep(&self) {
        self.keep.store(true, Ordering::SeqCst);
    }

    /// The guest runs here: the source may give back what has come.
    pub(super) fn release(&self) {
        self.order(Request::Release);
    }

    fn order(&self, request: Request) {
        if let Some(supervisor) = &self.supervisor {
            supervisor.order(request);
        }
    }

    /// The guest does not come, or has ended: ends vmemd. When this returns, it has ended.
    pub(super) fn stop(&mut self) {
        if let Some(supervisor) = self.supervisor.take() {
            supervisor.stop();
        }
    }

    /// Leaves the guest with a vmemd that nobody supervises. If there is none at the moment, one is started.
    pub(super) fn leave(&mut self) {
        let is_left = self.supervisor.take().is_none_or(Supervisor::leave);
        if !is_left && self.keep.load(Ordering::SeqCst) {
            err("no vmemd fetches the guest's pages: 'vmemctl receive --resume' starts one");
        }
    }

    /// What is new, if something is within `limit`.
    pub(super) fn news(&mut self, limit: Duration) -> Option<News> {
        let until = Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let Some(supervisor) = &self.supervisor else {
                thread::sleep(left);
                return None;
            };
            match supervisor.recv(left) {
                None => return self.flow(),
                Some(Event::Ready) => self.ready = true,
                Some(Event::DaemonReport(event)) => return Some(self.told(event)),
                Some(Event::Status(status)) => {
                    if let Some(news) = self.status(&status) {
                        return Some(news);
                    }
                }
                Some(Event::Refuses(why)) => return Some(News::Trouble(format!("vmemd does not take orders: {why}"))),
                Some(Event::Ended { why, .. }) if why == NOT_YET => {}
                Some(Event::Ended { why, code, again }) => return Some(self.ended(why, code, again)),
            }
        }
    }

    /// Pages that come without a word: a vmemd that was taken over may be unable to answer.
    fn flow(&mut self) -> Option<News> {
        let present = self.regions.look().present;
        let more = present > std::mem::replace(&mut self.present, present);
        if !more || self.ready {
            return None;
        }
        self.ready = true;
        Some(News::Flow)
    }

    /// Where a vmemd stands that was taken over, or was just started.
    fn status(&mut self, status: &Status) -> Option<News> {
        let is_news = status.state == State::Ready && !self.ready;
        self.ready |= is_news;
        is_news.then_some(News::Flow)
    }

    fn told(&mut self, event: DaemonReport) -> News {
        match &event {
            DaemonReport::End { .. } => self.summary = line(&event),
            DaemonReport::Ready { .. } => self.ready = true,
            _ => {}
        }
        News::DaemonReport(event)
    }

    fn ended(&mut self, why: String, code: Option<i32>, again: Option<Duration>) -> News {
        let exit = Exit::of(code);
        let Some(pause) = again else {
            self.supervisor = None;
            return News::Ended(match exit {
                Exit::SourceLost => End::SourceLost(why),
                Exit::Unreadable => End::Unreadable,
                Exit::OtherMemory => End::OtherMemory(why),
                Exit::Complete | Exit::Again => End::Complete(self.summary.take()),
            });
        };
        if exit == Exit::SourceLost {
            self.ready = false;
            return News::SourceLost(why);
        }
        News::Trouble(match pause {
            Duration::ZERO => format!("{why}; started again"),
            pause => format!("{why}; started again in {} s", pause.as_secs()),
        })
    }

    /// Whether the source is there, as far as the news that were taken say.
    pub(super) fn source_is_there(&self) -> bool {
        self.ready
    }

    /// Whether vmemd has ended, and why. For the time in which it is not started again.
    pub(super) fn check(&mut self) -> Result<(), Cause> {
        loop {
            match self.news(Duration::ZERO) {
                None => return Ok(()),
                Some(News::DaemonReport(_) | News::Flow) => {}
                // One that is resumed is started again before COMMIT, too.
                Some(_) if self.keep.load(Ordering::SeqCst) => {}
                Some(News::Trouble(why) | News::SourceLost(why)) => return Err(Cause::other(why)),
                Some(News::Ended(end)) => return Err(Cause::other(format!("vmemd has ended: {end:?}"))),
            }
        }
    }
}

impl Drop for PageFetcher {
    /// Whatever this program ends of, the guest needs its pages.
    fn drop(&mut self) {
        self.leave();
    }
}

/// Whether a vmemd says that it waits for the word to start.
fn holds(said: &DaemonEvent) -> Option<()> {
    let holds = match said {
        DaemonEvent::Event(event) => matches!(event, DaemonReport::Holding { .. }),
        DaemonEvent::Status(status) => status.state == State::Holding,
        _ => false,
    };
    holds.then_some(())
}

/// What a vmemd says, as a line of `vmemd --json`.
pub(super) fn line(event: &DaemonReport) -> Value {
    // Numbers and strings: serializing them does not fail.
    serde_json::to_value(event).unwrap_or_default()
}

/// How a vmemd is started that goes on with what another one has begun.
fn starter(record: &Incoming, state_dir: &StateDir) -> impl Fn() -> Result<Daemon, DaemonError> + Send + 'static {
    let (arguments, session, state_dir) = (record.vmemd.clone(), record.session.clone(), state_dir.clone());
    move || Daemon::start(&arguments, &session, &state_dir)
}
