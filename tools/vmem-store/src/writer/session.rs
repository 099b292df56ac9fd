// SPDX-License-Identifier: GPL-2.0-or-later
//! The state of a writer: frames and packs that are being filled, and the table of packs.

use std::collections::HashMap;
use std::sync::Arc;

use super::Overlay;
use crate::base::Base;
use crate::codec::Codec;
use crate::crypto::Hash16;
use crate::error::Error;
use crate::image::Image;
use crate::leaf::Entry;
use crate::manifest::Statistics;
use crate::names::{PackId, WriterId};
use crate::pack::{Origin, PackBuilder};
use crate::tree::{MAX_PACK_PAGES, MAX_PACKS, PackInfo};
use vmem_pages::PAGE_SIZE;

/// Most hashes that are kept for finding pages with the same contents: those of 4 GiB of different pages, in about 50 MiB.
const MAX_KNOWN: usize = 1 << 20;

/// Pages that become a frame.
#[derive(Debug, Default)]
pub(super) struct FullFrame {
    pub(super) is_hot: bool,
    pub(super) pages: Vec<(Origin, Hash16)>,
    pub(super) data: Vec<u8>,
}

struct OpenPack {
    ordinal: u32,
    builder: PackBuilder,
}

/// Pages that were written in the parent, too, go to packs of their own. Such packs die as a whole when their checkpoint is removed.
pub(super) struct Session {
    pub(super) overlay: Overlay,
    pub(super) statistics: Statistics,
    /// The packs of the checkpoint by their ordinals, which begin as the parent's.
    pub(super) table: Vec<Option<PackInfo>>,
    /// How many pages of each pack the parent refers to.
    pub(super) live: Vec<u32>,
    /// Ordinals that can be used again.
    free: Vec<u32>,
    id: WriterId,
    next_pack: u32,
    frame_pages: usize,
    frames: [FullFrame; 2],
    packs: [Option<OpenPack>; 2],
    known: HashMap<Hash16, Entry>,
    failed: Option<Arc<Error>>,
}

impl Session {
    pub(super) fn new(id: WriterId, base: &Base, parent: Option<&Image>) -> Result<Self, Error> {
        let (mut table, mut live) = match parent {
            Some(parent) => (parent.all_packs()?, parent.live()?),
            None => (Vec::new(), Vec::new()),
        };
        live.resize(table.len(), 0);
        for (pack, live) in table.iter_mut().zip(&live) {
            if *live == 0 {
                *pack = None;
            }
        }
        let free = (0..table.len() as u32)
            .rev()
            .filter(|at| table[*at as usize].is_none())
            .collect();
        Ok(Self {
            overlay: Overlay::default(),
            statistics: Statistics::default(),
            table,
            live,
            free,
            id,
            next_pack: 0,
            frame_pages: base.config.frame_pages as usize,
            frames: [FullFrame::default(), FullFrame::default()],
            packs: [None, None],
            known: HashMap::new(),
            failed: None,
        })
    }

    /// Whether the checkpoint can still succeed.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.failed.as_ref().map_or(Ok(()), |error| Err(Error::Failed(error.clone())))
    }

    /// From now on, the checkpoint cannot succeed.
    pub(super) fn fail(&mut self, error: Error) -> Error {
        self.failed.get_or_insert_with(|| Arc::new(error.clone()));
        error
    }

    /// Where a page with this hash is, that was put before.
    pub(super) fn known(&self, hash: Hash16) -> Option<Entry> {
        self.known.get(&hash).copied()
    }

    /// Adds a page to the frame that is being filled, and gives the frame if it is full.
    pub(super) fn add(&mut self, is_hot: bool, origin: Origin, hash: Hash16, page: &[u8]) -> Option<FullFrame> {
        let frame = &mut self.frames[usize::from(is_hot)];
        frame.is_hot = is_hot;
        frame.pages.push((origin, hash));
        if frame.data.capacity() == 0 {
            frame.data.reserve_exact(self.frame_pages * PAGE_SIZE);
        }
        frame.data.extend_from_slice(page);
        (frame.pages.len() >= self.frame_pages).then(|| std::mem::take(frame))
    }

    /// The frames that are not full.
    pub(super) fn take_rest(&mut self) -> Vec<FullFrame> {
        self.frames
            .iter_mut()
            .map(std::mem::take)
            .filter(|frame| !frame.pages.is_empty())
            .collect()
    }

    /// Appends a frame to its pack. Gives the pack, if it is complete with it.
    pub(super) fn append(
        &mut self,
        base: &Base,
        is_hot: bool,
        codec: Codec,
        stored: Vec<u8>,
        pages: &[(Origin, Hash16)],
    ) -> Result<Option<(String, Vec<u8>)>, Error> {
        let mut open = match self.packs[usize::from(is_hot)].take() {
            Some(open) => open,
            None => OpenPack {
                ordinal: self.new_ordinal()?,
                builder: PackBuilder::new(self.new_pack(), &base.crypto)?,
            },
        };
        let first = open.builder.append(codec, stored, pages);
        for ((origin, hash), number) in pages.iter().zip(first..) {
            let entry = Entry::Data {
                pack: open.ordinal,
                number,
            };
            self.overlay.set(origin.backend as usize, origin.pgoff, entry);
            if self.known.len() < MAX_KNOWN {
                self.known.insert(*hash, entry);
            }
        }
        let is_complete = open.builder.len() as u64 >= base.config.pack_bytes
            || open.builder.pages() + self.frame_pages as u32 > MAX_PACK_PAGES;
        if is_complete {
            return Ok(Some(self.finish(base, open)));
        }
        self.packs[usize::from(is_hot)] = Some(open);
        Ok(None)
    }

    /// The packs that are not complete.
    pub(super) fn finish_packs(&mut self, base: &Base) -> Vec<(String, Vec<u8>)> {
        let open: Vec<OpenPack> = self.packs.iter_mut().filter_map(Option::take).collect();
        open.into_iter().map(|open| self.finish(base, open)).collect()
    }

    fn finish(&mut self, base: &Base, open: OpenPack) -> (String, Vec<u8>) {
        let name = open.builder.name();
        let (bytes, info) = open.builder.finish(None, &base.crypto);
        self.table[open.ordinal as usize] = Some(info);
        self.statistics.packs += 1;
        self.statistics.pack_bytes += bytes.len() as u64;
        (name, bytes)
    }

    fn new_pack(&mut self) -> PackId {
        let number = self.next_pack;
        self.next_pack += 1;
        PackId { writer: self.id, number }
    }

    fn new_ordinal(&mut self) -> Result<u32, Error> {
        if let Some(free) = self.free.pop() {
            return Ok(free);
        }
        if self.table.len() >= MAX_PACKS as usize {
            return Err(Error::TooLarge(format!(
                "the checkpoint would refer to more than {MAX_PACKS} packs: squash its parent"
            )));
        }
        self.table.push(None);
        self.live.push(0);
        Ok(self.table.len() as u32 - 1)
    }
}
