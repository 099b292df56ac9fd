// SPDX-License-Identifier: GPL-2.0
//! What kind of file is at a path: the file of a region, a device, or another one. Nothing is opened for it but the path itself.

use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, fstatfs, major, minor, stat};
use vmem_sys::{Errno, VMEM_SUPER_MAGIC};

/// The number of the inode of a region's file, less that of the region.
const FILE_INODE: u64 = 1;

/// The number of the region whose file is at `path`; `None` if another file is there, also a node.
pub(crate) fn file_region(path: &Path) -> Result<Option<u64>, Errno> {
    let opened = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let stat = fstat(&opened)?;
    // Asked of regular files only, since another file system may take long to answer.
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || fstatfs(&opened)?.f_type != i64::from(VMEM_SUPER_MAGIC) {
        return Ok(None);
    }
    Ok(stat.st_ino.checked_sub(FILE_INODE))
}

/// What is at `path`; `None` for a node or file of a region, and for any other character device.
pub(crate) fn kind(path: &Path) -> Option<&'static str> {
    let Ok(stat) = stat(path) else { return Some("no file") };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::CharacterDevice => None,
        FileType::RegularFile if file_region(path) != Ok(None) => None,
        FileType::RegularFile => Some("a plain file"),
        FileType::Directory => Some("a directory"),
        _ => Some("no character device"),
    }
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
        assert_eq!(kind(Path::new("/proc/self/exe")), Some("a plain file"));
        assert_eq!(kind(Path::new("/no/such/file")), Some("no file"));
    }
}
