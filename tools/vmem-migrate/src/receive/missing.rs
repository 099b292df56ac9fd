// SPDX-License-Identifier: GPL-2.0-or-later
//! The pages that a guest lacks: a list of them, or marking them unreadable. A guest of a tebibyte can have a hundred million runs of
//! missing pages, so nothing here holds all runs in memory.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use vmem::{Access, Control, MapHandle, PageRange};
use vmem_cli::chain;

use crate::error::{Cause, Error};
use crate::record::StateDir;

/// The largest number of listed runs. The list is in memory on most hosts, and takes about 30 bytes a run.
const MOST_RUNS: u64 = 1 << 20;

/// The number of ranges that are marked in one call.
const BATCH: usize = 4096;

/// Writes the missing pages into a file. Returns a text with their number and the path.
pub(super) fn list(regions: &[String], state_dir: &StateDir) -> String {
    let path = state_dir.path("missing");
    let listed = File::create(&path)
        .map_err(Cause::call(path.display().to_string()))
        .and_then(|file| write_all(regions, BufWriter::new(file), &path));
    match listed {
        Ok(pages) => format!(
            "{pages} pages are missing, listed in {} (region, first page, count)",
            path.display()
        ),
        Err(cause) => format!("pages are missing, and cannot be listed: {}", chain(&cause)),
    }
}

fn write_all(regions: &[String], mut to: impl Write, path: &Path) -> Result<u64, Cause> {
    let failed = || Cause::call(path.display().to_string());
    let (mut pages, mut left) = (0, MOST_RUNS);
    for name in regions {
        let map = MapHandle::open(name, Access::ReadOnly).and_then(|handle| handle.present_map());
        let map = map.map_err(Cause::call(format!("region {name}: cannot read which pages are missing")))?;
        pages += write(name, map.absent(), &mut left, &mut to).map_err(failed())?;
    }
    to.flush().map_err(failed())?;
    Ok(pages)
}

/// Writes one line for each run until `left` is 0. One further line has the number of the unlisted pages.
fn write(name: &str, runs: impl Iterator<Item = PageRange>, left: &mut u64, mut to: impl Write) -> io::Result<u64> {
    let (mut pages, mut unlisted) = (0, 0);
    for run in runs {
        pages += run.count();
        if *left > 0 {
            *left -= 1;
            writeln!(to, "{name} {} {}", run.first().get(), run.count())?;
        } else {
            unlisted += run.count();
        }
    }
    if unlisted > 0 {
        writeln!(to, "# {name}: {unlisted} more pages in runs that are not listed")?;
    }
    Ok(pages)
}

/// Marks the missing pages unreadable: every touch of one raises SIGBUS.
pub(super) fn poison(regions: &[String], control: &Control) -> Result<(), Error> {
    for name in regions {
        let failed = |error| {
            Error::Unfinished(Cause::call(format!(
                "region {name}: cannot mark the missing pages as unreadable"
            ))(error))
        };
        let region = control.attach(name).map_err(failed)?;
        let map = region.present_map().map_err(failed)?;
        let mut absent = map.absent();
        loop {
            let batch: Vec<PageRange> = absent.by_ref().take(BATCH).collect();
            if batch.is_empty() {
                break;
            }
            region.mark_unreadable(&batch).complete().map_err(failed)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vmem::PageIndex;

    use super::*;

    fn runs(count: u64) -> impl Iterator<Item = PageRange> {
        (0..count).filter_map(|number| PageRange::new(PageIndex::new(2 * number)?, 1))
    }

    #[test]
    fn list_has_a_line_for_each_run() {
        let (mut left, mut text) = (MOST_RUNS, Vec::new());
        assert_eq!(write("ram", runs(2), &mut left, &mut text).expect("room"), 2);
        assert_eq!(String::from_utf8_lossy(&text), "ram 0 1\nram 2 1\n");
    }

    /// Counts the written bytes without keeping them.
    #[derive(Default)]
    struct Counted(u64);

    impl Write for &mut Counted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len() as u64;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn list_of_many_runs_is_bounded() {
        let mut counted = Counted::default();
        let mut left = MOST_RUNS;
        let all = 1 << 22;
        assert_eq!(write("guest0.ram", runs(all), &mut left, &mut counted).expect("room"), all);
        assert_eq!(left, 0);
        assert!(counted.0 < 64 << 20, "{} bytes", counted.0);
    }
}
