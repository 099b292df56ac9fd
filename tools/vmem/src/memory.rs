// SPDX-License-Identifier: GPL-2.0-or-later
//! Shared memory that another process has open.
//!
//! [`Control::adopt`](crate::Control::adopt) needs the open file that the process itself writes through. An open of `/proc/PID/fd/FD` or
//! `/proc/PID/map_files/RANGE` creates another open file; `pidfd_getfd` duplicates the same one. For a region, any open of its node will do.

use std::fs::read_to_string;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use vmem_sys::Errno;

use crate::mapped::{DELETED, is_region, maps_lines};
use crate::memory_file::Identity;
use crate::{Error, MemoryFile, OpenMemory, region_at, region_name};

/// Shared memory that another process has open, by a descriptor of the same open file.
#[derive(Debug)]
pub struct ProcessMemory {
    fd: OwnedFd,
    process: OwnedFd,
    file: MemoryFile,
}

impl ProcessMemory {
    /// The shared memory of the process `pid` whose path is `path`. A part of the path will do if no other shared memory of the process
    /// has it; ` (deleted)` can be left out. `/proc/PID/fd/FD` chooses one of several memfds with the same name; that path is not opened.
    ///
    /// The node or the file of a region is that region, by whatever path the process has opened it: `/run/vmem/NAME` finds a region that the process
    /// has by its node, or by a file in a mount that this process does not see. It is found before and after it becomes plain memory.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchProcess`], [`Error::ProcessDenied`], [`Error::NoSuchMemory`], [`Error::AmbiguousMemory`], [`Error::MemoryNotOpen`]
    /// (the process maps it and has no descriptor of it), [`Error::NoDescriptors`].
    pub fn open(pid: i32, path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let process = process(pid)?;
        let files = Self::list(pid)?;
        let region = Some(path).filter(|path| path.is_absolute() && !path.starts_with("/proc"));
        let region = region.and_then(region_at).map(Identity::Region);
        let found = match region {
            Some(identity) => best(files.iter().filter(|file| file.identity == identity))
                .cloned()
                .ok_or_else(Vec::new),
            None => select(pid, &files, path),
        };
        let file = match found {
            Ok(file) => file,
            Err(found) if !found.is_empty() => {
                let path = path.into();
                let found = found.iter().map(OpenMemory::from).collect();
                return Err(Error::AmbiguousMemory { pid, path, found });
            }
            Err(_) => return Err(missing(pid, path, &files)),
        };
        // The process may have closed it since it was looked at, and may have put something else there.
        let is_same = |fd: &OwnedFd| Identity::of_fd(fd.as_fd()) == Some(file.identity);
        match pidfd_getfd(&process, file.fd, PidfdGetfdFlags::empty()) {
            Ok(fd) if is_same(&fd) => Ok(Self { fd, process, file }),
            Ok(_) | Err(Errno::BADF) => {
                let others: Vec<MemoryFile> = files.into_iter().filter(|other| other.identity != file.identity).collect();
                Err(missing(pid, path, &others))
            }
            Err(errno) => Err(denied(pid, errno)),
        }
    }

    /// The shared memory that the process `pid` has open: files, and regions.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchProcess`], [`Error::ProcessDenied`].
    pub fn list(pid: i32) -> Result<Vec<MemoryFile>, Error> {
        let directory = PathBuf::from(format!("/proc/{pid}/fd"));
        let entries = std::fs::read_dir(&directory).map_err(|error| denied(pid, errno_of(&error)))?;
        let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut files: Vec<MemoryFile> = numbers.filter_map(|fd| MemoryFile::of(pid, fd)).collect();
        files.sort_by_key(|file| file.fd);
        Ok(files)
    }

    /// The descriptor that was found in the process.
    pub fn file(&self) -> &MemoryFile {
        &self.file
    }

    /// Whether the process has ended. Its memory exists as long as any process has it open.
    pub fn has_ended(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(&self.process, PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
    }
}

impl AsFd for ProcessMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<ProcessMemory> for OwnedFd {
    fn from(memory: ProcessMemory) -> Self {
        memory.fd
    }
}

/// A process by pidfd, which cannot be confused with a later process of the same ID.
fn process(pid: i32) -> Result<OwnedFd, Error> {
    // rustix panics at a negative number.
    let number = Pid::from_raw(pid.max(0)).ok_or(Error::NoSuchProcess { pid })?;
    pidfd_open(number, PidfdFlags::empty()).map_err(|errno| denied(pid, errno))
}

fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// The error of a process that cannot be inspected.
fn denied(pid: i32, errno: Errno) -> Error {
    match errno {
        Errno::NOENT | Errno::SRCH => Error::NoSuchProcess { pid },
        Errno::MFILE | Errno::NFILE => Error::NoDescriptors { call: "pidfd_getfd" },
        source => Error::ProcessDenied { pid, source },
    }
}

/// The error of a process that has no such file open.
fn missing(pid: i32, path: &Path, files: &[MemoryFile]) -> Error {
    let maps = read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let path = path.to_owned();
    if maps_shared(&maps, &path) {
        return Error::MemoryNotOpen { pid, path };
    }
    let mut found: Vec<PathBuf> = files.iter().map(|file| file.path.clone()).collect();
    found.dedup();
    Error::NoSuchMemory { pid, path, found }
}

/// Whether a `/proc/PID/maps` has a shared mapping, through which can be written, of a file whose path contains `path`. A mapping of
/// a region has another name there, with `vmem:NAME` in it.
fn maps_shared(maps: &str, path: &Path) -> bool {
    let region = region_name(path);
    let path = path.to_string_lossy();
    let is_meant =
        |mapped: &str| mapped.contains(&*path) || region.as_ref().is_some_and(|region| is_region(mapped, region.as_str()));
    maps_lines(maps).any(|line| line.access.contains('w') && line.access.ends_with('s') && is_meant(line.path))
}

/// Finds the file that `path` means: the descriptor `/proc/PID/fd/FD`, else the file with this path, else the only file whose path contains
/// it. Of several descriptors of the file, one that is open for writing is preferred. Returns a descriptor of each file that could be meant.
fn select(pid: i32, files: &[MemoryFile], path: &Path) -> Result<MemoryFile, Vec<MemoryFile>> {
    let wanted = path.to_string_lossy();
    if let Ok(number) = path.strip_prefix(format!("/proc/{pid}/fd")) {
        let found = files.iter().find(|file| number == Path::new(&file.fd.to_string()));
        return found.cloned().ok_or_else(Vec::new);
    }
    let matching = |is: &dyn Fn(&str) -> bool| -> Vec<&MemoryFile> {
        files.iter().filter(|file| is(&file.path.to_string_lossy())).collect()
    };
    let mut found = matching(&|path| path.strip_suffix(DELETED).unwrap_or(path) == wanted || path == wanted);
    if found.is_empty() && !wanted.is_empty() {
        found = matching(&|path| path.contains(&*wanted));
    }
    found.sort_by_key(|file| file.identity);
    let memories = found.chunk_by(|one, other| one.identity == other.identity);
    let found: Vec<&MemoryFile> = memories.filter_map(|memory| best(memory.iter().copied())).collect();
    match found[..] {
        [only] => Ok(only.clone()),
        _ => Err(found.into_iter().cloned().collect()),
    }
}

/// Of several descriptors of one memory, one that is open for writing, or else the first one.
fn best<'a>(files: impl Iterator<Item = &'a MemoryFile>) -> Option<&'a MemoryFile> {
    files.min_by_key(|file| (!file.writable, file.fd))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::{AsRawFd, RawFd};

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    fn file(fd: RawFd, path: &str, inode: u64, writable: bool) -> MemoryFile {
        MemoryFile {
            fd,
            path: path.into(),
            size: 4096,
            allocated: 0,
            writable,
            region: None,
            identity: Identity::File(1, inode),
        }
    }

    fn chosen(files: &[MemoryFile], path: &str) -> Result<RawFd, usize> {
        select(1, files, Path::new(path))
            .map(|file| file.fd)
            .map_err(|found| found.len())
    }

    #[test]
    fn exact_path_wins_over_a_partial_match() {
        let files = [
            file(3, "/dev/shm/ram2", 1, true),
            file(4, "/dev/shm/ram", 2, true),
            file(5, "/memfd:ram-node0 (deleted)", 3, true),
        ];
        assert_eq!(chosen(&files, "/dev/shm/ram"), Ok(4));
        assert_eq!(chosen(&files, "/memfd:ram-node0"), Ok(5));
        assert_eq!(chosen(&files, "/memfd:ram-node0 (deleted)"), Ok(5));
        assert_eq!(chosen(&files, "node0"), Ok(5));
        assert_eq!(chosen(&files, "ram2"), Ok(3));
    }

    #[test]
    fn ambiguous_partial_path_is_an_error() {
        let files = [
            file(3, "/memfd:ram (deleted)", 1, true),
            file(4, "/memfd:ram (deleted)", 2, true),
            file(5, "/dev/shm/ram", 3, true),
        ];
        assert_eq!(chosen(&files, "ram"), Err(3));
        assert_eq!(chosen(&files, "/memfd:ram"), Err(2));
        assert_eq!(chosen(&files, "/proc/1/fd/4"), Ok(4));
        assert_eq!(chosen(&files, "/proc/1/fd/6"), Err(0));
        assert_eq!(chosen(&files, "/proc/2/fd/4"), Err(0));
        assert_eq!(chosen(&files, "shm"), Ok(5));
        assert_eq!(chosen(&files, "disk"), Err(0));
        assert_eq!(chosen(&files, ""), Err(0));
    }

    #[test]
    fn writable_descriptor_is_preferred() {
        let files = [
            file(3, "/dev/shm/ram", 1, false),
            file(4, "/dev/shm/ram", 1, true),
            file(5, "/dev/shm/ram", 1, true),
        ];
        assert_eq!(chosen(&files, "ram"), Ok(4));
        assert_eq!(chosen(&files[..1], "ram"), Ok(3));
    }

    #[test]
    fn only_writable_shared_mappings_count() {
        let maps = "7f0000000000-7f0000001000 rw-s 00000000 00:01 5                          /memfd:my ram (deleted)\n\
                    7f0000002000-7f0000003000 rw-p 00000000 00:01 6                          /dev/shm/private\n\
                    7f0000004000-7f0000005000 rw-s 00000000 00:01 0\n\
                    7f0000006000-7f0000007000 r--s 00000000 08:01 7                          /usr/lib/gconv-modules.cache\n\
                    7f0000008000-7f0000009000 rw-s 00000000 00:01 8                          /vmem:guest0 (deleted)\n\
                    7f000000a000-7f000000b000 rw-s 00000000 00:01 9                          vmem:guest1\n";
        let is_shared = |path: &str| maps_shared(maps, Path::new(path));
        assert!(is_shared("my ram"));
        assert!(!is_shared("private"));
        assert!(!is_shared("gconv"));
        assert!(!is_shared("other"));
        assert!(is_shared("/dev/vmem/guest0"));
        assert!(is_shared("/dev/vmem/guest1"));
        assert!(!is_shared("/dev/vmem/guest"));
    }

    #[test]
    fn memfd_is_shared_memory_and_a_file_on_disk_is_not() {
        let memory = memfd_create("vmem-test-memory", MemfdFlags::CLOEXEC).expect("a memfd");
        rustix::fs::ftruncate(&memory, 8192).expect("room");
        let disk = File::open("/proc/self/exe").expect("this program");
        let pid = std::process::id() as i32;
        let files = ProcessMemory::list(pid).expect("this process");
        let found = files.iter().find(|file| file.fd == memory.as_raw_fd()).expect("the memfd");
        assert_eq!(found.path, Path::new("/memfd:vmem-test-memory (deleted)"));
        assert_eq!((found.size, found.allocated, found.writable), (8192, 0, true));
        assert!(files.iter().all(|file| file.fd != disk.as_raw_fd()));
    }

    #[test]
    fn missing_process_or_memory_is_named_in_the_error() {
        let pid = std::process::id() as i32;
        assert!(matches!(
            ProcessMemory::open(-1, "ram"),
            Err(Error::NoSuchProcess { pid: -1 })
        ));
        assert!(matches!(ProcessMemory::open(0, "ram"), Err(Error::NoSuchProcess { pid: 0 })));
        let error = ProcessMemory::open(pid, "no such memory").expect_err("none");
        assert!(matches!(error, Error::NoSuchMemory { .. }), "{error}");
    }
}
