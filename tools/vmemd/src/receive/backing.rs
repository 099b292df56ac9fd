// SPDX-License-Identifier: GPL-2.0-or-later
//! Backing: the kernel reads touched pages from the source's file by itself, and vmemd is not asked for them.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::io::Errno;
use vmem::{Backing, Control, Error, PAGE_SIZE, PageRange, Region};
use vmem_cli::{bytes, chain};
use vmem_source::Export;
use vmem_source::backing::BackingFile;

use crate::cli::Receive;
use crate::failure::Failure;

/// Files of the source, and whether the kernel reads them.
pub(super) struct Backings {
    files: Vec<BackingFile>,
    /// How many pages one touch reads; 0 is what the module chooses.
    around: u32,
    /// The module has the call.
    is_known: bool,
    /// Why no file becomes backing.
    obstacle: Option<&'static str>,
}

impl Backings {
    pub(super) fn new(files: Vec<BackingFile>, args: &Receive, control: &Control) -> Result<Self, Failure> {
        let is_known = control.features().map_err(Failure::kernel("GET_FEATURES"))?.backing;
        let files = if args.no_backing { Vec::new() } else { files };
        Ok(Self {
            files,
            around: around(args),
            is_known,
            obstacle: obstacle(args, is_known),
        })
    }

    /// Takes away the backing that another daemon has left: it may be of another file than this source's.
    pub(super) fn withdraw(&self, regions: &[Arc<Region>]) -> Result<(), Failure> {
        let of = |region: &Arc<Region>| region.withdraw_backing(region.pages());
        match self.is_known {
            true => regions.iter().try_for_each(of).map_err(Failure::kernel("SET_BACKING")),
            false => Ok(()),
        }
    }

    /// Gives each region the file of its export as backing, and says where that cannot be. Returns whether a region has backing.
    pub(super) fn set(&self, exports: &[Export], regions: &[Arc<Region>], names: &[String]) -> bool {
        let mut is_backed = false;
        for ((export, region), name) in exports.iter().zip(regions).zip(names) {
            let Some(file) = self.files.iter().find(|file| file.export == export.name) else {
                continue;
            };
            let path = file.path.display();
            match self.set_one(region, file) {
                Ok(pages) => {
                    is_backed = true;
                    let size = bytes(pages.count() * PAGE_SIZE as u64);
                    tracing::info!("{name}: the kernel reads touched pages from {path} by itself ({size})");
                }
                Err(why) => tracing::info!("{name}: the kernel does not read {path} by itself, vmemd answers each touch: {why}"),
            }
        }
        is_backed
    }

    fn set_one(&self, region: &Region, file: &BackingFile) -> Result<PageRange, String> {
        if let Some(obstacle) = self.obstacle {
            return Err(obstacle.to_owned());
        }
        let pages = file.pages.ok_or("the file has no whole page")?;
        let backing = Backing {
            file: file.file.as_fd(),
            offset: 0,
            around: self.around,
        };
        region
            .set_backing(pages, backing)
            .map(|()| pages)
            .map_err(|error| refusal(&error))
    }
}

/// One page where only touched pages are wanted.
fn around(args: &Receive) -> u32 {
    match args.prefetch {
        Some(0) => 1,
        None if args.no_background => 1,
        _ => 0,
    }
}

fn obstacle(args: &Receive, is_known: bool) -> Option<&'static str> {
    if !is_known {
        return Some("the module is of a version that cannot do it");
    }
    args.report_touches
        .then_some("--report-touches reports what vmemd is asked for")
}

/// Why the module has refused a file, in words.
fn refusal(error: &Error) -> String {
    let words = match error {
        Error::Plain => "the region is plain memory",
        Error::Invalid { .. } => "it is not a regular file with a page cache",
        Error::Other {
            source: Errno::OPNOTSUPP,
            ..
        } => "a program may serve its file system (FUSE, 9p, Coda), or it is on hugetlbfs",
        Error::Other { source: Errno::LOOP, .. } => "it is memory of a region",
        _ => return chain(error),
    };
    words.to_owned()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    fn args(line: &str) -> Receive {
        let line = format!("vmemd --source file:a=/b {line}");
        Cli::parse_from(line.split_whitespace()).receive.expect("a destination")
    }

    #[test]
    fn touch_reads_one_page_where_no_other_is_wanted() {
        for (line, expected) in [
            ("", 0),
            ("--prefetch 0", 1),
            ("--prefetch 8", 0),
            ("--no-background", 1),
            ("--no-background --prefetch 8", 0),
        ] {
            assert_eq!(around(&args(line)), expected, "{line}");
        }
    }

    #[test]
    fn old_module_and_reports_of_touches_are_obstacles() {
        assert_eq!(obstacle(&args(""), true), None);
        assert!(obstacle(&args(""), false).is_some_and(|why| why.contains("the module")));
        assert!(obstacle(&args("--json --report-touches"), true).is_some_and(|why| why.contains("--report-touches")));
    }
}
