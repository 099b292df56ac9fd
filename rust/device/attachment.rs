// SPDX-License-Identifier: GPL-2.0

//! The hold that a daemon has on a region.

use super::region::Region;
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// That a daemon is attached. With it, the daemon goes.
pub(crate) struct Attachment(Arc<Region>);

impl Attachment {
    /// Attaches a daemon; `EBUSY` if there is one.
    pub(crate) fn new(region: &Arc<Region>) -> Result<Self> {
        region.daemon().attach()?;
        Ok(Self(region.clone()))
    }
}

impl Drop for Attachment {
    /// What the daemon had taken and not answered is requested again, before the next one can come.
    fn drop(&mut self) {
        let region = &self.0;
        region.daemon().clear_ready();
        region.pages().detach_daemon(|| region.daemon().detach());
    }
}
