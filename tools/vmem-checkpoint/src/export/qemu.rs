// SPDX-License-Identifier: GPL-2.0-or-later
//! One file that a QEMU loads which knows nothing of vmem.

use std::io::BufWriter;

use vmem::{PAGE_SIZE, PageRange};
use vmem_cli::{Progress, Signals};
use vmem_qemu::plain_stream::PlainStream;
use vmem_store::Image;

use super::chunks::{self, Piece};
use super::output::Output;
use super::{Options, memories};
use crate::device_state::device_state;
use crate::error::Error;

/// A file with the memory and the devices.
pub(super) fn file(image: &Image, options: &Options, signals: &Signals, report: &mut dyn FnMut(Progress)) -> Result<(), Error> {
    let checkpoint = &image.manifest().checkpoint;
    let state = device_state(image)?;
    let stream = PlainStream::of(&state).map_err(vmem_cli::Error::call(format!("checkpoint {checkpoint}")))?;
    let mut blocks = Vec::new();
    for (backend, memory) in memories(image) {
        let Some((number, block)) = stream.block_of(&memory.name) else {
            let known: Vec<_> = stream.blocks().iter().map(|block| &block.name).collect();
            return Err(Error::other(format!(
                "checkpoint {checkpoint}: QEMU's device state has no block for memory backend {:?}, but {known:?}",
                memory.name
            )));
        };
        if block.bytes != memory.bytes {
            return Err(Error::other(format!(
                "checkpoint {checkpoint}: memory backend {:?} has {} bytes, and {} in QEMU's device state",
                memory.name, memory.bytes, block.bytes
            )));
        }
        blocks.push((backend, number, block.bytes));
    }
    let size = blocks.iter().map(|(_, _, bytes)| bytes).sum();
    let (output, file) = Output::file(&options.output, options.force)?;
    let buffered = BufWriter::with_capacity(1 << 20, file);
    let mut pages = stream.write_to(buffered).map_err(|error| output.failed(error))?;
    let mut before = 0;
    for (backend, block, bytes) in blocks {
        let all = PageRange::of_len(bytes);
        chunks::for_each(image, backend, all, signals, |piece| {
            let (range, written) = match piece {
                Piece::Zero(range) => (range, range.iter().try_for_each(|page| pages.zero(block, page.offset()))),
                Piece::Data(range, contents) => {
                    let contents = contents.chunks_exact(PAGE_SIZE).filter_map(|page| page.first_chunk());
                    let mut all = range.iter().zip(contents);
                    (
                        range,
                        all.try_for_each(|(page, contents)| pages.page(block, page.offset(), contents)),
                    )
                }
            };
            written.map_err(|error| output.failed(error))?;
            report(Progress {
                done: before + range.bytes().end,
                size,
            });
            Ok(())
        })?;
        before += bytes;
    }
    let written = pages
        .finish()
        .and_then(|buffered| buffered.into_inner().map_err(|error| error.into_error()));
    let synced = written.and_then(|file| file.sync_all());
    synced.map_err(|error| output.failed(error))?;
    output.finish()
}
