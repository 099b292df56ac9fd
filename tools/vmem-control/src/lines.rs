// SPDX-License-Identifier: GPL-2.0
//! Bytes that come, as lines with a bound.

/// What has come and is no whole line yet.
#[derive(Debug)]
pub(crate) struct Lines {
    longest: usize,
    received: Vec<u8>,
    /// In so many of them there is no end of a line.
    searched: usize,
}

/// A line is longer than it may be. With its beginning.
#[derive(Debug)]
pub(crate) struct TooLong(pub(crate) Vec<u8>);

impl Lines {
    /// Nothing yet. No line is longer than `longest` bytes, with its end.
    pub(crate) const fn new(longest: usize) -> Self {
        Self {
            longest,
            received: Vec::new(),
            searched: 0,
        }
    }

    /// These have come.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.received.extend_from_slice(bytes);
    }

    /// The next line, without its end, if it is there.
    pub(crate) fn next(&mut self) -> Result<Option<Vec<u8>>, TooLong> {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_and_in_order() {
        let mut lines = Lines::new(8);
        lines.push(b"one\ntw");
        assert_eq!(lines.next().expect("short"), Some(b"one".to_vec()));
        assert_eq!(lines.next().expect("short"), None);
        lines.push(b"o\n\n");
        assert_eq!(lines.next().expect("short"), Some(b"two".to_vec()));
        assert_eq!(lines.next().expect("short"), Some(Vec::new()));
        assert_eq!(lines.next().expect("short"), None);
    }

    #[test]
    fn longest_line_passes_and_a_longer_one_does_not() {
        let mut lines = Lines::new(8);
        lines.push(b"1234567\n");
        assert_eq!(lines.next().expect("8 bytes"), Some(b"1234567".to_vec()));
        lines.push(b"12345678\n");
        assert!(lines.next().is_err(), "9 bytes");
        lines.push(b"12345678");
        assert!(lines.next().is_err(), "without an end");
    }
}
