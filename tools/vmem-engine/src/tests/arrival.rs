// SPDX-License-Identifier: GPL-2.0-or-later
//! All pages come, and come as they are.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicBool;

use vmem::PageRange;

use super::*;

#[test]
fn every_page_arrives_once_with_its_contents() {
    let file = source_file(2000, 1);
    let source = Source::new(&[("ram", &file)]);
    let memory = Arc::new(Memory::new(2000));
    let (mut engine, stats) = start(&[Arc::clone(&memory)], to(source.address), OPTIONS);
    finish(&mut engine).expect("a good end");
    assert_eq!(check(&memory, &file), 2000);
    assert_eq!(get(&stats.data) + get(&stats.zero), 2000);
    assert!(get(&stats.zero) >= 250, "one page in four is zero: {}", get(&stats.zero));
    assert_eq!((get(&stats.duplicates), memory.refused()), (0, 0));
    assert_eq!(stats.service_times(), None);
    engine.stop();
}

#[test]
fn several_regions_fill_while_programs_touch_them() {
    let files = [source_file(700, 2), source_file(1, 3), source_file(900, 4)];
    let source = Source::new(&[("a", &files[0]), ("b", &files[1]), ("c", &files[2])]);
    let memories = [700, 1, 900].map(|pages| Arc::new(Memory::new(pages)));
    let (mut engine, stats) = start(&memories, to(source.address), OPTIONS);
    thread::scope(|scope| {
        for (memory, pages, step) in [
            (&memories[0], 700, 3),
            (&memories[0], 700, 5),
            (&memories[1], 1, 1),
            (&memories[2], 900, 7),
        ] {
            scope.spawn(move || {
                for touch in 0..pages {
                    assert!(memory.touch(touch * step % pages).is_some());
                }
            });
        }
    });
    finish(&mut engine).expect("a good end");
    for (memory, file) in memories.iter().zip(&files) {
        assert_eq!(check(memory, file), memory.present());
    }
    assert_eq!(memories.iter().map(|memory| memory.present()).sum::<u64>(), 1601);
    assert_eq!(
        get(&stats.duplicates),
        memories.iter().map(|memory| memory.refused()).sum::<u64>()
    );
    engine.stop();
}

#[test]
fn pages_that_come_without_the_engine_are_not_fetched() {
    let file = source_file(4000, 6);
    let source = Source::new(&[("ram", &file)]);
    let link = Link::gated_stream(source.address);
    let memory = Arc::new(Memory::new(4000));
    let options = Options { backed: true, ..OPTIONS };
    let (mut engine, stats) = start(&[Arc::clone(&memory)], to(link.address), options);
    // As if a kernel had read every other page; the window is over before those.
    let bytes = std::fs::read(file.path()).expect("the source");
    for page in PageRange::from_pgoff(1100, 2900).expect("pages").iter().step_by(2) {
        let at = page.get() as usize * PAGE_SIZE;
        assert_eq!(
            memory.fill(&[(page, &bytes[at..at + PAGE_SIZE])]).complete().expect("room"),
            1
        );
    }
    link.gate.open(u64::MAX >> 1);
    finish(&mut engine).expect("a good end");
    assert_eq!(check(&memory, &file), 4000);
    assert_eq!((memory.refused(), get(&stats.duplicates)), (0, 0));
    assert_eq!(get(&stats.data) + get(&stats.zero), 4000 - 1450);
    engine.stop();
}

#[test]
fn faults_are_served_while_the_stream_is_blocked() {
    let file = source_file(4000, 5);
    let source = Source::new(&[("ram", &file)]);
    let link = Link::gated_stream(source.address);
    link.gate.open(3);
    let memory = Arc::new(Memory::new(4000));
    let (mut engine, stats) = start(&[Arc::clone(&memory)], to(link.address), OPTIONS);
    wait_until(|| link.gate.passed.load(Ordering::Relaxed) == 3);
    for pgoff in [3999, 2000, 1040, 3998, 1001] {
        assert!(memory.touch(pgoff).is_some(), "page {pgoff}");
    }
    assert_eq!(
        link.gate.passed.load(Ordering::Relaxed),
        3,
        "nothing more of the stream has passed"
    );
    assert!(memory.present() < 100, "the stream does stand still");
    assert_eq!(check(&memory, &file), memory.present());
    link.gate.open(u64::MAX);
    finish(&mut engine).expect("a good end");
    assert_eq!(check(&memory, &file), 4000);
    assert_eq!(get(&stats.requests), 5);
    assert!(stats.service_times().is_some());
    engine.stop();
}

#[test]
fn stream_continues_behind_the_latest_fault() {
    let file = source_file(8192, 6);
    let source = Source::new(&[("ram", &file)]);
    let link = Link::gated_stream(source.address);
    let memory = Arc::new(Memory::new(8192));
    // One question at a time.
    let options = Options { window: 1, ..OPTIONS };
    let (mut engine, _) = start(&[Arc::clone(&memory)], to(link.address), options);
    assert!(memory.touch(6000).is_some());
    link.gate.open(60);
    wait_until(|| memory.contents().1[6200] == Page::Present);
    let (_, pages) = memory.contents();
    assert_eq!(pages[5999], Page::Absent);
    assert_eq!(pages[4000], Page::Absent, "long before its turn");
    link.gate.open(u64::MAX);
    finish(&mut engine).expect("a good end");
    assert_eq!(check(&memory, &file), 8192);
    engine.stop();
}

#[test]
fn without_background_only_faults_are_fetched() {
    let file = source_file(1000, 7);
    let source = Source::new(&[("ram", &file)]);
    let memory = Arc::new(Memory::new(1000));
    let options = Options {
        background: false,
        ..OPTIONS
    };
    let (engine, stats) = start(&[Arc::clone(&memory)], to(source.address), options);
    for pgoff in [999, 3, 500, 4] {
        assert!(memory.touch(pgoff).is_some());
    }
    assert_eq!(check(&memory, &file), 4);
    assert_eq!(get(&stats.requests), 4);
    engine.stop();
    wait_until(|| source.served() >= 4);
    assert_eq!(source.served(), 4);
}

/// A source that has two pages at hand with each page that it sends, and whether somebody has said that these are not wanted.
struct Near(Box<dyn PageSource>, Arc<AtomicBool>);

impl PageSource for Near {
    fn exports(&self) -> &[Export] {
        self.0.exports()
    }

    fn nearby(&mut self) -> Vec<(usize, PageRange)> {
        // The second is no export.
        [(0, 700), (1, 0)]
            .map(|(export, first)| (export, PageRange::from_pgoff(first, 2).expect("pages")))
            .into()
    }

    fn skip_nearby(&mut self) {
        self.1.store(true, Ordering::Relaxed);
    }

    fn fetch(&mut self, export: usize, ranges: &[PageRange]) -> Result<(), vmem_source::Error> {
        self.0.fetch(export, ranges)
    }

    fn readiness(&self) -> vmem_source::Readiness<'_> {
        self.0.readiness()
    }

    fn next_answer(&mut self) -> Result<vmem_source::Answer<'_>, vmem_source::Error> {
        self.0.next_answer()
    }
}

#[test]
fn pages_that_are_near_a_fault_are_fetched_once_unless_nothing_is_fetched_ahead() {
    let file = source_file(1000, 9);
    for (prefetch, near) in [(32, 2), (0, 0)] {
        let source = Source::new(&[("ram", &file)]);
        let inner = to(source.address);
        let is_skipped = Arc::new(AtomicBool::new(false));
        let skipped = Arc::clone(&is_skipped);
        let connect: Connect =
            Arc::new(move |lane| Ok(Box::new(Near(inner(lane)?, Arc::clone(&skipped))) as Box<dyn PageSource>));
        let memory = Arc::new(Memory::new(1000));
        let options = Options {
            background: false,
            prefetch,
            ..OPTIONS
        };
        let (engine, stats) = start(&[Arc::clone(&memory)], connect, options);
        assert!(memory.touch(3).is_some());
        wait_until(|| memory.present() == 1 + near);
        // These are present, or on their way: not again.
        for pgoff in [701, 999, 500] {
            assert!(memory.touch(pgoff).is_some());
        }
        let present = 3 + near.max(1);
        wait_until(|| memory.present() == present);
        assert_eq!(check(&memory, &file), present);
        engine.stop();
        wait_until(|| source.served() >= present);
        assert_eq!((source.served(), get(&stats.ahead)), (present, near));
        assert_eq!(is_skipped.load(Ordering::Relaxed), prefetch == 0);
    }
}

#[test]
fn more_faults_than_the_window_are_all_served() {
    let file = source_file(5000, 8);
    let source = Source::new(&[("ram", &file)]);
    let memory = Arc::new(Memory::new(5000));
    (0..5000).for_each(|pgoff| memory.want(pgoff));
    let options = Options {
        background: false,
        ..OPTIONS
    };
    let (mut engine, stats) = start(&[Arc::clone(&memory)], to(source.address), options);
    for pgoff in 0..5000 {
        assert!(memory.touch(pgoff).is_some());
    }
    finish(&mut engine).expect("a good end");
    assert_eq!(check(&memory, &file), 5000);
    assert_eq!((get(&stats.requests), get(&stats.duplicates)), (5000, 0));
    engine.stop();
}

#[test]
fn unreadable_pages_of_the_source_do_not_delay_others() {
    let file = source_file(1000, 15);
    let source = Source::new(&[("ram", &file)]);
    let wanted = std::fs::read(file.path()).expect("the source");
    let shrunk = File::options().write(true).open(file.path()).expect("the source");
    let memory = Arc::new(Memory::new(1000));
    let connect = to(source.address);
    connect(Lane::Urgent).expect("a source");
    shrunk.set_len(600 * PAGE_SIZE as u64).expect("a size");
    let (mut engine, _) = start(&[Arc::clone(&memory)], connect, OPTIONS);
    assert_eq!(memory.touch(999), None, "a program is not kept waiting");
    finish(&mut engine).expect("a good end");
    let (bytes, pages) = memory.contents();
    assert!(pages[..600].iter().all(|page| *page == Page::Present));
    assert!(pages[600..].iter().all(|page| *page == Page::Unreadable));
    assert!(bytes[..600 * PAGE_SIZE] == wanted[..600 * PAGE_SIZE]);
    // A later daemon, and a source that has them again, cure it.
    shrunk.write_all_at(&wanted, 0).expect("room");
    engine.stop();
    let (mut engine, _) = start(&[Arc::clone(&memory)], to(source.address), OPTIONS);
    finish(&mut engine).expect("a good end");
    assert_eq!(check(&memory, &file), 1000);
    engine.stop();
}
