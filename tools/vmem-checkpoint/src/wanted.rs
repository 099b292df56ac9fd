// SPDX-License-Identifier: GPL-2.0-or-later
//! What a checkpoint has to write of a memory.

use vmem::PageSet;

use crate::pages::count;

/// What is to be written of an image.
pub(crate) struct Wanted {
    /// The pages.
    pub(crate) set: PageSet,
    /// Those of them that are absent: a read waits until they have come.
    pub(crate) awaited: PageSet,
}

impl Wanted {
    /// Pages that need not be waited for.
    pub(crate) fn there(set: PageSet) -> Self {
        let awaited = PageSet::none_of(set.pages());
        Self { set, awaited }
    }
}

/// What is to be written of a memory of which `owed` are the pages that the parent may have otherwise. Pages were `lacking` before the instant, and
/// those that have not come since the instant are `absent`. Returns also how many of these are left to the parent, which has them if the memory
/// `is_filled` from its origin.
pub(crate) fn wanted(owed: &PageSet, lacking: &PageSet, absent: PageSet, is_filled: bool) -> (Wanted, u64) {
    let mut set = owed.clone();
    // What has come since may be from elsewhere, and is not in the log of the instant.
    lacking.runs().for_each(|run| set.insert(run));
    if is_filled {
        set.subtract(&absent);
        return (Wanted::there(set), count(&absent));
    }
    absent.runs().for_each(|run| set.insert(run));
    (Wanted { set, awaited: absent }, 0)
}

#[cfg(test)]
mod tests {
    use vmem::PageRange;

    use super::*;

    #[test]
    fn absent_pages_are_left_to_the_parent_or_waited_for() {
        let range = |first, count| PageRange::from_pgoff(first, count).expect("pages");
        let set = |runs: &[PageRange]| {
            let mut set = PageSet::none_of(range(0, 10));
            runs.iter().for_each(|run| set.insert(*run));
            set
        };
        let owed = set(&[range(0, 4)]);
        // Page 6 has come since.
        let (lacking, absent) = (set(&[range(2, 5)]), set(&[range(2, 4)]));
        let (left, referred) = wanted(&owed, &lacking, absent.clone(), true);
        assert_eq!(
            (left.set, left.awaited, referred),
            (set(&[range(0, 2), range(6, 1)]), set(&[]), 4)
        );
        let (all, referred) = wanted(&owed, &lacking, absent.clone(), false);
        assert_eq!((all.set, all.awaited, referred), (set(&[range(0, 7)]), absent, 0));
    }
}
