// SPDX-License-Identifier: GPL-2.0-or-later
//! Names of regions.

use std::ffi::c_char;
use std::fmt;
use std::path::{Path, PathBuf};

use vmem_sys::VMEM_NAME_MAX;

use crate::Error;

/// The directory of the nodes of regions and of the control device.
pub const DIRECTORY: &str = "/dev/vmem";

/// Where the file system of regions is mounted unless it is mounted elsewhere: a region is the file NAME in it.
pub const FILES_DIRECTORY: &str = "/run/vmem";

/// The name of the control device, which no region can have.
pub(crate) const CONTROL: &str = "control";

/// The path of the node of the region with this name.
pub fn node_path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// The name of a region: 1 to 31 of `A-Z a-z 0-9 . _ -`, not beginning with a dot, not `control`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// Checks `name`.
    ///
    /// # Errors
    ///
    /// [`Error::Name`].
    pub fn new(name: &str) -> Result<Self, Error> {
        let room = VMEM_NAME_MAX as usize - 1;
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if name.is_empty() || name.len() > room || name.starts_with('.') || name == CONTROL || !name.bytes().all(allowed) {
            return Err(Error::Name { name: name.into() });
        }
        Ok(Self(name.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The region's node.
    pub fn path(&self) -> PathBuf {
        node_path(&self.0)
    }

    /// The name that a system call gives. `None` if it is empty, or no name.
    pub(crate) fn from_sys(padded: &[c_char; VMEM_NAME_MAX as usize]) -> Option<Self> {
        let text = padded.iter().take_while(|byte| **byte != 0).map(|byte| *byte as u8).collect();
        Self::new(&String::from_utf8(text).ok()?).ok()
    }

    /// The name for a system call, padded with NUL bytes.
    pub(crate) fn to_sys(&self) -> [c_char; VMEM_NAME_MAX as usize] {
        let mut padded = [0; VMEM_NAME_MAX as usize];
        for (to, from) in padded.iter_mut().zip(self.0.bytes()) {
            *to = from as c_char;
        }
        padded
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_kernel_accepts_are_valid() {
        for name in ["a", "guest0", "A.b_c-9", "-", "_", &"x".repeat(31), "controls", "Control"] {
            assert!(Name::new(name).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn names_with_slashes_or_leading_dots_are_refused() {
        for name in [
            "",
            ".",
            "..",
            ".a",
            "a/b",
            "../x",
            "control",
            "a b",
            "ä",
            "a\0",
            "a\n",
            &"x".repeat(32),
        ] {
            assert!(Name::new(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn name_is_padded_with_nul() {
        let padded = Name::new("ab").expect("a name").to_sys();
        assert_eq!(padded[..3], [b'a' as c_char, b'b' as c_char, 0]);
        assert!(padded[2..].iter().all(|byte| *byte == 0));
    }
}
