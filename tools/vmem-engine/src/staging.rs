// SPDX-License-Identifier: GPL-2.0-or-later
//! Pages that arrive while their program still runs at the source.
//!
//! Such a page is *staged*: its contents are in the region's staging file, and the page is absent. A page that the source sends again is
//! staged again. When the program has stopped, the source sends the list of the pages that were written after they were sent, the
//! *remainder*. [`Staging::commit`] then marks the other staged pages as present. So a page that is present has the last contents that the
//! program wrote at the source, and is never overwritten.
//!
//! Pages come over several connections, each of which has a thread. All contents of one page come over the same connection, so the last ones
//! that arrive are the last ones that were sent. The first connection asks for the holes, and the others ask for pages when all holes are staged.
//! Nothing is committed before all connections have ended their rounds.

mod connection;
mod mapped;
mod region;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmem::PageRange;
use vmem_source::{PageSource, Readiness, StagingSource};
use vmem_wait::StopEvent;

use crate::error::Error;
use crate::exports::Exports;
use crate::seed::{Announcer, Seed};
use crate::stats::Stats;
use crate::survey::Survey;
use crate::target::Target;
use connection::{Finished, Rounds};
use mapped::Mapped;
use region::StagedRegion;

/// The most pages of one answer (1 MiB), as for a fetch of the stream.
const BATCH_PAGES: u64 = 256;

/// Stages pages, in a thread for each connection, until the source has sent the remainder.
pub struct Staging {
    stop: Arc<StopEvent>,
    results: Receiver<Result<Finished, Error>>,
    regions: Arc<Vec<StagedRegion>>,
    /// The connections that have ended their rounds, and the number of all.
    finished: Vec<Finished>,
    connections: usize,
}

/// What [`Staging`] leaves to an engine.
pub struct Staged {
    /// The connections, for the stream.
    pub(crate) sources: Vec<Box<dyn PageSource>>,
    /// The remainder, by number of the target, in the order in which its pages are best fetched.
    pub(crate) remainder: VecDeque<(usize, PageRange)>,
}

impl Staging {
    /// Starts to stage pages of `targets` from `sources`, the connections of one source's rounds, with at most `window` pages outstanding on all
    /// of them together. Contents of `seed` are not sent.
    ///
    /// # Errors
    ///
    /// [`Error::MemoryChanged`]: a target is not in one of `sources`. [`Error::Local`]: a thread or a descriptor cannot be created.
    pub fn start(
        targets: &[Target],
        sources: Vec<Box<dyn StagingSource>>,
        window: u64,
        seed: Option<&Arc<Seed>>,
        stats: &Arc<Stats>,
    ) -> Result<Self, Error> {
        let regions: Arc<Vec<_>> = Arc::new(targets.iter().map(StagedRegion::new).collect());
        let mapped = Arc::new(Mapped::default());
        let stop = Arc::new(StopEvent::new().map_err(Error::local("make an eventfd"))?);
        let connections = sources.len();
        let share = (window / connections.max(1) as u64).max(1);
        // Two at least, if they fit: the source has the next question while this side works on an answer.
        let batch = BATCH_PAGES.min(share.div_ceil(2));
        let (sender, results) = channel();
        let staging = Self {
            stop: Arc::clone(&stop),
            results,
            regions: Arc::clone(&regions),
            finished: Vec::new(),
            connections,
        };
        for (number, source) in sources.into_iter().enumerate() {
            let all = targets
                .iter()
                .enumerate()
                .map(|(number, target)| (number, target.export.pages));
            let survey = Survey::of(all.filter(|_| number == 0 && source.can_map()).collect());
            let rounds = Rounds {
                number,
                exports: Exports::find(source.exports(), targets.iter().map(|target| &target.export))?,
                regions: Arc::clone(&regions),
                stop: Arc::clone(&stop),
                survey,
                mapped: Arc::clone(&mapped),
                announcer: Announcer::new(seed, source.can_hash()),
                seed: seed.cloned(),
                source,
                outstanding: 0,
                batch,
                most: share / batch,
                remainder: VecDeque::new(),
                stats: Arc::clone(stats),
            };
            let sender = sender.clone();
            // If this fails, the threads that run are stopped when `staging` is dropped.
            thread::Builder::new()
                .name("staging".to_owned())
                .spawn(move || rounds.run(&sender))
                .map_err(Error::local("start a thread"))?;
        }
        Ok(staging)
    }

    /// Why staging has failed, if it has: the source is lost, also after it has sent the remainder.
    pub fn failure(&mut self) -> Option<Error> {
        while self.finished.len() < self.connections {
            match self.results.try_recv() {
                Ok(Ok(finished)) => self.finished.push(finished),
                Ok(Err(error)) => return Some(error),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Some(panicked()),
            }
        }
        self.check().err()
    }

    /// Waits for the remainder, at most for `limit`, and marks the staged pages that are not in it as present. No program may have touched the
    /// regions before.
    ///
    /// # Errors
    ///
    /// The source is lost, or does not send the remainder in time ([`Error::NoRemainder`]): no page is present. A call on a region failed:
    /// some pages may be present then, and the regions cannot be used for this program any more.
    pub fn commit(mut self, limit: Duration) -> Result<Staged, Error> {
        let until = Instant::now() + limit;
        while self.finished.len() < self.connections {
            match self.results.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(result) => self.finished.push(result?),
                Err(RecvTimeoutError::Timeout) => return Err(Error::NoRemainder(limit)),
                Err(RecvTimeoutError::Disconnected) => return Err(panicked()),
            }
        }
        self.check()?;
        let mut finished = std::mem::take(&mut self.finished);
        finished.sort_by_key(|finished| finished.number);
        let (mut sources, mut remainder) = (Vec::new(), VecDeque::new());
        for connection in finished {
            remainder.extend(connection.remainder);
            sources.push(connection.source.into_source());
        }
        for (region, pages) in &remainder {
            self.regions[*region].forget(*pages);
        }
        self.regions.iter().try_for_each(StagedRegion::commit)?;
        Ok(Staged { sources, remainder })
    }

    /// Whether the source is still there, on the connections that have ended their rounds. It has nothing more to send on them: if something
    /// comes, that is the end of the connection, or an error.
    fn check(&mut self) -> Result<(), Error> {
        for Finished { source, .. } in &mut self.finished {
            let Readiness::When(fd) = source.readiness() else {
                continue;
            };
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            match poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&now)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => source.next_event().map(drop)?,
                Err(error) => return Err(Error::local("wait for pages")(error.into())),
            }
        }
        Ok(())
    }
}

fn panicked() -> Error {
    Error::local("stage pages")(io::Error::other("a thread has panicked"))
}

impl Drop for Staging {
    /// Ends the threads, and waits for that for up to a second: they have the regions. One that waits for a slow source is left behind.
    fn drop(&mut self) {
        const STOP_TIMEOUT: Duration = Duration::from_secs(1);
        self.stop.set();
        let until = Instant::now() + STOP_TIMEOUT;
        while self
            .results
            .recv_timeout(until.saturating_duration_since(Instant::now()))
            .is_ok()
        {}
    }
}
