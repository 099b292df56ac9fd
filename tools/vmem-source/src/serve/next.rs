// SPDX-License-Identifier: GPL-2.0-or-later
//! Answers the NEXTs of a connection.

use std::time::Instant;

use super::Shared;
use super::sender::Sender;
use super::staging::StagingConnection;
use crate::error::Error;
use crate::export::MAX_FETCH_RANGES;
use crate::rounds::{Batch, Rounds, Sent, check_inside};
use crate::wire::frame::Type;
use crate::wire::rounds::{BatchEnd, encode_batch};
use crate::wire::session::{Session, Token};
use crate::wire::{ProtocolError, ranges};

/// Where a connection is in its rounds: the peer stages pages until it has the list of the remaining ones.
pub(super) enum NextHandler<'a> {
    /// There are none, or the peer has shown that it knows that they are over.
    None,
    /// The peer stages pages.
    Rounds(StagingConnection<'a>),
    /// A connection that has joined the rounds: it was told that they are over, and has not said that all of its pages have arrived.
    Ending { connection: StagingConnection<'a>, round: u32 },
    /// It has said so. If it ends before the list of the remaining pages is sent, the rounds are lost.
    Ended { _connection: StagingConnection<'a> },
    /// The list of the remaining pages is sent. NEXTs from before the peer had it may still arrive.
    Over { round: u32 },
}

impl<'a> NextHandler<'a> {
    pub(super) fn new(connection: Option<StagingConnection<'a>>) -> Self {
        connection.map_or(Self::None, Self::Rounds)
    }

    /// Makes the connection one of the session that has this token.
    pub(super) fn join(&mut self, token: Token, shared: &'a Shared) -> Result<Session, Error> {
        match self {
            Self::None => {
                let connection = shared.staging.join(token)?;
                let session = connection.session();
                *self = Self::Rounds(connection);
                Ok(session)
            }
            _ => Err(ProtocolError::Unexpected {
                got: "JOIN",
                want: "NEXT, ENDED, GOODBYE or ERROR",
            }
            .into()),
        }
    }

    /// Answers a NEXT of at most `max` pages.
    pub(super) fn answer(&mut self, tag: u32, max: u64, shared: &Shared, sender: &mut Sender<'_>) -> Result<(), Error> {
        if tag == 0 {
            return Err(ProtocolError::NoTag("NEXT").into());
        }
        match std::mem::replace(self, Self::None) {
            Self::None | Self::Ended { .. } => Err(ProtocolError::RoundsOver("NEXT").into()),
            Self::Over { round } => {
                *self = Self::Over { round };
                send_end(sender, tag, round, true)
            }
            Self::Ending { connection, round } => {
                *self = Self::Ending { connection, round };
                send_end(sender, tag, round, true)
            }
            Self::Rounds(connection) => {
                let batch = send_batch(&connection, tag, max, shared, sender)?;
                let round = batch.round;
                if let Some(hashes) = sender.hashes().filter(|_| batch.over) {
                    hashes.end_rounds();
                }
                *self = match batch.over {
                    false => Self::Rounds(connection),
                    true if connection.is_first() => {
                        send_remainder(connection.rounds(), shared, sender)?;
                        connection.finish(|| sender.send_frame(Type::Remainder, 0, &ranges::encode(0, &[])))?;
                        Self::Over { round }
                    }
                    true => Self::Ending { connection, round },
                };
                Ok(())
            }
        }
    }

    /// Notes an ENDED: all pages that the connection was sent in rounds have arrived.
    pub(super) fn note_ended(&mut self) -> Result<(), ProtocolError> {
        match std::mem::replace(self, Self::None) {
            Self::Ending { connection, .. } => {
                connection.end();
                *self = Self::Ended { _connection: connection };
                Ok(())
            }
            other => {
                *self = other;
                Err(ProtocolError::Unexpected {
                    got: "ENDED",
                    want: "a frame ENDED after the last BATCH of a joined connection",
                })
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

/// Sends the next pages and their BATCH.
fn send_batch(
    connection: &StagingConnection<'_>,
    tag: u32,
    max: u64,
    shared: &Shared,
    sender: &mut Sender<'_>,
) -> Result<Batch, Error> {
    let batch = connection.next(max, &shared.exports)?;
    let since = Instant::now();
    if let Some(pages) = &batch.pages {
        sender.send_round(tag, pages)?;
    }
    send_end(sender, tag, batch.round, batch.over)?;
    let sent = Sent {
        elapsed: since.elapsed(),
        ..sender.take_sent()
    };
    connection.rounds().sent(&batch, &sent);
    Ok(batch)
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
