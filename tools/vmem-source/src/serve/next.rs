// SPDX-License-Identifier: GPL-2.0
//! Answers the NEXTs of a connection.

use std::time::Instant;

use super::Shared;
use super::sender::Sender;
use super::staging::StagingConnection;
use crate::error::Error;
use crate::export::MAX_FETCH_RANGES;
use crate::rounds::{Rounds, Sent, check_inside};
use crate::wire::frame::Type;
use crate::wire::rounds::{BatchEnd, encode_batch};
use crate::wire::{ProtocolError, ranges};

/// Where a connection is in its rounds: the peer stages pages until it has the list of the remaining ones.
pub(super) enum NextHandler<'a> {
    /// There are none, or the peer has shown that it knows that they are over.
    None,
    /// The peer stages pages.
    Rounds {
        connection: StagingConnection<'a>,
        /// The round of the last batch; 1 at first.
        round: u32,
        /// Whether the peer has asked for pages.
        begun: bool,
    },
    /// The list of the remaining pages is sent. NEXTs from before the peer had it may still arrive.
    Over { round: u32 },
}

impl<'a> NextHandler<'a> {
    pub(super) fn new(connection: Option<StagingConnection<'a>>) -> Self {
        connection.map_or(Self::None, |connection| Self::Rounds {
            connection,
            round: 1,
            begun: false,
        })
    }

    /// Answers a NEXT of at most `max` pages.
    pub(super) fn answer(&mut self, tag: u32, max: u64, shared: &Shared, sender: &mut Sender<'_>) -> Result<(), Error> {
        if tag == 0 {
            return Err(ProtocolError::NoTag("NEXT").into());
        }
        match self {
            Self::None => Err(ProtocolError::RoundsOver("NEXT").into()),
            Self::Over { round } => send_end(sender, tag, *round, true),
            Self::Rounds {
                connection,
                round,
                begun,
            } => {
                *begun = true;
                let rounds = connection.rounds();
                if !send_batch(rounds, tag, max, round, shared, sender)? {
                    return Ok(());
                }
                send_remainder(rounds, shared, sender)?;
                if let Some(hashes) = sender.hashes() {
                    hashes.end_rounds();
                }
                let over = Self::Over { round: *round };
                match std::mem::replace(self, over) {
                    Self::Rounds { connection, .. } => {
                        connection.finish(|| sender.send_frame(Type::Remainder, 0, &ranges::encode(0, &[])))
                    }
                    _ => Ok(()),
                }
            }
        }
    }

    /// Notes a READ or RELEASE named `what`: the peer knows that the rounds are over.
    pub(super) fn note_read(&mut self, what: &'static str, shared: &Shared) -> Result<(), ProtocolError> {
        if !shared.staging.allows_reads() {
            return Err(ProtocolError::TooEarly(what));
        }
        if matches!(self, Self::Over { .. }) {
            *self = Self::None;
        }
        Ok(())
    }
}

/// Sends the next pages and their BATCH. Returns whether the rounds are over.
fn send_batch(
    rounds: &dyn Rounds,
    tag: u32,
    max: u64,
    round: &mut u32,
    shared: &Shared,
    sender: &mut Sender<'_>,
) -> Result<bool, Error> {
    let batch = rounds.next(max)?;
    let since = Instant::now();
    batch.check(&shared.exports, max, *round)?;
    *round = batch.round;
    if let Some(pages) = &batch.pages {
        sender.send_round(tag, pages)?;
    }
    send_end(sender, tag, batch.round, batch.over)?;
    let sent = Sent {
        elapsed: since.elapsed(),
        ..sender.take_sent()
    };
    rounds.sent(&batch, &sent);
    Ok(batch.over)
}

fn send_end(sender: &mut Sender<'_>, tag: u32, round: u32, over: bool) -> Result<(), Error> {
    sender.send_frame(Type::Batch, tag, &encode_batch(BatchEnd { round, over }))
}

/// Sends the list of the remaining pages but for its end.
fn send_remainder(rounds: &dyn Rounds, shared: &Shared, sender: &mut Sender<'_>) -> Result<(), Error> {
    for pages in rounds.remainder()? {
        check_inside(&pages, &shared.exports)?;
        for ranges in pages.ranges.chunks(MAX_FETCH_RANGES) {
            sender.send_frame(Type::Remainder, 0, &ranges::encode(pages.export as u32, ranges))?;
        }
    }
    Ok(())
}
