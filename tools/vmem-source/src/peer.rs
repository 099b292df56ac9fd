// SPDX-License-Identifier: GPL-2.0-or-later
//! A source at the other end of a TCP connection: `vmemd serve`.
//!
//! The peer is not trusted to follow the protocol. Its answers must contain the outstanding pages in the order of the fetches; anything else
//! ends the connection. (Whether the contents are right, only the peer can know.)

mod contents;
mod hashes;
mod map;
mod rounds;
pub(crate) mod session;
mod staging;
#[cfg(test)]
mod tests;

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use vmem::PageRange;
use vmem_tls::Identity;

use crate::answer::{Answer, Run};
use crate::compression::Compression;
use crate::digest::Key;
use crate::error::Error;
use crate::export::{Export, Lane, MAX_FETCH_PAGES, MAX_FETCH_RANGES, MAX_RELEASE_PAGES};
use crate::holes::{ExportHoles, MAX_MAP_PAGES};
use crate::link::{Link, Side};
use crate::source::{PageSource, Readiness, Reply};
use crate::wire::compression::{Decompressor, encode_compress};
use crate::wire::frame::{HEADER_SIZE, Type};
use crate::wire::greeting::{
    self, FEATURE_COMPRESS, FEATURE_HASHES, FEATURE_MAP, FEATURE_NO_CHECKSUM, FEATURE_RELEASE, FEATURE_ROUNDS, FEATURE_STREAMS,
    Greeting,
};
use crate::wire::session::{self as wire_session, decode_session};
use crate::wire::version::Version;
use crate::wire::{ErrorCode, ProtocolError, exports, map as wire_map, ranges, refusal};

use contents::Received as Contents;
use map::Maps;
pub use staging::StagingPeer;

/// A connection to a peer.
pub struct Peer {
    link: Link,
    exports: Vec<Export>,
    outstanding: Outstanding,
    maps: Maps,
    /// Whether contents were announced to the source.
    announced: bool,
    payload: Vec<u8>,
    runs: Vec<Run>,
    decompressor: Decompressor,
    /// The features that the source accepted.
    features: u64,
    /// Whether the connection has failed: nothing may be sent any more.
    failed: bool,
}

/// What a connection is used for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Use {
    /// To fetch pages on a lane.
    Fetch(Lane),
    /// To stage pages while the program runs at the source, and then to fetch pages of the stream.
    Stage,
    /// The same, and other connections are to take part.
    StageSeveral,
    /// To take part in the rounds of another connection.
    Join,
}

impl Use {
    pub(crate) fn lane(self) -> Lane {
        match self {
            Self::Fetch(lane) => lane,
            Self::Stage | Self::StageSeveral | Self::Join => Lane::Stream,
        }
    }

    fn features(self) -> u64 {
        match self {
            Self::Fetch(Lane::Urgent) => FEATURE_RELEASE,
            Self::Fetch(Lane::Stream) => FEATURE_RELEASE | FEATURE_MAP | FEATURE_HASHES,
            Self::Stage => Self::Fetch(Lane::Stream).features() | FEATURE_ROUNDS,
            Self::StageSeveral => Self::Stage.features() | FEATURE_STREAMS,
            // The first connection knows all holes before this one asks for pages.
            Self::Join => FEATURE_RELEASE | FEATURE_HASHES | FEATURE_STREAMS,
        }
    }
}

/// A frame that has been read and checked; its payload is that of the peer.
enum Received {
    /// The number of the export, and where the page contents are.
    Pages(usize, Contents),
    Holes(ExportHoles),
}

/// The answer of a source to a greeting.
enum Greeted {
    /// It accepted the version.
    Accepted(Box<Peer>),
    /// It speaks this older version, and may have closed the connection.
    Older(Version),
}

impl Peer {
    /// Connects to one of `candidates`, the addresses of `host` (`HOST:PORT`), before `deadline`, and reads the list of exports. `timeout` is
    /// the time limit of each answer. With an identity, the connection is protected and the peer's certificate must be for `host`.
    pub(crate) fn connect_to(
        candidates: &[SocketAddr],
        host: &str,
        use_for: Use,
        deadline: Instant,
        timeout: Duration,
        identity: Option<&Identity>,
        compression: Compression,
    ) -> Result<Self, Error> {
        let mut error = std::io::Error::other("the name has no address");
        for (tried, candidate) in candidates.iter().enumerate() {
            let mut version = Version::LATEST;
            loop {
                // A candidate that does not answer leaves time for the others.
                let share = deadline.saturating_duration_since(Instant::now()) / (candidates.len() - tried) as u32;
                let socket = match TcpStream::connect_timeout(candidate, share.max(Duration::from_millis(1))) {
                    Ok(socket) => socket,
                    Err(e) => {
                        error = e;
                        break;
                    }
                };
                let link = Link::new(socket, timeout, Side::Destination(host), identity);
                match Self::greet(link?, use_for, version, compression)? {
                    Greeted::Accepted(peer) => return Ok(*peer),
                    Greeted::Older(older) => version = older,
                }
            }
        }
        Err(Error::Connect {
            address: host.to_owned(),
            source: error,
        })
    }

    fn greet(link: Link, use_for: Use, version: Version, compression: Compression) -> Result<Greeted, Error> {
        let lane = use_for.lane();
        link.set_lane(lane);
        let ours = Greeting {
            version,
            lane,
            features: [
                (true, use_for.features()),
                (compression != Compression::None, FEATURE_COMPRESS),
                (link.is_protected(), FEATURE_NO_CHECKSUM),
            ]
            .into_iter()
            .filter_map(|(offered, feature)| offered.then_some(feature))
            .sum(),
        };
        link.write(&mut [IoSlice::new(&ours.encode())], "take the greeting")?;
        let mut theirs = [0; greeting::SIZE];
        link.read(&mut theirs, "send its greeting")?;
        let theirs = Greeting::decode(&theirs)?;
        match theirs.version.cmp(&version) {
            Ordering::Less => return Ok(Greeted::Older(theirs.version)),
            Ordering::Greater => return Err(ProtocolError::Version(theirs.version.number()).into()),
            Ordering::Equal => {}
        }
        let mut peer = Self {
            link,
            exports: Vec::new(),
            outstanding: Outstanding::default(),
            maps: Maps::default(),
            announced: false,
            payload: Vec::new(),
            runs: Vec::new(),
            decompressor: Decompressor::default(),
            features: theirs.features,
            failed: false,
        };
        if peer.features & ours.features & FEATURE_NO_CHECKSUM != 0 {
            peer.link.omit_checksums();
        }
        match peer.read_exports(ours, theirs) {
            Ok(exports) => peer.exports = exports,
            Err(error) => return Err(peer.fail(error)),
        }
        if peer.features & FEATURE_COMPRESS != 0 {
            peer.link.write_frame(Type::Compress, 0, &[&encode_compress(compression)])?;
            peer.decompressor = Decompressor::new(compression).map_err(Error::Io)?;
        }
        Ok(Greeted::Accepted(Box::new(peer)))
    }

    /// Reads the list of exports.
    fn read_exports(&mut self, ours: Greeting, theirs: Greeting) -> Result<Vec<Export>, Error> {
        let header = self.link.read_frame(&mut self.payload, "send its exports")?;
        // A source that has too many connections sends ERROR before it looks at the features and the lane.
        match header.kind {
            Type::Error => Err(refused(&self.payload)),
            _ if theirs.features & !ours.features != 0 => Err(ProtocolError::Features(theirs.features).into()),
            _ if theirs.lane != ours.lane => Err(ProtocolError::OtherLane.into()),
            Type::Exports => Ok(exports::decode(&self.payload, theirs.version)?),
            other => Err(ProtocolError::Unexpected {
                got: other.name(),
                want: "EXPORTS",
            }
            .into()),
        }
    }

    /// Reads the SESSION of a connection of rounds.
    fn read_session(&mut self) -> Result<wire_session::Session, Error> {
        let header = self.link.read_frame(&mut self.payload, "send the session of its rounds")?;
        match header.kind {
            Type::Session => Ok(decode_session(&self.payload)?),
            Type::Error => Err(refused(&self.payload)),
            other => Err(ProtocolError::Unexpected {
                got: other.name(),
                want: "SESSION or ERROR",
            }
            .into()),
        }
    }

    /// Reads the answer, or a part of one, to a READ or a MAP.
    fn receive(&mut self) -> Result<Received, Error> {
        self.link.wait(Some(self.link.timeout()), "send pages")?;
        let header = self.link.read_frame(&mut self.payload, "send pages")?;
        match header.kind {
            Type::Pages => {}
            Type::Holes if self.can_map() => {
                let answer = wire_map::decode_holes(&self.payload)?;
                return Ok(Received::Holes(self.maps.accept(header.tag, answer)?));
            }
            Type::Error => return Err(refused(&self.payload)),
            other => {
                return Err(ProtocolError::Unexpected {
                    got: other.name(),
                    want: "PAGES or ERROR",
                }
                .into());
            }
        }
        let (export, contents) = Contents::decode(header.coding, &self.payload, &mut self.runs)?;
        self.check_kinds(&self.runs, false)?;
        // Before anything is decompressed: only what was asked for is.
        let export = self.outstanding.accept(header.tag, export, &self.runs)?;
        contents.decompress(&self.payload, &self.runs, &mut self.decompressor)?;
        Ok(Received::Pages(export, contents))
    }

    /// The answer whose runs and contents were received last.
    fn answer(&self, export: usize, contents: Contents) -> Result<Answer<'_>, Error> {
        // `decode` and `decompress` have checked that there are as many bytes as the runs say.
        let data = contents.bytes(&self.payload, &self.runs, &self.decompressor);
        let answer = Answer::new(export, &self.runs, data).ok_or(ProtocolError::Short("PAGES"))?;
        Ok(answer.with_wire_bytes((HEADER_SIZE + self.payload.len()) as u64))
    }

    /// Sends a MAP.
    fn ask_map(&mut self, export: usize, pages: PageRange) -> Result<(), Error> {
        check_map(self.can_map(), &self.exports, export, pages)?;
        let tag = self.maps.add(export, pages);
        self.link
            .write_frame(Type::Map, tag, &[&wire_map::encode_map(export as u32, pages)])
    }

    /// Marks the connection as failed. If the peer violated the protocol, sends it an ERROR first.
    fn fail(&mut self, error: Error) -> Error {
        if let Error::Protocol(wire) = &error {
            let payload = refusal::encode(ErrorCode::Protocol, &wire.to_string());
            // For the log of the peer: the caller has the error in any case.
            let _ = self.link.write_frame(Type::Error, 0, &[&payload]);
        }
        self.failed = true;
        error
    }
}

#[cfg(test)]
impl Peer {
    /// Connects to `address` in clear text.
    pub(crate) fn connect(address: &str, lane: Lane, timeout: Duration) -> Result<Self, Error> {
        use crate::endpoint::{Endpoint, Security};
        Endpoint::new(address, Security::Insecure, timeout).connect(lane)
    }
}

impl PageSource for Peer {
    fn exports(&self) -> &[Export] {
        &self.exports
    }

    fn fetch(&mut self, export: usize, ranges: &[PageRange]) -> Result<(), Error> {
        check_fetch(&self.exports, export, ranges)?;
        let tag = self.outstanding.add(export, ranges);
        let payload = ranges::encode(export as u32, ranges);
        self.link.write_frame(Type::Read, tag, &[&payload])
    }

    fn release(&mut self, export: usize, ranges: &[PageRange]) -> Result<(), Error> {
        if self.features & FEATURE_RELEASE == 0 {
            return Ok(());
        }
        for ranges in release_frames(ranges) {
            let payload = ranges::encode(export as u32, &ranges);
            self.link.write_frame(Type::Release, 0, &[&payload])?;
        }
        Ok(())
    }

    fn readiness(&self) -> Readiness<'_> {
        Readiness::When(self.link.as_fd())
    }

    fn can_map(&self) -> bool {
        self.features & FEATURE_MAP != 0
    }

    fn map(&mut self, export: usize, pages: PageRange) -> Result<(), Error> {
        self.ask_map(export, pages)
    }

    fn can_hash(&self) -> bool {
        self.takes_hashes()
    }

    fn announce(&mut self, key: &Key, prefixes: &[u64]) -> Result<(), Error> {
        self.send_digests(key, prefixes)
    }

    fn next_answer(&mut self) -> Result<Answer<'_>, Error> {
        match self.next_reply()? {
            Reply::Pages(answer) => Ok(answer),
            Reply::Holes(_) => Err(Error::InvalidFetch("pages while a map is outstanding".to_owned())),
        }
    }

    fn next_reply(&mut self) -> Result<Reply<'_>, Error> {
        match self.receive() {
            Ok(Received::Holes(holes)) => Ok(Reply::Holes(holes)),
            Ok(Received::Pages(export, contents)) => self.answer(export, contents).map(Reply::Pages),
            Err(error) => Err(self.fail(error)),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if !self.failed {
            // For the log of the peer. On a lost connection the write fails.
            let _ = self.link.write_frame(Type::Goodbye, 0, &[]);
        }
    }
}

/// Splits ranges into RELEASE frames, each within the limits of ranges and of pages.
fn release_frames(ranges: &[PageRange]) -> Vec<Vec<PageRange>> {
    let mut frames: Vec<Vec<PageRange>> = Vec::new();
    let mut room = 0;
    for range in ranges {
        let mut rest = Some(*range);
        while let Some(range) = rest {
            let full = frames.last().is_none_or(|frame| frame.len() == MAX_FETCH_RANGES);
            if full || room == 0 {
                frames.push(Vec::new());
                room = MAX_RELEASE_PAGES;
            }
            let (front, back) = range.split_at(room);
            room -= front.map_or(0, |front| front.count());
            frames.iter_mut().last().into_iter().for_each(|frame| frame.extend(front));
            rest = back;
        }
    }
    frames
}

/// Checks the arguments of [`PageSource::fetch`], as all sources do.
///
/// # Errors
///
/// [`Error::InvalidFetch`].
pub fn check_fetch(exports: &[Export], export: usize, ranges: &[PageRange]) -> Result<(), Error> {
    let invalid = |what: String| Err(Error::InvalidFetch(what));
    let Some(of) = exports.get(export) else {
        return invalid(format!("pages of export {export}, which does not exist"));
    };
    if let Some(range) = ranges.iter().find(|range| range.end() > of.pages.end()) {
        return invalid(format!("{range} of {}, which has {} pages", of.name, of.pages.count()));
    }
    let pages: u64 = ranges.iter().map(|range| range.count()).sum();
    if ranges.len() > MAX_FETCH_RANGES || !(1..=MAX_FETCH_PAGES).contains(&pages) {
        return invalid(format!("{pages} pages in {} ranges", ranges.len()));
    }
    Ok(())
}

/// Checks the arguments of [`PageSource::map`], as all sources do that have it; `can_map` says whether this one [can](PageSource::can_map) now.
///
/// # Errors
///
/// [`Error::InvalidFetch`].
pub fn check_map(can_map: bool, exports: &[Export], export: usize, pages: PageRange) -> Result<(), Error> {
    let has_pages = exports.get(export).is_some_and(|of| pages.end() <= of.pages.end());
    match can_map && has_pages && pages.count() <= MAX_MAP_PAGES {
        true => Ok(()),
        false => Err(Error::InvalidFetch(format!("a map of {pages} of export {export}"))),
    }
}

fn refused(payload: &[u8]) -> Error {
    match refusal::decode(payload) {
        Ok((code, text)) => Error::Refused { code, text },
        Err(error) => error.into(),
    }
}

/// The tag after `last`. A tag distinguishes outstanding questions only; 0 is the tag of no question.
fn next_tag(last: u32) -> u32 {
    last.wrapping_add(1).max(1)
}

/// Fetches that have not been answered in full, in the order in which answers must arrive.
#[derive(Default)]
struct Outstanding {
    last_tag: u32,
    fetches: VecDeque<PendingFetch>,
}

struct PendingFetch {
    tag: u32,
    export: usize,
    ranges: VecDeque<PageRange>,
}

impl Outstanding {
    fn add(&mut self, export: usize, ranges: &[PageRange]) -> u32 {
        self.last_tag = next_tag(self.last_tag);
        self.fetches.push_back(PendingFetch {
            tag: self.last_tag,
            export,
            ranges: ranges.iter().copied().collect(),
        });
        self.last_tag
    }

    /// Crosses out what `runs` answer: the next pages of the oldest question. Returns its export.
    fn accept(&mut self, tag: u32, export: u32, runs: &[Run]) -> Result<usize, ProtocolError> {
        let oldest = self.fetches.front_mut();
        let want = oldest.as_ref().map(|fetch| fetch.tag);
        let Some(fetch) = oldest.filter(|fetch| fetch.tag == tag) else {
            return Err(ProtocolError::Tag { got: tag, want });
        };
        if fetch.export as u64 != u64::from(export) {
            return Err(ProtocolError::NoExport(export));
        }
        for run in runs {
            let unexpected = ProtocolError::Unrequested {
                pgoff: run.range.first().get(),
                nr_pages: run.range.count(),
            };
            let mut pages = Some(run.range);
            while let Some(range) = pages {
                let Some(front) = fetch.ranges.pop_front().filter(|front| front.first() == range.first()) else {
                    return Err(unexpected);
                };
                let (_, more_fetched) = front.split_at(range.count());
                let (_, more_given) = range.split_at(front.count());
                if let Some(rest) = more_fetched {
                    fetch.ranges.push_front(rest);
                }
                pages = more_given;
            }
        }
        let export = fetch.export;
        if fetch.ranges.is_empty() {
            self.fetches.pop_front();
        }
        Ok(export)
    }
}
