// SPDX-License-Identifier: GPL-2.0-or-later
//! Leaves: where the pages of 2 MiB of memory are.

use crate::encoding::{Cursor, Malformed, put_varint, put_zigzag};

/// Pages of a leaf.
pub(crate) const LEAF_PAGES: u64 = 512;

/// What is known of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Entry {
    Zero,
    /// The page `number` of the pack with this ordinal in the checkpoint's table of packs.
    Data {
        pack: u32,
        number: u32,
    },
    Unreadable,
    Absent,
}

/// The pages of a leaf: always [`LEAF_PAGES`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leaf(pub(crate) Vec<Entry>);

impl Leaf {
    pub(crate) fn zero() -> Self {
        Self(vec![Entry::Zero; LEAF_PAGES as usize])
    }

    pub(crate) fn is_zero(&self) -> bool {
        self.0.iter().all(|entry| *entry == Entry::Zero)
    }

    /// The leaf as runs. A run begins with a byte: the kind in the lower two bits, and in the upper six the pages less one, or 63 if a
    /// number with the pages beyond 64 follows. A run of data has two signed numbers more: the pack's ordinal less that of the last run of
    /// data, and the first page's number less that of the page after the last one of the same pack in this leaf.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut expect = Expect::default();
        let mut at = 0;
        while let Some(first) = self.0.get(at) {
            let mut count = 1;
            while self
                .0
                .get(at + count)
                .is_some_and(|next| *next == after(*first, count as u32))
            {
                count += 1;
            }
            let kind = match first {
                Entry::Zero => 0,
                Entry::Data { .. } => 1,
                Entry::Unreadable => 2,
                Entry::Absent => 3,
            };
            out.push(kind | (((count - 1).min(63) as u8) << 2));
            if count > 63 {
                put_varint(&mut out, count as u64 - 64);
            }
            if let Entry::Data { pack, number } = *first {
                put_zigzag(&mut out, i64::from(pack) - i64::from(expect.pack));
                put_zigzag(&mut out, i64::from(number) - i64::from(expect.number(pack)));
                expect.set(pack, number + count as u32);
            }
            at += count;
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut cursor = Cursor::new(bytes);
        let mut entries = Vec::with_capacity(LEAF_PAGES as usize);
        let mut expect = Expect::default();
        while entries.len() < LEAF_PAGES as usize {
            let byte = cursor.u8()?;
            let count = match byte >> 2 {
                63 => cursor.varint32()?.saturating_add(64),
                short => u32::from(short) + 1,
            };
            if u64::from(count) > LEAF_PAGES - entries.len() as u64 {
                return Err(Malformed("a run goes beyond the leaf's pages"));
            }
            let first = match byte & 3 {
                0 => Entry::Zero,
                1 => {
                    let pack = plus(expect.pack, cursor.zigzag()?)?;
                    let number = plus(expect.number(pack), cursor.zigzag()?)?;
                    let end = number
                        .checked_add(count)
                        .ok_or(Malformed("a page's number has more than 32 bits"))?;
                    expect.set(pack, end);
                    Entry::Data { pack, number }
                }
                2 => Entry::Unreadable,
                _ => Entry::Absent,
            };
            entries.extend((0..count).map(|page| after(first, page)));
        }
        cursor.end()?;
        Ok(Self(entries))
    }
}

/// The entry `pages` after `first` in the same run.
fn after(first: Entry, pages: u32) -> Entry {
    match first {
        Entry::Data { pack, number } => Entry::Data {
            pack,
            number: number.wrapping_add(pages),
        },
        other => other,
    }
}

fn plus(base: u32, change: i64) -> Result<u32, Malformed> {
    i64::from(base)
        .checked_add(change)
        .and_then(|sum| u32::try_from(sum).ok())
        .ok_or(Malformed("a reference to a page has more than 32 bits"))
}

/// What the next run of data most likely begins with.
#[derive(Debug, Default)]
struct Expect {
    pack: u32,
    /// For each pack of the leaf, the number after its last run. Few packs: a leaf has at most 512 runs.
    numbers: Vec<(u32, u32)>,
}

impl Expect {
    fn number(&self, pack: u32) -> u32 {
        self.numbers
            .iter()
            .rev()
            .find(|(known, _)| *known == pack)
            .map_or(0, |(_, number)| *number)
    }

    fn set(&mut self, pack: u32, number: u32) {
        self.pack = pack;
        match self.numbers.iter_mut().find(|(known, _)| *known == pack) {
            Some((_, known)) => *known = number,
            None => self.numbers.push((pack, number)),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry() -> impl Strategy<Value = Entry> {
        prop_oneof![
            Just(Entry::Zero),
            Just(Entry::Unreadable),
            Just(Entry::Absent),
            (0..3_u32, 0..40_u32).prop_map(|(pack, number)| Entry::Data { pack, number }),
            (any::<u32>(), any::<u32>()).prop_map(|(pack, number)| Entry::Data {
                pack,
                number: number / 2
            }),
        ]
    }

    pub(crate) fn leaf() -> impl Strategy<Value = Leaf> {
        proptest::collection::vec((entry(), 1..200_u32), 1..40).prop_map(|runs| {
            let mut entries: Vec<Entry> = runs
                .iter()
                .flat_map(|(first, count)| (0..*count).map(|page| after(*first, page)))
                .collect();
            entries.resize(LEAF_PAGES as usize, Entry::Zero);
            Leaf(entries)
        })
    }

    proptest! {
        #[test]
        fn leaf_comes_back(leaf in leaf()) {
            prop_assert_eq!(Leaf::decode(&leaf.encode()), Ok(leaf));
        }

        #[test]
        fn any_bytes_are_a_leaf_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(leaf) = Leaf::decode(&bytes) {
                prop_assert_eq!(leaf.0.len() as u64, LEAF_PAGES);
            }
        }

        #[test]
        fn changed_leaf_has_as_many_pages_or_is_an_error(leaf in leaf(), at: prop::sample::Index, to: u8) {
            let mut bytes = leaf.encode();
            let at = at.index(bytes.len());
            bytes[at] = to;
            if let Ok(leaf) = Leaf::decode(&bytes) {
                prop_assert_eq!(leaf.0.len() as u64, LEAF_PAGES);
            }
        }
    }

    #[test]
    fn pages_in_a_row_take_few_bytes() {
        let row = |first| {
            (0..LEAF_PAGES as u32).map(move |page| Entry::Data {
                pack: 0,
                number: first + page,
            })
        };
        assert!(Leaf(row(0).collect()).encode().len() <= 6);
        assert_eq!(Leaf::zero().encode().len(), 3);
        // An increment of single pages, in order: three bytes a page, and one for the gap.
        let mixed = (0..LEAF_PAGES as u32).map(|page| match page % 2 {
            0 => Entry::Data {
                pack: 1,
                number: page / 2,
            },
            _ => Entry::Zero,
        });
        assert!(Leaf(mixed.collect()).encode().len() <= 4 * 256 + 4);
    }
}
