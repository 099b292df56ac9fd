// SPDX-License-Identifier: GPL-2.0-or-later
//! A peer whose program still runs: the destination's side of the rounds.

use std::time::Duration;

use vmem::PageRange;

use super::contents::Received as Contents;
use super::rounds::Rounds;
use super::session::Session;
use super::{Peer, refused};
use crate::digest::Key;
use crate::error::Error;
use crate::export::{Export, MAX_FETCH_PAGES};
use crate::source::{PageSource, Readiness};
use crate::staging::{StagingEvent, StagingSource};
use crate::wire::frame::Type;
use crate::wire::greeting::{FEATURE_MAP, FEATURE_ROUNDS, FEATURE_STREAMS};
use crate::wire::map::decode_holes;
use crate::wire::rounds::{decode_batch, encode_next};
use crate::wire::session::encode_join;
use crate::wire::{ErrorCode, ProtocolError, ranges};

/// For how long a source that has nothing to send holds an answer back.
const HOLD: Duration = Duration::from_secs(1);

/// A connection to a peer that sends pages in rounds.
pub struct StagingPeer {
    peer: Peer,
    rounds: Rounds,
}

/// A frame that has been read and checked; its payload is that of the peer.
enum Received {
    /// The number of the export, and where the page contents are.
    Pages(usize, Contents),
    Event(StagingEvent<'static>),
}

impl StagingPeer {
    /// Takes over a connection. If the source accepts more for the same rounds, it has said how they join.
    ///
    /// # Errors
    ///
    /// [`Error::NoRounds`], and those of a connection.
    pub(crate) fn new(mut peer: Peer) -> Result<Self, Error> {
        if peer.features & FEATURE_ROUNDS == 0 {
            return Err(Error::NoRounds);
        }
        let membership = match peer.features & FEATURE_STREAMS {
            0 => None,
            _ => match peer.read_session() {
                Ok(session) => Some(Session::new(session, &peer.exports).member(0)),
                Err(error) => return Err(peer.fail(error)),
            },
        };
        let rounds = Rounds::new(peer.exports.clone(), membership);
        Ok(Self { peer, rounds })
    }

    /// Takes part in the rounds of another connection, as its number `number`. `None` if the source takes no more: nothing has changed then.
    ///
    /// # Errors
    ///
    /// Those of a connection. The source may count this connection, so that its rounds are lost.
    pub(crate) fn join(mut peer: Peer, session: &Session, number: u8) -> Result<Option<Self>, Error> {
        if peer.features & FEATURE_STREAMS == 0 {
            return Ok(None);
        }
        let join = encode_join(session.token);
        let answer = peer
            .link
            .write_frame(Type::Join, 0, &[&join])
            .and_then(|()| peer.read_session());
        match answer {
            Ok(answer) if answer.token == session.token => {
                let rounds = Rounds::new(peer.exports.clone(), Some(session.member(number)));
                Ok(Some(Self { peer, rounds }))
            }
            Ok(_) => Err(peer.fail(ProtocolError::Token("SESSION").into())),
            Err(Error::Refused {
                code: ErrorCode::Busy, ..
            }) => {
                peer.failed = true;
                Ok(None)
            }
            Err(error) => Err(peer.fail(error)),
        }
    }

    /// The session that other connections can join, if the source takes any.
    pub(crate) fn session(&self) -> Option<&Session> {
        self.rounds.session()
    }

    fn receive(&mut self) -> Result<Received, Error> {
        loop {
            let action = self.rounds.due();
            let peer = &mut self.peer;
            peer.link.wait(Some(peer.link.timeout() + HOLD), action)?;
            let header = peer.link.read_frame(&mut peer.payload, action)?;
            let event = match header.kind {
                Type::Error => return Err(refused(&peer.payload)),
                Type::Pages => {
                    let (export, contents) = Contents::decode(header.coding, &peer.payload, &mut peer.runs)?;
                    peer.check_kinds(&peer.runs, true)?;
                    let export = self.rounds.accept_pages(header.tag, export, &peer.runs)?;
                    contents.decompress(&peer.payload, &peer.runs, &mut peer.decompressor)?;
                    return Ok(Received::Pages(export, contents));
                }
                Type::Batch => {
                    let batch = decode_batch(&peer.payload)?;
                    let is_last = self.rounds.is_last(batch);
                    let event = self.rounds.accept_batch(header.tag, batch)?;
                    if is_last {
                        // The caller has asked for this event, and so has staged the pages of all earlier ones.
                        peer.link.write_frame(Type::Ended, 0, &[])?;
                    }
                    event
                }
                Type::Holes if peer.features & FEATURE_MAP != 0 => {
                    let answer = decode_holes(&peer.payload)?;
                    return Ok(Received::Event(StagingEvent::Holes(peer.maps.accept(header.tag, answer)?)));
                }
                Type::Remainder => {
                    // Before the payload is looked at: whether one is due does not depend on it.
                    self.rounds.check_remainder()?;
                    let pages = ranges::decode_remainder(&peer.payload, &peer.exports)?;
                    self.rounds.accept_remainder(pages)?
                }
                other => {
                    return Err(ProtocolError::Unexpected {
                        got: other.name(),
                        want: "PAGES, BATCH, REMAINDER or ERROR",
                    }
                    .into());
                }
            };
            // The rest of an answer that is empty tells the caller nothing.
            if let Some(event) = event {
                return Ok(Received::Event(event));
            }
        }
    }
}

impl StagingSource for StagingPeer {
    fn exports(&self) -> &[Export] {
        &self.peer.exports
    }

    fn next(&mut self, max: u64) -> Result<(), Error> {
        if !(1..=MAX_FETCH_PAGES).contains(&max) {
            return Err(Error::InvalidFetch(format!("a batch of {max} pages")));
        }
        let over = || Error::InvalidFetch("a batch: the rounds are over".to_owned());
        let tag = self.rounds.add(max).ok_or_else(over)?;
        self.peer.link.write_frame(Type::Next, tag, &[&encode_next(max)])
    }

    fn can_map(&self) -> bool {
        self.peer.can_map()
    }

    fn map(&mut self, export: usize, pages: PageRange) -> Result<(), Error> {
        if self.rounds.has_begun() {
            return Err(Error::InvalidFetch("a map: the rounds have begun".to_owned()));
        }
        self.peer.ask_map(export, pages)
    }

    fn can_hash(&self) -> bool {
        self.peer.can_hash()
    }

    fn announce(&mut self, key: &Key, prefixes: &[u64]) -> Result<(), Error> {
        self.peer.send_digests(key, prefixes)
    }

    fn readiness(&self) -> Readiness<'_> {
        self.peer.readiness()
    }

    fn next_event(&mut self) -> Result<StagingEvent<'_>, Error> {
        match self.receive() {
            Ok(Received::Event(event)) => Ok(event),
            Ok(Received::Pages(export, contents)) => self.peer.answer(export, contents).map(StagingEvent::Pages),
            Err(error) => Err(self.peer.fail(error)),
        }
    }

    fn into_source(self: Box<Self>) -> Box<dyn PageSource> {
        Box::new(self.peer)
    }
}
