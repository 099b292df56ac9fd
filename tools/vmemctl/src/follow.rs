// SPDX-License-Identifier: GPL-2.0
//! The source's side after the switch: pages are given until the destination has them all.

use std::time::{Duration, Instant};

use vmem_cli::chain;

use crate::channel::{Channel, ChannelError};
use crate::export::Export;
use crate::failure::{Failure, Trouble};
use crate::message::{FromDestination, FromSource, Purpose};
use crate::network::Security;
use crate::printable::printable;
use crate::record::Outgoing;
use crate::report::Report;
use crate::signals::Signals;

/// How often vmemd is looked after.
const GLANCE: Duration = Duration::from_millis(200);

/// How long a lost destination is tried for. The guest waits there, and `vmemctl recover` goes on with it at any later time.
const RETRY: Duration = Duration::from_secs(600);

/// How the destination is reached again.
#[derive(Clone)]
pub(crate) struct Way {
    security: Security,
    to: String,
    session: String,
    run: bool,
}

impl Way {
    pub(crate) fn new(security: &Security, record: &Outgoing) -> Self {
        Self {
            security: security.clone(),
            to: record.to.clone(),
            session: record.session.clone(),
            run: record.run,
        }
    }

    /// Connects, and says again that the guest is the destination's: it may not have heard it. A signal ends that.
    pub(crate) fn connect(&self, signals: &Signals) -> Result<Channel, Trouble> {
        let way = self.clone();
        signals.unless(move || way.say(&FromSource::Commit { run: way.run }))?
    }

    /// Connects, and says that the guest goes on here: it may not have heard it, and would wait for it.
    pub(crate) fn abort(&self, reason: String) -> Result<(), Trouble> {
        self.say(&FromSource::Abort { reason }).map(drop)
    }

    fn say(&self, word: &FromSource) -> Result<Channel, Trouble> {
        let channel = self.security.connect(&self.to, &self.session, Purpose::Recover)?;
        channel.say(word).map_err(lost)?;
        Ok(channel)
    }
}

/// The next message, which must come within `limit`; a signal ends the wait.
pub(crate) fn hear(channel: &mut Channel, limit: Duration, signals: &Signals) -> Result<FromDestination, Trouble> {
    let deadline = Instant::now() + limit;
    loop {
        signals.check()?;
        let now = Instant::now();
        if now >= deadline {
            return Err(lost(ChannelError::TimedOut(limit)));
        }
        if let Some(message) = channel.hear(deadline.min(now + GLANCE)).map_err(lost)? {
            return Ok(message);
        }
    }
}

/// The connection to the destination's vmemctl cannot be used any more.
pub(crate) fn lost(error: ChannelError) -> Trouble {
    Trouble::Peer("the destination's vmemctl".to_owned(), error)
}

/// Serves pages and tells how far it is, until the destination says that it has all. If it does not get so far, pages are served on
/// without this program: the guest needs them.
pub(crate) fn follow(
    way: &Way,
    channel: Channel,
    export: &mut Export,
    report: &mut Report,
    signals: &Signals,
) -> Result<(), Failure> {
    match follow_to_the_end(way, channel, export, report, signals) {
        Ok(None) => Ok(()),
        Ok(Some(reason)) => Err(Failure::Gone(Trouble::other(reason))),
        Err(trouble) => Err(leave(trouble, export, report, Failure::Unfinished)),
    }
}

/// Leaves a guest that is the destination's, or may be, with a vmemd that serves its pages.
pub(crate) fn leave(trouble: Trouble, export: &mut Export, report: &Report, or: fn(Trouble) -> Failure) -> Failure {
    if !export.leave() {
        report.note("no vmemd serves the guest's pages: 'vmemctl recover' starts one");
    }
    if trouble.is_signal() {
        Failure::Detached(trouble)
    } else {
        or(trouble)
    }
}

/// Until the destination has all, or, if the guest has ended there, it has said so.
fn follow_to_the_end(
    way: &Way,
    channel: Channel,
    export: &mut Export,
    report: &mut Report,
    signals: &Signals,
) -> Result<Option<String>, Trouble> {
    let mut channel = channel;
    loop {
        signals.check()?;
        export.news().iter().for_each(|news| report.note(news));
        match channel.hear(Instant::now() + GLANCE) {
            Ok(None | Some(FromDestination::Running | FromDestination::Welcome { .. })) => {}
            Ok(Some(FromDestination::Pages { line })) => report.pages(&line),
            Ok(Some(FromDestination::Complete { summary })) => {
                report.complete(&summary);
                // If it is not heard, the destination waits for `recover`, which finds nothing to do but this.
                let _ = channel.say(&FromSource::Heard);
                export.stop();
                return Ok(None);
            }
            Ok(Some(FromDestination::Gone { reason })) => {
                let _ = channel.say(&FromSource::Heard);
                export.stop();
                return Ok(Some(printable(&reason)));
            }
            Ok(Some(FromDestination::Incomplete { reason })) => report.note(&format!("destination: {}", printable(&reason))),
            Ok(Some(other)) => {
                return Err(Trouble::other(format!(
                    "the destination said something out of order: {other:?}"
                )));
            }
            Err(error) => {
                report.note(&format!("the destination's vmemctl: {}; trying again", chain(&error)));
                channel = again(way, export, report, signals)?;
                report.note("the destination's vmemctl is back");
            }
        }
    }
}

/// Connects again, and keeps pages coming meanwhile: they go their own way.
pub(crate) fn again(way: &Way, export: &mut Export, report: &mut Report, signals: &Signals) -> Result<Channel, Trouble> {
    let until = Instant::now() + RETRY;
    loop {
        match way.connect(signals) {
            Ok(channel) => return Ok(channel),
            Err(trouble) if trouble.is_signal() || Instant::now() >= until => return Err(trouble),
            Err(_) => signals.unless(|| std::thread::sleep(Duration::from_secs(1)))?,
        }
        export.news().iter().for_each(|news| report.note(news));
    }
}
