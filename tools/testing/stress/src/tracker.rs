// SPDX-License-Identifier: GPL-2.0
//! A tracker of a region that is plain memory: it keeps a copy of it by the log of writes, and looks whether a page that the log calls clean is what
//! the copy has. Programs go on meanwhile, and the machine with all that it does to memory.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use vmem::{Adopted, Control, Error, PAGE_SIZE, PageIndex, PageRange, Region, Tracking};

use crate::board::{Board, Note};
use crate::numbers::Numbers;
use crate::snapshot::{Pages, Snapshot};

/// Up to how many milliseconds a region is tracked.
const LIFE: usize = 3000;
/// A system call that has written is heard of when it is over. So long may that take, on the slowest machine.
const HEARD: Duration = Duration::from_secs(60);

/// Tracks the region for a while, over and over. Not at all if somebody has it in a way that cannot be tracked.
pub(crate) fn run(
    (board, actor): (&Board, usize),
    (region, life): (usize, u64),
    served: &Region,
    numbers: &mut Numbers,
) -> anyhow::Result<()> {
    let adopted = match Control::open()?.adopt(served.staging()) {
        Ok(adopted) => adopted,
        // The last tracker is just going.
        Err(Error::MemoryInUse | Error::NoMemory { .. }) => return Ok(()),
        Err(error) => return Err(error).context("adopt"),
    };
    let until = Instant::now() + Duration::from_millis(numbers.below(LIFE) as u64);
    while Instant::now() < until && !board.is_over()? {
        board.count(actor, Note::Steps)?;
        let tracking = match adopted.track() {
            Ok(tracking) => tracking,
            // A mapping that was made during the conversion; an mmap() that takes long; the end of an earlier log.
            Err(Error::MappingsInUse | Error::NeverAtRest | Error::AlreadyTracked | Error::NoMemory { .. }) => {
                sleep(Duration::from_millis(1));
                continue;
            }
            Err(error) => return Err(error).context("track"),
        };
        board.count(actor, Note::Tracked)?;
        let mut tracker = Tracker {
            board,
            actor,
            region: (region, life),
            memory: served.staging(),
            adopted: &adopted,
            tracking: &tracking,
            copy: Pages::new(),
            snapshot: None,
        };
        let end = until.min(Instant::now() + Duration::from_millis(numbers.below(LIFE / 2) as u64));
        while Instant::now() < end && !board.is_over()? {
            board.count(actor, Note::Steps)?;
            tracker.step(numbers)?;
        }
        let snapshot = tracker.snapshot.take();
        if numbers.once_in(2) {
            tracking.stop().context("untrack")?;
            if let Some(mut snapshot) = snapshot {
                snapshot.is_over()?;
            }
        }
    }
    Ok(())
}

/// One log, and the copy that is kept by it.
struct Tracker<'a, 'b> {
    board: &'b Board,
    actor: usize,
    /// Which, and which of its lives.
    region: (usize, u64),
    memory: &'a File,
    adopted: &'a Adopted,
    tracking: &'a Tracking,
    /// Pages as they were read after they had been cleaned.
    copy: Pages,
    snapshot: Option<Snapshot<'b>>,
}

impl Tracker<'_, '_> {
    fn step(&mut self, numbers: &mut Numbers) -> anyhow::Result<()> {
        let pages = self.board.pages();
        let run = numbers.run(pages, 200);
        let range = PageRange::new(index(run.start as u64)?, run.len() as u64).context("a run of pages")?;
        match numbers.below(12) {
            0..3 => self.clean(range),
            3 => self.clean(self.tracking.pages()),
            4..7 => self.step_of_a_snapshot(numbers),
            _ => run.into_iter().take(32).try_for_each(|page| self.look(page as u64)),
        }
    }

    /// Takes a snapshot, or goes on with the one that there is.
    fn step_of_a_snapshot(&mut self, numbers: &mut Numbers) -> anyhow::Result<()> {
        let Some(snapshot) = &mut self.snapshot else {
            let it = (self.board, self.actor);
            self.snapshot = Snapshot::take(it, self.region, self.adopted, &mut self.copy, numbers)?;
            return Ok(());
        };
        snapshot.step(&mut self.copy, numbers)?;
        if numbers.once_in(10) {
            self.snapshot = None;
        }
        Ok(())
    }

    /// What was written is copied anew, and what is not known is copied at all.
    fn clean(&mut self, range: PageRange) -> anyhow::Result<()> {
        let dirty = match self.tracking.clean(range).complete() {
            Ok(dirty) => dirty,
            Err(Error::NoMemory { .. }) => return Ok(()),
            Err(error) => return Err(error).context("clean"),
        };
        for page in dirty.into_iter().flat_map(PageRange::iter) {
            let contents = self.read(page.get())?;
            self.copy.insert(page.get(), contents);
        }
        Ok(())
    }

    /// A page that the log calls clean is as it was when it was copied.
    fn look(&mut self, page: u64) -> anyhow::Result<()> {
        let Some(copied) = self.copy.get(&page) else {
            return Ok(());
        };
        let since = Instant::now();
        loop {
            let now = self.read(page)?;
            if now == *copied || self.is_dirty(page)? {
                break;
            }
            ensure!(
                since.elapsed() < HEARD,
                "lost write: page {page} of tracked memory is clean and not what was copied; the first difference is at byte {:?}",
                now.iter().zip(copied).position(|(now, copied)| now != copied)
            );
            self.board.count(self.actor, Note::Steps)?;
            sleep(Duration::from_millis(1));
        }
        self.board.count(self.actor, Note::CheckedClean)
    }

    fn is_dirty(&self, page: u64) -> anyhow::Result<bool> {
        let one = PageRange::new(index(page)?, 1).context("a page")?;
        Ok(!self.tracking.peek(one).complete().context("peek")?.is_empty())
    }

    fn read(&self, page: u64) -> anyhow::Result<Vec<u8>> {
        let mut contents = vec![0; PAGE_SIZE];
        self.memory
            .read_exact_at(&mut contents, page * PAGE_SIZE as u64)
            .context("reading the staging file")?;
        Ok(contents)
    }
}

fn index(page: u64) -> anyhow::Result<PageIndex> {
    PageIndex::new(page).context("a page number")
}
