// SPDX-License-Identifier: GPL-2.0-or-later
//! Threads that read a checkpoint. Each reads, decompresses and verifies; over a network most of the time is waiting.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use vmem::{PAGE_SIZE, PageRange};
use vmem_source::answer::{Chunk, Run};
use vmem_source::holes::MAX_HOLES;
use vmem_source::{Error, ExportHoles, Holes, Lane};
use vmem_store::{Image, PageError, PageState};

use super::IsThere;

/// Threads with one role, but for those that read ahead.
const THREADS: usize = 4;

/// What a lane wants of the checkpoint, with the number of the export.
#[derive(Debug)]
pub(super) enum Task {
    /// The contents of pages, as many as one answer has.
    Read(usize, Vec<PageRange>),
    /// Which pages are zero.
    Map(usize, PageRange),
}

/// What has been done.
#[derive(Debug)]
pub(super) enum Done {
    Read(Read),
    Holes(ExportHoles),
}

/// Pages that were read.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) export: usize,
    pub(super) runs: Vec<Run>,
    pub(super) data: Vec<u8>,
    /// What is stored with the first of them, for pages that somebody waits for.
    pub(super) nearby: Vec<(usize, PageRange)>,
}

/// What has been done and nobody has taken yet, in this order.
pub(super) struct Answers {
    done: Mutex<VecDeque<Result<Done, Error>>>,
    /// Readable when there is something in `done`.
    ready: OwnedFd,
}

impl Answers {
    pub(super) fn new() -> Result<Self, Error> {
        let ready = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK | EventfdFlags::SEMAPHORE);
        Ok(Self {
            done: Mutex::default(),
            ready: ready.map_err(|error| Error::Io(error.into()))?,
        })
    }

    /// Readable when [`next`](Self::next) does not wait.
    pub(super) fn ready(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }

    fn push(&self, done: Result<Done, Error>) {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).push_back(done);
        // It can only fail if 2^64 answers wait.
        let _ = rustix::io::write(&self.ready, &1_u64.to_ne_bytes());
    }

    /// Waits for what is done next.
    pub(super) fn next(&self) -> Result<Done, Error> {
        // A reader of the descriptor waits in poll(2), and comes here when it is readable.
        let mut count = [0; 8];
        loop {
            match rustix::io::read(&self.ready, &mut count) {
                Ok(_) => break,
                Err(rustix::io::Errno::AGAIN) => match poll(&mut [PollFd::new(&self.ready, PollFlags::IN)], None) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(Error::Io(error.into())),
                },
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Error::Io(error.into())),
            }
        }
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        done.ok_or_else(|| Error::Io(io::Error::other("an answer is missing")))?
    }
}

/// What is to be done next.
#[derive(Default)]
struct Queue {
    tasks: VecDeque<Task>,
    /// Maps are answered in the order of the questions: one thread at a time makes them.
    is_mapping: bool,
    ended: bool,
}

impl Queue {
    fn next(&mut self) -> Option<Task> {
        let is_mapping = self.is_mapping;
        let can_begin = |task: &Task| !is_mapping || matches!(task, Task::Read(..));
        let task = self.tasks.iter().position(can_begin).and_then(|at| self.tasks.remove(at))?;
        self.is_mapping |= matches!(task, Task::Map(..));
        Some(task)
    }
}

/// What the threads read.
pub(super) struct Checkpoint {
    pub(super) image: Arc<Image>,
    /// The number of each export's backend in the checkpoint.
    pub(super) backends: Vec<usize>,
    pub(super) is_there: IsThere,
}

impl Checkpoint {
    /// Pages of backends, with the numbers of their exports; those of other backends are left out.
    pub(super) fn of_exports(
        &self,
        pages: impl IntoIterator<Item = (usize, PageRange)>,
    ) -> impl Iterator<Item = (usize, PageRange)> {
        let export = |backend: usize| self.backends.iter().position(|of| *of == backend);
        pages
            .into_iter()
            .filter_map(move |(backend, pages)| Some((export(backend)?, pages)))
    }
}

/// For whom threads read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Programs that wait.
    Demand,
    /// Programs that will probably touch the pages next. With a priority of its own: it must not keep a program that runs from its processor.
    Ahead,
    /// The stream.
    Stream,
}

impl Role {
    fn threads(self) -> usize {
        match self {
            Self::Demand | Self::Stream => THREADS,
            Self::Ahead => 1,
        }
    }
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    answers: Arc<Answers>,
    checkpoint: Arc<Checkpoint>,
    /// Whether anybody wants to know what is stored with a page.
    seeks_nearby: AtomicBool,
}

/// Threads with the same role.
pub(super) struct Workers(Arc<Shared>);

impl Workers {
    pub(super) fn start(checkpoint: Arc<Checkpoint>, answers: Arc<Answers>, role: Role) -> Result<Self, Error> {
        let workers = Self(Arc::new(Shared {
            queue: Mutex::default(),
            changed: Condvar::new(),
            answers,
            checkpoint,
            seeks_nearby: AtomicBool::new(role == Role::Demand),
        }));
        for _ in 0..role.threads() {
            let shared = Arc::clone(&workers.0);
            let work = move || {
                if role == Role::Demand {
                    Lane::Urgent.set_thread_priority();
                }
                shared.work();
            };
            let thread = thread::Builder::new().name("checkpoint".to_owned()).spawn(work);
            thread.map_err(Error::Io)?;
        }
        Ok(workers)
    }

    pub(super) fn checkpoint(&self) -> &Checkpoint {
        &self.0.checkpoint
    }

    /// Nobody wants to know what is stored with a page.
    pub(super) fn skip_nearby(&self) {
        self.0.seeks_nearby.store(false, Ordering::Relaxed);
    }

    pub(super) fn add(&self, tasks: impl IntoIterator<Item = Task>) {
        let mut queue = self.0.lock();
        for task in tasks {
            queue.tasks.push_back(task);
            // One thread for each: the others would wake up for nothing.
            self.0.changed.notify_one();
        }
    }
}

impl Drop for Workers {
    /// Does not wait for the threads: the store may take long, and what is read is not wanted any more.
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        queue.ended = true;
        queue.tasks.clear();
        drop(queue);
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut chunk = Chunk::new();
        let mut queue = self.lock();
        while !queue.ended {
            let Some(task) = queue.next() else {
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(queue);
            // An answer that never comes would be waited for without end.
            let done = catch_unwind(AssertUnwindSafe(|| match &task {
                Task::Read(export, pages) => vec![self.read(*export, pages, &mut chunk).map(Done::Read)],
                Task::Map(export, pages) => self.map(*export, *pages),
            }));
            let done = done.unwrap_or_else(|_| vec![Err(Error::Io(io::Error::other("a reader of the checkpoint has panicked")))]);
            done.into_iter().for_each(|done| self.answers.push(done));
            queue = self.lock();
            if let Task::Map(..) = task {
                queue.is_mapping = false;
                self.changed.notify_one();
            }
        }
    }

    fn backend(&self, export: usize) -> Result<usize, Error> {
        let backend = self.checkpoint.backends.get(export).copied();
        backend.ok_or_else(|| Error::InvalidFetch(format!("pages of export {export}, which does not exist")))
    }

    /// Reads pages. One that fails verification is unreadable; a store that is away is an error.
    fn read(&self, export: usize, ranges: &[PageRange], chunk: &mut Chunk) -> Result<Read, Error> {
        let Checkpoint { image, is_there, .. } = &*self.checkpoint;
        let backend = self.backend(export)?;
        chunk.clear();
        for page in ranges.iter().flat_map(|range| range.iter()) {
            let spare = chunk.spare();
            let room = spare
                .first_chunk_mut::<PAGE_SIZE>()
                .ok_or_else(|| Error::InvalidFetch(format!("{ranges:?} at once")))?;
            let read = match image.read_page(backend, page, room) {
                Ok(()) => Ok(()),
                Err(PageError::Away(error)) => return Err(Error::Io(io::Error::other(error))),
                Err(_) => {
                    // All objects of a directory that is not mounted are missing. It may have been mounted since: only what is read while the store
                    // is there says something about the page.
                    is_there().map_err(|error| Error::Io(io::Error::other(error)))?;
                    image.read_page(backend, page, room)
                }
            };
            match read {
                Ok(()) => chunk.commit(page.into()),
                Err(PageError::Away(error)) => return Err(Error::Io(io::Error::other(error))),
                Err(error) => {
                    // The other pages of this piece can be had. This one is never zeros.
                    chunk.push_unreadable(page.into());
                    tracing::warn!("page {page} of memory {export} of the checkpoint cannot be had: {error}");
                }
            }
        }
        let nearby = match self.seeks_nearby.load(Ordering::Relaxed) {
            true => self.nearby(backend, ranges),
            false => Vec::new(),
        };
        Ok(Read {
            export,
            runs: chunk.runs().to_vec(),
            data: chunk.data().to_vec(),
            nearby,
        })
    }

    /// What is stored with the first of these pages, as far as that is known: it is a hint.
    fn nearby(&self, backend: usize, ranges: &[PageRange]) -> Vec<(usize, PageRange)> {
        let neighbours = ranges
            .first()
            .and_then(|range| self.checkpoint.image.neighbours(backend, range.first()).ok());
        self.checkpoint.of_exports(neighbours.unwrap_or_default()).collect()
    }

    /// The pages that are zero, without reading any; in pieces.
    fn map(&self, export: usize, pages: PageRange) -> Vec<Result<Done, Error>> {
        let extents = self
            .backend(export)
            .map(|backend| self.checkpoint.image.extents(backend, pages));
        let mut zeros: Vec<PageRange> = match extents {
            Ok(Ok(extents)) => extents
                .into_iter()
                .filter(|extent| extent.state == PageState::Zero)
                .map(|extent| extent.pages)
                .collect(),
            Ok(Err(error)) if error.is_transient() => return vec![Err(Error::Io(io::Error::other(error)))],
            // Each page is asked for, and its own error is said then.
            Ok(Err(_)) => Vec::new(),
            Err(error) => return vec![Err(error)],
        };
        let mut done = Vec::new();
        let mut left = Some(pages);
        while let Some(pages) = left {
            let rest = zeros.split_off(zeros.len().min(MAX_HOLES));
            let ranges = std::mem::replace(&mut zeros, rest);
            // Up to the first hole of the next piece.
            let count = zeros
                .first()
                .map_or(pages.count(), |next| next.first().get() - pages.first().get());
            let (piece, after) = pages.split_at(count);
            left = after;
            if let Some(pages) = piece {
                let holes = Holes { pages, ranges };
                done.push(Ok(Done::Holes(ExportHoles { export, holes })));
            }
        }
        done
    }
}
