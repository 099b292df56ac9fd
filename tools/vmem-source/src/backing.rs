// SPDX-License-Identifier: GPL-2.0-or-later
//! Files of this host that the kernel may read pages from by itself.

use std::fs::File;
use std::path::PathBuf;

use vmem::{Name, PageRange};

/// A file that the pages of an export lie in, from its beginning on.
#[derive(Debug)]
pub struct BackingFile {
    /// The export.
    pub export: Name,
    /// The open file of the source. As long as the kernel has it, it is locked as it is for the source, so that no server frees pages of it.
    pub file: File,
    /// The path that it was opened by.
    pub path: PathBuf,
    /// The pages that lie in the file as a whole; [`None`] if there are none. If the file ends within a page, the source fills the page up with zeros.
    pub pages: Option<PageRange>,
}
