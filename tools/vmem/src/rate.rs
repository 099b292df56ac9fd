// SPDX-License-Identifier: GPL-2.0-or-later
//! The dirty rate: how fast memory is written to, and where.

use std::fmt::{self, Display, Formatter};
use std::time::{Duration, Instant};

use crate::{Error, PAGE_SIZE, PageIndex, PageRange, Tracking};

/// Measures how many pages are written between samples. It cleans the log: other users of the log must take the pages from the samples.
#[derive(Debug)]
pub struct DirtyRate<'a> {
    tracking: &'a Tracking,
    since: Instant,
}

/// The pages written between two samples.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DirtySample {
    /// The pages. A page that is written often in the time counts once.
    pub pages: Vec<PageRange>,
    /// Number of pages.
    pub dirty: u64,
    /// Number of pages that stay in the log because they are held. They are in the next sample too, written or not.
    pub held: u64,
    /// The time between the samples.
    pub elapsed: Duration,
}

impl<'a> DirtyRate<'a> {
    /// Begins to measure now, without the pages that are in the log already.
    ///
    /// # Errors
    ///
    /// [`Error::NotTracked`].
    pub fn begin(tracking: &'a Tracking) -> Result<Self, Error> {
        tracking.clean(tracking.pages()).complete()?;
        Ok(Self {
            tracking,
            since: Instant::now(),
        })
    }

    /// The pages written since the last sample, or since the beginning.
    ///
    /// # Errors
    ///
    /// [`Error::NotTracked`].
    pub fn sample(&mut self) -> Result<DirtySample, Error> {
        let log = self.tracking.clean(self.tracking.pages());
        let now = Instant::now();
        let elapsed = now.duration_since(self.since);
        self.since = now;
        let (dirty, held) = (log.dirty, log.held);
        Ok(DirtySample {
            pages: log.complete()?,
            dirty,
            held,
            elapsed,
        })
    }
}

impl DirtySample {
    /// Pages written per second.
    pub fn pages_per_second(&self) -> f64 {
        match self.elapsed.as_secs_f64() {
            seconds if seconds > 0.0 => self.dirty as f64 / seconds,
            _ => 0.0,
        }
    }

    /// Bytes of the pages written per second.
    pub fn bytes_per_second(&self) -> f64 {
        self.pages_per_second() * PAGE_SIZE as f64
    }
}

/// Where in the memory pages were written: a count for each of a few parts of it, all of the same size but for the last.
///
/// As text it has a line for each part: where it begins in MiB, a bar, and the count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteHistogram {
    pages: PageRange,
    /// Pages in a part.
    step: u64,
    counts: Vec<u64>,
}

impl WriteHistogram {
    /// The longest bar, in characters.
    const BAR: usize = 40;

    /// A histogram of `pages` in at most `parts` parts.
    pub fn new(pages: PageRange, parts: u32) -> Self {
        let step = pages.count().div_ceil(u64::from(parts.max(1)));
        Self {
            pages,
            step,
            counts: vec![0; pages.count().div_ceil(step) as usize],
        }
    }

    /// Counts the pages of `range`. Pages that the histogram is not about are left out.
    pub fn add(&mut self, range: PageRange) {
        let begin = self.pages.first().get();
        let last = begin + self.pages.count();
        let mut at = range.first().get().max(begin);
        let end = (range.first().get() + range.count()).min(last);
        while at < end {
            let part = (at - begin) / self.step;
            let next = (begin + (part + 1) * self.step).min(end);
            self.counts[part as usize] += next - at;
            at = next;
        }
    }

    /// The parts, and how many pages were counted in each.
    pub fn parts(&self) -> impl Iterator<Item = (PageRange, u64)> {
        let begin = self.pages.first().get();
        let part = move |(part, count): (u64, &u64)| {
            let first = part * self.step;
            let pages = PageRange::new(PageIndex::new(begin + first)?, self.step.min(self.pages.count() - first));
            Some((pages?, *count))
        };
        (0..).zip(&self.counts).filter_map(part)
    }
}

impl Display for WriteHistogram {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let most = self.counts.iter().max().copied().unwrap_or(0).max(1);
        for (pages, count) in self.parts() {
            let begin = pages.bytes().start as f64 / f64::from(1 << 20);
            // A part that was written at all has a bar.
            let bar = (u128::from(count) * Self::BAR as u128).div_ceil(u128::from(most)) as usize;
            writeln!(
                f,
                "{begin:>12.2} MiB  {:<width$}  {count}",
                "#".repeat(bar),
                width = Self::BAR
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn pages(first: u64, count: u64) -> PageRange {
        PageRange::new(PageIndex::new(first).unwrap(), count).unwrap()
    }

    fn counts(histogram: &WriteHistogram) -> Vec<(u64, u64, u64)> {
        let parts = histogram.parts();
        parts
            .map(|(pages, count)| (pages.first().get(), pages.count(), count))
            .collect()
    }

    #[test]
    fn rate_is_pages_divided_by_time() {
        let mut sample = DirtySample {
            pages: vec![pages(0, 512)],
            dirty: 512,
            held: 0,
            elapsed: Duration::from_secs(2),
        };
        assert_eq!((sample.pages_per_second(), sample.bytes_per_second()), (256.0, 1_048_576.0));
        sample.elapsed = Duration::ZERO;
        assert_eq!(sample.pages_per_second(), 0.0);
    }

    #[test]
    fn run_is_counted_in_each_part_that_it_overlaps() {
        let mut histogram = WriteHistogram::new(pages(0, 100), 4);
        histogram.add(pages(0, 1));
        histogram.add(pages(24, 2));
        histogram.add(pages(40, 60));
        assert_eq!(counts(&histogram), [(0, 25, 2), (25, 25, 11), (50, 25, 25), (75, 25, 25)]);
        histogram.add(pages(99, 1000));
        assert_eq!(counts(&histogram)[3], (75, 25, 26));
    }

    #[test]
    fn last_part_may_be_smaller_but_never_empty() {
        assert_eq!(
            counts(&WriteHistogram::new(pages(0, 10), 4)),
            [(0, 3, 0), (3, 3, 0), (6, 3, 0), (9, 1, 0)]
        );
        assert_eq!(counts(&WriteHistogram::new(pages(8, 2), 16)), [(8, 1, 0), (9, 1, 0)]);
        assert_eq!(
            counts(&WriteHistogram::new(pages(0, 5), 4)),
            [(0, 2, 0), (2, 2, 0), (4, 1, 0)]
        );
        assert_eq!(counts(&WriteHistogram::new(pages(0, 5), 0)), [(0, 5, 0)]);
    }

    #[test]
    fn bar_length_is_proportional_to_its_count() {
        let mut histogram = WriteHistogram::new(pages(0, 1024), 4);
        histogram.add(pages(0, 1));
        histogram.add(pages(256, 200));
        histogram.add(pages(512, 100));
        let text = histogram.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], format!("        0.00 MiB  {:<40}  1", "#"));
        assert_eq!(lines[1], format!("        1.00 MiB  {}  200", "#".repeat(40)));
        assert_eq!(lines[2], format!("        2.00 MiB  {:<40}  100", "#".repeat(20)));
        assert_eq!(lines[3], format!("        3.00 MiB  {:<40}  0", ""));
    }
}
