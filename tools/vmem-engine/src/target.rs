// SPDX-License-Identifier: GPL-2.0-or-later
//! What an engine fills.

use std::sync::Arc;

use vmem_source::Export;

use crate::sink::Sink;

/// A region to be filled.
#[derive(Clone)]
pub struct Target {
    /// The export of the source that the region is filled from.
    pub export: Export,
    /// Name of the region.
    pub name: String,
    /// The region.
    pub sink: Arc<dyn Sink>,
}
