// SPDX-License-Identifier: GPL-2.0

//! The log of writes to a shared memory, from TRACK to UNTRACK.

use super::{
    copy_before_write::CopyBeforeWrite,
    pages::Counter,
    plane::{
        self,
        PageLog, //
    }, //
};
use crate::{
    model::{
        dirty_log::{
            count,
            runs,
            ChunkBits,
            CHUNK_PAGES,
            NO_PAGES, //
        },
        range::{
            pages_for,
            PageRange, //
        }, //
    },
    sys::{
        shared::SharedMemory,
        task::cond_resched_or_killed,
        write_fault::WriteFault, //
    }, //
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Release, //
        },
        Arc,
        Mutex,
        MutexGuard, //
    }, //
};

/// How many clean pages between dirty ones are unmapped together with them. That costs about 600
/// instructions for each clean page that is mapped, and 700 more if it is read again; a further
/// call costs 1,500.
const GAP: u64 = 3;

/// A log of writes, and its counters.
#[pin_data]
pub(crate) struct Tracking {
    log: PageLog,
    /// All pages of the memory.
    all: PageRange,
    /// Held while TRACK waits for earlier writes. System calls that write wait for it.
    #[pin]
    admission: Mutex<()>,
    /// Held by the reader of the log.
    #[pin]
    reader: Mutex<()>,
    /// The gate and the image.
    #[pin]
    copy_before_write: CopyBeforeWrite,
    /// Whether tracking has ended, or is about to end.
    is_over: Atomic<bool>,
    /// First writes to protected pages.
    pub(crate) faults: Counter,
    /// System calls that wrote.
    pub(crate) written: Counter,
    /// Pages reported by a call that cleans.
    pub(crate) cleaned: Counter,
    /// Pages of these that stay in the log, because they are held.
    pub(crate) held: Counter,
}

/// The pages that a log begins with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum FirstPages {
    /// Those that are held. All pages are protected.
    Held,
    /// All. Each is protected when it is cleaned for the first time.
    All,
}

/// The exclusive right to read the log and to change it.
pub(crate) struct LogReader<'a> {
    tracking: &'a Tracking,
    _lock: MutexGuard<'a, ()>,
}

/// The dirty pages of a chunk.
pub(crate) struct DirtyChunk {
    /// Pages in the log.
    pub(crate) dirty: ChunkBits,
    /// Pages of these that are still in the log, because they are held.
    pub(crate) held: ChunkBits,
}

impl Tracking {
    /// An empty log for this memory.
    pub(crate) fn new(memory: &SharedMemory) -> Result<Arc<Self>> {
        let nr_pages = pages_for(memory.size()).ok_or(EFBIG)?;
        let all = PageRange::within(0, nr_pages, nr_pages).ok_or(EINVAL)?;
        plane::check_memory(nr_pages, 1)?;
        let log = plane::log(nr_pages)?;
        Arc::pin_init(
            pin_init!(Self {
                log,
                all,
                admission <- new_mutex!(()),
                reader <- new_mutex!(()),
                copy_before_write <- CopyBeforeWrite::new(),
                is_over: Atomic::new(false),
                faults: Counter::new(),
                written: Counter::new(),
                cleaned: Counter::new(),
                held: Counter::new(),
            }),
            GFP_KERNEL,
        )
    }

    /// Waits until a system call may begin to write to these pages. `EINTR` if the task is being
    /// killed.
    pub(super) fn admit(&self, pages: Option<PageRange>) -> Result {
        drop(self.admission.lock());
        self.copy_before_write.enter(pages)
    }

    /// Logs the pages of a fault. Returns whether they may become writable.
    pub(super) fn log_fault(&self, fault: &WriteFault<'_>) -> bool {
        self.faults.count();
        self.log.mark(fault.pages());
        self.copy_before_write.admit_fault(fault)
    }

    /// Ends the log. Later writes are not logged.
    pub(super) fn end(&self) {
        self.is_over.store(true, Release);
        self.copy_before_write.end();
    }

    /// Whether tracking has ended, or is about to end.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Acquire)
    }

    /// The gate and the image.
    pub(super) fn copy_before_write(&self) -> &CopyBeforeWrite {
        &self.copy_before_write
    }

    /// Logs these pages, which a system call may have written to.
    pub(super) fn log_write(&self, pages: PageRange) {
        self.written.count();
        self.log.mark(pages);
    }

    /// Starts the log: from the return of this function on, all writes to the memory are logged.
    /// `track_mappings` makes all of its mappings log writes. After an error, the caller undoes the
    /// changes. Returns how many pages are held, of those that were looked at.
    pub(crate) fn begin(
        &self,
        memory: &SharedMemory,
        begins_with: FirstPages,
        track_mappings: impl FnOnce() -> Result,
    ) -> Result<u64> {
        if pages_for(memory.size()) != Some(self.all.len()) {
            // The size of the memory has changed between the allocation of the log and the seal.
            return Err(EAGAIN);
        }
        {
            let _admission = self.admission.lock();
            memory.await_writers()?;
        }
        memory.await_mmaps()?;
        track_mappings()?;
        // From now on, a fault that makes a page writable logs it first, as the mappings have
        // changed. Pages that are writable from before are in the log, or are unmapped.
        if begins_with == FirstPages::Held {
            memory.unmap(self.all);
        }
        // After the mappings: a mapping that was left of a closed file has dropped its reference by
        // now.
        if !memory.is_sole_writer() {
            return Err(EBUSY);
        }
        let mut nr = 0;
        for chunk in self.all.pieces(CHUNK_PAGES) {
            cond_resched_or_killed()?;
            if begins_with == FirstPages::All {
                self.log.mark(chunk);
                continue;
            }
            let mut held = NO_PAGES;
            memory.add_held(chunk, &mut held);
            self.log.mark_bits(chunk, &held);
            nr += count(chunk, &held);
        }
        Ok(nr)
    }

    /// All pages of the memory.
    pub(crate) fn all(&self) -> PageRange {
        self.all
    }

    /// Pages of the memory. `EINVAL` if there are no such pages.
    pub(crate) fn range(&self, pgoff: u64, nr: u64) -> Result<PageRange> {
        PageRange::within(pgoff, nr, self.all.len()).ok_or(EINVAL)
    }

    /// How many pages are in the log.
    pub(crate) fn dirty(&self) -> u64 {
        let _reader = self.reader();
        self.log.count()
    }

    /// Waits for the right to read the log.
    pub(crate) fn reader(&self) -> LogReader<'_> {
        LogReader {
            tracking: self,
            _lock: self.reader.lock(),
        }
    }

    /// The same without waiting. [`None`] if another task has it.
    pub(crate) fn try_reader(&self) -> Option<LogReader<'_>> {
        Some(LogReader {
            tracking: self,
            _lock: self.reader.try_lock()?,
        })
    }

    /// Adds pages to the log.
    pub(crate) fn mark(&self, range: PageRange) {
        self.log.mark(range);
    }

    /// The same for all pages of another log of this memory.
    pub(crate) fn merge(&self, log: &PageLog) {
        for chunk in self.all.pieces(CHUNK_PAGES) {
            self.log.mark_bits(chunk, &log.peek(chunk));
        }
    }

    /// The same for the pages in `bits` of a chunk.
    pub(crate) fn mark_bits(&self, chunk: PageRange, bits: &ChunkBits) {
        self.log.mark_bits(chunk, bits);
    }
}

impl LogReader<'_> {
    /// The pages of `chunk`, which is within one chunk, that are in the log.
    pub(crate) fn peek(&self, chunk: PageRange) -> ChunkBits {
        self.tracking.log.peek(chunk)
    }

    /// The same, but removes the pages from the log and protects them. `EINTR` if the task is being
    /// killed; all pages are still in the log then.
    pub(crate) fn clean(&self, memory: &SharedMemory, chunk: PageRange) -> Result<DirtyChunk> {
        let log = &self.tracking.log;
        let dirty = log.take(chunk);
        let mut held = NO_PAGES;
        for run in runs(chunk, &dirty, GAP) {
            if let Err(e) = memory.protect(run) {
                log.mark_bits(chunk, &dirty);
                return Err(e);
            }
            // A held page may be written to after this without a fault, so it is never clean.
            memory.add_held(run, &mut held);
        }
        for (held, dirty) in held.iter_mut().zip(&dirty) {
            *held &= dirty;
        }
        log.mark_bits(chunk, &held);
        self.tracking.held.add(count(chunk, &held));
        Ok(DirtyChunk { dirty, held })
    }
}
