// SPDX-License-Identifier: GPL-2.0-or-later
//! A region as its tracker has it: by what it is adopted, and how its pages are read.

use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use anyhow::Context;
use vmem::{Adopted, Control, Error, PAGE_SIZE, PageIndex, PageRange, Region};

use crate::board::Board;
use crate::hands::Hands;
use crate::model::Page;
use crate::numbers::Numbers;

/// One life of a region, and a hold on it.
pub(crate) struct Memory<'a> {
    board: &'a Board,
    region: usize,
    life: u64,
    holder: Holder<'a>,
}

enum Holder<'a> {
    /// Its daemon reads the staging file.
    Daemon(&'a Region),
    /// A process that has mapped it by its node.
    Mapping(Hands<'a>),
}

impl<'a> Memory<'a> {
    /// Of its daemon.
    pub(crate) fn of_daemon(board: &'a Board, (region, life): (usize, u64), served: &'a Region) -> Self {
        Self {
            board,
            region,
            life,
            holder: Holder::Daemon(served),
        }
    }

    /// By its node; [`None`] if there is none just now.
    pub(crate) fn open(board: &'a Board, actor: usize, region: usize) -> anyhow::Result<Option<Self>> {
        // It is no program, and writes in no slot.
        let hands = Hands::open(board, actor, usize::MAX, region)?;
        Ok(hands.map(|hands| Self {
            board,
            region,
            life: hands.life,
            holder: Holder::Mapping(hands),
        }))
    }

    /// A page of it.
    pub(crate) fn page(&self, page: u64) -> Page {
        Page {
            region: self.region,
            life: self.life,
            page: page as usize,
        }
    }

    /// Whether everybody shall let go of it.
    pub(crate) fn is_given_up(&self) -> anyhow::Result<bool> {
        Ok(self.board.life(self.region)? != self.life)
    }

    /// Adopts it; [`None`] if that cannot be done just now.
    pub(crate) fn adopt(&self, numbers: &mut Numbers) -> anyhow::Result<Option<Adopted>> {
        let control = Control::open()?;
        let adopted = match &self.holder {
            // The staging file is as good as any descriptor once it is plain memory.
            Holder::Daemon(served) if served.info()?.plain && numbers.once_in(2) => control.adopt(served.staging()),
            Holder::Daemon(served) => control.adopt(served.as_fd()),
            Holder::Mapping(hands) => control.adopt(&hands.handle),
        };
        match adopted {
            Ok(adopted) => Ok(Some(adopted)),
            // Somebody else tracks it, or the last tracker is just going.
            Err(Error::MemoryInUse | Error::NoMemory { .. }) => Ok(None),
            Err(error) => Err(error).context("adopt"),
        }
    }

    /// Reads a page that is present.
    pub(crate) fn read(&self, page: u64) -> anyhow::Result<Vec<u8>> {
        match &self.holder {
            Holder::Daemon(served) => {
                let mut contents = vec![0; PAGE_SIZE];
                served
                    .staging()
                    .read_exact_at(&mut contents, page * PAGE_SIZE as u64)
                    .context("reading the staging file")?;
                Ok(contents)
            }
            Holder::Mapping(hands) => {
                let words = hands.area.page(page as usize);
                Ok(words.into_iter().flat_map(u64::to_ne_bytes).collect())
            }
        }
    }
}

/// These pages.
pub(crate) fn range(run: &Range<usize>) -> anyhow::Result<PageRange> {
    let first = PageIndex::new(run.start as u64).context("a page number")?;
    PageRange::new(first, run.len() as u64).context("a run of pages")
}
