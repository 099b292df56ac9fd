// SPDX-License-Identifier: GPL-2.0-or-later
//! Predicts which pages a program touches next.
//!
//! Three requests at equal distances begin a *stride*. Each request that continues it doubles the number of pages fetched ahead, up to a
//! limit. A stride that is not continued has cost [`INITIAL_AHEAD`] pages.

use std::collections::{BTreeSet, VecDeque};

use vmem::{PageIndex, PageRange};

/// The most recent requests kept per region.
const MAX_RECENT: usize = 8;
/// The most strides followed per region.
const MAX_STRIDES: usize = 8;
/// Pages ahead of a new stride.
const INITIAL_AHEAD: u64 = 4;
/// The longest step of a stride, in pages.
const MAX_STEP: u64 = 1024;

/// The predictor of all regions.
pub(crate) struct Prefetch {
    regions: Vec<History>,
    /// The most pages ahead of a request; 0 disables the prefetch.
    limit: u64,
    /// Pages fetched ahead that are outstanding.
    expected: BTreeSet<(usize, PageIndex)>,
}

/// The recent requests and strides of a region.
struct History {
    pages: u64,
    recent: VecDeque<u64>,
    strides: VecDeque<Stride>,
}

/// Pages at equal distances.
struct Stride {
    step: i64,
    /// The first page that has not been fetched.
    next: u64,
    /// Number of pages ahead at the latest request.
    ahead: u64,
}

impl Prefetch {
    /// For regions with these numbers of pages, with at most `limit` pages ahead of a request.
    pub(crate) fn new(pages: impl Iterator<Item = u64>, limit: u64) -> Self {
        let history = |pages| History {
            pages,
            recent: VecDeque::new(),
            strides: VecDeque::new(),
        };
        Self {
            regions: pages.map(history).collect(),
            limit,
            expected: BTreeSet::new(),
        }
    }

    /// Programs request these pages. Returns up to `room` pages to fetch ahead, none of which is requested or outstanding.
    pub(crate) fn request(&mut self, region: usize, pages: &[PageIndex], room: usize) -> Vec<PageIndex> {
        let Some(history) = self.regions.get_mut(region).filter(|_| self.limit > 0) else {
            return Vec::new();
        };
        let mut ahead = BTreeSet::new();
        for page in pages {
            ahead.extend(history.follow(page.get(), self.limit).into_iter().filter_map(PageIndex::new));
        }
        self.expect(region, ahead.into_iter().filter(|page| !pages.contains(page)), room)
    }

    /// Those of `pages` that are not outstanding, up to `room`, are fetched ahead.
    pub(crate) fn expect(&mut self, region: usize, pages: impl IntoIterator<Item = PageIndex>, room: usize) -> Vec<PageIndex> {
        let new = pages.into_iter().filter(|page| !self.expects(region, *page));
        let new: Vec<_> = new.take(room).collect();
        self.expected.extend(new.iter().map(|page| (region, *page)));
        new
    }

    /// Whether the page has been fetched ahead and is outstanding.
    pub(crate) fn expects(&self, region: usize, page: PageIndex) -> bool {
        self.expected.contains(&(region, page))
    }

    /// Pages have arrived.
    pub(crate) fn received(&mut self, region: usize, pages: PageRange) {
        let arrived = self.expected.range((region, pages.first())..);
        let arrived: Vec<_> = arrived
            .take_while(|(of, page)| *of == region && page.get() < pages.end())
            .copied()
            .collect();
        for key in arrived {
            self.expected.remove(&key);
        }
    }

    /// No page is outstanding any more: the connection was lost.
    pub(crate) fn clear(&mut self) {
        self.expected.clear();
    }
}

impl History {
    /// A page is requested. Returns the pages to fetch ahead.
    fn follow(&mut self, page: u64, limit: u64) -> Vec<u64> {
        let known = self.strides.iter().position(|stride| stride.matches(page));
        let stride = known.and_then(|at| self.strides.remove(at)).or_else(|| self.detect(page));
        let ahead = stride.map(|mut stride| {
            let ahead = stride.advance(page, limit, self.pages);
            // The strides that were followed most recently are at the end.
            self.strides.push_back(stride);
            ahead
        });
        truncate_front(&mut self.strides, MAX_STRIDES);
        self.recent.push_back(page);
        truncate_front(&mut self.recent, MAX_RECENT);
        ahead.unwrap_or_default()
    }

    /// The stride of this request and two earlier ones, if there is one.
    fn detect(&self, page: u64) -> Option<Stride> {
        let step = self.recent.iter().rev().find_map(|before| {
            let step = distance(*before, page).filter(|step| (1..=MAX_STEP).contains(&step.unsigned_abs()))?;
            let first = before.checked_add_signed(-step)?;
            self.recent.contains(&first).then_some(step)
        })?;
        Some(Stride {
            step,
            next: page.checked_add_signed(step)?,
            ahead: INITIAL_AHEAD / 2,
        })
    }
}

impl Stride {
    /// Whether a request for this page continues the stride: it is the next page, or one of the pages fetched ahead last.
    fn matches(&self, page: u64) -> bool {
        let Some(distance) = distance(page, self.next) else {
            return page == self.next;
        };
        distance % self.step == 0 && (0..=self.ahead as i64).contains(&(distance / self.step))
    }

    /// Continues the stride to this page. Returns the pages to fetch.
    fn advance(&mut self, page: u64, limit: u64, pages: u64) -> Vec<u64> {
        self.ahead = (self.ahead * 2).min(limit);
        let mut ahead = Vec::new();
        for at in 1..=self.ahead as i64 {
            let next = self.step.checked_mul(at).and_then(|offset| page.checked_add_signed(offset));
            let Some(next) = next.filter(|next| *next < pages) else {
                break;
            };
            // Pages before `next` have been fetched.
            let new = if self.step > 0 { next >= self.next } else { next <= self.next };
            if new {
                ahead.push(next);
            }
        }
        if let Some(next) = ahead.last().and_then(|last| last.checked_add_signed(self.step)) {
            self.next = next;
        }
        ahead
    }
}

/// The distance between two pages, if a stride can span it.
fn distance(from: u64, to: u64) -> Option<i64> {
    const MAX_DISTANCE: u64 = MAX_STEP * 1024;
    (from.abs_diff(to) <= MAX_DISTANCE).then(|| to as i64 - from as i64)
}

fn truncate_front<T>(queue: &mut VecDeque<T>, max: usize) {
    while queue.len() > max {
        queue.pop_front();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn page(pgoff: u64) -> PageIndex {
        PageIndex::new(pgoff).unwrap()
    }

    /// The pages fetched ahead at each of these requests.
    fn ahead(limit: u64, pages: &[u64]) -> Vec<Vec<u64>> {
        let mut prefetch = Prefetch::new([1000].into_iter(), limit);
        let ask = |pgoff: &u64| {
            prefetch
                .request(0, &[page(*pgoff)], 100)
                .iter()
                .map(|page| page.get())
                .collect()
        };
        pages.iter().map(ask).collect()
    }

    #[test]
    fn stride_doubles_its_pages_ahead() {
        let none: Vec<u64> = vec![];
        let asked = ahead(16, &[10, 11, 12, 17, 26]);
        let expected = [
            none.clone(),
            none,
            vec![13, 14, 15, 16],
            (18..=25).collect(),
            (27..=42).collect(),
        ];
        assert_eq!(asked, expected);
    }

    #[test]
    fn stride_may_be_long_or_backwards() {
        let asked = ahead(16, &[900, 800, 700]);
        assert_eq!(asked[2], [300, 400, 500, 600], "sorted");
        let asked = ahead(16, &[7, 107, 207, 607]);
        assert_eq!(asked[2], [307, 407, 507, 607]);
        assert_eq!(asked[3], [707, 807, 907], "up to the end of the region");
    }

    #[test]
    fn stride_that_overtakes_its_pages_gets_new_ones_only() {
        let asked = ahead(8, &[10, 11, 12, 13]);
        assert_eq!(asked[3], [17, 18, 19, 20, 21]);
    }

    #[test]
    fn two_interleaved_strides_are_both_followed() {
        let asked = ahead(4, &[10, 500, 11, 502, 12, 504, 17, 514]);
        assert_eq!(asked[4], [13, 14, 15, 16]);
        assert_eq!(asked[5], [506, 508, 510, 512]);
        assert_eq!((asked[6].len(), asked[7].len()), (4, 4));
    }

    #[test]
    fn no_stride_or_limit_zero_prefetches_nothing() {
        let asked = ahead(16, &[10, 300, 11, 700, 40, 650, 90, 400]);
        assert!(asked.iter().all(Vec::is_empty), "{asked:?}");
        let asked = ahead(0, &[10, 11, 12, 13]);
        assert!(asked.iter().all(Vec::is_empty), "{asked:?}");
    }

    #[test]
    fn prefetch_is_bounded_by_the_room() {
        let mut prefetch = Prefetch::new([1000].into_iter(), 16);
        let mut ask = |pgoff, room| prefetch.request(0, &[page(pgoff)], room).len();
        assert_eq!(
            (ask(10, 9), ask(11, 9), ask(12, 3), ask(17, 0), ask(26, 100)),
            (0, 0, 3, 0, 16)
        );
        assert!(prefetch.expects(0, page(15)) && !prefetch.expects(0, page(16)));
    }

    #[test]
    fn step_beyond_the_limit_is_no_stride() {
        let ahead = |step| {
            let mut prefetch = Prefetch::new([1 << 20].into_iter(), 16);
            let mut ask = |pgoff| prefetch.request(0, &[page(pgoff)], 100).len();
            (ask(0), ask(step), ask(2 * step)).2
        };
        assert_eq!((ahead(MAX_STEP), ahead(MAX_STEP + 1)), (4, 0));
    }

    #[test]
    fn prefetched_pages_are_expected_until_received() {
        let mut prefetch = Prefetch::new([1000, 1000].into_iter(), 16);
        for pgoff in [10, 11, 12] {
            prefetch.request(1, &[page(pgoff)], 100);
        }
        assert!(prefetch.expects(1, page(14)) && !prefetch.expects(0, page(14)));
        prefetch.received(1, PageRange::from_pgoff(13, 2).unwrap());
        assert!(!prefetch.expects(1, page(14)) && prefetch.expects(1, page(15)));
        prefetch.clear();
        assert!(!prefetch.expects(1, page(15)));
    }
}
