// SPDX-License-Identifier: GPL-2.0-or-later
//! Over which connection of the rounds the pages of a chunk are sent.
//!
//! A page that is sent again must not be overtaken by its older contents. Within a connection nothing is overtaken. So all contents of a page
//! are sent over one connection: that which sent pages of the same *chunk* first.

use vmem::PageRange;

use crate::export::{Export, ExportRanges};

/// Pages of a chunk: those of a huge page, as in the order in which rounds go over memory.
const CHUNK_PAGES: u64 = 512;

/// The connection of each chunk. It takes a byte for each chunk of the exports that pages were sent of (512 bytes for 1 GiB).
#[derive(Debug)]
pub(crate) struct ChunkOwners {
    /// Chunks of each export.
    lengths: Vec<usize>,
    /// By export and chunk: the number of the connection and one more; 0 if no page of the chunk was sent.
    owners: Vec<Vec<u8>>,
}

impl ChunkOwners {
    pub(crate) fn new(exports: &[Export]) -> Self {
        let length = |export: &Export| export.pages.count().div_ceil(CHUNK_PAGES) as usize;
        Self {
            lengths: exports.iter().map(length).collect(),
            owners: vec![Vec::new(); exports.len()],
        }
    }

    /// The connection that the pages of a chunk are sent over: `connection`, if no page of it was sent before. `None` if there is no such chunk.
    fn claim(&mut self, export: usize, chunk: u64, connection: u8) -> Option<u8> {
        let (length, owners) = (self.lengths.get(export)?, self.owners.get_mut(export)?);
        if owners.is_empty() {
            *owners = vec![0; *length];
        }
        let owner = owners.get_mut(usize::try_from(chunk).ok()?)?;
        if *owner == 0 {
            *owner = connection + 1;
        }
        Some(*owner - 1)
    }

    /// Divides pages among the connections that they are sent over; those of new chunks are for `connection`.
    pub(crate) fn divide(&mut self, pages: &ExportRanges, connection: u8) -> Vec<(u8, ExportRanges)> {
        let mut parts: Vec<(u8, ExportRanges)> = Vec::new();
        for range in &pages.ranges {
            for (chunk, piece) in chunks(*range) {
                let owner = self.claim(pages.export, chunk, connection).unwrap_or(connection);
                let known = parts.iter().position(|(of, _)| *of == owner);
                let at = known.unwrap_or_else(|| {
                    let (export, ranges) = (pages.export, Vec::new());
                    parts.push((owner, ExportRanges { export, ranges }));
                    parts.len() - 1
                });
                piece.append_to(&mut parts[at].1.ranges);
            }
        }
        parts
    }

    /// Notes that pages came over `connection`. Returns the first page of the first chunk whose pages come over another one.
    pub(crate) fn accept(&mut self, export: usize, range: PageRange, connection: u8) -> Result<(), u64> {
        for (chunk, piece) in chunks(range) {
            if self.claim(export, chunk, connection) != Some(connection) {
                return Err(piece.first().get());
            }
        }
        Ok(())
    }
}

/// The chunks of a range, each with its part of it.
fn chunks(range: PageRange) -> impl Iterator<Item = (u64, PageRange)> {
    let mut rest = Some(range);
    std::iter::from_fn(move || {
        let first = rest?.first().get();
        let (piece, after) = rest?.split_at(CHUNK_PAGES - first % CHUNK_PAGES);
        rest = after;
        piece.map(|piece| (first / CHUNK_PAGES, piece))
    })
}

/// The chunks of ranges, for a check whether two sets of pages can overlap.
pub(crate) fn chunks_of(ranges: &[PageRange]) -> impl Iterator<Item = u64> {
    ranges.iter().flat_map(|range| chunks(*range)).map(|(chunk, _)| chunk)
}

#[cfg(test)]
mod tests {
    use vmem::Name;

    use super::*;

    fn run(first: u64, count: u64) -> PageRange {
        PageRange::from_pgoff(first, count).expect("a range")
    }

    fn owners() -> ChunkOwners {
        let export = |name: &str, pages| Export {
            name: Name::new(name).expect("a name"),
            pages: run(0, pages),
            padding: 0,
            identity: 0,
        };
        ChunkOwners::new(&[export("ram", 2000), export("video", 10)])
    }

    fn plain(parts: Vec<(u8, ExportRanges)>) -> Vec<(u8, Vec<(u64, u64)>)> {
        let ranges = |pages: ExportRanges| {
            pages
                .ranges
                .iter()
                .map(|range| (range.first().get(), range.count()))
                .collect()
        };
        parts.into_iter().map(|(owner, pages)| (owner, ranges(pages))).collect()
    }

    #[test]
    fn pages_of_a_chunk_stay_with_the_connection_that_had_the_first() {
        let mut owners = owners();
        let mut divide = |ranges: &[PageRange], connection| {
            let ranges = ranges.to_vec();
            plain(owners.divide(&ExportRanges { export: 0, ranges }, connection))
        };
        assert_eq!(divide(&[run(500, 5)], 1), [(1, vec![(500, 5)])]);
        assert_eq!(divide(&[run(1023, 2)], 2), [(2, vec![(1023, 2)])], "two chunks");
        assert_eq!(
            divide(&[run(0, 600), run(1999, 1), run(511, 1)], 0),
            [(1, vec![(0, 512), (511, 1)]), (2, vec![(512, 88)]), (0, vec![(1999, 1)])]
        );
        let ranges = vec![run(0, 1)];
        let other = owners.divide(&ExportRanges { export: 1, ranges }, 3);
        assert_eq!(plain(other), [(3, vec![(0, 1)])], "another export");
    }

    #[test]
    fn page_over_another_connection_is_found() {
        let mut owners = owners();
        assert_eq!(owners.accept(0, run(10, 600), 0), Ok(()));
        assert_eq!(owners.accept(0, run(20, 1), 0), Ok(()));
        assert_eq!(owners.accept(0, run(0, 1), 1), Err(0));
        assert_eq!(owners.accept(0, run(1024, 100), 1), Ok(()));
        assert_eq!(owners.accept(0, run(1000, 100), 1), Err(1000));
        assert_eq!(owners.accept(0, run(1000, 100), 0), Err(1024));
        assert_eq!(owners.accept(2, run(0, 1), 0), Err(0), "no such export");
        assert_eq!(owners.accept(0, run(5000, 1), 0), Err(5000), "no such chunk");
    }
}
