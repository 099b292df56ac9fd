// SPDX-License-Identifier: GPL-2.0-or-later
//! One connection, from its greeting to its GOODBYE.

use std::io::IoSlice;
use std::net::{SocketAddr, TcpStream};

use vmem_wait::Pulse;

use super::hashes::Hashes;
use super::next::NextHandler;
use super::sender::{Sender, Served, add};
use super::slots::Slot;
use super::{Event, Shared};

use crate::error::Error;
use crate::export::Lane;
use crate::link::{Link, Side};
use crate::wire::compression::decode_compress;
use crate::wire::frame::Type;
use crate::wire::greeting::{
    self, FEATURE_COMPRESS, FEATURE_HASHES, FEATURE_MAP, FEATURE_NO_CHECKSUM, FEATURE_ROUNDS, FEATURE_STREAMS, Greeting,
};
use crate::wire::map::decode_map;
use crate::wire::rounds::decode_next;
use crate::wire::session::{decode_join, encode_session};
use crate::wire::version::Version;
use crate::wire::{ErrorCode, ProtocolError, digests, exports, ranges, refusal};

/// Serves one connection until it ends.
pub(super) fn run(
    socket: TcpStream,
    peer: SocketAddr,
    shared: &Shared,
    slot: &Slot,
    pulse: &Pulse,
    served: &mut Served,
) -> Result<(), Error> {
    // What else is done than to read and to send pages has limits of its own, or waits for others.
    pulse.rests();
    let mut link = Link::new(socket, shared.limits.timeout, Side::Source, shared.identity.as_ref())?;
    let result = handle(&mut link, peer, shared, slot, pulse, served);
    let answer = match &result {
        // The peer speaks another protocol: an ERROR frame would mean nothing to it.
        Err(Error::Protocol(ProtocolError::Magic(_))) => None,
        Err(Error::Protocol(error)) => Some((ErrorCode::Protocol, error.to_string())),
        Err(Error::TooManyConnections) => Some((ErrorCode::Busy, "try again later".to_owned())),
        Err(Error::StagingBusy) => Some((ErrorCode::Busy, "another connection stages pages".to_owned())),
        Err(Error::Rounds(error)) => Some((ErrorCode::Protocol, error.chain())),
        _ => None,
    };
    if let Some((code, text)) = answer {
        // If the peer does not receive it, the log of this side still has the error.
        let _ = send_error(&link, code, &text);
        link.shut_down();
    }
    result
}

fn handle(
    link: &mut Link,
    peer: SocketAddr,
    shared: &Shared,
    slot: &Slot,
    pulse: &Pulse,
    served: &mut Served,
) -> Result<(), Error> {
    let mut theirs = [0; greeting::SIZE];
    link.read(&mut theirs, "send its greeting")?;
    let theirs = Greeting::decode(&theirs);
    let (version, lane, offered) = match &theirs {
        Ok(theirs) => (theirs.version, theirs.lane, theirs.features),
        Err(_) => (Version::LATEST, Lane::Urgent, 0),
    };
    let features = offered & shared.features(lane, link.is_protected());
    if !matches!(theirs, Err(ProtocolError::Magic(_))) {
        // Also before an error: a peer that speaks another version learns from it which one this side speaks.
        let ours = Greeting { version, lane, features };
        link.write(&mut [IoSlice::new(&ours.encode())], "take the greeting")?;
    }
    theirs?;
    if features & FEATURE_NO_CHECKSUM != 0 {
        link.omit_checksums();
    }
    let link = &*link;
    if !slot.establish() {
        return Err(Error::TooManyConnections);
    }
    let stages = features & FEATURE_ROUNDS != 0;
    let may_join = features & (FEATURE_ROUNDS | FEATURE_STREAMS) == FEATURE_STREAMS;
    let staging = match stages {
        true => Some(shared.staging.claim(&shared.exports)?),
        false => None,
    };
    link.set_lane(lane);
    lane.set_thread_priority();
    link.write_frame(Type::Exports, 0, &[&exports::encode(&shared.exports, version)])?;
    if let Some(connection) = staging.as_ref().filter(|_| features & FEATURE_STREAMS != 0) {
        link.write_frame(Type::Session, 0, &[&encode_session(connection.session())])?;
    }
    (shared.report)(Event::Connected { peer, lane });
    add(&shared.totals.connections, 1);

    let maps = features & FEATURE_MAP != 0;
    let mut payload = Vec::new();
    let hashes = match features & FEATURE_HASHES {
        0 => None,
        _ => Some(Hashes::new(&shared.budget, stages.then_some(&shared.exports)).map_err(Error::Io)?),
    };
    let mut sender = Sender::new(link, shared, lane, hashes, pulse, served);
    let mut nexts = NextHandler::new(staging);
    loop {
        // A daemon that needs nothing sends nothing. Keep-alive probes find out that a daemon is gone.
        link.wait(None, "send a frame")?;
        let header = link.read_frame(&mut payload, "send a whole frame")?;
        match header.kind {
            Type::Read => {
                nexts.note_read("READ", shared)?;
                sender.send_pages(header.tag, &ranges::decode(&payload, &shared.exports)?)?;
            }
            Type::Release => {
                nexts.note_read("RELEASE", shared)?;
                sender.release(&ranges::decode_release(&payload, &shared.exports)?);
            }
            Type::Compress if features & FEATURE_COMPRESS != 0 => sender.compress(decode_compress(&payload)?)?,
            Type::Map if maps => {
                if !stages {
                    nexts.note_read("MAP", shared)?;
                }
                let (export, pages) = decode_map(&payload, &shared.exports)?;
                nexts.map(header.tag, export, pages, shared, &mut sender)?;
            }
            Type::Join if may_join => {
                let session = nexts.join(decode_join(&payload)?, shared)?;
                if let Some(hashes) = sender.hashes() {
                    hashes.begin_rounds(&shared.exports);
                }
                link.write_frame(Type::Session, 0, &[&encode_session(session)])?;
            }
            Type::Ended if may_join => nexts.note_ended()?,
            Type::Next if stages || may_join => nexts.answer(header.tag, decode_next(&payload)?, shared, &mut sender)?,
            Type::Digests if features & FEATURE_HASHES != 0 => {
                let announced = digests::decode(&payload)?;
                sender.hashes().map_or(Ok(()), |hashes| hashes.announce(announced))?;
            }
            Type::Goodbye => return Ok(()),
            Type::Error => {
                let (code, text) = refusal::decode(&payload)?;
                return Err(Error::Refused { code, text });
            }
            other => {
                return Err(ProtocolError::Unexpected {
                    got: other.name(),
                    want: match (stages, may_join, maps) {
                        (true, _, true) => "MAP, NEXT, READ, RELEASE, GOODBYE or ERROR",
                        (true, _, false) => "NEXT, READ, RELEASE, GOODBYE or ERROR",
                        (_, true, _) => "JOIN, NEXT, ENDED, READ, RELEASE, GOODBYE or ERROR",
                        (_, _, true) => "MAP, READ, RELEASE, GOODBYE or ERROR",
                        _ => "READ, RELEASE, GOODBYE or ERROR",
                    },
                }
                .into());
            }
        }
    }
}

fn send_error(link: &Link, code: ErrorCode, text: &str) -> Result<(), Error> {
    link.write_frame(Type::Error, 0, &[&refusal::encode(code, text)])
}
