// SPDX-License-Identifier: GPL-2.0-or-later
//! The memory of a clone's devices and of its firmware, and the device state of its checkpoint.
//!
//! QEMU saves devices without a migration, and without this memory: the display's, for example. A migration has it in its section `ram`. So it is copied
//! while the guest stands still, and put where a migration would have it.

use std::os::unix::fs::FileExt;

use vmem::{PAGE_SIZE, PageRange};
use vmem_qemu::guest::RamBlock;
use vmem_qemu::plain_stream::{PlainStream, StreamError};

use crate::MAX_DEVICE_STATE;
use crate::clone_memory::{CloneMemory, is_anonymous, is_of};
use crate::error::Error;
use crate::page_tables::private;

/// The blocks that a migration would have in its stream, besides the guest's memory.
pub(crate) struct OtherMemory {
    /// Each block, and whether what is in no page table is zero there.
    blocks: Vec<(RamBlock, bool)>,
}

impl OtherMemory {
    /// Finds the blocks that `state` has, which is the device state of the base.
    ///
    /// # Errors
    ///
    /// QEMU has not all of them, or they are larger than a device state may be.
    pub(crate) fn of(memory: &CloneMemory, state: &[u8]) -> Result<Self, Error> {
        let stream = PlainStream::of(state).map_err(unknown)?;
        let mut blocks = Vec::new();
        let mut bytes = 0_u64;
        for listed in stream.blocks() {
            let found = memory.blocks.iter().find(|block| block.name == listed.name);
            let block = found.filter(|block| block.bytes == listed.bytes).ok_or_else(|| {
                Error::other(format!(
                    "QEMU has no memory {:?} of {} bytes, as the base's checkpoint has: its devices are others",
                    listed.name, listed.bytes
                ))
            })?;
            if memory.memories.iter().any(|backend| is_of(block, &backend.id)) {
                continue;
            }
            bytes = bytes.saturating_add(block.bytes);
            let addresses = block.address..block.address + block.bytes;
            blocks.push((block.clone(), is_anonymous(&memory.maps, &addresses)));
        }
        if bytes > MAX_DEVICE_STATE as u64 {
            return Err(Error::StateTooLong(MAX_DEVICE_STATE));
        }
        Ok(Self { blocks })
    }

    /// Copies them.
    pub(crate) fn copy(&self, memory: &CloneMemory) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let mut copies = Vec::new();
        for (block, is_anonymous) in &self.blocks {
            let mut contents = vec![0; block.bytes as usize];
            let failed = || vmem_cli::Error::call(format!("cannot read the memory {} of QEMU", block.name));
            let pages = PageRange::of_len(block.bytes).filter(|_| block.bytes % PAGE_SIZE as u64 == 0);
            match pages.filter(|_| *is_anonymous) {
                Some(pages) => {
                    let used = private(&memory.page_table, block.address, pages).map_err(failed())?;
                    for run in used.runs() {
                        let bytes = run.bytes();
                        let part = &mut contents[bytes.start as usize..bytes.end as usize];
                        memory
                            .contents
                            .read_exact_at(part, block.address + bytes.start)
                            .map_err(failed())?;
                    }
                }
                None => memory
                    .contents
                    .read_exact_at(&mut contents, block.address)
                    .map_err(failed())?,
            }
            copies.push((block.name.clone(), contents));
        }
        Ok(copies)
    }
}

/// The device state of a checkpoint: begins as that of the base, and has this memory and these devices.
///
/// # Errors
///
/// One of them has a form that is not known.
pub(crate) fn device_state(base: &[u8], memory: &[(String, Vec<u8>)], devices: &[u8]) -> Result<Vec<u8>, Error> {
    const ZERO: [u8; PAGE_SIZE] = [0; PAGE_SIZE];
    let stream = PlainStream::with_devices(base, devices).map_err(unknown)?;
    let failed = || vmem_cli::Error::call("cannot write the device state");
    let mut pages = stream.write_to(Vec::new()).map_err(failed())?;
    for (name, contents) in memory {
        let blocks = stream.blocks();
        let number = blocks.iter().position(|block| block.name == *name);
        let number = number.ok_or_else(|| Error::other(format!("the base's checkpoint has no memory {name:?}")))?;
        for (page, contents) in contents.chunks(PAGE_SIZE).enumerate() {
            let offset = (page * PAGE_SIZE) as u64;
            let mut whole = ZERO;
            whole[..contents.len()].copy_from_slice(contents);
            match whole == ZERO {
                true => pages.zero(number, offset).map_err(failed())?,
                false => pages.page(number, offset, &whole).map_err(failed())?,
            }
        }
    }
    let state = pages.finish().map_err(failed())?;
    match state.len() <= MAX_DEVICE_STATE {
        true => Ok(state),
        false => Err(Error::StateTooLong(MAX_DEVICE_STATE)),
    }
}

fn unknown(error: StreamError) -> Error {
    Error::other(format!("the clone cannot be checkpointed: {error}"))
}
