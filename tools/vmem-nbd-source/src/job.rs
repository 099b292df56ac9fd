// SPDX-License-Identifier: GPL-2.0-or-later
//! Pages that are read, as requests for bytes.

use vmem::{PAGE_SIZE, PageRange};
use vmem_nbd::client::{Bytes, Description, Failure, Question};
use vmem_source::answer::Chunk;

/// The bits of a tag that are the number of a request within its job.
const PART_BITS: u32 = 16;

/// Pages of one answer, and what has come of them. They are read in whole blocks of the server, in one request if it takes that much at a time.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) pages: PageRange,
    /// Offset of the first byte that is read.
    start: u64,
    /// Offset behind the last one.
    end: u64,
    /// Bytes of each request but the last one.
    step: u64,
    /// Requests that are not answered.
    left: u64,
    bytes: Option<Vec<u8>>,
    failure: Option<Failure>,
    /// Bytes of the replies on the network.
    pub(crate) wire: u64,
}

/// Rounds down to a multiple.
pub(crate) fn align_down(offset: u64, to: u64) -> u64 {
    offset - offset % to
}

/// Rounds up to a multiple, but not beyond the end of the export.
pub(crate) fn align_up(offset: u64, to: u64, description: &Description) -> u64 {
    offset.next_multiple_of(to).min(description.size)
}

impl Job {
    /// The job for these pages, [`Chunk::MAX_DATA_PAGES`] at most, which begin before the end of the export.
    pub(crate) fn new(pages: PageRange, description: &Description) -> Self {
        let block = u64::from(description.min_block);
        let start = align_down(pages.bytes().start, block);
        let end = align_up(pages.bytes().end, block, description);
        let step = u64::from(description.max_read);
        Self {
            pages,
            start,
            end,
            step,
            left: (end - start).div_ceil(step),
            bytes: None,
            failure: None,
            wire: 0,
        }
    }

    /// The requests, with their tags. The job has this number, which [`number`] finds in the tags.
    pub(crate) fn questions(&self, number: u64) -> impl Iterator<Item = (u64, Question)> + use<> {
        let (start, end, step) = (self.start, self.end, self.step);
        (0..self.left).map(move |part| {
            let offset = start + part * step;
            // At most `max_read`, which is an u32.
            let length = (end - offset).min(step) as u32;
            ((number << PART_BITS) | part, Question::Read { offset, length })
        })
    }

    /// Takes the reply to the request with this tag. True if it was the last one.
    pub(crate) fn take(&mut self, tag: u64, reply: Result<Bytes, Failure>, wire: u64) -> bool {
        self.wire += wire;
        self.left = self.left.saturating_sub(1);
        match reply {
            Ok(Bytes::Zero) => {}
            Ok(Bytes::Data(bytes)) if bytes.len() as u64 == self.end - self.start => self.bytes = Some(bytes),
            Ok(Bytes::Data(bytes)) => {
                let at = ((tag % (1 << PART_BITS)) * self.step) as usize;
                let whole = self.bytes.get_or_insert_with(|| vec![0; (self.end - self.start) as usize]);
                // The session gives as many bytes as were asked for.
                if let Some(part) = whole.get_mut(at..at + bytes.len()) {
                    part.copy_from_slice(&bytes);
                }
            }
            Err(failure) => {
                self.failure.get_or_insert(failure);
            }
        }
        self.left == 0
    }

    /// Why the pages cannot be read, or not all of them.
    pub(crate) fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// Adds the pages to an empty chunk.
    pub(crate) fn commit(&self, chunk: &mut Chunk) {
        let Some(bytes) = &self.bytes else {
            return chunk.push_zero(self.pages);
        };
        let from = (self.pages.bytes().start - self.start) as usize;
        let length = self.pages.count() as usize * PAGE_SIZE;
        let read = bytes.get(from..).unwrap_or_default();
        let read = read.get(..length).unwrap_or(read);
        let room = chunk.spare();
        let (front, rest) = room.split_at_mut(read.len());
        front.copy_from_slice(read);
        // What the export lacks of its last page.
        rest.iter_mut().take(length - read.len()).for_each(|byte| *byte = 0);
        chunk.commit(self.pages);
    }
}

/// The number of the job that a tag is of.
pub(crate) fn number(tag: u64) -> u64 {
    tag >> PART_BITS
}
