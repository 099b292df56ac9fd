// SPDX-License-Identifier: GPL-2.0
//! Going on with a guest that another `receive` took. The guest may run, and touch pages that are missing: so pages come first, and QEMU
//! is talked to only then. QEMU may be unable to answer before a page has come.

use std::time::Duration;

use crate::destination::{self, Action, Destination, Event, State};
use crate::{Owner, Phase};
use vmem_cli::{Signals, chain, log};
use vmem_qmp::Qmp;

use super::{Arrival, loss_policy};
use crate::daemon::end_left_over;
use crate::error::{Cause, Error};
use crate::guest::{self, LIMIT};
use crate::message::FromDestination;
use crate::name::session_mark;
use crate::options::{Common, Receive};
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

const QEMU_HAS_ENDED: &str = "QEMU has ended";

/// What another `receive` has left.
pub(in crate::receive) enum Left {
    /// A guest to go on with.
    Arrival(Box<Arrival>),
    /// The guest's end, which the source has to hear.
    Over(Owner<Destination>, Place, FromDestination),
}

impl Arrival {
    /// Takes up what another `receive` has begun.
    pub(in crate::receive) fn resume(
        cli: &Common,
        args: &Receive,
        door: &Door,
        report: &Report,
        signals: &Signals,
    ) -> Result<Left, Error> {
        let (place, record) = recorded(cli, args)?;
        door.taken(&record.session);
        log::set_subject(&record.guest, session_mark(&record.session).unwrap_or_default());
        if let Phase::Failed | Phase::Complete = record.phase {
            return Ok(Self::over(place, record, report));
        }
        if is_lost(&place) {
            let what = format!("the source has other memory now, and not what is missing of {}", record.guest);
            return Err(Error::Lost(Cause::other(what)));
        }
        let process = record.qemu.as_ref().map(QemuProcess::find);
        let regions = Regions::of(&record);
        let monitor = Monitor::new(args.qmp.clone(), None, process, regions.clone(), LIMIT).with_signals(signals);
        if monitor.is_gone_within(Duration::ZERO) {
            return Ok(Self::over(place, record, report));
        }
        // They are the guest's, by number and not only by name: what fills them cannot be wrong about whose memory that is.
        if !regions.look().exist {
            let what = format!(
                "not all regions of {} exist any more ({}), but its QEMU may: end it if it does",
                record.guest,
                record.regions.join(", ")
            );
            return Err(Error::Local(Cause::other(what)));
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
    ) -> Result<Self, Error> {
        let (state, due) = destination::resume(record.phase, true);
        let arrival = Self {
            owner: Owner::new(state),
            due,
            channel: None,
            pages,
            monitor,
            state: None,
            place,
            record,
            qemu: Qemu::existing(),
            relay: None,
            resumed: true,
            is_to_be_started: false,
            trouble: None,
            signals: signals.clone(),
            _regions: Vec::new(),
        };
        arrival.identify(report)
    }

    /// There is no guest to go on with: what the source has to hear follows from what was recorded.
    fn over(place: Place, mut record: Incoming, report: &Report) -> Left {
        end_left_over(&place);
        let (state, due) = destination::resume(record.phase, false);
        let mut owner = Owner::new(state);
        if due.contains(&Action::RecordFailed) {
            record.phase = Phase::Failed;
            record.reason = Some(QEMU_HAS_ENDED.to_owned());
            let event = match place.write(&record) {
                Ok(()) => Event::Recorded,
                Err(error) => {
                    report.note(&format!("{}; it is said as long as this program lives", chain(&error)));
                    Event::NotRecorded
                }
            };
            let _ = owner.on(event);
        }
        let word = match owner.state() {
            State::Complete => FromDestination::Complete {
                summary: serde_json::Value::Null,
            },
            State::Gone => FromDestination::Gone {
                reason: QEMU_HAS_ENDED.to_owned(),
            },
            _ => FromDestination::Failed {
                reason: record.reason.unwrap_or_default(),
            },
        };
        Left::Over(owner, place, word)
    }

    /// Makes sure that the QEMU at the socket is the guest's. Pages come meanwhile, and go on coming if it is not.
    fn identify(mut self, report: &Report) -> Result<Self, Error> {
        let unfinished = |trouble: Cause| match self.record.phase {
            Phase::Prepared => Error::Local(trouble),
            _ => Error::Unfinished(trouble),
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
            return Err(unfinished(Cause::other(what)));
        }
        let names = checks::match_memory(&self.record.memory, &memory).map_err(unfinished)?;
        if names != self.record.regions {
            return Err(unfinished(Cause::other("QEMU's memory is in other regions than noted")));
        }
        Ok(self)
    }
}

/// The guest of a QEMU, as an earlier `receive` has recorded it.
pub(super) fn recorded(cli: &Common, args: &Receive) -> Result<(Place, Incoming), Cause> {
    let mut found = Place::find(&cli.state, "in", |record: &Incoming| record.qmp == args.qmp)?;
    let (qmp, state) = (args.qmp.display(), cli.state.display());
    match (found.pop(), found.is_empty()) {
        (Some(only), true) => Ok(only),
        (None, _) => Err(Cause::other(format!("no guest of {qmp} is noted in {state}"))),
        (Some(_), false) => Err(Cause::other(format!(
            "several guests of {qmp} are noted in {state}: 'vmemctl forget' removes those that are not there any more"
        ))),
    }
}
