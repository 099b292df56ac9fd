// SPDX-License-Identifier: GPL-2.0-or-later
//! Copies a snapshot into its image.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vmem::{PAGE_SIZE, PageRange, PresentMap, Snapshot};

use super::image::PartialImage;
use vmem_cli::{Error, Progress, Rate, Signals, bytes};
use vmem_migrate::report::Report;

/// The number of bytes of one read. A signal waits for a read.
const CHUNK: usize = 1 << 20;

/// A snapshot that is being written to its image.
pub(super) struct Copy<'a> {
    snapshot: Arc<Snapshot>,
    image: &'a PartialImage,
    report: &'a mut Report,
    signals: &'a Signals,
    what: &'a str,
    pace: Pace,
    began: Instant,
    /// The number of written bytes.
    data: u64,
    /// The bytes of absent pages that were skipped and are not written yet.
    postponed: u64,
}

/// The result of a copy.
pub(super) struct Copied {
    /// The bytes of the image that are no holes.
    pub(super) data: u64,
    /// The absent pages that were left out.
    pub(super) left_out: u64,
}

impl<'a> Copy<'a> {
    pub(super) fn new(
        snapshot: &Arc<Snapshot>,
        image: &'a PartialImage,
        report: &'a mut Report,
        signals: &'a Signals,
        what: &'a str,
    ) -> Self {
        Self {
            snapshot: Arc::clone(snapshot),
            image,
            report,
            signals,
            what,
            pace: Pace::default(),
            began: Instant::now(),
            data: 0,
            postponed: 0,
        }
    }

    /// Writes everything of the snapshot that is no hole. Absent pages come last, since copies of the other pages take memory until they
    /// are read. With `skip_absent`, absent pages are left out.
    pub(super) fn write(mut self, skip_absent: bool) -> Result<Copied, Error> {
        self.image.set_len(self.snapshot.size())?;
        let present = self.snapshot.present_map().map_err(self.failed())?;
        if skip_absent {
            for pages in present.absent() {
                self.snapshot.done(pages).map_err(self.failed())?;
            }
        }
        self.write_present(&present)?;
        if self.postponed > 0 {
            self.report.note(&format!(
                "{}: {} pages are absent, and are waited for (--skip-absent leaves them out)",
                self.what,
                self.postponed / PAGE_SIZE as u64
            ));
            self.write_absent()?;
        }
        // A signal may have arrived while there were only holes.
        self.signals.check()?;
        // A page that is done and was not read was left out, or a program has discarded it before it arrived.
        let done = self.snapshot.info().map_err(self.failed())?.done;
        let left_out = done.saturating_sub(self.data / PAGE_SIZE as u64);
        if left_out > 0 && !skip_absent {
            return Err(self.discarded());
        }
        Ok(Copied {
            data: self.data,
            left_out,
        })
    }

    fn write_present(&mut self, present: &PresentMap) -> Result<(), Error> {
        let snapshot = Arc::clone(&self.snapshot);
        let mut bytes = vec![0; CHUNK];
        for pages in snapshot.data() {
            for (part, is_present) in parts(pages.map_err(self.failed())?, present) {
                if !is_present {
                    self.postponed += part.count() * PAGE_SIZE as u64;
                    continue;
                }
                for (offset, len) in chunks(part) {
                    self.signals.check()?;
                    snapshot.read_exact_at(&mut bytes[..len], offset).map_err(self.failed())?;
                    self.put(&bytes[..len], offset)?;
                    self.show_progress(offset + len as u64 - self.postponed)?;
                }
            }
        }
        Ok(())
    }

    /// Writes the rest. A reader of an absent page waits for it and cannot be interrupted by a signal, so another thread reads.
    fn write_absent(&mut self) -> Result<(), Error> {
        let all = Arc::clone(&self.snapshot);
        for pages in all.data() {
            for (offset, len) in chunks(pages.map_err(self.failed())?) {
                let snapshot = Arc::clone(&self.snapshot);
                let read = self.signals.unless(move || {
                    let mut bytes = vec![0; len];
                    snapshot.read_exact_at(&mut bytes, offset).map(|()| bytes)
                })?;
                let bytes = match read {
                    Err(vmem::Error::PageDone) => return Err(self.discarded()),
                    read => read.map_err(self.failed())?,
                };
                self.put(&bytes, offset)?;
                self.postponed = self.postponed.saturating_sub(len as u64);
                self.show_progress(all.size() - self.postponed)?;
            }
        }
        Ok(())
    }

    fn put(&mut self, bytes: &[u8], offset: u64) -> Result<(), Error> {
        self.image.write_at(bytes, offset)?;
        self.data += bytes.len() as u64;
        Ok(())
    }

    fn show_progress(&mut self, done: u64) -> Result<(), Error> {
        let size = self.snapshot.size();
        if let Some(text) = self.pace.text(self.began.elapsed(), Progress { done, size }, self.data) {
            let kept = self.snapshot.info().map_err(self.failed())?.kept;
            let text = format!("{text}  {kept} pages kept aside");
            self.report.progress(Progress { done, size }, &text);
        }
        Ok(())
    }

    fn failed(&self) -> impl FnOnce(vmem::Error) -> Error + use<'a> {
        Error::call(self.what)
    }

    fn discarded(&self) -> Error {
        Error::other(format!(
            "{}: a program has discarded pages that were absent at the instant: what they held then cannot be had any more \
             (--skip-absent leaves absent pages out)",
            self.what
        ))
    }
}

/// Splits a run of pages into parts that are all present or all absent.
fn parts(pages: PageRange, present: &PresentMap) -> impl Iterator<Item = (PageRange, bool)> {
    let mut left = pages.iter().peekable();
    std::iter::from_fn(move || {
        let first = left.next()?;
        let is_present = present.contains(first);
        let mut count = 1;
        while left.next_if(|page| present.contains(*page) == is_present).is_some() {
            count += 1;
        }
        Some((PageRange::new(first, count)?, is_present))
    })
}

/// Splits a run of pages into chunks, each an offset and a length in bytes.
fn chunks(pages: PageRange) -> impl Iterator<Item = (u64, usize)> {
    let bytes = pages.bytes();
    let end = bytes.end;
    // At most CHUNK, which fits.
    bytes
        .step_by(CHUNK)
        .map(move |at| (at, (end - at).min(CHUNK as u64) as usize))
}

/// The speed of the copy.
#[derive(Default)]
struct Pace {
    done: Rate,
    data: Rate,
}

impl Pace {
    /// The rate of data and the time left, if a line is due. Holes take no time, so the copy may end sooner.
    fn text(&mut self, time: Duration, progress: Progress, data: u64) -> Option<String> {
        if !self.done.is_due(time) {
            return None;
        }
        let rate = self.data.sample(time, data);
        let left = progress.time_left(self.done.sample(time, progress.done));
        Some(format!("{}/s  {left}", bytes(rate as u64)))
    }
}

#[cfg(test)]
mod tests {
    use vmem::PageIndex;

    use super::*;

    #[test]
    fn chunks_cover_the_whole_run() {
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
    fn pace_has_the_rate_of_data_and_the_time_of_all() {
        let mut pace = Pace::default();
        let mut text = |seconds, done: u64, data: u64| {
            let progress = Progress {
                done: done << 20,
                size: 24 << 20,
            };
            pace.text(Duration::from_secs(seconds), progress, data << 20)
        };
        assert_eq!(text(0, 1, 1), None);
        assert_eq!(text(2, 8, 2).as_deref(), Some("1.00 MiB/s  4 s left"));
        assert_eq!(text(2, 9, 3), None);
        assert_eq!(text(3, 10, 4).as_deref(), Some("2.00 MiB/s  7 s left"));
    }
}
