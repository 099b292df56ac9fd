// SPDX-License-Identifier: GPL-2.0-or-later
//! Brings the pages of snapshots into a store, while programs go on writing to the memory.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use vmem::{PAGE_SIZE, PageIndex, PageRange, PageSet, Snapshot};
use vmem_cli::{Progress, Signals};
use vmem_store::Writer;

use crate::error::Error;
use crate::pages::{bytes_of, count};
use crate::statistics::Step;
use crate::wanted::Wanted;

/// Pages that are read at once: 1 MiB. A signal waits for as many.
const CHUNK: u64 = 256;

/// Threads that read, compress and store. More would take processors from the guest.
const THREADS: usize = 4;

/// How often it is looked whether absent pages are still to be waited for.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Where pages go.
pub(crate) trait Sink: Sync {
    fn put_pages(&self, memory: usize, first: PageIndex, contents: &[u8]) -> Result<(), Error>;
    fn put_zero(&self, memory: usize, pages: PageRange) -> Result<(), Error>;
}

impl Sink for Writer {
    fn put_pages(&self, memory: usize, first: PageIndex, contents: &[u8]) -> Result<(), Error> {
        Ok(Writer::put_pages(self, memory, first, contents)?)
    }

    fn put_zero(&self, memory: usize, pages: PageRange) -> Result<(), Error> {
        Ok(Writer::put_zero(self, memory, pages)?)
    }
}

/// Where pages come from: each page once.
pub(crate) trait Image: Sync {
    /// The runs of pages that are no holes, before one of them is read or skipped.
    fn data(&self) -> Result<Vec<PageRange>, Error>;
    /// Fills `to` from the offset of a page on.
    fn read(&self, to: &mut [u8], offset: u64) -> Result<(), Error>;
    /// These pages are not needed, or not any more: reads that wait for them fail.
    fn skip(&self, pages: PageRange) -> Result<(), Error>;
}

impl Image for Snapshot {
    fn data(&self) -> Result<Vec<PageRange>, Error> {
        let data = Snapshot::data(self).collect::<Result<_, _>>().map_err(failed())?;
        // A page that was discarded before it came looks like a hole.
        match self.info().map_err(failed())?.done {
            0 => Ok(data),
            _ => Err(Error::Discarded),
        }
    }

    fn read(&self, to: &mut [u8], offset: u64) -> Result<(), Error> {
        self.read_exact_at(to, offset).map_err(failed())
    }

    fn skip(&self, pages: PageRange) -> Result<(), Error> {
        self.done(pages).map_err(failed())
    }
}

/// Writes what is wanted of each image: absent pages last, each when it comes. `check` says while they are waited for whether they still may
/// come. After an error, the images cannot be read any more.
pub(crate) fn write<I: Image>(
    images: &[I],
    wanted: &[Wanted],
    to: &impl Sink,
    signals: &Signals,
    check: &mut dyn FnMut() -> Result<(), Error>,
    report: &(dyn Fn(Step<'_>) + Sync),
) -> Result<(), Error> {
    let (mut chunks, mut awaited) = (Vec::new(), Vec::new());
    for (memory, (image, Wanted { set, awaited: absent })) in images.iter().zip(wanted).enumerate() {
        // Programs need not keep the other pages aside.
        for pages in set.gaps() {
            image.skip(pages)?;
        }
        let runs: Vec<_> = if count(set) == set.pages().count() {
            let data = image.data()?;
            let mut holes = PageSet::all_of(set.pages());
            data.iter().for_each(|pages| holes.remove(*pages));
            holes.runs().try_for_each(|pages| to.put_zero(memory, pages))?;
            data
        } else {
            set.runs().collect()
        };
        for pages in runs {
            absent.gaps_of(pages).for_each(|pages| cut_into(pages, memory, &mut chunks));
            absent.runs_of(pages).for_each(|pages| cut_into(pages, memory, &mut awaited));
        }
    }
    let there = chunks.len();
    let waits_for: u64 = awaited.iter().map(|(_, pages)| pages.count()).sum();
    chunks.append(&mut awaited);
    let (next, stop, done, come) = (
        AtomicUsize::new(0),
        AtomicBool::new(false),
        AtomicU64::new(0),
        AtomicU64::new(0),
    );
    let size = chunks.iter().map(|(_, pages)| bytes_of(pages.count())).sum();
    let error = Mutex::new(None);
    // The first error counts: others follow from it.
    let fail = |why: Error| {
        error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
        stop.store(true, Ordering::Relaxed);
    };
    let work = || {
        let mut buffer = vec![0; (CHUNK as usize) * PAGE_SIZE];
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some((memory, pages)) = chunks.get(number).filter(|_| !stop.load(Ordering::Relaxed)) else {
                return;
            };
            let copied = signals.check().map_err(Error::from);
            if let Err(why) = copied.and_then(|()| copy(&images[*memory], *memory, *pages, to, &mut buffer)) {
                return fail(why);
            }
            if number >= there {
                come.fetch_add(pages.count(), Ordering::Relaxed);
            }
            let done = done.fetch_add(bytes_of(pages.count()), Ordering::Relaxed) + bytes_of(pages.count());
            report(Step::Written(Progress { done, size }));
        }
    };
    let threads = thread::available_parallelism().map_or(1, |there| there.get().min(THREADS));
    thread::scope(|scope| {
        let started: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        while waits_for > 0 && !started.iter().all(thread::ScopedJoinHandle::is_finished) {
            if let Err(why) = signals.check().map_err(Error::from).and_then(|()| check()) {
                fail(why);
            }
            if stop.load(Ordering::Relaxed) {
                // Threads that wait for a page wake up. Of a snapshot that has failed, they do that by themselves.
                images
                    .iter()
                    .zip(wanted)
                    .for_each(|(image, wanted)| drop(image.skip(wanted.set.pages())));
            }
            let progress = Progress {
                done: done.load(Ordering::Relaxed),
                size,
            };
            let pages = waits_for - come.load(Ordering::Relaxed);
            report(Step::Waiting { progress, pages });
            thread::sleep(POLL_INTERVAL);
        }
        for thread in started {
            if thread.join().is_err() {
                fail(Error::Thread(std::io::Error::other("it has panicked")));
            }
        }
    });
    error.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

fn cut_into(pages: PageRange, memory: usize, chunks: &mut Vec<(usize, PageRange)>) {
    let mut rest = Some(pages);
    while let Some(pages) = rest {
        let (first, after) = pages.split_at(CHUNK);
        chunks.extend(first.map(|pages| (memory, pages)));
        rest = after;
    }
}

fn copy(image: &impl Image, memory: usize, pages: PageRange, to: &impl Sink, buffer: &mut [u8]) -> Result<(), Error> {
    let buffer = &mut buffer[..bytes_of(pages.count()) as usize];
    image.read(buffer, pages.bytes().start)?;
    to.put_pages(memory, pages.first(), buffer)
}

fn failed() -> impl FnOnce(vmem::Error) -> Error {
    Error::memory("cannot read the snapshot of the memory")
}

#[cfg(test)]
mod tests;
