// SPDX-License-Identifier: GPL-2.0-or-later
//! The threads of the rounds: one that sends, one that controls, and the program.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vmem_pages::PageIndex;
use vmem_source::rounds::{Batch, Rounds, Sent};

use super::model::Model;
use crate::decision::Reason;
use crate::error::Error;
use crate::limits::{Limits, Mode};
use crate::order::mix;
use crate::plan::{Adjustment, Options};
use crate::rounds::{Event, PreCopy};
use crate::statistics::RoundStatistics;

const OPTIONS: Options = Options {
    mode: Mode::Auto,
    limits: Limits::XEN,
    seed: 3,
};

fn precopy(memories: &[Model]) -> PreCopy {
    PreCopy::new(memories.iter().map(Model::boxed).collect(), OPTIONS).expect("rounds")
}

fn pages(batch: &Batch) -> Vec<(usize, u64)> {
    let pages = batch.pages.iter().flat_map(|pages| {
        let all = pages.ranges.iter().flat_map(|range| range.iter());
        all.map(|page| (pages.export, page.get()))
    });
    pages.collect()
}

/// The next pages, which are sent at once.
fn next_sent(precopy: &PreCopy, max: u64) -> Batch {
    let batch = precopy.next(max).expect("a batch");
    precopy.sent(&batch, &Sent::default());
    batch
}

/// Sends until the rounds are over, and returns the destination's memory.
fn send(precopy: &PreCopy, memories: &[Model]) -> Vec<Vec<u64>> {
    let mut destination: Vec<Vec<u64>> = memories.iter().map(|memory| vec![0; memory.len() as usize]).collect();
    loop {
        let batch = precopy.next(128).expect("a batch");
        let pages = pages(&batch);
        for (memory, page) in &pages {
            destination[*memory][*page as usize] = memories[*memory].read(*page);
        }
        thread::sleep(Duration::from_micros(pages.len() as u64));
        precopy.sent(
            &batch,
            &Sent {
                data: pages.len() as u64,
                bytes: 4096 * pages.len() as u64,
                elapsed: Duration::from_micros(pages.len() as u64),
                ..Sent::default()
            },
        );
        if batch.over {
            return destination;
        }
    }
}

#[test]
fn destination_has_the_memory_of_a_program_that_wrote_all_the_time() {
    for seed in 0..4 {
        let memories = [Model::new(5000), Model::new(777)];
        let precopy = precopy(&memories);
        let running = AtomicBool::new(true);
        let mut destination = thread::scope(|scope| {
            let sender = scope.spawn(|| send(&precopy, &memories));
            let program = scope.spawn(|| {
                let mut state = seed;
                while running.load(Ordering::Relaxed) {
                    state = mix(state);
                    let memory = &memories[(state % 2) as usize];
                    memory.write((state >> 8) % if state & 2 == 0 { memory.len() } else { 50 });
                    thread::sleep(Duration::from_micros(20));
                }
            });
            let begin = Instant::now();
            loop {
                match precopy.next_event(Duration::from_millis(100)) {
                    Some(Event::Settled(_)) => break,
                    Some(Event::Lost) => panic!("lost"),
                    _ => assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", precopy.statistics()),
                }
            }
            running.store(false, Ordering::Relaxed);
            program.join().expect("a program");
            let left = precopy.finish().expect("a log");
            assert_eq!(precopy.finish().expect("a log").pages, left.pages);
            sender.join().expect("a sender")
        });
        let mut count = 0;
        for pages in precopy.remainder().expect("a remainder") {
            for page in pages.ranges.iter().flat_map(|range| range.iter()).map(PageIndex::get) {
                destination[pages.export][page as usize] = memories[pages.export].read(page);
                count += 1;
            }
        }
        for (memory, destination) in memories.iter().zip(destination) {
            assert!((0..memory.len()).all(|page| destination[page as usize] == memory.read(page)));
        }
        let statistics = precopy.statistics();
        assert_eq!(statistics.remainder, Some(count));
        assert!(count > 0 && count < 5000, "{count}");
        assert!(statistics.bandwidth.is_some_and(|bandwidth| bandwidth > 0));
    }
}

#[test]
fn next_waits_a_second_when_there_is_nothing_to_send_and_finish_wakes_it() {
    let memory = Model::new(10);
    let precopy = precopy(std::slice::from_ref(&memory));
    assert_eq!(pages(&next_sent(&precopy, 100)).len(), 10);
    let begin = Instant::now();
    let batch = precopy.next(100).expect("a batch");
    assert!(batch.pages.is_none() && !batch.over);
    assert!(begin.elapsed() >= Duration::from_millis(900), "{:?}", begin.elapsed());
    let settled = (0..3).find_map(|_| {
        precopy
            .next_event(Duration::ZERO)
            .filter(|event| matches!(event, Event::Settled(_)))
    });
    assert!(settled.is_some());
    thread::scope(|scope| {
        let next = scope.spawn(|| {
            let begin = Instant::now();
            (precopy.next(100).expect("a batch"), begin.elapsed())
        });
        thread::sleep(Duration::from_millis(20));
        memory.write(4);
        precopy.finish().expect("a log");
        let (batch, waited) = next.join().expect("a thread");
        // The page may have been chosen before the last take.
        assert!(batch.over || batch.pages.is_some());
        assert!(waited < Duration::from_millis(900), "{waited:?}");
    });
    assert!(precopy.next(100).expect("a batch").over);
}

/// Two threads send pages of a round, and the one that is done first does not end it.
#[test]
fn round_is_told_of_with_all_pages_that_were_chosen_in_it() {
    let memory = Model::new(100);
    let precopy = precopy(std::slice::from_ref(&memory));
    let (first, last) = (precopy.next(60).expect("a batch"), precopy.next(60).expect("a batch"));
    let zero = |batch: &Batch| {
        let zero = pages(batch).len() as u64;
        precopy.sent(batch, &Sent { zero, ..Sent::default() });
    };
    zero(&first);
    thread::scope(|scope| {
        let next = scope.spawn(|| precopy.next(60).expect("a batch"));
        assert_eq!(precopy.next_event(Duration::from_millis(100)), None);
        zero(&last);
        let event = precopy.next_event(Duration::from_secs(10));
        let told = |round: &RoundStatistics| (round.sent, round.zero, round.left) == (100, 100, 0);
        assert!(matches!(&event, Some(Event::Round(round)) if told(round)), "{event:?}");
        next.join().expect("a thread");
    });
}

#[test]
fn page_that_is_written_while_nothing_is_left_is_sent_within_a_second() {
    let memory = Model::new(10);
    let precopy = precopy(std::slice::from_ref(&memory));
    next_sent(&precopy, 100);
    thread::scope(|scope| {
        let next = scope.spawn(|| precopy.next(100).expect("a batch"));
        thread::sleep(Duration::from_millis(150));
        memory.write(7);
        assert_eq!(pages(&next.join().expect("a thread")), [(0, 7)]);
    });
}

#[test]
fn remainder_before_the_last_take_and_everything_after_a_lost_connection_is_an_error() {
    let precopy = precopy(&[Model::new(10)]);
    assert!(matches!(precopy.remainder(), Err(Error::NotFinished)));
    precopy.lost();
    precopy.lost();
    assert_eq!(precopy.next_event(Duration::ZERO), Some(Event::Lost));
    assert_eq!(precopy.next_event(Duration::ZERO), None);
    assert!(matches!(precopy.next(1), Err(Error::Lost)));
    assert!(matches!(precopy.finish(), Err(Error::Lost)));
    assert!(matches!(precopy.remainder(), Err(Error::Lost)));
}

#[test]
fn lost_connection_ends_the_log() {
    let memory = Model::new(10);
    let precopy = precopy(std::slice::from_ref(&memory));
    precopy.next(5).expect("a batch");
    assert!(memory.is_logged());
    precopy.lost();
    // A thread ends it.
    let until = Instant::now() + Duration::from_secs(10);
    while memory.is_logged() {
        assert!(Instant::now() < until, "the log goes on");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn user_can_switch_in_the_middle_of_a_round() {
    let precopy = precopy(&[Model::new(1000)]);
    precopy.next(100).expect("a batch");
    precopy.switch_now().expect("a log");
    precopy.switch_now().expect("a log");
    let Some(Event::Settled(decision)) = precopy.next_event(Duration::ZERO) else {
        panic!("no decision");
    };
    assert_eq!((decision.reason, decision.pages_left), (Reason::Requested, 900));
    assert_eq!(precopy.next_event(Duration::ZERO), None);
    assert_eq!(precopy.finish().expect("a log").pages, 900);
    assert!(matches!(precopy.switch_now(), Err(Error::Over)));
}

#[test]
fn log_that_ends_is_an_error_and_not_a_lost_page() {
    let memory = Model::new(640);
    let precopy = precopy(std::slice::from_ref(&memory));
    memory.fail_after(0);
    assert!(matches!(precopy.next(64), Err(Error::Log { memory: 0, .. })));
    memory.fail_after(3);
    assert!(matches!(precopy.finish(), Err(Error::Log { memory: 0, .. })));
    assert_eq!(precopy.finish().expect("a log").pages, 640);
}

#[test]
fn server_hears_what_failed_and_why() {
    let memory = Model::new(640);
    let rounds: Box<dyn Rounds> = Box::new(precopy(std::slice::from_ref(&memory)));
    memory.fail_after(0);
    let error = rounds.next(64).expect_err("a log that fails");
    assert_eq!(error.to_string(), "cannot take the dirty log of memory 0");
    let source = std::error::Error::source(&error).map(ToString::to_string);
    assert_eq!(source, Some(vmem::Error::NotTracked.to_string()));
    assert_eq!(pages(&rounds.next(64).expect("a batch")).len(), 64);
    assert!(rounds.remainder().is_err());
    rounds.lost();
    assert!(rounds.next(64).is_err());
}

#[test]
fn finish_wakes_a_thread_that_waits_for_pages_before_the_log_is_read_again() {
    let latency = || {
        let precopy = precopy(&[Model::new(10)]);
        next_sent(&precopy, 100);
        thread::scope(|scope| {
            let next = scope.spawn(|| {
                assert!(precopy.next(100).expect("a batch").over);
                Instant::now()
            });
            thread::sleep(Duration::from_millis(20));
            precopy.finish().expect("a log");
            let finished = Instant::now();
            next.join().expect("a thread").saturating_duration_since(finished)
        })
    };
    // The log is read every 50 ms, so a thread that is not woken takes 30. This machine may be busy.
    let least = (0..8).map(|_| latency()).min();
    assert!(least < Some(Duration::from_millis(15)), "{least:?}");
}

#[test]
fn mode_and_downtime_can_be_changed_until_the_last_take_and_are_those_of_what_is_left() {
    let memory = Model::new(64 * 64);
    let precopy = precopy(std::slice::from_ref(&memory));
    assert!(matches!(
        precopy.adjust(Adjustment {
            mode: Some(Mode::Hybrid),
            downtime: Some(Duration::from_secs(61)),
        }),
        Err(Error::Limit { .. })
    ));
    let standing = precopy.standing().expect("they run");
    assert_eq!((standing.mode, standing.left), (Mode::Auto, 64 * 64), "nothing is changed");
    precopy
        .adjust(Adjustment {
            mode: Some(Mode::Precopy),
            downtime: Some(Duration::from_secs(60)),
        })
        .expect("rounds");
    precopy.set_bandwidth_limit(Some(1 << 20));
    let standing = precopy.standing().expect("they run");
    assert_eq!(
        (standing.mode, standing.downtime, standing.limit, standing.expected),
        (Mode::Precopy, Duration::from_secs(60), Some(1 << 20), None)
    );
    // More than what may lie in buffers.
    for _ in 0..16 {
        let batch = precopy.next(256).expect("a batch");
        let sent = Sent {
            data: 256,
            bytes: 1 << 20,
            ..Sent::default()
        };
        thread::sleep(Duration::from_millis(10));
        precopy.sent(&batch, &sent);
    }
    memory.write(7);
    let left = precopy.finish().expect("a log");
    assert!(left.pages >= 1 && left.fits, "{left:?}");
    assert!(
        left.expected.is_some_and(|expected| expected < Duration::from_secs(60)),
        "{left:?}"
    );
    assert_eq!(precopy.standing(), None);
    assert!(matches!(precopy.adjust(Adjustment::default()), Err(Error::Over)));
}

#[test]
fn what_the_last_take_has_left_does_not_fit_if_the_program_wrote_after_the_decision() {
    let memory = Model::new(64 * 64);
    let precopy = precopy(std::slice::from_ref(&memory));
    // One MiB in 10 ms, so that 10 MiB fit into the downtime.
    while let Some(pages) = precopy.next(256).expect("a batch").pages {
        let sent = Sent {
            data: pages.pages(),
            bytes: 4096 * pages.pages(),
            ..Sent::default()
        };
        thread::sleep(Duration::from_millis(10));
        precopy.sent(
            &Batch {
                round: 1,
                pages: Some(pages),
                over: false,
            },
            &sent,
        );
    }
    let decision = std::iter::from_fn(|| precopy.next_event(Duration::ZERO)).find_map(|event| match event {
        Event::Settled(decision) => Some(decision),
        _ => None,
    });
    assert!(decision.is_some_and(|decision| decision.fits()), "{decision:?}");
    precopy
        .adjust(Adjustment {
            mode: None,
            downtime: Some(Duration::from_millis(1)),
        })
        .expect("rounds");
    (0..64 * 64).for_each(|page| memory.write(page));
    let left = precopy.finish().expect("a log");
    assert_eq!((left.pages, left.fits), (64 * 64, false));
}
