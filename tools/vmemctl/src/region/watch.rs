// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemctl region watch`: shows how fast programs write to a region or to the shared memory of a process, and where.

use std::thread::sleep;
use std::time::{Duration, Instant};

use vmem::{Control, DirtyRate, DirtySample, Tracking, WriteHistogram};
use vmem_cli::output::{self, out};

use super::line::{RegionLine, WrittenPart};
use super::memory::Memory;
use crate::cli::RegionWatch;
use vmem_cli::{Error, Signals};
use vmem_migrate::report::{self, Report};

/// The largest number of lines of the histogram.
const PARTS: u32 = 16;

/// How often the command checks for a signal, and for the end of the process.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Prints the rate until the count is reached, the process has ended or a signal has arrived. Then prints where the writes were.
pub(super) fn run(args: &RegionWatch, json: bool) -> Result<(), Error> {
    let signals = Signals::catch().map_err(Error::call("cannot catch signals"))?;
    let memory = Memory::open(&args.memory)?;
    let what = memory.what();
    let failed = || Error::call(what);
    let control = Control::open().map_err(Error::call(vmem_cli::NO_MODULE))?;
    let adopted = control.adopt(&memory).map_err(failed())?;
    let tracking = adopted.track().map_err(failed())?;
    begin(what, &tracking, json);
    let mut watch = Watch {
        rate: DirtyRate::begin(&tracking).map_err(failed())?,
        histogram: WriteHistogram::new(tracking.pages(), PARTS),
        began: Instant::now(),
        json,
    };
    let mut left = args.count.unwrap_or(u64::MAX);
    let mut next = watch.began;
    while left > 0 {
        left -= 1;
        next += args.interval;
        let goes_on = wait_until(next, || signals.check().is_err() || memory.has_ended());
        watch.sample().map_err(failed())?;
        if !goes_on {
            break;
        }
    }
    if memory.has_ended() {
        Report::new(json).note(&format!("{what}: the process has ended"));
    }
    watch.end();
    tracking.stop().map_err(failed())?;
    Ok(())
}

/// Waits until `next`, or until `is_over`. Returns whether `next` was reached.
fn wait_until(next: Instant, is_over: impl Fn() -> bool) -> bool {
    loop {
        if is_over() {
            return false;
        }
        match next.saturating_duration_since(Instant::now()) {
            Duration::ZERO => return true,
            left => sleep(left.min(POLL_INTERVAL)),
        }
    }
}

/// Prints what is watched.
fn begin(what: &str, tracking: &Tracking, json: bool) {
    let (bytes, mappings, held) = (tracking.pages().bytes().end, tracking.mappings(), tracking.held());
    if json {
        report::print(&RegionLine::Watch {
            memory: what,
            bytes,
            mappings,
            held,
        });
        return;
    }
    out(&format!(
        "{what}: {}, {mappings} mappings, {held} pages held",
        vmem_cli::bytes(bytes)
    ));
    out(&format!(
        "{:>9}  {:>10}  {:>10}  {:>8}",
        "seconds", "pages/s", "MiB/s", "held"
    ));
}

struct Watch<'a> {
    rate: DirtyRate<'a>,
    histogram: WriteHistogram,
    began: Instant,
    json: bool,
}

impl Watch<'_> {
    /// Takes the pages that were written since the last sample.
    fn sample(&mut self) -> Result<(), vmem::Error> {
        let sample = self.rate.sample()?;
        sample.pages.iter().for_each(|range| self.histogram.add(*range));
        let print = if self.json { output::json } else { out };
        print(&line(&sample, self.began.elapsed(), self.json));
        Ok(())
    }

    /// Prints where the writes were.
    fn end(&self) {
        if self.json {
            let parts = self.histogram.parts().map(WrittenPart::from).collect();
            report::print(&RegionLine::Histogram { parts });
        } else {
            out("pages written, by where in the memory they are:");
            self.histogram.to_string().lines().for_each(out);
        }
    }
}

/// A line with a sample, for users or for programs.
fn line(sample: &DirtySample, since: Duration, json: bool) -> String {
    let (seconds, pages, bytes) = (since.as_secs_f64(), sample.pages_per_second(), sample.bytes_per_second());
    if json {
        return super::json(&RegionLine::Sample {
            seconds,
            pages: sample.dirty,
            held: sample.held,
            pages_per_second: pages,
            bytes_per_second: bytes,
        });
    }
    let mib = bytes / f64::from(1 << 20);
    format!("{seconds:>9.1}  {pages:>10.0}  {mib:>10.2}  {:>8}", sample.held)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_ends_at_the_time_or_when_it_is_over() {
        let soon = Instant::now() + Duration::from_millis(1);
        assert!(wait_until(soon, || false));
        assert!(!wait_until(Instant::now() + Duration::from_secs(1000), || true));
    }
}
