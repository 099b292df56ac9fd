// SPDX-License-Identifier: GPL-2.0-or-later
//! Frames, read in windows: what is fetched at once is more than what is decompressed at once.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use vmem_pages::PAGE_SIZE;

use super::Image;
use crate::crypto::{Crypto, Hash16};
use crate::error::Error;
use crate::objects::Part;
use crate::pack::Pack;

/// A pack with its frames divided into windows.
#[derive(Debug)]
pub(crate) struct OpenPack {
    pub(crate) pack: Pack,
    /// The first frame of each window.
    windows: Vec<u32>,
}

impl OpenPack {
    pub(crate) fn new(pack: Pack, window_bytes: u64) -> Self {
        let mut windows = Vec::new();
        let mut bytes = u64::MAX;
        for (at, frame) in pack.footer.frames.iter().enumerate() {
            if bytes.saturating_add(u64::from(frame.length)) > window_bytes {
                windows.push(at as u32);
                bytes = 0;
            }
            bytes += u64::from(frame.length);
        }
        Self { pack, windows }
    }

    /// The windows whose frames are all in the pack's last bytes.
    pub(crate) fn windows_within(&self, tail: &[u8]) -> Vec<(u32, Window)> {
        let size = self.pack.size;
        let Some(skipped) = size.checked_sub(tail.len() as u64) else {
            return Vec::new();
        };
        let mut windows = Vec::new();
        for first in &self.windows {
            let (at, frames) = self.window(*first as usize);
            let infos = self.pack.footer.frames.get(frames.clone()).unwrap_or_default();
            let stored = infos.iter().map(|frame| {
                let start = usize::try_from(frame.offset.checked_sub(skipped)?).ok()?;
                Some((tail.get(start..start + frame.length as usize)?.to_vec(), OnceLock::new()))
            });
            if let Some(stored) = stored.collect::<Option<Vec<_>>>() {
                windows.push((
                    at,
                    Window {
                        first: frames.start,
                        frames: stored,
                    },
                ));
            }
        }
        windows
    }

    fn window(&self, frame: usize) -> (u32, Range<usize>) {
        let at = self
            .windows
            .partition_point(|first| *first as usize <= frame)
            .saturating_sub(1);
        let first = self.windows.get(at).map_or(0, |first| *first as usize);
        let end = self
            .windows
            .get(at + 1)
            .map_or(self.pack.footer.frames.len(), |next| *next as usize);
        (at as u32, first..end)
    }

    /// The numbers of the pages in the same frame as this one.
    pub(crate) fn numbers(&self, number: u32) -> Vec<u32> {
        let frame = self
            .pack
            .footer
            .locate(number)
            .and_then(|(frame, _)| self.pack.footer.frames.get(frame));
        frame.map_or_else(Vec::new, |frame| self.pack.footer.numbers(frame))
    }
}

/// The pages of a frame. Each is verified when it is used for the first time: one that nobody uses costs no hash.
#[derive(Debug)]
pub(crate) struct Decoded {
    name: String,
    data: Vec<u8>,
    /// For each page the hash that it must have, and whether it has it.
    hashes: Vec<(Option<Hash16>, OnceLock<bool>)>,
}

impl Decoded {
    fn new(pack: &Pack, frame: usize, data: Vec<u8>) -> Self {
        let info = pack.footer.frames.get(frame);
        let numbers = info.map_or_else(Vec::new, |info| pack.footer.numbers(info));
        let hash = |number: u32| pack.footer.pages.hashes.get(number as usize).copied();
        let hashes = numbers.into_iter().map(|number| (hash(number), OnceLock::new()));
        Self {
            name: pack.name.clone(),
            data,
            hashes: hashes.collect(),
        }
    }

    /// The contents of a page by its place in the frame, if they have the page's hash.
    pub(crate) fn page(&self, slot: u32, crypto: &Crypto) -> Result<&[u8; PAGE_SIZE], Error> {
        let slot = slot as usize;
        let page = self.data.get(slot * PAGE_SIZE..).and_then(|rest| rest.first_chunk());
        let right = page.zip(self.hashes.get(slot)).and_then(|(page, (hash, is_right))| {
            let is_right = is_right.get_or_init(|| *hash == Some(crypto.hash16(page)));
            is_right.then_some(page)
        });
        right.ok_or_else(|| {
            let what = format!("the hash of page {slot} of a frame is not that of its contents");
            Error::damaged(&self.name, what)
        })
    }
}

/// A frame as it is stored, and its pages once somebody wants them.
type Stored = (Vec<u8>, OnceLock<Result<Arc<Decoded>, Error>>);

/// Frames that were fetched at once, and are decompressed when they are used.
#[derive(Debug)]
pub(crate) struct Window {
    first: usize,
    frames: Vec<Stored>,
}

impl Image {
    /// The frame of the page `number` of a pack, and the page's place in it. The page is verified, its neighbours are not.
    pub(super) fn frame(&self, ordinal: u32, open: &OpenPack, number: u32) -> Result<(Arc<Decoded>, u32), Error> {
        let pack = &open.pack;
        let located = pack.footer.locate(number);
        let (frame, slot) =
            located.ok_or_else(|| Error::damaged(&pack.name, format!("it does not have page {number} any more")))?;
        let (at, frames) = open.window(frame);
        let key = (ordinal, pack.generation, at);
        let window = self.windows.get(&key, || self.fetch(pack, frames))?;
        let Some((stored, decoded)) = window.frames.get(frame - window.first) else {
            return Err(Error::damaged(&pack.name, "a window is shorter than it should be"));
        };
        let decode = || Ok(Arc::new(Decoded::new(pack, frame, pack.decode_frame(frame, stored.clone())?)));
        let decoded = decoded.get_or_init(decode).clone();
        let is_right = decoded
            .as_ref()
            .is_ok_and(|decoded| decoded.page(slot, &self.base.crypto).is_ok());
        match decoded {
            Ok(decoded) if is_right => Ok((decoded, slot)),
            // It may have been damaged on the way.
            _ => {
                let decoded = self.frame_again(pack, frame)?;
                decoded.page(slot, &self.base.crypto)?;
                self.windows.remove(&key);
                Ok((Arc::new(decoded), slot))
            }
        }
    }

    /// Reads a frame that is damaged once more. Its checksum tells bytes that are damaged from pages that are others.
    fn frame_again(&self, pack: &Pack, frame: usize) -> Result<Decoded, Error> {
        let window = self.fetch(pack, frame..frame + 1)?;
        let stored = window.frames.into_iter().next().map(|(stored, _)| stored);
        let data = pack.open_frame(frame, stored.unwrap_or_default())?;
        Ok(Decoded::new(pack, frame, data))
    }

    fn fetch(&self, pack: &Pack, frames: Range<usize>) -> Result<Window, Error> {
        let infos = pack.footer.frames.get(frames.clone()).unwrap_or_default();
        let (Some(first), Some(last)) = (infos.first(), infos.last()) else {
            return Err(Error::damaged(&pack.name, "it has no such frames"));
        };
        let bytes = first.offset..last.offset + u64::from(last.length);
        let fetched = self.base.get(&pack.name, Part::Bytes(bytes))?.bytes;
        let stored = |frame: &crate::pack::Frame| {
            let start = (frame.offset - first.offset) as usize;
            fetched.get(start..start + frame.length as usize).unwrap_or_default().to_vec()
        };
        Ok(Window {
            first: frames.start,
            frames: infos.iter().map(|frame| (stored(frame), OnceLock::new())).collect(),
        })
    }
}
