// SPDX-License-Identifier: GPL-2.0-or-later
//! The nodes of regions, `/dev/vmem/NAME`, and what can be in their place.
//!
//! The kernel creates the node in its device file system. If another file has the path, for example a plain file of a program that opened it
//! too early with `O_CREAT`, the region has no node, and the kernel reports no error.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use vmem_mapping::Access;
use vmem_sys::Errno;
use vmem_sys::calls::get_info;

use crate::file_kind::{FileKind, device_name, look_up};
use crate::name::{CONTROL, DIRECTORY};
use crate::{Error, Info, Name};

/// The node of a region.
#[derive(Debug)]
#[non_exhaustive]
pub struct Node {
    /// Name of the region.
    pub name: Name,
    /// State and counters of the region, or the error of reading them.
    pub info: Result<Info, Error>,
}

/// The regions that have nodes, sorted by name. Each node is opened for reading; regions that disappear meanwhile are left out.
///
/// # Errors
///
/// [`Error::Open`] (`ENOENT`: the module is not loaded).
pub fn nodes() -> Result<Vec<Node>, Error> {
    let failed = |error: io::Error| Error::Open {
        path: DIRECTORY.into(),
        source: Errno::from_io_error(&error).unwrap_or(Errno::IO),
    };
    let entries = std::fs::read_dir(DIRECTORY).map_err(failed)?;
    let names = entries
        .flatten()
        .filter_map(|entry| Name::new(entry.file_name().to_str()?).ok());
    let mut names: Vec<Name> = names.filter(|name| name.as_str() != CONTROL).collect();
    names.sort();
    let gone = |info: &Result<Info, Error>| {
        matches!(
            info,
            Err(Error::Open {
                source: Errno::NOENT | Errno::NODEV | Errno::NXIO,
                ..
            })
        )
    };
    let nodes = names.into_iter().map(|name| {
        let info = open(&name.path(), Access::ReadOnly).and_then(|fd| Info::get(fd.as_fd()));
        Node { name, info }
    });
    Ok(nodes.filter(|node| !gone(&node.info)).collect())
}

/// Opens the node or the file of a region at `path`. Any other kind of file is refused, is not opened, and makes nobody wait.
pub(crate) fn open(path: &Path, access: Access) -> Result<OwnedFd, Error> {
    let failed = |source| Error::Open {
        path: path.into(),
        source,
    };
    let foreign = |found| Error::NotVmem {
        what: format!("{} ({found})", path.display()),
    };
    let found = look_up(path).map_err(failed)?;
    match FileKind::of(found.as_fd()).map_err(failed)? {
        FileKind::File(_) | FileKind::Node => {}
        FileKind::Call => return Err(foreign("no path")),
        FileKind::Other(found) => return Err(foreign(found)),
    }
    let flags = match access {
        Access::ReadOnly => OFlags::RDONLY,
        Access::ReadWrite => OFlags::RDWR,
    };
    // The very file that was looked at.
    let itself = format!("/proc/self/fd/{}", found.as_raw_fd());
    let fd = rustix::fs::open(itself, flags | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty()).map_err(failed)?;
    get_info(fd.as_fd()).map_err(|_| foreign("another device"))?;
    Ok(fd)
}

/// Makes sure that what is at `path` is the node of the region with the number `id`.
pub(crate) fn check(path: &Path, id: u64) -> Result<(), Error> {
    let foreign = |found| Error::ForeignNode {
        path: path.into(),
        found,
    };
    let failed = |source| Error::Open {
        path: path.into(),
        source,
    };
    if let FileKind::Other(found) = FileKind::at(path).map_err(failed)? {
        return Err(foreign(found));
    }
    match open(path, Access::ReadOnly) {
        Ok(fd) if Info::get(fd.as_fd())?.id == id => Ok(()),
        Ok(_) => Err(foreign("the node of another region")),
        Err(Error::NotVmem { .. }) => Err(foreign("another device")),
        // The daemon may not open a node of another user: it compares the device number instead.
        Err(Error::Open {
            source: Errno::ACCESS | Errno::PERM,
            ..
        }) => match is_device_of(path).map_err(failed)? {
            true => Ok(()),
            false => Err(foreign("another device")),
        },
        Err(error) => Err(error),
    }
}

/// Whether the device number of the node at `path` is that of the region, according to sysfs. Without sysfs, it counts as right.
fn is_device_of(path: &Path) -> Result<bool, Errno> {
    match device_name(&rustix::fs::stat(path)?) {
        Some(name) => Ok(Path::new("/dev").join(name) == path),
        None => Ok(!Path::new("/sys/dev/char").exists()),
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::FileType;

    use super::*;

    #[test]
    fn file_in_place_of_a_node_is_named_in_the_error() {
        let found = |path: &str| match check(Path::new(path), 1) {
            Err(Error::ForeignNode { found, .. }) => found,
            other => panic!("{other:?}"),
        };
        assert_eq!(found("/proc/self/exe"), "a plain file");
        assert_eq!(found("/proc/self"), "a directory");
        assert_eq!(found("/dev/null"), "another device");
        assert!(matches!(
            check(Path::new("/proc/self/no-such-file"), 1),
            Err(Error::Open {
                source: Errno::NOENT,
                ..
            })
        ));
    }

    #[test]
    fn device_is_identified_by_its_number() {
        if Path::new("/sys/dev/char/1:3/uevent").exists() {
            assert_eq!(is_device_of(Path::new("/dev/null")), Ok(true));
            let other = std::env::temp_dir().join(format!("vmem-null-{}", std::process::id()));
            std::os::unix::fs::symlink("/dev/null", &other).expect("a link");
            let found = is_device_of(&other);
            std::fs::remove_file(&other).expect("the link");
            assert_eq!(found, Ok(false));
        }
    }

    #[test]
    fn open_does_not_wait_for_a_writer_of_a_fifo() {
        let path = std::env::temp_dir().join(format!("vmem-node-{}", std::process::id()));
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a FIFO");
        let opened = open(&path, Access::ReadOnly);
        std::fs::remove_file(&path).expect("the FIFO");
        assert!(matches!(opened, Err(Error::NotVmem { .. })), "{opened:?}");
    }
}
