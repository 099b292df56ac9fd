// SPDX-License-Identifier: GPL-2.0
//! What a server of pages asks for.

use std::time::Duration;

use vmem_pages::PageRange;

/// Pages of one export.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExportRanges {
    /// The export.
    pub export: usize,
    /// The pages.
    pub ranges: Vec<PageRange>,
}

/// Pages that are sent in one answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Batch {
    /// The round: from 1, and never less than that of an earlier batch.
    pub round: u32,
    /// The pages; `None` if there is nothing to send now.
    pub pages: Option<ExportRanges>,
    /// The program has stopped, and there are no pages to send in rounds any more.
    pub over: bool,
}

/// What was sent of a batch.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Sent {
    /// Pages sent with their contents.
    pub data: u64,
    /// Pages sent as zero pages.
    pub zero: u64,
    /// Pages sent as unreadable.
    pub unreadable: u64,
    /// Bytes of the frames.
    pub bytes: u64,
    /// From the choice of the pages until the network had taken the answer.
    pub elapsed: Duration,
}
