// SPDX-License-Identifier: GPL-2.0-or-later
//! What can be mapped and how: each does what a file mapping would do, or is refused.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::Signal;
use vmem::{Access, MapHandle, PAGE_SIZE, RegionBuilder};
use vmem_functional_sys::{Area, AreaBuilder, Userfault, register_userfault};

use crate::failure::{Outcome, ensure, equal, refused};
use crate::program::Program;
use crate::server::Server;
use crate::setting::{Board, Setting, bytes_of, check_page, check_words, contents, vm_flags};

crate::tests![
    a_shared_mapping_is_shared_by_all_processes,
    a_descriptor_sent_over_a_socket_maps_the_same_memory,
    a_forked_child_shares_the_mapping,
    a_forked_child_waits_for_its_pages_alone,
    a_private_mapping_copies_on_write,
    a_private_write_to_an_absent_page_copies_its_contents,
    a_private_mapping_sees_what_is_filled_later,
    a_part_of_a_region_can_be_mapped_at_an_offset,
    a_region_can_be_mapped_twice_by_one_process,
    a_part_can_be_unmapped,
    mprotect_works_as_on_a_file,
    a_mapping_that_changes_under_a_waiting_touch_is_found_as_it_is,
    mremap_can_shrink,
    mremap_can_move,
    mremap_cannot_grow_and_says_efault,
    a_mapping_beyond_the_end_is_refused_with_einval,
    a_mapping_of_no_length_is_refused_with_einval,
    a_read_only_descriptor_cannot_be_mapped_for_shared_writing,
    a_private_mapping_of_a_read_only_descriptor_can_be_written,
    userfaultfd_cannot_register_a_region,
    maps_shows_the_name_of_the_region,
    fault_around_maps_no_absent_page,
    mapping_a_region_neither_reads_nor_requests_it,
    region_descriptors_map_too,
];

fn a_shared_mapping_is_shared_by_all_processes() -> Outcome {
    let setting = Setting::new(4)?;
    setting.fill_all()?;
    let board = Board::new()?;
    let writer = Program::start(|| {
        let area = setting.area()?;
        area.write_page(1, &contents(100));
        board.set(0, 1)?;
        board.wait(1, 1)?;
        check_page(&area, 2, 200)?;
        Ok(vec![])
    })?;
    let area = setting.area()?;
    board.wait(0, 1)?;
    check_page(&area, 1, 100)?;
    area.write_page(2, &contents(200));
    board.set(1, 1)?;
    writer.join()?;
    Ok(())
}

fn a_descriptor_sent_over_a_socket_maps_the_same_memory() -> Outcome {
    let setting = Setting::new(4)?;
    setting.fill([0, 1])?;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let program = Program::start(|| {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        recvmsg(
            &theirs,
            &mut [IoSliceMut::new(&mut [0; 1])],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        let fd: OwnedFd = control
            .drain()
            .find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                _ => None,
            })
            .ok_or("no descriptor came")?;
        let handle = MapHandle::from(fd);
        let area = AreaBuilder::default().map(&handle, 0, 4)?;
        check_page(&area, 0, 0)?;
        area.write_page(1, &contents(77));
        Ok(area.page(3))
    })?;
    let fds = [setting.map.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    ensure!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(&ours, &[IoSlice::new(&[0])], &mut control, SendFlags::empty())?;
    equal!(setting.take_request()?, 3);
    setting.fill([3])?;
    check_words(&program.join()?, 3)?;
    check_page(&setting.area()?, 1, 77)
}

fn a_forked_child_shares_the_mapping() -> Outcome {
    let setting = Setting::new(4)?;
    setting.fill_all()?;
    let area = setting.area()?;
    let child = Program::start(|| {
        check_page(&area, 0, 0)?;
        area.write_page(1, &contents(50));
        Ok(vec![])
    })?;
    child.join()?;
    check_page(&area, 1, 50)
}

fn a_forked_child_waits_for_its_pages_alone() -> Outcome {
    let setting = Setting::new(4)?;
    setting.fill([0])?;
    let area = setting.area()?;
    let child = Program::start(|| Ok(area.page(2)))?;
    setting.wait_waiters(1)?;
    check_page(&area, 0, 0)?;
    equal!(setting.region.info()?.mappings, 2);
    equal!(setting.take_request()?, 2);
    setting.fill([2])?;
    check_words(&child.join()?, 2)?;
    check_page(&area, 2, 2)
}

fn a_private_mapping_copies_on_write() -> Outcome {
    let setting = Setting::new(4)?;
    setting.fill_all()?;
    let shared = setting.area()?;
    let private = setting.area_as(AreaBuilder::default().private())?;
    check_page(&private, 1, 1)?;
    private.write_page(1, &contents(99));
    private.write_page(2, &contents(98));
    check_page(&private, 1, 99)?;
    check_page(&private, 2, 98)?;
    check_page(&shared, 1, 1)?;
    check_page(&shared, 2, 2)?;
    // What was not written is still the region's.
    shared.write_page(3, &contents(97));
    check_page(&private, 3, 97)
}

fn a_private_write_to_an_absent_page_copies_its_contents() -> Outcome {
    let setting = Setting::new(4)?;
    let writer = Program::start(|| {
        let area = setting.area_as(AreaBuilder::default().private())?;
        area.poke(PAGE_SIZE, 0x42);
        Ok(area.page(1))
    })?;
    equal!(setting.take_request()?, 1);
    setting.fill([1])?;
    let mut words = writer.join()?;
    equal!(words[0] & 0xff, 0x42);
    words[0] = contents(1)[0];
    check_words(&words, 1)?;
    check_page(&setting.area()?, 1, 1)
}

fn a_private_mapping_sees_what_is_filled_later() -> Outcome {
    let setting = Setting::new(4)?;
    let reader = Program::start(|| Ok(setting.area_as(AreaBuilder::default().private().read_only())?.page(2)))?;
    equal!(setting.take_request()?, 2);
    setting.fill([2])?;
    check_words(&reader.join()?, 2)
}

fn a_part_of_a_region_can_be_mapped_at_an_offset() -> Outcome {
    let setting = Setting::new(16)?;
    let reader = Program::start(|| {
        let area = AreaBuilder::default().map(&setting.map, 5, 3)?;
        Ok(area.page(2))
    })?;
    equal!(setting.take_request()?, 7);
    setting.fill([7])?;
    check_words(&reader.join()?, 7)?;
    let last = AreaBuilder::default().map(&setting.map, 15, 1)?;
    setting.fill([15])?;
    check_page(&last, 0, 15)
}

fn a_region_can_be_mapped_twice_by_one_process() -> Outcome {
    let setting = Setting::new(8)?;
    setting.fill_all()?;
    let (one, other) = (setting.area()?, AreaBuilder::default().map(&setting.map, 2, 4)?);
    one.write_page(3, &contents(33));
    check_page(&other, 1, 33)?;
    other.write_page(0, &contents(22));
    check_page(&one, 2, 22)?;
    equal!(setting.region.info()?.mappings, 2);
    drop(one);
    check_page(&other, 0, 22)
}

fn a_part_can_be_unmapped() -> Outcome {
    let setting = Setting::new(16)?;
    setting.fill((0..16).filter(|pgoff| *pgoff != 12))?;
    let program = Program::start(|| {
        let area = setting.area()?;
        check_page(&area, 5, 5)?;
        area.unmap(4..8)?;
        // Both sides of the hole go on, with present and with absent pages.
        check_page(&area, 3, 3)?;
        check_page(&area, 8, 8)?;
        Ok(area.page(12))
    })?;
    equal!(setting.take_request()?, 12);
    equal!(setting.region.info()?.mappings, 2);
    setting.fill([12])?;
    check_words(&program.join()?, 12)?;
    let program = Program::start(|| {
        let area = setting.area()?;
        area.unmap(4..8)?;
        Ok(area.page(5))
    })?;
    program.join_killed(Signal::SEGV)
}

fn mprotect_works_as_on_a_file() -> Outcome {
    const NONE: i32 = 0;
    const READ: i32 = 1;
    const READ_WRITE: i32 = 3;
    let setting = Setting::new(8)?;
    setting.fill(0..7)?;
    let writing = |pages: std::ops::Range<usize>, protection: i32, pgoff: usize| {
        Program::start(|| {
            let area = setting.area()?;
            area.poke(pgoff * PAGE_SIZE, 0);
            area.protect(pages, protection)?;
            area.poke(pgoff * PAGE_SIZE, area.peek(pgoff * PAGE_SIZE));
            Ok(vec![])
        })
    };
    writing(2..4, READ, 3)?.join_killed(Signal::SEGV)?;
    writing(2..4, NONE, 3)?.join_killed(Signal::SEGV)?;
    writing(2..4, READ, 4)?.join()?;
    writing(2..4, READ_WRITE, 3)?.join()?;
    let program = Program::start(|| {
        let area = setting.area()?;
        // To nothing and back; and an absent page under protection is asked for when it is touched.
        area.protect(0..8, NONE)?;
        area.protect(0..8, READ)?;
        check_page(&area, 6, 6)?;
        let absent = area.page(7);
        area.protect(0..8, READ_WRITE)?;
        area.poke(6 * PAGE_SIZE, 1);
        Ok(absent)
    })?;
    equal!(setting.take_request()?, 7);
    setting.fill([7])?;
    check_words(&program.join()?, 7)
}

/// A program of which one thread touches page 3, to read or to write, while another one changes the mapping. The page comes after
/// that. What it has read.
fn waiting(write: bool, change: impl Fn(&Setting, &Area) -> Outcome) -> Outcome<Program> {
    let setting = Setting::new(8)?;
    setting.fill(5..8)?;
    let board = Board::new()?;
    let program = Program::start(|| {
        let area = Arc::new(setting.area()?);
        let waiter = thread::spawn({
            let area = area.clone();
            move || match write {
                true => {
                    area.poke(3 * PAGE_SIZE, 1);
                    Vec::new()
                }
                false => area.page(3),
            }
        });
        board.wait(0, 1)?;
        change(&setting, &area)?;
        board.set(1, 1)?;
        Ok(waiter.join().map_err(|_| "the waiter panicked")?)
    })?;
    equal!(setting.take_request()?, 3);
    setting.wait_waiters(1)?;
    board.set(0, 1)?;
    board.wait(1, 1)?;
    setting.fill([3])?;
    Ok(program)
}

fn a_mapping_that_changes_under_a_waiting_touch_is_found_as_it_is() -> Outcome {
    const NONE: i32 = 0;
    const READ: i32 = 1;
    const DONTNEED: i32 = 4;
    waiting(true, |_, area| Ok(area.protect(2..4, READ)?))?.join_killed(Signal::SEGV)?;
    check_words(&waiting(false, |_, area| Ok(area.protect(2..4, READ)?))?.join()?, 3)?;
    waiting(false, |_, area| Ok(area.protect(2..4, NONE)?))?.join_killed(Signal::SEGV)?;
    waiting(false, |_, area| Ok(area.unmap(3..4)?))?.join_killed(Signal::SEGV)?;
    waiting(true, |_, area| Ok(area.unmap(0..8)?))?.join_killed(Signal::SEGV)?;
    waiting(true, |_, area| Ok(area.advise(0..8, DONTNEED)?))?.join()?;
    // Where page 3 was, the touch finds page 6 in the end.
    let moved = waiting(false, |setting, area| Ok(area.cover(3..4, &setting.map, 6)?))?;
    check_words(&moved.join()?, 6)?;
    let replaced = waiting(false, |_, area| {
        let other = rustix::fs::memfd_create("other", rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::io::write(&other, &bytes_of(&contents(9)))?;
        Ok(area.cover(3..4, &other, 0)?)
    })?;
    check_words(&replaced.join()?, 9)
}

fn mremap_can_shrink() -> Outcome {
    let setting = Setting::new(16)?;
    setting.fill([3])?;
    let program = Program::start(|| {
        let mut area = setting.area()?;
        area.remap(8, false)?;
        check_page(&area, 3, 3)?;
        Ok(area.page(7))
    })?;
    equal!(setting.take_request()?, 7);
    setting.fill([7])?;
    check_words(&program.join()?, 7)
}

fn mremap_can_move() -> Outcome {
    let setting = Setting::new(16)?;
    setting.fill([3])?;
    let program = Program::start(|| {
        let mut area = setting.area()?;
        check_page(&area, 3, 3)?;
        let before = area.address();
        area.replace(AreaBuilder::default().private().anonymous(16)?)?;
        ensure!(area.address() != before);
        check_page(&area, 3, 3)?;
        Ok(area.page(9))
    })?;
    equal!(setting.take_request()?, 9);
    setting.fill([9])?;
    check_words(&program.join()?, 9)
}

fn mremap_cannot_grow_and_says_efault() -> Outcome {
    let setting = Setting::new(16)?;
    setting.fill([3])?;
    let mut area = setting.area()?;
    refused!(area.remap(17, false), FAULT);
    refused!(area.remap(32, true), FAULT);
    // Nor into pages that the region has.
    let mut part = AreaBuilder::default().map(&setting.map, 0, 8)?;
    refused!(part.remap(16, true), FAULT);
    check_page(&area, 3, 3)
}

fn a_mapping_beyond_the_end_is_refused_with_einval() -> Outcome {
    let setting = Setting::new(16)?;
    for (pgoff, pages) in [(0, 17), (16, 1), (15, 2), (1 << 20, 1), (1 << 50, 1), ((1 << 51) - 1, 1)] {
        for builder in [AreaBuilder::default(), AreaBuilder::default().private().read_only()] {
            let result = builder.map(&setting.map, pgoff, pages);
            ensure!(result.is_err(), "{pages} pages from {pgoff} on are mapped");
            refused!(result, INVAL);
        }
    }
    equal!(setting.region.info()?.mappings, 0);
    Ok(())
}

fn a_mapping_of_no_length_is_refused_with_einval() -> Outcome {
    let setting = Setting::new(16)?;
    refused!(AreaBuilder::default().map(&setting.map, 0, 0), INVAL);
    Ok(())
}

fn read_only(setting: &Setting) -> Outcome<MapHandle> {
    setting.fill_all()?;
    Ok(MapHandle::open("read-only", Access::ReadOnly)?)
}

fn a_read_only_descriptor_cannot_be_mapped_for_shared_writing() -> Outcome {
    let setting = Setting::create(RegionBuilder::new(4 * PAGE_SIZE as u64).name("read-only"))?;
    let handle = read_only(&setting)?;
    refused!(AreaBuilder::default().map(&handle, 0, 4), ACCESS);
    let area = AreaBuilder::default().read_only().map(&handle, 0, 4)?;
    check_page(&area, 2, 2)?;
    refused!(area.protect(0..4, 3), ACCESS);
    Ok(())
}

fn a_private_mapping_of_a_read_only_descriptor_can_be_written() -> Outcome {
    let setting = Setting::create(RegionBuilder::new(4 * PAGE_SIZE as u64).name("read-only"))?;
    let handle = read_only(&setting)?;
    let area = AreaBuilder::default().private().map(&handle, 0, 4)?;
    area.write_page(2, &contents(9));
    check_page(&area, 2, 9)?;
    check_page(&setting.area()?, 2, 2)
}

fn userfaultfd_cannot_register_a_region() -> Outcome {
    let setting = Setting::new(4)?;
    for what in [Userfault::Missing, Userfault::WriteProtectAsync] {
        // The call itself works here: on plain shared memory.
        register_userfault(&AreaBuilder::default().anonymous(4)?, what)?;
        refused!(register_userfault(&setting.area()?, what), INVAL);
    }
    Ok(())
}

fn maps_shows_the_name_of_the_region() -> Outcome {
    let setting = Setting::create(RegionBuilder::new(4 * PAGE_SIZE as u64).name("guest0"))?;
    let area = setting.area()?;
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let line = maps
        .lines()
        .find(|line| line.starts_with(&format!("{:x}-", area.address())))
        .ok_or("no line")?;
    ensure!(line.contains("vmem:guest0"), "{line:?}");
    Ok(())
}

fn fault_around_maps_no_absent_page() -> Outcome {
    let setting = Setting::new(64)?;
    setting.fill((0..64).filter(|pgoff| pgoff % 8 != 7))?;
    // Staged and not marked: in the page cache, and not to be seen.
    use std::os::unix::fs::FileExt;
    setting
        .region
        .staging()
        .write_all_at(&[0xff; PAGE_SIZE], 7 * PAGE_SIZE as u64)?;
    let area = setting.area()?;
    for pgoff in (0..64).filter(|pgoff| pgoff % 8 != 7) {
        check_page(&area, pgoff, pgoff)?;
    }
    for (pgoff, mapped) in crate::setting::mapped_pages(&area)?.into_iter().enumerate() {
        ensure!(mapped == (pgoff % 8 != 7), "page {pgoff}: {mapped}");
    }
    setting.no_request()?;
    // With all pages there, one touch maps neighbours too.
    let setting = Setting::new(64)?;
    setting.fill_all()?;
    let area = setting.area()?;
    check_page(&area, 0, 0)?;
    let mapped = crate::setting::mapped_pages(&area)?
        .into_iter()
        .filter(|mapped| *mapped)
        .count();
    ensure!(mapped > 1, "only {mapped} page is mapped");
    Ok(())
}

fn mapping_a_region_neither_reads_nor_requests_it() -> Outcome {
    let setting = Setting::new(512)?;
    let area = setting.area()?;
    setting.no_request()?;
    ensure!(crate::setting::mapped_pages(&area)?.iter().all(|mapped| !mapped));
    equal!(setting.region.info()?.faults, 0);
    Ok(())
}

fn region_descriptors_map_too() -> Outcome {
    let setting = Setting::new(4)?;
    let server = Server::start(&setting.region);
    let area = AreaBuilder::default().map(&*setting.region, 0, 4)?;
    check_page(&area, 1, 1)?;
    equal!(server.stop()?, vec![1]);
    // An ordinary mapping: not hidden from fork, dumps or others.
    let flags = vm_flags(std::process::id(), area.address())?;
    for hidden in ["io", "pf", "dc", "dd"] {
        ensure!(!flags.iter().any(|flag| flag == hidden), "{flags:?}");
    }
    Ok(())
}
