// SPDX-License-Identifier: GPL-2.0-or-later
//! Requests as futures, on tokio.

use std::io;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::{Error, PageIndex, Region};

/// A region whose requests are awaited on a tokio runtime. Everything else is the [`Region`]'s ([`AsyncRegion::region`]): those calls
/// do not wait for other programs.
#[derive(Debug)]
pub struct AsyncRegion {
    fd: AsyncFd<Region>,
}

impl AsyncRegion {
    /// Registers the region's descriptor with the runtime that this is called in.
    ///
    /// # Errors
    ///
    /// What the runtime's reactor gives.
    ///
    /// # Panics
    ///
    /// Outside of a runtime with I/O enabled, as all of tokio's I/O.
    pub fn new(region: Region) -> io::Result<Self> {
        // The reason for the deprecation does not apply to a `Region`: it owns the one descriptor that it returns, until it is dropped.
        #[allow(deprecated, reason = "the new function is the same with this as an unsafe contract")]
        let fd = AsyncFd::with_interest(region, Interest::READABLE)?;
        Ok(Self { fd })
    }

    /// The region itself.
    pub fn region(&self) -> &Region {
        self.fd.get_ref()
    }

    /// Waits for requests, and takes up to `max` of them, as [`Region::next_requests`] does. If the future is dropped, no
    /// request is lost.
    ///
    /// # Errors
    ///
    /// [`Error::Plain`] once the region is plain memory; [`Error::Invalid`] if `max` is zero.
    pub async fn next_requests(&self, max: usize) -> Result<Vec<PageIndex>, Error> {
        loop {
            let mut guard = self.fd.readable().await.map_err(|_| Error::RuntimeGone)?;
            let pages = self.region().try_next_requests(max)?;
            if !pages.is_empty() {
                return Ok(pages);
            }
            guard.clear_ready();
        }
    }
}
