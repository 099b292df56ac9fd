// SPDX-License-Identifier: GPL-2.0-or-later
//! What is known of bytes without reading them.

/// Bytes in a row, all of which are zero or of which that is not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// How many.
    pub bytes: u64,
    /// Whether they are zero.
    pub zero: bool,
}
