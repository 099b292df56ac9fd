// SPDX-License-Identifier: GPL-2.0-or-later
//! A snapshot as a file: what is read, sought and mapped, and pages that are done.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;

use rustix::fs::seek;
use rustix::pipe::{SpliceFlags, pipe, splice};
use rustix::process::Signal;
use vmem::PAGE_SIZE;
use vmem_functional_sys::{AreaBuilder, MemoryAt, read_at_into};
use vmem_sys::VMEM_SNAPSHOT_ONCE;

use crate::adopted::Adopted;
use crate::failure::{Outcome, ensure, equal, refused};
use crate::image::Image;
use crate::kernel::Swap;
use crate::program::Program;
use crate::setting::{Setting, bytes_of, check_words, contents};
use crate::tracked::{Tracked, memfd};
use crate::world::field;

crate::tests![
    any_part_can_be_read,
    a_read_of_memory_that_cannot_be_written_stops,
    a_read_into_the_memory_itself_is_the_image,
    a_page_that_is_written_while_it_is_read_is_the_image,
    snapshot_cannot_be_written_or_truncated,
    positions_are_those_of_a_file,
    data_and_holes_are_told,
    snapshot_can_be_spliced,
    a_mapping_is_the_image_and_outlives_the_descriptor,
    a_mapping_cannot_be_made_writable,
    a_private_mapping_can_be_written_and_changes_nothing,
    pages_that_are_done_are_nowhere,
    pages_that_are_done_are_not_copied,
    read_once_snapshot_gives_each_page_once,
    pages_that_were_swapped_out_are_there,
    a_size_that_is_no_whole_page_is_rounded_up,
    figures_count,
];

const PAGES: usize = 64;
const MADV_REMOVE: i32 = 9;

/// A snapshot of memory every other page of which has been written since, and the bytes that it has to have.
fn half_copied(flags: u32) -> Outcome<(Tracked, Image, Vec<u8>)> {
    let memory = Tracked::new(PAGES)?;
    memory.settle()?;
    memory.area.write_page(5, &contents(5));
    let before = memory.bytes()?;
    let image = Image::take(&memory.log, flags, 0)?;
    for page in (0..PAGES).step_by(2) {
        memory.area.write_page(page, &contents(500));
    }
    Ok((memory, image, before))
}

fn any_part_can_be_read() -> Outcome {
    let (_memory, image, before) = half_copied(0)?;
    for (at, len) in [
        (0, 1),
        (1, PAGE_SIZE),
        (PAGE_SIZE - 1, 2),
        (PAGE_SIZE, PAGE_SIZE),
        (3 * PAGE_SIZE + 17, 10 * PAGE_SIZE),
        (PAGES * PAGE_SIZE - 1, 1),
        (5, PAGES * PAGE_SIZE - 5),
    ] {
        let mut bytes = vec![0; len];
        image.file().read_exact_at(&mut bytes, at as u64)?;
        ensure!(bytes == before[at..at + len], "{len} bytes at {at} are not what they were");
    }
    let mut bytes = vec![0; 2 * PAGE_SIZE];
    let end = (PAGES * PAGE_SIZE) as u64;
    equal!(image.file().read_at(&mut bytes, end)?, 0);
    equal!(image.file().read_at(&mut bytes, end + 123_456)?, 0);
    equal!(image.file().read_at(&mut bytes, end - 10)?, 10);
    equal!(image.file().read_at(&mut [], 0)?, 0);
    Ok(())
}

fn a_read_of_memory_that_cannot_be_written_stops() -> Outcome {
    let (_memory, image, before) = half_copied(0)?;
    let target = AreaBuilder::default().anonymous(4)?;
    target.protect(2..4, 1)?;
    let to = |offset, len| MemoryAt {
        area: &target,
        offset,
        len,
    };
    equal!(read_at_into(image.file(), to(0, 4 * PAGE_SIZE))?, 2 * PAGE_SIZE);
    equal!(read_at_into(image.file(), to(PAGE_SIZE + 100, PAGE_SIZE))?, PAGE_SIZE - 100);
    ensure!(
        bytes_of(&target.page(1))[100..] == before[..PAGE_SIZE - 100],
        "what was read is not what was there"
    );
    refused!(read_at_into(image.file(), to(2 * PAGE_SIZE, PAGE_SIZE)), FAULT);
    Ok(())
}

/// Each page of the image goes into the page that it is the image of, which is then written to for the first time.
fn a_read_into_the_memory_itself_is_the_image() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    let before = memory.bytes()?;
    let image = Image::take(&memory.log, 0, 0)?;
    let itself = MemoryAt {
        area: &memory.area,
        offset: 0,
        len: PAGES * PAGE_SIZE,
    };
    equal!(read_at_into(image.file(), itself)?, PAGES * PAGE_SIZE);
    ensure!(memory.bytes()? == before, "the memory was changed");
    image.check(&before)
}

/// The reader's own memory comes late, so that it stands in the middle of a page.
fn a_page_that_is_written_while_it_is_read_is_the_image() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.settle()?;
    let image = Image::take(&memory.log, 0, 0)?;
    let region = Setting::new(1)?;
    let absent = region.area()?;
    let reader = Program::start(|| {
        let to = MemoryAt {
            area: &absent,
            offset: 0,
            len: PAGE_SIZE,
        };
        equal!(read_at_into(image.file(), to)?, PAGE_SIZE);
        check_words(&absent.page(0), 0)?;
        Ok(vec![])
    })?;
    region.wait_waiters(1)?;
    memory.area.write_page(0, &contents(500));
    region.fill([0])?;
    reader.join().map(drop)
}

fn snapshot_cannot_be_written_or_truncated() -> Outcome {
    let (_memory, image, before) = half_copied(0)?;
    refused!(rustix::io::write(&image, &[1]), BADF);
    refused!(image.file().set_len(0), INVAL);
    // Nor be opened again.
    let path = format!("/proc/self/fd/{}", image.file().as_raw_fd());
    refused!(fs::File::open(&path), NXIO);
    image.check(&before)
}

fn positions_are_those_of_a_file() -> Outcome {
    let (_memory, image, before) = half_copied(0)?;
    let mut file = image.file().try_clone()?;
    let size = before.len() as u64;
    equal!(file.seek(SeekFrom::End(0))?, size);
    equal!(file.seek(SeekFrom::Start(100))?, 100);
    let mut bytes = vec![0; 5000];
    file.read_exact(&mut bytes)?;
    ensure!(bytes == before[100..5100], "a read at the position is not the image");
    equal!(file.stream_position()?, 5100);
    refused!(file.seek(SeekFrom::Current(-6000)), INVAL);
    refused!(file.seek(SeekFrom::Start(size + 1)), INVAL);
    let mut rest = Vec::new();
    file.read_to_end(&mut rest)?;
    equal!(rest.len(), before.len() - 5100);
    Ok(())
}

fn data_and_holes_are_told() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.area.advise(8..16, MADV_REMOVE)?;
    memory.area.advise(40..41, MADV_REMOVE)?;
    memory.area.advise(60..64, MADV_REMOVE)?;
    let expected: Vec<_> = (0..PAGES).filter(|page| !matches!(page, 8..16 | 40 | 60..64)).collect();
    let before = memory.bytes()?;
    let image = Image::take(&memory.log, 0, 0)?;
    equal!(image.data()?, expected);
    // Of what was a hole nothing is kept when it is written by a system call; a fault has made a page of it before.
    memory.file.write_all_at(&[7], 8 * PAGE_SIZE as u64)?;
    memory.area.advise(0..4, MADV_REMOVE)?;
    for page in 20..30 {
        memory.area.write_page(page, &contents(700));
    }
    equal!(image.data()?, expected);
    image.check(&before)?;
    for position in [0, 5, 8 * PAGE_SIZE + 1, 15 * PAGE_SIZE] {
        let hole = seek(&image, rustix::fs::SeekFrom::Hole(position as u64))?;
        equal!(hole, position.max(8 * PAGE_SIZE) as u64);
    }
    equal!(
        seek(&image, rustix::fs::SeekFrom::Data(8 * PAGE_SIZE as u64 + 1))?,
        16 * PAGE_SIZE as u64
    );
    refused!(seek(&image, rustix::fs::SeekFrom::Data(60 * PAGE_SIZE as u64)), NXIO);
    refused!(seek(&image, rustix::fs::SeekFrom::Hole((PAGES * PAGE_SIZE) as u64)), NXIO);
    Ok(())
}

fn snapshot_can_be_spliced() -> Outcome {
    let (_memory, image, before) = half_copied(0)?;
    let (mut reader, writer) = pipe().map(|(reader, writer)| (fs::File::from(reader), writer))?;
    let mut at = 0;
    while at < before.len() {
        let mut offset = at as u64;
        let spliced = splice(
            image.file(),
            Some(&mut offset),
            &writer,
            None,
            8 * PAGE_SIZE,
            SpliceFlags::empty(),
        )?;
        ensure!(spliced > 0, "nothing was spliced at {at}");
        let mut bytes = vec![0; spliced];
        reader.read_exact(&mut bytes)?;
        ensure!(bytes == before[at..at + spliced], "what was spliced at {at} is not the image");
        at += spliced;
    }
    Ok(())
}

fn a_mapping_is_the_image_and_outlives_the_descriptor() -> Outcome {
    let (memory, image, _) = half_copied(0)?;
    let map = image.map(AreaBuilder::default().read_only())?;
    for page in 0..PAGES {
        check_words(&map.page(page), page)?;
        memory.area.write_page(page, &contents(501));
        check_words(&map.page(page), page)?;
    }
    let untouched = image.map(AreaBuilder::default().read_only())?;
    drop(image);
    for page in 0..PAGES {
        check_words(&untouched.page(page), page)?;
    }
    Ok(())
}

fn a_mapping_cannot_be_made_writable() -> Outcome {
    let (_memory, image, _) = half_copied(0)?;
    refused!(AreaBuilder::default().map(image.file(), 0, PAGES), ACCESS);
    let map = image.map(AreaBuilder::default().read_only())?;
    refused!(map.protect(0..PAGES, 3), ACCESS);
    refused!(map.advise(0..1, MADV_REMOVE), ACCESS);
    refused!(AreaBuilder::default().read_only().map(image.file(), 1, PAGES), INVAL);
    Ok(())
}

fn a_private_mapping_can_be_written_and_changes_nothing() -> Outcome {
    let (memory, image, before) = half_copied(0)?;
    let map = image.map(AreaBuilder::default().private())?;
    for page in 0..PAGES {
        map.poke(page * PAGE_SIZE, 99);
        equal!(map.peek(page * PAGE_SIZE + 1), before[page * PAGE_SIZE + 1]);
    }
    image.check(&before)?;
    check_words(&memory.area.page(1), 1)?;
    equal!(map.peek(PAGE_SIZE), 99);
    Ok(())
}

fn pages_that_are_done_are_nowhere() -> Outcome {
    let (_memory, image, before) = half_copied(0)?;
    let map = image.map(AreaBuilder::default().read_only())?;
    check_words(&map.page(10), 10)?;
    image.done(8, 8)?;
    refused!(image.page(8), NODATA);
    refused!(image.page(15), NODATA);
    // A read stops in front of it, and the rest is as it was.
    let mut bytes = vec![0; 16 * PAGE_SIZE];
    equal!(image.file().read_at(&mut bytes, 0)?, 8 * PAGE_SIZE);
    equal!(image.page(16)?, before[16 * PAGE_SIZE..17 * PAGE_SIZE]);
    let expected: Vec<_> = (0..PAGES).filter(|page| !(8..16).contains(page)).collect();
    equal!(image.data()?, expected);
    for page in [8, 10, 15] {
        let toucher = Program::start(|| Ok(vec![map.load(page * PAGE_SIZE)]))?;
        toucher.join_killed(Signal::BUS)?;
    }
    check_words(&map.page(7), 7)?;
    image.done(0, PAGES)?;
    image.done(0, PAGES)?;
    let info = image.info()?;
    equal!((info.pending, info.kept, info.done), (0, 0, PAGES as u64));
    equal!(image.data()?, Vec::<usize>::new());
    Ok(())
}

fn pages_that_are_done_are_not_copied() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    let image = Image::take(&memory.log, 0, 0)?;
    image.done(0, PAGES / 2)?;
    for page in 0..PAGES {
        memory.area.write_page(page, &contents(3));
    }
    let info = image.info()?;
    equal!((info.copied, info.kept), (PAGES as u64 / 2, PAGES as u64 / 2));
    image.done(0, PAGES)?;
    equal!(image.info()?.kept, 0);
    Ok(())
}

fn read_once_snapshot_gives_each_page_once() -> Outcome {
    let (memory, image, before) = half_copied(VMEM_SNAPSHOT_ONCE)?;
    equal!(image.page(4)?, before[4 * PAGE_SIZE..5 * PAGE_SIZE]);
    refused!(image.page(4), NODATA);
    // Not of a page a part of which has been read.
    let mut bytes = vec![0; PAGE_SIZE + 100];
    image.file().read_exact_at(&mut bytes, 5 * PAGE_SIZE as u64)?;
    ensure!(bytes == before[5 * PAGE_SIZE..][..PAGE_SIZE + 100], "not the image");
    refused!(image.page(5), NODATA);
    equal!(image.page(6)?, before[6 * PAGE_SIZE..7 * PAGE_SIZE]);
    equal!(image.info()?.done, 3);
    memory.area.write_page(5, &contents(9));
    // To the log only DONE matters.
    equal!(image.log()?, [5]);
    Ok(())
}

fn pages_that_were_swapped_out_are_there() -> Outcome {
    const MADV_PAGEOUT: i32 = 21;
    let _swap = Swap::new()?;
    let memory = Tracked::new(PAGES)?;
    let before = memory.bytes()?;
    memory.area.advise(0..PAGES, MADV_PAGEOUT)?;
    let image = Image::take(&memory.log, 0, 0)?;
    equal!(image.data()?.len(), PAGES);
    image.check(&before)?;
    memory.area.advise(0..PAGES, MADV_PAGEOUT)?;
    for page in 0..PAGES {
        memory.area.write_page(page, &contents(4));
    }
    memory.file.write_all_at(&bytes_of(&contents(5)), 0)?;
    image.check(&before)?;
    // The copies can be swapped out, too.
    let map = image.map(AreaBuilder::default().read_only())?;
    for page in 0..PAGES {
        check_words(&map.page(page), page)?;
    }
    map.advise(0..PAGES, MADV_PAGEOUT)?;
    image.check(&before)
}

fn a_size_that_is_no_whole_page_is_rounded_up() -> Outcome {
    let file = memfd(2)?;
    file.set_len(PAGE_SIZE as u64 + 10)?;
    file.write_all_at(&[5; 10], PAGE_SIZE as u64)?;
    let log = Adopted::new(&file)?;
    log.track()?;
    let image = Image::take(&log, 0, 0)?;
    equal!(image.info()?.size, 2 * PAGE_SIZE as u64);
    file.write_all_at(&[6; 10], PAGE_SIZE as u64)?;
    let mut expected = vec![0; PAGE_SIZE];
    expected[..10].fill(5);
    equal!(image.page(1)?, expected);
    Ok(())
}

fn figures_count() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.settle()?;
    memory.area.poke(0, 1);
    memory.area.poke(5 * PAGE_SIZE, 1);
    let image = Image::take(&memory.log, 0, 0)?;
    for page in 10..15 {
        memory.area.poke(page * PAGE_SIZE, 1);
    }
    image.done(14, 3)?;
    let info = image.info()?;
    equal!(info.size, (PAGES * PAGE_SIZE) as u64);
    equal!(info.dirty, 2);
    // Who has just written to a page may have it in hand for a while.
    ensure!((5..=7).contains(&info.copied), "{info:?}");
    equal!(info.kept, info.copied - 1);
    equal!(info.pending, PAGES as u64 - info.copied - 2);
    equal!((info.done, info.failed), (3, 0));
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", image.as_fd().as_raw_fd()))?;
    for (name, figure) in [
        ("size", info.size),
        ("dirty", info.dirty),
        ("pending", info.pending),
        ("copied", info.copied),
        ("kept", info.kept),
        ("done", info.done),
        ("failed", info.failed),
    ] {
        equal!(field(&text, &format!("vmem-{name}"))?, figure);
    }
    Ok(())
}
