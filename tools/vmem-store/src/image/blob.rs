// SPDX-License-Identifier: GPL-2.0-or-later
//! Blobs: bytes in a row.

use std::io;

use vmem_pages::{PAGE_SIZE, PageIndex};

use super::Image;
use crate::error::Error;

/// Reads a backend from its first byte to its last.
#[derive(Debug)]
pub struct BlobReader<'a> {
    image: &'a Image,
    backend: usize,
    at: u64,
    bytes: u64,
    page: Box<[u8; PAGE_SIZE]>,
    loaded: Option<u64>,
}

impl Image {
    /// The bytes of a backend, by its name.
    pub fn blob(&self, name: &str) -> Result<BlobReader<'_>, Error> {
        let (backend, found) = self.manifest().backend(name).ok_or_else(|| Error::Range {
            backend: name.to_owned(),
            what: format!("checkpoint {} has none of this name", self.manifest().checkpoint),
        })?;
        Ok(BlobReader {
            image: self,
            backend,
            at: 0,
            bytes: found.bytes,
            page: Box::new([0; PAGE_SIZE]),
            loaded: None,
        })
    }
}

impl BlobReader<'_> {
    /// Bytes in all.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

impl io::Read for BlobReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.bytes || out.is_empty() {
            return Ok(0);
        }
        let page = PageIndex::holding(self.at).ok_or_else(|| io::Error::other("a blob is too long"))?;
        if self.loaded != Some(page.get()) {
            self.loaded = None;
            self.image
                .read_page(self.backend, page, &mut self.page)
                .map_err(io::Error::other)?;
            self.loaded = Some(page.get());
        }
        let within = (self.at - page.offset()) as usize;
        let count = (PAGE_SIZE - within)
            .min(out.len())
            .min((self.bytes - self.at).try_into().unwrap_or(usize::MAX));
        out[..count].copy_from_slice(&self.page[within..within + count]);
        self.at += count as u64;
        Ok(count)
    }
}
