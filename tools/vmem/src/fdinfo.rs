// SPDX-License-Identifier: GPL-2.0-or-later
//! The descriptors of vmem that processes have open, as `/proc/PID/fdinfo` shows them.

use std::fs::{read_dir, read_link, read_to_string};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Statx, StatxFlags, statx};

use crate::{DIRECTORY, Info, TrackingInfo};

/// A descriptor of a region or of adopted memory that a process has open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// The process.
    pub pid: i32,
    /// The name of its program.
    pub command: String,
    /// The number of the descriptor in the process.
    pub fd: i32,
    /// The path in `/proc/PID/fd`: `/run/vmem/NAME` for an open of the file, `/dev/vmem/NAME` for one of the node, `anon_inode:[...]` for a descriptor that a call has given.
    pub path: PathBuf,
    /// The memory of the descriptor.
    pub memory: DescriptorInfo,
}

/// The memory of a descriptor, as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DescriptorInfo {
    /// A region.
    Region(Info),
    /// Shared memory that is adopted.
    Adopted {
        /// Number of the region, never used twice.
        id: u64,
        /// Size in bytes.
        size: u64,
        /// State and counters of its dirty log.
        info: TrackingInfo,
    },
}

impl DescriptorInfo {
    /// Number of the region.
    pub fn id(&self) -> u64 {
        match self {
            Self::Region(info) => info.id,
            Self::Adopted { id, .. } => *id,
        }
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Region(info) => info.size,
            Self::Adopted { size, .. } => *size,
        }
    }

    /// Mappings of the memory, in all processes, that are not plain; 4096 is that many or more.
    pub fn mappings(&self) -> u64 {
        match self {
            Self::Region(info) => info.mappings,
            Self::Adopted { info, .. } => info.mappings,
        }
    }

    /// Parses the text of `/proc/PID/fdinfo/FD`. `None` if the descriptor is none of vmem's, or shows no memory (the control descriptor).
    pub fn parse(fdinfo: &str) -> Option<Self> {
        let field = |name: &str| {
            let values = fdinfo.lines().filter_map(|line| line.strip_prefix("vmem-")?.split_once(':'));
            let mut values = values.filter(|(found, _)| *found == name);
            values.next()?.1.trim().parse().ok()
        };
        let (id, size) = (field("id")?, field("size")?);
        if field("tracked").is_some() {
            let info = TrackingInfo::from_fields(|name| field(name).unwrap_or(0));
            return Some(Self::Adopted { id, size, info });
        }
        Some(Self::Region(Info::from_fields(|name| field(name).unwrap_or(0))))
    }
}

/// The descriptors of regions and of adopted memory that processes have open, in the order of process IDs. Processes that the caller may not
/// inspect are left out: only root sees all.
pub fn descriptors() -> Vec<Descriptor> {
    let mut pids: Vec<i32> = numbers(Path::new("/proc")).collect();
    pids.sort_unstable();
    pids.into_iter().flat_map(of_process).collect()
}

/// The descriptors of one process.
fn of_process(pid: i32) -> Vec<Descriptor> {
    let directory = PathBuf::from(format!("/proc/{pid}/fd"));
    let mut fds: Vec<i32> = numbers(&directory).collect();
    fds.sort_unstable();
    let descriptor = |fd: i32| {
        // To read the fdinfo of all other descriptors would take long, and may wait for locks of other drivers.
        let link = directory.join(fd.to_string());
        let path = read_link(&link).ok().filter(|path| may_be_vmem(path, &link))?;
        let memory = DescriptorInfo::parse(&read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).ok()?)?;
        let command = read_to_string(format!("/proc/{pid}/comm")).ok()?.trim_end().to_owned();
        Some(Descriptor {
            pid,
            command,
            fd,
            path,
            memory,
        })
    };
    fds.into_iter().filter_map(descriptor).collect()
}

/// Whether the descriptor at `link`, with this path, can be one of vmem's. The path of a file depends on where the file system is mounted, and does
/// not show it when it is mounted nowhere any more: regular files of file systems without a device are looked at.
pub(crate) fn may_be_vmem(path: &Path, link: &Path) -> bool {
    // A file system that is away is not asked.
    let stat = || statx(CWD, link, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE);
    let is_file = |stat: Statx| FileType::from_raw_mode(stat.stx_mode.into()) == FileType::RegularFile && stat.stx_dev_major == 0;
    is_vmem(path) || (path.is_absolute() && stat().is_ok_and(is_file))
}

/// Whether the path is that of a node, or of a descriptor that a call has given.
fn is_vmem(path: &Path) -> bool {
    path.starts_with(DIRECTORY) || path.to_str().is_some_and(|path| path.starts_with("anon_inode:[vmem"))
}

/// The entries of a directory of /proc whose names are numbers.
fn numbers(directory: &Path) -> impl Iterator<Item = i32> {
    let entries = read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn fdinfo_of_a_region_has_its_state_and_counters() {
        let text = "pos:\t0\nflags:\t02\nmnt_id:\t16\nino:\t1061\nvmem-id:\t7\nvmem-size:\t8192\nvmem-flags:\t0\nvmem-state:\t3\n\
                    vmem-present:\t1\nvmem-unreadable:\t0\nvmem-requested:\t1\nvmem-queued:\t1\nvmem-waiters:\t2\n\
                    vmem-oldest_wait_ns:\t1500\nvmem-faults:\t4\nvmem-requests:\t2\nvmem-sigbus:\t0\nvmem-mappings:\t3\n";
        let Some(DescriptorInfo::Region(info)) = DescriptorInfo::parse(text) else {
            panic!("no region")
        };
        assert_eq!((info.id, info.size, info.present, info.mappings), (7, 8192, 1, 3));
        assert!(info.attached && info.ready && !info.plain);
        assert_eq!(info.oldest_wait, Duration::from_nanos(1500));
    }

    #[test]
    fn fdinfo_of_adopted_memory_has_the_state_of_its_log() {
        let text = "flags:\t02\nvmem-id:\t9\nvmem-size:\t4096\nvmem-tracked:\t1\nvmem-mappings:\t2\nvmem-dirty:\t3\nvmem-faults:\t4\n\
                    vmem-written:\t5\nvmem-cleaned:\t6\nvmem-held:\t7\n";
        let Some(DescriptorInfo::Adopted { id, size, info }) = DescriptorInfo::parse(text) else {
            panic!("not adopted")
        };
        assert_eq!((id, size, info.tracked, info.mappings), (9, 4096, true, 2));
        assert_eq!(
            (info.dirty, info.faults, info.written, info.cleaned, info.held),
            (3, 4, 5, 6, 7)
        );
    }

    #[test]
    fn fdinfo_of_other_descriptors_is_none() {
        assert_eq!(DescriptorInfo::parse("pos:\t0\nflags:\t02\n"), None);
        assert_eq!(DescriptorInfo::parse("vmem-id:\tx\nvmem-size:\t1\n"), None);
        assert!(is_vmem(Path::new("/dev/vmem/guest0")) && is_vmem(Path::new("anon_inode:[vmem-map]")));
        // Another process could have a file of the file system under any path.
        let own = |fd: &dyn std::os::fd::AsRawFd| PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        let disk = std::fs::File::open("/proc/self/exe").expect("this program");
        let memory = rustix::fs::memfd_create("guest0", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd");
        assert!(may_be_vmem(Path::new("/guest0"), &own(&memory)) && !may_be_vmem(Path::new("socket:[1]"), &own(&memory)));
        let is_on_disk = rustix::fs::fstat(&disk).is_ok_and(|stat| rustix::fs::major(stat.st_dev) != 0);
        assert!(!(is_on_disk && may_be_vmem(Path::new("/guest0"), &own(&disk))));
        assert!(!is_vmem(Path::new("/dev/vmemory")) && !is_vmem(Path::new("anon_inode:[eventfd]")));
    }
}
