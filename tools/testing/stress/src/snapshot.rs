// SPDX-License-Identifier: GPL-2.0-or-later
//! A snapshot of a region that is tracked. A page that was clean at the instant is in it as the tracker has copied it, and any other one stays as
//! it was first read, whatever programs and the machine do meanwhile. A page that was absent comes as its source has it.

use std::io;
use std::ops::Range;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use vmem::{Adopted, Error, PAGE_SIZE, PageIndex, PageRange, SnapshotOptions, Tracking};
use vmem_functional_sys::AreaBuilder;

use crate::board::{Board, Mark, Note};
use crate::image::Image;
use crate::memory::{Memory, range};
use crate::numbers::Numbers;
use crate::reader::{Reader, in_a_child};
use crate::replica::Replica;

/// How many pages copies may take; 0 is no limit.
const LIMITS: [usize; 5] = [0, 0, 0, 200, 5];

/// How long the memory of a process that has ended may be there: KSM, swapoff and those who move pages hold it.
const LOOKED_AT: Duration = Duration::from_secs(30);

/// One that is there, and what is known of it.
pub(crate) struct Snapshot<'a> {
    board: &'a Board,
    actor: usize,
    taken: vmem::Snapshot,
    clean: bool,
    once: bool,
    image: Image<'a>,
    failed: bool,
}

impl<'a> Snapshot<'a> {
    /// Takes one, of whatever kind; [`None`] if that cannot be done just now. `replica` is what the tracker knows of pages that are clean; what the
    /// snapshot takes out of the log is not known any more.
    pub(crate) fn take(
        (board, actor): (&'a Board, usize),
        memory: &Memory<'_>,
        (adopted, tracking): (&Adopted, &Tracking),
        replica: &mut Replica,
        numbers: &mut Numbers,
    ) -> anyhow::Result<Option<Self>> {
        let (clean, once) = (numbers.once_in(2), numbers.once_in(3));
        let limit = (numbers.pick(&LIMITS) * PAGE_SIZE) as u64;
        let options = SnapshotOptions::default().clean(clean).once(once).limit(limit);
        let since = Instant::now();
        let before = adopted.present_map().context("which pages are present")?;
        let taken = loop {
            match tracking.snapshot(options) {
                // Somebody writes by a descriptor all the time.
                Err(Error::NeverAtRest | Error::NoMemory { .. }) => return Ok(None),
                // The one before has been mapped by a process that has ended, whose memory somebody looks at still.
                Err(Error::HasSnapshot) if since.elapsed() < LOOKED_AT => {
                    board.count(actor, Note::Steps)?;
                    sleep(Duration::from_millis(1));
                }
                other => break other.context("snapshot")?,
            }
        };
        board.count(actor, Note::Snapshots)?;
        let log = match taken.increment_map(taken.pages()).complete() {
            // It has reached its limit already. What it had taken out of the log is in it again.
            Err(Error::SnapshotFailed) => {
                board.count(actor, Note::Failed)?;
                return Ok(None);
            }
            other => other.context("the log of a snapshot")?,
        };
        // What is absent now was so at the instant.
        let after = taken.present_map().context("which pages of a snapshot are present")?;
        if after.present() < taken.pages().count() {
            board.count(actor, Note::SnapshotsIncomplete)?;
        }
        let known = replica.only(|page| PageIndex::new(page).is_some_and(|page| !log.contains(page)));
        if clean {
            log.runs()
                .flat_map(PageRange::iter)
                .for_each(|page| replica.forget(page.get()));
        }
        Ok(Some(Self {
            board,
            actor,
            taken,
            clean,
            once,
            image: Image::new((board, actor), memory, known, (&before, &after)),
            failed: false,
        }))
    }

    /// Something that a reader does.
    pub(crate) fn step(&mut self, replica: &mut Replica, numbers: &mut Numbers) -> anyhow::Result<()> {
        let run = numbers.run(self.board.pages(), 16);
        match numbers.below(10) {
            0..6 => run.into_iter().try_for_each(|page| self.read(page as u64, replica)),
            6..8 => self.read_in_a_child(run, numbers),
            // All that needs no waiting.
            8 if numbers.once_in(3) => {
                let present = self.taken.present_map().context("which pages of a snapshot are present")?;
                let mut pages = present.runs().flat_map(PageRange::iter);
                pages.try_for_each(|page| self.read(page.get(), replica))
            }
            _ => self.finish(run),
        }
    }

    /// Fails unless it has failed, as its log has ended.
    pub(crate) fn is_over(&mut self) -> anyhow::Result<()> {
        match self.taken.read_at(&mut [0; 8], 0) {
            Err(Error::SnapshotFailed) => self.see_failed(),
            other => bail!("a snapshot whose log has ended: {other:?}"),
        }
    }

    fn see_failed(&mut self) -> anyhow::Result<()> {
        let figures = self.taken.info()?;
        ensure!(figures.failed, "it has failed, and says: {figures:?}");
        if !self.failed {
            self.board.count(self.actor, Note::Failed)?;
            self.failed = true;
        }
        Ok(())
    }

    fn finish(&mut self, run: Range<usize>) -> anyhow::Result<()> {
        match self.taken.done(range(&run)?) {
            Err(Error::SnapshotFailed) => return self.see_failed(),
            other => other.context("done")?,
        }
        run.for_each(|page| self.image.insert_done(page as u64));
        Ok(())
    }

    /// Reads a page. If it is absent, that waits for the daemon.
    fn read(&mut self, page: u64, replica: &mut Replica) -> anyhow::Result<()> {
        self.board.count(self.actor, Note::Steps)?;
        let mut contents = vec![0; PAGE_SIZE];
        match self.taken.read_exact_at(&mut contents, page * PAGE_SIZE as u64) {
            Ok(()) => ensure!(!self.failed && !self.image.is_done(page), "page {page} can be read"),
            Err(Error::PageDone) => {
                ensure!(
                    self.image.is_done(page) || self.image.may_miss(page, Mark::Zero)?,
                    "page {page} is not done and was not discarded, and cannot be read"
                );
                self.image.insert_done(page);
                return Ok(());
            }
            Err(Error::PageUnreadable) => {
                ensure!(
                    self.image.may_miss(page, Mark::Unreadable)?,
                    "page {page} cannot be had, which nobody has made unreadable"
                );
                return Ok(());
            }
            Err(Error::SnapshotFailed) => return self.see_failed(),
            // What was swapped out cannot be brought in.
            Err(Error::NoMemory { .. }) => return Ok(()),
            Err(error) => return Err(error).context("reading a snapshot"),
        }
        if self.once {
            self.image.insert_done(page);
        }
        if self.clean {
            // An increment: what was written later is in the log.
            replica.insert_if_unknown(page, &contents);
        }
        self.image.insert(page, contents).with_context(|| format!("{:?}", self.taken))
    }

    /// A child maps it and looks at these pages.
    fn read_in_a_child(&mut self, run: Range<usize>, numbers: &mut Numbers) -> anyhow::Result<()> {
        match in_a_child(numbers, || self.look_at_a_mapping(run.clone()))? {
            Reader::Right => Ok(()),
            // A page that was discarded before it came, or cannot be had.
            Reader::Bus if self.image.may_miss_any(run)? => Ok(()),
            Reader::Bus => self.see_failed(),
        }
    }

    fn look_at_a_mapping(&self, run: Range<usize>) -> anyhow::Result<()> {
        let map = AreaBuilder::default().read_only().map(&self.taken, run.start, run.len());
        let map = match map {
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => return Ok(()),
            other => other.context("mapping a snapshot")?,
        };
        for (at, page) in run.enumerate().filter(|(_, page)| !self.image.is_done(*page as u64)) {
            let contents: Vec<u8> = map.page(at).into_iter().flat_map(u64::to_ne_bytes).collect();
            self.image.compare(page as u64, &contents)?;
        }
        Ok(())
    }
}
