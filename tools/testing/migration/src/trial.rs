// SPDX-License-Identifier: GPL-2.0
//! One move of one guest, measured.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::book::Figures;
use crate::client::Client;
use crate::guest::{Guest, Load};
use crate::harm::ensure_unharmed;
use crate::machine::Machine;
use crate::method::Method;
use crate::network::Host;
use crate::rig::Rig;

/// How long the guest works undisturbed, so that there is something to compare with.
const BEFORE: Duration = Duration::from_secs(2);
/// How long it is watched after the move: what is late comes then.
const AFTER: Duration = Duration::from_secs(1);

/// Boots a guest, moves it while a client talks to it, and lets it look at all of its memory.
pub(crate) fn run(rig: &Rig, method: Method, load: Load, guest: &Guest) -> Result<Figures> {
    run_watched(rig, method, load, guest, |_| ()).with_context(|| format!("{}, guest {}", method.name(), load.name()))
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
pub(crate) fn run_watched(rig: &Rig, method: Method, load: Load, guest: &Guest, tell: impl Fn(Step)) -> Result<Figures> {
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
    let total = since.elapsed();
    let at_end = guest.report().or_else(|error| moved.machine.check().and(Err(error)))?;
    let watched = since.elapsed();
    let bytes = rig.network.wire_bytes()? - bytes;
    tell(Step::Moved);
    sleep(AFTER);
    let report = guest.report()?;
    let waits = client.waits();

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

    let work = at_end.touches.work - before.touches.work;
    Ok(Figures {
        method,
        load: load.name().into(),
        done: moved.done,
        guest_gap: report.ticker.gap(),
        late: report.ticker.late,
        client_wait: waits.longest.as_secs_f64(),
        reported_downtime: moved.reported_downtime,
        total: total.as_secs_f64(),
        bytes,
        data_bytes: moved.data_bytes,
        work,
        pace: (undisturbed > 0.0).then(|| work as f64 / watched.as_secs_f64() / undisturbed),
        touches: at_end.touches.count,
        touch_p50: at_end.touches.p50,
        touch_p99: at_end.touches.p99,
        touch_max: report.touches.max,
    })
}
