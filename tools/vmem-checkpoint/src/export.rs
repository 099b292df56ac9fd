// SPDX-License-Identifier: GPL-2.0-or-later
//! Writes a checkpoint into files that other programs read.
//!
//! * [`Format::Raw`]: a directory with a sparse file for each memory, the device state, and the manifest.
//! * [`Format::Qemu`]: one file that a stock QEMU loads, `-incoming file:PATH`, with nothing else given.
//! * [`Format::Firecracker`]: the memory file of a snapshot of Firecracker.
//!
//! A part of a memory can be one file instead ([`Part`]).
//!
//! Each page is verified. A page that cannot be had ends the export: no file has zeros in its place. The output gets its name when all of it
//! is there.

mod chunks;
mod output;
mod qemu;
mod raw;

use std::ops::Range;
use std::path::PathBuf;

use vmem::PAGE_SIZE;
use vmem_cli::{Progress, Signals};
use vmem_store::{BackendKind, Image, Store};
use vmem_store_source::Selector;

use crate::DEVICE_STATE;
use crate::error::Error;

/// What the files are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A directory: `NAME.raw` for each memory, `device-state` and `manifest.json`.
    Raw,
    /// A file with a migration stream of QEMU, with the memory in it.
    Qemu,
    /// A file with the guest's memory, as Firecracker loads it.
    Firecracker,
}

/// What is to be exported, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// The format.
    pub format: Format,
    /// The directory or file to be made.
    pub output: PathBuf,
    /// Replace what is there.
    pub force: bool,
    /// Only this, into one file; for [`Format::Raw`].
    pub part: Option<Part>,
}

/// A part of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The name of a memory.
    pub memory: String,
    /// These bytes of it, from the beginning of a page to the end of one; all unless given.
    pub bytes: Option<Range<u64>>,
}

/// Exports a checkpoint. `report` hears the bytes that are done.
///
/// # Errors
///
/// Nothing is left of the output, and what was there before stays: if the checkpoint cannot be read, does not suit the format, or the
/// output cannot be written; or a signal.
pub fn export(
    store: &Store,
    checkpoint: &Selector,
    options: &Options,
    signals: &Signals,
    report: &mut dyn FnMut(Progress),
) -> Result<(), Error> {
    let checkpoint = checkpoint.find(store)?;
    let image = store.hold(&checkpoint, &format!("export, process {}", std::process::id()))?;
    match (options.format, &options.part) {
        (Format::Raw, None) => raw::directory(&image, options, signals, report),
        (Format::Raw, Some(part)) => {
            let (memory, bytes) = find(&image, part)?;
            raw::file(&image, memory, bytes, options, signals, report)
        }
        (_, Some(_)) => Err(Error::other("a part of a checkpoint can be exported with --format raw only")),
        (Format::Qemu, None) => qemu::file(&image, options, signals, report),
        (Format::Firecracker, None) => firecracker(&image, options, signals, report),
    }
}

/// Firecracker's memory file has the guest's memory from its first byte to its last, with the gaps of its address space left out. That is what
/// the one file has that is the memory of a Firecracker which shares it.
fn firecracker(image: &Image, options: &Options, signals: &Signals, report: &mut dyn FnMut(Progress)) -> Result<(), Error> {
    let checkpoint = &image.manifest().checkpoint;
    if image.manifest().backend(DEVICE_STATE).is_some() {
        return Err(Error::other(format!(
            "checkpoint {checkpoint} is of a guest of QEMU, whose devices Firecracker does not have: use --format qemu or raw"
        )));
    }
    let memories: Vec<usize> = memories(image).map(|(number, _)| number).collect();
    let [memory] = *memories else {
        return Err(Error::other(format!(
            "checkpoint {checkpoint} has {} memories, and a memory file of Firecracker has one: use --format raw",
            memories.len()
        )));
    };
    let bytes = image.backends().get(memory).map_or(0, |memory| memory.bytes);
    raw::file(image, memory, 0..bytes, options, signals, report)
}

/// The number of the memory that a part is of, and the bytes.
fn find(image: &Image, part: &Part) -> Result<(usize, Range<u64>), Error> {
    let Part { memory: name, bytes } = part;
    let checkpoint = &image.manifest().checkpoint;
    let Some((number, memory)) = memories(image).find(|(_, memory)| memory.name == *name) else {
        let names: Vec<&str> = memories(image).map(|(_, memory)| memory.name.as_str()).collect();
        return Err(Error::other(format!(
            "checkpoint {checkpoint} has no memory {name:?}; it has: {}",
            names.join(", ")
        )));
    };
    let bytes = bytes.clone().unwrap_or(0..memory.bytes);
    let is_whole = |offset: u64| offset % PAGE_SIZE as u64 == 0;
    if bytes.start >= bytes.end || bytes.end > memory.bytes || !is_whole(bytes.start) || !is_whole(bytes.end) {
        return Err(Error::other(format!(
            "the bytes from {} to {} are no pages of memory {name:?}, which has {} bytes in pages of {PAGE_SIZE}",
            bytes.start, bytes.end, memory.bytes
        )));
    }
    Ok((number, bytes))
}

/// The numbers and names of the memories.
fn memories(image: &Image) -> impl Iterator<Item = (usize, &vmem_store::Backend)> {
    let backends = image.backends().iter().enumerate();
    backends.filter(|(_, backend)| backend.kind == BackendKind::Memory)
}

#[cfg(test)]
mod tests;
