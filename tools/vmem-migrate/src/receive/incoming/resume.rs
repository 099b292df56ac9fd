// SPDX-License-Identifier: GPL-2.0-or-later
//! `receive --resume`: continues the move of a guest that an earlier `receive` took. The guest may run and touch missing pages, and QEMU
//! may be unable to answer before such a page is present. So vmemd is started first, and QEMU is asked afterwards.

use std::time::Duration;

use crate::destination::{self, Action, Destination, Event, State};
use crate::{Owner, Phase};
use vmem_cli::{Signals, chain};
use vmem_qemu::{COMMAND_LIMIT, Qemu, QemuProcess, Qmp, guest};

use super::{IncomingMigration, loss_policy};
use crate::daemon::end_leftovers;
use crate::error::{Cause, Error};
use crate::message::FromDestination;
use crate::options::{Common, Receive};
use crate::receive::incoming::checks;
use crate::receive::listener::Listener;
use crate::receive::loss::is_lost;
use crate::receive::monitor::Monitor;
use crate::receive::offer::Fetching;
use crate::receive::page_fetcher::PageFetcher;
use crate::receive::regions::Regions;
use crate::record::log_subject;
use crate::record::{Incoming, StateDir};
use crate::report::Report;

const QEMU_HAS_ENDED: &str = "QEMU has ended";

/// What an earlier `receive` has left.
pub(in crate::receive) enum Resumed {
    /// A guest whose move continues.
    Incoming(Box<IncomingMigration>),
    /// The guest has ended here, has not run here, or is complete. The source must receive the final message.
    Over(Owner<Destination>, StateDir, FromDestination),
}

impl IncomingMigration {
    /// Resumes what an earlier `receive` has begun.
    pub(in crate::receive) fn resume(
        cli: &Common,
        args: &Receive,
        listener: &mut Listener,
        report: &Report,
        signals: &Signals,
    ) -> Result<Resumed, Error> {
        let (state_dir, record) = recorded(cli, args)?;
        listener.reserve_guest(&record.session);
        // The source may have the address of `vmemctl listen`.
        match listener.take_over(&cli.state, &record.session) {
            Err(cause) if listener.is_passive() => return Err(cause.into()),
            Err(cause) => report.note(&chain(&cause)),
            Ok(()) => {}
        }
        log_subject(&record.guest, &record.session);
        if let Phase::Failed | Phase::Complete = record.phase {
            return Ok(Self::over(state_dir, record, report));
        }
        if is_lost(&state_dir) {
            let what = format!("the source has other memory now, and not what is missing of {}", record.guest);
            return Err(Error::Lost(Cause::other(what)));
        }
        let process = record.qemu.as_ref().map(QemuProcess::find).transpose();
        let process = process.map_err(Cause::call("cannot find out whether QEMU has ended"));
        let process = process.map_err(Error::Local)?;
        let regions = Regions::of(&record);
        let monitor = Monitor::new(args.qmp.clone(), None, process, regions.clone(), COMMAND_LIMIT).with_signals(signals);
        if monitor.is_gone_within(Duration::ZERO) {
            return Ok(Self::over(state_dir, record, report));
        }
        // The recorded numbers prove that these are the guest's regions, and not others of the same names. So vmemd cannot fill another
        // guest's memory.
        if !regions.inspect().exist {
            let what = format!(
                "not all regions of {} exist any more ({}), but its QEMU may: end it if it does",
                record.guest,
                record.regions.join(", ")
            );
            return Err(Error::Local(Cause::other(what)));
        }
        let pages = PageFetcher::resume(&record, &state_dir, loss_policy(args))?;
        Self::resume_with(pages, monitor, state_dir, record, signals, report)
            .map(|incoming| Resumed::Incoming(Box::new(incoming)))
    }

    /// Continues with a vmemd that fetches pages, or will once the source is reachable. How long QEMU may be silent depends on whether
    /// pages arrive.
    pub(super) fn resume_with(
        pages: PageFetcher,
        monitor: Monitor,
        state_dir: StateDir,
        record: Incoming,
        signals: &Signals,
        report: &Report,
    ) -> Result<Self, Error> {
        let (state, due) = destination::resume(record.phase, true);
        let incoming = Self {
            owner: Owner::new(state),
            due,
            channel: None,
            pages,
            monitor,
            state: None,
            state_dir,
            record,
            qemu: Qemu::existing(),
            relay: None,
            fetching: Fetching::default(),
            resumed: true,
            is_to_be_started: false,
            cause: None,
            signals: signals.clone(),
            _regions: Vec::new(),
        };
        incoming.identify(report)
    }

    /// There is no guest to continue with: the final message to the source follows from the recorded phase.
    fn over(state_dir: StateDir, mut record: Incoming, report: &Report) -> Resumed {
        end_leftovers(&state_dir);
        let (state, due) = destination::resume(record.phase, false);
        let mut owner = Owner::new(state);
        if due.contains(&Action::RecordFailed) {
            record.phase = Phase::Failed;
            record.reason = Some(QEMU_HAS_ENDED.to_owned());
            let event = match state_dir.write(&record) {
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
        Resumed::Over(owner, state_dir, word)
    }

    /// Checks that the QEMU at the socket has this guest. vmemd fetches pages meanwhile, and continues if the check fails.
    fn identify(mut self, report: &Report) -> Result<Self, Error> {
        let unfinished = |cause: Cause| match self.record.phase {
            Phase::Prepared => Error::Local(cause),
            _ => Error::Unfinished(cause),
        };
        let query = |qmp: &mut Qmp| Ok((guest::name(qmp)?, guest::memory_backends(qmp)?));
        let found = match self.record.phase {
            Phase::Prepared => self.monitor.ask_briefly(report, query),
            _ => self.monitor.ask(report, query),
        };
        let (name, memory) = match found {
            Ok(found) => found,
            // QEMU has ended. The recorded phase says what that means.
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
            return Err(unfinished(Cause::other(format!(
                "the memory of guest {:?} is in the regions {names:?} of QEMU, and not in the recorded ones ({:?})",
                self.record.guest, self.record.regions
            ))));
        }
        Ok(self)
    }
}

/// The record of the guest of this QMP socket, as an earlier `receive` has written it.
pub(super) fn recorded(cli: &Common, args: &Receive) -> Result<(StateDir, Incoming), Cause> {
    let mut found = StateDir::find(&cli.state, "in", |record: &Incoming| record.qmp == args.qmp)?;
    let (qmp, state) = (args.qmp.display(), cli.state.display());
    match (found.pop(), found.is_empty()) {
        (Some(only), true) => Ok(only),
        (None, _) => Err(Cause::other(format!(
            "{state} has no record of a guest whose QEMU listens at {qmp}"
        ))),
        (Some(_), false) => Err(Cause::other(format!(
            "{state} has records of several guests whose QEMU listens at {qmp}: remove those that do not exist any more with 'vmemctl forget'"
        ))),
    }
}
