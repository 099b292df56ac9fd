// SPDX-License-Identifier: GPL-2.0-or-later
//! A guest as its QEMU describes it.

use std::path::PathBuf;

use serde_json::{Value, json};
use vmem_process::{Process, clean};

use crate::connection::Qmp;
use crate::error::Error;

/// Memory of a guest that other processes can map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemoryBackend {
    /// Name of the backend.
    pub id: String,
    /// Size in bytes.
    pub bytes: u64,
    /// The path at which it can be opened.
    pub path: PathBuf,
}

/// Shared memory of a guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SharedMemory {
    /// Name of the backend.
    pub id: String,
    /// Size in bytes.
    pub bytes: u64,
    /// The path of its file. `None` for a memfd, which only QEMU's process has open.
    pub path: Option<PathBuf>,
}

impl From<SharedMemory> for MemoryBackend {
    fn from(memory: SharedMemory) -> Self {
        Self {
            id: memory.id,
            bytes: memory.bytes,
            path: memory.path.unwrap_or_default(),
        }
    }
}

fn text(value: &Value, command: &'static str, field: &'static str) -> Result<String, Error> {
    let found = value.get(field).and_then(Value::as_str).map(str::to_owned);
    found.ok_or(Error::Reply { command, field })
}

/// The guest's name, or "guest".
///
/// # Errors
///
/// Those of [`Qmp::execute`].
pub fn name(qmp: &mut Qmp) -> Result<String, Error> {
    Ok(own_name(qmp)?.unwrap_or_else(|| "guest".to_owned()))
}

/// The name that the user has given to the guest.
///
/// # Errors
///
/// Those of [`Qmp::execute`].
pub fn own_name(qmp: &mut Qmp) -> Result<Option<String>, Error> {
    let reply = qmp.execute("query-name", json!({}))?;
    let name = reply.get("name").and_then(Value::as_str);
    Ok(name.filter(|name| !name.is_empty()).map(str::to_owned))
}

/// The guest's UUID. `None` if the guest has none.
///
/// # Errors
///
/// Those of [`Qmp::execute`].
pub fn uuid(qmp: &mut Qmp) -> Result<Option<String>, Error> {
    /// QEMU's answer for a guest without a UUID.
    const NONE: &str = "00000000-0000-0000-0000-000000000000";
    let reply = qmp.execute("query-uuid", json!({}))?;
    let uuid = reply.get("UUID").and_then(Value::as_str).filter(|uuid| *uuid != NONE);
    Ok(uuid.map(str::to_owned))
}

/// Names for the region of a memory backend, the preferred one first. A name may be taken by the region of an earlier guest.
pub fn region_names(guest: &str, id: &str) -> impl Iterator<Item = String> + use<> {
    // Region names have 31 bytes at most.
    let base = format!("{}.{}", clean(guest, 14), clean(id, 12));
    (1..=99).map(move |number| match number {
        1 => base.clone(),
        _ => format!("{base}.{number}"),
    })
}

/// The process that listens at QEMU's socket: QEMU, or a proxy for it. [`BackendFile::find`] fails for a proxy.
///
/// [`BackendFile::find`]: crate::BackendFile::find
///
/// # Errors
///
/// Those of [`Qmp::execute`]; [`Error::Process`] if there is no such process in this PID namespace.
pub fn process(qmp: &mut Qmp) -> Result<Process, Error> {
    let process = Process::open(qmp.peer_pid()?).map_err(Error::Process)?;
    // A QEMU that still answers has not ended, so the kernel had not given its number to another process when it was opened.
    status(qmp)?;
    Ok(process)
}

/// The run state: "running", "paused", "inmigrate", ...
///
/// # Errors
///
/// Those of [`Qmp::execute`]; [`Error::Reply`].
pub fn status(qmp: &mut Qmp) -> Result<String, Error> {
    text(&qmp.execute("query-status", json!({}))?, "query-status", "status")
}

/// Whether QEMU has the device that tells the guest that it was restored (`vmgenid`).
///
/// # Errors
///
/// Those of [`Qmp::execute`].
pub fn has_generation_id(qmp: &mut Qmp) -> Result<bool, Error> {
    match qmp.execute("query-vm-generation-id", json!({})) {
        Ok(_) => Ok(true),
        Err(Error::Refused { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// All memory of the guest, which must be in files of shared memory that other processes can map.
///
/// # Errors
///
/// [`Error::NotShared`] if a part of the memory is not; [`Error::Reply`]; those of [`Qmp::execute`].
pub fn memory_backends(qmp: &mut Qmp) -> Result<Vec<MemoryBackend>, Error> {
    // QEMU leaves memory out of its stream only if the memory is a file with a name. It would send all memory of a memfd.
    let found = shared_memory(qmp, &[Kind::File])?;
    Ok(found.into_iter().map(MemoryBackend::from).collect())
}

/// All memory of the guest, which must be private mappings of files.
///
/// # Errors
///
/// [`Error::NotPrivate`] if a part of the memory is not; [`Error::Reply`]; those of [`Qmp::execute`].
pub fn private_backends(qmp: &mut Qmp) -> Result<Vec<MemoryBackend>, Error> {
    let found = memory(qmp, &[Kind::File], false)?.all();
    let found = found.map_err(|Part { total, bytes: private }| Error::NotPrivate { total, private })?;
    Ok(found.into_iter().map(MemoryBackend::from).collect())
}

/// A block of memory of QEMU: the guest's, and that of its devices and of the firmware.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RamBlock {
    /// Its name, as in a migration stream.
    pub name: String,
    /// The part that is used, in bytes.
    pub bytes: u64,
    /// Where it is in the memory of QEMU's process.
    pub address: u64,
}

/// The blocks of QEMU's memory.
///
/// # Errors
///
/// [`Error::Reply`] if the answer has another form; those of [`Qmp::execute`].
pub fn ram_blocks(qmp: &mut Qmp) -> Result<Vec<RamBlock>, Error> {
    const COMMAND: &str = "x-query-ramblock";
    let reply = qmp.execute(COMMAND, json!({}))?;
    let table = text(&reply, COMMAND, "human-readable-text")?;
    // A name can have a blank; what follows it cannot.
    let block = |line: &str| {
        let mut fields = line.split_whitespace().rev();
        let _access = fields.next()?;
        let number = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok();
        let (address, _total, used, _offset) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let (_unit, _size) = (fields.next()?, fields.next()?);
        let mut name: Vec<&str> = fields.collect();
        name.reverse();
        Some(RamBlock {
            name: name.join(" "),
            bytes: number(used)?,
            address: number(address)?,
        })
    };
    let lines = table.lines().filter(|line| !line.trim().is_empty()).skip(1);
    lines
        .map(|line| {
            block(line).ok_or(Error::Reply {
                command: COMMAND,
                field: "table of blocks that is known",
            })
        })
        .collect()
}

/// All memory of the guest, which must be shared: files, and memfds.
///
/// # Errors
///
/// As for [`memory_backends`].
pub fn all_shared_memory(qmp: &mut Qmp) -> Result<Vec<SharedMemory>, Error> {
    shared_memory(qmp, &[Kind::File, Kind::Memfd])
}

/// The kinds of memory backends that can be shared.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    Memfd,
}

impl Kind {
    fn of(name: &str) -> Option<Self> {
        match name {
            "child<memory-backend-file>" => Some(Self::File),
            "child<memory-backend-memfd>" => Some(Self::Memfd),
            _ => None,
        }
    }
}

fn shared_memory(qmp: &mut Qmp, kinds: &[Kind]) -> Result<Vec<SharedMemory>, Error> {
    let found = memory(qmp, kinds, true)?.all();
    found.map_err(|Part { total, bytes: shared }| Error::NotShared { total, shared })
}

/// Memory backends of some kinds, and the size of all memory of the guest in bytes.
struct Memory {
    found: Vec<SharedMemory>,
    total: u64,
}

/// Backends that are not all memory.
struct Part {
    total: u64,
    /// Their bytes.
    bytes: u64,
}

impl Memory {
    /// The backends, if they are all memory.
    fn all(self) -> Result<Vec<SharedMemory>, Part> {
        let total = self.total;
        let bytes = self.found.iter().fold(0u64, |sum, memory| sum.saturating_add(memory.bytes));
        match bytes == total && total > 0 {
            true => Ok(self.found),
            false => Err(Part { total, bytes }),
        }
    }
}

/// The memory backends of these kinds that are shared, or are not.
fn memory(qmp: &mut Qmp, kinds: &[Kind], is_shared: bool) -> Result<Memory, Error> {
    let objects = qmp.execute("qom-list", json!({"path": "/objects"}))?;
    let mut found = Vec::new();
    for object in objects.as_array().into_iter().flatten() {
        let (id, kind) = (text(object, "qom-list", "name")?, text(object, "qom-list", "type")?);
        let Some(kind) = Kind::of(&kind).filter(|kind| kinds.contains(kind)) else {
            continue;
        };
        let mut get = |property: &str| qmp.execute("qom-get", json!({"path": format!("/objects/{id}"), "property": property}));
        if get("share")? != json!(is_shared) {
            continue;
        }
        let bytes = get("size")?.as_u64().ok_or(Error::Reply {
            command: "qom-get",
            field: "size",
        })?;
        let path = match kind {
            Kind::File => Some(PathBuf::from(get("mem-path")?.as_str().unwrap_or_default())),
            Kind::Memfd => None,
        };
        found.push(SharedMemory { id, bytes, path });
    }
    let summary = qmp.execute("query-memory-size-summary", json!({}))?;
    let part = |field| summary.get(field).and_then(Value::as_u64).unwrap_or(0);
    let total = part("base-memory").saturating_add(part("plugged-memory"));
    Ok(Memory { found, total })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::tests::{LIMIT, qemu};

    #[test]
    fn process_is_the_one_at_the_other_end_of_the_socket() {
        let (socket, thread) = qemu(&[r#"{"return": {"status": "running"}}"#]);
        let mut qmp = Qmp::new(socket, LIMIT).expect("a QEMU");
        let process = process(&mut qmp).expect("this process");
        assert_eq!(u32::try_from(process.number()), Ok(std::process::id()));
        drop(qmp);
        let commands = thread.join().expect("no panic");
        assert_eq!(
            commands.last().map(|command| &command["execute"]),
            Some(&json!("query-status"))
        );
    }

    #[test]
    fn process_is_an_error_if_qemu_does_not_answer_after_it_was_opened() {
        let (socket, _thread) = qemu(&[]);
        let mut qmp = Qmp::new(socket, LIMIT).expect("a QEMU");
        assert!(matches!(process(&mut qmp), Err(Error::Closed)));
    }

    #[test]
    fn shared_file_backends_are_found_and_other_objects_are_not() {
        let (socket, _thread) = qemu(&[
            r#"{"return": [{"name": "io0", "type": "child<iothread>"}, {"name": "ram", "type": "child<memory-backend-file>"}]}"#,
            r#"{"return": true}"#,
            r#"{"return": 8192}"#,
            r#"{"return": "/dev/vmem/guest0"}"#,
            r#"{"return": {"base-memory": 4096, "plugged-memory": 4096}}"#,
        ]);
        let mut qmp = Qmp::new(socket, LIMIT).expect("a QEMU");
        let found = memory_backends(&mut qmp).expect("all memory is shared");
        let ram = MemoryBackend {
            id: "ram".to_owned(),
            bytes: 8192,
            path: PathBuf::from("/dev/vmem/guest0"),
        };
        assert_eq!(found, [ram]);
    }

    const MEMFD: &[&str] = &[
        r#"{"return": [{"name": "ram", "type": "child<memory-backend-memfd>"}]}"#,
        r#"{"return": true}"#,
        r#"{"return": 4096}"#,
        r#"{"return": {"base-memory": 4096}}"#,
    ];

    #[test]
    fn memfd_is_shared_memory_without_a_path() {
        let (socket, _thread) = qemu(MEMFD);
        let mut qmp = Qmp::new(socket, LIMIT).expect("a QEMU");
        let found = all_shared_memory(&mut qmp).expect("all memory is shared");
        let ram = SharedMemory {
            id: "ram".to_owned(),
            bytes: 4096,
            path: None,
        };
        assert_eq!(found, [ram]);
    }

    #[test]
    fn memfd_cannot_be_left_out_of_a_migration() {
        let (socket, thread) = qemu(const { &[MEMFD[0], MEMFD[3]] });
        let mut qmp = Qmp::new(socket, LIMIT).expect("a QEMU");
        let refused = memory_backends(&mut qmp);
        assert!(matches!(refused, Err(Error::NotShared { shared: 0, .. })), "{refused:?}");
        drop(qmp);
        thread.join().expect("no panic");
    }

    #[test]
    fn guest_with_memory_that_is_not_shared_is_refused() {
        let (socket, _thread) = qemu(&[
            r#"{"return": [{"name": "ram", "type": "child<memory-backend-file>"}]}"#,
            r#"{"return": false}"#,
            r#"{"return": {"base-memory": 4096}}"#,
        ]);
        let mut qmp = Qmp::new(socket, LIMIT).expect("a QEMU");
        let refused = memory_backends(&mut qmp);
        assert!(
            matches!(refused, Err(Error::NotShared { total: 4096, shared: 0 })),
            "{refused:?}"
        );
    }

    #[test]
    fn private_file_backends_are_found_and_shared_ones_are_refused() {
        const PRIVATE: &[&str] = &[
            r#"{"return": [{"name": "ram", "type": "child<memory-backend-file>"}]}"#,
            r#"{"return": false}"#,
            r#"{"return": 4096}"#,
            r#"{"return": "/dev/vmem/base"}"#,
            r#"{"return": {"base-memory": 4096}}"#,
        ];
        let (socket, _thread) = qemu(PRIVATE);
        let found = private_backends(&mut Qmp::new(socket, LIMIT).expect("a QEMU")).expect("all memory is private");
        assert_eq!(
            (found.len(), found[0].path.as_path()),
            (1, std::path::Path::new("/dev/vmem/base"))
        );
        let (socket, _thread) = qemu(const { &[PRIVATE[0], r#"{"return": true}"#, PRIVATE[4]] });
        let refused = private_backends(&mut Qmp::new(socket, LIMIT).expect("a QEMU"));
        assert!(
            matches!(refused, Err(Error::NotPrivate { total: 4096, private: 0 })),
            "{refused:?}"
        );
    }

    #[test]
    fn table_of_blocks_is_read() {
        let (socket, _thread) = qemu(&[
            r#"{"return": {"human-readable-text": "              Block Name    PSize              Offset               Used              Total                HVA  RO\n                     ram    4 KiB  0x0000000000000000 0x0000000004000000 0x0000000004000000 0x00007f4323fff000  rw\n    /rom@etc/acpi/tables    4 KiB  0x00000000050c0000 0x0000000000020000 0x0000000000200000 0x00007f4378800000  ro\n"}}"#,
        ]);
        let found = ram_blocks(&mut Qmp::new(socket, LIMIT).expect("a QEMU")).expect("a table");
        let block = |name: &str, bytes, address| RamBlock {
            name: name.to_owned(),
            bytes,
            address,
        };
        assert_eq!(
            found,
            [
                block("ram", 64 << 20, 0x7f43_23ff_f000),
                block("/rom@etc/acpi/tables", 0x20000, 0x7f43_7880_0000)
            ]
        );
    }

    #[test]
    fn names_for_regions_are_valid() {
        let long = "a guest with a very long name/indeed";
        for name in region_names(long, "the memory of the first NUMA node") {
            assert!(vmem::Name::new(&name).is_ok(), "{name}");
        }
        let names: Vec<_> = region_names("guest0", "ram").take(2).collect();
        assert_eq!(names, ["guest0.ram", "guest0.ram.2"]);
    }

    #[test]
    fn refused_generation_id_means_no_device() {
        let (socket, _thread) = qemu(&[
            r#"{"return": {"guid": "0b8a3c5e-6f5e-4d0c-9d6c-0123456789ab"}}"#,
            r#"{"error": {"class": "GenericError", "desc": "VM Generation ID device not found"}}"#,
        ]);
        let mut qmp = Qmp::new(socket, LIMIT).expect("a QEMU");
        assert!(has_generation_id(&mut qmp).expect("a reply"));
        assert!(!has_generation_id(&mut qmp).expect("a reply"));
    }

    #[test]
    fn zero_uuid_means_no_uuid() {
        let (socket, _thread) = qemu(&[
            r#"{"return": {"UUID": "00000000-0000-0000-0000-000000000000"}}"#,
            r#"{"return": {"UUID": "0b8a3c5e-6f5e-4d0c-9d6c-0123456789ab"}}"#,
        ]);
        let mut qmp = Qmp::new(socket, LIMIT).expect("a QEMU");
        assert_eq!(uuid(&mut qmp).expect("a reply"), None);
        assert!(uuid(&mut qmp).expect("a reply").is_some());
    }
}
