// SPDX-License-Identifier: GPL-2.0-or-later
//! What kind of file is at a path or behind a descriptor: the file of a region, the node of a region, or another one.
//!
//! Only the kernel is believed. The servers of a FUSE file system and of a CUSE device can answer the module's calls as the module does, but they
//! choose neither the type of the file system nor the class of the device.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, fstatfs, major, minor, statfs};
use vmem_sys::{Errno, VMEM_SUPER_MAGIC};

/// The number of the inode of a region's file, less that of the region.
const FILE_INODE: u64 = 1;

/// The type of the kernel's own file system of files without a path, as `statfs(2)` gives it.
const ANON_INODE_MAGIC: i64 = 0x0904_1934;

/// The class of the module's nodes, and what they are called in `/proc/devices`.
const DRIVER: &str = "vmem";

/// What kind of file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    /// The file of the region with this number.
    File(u64),
    /// A node of the module. Its region may be gone.
    Node,
    /// A descriptor without a path, which a call has given: one of the module, or of another driver.
    Call,
    /// Another file: what it is.
    Other(&'static str),
}

impl FileKind {
    /// What is at `path`. Nothing is opened for it but the path itself.
    pub(crate) fn at(path: &Path) -> Result<Self, Errno> {
        Self::of(look_up(path)?.as_fd())
    }

    /// What the descriptor is of, which may be one of a path alone.
    pub(crate) fn of(fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        let stat = fstat(fd)?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::CharacterDevice if is_of_module(&stat)? => Self::Node,
            FileType::CharacterDevice => Self::Other("another device"),
            FileType::Directory => Self::Other("a directory"),
            // Not asked of all files, since another file system may take long to answer. The files without a path have no type in some kernels.
            FileType::RegularFile | FileType::Unknown => match fstatfs(fd)?.f_type {
                magic if magic == i64::from(VMEM_SUPER_MAGIC) => Self::File(stat.st_ino.saturating_sub(FILE_INODE)),
                ANON_INODE_MAGIC => Self::Call,
                _ => Self::Other("a plain file"),
            },
            _ => Self::Other("no character device"),
        };
        Ok(kind)
    }
}

/// The path alone, of whatever is there: what is looked at can be opened by it, and nothing that has its path later.
pub(crate) fn look_up(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// The number of the region whose file is at `path`; `None` if another file is there, also a node.
pub(crate) fn file_region(path: &Path) -> Result<Option<u64>, Errno> {
    match FileKind::at(path)? {
        FileKind::File(id) => Ok(Some(id)),
        FileKind::Node | FileKind::Call | FileKind::Other(_) => Ok(None),
    }
}

/// Whether the file system of regions is at this path.
pub(crate) fn is_file_system(path: &Path) -> bool {
    statfs(path).is_ok_and(|statfs| statfs.f_type == i64::from(VMEM_SUPER_MAGIC))
}

/// Whether a device is a node of the module, by its class. A node whose region is gone has no class any more, and without sysfs no node has one: then its
/// number decides.
fn is_of_module(stat: &Stat) -> Result<bool, Errno> {
    let (major, minor) = (major(stat.st_rdev), minor(stat.st_rdev));
    match rustix::fs::readlink(format!("/sys/dev/char/{major}:{minor}/subsystem"), Vec::new()) {
        Ok(class) => Ok(Path::new(OsStr::from_bytes(class.as_bytes())).ends_with(DRIVER)),
        Err(Errno::NOENT) => {
            let devices = std::fs::read_to_string("/proc/devices");
            let devices = devices.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            Ok(majors(&devices).any(|number| number == major))
        }
        Err(error) => Err(error),
    }
}

/// The major numbers of the module's nodes in the text of `/proc/devices`, which has the block devices last.
fn majors(devices: &str) -> impl Iterator<Item = u32> {
    let characters = devices.lines().take_while(|line| !line.starts_with("Block"));
    characters.filter_map(|line| {
        let (number, driver) = line.trim().split_once(' ')?;
        number.parse().ok().filter(|_| driver == DRIVER)
    })
}

/// The name of a device below /dev, according to sysfs. `None` without sysfs, or if the kernel does not know the device.
pub(crate) fn device_name(stat: &Stat) -> Option<String> {
    let number = stat.st_rdev;
    let event = format!("/sys/dev/char/{}:{}/uevent", major(number), minor(number));
    let event = std::fs::read_to_string(event).ok()?;
    let name = event.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_files_are_no_files_of_regions() {
        assert_eq!(file_region(Path::new("/proc/self/exe")), Ok(None));
        assert_eq!(file_region(Path::new("/no/such/file")), Err(Errno::NOENT));
        for (path, found) in [
            ("/proc/self/exe", "a plain file"),
            ("/proc/self", "a directory"),
            ("/dev/null", "another device"),
        ] {
            assert_eq!(FileKind::at(Path::new(path)), Ok(FileKind::Other(found)), "{path}");
        }
        assert!(!is_file_system(Path::new("/")));
    }

    #[test]
    fn descriptor_without_a_path_is_of_a_call() {
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).expect("an eventfd");
        assert_eq!(FileKind::of(event.as_fd()), Ok(FileKind::Call));
        let memory = rustix::fs::memfd_create("memory", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd");
        assert_eq!(FileKind::of(memory.as_fd()), Ok(FileKind::Other("a plain file")));
    }

    #[test]
    fn nodes_have_the_numbers_of_the_driver() {
        let devices = "Character devices:\n  1 mem\n 10 misc\n241 vmem\n242 vmemory\n\nBlock devices:\n  7 loop\n243 vmem\n";
        assert_eq!(majors(devices).collect::<Vec<_>>(), [241]);
        assert_eq!(majors("").count(), 0);
    }
}
