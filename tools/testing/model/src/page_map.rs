// SPDX-License-Identifier: GPL-2.0-or-later

//! Random histories of a page map, step by step against the naive model.

use crate::{
    model::{
        page_map::{PageMap, Verdict, words_for},
        shards::Slots,
    },
    naive::Naive,
};
use proptest::prelude::*;

/// Not a multiple of 64 words, so that the summary plane has a last word that is not full.
const SLOTS: usize = 512 * 9;

#[derive(Clone, Debug)]
enum Step {
    Touch(usize),
    Settle(usize, usize, bool),
    Take(usize),
    Requeue(usize, usize),
    Claim(usize),
    ClaimAround(usize, usize, usize),
    Release(usize, usize, bool),
    Withdraw(usize, usize),
}

fn run() -> impl Strategy<Value = (usize, usize)> {
    // Within one block, as the module calls it, or anything.
    prop_oneof![
        (0..SLOTS, 1..=512usize).prop_map(|(first, nr)| (first, nr.min(512 - first % 512))),
        (0..SLOTS, 1..=SLOTS).prop_map(|(first, nr)| (first, nr.min(SLOTS - first))),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..SLOTS).prop_map(Step::Touch),
        // Neighbours, so that words have several requests.
        3 => (0..130usize).prop_map(Step::Touch),
        3 => (run(), any::<bool>()).prop_map(|((first, nr), ok)| Step::Settle(first, nr, ok)),
        2 => (1..40usize).prop_map(Step::Take),
        1 => run().prop_map(|(first, nr)| Step::Requeue(first, nr)),
        2 => (0..SLOTS).prop_map(Step::Claim),
        2 => (0..130usize).prop_map(Step::Claim),
        2 => (run(), any::<prop::sample::Index>())
            .prop_map(|((first, nr), at)| Step::ClaimAround(first, nr, first + at.index(nr))),
        1 => (run(), any::<bool>()).prop_map(|((first, nr), requests)| Step::Release(first, nr, requests)),
        1 => run().prop_map(|(first, nr)| Step::Withdraw(first, nr)),
    ]
}

fn slots(first: usize, nr: usize) -> Slots {
    Slots { shard: 0, first, nr }
}

fn empty() -> PageMap<Vec<u64>> {
    let words = words_for(SLOTS);
    let plane = || vec![0; words];
    PageMap::new(plane(), plane(), plane(), vec![0; words_for(words)])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn page_map_does_what_the_naive_model_does(
        steps in prop::collection::vec(step(), 1..200),
        looks in prop::collection::vec(run(), 8),
    ) {
        let (mut map, mut naive) = (empty(), Naive::new(SLOTS));
        for step in steps {
            match step {
                Step::Touch(slot) => {
                    prop_assert_eq!(map.touch(slots(slot, 1)), naive.touch(slot));
                }
                Step::Settle(first, nr, ok) => {
                    let verdict = if ok { Verdict::Present } else { Verdict::Unreadable };
                    prop_assert_eq!(
                        map.settle(slots(first, nr), verdict),
                        naive.settle(first, nr, verdict)
                    );
                }
                Step::Take(max) => {
                    let mut taken = Vec::new();
                    let nr = map.take(max, |slot| taken.push(slot));
                    prop_assert_eq!(nr, taken.len());
                    prop_assert_eq!(taken, naive.take(max));
                }
                Step::Requeue(first, nr) => {
                    prop_assert_eq!(map.requeue(slots(first, nr)), naive.requeue(first, nr));
                }
                Step::Claim(slot) => {
                    prop_assert_eq!(map.claim(slots(slot, 1)), naive.claim(slot));
                }
                // Only of a page that is claimed are the neighbours claimed.
                Step::ClaimAround(first, nr, at) => if naive.is_claimed(at) {
                    let window = slots(first, nr);
                    let found = map.absent_around(window, at);
                    let run = map.claim_around(window, at);
                    prop_assert_eq!(found, run);
                    prop_assert_eq!((run.first, run.nr), naive.claim_around(first, nr, at));
                }
                Step::Release(first, nr, requests) => {
                    let released = map.release(slots(first, nr), requests);
                    prop_assert_eq!(released, naive.release(first, nr, requests));
                }
                Step::Withdraw(first, nr) => {
                    prop_assert_eq!(map.withdraw(slots(first, nr)), naive.withdraw(first, nr));
                }
            }
            prop_assert_eq!(map.counts(), naive.counts());
        }
        for (first, nr) in looks {
            prop_assert_eq!(
                map.all_present(slots(first, nr)),
                (first..first + nr).all(|slot| naive.is_present(slot))
            );
            let bits = (0..nr.min(64)).filter(|at| naive.is_present(first + at)).map(|at| 1u64 << at);
            prop_assert_eq!(map.present_among(slots(first, nr)), bits.sum::<u64>());
            prop_assert_eq!(
                map.any_requested(slots(first, nr)),
                (first..first + nr).any(|slot| naive.is_requested(slot))
            );
            prop_assert_eq!(map.is_settled(slots(first, nr)), naive.is_settled(first));
            prop_assert_eq!(map.is_awaited(slots(first, nr)), naive.is_awaited(first));
            prop_assert_eq!(map.is_claimed(slots(first, nr)), naive.is_claimed(first));
            let bit = (map.claimed_word(first / 64) >> (first % 64)) & 1;
            prop_assert_eq!(bit == 1, naive.is_claimed(first));
            let bit = (map.present_word(first / 64) >> (first % 64)) & 1;
            prop_assert_eq!(bit == 1, naive.is_present(first));
        }
    }
}

#[test]
fn a_request_is_taken_once_and_comes_again_only_after_requeue() {
    let mut map = empty();
    map.touch(slots(77, 1));
    map.touch(slots(77, 1));
    let take = |map: &mut PageMap<_>| {
        let mut taken = Vec::new();
        map.take(8, |slot| taken.push(slot));
        taken
    };
    assert_eq!(take(&mut map), [77]);
    assert_eq!(take(&mut map), []);
    map.requeue(slots(0, SLOTS));
    assert_eq!(take(&mut map), [77]);
}
