// SPDX-License-Identifier: GPL-2.0-or-later
//! The end of a program's log. The log can be long, and `logrotate` can truncate it at any moment.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// How much of the log is read.
const BYTES: u64 = 4096;

/// The end of what was written after the log had `since` bytes. Empty if the log cannot be read.
pub fn log_tail(path: &Path, since: u64) -> String {
    let read = || -> io::Result<String> {
        let mut log = File::open(path)?;
        let end = log.metadata()?.len();
        // The log was truncated meanwhile, so all of it is new.
        let since = if end < since { 0 } else { since };
        log.seek(SeekFrom::Start(since.max(end.saturating_sub(BYTES))))?;
        let mut text = Vec::new();
        log.take(BYTES).read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_the_end_of_the_new_part_is_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("log");
        assert_eq!(log_tail(&path, 0), "", "there is none");
        fs::write(&path, "before\nafter\n").expect("a file");
        assert_eq!(log_tail(&path, 7), "after\n");
        assert_eq!(log_tail(&path, 13), "");
        assert_eq!(log_tail(&path, 1000), "before\nafter\n", "it was cut off");
        fs::write(&path, format!("{}\nlast\n", "x".repeat(1 << 20))).expect("a file");
        let text = log_tail(&path, 7);
        assert!(text.len() as u64 == BYTES && text.ends_with("x\nlast\n"));
    }
}
