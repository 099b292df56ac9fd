// SPDX-License-Identifier: GPL-2.0-or-later
//! A tracker of a region, incomplete or plain memory: it keeps a copy of it by the log of writes, and looks whether a page that the log calls clean is
//! what the copy has. Programs and daemons go on meanwhile, and the machine with all that it does to memory.

use std::ops::Range;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use vmem::{Adopted, Error, PageIndex, PageRange, PresentMap, TrackOptions, Tracking};

use crate::board::{Board, Note};
use crate::memory::{Memory, range};
use crate::numbers::Numbers;
use crate::replica::Replica;
use crate::snapshot::Snapshot;

/// Up to how many milliseconds a region is tracked.
const LIFE: usize = 3000;
/// Up to how many milliseconds a tracker in a process of its own leaves all regions alone, time and again.
const PAUSE: usize = 300;
/// A system call that has written is heard of when it is over. So long may that take, on the slowest machine.
const HEARD: Duration = Duration::from_secs(60);

/// The life of a tracker in a process of its own: until the run is over, or it dies.
pub(crate) fn run(board: &Board, actor: usize, mut numbers: Numbers) -> anyhow::Result<()> {
    while !board.is_over()? {
        board.count(actor, Note::Steps)?;
        let region = numbers.below(board.regions());
        if let Some(memory) = Memory::open(board, actor, region)? {
            track((board, actor), &memory, &mut numbers).with_context(|| format!("tracker of region {region}"))?;
        }
        sleep(Duration::from_millis(numbers.below(PAUSE) as u64));
    }
    Ok(())
}

/// Tracks the region for a while, over and over. Not at all if somebody has it in a way that cannot be tracked.
pub(crate) fn track((board, actor): (&Board, usize), memory: &Memory<'_>, numbers: &mut Numbers) -> anyhow::Result<()> {
    let Some(adopted) = memory.adopt(numbers)? else {
        return Ok(());
    };
    let until = Instant::now() + Duration::from_millis(numbers.below(LIFE) as u64);
    let goes_on = |until| anyhow::Ok(Instant::now() < until && !board.is_over()? && !memory.is_given_up()?);
    while goes_on(until)? {
        board.count(actor, Note::Steps)?;
        let fills = numbers.once_in(2);
        let options = TrackOptions::default().fills(fills).all(numbers.once_in(2));
        let tracking = match adopted.track_with(options) {
            Ok(tracking) => tracking,
            // A mapping that was made during the conversion; an mmap() that takes long; the end of an earlier log.
            Err(Error::MappingsInUse | Error::NeverAtRest | Error::AlreadyTracked | Error::NoMemory { .. }) => {
                sleep(Duration::from_millis(1));
                continue;
            }
            Err(error) => return Err(error).context("track"),
        };
        board.count(actor, Note::Tracked)?;
        board.set_note(actor, Note::Tracking, 1)?;
        let mut tracker = Tracker {
            board,
            actor,
            memory,
            adopted: &adopted,
            tracking: &tracking,
            replica: Replica::new(fills),
            incomplete: !adopted.info()?.plain,
            snapshot: None,
        };
        if tracker.incomplete {
            board.count(actor, Note::TrackedIncomplete)?;
        }
        let end = until.min(Instant::now() + Duration::from_millis(numbers.below(LIFE) as u64));
        while goes_on(end)? {
            board.count(actor, Note::Steps)?;
            tracker.step(numbers)?;
        }
        board.set_note(actor, Note::Tracking, 0)?;
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
    memory: &'a Memory<'a>,
    adopted: &'a Adopted,
    tracking: &'a Tracking,
    replica: Replica,
    /// Not yet seen to be plain memory.
    incomplete: bool,
    snapshot: Option<Snapshot<'b>>,
}

impl Tracker<'_, '_> {
    fn step(&mut self, numbers: &mut Numbers) -> anyhow::Result<()> {
        if self.incomplete && self.adopted.info()?.plain {
            self.incomplete = false;
            self.board.count(self.actor, Note::TrackedThrough)?;
        }
        let pages = self.board.pages();
        let run = numbers.run(pages, 200);
        match numbers.below(12) {
            0..3 => self.clean(range(&run)?),
            3 => self.clean(self.tracking.pages()),
            4..7 => self.step_of_a_snapshot(numbers),
            _ => self.look(run.start..run.end.min(run.start + 32)),
        }
    }

    /// Takes a snapshot, or goes on with the one that there is.
    fn step_of_a_snapshot(&mut self, numbers: &mut Numbers) -> anyhow::Result<()> {
        let Some(snapshot) = &mut self.snapshot else {
            let (it, log) = ((self.board, self.actor), (self.adopted, self.tracking));
            self.snapshot = Snapshot::take(it, self.memory, log, &mut self.replica, numbers)?;
            return Ok(());
        };
        snapshot.step(&mut self.replica, numbers)?;
        if numbers.once_in(10) {
            self.snapshot = None;
        }
        Ok(())
    }

    fn present(&self) -> anyhow::Result<PresentMap> {
        self.adopted.present_map().context("which pages are present")
    }

    /// What was written is copied anew, and what is not known is copied at all. A page that is absent has nothing to copy yet.
    fn clean(&mut self, range: PageRange) -> anyhow::Result<()> {
        let log = self.tracking.clean(range);
        match log.error {
            // What was cleaned before that is in the answer.
            None | Some(Error::NoMemory { .. }) => (),
            Some(error) => return Err(error).context("clean"),
        }
        // Those that come after this are written to after they were cleaned.
        let present = self.present()?;
        for page in log.pages.into_iter().flat_map(PageRange::iter) {
            self.replica.forget(page.get());
            if present.contains(page) {
                self.replica.insert(page.get(), self.memory.read(page.get())?);
            }
        }
        self.replica.see(&present);
        Ok(())
    }

    fn look(&mut self, run: Range<usize>) -> anyhow::Result<()> {
        let present = self.present()?;
        for page in range(&run)?.iter() {
            if self.replica.expects(page.get()) && present.contains(page) {
                self.look_at_one_that_came(page)?;
            }
            self.look_at_one_that_is_clean(page)?;
        }
        Ok(())
    }

    /// A page that was absent, and is present now, is in the log.
    fn look_at_one_that_came(&mut self, page: PageIndex) -> anyhow::Result<()> {
        ensure!(
            self.is_heard_of(|| self.is_dirty(page))?,
            "lost page: page {page} has come while the region was tracked, and is not in the log of pages that come"
        );
        self.replica.expect_no_more(page.get());
        self.board.count(self.actor, Note::CheckedCome)
    }

    /// A page that the log calls clean is as it was when it was copied.
    fn look_at_one_that_is_clean(&self, page: PageIndex) -> anyhow::Result<()> {
        let Some(copied) = self.replica.get(page.get()) else {
            return Ok(());
        };
        let mut now = Vec::new();
        let is_right = self.is_heard_of(|| {
            now = self.memory.read(page.get())?;
            Ok(now == *copied || self.is_dirty(page)?)
        })?;
        ensure!(
            is_right,
            "lost write: page {page} of tracked memory is clean and not what was copied; the first difference is at byte {:?}",
            now.iter().zip(copied).position(|(now, copied)| now != copied)
        );
        if self.incomplete {
            self.board.count(self.actor, Note::CheckedCleanIncomplete)?;
        }
        self.board.count(self.actor, Note::CheckedClean)
    }

    /// Whether this becomes true while a system call may be under way.
    fn is_heard_of(&self, mut condition: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<bool> {
        let since = Instant::now();
        loop {
            // Before the look: this process may have been stopped for longer.
            let is_last = since.elapsed() >= HEARD;
            match condition()? {
                true => return Ok(true),
                false if is_last => return Ok(false),
                false => (),
            }
            self.board.count(self.actor, Note::Steps)?;
            sleep(Duration::from_millis(1));
        }
    }

    fn is_dirty(&self, page: PageIndex) -> anyhow::Result<bool> {
        let one = PageRange::new(page, 1).context("a page")?;
        Ok(!self.tracking.peek(one).complete().context("peek")?.is_empty())
    }
}
