// SPDX-License-Identifier: GPL-2.0-or-later
//! One move of one guest, measured.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::book::{Figures, Trial};
use crate::client::Client;
use crate::guest::{Guest, Load};
use crate::harm::ensure_unharmed;
use crate::machine::Machine;
use crate::method::Method;
use crate::network::Host;
use crate::rig::Rig;

/// How long the guest works undisturbed, so that there is something to compare with.
const BEFORE: Duration = Duration::from_secs(2);
/// The shortest time over which a pace is measured, in seconds: a tick of the guest is not a measure.
const INTERVAL: f64 = 0.09;
/// How long it is watched after the move: what is late comes then.
const AFTER: Duration = Duration::from_secs(1);

/// Boots a guest, moves it while a client talks to it, and lets it look at all of its memory.
pub(crate) fn run(rig: &Rig, round: u32, method: Method, load: Load, guest: &Guest) -> Result<Figures> {
    let trial = Trial {
        round,
        load: load.name(),
        method,
    };
    run_watched(rig, &trial, load, guest, |_| ()).with_context(|| format!("{}, guest {}", method.name(), load.name()))
}

/// Steps of a trial, for who wants to tell them.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// The guest runs at its source, and writes so many pages a second.
    Booted(f64),
    /// The other host is ready to receive it.
    Prepared,
    /// It runs at its destination, with all of its memory.
    Moved,
    /// All pages that it works on are right: so many.
    Verified(u64),
}

/// As [`run`], telling how far it is.
pub(crate) fn run_watched(rig: &Rig, trial: &Trial, load: Load, guest: &Guest, tell: impl Fn(Step)) -> Result<Figures> {
    let method = trial.method;
    let machine = Machine::boot(Host::First, guest, method.memory())?;
    guest.work(load)?;
    let client = Client::start(guest.service()?)?;
    sleep(AFTER);
    let since = Instant::now();
    let begun = guest.report()?.touches.work;
    sleep(BEFORE);
    let undisturbed = (guest.report()?.touches.work - begun) as f64 / since.elapsed().as_secs_f64();
    tell(Step::Booted(undisturbed));

    let prepared = method.prepare(guest, machine)?;
    tell(Step::Prepared);
    let before = guest.report()?;
    guest.mark()?;
    client.mark();
    let bytes = rig.network.wire_bytes()?;
    let since = Instant::now();
    let mut moved = prepared.run()?;
    let at_end = guest.report().or_else(|error| moved.machine.check().and(Err(error)))?;
    let watched = since.elapsed();
    let bytes = rig.network.wire_bytes()? - bytes;
    tell(Step::Moved);
    sleep(AFTER);
    let report = guest.report()?;
    let waits = client.waits();
    let samples = guest.samples()?;

    guest.work(Load::Idle)?;
    let verdict = guest.verify().or_else(|error| moved.machine.check().and(Err(error)))?;
    ensure_unharmed!(
        verdict.work >= at_end.touches.work,
        "the guest has gone back to an earlier state"
    );
    client.stop()?;
    tell(Step::Verified(verdict.pages));
    // Nowhere else.
    ensure!(moved.machine.guest_runs()?, "the guest does not run where it should");
    if let Some(left) = &mut moved.left {
        ensure_unharmed!(!left.guest_runs()?, "the guest runs at its source, too");
    }

    let timeline = &moved.timeline;
    // What the mover does after the last page is not the guest's concern.
    let end = timeline.complete.unwrap_or(f64::INFINITY);
    let (work, worked) = work_between(&samples, timeline.ordered, end)
        .unwrap_or((at_end.touches.work - before.touches.work, watched.as_secs_f64()));
    let since_stop = |time: Option<f64>| Some(time? - timeline.stopped?);
    Ok(Figures {
        trial: trial.clone(),
        done: moved.done,
        order_to_stop: timeline.stopped.map(|stopped| stopped - timeline.ordered),
        stop_to_runs: since_stop(timeline.runs),
        stop_to_saved: since_stop(timeline.saved),
        stop_to_complete: since_stop(timeline.complete),
        guest_gap: report.ticker.gap(),
        late: report.ticker.late,
        client_wait: waits.longest.as_secs_f64(),
        reported_downtime: moved.reported_downtime,
        total: timeline
            .complete
            .map_or(watched.as_secs_f64(), |complete| complete - timeline.ordered),
        bytes,
        data_bytes: moved.data_bytes,
        work,
        pace: (undisturbed > 0.0).then(|| work as f64 / worked / undisturbed),
        touches: at_end.touches.count,
        touch_p50: at_end.touches.p50,
        touch_p99: at_end.touches.p99,
        touch_max: report.touches.max,
        pace_over_time: match undisturbed > 0.0 {
            true => paces(&samples, timeline.ordered, undisturbed),
            false => Vec::new(),
        },
        left_over_time: timeline
            .left
            .iter()
            .map(|(time, left)| (time - timeline.ordered, *left))
            .collect(),
    })
}

/// Pages written between these times, and the seconds between the first sample and the last one of that.
fn work_between(samples: &[(f64, u64)], from: f64, to: f64) -> Option<(u64, f64)> {
    let mut between = samples.iter().filter(|(time, _)| (from..=to).contains(time));
    let first = between.next()?;
    let last = between.next_back()?;
    Some((last.1.saturating_sub(first.1), last.0 - first.0))
}

/// The guest's pace in each interval since the order, compared with the undisturbed one.
fn paces(samples: &[(f64, u64)], ordered: f64, undisturbed: f64) -> Vec<(f64, f64)> {
    let mut paces = Vec::new();
    let mut samples = samples.iter().skip_while(|(time, _)| *time < ordered);
    let Some(mut last) = samples.next() else { return paces };
    for sample in samples {
        let seconds = sample.0 - last.0;
        if seconds >= INTERVAL {
            let pages = sample.1.saturating_sub(last.1);
            paces.push((sample.0 - ordered, pages as f64 / seconds / undisturbed));
            last = sample;
        }
    }
    paces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pace_is_zero_while_the_guest_stands_still() {
        // 100 pages in each 50 ms, but for one that the guest does not run in.
        let samples = [(9.95, 0), (10.0, 100), (10.1, 300), (10.2, 500), (11.2, 500), (11.3, 700)];
        assert_eq!(work_between(&samples, 10.0, 11.25), Some((400, 11.2 - 10.0)));
        assert_eq!(work_between(&samples, 10.15, 10.25), None);
        let paces = paces(&samples, 10.0, 2000.0);
        let rounded: Vec<(f64, f64)> = paces
            .iter()
            .map(|(time, pace)| ((time * 10.0).round() / 10.0, pace.round()))
            .collect();
        assert_eq!(rounded, [(0.1, 1.0), (0.2, 1.0), (1.2, 0.0), (1.3, 1.0)]);
    }
}
