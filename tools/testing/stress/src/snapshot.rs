// SPDX-License-Identifier: GPL-2.0
//! A snapshot of a region that is tracked. A page that was clean at the instant is in it as the tracker has copied it, and any other one stays as
//! it was first read, whatever programs and the machine do meanwhile.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::io::Errno;
use rustix::process::{Signal, set_parent_process_death_signal};
use vmem::{Adopted, PAGE_SIZE};
use vmem_functional_sys::{AreaBuilder, End, fork};
use vmem_sys::{VMEM_SNAPSHOT_CLEAN, VMEM_SNAPSHOT_ONCE, calls};

use crate::board::{Board, Note};
use crate::model::Page;
use crate::numbers::Numbers;

/// Contents of pages.
pub(crate) type Pages = HashMap<u64, Vec<u8>>;

/// How many pages copies may take; 0 is no limit.
const LIMITS: [usize; 5] = [0, 0, 0, 200, 5];

/// How long the memory of a process that has ended may be there: KSM, swapoff and those who move pages hold it.
const LOOKED_AT: Duration = Duration::from_secs(30);

/// One that is there, and what is known of it.
pub(crate) struct Snapshot<'a> {
    board: &'a Board,
    actor: usize,
    region: usize,
    life: u64,
    file: File,
    flags: u32,
    known: Pages,
    done: HashSet<u64>,
    failed: bool,
}

impl<'a> Snapshot<'a> {
    /// Takes one, of whatever kind; [`None`] if that cannot be done just now. `copy` is what the tracker knows of pages that are clean; what the
    /// snapshot takes out of the log is not known any more.
    pub(crate) fn take(
        (board, actor): (&'a Board, usize),
        (region, life): (usize, u64),
        adopted: &Adopted,
        copy: &mut Pages,
        numbers: &mut Numbers,
    ) -> anyhow::Result<Option<Self>> {
        let flags = numbers.pick(&[0, VMEM_SNAPSHOT_CLEAN]) | numbers.pick(&[0, 0, VMEM_SNAPSHOT_ONCE]);
        let limit = (numbers.pick(&LIMITS) * PAGE_SIZE) as u64;
        let since = Instant::now();
        let taken = loop {
            match calls::snapshot(&[adopted.as_fd()], flags, limit) {
                // Somebody writes by a descriptor all the time.
                Err(Errno::AGAIN | Errno::NOMEM) => return Ok(None),
                // The one before has been mapped by a process that has ended, whose memory somebody looks at still.
                Err(Errno::BUSY) if since.elapsed() < LOOKED_AT => {
                    board.count(actor, Note::Steps)?;
                    sleep(Duration::from_millis(1));
                }
                other => break other.context("snapshot")?,
            }
        };
        let file = File::from(taken.images.into_iter().next().context("an image")?);
        board.count(actor, Note::Snapshots)?;
        let pages = board.pages() as u64;
        let mut log = vec![0u64; pages.div_ceil(64) as usize];
        let logged = calls::dirty_bitmap(file.as_fd(), 0, pages, false, &mut log);
        logged.error.map_or(Ok(()), Err).context("the log of a snapshot")?;
        let was_clean = |page: u64| (log[page as usize / 64] >> (page % 64)) & 1 == 0;
        let known = copy.iter().filter(|(page, _)| was_clean(**page));
        let known = known.map(|(page, contents)| (*page, contents.clone())).collect();
        if flags & VMEM_SNAPSHOT_CLEAN != 0 {
            copy.retain(|page, _| was_clean(*page));
        }
        Ok(Some(Self {
            board,
            actor,
            region,
            life,
            file,
            flags,
            known,
            done: HashSet::new(),
            failed: false,
        }))
    }

    /// Something that a reader does.
    pub(crate) fn step(&mut self, copy: &mut Pages, numbers: &mut Numbers) -> anyhow::Result<()> {
        let run = numbers.run(self.board.pages(), 16);
        match numbers.below(10) {
            0..6 => run.into_iter().try_for_each(|page| self.read(page as u64, copy)),
            6..8 => self.read_in_a_child(run, numbers),
            8 if numbers.once_in(3) => (0..self.board.pages()).try_for_each(|page| self.read(page as u64, copy)),
            _ => {
                calls::snapshot_done(self.file.as_fd(), run.start as u64, run.len() as u64).context("done")?;
                self.done.extend(run.map(|page| page as u64));
                Ok(())
            }
        }
    }

    /// Fails unless it has failed, as its log has ended.
    pub(crate) fn is_over(&mut self) -> anyhow::Result<()> {
        match self.file.read_exact_at(&mut [0; 8], 0) {
            Err(error) if is(&error, Errno::STALE) => self.see_failed(),
            other => bail!("a snapshot whose log has ended: {other:?}"),
        }
    }

    fn see_failed(&mut self) -> anyhow::Result<()> {
        let info = calls::get_snapshot(self.file.as_fd())?;
        ensure!(info.failed == 1, "it has failed, and says: {info:?}");
        if !self.failed {
            self.board.count(self.actor, Note::Failed)?;
            self.failed = true;
        }
        Ok(())
    }

    fn read(&mut self, page: u64, copy: &mut Pages) -> anyhow::Result<()> {
        let mut contents = vec![0; PAGE_SIZE];
        match self.file.read_exact_at(&mut contents, page * PAGE_SIZE as u64) {
            Ok(()) => ensure!(!self.failed && !self.done.contains(&page), "page {page} can be read"),
            Err(error) if is(&error, Errno::NODATA) => {
                ensure!(self.done.contains(&page), "page {page} is not done, and cannot be read");
                return Ok(());
            }
            Err(error) if is(&error, Errno::STALE) => return self.see_failed(),
            // What was swapped out cannot be brought in.
            Err(error) if is(&error, Errno::NOMEM) => return Ok(()),
            Err(error) => return Err(error).context("reading a snapshot"),
        }
        if self.flags & VMEM_SNAPSHOT_ONCE != 0 {
            self.done.insert(page);
        }
        self.compare(page, &contents)?;
        if self.flags & VMEM_SNAPSHOT_CLEAN != 0 {
            // An increment: what was written later is in the log.
            copy.entry(page).or_insert_with(|| contents.clone());
        }
        self.known.insert(page, contents);
        Ok(())
    }

    fn compare(&self, page: u64, contents: &[u8]) -> anyhow::Result<()> {
        let words: Vec<u64> = contents
            .chunks_exact(8)
            .map(|word| word.iter().rev().fold(0, |value, byte| (value << 8) | u64::from(*byte)))
            .collect();
        let it = Page {
            region: self.region,
            life: self.life,
            page: page as usize,
        };
        it.check(self.board, usize::MAX, &words, None).context("an image")?;
        let Some(known) = self.known.get(&page) else {
            return Ok(());
        };
        ensure!(
            contents == known,
            "wrong image: page {page} of a snapshot (flags {}) is not what it was; the first difference is at byte {:?}",
            self.flags,
            contents.iter().zip(known).position(|(now, known)| now != known)
        );
        self.board.count(self.actor, Note::CheckedImage)
    }

    /// A child maps it and looks at these pages. Sometimes it is killed.
    fn read_in_a_child(&mut self, run: Range<usize>, numbers: &mut Numbers) -> anyhow::Result<()> {
        let kill = numbers.once_in(3);
        let child = fork(|| {
            let looked = set_parent_process_death_signal(Some(Signal::KILL))
                .map_err(Into::into)
                .and_then(|()| self.look_at_a_mapping(run));
            looked.map_or_else(
                |error| {
                    eprintln!("vmem-stress: a reader of a snapshot: {error:#}");
                    1
                },
                |()| 0,
            )
        });
        let mut child = match child {
            Err(error) if matches!(error.kind(), io::ErrorKind::OutOfMemory | io::ErrorKind::WouldBlock) => return Ok(()),
            other => other.context("fork")?,
        };
        if kill {
            sleep(Duration::from_micros(numbers.below(3000) as u64));
            child.kill(Signal::KILL.as_raw())?;
        }
        match child.wait()? {
            End::Exited(0) => Ok(()),
            End::Killed(9) if kill => Ok(()),
            End::Killed(7) => self.see_failed(),
            end => bail!("a reader of a snapshot ended with {end:?}"),
        }
    }

    fn look_at_a_mapping(&self, run: Range<usize>) -> anyhow::Result<()> {
        let map = AreaBuilder::default().read_only().map(&self.file, run.start, run.len());
        let map = match map {
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => return Ok(()),
            other => other.context("mapping a snapshot")?,
        };
        for (at, page) in run.enumerate().filter(|(_, page)| !self.done.contains(&(*page as u64))) {
            let contents: Vec<u8> = map.page(at).into_iter().flat_map(u64::to_ne_bytes).collect();
            self.compare(page as u64, &contents)?;
        }
        Ok(())
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}
