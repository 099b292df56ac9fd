// SPDX-License-Identifier: GPL-2.0

//! The attachment of a daemon to a region.

use super::region::Region;
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// An attached daemon. It detaches when this is dropped.
pub(crate) struct Attachment(Arc<Region>);

impl Attachment {
    /// Attaches a daemon. `EBUSY` if another daemon is attached.
    pub(crate) fn new(region: &Arc<Region>) -> Result<Self> {
        region.daemon().attach()?;
        Ok(Self(region.clone()))
    }
}

impl Drop for Attachment {
    /// Requests that the daemon has taken and not answered are queued again before the next daemon
    /// can attach.
    fn drop(&mut self) {
        let region = &self.0;
        region.daemon().clear_ready();
        region.pages().detach_daemon(|| region.daemon().detach());
    }
}
