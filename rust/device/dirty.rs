// SPDX-License-Identifier: GPL-2.0

//! DIRTY: reads a dirty log.

use super::tracking::DirtyChunk;
use crate::{
    model::{
        dirty_log::{
            count,
            runs,
            ChunkBits,
            CHUNK_PAGES,
            NO_PAGES, //
        },
        range::PageRange, //
    },
    sys::{
        task::cond_resched_or_killed,
        uapi::{
            vmem_dirty,
            vmem_range,
            UserArg,
            UserArray,
            UserBits,
            VMEM_DIRTY_CLEAN,
            VMEM_DIRTY_RANGES, //
        }, //
    }, //
};
use kernel::prelude::*;

/// A log that can be read.
pub(crate) trait ReadableLog {
    /// Whether pages can be removed from the log. If not, only the first two functions are called.
    const CLEANS: bool;

    /// Pages of the memory. `EINVAL` if there are no such pages.
    fn range(&self, pgoff: u64, nr: u64) -> Result<PageRange>;

    /// The pages of `chunk`, which is within one chunk, that are in the log.
    fn peek(&self, chunk: PageRange) -> ChunkBits;

    /// The same, but removes the pages from the log and protects them. `EINTR` if the task is being
    /// killed; all pages are still in the log then.
    fn clean(&self, _chunk: PageRange) -> Result<DirtyChunk> {
        Err(EINVAL)
    }

    /// Adds pages to the log again.
    fn mark(&self, _range: PageRange) {}

    /// The same for the pages in `bits` of a chunk.
    fn mark_bits(&self, _chunk: PageRange, _bits: &ChunkBits) {}

    /// Counts pages that have been reported and are clean now.
    fn count_cleaned(&self, _nr: u64) {}
}

/// Where the pages are written to.
enum Output {
    Bitmap(UserBits),
    Ranges {
        to: UserArray,
        found: KVVec<vmem_range>,
    },
}

impl Output {
    fn new(call: &vmem_dirty) -> Result<Self> {
        if call.flags & VMEM_DIRTY_RANGES != 0 {
            let to = UserArray::new(call.out, call.nr)?;
            let found = KVVec::with_capacity(to.len(), GFP_KERNEL)?;
            return Ok(Self::Ranges { to, found });
        }
        if call.nr != 0 || call.pgoff % 64 != 0 {
            return Err(EINVAL);
        }
        let words = usize::try_from(call.nr_pages.div_ceil(64)).map_err(|_| EINVAL)?;
        Ok(Self::Bitmap(UserBits::new(call.out, words)?))
    }

    /// Adds the pages of `chunk` that are in `bits`. Returns the first page that does not fit, if
    /// there is one.
    fn add(&mut self, chunk: PageRange, bits: &ChunkBits) -> Result<Option<u64>> {
        match self {
            Self::Bitmap(out) => {
                let first = (chunk.start() % CHUNK_PAGES / 64) as usize;
                let words = chunk.len().div_ceil(64) as usize;
                for word in bits.iter().skip(first).take(words) {
                    out.write(*word)?;
                }
                Ok(None)
            }
            Self::Ranges { to, found } => {
                for run in runs(chunk, bits, 0) {
                    let is_full = found.len() == to.len();
                    let next = vmem_range {
                        pgoff: run.start(),
                        nr_pages: run.len(),
                    };
                    match found.last_mut() {
                        Some(last) if last.pgoff + last.nr_pages == next.pgoff => {
                            last.nr_pages += next.nr_pages;
                        }
                        _ if is_full => return Ok(Some(run.start())),
                        _ => found.push(next, GFP_KERNEL)?,
                    }
                }
                Ok(None)
            }
        }
    }

    /// Writes out the ranges. Returns how many there are.
    fn finish(self) -> Result<u32> {
        match self {
            Self::Bitmap(_) => Ok(0),
            Self::Ranges { to, found } => {
                to.write(&found)?;
                Ok(found.len() as u32)
            }
        }
    }
}

/// DIRTY.
pub(crate) fn dirty<L: ReadableLog>(log: &L, arg: UserArg) -> Result {
    let mut call: vmem_dirty = arg.read()?;
    if call.flags & !(VMEM_DIRTY_CLEAN | VMEM_DIRTY_RANGES) != 0 || call.reserved != 0 {
        return Err(EINVAL);
    }
    let cleans = call.flags & VMEM_DIRTY_CLEAN != 0;
    if cleans && !L::CLEANS {
        return Err(EINVAL);
    }
    let range = log.range(call.pgoff, call.nr_pages)?;
    let mut output = Output::new(&call)?;
    (call.done, call.dirty, call.held) = (0, 0, 0);
    // If the result cannot be written, do not start.
    arg.write(&call)?;

    let mut gather = || -> Result {
        for chunk in range.pieces(CHUNK_PAGES) {
            cond_resched_or_killed()?;
            let found = if cleans {
                log.clean(chunk)?
            } else {
                DirtyChunk {
                    dirty: log.peek(chunk),
                    held: NO_PAGES,
                }
            };
            let full = output.add(chunk, &found.dirty).inspect_err(|_| {
                if cleans {
                    log.mark_bits(chunk, &found.dirty);
                }
            })?;
            let stop = full.unwrap_or(chunk.end());
            if let Ok(rest) = log.range(stop, chunk.end() - stop) {
                // These are left for the next call.
                if cleans {
                    log.mark_bits(rest, &found.dirty);
                }
            }
            call.done += stop - chunk.start();
            if let Ok(reported) = log.range(chunk.start(), stop - chunk.start()) {
                call.dirty += count(reported, &found.dirty);
                call.held += count(reported, &found.held);
            }
            if full.is_some() {
                break;
            }
        }
        Ok(())
    };
    let gathered = gather();
    let reported = output.finish().and_then(|nr| {
        call.nr = nr;
        arg.write(&call)
    });
    if cleans {
        if reported.is_err() || gathered == Err(EFAULT) {
            // The caller may not have read any of the result.
            if let Ok(done) = log.range(call.pgoff, call.done) {
                log.mark(done);
            }
        } else {
            log.count_cleaned(call.dirty);
        }
    }
    gathered.and(reported)
}
