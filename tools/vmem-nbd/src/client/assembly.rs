// SPDX-License-Identifier: GPL-2.0-or-later
//! A reply while its parts arrive.

use std::ops::Range;

use crate::extent::Extent;
use crate::wire::STATE_ZERO;

use super::covered::Covered;
use super::error::{Error, shown, violation};
use super::inbox::{Bytes, Failure, Outcome};
use super::question::Question;

/// What has come of a reply.
#[derive(Debug)]
pub(super) struct Assembly {
    question: Question,
    /// Of a read; empty as long as all that has come is holes.
    bytes: Vec<u8>,
    covered: Covered,
    extents: Option<Vec<Extent>>,
    failure: Option<Failure>,
    /// Bytes of the reply on the network.
    wire: u64,
}

impl Assembly {
    pub(super) fn new(question: Question) -> Self {
        Self {
            question,
            bytes: Vec::new(),
            covered: Covered::default(),
            extents: None,
            failure: None,
            wire: 0,
        }
    }

    /// The bytes that were asked for.
    pub(super) fn range(&self) -> Range<u64> {
        self.question.range()
    }

    pub(super) fn is_read(&self) -> bool {
        matches!(self.question, Question::Read { .. })
    }

    /// Counts bytes of the reply.
    pub(super) fn count(&mut self, bytes: u64) {
        self.wire += bytes;
    }

    /// The room for bytes of the read, which have not come before. The caller fills it.
    pub(super) fn data(&mut self, offset: u64, length: u64) -> Result<&mut [u8], Error> {
        let at = self.cover(offset, length)?;
        if self.bytes.is_empty() {
            let range = self.range();
            // The client has chosen the length.
            self.bytes = vec![0; (range.end - range.start) as usize];
        }
        Ok(self.bytes.get_mut(at).unwrap_or_default())
    }

    /// Bytes of the read are zero.
    pub(super) fn hole(&mut self, offset: u64, length: u64) -> Result<(), Error> {
        // The room is zero from the beginning on.
        self.cover(offset, length).map(drop)
    }

    fn cover(&mut self, offset: u64, length: u64) -> Result<Range<usize>, Error> {
        let wanted = self.range();
        let wrong = |what: &str| violation(format!("{length} bytes at {offset} {what}, of a read of {wanted:?}"));
        let end = offset.checked_add(length).filter(|end| *end <= wanted.end);
        let Some(end) = end.filter(|_| self.is_read() && length > 0 && offset >= wanted.start) else {
            return Err(wrong("that were not asked for"));
        };
        let new = self.covered.insert(offset..end);
        new.ok_or_else(|| wrong("that have been sent before, or are scattered"))?;
        Ok((offset - wanted.start) as usize..(end - wanted.start) as usize)
    }

    /// Begins the extents, of which there is one list.
    pub(super) fn begin_extents(&mut self) -> Result<(), Error> {
        if self.is_read() || self.extents.is_some() {
            return Err(violation("extents that were not asked for"));
        }
        self.extents = Some(Vec::new());
        Ok(())
    }

    /// Adds an extent; `covered` bytes are described already. Returns how many are now.
    pub(super) fn extent(&mut self, covered: u64, bytes: u32, flags: u32) -> Result<u64, Error> {
        let range = self.range();
        if bytes == 0 || covered >= range.end - range.start {
            return Err(violation("an extent without bytes, or behind those that were asked for"));
        }
        let (bytes, zero) = (u64::from(bytes), flags & STATE_ZERO != 0);
        let extents = self.extents.get_or_insert_default();
        match extents.last_mut().filter(|last| last.zero == zero) {
            Some(last) => last.bytes += bytes,
            None => extents.push(Extent { bytes, zero }),
        }
        Ok(covered + bytes)
    }

    /// The request has failed. The first error is that of the reply.
    pub(super) fn fail(&mut self, errno: u32, text: &[u8]) {
        let text = match text {
            [] => String::new(),
            text => format!(": {}", shown(text)),
        };
        self.failure.get_or_insert(Failure { errno, text });
    }

    /// The reply is complete: it has all that was asked for, or an error.
    pub(super) fn finish(self) -> Result<Outcome, Error> {
        let range = self.range();
        if self.is_read() {
            let read = match self.failure {
                Some(failure) => Err(failure),
                None if !self.covered.is(&range) => {
                    return Err(violation(format!("a reply without all bytes of a read of {range:?}")));
                }
                None if self.bytes.is_empty() => Ok(Bytes::Zero),
                None => Ok(Bytes::Data(self.bytes)),
            };
            return Ok(Outcome::Read(read, self.wire));
        }
        match (self.failure, self.extents) {
            (Some(failure), _) => Ok(Outcome::Extents(Err(failure))),
            (None, Some(extents)) => Ok(Outcome::Extents(Ok(extents))),
            (None, None) => Err(violation("a reply without the extents that were asked for")),
        }
    }
}
