// SPDX-License-Identifier: GPL-2.0-or-later

//! The log of writes: random histories against a set of pages, and (below) what it promises in every order of events.

/// A word of a log: that of the standard library, or the checker's.
macro_rules! impl_bits {
    ($atomic:ty) => {
        impl AtomicBits for $atomic {
            fn load(&self) -> u64 {
                <$atomic>::load(self, SeqCst)
            }

            fn set(&self, bits: u64) -> u64 {
                self.fetch_or(bits, SeqCst)
            }

            fn clear(&self, bits: u64) -> u64 {
                self.fetch_and(!bits, SeqCst)
            }
        }
    };
}

mod writers;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use crate::model::{
    dirty_log::{AtomicBits, CHUNK_PAGES, ChunkBits, DirtyLog, NO_PAGES, count, runs, words_for},
    range::PageRange,
};
use proptest::prelude::*;

/// Three chunks, the last of which is not full, and neither is its last word.
const PAGES: u64 = 2 * CHUNK_PAGES + 777;

impl_bits!(AtomicU64);

#[derive(Clone, Debug)]
enum Step {
    Mark(u64, u64),
    Peek(u64, u64),
    Take(u64, u64),
    /// Takes, and puts every other page back.
    TakeAndPutBack(u64, u64),
}

fn empty() -> DirtyLog<Vec<AtomicU64>> {
    let plane = |words| (0..words).map(|_| AtomicU64::new(0)).collect();
    let (words, summary) = words_for(PAGES);
    DirtyLog::new(plane(words), plane(summary))
}

fn range(first: u64, nr: u64) -> PageRange {
    PageRange::within(first, nr, PAGES).expect("a run within the limit")
}

fn run() -> impl Strategy<Value = (u64, u64)> {
    prop_oneof![
        (0..PAGES, 1..=70u64).prop_map(|(first, nr)| (first, nr.min(PAGES - first))),
        (0..PAGES, 1..=PAGES).prop_map(|(first, nr)| (first, nr.min(PAGES - first))),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => run().prop_map(|(first, nr)| Step::Mark(first, nr)),
        1 => run().prop_map(|(first, nr)| Step::Peek(first, nr)),
        2 => run().prop_map(|(first, nr)| Step::Take(first, nr)),
        1 => run().prop_map(|(first, nr)| Step::TakeAndPutBack(first, nr)),
    ]
}

/// The pages of `chunk` that are in `bits`, one by one.
fn pages(chunk: PageRange, bits: &ChunkBits) -> BTreeSet<u64> {
    (chunk.start()..chunk.end())
        .filter(|page| (bits[(page % CHUNK_PAGES / 64) as usize] >> (page % 64)) & 1 != 0)
        .collect()
}

fn within(set: &BTreeSet<u64>, range: PageRange) -> BTreeSet<u64> {
    set.range(range.start()..range.end()).copied().collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn log_does_what_a_set_does(steps in prop::collection::vec(step(), 1..60)) {
        let (log, mut set) = (empty(), BTreeSet::new());
        for step in steps {
            match step {
                Step::Mark(first, nr) => {
                    log.mark(range(first, nr));
                    set.extend(first..first + nr);
                }
                Step::Peek(first, nr) => {
                    for chunk in range(first, nr).pieces(CHUNK_PAGES) {
                        prop_assert_eq!(pages(chunk, &log.peek(chunk)), within(&set, chunk));
                    }
                }
                Step::Take(first, nr) => {
                    for chunk in range(first, nr).pieces(CHUNK_PAGES) {
                        let taken = pages(chunk, &log.take(chunk));
                        prop_assert_eq!(&taken, &within(&set, chunk));
                        set.retain(|page| !taken.contains(page));
                    }
                }
                Step::TakeAndPutBack(first, nr) => {
                    for chunk in range(first, nr).pieces(CHUNK_PAGES) {
                        let mut bits = log.take(chunk);
                        for word in &mut bits {
                            *word &= 0x5555_5555_5555_5555;
                        }
                        log.mark_bits(chunk, &bits);
                        set.retain(|page| *page < chunk.start() || *page >= chunk.end() || page % 2 == 0);
                    }
                }
            }
            prop_assert_eq!(log.count(), set.len() as u64);
        }
    }

    #[test]
    fn runs_are_the_set_bits_and_the_gaps_that_are_joined(
        marks in prop::collection::vec(run(), 0..8),
        (first, nr) in run(),
        gap in prop_oneof![Just(0u64), 1..100u64, Just(u64::MAX)],
    ) {
        let log = empty();
        for (first, nr) in marks {
            // Short ones, so that there are gaps.
            log.mark(range(first, nr.min(40)));
        }
        for chunk in range(first, nr).pieces(CHUNK_PAGES) {
            let bits = log.peek(chunk);
            let set = pages(chunk, &bits);
            let joined: Vec<PageRange> = runs(chunk, &bits, gap).collect();
            for run in &joined {
                prop_assert!(set.contains(&run.start()) && set.contains(&(run.end() - 1)));
            }
            for pair in joined.windows(2) {
                prop_assert!(pair[1].start() - pair[0].end() > gap);
            }
            let covered: BTreeSet<u64> = joined.iter().flat_map(|run| run.start()..run.end()).collect();
            prop_assert!(set.is_subset(&covered));
            if gap == 0 {
                prop_assert_eq!(covered, set);
            }
        }
    }
}

#[test]
fn pages_that_the_memory_does_not_have_are_left_out() {
    let log = empty();
    log.mark(PageRange::within(PAGES - 1, 1 << 40, u64::MAX).expect("a run"));
    let last = range(PAGES - 1, 1);
    assert_eq!(pages(last, &log.peek(last)).len(), 1);
    assert_eq!(count(last, &log.peek(last)), 1);
    assert_eq!(runs(last, &NO_PAGES, 0).count(), 0);
}
