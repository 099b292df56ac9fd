// SPDX-License-Identifier: GPL-2.0
//! The page protocol, as bytes.
//!
//! `Documentation/protocol.rst` describes it byte by byte and is the authority; this is its only
//! implementation. Here are numbers and layouts and what they must be in themselves; what is allowed
//! at which moment is the business of [`crate::peer`] and [`crate::serve`].
//!
//! Everything is little endian. A frame's checksum is verified before its payload is looked at.

pub(crate) mod exports;
mod fields;
pub(crate) mod frame;
pub(crate) mod greeting;
pub(crate) mod pages;
#[cfg(test)]
pub(crate) mod previous;
pub(crate) mod question;
pub(crate) mod refusal;
#[cfg(test)]
mod tests;
pub(crate) mod version;

pub use refusal::ErrorCode;

use vmem::PAGE_SIZE;

/// The port that `vmemd serve` listens on if it is not told another.
pub const DEFAULT_PORT: u16 = 8636;

/// The most exports that one source offers.
pub const MAX_EXPORTS: usize = 1024;

/// What a peer sent is not the page protocol, or breaks it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The greeting begins with something else than the protocol's magic.
    #[error("the peer does not speak the page protocol: it began with \"{}\"", .0.escape_ascii())]
    Magic([u8; 8]),
    /// A version of the protocol that this side does not speak.
    #[error("the peer speaks version {0} of the page protocol, this side speaks 3 and 4")]
    Version(u16),
    /// The other side accepted a feature that was not offered.
    #[error("the peer accepted features that were not offered: {0:#x}")]
    Features(u64),
    /// A lane that does not exist.
    #[error("a greeting for lane {0}, which does not exist")]
    Lane(u8),
    /// The answer to a greeting is for the other lane.
    #[error("the peer's greeting is for the other lane")]
    OtherLane,
    /// Something was damaged on its way.
    #[error("the checksum of {what} does not match its bytes: {said:#x} said, {found:#x} found")]
    Checksum {
        /// Of what.
        what: &'static str,
        /// The checksum sent.
        said: u64,
        /// The checksum of what arrived.
        found: u64,
    },
    /// A frame type that does not exist.
    #[error("a frame of type {0}, which does not exist")]
    Type(u8),
    /// A frame that this side does not expect now.
    #[error("a frame {got} where {want} was due")]
    Unexpected {
        /// The name of the frame.
        got: &'static str,
        /// The names of those that would have been right.
        want: &'static str,
    },
    /// A frame longer than its type may be.
    #[error("a frame {what} of {length} bytes; it has {limit} at most")]
    TooLong {
        /// The name of the frame.
        what: &'static str,
        /// Length of its payload in bytes.
        length: u32,
        /// The most it may have.
        limit: u32,
    },
    /// A payload ends before what it must hold.
    #[error("a frame {0} that ends before its contents do")]
    Short(&'static str),
    /// A payload goes on after what it must hold.
    #[error("a frame {what} with {extra} bytes too many")]
    Trailing {
        /// The name of the frame.
        what: &'static str,
        /// How many bytes too many.
        extra: usize,
    },
    /// Bytes that must be zero are not.
    #[error("{0} with reserved bytes that are not zero")]
    Reserved(&'static str),
    /// A count that must not be zero, or not so large.
    #[error("a frame {what} of {count} entries; it has 1 to {limit}")]
    Count {
        /// The name of the frame.
        what: &'static str,
        /// How many entries it says it has.
        count: u32,
        /// The most it may have.
        limit: u32,
    },
    /// A name breaks the rule.
    #[error("an export called \"{}\", which no region can be", .0.escape_debug())]
    Name(String),
    /// Two exports have the same name.
    #[error("two exports are called {0}")]
    DuplicateName(String),
    /// A size that no region has.
    #[error("export {name} of {size} bytes, which no region can have")]
    Size {
        /// Name of the export.
        name: String,
        /// Its size in bytes.
        size: u64,
    },
    /// Another page size than ours.
    #[error("export {name} has pages of {page_size} bytes, this side has {PAGE_SIZE}")]
    PageSize {
        /// Name of the export.
        name: String,
        /// Size of its pages in bytes.
        page_size: u32,
    },
    /// An export that does not exist.
    #[error("export {0} does not exist")]
    NoExport(u32),
    /// A range that is empty or outside of its export.
    #[error("{nr_pages} pages from page {pgoff} on are not inside of the export")]
    Outside {
        /// The first page.
        pgoff: u64,
        /// How many.
        nr_pages: u64,
    },
    /// More pages in one frame than allowed.
    #[error("a frame about {0} pages at once, which is more than allowed")]
    TooMuch(u64),
    /// A page that comes twice where each page comes once.
    #[error("page {0} twice in a frame RELEASE")]
    Overlap(u64),
    /// A kind of contents that does not exist.
    #[error("pages of kind {0}, which does not exist")]
    Kind(u32),
    /// An answer to nothing, or not to the oldest question.
    #[error("an answer with tag {got}, the oldest question has {want:?}")]
    Tag {
        /// The tag of the answer.
        got: u32,
        /// The tag of the oldest question, if there is one.
        want: Option<u32>,
    },
    /// Pages that nobody asked for, or not in the order asked.
    #[error("pages that were not asked for: {nr_pages} from page {pgoff} on")]
    Unasked {
        /// The first page.
        pgoff: u64,
        /// How many.
        nr_pages: u64,
    },
}
