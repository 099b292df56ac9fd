// SPDX-License-Identifier: GPL-2.0-or-later
//! Reads pages and sends them.

use std::sync::atomic::{AtomicU64, Ordering};

use vmem_wait::Pulse;

use super::Shared;
use super::hashes::Hashes;
use super::limiter::{FrameLimit, Limiter, Purpose};
use crate::answer::{Chunk, Kind};
use crate::compression::Compression;
use crate::error::Error;
use crate::export::{ExportRanges, Lane};
use crate::link::Link;
use crate::rounds::Sent;
use crate::wire::compression::{Coding, Compressor};
use crate::wire::frame::{HEADER_SIZE, Type};
use crate::wire::pages;

/// Counters of a connection.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Served {
    /// Pages sent with their contents.
    pub data: u64,
    /// Pages sent as zero pages.
    pub zero: u64,
    /// Pages sent as unreadable.
    pub unreadable: u64,
    /// Pages of which digests were sent: the peer has the contents.
    pub known: u64,
    /// Pages of which nothing was sent: they had been sent with the same contents before.
    pub same: u64,
    /// Pages that the peer has for good, and that were released here.
    pub released: u64,
    /// Bytes of the frames with pages, as they were sent: compressed, or not.
    pub bytes: u64,
}

/// Sends frames of a connection, and counts them.
pub(super) struct Sender<'a> {
    link: &'a Link,
    shared: &'a Shared,
    /// The user's limit; `None` for pages that a program waits for.
    limiter: Option<&'a Limiter>,
    /// How large the limit allows the frame to be that is made.
    frame_limit: Option<FrameLimit>,
    /// What pages are sent for.
    purpose: Purpose,
    chunk: Chunk,
    head: Vec<u8>,
    compressor: Compressor,
    /// What the peer has, if it knows how to be told so.
    hashes: Option<Hashes<'a>>,
    /// Of the thread of the connection.
    pulse: &'a Pulse,
    /// Counters of the connection.
    served: &'a mut Served,
    /// Counters since [`take_sent`](Self::take_sent).
    sent: Sent,
}

impl<'a> Sender<'a> {
    pub(super) fn new(
        link: &'a Link,
        shared: &'a Shared,
        lane: Lane,
        hashes: Option<Hashes<'a>>,
        pulse: &'a Pulse,
        served: &'a mut Served,
    ) -> Self {
        Self {
            hashes,
            pulse,
            link,
            shared,
            limiter: (lane == Lane::Stream).then_some(&*shared.limiter),
            frame_limit: None,
            purpose: Purpose::Stream,
            chunk: Chunk::new(),
            head: Vec::new(),
            compressor: Compressor::default(),
            served,
            sent: Sent::default(),
        }
    }

    /// The counters since the last call.
    pub(super) fn take_sent(&mut self) -> Sent {
        std::mem::take(&mut self.sent)
    }

    /// Compresses page contents like this from now on.
    pub(super) fn compress(&mut self, compression: Compression) -> Result<(), Error> {
        self.compressor = Compressor::new(compression).map_err(Error::Io)?;
        Ok(())
    }

    /// Releases pages that the peer has for good.
    pub(super) fn release(&mut self, pages: &ExportRanges) {
        self.served.released += self.shared.release(pages.export, &pages.ranges);
    }

    /// As [`send_pages`](Self::send_pages), for a round.
    pub(super) fn send_round(&mut self, tag: u32, pages: &ExportRanges) -> Result<(), Error> {
        self.purpose = Purpose::Rounds;
        let result = self.send_pages(tag, pages);
        self.purpose = Purpose::Stream;
        result
    }

    /// Sends the contents of pages, in PAGES frames with `tag`. The caller has checked that the export exists and has the pages.
    pub(super) fn send_pages(&mut self, tag: u32, pages: &ExportRanges) -> Result<(), Error> {
        let result = self.read_and_send(tag, pages);
        self.pulse.rests();
        result
    }

    fn read_and_send(&mut self, tag: u32, pages: &ExportRanges) -> Result<(), Error> {
        let memory = &self.shared.memories[pages.export];
        self.follow_limit();
        for range in &pages.ranges {
            let mut rest = Some(*range);
            while let Some(range) = rest {
                match memory.is_region() {
                    // An absent page takes as long as the daemon of the region does.
                    true => self.pulse.rests(),
                    false => self.pulse.works(),
                }
                rest = memory.read(range, &mut self.chunk);
                if self.chunk.room() == 0 {
                    self.send_chunk(tag, pages.export)?;
                }
            }
        }
        if self.chunk.runs().is_empty() {
            Ok(())
        } else {
            self.send_chunk(tag, pages.export)
        }
    }

    /// Has the next frame be no larger than the user's limit allows.
    fn follow_limit(&mut self) {
        if let Some(limiter) = self.limiter {
            let limit = limiter.frame_limit(self.purpose);
            self.chunk.limit(limit.pages);
            self.frame_limit = Some(limit);
        }
    }

    /// What the peer has, if it knows how to be told so.
    pub(super) fn hashes(&mut self) -> Option<&mut Hashes<'a>> {
        self.hashes.as_mut()
    }

    /// Counts pages that the peer knows to be holes.
    pub(super) fn count_holes(&mut self, count: u64) {
        self.served.zero += count;
        add(&self.shared.totals.zero, count);
    }

    /// Sends a frame with this payload.
    pub(super) fn send_frame(&mut self, kind: Type, tag: u32, payload: &[u8]) -> Result<(), Error> {
        self.link.write_frame(kind, tag, &[payload])?;
        let bytes = (HEADER_SIZE + payload.len()) as u64;
        // The list of the remaining pages is waited for while the program stands still.
        self.limiter.iter().for_each(|limiter| limiter.count(bytes));
        self.sent.bytes += bytes;
        Ok(())
    }

    fn send_chunk(&mut self, tag: u32, export: usize) -> Result<(), Error> {
        if let Some(hashes) = self.hashes.as_mut().filter(|hashes| hashes.is_used()) {
            hashes.note(export, self.chunk.runs());
            self.chunk.condense(|page, contents| hashes.choose(export, page, contents));
        }
        pages::encode_head(export as u32, self.chunk.runs(), &mut self.head);
        let compressed = self.compressor.compress(self.chunk.data());
        let (coding, contents) = compressed.unwrap_or((Coding::Plain, self.chunk.data()));
        let bytes = (HEADER_SIZE + self.head.len() + contents.len()) as u64;
        if let Some((limiter, limit)) = self.limiter.zip(self.frame_limit) {
            self.pulse.rests();
            limiter.wait(bytes, self.purpose, limit);
        }
        self.pulse.waits(self.shared.limits.timeout.saturating_mul(2));
        self.link.write_coded(Type::Pages, coding, tag, &[&self.head, contents])?;
        self.sent.bytes += bytes;
        self.served.bytes += bytes;
        add(&self.shared.totals.bytes, bytes);
        for run in self.chunk.runs() {
            let (totals, count) = (&self.shared.totals, run.range.count());
            let (served, sent, total) = match run.kind {
                Kind::Data => (&mut self.served.data, &mut self.sent.data, &totals.data),
                Kind::Zero => (&mut self.served.zero, &mut self.sent.zero, &totals.zero),
                Kind::Unreadable => (&mut self.served.unreadable, &mut self.sent.unreadable, &totals.unreadable),
                Kind::Known => (&mut self.served.known, &mut self.sent.known, &totals.known),
                Kind::Same => (&mut self.served.same, &mut self.sent.same, &totals.same),
            };
            *served += count;
            *sent += count;
            add(total, count);
        }
        self.chunk.clear();
        self.follow_limit();
        Ok(())
    }
}

/// The counters are independent of each other: relaxed ordering is enough.
pub(super) fn add(total: &AtomicU64, amount: u64) {
    total.fetch_add(amount, Ordering::Relaxed);
}
