// SPDX-License-Identifier: GPL-2.0-or-later
//! A daemon: serves one region, in whatever way, tracks it meanwhile, converts it in the end, and tracks it then.

use std::os::unix::fs::FileExt;
use std::process::exit;
use std::thread::{self, Scope, ScopedJoinHandle, sleep};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::fs::{FallocateFlags, fallocate};
use vmem::{Control, Error, Fill, PAGE_SIZE, PageIndex, Region, RegionBuilder};

use crate::board::{Board, Mark, Note};
use crate::hands::{is_huge, name};
use crate::memory::{Memory, range};
use crate::model::Page;
use crate::numbers::Numbers;
use crate::tracker;

/// The status of a daemon that has converted its region.
pub(crate) const CONVERTED: i32 = 10;
/// Steps between two times that a daemon tracks its region itself.
const TRACKED: usize = 60;

struct Daemon<'a> {
    board: &'a Board,
    region: usize,
    life: u64,
    served: &'a Region,
    numbers: Numbers,
}

/// The thread in which a daemon tracks its region: a program may hold the lock that this takes while it waits for a page, so the daemon
/// goes on serving.
type Thread<'scope> = ScopedJoinHandle<'scope, anyhow::Result<()>>;

/// Attaches to the region, or makes it.
fn attach(board: &Board, region: usize) -> anyhow::Result<Option<Region>> {
    let control = Control::open()?;
    match control.attach(&name(region)) {
        Ok(served) => return Ok(Some(served)),
        Err(Error::NoSuchRegion) => (),
        // The last one is just going.
        Err(Error::DaemonAttached) => return Ok(None),
        Err(error) => return Err(error).context("attach"),
    }
    let builder = RegionBuilder::new((board.pages() * PAGE_SIZE) as u64).name(name(region));
    let builder = if is_huge(region) { builder.huge() } else { builder };
    match builder.create(&control) {
        Ok(served) => Ok(Some(served)),
        Err(Error::NameTaken) => Ok(None),
        Err(error) => Err(error).context("create"),
    }
}

/// A daemon's life: until its region is plain memory, the run is over, or it dies. Returns its exit status.
pub(crate) fn run(board: &Board, actor: usize, region: usize, numbers: Numbers) -> anyhow::Result<i32> {
    let served = loop {
        board.count(actor, Note::Steps)?;
        if let Some(served) = attach(board, region)? {
            break served;
        }
        sleep(Duration::from_millis(1));
    };
    served.ready()?;
    let daemon = Daemon {
        board,
        region,
        life: board.life(region)?,
        served: &served,
        numbers,
    };
    thread::scope(|scope| {
        let lived = daemon.live(actor, scope);
        if let Err(error) = &lived {
            // Its thread may wait for a page, which nobody brings any more.
            eprintln!("vmem-stress: daemon of region {region}: {error:#}");
            exit(1);
        }
        lived
    })
}

fn join(thread: Thread<'_>) -> anyhow::Result<()> {
    match thread.join() {
        Ok(tracked) => tracked.context("tracker in a thread"),
        Err(_) => bail!("the tracker has panicked"),
    }
}

fn index(page: usize) -> anyhow::Result<PageIndex> {
    PageIndex::new(page as u64).context("a page number")
}

/// No memory is no mistake.
fn or_no_memory<T: Default>(result: Result<T, Error>) -> anyhow::Result<T> {
    match result {
        Err(Error::NoMemory { .. }) => Ok(T::default()),
        other => Ok(other?),
    }
}

impl<'a> Daemon<'a> {
    /// Serves its region, and tracks it in a thread now and then. In the end it tracks plain memory.
    fn live<'scope>(mut self, actor: usize, scope: &'scope Scope<'scope, 'a>) -> anyhow::Result<i32> {
        let mut thread: Option<Thread<'scope>> = None;
        loop {
            self.board.count(actor, Note::Steps)?;
            match thread.take() {
                Some(thread) if thread.is_finished() => join(thread)?,
                None if self.board.is_over()? => return Ok(0),
                None if self.numbers.once_in(TRACKED) => thread = self.track_in(scope),
                other => thread = other,
            }
            if self.step(thread.is_some())? {
                break;
            }
        }
        let Some(thread) = thread else {
            let memory = Memory::of_daemon(self.board, (self.region, self.life), self.served);
            tracker::track((self.board, actor), &memory, &mut self.numbers).context("tracker")?;
            return Ok(CONVERTED);
        };
        while !thread.is_finished() {
            self.board.count(actor, Note::Steps)?;
            sleep(Duration::from_millis(1));
        }
        join(thread)?;
        Ok(CONVERTED)
    }

    /// Starts the thread; [`None`] if there is no memory for one.
    fn track_in<'scope>(&mut self, scope: &'scope Scope<'scope, 'a>) -> Option<Thread<'scope>> {
        let memory = Memory::of_daemon(self.board, (self.region, self.life), self.served);
        let (board, actor) = (self.board, self.board.thread_of_daemon(self.region));
        let mut numbers = self.numbers.branch();
        let track = move || tracker::track((board, actor), &memory, &mut numbers);
        thread::Builder::new().spawn_scoped(scope, track).ok()
    }

    fn page(&self, page: usize) -> Page {
        Page {
            region: self.region,
            life: self.life,
            page,
        }
    }

    /// Whether the region has been converted. That comes more often while its own thread tracks it.
    fn step(&mut self, tracked: bool) -> anyhow::Result<bool> {
        let pages = self.board.pages();
        let max = 1 + self.numbers.below(64);
        let requests = match self.served.next_requests_timeout(max, Duration::from_millis(2)) {
            // The last daemon has converted it, and died before it could say so.
            Err(Error::Plain) => return Ok(true),
            other => other?,
        };
        for wanted in requests {
            // Sometimes it forgets: the next daemon gets it again.
            if !self.numbers.once_in(300) {
                self.answer(wanted.get() as usize)?;
            }
        }
        let run = self.numbers.run(pages, 40);
        match self.numbers.below(24) {
            0..6 => self.fill(run)?,
            6..8 => {
                let _mapped = or_no_memory(self.served.make_pages_present(&[range(&run)?]).complete())?;
            }
            8 if self.numbers.once_in(4) => {
                // Whoever writes to a hole of the staging file by himself knows what he does.
                let page = run.start;
                self.board.mark(self.region, page, Mark::Zero)?;
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(self.served.staging(), flags, (page * PAGE_SIZE) as u64, PAGE_SIZE as u64).context("fallocate")?;
            }
            9 if self.numbers.once_in(if tracked { 4 } else { 12 }) => return self.complete(),
            10 => {
                let info = self.served.info()?;
                ensure!(info.attached, "a daemon is not attached: {info:?}");
            }
            11 | 12 => self.stage(run)?,
            _ => (),
        }
        Ok(false)
    }

    fn answer(&mut self, page: usize) -> anyhow::Result<()> {
        let one = [range(&(page..page + 1))?];
        if self.page(page).is_staged() {
            // It is written by nobody else, here or in another life of this daemon.
            if !self.served.present_map()?.contains(index(page)?) {
                self.served
                    .staging()
                    .write_all_at(&self.page(page).bytes(), (page * PAGE_SIZE) as u64)
                    .context("writing to the staging file")?;
                self.served.mark_cached(&one).complete()?;
            }
            return Ok(());
        }
        match self.numbers.below(60) {
            0 => {
                self.board.mark(self.region, page, Mark::Zero)?;
                self.served.mark_zero(&one).complete()?;
            }
            1 if self.numbers.once_in(3) => {
                self.board.mark(self.region, page, Mark::Unreadable)?;
                self.served.mark_unreadable(&one).complete()?;
            }
            _ => self.fill(page..page + 1)?,
        }
        Ok(())
    }

    fn fill(&self, run: std::ops::Range<usize>) -> anyhow::Result<()> {
        let bytes: Vec<u8> = run.clone().flat_map(|page| self.page(page).bytes()).collect();
        let _changed = or_no_memory(self.served.fill(&[Fill::new(index(run.start)?, &bytes)?]).complete())?;
        Ok(())
    }

    /// Stages wrong contents, then the right ones, and marks the pages. A daemon that dies in between leaves contents that nobody may see.
    fn stage(&self, run: std::ops::Range<usize>) -> anyhow::Result<()> {
        let first = index(run.start)?;
        let stale: Vec<u8> = run.clone().flat_map(|page| self.page(page + 1).bytes()).collect();
        let _staged = or_no_memory(self.served.stage(&[Fill::new(first, &stale)?]).complete())?;
        let right: Vec<u8> = run.clone().flat_map(|page| self.page(page).bytes()).collect();
        match self.served.stage(&[Fill::new(first, &right)?]).complete() {
            Ok(_) => {
                self.served.mark_cached(&[range(&run)?]).complete()?;
                Ok(())
            }
            Err(Error::NoMemory { .. }) => Ok(()),
            Err(error) => Err(error).context("stage"),
        }
    }

    /// Brings all that is missing, and converts the region.
    fn complete(&self) -> anyhow::Result<bool> {
        let pages = self.board.pages();
        for start in (0..pages).step_by(64) {
            self.fill(start..(start + 64).min(pages))?;
        }
        match self.served.make_vma_anonymous() {
            Ok(()) => Ok(true),
            // Not everything could be filled, for want of memory.
            Err(Error::PagesAbsent | Error::NoMemory { .. }) => Ok(false),
            Err(error) => Err(error).context("conversion"),
        }
    }
}
