// SPDX-License-Identifier: GPL-2.0-or-later
//! Errors of mappings.

use rustix::io::Errno;

/// A file cannot be mapped, or the memory of a mapping cannot be copied or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused the mapping.
    #[error("cannot map {len} bytes at offset {offset} of the file")]
    Map {
        /// Offset in the file, in bytes.
        offset: u64,
        /// Length of the mapping, in bytes.
        len: usize,
        /// The error of `mmap(2)`. `EINVAL`: the length is zero, the offset is not at a page, or the region ends before the mapping.
        source: Errno,
    },
    /// The copy is not inside of the mapping.
    #[error("{len} bytes at offset {offset} are not inside of the mapping, which has {mapped} bytes")]
    OutOfBounds {
        /// Offset in the mapping, in bytes.
        offset: usize,
        /// Length of the copy, in bytes.
        len: usize,
        /// Length of the mapping, in bytes.
        mapped: usize,
    },
    /// The kernel cannot copy out of the mapping, for another reason than an unreadable page.
    #[error("cannot read the mapping")]
    Read(#[source] Errno),
    /// The kernel cannot make a hole.
    #[error("cannot remove pages of the mapping")]
    Remove(#[source] Errno),
    /// The mapping was made with [`Access::ReadOnly`](crate::Access::ReadOnly).
    #[error("cannot write to the mapping: it is read-only")]
    ReadOnly,
}
