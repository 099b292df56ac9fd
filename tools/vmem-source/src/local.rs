// SPDX-License-Identifier: GPL-2.0-or-later
//! A source that reads memory of this host, without a network.

use std::collections::VecDeque;

use vmem::PageRange;

use crate::answer::{Answer, Chunk};
use crate::backing::BackingFile;
use crate::error::Error;
use crate::export::Export;
use crate::holes::{ExportHoles, MAX_HOLES};
use crate::memory::Memory;
use crate::peer::{check_fetch, check_map};
use crate::source::{PageSource, Readiness, Reply};

/// Files, memfds, block devices and regions of this host.
pub struct Local {
    memories: Vec<Memory>,
    exports: Vec<Export>,
    outstanding: VecDeque<Question>,
    chunk: Chunk,
}

/// What has been asked.
enum Question {
    Pages(usize, PageRange),
    Map(usize, PageRange),
}

impl Local {
    /// Opens one memory for each `NAME=PATH`, as [`Memory::open`] does.
    ///
    /// # Errors
    ///
    /// One of them cannot be opened.
    pub fn open<'a>(specs: impl IntoIterator<Item = &'a str>) -> Result<Self, Error> {
        let memories = specs.into_iter().map(Memory::open).collect::<Result<Vec<_>, _>>()?;
        let exports = memories.iter().map(|memory| memory.export().clone()).collect();
        Ok(Self {
            memories,
            exports,
            outstanding: VecDeque::new(),
            chunk: Chunk::new(),
        })
    }

    /// The file of each export. Whether the kernel takes it as backing is known when it is asked.
    ///
    /// # Errors
    ///
    /// There are too many open files.
    pub fn backing_files(&self) -> Result<Vec<BackingFile>, Error> {
        self.memories.iter().map(Memory::backing_file).collect()
    }
}

impl PageSource for Local {
    fn exports(&self) -> &[Export] {
        &self.exports
    }

    fn fetch(&mut self, export: usize, ranges: &[PageRange]) -> Result<(), Error> {
        check_fetch(&self.exports, export, ranges)?;
        self.outstanding
            .extend(ranges.iter().map(|range| Question::Pages(export, *range)));
        Ok(())
    }

    fn readiness(&self) -> Readiness<'_> {
        Readiness::Always
    }

    fn can_map(&self) -> bool {
        true
    }

    fn map(&mut self, export: usize, pages: PageRange) -> Result<(), Error> {
        check_map(self.can_map(), &self.exports, export, pages)?;
        self.outstanding.push_back(Question::Map(export, pages));
        Ok(())
    }

    fn next_answer(&mut self) -> Result<Answer<'_>, Error> {
        match self.next_reply()? {
            Reply::Pages(answer) => Ok(answer),
            Reply::Holes(_) => Err(Error::InvalidFetch("pages while a map is outstanding".to_owned())),
        }
    }

    fn next_reply(&mut self) -> Result<Reply<'_>, Error> {
        let nothing = || Error::InvalidFetch("nothing: no pages are outstanding".to_owned());
        match self.outstanding.pop_front().ok_or_else(nothing)? {
            Question::Pages(export, range) => {
                let memory = self.memories.get(export).ok_or_else(nothing)?;
                self.chunk.clear();
                if let Some(rest) = memory.read(range, &mut self.chunk) {
                    self.outstanding.push_front(Question::Pages(export, rest));
                }
                let answer = Answer::new(export, self.chunk.runs(), self.chunk.data());
                answer.map(Reply::Pages).ok_or_else(nothing)
            }
            Question::Map(export, range) => {
                let memory = self.memories.get(export).ok_or_else(nothing)?;
                let holes = memory.holes(range, MAX_HOLES);
                if let Some(rest) = range.split_at(holes.pages.count()).1 {
                    self.outstanding.push_front(Question::Map(export, rest));
                }
                Ok(Reply::Holes(ExportHoles { export, holes }))
            }
        }
    }
}
