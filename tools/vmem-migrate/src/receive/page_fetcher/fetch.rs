// SPDX-License-Identifier: GPL-2.0-or-later
//! How the supervisor treats a vmemd that fetches pages.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vmem_control::{Event, State};

use crate::daemon::{Daemon, DaemonError, DaemonEvent};
use crate::receive::regions::Regions;
use crate::supervisor::{Restart, Supervised};

/// The pause between two attempts to reach a lost source.
const PAUSE: Duration = Duration::from_secs(2);

/// How often the supervisor checks whether vmemd may be started again, while this host does not own the guest.
const HELD: Duration = Duration::from_millis(20);

/// Why no vmemd is started in that time.
pub(super) const NOT_YET: &str = "the guest is not this host's yet";

/// What follows when vmemd has lost the source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::receive) enum LossPolicy {
    /// Another vmemd tries to reach the source.
    Retry,
    /// No other vmemd starts: vmemctl itself needs the regions.
    End,
}

/// What the exit status of a vmemd means (vmemd(8)).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Exit {
    Complete,
    SourceLost,
    Unreadable,
    OtherMemory,
    /// Another vmemd may succeed: this one was killed, failed for a reason that may not recur, or its exit status is unknown.
    Again,
}

impl Exit {
    pub(super) fn of(code: Option<i32>) -> Self {
        match code {
            Some(0) => Self::Complete,
            Some(2) => Self::SourceLost,
            Some(4) => Self::Unreadable,
            Some(7) => Self::OtherMemory,
            _ => Self::Again,
        }
    }
}

/// A vmemd that fetches pages.
pub(super) struct Fetch<S> {
    start: S,
    regions: Regions,
    policy: LossPolicy,
    keep: Arc<AtomicBool>,
}

impl<S> Fetch<S> {
    pub(super) fn new(start: S, regions: Regions, policy: LossPolicy, keep: Arc<AtomicBool>) -> Self {
        Self {
            start,
            regions,
            policy,
            keep,
        }
    }

    /// Whether regions exist that are not plain memory.
    fn lacks_pages(&self) -> bool {
        let state = self.regions.inspect();
        state.exist && !state.plain
    }

    fn keeps(&self) -> bool {
        self.keep.load(Ordering::SeqCst)
    }
}

impl<S: Fn() -> Result<Daemon, DaemonError> + Send + 'static> Supervised for Fetch<S> {
    fn start(&self) -> Result<Daemon, DaemonError> {
        (self.start)()
    }

    fn check(&self) -> Result<(), String> {
        if self.keeps() { Ok(()) } else { Err(NOT_YET.to_owned()) }
    }

    fn is_ready(&self, said: &DaemonEvent) -> bool {
        match said {
            DaemonEvent::Event(event) => matches!(event, Event::Ready { .. }),
            DaemonEvent::Status(status) => status.state == State::Ready,
            _ => false,
        }
    }

    fn patience(&self) -> Option<Duration> {
        Some(super::HOLD)
    }

    fn after(&self, code: Option<i32>) -> Restart {
        let exit = Exit::of(code);
        match exit {
            // All pages may be present before COMMIT: the source can wait for that.
            Exit::Complete if self.regions.inspect().plain => Restart::Over,
            _ if !self.keeps() => Restart::In(HELD),
            // The source destroys its copy when it hears COMPLETE, so the word of a process is not enough.
            Exit::Complete if self.lacks_pages() => Restart::BackOff,
            Exit::Complete | Exit::Unreadable | Exit::OtherMemory => Restart::Over,
            Exit::SourceLost if self.policy == LossPolicy::End => Restart::Over,
            Exit::SourceLost => Restart::In(PAUSE),
            // All memory is plain, so there is no work left for a vmemd.
            Exit::Again if self.regions.inspect().plain => Restart::Over,
            Exit::Again => Restart::BackOff,
        }
    }
}
