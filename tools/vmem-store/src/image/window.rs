// SPDX-License-Identifier: GPL-2.0
//! Frames, read in windows: what is fetched at once is more than what is decompressed at once.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use vmem_pages::PAGE_SIZE;

use super::Image;
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

/// The pages of a frame, each verified.
#[derive(Debug)]
pub(crate) struct Decoded {
    name: String,
    data: Vec<u8>,
    /// The pages whose hash is not that of their contents.
    bad: Vec<bool>,
}

impl Decoded {
    /// The contents of a page by its place in the frame.
    pub(crate) fn page(&self, slot: u32) -> Result<&[u8; PAGE_SIZE], Error> {
        let slot = slot as usize;
        let damaged = || {
            Error::damaged(
                &self.name,
                format!("the hash of page {slot} of a frame is not that of its contents"),
            )
        };
        if self.bad.get(slot) != Some(&false) {
            return Err(damaged());
        }
        let page = self
            .data
            .get(slot * PAGE_SIZE..)
            .and_then(|rest| rest.first_chunk::<PAGE_SIZE>());
        page.ok_or_else(damaged)
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
    /// The frame of the page `number` of a pack, and the page's place in it.
    pub(super) fn frame(&self, ordinal: u32, open: &OpenPack, number: u32) -> Result<(Arc<Decoded>, u32), Error> {
        let pack = &open.pack;
        let located = pack.footer.locate(number);
        let (frame, slot) =
            located.ok_or_else(|| Error::damaged(&pack.name, format!("it does not have page {number} any more")))?;
        let (at, frames) = open.window(frame);
        let window = self
            .windows
            .get(&(ordinal, pack.generation, at), || self.fetch(pack, frames))?;
        let Some((stored, decoded)) = window.frames.get(frame - window.first) else {
            return Err(Error::damaged(&pack.name, "a window is shorter than it should be"));
        };
        let decoded = decoded.get_or_init(|| {
            self.decode(pack, frame, stored.clone()).or_else(|_| {
                // It may have been damaged on the way.
                let window = self.fetch(pack, frame..frame + 1)?;
                let stored = window.frames.into_iter().next().map(|(stored, _)| stored);
                self.decode(pack, frame, stored.unwrap_or_default())
            })
        });
        match decoded {
            Ok(decoded) => Ok((decoded.clone(), slot)),
            Err(error) => {
                let error = error.clone();
                // The next attempt reads again: what was away may be back.
                self.windows.remove(&(ordinal, pack.generation, at));
                Err(error)
            }
        }
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

    fn decode(&self, pack: &Pack, frame: usize, stored: Vec<u8>) -> Result<Arc<Decoded>, Error> {
        let data = pack.open_frame(frame, stored)?;
        let info = pack.footer.frames.get(frame);
        let numbers = info.map_or_else(Vec::new, |info| pack.footer.numbers(info));
        let pages = data.chunks_exact(PAGE_SIZE).zip(&numbers);
        let hash = |number: u32| pack.footer.pages.hashes.get(number as usize);
        let bad = pages
            .map(|(page, number)| hash(*number) != Some(&self.base.crypto.hash16(page)))
            .collect();
        Ok(Arc::new(Decoded {
            name: pack.name.clone(),
            data,
            bad,
        }))
    }
}
