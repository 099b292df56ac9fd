// SPDX-License-Identifier: GPL-2.0-or-later
//! Contents that are in an old image are not sent, wherever they are in it; an image that changes gives no wrong page.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::*;
use crate::Seed;

const PAGES: u64 = 2000;

/// An image of the pages of `file` in reverse, of which every tenth is another one, and half a page more.
fn old_image(file: &NamedTempFile) -> NamedTempFile {
    let bytes = std::fs::read(file.path()).expect("the source");
    let mut pages: Vec<Vec<u8>> = bytes.chunks(PAGE_SIZE).rev().map(<[u8]>::to_vec).collect();
    pages.iter_mut().step_by(10).for_each(|page| page[100] ^= 1);
    let image = NamedTempFile::new_in("/dev/shm").expect("a file");
    image.as_file().write_all_at(&pages.concat(), 0).expect("room");
    image
        .as_file()
        .write_all_at(&[9; PAGE_SIZE / 2], bytes.len() as u64)
        .expect("room");
    image
}

fn seed_of(images: &[&NamedTempFile]) -> Arc<Seed> {
    let open = |image: &&NamedTempFile| (image.path().to_owned(), File::open(image.path()).expect("an image"));
    let seed = Seed::start(images.iter().map(open).collect()).expect("a thread");
    wait_until(|| seed.is_complete());
    seed
}

/// Fills memory, and checks that all of it is right. Returns the pages that came as data and from the image.
fn fill(source: &Source, file: &NamedTempFile, seed: &Arc<Seed>) -> (u64, u64) {
    let memory = Arc::new(Memory::new(PAGES));
    let options = Options {
        seed: Some(Arc::clone(seed)),
        ..OPTIONS
    };
    let (mut engine, stats) = start(&[Arc::clone(&memory)], to(source.address), options);
    finish(&mut engine).expect("an end");
    assert_eq!(check(&memory, file), PAGES);
    engine.stop();
    let (data, known) = (get(&stats.data), get(&stats.known));
    assert_eq!(data + known + get(&stats.zero), PAGES);
    assert_eq!(get(&stats.duplicates), 0);
    (data, known)
}

#[test]
fn pages_of_an_image_are_not_sent_wherever_they_are_in_it() {
    let file = source_file(PAGES, 5);
    let image = old_image(&file);
    let source = Source::new(&[("ram", &file)]);
    let seed = seed_of(&[&image]);
    let (data, known) = fill(&source, &file, &seed);
    // One in ten is another page, and less than three in ten are zero.
    assert!(known > PAGES / 2 && data < PAGES / 5, "{data} data, {known} known");
    assert_eq!(seed.failure(), None);
    // Another connection is told of them again.
    assert_eq!(fill(&source, &file, &seed), (data, known));
}

#[test]
fn pages_of_several_images_count_together() {
    let file = source_file(PAGES, 6);
    let bytes = std::fs::read(file.path()).expect("the source");
    let part = |from: usize, to: usize| {
        let image = NamedTempFile::new_in("/dev/shm").expect("a file");
        image
            .as_file()
            .write_all_at(&bytes[from * PAGE_SIZE..to * PAGE_SIZE], 0)
            .expect("room");
        image
    };
    let images = [part(0, 700), part(700, 2000)];
    let seed = seed_of(&[&images[0], &images[1]]);
    let source = Source::new(&[("ram", &file)]);
    let (data, known) = fill(&source, &file, &seed);
    assert_eq!((data, known > PAGES / 2), (0, true));
}

#[test]
fn image_that_changes_or_ends_early_gives_no_wrong_page_and_is_not_used_any_more() {
    let file = source_file(PAGES, 7);
    let source = Source::new(&[("ram", &file)]);
    for (text, spoil) in [
        (
            "has changed",
            (|image: &File| {
                (0..PAGES).for_each(|page| {
                    image.write_all_at(&[0xff; 8], page * PAGE_SIZE as u64 + 4000).expect("room");
                });
            }) as fn(&File),
        ),
        ("cannot read", |image: &File| image.set_len(100).expect("a size")),
    ] {
        let image = old_image(&file);
        let seed = seed_of(&[&image]);
        spoil(image.as_file());
        let (data, known) = fill(&source, &file, &seed);
        assert!(data > PAGES / 2, "{text}");
        assert_eq!(known, 0, "{text}");
        let why = seed.failure().expect("a reason");
        assert!(why.contains(text), "{why}");
        assert_eq!(seed.failure(), None, "it is said once");
    }
}

#[test]
fn image_that_changes_in_part_gives_the_other_pages() {
    let file = source_file(PAGES, 8);
    let source = Source::new(&[("ram", &file)]);
    let image = old_image(&file);
    let seed = seed_of(&[&image]);
    // The pages at the beginning of the image are the last ones that the stream fetches.
    image.as_file().write_all_at(&[0xff; 300 * PAGE_SIZE], 0).expect("room");
    let (data, known) = fill(&source, &file, &seed);
    assert!(known > PAGES / 3 && data > 200, "{data} data, {known} known");
    assert!(seed.failure().is_some());
}

#[test]
fn announced_contents_survive_a_lost_connection() {
    let file = source_file(PAGES, 9);
    let image = old_image(&file);
    let source = Source::new(&[("ram", &file)]);
    let link = Link::new(source.address, |number, lane| match (number, lane) {
        (1, STREAM) => Weather::Cut(20_000),
        _ => Weather::Fair,
    });
    let memory = Arc::new(Memory::new(PAGES));
    let options = Options {
        seed: Some(seed_of(&[&image])),
        ..OPTIONS
    };
    let (mut engine, stats) = start(&[Arc::clone(&memory)], to(link.address), options);
    finish(&mut engine).expect("an end");
    assert_eq!(check(&memory, &file), PAGES);
    engine.stop();
    assert_eq!(get(&stats.reconnects), 1);
    assert!(get(&stats.known) > PAGES / 2);
}
