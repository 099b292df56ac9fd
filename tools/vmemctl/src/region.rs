// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemctl region`: shows regions and the shared memory of programs that do not use vmem, and copies their content.

mod copy;
mod image;
mod info;
pub(crate) mod line;
mod list;
mod memory;
mod snapshot;
mod watch;

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use vmem::{Descriptor, DescriptorInfo, Info, TrackingInfo};
use vmem_cli::Error;

use crate::cli::{Cli, Region, RegionCommand};

/// Executes the subcommand.
pub(crate) fn run(cli: &Cli, args: &Region) -> Result<(), Error> {
    match &args.command {
        RegionCommand::List => list::run(cli.common.json),
        RegionCommand::Info(args) => info::run(args, cli.common.json),
        RegionCommand::Watch(args) => watch::run(args, cli.common.json),
        RegionCommand::Snapshot(args) => snapshot::run(args, cli.common.json),
    }
}

/// Prints a line on standard output, and waits for the reader. No other process waits for this program, and a long list must not lose
/// lines.
fn out(line: &str) {
    // A reader that has ended misses the line.
    let _ = writeln!(io::stdout(), "{line}");
}

/// The state of a region or of adopted memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) enum State {
    /// All pages are present, and the mappings are plain.
    Plain,
    /// A daemon serves it.
    Served,
    /// A daemon is attached, and does not serve yet.
    Attached,
    /// No daemon is attached.
    Detached,
    /// It is no region: its writes are logged.
    Tracked,
    /// It is no region: its writes can be logged.
    Adopted,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Served => "served",
            Self::Attached => "attached",
            Self::Detached => "detached",
            Self::Tracked => "tracked",
            Self::Adopted => "adopted",
        }
    }
}

/// A line for programs.
fn json(line: &impl Serialize) -> String {
    // Numbers and texts: serializing them does not fail.
    serde_json::to_value(line).unwrap_or_default().to_string()
}

/// The state of a region.
fn state(info: &Info) -> State {
    match info {
        Info { plain: true, .. } => State::Plain,
        Info {
            ready: true,
            attached: true,
            ..
        } => State::Served,
        Info { attached: true, .. } => State::Attached,
        _ => State::Detached,
    }
}

/// Whether memory is adopted, and whether it is tracked.
fn adoption(figures: &TrackingInfo) -> State {
    if figures.tracked { State::Tracked } else { State::Adopted }
}

/// The figures of the log of the memory of these descriptors, if it is adopted.
fn figures_of<'a>(descriptors: impl IntoIterator<Item = &'a Descriptor>) -> Option<&'a TrackingInfo> {
    descriptors.into_iter().find_map(|descriptor| match &descriptor.memory {
        DescriptorInfo::Adopted { info, .. } => Some(info),
        _ => None,
    })
}

/// A path that another process has chosen, for a terminal.
fn shown(path: &Path) -> String {
    path.to_string_lossy().escape_debug().to_string()
}

/// The processes that have these descriptors, each once, for users.
fn holders<'a>(descriptors: impl Iterator<Item = &'a Descriptor>) -> String {
    let mut found: Vec<&Descriptor> = descriptors.collect();
    found.dedup_by_key(|descriptor| descriptor.pid);
    let words: Vec<String> = found
        .iter()
        .map(|descriptor| format!("{} ({})", descriptor.command.escape_debug(), descriptor.pid))
        .collect();
    if words.is_empty() { "-".to_owned() } else { words.join(", ") }
}
