// SPDX-License-Identifier: GPL-2.0-or-later
//! Regions that are compared with their source.

use std::io::{Seek, SeekFrom, Write};

use vmem_source::memory::Memory as Exported;

use super::source::spec;
use super::*;
use crate::{Verification, Verified};

const PAGES: u64 = 1000;

fn targets(connect: &Connect, memories: &[Arc<Memory>]) -> Vec<Target> {
    let source = connect(Lane::Urgent).expect("a source");
    let target = |(export, memory): (&Export, &Arc<Memory>)| Target {
        export: export.clone(),
        name: format!("region-of-{}", export.name),
        sink: Arc::clone(memory) as Arc<dyn Sink>,
    };
    source.exports().iter().zip(memories).map(target).collect()
}

/// Regions that were filled from these files, and how to reach the source.
fn filled(files: &[(&str, &NamedTempFile)]) -> (Source, Vec<Arc<Memory>>) {
    let source = Source::new(files);
    let memories: Vec<_> = files.iter().map(|_| Arc::new(Memory::new(PAGES))).collect();
    let (mut engine, _) = start(&memories, to(source.address), OPTIONS);
    finish(&mut engine).expect("all pages");
    engine.stop();
    (source, memories)
}

fn compare(connect: &Connect, memories: &[Arc<Memory>], window: u64) -> (Result<Verified, Error>, u64) {
    let stats = Arc::new(Stats::new().expect("counters"));
    let targets = targets(connect, memories);
    let verification = Verification::start(targets, Arc::clone(connect), window, Arc::clone(&stats)).expect("a thread");
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(result) = verification.result() {
            return (result, get(&stats.verified));
        }
        assert!(Instant::now() < until, "there is no result");
        thread::sleep(Duration::from_millis(2));
    }
}

/// The first page that is zero in the file, or is not.
fn find(file: &NamedTempFile, is_zero: bool) -> u64 {
    let bytes = std::fs::read(file.path()).expect("the source");
    let mut pages = bytes.chunks(PAGE_SIZE);
    pages
        .position(|page| (page == [0; PAGE_SIZE]) == is_zero)
        .expect("such a page") as u64
}

fn named(verified: &Verified) -> Vec<(&str, u64)> {
    let pages = verified.first.iter();
    pages.map(|(region, page)| (region.as_str(), page.get())).collect()
}

#[test]
fn regions_that_are_as_their_source_have_no_different_pages() {
    let (one, two) = (source_file(PAGES, 11), source_file(PAGES, 12));
    let (source, memories) = filled(&[("one", &one), ("two", &two)]);
    for window in [0, 1, 300, 1 << 20] {
        let (result, counted) = compare(&to(source.address), &memories, window);
        let verified = result.expect("a comparison");
        assert_eq!((verified.pages, verified.different, counted), (2 * PAGES, 0, 2 * PAGES));
    }
}

#[test]
fn pages_that_differ_are_named_whatever_they_are_at_the_source() {
    let (one, two) = (source_file(PAGES, 13), source_file(PAGES, 14));
    let (source, memories) = filled(&[("one", &one), ("two", &two)]);
    let (data, zero) = (find(&one, false), find(&one, true));
    memories[0].spoil(data);
    memories[0].spoil(zero);
    memories[1].spoil(PAGES - 1);
    let verified = compare(&to(source.address), &memories, 512).0.expect("a comparison");
    let mut expected = vec![("region-of-one", data), ("region-of-one", zero)];
    expected.sort_unstable();
    expected.push(("region-of-two", PAGES - 1));
    assert_eq!((verified.pages, verified.different), (2 * PAGES, 3));
    assert_eq!(named(&verified), expected);
}

#[test]
fn first_16_of_many_different_pages_are_named() {
    let file = source_file(PAGES, 15);
    let (source, memories) = filled(&[("one", &file)]);
    (100..140).for_each(|page| memories[0].spoil(page));
    let verified = compare(&to(source.address), &memories, 512).0.expect("a comparison");
    assert_eq!(verified.different, 40);
    let expected: Vec<_> = (100..116).map(|page| ("region-of-one", page)).collect();
    assert_eq!(named(&verified), expected);
}

#[test]
fn page_that_has_changed_at_the_source_differs() {
    let mut file = source_file(PAGES, 16);
    let (source, memories) = filled(&[("one", &file)]);
    let zero = find(&file, true);
    file.seek(SeekFrom::Start(zero * PAGE_SIZE as u64)).expect("a file");
    file.write_all(&[1]).expect("room");
    let verified = compare(&to(source.address), &memories, 512).0.expect("a comparison");
    assert_eq!(named(&verified), [("region-of-one", zero)]);
}

#[test]
fn pages_that_the_source_cannot_read_any_more_differ() {
    let file = source_file(PAGES, 17);
    let (source, memories) = filled(&[("one", &file)]);
    file.as_file()
        .set_len((PAGES - 3) * PAGE_SIZE as u64)
        .expect("a shorter file");
    let verified = compare(&to(source.address), &memories, 512).0.expect("a comparison");
    assert_eq!((verified.pages, verified.different), (PAGES, 3));
    let expected: Vec<_> = (PAGES - 3..PAGES).map(|page| ("region-of-one", page)).collect();
    assert_eq!(named(&verified), expected);
}

#[test]
fn absent_pages_differ_although_their_bytes_are_the_same() {
    let file = source_file(PAGES, 18);
    let (source, memories) = filled(&[("one", &file)]);
    memories[0].time_out(7);
    let verified = compare(&to(source.address), &memories, 512).0.expect("a comparison");
    assert_eq!(named(&verified), [("region-of-one", 7)]);
}

#[test]
fn lost_source_gives_the_comparison_up() {
    let file = source_file(PAGES, 19);
    let (source, memories) = filled(&[("one", &file)]);
    // The first connection is that which asks for the exports.
    let way = Link::new(source.address, |number, _| match number {
        0 => Weather::Fair,
        _ => Weather::Cut(1 << 20),
    });
    let (result, counted) = compare(&to(way.address), &memories, 512);
    assert!(matches!(result, Err(Error::Source(_))), "{result:?}");
    assert!((1..PAGES).contains(&counted), "it was lost in the middle: {counted}");
}

#[test]
fn source_with_other_memory_is_not_compared() {
    let (file, other) = (source_file(PAGES, 20), source_file(PAGES, 21));
    let (source, memories) = filled(&[("one", &file)]);
    let targets = targets(&to(source.address), &memories);
    let elsewhere = Source::of(
        ([127, 0, 0, 1], 0).into(),
        vec![Exported::open(&spec("one", &other)).expect("memory")],
    );
    let stats = Arc::new(Stats::new().expect("counters"));
    let verification = Verification::start(targets, to(elsewhere.address), 512, stats).expect("a thread");
    wait_until_mut(|| match verification.result() {
        None => false,
        Some(result) => matches!(result, Err(Error::MemoryChanged(_))),
    });
}
