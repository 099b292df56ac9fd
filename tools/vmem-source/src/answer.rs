// SPDX-License-Identifier: GPL-2.0
//! Page contents on their way from a source.

use vmem::{PAGE_SIZE, PageRange};

use vmem_pages::join;

/// What is known of the contents of a run of pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// They are given.
    Data,
    /// They are all zero.
    Zero,
    /// The source cannot read them.
    Unreadable,
}

/// A run of pages of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// Which pages.
    pub range: PageRange,
    /// What is known of them.
    pub kind: Kind,
}

/// The contents of a run of pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Contents<'a> {
    /// These bytes, whole pages.
    Data(&'a [u8]),
    /// All zero.
    Zero,
    /// The source cannot read them.
    Unreadable,
}

/// Some of the pages that were asked for.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    export: usize,
    runs: &'a [Run],
    data: &'a [u8],
}

impl<'a> Answer<'a> {
    /// Puts an answer together: `data` holds the pages of the data runs, one run after the other.
    /// `None` if it holds more or less than they say.
    #[must_use]
    pub fn new(export: usize, runs: &'a [Run], data: &'a [u8]) -> Option<Self> {
        (data_len(runs) == Some(data.len())).then_some(Self { export, runs, data })
    }

    /// Number of the export.
    #[must_use]
    pub fn export(&self) -> usize {
        self.export
    }

    /// Number of pages, of all kinds.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.runs.iter().map(|run| run.range.count()).sum()
    }

    /// The runs and their contents.
    pub fn contents(&self) -> impl Iterator<Item = (PageRange, Contents<'a>)> + use<'a> {
        let mut rest = self.data;
        self.runs.iter().map(move |run| {
            let contents = match run.kind {
                Kind::Zero => Contents::Zero,
                Kind::Unreadable => Contents::Unreadable,
                Kind::Data => {
                    // `new` has seen that this is the length of a slice in memory.
                    let (data, after) = rest.split_at(run.range.count() as usize * PAGE_SIZE);
                    rest = after;
                    Contents::Data(data)
                }
            };
            (run.range, contents)
        })
    }
}

/// Bytes of the data runs; `None` if that is more than memory can have.
pub(crate) fn data_len(runs: &[Run]) -> Option<usize> {
    runs.iter()
        .filter(|run| run.kind == Kind::Data)
        .try_fold(0_usize, |sum, run| {
            let pages = usize::try_from(run.range.count()).ok()?;
            sum.checked_add(pages.checked_mul(PAGE_SIZE)?)
        })
}

/// An answer that is being made, in a buffer of a fixed size.
#[derive(Debug)]
pub struct Chunk {
    runs: Vec<Run>,
    buffer: Vec<u8>,
    used: usize,
}

impl Chunk {
    /// The most data pages in one answer (256 KiB). Nothing urgent waits for more than this much of
    /// the stream at one place.
    pub const MAX_DATA_PAGES: usize = 64;

    /// The most runs in one answer.
    pub const MAX_RUNS: usize = 1024;

    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self {
            runs: Vec::new(),
            buffer: vec![0; Self::MAX_DATA_PAGES * PAGE_SIZE],
            used: 0,
        }
    }

    /// Makes it empty.
    pub fn clear(&mut self) {
        self.runs.clear();
        self.used = 0;
    }

    /// How it is now, to come back to.
    pub(crate) fn mark(&self) -> Mark {
        Mark {
            runs: self.runs.len(),
            last: self.runs.last().copied(),
            used: self.used,
        }
    }

    /// Takes out what was added since it was as in `mark`.
    pub(crate) fn go_back(&mut self, mark: &Mark) {
        self.runs.truncate(mark.runs);
        // It may have grown.
        if let (Some(last), Some(before)) = (self.runs.last_mut(), mark.last) {
            *last = before;
        }
        self.used = mark.used;
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

    /// How many more pages it takes, whatever they turn out to be.
    #[must_use]
    pub fn room(&self) -> usize {
        let runs = Self::MAX_RUNS - self.runs.len();
        runs.min(Self::MAX_DATA_PAGES - self.used / PAGE_SIZE)
    }

    /// Where the next pages are to be read to: [`room`](Self::room) pages.
    pub fn spare(&mut self) -> &mut [u8] {
        let end = self.used + self.room() * PAGE_SIZE;
        &mut self.buffer[self.used..end]
    }

    /// Adds `range`, whose contents are at the beginning of [`spare`](Self::spare). Pages that are
    /// all zero are added as such.
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
        let last = self.runs.last_mut().filter(|last| last.kind == kind);
        match last.and_then(|last| join(last.range, range).map(|both| (last, both))) {
            Some((last, both)) => last.range = both,
            None => self.runs.push(Run { range, kind }),
        }
    }
}

/// What a [`Chunk`] had in it at one time.
#[derive(Debug)]
pub(crate) struct Mark {
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
        vmem_pages::range(first, count).expect("a range")
    }

    #[test]
    fn zero_pages_lose_their_bytes_and_neighbours_join() {
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
    fn answer_with_more_or_less_bytes_than_it_says_is_none() {
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
    fn what_was_added_can_be_taken_out() {
        let mut chunk = Chunk::new();
        chunk.spare()[0] = 7;
        chunk.commit(range(0, 1));
        let (mark, runs) = (chunk.mark(), chunk.runs().to_vec());
        chunk.spare()[..2 * PAGE_SIZE].fill(8);
        chunk.commit(range(1, 2));
        chunk.push_zero(range(3, 1));
        chunk.go_back(&mark);
        assert_eq!((chunk.runs(), chunk.data().len()), (&runs[..], PAGE_SIZE));
    }

    #[test]
    fn chunk_is_bounded() {
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
