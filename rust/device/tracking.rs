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

/// Clean pages between dirty ones that are taken out of the page tables, too. That costs about 600
/// instructions for each that is there, and 700 more if it is read again; a further call costs 1,500.
const GAP: u64 = 3;

/// A log, and what it has told.
#[pin_data]
pub(crate) struct Tracking {
    log: PageLog,
    /// All pages of the memory.
    all: PageRange,
    /// Held while calls that write wait until those of before are over.
    #[pin]
    admission: Mutex<()>,
    /// Held by who reads the log.
    #[pin]
    reader: Mutex<()>,
    /// What writers pass.
    #[pin]
    copy_before_write: CopyBeforeWrite,
    /// Whether it has ended, or is about to.
    is_over: Atomic<bool>,
    /// First writes to protected pages.
    pub(crate) faults: Counter,
    /// System calls that wrote.
    pub(crate) written: Counter,
    /// Pages reported by a call that cleans.
    pub(crate) cleaned: Counter,
    /// Those of them that stay in the log.
    pub(crate) held: Counter,
}

/// The right to read the log and to change it, which one has at a time.
pub(crate) struct LogReader<'a> {
    tracking: &'a Tracking,
    _lock: MutexGuard<'a, ()>,
}

/// What a call has found of a part of the memory.
pub(crate) struct DirtyChunk {
    /// Pages in the log.
    pub(crate) dirty: ChunkBits,
    /// Those of them that are in it still, since somebody has them in hand.
    pub(crate) held: ChunkBits,
}

impl Tracking {
    /// A log of this memory in which no page is.
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

    /// Returns when a system call may begin to write to these pages. `EINTR` if the task is being killed.
    pub(super) fn admit(&self, pages: Option<PageRange>) -> Result {
        drop(self.admission.lock());
        self.copy_before_write.enter(pages)
    }

    /// These pages are about to become writable, if that is so.
    pub(super) fn log_fault(&self, fault: &WriteFault<'_>) -> bool {
        self.faults.count();
        self.log.mark(fault.pages());
        self.copy_before_write.admit_fault(fault)
    }

    /// It ends: nothing that it hears of counts any more.
    pub(super) fn end(&self) {
        self.is_over.store(true, Release);
        self.copy_before_write.end();
    }

    /// Whether it has ended, or is about to.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Acquire)
    }

    /// What writers pass.
    pub(super) fn copy_before_write(&self) -> &CopyBeforeWrite {
        &self.copy_before_write
    }

    /// A system call may have written to these pages.
    pub(super) fn log_write(&self, pages: PageRange) {
        self.written.count();
        self.log.mark(pages);
    }

    /// Has all writes to the memory logged from when this returns. `track_mappings` has all of its mappings
    /// tell of writes. On an error what has been changed is there to be changed back. Returns how many pages
    /// somebody has in hand.
    pub(crate) fn begin(
        &self,
        memory: &SharedMemory,
        track_mappings: impl FnOnce() -> Result,
    ) -> Result<u64> {
        if pages_for(memory.size()) != Some(self.all.len()) {
            // It has got another size since the log was made, and before that was sealed.
            return Err(EAGAIN);
        }
        {
            let _admission = self.admission.lock();
            memory.await_writers()?;
        }
        memory.await_mmaps()?;
        track_mappings()?;
        // Who makes a page writable now that the mappings have changed puts it into the log first.
        memory.unmap(self.all);
        // After the mappings: one that was left of a file that is closed has let go of it.
        if !memory.is_sole_writer() {
            return Err(EBUSY);
        }
        let mut nr = 0;
        for chunk in self.all.pieces(CHUNK_PAGES) {
            cond_resched_or_killed()?;
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

    /// Pages of the memory; `EINVAL` if they are not.
    pub(crate) fn range(&self, pgoff: u64, nr: u64) -> Result<PageRange> {
        PageRange::within(pgoff, nr, self.all.len()).ok_or(EINVAL)
    }

    /// How many pages are in the log.
    pub(crate) fn dirty(&self) -> u64 {
        let _reader = self.reader();
        self.log.count()
    }

    /// The right to read the log.
    pub(crate) fn reader(&self) -> LogReader<'_> {
        LogReader {
            tracking: self,
            _lock: self.reader.lock(),
        }
    }

    /// The same, if nobody has it.
    pub(crate) fn try_reader(&self) -> Option<LogReader<'_>> {
        Some(LogReader {
            tracking: self,
            _lock: self.reader.try_lock()?,
        })
    }

    /// Pages that were taken out of the log are in it again.
    pub(crate) fn mark(&self, range: PageRange) {
        self.log.mark(range);
    }

    /// The same for all that another log of this memory has.
    pub(crate) fn merge(&self, log: &PageLog) {
        for chunk in self.all.pieces(CHUNK_PAGES) {
            self.log.mark_bits(chunk, &log.peek(chunk));
        }
    }

    /// The same for those of a chunk.
    pub(crate) fn mark_bits(&self, chunk: PageRange, bits: &ChunkBits) {
        self.log.mark_bits(chunk, bits);
    }
}

impl LogReader<'_> {
    /// Those pages of `chunk`, which is within one chunk, that are in the log.
    pub(crate) fn peek(&self, chunk: PageRange) -> ChunkBits {
        self.tracking.log.peek(chunk)
    }

    /// The same, takes them out of it and protects them. `EINTR` if the task is being killed; all are in
    /// the log still.
    pub(crate) fn clean(&self, memory: &SharedMemory, chunk: PageRange) -> Result<DirtyChunk> {
        let log = &self.tracking.log;
        let dirty = log.take(chunk);
        let mut held = NO_PAGES;
        for run in runs(chunk, &dirty, GAP) {
            if let Err(e) = memory.protect(run) {
                log.mark_bits(chunk, &dirty);
                return Err(e);
            }
            // Who has a page in hand may write after this without a fault, so it is never clean.
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
