// SPDX-License-Identifier: GPL-2.0-or-later
//! The address of the destination's vmemctl, at which the source reconnects after a connection was lost.

use std::time::{Duration, Instant};

use crate::channel::{Channel, ChannelError};
use crate::error::Cause;
use crate::message::{FromSource, Purpose};
use crate::network::Security;
use crate::page_server::{News, PageServer};
use crate::record::Outgoing;
use crate::report::Report;
use vmem_cli::Signals;

/// The pause between two attempts to connect.
const PAUSE: Duration = Duration::from_secs(1);

/// Where the destination's vmemctl listens, and how connections to it are protected.
#[derive(Clone)]
pub(crate) struct Endpoint {
    security: Security,
    to: String,
    session: String,
    run: bool,
}

impl Endpoint {
    pub(crate) fn new(security: &Security, record: &Outgoing) -> Self {
        Self {
            security: security.clone(),
            to: record.to.clone(),
            session: record.session.clone(),
            run: record.run,
        }
    }

    /// Connects for `purpose`. A signal ends the attempt.
    pub(crate) fn connect(&self, purpose: Purpose, signals: &Signals) -> Result<Channel, Cause> {
        let endpoint = self.clone();
        signals.unless(move || endpoint.security.connect(&endpoint.to, &endpoint.session, purpose))?
    }

    /// Connects again, and repeats COMMIT, because the destination may not have received it. Tries for `limit`, and at least once. Reports
    /// the news of `export` meanwhile.
    pub(crate) fn reconnect(
        &self,
        limit: Duration,
        export: &mut PageServer,
        report: &Report,
        signals: &Signals,
    ) -> Result<Channel, Cause> {
        let until = Instant::now() + limit;
        loop {
            for news in export.news() {
                if let News::Note(text) | News::Ended(text) = news {
                    report.note(&text);
                }
            }
            let endpoint = self.clone();
            match signals.unless(move || endpoint.send(&FromSource::Commit { run: endpoint.run }))? {
                Ok(channel) => return Ok(channel),
                Err(cause) if Instant::now() >= until => return Err(cause),
                Err(_) => signals.unless(|| std::thread::sleep(PAUSE))?,
            }
        }
    }

    /// Connects, and sends ABORT. The destination may not have received an earlier one, and would wait for it.
    pub(crate) fn abort(&self, reason: String) -> Result<(), Cause> {
        self.send(&FromSource::Abort { reason }).map(drop)
    }

    /// Connects, and sends HEARD. A destination that has not received HEARD continues to send its final message.
    pub(crate) fn send_heard(&self) -> Result<(), Cause> {
        self.send(&FromSource::Heard).map(drop)
    }

    fn send(&self, word: &FromSource) -> Result<Channel, Cause> {
        let channel = self.security.connect(&self.to, &self.session, Purpose::Recover)?;
        channel.send(word).map_err(lost)?;
        Ok(channel)
    }
}

/// The cause for a failed connection to the destination's vmemctl.
pub(crate) fn lost(error: ChannelError) -> Cause {
    Cause::Peer("the destination's vmemctl".to_owned(), error)
}
