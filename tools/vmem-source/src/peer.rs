// SPDX-License-Identifier: GPL-2.0
//! A source at the other end of a TCP connection: `vmemd serve`.
//!
//! The peer is not trusted to speak the protocol. What it sends must answer what was asked, page for
//! page and in that order; anything else ends the connection. (That the pages are the right ones, only
//! the peer can know.)

#[cfg(test)]
mod tests;

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use vmem::PageRange;
use vmem_pages::{end, split};
use vmem_tls::Identity;

use crate::answer::{Answer, Run};
use crate::export::{Export, Lane, MAX_ASK_PAGES, MAX_ASK_RANGES, MAX_RELEASE_PAGES};
use crate::link::{Link, LinkError, Side};
use crate::source::{PageSource, Readiness, SourceError};
use crate::wire::frame::Type;
use crate::wire::greeting::{self, FEATURE_RELEASE, Greeting};
use crate::wire::version::Version;
use crate::wire::{ErrorCode, WireError, exports, pages, question, refusal};

/// A connection to a peer.
pub struct Peer {
    link: Link,
    exports: Vec<Export>,
    outstanding: Outstanding,
    payload: Vec<u8>,
    runs: Vec<Run>,
    /// The source gives pages back.
    releases: bool,
    /// Nothing more is to be said.
    over: bool,
}

/// What a source has answered to a greeting.
enum Greeted {
    /// It speaks that version.
    Taken(Peer),
    /// It speaks an older one, and may have closed the connection.
    Older(Version),
}

impl Peer {
    /// Connects to one of `candidates`, the addresses of `host` (`HOST:PORT`), until `deadline`, and asks what it exports. No answer takes
    /// longer than `timeout`. With an identity the connection is protected, and the peer must be who it is connected to as.
    pub(crate) fn connect_to(
        candidates: &[SocketAddr],
        host: &str,
        lane: Lane,
        deadline: Instant,
        timeout: Duration,
        identity: Option<&Identity>,
    ) -> Result<Self, SourceError> {
        let mut error = std::io::Error::other("the name has no address");
        for (tried, candidate) in candidates.iter().enumerate() {
            let mut version = Version::LATEST;
            loop {
                // One that does not answer leaves time for the others.
                let share = deadline.saturating_duration_since(Instant::now()) / (candidates.len() - tried) as u32;
                let socket = match TcpStream::connect_timeout(candidate, share.max(Duration::from_millis(1))) {
                    Ok(socket) => socket,
                    Err(e) => {
                        error = e;
                        break;
                    }
                };
                let link = Link::new(socket, timeout, Side::Destination(host), identity);
                match Self::greet(link.map_err(|source| SourceError::Tls { source })?, lane, version)? {
                    Greeted::Taken(peer) => return Ok(peer),
                    Greeted::Older(older) => version = older,
                }
            }
        }
        Err(SourceError::Io {
            what: format!("cannot reach {host}"),
            source: error,
        })
    }

    fn greet(link: Link, lane: Lane, version: Version) -> Result<Greeted, SourceError> {
        link.set_lane(lane);
        let ours = Greeting {
            version,
            lane,
            features: FEATURE_RELEASE,
        };
        let failed = |error| lost(error, "greeting", link.timeout());
        link.write(&mut [IoSlice::new(&ours.encode())]).map_err(failed)?;
        let mut theirs = [0; greeting::SIZE];
        link.read(&mut theirs).map_err(failed)?;
        let theirs = Greeting::decode(&theirs)?;
        match theirs.version.cmp(&version) {
            Ordering::Less => return Ok(Greeted::Older(theirs.version)),
            Ordering::Greater => return Err(WireError::Version(theirs.version.number()).into()),
            Ordering::Equal => {}
        }
        let mut peer = Self {
            link,
            exports: Vec::new(),
            outstanding: Outstanding::default(),
            payload: Vec::new(),
            runs: Vec::new(),
            releases: theirs.features & FEATURE_RELEASE != 0,
            over: false,
        };
        match peer.list(theirs, lane) {
            Ok(exports) => peer.exports = exports,
            Err(error) => return Err(peer.refuse(error)),
        }
        Ok(Greeted::Taken(peer))
    }

    /// Takes the list of exports.
    fn list(&mut self, theirs: Greeting, lane: Lane) -> Result<Vec<Export>, SourceError> {
        let failed = |error| lost(error, "list of exports", self.link.timeout());
        let header = self.link.read_frame(&mut self.payload).map_err(failed)?;
        // A source that is too busy to look at our greeting says so first.
        match header.kind {
            Type::Error => Err(refused(&self.payload)),
            _ if theirs.features & !FEATURE_RELEASE != 0 => Err(WireError::Features(theirs.features).into()),
            _ if theirs.lane != lane => Err(WireError::OtherLane.into()),
            Type::Exports => Ok(exports::decode(&self.payload, theirs.version)?),
            other => Err(WireError::Unexpected {
                got: other.name(),
                want: "EXPORTS",
            }
            .into()),
        }
    }

    /// Takes a frame of an answer; returns the number of the export, and where in the payload the pages begin.
    fn receive(&mut self) -> Result<(usize, usize), SourceError> {
        let failed = |error| lost(error, "pages", self.link.timeout());
        self.link.wait(Some(self.link.timeout())).map_err(failed)?;
        let header = self.link.read_frame(&mut self.payload).map_err(failed)?;
        match header.kind {
            Type::Pages => {}
            Type::Error => return Err(refused(&self.payload)),
            other => {
                return Err(WireError::Unexpected {
                    got: other.name(),
                    want: "PAGES or ERROR",
                }
                .into());
            }
        }
        let (export, data) = pages::decode(&self.payload, &mut self.runs)?;
        let data = self.payload.len() - data.len();
        Ok((self.outstanding.accept(header.tag, export, &self.runs)?, data))
    }

    /// Tells the peer what it has done wrong, if it has, and says nothing more to it.
    fn refuse(&mut self, error: SourceError) -> SourceError {
        if let SourceError::Protocol(wire) = &error {
            let payload = refusal::encode(ErrorCode::Protocol, &wire.to_string());
            // For the peer's log: if it does not come there, we have it.
            let _ = self.link.write_frame(Type::Error, 0, &[&payload]);
        }
        self.over = true;
        error
    }
}

#[cfg(test)]
impl Peer {
    /// Connects to `address` in clear text.
    pub(crate) fn connect(address: &str, lane: Lane, timeout: Duration) -> Result<Self, SourceError> {
        use crate::endpoint::{Endpoint, Security};
        Endpoint::new(address, Security::Insecure, timeout).connect(lane)
    }
}

impl PageSource for Peer {
    fn exports(&self) -> &[Export] {
        &self.exports
    }

    fn ask(&mut self, export: usize, ranges: &[PageRange]) -> Result<(), SourceError> {
        check_question(&self.exports, export, ranges)?;
        let tag = self.outstanding.add(export, ranges);
        let payload = question::encode(export as u32, ranges);
        let sent = self.link.write_frame(Type::Read, tag, &[&payload]);
        sent.map_err(|error| lost(error, "question", self.link.timeout()))
    }

    fn release(&mut self, export: usize, ranges: &[PageRange]) -> Result<(), SourceError> {
        if !self.releases {
            return Ok(());
        }
        for ranges in frames_of(ranges) {
            let payload = question::encode(export as u32, &ranges);
            let sent = self.link.write_frame(Type::Release, 0, &[&payload]);
            sent.map_err(|error| lost(error, "release", self.link.timeout()))?;
        }
        Ok(())
    }

    fn readiness(&self) -> Readiness<'_> {
        Readiness::When(self.link.as_fd())
    }

    fn next(&mut self) -> Result<Answer<'_>, SourceError> {
        match self.receive() {
            Ok((export, data)) => {
                // `decode` has seen that there are as many bytes as the runs say.
                Answer::new(export, &self.runs, &self.payload[data..]).ok_or_else(|| WireError::Short("PAGES").into())
            }
            Err(error) => Err(self.refuse(error)),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if !self.over {
            // An orderly goodbye, for the peer's log; a connection that is lost does not take it.
            let _ = self.link.write_frame(Type::Goodbye, 0, &[]);
        }
    }
}

/// The ranges as RELEASE frames take them: so many in each, and so many pages.
fn frames_of(ranges: &[PageRange]) -> Vec<Vec<PageRange>> {
    let mut frames: Vec<Vec<PageRange>> = Vec::new();
    let mut room = 0;
    for range in ranges {
        let mut rest = Some(*range);
        while let Some(range) = rest {
            let full = frames.last().is_none_or(|frame| frame.len() == MAX_ASK_RANGES);
            if full || room == 0 {
                frames.push(Vec::new());
                room = MAX_RELEASE_PAGES;
            }
            let (front, back) = split(range, room);
            room -= front.map_or(0, |front| front.count());
            frames.iter_mut().last().into_iter().for_each(|frame| frame.extend(front));
            rest = back;
        }
    }
    frames
}

/// Refuses a question that no source takes.
pub(crate) fn check_question(exports: &[Export], export: usize, ranges: &[PageRange]) -> Result<(), SourceError> {
    let bad = |what: String| Err(SourceError::BadQuestion(what));
    let Some(of) = exports.get(export) else {
        return bad(format!("there is no export {export}"));
    };
    if let Some(range) = ranges.iter().find(|range| end(**range) > of.pages) {
        return bad(format!("{range} of {}, which has {} pages", of.name, of.pages));
    }
    let pages: u64 = ranges.iter().map(|range| range.count()).sum();
    if ranges.len() > MAX_ASK_RANGES || !(1..=MAX_ASK_PAGES).contains(&pages) {
        return bad(format!("{pages} pages in {} ranges", ranges.len()));
    }
    Ok(())
}

fn refused(payload: &[u8]) -> SourceError {
    match refusal::decode(payload) {
        Ok((code, text)) => SourceError::Refused { code, text },
        Err(error) => error.into(),
    }
}

fn lost(error: LinkError, what: &str, timeout: Duration) -> SourceError {
    match error {
        LinkError::Io(source) => SourceError::Io {
            what: format!("the connection failed at the {what}"),
            source,
        },
        LinkError::TimedOut => SourceError::TimedOut {
            what: what.to_owned(),
            seconds: timeout.as_secs(),
        },
        LinkError::Closed { within } => SourceError::Closed { within },
        LinkError::Tls(source) => SourceError::Tls { source },
        LinkError::Wire(error) => error.into(),
    }
}

/// What was asked and has not come yet, in the order in which it must come.
#[derive(Default)]
struct Outstanding {
    last_tag: u32,
    questions: VecDeque<Asked>,
}

struct Asked {
    tag: u32,
    export: usize,
    ranges: VecDeque<PageRange>,
}

impl Outstanding {
    fn add(&mut self, export: usize, ranges: &[PageRange]) -> u32 {
        // Tags only tell questions apart that are outstanding at once; 0 belongs to none.
        self.last_tag = self.last_tag.wrapping_add(1).max(1);
        self.questions.push_back(Asked {
            tag: self.last_tag,
            export,
            ranges: ranges.iter().copied().collect(),
        });
        self.last_tag
    }

    /// Crosses out what `runs` answer: the next pages of the oldest question. Returns its export.
    fn accept(&mut self, tag: u32, export: u32, runs: &[Run]) -> Result<usize, WireError> {
        let oldest = self.questions.front_mut();
        let want = oldest.as_ref().map(|asked| asked.tag);
        let Some(asked) = oldest.filter(|asked| asked.tag == tag) else {
            return Err(WireError::Tag { got: tag, want });
        };
        if asked.export as u64 != u64::from(export) {
            return Err(WireError::NoExport(export));
        }
        for run in runs {
            let unasked = WireError::Unasked {
                pgoff: run.range.first().get(),
                nr_pages: run.range.count(),
            };
            let mut pages = Some(run.range);
            while let Some(range) = pages {
                let Some(front) = asked.ranges.pop_front().filter(|front| front.first() == range.first()) else {
                    return Err(unasked);
                };
                let (_, more_asked) = split(front, range.count());
                let (_, more_given) = split(range, front.count());
                if let Some(rest) = more_asked {
                    asked.ranges.push_front(rest);
                }
                pages = more_given;
            }
        }
        let export = asked.export;
        if asked.ranges.is_empty() {
            self.questions.pop_front();
        }
        Ok(export)
    }
}
