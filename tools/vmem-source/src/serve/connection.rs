// SPDX-License-Identifier: GPL-2.0
//! One connection, from its greeting to its GOODBYE.

use std::io::IoSlice;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};

use super::slots::Slot;
use super::{Event, Shared};

use crate::answer::{Chunk, Kind};
use crate::error::Error;
use crate::export::Lane;
use crate::link::{Link, Side};
use crate::wire::frame::Type;
use crate::wire::greeting::{self, Greeting};
use crate::wire::ranges::{self, ExportRanges};
use crate::wire::version::Version;
use crate::wire::{ErrorCode, ProtocolError, exports, pages, refusal};

/// Counters of a connection.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Served {
    /// Pages sent with their contents.
    pub data: u64,
    /// Pages sent as zero pages.
    pub zero: u64,
    /// Pages sent as unreadable.
    pub unreadable: u64,
    /// Pages that the peer has for good, and that were released here.
    pub released: u64,
}

/// Serves one connection until it ends.
pub(super) fn run(socket: TcpStream, peer: SocketAddr, shared: &Shared, slot: &Slot, served: &mut Served) -> Result<(), Error> {
    let link = Link::new(socket, shared.limits.timeout, Side::Source, shared.identity.as_ref())?;
    let result = handle(&link, peer, shared, slot, served);
    let answer = match &result {
        // The peer speaks another protocol: an ERROR frame would mean nothing to it.
        Err(Error::Protocol(ProtocolError::Magic(_))) => None,
        Err(Error::Protocol(error)) => Some((ErrorCode::Protocol, error.to_string())),
        Err(Error::TooManyConnections) => Some((ErrorCode::Busy, "try again later".to_owned())),
        _ => None,
    };
    if let Some((code, text)) = answer {
        // If the peer does not receive it, the log of this side still has the error.
        let _ = send_error(&link, code, &text);
        link.shut_down();
    }
    result
}

fn handle(link: &Link, peer: SocketAddr, shared: &Shared, slot: &Slot, served: &mut Served) -> Result<(), Error> {
    let mut theirs = [0; greeting::SIZE];
    link.read(&mut theirs, "send its greeting")?;
    let theirs = Greeting::decode(&theirs);
    let (version, lane) = match &theirs {
        Ok(theirs) => (theirs.version, theirs.lane),
        Err(_) => (Version::LATEST, Lane::Urgent),
    };
    if !matches!(theirs, Err(ProtocolError::Magic(_))) {
        // Also before an error: a peer that speaks another version learns from it which one this side speaks.
        let offered = theirs.as_ref().map_or(0, |theirs| theirs.features);
        let features = offered & shared.features();
        let ours = Greeting { version, lane, features };
        link.write(&mut [IoSlice::new(&ours.encode())], "take the greeting")?;
    }
    theirs?;
    if !slot.establish() {
        return Err(Error::TooManyConnections);
    }
    link.set_lane(lane);
    lane.set_thread_priority();
    link.write_frame(Type::Exports, 0, &[&exports::encode(&shared.exports, version)])?;
    (shared.report)(Event::Connected { peer, lane });
    add(&shared.totals.connections, 1);

    let mut payload = Vec::new();
    let mut handler = ReadHandler {
        link,
        shared,
        chunk: Chunk::new(),
        head: Vec::new(),
        served,
    };
    loop {
        // A daemon that needs nothing sends nothing. Keep-alive probes find out that a daemon is gone.
        link.wait(None, "send a frame")?;
        let header = link.read_frame(&mut payload, "send a whole frame")?;
        match header.kind {
            Type::Read => handler.answer(header.tag, &ranges::decode(&payload, &shared.exports)?)?,
            Type::Release => {
                let pages = ranges::decode_release(&payload, &shared.exports)?;
                handler.served.released += shared.release(pages.export, &pages.ranges);
            }
            Type::Goodbye => return Ok(()),
            Type::Error => {
                let (code, text) = refusal::decode(&payload)?;
                return Err(Error::Refused { code, text });
            }
            other => {
                return Err(ProtocolError::Unexpected {
                    got: other.name(),
                    want: "READ, RELEASE, GOODBYE or ERROR",
                }
                .into());
            }
        }
    }
}

fn send_error(link: &Link, code: ErrorCode, text: &str) -> Result<(), Error> {
    link.write_frame(Type::Error, 0, &[&refusal::encode(code, text)])
}

/// The counters are independent of each other: relaxed ordering is enough.
fn add(total: &AtomicU64, amount: u64) {
    total.fetch_add(amount, Ordering::Relaxed);
}

/// Answers the READs of a connection.
struct ReadHandler<'a> {
    link: &'a Link,
    shared: &'a Shared,
    chunk: Chunk,
    head: Vec<u8>,
    served: &'a mut Served,
}

impl ReadHandler<'_> {
    /// Sends the pages of a READ, in chunks.
    fn answer(&mut self, tag: u32, read: &ExportRanges) -> Result<(), Error> {
        let memory = &self.shared.memories[read.export];
        for range in &read.ranges {
            let mut rest = Some(*range);
            while let Some(range) = rest {
                rest = memory.read(range, &mut self.chunk);
                if self.chunk.room() == 0 {
                    self.send(tag, read.export)?;
                }
            }
        }
        if self.chunk.runs().is_empty() {
            Ok(())
        } else {
            self.send(tag, read.export)
        }
    }

    fn send(&mut self, tag: u32, export: usize) -> Result<(), Error> {
        pages::encode_head(export as u32, self.chunk.runs(), &mut self.head);
        self.link.write_frame(Type::Pages, tag, &[&self.head, self.chunk.data()])?;
        for run in self.chunk.runs() {
            let totals = &self.shared.totals;
            let (count, total) = match run.kind {
                Kind::Data => (&mut self.served.data, &totals.data),
                Kind::Zero => (&mut self.served.zero, &totals.zero),
                Kind::Unreadable => (&mut self.served.unreadable, &totals.unreadable),
            };
            *count += run.range.count();
            add(total, run.range.count());
        }
        self.chunk.clear();
        Ok(())
    }
}
