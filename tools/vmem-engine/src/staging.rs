// SPDX-License-Identifier: GPL-2.0
//! Pages that arrive while their program still runs at the source.
//!
//! Such a page is *staged*: its contents are in the region's staging file, and the page is absent. A page that the source sends again is
//! staged again. When the program has stopped, the source sends the list of the pages that were written after they were sent, the
//! *remainder*. [`Staging::commit`] then marks the other staged pages as present. So a page that is present has the last contents that the
//! program wrote at the source, and is never overwritten.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmem::{PageIndex, PageRange, PageSet, Progress};
use vmem_source::{Answer, Contents, ExportHoles, Holes, PageSource, Readiness, StagingEvent, StagingSource};
use vmem_wait::StopEvent;

use crate::error::Error;
use crate::exports::Exports;
use crate::known::copy_known;
use crate::readiness::wait;
use crate::seed::{Announcer, Seed};
use crate::sink::Sink;
use crate::stats::{Stats, add};
use crate::survey::Survey;
use crate::target::Target;

/// The most pages of one answer (1 MiB), as for a fetch of the stream.
const BATCH_PAGES: u64 = 256;

/// Stages pages in a thread of its own until the source has sent the remainder.
pub struct Staging {
    stop: Arc<StopEvent>,
    result: Receiver<Result<Complete, Error>>,
    /// The result, once it has come.
    complete: Option<Complete>,
}

/// What [`Staging`] leaves to an engine.
pub struct Staged {
    /// The connection, for the stream.
    pub(crate) source: Box<dyn PageSource>,
    /// The remainder, by number of the target, in the order in which its pages are best fetched.
    pub(crate) remainder: VecDeque<(usize, PageRange)>,
}

/// All pages of the rounds, and the remainder, have arrived.
struct Complete {
    source: Box<dyn StagingSource>,
    regions: Vec<StagedRegion>,
    remainder: VecDeque<(usize, PageRange)>,
}

/// A region, and what is staged of it.
struct StagedRegion {
    name: String,
    sink: Arc<dyn Sink>,
    data: PageSet,
    zero: PageSet,
}

impl Staging {
    /// Starts to stage pages of `targets` from `source`, with at most `window` pages outstanding. Contents of `seed` are not sent.
    ///
    /// # Errors
    ///
    /// [`Error::MemoryChanged`]: a target is not in `source`. [`Error::Local`]: a thread or a descriptor cannot be created.
    pub fn start(
        targets: &[Target],
        source: Box<dyn StagingSource>,
        window: u64,
        seed: Option<Arc<Seed>>,
        stats: Arc<Stats>,
    ) -> Result<Self, Error> {
        let exports = Exports::find(source.exports(), targets.iter().map(|target| &target.export))?;
        let regions = targets.iter().map(StagedRegion::new).collect();
        let all = targets
            .iter()
            .enumerate()
            .map(|(number, target)| (number, target.export.pages));
        let can_hash = source.can_hash();
        let survey = Survey::of(all.filter(|_| source.can_map()).collect());
        let stop = Arc::new(StopEvent::new().map_err(Error::local("make an eventfd"))?);
        let rounds = Rounds {
            source,
            exports,
            regions,
            stop: Arc::clone(&stop),
            survey,
            announcer: Announcer::new(seed.as_ref(), can_hash),
            seed,
            outstanding: 0,
            most: (window / BATCH_PAGES).max(1),
            remainder: VecDeque::new(),
            stats,
        };
        let (sender, result) = channel();
        thread::Builder::new()
            .name("staging".to_owned())
            .spawn(move || rounds.run(&sender))
            .map_err(Error::local("start a thread"))?;
        Ok(Self {
            stop,
            result,
            complete: None,
        })
    }

    /// Why staging has failed, if it has: the source is lost, also after it has sent the remainder.
    pub fn failure(&mut self) -> Option<Error> {
        if self.complete.is_none() {
            match self.result.try_recv() {
                Ok(Ok(complete)) => self.complete = Some(complete),
                Ok(Err(error)) => return Some(error),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return Some(panicked()),
            }
        }
        self.complete.as_mut().and_then(|complete| complete.check().err())
    }

    /// Waits for the remainder, at most for `limit`, and marks the staged pages that are not in it as present. No program may have touched the
    /// regions before.
    ///
    /// # Errors
    ///
    /// The source is lost, or does not send the remainder in time ([`Error::NoRemainder`]): no page is present. A call on a region failed:
    /// some pages may be present then, and the regions cannot be used for this program any more.
    pub fn commit(mut self, limit: Duration) -> Result<Staged, Error> {
        let mut complete = match self.complete.take() {
            Some(complete) => complete,
            None => match self.result.recv_timeout(limit) {
                Ok(result) => result?,
                Err(RecvTimeoutError::Timeout) => return Err(Error::NoRemainder(limit)),
                Err(RecvTimeoutError::Disconnected) => return Err(panicked()),
            },
        };
        complete.check()?;
        complete.commit()
    }
}

fn panicked() -> Error {
    Error::local("stage pages")(io::Error::other("a thread has panicked"))
}

impl Drop for Staging {
    /// Ends the thread, and waits for that for up to a second: it has the regions. One that waits for a slow source is left behind.
    fn drop(&mut self) {
        const STOP_TIMEOUT: Duration = Duration::from_secs(1);
        self.stop.set();
        let until = Instant::now() + STOP_TIMEOUT;
        while self
            .result
            .recv_timeout(until.saturating_duration_since(Instant::now()))
            .is_ok()
        {}
    }
}

impl Complete {
    /// Whether the source is still there. It has nothing more to send: if something comes, that is the end of the connection, or an error.
    fn check(&mut self) -> Result<(), Error> {
        let Readiness::When(fd) = self.source.readiness() else {
            return Ok(());
        };
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&now)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => Ok(()),
            Ok(_) => self.source.next_event().map(drop).map_err(Error::from),
            Err(error) => Err(Error::local("wait for pages")(error.into())),
        }
    }

    fn commit(mut self) -> Result<Staged, Error> {
        for (region, pages) in &self.remainder {
            self.regions[*region].forget(*pages);
        }
        self.regions.iter().try_for_each(StagedRegion::commit)?;
        Ok(Staged {
            source: self.source.into_source(),
            remainder: self.remainder,
        })
    }
}

impl StagedRegion {
    fn new(target: &Target) -> Self {
        Self {
            name: target.name.clone(),
            sink: Arc::clone(&target.sink),
            data: PageSet::none_of(target.export.pages),
            zero: PageSet::none_of(target.export.pages),
        }
    }

    /// These pages are not staged any more.
    fn forget(&mut self, pages: PageRange) {
        self.data.remove(pages);
        self.zero.remove(pages);
    }

    /// Stages the pages of an answer. A page that cannot be staged is absent, whatever was staged of it before.
    fn stage(&mut self, answer: &Answer<'_>, seed: Option<&Seed>, stats: &Stats) -> Result<(), Error> {
        let (mut fills, mut filled) = (Vec::new(), Vec::new());
        for (range, contents) in answer.contents() {
            if contents == Contents::Same {
                // What is staged with contents stays. A page that there was no memory for, or no image, stays absent.
                self.zero.remove(range);
                add(&stats.same, range.count());
                continue;
            }
            self.forget(range);
            match contents {
                Contents::Data(data) => {
                    fills.push((range.first(), data));
                    filled.push(range);
                }
                Contents::Zero => self.zero.insert(range),
                Contents::Unreadable | Contents::Known(_) | Contents::Same => {}
            }
        }
        self.put(&fills, &filled)?;
        // A page that no image has any more is fetched when the program runs here.
        copy_known(seed, answer, |fills, ranges| {
            let staged = self.put(fills, ranges)?;
            add(&stats.known, staged);
            Ok(())
        })?;
        Ok(())
    }

    /// Stages contents of pages, as far as there is memory. Returns how many pages are staged.
    fn put(&mut self, fills: &[(PageIndex, &[u8])], pages: &[PageRange]) -> Result<u64, Error> {
        let Progress { ranges, error, .. } = self.sink.stage(fills);
        let staged = match error {
            None => pages.len(),
            // The rest is fetched when the program runs here, and the engine waits for memory.
            Some(vmem::Error::NoMemory { .. }) => ranges.min(pages.len()),
            Some(error) => return Err(Error::region("stage pages of", &self.name)(error)),
        };
        pages[..staged].iter().for_each(|range| self.data.insert(*range));
        Ok(pages[..staged].iter().map(|range| range.count()).sum())
    }

    /// Stages holes as zero pages. Nothing is written.
    fn stage_holes(&mut self, holes: &Holes) {
        for hole in &holes.ranges {
            self.data.remove(*hole);
            self.zero.insert(*hole);
        }
    }

    fn commit(&self) -> Result<(), Error> {
        let data: Vec<_> = self.data.runs().collect();
        let zero: Vec<_> = self.zero.runs().collect();
        let mark = |progress: Progress| progress.complete().map_err(Error::region("mark staged pages of", &self.name));
        mark(self.sink.mark_cached(&data))?;
        mark(self.sink.mark_zero(&zero))?;
        Ok(())
    }
}

/// The thread that stages.
struct Rounds {
    source: Box<dyn StagingSource>,
    exports: Exports,
    regions: Vec<StagedRegion>,
    stop: Arc<StopEvent>,
    /// The holes of all memory, which are known before the first pages come.
    survey: Survey,
    seed: Option<Arc<Seed>>,
    announcer: Announcer,
    /// Batches that were asked for and have not ended.
    outstanding: u64,
    /// The most batches outstanding.
    most: u64,
    remainder: VecDeque<(usize, PageRange)>,
    stats: Arc<Stats>,
}

impl Rounds {
    fn run(mut self, result: &Sender<Result<Complete, Error>>) {
        let outcome = match self.stage() {
            Ok(false) => return,
            Ok(true) => Ok(Complete {
                source: self.source,
                regions: self.regions,
                remainder: self.remainder,
            }),
            Err(error) => Err(error),
        };
        // If nobody waits for it, staging was given up.
        let _ = result.send(outcome);
    }

    /// Stages until the remainder is complete. False if it was stopped before.
    fn stage(&mut self) -> Result<bool, Error> {
        let mut is_over = false;
        loop {
            let is_due = !is_over && self.announcer.is_due();
            if is_due && self.outstanding == 0 && !self.survey.is_outstanding() {
                let (announcer, source) = (&mut self.announcer, &mut self.source);
                announcer.announce(|key, prefixes| source.announce(key, prefixes))?;
                continue;
            }
            while let Some((region, pages)) = (!is_due).then(|| self.survey.next()).flatten() {
                self.source.map(self.exports.number(region), pages)?;
            }
            while self.survey.is_asked() && !is_due && !is_over && self.outstanding < self.most {
                self.source.next(BATCH_PAGES)?;
                self.outstanding += 1;
            }
            if wait(&self.stop, self.source.readiness())? {
                return Ok(false);
            }
            match self.source.next_event()? {
                StagingEvent::Pages(answer) => {
                    if let Some(region) = self.exports.region(answer.export()) {
                        self.regions[region].stage(&answer, self.seed.as_deref(), &self.stats)?;
                        add(&self.stats.staged, answer.pages());
                    }
                }
                StagingEvent::Holes(ExportHoles { export, holes }) => {
                    self.survey.received(holes.pages);
                    if let Some(region) = self.exports.region(export) {
                        self.regions[region].stage_holes(&holes);
                        add(&self.stats.staged, holes.count());
                    }
                }
                StagingEvent::Batch { over, .. } => {
                    is_over |= over;
                    self.outstanding = self.outstanding.saturating_sub(1);
                }
                StagingEvent::Remainder(pages) => {
                    if let Some(region) = self.exports.region(pages.export) {
                        self.remainder.extend(pages.ranges.into_iter().map(|range| (region, range)));
                    }
                }
                StagingEvent::End => return Ok(true),
            }
        }
    }
}
