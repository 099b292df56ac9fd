// SPDX-License-Identifier: GPL-2.0-or-later
//! Asks a source for a map of its memory, in pieces: its holes are then not fetched.

use std::collections::VecDeque;

use vmem::{PageRange, PageSet};
use vmem_source::holes::MAX_MAP_PAGES;

/// The most pieces outstanding: so few that the questions fit into the source's socket while the source is busy with answers, and enough that the
/// delay of the network does not matter.
const MAX_OUTSTANDING: usize = 64;

/// Pages that a map was asked for, or is to be asked for.
#[derive(Default)]
pub(crate) struct Survey {
    /// Pages that are to be asked for, with the caller's number of their export; the next ones are at the end.
    left: Vec<(usize, PageRange)>,
    /// Pages of each piece that the source has said nothing of.
    outstanding: VecDeque<u64>,
}

impl Survey {
    /// A survey of these pages, in this order.
    pub(crate) fn of(mut pages: Vec<(usize, PageRange)>) -> Self {
        pages.reverse();
        Self {
            left: pages,
            outstanding: VecDeque::new(),
        }
    }

    /// Whether everything was asked for, whatever answers are due.
    pub(crate) fn is_asked(&self) -> bool {
        self.left.is_empty()
    }

    /// Whether an answer is due.
    pub(crate) fn is_outstanding(&self) -> bool {
        !self.outstanding.is_empty()
    }

    /// The next piece to ask for; `None` if there is none now.
    pub(crate) fn next(&mut self) -> Option<(usize, PageRange)> {
        if self.outstanding.len() >= MAX_OUTSTANDING {
            return None;
        }
        let (of, pages) = self.left.pop()?;
        let (piece, rest) = pages.split_at(MAX_MAP_PAGES);
        self.left.extend(rest.map(|rest| (of, rest)));
        let piece = piece?;
        self.outstanding.push_back(piece.count());
        Some((of, piece))
    }

    /// The source has answered for these pages: the next ones of the oldest piece.
    pub(crate) fn received(&mut self, pages: PageRange) {
        if let Some(left) = self.outstanding.front_mut() {
            *left = left.saturating_sub(pages.count());
            if *left == 0 {
                self.outstanding.pop_front();
            }
        }
    }
}

/// The pieces of a region that have pages of `wanted`, joined. Others need no map.
pub(crate) fn pieces_with(wanted: &PageSet) -> Vec<PageRange> {
    let (mut pieces, mut left) = (Vec::new(), Some(wanted.pages()));
    while let Some((Some(piece), rest)) = left.map(|left| left.split_at(MAX_MAP_PAGES)) {
        if wanted.runs_of(piece).next().is_some() {
            piece.append_to(&mut pieces);
        }
        left = rest;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, count: u64) -> PageRange {
        PageRange::from_pgoff(first, count).expect("a range")
    }

    #[test]
    fn pieces_are_asked_for_in_order_and_a_bounded_number_of_them_is_outstanding() {
        const PIECES: u64 = MAX_OUTSTANDING as u64 + 3;
        let mut survey = Survey::of(vec![(1, range(0, PIECES * MAX_MAP_PAGES)), (0, range(0, 7))]);
        let mut asked = Vec::new();
        while let Some(piece) = survey.next() {
            asked.push(piece);
        }
        assert_eq!(asked.len(), MAX_OUTSTANDING);
        assert!(!survey.is_asked() && survey.is_outstanding());
        // A part of the first answer, and the rest of it.
        survey.received(range(0, 5));
        assert_eq!(survey.next(), None);
        survey.received(range(5, MAX_MAP_PAGES - 5));
        assert_eq!(
            survey.next(),
            Some((1, range(asked.len() as u64 * MAX_MAP_PAGES, MAX_MAP_PAGES)))
        );
        let mut last = None;
        for _ in 1..PIECES {
            survey.received(range(0, MAX_MAP_PAGES));
            last = survey.next().or(last);
        }
        assert_eq!(last, Some((0, range(0, 7))));
        assert!(survey.is_asked() && survey.is_outstanding());
        survey.received(range(0, 7));
        assert!(!survey.is_outstanding());
    }

    #[test]
    fn pieces_without_wanted_pages_are_left_out() {
        let mut wanted = PageSet::none_of(range(0, 5 * MAX_MAP_PAGES + 9));
        wanted.insert(range(2 * MAX_MAP_PAGES - 1, 2));
        wanted.insert(range(5 * MAX_MAP_PAGES + 8, 1));
        assert_eq!(
            pieces_with(&wanted),
            [range(MAX_MAP_PAGES, 2 * MAX_MAP_PAGES), range(5 * MAX_MAP_PAGES, 9)]
        );
    }
}
