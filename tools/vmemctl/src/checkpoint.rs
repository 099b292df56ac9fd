// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemctl checkpoint`: makes checkpoints of guests and programs, restores them, and looks at what a store has.

mod agent;
mod args;
mod base;
mod clone;
mod create;
mod export;
mod hooks;
mod in_store;
mod inspect;
mod keep;
mod key;
pub(crate) mod line;
mod maintain;
mod mount;
mod nbd;
mod overlays;
mod paced;
mod patience;
mod region_options;
mod restore;
mod squash;

use vmem_checkpoint::Error;
use vmem_cli::Signals;
use vmem_migrate::options::Common;
use vmem_migrate::report::Report;

pub(crate) use args::Checkpoint;
use args::Command;

/// Executes one of the commands.
pub(crate) fn run(args: &Checkpoint, common: &Common) -> Result<(), Error> {
    match &args.command {
        Command::Init(args) => inspect::init(args, common.json),
        Command::Create(args) => create::run(args, &catch()?, common),
        Command::Thaw(args) => agent::thaw(args),
        Command::Continue(args) => agent::go_on(args),
        Command::Restore(args) => restore::run(args, &catch()?, common),
        Command::Base(args) => base::run(args, &catch()?, common),
        Command::Clone(args) => clone::run(args, &catch()?, common),
        Command::Export(args) => export::run(args, &catch()?, common.json),
        Command::List(args) => inspect::list(args, common.json),
        Command::Show(args) => inspect::show(args, common.json),
        Command::Rm(args) => inspect::remove(args, common.json),
        Command::Protect(args) => inspect::protect(args),
        Command::Prune(args) => maintain::prune(args, common.json),
        Command::Squash(args) => squash::run(args, common.json),
        Command::Verify(args) => maintain::verify(args, common.json),
        Command::Diff(args) => maintain::diff(args, common.json),
        Command::Mount(args) => mount::run(args, &catch()?, common.json),
        Command::Nbd(args) => nbd::run(args, &catch()?, common),
        Command::Gc(args) => maintain::gc(args, common.json),
        Command::MergeOverlays(args) => overlays::merge(args, &catch()?, common.json),
        Command::Key(args) => key::run(args, common.json),
    }
}

/// Whether the command starts programs that outlive it.
pub(crate) fn needs_scope(args: &Checkpoint) -> bool {
    matches!(args.command, Command::Restore(_) | Command::Base(_) | Command::Clone(_))
}

fn catch() -> Result<Signals, Error> {
    Ok(Signals::catch().map_err(vmem_cli::Error::call("cannot catch signals"))?)
}

/// Reports a note.
fn note(json: bool, text: &str) {
    Report::new(json).note(text);
}
