// SPDX-License-Identifier: GPL-2.0-or-later
//! The order in which a whole checkpoint is best read, and how scattered it is.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use vmem_pages::{PageIndex, PageRange, PageSet};

use super::Image;
use crate::error::Error;
use crate::leaf::{Entry, LEAF_PAGES};

/// Pages of a backend in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Touch {
    /// The backend, by its place in the checkpoint.
    pub backend: usize,
    /// The pages.
    pub pages: PageRange,
}

impl Touch {
    /// Appends to `touches`, joined with the last of them if it follows that.
    pub fn append_to(self, touches: &mut Vec<Self>) {
        match touches.last_mut() {
            Some(last) if last.backend == self.backend && last.pages.end() == self.pages.first().get() => {
                if let Some(joined) = last.pages.join(self.pages) {
                    last.pages = joined;
                }
            }
            _ => touches.push(self),
        }
    }
}

/// How scattered the pages of a checkpoint are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Fragmentation {
    /// Pages with contents in the store.
    pub pages: u64,
    /// Runs of them that lie in the store as in memory.
    pub runs: u64,
    /// Packs that they are in.
    pub packs: u64,
    /// Pages in these packs, of this checkpoint or not.
    pub pack_pages: u64,
    /// Objects of the index.
    pub indexes: u64,
}

impl Image {
    /// Where each page with contents is, in the order of backends and pages.
    pub(crate) fn data(&self, mut each: impl FnMut(usize, u64, u32, u32)) -> Result<(), Error> {
        for backend in 0..self.backends().len() {
            let pages = self.backends()[backend].pages();
            for leaf in 0..self.leaves_of(backend) {
                if self.leaf_record(backend, leaf)?.is_none() {
                    continue;
                }
                let entries = self.leaf(backend, leaf)?;
                let first = leaf * LEAF_PAGES;
                for (pgoff, entry) in (first..pages).zip(&entries.0) {
                    if let Entry::Data { pack, number } = entry {
                        each(backend, pgoff, *pack, *number);
                    }
                }
            }
        }
        Ok(())
    }

    /// All pages with contents: first those of `order`, as far as the checkpoint has them, then the others as they lie in the store.
    /// Read in this order, each part of each pack is fetched about once.
    pub fn plan(&self, order: &[Touch]) -> Result<Vec<Touch>, Error> {
        self.planned(order, |_| true)
    }

    /// The same of the pages that are in these packs.
    pub(crate) fn plan_of(&self, order: &[Touch], packs: &BTreeSet<u32>) -> Result<Vec<Touch>, Error> {
        self.planned(order, |pack| packs.contains(&pack))
    }

    fn planned(&self, order: &[Touch], is_wanted: impl Fn(u32) -> bool) -> Result<Vec<Touch>, Error> {
        let mut data = Vec::new();
        self.data(|backend, pgoff, pack, number| {
            if is_wanted(pack) {
                data.push((pack, number, backend, pgoff));
            }
        })?;
        data.sort_unstable();
        let pages = self.backends().iter().map(|backend| PageRange::of_pages(backend.pages()));
        let mut planned: Vec<_> = pages.map(|pages| pages.map(PageSet::none_of)).collect();
        let mut touches = Vec::new();
        let mut push = |backend, pgoff| {
            if let Some(pages) = PageRange::from_pgoff(pgoff, 1) {
                Touch { backend, pages }.append_to(&mut touches);
            }
        };
        for touch in order {
            let Some(Some(planned)) = planned.get_mut(touch.backend) else {
                continue;
            };
            let gaps: Vec<_> = planned.gaps_of(touch.pages).collect();
            for page in gaps.into_iter().flat_map(PageRange::iter) {
                if matches!(self.entry(touch.backend, page.get())?, Entry::Data { pack, .. } if is_wanted(pack)) {
                    push(touch.backend, page.get());
                }
            }
            planned.insert(touch.pages);
        }
        data.iter()
            .filter(|(_, _, backend, pgoff)| {
                let planned = planned.get(*backend).and_then(Option::as_ref);
                !planned.is_some_and(|planned| PageIndex::new(*pgoff).is_some_and(|page| planned.contains(page)))
            })
            .for_each(|(_, _, backend, pgoff)| push(*backend, *pgoff));
        Ok(touches)
    }

    /// How scattered the checkpoint is. Reads its index, and no pages.
    pub fn fragmentation(&self) -> Result<Fragmentation, Error> {
        let mut found = Fragmentation::default();
        let mut last = None;
        self.data(|backend, pgoff, pack, number| {
            found.pages += 1;
            let follows = last == Some((backend, pgoff.wrapping_sub(1), pack, number.wrapping_sub(1)));
            found.runs += u64::from(!follows);
            last = Some((backend, pgoff, pack, number));
        })?;
        for used in self.used_packs()? {
            found.packs += 1;
            found.pack_pages += u64::from(used.pages);
        }
        found.indexes = self.manifest().indexes.iter().flatten().count() as u64;
        Ok(found)
    }
}
