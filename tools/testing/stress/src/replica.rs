// SPDX-License-Identifier: GPL-2.0-or-later
//! A copy of tracked memory that is kept by its log: what it holds, and which pages are to come into the log.

use std::collections::{HashMap, HashSet};

use vmem::PresentMap;

/// Contents of pages.
pub(crate) type Pages = HashMap<u64, Vec<u8>>;

/// Pages as they were read after they had been cleaned.
#[derive(Debug)]
pub(crate) struct Replica {
    contents: Pages,
    /// Pages that were absent since they were cleaned last. [`None`] if the log does not have pages that come.
    absent: Option<HashSet<u64>>,
}

impl Replica {
    /// Nothing is known yet. `fills` is whether pages that come are in the log.
    pub(crate) fn new(fills: bool) -> Self {
        Self {
            contents: Pages::new(),
            absent: fills.then(HashSet::new),
        }
    }

    /// What a page that the log calls clean has, if that is known.
    pub(crate) fn get(&self, page: u64) -> Option<&Vec<u8>> {
        self.contents.get(&page)
    }

    /// A page was read after it had been cleaned.
    pub(crate) fn insert(&mut self, page: u64, contents: Vec<u8>) {
        self.contents.insert(page, contents);
    }

    /// What an image had, of a page whose later writes are in the log.
    pub(crate) fn insert_if_unknown(&mut self, page: u64, contents: &[u8]) {
        self.contents.entry(page).or_insert_with(|| contents.to_vec());
    }

    /// A page was taken out of the log, or its contents cannot be told.
    pub(crate) fn forget(&mut self, page: u64) {
        self.contents.remove(&page);
        self.expect_no_more(page);
    }

    /// Contents of the pages for which `chosen` is true.
    pub(crate) fn only(&self, chosen: impl Fn(u64) -> bool) -> Pages {
        let known = self.contents.iter().filter(|(page, _)| chosen(**page));
        known.map(|(page, contents)| (*page, contents.clone())).collect()
    }

    /// These were absent while the memory was tracked.
    pub(crate) fn see(&mut self, present: &PresentMap) {
        if let Some(absent) = &mut self.absent {
            let pages = present.absent().flat_map(|run| run.iter());
            absent.extend(pages.map(|page| page.get()));
        }
    }

    /// Whether a page is in the log as soon as it is present.
    pub(crate) fn expects(&self, page: u64) -> bool {
        self.absent.as_ref().is_some_and(|absent| absent.contains(&page))
    }

    /// A page that has come was found in the log.
    pub(crate) fn expect_no_more(&mut self, page: u64) {
        if let Some(absent) = &mut self.absent {
            absent.remove(&page);
        }
    }
}
