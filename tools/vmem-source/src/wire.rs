// SPDX-License-Identifier: GPL-2.0-or-later
//! The page protocol, as bytes.
//!
//! `Documentation/protocol.rst` is the specification. This module encodes and decodes frames, and checks what can be checked of a frame alone;
//! [`crate::peer`] and [`crate::serve`] check the order of frames.
//!
//! All numbers are little endian. The checksum of a frame is verified before its payload is decoded.

pub(crate) mod compression;
pub(crate) mod digests;
pub(crate) mod exports;
mod fields;
pub(crate) mod frame;
pub(crate) mod greeting;
pub(crate) mod map;
pub(crate) mod pages;
#[cfg(test)]
pub(crate) mod previous;
pub(crate) mod ranges;
pub(crate) mod refusal;
pub(crate) mod rounds;
pub(crate) mod session;
#[cfg(test)]
mod tests;
pub(crate) mod version;

pub use refusal::ErrorCode;

use vmem::PAGE_SIZE;

use crate::export::MAX_FETCH_PAGES;

/// The default port of `vmemd serve`.
pub const DEFAULT_PORT: u16 = 8636;

/// The most exports of a source.
pub const MAX_EXPORTS: usize = 1024;

/// A violation of the page protocol.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// The greeting does not begin with the magic of the protocol.
    #[error("the peer does not speak the page protocol: it began with \"{}\"", .0.escape_ascii())]
    Magic([u8; 8]),
    /// A version of the protocol that this side does not speak.
    #[error("the peer speaks version {0} of the page protocol, this side speaks 3 and 4")]
    Version(u16),
    /// The peer accepted features that were not offered.
    #[error("the peer accepted features that were not offered: {0:#x}")]
    Features(u64),
    /// The greeting names a lane that does not exist.
    #[error("a greeting for lane {0}, which does not exist")]
    Lane(u8),
    /// The answer to a greeting is for the other lane.
    #[error("the peer's greeting is for the other lane")]
    OtherLane,
    /// Data was damaged on the network.
    #[error("the checksum of {what} does not match its bytes: {said:#x} sent, {found:#x} found")]
    Checksum {
        /// What was damaged.
        what: &'static str,
        /// The checksum sent.
        said: u64,
        /// The checksum of the data that arrived.
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
        /// The names of the frames expected.
        want: &'static str,
    },
    /// A frame longer than its type may be.
    #[error("a frame {what} of {length} bytes; it has {limit} at most")]
    TooLong {
        /// The name of the frame.
        what: &'static str,
        /// Length of its payload in bytes.
        length: u32,
        /// The largest valid count.
        limit: u32,
    },
    /// A payload is shorter than its contents.
    #[error("a frame {0} that ends before its contents do")]
    Short(&'static str),
    /// A payload is longer than its contents.
    #[error("a frame {what} with {extra} bytes too many")]
    Trailing {
        /// The name of the frame.
        what: &'static str,
        /// Number of extra bytes.
        extra: usize,
    },
    /// Bytes that must be zero are not.
    #[error("{0} with reserved bytes that are not zero")]
    Reserved(&'static str),
    /// A count is zero or too large.
    #[error("a frame {what} of {count} entries; it has 1 to {limit}")]
    Count {
        /// The name of the frame.
        what: &'static str,
        /// The count.
        count: u32,
        /// The largest valid count.
        limit: u32,
    },
    /// A region cannot have such a name.
    #[error("an export called \"{}\", which is no valid name of a region", .0.escape_debug())]
    Name(String),
    /// Two exports have the same name.
    #[error("two exports are called {0}")]
    DuplicateName(String),
    /// A region cannot have such a size.
    #[error("export {name} of {size} bytes, which no region can have")]
    Size {
        /// Name of the export.
        name: String,
        /// Its size in bytes.
        size: u64,
    },
    /// The last page of an export lies beyond its end.
    #[error("export {0} has more padding than a page has bytes")]
    Padding(String),
    /// The page size differs from that of this side.
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
        /// Number of pages.
        nr_pages: u64,
    },
    /// More pages in one frame than allowed.
    #[error("a frame about {0} pages at once, which is more than allowed")]
    TooMuch(u64),
    /// A RELEASE names a page twice.
    #[error("page {0} twice in a frame RELEASE")]
    Overlap(u64),
    /// A kind of contents that does not exist.
    #[error("pages of kind {0}, which does not exist")]
    Kind(u32),
    /// A question without a tag.
    #[error("a frame {0} with tag 0, which belongs to no answer")]
    NoTag(&'static str),
    /// A NEXT of no pages, or of too many.
    #[error("a frame NEXT of at most {0} pages; it has 1 to {MAX_FETCH_PAGES}")]
    MaxPages(u32),
    /// The field `over` of a BATCH is neither 0 nor 1.
    #[error("a frame BATCH whose field over is {0}")]
    Over(u32),
    /// The round of a BATCH is 0, or an earlier one than before.
    #[error("a frame BATCH of round {got}, where round {least} or a later one was due")]
    Round {
        /// The round.
        got: u32,
        /// The earliest valid round.
        least: u32,
    },
    /// The rounds go on after they were over.
    #[error("a frame {0} for rounds that are over")]
    RoundsOver(&'static str),
    /// More pages in the answer to a NEXT than it allows.
    #[error("{got} pages in the answer to a NEXT of at most {max}")]
    BatchTooLarge {
        /// Number of pages so far.
        got: u64,
        /// The most pages of the answer.
        max: u64,
    },
    /// A page comes twice where each comes once at most.
    #[error("page {pgoff} twice in {what}")]
    Duplicate {
        /// What it is twice in.
        what: &'static str,
        /// The page.
        pgoff: u64,
    },
    /// A question about final contents before the source has said which pages remain.
    #[error("a frame {0} before the list of the remaining pages is complete: contents may still change")]
    TooEarly(&'static str),
    /// A COMPRESS for a compression that does not exist.
    #[error("a frame COMPRESS for compression {coding} at level {level}, which does not exist")]
    Compression {
        /// The number of the compression.
        coding: u32,
        /// Its level.
        level: u32,
    },
    /// Contents in a coding that does not exist or was not asked for.
    #[error("contents of pages in coding {0}, which was not asked for")]
    Coding(u8),
    /// Compressed contents that are longer than those of a frame.
    #[error("compressed contents of more than {limit} bytes")]
    Inflated {
        /// The most bytes.
        limit: u32,
    },
    /// Contents that cannot be decompressed to as many bytes as their pages have.
    #[error("compressed contents of pages that are damaged, or not those of as many pages")]
    Decompress,
    /// A JOIN, or the answer to one, with a token that is not that of the session.
    #[error("a frame {0} with the token of another session")]
    Token(&'static str),
    /// Contents of a page come over another connection than earlier ones of its chunk, which they could overtake.
    #[error("page {0} on another connection than earlier pages around it")]
    OtherConnection(u64),
    /// An answer that does not belong to the oldest question of its kind.
    #[error("an answer with tag {got}; the oldest question of its kind has tag {want:?}")]
    Tag {
        /// The tag of the answer.
        got: u32,
        /// The tag of the oldest outstanding question of this kind, if there is one.
        want: Option<u32>,
    },
    /// Holes that are not those of the oldest MAP, or not in ascending order.
    #[error("{nr_pages} pages from page {pgoff} on as a hole, which were not asked about, or not in their order")]
    Hole {
        /// The first page.
        pgoff: u64,
        /// Number of pages.
        nr_pages: u64,
    },
    /// A HOLES that is about no page, or about pages that the MAP was not about.
    #[error("a frame HOLES up to page {end}, for a MAP of {nr_pages} pages from page {pgoff} on")]
    MapEnd {
        /// The first page that the frame is not about.
        end: u64,
        /// The first page of what is left of the MAP.
        pgoff: u64,
        /// The number of its pages.
        nr_pages: u64,
    },
    /// A DIGESTS with another key than the one before.
    #[error("a frame DIGESTS with another key than the first one of the connection")]
    OtherKey,
    /// A MAP where rounds have begun to send pages.
    #[error("a frame MAP after a NEXT, and before the list of the remaining pages is complete")]
    LateMap,
    /// Pages that are not outstanding, or not in the order of the READs.
    #[error("{nr_pages} pages from page {pgoff} on, which are not the next outstanding ones")]
    Unrequested {
        /// The first page.
        pgoff: u64,
        /// Number of pages.
        nr_pages: u64,
    },
}
