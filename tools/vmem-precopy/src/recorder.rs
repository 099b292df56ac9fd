// SPDX-License-Identifier: GPL-2.0-or-later
//! Dirty logs of running programs, recorded.

use std::time::{Duration, Instant};

use vmem::WriteHistogram;
use vmem_pages::{PageRange, PageSet};

use crate::error::{Error, LogAction};
use crate::memory::{DirtyMemory, Logged};
use crate::rates::Rates;
use crate::trace::Trace;

/// Records the dirty logs of all memories of a program. It cleans the logs: nobody else must.
///
/// # Example
///
/// ```no_run
/// use std::time::Duration;
/// use vmem::{Control, MemoryHandle};
/// use vmem_precopy::{Limits, Recorder, predict};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let memory = MemoryHandle::open("/dev/shm/ram", Some(812))?;
/// let tracking = Control::open()?.adopt(memory)?.track()?;
/// let mut recorder = Recorder::begin(vec![Box::new(tracking)])?;
/// for _ in 0..100 {
///     std::thread::sleep(Duration::from_millis(100));
///     recorder.sample()?;
/// }
/// let recording = recorder.finish(); // tracking ends
/// println!("{:.0} pages/s", recording.rates.mean);
/// println!("{}", predict(&recording.trace, 125_000_000, Limits::XEN)?);
/// # Ok(())
/// # }
/// ```
pub struct Recorder {
    memories: Vec<Recorded>,
    trace: Trace,
    /// Written pages of each interval, and its length.
    intervals: Vec<(u64, Duration)>,
    since: Instant,
    /// Ranges and intervals in the trace.
    entries: usize,
}

struct Recorded {
    memory: Box<dyn DirtyMemory>,
    /// The number of its first page in the trace.
    offset: u64,
    intervals: Vec<(u64, Duration)>,
    written: PageSet,
    histogram: WriteHistogram,
}

/// What was recorded.
#[derive(Debug)]
pub struct Recording {
    /// The memories, in the order in which the recorder got them.
    pub memories: Vec<WrittenMemory>,
    /// The rates of all memories together.
    pub rates: Rates,
    /// The log of all memories as one: each memory follows the one before.
    pub trace: Trace,
}

/// What was written to a memory.
#[derive(Debug)]
pub struct WrittenMemory {
    /// All of its pages.
    pub pages: PageRange,
    /// How fast it was written to.
    pub rates: Rates,
    /// Pages that were written at least once: the working set.
    pub written: u64,
    /// Where. A page counts once in each interval.
    pub histogram: WriteHistogram,
}

impl Recorder {
    /// The largest number of parts of a histogram.
    const PARTS: u32 = 16;

    /// Ranges and intervals that a trace has at most: 64 MiB of memory.
    const MAX_ENTRIES: usize = 1 << 22;

    /// Begins now, without the pages that are in the logs already.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`], [`Error::FirstPage`], [`Error::Sample`] (more memory than a trace can have), [`Error::Log`].
    pub fn begin(memories: Vec<Box<dyn DirtyMemory>>) -> Result<Self, Error> {
        let mut recorded = Vec::new();
        let mut offset = 0u64;
        for (number, memory) in memories.into_iter().enumerate() {
            let pages = memory.pages();
            if pages.first().get() != 0 {
                return Err(Error::FirstPage(number));
            }
            taken(number, memory.clean(pages))?;
            recorded.push(Recorded {
                memory,
                offset,
                intervals: Vec::new(),
                written: PageSet::none_of(pages),
                histogram: WriteHistogram::new(pages, Self::PARTS),
            });
            offset = offset.saturating_add(pages.count());
        }
        if recorded.is_empty() {
            return Err(Error::NoMemory);
        }
        Ok(Self {
            memories: recorded,
            trace: Trace::new(offset)?,
            intervals: Vec::new(),
            since: Instant::now(),
            entries: 0,
        })
    }

    /// Ends an interval: takes the pages that were written since the last one, or since the beginning.
    ///
    /// # Errors
    ///
    /// [`Error::Log`]; [`Error::Sample`] if the interval was longer than a day.
    pub fn sample(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        // An interval of a trace has a length.
        let elapsed = now.duration_since(self.since).max(Duration::from_micros(1));
        self.since = now;
        self.sample_of(elapsed)
    }

    fn sample_of(&mut self, elapsed: Duration) -> Result<(), Error> {
        let mut dirty = Vec::new();
        let mut total = 0;
        for (number, recorded) in self.memories.iter_mut().enumerate() {
            let logged = taken(number, recorded.memory.clean(recorded.memory.pages()))?;
            let mut pages = 0;
            for run in logged.runs() {
                pages += run.count();
                recorded.written.insert(run);
                recorded.histogram.add(run);
                dirty.extend(PageRange::from_pgoff(
                    run.first().get().saturating_add(recorded.offset),
                    run.count(),
                ));
            }
            recorded.intervals.push((pages, elapsed));
            total += pages;
        }
        self.entries = self.entries.saturating_add(dirty.len()).saturating_add(1);
        self.intervals.push((total, elapsed));
        self.trace.push(elapsed, dirty)
    }

    /// Whether the recording has become so large that it should end.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.entries >= Self::MAX_ENTRIES
    }

    /// Ends the recording, and lets go of the memories.
    #[must_use]
    pub fn finish(self) -> Recording {
        let written = |recorded: Recorded| WrittenMemory {
            pages: recorded.written.pages(),
            rates: Rates::of(&recorded.intervals),
            written: recorded.written.runs().map(|run| run.count()).sum(),
            histogram: recorded.histogram,
        };
        Recording {
            rates: Rates::of(&self.intervals),
            memories: self.memories.into_iter().map(written).collect(),
            trace: self.trace,
        }
    }
}

fn taken(memory: usize, logged: Logged) -> Result<PageSet, Error> {
    match logged.error {
        None => Ok(logged.dirty),
        Some(source) => Err(Error::Log {
            action: LogAction::Clean,
            memory,
            source,
        }),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Memory whose log a test writes, with `is_gone` as an error of the log.
    #[derive(Clone)]
    struct Fake(Arc<Mutex<(PageSet, bool)>>);

    impl Fake {
        fn new(pages: u64) -> Self {
            let pages = PageRange::of_pages(pages).unwrap();
            Self(Arc::new(Mutex::new((PageSet::none_of(pages), false))))
        }

        fn write(&self, first: u64, count: u64) {
            self.0.lock().unwrap().0.insert(PageRange::from_pgoff(first, count).unwrap());
        }
    }

    impl DirtyMemory for Fake {
        fn pages(&self) -> PageRange {
            self.0.lock().unwrap().0.pages()
        }

        fn peek(&self, _: PageRange) -> Logged {
            unreachable!("a recorder takes pages")
        }

        fn clean(&self, pages: PageRange) -> Logged {
            let mut state = self.0.lock().unwrap();
            let none = PageSet::none_of(pages);
            Logged {
                dirty: std::mem::replace(&mut state.0, none),
                error: state.1.then_some(vmem::Error::NotTracked),
            }
        }
    }

    fn recorder(memories: &[&Fake]) -> Recorder {
        let boxed = |memory: &&Fake| Box::new((*memory).clone()) as Box<dyn DirtyMemory>;
        Recorder::begin(memories.iter().map(boxed).collect()).unwrap()
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn memories_follow_each_other_in_the_trace() {
        let (one, two) = (Fake::new(100), Fake::new(64));
        one.write(0, 100);
        let mut recorder = recorder(&[&one, &two]);
        one.write(3, 2);
        two.write(0, 1);
        two.write(63, 1);
        recorder.sample_of(SECOND).unwrap();
        recorder.sample_of(SECOND).unwrap();
        two.write(63, 1);
        recorder.sample_of(SECOND * 2).unwrap();
        let recording = recorder.finish();
        let text = "vmem-dirty-trace 1 164\n1000000 3+2 100+1 163+1\n1000000\n2000000 163+1\n";
        assert_eq!(recording.trace.to_string(), text);
        assert_eq!(recording.rates.highest, 4.0);
        assert_eq!(recording.rates.mean, 5.0 / 4.0);
    }

    #[test]
    fn working_set_and_histogram_are_those_of_each_memory() {
        let (one, two) = (Fake::new(160), Fake::new(16));
        let mut recorder = recorder(&[&one, &two]);
        for _ in 0..3 {
            one.write(155, 5);
            two.write(2, 1);
            recorder.sample_of(SECOND).unwrap();
        }
        let recording = recorder.finish();
        let [one, two] = &recording.memories[..] else {
            panic!("two memories")
        };
        assert_eq!((one.written, two.written), (5, 1));
        assert_eq!((one.rates.mean, two.rates.mean), (5.0, 1.0));
        let counts = |memory: &WrittenMemory| memory.histogram.parts().map(|(_, count)| count).collect::<Vec<_>>();
        assert_eq!(counts(one)[14..], [0, 15]);
        assert_eq!(counts(two)[..4], [0, 0, 3, 0]);
    }

    #[test]
    fn log_that_has_ended_is_an_error_with_its_memory() {
        let (one, two) = (Fake::new(64), Fake::new(64));
        let mut recorder = recorder(&[&one, &two]);
        two.0.lock().unwrap().1 = true;
        let error = recorder.sample().unwrap_err();
        assert!(matches!(error, Error::Log { memory: 1, .. }), "{error}");
        assert!(matches!(Recorder::begin(Vec::new()), Err(Error::NoMemory)));
    }

    #[test]
    fn recording_that_is_too_large_is_full() {
        let memory = Fake::new(64);
        let mut recorder = recorder(&[&memory]);
        recorder.entries = Recorder::MAX_ENTRIES - 2;
        recorder.sample().unwrap();
        assert!(!recorder.is_full(), "one interval without ranges");
        recorder.sample().unwrap();
        assert!(recorder.is_full());
    }
}
