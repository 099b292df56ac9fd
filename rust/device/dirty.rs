// SPDX-License-Identifier: GPL-2.0

//! DIRTY: the log is read.

use super::tracked::Tracked;
use crate::{
    model::{
        dirty_log::{
            count,
            runs,
            ChunkBits,
            CHUNK_PAGES, //
        },
        range::PageRange, //
    },
    sys::{
        task::breathe,
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

/// Where what is found goes.
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

    /// Adds the pages of `chunk` that are in `bits`. Returns the first page for which there was no room,
    /// if there is one.
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

    /// Hands over what has been gathered. Returns how many ranges.
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
pub(crate) fn dirty(tracked: &Tracked, arg: UserArg) -> Result {
    let mut call: vmem_dirty = arg.read()?;
    if call.flags & !(VMEM_DIRTY_CLEAN | VMEM_DIRTY_RANGES) != 0 || call.reserved != 0 {
        return Err(EINVAL);
    }
    let tracking = tracked.tracking();
    let range = tracking.range(call.pgoff, call.nr_pages)?;
    let mut output = Output::new(&call)?;
    let cleans = call.flags & VMEM_DIRTY_CLEAN != 0;
    (call.done, call.dirty, call.held) = (0, 0, 0);
    // What cannot be told is not looked for.
    arg.write(&call)?;

    let mut gather = || -> Result {
        for chunk in range.pieces(CHUNK_PAGES) {
            breathe()?;
            let found = if cleans {
                tracked.clean(chunk)?
            } else {
                tracking.peek(chunk)
            };
            let full = output.add(chunk, &found.dirty).inspect_err(|_| {
                if cleans {
                    tracking.put_back_bits(chunk, &found.dirty);
                }
            })?;
            let stop = full.unwrap_or(chunk.end());
            if let Ok(rest) = tracking.range(stop, chunk.end() - stop) {
                // For the next call.
                if cleans {
                    tracking.put_back_bits(rest, &found.dirty);
                }
            }
            call.held += found.held;
            call.done += stop - chunk.start();
            if let Ok(told) = tracking.range(chunk.start(), stop - chunk.start()) {
                call.dirty += count(told, &found.dirty);
            }
            if full.is_some() {
                break;
            }
        }
        Ok(())
    };
    let gathered = gather();
    let told = output.finish().and_then(|nr| {
        call.nr = nr;
        arg.write(&call)
    });
    if cleans {
        if told.is_err() || gathered == Err(EFAULT) {
            // The caller cannot be relied on to know of any.
            if let Ok(done) = tracking.range(call.pgoff, call.done) {
                tracking.put_back(done);
            }
        } else {
            tracking.cleaned.add(call.dirty);
        }
    }
    gathered.and(told)
}
