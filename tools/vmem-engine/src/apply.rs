// SPDX-License-Identifier: GPL-2.0
//! Puts an answer into its region.

use vmem::{PageRange, Progress};
use vmem_source::{Answer, Contents};

use crate::error::Error;
use crate::shared::Shared;
use crate::stats::add;

/// Fills and marks the pages of `answer`, counts them, and ends the flight of those that were in it. Returns those that there was no memory
/// for: they are wanted as before.
pub(crate) fn apply(shared: &Shared, region: usize, answer: &Answer<'_>) -> Result<Vec<PageRange>, Error> {
    let sink = &shared.sinks[region];
    let (mut fills, mut zeros, mut unreadable) = (Vec::new(), Vec::new(), Vec::new());
    let mut filled = Vec::new();
    for (range, contents) in answer.contents() {
        match contents {
            Contents::Data(data) => {
                fills.push((range.first(), data));
                filled.push(range);
            }
            Contents::Zero => zeros.push(range),
            Contents::Unreadable => unreadable.push(range),
        }
    }
    let mut rest = Vec::new();
    let data = settle(shared, region, "fill", sink.fill(&fills), &filled, &mut rest)?;
    let zero = settle(
        shared,
        region,
        "mark zero pages of",
        sink.mark_zero(&zeros),
        &zeros,
        &mut rest,
    )?;
    let what = "mark unreadable pages of";
    let bad = settle(
        shared,
        region,
        what,
        sink.mark_unreadable(&unreadable),
        &unreadable,
        &mut rest,
    )?;
    add(&shared.stats.data, data);
    add(&shared.stats.zero, zero);
    let missing: u64 = rest.iter().map(|range| range.count()).sum();
    add(
        &shared.stats.duplicates,
        answer.pages().saturating_sub(data + zero + bad + missing),
    );
    Ok(rest)
}

/// Takes note of what a call has done with `ranges`: those that it is through with have landed. What there was no memory for is added to
/// `rest`. Returns how many pages it changed.
fn settle(
    shared: &Shared,
    region: usize,
    what: &str,
    progress: Progress,
    ranges: &[PageRange],
    rest: &mut Vec<PageRange>,
) -> Result<u64, Error> {
    let left = match progress.error {
        None => &[],
        Some(vmem::Error::NoMemory { .. }) => ranges.get(progress.ranges..).unwrap_or_default(),
        Some(error) => return Err(shared.failed(what, region)(error)),
    };
    for range in &ranges[..ranges.len() - left.len()] {
        shared.stats.served(&shared.in_flight.complete(region, *range));
    }
    rest.extend(left);
    Ok(progress.pages)
}
