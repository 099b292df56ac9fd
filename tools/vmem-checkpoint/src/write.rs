// SPDX-License-Identifier: GPL-2.0
//! Brings the pages of snapshots into a store, while programs go on writing to the memory.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;

use vmem::{PAGE_SIZE, PageIndex, PageRange, PageSet, Snapshot};
use vmem_cli::{Progress, Signals};
use vmem_store::Writer;

use crate::error::Error;
use crate::memory::{bytes_of, count};

/// Pages that are read at once: 1 MiB. A signal waits for as many.
const CHUNK: u64 = 256;

/// Threads that read, compress and store. More would take processors from the guest.
const THREADS: usize = 4;

/// Where pages go.
pub(crate) trait Sink: Sync {
    fn put_pages(&self, memory: usize, first: PageIndex, contents: &[u8]) -> Result<(), Error>;
    fn put_zero(&self, memory: usize, pages: PageRange) -> Result<(), Error>;
}

impl Sink for Writer {
    fn put_pages(&self, memory: usize, first: PageIndex, contents: &[u8]) -> Result<(), Error> {
        Ok(Writer::put_pages(self, memory, first, contents)?)
    }

    fn put_zero(&self, memory: usize, pages: PageRange) -> Result<(), Error> {
        Ok(Writer::put_zero(self, memory, pages)?)
    }
}

/// Where pages come from: each page once.
pub(crate) trait Image: Sync {
    /// The runs of pages that are no holes.
    fn data(&self) -> Result<Vec<PageRange>, Error>;
    /// Fills `to` from the offset of a page on.
    fn read(&self, to: &mut [u8], offset: u64) -> Result<(), Error>;
    /// These pages are not needed.
    fn skip(&self, pages: PageRange) -> Result<(), Error>;
}

impl Image for Snapshot {
    fn data(&self) -> Result<Vec<PageRange>, Error> {
        Snapshot::data(self).collect::<Result<_, _>>().map_err(failed())
    }

    fn read(&self, to: &mut [u8], offset: u64) -> Result<(), Error> {
        self.read_exact_at(to, offset).map_err(failed())
    }

    fn skip(&self, pages: PageRange) -> Result<(), Error> {
        self.done(pages).map_err(failed())
    }
}

/// Writes those pages of each image that are in its set. `report` hears after each piece how many bytes of them are done.
pub(crate) fn write<I: Image>(
    images: &[I],
    sets: &[&PageSet],
    to: &impl Sink,
    signals: &Signals,
    report: &(dyn Fn(Progress) + Sync),
) -> Result<(), Error> {
    let mut chunks = Vec::new();
    for (memory, (image, set)) in images.iter().zip(sets).enumerate() {
        // Programs need not keep the other pages aside.
        for pages in set.gaps() {
            image.skip(pages)?;
        }
        if count(set) == set.pages().count() {
            let data = image.data()?;
            let mut holes = PageSet::all_of(set.pages());
            data.iter().for_each(|pages| holes.remove(*pages));
            holes.runs().try_for_each(|pages| to.put_zero(memory, pages))?;
            data.into_iter().for_each(|pages| cut_into(pages, memory, &mut chunks));
        } else {
            set.runs().for_each(|pages| cut_into(pages, memory, &mut chunks));
        }
    }
    let (next, stop, done) = (AtomicUsize::new(0), AtomicBool::new(false), AtomicU64::new(0));
    let size = chunks.iter().map(|(_, pages)| bytes_of(pages.count())).sum();
    let work = || {
        let mut buffer = vec![0; (CHUNK as usize) * PAGE_SIZE];
        while let Some((memory, pages)) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let copied = signals.check().map_err(Error::from);
            let copied = copied.and_then(|()| copy(&images[*memory], *memory, *pages, to, &mut buffer));
            if copied.is_err() {
                stop.store(true, Ordering::Relaxed);
                return copied;
            }
            let done = done.fetch_add(bytes_of(pages.count()), Ordering::Relaxed) + bytes_of(pages.count());
            report(Progress { done, size });
        }
        Ok(())
    };
    let threads = thread::available_parallelism().map_or(1, |there| there.get().min(THREADS));
    thread::scope(|scope| {
        let started: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let panicked = || Err(Error::Thread(std::io::Error::other("it has panicked")));
        let done = started.into_iter().map(|thread| thread.join().unwrap_or_else(|_| panicked()));
        // The first error counts; all threads have to end.
        done.fold(Ok(()), Result::and)
    })
}

fn cut_into(pages: PageRange, memory: usize, chunks: &mut Vec<(usize, PageRange)>) {
    let mut rest = Some(pages);
    while let Some(pages) = rest {
        let (first, after) = pages.split_at(CHUNK);
        chunks.extend(first.map(|pages| (memory, pages)));
        rest = after;
    }
}

fn copy(image: &impl Image, memory: usize, pages: PageRange, to: &impl Sink, buffer: &mut [u8]) -> Result<(), Error> {
    let buffer = &mut buffer[..bytes_of(pages.count()) as usize];
    image.read(buffer, pages.bytes().start)?;
    to.put_pages(memory, pages.first(), buffer)
}

fn failed() -> impl FnOnce(vmem::Error) -> Error {
    Error::memory("cannot read the snapshot of the memory")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use super::*;

    /// Memory whose page N has the byte N, with a hole.
    struct Fake {
        pages: u64,
        hole: PageRange,
        skipped: Mutex<Vec<PageRange>>,
        /// The page at which a read fails.
        fails_at: Option<u64>,
    }

    impl Image for Fake {
        fn data(&self) -> Result<Vec<PageRange>, Error> {
            let mut data = PageSet::all_of(range(0, self.pages));
            data.remove(self.hole);
            Ok(data.runs().collect())
        }

        fn read(&self, to: &mut [u8], offset: u64) -> Result<(), Error> {
            for (page, pgoff) in to.chunks_mut(PAGE_SIZE).zip(offset / PAGE_SIZE as u64..) {
                if self.fails_at == Some(pgoff) {
                    return Err(failed()(vmem::Error::SnapshotFailed));
                }
                page.fill(pgoff as u8);
            }
            Ok(())
        }

        fn skip(&self, pages: PageRange) -> Result<(), Error> {
            self.skipped.lock().expect("no panic").push(pages);
            Ok(())
        }
    }

    #[derive(Default)]
    struct Store {
        data: Mutex<BTreeMap<(usize, u64), u8>>,
        zero: Mutex<Vec<(usize, PageRange)>>,
    }

    impl Sink for Store {
        fn put_pages(&self, memory: usize, first: PageIndex, contents: &[u8]) -> Result<(), Error> {
            let pages = contents.chunks(PAGE_SIZE).zip(first.get()..);
            let put = pages.map(|(page, pgoff)| ((memory, pgoff), page[PAGE_SIZE - 1]));
            put.for_each(|(page, byte)| {
                assert_eq!(self.data.lock().expect("no panic").insert(page, byte), None, "{page:?} twice")
            });
            Ok(())
        }

        fn put_zero(&self, memory: usize, pages: PageRange) -> Result<(), Error> {
            self.zero.lock().expect("no panic").push((memory, pages));
            Ok(())
        }
    }

    fn range(first: u64, count: u64) -> PageRange {
        PageRange::from_pgoff(first, count).expect("pages")
    }

    fn fake() -> Fake {
        Fake {
            pages: 2000,
            hole: range(300, 100),
            skipped: Mutex::default(),
            fails_at: None,
        }
    }

    #[test]
    fn all_pages_are_put_and_holes_are_not_read() {
        let (image, to) = (fake(), Store::default());
        let all = PageSet::all_of(range(0, 2000));
        let reported = AtomicU64::new(0);
        let report = |progress: Progress| {
            assert_eq!(progress.size, 1900 * PAGE_SIZE as u64);
            reported.fetch_max(progress.done, Ordering::Relaxed);
        };
        write(&[image], &[&all], &to, &Signals::default(), &report).expect("written");
        assert_eq!(reported.into_inner(), 1900 * PAGE_SIZE as u64);
        assert_eq!(*to.zero.lock().expect("no panic"), [(0, range(300, 100))]);
        let data = to.data.lock().expect("no panic");
        assert_eq!(data.len(), 1900);
        assert!(data.iter().all(|((_, pgoff), byte)| *pgoff as u8 == *byte));
    }

    #[test]
    fn only_pages_of_the_set_are_put_and_the_others_are_given_up() {
        let (one, two, to) = (fake(), fake(), Store::default());
        let mut set = PageSet::none_of(range(0, 2000));
        set.insert(range(7, 2));
        set.insert(range(1000, 600));
        let none = PageSet::none_of(range(0, 2000));
        let images = [one, two];
        write(&images, &[&none, &set], &to, &Signals::default(), &|_| ()).expect("written");
        let data = to.data.lock().expect("no panic");
        assert_eq!(data.len(), 602);
        assert!(
            data.keys()
                .all(|(memory, pgoff)| *memory == 1 && set.contains(PageIndex::new(*pgoff).expect("a page")))
        );
        let skipped = |image: &Fake| image.skipped.lock().expect("no panic").clone();
        assert_eq!(skipped(&images[0]), [range(0, 2000)]);
        assert_eq!(skipped(&images[1]), [range(0, 7), range(9, 991), range(1600, 400)]);
    }

    #[test]
    fn snapshot_that_fails_and_a_signal_end_the_writing() {
        let image = Fake {
            fails_at: Some(1500),
            ..fake()
        };
        let all = PageSet::all_of(range(0, 2000));
        let failed = write(&[image], &[&all], &Store::default(), &Signals::default(), &|_| ());
        assert!(matches!(failed, Err(Error::Copies)), "{failed:?}");
        let signals = Signals::default();
        signals.raise();
        let stopped = write(&[fake()], &[&all], &Store::default(), &signals, &|_| ()).expect_err("a signal");
        assert!(stopped.is_signal(), "{stopped}");
    }
}
