// SPDX-License-Identifier: GPL-2.0-or-later
//! Answers of a source: page contents.

mod condense;

use vmem::{PAGE_SIZE, PageRange};

use crate::digest::DIGEST_SIZE;

pub(crate) use condense::Sent;

/// The kind of contents of a run of pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Bytes.
    Data,
    /// All pages are zero.
    Zero,
    /// The source cannot read the pages.
    Unreadable,
    /// Digests in place of the contents: the destination has announced contents with these digests.
    Known,
    /// The pages have the contents that they had when they were sent last, while the program ran.
    Same,
}

impl Kind {
    /// Bytes of each page in an answer.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::Data => PAGE_SIZE,
            Self::Known => DIGEST_SIZE,
            Self::Zero | Self::Unreadable | Self::Same => 0,
        }
    }
}

/// A run of pages of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// The pages.
    pub range: PageRange,
    /// The kind of their contents.
    pub kind: Kind,
}

impl Run {
    /// This run and the `next` one as one, if it begins where this one ends and is of the same kind.
    fn join(&self, next: &Self) -> Option<Self> {
        let range = self.range.join(next.range).filter(|_| self.kind == next.kind)?;
        Some(Self { range, ..*self })
    }
}

/// The contents of a run of pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Contents<'a> {
    /// These bytes, whole pages.
    Data(&'a [u8]),
    /// All pages are zero.
    Zero,
    /// The source cannot read the pages.
    Unreadable,
    /// These digests, of [`DIGEST_SIZE`] bytes each: of contents that the caller has announced.
    Known(&'a [u8]),
    /// What was staged of the pages before, if anything was.
    Same,
}

/// Some of the pages that were fetched.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    export: usize,
    runs: &'a [Run],
    data: &'a [u8],
    wire_bytes: u64,
}

impl<'a> Answer<'a> {
    /// An answer whose runs have their pages or digests in `data`, one run after the other. `None` if `data` is longer or shorter than the runs.
    #[must_use]
    pub fn new(export: usize, runs: &'a [Run], data: &'a [u8]) -> Option<Self> {
        (data_len(runs) == Some(data.len())).then_some(Self {
            export,
            runs,
            data,
            wire_bytes: 0,
        })
    }

    /// Number of the export.
    #[must_use]
    pub fn export(&self) -> usize {
        self.export
    }

    /// Number of pages of all kinds.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.runs.iter().map(|run| run.range.count()).sum()
    }

    /// The same answer, which took so many bytes on the network.
    #[must_use]
    pub fn with_wire_bytes(self, wire_bytes: u64) -> Self {
        Self { wire_bytes, ..self }
    }

    /// Bytes that the answer took on the network, compressed or not; 0 if it did not come over one.
    #[must_use]
    pub fn wire_bytes(&self) -> u64 {
        self.wire_bytes
    }

    /// The runs and their contents.
    pub fn contents(&self) -> impl Iterator<Item = (PageRange, Contents<'a>)> + use<'a> {
        let mut rest = self.data;
        self.runs.iter().map(move |run| {
            let contents = match run.kind {
                Kind::Zero => Contents::Zero,
                Kind::Unreadable => Contents::Unreadable,
                Kind::Same => Contents::Same,
                Kind::Data | Kind::Known => {
                    // `new` has checked that the runs are as long as the slice.
                    let (data, after) = rest.split_at(run.range.count() as usize * run.kind.bytes());
                    rest = after;
                    if run.kind == Kind::Data {
                        Contents::Data(data)
                    } else {
                        Contents::Known(data)
                    }
                }
            };
            (run.range, contents)
        })
    }
}

/// Number of bytes of the runs; `None` if it does not fit in `usize`.
pub(crate) fn data_len(runs: &[Run]) -> Option<usize> {
    runs.iter().try_fold(0_usize, |sum, run| {
        let pages = match run.kind.bytes() {
            0 => 0,
            _ => usize::try_from(run.range.count()).ok()?,
        };
        sum.checked_add(pages.checked_mul(run.kind.bytes())?)
    })
}

/// A buffer of fixed size in which an answer is built.
#[derive(Debug)]
pub struct Chunk {
    runs: Vec<Run>,
    buffer: Vec<u8>,
    used: usize,
    /// The most data pages, [`MAX_DATA_PAGES`](Self::MAX_DATA_PAGES) at most.
    limit: usize,
}

impl Chunk {
    /// The most data pages in one answer (256 KiB). It bounds how long an urgent answer waits behind one of the stream.
    pub const MAX_DATA_PAGES: usize = 64;

    /// The most runs in one answer.
    pub const MAX_RUNS: usize = 1024;

    /// An empty buffer.
    #[must_use]
    pub fn new() -> Self {
        Self {
            runs: Vec::new(),
            buffer: vec![0; Self::MAX_DATA_PAGES * PAGE_SIZE],
            used: 0,
            limit: Self::MAX_DATA_PAGES,
        }
    }

    /// Has room for so many data pages at most, one at least, from now on.
    pub(crate) fn limit(&mut self, pages: usize) {
        self.limit = pages.clamp(1, Self::MAX_DATA_PAGES);
    }

    /// Empties the buffer.
    pub fn clear(&mut self) {
        self.runs.clear();
        self.used = 0;
    }

    /// The current state, for [`rollback`](Self::rollback).
    pub(crate) fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            runs: self.runs.len(),
            last: self.runs.last().copied(),
            used: self.used,
        }
    }

    /// Removes what was added since `checkpoint`.
    pub(crate) fn rollback(&mut self, checkpoint: &Checkpoint) {
        self.runs.truncate(checkpoint.runs);
        // The last run may have grown.
        if let (Some(last), Some(before)) = (self.runs.last_mut(), checkpoint.last) {
            *last = before;
        }
        self.used = checkpoint.used;
    }

    /// The runs.
    #[must_use]
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The pages of the data runs.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.buffer[..self.used]
    }

    /// Number of pages that still fit, whatever their contents.
    #[must_use]
    pub fn room(&self) -> usize {
        let runs = Self::MAX_RUNS - self.runs.len();
        runs.min(self.limit.saturating_sub(self.used / PAGE_SIZE))
    }

    /// The buffer for the next pages, of [`room`](Self::room) pages.
    pub fn spare(&mut self) -> &mut [u8] {
        let end = self.used + self.room() * PAGE_SIZE;
        &mut self.buffer[self.used..end]
    }

    /// Adds `range`, whose contents are at the beginning of [`spare`](Self::spare). Pages of zeros are added as zero pages.
    ///
    /// # Panics
    ///
    /// `range` has more pages than there is [`room`](Self::room) for.
    pub fn commit(&mut self, range: PageRange) {
        let mut from = self.used;
        for page in range.iter() {
            let zero = self.buffer[from..from + PAGE_SIZE] == ZERO_PAGE;
            if !zero && from != self.used {
                self.buffer.copy_within(from..from + PAGE_SIZE, self.used);
            }
            self.used += if zero { 0 } else { PAGE_SIZE };
            self.push(page.into(), if zero { Kind::Zero } else { Kind::Data });
            from += PAGE_SIZE;
        }
    }

    /// Adds pages that are zero. Only while there is [`room`](Self::room).
    pub fn push_zero(&mut self, range: PageRange) {
        self.push(range, Kind::Zero);
    }

    /// Adds pages that cannot be read. Only while there is [`room`](Self::room).
    pub fn push_unreadable(&mut self, range: PageRange) {
        self.push(range, Kind::Unreadable);
    }

    fn push(&mut self, range: PageRange, kind: Kind) {
        let run = Run { range, kind };
        let last = self.runs.last_mut();
        match last.and_then(|last| last.join(&run).map(|both| (last, both))) {
            Some((last, both)) => *last = both,
            None => self.runs.push(run),
        }
    }
}

/// A state of a [`Chunk`].
#[derive(Debug)]
pub(crate) struct Checkpoint {
    runs: usize,
    last: Option<Run>,
    used: usize,
}

impl Default for Chunk {
    fn default() -> Self {
        Self::new()
    }
}

const ZERO_PAGE: [u8; PAGE_SIZE] = [0; PAGE_SIZE];

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, count: u64) -> PageRange {
        PageRange::from_pgoff(first, count).expect("a range")
    }

    #[test]
    fn commit_drops_the_bytes_of_zero_pages_and_joins_runs() {
        let mut chunk = Chunk::new();
        chunk.push_zero(range(0, 10));
        for (page, byte) in chunk.spare().chunks_mut(PAGE_SIZE).zip([0, 7, 8, 0, 9]) {
            page.fill(byte);
        }
        chunk.commit(range(10, 5));
        chunk.push_unreadable(range(15, 2));
        chunk.push_unreadable(range(17, 1));
        let runs: Vec<_> = chunk
            .runs()
            .iter()
            .map(|run| (run.range.first().get(), run.range.count(), run.kind))
            .collect();
        assert_eq!(
            runs,
            [
                (0, 11, Kind::Zero),
                (11, 2, Kind::Data),
                (13, 1, Kind::Zero),
                (14, 1, Kind::Data),
                (15, 3, Kind::Unreadable)
            ]
        );
        let answer = Answer::new(0, chunk.runs(), chunk.data()).expect("consistent");
        assert_eq!(answer.pages(), 18);
        let bytes: Vec<u8> = answer
            .contents()
            .filter_map(|(_, contents)| match contents {
                Contents::Data(data) => Some(data),
                _ => None,
            })
            .flat_map(|data| data.chunks(PAGE_SIZE).map(|page| page[PAGE_SIZE - 1]))
            .collect();
        assert_eq!(bytes, [7, 8, 9]);
    }

    #[test]
    fn answer_whose_bytes_do_not_match_its_runs_is_none() {
        let runs = [Run {
            range: range(0, 2),
            kind: Kind::Data,
        }];
        assert!(Answer::new(0, &runs, &[0; 2 * PAGE_SIZE]).is_some());
        assert!(Answer::new(0, &runs, &[0; 2 * PAGE_SIZE - 1]).is_none());
        assert!(Answer::new(0, &runs, &[0; 3 * PAGE_SIZE]).is_none());
        assert!(Answer::new(0, &[], &[0]).is_none());
    }

    #[test]
    fn rollback_removes_runs_and_bytes_added_since_the_checkpoint() {
        let mut chunk = Chunk::new();
        chunk.spare()[0] = 7;
        chunk.commit(range(0, 1));
        let (checkpoint, runs) = (chunk.checkpoint(), chunk.runs().to_vec());
        chunk.spare()[..2 * PAGE_SIZE].fill(8);
        chunk.commit(range(1, 2));
        chunk.push_zero(range(3, 1));
        chunk.rollback(&checkpoint);
        assert_eq!((chunk.runs(), chunk.data().len()), (&runs[..], PAGE_SIZE));
    }

    #[test]
    fn limited_chunk_has_room_for_fewer_data_pages_and_for_as_many_runs() {
        let mut chunk = Chunk::new();
        chunk.limit(2);
        chunk.push_zero(range(0, 100));
        assert_eq!((chunk.room(), chunk.spare().len()), (2, 2 * PAGE_SIZE));
        chunk.spare().fill(7);
        chunk.commit(range(100, 2));
        assert_eq!((chunk.room(), chunk.spare().len()), (0, 0));
        chunk.limit(1);
        assert_eq!(chunk.room(), 0);
        chunk.clear();
        chunk.limit(0);
        assert_eq!(chunk.room(), 1, "it would never be full");
    }

    #[test]
    fn full_chunk_has_no_room_until_cleared() {
        let mut chunk = Chunk::new();
        for pgoff in 0..Chunk::MAX_RUNS as u64 {
            assert!(chunk.room() > 0);
            match pgoff % 2 {
                0 => chunk.push_zero(range(pgoff, 1)),
                _ => chunk.push_unreadable(range(pgoff, 1)),
            }
        }
        assert_eq!(chunk.room(), 0);
        chunk.clear();
        assert_eq!(chunk.room(), Chunk::MAX_DATA_PAGES);
    }
}
