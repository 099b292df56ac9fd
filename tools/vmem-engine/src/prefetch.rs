// SPDX-License-Identifier: GPL-2.0
//! Which pages a program will want next.
//!
//! Three requests at equal distances begin a *walk*; each request that goes on with it is worth twice as many pages ahead, up to a
//! limit. A walk that nobody goes on with has cost [`FIRST`] pages.

use std::collections::{BTreeSet, VecDeque};

use vmem::{PageIndex, PageRange};
use vmem_pages::end;

/// Requests of a region that are remembered.
const RECENT: usize = 8;
/// Walks of a region that are followed at a time.
const WALKS: usize = 8;
/// Pages ahead when a walk has just been found.
const FIRST: u64 = 4;
/// The longest step of a walk, in pages.
const LONGEST_STEP: u64 = 1024;

/// What is known of all regions.
pub(crate) struct Prefetch {
    regions: Vec<Watch>,
    /// The most pages ahead; none is no prefetch.
    limit: u64,
    /// Pages asked for ahead that have not come.
    expected: BTreeSet<(usize, PageIndex)>,
}

/// What is known of a region.
struct Watch {
    pages: u64,
    recent: VecDeque<u64>,
    walks: VecDeque<Walk>,
}

/// Pages at equal distances.
struct Walk {
    step: i64,
    /// The first page that has not been asked for.
    next: u64,
    /// How many pages ahead were asked for last.
    ahead: u64,
}

impl Prefetch {
    /// For regions with so many pages each, and at most `limit` pages ahead.
    pub(crate) fn new(pages: impl Iterator<Item = u64>, limit: u64) -> Self {
        let watch = |pages| Watch {
            pages,
            recent: VecDeque::new(),
            walks: VecDeque::new(),
        };
        Self {
            regions: pages.map(watch).collect(),
            limit,
            expected: BTreeSet::new(),
        }
    }

    /// Programs want these pages. Returns those to be asked for ahead, `room` at most: none that is wanted, none twice.
    pub(crate) fn wanted(&mut self, region: usize, pages: &[PageIndex], room: usize) -> Vec<PageIndex> {
        let Some(watch) = self.regions.get_mut(region).filter(|_| self.limit > 0) else {
            return Vec::new();
        };
        let mut ahead = BTreeSet::new();
        for page in pages {
            ahead.extend(watch.follow(page.get(), self.limit).into_iter().filter_map(PageIndex::new));
        }
        let expected = &mut self.expected;
        let new = ahead
            .into_iter()
            .filter(|page| !pages.contains(page) && !expected.contains(&(region, *page)));
        let new: Vec<_> = new.take(room).collect();
        expected.extend(new.iter().map(|page| (region, *page)));
        new
    }

    /// Whether the page has been asked for ahead and has not come.
    pub(crate) fn expects(&self, region: usize, page: PageIndex) -> bool {
        self.expected.contains(&(region, page))
    }

    /// Pages have come.
    pub(crate) fn came(&mut self, region: usize, pages: PageRange) {
        let landed = self.expected.range((region, pages.first())..);
        let landed: Vec<_> = landed
            .take_while(|(of, page)| *of == region && page.get() < end(pages))
            .copied()
            .collect();
        for key in landed {
            self.expected.remove(&key);
        }
    }

    /// Nothing is on its way any more.
    pub(crate) fn forget(&mut self) {
        self.expected.clear();
    }
}

impl Watch {
    /// A page is wanted. Which are likely to be wanted next.
    fn follow(&mut self, page: u64, limit: u64) -> Vec<u64> {
        let known = self.walks.iter().position(|walk| walk.passes(page));
        let walk = known.and_then(|at| self.walks.remove(at)).or_else(|| self.begin(page));
        let ahead = walk.map(|mut walk| {
            let ahead = walk.go_on(page, limit, self.pages);
            // The walks that were followed last are at the end.
            self.walks.push_back(walk);
            ahead
        });
        keep(&mut self.walks, WALKS);
        self.recent.push_back(page);
        keep(&mut self.recent, RECENT);
        ahead.unwrap_or_default()
    }

    /// A walk that two earlier requests and this one are on.
    fn begin(&self, page: u64) -> Option<Walk> {
        let step = self.recent.iter().rev().find_map(|before| {
            let step = distance(*before, page).filter(|step| (1..=LONGEST_STEP).contains(&step.unsigned_abs()))?;
            let first = before.checked_add_signed(-step)?;
            self.recent.contains(&first).then_some(step)
        })?;
        Some(Walk {
            step,
            next: page.checked_add_signed(step)?,
            ahead: FIRST / 2,
        })
    }
}

impl Walk {
    /// Whether a request for this page goes on with it: it is the next one, or one of those asked for last.
    fn passes(&self, page: u64) -> bool {
        let Some(distance) = distance(page, self.next) else {
            return page == self.next;
        };
        distance % self.step == 0 && (0..=self.ahead as i64).contains(&(distance / self.step))
    }

    /// It has come to this page. Which pages to ask for.
    fn go_on(&mut self, page: u64, limit: u64, pages: u64) -> Vec<u64> {
        self.ahead = (self.ahead * 2).min(limit);
        let mut ahead = Vec::new();
        for at in 1..=self.ahead as i64 {
            let next = self.step.checked_mul(at).and_then(|way| page.checked_add_signed(way));
            let Some(next) = next.filter(|next| *next < pages) else {
                break;
            };
            // Those up to `next` have been asked for.
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

/// How far it is from one page to another, if that is not too far for a walk's pages ahead.
fn distance(from: u64, to: u64) -> Option<i64> {
    const FARTHEST: u64 = LONGEST_STEP * 1024;
    (from.abs_diff(to) <= FARTHEST).then(|| to as i64 - from as i64)
}

fn keep<T>(queue: &mut VecDeque<T>, most: usize) {
    while queue.len() > most {
        queue.pop_front();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use vmem_pages::range;

    fn page(pgoff: u64) -> PageIndex {
        PageIndex::new(pgoff).unwrap()
    }

    /// What is asked for ahead at each of these requests, one after the other.
    fn ahead(limit: u64, pages: &[u64]) -> Vec<Vec<u64>> {
        let mut prefetch = Prefetch::new([1000].into_iter(), limit);
        let ask = |pgoff: &u64| {
            prefetch
                .wanted(0, &[page(*pgoff)], 100)
                .iter()
                .map(|page| page.get())
                .collect()
        };
        pages.iter().map(ask).collect()
    }

    #[test]
    fn a_walk_is_followed_farther_and_farther() {
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
    fn steps_may_be_long_and_go_back() {
        let asked = ahead(16, &[900, 800, 700]);
        assert_eq!(asked[2], [300, 400, 500, 600], "sorted");
        let asked = ahead(16, &[7, 107, 207, 607]);
        assert_eq!(asked[2], [307, 407, 507, 607]);
        assert_eq!(asked[3], [707, 807, 907], "up to the end of the region");
    }

    #[test]
    fn who_is_faster_than_the_pages_gets_more_of_them_and_none_twice() {
        let asked = ahead(8, &[10, 11, 12, 13]);
        assert_eq!(asked[3], [17, 18, 19, 20, 21]);
    }

    #[test]
    fn two_walks_do_not_disturb_each_other() {
        let asked = ahead(4, &[10, 500, 11, 502, 12, 504, 17, 514]);
        assert_eq!(asked[4], [13, 14, 15, 16]);
        assert_eq!(asked[5], [506, 508, 510, 512]);
        assert_eq!((asked[6].len(), asked[7].len()), (4, 4));
    }

    #[test]
    fn nothing_is_prefetched_where_there_is_no_order_or_no_wish() {
        let asked = ahead(16, &[10, 300, 11, 700, 40, 650, 90, 400]);
        assert!(asked.iter().all(Vec::is_empty), "{asked:?}");
        let asked = ahead(0, &[10, 11, 12, 13]);
        assert!(asked.iter().all(Vec::is_empty), "{asked:?}");
    }

    #[test]
    fn no_more_is_prefetched_than_there_is_room_for() {
        let mut prefetch = Prefetch::new([1000].into_iter(), 16);
        let mut ask = |pgoff, room| prefetch.wanted(0, &[page(pgoff)], room).len();
        assert_eq!(
            (ask(10, 9), ask(11, 9), ask(12, 3), ask(17, 0), ask(26, 100)),
            (0, 0, 3, 0, 16)
        );
        assert!(prefetch.expects(0, page(15)) && !prefetch.expects(0, page(16)));
    }

    #[test]
    fn steps_have_a_limit() {
        let ahead = |step| {
            let mut prefetch = Prefetch::new([1 << 20].into_iter(), 16);
            let mut ask = |pgoff| prefetch.wanted(0, &[page(pgoff)], 100).len();
            (ask(0), ask(step), ask(2 * step)).2
        };
        assert_eq!((ahead(LONGEST_STEP), ahead(LONGEST_STEP + 1)), (4, 0));
    }

    #[test]
    fn pages_on_their_way_are_known_until_they_come() {
        let mut prefetch = Prefetch::new([1000, 1000].into_iter(), 16);
        for pgoff in [10, 11, 12] {
            prefetch.wanted(1, &[page(pgoff)], 100);
        }
        assert!(prefetch.expects(1, page(14)) && !prefetch.expects(0, page(14)));
        prefetch.came(1, range(13, 2).unwrap());
        assert!(!prefetch.expects(1, page(14)) && prefetch.expects(1, page(15)));
        prefetch.forget();
        assert!(!prefetch.expects(1, page(15)));
    }
}
