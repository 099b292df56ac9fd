// SPDX-License-Identifier: GPL-2.0-or-later
//! Which region a path is of: a node, or a file of the file system `vmem`, at whatever directory that is mounted.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use vmem_mapping::Access;

use crate::file_kind::{FileKind, file_region};
use crate::{DIRECTORY, Info, Name, node};

/// The number of the region that a program gets which opens `path`: its node, or its file. `None` if nothing else is there than other files, or
/// the caller may not look.
///
/// The file need not be opened for it, so that who may not open it knows as well.
pub fn region_at(path: impl AsRef<Path>) -> Option<u64> {
    let path = path.as_ref();
    match FileKind::at(path).ok()? {
        FileKind::File(id) => Some(id),
        FileKind::Node => region_of(node::open(path, Access::ReadOnly).ok()?.as_fd()),
        FileKind::Call | FileKind::Other(_) => None,
    }
}

/// The number of the region of a descriptor: of a node, of a file, or one that a call has given.
pub fn region_of(fd: BorrowedFd<'_>) -> Option<u64> {
    match FileKind::of(fd).ok()? {
        FileKind::File(id) => Some(id),
        FileKind::Node | FileKind::Call => Info::get(fd).ok().map(|info| info.id),
        FileKind::Other(_) => None,
    }
}

/// The name of the region at `path`, which is its node, also one that is not there, or its file in a directory where the file system is mounted.
pub fn region_name(path: impl AsRef<Path>) -> Option<Name> {
    let path = path.as_ref();
    let name = |path: &Path| Name::new(path.file_name()?.to_str()?).ok();
    if path.parent() == Some(Path::new(DIRECTORY)) {
        return name(path);
    }
    let id = file_region(path).ok()??;
    // A single file can be bound to a place with another name.
    let found = name(&path.canonicalize().ok()?)?;
    (region_at(found.path()) == Some(id)).then_some(found)
}

/// The node of the region whose file is at `path`, if the region has one there.
pub fn region_node(path: impl AsRef<Path>) -> Option<PathBuf> {
    let path = path.as_ref();
    let id = file_region(path).ok()??;
    let node = region_name(path)?.path();
    (region_at(&node) == Some(id)).then_some(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_files_are_no_regions() {
        for path in [
            "/proc/self/exe",
            "/dev/null",
            "/proc/self",
            "/no/such/file",
            "/dev/vmem/no-such-region",
        ] {
            assert_eq!(region_at(path), None, "{path}");
        }
    }

    #[test]
    fn name_is_that_of_a_node_and_not_of_another_file() {
        let name = |path: &str| region_name(path).map(|name| name.to_string());
        assert_eq!(name("/dev/vmem/guest0").as_deref(), Some("guest0"));
        for path in [
            "/dev/vmem/control",
            "/dev/vmem/a/b",
            "/dev/null",
            "/proc/self/exe",
            "/run/no-such-mount/guest0",
        ] {
            assert_eq!(name(path), None, "{path}");
        }
    }
}
