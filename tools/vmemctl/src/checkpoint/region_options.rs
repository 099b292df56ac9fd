// SPDX-License-Identifier: GPL-2.0-or-later
//! Options of the commands that make regions: where programs find these, and how they are filled.

use clap::Args;
use vmem::FilesOption;
use vmem_cli::{Owner, owner};

/// Where programs find regions.
#[derive(Debug, Args)]
pub(crate) struct FilesArgument {
    /// Where the regions are files: a directory at which the file system vmem is mounted if it is not yet, or none; /run/vmem unless given
    #[arg(long, value_name = "DIR|none")]
    files: Option<FilesOption>,
}

impl FilesArgument {
    /// What was given, or what holds without it.
    pub(crate) fn option(&self) -> FilesOption {
        self.files.clone().unwrap_or_default()
    }
}

/// How regions are made and filled.
#[derive(Debug, Args)]
pub(crate) struct RegionOptions {
    #[command(flatten)]
    files: FilesArgument,
    /// Owner of the regions' files and nodes, by name or number
    #[arg(long, value_name = "[USER][:GROUP]", value_parser = owner)]
    owner: Option<Owner>,
    /// Fetch only pages that are touched
    #[arg(long)]
    no_background: bool,
}

impl RegionOptions {
    /// Where programs find the regions.
    pub(crate) fn files(&self) -> FilesOption {
        self.files.option()
    }

    /// The arguments of vmemd for it, but for `--files`.
    pub(crate) fn of_vmemd(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        if let Some(owner) = self.owner {
            arguments.extend(["--owner".to_owned(), owner.to_string()]);
        }
        if self.no_background {
            arguments.push("--no-background".to_owned());
        }
        arguments
    }
}
