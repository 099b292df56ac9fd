// SPDX-License-Identifier: GPL-2.0
//! Puts an answer into its region.

use std::time::Duration;

use vmem::{Error, Progress};
use vmem_source::{Answer, Contents};

use super::Shared;
use super::stats::add;
use crate::failure::Failure;

/// How often, and how long each time, a region is tried again that has no memory for its pages: the program that maps it may be at the
/// limit of its memory cgroup, and others may free some.
const TRIES: u32 = 600;
const PAUSE: Duration = Duration::from_millis(100);

/// Fills and marks the pages of `answer`, counts them, and ends the flight of those that were in it.
pub(super) fn apply(shared: &Shared, region: usize, answer: &Answer<'_>) -> Result<(), Failure> {
    let sink = &shared.sinks[region];
    let (mut fills, mut zeros, mut unreadable) = (Vec::new(), Vec::new(), Vec::new());
    for (range, contents) in answer.contents() {
        match contents {
            Contents::Data(data) => fills.push((range.first(), data)),
            Contents::Zero => zeros.push(range),
            Contents::Unreadable => unreadable.push(range),
        }
    }
    let data = all(shared, region, "fill", &fills, |fills| sink.fill(fills))?;
    let zero = all(shared, region, "mark zero pages of", &zeros, |ranges| sink.mark_zero(ranges))?;
    let bad = all(shared, region, "mark unreadable pages of", &unreadable, |ranges| {
        sink.mark_unreadable(ranges)
    })?;
    for (range, _) in answer.contents() {
        shared.stats.served(&shared.flight.land(region, range));
    }
    add(&shared.stats.data, data);
    add(&shared.stats.zero, zero);
    add(&shared.stats.duplicates, answer.pages().saturating_sub(data + zero + bad));
    Ok(())
}

/// Makes a call on all of `entries`, and returns how many pages it changed.
fn all<T>(shared: &Shared, region: usize, what: &str, entries: &[T], call: impl Fn(&[T]) -> Progress) -> Result<u64, Failure> {
    let mut rest = entries;
    let mut pages = 0;
    let mut tries = 0;
    while !rest.is_empty() {
        let progress = call(rest);
        rest = rest.get(progress.ranges..).unwrap_or_default();
        pages += progress.pages;
        match progress.error {
            None => break,
            Some(Error::NoMemory { .. }) if tries < TRIES => {
                tries += 1;
                if shared.stop.wait(PAUSE) {
                    return Err(Failure::Stopped);
                }
            }
            Some(error) => return Err(shared.failed(what, region)(error)),
        }
    }
    Ok(pages)
}
