// SPDX-License-Identifier: GPL-2.0
//! Going on with a guest that another `receive` took. The guest may run, and touch pages that are missing: so pages come first, and QEMU
//! is talked to only then. QEMU may be unable to answer before a page has come.

use std::time::Duration;

use vmem_cli::chain;
use vmem_migrate::Phase;
use vmem_qmp::Qmp;

use super::{Arrival, loss_policy};
use crate::cli::{Cli, Receive};
use crate::daemon::{Duty, end_left_over};
use crate::failure::{Failure, Trouble};
use crate::guest::{self, LIMIT};
use crate::message::FromDestination;
use crate::receive::arrival::checks;
use crate::receive::door::Door;
use crate::receive::host::Qemu;
use crate::receive::loss::is_lost;
use crate::receive::monitor::Monitor;
use crate::receive::pages::Pages;
use crate::receive::process::QemuProcess;
use crate::receive::regions::Regions;
use crate::record::{Incoming, Place};
use crate::report::Report;
use crate::signals::Signals;

/// What another `receive` has left.
pub(in crate::receive) enum Left {
    /// A guest to go on with.
    Arrival(Box<Arrival>),
    /// The guest's end, which the source has to hear.
    Over(Place, FromDestination),
}

impl Arrival {
    /// Takes up what another `receive` has begun.
    pub(in crate::receive) fn resume(
        cli: &Cli,
        args: &Receive,
        door: &Door,
        report: &Report,
        signals: &Signals,
    ) -> Result<Left, Failure> {
        let (place, record) = recorded(cli, args)?;
        door.taken(&record.session);
        match record.phase {
            Phase::Failed => {
                let reason = record.reason.unwrap_or_default();
                return Ok(Left::Over(place, FromDestination::Failed { reason }));
            }
            Phase::Complete => {
                let summary = serde_json::Value::Null;
                return Ok(Left::Over(place, FromDestination::Complete { summary }));
            }
            _ => {}
        }
        if is_lost(&place) {
            let what = format!("the source has other memory now, and not what is missing of {}", record.guest);
            return Err(Failure::Lost(Trouble::other(what)));
        }
        let process = record.qemu.as_ref().map(QemuProcess::find);
        let regions = Regions::of(&record);
        let monitor = Monitor::new(args.qmp.clone(), None, process, regions.clone(), LIMIT).with_signals(signals);
        if monitor.is_gone_within(Duration::ZERO) {
            end_left_over(&place, Some(&record.session), Duty::Fetch);
            return Self::without_qemu(place, record);
        }
        // They are the guest's, by number and not only by name: what fills them cannot be wrong about whose memory that is.
        if !regions.look().exist {
            let what = format!(
                "not all regions of {} exist any more ({}), but its QEMU may: end it if it does",
                record.guest,
                record.regions.join(", ")
            );
            return Err(Failure::Local(Trouble::other(what)));
        }
        let pages = Pages::resume(&record, &place, loss_policy(args))?;
        Self::take_up(pages, monitor, place, record, signals, report).map(|arrival| Left::Arrival(Box::new(arrival)))
    }

    /// Pages come by now, or will as soon as the source is there. Whether they do decides how long QEMU is waited for.
    pub(super) fn take_up(
        pages: Pages,
        monitor: Monitor,
        place: Place,
        record: Incoming,
        signals: &Signals,
        report: &Report,
    ) -> Result<Self, Failure> {
        let arrival = Self {
            channel: None,
            pages,
            monitor,
            state: None,
            place,
            record,
            qemu: Qemu::existing(),
            relay: None,
            resumed: true,
            aborted: false,
            signals: signals.clone(),
            _regions: Vec::new(),
        };
        arrival.identify(report)
    }

    /// QEMU is gone: whether it may have run the guest is what was recorded.
    fn without_qemu(place: Place, mut record: Incoming) -> Result<Left, Failure> {
        let reason = "QEMU has ended".to_owned();
        if record.phase >= Phase::Starting {
            return Ok(Left::Over(place, FromDestination::Gone { reason }));
        }
        record.phase = Phase::Failed;
        record.reason = Some(reason.clone());
        place.write(&record).map_err(Trouble::from)?;
        Ok(Left::Over(place, FromDestination::Failed { reason }))
    }

    /// Makes sure that the QEMU at the socket is the guest's. Pages come meanwhile, and go on coming if it is not.
    fn identify(mut self, report: &Report) -> Result<Self, Failure> {
        let unfinished = |trouble: Trouble| match self.record.phase {
            Phase::Prepared => Failure::Local(trouble),
            _ => Failure::Unfinished(trouble),
        };
        let look = |qmp: &mut Qmp| Ok((guest::name(qmp)?, guest::memory(qmp)?));
        let found = match self.record.phase {
            Phase::Prepared => self.monitor.ask_briefly(report, look),
            _ => self.monitor.ask(report, look),
        };
        let (name, memory) = match found {
            Ok(found) => found,
            // What it means is what was recorded.
            Err(error) if self.monitor.is_gone_within(Duration::ZERO) => {
                report.note(&chain(&error));
                return Ok(self);
            }
            Err(error) => return Err(unfinished(error.into())),
        };
        if name != self.record.name {
            let what = format!(
                "QEMU's guest is {name:?} and not {:?}: another one has this socket",
                self.record.name
            );
            return Err(unfinished(Trouble::other(what)));
        }
        let names = checks::match_memory(&self.record.memory, &memory).map_err(unfinished)?;
        if names != self.record.regions {
            return Err(unfinished(Trouble::other("QEMU's memory is in other regions than noted")));
        }
        Ok(self)
    }
}

/// The guest of a QEMU, as an earlier `receive` has recorded it.
pub(super) fn recorded(cli: &Cli, args: &Receive) -> Result<(Place, Incoming), Trouble> {
    let mut found = Place::find(&cli.state, "in", |record: &Incoming| record.qmp == args.qmp)?;
    let (qmp, state) = (args.qmp.display(), cli.state.display());
    match (found.pop(), found.is_empty()) {
        (Some(only), true) => Ok(only),
        (None, _) => Err(Trouble::other(format!("no guest of {qmp} is noted in {state}"))),
        (Some(_), false) => Err(Trouble::other(format!(
            "several guests of {qmp} are noted in {state}: 'vmemctl forget' removes those that are not there any more"
        ))),
    }
}
