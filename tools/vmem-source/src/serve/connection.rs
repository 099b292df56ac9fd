// SPDX-License-Identifier: GPL-2.0
//! One connection, from greeting to goodbye.

use std::io::{self, IoSlice};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};

use super::slots::Slot;
use super::{Event, Shared};
use vmem_tls::TlsError;

use crate::answer::{Chunk, Kind};
use crate::export::Lane;
use crate::link::{Link, LinkError, Side};
use crate::wire::frame::Type;
use crate::wire::greeting::{self, Greeting};
use crate::wire::question::{self, Question};
use crate::wire::version::Version;
use crate::wire::{ErrorCode, WireError, exports, pages, refusal};

/// What a connection was given.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Served {
    /// Pages with their bytes.
    pub data: u64,
    /// Zero pages.
    pub zero: u64,
    /// Pages that could not be read.
    pub unreadable: u64,
    /// Pages that it has for good, and that were given back here.
    pub released: u64,
}

/// Why a connection ended without a goodbye.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The peer sent something that is not the protocol, or breaks it.
    #[error(transparent)]
    Protocol(WireError),
    /// The peer says that this side has broken it.
    #[error("the peer refused: {0}")]
    Refused(String),
    /// The peer did not take or send something in time.
    #[error("the peer took too long")]
    TimedOut,
    /// The peer closed the connection, in the middle of a frame or not.
    #[error("the peer went away without a goodbye{}", if *.within { ", in the middle of a frame" } else { "" })]
    Closed {
        /// In the middle of a frame.
        within: bool,
    },
    /// There are as many connections already as there may be.
    #[error("refused, there are too many connections")]
    Full,
    /// Who is there is not who may be, or does not say so.
    #[error("no protected connection")]
    Tls(#[source] TlsError),
    /// The connection failed.
    #[error("the connection failed")]
    Io(#[source] io::Error),
}

impl From<LinkError> for ServeError {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Wire(error) => Self::Protocol(error),
            LinkError::TimedOut => Self::TimedOut,
            LinkError::Closed { within } => Self::Closed { within },
            LinkError::Io(error) => Self::Io(error),
            LinkError::Tls(error) => Self::Tls(error),
        }
    }
}

impl From<WireError> for ServeError {
    fn from(error: WireError) -> Self {
        Self::Protocol(error)
    }
}

/// Serves one connection until it ends.
pub(super) fn run(
    socket: TcpStream,
    peer: SocketAddr,
    shared: &Shared,
    slot: &Slot,
    served: &mut Served,
) -> Result<(), ServeError> {
    let link = Link::new(socket, shared.limits.timeout, Side::Source, shared.identity.as_ref()).map_err(ServeError::Tls)?;
    let result = converse(&link, peer, shared, slot, served);
    let told = match &result {
        // Whoever speaks something else altogether would not understand.
        Err(ServeError::Protocol(WireError::Magic(_))) => None,
        Err(ServeError::Protocol(error)) => Some((ErrorCode::Protocol, error.to_string())),
        Err(ServeError::Full) => Some((ErrorCode::Busy, "try again later".to_owned())),
        _ => None,
    };
    if let Some((code, text)) = told {
        // The peer shall know why; if it cannot be told, the log has it.
        let _ = send_error(&link, code, &text);
        link.finish();
    }
    result
}

fn converse(link: &Link, peer: SocketAddr, shared: &Shared, slot: &Slot, served: &mut Served) -> Result<(), ServeError> {
    let mut theirs = [0; greeting::SIZE];
    link.read(&mut theirs)?;
    let theirs = Greeting::decode(&theirs);
    let (version, lane) = match &theirs {
        Ok(theirs) => (theirs.version, theirs.lane),
        Err(_) => (Version::LATEST, Lane::Urgent),
    };
    if !matches!(theirs, Err(WireError::Magic(_))) {
        // Also before an error: one that speaks another version learns ours from it.
        let offered = theirs.as_ref().map_or(0, |theirs| theirs.features);
        let features = offered & shared.features();
        let ours = Greeting { version, lane, features };
        link.write(&mut [IoSlice::new(&ours.encode())])?;
    }
    theirs?;
    if !slot.prove() {
        return Err(ServeError::Full);
    }
    link.set_lane(lane);
    lane.take_thread();
    link.write_frame(Type::Exports, 0, &[&exports::encode(&shared.exports, version)])?;
    (shared.report)(Event::Connected { peer, lane });
    add(&shared.totals.connections, 1);

    let mut payload = Vec::new();
    let mut answering = Answering {
        link,
        shared,
        chunk: Chunk::new(),
        head: Vec::new(),
        served,
    };
    loop {
        // A daemon that needs nothing says nothing. One that is gone is found by the socket's keep-alive.
        link.wait(None)?;
        let header = link.read_frame(&mut payload)?;
        match header.kind {
            Type::Read => answering.answer(header.tag, &question::decode(&payload, &shared.exports)?)?,
            Type::Release => {
                let pages = question::decode_release(&payload, &shared.exports)?;
                answering.served.released += shared.release(pages.export, &pages.ranges);
            }
            Type::Goodbye => return Ok(()),
            Type::Error => return Err(ServeError::Refused(refusal::decode(&payload)?.1)),
            other => {
                return Err(WireError::Unexpected {
                    got: other.name(),
                    want: "READ, RELEASE, GOODBYE or ERROR",
                }
                .into());
            }
        }
    }
}

fn send_error(link: &Link, code: ErrorCode, text: &str) -> Result<(), LinkError> {
    link.write_frame(Type::Error, 0, &[&refusal::encode(code, text)])
}

/// Each figure stands for itself: nothing is read from two of them together.
fn add(total: &AtomicU64, amount: u64) {
    total.fetch_add(amount, Ordering::Relaxed);
}

/// The answering half of a connection.
struct Answering<'a> {
    link: &'a Link,
    shared: &'a Shared,
    chunk: Chunk,
    head: Vec<u8>,
    served: &'a mut Served,
}

impl Answering<'_> {
    /// Answers all of a question, in chunks.
    fn answer(&mut self, tag: u32, question: &Question) -> Result<(), ServeError> {
        let memory = &self.shared.memories[question.export];
        for range in &question.ranges {
            let mut rest = Some(*range);
            while let Some(range) = rest {
                rest = memory.read(range, &mut self.chunk);
                if self.chunk.room() == 0 {
                    self.send(tag, question.export)?;
                }
            }
        }
        if self.chunk.runs().is_empty() {
            Ok(())
        } else {
            self.send(tag, question.export)
        }
    }

    fn send(&mut self, tag: u32, export: usize) -> Result<(), ServeError> {
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
