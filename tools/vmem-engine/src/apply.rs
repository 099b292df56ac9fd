// SPDX-License-Identifier: GPL-2.0-or-later
//! Applies an answer to its region.

use vmem::{PageRange, Progress};
use vmem_source::{Answer, Contents, Holes};

use crate::error::Error;
use crate::known::copy_known;
use crate::shared::Shared;
use crate::stats::add;

/// Fills and marks the pages of `answer`, counts them, and removes them from the pages in flight. Returns the pages that there was no memory
/// for; they stay wanted.
pub(crate) fn apply(shared: &Shared, region: usize, answer: &Answer<'_>) -> Result<Vec<PageRange>, Error> {
    let sink = &shared.sinks[region];
    let (mut fills, mut zeros, mut unreadable) = (Vec::new(), Vec::new(), Vec::new());
    let (mut filled, mut left_out) = (Vec::new(), 0);
    for (range, contents) in answer.contents() {
        match contents {
            Contents::Data(data) => {
                fills.push((range.first(), data));
                filled.push(range);
            }
            Contents::Zero => zeros.push(range),
            Contents::Unreadable => unreadable.push(range),
            // `apply_known` does it.
            Contents::Known(_) | Contents::Same => left_out += range.count(),
        }
    }
    let mut rest = Vec::new();
    let data = complete(shared, region, "fill", sink.fill(&fills), &filled, &mut rest)?;
    let zero = complete(
        shared,
        region,
        "mark zero pages of",
        sink.mark_zero(&zeros),
        &zeros,
        &mut rest,
    )?;
    let bad = complete(
        shared,
        region,
        "mark unreadable pages of",
        sink.mark_unreadable(&unreadable),
        &unreadable,
        &mut rest,
    )?;
    add(&shared.stats.wire, answer.wire_bytes());
    add(&shared.stats.data, data);
    add(&shared.stats.zero, zero);
    let missing: u64 = rest.iter().map(|range| range.count()).sum();
    add(
        &shared.stats.duplicates,
        answer.pages().saturating_sub(data + zero + bad + missing + left_out),
    );
    Ok(rest)
}

/// Fills and marks the pages of `answer` that the source knows to be here. Returns the pages that there was no memory for, and those that are not
/// here after all; all of them stay wanted.
pub(crate) fn apply_known(
    shared: &Shared,
    region: usize,
    answer: &Answer<'_>,
) -> Result<(Vec<PageRange>, Vec<PageRange>), Error> {
    let mut rest = Vec::new();
    let sink = &shared.sinks[region];
    let missing = copy_known(shared.options.seed.as_deref(), answer, |fills, ranges| {
        let before: u64 = rest.iter().map(|range: &PageRange| range.count()).sum();
        let known = complete(shared, region, "fill", sink.fill(fills), ranges, &mut rest)?;
        add(&shared.stats.known, known);
        let short = rest.iter().map(|range| range.count()).sum::<u64>() - before;
        let pages: u64 = ranges.iter().map(|range| range.count()).sum();
        add(&shared.stats.duplicates, pages.saturating_sub(known + short));
        Ok(())
    })?;
    Ok((rest, missing))
}

/// Marks holes of the source as zero, as for an answer that contains them as zero pages. Returns those that there was no memory for.
///
/// The kernel marks them in blocks of 2 MiB, between which touches of other pages go on.
pub(crate) fn apply_holes(shared: &Shared, region: usize, holes: &Holes) -> Result<Vec<PageRange>, Error> {
    let mut rest = Vec::new();
    let marked = shared.sinks[region].mark_zero(&holes.ranges);
    let zero = complete(shared, region, "mark holes of", marked, &holes.ranges, &mut rest)?;
    add(&shared.stats.zero, zero);
    Ok(rest)
}

/// Completes the ranges that a call has processed, and adds those that there was no memory for to `rest`. Returns the number of pages that the
/// call changed.
fn complete(
    shared: &Shared,
    region: usize,
    action: &'static str,
    progress: Progress,
    ranges: &[PageRange],
    rest: &mut Vec<PageRange>,
) -> Result<u64, Error> {
    let left = match progress.error {
        None => &[],
        Some(vmem::Error::NoMemory { .. }) => ranges.get(progress.ranges..).unwrap_or_default(),
        Some(error) => return Err(shared.failed(action, region)(error)),
    };
    for range in &ranges[..ranges.len() - left.len()] {
        shared.stats.served(&shared.in_flight.complete(region, *range));
    }
    rest.extend(left);
    Ok(progress.pages)
}
