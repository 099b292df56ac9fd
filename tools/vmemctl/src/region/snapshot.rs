// SPDX-License-Identifier: GPL-2.0
//! `vmemctl region snapshot`: writes what the shared memory of a process holds at one instant to a file.

use std::time::{Duration, Instant};

use indicatif::BinaryBytes;
use serde_json::json;
use vmem::{Control, PAGE_SIZE, PageRange, ProcessMemory, Snapshot, SnapshotFigures, SnapshotOptions};
use vmem_cli::output;

use super::image::PartialImage;
use super::{NO_MODULE, shown};
use crate::cli::RegionSnapshot;
use crate::failure::{Failure, Trouble};
use crate::report::Report;
use crate::signals::Signals;

/// How much is read at once: what a signal waits for.
const CHUNK: usize = 1 << 20;

/// The time between two lines of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Takes the snapshot and writes it. If it fails, or a signal comes, there is no file, and the memory is as it was before.
pub(super) fn run(args: &RegionSnapshot, json: bool) -> Result<(), Failure> {
    let signals = Signals::catch().map_err(Trouble::io("cannot catch signals"))?;
    let memory = ProcessMemory::open(args.memory.pid, &args.memory.memory).map_err(Trouble::vmem("cannot find the memory"))?;
    let what = format!("{} of process {}", shown(&memory.file().path), args.memory.pid);
    let failed = || Trouble::vmem(what.clone());
    let control = Control::open().map_err(Trouble::vmem(NO_MODULE))?;
    let image = PartialImage::create(&args.out, args.force)?;
    let adopted = control.adopt(&memory).map_err(failed())?;
    let tracking = adopted.track().map_err(failed())?;
    // Each page is read once: its copy is given back then, and writers copy it no more.
    let options = SnapshotOptions::default().once(true).limit(args.limit.unwrap_or(0));
    let snapshot = tracking.snapshot(options).map_err(failed())?;
    let (size, closed, began) = (snapshot.size(), snapshot.closed(), Instant::now());
    let mut report = Report::new(json);
    report.note(&format!(
        "{what}: snapshot of {} taken, writers were held up for {:.2} ms",
        BinaryBytes(size),
        closed.as_secs_f64() * 1e3
    ));
    let data = copy(&snapshot, &image, &mut report, &signals, &what)?;
    let figures = snapshot.figures().map_err(failed())?;
    // The disk may take long, and the program need not wait for it.
    drop(snapshot);
    tracking.stop().map_err(failed())?;
    image.finish(&signals)?;
    report.end_progress();
    let summary = Summary {
        args,
        size,
        data,
        figures,
        closed,
        took: began.elapsed(),
    };
    summary.print(json);
    Ok(())
}

/// Writes what is no hole of the snapshot, and says how many bytes that is.
fn copy(snapshot: &Snapshot, image: &PartialImage, report: &mut Report, signals: &Signals, what: &str) -> Result<u64, Trouble> {
    let failed = || Trouble::vmem(what);
    let mut bytes = vec![0; CHUNK];
    let mut data = 0;
    let mut pace = Pace::begin(snapshot.size());
    image.set_len(snapshot.size())?;
    for range in snapshot.data() {
        for (offset, len) in chunks(range.map_err(failed())?) {
            signals.check()?;
            let chunk = &mut bytes[..len];
            snapshot.read_exact_at(chunk, offset).map_err(failed())?;
            image.write_at(chunk, offset)?;
            data += len as u64;
            let done = offset + len as u64;
            if let Some(text) = pace.text(done, data) {
                let kept = snapshot.figures().map_err(failed())?.kept;
                report.progress(done, snapshot.size(), &format!("{text}  {kept} pages kept aside"));
            }
        }
    }
    // One may have come while there was nothing but holes.
    signals.check()?;
    Ok(data)
}

/// A run of pages in parts, each an offset and a length in bytes.
fn chunks(pages: PageRange) -> impl Iterator<Item = (u64, usize)> {
    let bytes = pages.bytes();
    let end = bytes.end;
    // At most CHUNK, which fits.
    bytes
        .step_by(CHUNK)
        .map(move |at| (at, (end - at).min(CHUNK as u64) as usize))
}

/// Says how fast it goes, now and then.
struct Pace {
    size: u64,
    /// When there was a line, how far it had come then, and with how much data.
    then: (Instant, u64, u64),
}

impl Pace {
    fn begin(size: u64) -> Self {
        Self {
            size,
            then: (Instant::now(), 0, 0),
        }
    }

    /// A text, if it is time for one.
    fn text(&mut self, done: u64, data: u64) -> Option<String> {
        let passed = self.then.0.elapsed();
        if passed < PROGRESS_INTERVAL {
            return None;
        }
        let text = pace(passed, done - self.then.1, data - self.then.2, self.size - done);
        self.then = (Instant::now(), done, data);
        Some(text)
    }
}

/// How fast it goes. Holes take no time, so what is left may be done sooner.
fn pace(passed: Duration, done: u64, data: u64, left: u64) -> String {
    let seconds = passed.as_secs_f64();
    let rate = data as f64 / seconds;
    let eta = left as f64 * seconds / done.max(1) as f64;
    format!("{}/s  {eta:.0} s left", BinaryBytes(rate as u64))
}

/// What there is to say in the end.
struct Summary<'a> {
    args: &'a RegionSnapshot,
    size: u64,
    data: u64,
    figures: SnapshotFigures,
    closed: Duration,
    took: Duration,
}

impl Summary<'_> {
    fn print(&self, json: bool) {
        if json {
            output::json(&self.json().to_string());
        } else {
            self.lines().iter().for_each(|line| output::out(line));
        }
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "event": "snapshot",
            "file": self.args.out,
            "bytes": self.size,
            "data_bytes": self.data,
            "copied": self.figures.copied,
            "closed_seconds": self.closed.as_secs_f64(),
            "total_seconds": self.took.as_secs_f64(),
        })
    }

    fn lines(&self) -> [String; 6] {
        let pages = |bytes: u64| format!("{} in {} pages", BinaryBytes(bytes), bytes / PAGE_SIZE as u64);
        [
            format!("file       {}", shown(&self.args.out)),
            format!("size       {}", pages(self.size)),
            format!("data       {}", pages(self.data)),
            format!("copied     {} pages aside, for writers", self.figures.copied),
            format!("held up    {:.2} ms, who was about to write", self.closed.as_secs_f64() * 1e3),
            format!("time       {:.1} s", self.took.as_secs_f64()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use vmem::PageIndex;

    use super::*;

    #[test]
    fn a_run_is_read_in_chunks_that_are_all_of_it() {
        let run = |first, count| PageRange::new(PageIndex::new(first).expect("a page"), count).expect("pages");
        let chunk = (CHUNK / PAGE_SIZE) as u64;
        let found: Vec<_> = chunks(run(3, 2 * chunk + 1)).collect();
        let at = 3 * PAGE_SIZE as u64;
        assert_eq!(
            found,
            [(at, CHUNK), (at + CHUNK as u64, CHUNK), (at + 2 * CHUNK as u64, PAGE_SIZE)]
        );
        assert_eq!(chunks(run(0, chunk)).collect::<Vec<_>>(), [(0, CHUNK)]);
    }

    #[test]
    fn the_pace_is_that_of_data_and_the_end_that_of_all() {
        let second = Duration::from_secs(1);
        assert_eq!(pace(2 * second, 8 << 20, 2 << 20, 16 << 20), "1.00 MiB/s  4 s left");
        let mut pace = Pace::begin(64 << 20);
        assert_eq!(pace.text(1 << 20, 1 << 20), None);
        pace.then.0 -= second;
        assert!(pace.text(1 << 20, 1 << 20).is_some());
        assert_eq!(pace.text(2 << 20, 2 << 20), None);
    }
}
