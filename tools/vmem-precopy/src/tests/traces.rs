// SPDX-License-Identifier: GPL-2.0-or-later
//! Traces of programs that are easy to describe, and recorded ones of guests.

use std::time::Duration;

use vmem_pages::PageRange;

use crate::order::mix;
use crate::trace::Trace;

/// 1 GiB of memory, over a link of 100 MiB/s: all of it in 10.24 s.
pub(super) const PAGES: u64 = 1 << 18;
pub(super) const BANDWIDTH: u64 = 100 << 20;
pub(super) const LINK: f64 = 25_600.0;

const INTERVAL: Duration = Duration::from_millis(10);
/// Intervals of a trace, 40 s: longer than what is compared takes to decide.
const INTERVALS: u64 = 4000;

/// A trace in whose interval at `index` the page of each write is `page(index, random number)`; so many writes a second.
fn trace(rate: impl Fn(u64) -> f64, page: impl Fn(u64, u64) -> u64) -> Trace {
    let mut trace = Trace::new(PAGES).expect("memory");
    let (mut due, mut written) = (0.0, 0_u64);
    for index in 0..INTERVALS {
        due += rate(index) * INTERVAL.as_secs_f64();
        let mut dirty = Vec::new();
        while (written as f64) < due {
            let range = PageRange::from_pgoff(page(index, written) % PAGES, 1).expect("a page");
            range.append_to(&mut dirty);
            written += 1;
        }
        trace.push(INTERVAL, dirty).expect("an interval");
    }
    trace
}

pub(super) fn all() -> Vec<(&'static str, Trace)> {
    let random = |_: u64, write: u64| mix(write);
    let uniform = |share: f64| trace(move |_| share * LINK, random);
    // A tenth of the memory, scattered, at half of the link's rate.
    let hot = trace(|_| 0.5 * LINK, |_, write| (mix(write) % (PAGES / 10)) * 10);
    // 90 % of the writes go to 2 % of the memory, the others anywhere, at half of the link's rate.
    let skewed = trace(
        |_| 0.5 * LINK,
        |_, write| match mix(write) % 10 {
            0 => mix(write ^ 1),
            _ => mix(mix(write) % (PAGES / 50)),
        },
    );
    // Two seconds of writes at twice the link's rate, three without.
    let phases = trace(|index| if index % 500 < 200 { 2.0 * LINK } else { 0.01 * LINK }, random);
    vec![
        ("idle", trace(|_| 10.0, |_, write| write % 20)),
        ("hot spot", hot),
        ("skewed", skewed),
        ("sequential sweep", trace(|_| 0.5 * LINK, |_, write| write)),
        ("backward sweep", trace(|_| 0.5 * LINK, |_, write| PAGES - 1 - write % PAGES)),
        ("uniform 0.1", uniform(0.1)),
        ("uniform 0.5", uniform(0.5)),
        ("uniform 1", uniform(1.0)),
        ("uniform 2", uniform(2.0)),
        ("phases", phases),
    ]
}

/// Guests of 192 MiB, as `tools/testing/migration/record` has recorded them.
pub(super) fn recorded() -> [(&'static str, Trace); 3] {
    [
        ("boot", include_str!("../../traces/boot.trace")),
        ("idle", include_str!("../../traces/idle.trace")),
        ("writing", include_str!("../../traces/writing.trace")),
    ]
    .map(|(name, text)| (name, text.parse().expect("a trace")))
}
