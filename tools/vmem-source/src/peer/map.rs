// SPDX-License-Identifier: GPL-2.0-or-later
//! MAPs that are not answered in full, in the order in which their answers must arrive.

use std::collections::VecDeque;

use vmem::PageRange;

use super::next_tag;
use crate::holes::{ExportHoles, Holes};
use crate::wire::ProtocolError;
use crate::wire::map::HolesFrame;

#[derive(Default)]
pub(super) struct Maps {
    last_tag: u32,
    questions: VecDeque<Question>,
}

struct Question {
    tag: u32,
    export: usize,
    /// What the source has said nothing of.
    left: PageRange,
}

impl Maps {
    /// Adds a question, and returns its tag.
    pub(super) fn add(&mut self, export: usize, pages: PageRange) -> u32 {
        self.last_tag = next_tag(self.last_tag);
        self.questions.push_back(Question {
            tag: self.last_tag,
            export,
            left: pages,
        });
        self.last_tag
    }

    /// Checks an answer, which is about the next pages of the oldest question.
    pub(super) fn accept(&mut self, tag: u32, answer: HolesFrame) -> Result<ExportHoles, ProtocolError> {
        let oldest = self.questions.front_mut();
        let want = oldest.as_ref().map(|question| question.tag);
        let Some(question) = oldest.filter(|question| question.tag == tag) else {
            return Err(ProtocolError::Tag { got: tag, want });
        };
        if question.export as u64 != u64::from(answer.export) {
            return Err(ProtocolError::NoExport(answer.export));
        }
        let (first, end) = (question.left.first().get(), answer.end);
        let (pages, left) = question.left.split_at(end.saturating_sub(first));
        let Some(pages) = pages.filter(|pages| pages.end() == end) else {
            return Err(ProtocolError::MapEnd {
                end,
                pgoff: first,
                nr_pages: question.left.count(),
            });
        };
        // They are in ascending order, and none is behind the end.
        if let Some(hole) = answer.ranges.first().filter(|hole| hole.first().get() < first) {
            return Err(ProtocolError::Hole {
                pgoff: hole.first().get(),
                nr_pages: hole.count(),
            });
        }
        let export = question.export;
        match left {
            Some(left) => question.left = left,
            None => drop(self.questions.pop_front()),
        }
        let ranges = answer.ranges;
        let holes = Holes { pages, ranges };
        Ok(ExportHoles { export, holes })
    }
}
