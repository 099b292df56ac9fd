// SPDX-License-Identifier: GPL-2.0
//! `vmemctl checkpoint export`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::json;
use vmem_checkpoint::Error;
use vmem_checkpoint::export::{self, Options};
use vmem_cli::Signals;
use vmem_migrate::report;
use vmem_store_source::Selector;

use super::in_store::InStore;
use super::paced::Paced;

#[derive(Debug, Args)]
pub(crate) struct Export {
    #[command(flatten)]
    store: InStore,
    /// What the files are for
    #[arg(long, value_enum)]
    format: Format,
    /// The directory (raw) or file to be made
    #[arg(long, value_name = "PATH")]
    output: PathBuf,
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
    };
    let paced = Paced::new(json);
    let result = export::export(&store, &args.checkpoint, &options, signals, &mut |progress| {
        paced.show(progress);
    });
    paced.end();
    result?;
    if json {
        report::print(&json!({"event": "exported", "output": args.output}));
    }
    Ok(())
}
