// SPDX-License-Identifier: GPL-2.0-or-later
//! What is known of the image that a snapshot keeps: what a page of it can hold, and which pages cannot be had.

use std::collections::HashSet;
use std::ops::Range;

use anyhow::{Context, ensure};
use vmem::{PageIndex, PageRange, PresentMap};

use crate::board::{Board, Mark, Note};
use crate::memory::Memory;
use crate::model::Page;
use crate::replica::Pages;

/// An image of one life of a region.
pub(crate) struct Image<'a> {
    board: &'a Board,
    actor: usize,
    first: Page,
    known: Pages,
    /// Pages that were absent at the instant.
    absent: HashSet<u64>,
    /// These, and pages that have come or were discarded just about then.
    maybe_absent: HashSet<u64>,
    done: HashSet<u64>,
}

impl<'a> Image<'a> {
    /// Of this memory. `known` has pages as they were at the instant; of others it is known what was present before it, and after it.
    pub(crate) fn new(
        (board, actor): (&'a Board, usize),
        memory: &Memory<'_>,
        known: Pages,
        (before, after): (&PresentMap, &PresentMap),
    ) -> Self {
        let absent = |map: &PresentMap| map.absent().flat_map(PageRange::iter).map(PageIndex::get).collect();
        Self {
            board,
            actor,
            first: memory.page(0),
            known,
            absent: absent(after),
            maybe_absent: absent(before),
            done: HashSet::new(),
        }
    }

    fn page(&self, page: u64) -> Page {
        Page {
            page: page as usize,
            ..self.first
        }
    }

    /// Whether a page is done, so that it cannot be read.
    pub(crate) fn is_done(&self, page: u64) -> bool {
        self.done.contains(&page)
    }

    /// A page is done.
    pub(crate) fn insert_done(&mut self, page: u64) {
        self.done.insert(page);
    }

    /// Whether a page may be missing for what was marked: it was absent until the instant, and has not been read.
    pub(crate) fn may_miss(&self, page: u64, mark: Mark) -> anyhow::Result<bool> {
        let may_be_absent = self.maybe_absent.contains(&page) && !self.known.contains_key(&page);
        Ok(may_be_absent && self.board.is_marked(self.first.region, page as usize, mark)?)
    }

    /// Whether one of these pages may be missing, for whatever reason.
    pub(crate) fn may_miss_any(&self, mut run: Range<usize>) -> anyhow::Result<bool> {
        run.try_fold(false, |may, page| {
            Ok(may || self.may_miss(page as u64, Mark::Zero)? || self.may_miss(page as u64, Mark::Unreadable)?)
        })
    }

    /// Compares what was read of a page, and keeps it: it stays so.
    pub(crate) fn insert(&mut self, page: u64, contents: Vec<u8>) -> anyhow::Result<()> {
        self.compare(page, &contents)?;
        self.known.insert(page, contents);
        Ok(())
    }

    /// Compares what was read of a page.
    pub(crate) fn compare(&self, page: u64, contents: &[u8]) -> anyhow::Result<()> {
        let words: Vec<u64> = contents
            .chunks_exact(8)
            .map(|word| word.iter().rev().fold(0, |value, byte| (value << 8) | u64::from(*byte)))
            .collect();
        let was_absent = self.absent.contains(&page);
        let it = self.page(page);
        match was_absent {
            true => it.check_unwritten(self.board, &words),
            false => it.check(self.board, usize::MAX, &words, None),
        }
        .context("an image")?;
        if let Some(known) = self.known.get(&page) {
            ensure!(
                contents == known,
                "wrong image: page {page} of a snapshot is not what it was; the first difference is at byte {:?}",
                contents.iter().zip(known).position(|(now, known)| now != known)
            );
            self.board.count(self.actor, Note::CheckedImage)?;
            if !self.absent.is_empty() {
                self.board.count(self.actor, Note::CheckedImageIncomplete)?;
            }
        }
        match was_absent {
            true => self.board.count(self.actor, Note::CheckedImageAbsent),
            false => Ok(()),
        }
    }
}
