// SPDX-License-Identifier: GPL-2.0-or-later
//! The memory of this host.

use std::io;

const MEMINFO: &str = "/proc/meminfo";

/// Bytes of memory that this host can give to new regions and programs without swapping: `MemAvailable` of `/proc/meminfo`, an estimate of
/// the kernel.
///
/// # Errors
///
/// `/proc/meminfo` cannot be read, or has no such line.
pub fn available_memory() -> io::Result<u64> {
    let failed = |why: String| io::Error::other(format!("cannot read the available memory from {MEMINFO}: {why}"));
    let text = std::fs::read_to_string(MEMINFO).map_err(|error| failed(error.to_string()))?;
    available(&text).ok_or_else(|| failed("it has no MemAvailable".to_owned()))
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim()
        .strip_suffix(" kB")?
        .trim_end()
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_in_bytes_and_none_without_its_line_or_unit() {
        assert_eq!(available("MemTotal: 9 kB\nMemAvailable:   16 kB\n"), Some(16384));
        assert_eq!(available("MemTotal: 9 kB\n"), None);
        assert_eq!(available("MemAvailable: 16\n"), None);
        assert_eq!(available("MemAvailable: 18446744073709551615 kB\n"), None);
        assert!(available_memory().is_ok_and(|bytes| bytes > 0));
    }
}
