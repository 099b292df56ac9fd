// SPDX-License-Identifier: GPL-2.0
//! The source's side after the switch: pages are given until the destination has them all.

use std::time::{Duration, Instant};

use vmem_cli::chain;

use crate::channel::Channel;
use crate::failure::{Failure, Trouble};
use crate::message::{FromDestination, FromSource, Purpose};
use crate::migrate::source::Export;
use crate::network::Security;
use crate::record::Outgoing;
use crate::report::Report;

/// How often vmemd is looked after.
const GLANCE: Duration = Duration::from_millis(200);

/// How long a lost destination is tried for. The guest waits there, and `vmemctl recover` goes on with it at any later time.
const RETRY: Duration = Duration::from_secs(600);

/// How the destination is reached again.
pub(crate) struct Way<'a> {
    security: &'a Security,
    to: &'a str,
    session: &'a str,
    run: bool,
}

impl<'a> Way<'a> {
    pub(crate) fn new(security: &'a Security, record: &'a Outgoing) -> Self {
        Self {
            security,
            to: &record.to,
            session: &record.session,
            run: record.run,
        }
    }

    /// Connects, and says again that the guest is the destination's: it may not have heard it.
    pub(crate) fn connect(&self) -> Result<Channel, Trouble> {
        self.say(&FromSource::Commit { run: self.run })
    }

    /// Connects, and says that the guest goes on here: it may not have heard it, and would wait for it.
    pub(crate) fn abort(&self, reason: String) -> Result<(), Trouble> {
        self.say(&FromSource::Abort { reason }).map(drop)
    }

    fn say(&self, word: &FromSource) -> Result<Channel, Trouble> {
        let channel = self.security.connect(self.to, self.session, Purpose::Recover)?;
        let said = channel.say(word);
        said.map_err(|error| Trouble::Peer("the destination's vmemctl".to_owned(), error))?;
        Ok(channel)
    }
}

/// Serves pages and tells how far it is, until the destination says that it has all. If it does not get so far, pages are served on
/// without this program: the guest needs them.
pub(crate) fn follow(way: &Way<'_>, channel: Channel, export: &mut Export, report: &mut Report) -> Result<(), Failure> {
    match follow_to_the_end(way, channel, export, report) {
        Ok(None) => Ok(()),
        Ok(Some(reason)) => Err(Failure::Gone(Trouble::other(reason))),
        Err(trouble) => {
            export.leave();
            Err(Failure::Unfinished(trouble))
        }
    }
}

/// Until the destination has all, or, if the guest has ended there, it has said so.
fn follow_to_the_end(
    way: &Way<'_>,
    channel: Channel,
    export: &mut Export,
    report: &mut Report,
) -> Result<Option<String>, Trouble> {
    let mut channel = channel;
    loop {
        export.news().iter().for_each(|news| report.note(news));
        match channel.hear(Instant::now() + GLANCE) {
            Ok(None | Some(FromDestination::Running | FromDestination::Welcome)) => {}
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
                return Ok(Some(reason.escape_debug().to_string()));
            }
            Ok(Some(FromDestination::Incomplete { reason })) => report.note(&format!("destination: {}", reason.escape_debug())),
            Ok(Some(other)) => {
                return Err(Trouble::other(format!(
                    "the destination said something out of order: {other:?}"
                )));
            }
            Err(error) => {
                report.note(&format!("the destination's vmemctl: {}; trying again", chain(&error)));
                channel = again(way, export, report)?;
                report.note("the destination's vmemctl is back");
            }
        }
    }
}

/// Connects again, and keeps pages coming meanwhile: they go their own way.
pub(crate) fn again(way: &Way<'_>, export: &mut Export, report: &mut Report) -> Result<Channel, Trouble> {
    let until = Instant::now() + RETRY;
    loop {
        match way.connect() {
            Ok(channel) => return Ok(channel),
            Err(trouble) if Instant::now() >= until => return Err(trouble),
            Err(_) => std::thread::sleep(Duration::from_secs(1)),
        }
        export.news().iter().for_each(|news| report.note(news));
    }
}
