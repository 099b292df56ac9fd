// SPDX-License-Identifier: GPL-2.0-or-later
//! Holes of an export, from the extents that the server gives.

use std::collections::VecDeque;

use vmem::{PAGE_SIZE, PageRange};
use vmem_nbd::client::{Description, Extent, Failure, Question};
use vmem_source::Holes;
use vmem_source::holes::MAX_HOLES;

use crate::job::{align_down, align_up};

const PAGE: u64 = PAGE_SIZE as u64;

/// Maps that were asked for, one of which the server is asked about at a time: answers come in the order of the questions.
#[derive(Debug, Default)]
pub(crate) struct Maps {
    /// Pages of which the server has said nothing. The first ones are being asked about.
    wanted: VecDeque<PageRange>,
    /// What it has said, in answers that are as long as one may be.
    found: VecDeque<Holes>,
}

impl Maps {
    /// Adds pages. Returns what the server is to be asked, if it is not asked something already.
    pub(crate) fn ask(&mut self, pages: PageRange, description: &Description) -> Option<Question> {
        self.wanted.push_back(pages);
        match self.wanted.len() {
            1 => question(pages, description),
            _ => None,
        }
    }

    /// The next answer.
    pub(crate) fn next(&mut self) -> Option<Holes> {
        self.found.pop_front()
    }

    /// Whether there is an answer.
    pub(crate) fn has_answer(&self) -> bool {
        !self.found.is_empty()
    }

    /// Takes the server's reply. Returns what it is to be asked next.
    pub(crate) fn take(&mut self, reply: Result<Vec<Extent>, Failure>, description: &Description) -> Option<Question> {
        let pages = self.wanted.pop_front()?;
        let rest = match reply {
            Ok(extents) => self.add(pages, &extents, description),
            Err(failure) => {
                // The pages can perhaps be read all the same.
                tracing::debug!("which of {pages} are holes is not known: {failure}");
                self.found.push_back(Holes::none(pages));
                None
            }
        };
        rest.into_iter().for_each(|rest| self.wanted.push_front(rest));
        self.wanted.front().and_then(|pages| question(*pages, description))
    }

    /// Adds what these extents say about the beginning of `pages`. Returns the pages that they say nothing about.
    fn add(&mut self, pages: PageRange, extents: &[Extent], description: &Description) -> Option<PageRange> {
        let mut at = align_down(pages.bytes().start, description.min_block.into());
        let (mut ranges, first) = (Vec::new(), pages.first().get());
        for extent in extents {
            let end = at.saturating_add(extent.bytes);
            if extent.zero {
                // Nothing but zeros is behind the end of the export.
                let end = if end >= description.size { pages.end() } else { end / PAGE };
                let (from, end) = (at.div_ceil(PAGE).max(first), end.min(pages.end()));
                ranges.extend(end.checked_sub(from).and_then(|count| PageRange::from_pgoff(from, count)));
            }
            at = end;
        }
        let known = if at >= description.size { pages.end() } else { at / PAGE };
        let known = known.clamp(first, pages.end()) - first;
        let (known, rest) = match known {
            // Less than a page at a time would be without end.
            0 => return self.give_up(pages),
            known => pages.split_at(known),
        };
        self.push(known?, &ranges);
        rest
    }

    fn give_up(&mut self, pages: PageRange) -> Option<PageRange> {
        self.found.push_back(Holes::none(pages));
        None
    }

    /// Adds answers about `pages`, whose holes are `ranges`.
    fn push(&mut self, pages: PageRange, ranges: &[PageRange]) {
        let mut left = Some(pages);
        for some in ranges.chunks(MAX_HOLES) {
            let (Some(pages), Some(last)) = (left, some.last()) else {
                return;
            };
            let (front, rest) = pages.split_at(last.end() - pages.first().get());
            let ranges = some.to_vec();
            self.found.extend(front.map(|pages| Holes { pages, ranges }));
            left = rest;
        }
        self.found.extend(left.map(Holes::none));
    }
}

/// What the server is asked about these pages, 1 GiB at most.
fn question(pages: PageRange, description: &Description) -> Option<Question> {
    let block = u64::from(description.min_block);
    let offset = align_down(pages.bytes().start, block);
    let end = align_up(pages.bytes().end, block, description);
    let length = u32::try_from(end - offset).ok()?;
    Some(Question::Extents { offset, length })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first page of an answer, the one behind its last one, and the holes between them.
    type Told = (u64, u64, Vec<u64>);

    /// What is told of 16 pages from page 2 on, after the first reply of a server with these blocks, and what it is asked then.
    fn told(block: u32, extents: &[(u64, bool)]) -> (Vec<Told>, Option<Question>) {
        let description = vmem_nbd::testing::description(SIZE, block);
        let mut maps = Maps::default();
        let pages = PageRange::from_pgoff(2, 16).expect("pages");
        assert!(maps.ask(pages, &description).is_some());
        let extents = extents.iter().map(|(bytes, zero)| Extent {
            bytes: *bytes,
            zero: *zero,
        });
        let next = maps.take(Ok(extents.collect()), &description);
        let answers = std::iter::from_fn(|| maps.next()).map(|holes| {
            let pages = holes.ranges.iter().flat_map(|range| range.iter()).map(|page| page.get());
            (holes.pages.first().get(), holes.pages.end(), pages.collect())
        });
        (answers.collect(), next)
    }

    const SIZE: u64 = 1 << 30;

    #[test]
    fn page_is_a_hole_if_all_of_it_is() {
        let (found, next) = told(512, &[(4096 + 512, true), (512, false), (3 * 4096, true), (SIZE, false)]);
        assert_eq!((found, next), (vec![(2, 6, vec![2, 4, 5]), (6, 18, vec![])], None));
        // The blocks of 32 KiB begin before the pages.
        let (found, _) = told(32768, &[(32768, true), (32768, false), (SIZE, true)]);
        let holes: Vec<u64> = found.into_iter().flat_map(|(_, _, holes)| holes).collect();
        assert_eq!(holes, [2, 3, 4, 5, 6, 7, 16, 17]);
    }

    #[test]
    fn rest_is_asked_for_and_less_than_a_page_is_no_answer() {
        let (found, next) = told(512, &[(3 * 4096 + 512, true)]);
        let rest = Question::Extents {
            offset: 5 * 4096,
            length: 13 * 4096,
        };
        assert_eq!((found, next), (vec![(2, 5, vec![2, 3, 4])], Some(rest)));
        assert_eq!(told(512, &[(512, true)]), (vec![(2, 18, vec![])], None));
        assert_eq!(told(512, &[]), (vec![(2, 18, vec![])], None));
    }

    #[test]
    fn many_holes_are_several_answers() {
        let description = vmem_nbd::testing::description(SIZE, 4096);
        let mut maps = Maps::default();
        maps.ask(PageRange::of_pages(10_000).expect("pages"), &description);
        let extents = (0..10_000).map(|page| Extent {
            bytes: 4096,
            zero: page % 2 == 1,
        });
        maps.take(Ok(extents.collect()), &description);
        let (mut next, mut count) = (0, 0);
        while let Some(holes) = maps.next() {
            assert!(holes.pages.first().get() == next && holes.ranges.len() <= MAX_HOLES);
            next = holes.pages.end();
            count += holes.count();
        }
        assert_eq!((next, count), (10_000, 5000));
    }
}
