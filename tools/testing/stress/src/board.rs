// SPDX-License-Identifier: GPL-2.0-or-later
//! What all processes of a run know together: memory that they share.

use anyhow::Context;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vmem_mapping::{Access, Mapping, Sharing};

/// Numbers that the memory has for each region: its life, and whether that has become plain.
const PER_REGION: usize = 2;
/// Numbers that the memory has for each actor.
const PER_ACTOR: usize = Note::Merged as usize + 1;
/// Numbers that the memory has for each page.
const PER_PAGE: usize = 2;

/// What an actor tells of itself.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Note {
    /// Steps taken, ever.
    Steps,
    /// Pages compared, ever.
    Checked,
    /// Those of them in memory that a conversion has made plain.
    CheckedPlain,
    /// Calls made with wild arguments, ever.
    Wild,
    /// The page that it touches next: [`Board::page`], plus one.
    Touching,
    /// Whether it tracks a region now.
    Tracking,
    /// Times that a region was tracked, ever.
    Tracked,
    /// Those of them that began while it was incomplete.
    TrackedIncomplete,
    /// Those of them that saw it become plain memory.
    TrackedThrough,
    /// Clean pages compared with their copies, ever.
    CheckedClean,
    /// Those of them in incomplete regions.
    CheckedCleanIncomplete,
    /// Pages that came and were found in a log of such pages, ever.
    CheckedCome,
    /// Snapshots taken, ever.
    Snapshots,
    /// Those of them some of whose pages were absent.
    SnapshotsIncomplete,
    /// Those of all that were seen to have failed.
    Failed,
    /// Pages of snapshots compared with what they were, ever.
    CheckedImage,
    /// Those of them in snapshots some of whose pages were absent.
    CheckedImageIncomplete,
    /// Pages of snapshots that were absent at the instant, and compared with their source, ever.
    CheckedImageAbsent,
    /// File systems mounted, ever.
    Mounted,
    /// Pages read from files and compared, ever.
    CheckedInFile,
    /// Writes to files and holes made in them, ever.
    ChangedInFile,
    /// Reads and writes of a file that did not wait for an absent page, ever.
    NotWaited,
    /// The most pages that KSM was ever seen to save.
    Merged,
}

/// What is known of a page, once it has been so.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Mark {
    /// It may be zero: somebody discards it, or says that it is.
    Zero,
    /// A touch may be SIGBUS.
    Unreadable,
}

/// The shared memory.
#[derive(Debug)]
pub(crate) struct Board {
    memory: Mapping,
    regions: usize,
    pages: usize,
    actors: usize,
    workers: usize,
}

impl Board {
    /// All numbers are zero. The first of the actors are the daemons and programs, which are `workers`; the last are the threads of daemons.
    pub(crate) fn new(regions: usize, pages: usize, actors: usize, workers: usize) -> anyhow::Result<Self> {
        let len = 8 * (1 + regions * PER_REGION + actors * PER_ACTOR + regions * pages * PER_PAGE);
        let file = memfd_create("board", MemfdFlags::CLOEXEC).context("memfd")?;
        ftruncate(&file, len as u64).context("memfd")?;
        Ok(Self {
            memory: Mapping::new(&file, 0, len, Access::ReadWrite, Sharing::Shared)?,
            regions,
            pages,
            actors,
            workers,
        })
    }

    /// How many regions there are.
    pub(crate) fn regions(&self) -> usize {
        self.regions
    }

    /// The actor that is the thread of a region's daemon in which it tracks its region.
    pub(crate) fn thread_of_daemon(&self, region: usize) -> usize {
        self.actors - self.regions + region
    }

    /// How many pages each has.
    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    fn get(&self, at: usize) -> anyhow::Result<u64> {
        let mut value = [0; 8];
        self.memory.read_at(at * 8, &mut value)?;
        Ok(u64::from_ne_bytes(value))
    }

    fn set(&self, at: usize, value: u64) -> anyhow::Result<()> {
        Ok(self.memory.write_at(at * 8, &value.to_ne_bytes())?)
    }

    /// Whether the run is over.
    pub(crate) fn is_over(&self) -> anyhow::Result<bool> {
        Ok(self.get(0)? != 0)
    }

    /// The run is over.
    pub(crate) fn end(&self) -> anyhow::Result<()> {
        self.set(0, 1)
    }

    /// Which life of a region this is. Odd while the region is given up and nobody shall open it.
    pub(crate) fn life(&self, region: usize) -> anyhow::Result<u64> {
        self.get(1 + region)
    }

    /// The region's next half of a life begins. A new life begins with clean pages.
    pub(crate) fn turn(&self, region: usize) -> anyhow::Result<()> {
        let life = self.life(region)?;
        if life % 2 == 1 {
            for page in 0..self.pages {
                for mark in [Mark::Zero, Mark::Unreadable] {
                    self.set(self.place(region, page, mark), 0)?;
                }
            }
        }
        self.set(1 + self.regions + region, 0)?;
        self.set(1 + region, life + 1)
    }

    /// Whether the region is plain memory in this life. It is so a moment before this is said.
    pub(crate) fn is_plain(&self, region: usize) -> anyhow::Result<bool> {
        Ok(self.get(1 + self.regions + region)? != 0)
    }

    /// Says that the region is plain memory.
    pub(crate) fn set_plain(&self, region: usize) -> anyhow::Result<()> {
        self.set(1 + self.regions + region, 1)
    }

    fn place(&self, region: usize, page: usize, mark: Mark) -> usize {
        let pages = 1 + self.regions * PER_REGION + self.actors * PER_ACTOR;
        pages + (region * self.pages + page) * PER_PAGE + mark as usize
    }

    /// Marks a page, before what the mark allows can happen.
    pub(crate) fn mark(&self, region: usize, page: usize, mark: Mark) -> anyhow::Result<()> {
        self.set(self.place(region, page, mark), 1)
    }

    /// Whether a page is marked.
    pub(crate) fn is_marked(&self, region: usize, page: usize, mark: Mark) -> anyhow::Result<bool> {
        Ok(self.get(self.place(region, page, mark))? != 0)
    }

    fn note_place(&self, actor: usize, note: Note) -> usize {
        1 + self.regions * PER_REGION + actor * PER_ACTOR + note as usize
    }

    /// What an actor has noted.
    pub(crate) fn note(&self, actor: usize, note: Note) -> anyhow::Result<u64> {
        self.get(self.note_place(actor, note))
    }

    /// Notes something; only the actor itself does.
    pub(crate) fn set_note(&self, actor: usize, note: Note, value: u64) -> anyhow::Result<()> {
        self.set(self.note_place(actor, note), value)
    }

    /// Counts a note up.
    pub(crate) fn count(&self, actor: usize, note: Note) -> anyhow::Result<()> {
        self.set_note(actor, note, self.note(actor, note)? + 1)
    }

    /// What all actors have noted together.
    pub(crate) fn sum(&self, note: Note) -> anyhow::Result<u64> {
        (0..self.actors).map(|actor| self.note(actor, note)).sum()
    }

    /// Steps of all daemons and programs.
    pub(crate) fn steps(&self) -> anyhow::Result<u64> {
        (0..self.workers).map(|actor| self.note(actor, Note::Steps)).sum()
    }

    /// One number for a page of a region.
    pub(crate) fn page(&self, region: usize, page: usize) -> u64 {
        (region * self.pages + page) as u64
    }

    /// The page of a number of [`Board::page`].
    pub(crate) fn page_of(&self, number: u64) -> (usize, usize) {
        (number as usize / self.pages, number as usize % self.pages)
    }
}
