// SPDX-License-Identifier: GPL-2.0-or-later
//! Memory at a path, opened so that it can be adopted.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use vmem_mapping::Access;

use crate::file_kind::file_region;
use crate::{DIRECTORY, Error, MapHandle, ProcessMemory};

/// A descriptor by which [`Control::adopt`](crate::Control::adopt) adopts memory: of a region by its node or file, of a file by the open file through
/// which its program writes.
///
/// # Example
///
/// The dirty rate of a guest, wherever its memory is:
///
/// ```no_run
/// use vmem::{Control, MemoryHandle};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let control = Control::open()?;
/// for path in ["/run/vmem/guest0", "/dev/vmem/guest1", "/dev/shm/guest2"] {
///     let tracking = control.adopt(MemoryHandle::open(path, Some(812))?)?.track()?;
///     println!("{path}: {} mappings", tracking.mappings());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a program has one for each memory, and does not copy it"
)]
pub enum MemoryHandle {
    /// The region's node or file, opened by this program.
    Region(MapHandle),
    /// The process's own open file, and not a second one.
    File(ProcessMemory),
}

impl MemoryHandle {
    /// The memory at `path`: a region if that is a node in [`DIRECTORY`] or a file of the file system `vmem`, or else the file that the process has open there, as
    /// [`ProcessMemory::open`] finds it. `/proc/PID/fd/FD` names its process itself, whatever `process` is.
    ///
    /// # Errors
    ///
    /// [`Error::ProcessUnknown`] for a file of no process; those of [`MapHandle::open_path`] and [`ProcessMemory::open`].
    pub fn open(path: impl AsRef<Path>, process: Option<i32>) -> Result<Self, Error> {
        let path = path.as_ref();
        if path.starts_with(DIRECTORY) || (!path.starts_with("/proc") && matches!(file_region(path), Ok(Some(_)))) {
            return MapHandle::open_path(path, Access::ReadWrite).map(Self::Region);
        }
        let pid = process_of(path)
            .or(process)
            .ok_or_else(|| Error::ProcessUnknown { path: path.into() })?;
        ProcessMemory::open(pid, path).map(Self::File)
    }

    /// Whether the process that has the file open has ended. A region has none.
    pub fn has_ended(&self) -> bool {
        match self {
            Self::Region(_) => false,
            Self::File(memory) => memory.has_ended(),
        }
    }
}

impl AsFd for MemoryHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Region(node) => node.as_fd(),
            Self::File(memory) => memory.as_fd(),
        }
    }
}

/// The process of `/proc/PID/fd/FD`.
fn process_of(path: &Path) -> Option<i32> {
    let (pid, number) = path.to_str()?.strip_prefix("/proc/")?.split_once("/fd/")?;
    number.parse::<u32>().ok()?;
    pid.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::fd::AsRawFd;

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    #[test]
    fn only_open_files_of_processes_name_a_process() {
        assert_eq!(process_of(Path::new("/proc/812/fd/14")), Some(812));
        for other in ["/dev/shm/ram", "/proc/812/fd/x", "/proc/self/fd/3", "/proc/812/root/x", ""] {
            assert_eq!(process_of(Path::new(other)), None, "{other}");
        }
    }

    #[test]
    fn file_is_that_of_the_process_and_needs_one() {
        let memory = memfd_create("handle", MemfdFlags::CLOEXEC).unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let path = format!("/proc/{own}/fd/{}", memory.as_raw_fd());
        let opened = MemoryHandle::open(path, None).unwrap();
        assert!(matches!(&opened, MemoryHandle::File(_)) && !opened.has_ended());
        let stat = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).unwrap().st_ino;
        assert_eq!(stat(opened.as_fd()), stat(memory.as_fd()));
        assert!(MemoryHandle::open("/memfd:handle", Some(own)).is_ok());
        let error = MemoryHandle::open("/memfd:handle", None).unwrap_err();
        assert!(matches!(error, Error::ProcessUnknown { .. }), "{error}");
    }

    #[test]
    fn path_of_a_node_is_opened_as_one() {
        let error = MemoryHandle::open("/dev/vmem/no-such-region", Some(1)).unwrap_err();
        assert!(matches!(error, Error::Open { .. }), "{error}");
    }
}
