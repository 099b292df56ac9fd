// SPDX-License-Identifier: GPL-2.0-or-later
//! Which bytes of a read have come.

use std::ops::Range;

/// The most pieces that do not touch each other. The largest reads of this client have 768 sectors of 512 bytes.
const MAX_PIECES: usize = 1024;

/// Ranges of bytes, in ascending order, none of which touches the next one.
#[derive(Debug, Default)]
pub(super) struct Covered(Vec<Range<u64>>);

impl Covered {
    /// Adds a range. [`None`] if a byte of it has come already, or if there are too many pieces.
    pub(super) fn insert(&mut self, range: Range<u64>) -> Option<()> {
        let at = self.0.partition_point(|piece| piece.end <= range.start);
        let joins_left = at > 0 && self.0.get(at - 1).is_some_and(|left| left.end == range.start);
        let right = self.0.get(at);
        if right.is_some_and(|right| right.start < range.end) {
            return None;
        }
        let joins_right = right.is_some_and(|right| right.start == range.end);
        match (joins_left, joins_right) {
            (true, true) => {
                let end = self.0.remove(at).end;
                self.0.get_mut(at - 1)?.end = end;
            }
            (true, false) => self.0.get_mut(at - 1)?.end = range.end,
            (false, true) => self.0.get_mut(at)?.start = range.start,
            (false, false) if self.0.len() >= MAX_PIECES => return None,
            (false, false) => self.0.insert(at, range),
        }
        Some(())
    }

    /// Whether the bytes that have come are all of `range`, and no others.
    pub(super) fn is(&self, range: &Range<u64>) -> bool {
        matches!(&self.0[..], [only] if only == range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_in_any_order_become_one() {
        let mut covered = Covered::default();
        for piece in [4..5, 0..2, 7..9, 2..4, 5..7] {
            assert!(!covered.is(&(0..9)));
            assert_eq!(covered.insert(piece), Some(()));
        }
        assert!(covered.is(&(0..9)) && !covered.is(&(0..10)));
    }

    #[test]
    fn byte_that_has_come_is_refused() {
        for (first, second) in [(2..5, 4..6), (2..5, 0..3), (2..5, 3..4), (2..5, 0..9), (2..5, 2..5)] {
            let mut covered = Covered::default();
            assert_eq!(covered.insert(first), Some(()));
            assert_eq!(covered.insert(second.clone()), None, "{second:?}");
        }
    }

    #[test]
    fn scattered_pieces_are_bounded() {
        let mut covered = Covered::default();
        let inserted = (0..10_000_u64).map_while(|at| covered.insert(2 * at..2 * at + 1)).count();
        assert_eq!(inserted, MAX_PIECES);
    }
}
