// SPDX-License-Identifier: GPL-2.0-or-later
//! The packs in which a checkpoint's pages are.

use std::collections::BTreeSet;

use vmem_pages::PAGE_SIZE;

use super::Image;
use crate::error::Error;

/// A pack that a checkpoint refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UsedPack {
    pub(crate) ordinal: u32,
    /// References of the checkpoint to pages in it.
    pub(crate) live: u32,
    /// Pages in it.
    pub(crate) pages: u32,
}

impl UsedPack {
    /// Which part of it the checkpoint uses, in millionths.
    pub(crate) fn part(&self) -> u64 {
        u64::from(self.live) * 1_000_000 / u64::from(self.pages.max(1))
    }

    /// Of these the first ones by `key`: at most so many, and of at most so many bytes of pages.
    pub(crate) fn choose<K: Ord>(mut packs: Vec<Self>, count: usize, mut bytes: u64, key: impl Fn(&Self) -> K) -> BTreeSet<u32> {
        packs.sort_by_key(|used| (key(used), used.ordinal));
        let within = packs.into_iter().take(count).map_while(|used| {
            bytes = bytes.checked_sub(u64::from(used.live) * PAGE_SIZE as u64)?;
            Some(used.ordinal)
        });
        within.collect()
    }
}

impl Image {
    /// The packs that the checkpoint refers to. Reads the tables of packs, and nothing else.
    pub(crate) fn used_packs(&self) -> Result<Vec<UsedPack>, Error> {
        let (packs, live) = (self.all_packs()?, self.live()?);
        let used = packs.iter().zip(live).enumerate().filter_map(|(ordinal, (info, live))| {
            let info = info.filter(|_| live > 0)?;
            Some(UsedPack {
                ordinal: ordinal as u32,
                live,
                pages: info.pages,
            })
        });
        Ok(used.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_are_chosen_by_key_within_count_and_bytes() {
        let used = |ordinal, live| UsedPack {
            ordinal,
            live,
            pages: 100,
        };
        let packs = || vec![used(0, 9), used(1, 2), used(2, 5), used(3, 2)];
        let page = PAGE_SIZE as u64;
        let choose = |count, pages| Vec::from_iter(UsedPack::choose(packs(), count, pages * page, |used| used.live));
        assert_eq!(choose(2, 100), [1, 3]);
        assert_eq!(choose(9, 9), [1, 2, 3]);
        assert_eq!(choose(9, 8), [1, 3], "the next one has more pages than there is room for");
        assert!(choose(0, 100).is_empty());
    }
}
