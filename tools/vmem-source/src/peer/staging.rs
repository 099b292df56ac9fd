// SPDX-License-Identifier: GPL-2.0
//! A peer whose program still runs: the destination's side of the rounds.

use std::time::Duration;

use vmem::PageRange;

use super::rounds::Rounds;
use super::{Peer, refused};
use crate::answer::Answer;
use crate::digest::Key;
use crate::error::Error;
use crate::export::{Export, MAX_FETCH_PAGES};
use crate::source::{PageSource, Readiness};
use crate::staging::{StagingEvent, StagingSource};
use crate::wire::frame::Type;
use crate::wire::greeting::{FEATURE_MAP, FEATURE_ROUNDS};
use crate::wire::map::decode_holes;
use crate::wire::rounds::{decode_batch, encode_next};
use crate::wire::{ProtocolError, pages, ranges};

/// For how long a source that has nothing to send holds an answer back.
const HOLD: Duration = Duration::from_secs(1);

/// A connection to a peer that sends pages in rounds.
pub struct StagingPeer {
    peer: Peer,
    rounds: Rounds,
}

/// A frame that has been read and checked; its payload is that of the peer.
enum Received {
    /// The number of the export, and the offset of the page contents in the payload.
    Pages(usize, usize),
    Event(StagingEvent<'static>),
}

impl StagingPeer {
    /// Takes over a connection.
    ///
    /// # Errors
    ///
    /// [`Error::NoRounds`].
    pub(crate) fn new(peer: Peer) -> Result<Self, Error> {
        if peer.features & FEATURE_ROUNDS == 0 {
            return Err(Error::NoRounds);
        }
        let rounds = Rounds::new(peer.exports.clone());
        Ok(Self { peer, rounds })
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
                    let (export, data) = pages::decode(&peer.payload, &mut peer.runs)?;
                    peer.check_kinds(&peer.runs, true)?;
                    let data = peer.payload.len() - data.len();
                    return Ok(Received::Pages(
                        self.rounds.accept_pages(header.tag, export, &peer.runs)?,
                        data,
                    ));
                }
                Type::Holes if peer.features & FEATURE_MAP != 0 => {
                    let answer = decode_holes(&peer.payload)?;
                    return Ok(Received::Event(StagingEvent::Holes(peer.maps.accept(header.tag, answer)?)));
                }
                Type::Batch => self.rounds.accept_batch(header.tag, decode_batch(&peer.payload)?)?,
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
            Ok(Received::Pages(export, data)) => {
                // `decode` has checked that there are as many bytes as the runs say.
                let answer = Answer::new(export, &self.peer.runs, &self.peer.payload[data..]);
                answer
                    .map(StagingEvent::Pages)
                    .ok_or_else(|| ProtocolError::Short("PAGES").into())
            }
            Err(error) => Err(self.peer.fail(error)),
        }
    }

    fn into_source(self: Box<Self>) -> Box<dyn PageSource> {
        Box::new(self.peer)
    }
}
