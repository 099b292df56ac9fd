// SPDX-License-Identifier: GPL-2.0
//! A source that reads memory of this host, without a network.

use std::collections::VecDeque;

use vmem::PageRange;

use crate::answer::{Answer, Chunk};
use crate::error::Error;
use crate::export::Export;
use crate::memory::Memory;
use crate::peer::check_fetch;
use crate::source::{PageSource, Readiness};

/// Files, memfds, block devices and regions of this host.
pub struct Local {
    memories: Vec<Memory>,
    exports: Vec<Export>,
    outstanding: VecDeque<(usize, PageRange)>,
    chunk: Chunk,
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
}

impl PageSource for Local {
    fn exports(&self) -> &[Export] {
        &self.exports
    }

    fn fetch(&mut self, export: usize, ranges: &[PageRange]) -> Result<(), Error> {
        check_fetch(&self.exports, export, ranges)?;
        self.outstanding.extend(ranges.iter().map(|range| (export, *range)));
        Ok(())
    }

    fn readiness(&self) -> Readiness<'_> {
        Readiness::Always
    }

    fn next_answer(&mut self) -> Result<Answer<'_>, Error> {
        let nothing = || Error::InvalidFetch("nothing: no pages are outstanding".to_owned());
        let (export, range) = self.outstanding.pop_front().ok_or_else(nothing)?;
        let memory = self.memories.get(export).ok_or_else(nothing)?;
        self.chunk.clear();
        if let Some(rest) = memory.read(range, &mut self.chunk) {
            self.outstanding.push_front((export, rest));
        }
        Answer::new(export, self.chunk.runs(), self.chunk.data()).ok_or_else(nothing)
    }
}
