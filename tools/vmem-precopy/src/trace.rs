// SPDX-License-Identifier: GPL-2.0-or-later
//! Recorded dirty logs.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use vmem_pages::PageRange;

use crate::error::Error;

/// A recorded dirty log: which pages a program wrote in each of some intervals.
///
/// # Text
///
/// `Display` writes it, and `FromStr` reads it. The first line is `vmem-dirty-trace 1 PAGES`, with the number of pages of the memory. Each
/// further line is an interval: its length in microseconds, and the ranges of pages that were written in it, as `FIRST+COUNT`, in the order
/// in which they were written as far as it is known. Empty lines and lines that begin with `#` do not count.
///
/// ```text
/// vmem-dirty-trace 1 262144
/// # microseconds ranges
/// 100000 0+512 7000+1
/// 100000
/// 100150 0+3
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    pages: PageRange,
    samples: Vec<Sample>,
}

/// One interval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) elapsed: Duration,
    pub(crate) dirty: Vec<PageRange>,
}

impl Trace {
    const HEADER: &str = "vmem-dirty-trace 1 ";
    /// The largest memory of a region: 16 TiB.
    const MAX_PAGES: u64 = 1 << 32;
    /// The longest interval: a day.
    const MAX_INTERVAL: Duration = Duration::from_secs(86_400);

    /// A trace without samples, of memory of so many pages.
    ///
    /// # Errors
    ///
    /// [`Error::Sample`] if there is no such memory.
    pub fn new(pages: u64) -> Result<Self, Error> {
        let range = PageRange::of_pages(pages).filter(|_| pages <= Self::MAX_PAGES);
        let pages = range.ok_or(Error::Sample("no pages, or more than 16 TiB of memory"))?;
        Ok(Self {
            pages,
            samples: Vec::new(),
        })
    }

    /// Adds an interval, and the pages that were written in it, as [`vmem::DirtySample`] has them.
    ///
    /// # Errors
    ///
    /// [`Error::Sample`] if the interval has no length or more than a day, or if the memory does not have the pages.
    pub fn push(&mut self, elapsed: Duration, dirty: Vec<PageRange>) -> Result<(), Error> {
        if elapsed.as_micros() == 0 || elapsed > Self::MAX_INTERVAL {
            return Err(Error::Sample("an interval shorter than a microsecond or longer than a day"));
        }
        if dirty.iter().any(|range| range.end() > self.pages.end()) {
            return Err(Error::Sample("pages that its memory does not have"));
        }
        self.samples.push(Sample { elapsed, dirty });
        Ok(())
    }

    /// All pages of the memory.
    #[must_use]
    pub fn pages(&self) -> PageRange {
        self.pages
    }

    /// The length of all intervals.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.samples
            .iter()
            .fold(Duration::ZERO, |sum, sample| sum.saturating_add(sample.elapsed))
    }

    /// Pages written per second: each counts once in an interval.
    #[must_use]
    pub fn pages_per_second(&self) -> f64 {
        let pages: u64 = self
            .samples
            .iter()
            .flat_map(|sample| &sample.dirty)
            .map(|range| range.count())
            .sum();
        match self.elapsed().as_secs_f64() {
            seconds if seconds > 0.0 => pages as f64 / seconds,
            _ => 0.0,
        }
    }

    pub(crate) fn samples(&self) -> &[Sample] {
        &self.samples
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}{}", Self::HEADER, self.pages.count())?;
        for sample in &self.samples {
            write!(f, "{}", sample.elapsed.as_micros())?;
            for range in &sample.dirty {
                write!(f, " {}+{}", range.first().get(), range.count())?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl FromStr for Trace {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let lines = (1..).zip(text.lines().map(str::trim));
        let mut lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let (line, header) = lines.next().unwrap_or((1, ""));
        let pages = header.strip_prefix(Self::HEADER).and_then(|pages| pages.parse().ok());
        let pages = pages.ok_or(Error::Trace {
            line,
            what: "it is not \"vmem-dirty-trace 1 PAGES\"",
        })?;
        let in_line = |line| {
            move |error| match error {
                Error::Sample(what) => Error::Trace { line, what },
                other => other,
            }
        };
        let mut trace = Self::new(pages).map_err(in_line(line))?;
        for (line, text) in lines {
            let mut words = text.split_ascii_whitespace();
            let micros = words.next().and_then(|micros| micros.parse().ok());
            let elapsed = micros.map(Duration::from_micros).ok_or(Error::Trace {
                line,
                what: "it does not begin with microseconds",
            })?;
            let dirty: Option<Vec<PageRange>> = words.map(range).collect();
            let dirty = dirty.ok_or(Error::Trace {
                line,
                what: "a range is not FIRST+COUNT",
            })?;
            trace.push(elapsed, dirty).map_err(in_line(line))?;
        }
        Ok(trace)
    }
}

fn range(text: &str) -> Option<PageRange> {
    let (first, count) = text.split_once('+')?;
    PageRange::from_pgoff(first.parse().ok()?, count.parse().ok()?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn trace_is_read_as_it_is_written() {
        let text = "# a guest\nvmem-dirty-trace 1 1000\n\n100000 0+512 999+1\n250\n";
        let trace: Trace = text.parse().unwrap();
        assert_eq!(trace.to_string().parse::<Trace>().unwrap(), trace);
        assert_eq!(trace.elapsed(), Duration::from_micros(100_250));
        assert_eq!(trace.samples()[0].dirty.len(), 2);
        assert!((trace.pages_per_second() - 513.0 / 0.10025).abs() < 0.01);
    }

    #[test]
    fn damaged_trace_is_an_error_with_its_line() {
        let error = |text: &str| text.parse::<Trace>().unwrap_err().to_string();
        assert!(error("").starts_with("line 1 "));
        assert!(error("vmem-dirty-trace 2 10").starts_with("line 1 "));
        assert!(error("vmem-dirty-trace 1 0").starts_with("line 1 "));
        assert!(error("vmem-dirty-trace 1 99999999999").starts_with("line 1 "));
        for line in [
            "x",
            "0 1+1",
            "5 1",
            "5 1+0",
            "5 9+2",
            "5 18446744073709551615+2",
            "99999999999999 1+1",
            "-1 1+1",
        ] {
            assert!(
                error(&format!("vmem-dirty-trace 1 10\n{line}\n")).starts_with("line 2 "),
                "{line}"
            );
        }
    }
}
