// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemctl checkpoint export`.

use std::ops::Range;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use vmem_checkpoint::Error;
use vmem_checkpoint::export::{self, Options, Part};
use vmem_cli::{Signals, size};
use vmem_migrate::report;
use vmem_store_source::Selector;

use super::in_store::InStore;
use super::line::{self, CheckpointLine};
use super::paced::Paced;

#[derive(Debug, Args)]
pub(crate) struct Export {
    #[command(flatten)]
    store: InStore,
    /// What the files are for
    #[arg(long, value_enum)]
    format: Format,
    /// The directory (raw, without --memory) or file to be made
    #[arg(long, value_name = "PATH")]
    output: PathBuf,
    /// Only this memory, as one file (raw)
    #[arg(long, value_name = "ID")]
    memory: Option<String>,
    /// Of it only so many bytes from this offset on, in whole pages; suffixes K, M, G, T
    #[arg(long, value_name = "OFFSET+BYTES", requires = "memory", value_parser = range)]
    range: Option<Range<u64>>,
    /// Replace what is there
    #[arg(long)]
    force: bool,
    /// The checkpoint
    #[arg(value_name = "GUEST[@N|@latest]")]
    checkpoint: Selector,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// A directory with a sparse file for each memory, the device state and the manifest
    Raw,
    /// A file that QEMU loads with -incoming file:PATH
    Qemu,
    /// The memory file of a snapshot of Firecracker
    Firecracker,
}

/// Parses `OFFSET+BYTES`.
fn range(text: &str) -> Result<Range<u64>, String> {
    let (offset, bytes) = text
        .split_once('+')
        .ok_or_else(|| format!("{text:?} is not of the form OFFSET+BYTES"))?;
    // An offset of 0 is no size.
    let offset = if offset == "0" { 0 } else { size(offset)? };
    let end = offset.checked_add(size(bytes)?);
    Ok(offset..end.ok_or_else(|| format!("{text:?} is beyond all memory"))?)
}

pub(super) fn run(args: &Export, signals: &Signals, json: bool) -> Result<(), Error> {
    let store = args.store.open()?;
    let options = Options {
        format: match args.format {
            Format::Raw => export::Format::Raw,
            Format::Qemu => export::Format::Qemu,
            Format::Firecracker => export::Format::Firecracker,
        },
        output: args.output.clone(),
        force: args.force,
        part: args.memory.clone().map(|memory| Part {
            memory,
            bytes: args.range.clone(),
        }),
    };
    let paced = Paced::new(json);
    let result = export::export(&store, &args.checkpoint, &options, signals, &mut |progress| {
        paced.show(progress);
    });
    paced.end();
    result?;
    if json {
        report::print(&CheckpointLine::Exported {
            output: line::path(&args.output),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_have_an_offset_and_a_size() {
        assert_eq!(range("0+4K"), Ok(0..4096));
        assert_eq!(range("1G+8192"), Ok(1 << 30..(1 << 30) + 8192));
        for text in ["", "4K", "+", "1M+0", "1M+", "18446744073709551615+2", "-1+4K"] {
            assert!(range(text).is_err(), "{text:?}");
        }
    }
}
