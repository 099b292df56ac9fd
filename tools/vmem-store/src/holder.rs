// SPDX-License-Identifier: GPL-2.0-or-later
//! The process that holds a lease: for a person to find, and for a program of the same host to see that it has ended.

use std::fmt::{self, Display, Formatter};
use std::fs;

use serde::{Deserialize, Serialize};
use vmem_process::{Identity, Process, printable};

/// A process of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HolderProcess {
    /// The name of the host, for a person to read.
    pub(crate) host: String,
    /// The namespaces in which the number of the process, and the time of its start, mean what they say.
    namespaces: String,
    /// The process.
    pub(crate) process: Identity,
}

impl HolderProcess {
    /// This process. `None` if `/proc` does not say which it is.
    pub(crate) fn own() -> Option<Self> {
        Some(Self {
            host: fs::read_to_string("/proc/sys/kernel/hostname").ok()?.trim().to_owned(),
            namespaces: namespaces()?,
            process: Identity::own().ok()?,
        })
    }

    #[cfg(test)]
    pub(crate) fn of(process: Identity) -> Self {
        let own = Self::own().expect("this process");
        Self { process, ..own }
    }

    /// Whether it is known that it has ended: a process of this boot of this host, as far as this process sees it. Of all others, nothing is known.
    pub(crate) fn has_ended(&self) -> bool {
        namespaces().is_some_and(|own| own == self.namespaces) && Process::has_ended(&self.process)
    }
}

/// The namespaces of this process, for processes and for time. `None` if `/proc` is that of other processes: their numbers mean nothing here.
fn namespaces() -> Option<String> {
    let number: u32 = fs::read_link("/proc/self").ok()?.to_str()?.parse().ok()?;
    let link = |name: &str| fs::read_link(format!("/proc/self/ns/{name}")).map(|link| link.display().to_string());
    // A kernel can be without those for time.
    let both = format!("{} {}", link("pid").ok()?, link("time").unwrap_or_default());
    (number == std::process::id()).then_some(both)
}

/// Who reads a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reader {
    /// What it says of itself.
    pub holder: String,
    /// The name of its host, and the number of its process there, if it says so.
    pub process: Option<(String, i32)>,
    /// For how many seconds it has had its lease, if it says so.
    pub held: Option<u64>,
    /// In how many seconds its lease ends if it is not renewed.
    pub left: u64,
    /// Whether it is known that its process has ended.
    pub has_ended: bool,
}

impl Display for Reader {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} (", printable(&self.holder))?;
        if let Some((host, number)) = &self.process {
            write!(f, "process {number} on host {}, ", printable(host))?;
        }
        if let Some(held) = self.held {
            write!(f, "since {held} s ago; ")?;
        }
        write!(f, "its lease ends in {} s unless it is renewed)", self.left)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn only_a_process_that_can_be_seen_here_is_known_to_have_ended() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let own = HolderProcess::own().unwrap();
        assert!(!own.has_ended());
        let holder = HolderProcess::of(Process::of_child(&child).unwrap().identity().unwrap());
        assert!(!holder.has_ended());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(holder.has_ended());
        let of_other_namespaces = HolderProcess {
            namespaces: "pid:[1] time:[1]".to_owned(),
            ..holder.clone()
        };
        let mut of_other_boot = holder;
        of_other_boot.process.boot = "another".to_owned();
        assert!(!of_other_namespaces.has_ended() && !of_other_boot.has_ended());
    }
}
