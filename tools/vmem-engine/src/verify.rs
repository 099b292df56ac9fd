// SPDX-License-Identifier: GPL-2.0-or-later
//! Compares regions with their source.
//!
//! [`Verification`] reads all pages of the source again, on a connection of its own, and compares them with the memory of the regions. The
//! result means something only while nobody writes to either: the program has stopped at the source, and does not run here yet. Nothing is
//! changed, whatever the result.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use vmem::{PAGE_SIZE, PageIndex, PageRange, PageSet};
use vmem_source::{Answer, Contents, Lane, PageSource};
use vmem_wait::StopEvent;

use crate::connection::Connect;
use crate::error::Error;
use crate::exports::Exports;
use crate::readiness::wait;
use crate::stats::{Stats, add};
use crate::target::Target;

/// Pages of one fetch (1 MiB), as for the stream.
const FETCH_PAGES: u64 = 256;

/// Pages that are read from a region at once.
const READ_PAGES: u64 = 64;

/// How many pages that differ are named.
const MAX_NAMED: usize = 16;

/// How long a thread that ends may take.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

const ZERO_PAGE: [u8; PAGE_SIZE] = [0; PAGE_SIZE];

/// What a comparison has found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Verified {
    /// Pages that were compared.
    pub pages: u64,
    /// How many of them are not the same as the source's: others, absent, or not readable at the source.
    pub different: u64,
    /// The first of those: the name of the region, and the page.
    pub first: Vec<(String, PageIndex)>,
}

/// Compares in a thread of its own. Dropping it ends the thread.
pub struct Verification {
    stop: Arc<StopEvent>,
    result: Mutex<Receiver<Result<Verified, Error>>>,
}

impl Verification {
    /// Starts to compare all pages of `targets` with a source that `connect` opens, with about `window` pages outstanding. A lost connection
    /// is not made again.
    ///
    /// # Errors
    ///
    /// [`Error::Local`]: a thread or a descriptor cannot be created.
    pub fn start(targets: Vec<Target>, connect: Connect, window: u64, stats: Arc<Stats>) -> Result<Self, Error> {
        let stop = Arc::new(StopEvent::new().map_err(Error::local("make an eventfd"))?);
        let (sender, result) = channel();
        let stopped = Arc::clone(&stop);
        thread::Builder::new()
            .name("verify".to_owned())
            .spawn(move || run(&targets, &connect, window, &stats, &stopped, &sender))
            .map_err(Error::local("start a thread"))?;
        Ok(Self {
            stop,
            result: Mutex::new(result),
        })
    }

    /// The result, once there is one. It is given once.
    ///
    /// # Errors
    ///
    /// The source is lost, or has other memory now; a call on a region failed.
    pub fn result(&self) -> Option<Result<Verified, Error>> {
        match self.receiver().try_recv() {
            Ok(result) => Some(result),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err(Error::local("compare pages")(std::io::Error::other(
                "a thread has ended early",
            )))),
        }
    }

    fn receiver(&self) -> std::sync::MutexGuard<'_, Receiver<Result<Verified, Error>>> {
        self.result.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Verification {
    /// A thread that waits for a slow source is left behind; it changes nothing.
    fn drop(&mut self) {
        self.stop.set();
        match self.receiver().recv_timeout(STOP_TIMEOUT) {
            Ok(_) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
    }
}

/// The thread.
fn run(
    targets: &[Target],
    connect: &Connect,
    window: u64,
    stats: &Stats,
    stop: &StopEvent,
    result: &Sender<Result<Verified, Error>>,
) {
    let outcome = connect(Lane::Stream).map_err(Error::from).and_then(|source| {
        let mut comparison = Comparison::new(source, targets, stats, stop)?;
        for number in 0..targets.len() {
            if !comparison.compare(number, window)? {
                return Err(Error::Halted);
            }
        }
        Ok(comparison.findings.verified)
    });
    // Nobody waits for it if the comparison was given up.
    let _ = result.send(outcome);
}

struct Comparison<'a> {
    source: Box<dyn PageSource>,
    exports: Exports,
    targets: &'a [Target],
    findings: Findings,
    stats: &'a Stats,
    stop: &'a StopEvent,
}

impl<'a> Comparison<'a> {
    fn new(source: Box<dyn PageSource>, targets: &'a [Target], stats: &'a Stats, stop: &'a StopEvent) -> Result<Self, Error> {
        let exports = Exports::find(source.exports(), targets.iter().map(|target| &target.export))?;
        Ok(Self {
            source,
            exports,
            targets,
            findings: Findings::new(),
            stats,
            stop,
        })
    }

    /// Compares all pages of a target. False if the comparison was stopped.
    fn compare(&mut self, number: usize, window: u64) -> Result<bool, Error> {
        let target = &self.targets[number];
        let mut absent = PageSet::none_of(target.export.pages);
        let listed = target.sink.absent(target.export.pages, &mut |pages| absent.insert(pages));
        listed.map_err(Error::region("read which pages are present in", &target.name))?;
        let (mut left, mut outstanding) = (Some(target.export.pages), 0);
        while left.is_some() || outstanding > 0 {
            while let Some(pages) = left.filter(|_| outstanding < window.max(1)) {
                let (fetched, after) = pages.split_at(FETCH_PAGES);
                let fetched: Vec<_> = fetched.into_iter().collect();
                self.source.fetch(self.exports.number(number), &fetched)?;
                outstanding += fetched.iter().map(|range| range.count()).sum::<u64>();
                left = after;
            }
            if wait(self.stop, self.source.readiness())? {
                return Ok(false);
            }
            let answer = self.source.next_answer()?;
            if self.exports.region(answer.export()) != Some(number) {
                let text = "an answer for an export that was not fetched from".to_owned();
                return Err(vmem_source::Error::InvalidFetch(text).into());
            }
            outstanding = outstanding.saturating_sub(answer.pages());
            self.findings.add(target, &absent, &answer)?;
            add(&self.stats.verified, answer.pages());
        }
        Ok(true)
    }
}

/// What was found so far.
struct Findings {
    verified: Verified,
    /// Pages of a region.
    here: Vec<u8>,
}

impl Findings {
    fn new() -> Self {
        Self {
            verified: Verified::default(),
            here: vec![0; READ_PAGES as usize * PAGE_SIZE],
        }
    }

    /// Compares the pages of an answer. Pages of `absent` differ whatever they are at the source.
    fn add(&mut self, target: &Target, absent: &PageSet, answer: &Answer<'_>) -> Result<(), Error> {
        for (range, contents) in answer.contents() {
            let mut theirs = match contents {
                Contents::Data(data) => Some(data.chunks_exact(PAGE_SIZE)),
                // Nothing was announced over this connection: the source sends all contents.
                Contents::Zero | Contents::Unreadable | Contents::Known(_) | Contents::Same => None,
            };
            let is_readable = matches!(contents, Contents::Data(_) | Contents::Zero);
            let mut left = Some(range);
            while let Some((Some(pages), after)) = left.map(|left| left.split_at(READ_PAGES)) {
                self.read(target, pages)?;
                for (at, page) in pages.iter().enumerate() {
                    let theirs = match &mut theirs {
                        Some(data) => data.next().unwrap_or_default(),
                        None => &ZERO_PAGE[..],
                    };
                    let here = self.here.get(at * PAGE_SIZE..).and_then(|rest| rest.get(..PAGE_SIZE));
                    if !is_readable || absent.contains(page) || here != Some(theirs) {
                        self.differs(target, page);
                    }
                }
                self.verified.pages += pages.count();
                left = after;
            }
        }
        Ok(())
    }

    /// Reads pages of a region, at most [`READ_PAGES`].
    fn read(&mut self, target: &Target, pages: PageRange) -> Result<(), Error> {
        let length = usize::try_from(pages.count()).unwrap_or(usize::MAX).saturating_mul(PAGE_SIZE);
        let to = self.here.get_mut(..length).unwrap_or_default();
        target
            .sink
            .read(pages, to)
            .map_err(Error::region("read the memory of", &target.name))
    }

    fn differs(&mut self, target: &Target, page: PageIndex) {
        self.verified.different += 1;
        if self.verified.first.len() < MAX_NAMED {
            self.verified.first.push((target.name.clone(), page));
        }
    }
}
