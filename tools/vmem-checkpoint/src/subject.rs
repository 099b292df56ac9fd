// SPDX-License-Identifier: GPL-2.0-or-later
//! What checkpoints are made of.

use std::path::{Path, PathBuf};
use std::time::Duration;

use vmem::{MemoryHandle, ProcessMemory};
use vmem_process::{Process, clean};
use vmem_qemu::{COMMAND_LIMIT, GuestMemory, OpenBackend, Qmp, guest};

use crate::clone_memory::CloneMemory;
use crate::error::Error;

/// A guest, or memory of a program that is no guest.
#[derive(Debug, Clone)]
pub enum Subject {
    /// The guest of the QEMU that listens at this socket, with its device state.
    Guest {
        /// QEMU's QMP socket.
        qmp: PathBuf,
    },
    /// Shared memory that a process has open.
    Program {
        /// The process.
        pid: i32,
        /// The memory, as `vmem::ProcessMemory::open` finds it.
        memory: PathBuf,
    },
}

/// The subject's memory, opened.
pub(crate) struct Opened {
    /// The subject's own name.
    pub(crate) name: String,
    /// The QEMU whose guest this is.
    pub(crate) qemu: Option<Process>,
    pub(crate) memories: OpenMemories,
}

/// The memory of a subject.
pub(crate) enum OpenMemories {
    /// It is shared, and can be tracked.
    Shared(Vec<OpenBackend>),
    /// It is that of a clone.
    Clone(CloneMemory),
}

impl Subject {
    /// `state` has the records of bases.
    pub(crate) fn open(&self, state: &Path) -> Result<Opened, Error> {
        match self {
            Self::Guest { qmp } => {
                let mut connection = Qmp::connect(qmp, COMMAND_LIMIT)?;
                // QEMU saves its devices without the memory only if all of that is in files with names.
                match guest::memory_backends(&mut connection) {
                    Err(vmem_qemu::Error::NotShared { .. }) if guest::private_backends(&mut connection).is_ok() => {
                        let name = guest::name(&mut connection)?;
                        let (memory, process) = CloneMemory::find(&mut connection, state)?;
                        return Ok(Opened {
                            name,
                            qemu: Some(process),
                            memories: OpenMemories::Clone(memory),
                        });
                    }
                    found => found?,
                };
                drop(connection);
                let guest = GuestMemory::find(qmp)?;
                Ok(Opened {
                    name: guest.name,
                    qemu: Some(guest.process),
                    memories: OpenMemories::Shared(guest.memories),
                })
            }
            Self::Program { pid, memory } => {
                let what = format!("cannot find the memory {} of process {pid}", memory.display());
                let memory = ProcessMemory::open(*pid, memory).map_err(Error::memory(what))?;
                let (path, bytes) = (memory.file().path.clone(), memory.file().size);
                let name = name_of(&path);
                let handle = MemoryHandle::File(memory);
                let id = name.clone();
                Ok(Opened {
                    name,
                    qemu: None,
                    memories: OpenMemories::Shared(vec![OpenBackend { id, path, bytes, handle }]),
                })
            }
        }
    }
}

/// Checks that the QEMU that answers is `qemu`, and that its guest has `memories` and no others. Another QEMU at the same socket can have
/// backends of the same names and sizes, and so can this one after its backends were replaced.
pub(crate) fn check_unchanged<'a>(
    qemu: &Process,
    memories: impl ExactSizeIterator<Item = &'a OpenBackend>,
    found: &GuestMemory,
) -> Result<(), Error> {
    // As long as the first process lives, no other one has its number.
    if found.process.number() != qemu.number() || qemu.wait(Duration::ZERO) {
        return Err(Error::OtherGuest {
            expected: qemu.number(),
            found: found.process.number(),
        });
    }
    if memories.len() != found.memories.len() {
        return Err(Error::OtherMemory);
    }
    for memory in memories {
        let mut is_there = false;
        for other in &found.memories {
            is_there |= memory.is_same(other)?;
        }
        if !is_there {
            return Err(Error::OtherMemory);
        }
    }
    Ok(())
}

/// The name of memory at this path: its last part, without what the kernel adds.
fn name_of(path: &Path) -> String {
    let text = path.to_string_lossy();
    let text = text.strip_suffix(" (deleted)").unwrap_or(&text);
    let last = text.rsplit('/').next().unwrap_or_default();
    let last = last.strip_prefix("memfd:").unwrap_or(last);
    // The longest name of a region.
    match clean(last, 31) {
        name if name.is_empty() => "memory".to_owned(),
        name => name,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::process::{Child, Command};

    use super::*;

    /// A guest of this process with one backend of one page, in this file.
    fn guest(process: Process, file: &File) -> GuestMemory {
        let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
        let backend = OpenBackend {
            id: "ram".to_owned(),
            bytes: 4096,
            handle: MemoryHandle::open(&path, None).expect("it is open"),
            path,
        };
        GuestMemory {
            name: "guest0".to_owned(),
            status: "running".to_owned(),
            process,
            memories: vec![backend],
        }
    }

    fn file() -> File {
        let file = tempfile::tempfile_in("/dev/shm").expect("a file");
        file.set_len(4096).expect("a size");
        file
    }

    fn sleeper() -> Child {
        Command::new("sleep").arg("1000").spawn().expect("a process")
    }

    #[test]
    fn another_qemu_or_another_file_behind_a_backend_is_not_the_same_guest() {
        let (mut child, mut other) = (sleeper(), sleeper());
        let process = |child: &Child| Process::of_child(child).expect("it lives");
        let (ram, replaced) = (file(), file());
        let before = guest(process(&child), &ram);
        let check = |found: &GuestMemory| check_unchanged(&before.process, before.memories.iter(), found);
        check(&guest(process(&child), &ram)).expect("it is the same");
        let changed = check(&guest(process(&child), &replaced));
        assert!(matches!(changed, Err(Error::OtherMemory)), "{changed:?}");
        let changed = check(&guest(process(&other), &ram));
        assert!(matches!(changed, Err(Error::OtherGuest { .. })), "{changed:?}");
        // Another process can get the number of one that has ended.
        let same_number = guest(process(&other).with_number_of(&before.process), &ram);
        child.kill().expect("a child");
        child.wait().expect("a child");
        let changed = check(&same_number);
        assert!(matches!(changed, Err(Error::OtherGuest { .. })), "{changed:?}");
        other.kill().expect("a child");
        other.wait().expect("a child");
    }

    #[test]
    fn name_of_memory_is_the_last_part_of_its_path() {
        for (path, name) in [
            ("/dev/shm/data", "data"),
            ("/memfd:ram (deleted)", "ram"),
            ("/dev/vmem/guest0", "guest0"),
            ("/", "memory"),
        ] {
            assert_eq!(name_of(Path::new(path)), name);
        }
    }
}
