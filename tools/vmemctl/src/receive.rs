// SPDX-License-Identifier: GPL-2.0
//! `vmemctl receive`: the destination's side of moving a guest.
//!
//! The guest does not run here before COMMIT has been heard, and never if it has not. If the connection is lost when the source may have
//! said it, the guest stays as it is, ready and paused, until the source says again what it has said.

mod arrival;
mod door;
mod host;
mod pages;
mod template;

use std::time::{Duration, Instant};

use vmem::Control;

use crate::channel::Channel;
use crate::cli::{Cli, Receive};
use crate::failure::{Failure, Trouble};
use crate::guest::LIMIT;
use crate::message::{FromDestination, FromSource, Purpose};
use crate::network::Security;
use crate::record::Place;
use crate::report::Report;
use arrival::{Arrival, Ended, Host, Left};
use door::{Door, Visitor};
use pages::Outlook;
use vmem_cli::chain;
use vmem_qmp::{Qmp, QmpError};

/// How long a source may take to offer its guest: it starts its vmemd first.
const OFFER: Duration = Duration::from_secs(45);

/// How often everything is looked at.
const GLANCE: Duration = Duration::from_millis(50);

/// Takes one guest, and stays until its memory is complete.
pub(crate) fn run(cli: &Cli, args: &Receive) -> Result<(), Failure> {
    template::check(&args.command)?;
    let security = Security::new(cli)?;
    let control = Control::open().map_err(Trouble::vmem("no vmem"))?;
    let regions = host::make_regions(&control, args)?;
    let listener = security.listen(args.listen)?;
    let address = listener.local_addr().map_err(Trouble::io("cannot listen"))?;
    let mut door = Door::open(listener, security.clone())?;
    let mut report = Report::new(cli.json);
    let mut arrival = if args.resume {
        match Arrival::resume(cli, args, &door)? {
            Left::Arrival(arrival) => *arrival,
            Left::Over(place, word) => return over(None, &place, &word, &mut door, &report),
        }
    } else {
        report.note(&format!("listening on {address}"));
        {
            let host = Host {
                args,
                control: &control,
                security: &security,
            };
            take(cli, &host, &mut door, &mut report)?
        }
    };
    if let Err(ended) = arrival.wait_for_commit(&mut door, &mut report) {
        return end(ended, arrival, &mut door, &report);
    }
    // QEMU has them open.
    drop(regions);
    report.running(None);
    tend(args, &control, &mut door, arrival, &mut report)
}

/// Waits for a guest, and prepares everything for it.
fn take(cli: &Cli, host: &Host<'_>, door: &mut Door, report: &mut Report) -> Result<Arrival, Failure> {
    loop {
        let Visitor {
            mut channel,
            session,
            purpose,
        } = door.wait()?;
        if purpose != Purpose::Migrate {
            continue;
        }
        match channel.hear_within(OFFER) {
            Ok(FromSource::Offer {
                guest,
                memory,
                pages,
                release,
            }) => {
                let offer = arrival::Offer {
                    session,
                    guest,
                    memory,
                    pages,
                    release,
                };
                return Arrival::prepare(cli, host, door, channel, offer);
            }
            Ok(other) => report.note(&format!("a source said something out of order: {other:?}")),
            Err(error) => report.note(&format!("a source: {}", chain(&error))),
        }
        door.nobody();
    }
}

/// The guest has not come, or not in a way that it can be left alone.
fn end(ended: Ended, arrival: Arrival, door: &mut Door, report: &Report) -> Result<(), Failure> {
    match ended {
        // Whoever does not hear it has not given the guest away.
        Ended::BeforeCommit(trouble) => {
            let trouble = arrival.refuse(trouble);
            door.nobody();
            Err(Failure::AtSource(trouble))
        }
        Ended::AfterCommit(trouble) => {
            let reason = chain(&trouble);
            let (channel, place) = arrival.give_back(&reason, report);
            over(channel, &place, &FromDestination::Failed { reason }, door, report)
        }
        Ended::Gone(trouble) => {
            let reason = chain(&trouble);
            let (channel, place) = arrival.discard();
            over(channel, &place, &FromDestination::Gone { reason }, door, report)
        }
        Ended::Unknown(trouble) => Err(Failure::Unfinished(trouble)),
    }
}

/// There is no guest here any more: the source has to hear it, and nothing is left to note then.
fn over(
    channel: Option<Channel>,
    place: &Place,
    word: &FromDestination,
    door: &mut Door,
    report: &Report,
) -> Result<(), Failure> {
    tell(channel, door, word, report)?;
    place.remove();
    door.nobody();
    Err(match word {
        FromDestination::Gone { reason } => Failure::Gone(Trouble::other(reason.as_str())),
        FromDestination::Failed { reason } => Failure::AtSource(Trouble::other(reason.as_str())),
        other => Failure::Unfinished(Trouble::other(format!("{other:?}"))),
    })
}

/// Looks after the guest's pages until all are here, and tells the source.
fn tend(args: &Receive, control: &Control, door: &mut Door, arrival: Arrival, report: &mut Report) -> Result<(), Failure> {
    let Arrival {
        mut channel,
        mut pages,
        mut qmp,
        place,
        ..
    } = arrival;
    loop {
        if ended(&mut qmp, args) {
            pages.stop();
            let reason = "QEMU has ended".to_owned();
            return over(channel, &place, &FromDestination::Gone { reason }, door, report);
        }
        let look = pages.look(args, control, &mut qmp, report);
        if let Err(failure) = &look {
            let reason = chain(failure);
            say(&mut channel, &FromDestination::Incomplete { reason }, report);
        }
        match look? {
            Outlook::Same => {}
            Outlook::Line(line) => {
                report.pages(&line);
                say(&mut channel, &FromDestination::Pages { line }, report);
            }
            Outlook::Trouble(reason) => {
                report.note(&reason);
                say(&mut channel, &FromDestination::Incomplete { reason }, report);
            }
            Outlook::Complete(summary) => {
                report.complete(&summary);
                tell(channel, door, &FromDestination::Complete { summary }, report)?;
                place.remove();
                return Ok(());
            }
        }
        answer(&mut channel, report);
        if let Some(visitor) = door.glance().filter(|visitor| visitor.purpose == Purpose::Recover) {
            report.note("the source is back");
            channel = Some(visitor.channel);
        }
    }
}

/// Whether the guest's QEMU is gone.
fn ended(qmp: &mut Qmp, args: &Receive) -> bool {
    match qmp.event(Instant::now()) {
        Err(QmpError::Closed | QmpError::Io(_)) => match Qmp::connect(&args.qmp, LIMIT) {
            // Only this connection was.
            Ok(again) => {
                *qmp = again;
                false
            }
            Err(error) => arrival::is_nobody(&error),
        },
        _ => false,
    }
}

/// The source asks on each connection whether the guest runs.
fn answer(channel: &mut Option<Channel>, report: &Report) {
    let heard = channel.as_mut().map(|channel| channel.hear(Instant::now()));
    match heard {
        None | Some(Ok(None)) => {}
        Some(Ok(Some(FromSource::Commit { .. }))) => say(channel, &FromDestination::Running, report),
        Some(Ok(Some(other))) => report.note(&format!("the source said something out of order: {other:?}")),
        Some(Err(error)) => {
            report.note(&format!("the source's vmemctl: {}; pages go on coming", chain(&error)));
            *channel = None;
        }
    }
}

fn say(channel: &mut Option<Channel>, message: &FromDestination, report: &Report) {
    let said = channel.as_ref().map(|channel| channel.say(message));
    if let Some(Err(error)) = said {
        report.note(&format!("the source's vmemctl: {}; pages go on coming", chain(&error)));
        *channel = None;
    }
}

/// Says the last word, to a source that may have to be waited for: until it has heard it, it does not know what to do with its QEMU.
fn tell(channel: Option<Channel>, door: &mut Door, message: &FromDestination, report: &Report) -> Result<(), Failure> {
    let mut channel = channel;
    loop {
        let heard = channel.as_mut().is_some_and(|channel| tell_once(channel, message, report));
        if heard {
            return Ok(());
        }
        report.note("the source has not heard how it ended: 'vmemctl recover' there asks");
        loop {
            let visitor = door.wait()?;
            if visitor.purpose == Purpose::Recover {
                channel = Some(visitor.channel);
                break;
            }
        }
    }
}

/// Whether the source has heard it.
fn tell_once(channel: &mut Channel, message: &FromDestination, report: &Report) -> bool {
    if let FromDestination::Complete { .. } | FromDestination::Gone { .. } = message {
        // One that has just come back asks first whether the guest runs.
        let _ = channel.say(&FromDestination::Running);
    }
    let until = Instant::now() + door::PATIENCE;
    let mut said = channel.say(message);
    while said.is_ok() {
        match channel.hear(until) {
            Ok(Some(FromSource::Heard | FromSource::Abort { .. })) => return true,
            Ok(Some(_)) => {}
            Ok(None) => return false,
            Err(error) => said = Err(error),
        }
    }
    if let Err(error) = said {
        report.note(&format!("the source's vmemctl: {}", chain(&error)));
    }
    false
}
