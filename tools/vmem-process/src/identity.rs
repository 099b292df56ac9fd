// SPDX-License-Identifier: GPL-2.0-or-later
//! What tells a process from all others of a machine.

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

/// What tells a process from all others of this machine, for programs that come later. Its number alone does not: the kernel gives it to
/// another process once its owner is gone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Identity {
    /// Its number.
    pub pid: i32,
    /// When it was started, in the kernel's clock ticks since the boot.
    pub start: u64,
    /// Which boot.
    pub boot: String,
}

impl Display for Identity {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.pid, self.start)
    }
}

impl Identity {
    /// That of this process.
    ///
    /// # Errors
    ///
    /// `/proc` cannot be read.
    pub fn own() -> io::Result<Self> {
        let pid = i32::try_from(std::process::id()).map_err(io::Error::other)?;
        Self::of(pid)
    }

    /// That of the process that has this number now. Whoever does not hold the process has to make sure that it still lives.
    ///
    /// # Errors
    ///
    /// There is none, or `/proc` cannot be read.
    pub fn of(pid: i32) -> io::Result<Self> {
        let stat = fs::read(format!("/proc/{pid}/stat"))?;
        let start = start_time(&String::from_utf8_lossy(&stat)).ok_or(io::ErrorKind::InvalidData)?;
        let boot = boot_id()?;
        Ok(Self { pid, start, boot })
    }
}

/// What tells this boot of this machine from all others.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// The 22nd field of a line of /proc/PID/stat. The second one, the program's name in parentheses, may have any character in it.
fn start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_is_found_behind_any_name() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(start_time(&format!("812 (a) b) (c) {rest}")), Some(4711));
        assert_eq!(start_time("812 (vmemd"), None);
        assert_eq!(start_time("812 (vmemd) S 1 2"), None);
    }

    #[test]
    fn own_identity_is_that_of_its_number() {
        let own = Identity::own().expect("this process");
        assert_eq!(Identity::of(own.pid).expect("this process"), own);
        assert!(Identity::of(0).is_err());
    }
}
