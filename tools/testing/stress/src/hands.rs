// SPDX-License-Identifier: GPL-2.0-or-later
//! What a program holds of a region: a descriptor, mappings, and what it has written.

use std::collections::HashMap;
use std::io;
use std::ops::Range;

use anyhow::{Context, ensure};
use vmem::{Access, MapHandle, PAGE_SIZE};
use vmem_functional_sys::{Area, AreaBuilder};

use crate::board::{Board, Note};
use crate::model::{Page, WORDS};

/// Whether a region is one of huge pages: every other one is.
pub(crate) fn is_huge(region: usize) -> bool {
    region % 2 == 0
}

/// The node of a region.
pub(crate) fn name(region: usize) -> String {
    format!("stress{region}")
}

/// How all of a region is mapped: one of huge pages where these can be mapped as such.
fn whole(region: usize) -> AreaBuilder {
    match is_huge(region) {
        true => AreaBuilder::default().aligned(512),
        false => AreaBuilder::default(),
    }
}

/// The life of a region that somebody may take hold of; [`None`] while it is given up.
pub(crate) fn open_life(board: &Board, region: usize) -> anyhow::Result<Option<u64>> {
    let life = board.life(region)?;
    Ok((life % 2 == 0).then_some(life))
}

/// A program's hold on one life of a region. Its mappings go before its descriptor, so that a region whose node is gone is mapped by
/// nobody.
pub(crate) struct Hands<'a> {
    board: &'a Board,
    actor: usize,
    program: usize,
    region: usize,
    pub(crate) life: u64,
    /// All of the region, shared.
    pub(crate) area: Area,
    /// What this program has last written in its slot of a page.
    written: HashMap<usize, u64>,
    /// All of it, private, with what was written there.
    private: Option<(Area, HashMap<usize, u64>)>,
    pub(crate) handle: MapHandle,
}

impl<'a> Hands<'a> {
    /// Opens and maps the region; [`None`] if there is none just now.
    pub(crate) fn open(board: &'a Board, actor: usize, program: usize, region: usize) -> anyhow::Result<Option<Self>> {
        let Some(life) = open_life(board, region)? else {
            return Ok(None);
        };
        let handle = match MapHandle::open(&name(region), Access::ReadWrite) {
            Ok(handle) => handle,
            Err(vmem::Error::Open { .. } | vmem::Error::NotVmem { .. }) => return Ok(None),
            Err(error) => return Err(error).context("opening a node"),
        };
        let area = whole(region).map(&handle, 0, board.pages()).context("mapping a region")?;
        // It was this life's all the time only if that goes on.
        if board.life(region)? != life {
            return Ok(None);
        }
        Ok(Some(Self {
            board,
            actor,
            program,
            region,
            life,
            area,
            written: HashMap::new(),
            private: None,
            handle,
        }))
    }

    /// A page of it.
    pub(crate) fn page(&self, page: usize) -> Page {
        Page {
            region: self.region,
            life: self.life,
            page,
        }
    }

    /// Notes which page is touched next, for who asks why it was SIGBUS.
    pub(crate) fn touch(&self, page: usize) -> anyhow::Result<()> {
        let number = self.board.page(self.region, page);
        self.board.set_note(self.actor, Note::Touching, number + 1)
    }

    /// Compares what was read of a page.
    pub(crate) fn compare(&self, page: usize, words: &[u64]) -> anyhow::Result<()> {
        let own = self.written.get(&page).copied();
        self.page(page).check(self.board, self.program, words, own)?;
        if self.board.is_plain(self.region)? {
            self.board.count(self.actor, Note::CheckedPlain)?;
        }
        self.board.count(self.actor, Note::Checked)
    }

    /// Reads a page of an area, which shows it at `at`, and compares.
    pub(crate) fn check_in(&self, area: &Area, at: usize, page: usize) -> anyhow::Result<()> {
        self.touch(page)?;
        self.compare(page, &area.page(at))
    }

    /// Reads a page and compares.
    pub(crate) fn check(&self, page: usize) -> anyhow::Result<()> {
        self.check_in(&self.area, page, page)
    }

    /// Writes in this program's slot of a page.
    pub(crate) fn write(&mut self, page: usize, nr: u64) -> anyhow::Result<()> {
        if self.page(page).is_staged() {
            return self.check(page);
        }
        self.touch(page)?;
        let value = Page::written(self.program, nr);
        self.area.store(page * PAGE_SIZE + self.program * 8, value);
        self.written.insert(page, value);
        self.check(page)
    }

    /// Writes to a page of a private mapping, and finds the copy as it was left.
    pub(crate) fn write_privately(&mut self, page: usize, value: u64) -> anyhow::Result<()> {
        self.touch(page)?;
        if self.private.is_none() {
            let area = whole(self.region).private().map(&self.handle, 0, self.board.pages());
            self.private = Some((area.context("a private mapping")?, HashMap::new()));
        }
        let Some((area, copies)) = &mut self.private else {
            return Ok(());
        };
        let last = (page + 1) * PAGE_SIZE - 8;
        if let Some(&copy) = copies.get(&page) {
            let found = area.load(last);
            ensure!(found == copy, "wrong copy: {found:#x} and not {copy:#x} in page {page}");
        }
        area.store(last, value);
        copies.insert(page, value);
        // The rest of the copy is the page's.
        let mut words = area.page(page);
        ensure!(words[WORDS - 1] == value, "wrong copy just now: {:#x}", words[WORDS - 1]);
        words[WORDS - 1] = self.page(page).contents()[WORDS - 1];
        let own = None;
        self.page(page).check(self.board, self.program, &words, own)
    }

    /// Advises the private mapping, if there is one.
    pub(crate) fn advise_privately(&self, pages: Range<usize>, advice: i32) -> io::Result<()> {
        match &self.private {
            Some((area, _)) => area.advise(pages, advice),
            None => Ok(()),
        }
    }

    /// Lets go of the private mapping.
    pub(crate) fn drop_private(&mut self) {
        self.private = None;
    }

    /// Maps the region at another place, and lets go of the first one.
    pub(crate) fn map_again(&mut self) -> anyhow::Result<()> {
        self.area = whole(self.region)
            .map(&self.handle, 0, self.board.pages())
            .context("mapping again")?;
        Ok(())
    }
}
