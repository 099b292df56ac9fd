// SPDX-License-Identifier: GPL-2.0-or-later
//! Reads a memory of a checkpoint in order, several chunks at a time: a store may be far away.

use std::thread;

use vmem::{PAGE_SIZE, PageRange};
use vmem_cli::Signals;
use vmem_store::{Image, PageState};

use crate::error::Error;

/// Pages that are read at once: 1 MiB.
const CHUNK: u64 = 256;

/// Chunks that are read at the same time.
const THREADS: usize = 4;

/// Pages that are asked for at once, when the index is read.
const STEP: u64 = 1 << 16;

/// What a piece of a backend has.
pub(super) enum Piece<'a> {
    /// These pages are zero.
    Zero(PageRange),
    /// The pages from this one on have these contents.
    Data(PageRange, &'a [u8]),
}

/// Hands these pages of a backend to `each`, in order.
pub(super) fn for_each(
    image: &Image,
    backend: usize,
    pages: Option<PageRange>,
    signals: &Signals,
    mut each: impl FnMut(Piece<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut buffers = vec![vec![0; CHUNK as usize * PAGE_SIZE]; THREADS];
    let mut rest = pages;
    while let Some(left) = rest {
        let (step, after) = left.split_at(STEP);
        rest = after;
        let mut chunks = Vec::new();
        for extent in step.map_or_else(|| Ok(Vec::new()), |step| image.extents(backend, step))? {
            if extent.state == PageState::Zero {
                flush(image, backend, &mut chunks, &mut buffers, signals, &mut each)?;
                each(Piece::Zero(extent.pages))?;
                continue;
            }
            let mut rest = Some(extent.pages);
            while let Some(left) = rest {
                let (chunk, after) = left.split_at(CHUNK);
                chunks.extend(chunk);
                rest = after;
                if chunks.len() == THREADS {
                    flush(image, backend, &mut chunks, &mut buffers, signals, &mut each)?;
                }
            }
        }
        flush(image, backend, &mut chunks, &mut buffers, signals, &mut each)?;
    }
    Ok(())
}

fn flush(
    image: &Image,
    backend: usize,
    chunks: &mut Vec<PageRange>,
    buffers: &mut [Vec<u8>],
    signals: &Signals,
    each: &mut impl FnMut(Piece<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    signals.check()?;
    let mut work: Vec<(PageRange, &mut [u8])> = chunks
        .drain(..)
        .zip(buffers)
        .filter_map(|(pages, buffer)| Some((pages, buffer.get_mut(..pages.count() as usize * PAGE_SIZE)?)))
        .collect();
    match work.as_mut_slice() {
        [] => {}
        // A thread for one chunk would be made for nothing.
        [(pages, buffer)] => read(image, backend, *pages, buffer)?,
        several => thread::scope(|scope| {
            let started: Vec<_> = several
                .iter_mut()
                .map(|(pages, buffer)| scope.spawn(|| read(image, backend, *pages, buffer)))
                .collect();
            let panicked = || Err(Error::Thread(std::io::Error::other("it has panicked")));
            let done = started.into_iter().map(|thread| thread.join().unwrap_or_else(|_| panicked()));
            // All threads have to end.
            done.fold(Ok(()), Result::and)
        })?,
    }
    work.into_iter()
        .try_for_each(|(pages, buffer)| each(Piece::Data(pages, buffer)))
}

fn read(image: &Image, backend: usize, pages: PageRange, buffer: &mut [u8]) -> Result<(), Error> {
    let failed = image.read_pages(backend, pages, buffer)?;
    let Some((page, error)) = failed.into_iter().next() else {
        return Ok(());
    };
    let name = image.backends().get(backend).map_or("", |backend| &backend.name);
    let what = format!(
        "page {page} of {name:?} in checkpoint {} cannot be read, and is never taken for zeros",
        image.manifest().checkpoint
    );
    Err(vmem_cli::Error::call(what)(error).into())
}
