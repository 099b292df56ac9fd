// SPDX-License-Identifier: GPL-2.0
//! What checkpoints are made of.

use std::path::{Path, PathBuf};

use vmem::{MemoryHandle, ProcessMemory};
use vmem_process::clean;
use vmem_qemu::{COMMAND_LIMIT, GuestMemory, OpenBackend, Qmp, guest};

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
    pub(crate) memories: Vec<OpenBackend>,
}

impl Subject {
    pub(crate) fn open(&self) -> Result<Opened, Error> {
        match self {
            Self::Guest { qmp } => {
                // QEMU saves its devices without the memory only if all of that is in files with names.
                guest::memory_backends(&mut Qmp::connect(qmp, COMMAND_LIMIT)?)?;
                let GuestMemory { name, memories, .. } = GuestMemory::find(qmp)?;
                Ok(Opened { name, memories })
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
                    memories: vec![OpenBackend { id, path, bytes, handle }],
                })
            }
        }
    }
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
    use super::*;

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
