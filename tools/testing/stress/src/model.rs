// SPDX-License-Identifier: GPL-2.0-or-later
//! What a page can hold.
//!
//! A page begins with slots, one for each program, in which that program writes; the rest never changes, unless the page is discarded
//! and so becomes zero. A page that the daemon brings by the staging file is written by nobody: by the header, such a write can land in
//! a page that was discarded meanwhile.

use anyhow::{Context, ensure};

use crate::board::{Board, Mark};

/// Words in a page.
pub(crate) const WORDS: usize = vmem::PAGE_SIZE / 8;
/// Words at the begin of each page in which programs write.
pub(crate) const SLOTS: usize = 64;

/// A page of one life of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Page {
    /// Which region.
    pub(crate) region: usize,
    /// Which of its lives.
    pub(crate) life: u64,
    /// Which page.
    pub(crate) page: usize,
}

impl Page {
    fn word(self, word: usize) -> u64 {
        let place = ((self.region as u64) << 56) | ((self.life & 0xffff) << 40) | ((self.page as u64) << 16);
        // Never zero, and never what a program writes.
        ((place | word as u64) & !(0xf << 60)) | (0xa << 60)
    }

    /// What the source has for it.
    pub(crate) fn contents(self) -> Vec<u64> {
        (0..WORDS).map(|word| self.word(word)).collect()
    }

    /// Words that were read as bytes.
    pub(crate) fn words(bytes: &[u8]) -> Vec<u64> {
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| (word << 8) | u64::from(*byte));
        bytes.chunks_exact(8).map(word).collect()
    }

    /// The same as bytes.
    pub(crate) fn bytes(self) -> Vec<u8> {
        self.contents().into_iter().flat_map(u64::to_ne_bytes).collect()
    }

    /// Whether its contents come by the staging file, so that no program writes in it.
    pub(crate) fn is_staged(self) -> bool {
        self.page % 8 == 3
    }

    /// What `program` writes in its slot for the `nr`th time.
    pub(crate) fn written(program: usize, nr: u64) -> u64 {
        (0xb << 60) | ((program as u64) << 48) | (nr & 0xffff_ffff_ffff)
    }

    /// Fails unless these words, which `reader` has just read, are what the page can hold. `own` is what the reader has last written in
    /// its slot, if it knows.
    pub(crate) fn check(self, board: &Board, reader: usize, words: &[u64], own: Option<u64>) -> anyhow::Result<()> {
        self.check_words(board, words, |at, found| match own {
            Some(own) if at == reader => found == own,
            _ => found == self.word(at) || (at < SLOTS && found & !0xffff_ffff_ffff == Self::written(at, 0)),
        })
        .with_context(|| format!("program {reader} wrote {own:x?}"))
    }

    /// Fails unless these words are what the page can hold when it comes, and nobody has written to it.
    pub(crate) fn check_unwritten(self, board: &Board, words: &[u64]) -> anyhow::Result<()> {
        self.check_words(board, words, |at, found| found == self.word(at))
            .context("no program can have written to it")
    }

    fn check_words(self, board: &Board, words: &[u64], fits: impl Fn(usize, u64) -> bool) -> anyhow::Result<()> {
        ensure!(words.len() == WORDS, "{self:?}: {} words", words.len());
        for (at, &found) in words.iter().enumerate() {
            // The mark comes before what it allows: it is looked for after the page.
            ensure!(
                fits(at, found) || (found == 0 && board.is_marked(self.region, self.page, Mark::Zero)?),
                "wrong page: word {at} of {self:?} is {found:#x}; its source has {:#x}",
                self.word(at)
            );
        }
        Ok(())
    }
}
