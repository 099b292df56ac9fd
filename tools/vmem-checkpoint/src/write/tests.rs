// SPDX-License-Identifier: GPL-2.0-or-later
//! Pages that are there, that come later, and that do not come.

use std::collections::BTreeMap;

use super::*;

const PAGES: u64 = 2000;

/// Memory whose page N has the byte N, with a hole.
struct Fake {
    hole: PageRange,
    skipped: Mutex<Vec<PageRange>>,
    /// The page at which a read fails.
    fails_at: Option<u64>,
    /// Pages that do not come before they are skipped.
    absent: Option<PageRange>,
    /// The pages that were read, in order.
    read: Mutex<Vec<u64>>,
}

impl Image for Fake {
    fn data(&self) -> Result<Vec<PageRange>, Error> {
        let mut data = PageSet::all_of(range(0, PAGES));
        data.remove(self.hole);
        Ok(data.runs().collect())
    }

    fn read(&self, to: &mut [u8], offset: u64) -> Result<(), Error> {
        for (page, pgoff) in to.chunks_mut(PAGE_SIZE).zip(offset / PAGE_SIZE as u64..) {
            if self.fails_at == Some(pgoff) {
                return Err(failed()(vmem::Error::SnapshotFailed));
            }
            if self.absent.is_some_and(|absent| absent.contains(index(pgoff))) {
                while self.skipped.lock().expect("no panic").is_empty() {
                    thread::sleep(Duration::from_millis(1));
                }
                return Err(failed()(vmem::Error::PageDone));
            }
            self.read.lock().expect("no panic").push(pgoff);
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
        put.for_each(|(page, byte)| assert_eq!(self.data.lock().expect("no panic").insert(page, byte), None, "{page:?} twice"));
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

fn index(pgoff: u64) -> PageIndex {
    PageIndex::new(pgoff).expect("a page")
}

fn fake() -> Fake {
    Fake {
        hole: range(300, 100),
        skipped: Mutex::default(),
        fails_at: None,
        absent: None,
        read: Mutex::default(),
    }
}

/// All pages, of which the first ones are waited for.
fn all(awaited: u64) -> Wanted {
    let mut wanted = Wanted::there(PageSet::all_of(range(0, PAGES)));
    if awaited > 0 {
        wanted.awaited.insert(range(0, awaited));
    }
    wanted
}

fn go_on() -> Result<(), Error> {
    Ok(())
}

#[test]
fn all_pages_are_put_and_holes_are_not_read() {
    let (image, to) = (fake(), Store::default());
    let reported = AtomicU64::new(0);
    let report = |step: Step<'_>| {
        let Step::Written(progress) = step else { panic!("{step:?}") };
        assert_eq!(progress.size, 1900 * PAGE_SIZE as u64);
        reported.fetch_max(progress.done, Ordering::Relaxed);
    };
    write(&[image], &[all(0)], &to, &Signals::default(), &mut go_on, &report).expect("written");
    assert_eq!(reported.into_inner(), 1900 * PAGE_SIZE as u64);
    assert_eq!(*to.zero.lock().expect("no panic"), [(0, range(300, 100))]);
    let data = to.data.lock().expect("no panic");
    assert_eq!(data.len(), 1900);
    assert!(data.iter().all(|((_, pgoff), byte)| *pgoff as u8 == *byte));
}

#[test]
fn only_pages_of_the_set_are_put_and_the_others_are_given_up() {
    let (one, two, to) = (fake(), fake(), Store::default());
    let mut set = PageSet::none_of(range(0, PAGES));
    set.insert(range(7, 2));
    set.insert(range(1000, 600));
    let none = PageSet::none_of(range(0, PAGES));
    let images = [one, two];
    let wanted = [Wanted::there(none), Wanted::there(set.clone())];
    write(&images, &wanted, &to, &Signals::default(), &mut go_on, &|_| ()).expect("written");
    let data = to.data.lock().expect("no panic");
    assert_eq!(data.len(), 602);
    assert!(data.keys().all(|(memory, pgoff)| *memory == 1 && set.contains(index(*pgoff))));
    let skipped = |image: &Fake| image.skipped.lock().expect("no panic").clone();
    assert_eq!(skipped(&images[0]), [range(0, PAGES)]);
    assert_eq!(skipped(&images[1]), [range(0, 7), range(9, 991), range(1600, 400)]);
}

#[test]
fn snapshot_that_fails_and_a_signal_end_the_writing() {
    let image = Fake {
        fails_at: Some(1500),
        ..fake()
    };
    let failed = write(
        &[image],
        &[all(0)],
        &Store::default(),
        &Signals::default(),
        &mut go_on,
        &|_| (),
    );
    assert!(matches!(failed, Err(Error::Copies)), "{failed:?}");
    let signals = Signals::default();
    signals.raise();
    let stopped = write(&[fake()], &[all(0)], &Store::default(), &signals, &mut go_on, &|_| ());
    assert!(stopped.as_ref().is_err_and(Error::is_signal), "{stopped:?}");
}

#[test]
fn absent_pages_are_put_after_all_others() {
    let (images, to) = ([fake()], Store::default());
    write(&images, &[all(5)], &to, &Signals::default(), &mut go_on, &|_| ()).expect("written");
    assert_eq!(to.data.lock().expect("no panic").len(), 1900);
    let read = images[0].read.lock().expect("no panic");
    let first = read.iter().position(|pgoff| *pgoff == 0).expect("it is read");
    // Each thread has one piece under way.
    let before = read.len() - 5 - (THREADS - 1) * CHUNK as usize;
    assert!(first >= before, "{first}");
}

#[test]
fn wait_for_absent_pages_is_said_and_ends_with_a_signal_the_check_or_another_error() {
    let waits = || Fake {
        absent: Some(range(0, 5)),
        ..fake()
    };
    let signals = Signals::default();
    let said = AtomicU64::new(0);
    let report = |step: Step<'_>| {
        if let Step::Waiting { progress, pages } = step {
            said.store(pages, Ordering::Relaxed);
            if progress.done == 1895 * PAGE_SIZE as u64 {
                signals.raise();
            }
        }
    };
    let stopped = write(&[waits()], &[all(5)], &Store::default(), &signals, &mut go_on, &report);
    assert!(stopped.as_ref().is_err_and(Error::is_signal), "{stopped:?}");
    assert_eq!(said.into_inner(), 5);
    let mut in_vain = || Err(Error::other("they will not come"));
    let none = Signals::default();
    let ended = write(&[waits()], &[all(5)], &Store::default(), &none, &mut in_vain, &|_| ());
    assert!(ended.expect_err("the end").to_string().contains("will not come"));
    let other = Fake {
        fails_at: Some(1500),
        ..fake()
    };
    let images = [waits(), other];
    let wanted = [all(5), all(0)];
    let failed = write(&images, &wanted, &Store::default(), &none, &mut go_on, &|_| ());
    assert!(matches!(failed, Err(Error::Copies)), "{failed:?}");
}

#[test]
fn page_that_is_discarded_before_it_comes_is_an_error_of_its_own() {
    let image = Fake {
        absent: Some(range(0, 5)),
        skipped: Mutex::new(vec![range(0, 1)]),
        ..fake()
    };
    let failed = write(
        &[image],
        &[all(5)],
        &Store::default(),
        &Signals::default(),
        &mut go_on,
        &|_| (),
    );
    assert!(matches!(failed, Err(Error::Discarded)), "{failed:?}");
}
