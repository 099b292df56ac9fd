// SPDX-License-Identifier: GPL-2.0-or-later
//! Holes of memory, without reading it.

use vmem::PageRange;

use super::file::FileMemory;
use super::{Contents, Memory};
use crate::holes::Holes;

/// The longest step over data, in pages: a huge page.
const MAX_STEP: u64 = 512;

impl Memory {
    /// The first holes of `range`, at most `max`. Only a file has any: of a region it is not known which of its pages are zero, and an absent
    /// page is not. A released page is not a hole, but unreadable.
    pub(crate) fn holes(&self, range: PageRange, max: usize) -> Holes {
        let holes = match &self.contents {
            Contents::File(file) => file.holes(range, max),
            Contents::Region(_) => Holes::none(range),
        };
        // Pages that were released meanwhile may look like holes. They were recorded before that.
        let Some(released) = &self.released else { return holes };
        let view = released.view();
        let mut ranges: Vec<_> = holes.ranges.iter().flat_map(|hole| view.gaps_of(*hole)).collect();
        let cut = ranges.get(max).copied();
        ranges.truncate(max);
        // The rest comes with the next answer.
        let pages = cut.and_then(|cut| holes.pages.split_at(cut.first().get() - holes.pages.first().get()).0);
        Holes {
            pages: pages.unwrap_or(holes.pages),
            ranges,
        }
    }
}

impl FileMemory {
    /// The first holes of `range`, at most `max`.
    ///
    /// It asks only where data begins, and not where it ends: `SEEK_HOLE` on tmpfs walks over all data up to there, with the file locked. In data
    /// it looks for the next hole at growing distances, so that memory without holes costs few calls. What it steps over is not a hole, as
    /// far as it knows.
    fn holes(&self, range: PageRange, max: usize) -> Holes {
        let first = range.first().get();
        let (mut ranges, mut at, mut step) = (Vec::new(), first, 1);
        while ranges.len() < max {
            let (_, Some(rest)) = range.split_at(at - first) else { break };
            match rest.split_at(self.hole_pages(rest)) {
                (Some(hole), _) => {
                    // The page after it is data.
                    at = hole.end() + 1;
                    step = 1;
                    ranges.push(hole);
                }
                (None, _) => {
                    at += step;
                    step = (2 * step).min(MAX_STEP);
                }
            }
        }
        let pages = range.split_at(at - first).0.unwrap_or(range);
        Holes { pages, ranges }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use vmem::PAGE_SIZE;

    use super::*;
    use crate::memory::tests::{memfd, spec};

    fn range(first: u64, count: u64) -> PageRange {
        PageRange::from_pgoff(first, count).expect("a range")
    }

    fn found(memory: &Memory, first: u64, count: u64, max: usize) -> (u64, Vec<(u64, u64)>) {
        let holes = memory.holes(range(first, count), max);
        assert_eq!(holes.pages.first().get(), first);
        let ranges = holes.ranges.iter().map(|hole| (hole.first().get(), hole.count()));
        (holes.pages.end(), ranges.collect())
    }

    #[test]
    fn holes_are_found_between_scattered_pages() {
        const PAGES: u64 = 1 << 28;
        let file = memfd(PAGES * PAGE_SIZE as u64, &[5, 1000, 1001, PAGES - 2]);
        let memory = Memory::open(&spec("ram", &file)).expect("memory");
        let all = [(0, 5), (6, 994), (1002, PAGES - 1004), (PAGES - 1, 1)];
        assert_eq!(found(&memory, 0, PAGES, 9), (PAGES, all.to_vec()));
        assert_eq!(
            found(&memory, 0, PAGES, 2),
            (1001, all[..2].to_vec()),
            "the rest is another answer"
        );
        assert_eq!(found(&memory, 3, 2, 9), (5, vec![(3, 2)]));
        assert_eq!(found(&memory, 1000, 2, 9), (1002, vec![]));
    }

    #[test]
    fn page_that_was_written_is_never_a_hole_and_long_holes_are_found_in_any_pattern() {
        let mut state = 7_u64;
        let mut random = move |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for _ in 0..20 {
            const PAGES: u64 = 6000;
            let file = memfd(PAGES * PAGE_SIZE as u64, &[]);
            let (mut at, mut written, mut long) = (0, Vec::new(), Vec::new());
            while at < PAGES {
                let data = (1 + random(700)).min(PAGES - at);
                (at..at + data).for_each(|page| {
                    file.write_all_at(&[1], page * PAGE_SIZE as u64).expect("room");
                    written.push(page);
                });
                let hole = 1 + random(2000);
                if hole > 2 * MAX_STEP && at + data + hole < PAGES {
                    long.push(at + data + MAX_STEP);
                }
                at += data + hole;
            }
            let memory = Memory::open(&spec("ram", &file)).expect("memory");
            let (end, holes) = found(&memory, 0, PAGES, 6000);
            let is_hole = |page: &u64| holes.iter().any(|(first, count)| (*first..first + count).contains(page));
            assert_eq!(end, PAGES);
            assert_eq!(written.iter().find(|page| is_hole(page)), None);
            assert!(long.iter().all(is_hole), "{long:?} {holes:?}");
            assert!(holes.windows(2).all(|pair| pair[0].0 + pair[0].1 < pair[1].0));
        }
    }

    #[test]
    fn released_page_is_not_a_hole() {
        let records = tempfile::tempdir().expect("a directory");
        let file = memfd(20 * PAGE_SIZE as u64, &[4, 5, 6, 9]);
        let memory = Memory::open_releasable(&spec("ram", &file), records.path()).expect("memory");
        memory.release(range(5, 1)).expect("a hole");
        memory.release(range(12, 1)).expect("a hole");
        memory.release(range(14, 1)).expect("a hole");
        let all = [(0, 4), (7, 2), (10, 2), (13, 1), (15, 5)];
        assert_eq!(found(&memory, 0, 20, 9), (20, all.to_vec()));
        assert_eq!(found(&memory, 0, 20, 4), (15, all[..4].to_vec()), "no more than asked for");
    }

    #[test]
    fn file_that_became_shorter_has_no_hole_at_its_end() {
        let file = memfd(10 * PAGE_SIZE as u64, &[1]);
        let memory = Memory::open(&spec("ram", &file)).expect("memory");
        file.set_len(4 * PAGE_SIZE as u64).expect("a size");
        assert_eq!(found(&memory, 0, 10, 9), (10, vec![(0, 1)]));
    }
}
