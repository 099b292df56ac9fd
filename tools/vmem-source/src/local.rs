// SPDX-License-Identifier: GPL-2.0
//! A source that reads memory of this machine: no peer, no network.

use std::collections::VecDeque;

use vmem::PageRange;

use crate::answer::{Answer, Chunk};
use crate::export::Export;
use crate::memory::{Memory, MemoryError};
use crate::peer::check_question;
use crate::source::{PageSource, Readiness, SourceError};

/// Files, memfds, block devices and regions of this machine.
pub struct Local {
    memories: Vec<Memory>,
    exports: Vec<Export>,
    asked: VecDeque<(usize, PageRange)>,
    chunk: Chunk,
}

impl Local {
    /// Opens one piece of memory for each `NAME=PATH`, as [`Memory::open`] does.
    ///
    /// # Errors
    ///
    /// One of them cannot be opened.
    pub fn open<'a>(specs: impl IntoIterator<Item = &'a str>) -> Result<Self, MemoryError> {
        let memories = specs.into_iter().map(Memory::open).collect::<Result<Vec<_>, _>>()?;
        let exports = memories.iter().map(|memory| memory.export().clone()).collect();
        Ok(Self {
            memories,
            exports,
            asked: VecDeque::new(),
            chunk: Chunk::new(),
        })
    }
}

impl PageSource for Local {
    fn exports(&self) -> &[Export] {
        &self.exports
    }

    fn ask(&mut self, export: usize, ranges: &[PageRange]) -> Result<(), SourceError> {
        check_question(&self.exports, export, ranges)?;
        self.asked.extend(ranges.iter().map(|range| (export, *range)));
        Ok(())
    }

    fn readiness(&self) -> Readiness<'_> {
        Readiness::Always
    }

    fn next(&mut self) -> Result<Answer<'_>, SourceError> {
        let nothing = || SourceError::BadQuestion("an answer to nothing".to_owned());
        let (export, range) = self.asked.pop_front().ok_or_else(nothing)?;
        let memory = self.memories.get(export).ok_or_else(nothing)?;
        self.chunk.clear();
        if let Some(rest) = memory.read(range, &mut self.chunk) {
            self.asked.push_front((export, rest));
        }
        Answer::new(export, self.chunk.runs(), self.chunk.data()).ok_or_else(nothing)
    }
}
