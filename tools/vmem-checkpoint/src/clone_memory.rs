// SPDX-License-Identifier: GPL-2.0-or-later
//! The memory of a clone: private mappings of the regions of a base.
//!
//! That the base's checkpoint is what a clone's other pages are is proven, and not told: a wrong one would make wrong pages. The base's process
//! lives, and holds its record; the record has the numbers of its regions, which no other region gets; the nodes are of these regions; and where
//! QEMU has its memory, it maps the files that are the memory of these regions, which a mapping of this process shows.

use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vmem::{Access, MapHandle, Mapping, MapsLine, PageRange, PageSet, Sharing, maps_lines, node_path, region_at};
use vmem_process::Process;
use vmem_qemu::guest::{self, MemoryBackend, RamBlock};
use vmem_qemu::{BackendFile, Qmp};

use crate::base_record::{BaseRecord, Memory, all};
use crate::error::Error;
use crate::page_tables::private;
use crate::pages::count;

/// The memory of a clone.
pub(crate) struct CloneMemory {
    /// The base.
    pub(crate) base: BaseRecord,
    pub(crate) memories: Vec<CloneBackend>,
    /// All blocks of QEMU's memory, the guest's among them.
    pub(crate) blocks: Vec<RamBlock>,
    /// QEMU's memory, and its page table.
    pub(crate) contents: File,
    pub(crate) page_table: File,
    /// All mappings of QEMU.
    pub(crate) maps: String,
    process: i32,
}

/// A memory backend of a clone.
pub(crate) struct CloneBackend {
    pub(crate) id: String,
    pub(crate) bytes: u64,
    /// Where QEMU has it.
    pub(crate) address: u64,
    /// All of its pages.
    pub(crate) pages: PageRange,
}

impl CloneMemory {
    /// The memory of the guest of this QEMU, and its process.
    ///
    /// # Errors
    ///
    /// It is not that of a clone whose base lives and has its record in `state`.
    pub(crate) fn find(qmp: &mut Qmp, state: &Path) -> Result<(Self, Process), Error> {
        let backends = guest::private_backends(qmp)?;
        let process = guest::process(qmp)?;
        let base = all(state)?.into_iter().find(|base| has(base, &backends)).ok_or_else(|| {
            let paths: Vec<_> = backends.iter().map(|backend| backend.path.display().to_string()).collect();
            Error::other(format!(
                "the guest's memory is private ({}), and of no base that lives and has its record in {}: only clones of such a base can be \
                 checkpointed, as long as 'vmemctl checkpoint base' runs",
                paths.join(", "),
                state.display()
            ))
        })?;
        let blocks = guest::ram_blocks(qmp)?;
        let proc = PathBuf::from(format!("/proc/{}", process.number()));
        let read = |name: &str| {
            let path = proc.join(name);
            let what = format!("cannot read {}", path.display());
            fs::read_to_string(path).map_err(vmem_cli::Error::call(what))
        };
        let maps = read("maps")?;
        let mut memories = Vec::new();
        for memory in &base.memories {
            let block = blocks.iter().find(|block| is_of(block, &memory.memory));
            let block = block
                .filter(|block| block.bytes == memory.bytes)
                .ok_or_else(|| Error::other(format!("QEMU has no block of memory that is backend {:?}", memory.memory)))?;
            let expected = file_of(memory, &process)?;
            check_mapped(&maps, block, &expected)
                .map_err(|why| Error::other(format!("memory backend {:?} is not the base's: {why}", memory.memory)))?;
            memories.push(CloneBackend {
                id: memory.memory.clone(),
                bytes: memory.bytes,
                address: block.address,
                pages: PageRange::of_len(memory.bytes).ok_or_else(|| Error::other("memory of no size"))?,
            });
        }
        let open = |name: &str| {
            let path = proc.join(name);
            let what = format!("cannot open {}", path.display());
            File::open(path).map_err(vmem_cli::Error::call(what))
        };
        let (contents, page_table) = (open("mem")?, open("pagemap")?);
        // If QEMU still lives, its number was its own while all of this was opened.
        if process.wait(Duration::ZERO) {
            return Err(vmem_qemu::Error::Closed.into());
        }
        let number = process.number();
        let memory = Self {
            base,
            memories,
            blocks,
            contents,
            page_table,
            maps,
            process: number,
        };
        Ok((memory, process))
    }

    /// Whether `other` is the memory of the same guest on the same base.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let places = |memory: &Self| {
            let places = memory.memories.iter().map(|backend| (backend.id.clone(), backend.address));
            places.collect::<Vec<_>>()
        };
        self.process == other.process && self.base == other.base && places(self) == places(other)
    }

    /// The pages of each backend that the clone has for itself.
    pub(crate) fn private(&self) -> Result<Vec<PageSet>, Error> {
        let of = |backend: &CloneBackend| {
            private(&self.page_table, backend.address, backend.pages).map_err(vmem_cli::Error::call(format!(
                "cannot read the page table of process {}",
                self.process
            )))
        };
        Ok(self.memories.iter().map(of).collect::<Result<_, _>>()?)
    }

    /// How many pages the clone has for itself.
    pub(crate) fn pending(&self) -> Result<u64, Error> {
        Ok(self.private()?.iter().map(count).sum())
    }
}

/// Whether a block of QEMU is the memory of this backend: older machines name it by its path.
pub(crate) fn is_of(block: &RamBlock, backend: &str) -> bool {
    block.name == backend || block.name.strip_prefix("/objects/") == Some(backend)
}

/// Whether the base has these backends and no others.
fn has(base: &BaseRecord, backends: &[MemoryBackend]) -> bool {
    let is = |memory: &Memory, backend: &MemoryBackend| {
        memory.memory == backend.id && memory.bytes == backend.bytes && is_at(memory, &backend.path)
    };
    base.memories.len() == backends.len()
        && base
            .memories
            .iter()
            .all(|memory| backends.iter().any(|backend| is(memory, backend)))
}

/// Whether a region of the base is at this path of QEMU, which may see a mount that this process does not see. What QEMU maps there is looked at later.
fn is_at(memory: &Memory, path: &Path) -> bool {
    let is_hidden = || !path.exists() && path.file_name() == Some(memory.region.as_ref());
    region_at(path) == Some(memory.number) || is_hidden()
}

/// The device and the inode of a mapping's file.
fn file(line: &MapsLine<'_>) -> String {
    format!("{} {}", line.device, line.inode)
}

fn is_private(line: &MapsLine<'_>) -> bool {
    line.access.ends_with('p')
}

/// The file that is the memory of a region of the base, as `/proc/PID/maps` names it.
fn file_of(memory: &Memory, qemu: &Process) -> Result<String, Error> {
    let node = node_path(&memory.region);
    let failed = || Error::memory(format!("cannot look at {}", node.display()));
    let handle = MapHandle::open_path(&node, Access::ReadOnly).map_err(failed())?;
    let open = BackendFile::find(qemu, &node)?;
    open.check_descriptor(&handle)?;
    if handle.info().map_err(failed())?.id != memory.number {
        return Err(Error::other(format!(
            "{} is another region than the base's: its name was used again",
            node.display()
        )));
    }
    let mapping: Mapping = handle.map(Access::ReadOnly, Sharing::Private).map_err(failed())?;
    let maps = fs::read_to_string("/proc/self/maps").map_err(vmem_cli::Error::call("cannot read /proc/self/maps"))?;
    let address = mapping.as_ptr() as u64;
    let line = maps_lines(&maps).find(|line| line.addresses.contains(&address));
    drop(mapping);
    Ok(file(
        &line.ok_or_else(|| Error::other("a mapping is not in /proc/self/maps"))?,
    ))
}

/// Checks that all of a block is mapped privately from this file, page by page in its order.
fn check_mapped(maps: &str, block: &RamBlock, expected: &str) -> Result<(), String> {
    let mut at = block.address;
    let end = block.address + block.bytes;
    for line in maps_lines(maps) {
        if at >= end || !line.addresses.contains(&at) {
            continue;
        }
        let offset = line.offset + (at - line.addresses.start);
        if !is_private(&line) || file(&line) != expected || offset != at - block.address {
            return Err(format!("at {at:x}, QEMU maps {line:x?}, and not {expected} privately"));
        }
        at = line.addresses.end;
    }
    match at >= end {
        true => Ok(()),
        false => Err(format!("QEMU maps nothing at {at:x}")),
    }
}

/// Whether these addresses are anonymous memory: what is in no page table there is zero.
pub(crate) fn is_anonymous(maps: &str, addresses: &Range<u64>) -> bool {
    let overlaps = |line: &MapsLine<'_>| line.addresses.start < addresses.end && addresses.start < line.addresses.end;
    maps_lines(maps)
        .filter(overlaps)
        .all(|line| file(&line) == "00:00 0" && is_private(&line))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "7f0000000000-7f0000004000 rw-p 00000000 00:01 7    /vmem:guest0.ram (deleted)\n\
                        7f0000004000-7f0000005000 r--p 00004000 00:01 7    /vmem:guest0.ram (deleted)\n\
                        7f0000006000-7f0000007000 rw-p 00000000 00:00 0 \n\
                        7f0000008000-7f0000009000 rw-s 00000000 00:01 7    /vmem:guest0.ram\n";

    fn block(address: u64, bytes: u64) -> RamBlock {
        RamBlock {
            name: "/objects/ram".to_owned(),
            bytes,
            address,
        }
    }

    #[test]
    fn memory_is_the_bases_only_if_all_of_it_is_mapped_privately_from_its_file() {
        let check = |address, bytes, file: &str| check_mapped(MAPS, &block(address, bytes), file);
        check(0x7f00_0000_0000, 0x5000, "00:01 7").expect("in two parts");
        for (address, bytes, file) in [
            (0x7f00_0000_0000, 0x6000, "00:01 7"),
            (0x7f00_0000_0000, 0x5000, "00:01 8"),
            (0x7f00_0000_1000, 0x1000, "00:01 7"),
            (0x7f00_0000_8000, 0x1000, "00:01 7"),
            (0x7f00_0000_6000, 0x1000, "00:01 7"),
        ] {
            check(address, bytes, file).expect_err("it is not");
        }
    }

    #[test]
    fn anonymous_memory_is_private_and_of_no_file() {
        assert!(is_anonymous(MAPS, &(0x7f00_0000_6000..0x7f00_0000_7000)));
        assert!(!is_anonymous(MAPS, &(0x7f00_0000_4000..0x7f00_0000_7000)));
    }

    #[test]
    fn older_machines_name_a_block_by_the_path_of_its_backend() {
        assert!(is_of(&block(0, 1), "ram") && !is_of(&block(0, 1), "ram1"));
    }
}
