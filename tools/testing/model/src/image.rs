// SPDX-License-Identifier: GPL-2.0-or-later

//! The places of an image's pages: random histories against a list, and (below) that an image is of one instant in every order of events.

mod instant;

use std::cell::Cell;
use std::sync::atomic::AtomicU64;

use crate::model::{
    dirty_log::words_for,
    image::{Image, Location},
    range::PageRange,
};
use proptest::prelude::*;

/// Four words, the last of which is not full.
const PAGES: u64 = 3 * 64 + 41;

#[derive(Clone, Debug)]
enum Step {
    Copied(u64),
    Done(u64, u64),
    /// A read in the middle of which the page is copied, or done.
    ReadWhileCopied(u64),
    ReadWhileDone(u64),
}

/// An image all of whose pages are in the memory.
fn pending() -> Image<Vec<AtomicU64>> {
    let (words, _) = words_for(PAGES);
    let pending = (0..words).map(|word| AtomicU64::new(u64::MAX >> (64 - (PAGES - word * 64).min(64))));
    let done = (0..words).map(|_| AtomicU64::new(0));
    Image::new(pending.collect(), done.collect())
}

fn step() -> impl Strategy<Value = Step> {
    let page = || 0..PAGES;
    prop_oneof![
        4 => page().prop_map(Step::Copied),
        1 => (page(), 1..=PAGES).prop_map(|(first, nr)| Step::Done(first, nr.min(PAGES - first))),
        2 => page().prop_map(Step::ReadWhileCopied),
        1 => page().prop_map(Step::ReadWhileDone),
    ]
}

/// As the users of an image have it: a page that has been copied, or is done, stays so.
fn copied(locations: &mut [Location], page: u64) {
    let location = &mut locations[page as usize];
    if *location == Location::Memory {
        *location = Location::Copy;
    }
}

fn done(locations: &mut [Location], range: PageRange) -> u64 {
    let locations = &mut locations[range.start() as usize..range.end() as usize];
    let new = locations.iter().filter(|location| **location != Location::Done).count();
    locations.fill(Location::Done);
    new as u64
}

fn run(first: u64, nr: u64) -> PageRange {
    PageRange::within(first, nr, PAGES).expect("a run within the limit")
}

proptest! {
    #[test]
    fn image_does_what_a_list_of_places_does(steps in prop::collection::vec(step(), 1..60)) {
        let (image, mut locations) = (pending(), vec![Location::Memory; PAGES as usize]);
        for step in steps {
            match step {
                Step::Copied(page) => {
                    image.set_copied(page);
                    copied(&mut locations, page);
                }
                Step::Done(first, nr) => {
                    prop_assert_eq!(image.set_done(run(first, nr)), done(&mut locations, run(first, nr)));
                }
                Step::ReadWhileCopied(page) | Step::ReadWhileDone(page) => {
                    let reads = Cell::new(0);
                    let before = locations[page as usize];
                    let read = image.read(page, |location| {
                        if reads.replace(reads.get() + 1) == 0 {
                            match step {
                                Step::ReadWhileCopied(_) => image.set_copied(page),
                                _ => drop(image.set_done(run(page, 1))),
                            }
                        }
                        Ok::<_, ()>(location)
                    });
                    match step {
                        Step::ReadWhileCopied(_) => copied(&mut locations, page),
                        _ => drop(done(&mut locations, run(page, 1))),
                    }
                    // What it returns was read where the page is now.
                    prop_assert_eq!(read, Ok(locations[page as usize]));
                    prop_assert_eq!(reads.get(), 1 + u64::from(before != locations[page as usize]));
                }
            }
            for (page, location) in (0..).zip(&locations) {
                prop_assert_eq!(image.location(page), *location);
                prop_assert_eq!(image.is_pending(page), *location == Location::Memory);
            }
            prop_assert_eq!(image.count_pending(), locations.iter().filter(|location| **location == Location::Memory).count() as u64);
        }
    }
}

#[test]
fn pages_that_the_memory_does_not_have_are_done() {
    let image = pending();
    for page in [4 * 64, 1 << 40, u64::MAX] {
        assert_eq!(image.location(page), Location::Done);
        assert!(!image.is_pending(page));
        image.set_copied(page);
    }
    assert_eq!(image.count_pending(), PAGES);
}

#[test]
fn a_read_that_fails_is_not_tried_again() {
    let image = pending();
    let mut reads = 0;
    let read: Result<(), u32> = image.read(7, |_| {
        reads += 1;
        image.set_copied(7);
        Err(5)
    });
    assert_eq!((read, reads), (Err(5), 1));
}
