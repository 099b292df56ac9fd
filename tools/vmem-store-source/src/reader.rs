// SPDX-License-Identifier: GPL-2.0
//! Reads pages of a checkpoint in threads of its own, since a store may be far away.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::event::{EventfdFlags, eventfd};
use vmem::{PAGE_SIZE, PageRange};
use vmem_source::answer::{Chunk, Run};
use vmem_source::peer::check_fetch;
use vmem_source::{Answer, Error, Export, Lane, PageSource, Readiness};
use vmem_store::{Image, PageError, Touch};

/// Threads of a lane. Each reads, decompresses and verifies; over a network most of the time is waiting.
const THREADS: usize = 4;

/// Pages of one piece of work, and of one answer.
const PIECE: u64 = Chunk::MAX_DATA_PAGES as u64;

/// Asks the store whether it is there. An error says why it is not.
pub type IsThere = Arc<dyn Fn() -> Result<(), vmem_store::Error> + Send + Sync>;

/// In which order a whole checkpoint is best read.
pub(crate) type Order = Arc<dyn Fn() -> Result<Vec<Touch>, vmem_store::Error> + Send + Sync>;

/// Pages that were read.
#[derive(Debug)]
struct Read {
    export: usize,
    runs: Vec<Run>,
    data: Vec<u8>,
}

#[derive(Default)]
struct Queue {
    wanted: VecDeque<(usize, PageRange)>,
    done: VecDeque<Result<Read, Error>>,
    ended: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Readable when there is something in `done`.
    ready: OwnedFd,
    image: Arc<Image>,
    /// The number of each export's backend in the checkpoint.
    backends: Vec<usize>,
    is_there: IsThere,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut queue = self.lock();
        while !queue.ended {
            let Some((export, pages)) = queue.wanted.pop_front() else {
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(queue);
            // An answer that never comes would be waited for without end.
            let read = catch_unwind(AssertUnwindSafe(|| self.read(export, pages)));
            let read = read.unwrap_or_else(|_| Err(Error::Io(io::Error::other("a reader of the checkpoint has panicked"))));
            queue = self.lock();
            queue.done.push_back(read);
            // It can only fail if 2^64 answers wait.
            let _ = rustix::io::write(&self.ready, &1_u64.to_ne_bytes());
        }
    }

    /// Reads pages. One that fails verification is unreadable; a store that is away is an error.
    fn read(&self, export: usize, pages: PageRange) -> Result<Read, Error> {
        let Some(backend) = self.backends.get(export).copied() else {
            return Err(Error::InvalidFetch(format!("pages of export {export}, which does not exist")));
        };
        let mut chunk = Chunk::new();
        for page in pages.iter() {
            let spare = chunk.spare();
            let room = spare
                .first_chunk_mut::<PAGE_SIZE>()
                .ok_or_else(|| Error::InvalidFetch(format!("{pages} at once")))?;
            let read = match self.image.read_page(backend, page, room) {
                Ok(()) => Ok(()),
                Err(PageError::Away(error)) => return Err(Error::Io(io::Error::other(error))),
                Err(_) => {
                    // All objects of a directory that is not mounted are missing. It may have been mounted since: only what is read while the store
                    // is there says something about the page.
                    (self.is_there)().map_err(|error| Error::Io(io::Error::other(error)))?;
                    self.image.read_page(backend, page, room)
                }
            };
            match read {
                Ok(()) => chunk.commit(page.into()),
                Err(PageError::Away(error)) => return Err(Error::Io(io::Error::other(error))),
                Err(error) => {
                    // The other pages of this piece can be had. This one is never zeros.
                    chunk.push_unreadable(page.into());
                    warn(export, page.get(), &error);
                }
            }
        }
        Ok(Read {
            export,
            runs: chunk.runs().to_vec(),
            data: chunk.data().to_vec(),
        })
    }
}

fn warn(export: usize, page: u64, error: &PageError) {
    tracing::warn!("page {page} of memory {export} of the checkpoint cannot be had: {error}");
}

/// A checkpoint as a source, for one lane.
pub struct ImageSource {
    shared: Arc<Shared>,
    exports: Vec<Export>,
    order: Order,
    threads: Vec<JoinHandle<()>>,
    /// Pages that were fetched and are not answered.
    outstanding: u64,
    current: Option<Read>,
}

impl ImageSource {
    pub(crate) fn new(
        image: Arc<Image>,
        exports: Vec<Export>,
        backends: Vec<usize>,
        is_there: IsThere,
        order: Order,
        lane: Lane,
    ) -> Result<Self, Error> {
        let ready = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK | EventfdFlags::SEMAPHORE);
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            changed: Condvar::new(),
            ready: ready.map_err(|error| Error::Io(error.into()))?,
            image,
            backends,
            is_there,
        });
        let mut source = Self {
            shared,
            exports,
            order,
            threads: Vec::new(),
            outstanding: 0,
            current: None,
        };
        for _ in 0..THREADS {
            let shared = Arc::clone(&source.shared);
            let work = move || {
                lane.set_thread_priority();
                shared.work();
            };
            let thread = thread::Builder::new().name("checkpoint".to_owned()).spawn(work);
            source.threads.push(thread.map_err(Error::Io)?);
        }
        Ok(source)
    }
}

impl PageSource for ImageSource {
    fn exports(&self) -> &[Export] {
        &self.exports
    }

    fn fetch(&mut self, export: usize, ranges: &[PageRange]) -> Result<(), Error> {
        check_fetch(&self.exports, export, ranges)?;
        self.outstanding += ranges.iter().map(|range| range.count()).sum::<u64>();
        let mut queue = self.shared.lock();
        for range in ranges {
            let mut rest = Some(*range);
            while let Some(pages) = rest {
                let (first, after) = pages.split_at(PIECE);
                queue.wanted.extend(first.map(|pages| (export, pages)));
                rest = after;
            }
        }
        drop(queue);
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Those of the recorded access order, or those that the checkpoint wrote itself; then the others as they lie in the store.
    fn preferred(&mut self) -> Vec<(usize, PageRange)> {
        let touches = (self.order)().unwrap_or_else(|error| {
            tracing::warn!("pages of the checkpoint are read in the order of memory: {error}");
            Vec::new()
        });
        let export = |backend: usize| self.shared.backends.iter().position(|of| *of == backend);
        let touches = touches.into_iter();
        touches
            .filter_map(|touch| Some((export(touch.backend)?, touch.pages)))
            .collect()
    }

    fn readiness(&self) -> Readiness<'_> {
        Readiness::When(self.shared.ready.as_fd())
    }

    fn next_answer(&mut self) -> Result<Answer<'_>, Error> {
        if self.outstanding == 0 {
            return Err(Error::InvalidFetch("nothing: no pages are outstanding".to_owned()));
        }
        // A reader of the descriptor waits in poll(2), and comes here when it is readable.
        let mut count = [0; 8];
        loop {
            match rustix::io::read(&self.shared.ready, &mut count) {
                Ok(_) => break,
                Err(rustix::io::Errno::AGAIN) => wait(self.shared.ready.as_fd())?,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Error::Io(error.into())),
            }
        }
        let read = self.shared.lock().done.pop_front();
        let read = read.ok_or_else(|| Error::Io(io::Error::other("an answer is missing")))??;
        let read = self.current.insert(read);
        let answer = Answer::new(read.export, &read.runs, &read.data);
        let answer = answer.ok_or_else(|| Error::Io(io::Error::other("an answer has other bytes than its runs")))?;
        self.outstanding = self.outstanding.saturating_sub(answer.pages());
        Ok(answer)
    }
}

fn wait(ready: impl AsFd) -> Result<(), Error> {
    use rustix::event::{PollFd, PollFlags, poll};
    match poll(&mut [PollFd::new(&ready, PollFlags::IN)], None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(Error::Io(error.into())),
    }
}

impl Drop for ImageSource {
    /// Does not wait for the threads: the store may take long, and what is read is not wanted any more.
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        queue.ended = true;
        queue.wanted.clear();
        drop(queue);
        self.shared.changed.notify_all();
        self.threads.clear();
    }
}

#[cfg(test)]
mod tests;
