// SPDX-License-Identifier: GPL-2.0
//! The rounds against Xen's, on traces.

use std::time::Duration;

use super::traces::{BANDWIDTH, PAGES, all};
use crate::limits::{Limits, Mode};
use crate::simulator::{Outcome, Scheme, predict, simulate};
use crate::trace::Trace;

fn run(trace: &Trace, scheme: Scheme) -> Outcome {
    simulate(trace, BANDWIDTH, Limits::XEN, scheme).expect("a simulation")
}

/// The table of the crate's page.
#[test]
fn table() {
    let schemes = [
        Scheme::Xen { skip: false },
        Scheme::Xen { skip: true },
        Scheme::CleanAtStart { mode: Mode::Auto, skip: false },
        Scheme::CleanAtStart { mode: Mode::Auto, skip: true },
        Scheme::TakeBeforeSend(Mode::Auto),
        Scheme::Ours(Mode::Auto),
        Scheme::Ours(Mode::Hybrid),
        Scheme::Ours(Mode::Precopy),
    ];
    for (name, trace) in all() {
        for scheme in schemes {
            let outcome = run(&trace, scheme);
            println!(
                "{name:17} {:45} rounds {:3} sent {:.3} bytes {:.3} left {:6} downtime {:5} ms total {:5.1} s {:?}",
                format!("{scheme:?}"),
                outcome.rounds,
                outcome.sent as f64 / PAGES as f64,
                outcome.bytes() as f64 / (4096 * PAGES) as f64,
                outcome.pages_left,
                outcome.downtime.as_millis(),
                outcome.total.as_secs_f64(),
                outcome.decision.map(|decision| decision.reason)
            );
        }
    }
}

#[test]
fn forecast_is_that_of_the_mode_auto() {
    for (_, trace) in all() {
        let forecast = predict(&trace, BANDWIDTH, Limits::XEN).expect("a forecast");
        let outcome = run(&trace, Scheme::Ours(Mode::Auto));
        assert_eq!((forecast.bytes, forecast.rounds), (outcome.bytes(), outcome.rounds));
        assert_eq!(forecast.mode == Mode::Precopy, forecast.downtime <= Duration::from_millis(100) || forecast.decision.fits());
    }
}
