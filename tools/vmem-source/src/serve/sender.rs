// SPDX-License-Identifier: GPL-2.0
//! Reads pages and sends them.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Shared;
use crate::answer::{Chunk, Kind};
use crate::error::Error;
use crate::export::ExportRanges;
use crate::link::Link;
use crate::rounds::Sent;
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
    /// Pages that the peer has for good, and that were released here.
    pub released: u64,
}

/// Sends frames of a connection, and counts them.
pub(super) struct Sender<'a> {
    link: &'a Link,
    shared: &'a Shared,
    chunk: Chunk,
    head: Vec<u8>,
    /// Counters of the connection.
    served: &'a mut Served,
    /// Counters since [`take_sent`](Self::take_sent).
    sent: Sent,
}

impl<'a> Sender<'a> {
    pub(super) fn new(link: &'a Link, shared: &'a Shared, served: &'a mut Served) -> Self {
        Self {
            link,
            shared,
            chunk: Chunk::new(),
            head: Vec::new(),
            served,
            sent: Sent::default(),
        }
    }

    /// The counters since the last call.
    pub(super) fn take_sent(&mut self) -> Sent {
        std::mem::take(&mut self.sent)
    }

    /// Releases pages that the peer has for good.
    pub(super) fn release(&mut self, pages: &ExportRanges) {
        self.served.released += self.shared.release(pages.export, &pages.ranges);
    }

    /// Sends the contents of pages, in PAGES frames with `tag`. The caller has checked that the export exists and has the pages.
    pub(super) fn send_pages(&mut self, tag: u32, pages: &ExportRanges) -> Result<(), Error> {
        let memory = &self.shared.memories[pages.export];
        for range in &pages.ranges {
            let mut rest = Some(*range);
            while let Some(range) = rest {
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

    /// Sends a frame with this payload.
    pub(super) fn send_frame(&mut self, kind: Type, tag: u32, payload: &[u8]) -> Result<(), Error> {
        self.link.write_frame(kind, tag, &[payload])?;
        self.sent.bytes += (HEADER_SIZE + payload.len()) as u64;
        Ok(())
    }

    fn send_chunk(&mut self, tag: u32, export: usize) -> Result<(), Error> {
        pages::encode_head(export as u32, self.chunk.runs(), &mut self.head);
        self.link.write_frame(Type::Pages, tag, &[&self.head, self.chunk.data()])?;
        self.sent.bytes += (HEADER_SIZE + self.head.len() + self.chunk.data().len()) as u64;
        for run in self.chunk.runs() {
            let (totals, count) = (&self.shared.totals, run.range.count());
            let (served, sent, total) = match run.kind {
                Kind::Data => (&mut self.served.data, &mut self.sent.data, &totals.data),
                Kind::Zero => (&mut self.served.zero, &mut self.sent.zero, &totals.zero),
                Kind::Unreadable => (&mut self.served.unreadable, &mut self.sent.unreadable, &totals.unreadable),
            };
            *served += count;
            *sent += count;
            add(total, count);
        }
        self.chunk.clear();
        Ok(())
    }
}

/// The counters are independent of each other: relaxed ordering is enough.
pub(super) fn add(total: &AtomicU64, amount: u64) {
    total.fetch_add(amount, Ordering::Relaxed);
}
