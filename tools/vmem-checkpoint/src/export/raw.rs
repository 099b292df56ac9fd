// SPDX-License-Identifier: GPL-2.0-or-later
//! Sparse files, as programs that know nothing of vmem read them.

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use vmem::{PAGE_SIZE, PageRange};
use vmem_cli::{Progress, Signals};
use vmem_store::Image;
use vmem_store_source::{MANIFEST_FILE, backend_files};

use super::Options;
use super::chunks::{self, Piece};
use super::output::Output;
use crate::error::Error;

/// A directory with all backends.
pub(super) fn directory(
    image: &Image,
    options: &Options,
    signals: &Signals,
    report: &mut dyn FnMut(Progress),
) -> Result<(), Error> {
    let names = backend_files(image.manifest());
    let size = image.backends().iter().map(|backend| backend.bytes).sum();
    let mut files = names.clone();
    files.push(MANIFEST_FILE.to_owned());
    let output = Output::directory(&options.output, options.force, files)?;
    let mut before = 0;
    for (number, (name, backend)) in names.iter().zip(image.backends()).enumerate() {
        let file = output.create(name)?;
        write(image, number, 0..backend.bytes, &output, &file, signals, &mut |done| {
            report(Progress {
                done: before + done,
                size,
            });
        })?;
        before += backend.bytes;
    }
    let text = serde_json::to_vec_pretty(image.manifest()).unwrap_or_default();
    let mut manifest = output.create(MANIFEST_FILE)?;
    let written = manifest.write_all(&text).and_then(|()| manifest.sync_all());
    written.map_err(|error| output.failed(error))?;
    output.finish()
}

/// One file with these bytes of one backend, from the beginning of a page on.
pub(super) fn file(
    image: &Image,
    backend: usize,
    bytes: Range<u64>,
    options: &Options,
    signals: &Signals,
    report: &mut dyn FnMut(Progress),
) -> Result<(), Error> {
    let size = bytes.end - bytes.start;
    let (output, file) = Output::file(&options.output, options.force)?;
    write(image, backend, bytes, &output, &file, signals, &mut |done| {
        report(Progress { done, size })
    })?;
    output.finish()
}

/// Writes a part of a backend, with holes where it is zero.
fn write(
    image: &Image,
    backend: usize,
    bytes: Range<u64>,
    output: &Output,
    file: &File,
    signals: &Signals,
    report: &mut dyn FnMut(u64),
) -> Result<(), Error> {
    let len = bytes.end - bytes.start;
    file.set_len(len).map_err(|error| output.failed(error))?;
    let first = bytes.start / PAGE_SIZE as u64;
    let pages = PageRange::from_pgoff(first, bytes.end.div_ceil(PAGE_SIZE as u64) - first);
    chunks::for_each(image, backend, pages, signals, |piece| {
        let end = match piece {
            Piece::Zero(pages) => pages.bytes().end - bytes.start,
            Piece::Data(pages, contents) => {
                let first = pages.bytes().start - bytes.start;
                // The last page of other bytes than memory may be a part of one.
                let count = contents.len().min((len - first).try_into().unwrap_or(usize::MAX));
                let contents = contents.get(..count).unwrap_or_default();
                file.write_all_at(contents, first).map_err(|error| output.failed(error))?;
                first + contents.len().next_multiple_of(PAGE_SIZE) as u64
            }
        };
        report(end.min(len));
        Ok(())
    })?;
    file.sync_all().map_err(|error| output.failed(error))
}
