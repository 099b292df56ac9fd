// SPDX-License-Identifier: GPL-2.0-or-later
//! A descriptor of shared memory that a process has, as `/proc` shows it.

use std::fs::read_to_string;
use std::os::fd::{BorrowedFd, RawFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Stat, fstat, readlink, stat, statfs};

use crate::error::OpenMemory;
use crate::fdinfo::may_be_vmem;
use crate::{DescriptorInfo, Info, PAGE_SIZE, region_of};

/// File system types of shared memory, as `statfs(2)` gives them: tmpfs (also that of memfds), and hugetlbfs.
const MAGICS: [i64; 2] = [0x0102_1994, 0x9584_58f6];

/// A descriptor of shared memory that a process has: of a file, or of a region.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryFile {
    /// The number of the descriptor in its process.
    pub fd: RawFd,
    /// The path as `/proc/PID/fd` shows it: `/memfd:ram (deleted)`, `/dev/shm/ram`, `/run/vmem/guest0`, `/dev/vmem/guest0`; `anon_inode:[vmem-map]` for a map
    /// descriptor, and `anon_inode:[vmem]` for that of a daemon.
    pub path: PathBuf,
    /// Size of the memory in bytes.
    pub size: u64,
    /// Bytes that the file has allocated; the rest is holes. Of a region: bytes present; the rest is absent.
    pub allocated: u64,
    /// Whether the descriptor is open for writing.
    pub writable: bool,
    /// State and counters of the region, if it is one. `None` for a file.
    pub region: Option<Info>,
    pub(crate) identity: Identity,
}

impl From<&MemoryFile> for OpenMemory {
    fn from(file: &MemoryFile) -> Self {
        Self {
            fd: file.fd,
            path: file.path.clone(),
            size: file.size,
        }
    }
}

/// Identifies a shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Identity {
    /// Device and inode of a file.
    File(u64, u64),
    /// Number of a region: the inodes of its descriptors do not identify it.
    Region(u64),
}

impl MemoryFile {
    /// The descriptor `fd` of a process, if it is one of shared memory.
    pub(crate) fn of(pid: i32, fd: RawFd) -> Option<Self> {
        let link = format!("/proc/{pid}/fd/{fd}");
        let path = PathBuf::from(readlink(&link, Vec::new()).ok()?.to_string_lossy().into_owned());
        let fdinfo = || read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).ok();
        if may_be_vmem(&path, Path::new(&link)) {
            let fdinfo = fdinfo()?;
            if let Some(DescriptorInfo::Region(info)) = DescriptorInfo::parse(&fdinfo) {
                return Some(Self::of_region(fd, path, is_writable(&fdinfo), info));
            }
        }
        let stat = stat(&link).ok()?;
        let is_memory = || statfs(&link).is_ok_and(|statfs| MAGICS.contains(&statfs.f_type));
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || !is_memory() {
            return None;
        }
        Some(Self {
            fd,
            path,
            size: stat.st_size.unsigned_abs(),
            allocated: stat.st_blocks.unsigned_abs() * 512,
            writable: is_writable(&fdinfo()?),
            region: None,
            identity: Identity::of_stat(&stat),
        })
    }

    fn of_region(fd: RawFd, path: PathBuf, writable: bool, info: Info) -> Self {
        Self {
            fd,
            path,
            size: info.size,
            allocated: info.present.saturating_mul(PAGE_SIZE as u64),
            writable,
            identity: Identity::Region(info.id),
            region: Some(info),
        }
    }
}

impl Identity {
    /// The identity of the memory of a descriptor of this process.
    pub(crate) fn of_fd(fd: BorrowedFd<'_>) -> Option<Self> {
        match region_of(fd) {
            Some(id) => Some(Self::Region(id)),
            None => fstat(fd).ok().map(|stat| Self::of_stat(&stat)),
        }
    }

    fn of_stat(stat: &Stat) -> Self {
        Self::File(stat.st_dev, stat.st_ino)
    }
}

/// Whether the text of `/proc/PID/fdinfo/FD` shows a descriptor that is open for writing. Its flags are those of open(2), in octal.
fn is_writable(fdinfo: &str) -> bool {
    let flags = fdinfo.lines().find_map(|line| line.strip_prefix("flags:"));
    flags.is_some_and(|flags| u32::from_str_radix(flags.trim(), 8).is_ok_and(|flags| flags & 3 != 0))
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, AsRawFd};

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    #[test]
    fn access_mode_is_read_from_fdinfo() {
        assert!(is_writable("pos:\t0\nflags:\t02100002\nmnt_id:\t1\n"));
        assert!(is_writable("flags:\t0100001\n"));
        assert!(!is_writable("flags:\t0100000\n"));
        assert!(!is_writable(""));
    }

    #[test]
    fn descriptors_of_one_file_have_the_same_identity() {
        let memory = |name| memfd_create(name, MemfdFlags::CLOEXEC).expect("a memfd");
        let (one, other) = (memory("one"), memory("one"));
        let file = MemoryFile::of(std::process::id() as i32, one.as_raw_fd()).expect("the memfd");
        let duplicate = one.try_clone().expect("a duplicate");
        assert_eq!(Identity::of_fd(duplicate.as_fd()), Some(file.identity));
        assert_ne!(Identity::of_fd(other.as_fd()), Some(file.identity));
        assert_eq!(file.region, None);
    }
}
