// SPDX-License-Identifier: GPL-2.0-or-later
//! Old images of the memory, whose pages need not be sent.

use std::fs::{self, File};
use std::io::{BufRead, Read};
use std::os::unix::fs::FileExt;

use vmem::PAGE_SIZE;

use super::{Daemon, PAGES, SIZE, Scratch, Source, check_page, map, open};
use crate::failure::{Outcome, ensure, equal};

crate::tests![
    pages_of_a_seed_image_are_copied_and_not_sent,
    seed_image_that_changes_gives_no_wrong_page,
    seed_image_that_cannot_be_opened_is_an_error,
];

/// An image of the pages of `file` in reverse, of which every tenth is another one.
fn old_image(name: &str, file: &Scratch) -> Outcome<Scratch> {
    let image = Scratch::new(name, 1)?;
    let mut pages: Vec<Vec<u8>> = fs::read(&file.0)?.chunks(PAGE_SIZE).rev().map(<[u8]>::to_vec).collect();
    pages.iter_mut().step_by(10).for_each(|page| page[9] ^= 1);
    fs::write(&image.0, pages.concat())?;
    Ok(image)
}

/// Fills a region with this image, which `spoil` changes before the pages come. Returns the bytes of pages that came as data and from the image.
fn fill(name: &str, spoil: impl Fn(&File) -> Outcome) -> Outcome<(u64, u64, String)> {
    let file = Scratch::new(name, PAGES)?;
    let image = old_image(&format!("{name}-image"), &file)?;
    let source = Source::new(&[&file.export(name)])?;
    let path = image.0.display().to_string();
    let mut daemon = Daemon::new(&source.address, &["--hold", "--verify", "--seed-image", &path])?;
    let handle = open(name)?;
    let mut log = daemon.errors()?;
    let mut errors = String::new();
    while !errors.contains("different pages") {
        ensure!(log.read_line(&mut errors)? > 0, "the image has not been read: {errors}");
    }
    spoil(&File::options().write(true).open(&image.0)?)?;
    daemon.tell("start")?;
    // What somebody waits for is sent, whether it is in the image or not: nobody touches these pages before they are there.
    let memory = map(&handle)?;
    let end = daemon.end()?.with_code(0)?;
    (0..PAGES).try_for_each(|page| check_page(&memory, page))?;
    equal!(end.number("verified_bytes")?, SIZE);
    let [data, zero, known] = ["data_bytes", "zero_bytes", "known_bytes"].map(|figure| end.number(figure));
    let (data, zero, known) = (data?, zero?, known?);
    equal!(data + zero + known, SIZE);
    log.read_to_string(&mut errors)?;
    Ok((data, known, errors))
}

fn pages_of_a_seed_image_are_copied_and_not_sent() -> Outcome {
    let (data, known, _) = fill("seed", |_| Ok(()))?;
    // A fifth is zero, and a tenth of the image is spoilt.
    ensure!(known > SIZE / 2, "{known} bytes are from the image, {data} were sent");
    Ok(())
}

fn seed_image_that_changes_gives_no_wrong_page() -> Outcome {
    let (_, known, errors) = fill("seed-changes", |image| Ok(image.write_all_at(&vec![3; SIZE as usize], 0)?))?;
    equal!(known, 0);
    ensure!(errors.contains("has changed"), "{errors}");
    let (_, known, errors) = fill("seed-ends", |image| Ok(image.set_len(1)?))?;
    equal!(known, 0);
    ensure!(errors.contains("seed images are not used any more"), "{errors}");
    Ok(())
}

fn seed_image_that_cannot_be_opened_is_an_error() -> Outcome {
    for path in ["/no/such/file", "/dev", "/dev/null"] {
        let end = Daemon::new("127.0.0.1:9", &["--seed-image", path])?.end()?.with_code(1)?;
        ensure!(end.output.contains("cannot use the seed image"), "{}", end.output);
    }
    Ok(())
}
