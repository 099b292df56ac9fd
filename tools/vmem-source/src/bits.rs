// SPDX-License-Identifier: GPL-2.0
//! A bit for each page, lowest first, in bytes: as records of released pages have them.

use vmem::PageRange;

use crate::page::{end, range};

/// Sets the bits of `pages`; those beyond the end of the map are left out.
pub(crate) fn set(map: &mut [u8], pages: PageRange) {
    change(map, pages, |byte, mask| *byte |= mask, 0xff);
}

/// Clears the bits of `pages`.
pub(crate) fn clear(map: &mut [u8], pages: PageRange) {
    change(map, pages, |byte, mask| *byte &= !mask, 0);
}

/// Whether the bit of the page with this offset is set.
pub(crate) fn is_set(map: &[u8], page: u64) -> bool {
    let byte = usize::try_from(page / 8).ok().and_then(|index| map.get(index));
    byte.is_some_and(|byte| byte & (1 << (page % 8)) != 0)
}

/// The runs of `pages` whose bits are not set.
pub(crate) fn unset_runs(map: &[u8], pages: PageRange) -> Vec<PageRange> {
    let mut runs = Vec::new();
    let (mut page, last) = (pages.first().get(), end(pages));
    while page < last {
        let first = page;
        while page < last && !is_set(map, page) {
            page = next(map, page, last, 0);
        }
        runs.extend(range(first, page - first));
        while page < last && is_set(map, page) {
            page = next(map, page, last, 0xff);
        }
    }
    runs
}

/// The page after `page`, or after its byte if that is all alike.
fn next(map: &[u8], page: u64, last: u64, alike: u8) -> u64 {
    match map.get((page / 8) as usize) {
        Some(byte) if page % 8 == 0 && *byte == alike => (page + 8).min(last),
        _ => page + 1,
    }
}

fn change(map: &mut [u8], pages: PageRange, bits: impl Fn(&mut u8, u8), whole: u8) {
    let (first, last) = (pages.first().get(), end(pages) - 1);
    // The bits from a page on, and up to one, in its byte.
    let (from, to) = (0xff_u8 << (first % 8), 0xff_u8 >> (7 - last % 8));
    let length = map.len();
    let bytes = (first / 8) as usize..=(last / 8) as usize;
    let Some(bytes) = map.get_mut(*bytes.start()..length.min(bytes.end() + 1)) else {
        return;
    };
    match bytes {
        [] => {}
        [only] if first / 8 == last / 8 => bits(only, from & to),
        [head, rest @ ..] => {
            bits(head, from);
            let whole_bytes = (last / 8 - first / 8 - 1) as usize;
            let middle = whole_bytes.min(rest.len());
            rest[..middle].fill(whole);
            rest[middle..].iter_mut().for_each(|byte| bits(byte, to));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whole_bytes_are_what_single_bits_would_be(
            changes in prop::collection::vec((0_u64..100, 1_u64..60, any::<bool>()), 1..20)
        ) {
            let (mut map, mut naive) = (vec![0_u8; 12], vec![false; 96]);
            for (first, count, on) in changes {
                let pages = range(first, count).expect("a range");
                let absent = unset_runs(&map, pages);
                let expected: Vec<u64> = (first..first + count)
                    .filter(|page| !naive.get(*page as usize).copied().unwrap_or(false))
                    .collect();
                let found: Vec<u64> = absent.iter().flat_map(|run| run.first().get()..end(*run)).collect();
                prop_assert_eq!(found, expected);
                if on { set(&mut map, pages) } else { clear(&mut map, pages) }
                naive.iter_mut().skip(first as usize).take(count as usize).for_each(|bit| *bit = on);
                let bits: Vec<bool> = (0..96).map(|page| is_set(&map, page)).collect();
                prop_assert_eq!(&bits, &naive);
            }
        }
    }
}
