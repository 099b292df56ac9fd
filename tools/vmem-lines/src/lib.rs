// SPDX-License-Identifier: GPL-2.0-or-later
//! Bytes that arrive, as lines of a bounded length. The caller reads the bytes, in its own way, and pushes them.
//!
//! ```
//! use vmem_lines::{Lines, TooLong};
//!
//! let mut lines = Lines::new(8);
//! lines.push(b"one\ntw");
//! assert_eq!(lines.next(), Ok(Some(b"one".to_vec())));
//! assert_eq!(lines.next(), Ok(None));
//! lines.push(b"o and more");
//! assert_eq!(lines.next(), Err(TooLong(b"two and more".to_vec())));
//! ```
#![forbid(unsafe_code)]

/// Splits bytes into lines. Keeps no more than the longest line and what was pushed last, if the caller takes all lines after each push.
#[derive(Debug)]
pub struct Lines {
    longest: usize,
    /// Bytes after the last line that was taken.
    received: Vec<u8>,
    /// Number of those bytes that are known to have no end of line.
    searched: usize,
}

/// A line is longer than a line may be. Has the bytes that have arrived of it, and of what follows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TooLong(pub Vec<u8>);

impl Lines {
    /// An empty buffer. A line has at most `longest` bytes, with its end.
    #[must_use]
    pub const fn new(longest: usize) -> Self {
        Self {
            longest,
            received: Vec::new(),
            searched: 0,
        }
    }

    /// Adds bytes that have arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.received.extend_from_slice(bytes);
    }

    /// Takes the next line, without its end; `None` if no whole line has arrived.
    ///
    /// # Errors
    ///
    /// [`TooLong`]. The buffer is empty afterwards.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Vec<u8>>, TooLong> {
        let length = self.received.iter().skip(self.searched).position(|byte| *byte == b'\n');
        let length = length.map(|length| self.searched + length);
        if length.unwrap_or(self.received.len()) >= self.longest {
            self.searched = 0;
            return Err(TooLong(std::mem::take(&mut self.received)));
        }
        let Some(end) = length else {
            self.searched = self.received.len();
            return Ok(None);
        };
        self.searched = 0;
        let mut line: Vec<u8> = self.received.drain(..=end).collect();
        line.pop();
        Ok(Some(line))
    }

    /// The bytes after the last line that was taken.
    #[must_use]
    pub fn into_rest(self) -> Vec<u8> {
        self.received
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_and_in_order() {
        let mut lines = Lines::new(8);
        lines.push(b"one\ntw");
        assert_eq!(lines.next(), Ok(Some(b"one".to_vec())));
        assert_eq!(lines.next(), Ok(None));
        lines.push(b"o\n\nrest");
        assert_eq!(lines.next(), Ok(Some(b"two".to_vec())));
        assert_eq!(lines.next(), Ok(Some(Vec::new())));
        assert_eq!(lines.next(), Ok(None));
        assert_eq!(lines.into_rest(), b"rest");
    }

    #[test]
    fn longest_line_passes_and_a_longer_one_does_not() {
        let mut lines = Lines::new(8);
        lines.push(b"1234567\n");
        assert_eq!(lines.next(), Ok(Some(b"1234567".to_vec())));
        lines.push(b"12345678\n");
        assert!(lines.next().is_err(), "9 bytes");
        lines.push(b"12345678");
        assert!(lines.next().is_err(), "without an end");
        assert!(lines.into_rest().is_empty(), "nothing of it is kept");
    }
}
