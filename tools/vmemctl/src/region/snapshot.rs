// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemctl region snapshot`: writes the content of a region, or of the shared memory of a process, at one instant to a file.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vmem::{Control, PAGE_SIZE, SnapshotInfo, SnapshotOptions};
use vmem_cli::{Error, Signals, output};

use super::copy::{Copied, Copy};
use super::image::PartialImage;
use super::line::RegionLine;
use super::memory::Memory;
use super::shown;
use crate::cli::RegionSnapshot;
use vmem_migrate::report::Report;

/// Takes the snapshot and writes it. After a failure or a signal, there is no file, and the memory is as before.
pub(super) fn run(args: &RegionSnapshot, json: bool) -> Result<(), Error> {
    let signals = Signals::catch().map_err(Error::call("cannot catch signals"))?;
    let memory = Memory::open(&args.memory)?;
    let what = memory.what();
    let failed = || Error::call(what);
    let control = Control::open().map_err(Error::call(vmem_cli::NO_MODULE))?;
    let image = PartialImage::create(&args.out, args.force)?;
    let adopted = control.adopt(&memory).map_err(failed())?;
    let tracking = adopted.track().map_err(failed())?;
    // Each page is read once. Its copy is then freed, and the kernel copies the page no more when programs write to it.
    let options = SnapshotOptions::default().once(true).limit(args.limit.unwrap_or(0));
    let snapshot = tracking.snapshot(options).map_err(failed())?;
    let (size, closed, began) = (snapshot.size(), snapshot.closed(), Instant::now());
    let mut report = Report::new(json);
    report.note(&format!(
        "{what}: snapshot of {} taken, writers were held up for {:.2} ms",
        vmem_cli::bytes(size),
        closed.as_secs_f64() * 1e3
    ));
    let snapshot = Arc::new(snapshot);
    let copied = Copy::new(&snapshot, &image, &mut report, &signals, what).write(args.skip_absent)?;
    let figures = snapshot.info().map_err(failed())?;
    // The disk may take long, and the snapshot must not slow the programs down meanwhile.
    drop(snapshot);
    tracking.stop().map_err(failed())?;
    image.finish(&signals)?;
    report.end_progress();
    if args.skip_absent {
        report.note(&format!(
            "{what}: {} pages were absent and are left out: they are holes of {}",
            copied.left_out,
            shown(&args.out)
        ));
    }
    let summary = Summary {
        args,
        size,
        copied,
        figures,
        closed,
        took: began.elapsed(),
    };
    summary.print(json);
    Ok(())
}

/// The summary at the end.
struct Summary<'a> {
    args: &'a RegionSnapshot,
    size: u64,
    copied: Copied,
    figures: SnapshotInfo,
    closed: Duration,
    took: Duration,
}

impl Summary<'_> {
    fn print(&self, json: bool) {
        if json {
            output::json(&super::json(&self.line()));
        } else {
            self.lines().iter().for_each(|line| output::out(line));
        }
    }

    fn line(&self) -> RegionLine<'_> {
        RegionLine::Snapshot {
            file: self.args.out.to_string_lossy(),
            bytes: self.size,
            data_bytes: self.copied.data,
            left_out: self.copied.left_out,
            copied: self.figures.copied,
            closed_seconds: self.closed.as_secs_f64(),
            total_seconds: self.took.as_secs_f64(),
        }
    }

    fn lines(&self) -> [String; 6] {
        let pages = |bytes: u64| format!("{} in {} pages", vmem_cli::bytes(bytes), bytes / PAGE_SIZE as u64);
        [
            format!("file       {}", shown(&self.args.out)),
            format!("size       {}", pages(self.size)),
            format!("data       {}", pages(self.copied.data)),
            format!("copied     {} pages aside, for writers", self.figures.copied),
            format!("held up    {:.2} ms, who was about to write", self.closed.as_secs_f64() * 1e3),
            format!("time       {:.1} s", self.took.as_secs_f64()),
        ]
    }
}
