// SPDX-License-Identifier: GPL-2.0-or-later
//! Case 2: many threads touch absent pages at once.

use std::sync::{Arc, Barrier};
use std::time::Instant;

use super::{Bench, Round};
use crate::contents::verify;
use crate::failure::{Failure, Outcome};
use crate::order::shuffled;
use crate::peer::{Daemon, Kind, Peer, touch};

/// Pages in all, where each thread has its own: a few for each, since one thread alone waits for each.
fn distinct_pages(threads: u64) -> u64 {
    (threads * 128).min(1024)
}
/// Pages that each thread touches, where all touch the same ones.
const SAME: u64 = 64;

/// How many threads, and how many of the daemon.
const RACES: [(u64, u64); 6] = [(1, 1), (4, 1), (16, 1), (64, 1), (64, 2), (256, 1)];
const KINDS: [Kind; 3] = [Kind::Vmem, Kind::Missing, Kind::Minor];

pub(super) fn round(bench: &Bench, number: u64, round: &mut Round) -> Outcome {
    for (threads, daemons) in RACES {
        let who = match daemons {
            1 => format!("{threads} threads"),
            _ => format!("{threads} threads, {daemons} of the daemon"),
        };
        for kind in bench.chosen(&KINDS) {
            let rate = race_for_distinct(bench, kind, threads, daemons, number)?;
            round.add(format!("{who}, distinct pages"), "faults/s", kind.name(), rate);
        }
        for kind in bench.chosen(&KINDS).filter(|_| threads > 1) {
            let (rate, per_page) = race_for_same(bench, kind, threads, daemons, number)?;
            round.add(format!("{who}, same pages"), "pages/s", kind.name(), rate);
            round.add(format!("{who}, same pages, requests"), "per page", kind.name(), per_page);
        }
    }
    Ok(())
}

/// Lets each of so many threads touch pages of its own. Returns how many faults a second there are.
pub(super) fn race_for_distinct(bench: &Bench, kind: Kind, threads: u64, daemons: u64, seed: u64) -> Outcome<f64> {
    let pages = distinct_pages(threads);
    let share = pages / threads;
    let distinct = |thread| {
        let own = shuffled(share, seed + thread).into_iter();
        own.map(|page| thread * share + page).collect()
    };
    let (seconds, _) = race(bench, kind, pages, threads, daemons, distinct)?;
    Ok(pages as f64 / seconds)
}

/// Lets all threads touch the same pages. Returns how many pages a second come, and how many requests of each the daemon gets.
pub(super) fn race_for_same(bench: &Bench, kind: Kind, threads: u64, daemons: u64, seed: u64) -> Outcome<(f64, f64)> {
    let (seconds, requests) = race(bench, kind, SAME, threads, daemons, |_| shuffled(SAME, seed))?;
    Ok((SAME as f64 / seconds, requests as f64 / SAME as f64))
}

/// Lets each of so many threads touch the pages of its `order`. Returns how long it took until all had theirs, in seconds, and how many
/// requests the daemon got.
fn race(
    bench: &Bench,
    kind: Kind,
    pages: u64,
    threads: u64,
    daemons: u64,
    order: impl Fn(u64) -> Vec<u64>,
) -> Outcome<(f64, u64)> {
    let peer = kind.make(pages + Daemon::THREADS, &bench.contents)?;
    let daemon = kind
        .is_served()
        .then(|| Daemon::start(kind, &peer, &bench.contents, pages, daemons));
    let start = Arc::new(Barrier::new(threads as usize + 1));
    let racers: Vec<_> = (0..threads)
        .map(|thread| {
            let (peer, start, order) = (peer.clone(), start.clone(), order(thread));
            let run = move || {
                start.wait();
                touch_all(kind, &*peer, &order)
            };
            std::thread::spawn(run)
        })
        .collect();
    start.wait();
    let since = Instant::now();
    for racer in racers {
        let ended = racer.join();
        ended.unwrap_or_else(|_| Err(Failure::Wrong("a thread panicked".into())))?;
    }
    let seconds = since.elapsed().as_secs_f64();
    Ok((seconds, daemon.map_or(Ok(0), Daemon::stop)?))
}

fn touch_all(kind: Kind, peer: &dyn Peer, pages: &[u64]) -> Outcome {
    pages
        .iter()
        .try_for_each(|page| verify(kind.name(), *page, touch(peer, *page)))
}
