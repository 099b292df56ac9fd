// SPDX-License-Identifier: GPL-2.0-or-later
//! The memory of a running guest, opened so that it can be tracked.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vmem::{MemoryFile, MemoryHandle, ProcessMemory};
use vmem_process::Process;

use crate::backend_file::{self, BackendFile};
use crate::connection::{COMMAND_LIMIT, Qmp};
use crate::error::Error;
use crate::guest::{self, SharedMemory};

/// A guest's memory, and the process of its QEMU.
#[derive(Debug)]
pub struct GuestMemory {
    /// The guest's name, or "guest".
    pub name: String,
    /// The run state when QEMU was asked.
    pub status: String,
    /// QEMU's process.
    pub process: Process,
    /// All memory of the guest.
    pub memories: Vec<OpenBackend>,
}

/// A memory backend that can be adopted.
#[derive(Debug)]
pub struct OpenBackend {
    /// Its name.
    pub id: String,
    /// Where its memory is: a file, also of a region, the node of a region, or a descriptor of QEMU's process.
    pub path: PathBuf,
    /// Its size in bytes, as QEMU has it.
    pub bytes: u64,
    /// A descriptor by which it can be adopted.
    pub handle: MemoryHandle,
}

impl GuestMemory {
    /// Asks the QEMU at this socket. The connection ends before this returns, so that others can use the socket.
    ///
    /// # Errors
    ///
    /// Those of [`Qmp::connect`] and [`guest::all_shared_memory`]; [`Error::Memory`] and [`Error::Memfd`] if a backend cannot be opened.
    pub fn find(qmp: &Path) -> Result<Self, Error> {
        Self::of(&mut Qmp::connect(qmp, COMMAND_LIMIT)?)
    }

    /// As [`find`](Self::find), of the QEMU at the other end of this connection.
    ///
    /// # Errors
    ///
    /// Those of [`find`](Self::find).
    pub fn of(qmp: &mut Qmp) -> Result<Self, Error> {
        let name = guest::name(qmp)?;
        let status = guest::status(qmp)?;
        let shared = guest::all_shared_memory(qmp)?;
        let process = guest::process(qmp)?;
        let memories = shared.into_iter().map(|memory| open(memory, &process));
        let memories = memories.collect::<Result<Vec<_>, _>>()?;
        // If QEMU still lives, its number was its own while the descriptors were opened by it.
        if process.wait(Duration::ZERO) {
            return Err(Error::Closed);
        }
        Ok(Self {
            name,
            status,
            process,
            memories,
        })
    }
}

impl OpenBackend {
    /// Whether `other` is the same backend with the same file or region behind it, and not a later one of the same name.
    ///
    /// # Errors
    ///
    /// [`Error::Memory`] if a descriptor cannot be examined.
    pub fn is_same(&self, other: &Self) -> Result<bool, Error> {
        let identity = |backend: &Self| {
            let found = backend_file::identity_of(&backend.handle);
            found.map_err(|error| Error::Memory {
                id: backend.id.clone(),
                source: error.into(),
            })
        };
        Ok(self.id == other.id && self.bytes == other.bytes && identity(self)? == identity(other)?)
    }
}

/// Opens the memory that the process has open, and no other.
fn open(memory: SharedMemory, process: &Process) -> Result<OpenBackend, Error> {
    let (path, handle) = match &memory.path {
        Some(path) => open_file(&memory, path, process)?,
        None => open_memfd(&memory, process)?,
    };
    let SharedMemory { id, bytes, .. } = memory;
    Ok(OpenBackend { id, path, bytes, handle })
}

fn open_file(memory: &SharedMemory, path: &Path, process: &Process) -> Result<(PathBuf, MemoryHandle), Error> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Memory {
        id: memory.id.clone(),
        source,
    };
    let file = BackendFile::find(process, path).map_err(|error| failed(error.into()))?;
    // QEMU's descriptor has the path without symbolic links.
    let path = file.path().canonicalize().map_err(|error| failed(error.into()))?;
    let handle = MemoryHandle::open(&path, Some(process.number())).map_err(|error| failed(error.into()))?;
    file.check_descriptor(&handle).map_err(|error| failed(error.into()))?;
    Ok((path, handle))
}

fn open_memfd(memory: &SharedMemory, process: &Process) -> Result<(PathBuf, MemoryHandle), Error> {
    let pid = process.number();
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Memfd {
        id: memory.id.clone(),
        pid,
        source,
    };
    let files = ProcessMemory::list(pid).map_err(|error| failed(error.into()))?;
    let file = select(memory, &files).map_err(|why| failed(why.into()))?;
    let path = PathBuf::from(format!("/proc/{pid}/fd/{}", file.fd));
    let handle = MemoryHandle::open(&path, None).map_err(|error| failed(error.into()))?;
    Ok((path, handle))
}

/// The memfd of a backend. QEMU does not say which one it is, but gives all of its backends the same name.
fn select<'a>(memory: &SharedMemory, files: &'a [MemoryFile]) -> Result<&'a MemoryFile, &'static str> {
    let is_memfd =
        |file: &&MemoryFile| file.path == Path::new("/memfd:memory-backend-memfd (deleted)") && file.size == memory.bytes;
    let found: Vec<&MemoryFile> = files.iter().filter(is_memfd).collect();
    match found[..] {
        [only] => Ok(only),
        [] => Err("it has no memfd of this backend's size open; if it is a proxy, give the socket of QEMU"),
        _ => Err(
            "it has several memfds of this size open, and QEMU does not say which one it is: use memory-backend-file, or \
                  'vmemctl region watch --pid PID --memory /proc/PID/fd/FD'",
        ),
    }
}

impl fmt::Display for OpenBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "memory backend {:?} ({})", self.id, self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    fn memfd(bytes: u64) -> std::os::fd::OwnedFd {
        let fd = memfd_create("memory-backend-memfd", MemfdFlags::CLOEXEC).expect("a memfd");
        ftruncate(&fd, bytes).expect("a size");
        fd
    }

    fn chain(error: &dyn std::error::Error) -> String {
        let next = error.source().map_or(String::new(), |source| format!(": {}", chain(source)));
        format!("{error}{next}")
    }

    fn of(bytes: u64, path: Option<&str>) -> SharedMemory {
        SharedMemory {
            id: "ram".to_owned(),
            bytes,
            path: path.map(PathBuf::from),
        }
    }

    #[test]
    fn memfd_is_found_by_its_size_and_two_of_one_size_are_refused() {
        let own = Process::open(i32::try_from(std::process::id()).expect("a number")).expect("this process");
        let (one, _two, _three) = (memfd(40960), memfd(81920), memfd(81920));
        let (path, _handle) = open_memfd(&of(40960, None), &own).expect("the only one");
        assert!(path.ends_with(one.as_raw_fd().to_string()), "{path:?}");
        let error = |bytes| chain(&open_memfd(&of(bytes, None), &own).expect_err("refused"));
        assert!(error(81920).contains("several memfds"), "{}", error(81920));
        assert!(error(4096).contains("if it is a proxy"), "{}", error(4096));
    }

    #[test]
    fn backend_of_the_same_name_and_size_with_another_file_is_another_one() {
        let own = i32::try_from(std::process::id()).expect("a number");
        let backend = |id: &str, file: &std::os::fd::OwnedFd| {
            let path = PathBuf::from(format!("/proc/{own}/fd/{}", file.as_raw_fd()));
            let handle = MemoryHandle::open(&path, None).expect("it is open");
            OpenBackend {
                id: id.to_owned(),
                path,
                bytes: 12288,
                handle,
            }
        };
        let (one, two) = (memfd(12288), memfd(12288));
        let ram = backend("ram", &one);
        assert!(ram.is_same(&backend("ram", &one)).expect("a file"));
        assert!(!ram.is_same(&backend("ram", &two)).expect("a file"));
        assert!(!ram.is_same(&backend("ram1", &one)).expect("a file"));
    }

    #[test]
    fn file_that_the_process_does_not_have_open_is_refused() {
        let own = Process::open(i32::try_from(std::process::id()).expect("a number")).expect("this process");
        let directory = tempfile::tempdir_in("/dev/shm").expect("a directory");
        let path = directory.path().join("ram");
        std::fs::write(&path, [1; 4096]).expect("a file");
        let find = || open_file(&of(4096, path.to_str()), &path, &own);
        let error = chain(&find().expect_err("nobody has it open"));
        assert!(
            error.contains("if a proxy listens") && error.contains("does not have"),
            "{error}"
        );
        let open = std::fs::File::options().read(true).write(true).open(&path).expect("a file");
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).expect("a link");
        for path in [&path, &link] {
            let (found, _handle) = open_file(&of(4096, path.to_str()), path, &own).expect("it is open");
            assert_eq!(found, path.canonicalize().expect("a path"));
        }
        drop(open);
        assert!(find().is_err());
    }
}
