// SPDX-License-Identifier: GPL-2.0
//! Runs of pages by their plain numbers, as they stand in frames.

use vmem::{PageIndex, PageRange};

/// `count` pages from the page offset `first` on; `None` if that is no page, or more than there can be.
#[must_use]
pub fn range(first: u64, count: u64) -> Option<PageRange> {
    PageRange::new(PageIndex::new(first)?, count)
}

/// The page offset after the last page.
#[must_use]
pub fn end(range: PageRange) -> u64 {
    range.first().get() + range.count()
}

/// The first `count` pages, if that is any, and the rest, if there is any.
#[must_use]
pub fn split(of: PageRange, count: u64) -> (Option<PageRange>, Option<PageRange>) {
    let front = count.min(of.count());
    let first = of.first().get();
    (range(first, front), range(first + front, of.count() - front))
}

/// The two as one run, if `next` begins where `before` ends.
#[must_use]
pub fn join(before: PageRange, next: PageRange) -> Option<PageRange> {
    if end(before) == next.first().get() {
        PageRange::new(before.first(), before.count() + next.count())
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_keeps_every_page() {
        let whole = range(10, 5).expect("a range");
        assert_eq!(split(whole, 0), (None, Some(whole)));
        assert_eq!(split(whole, 2), (range(10, 2), range(12, 3)));
        assert_eq!(split(whole, 5), (Some(whole), None));
        assert_eq!(split(whole, 9), (Some(whole), None));
    }

    #[test]
    fn only_neighbours_join() {
        let run = |first, count| range(first, count).expect("a range");
        assert_eq!(join(run(0, 2), run(2, 3)), range(0, 5));
        assert_eq!(join(run(0, 2), run(3, 3)), None);
        assert_eq!(join(run(2, 3), run(0, 2)), None);
    }
}
