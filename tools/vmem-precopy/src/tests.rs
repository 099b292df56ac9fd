// SPDX-License-Identifier: GPL-2.0-or-later
//! No write is lost: the rounds on a model of memory, against what a naive observer knows.

mod model;
mod simulation;
mod streams;
mod threads;
mod traces;

use std::time::Duration;

use proptest::prelude::*;
use vmem_pages::PageRange;
use vmem_source::Holes;

use crate::limits::{Limits, Mode};
use crate::plan::{Options, Plan};
use crate::progress::Defer;
use model::{Model, Observer, Step};

const OPTIONS: Options = Options {
    mode: Mode::Hybrid,
    limits: Limits::XEN,
    seed: 1,
};

/// Runs the steps, and the last take after them. Panics if a page outside of the remainder is not what it is at the source.
/// First with logs that begin empty, then with logs that begin with all pages.
fn run(sizes: &[u64], seed: u64, steps: &[Step]) {
    run_on(sizes.iter().map(|size| Model::new(*size)).collect(), seed, steps);
    run_on(sizes.iter().map(|size| Model::with_all(*size)).collect(), seed, steps);
}

fn run_on(memories: Vec<Model>, seed: u64, steps: &[Step]) {
    let logs = memories.iter().map(Model::boxed).collect();
    let options = Options { seed, ..OPTIONS };
    let mut plan = Plan::new(logs, options, Defer::HotAndEarly).expect("a plan");
    let mut observer = Observer::new(&memories);
    let mut now = Duration::ZERO;
    for step in steps {
        now += Duration::from_millis(30);
        match *step {
            Step::Write(memory, page) => observer.write(memory, page),
            Step::Hold(memory, page) => observer.hold(memory, page),
            Step::Read => observer.read(),
            Step::Fail(memory, words) => memories[memory % memories.len()].fail_after(words),
            Step::Next(max) => {
                observer.read();
                match plan.next(now, max, true) {
                    Ok(Some(chosen)) => observer.choose(&chosen, max),
                    Ok(None) => (),
                    Err(error) => assert!(memories.iter().any(Model::has_failed), "{error:?}"),
                }
            }
            Step::Map(memory, first, written) => {
                observer.read();
                observer.map(&mut plan, memory, first, written);
            }
            Step::Wait => now += Duration::from_secs(2),
        }
    }
    while let Err(error) = plan.finish() {
        assert!(memories.iter().any(Model::has_failed), "{error:?}");
    }
    observer.read();
    observer.check(&plan.remainder(), plan.statistics(now).remainder.expect("finished"));
}

/// Every sequence of six steps on memory of two words.
#[test]
fn pages_outside_the_remainder_are_right_after_every_short_sequence_of_steps() {
    let steps = [
        Step::Next(1),
        Step::Next(64),
        Step::Map(0, 0, 65),
        Step::Write(0, 0),
        Step::Write(0, 1),
        Step::Write(0, 65),
        Step::Read,
        Step::Wait,
    ];
    const LENGTH: u32 = 6;
    for sequence in 0..steps.len().pow(LENGTH) {
        let at = |position: u32| steps[sequence / steps.len().pow(position) % steps.len()];
        let sequence: Vec<Step> = (0..LENGTH).map(at).collect();
        run(&[66], 1, &sequence);
    }
}

/// The same from the second round on.
#[test]
fn pages_outside_the_remainder_are_right_after_every_short_sequence_of_later_rounds() {
    let steps = [
        Step::Next(1),
        Step::Next(66),
        Step::Write(0, 0),
        Step::Write(0, 65),
        Step::Read,
        Step::Wait,
    ];
    const LENGTH: u32 = 6;
    for sequence in 0..steps.len().pow(LENGTH) {
        let at = |position: u32| steps[sequence / steps.len().pow(position) % steps.len()];
        let first = [Step::Next(66), Step::Write(0, 0), Step::Next(66), Step::Wait, Step::Next(66)];
        let sequence: Vec<Step> = first.into_iter().chain((0..LENGTH).map(at)).collect();
        run(&[66], 1, &sequence);
    }
}

fn a_step() -> impl Strategy<Value = Step> {
    let page = prop_oneof![4 => 0..8_u64, 1 => 0..2000_u64];
    prop_oneof![
        4 => prop_oneof![Just(1_u64), 1..100_u64, Just(4096)].prop_map(Step::Next),
        6 => (0..3_usize, page).prop_map(|(memory, page)| Step::Write(memory, page)),
        1 => (0..3_usize, 0..2000_u64, 0..2000_u64).prop_map(|(memory, first, written)| Step::Map(memory, first, written)),
        2 => Just(Step::Read),
        1 => Just(Step::Wait),
        1 => (0..3_usize, 0..2000_u64).prop_map(|(memory, page)| Step::Hold(memory, page)),
        1 => (0..3_usize, 0..12_usize).prop_map(|(memory, words)| Step::Fail(memory, words)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn pages_outside_the_remainder_are_right_whatever_is_written_and_held_and_fails(
        sizes in prop::collection::vec(1..1500_u64, 1..4),
        seed in any::<u64>(),
        steps in prop::collection::vec(a_step(), 0..200),
    ) {
        run(&sizes, seed, &steps);
    }
}

#[test]
fn page_that_is_written_all_the_time_does_not_keep_others_from_their_turn() {
    let memory = Model::new(64);
    let mut plan = Plan::new(vec![memory.boxed()], OPTIONS, Defer::Nothing).expect("a plan");
    let mut sent = 0;
    for _ in 0..64 {
        memory.write(0);
        sent += plan
            .next(Duration::ZERO, 1, true)
            .expect("a log")
            .map_or(0, |chosen| chosen.ranges[0].count());
    }
    assert_eq!(sent, 64);
    assert_eq!(plan.statistics(Duration::ZERO).now.resent, 0);
}

#[test]
fn holes_after_the_last_take_are_not_told() {
    let memory = Model::new(200);
    let mut plan = Plan::new(vec![memory.boxed()], OPTIONS, Defer::HotAndEarly).expect("a plan");
    let all = PageRange::of_pages(200).expect("pages");
    let whole = |pages: PageRange| Holes {
        pages,
        ranges: vec![pages],
    };
    let (front, back) = all.split_at(100);
    let (front, back) = (front.expect("pages"), back.expect("pages"));
    assert_eq!(plan.map(0, front, &mut |pages| whole(pages)).expect("a log"), whole(front));
    assert_eq!(
        plan.map(1, front, &mut |pages| whole(pages)).expect("no log"),
        Holes::none(front)
    );
    let now = plan.statistics(Duration::ZERO).now;
    assert_eq!((now.sent, now.zero), (100, 100));
    plan.finish().expect("a log");
    assert_eq!(
        plan.map(0, back, &mut |pages| whole(pages)).expect("no log"),
        Holes::none(back)
    );
    assert_eq!(plan.remainder(), [(0, vec![back])]);
}

#[test]
fn hot_pages_go_last_in_a_round_and_first_in_the_remainder() {
    let memory = Model::new(2048);
    let mut plan = Plan::new(vec![memory.boxed()], OPTIONS, Defer::HotAndEarly).expect("a plan");
    let hot = [3, 700, 1500];
    let mut now = Duration::ZERO;
    for round in 1..6 {
        // Cold pages that were written once, and the hot ones.
        (0..20).for_each(|page| memory.write(100 * page + round));
        hot.iter().for_each(|page| memory.write(*page));
        now += Duration::from_secs(1);
        let mut order = Vec::new();
        while let Some(chosen) = plan.next(now, 64, true).expect("a log") {
            assert_eq!(u64::from(chosen.round), round);
            order.extend(chosen.ranges.iter().flat_map(|range| range.iter()).map(|page| page.get()));
        }
        if round > 2 {
            let last: Vec<u64> = order[order.len() - 3..].to_vec();
            assert!(hot.iter().all(|page| last.contains(page)), "{order:?}");
        }
    }
    hot.iter().chain(&[9]).for_each(|page| memory.write(*page));
    plan.finish().expect("a log");
    let remainder = plan.remainder();
    let order: Vec<u64> = remainder
        .iter()
        .flat_map(|(_, ranges)| ranges)
        .map(|range| range.first().get())
        .collect();
    assert_eq!(order, [3, 700, 1500, 9]);
}

#[test]
fn memory_that_nobody_writes_is_sent_once_and_settles() {
    let (first, second) = (Model::new(1000), Model::new(70));
    let mut plan = Plan::new(vec![first.boxed(), second.boxed()], OPTIONS, Defer::HotAndEarly).expect("a plan");
    let mut sent = 0;
    while let Some(chosen) = plan.next(Duration::ZERO, 100, true).expect("a log") {
        sent += chosen.ranges.iter().map(|range| range.count()).sum::<u64>();
    }
    assert_eq!(sent, 1070);
    let statistics = plan.statistics(Duration::ZERO);
    assert_eq!(
        statistics.decision.map(|decision| (decision.round, decision.pages_left)),
        Some((1, 0))
    );
    assert!(plan.next(Duration::from_secs(9), 100, true).expect("a log").is_none());
    assert_eq!((statistics.rounds.len(), plan.finish().expect("a log").len()), (1, 2));
    assert!(plan.remainder().is_empty());
}
