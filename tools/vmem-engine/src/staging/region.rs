// SPDX-License-Identifier: GPL-2.0-or-later
//! A region, and what is staged of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmem::{PageIndex, PageRange, PageSet, Progress};
use vmem_source::{Answer, Contents, Holes};

use crate::error::Error;
use crate::known::copy_known;
use crate::seed::Seed;
use crate::sink::Sink;
use crate::stats::{Stats, add};
use crate::target::Target;

/// A region that pages are staged in.
pub(super) struct StagedRegion {
    name: String,
    sink: Arc<dyn Sink>,
    /// Locked only while bits change: connections copy pages at the same time, and none has a page of another one.
    staged: Mutex<Staged>,
}

/// The staged pages.
struct Staged {
    data: PageSet,
    zero: PageSet,
}

impl Staged {
    fn forget(&mut self, pages: PageRange) {
        self.data.remove(pages);
        self.zero.remove(pages);
    }
}

impl StagedRegion {
    pub(super) fn new(target: &Target) -> Self {
        let none = PageSet::none_of(target.export.pages);
        Self {
            name: target.name.clone(),
            sink: Arc::clone(&target.sink),
            staged: Mutex::new(Staged {
                data: none.clone(),
                zero: none,
            }),
        }
    }

    /// These pages are not staged any more.
    pub(super) fn forget(&self, pages: PageRange) {
        self.lock().forget(pages);
    }

    /// Stages the pages of an answer. A page that cannot be staged is absent, whatever was staged of it before.
    pub(super) fn stage(&self, answer: &Answer<'_>, seed: Option<&Seed>, stats: &Stats) -> Result<(), Error> {
        let (mut fills, mut filled) = (Vec::new(), Vec::new());
        let mut staged = self.lock();
        for (range, contents) in answer.contents() {
            if contents == Contents::Same {
                // What is staged with contents stays. A page that there was no memory for, or no image, stays absent.
                staged.zero.remove(range);
                add(&stats.same, range.count());
                continue;
            }
            staged.forget(range);
            match contents {
                Contents::Data(data) => {
                    fills.push((range.first(), data));
                    filled.push(range);
                }
                Contents::Zero => staged.zero.insert(range),
                Contents::Unreadable | Contents::Known(_) | Contents::Same => {}
            }
        }
        drop(staged);
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
    fn put(&self, fills: &[(PageIndex, &[u8])], pages: &[PageRange]) -> Result<u64, Error> {
        let Progress { ranges, error, .. } = self.sink.stage(fills);
        let count = match error {
            None => pages.len(),
            // The rest is fetched when the program runs here, and the engine waits for memory.
            Some(vmem::Error::NoMemory { .. }) => ranges.min(pages.len()),
            Some(error) => return Err(Error::region("stage pages of", &self.name)(error)),
        };
        let mut staged = self.lock();
        pages[..count].iter().for_each(|range| staged.data.insert(*range));
        Ok(pages[..count].iter().map(|range| range.count()).sum())
    }

    /// Stages holes as zero pages. Nothing is written.
    pub(super) fn stage_holes(&self, holes: &Holes) {
        let mut staged = self.lock();
        for hole in &holes.ranges {
            staged.data.remove(*hole);
            staged.zero.insert(*hole);
        }
    }

    /// Marks the staged pages as present.
    pub(super) fn commit(&self) -> Result<(), Error> {
        let staged = self.lock();
        let data: Vec<_> = staged.data.runs().collect();
        let zero: Vec<_> = staged.zero.runs().collect();
        let mark = |progress: Progress| progress.complete().map_err(Error::region("mark staged pages of", &self.name));
        mark(self.sink.mark_cached(&data))?;
        mark(self.sink.mark_zero(&zero))?;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Staged> {
        // A thread that panicked sends no result, and without all results nothing is committed.
        self.staged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
