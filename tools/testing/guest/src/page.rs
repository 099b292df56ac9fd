// SPDX-License-Identifier: GPL-2.0-or-later
//! A page of which each word is known: from the page's number and how often it has been written.

/// Words in a page.
const WORDS: usize = 512;
/// Its bytes.
pub(crate) const PAGE_SIZE: usize = 4096;

/// A page of the worker's memory. The first word is its number, the second its generation, the others follow from both.
#[repr(C, align(4096))]
#[derive(Clone)]
pub(crate) struct Page([u64; WORDS]);

impl Page {
    /// As it is before its first writing.
    pub(crate) fn new(number: usize) -> Self {
        let mut page = Self([0; WORDS]);
        page.write(number, 0);
        page
    }

    /// Reads one word of it: the touch that may have to wait.
    pub(crate) fn touch(&self) -> u64 {
        std::hint::black_box(&self.0)[0]
    }

    /// Writes all of it.
    pub(crate) fn write(&mut self, number: usize, generation: u64) {
        for (word, value) in self.0.iter_mut().zip(contents(number, generation)) {
            *word = value;
        }
    }

    /// What is wrong with it, if this is to be its generation.
    pub(crate) fn check(&self, number: usize, generation: u64) -> Result<(), String> {
        let expected = contents(number, generation);
        match self
            .0
            .iter()
            .zip(expected)
            .enumerate()
            .find(|(_, (found, expected))| *found != expected)
        {
            None => Ok(()),
            Some((word, (found, expected))) => Err(format!(
                "page {number} of generation {generation}: word {word} is {found:#x} and not {expected:#x}; it says that it is page {} of generation {}",
                self.0[0], self.0[1]
            )),
        }
    }
}

/// A page as bytes.
pub(crate) fn bytes(number: usize, generation: u64) -> Vec<u8> {
    contents(number, generation).flat_map(u64::to_le_bytes).collect()
}

fn contents(number: usize, generation: u64) -> impl Iterator<Item = u64> {
    let number = number as u64;
    // Never zero for a page in use: a zero page is a wrong page, whatever its number.
    let mut state = ((number << 32) ^ generation).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let rest = std::iter::repeat_with(move || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        state
    });
    [number, generation].into_iter().chain(rest.take(WORDS - 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_is_not_as_written_is_found() {
        let mut page = Page::new(7);
        assert_eq!(page.check(7, 0), Ok(()));
        assert!(page.check(8, 0).is_err(), "another page");
        assert!(page.check(7, 1).is_err(), "an old page");
        page.0[511] ^= 1;
        assert!(page.check(7, 0).is_err(), "one wrong bit");
        assert!(Page([0; WORDS]).check(0, 0).is_err(), "a zero page");
    }
}
