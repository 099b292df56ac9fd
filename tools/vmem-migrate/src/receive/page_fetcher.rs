// SPDX-License-Identifier: GPL-2.0-or-later
//! The destination's vmemd, supervised in a thread of its own: pages arrive whatever else `receive` waits for, QEMU most of all.

mod fetch;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use vmem_cli::output::err;
use vmem_control::{Duty, Event as DaemonReport, Request, State, Status};

use super::offer::Fetching;
use super::regions::Regions;
use crate::daemon::{Daemon, DaemonError, DaemonEvent, end_leftovers};
use crate::error::Cause;
use crate::record::{Incoming, StateDir};
use crate::supervisor::{Event, Initial, Supervisor};
pub(super) use fetch::LossPolicy;
use fetch::{Exit, Fetch, NOT_YET};

/// How long vmemd may take to reach the source and the regions.
const HOLD: Duration = Duration::from_secs(60);

/// What happens to the pages.
#[derive(Debug)]
pub(super) enum News {
    /// An event of vmemd.
    DaemonReport(DaemonReport),
    /// Pages arrive: a vmemd that was taken over has reached the source, or the number of present pages grows although vmemd does not
    /// answer.
    Flow,
    /// vmemd has ended and is started again, or cannot be started yet.
    Trouble(String),
    /// The source is lost. vmemd tries to reconnect again and again.
    SourceLost(String),
    /// vmemd is not started again.
    Ended(End),
}

/// Why vmemd is not started again.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum End {
    /// All pages are present, and the regions are plain memory. Has vmemd's last line, if there was one.
    Complete(Value),
    /// The source is lost, and the policy is not to try again.
    SourceLost(String),
    /// The source cannot read some pages.
    Unreadable,
    /// The source has other memory now.
    OtherMemory(String),
}

/// Fetches the pages of a guest.
pub(super) struct PageFetcher {
    supervisor: Option<Supervisor>,
    regions: Regions,
    /// This host owns the guest, so a vmemd that ends is started again.
    keep: Arc<AtomicBool>,
    /// The last line of the latest vmemd.
    summary: Value,
    /// The source is reachable, as far as is known.
    ready: bool,
    /// The number of present pages at the latest look.
    present: u64,
    /// vmemd has ended for good before anybody asked for that news.
    over: Option<End>,
    /// Why [`reports`](Self::reports) returns an error next. What was reported before that comes first.
    failure: Option<Cause>,
}

impl PageFetcher {
    /// Starts a vmemd that waits for the order to start, and takes the source's rounds until then if there are any. It is not started again
    /// before [`keep`](Self::keep). Only this vmemd uses the seed images: one that is started again for a guest that runs must not fail because
    /// an image has gone.
    pub(super) fn hold(
        record: &Incoming,
        state_dir: &StateDir,
        policy: LossPolicy,
        fetching: Fetching,
        seed_images: &[PathBuf],
    ) -> Result<Self, Cause> {
        let mut all = record.vmemd.clone();
        all.push("--hold".to_owned());
        let options = [("--stage", fetching.rounds), ("--verify", fetching.verify)];
        all.extend(
            options
                .iter()
                .filter(|(_, is_given)| *is_given)
                .map(|(option, _)| (*option).to_owned()),
        );
        for image in seed_images {
            all.extend(["--seed-image".to_owned(), image.display().to_string()]);
        }
        let mut daemon = Daemon::start(&all, &record.session, state_dir)?;
        if let Err(error) = daemon.wait_for(HOLD, holds) {
            daemon.end();
            return Err(error.into());
        }
        let start = starter(record, state_dir);
        Self::supervise(start, Regions::of(record), policy, Initial::Running(daemon), false)
    }

    /// Fetches the pages of a guest that an earlier `receive` took. Takes over a vmemd that still serves the regions, or starts one.
    pub(super) fn resume(record: &Incoming, state_dir: &StateDir, policy: LossPolicy) -> Result<Self, Cause> {
        let regions = Regions::of(record);
        let first = match Daemon::take_over(&record.session, Duty::Fetch, state_dir)? {
            Some(daemon) if regions.inspect().attached => Initial::Running(daemon),
            // A vmemd that does not serve the regions is about to end, or never will serve them.
            _ => {
                end_leftovers(state_dir);
                Initial::Missing
            }
        };
        let pages = Self::supervise(starter(record, state_dir), regions, policy, first, true)?;
        // A vmemd that waits for the order to start has not received one yet.
        pages.start();
        Ok(pages)
    }

    /// Supervises `first`, and the vmemds that `start` starts after it.
    pub(super) fn supervise(
        start: impl Fn() -> Result<Daemon, DaemonError> + Send + 'static,
        regions: Regions,
        policy: LossPolicy,
        first: Initial,
        keep: bool,
    ) -> Result<Self, Cause> {
        let keep = Arc::new(AtomicBool::new(keep));
        let work = Fetch::new(start, regions.clone(), policy, Arc::clone(&keep));
        let supervisor = Supervisor::new(work, first).map_err(Cause::call("cannot start a thread"))?;
        Ok(Self {
            supervisor: Some(supervisor),
            present: regions.inspect().present,
            regions,
            keep,
            summary: Value::Null,
            ready: false,
            over: None,
            failure: None,
        })
    }

    /// The guest has stopped at the source: vmemd may fetch pages.
    pub(super) fn start(&self) {
        self.order(Request::Start);
    }

    /// This host owns the guest: from now on vmemd is started again whenever it ends.
    pub(super) fn keep(&self) {
        self.keep.store(true, Ordering::SeqCst);
    }

    /// The guest runs here: the source may free the pages that are present here.
    pub(super) fn release(&self) {
        self.order(Request::Release);
    }

    fn order(&self, request: Request) {
        if let Some(supervisor) = &self.supervisor {
            supervisor.order(request);
        }
    }

    /// Ends vmemd, because the guest does not arrive or has ended. Returns when vmemd has ended.
    pub(super) fn stop(&mut self) {
        if let Some(supervisor) = self.supervisor.take() {
            supervisor.stop();
        }
    }

    /// Leaves a vmemd without a supervisor, which fetches the rest. If there is none at the moment, one is started.
    pub(super) fn leave(&mut self) {
        let is_left = self.supervisor.take().is_none_or(Supervisor::leave);
        if !is_left && self.keep.load(Ordering::SeqCst) {
            err("no vmemd fetches the guest's pages: 'vmemctl receive --resume' starts one");
        }
    }

    /// The next news, if there are any within `limit`.
    pub(super) fn news(&mut self, limit: Duration) -> Option<News> {
        if let Some(end) = self.over.take() {
            return Some(News::Ended(end));
        }
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
                Some(Event::DaemonReport(event)) => return Some(self.handle_report(event)),
                Some(Event::Status(status)) => {
                    if let Some(news) = self.status(&status) {
                        return Some(news);
                    }
                }
                // These orders are for a source.
                Some(Event::Refused(..)) => {}
                Some(Event::Refuses(why)) => return Some(News::Trouble(format!("vmemd does not take orders: {why}"))),
                Some(Event::Ended { why, .. }) if why == NOT_YET => {}
                Some(Event::Ended { why, code, again }) => return Some(self.ended(why, code, again)),
            }
        }
    }

    /// Notices pages that arrive without an event: a vmemd that was taken over may be unable to answer.
    fn flow(&mut self) -> Option<News> {
        let present = self.regions.inspect().present;
        let more = present > std::mem::replace(&mut self.present, present);
        if !more || self.ready {
            return None;
        }
        self.ready = true;
        Some(News::Flow)
    }

    /// Handles the status of a vmemd that was taken over, or was just started.
    fn status(&mut self, status: &Status) -> Option<News> {
        let is_news = status.state == State::Ready && !self.ready;
        self.ready |= is_news;
        is_news.then_some(News::Flow)
    }

    fn handle_report(&mut self, event: DaemonReport) -> News {
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

    /// Whether the source is reachable, as far as the news that were taken say.
    pub(super) fn source_is_there(&self) -> bool {
        self.ready
    }

    /// What vmemd has reported since the last call. An error if vmemd has ended while it is not started again, unless all memory is here.
    pub(super) fn reports(&mut self) -> Result<Vec<DaemonReport>, Cause> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        let keeps = self.keep.load(Ordering::SeqCst);
        let mut reports = Vec::new();
        while self.over.is_none() {
            let failure = match self.news(Duration::ZERO) {
                None => break,
                Some(News::DaemonReport(report)) => {
                    reports.push(report);
                    continue;
                }
                Some(News::Flow) => continue,
                Some(News::Ended(end)) if keeps || matches!(end, End::Complete(_)) => {
                    self.over = Some(end);
                    continue;
                }
                // After `--resume`, vmemd is started again even before COMMIT.
                Some(_) if keeps => continue,
                Some(News::Trouble(why) | News::SourceLost(why)) => Cause::other(why),
                Some(News::Ended(end)) => Cause::other(format!("vmemd has ended: {end:?}")),
            };
            if reports.is_empty() {
                return Err(failure);
            }
            self.failure = Some(failure);
            break;
        }
        Ok(reports)
    }
}

impl Drop for PageFetcher {
    /// The guest needs its pages, however this program ends.
    fn drop(&mut self) {
        self.leave();
    }
}

/// Whether vmemd reports that it waits for the order to start.
fn holds(said: &DaemonEvent) -> Option<()> {
    let holds = match said {
        DaemonEvent::Event(event) => matches!(event, DaemonReport::Holding { .. }),
        DaemonEvent::Status(status) => status.state == State::Holding,
        _ => false,
    };
    holds.then_some(())
}

/// An event of vmemd, as a line of `vmemd --json`.
pub(super) fn line(event: &DaemonReport) -> Value {
    // An event has only numbers and strings, so serializing it cannot fail.
    serde_json::to_value(event).unwrap_or_default()
}

/// Starts a vmemd that resumes what an earlier one has begun.
fn starter(record: &Incoming, state_dir: &StateDir) -> impl Fn() -> Result<Daemon, DaemonError> + Send + 'static {
    let (arguments, session, state_dir) = (record.vmemd.clone(), record.session.clone(), state_dir.clone());
    move || Daemon::start(&arguments, &session, &state_dir)
}
