// SPDX-License-Identifier: GPL-2.0-or-later
//! By what the files of an identity are seen to have changed.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::configs::FILES;

/// What a file is and when it was changed. Files that are looked at through a symbolic link are those at its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    written: (i64, i64),
    /// A change of the mode changes only this: a key can become readable.
    changed: (i64, i64),
}

/// The stamps of all files of an identity.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stamps([Stamp; FILES.len()]);

impl Stamps {
    /// Looks at the files in `directory`. The error names the file.
    pub(crate) fn of(directory: &Path) -> Result<Self, (PathBuf, io::Error)> {
        let stamp = |name| {
            let path = directory.join(name);
            let metadata = path.metadata().map_err(|error| (path, error))?;
            Ok(Stamp {
                device: metadata.dev(),
                inode: metadata.ino(),
                size: metadata.size(),
                written: (metadata.mtime(), metadata.mtime_nsec()),
                changed: (metadata.ctime(), metadata.ctime_nsec()),
            })
        };
        let [authority, certificate, key] = FILES;
        Ok(Self([stamp(authority)?, stamp(certificate)?, stamp(key)?]))
    }
}
