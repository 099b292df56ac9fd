// SPDX-License-Identifier: GPL-2.0-or-later
//! VMEM_SNAPSHOT: what memory held at one instant, how that ends, and what is refused.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use rustix::process::Signal;
use vmem::PAGE_SIZE;
use vmem_functional_sys::{AreaBuilder, ioctl, ioctl_at};
use vmem_sys::{
    VMEM_FEATURE_SNAPSHOT, VMEM_MAX_MEMBERS, VMEM_SNAPSHOT, VMEM_SNAPSHOT_CLEAN, VMEM_SNAPSHOT_ONCE, calls, vmem_snapshot,
    vmem_snapshot_member,
};

use super::module::cannot_remove;
use crate::adopted::Adopted;
use crate::failure::{Outcome, ensure, equal, refused};
use crate::image::Image;
use crate::program::Program;
use crate::setting::{Board, bytes_of, check_words, contents};
use crate::tracked::{Tracked, memfd};
use crate::world::{module_users, wait_until};

pub(super) mod consistency;
pub(super) mod guest;
pub(super) mod increment;
pub(super) mod limit;
pub(super) mod reading;
pub(super) mod region;
pub(super) mod writing;

crate::tests![
    features_include_snapshots,
    a_snapshot_has_what_was_there_when_it_was_taken,
    several_memories_are_taken_at_once,
    second_snapshot_is_ebusy_until_the_first_is_closed,
    memory_that_is_not_tracked_is_enodata,
    snapshot_of_a_descriptor_that_is_not_adopted_is_refused,
    wrong_arguments_are_einval,
    an_answer_that_cannot_be_written_takes_none,
    snapshot_without_free_descriptors_is_emfile_and_takes_none,
    snapshot_fails_when_its_log_ends,
    snapshot_of_several_memories_fails_when_any_log_ends,
    snapshot_fails_when_the_tracking_program_dies,
    a_reader_that_is_killed_lets_the_next_one_take_one,
    the_module_cannot_be_removed_while_there_is_one,
    writers_that_are_never_at_rest_are_eagain_and_go_on,
];

const PAGES: usize = 64;

fn features_include_snapshots() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    let feature = |fd| -> Outcome<bool> { Ok(calls::get_features(fd)?.features & u64::from(VMEM_FEATURE_SNAPSHOT) != 0) };
    ensure!(feature(memory.log.as_fd())?, "the adopted descriptor does not say so");
    ensure!(
        feature(Image::take(&memory.log, 0, 0)?.as_fd())?,
        "the snapshot descriptor does not say so"
    );
    Ok(())
}

fn a_snapshot_has_what_was_there_when_it_was_taken() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    // Some pages are in the log and some are not; some are not in the page table, and one is a hole.
    memory.settle()?;
    const MADV_REMOVE: i32 = 9;
    memory.area.advise(9..10, MADV_REMOVE)?;
    for page in 20..30 {
        memory.area.write_page(page, &contents(100));
    }
    for round in 0..3 {
        let before = memory.bytes()?;
        let image = Image::take(&memory.log, 0, 0)?;
        for page in (0..PAGES).step_by(3) {
            memory.area.write_page(page, &contents(200 + round));
        }
        image.check(&before)?;
        // What has been copied is not copied again.
        let copied = image.info()?.copied;
        equal!(copied, PAGES.div_ceil(3) as u64);
        for page in (0..PAGES).step_by(3) {
            memory.area.write_page(page, &contents(300 + round));
        }
        equal!(image.info()?.copied, copied);
        image.check(&before)?;
        for page in (0..PAGES).step_by(3) {
            check_words(&memory.area.page(page), (300 + round) as usize)?;
        }
        drop(image);
    }
    Ok(())
}

fn several_memories_are_taken_at_once() -> Outcome {
    let memories = [Tracked::new(PAGES)?, Tracked::new(3)?, Tracked::new(600)?];
    let before = [memories[0].bytes()?, memories[1].bytes()?, memories[2].bytes()?];
    let [a, b, c] = &memories;
    let images = Image::take_all([&a.log, &b.log, &c.log], 0, 0)?;
    for memory in &memories {
        for page in 0..memory.pages() {
            memory.area.write_page(page, &contents(999));
        }
    }
    for (image, before) in images.iter().zip(&before) {
        image.check(before)?;
    }
    Ok(())
}

fn second_snapshot_is_ebusy_until_the_first_is_closed() -> Outcome {
    let [one, other] = [Tracked::new(PAGES)?, Tracked::new(PAGES)?];
    let image = Image::take(&one.log, 0, 0)?;
    refused!(Image::take(&one.log, 0, 0), BUSY);
    refused!(Image::take_all([&other.log, &one.log], VMEM_SNAPSHOT_CLEAN, 0), BUSY);
    // The other one has none, and its log is as it was.
    equal!(other.log.bitmap(0..PAGES, false)?, other.log.bitmap(0..PAGES, false)?);
    let map = image.map(AreaBuilder::default().read_only())?;
    drop(image);
    refused!(Image::take(&one.log, 0, 0), BUSY);
    drop(map);
    let images = Image::take_all([&other.log, &one.log], 0, 0)?;
    drop(images);
    Image::take(&one.log, 0, 0)?;
    Ok(())
}

fn memory_that_is_not_tracked_is_enodata() -> Outcome {
    let file = memfd(PAGES)?;
    let adopted = Adopted::new(&file)?;
    refused!(Image::take(&adopted, 0, 0), NODATA);
    let tracked = Tracked::new(PAGES)?;
    refused!(Image::take_all([&tracked.log, &adopted], 0, 0), NODATA);
    adopted.track()?;
    Image::take_all([&tracked.log, &adopted], 0, 0)?;
    adopted.untrack()?;
    refused!(Image::take(&adopted, 0, 0), NODATA);
    Ok(())
}

fn snapshot_of_a_descriptor_that_is_not_adopted_is_refused() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    let image = Image::take(&memory.log, 0, 0)?;
    let call = |fd: i32| {
        let mut members = [vmem_snapshot_member {
            vmem_fd: fd,
            snapshot_fd: -1,
        }];
        let mut call = vmem_snapshot {
            members: members.as_mut_ptr() as u64,
            nr: 1,
            ..Default::default()
        };
        ioctl(&memory.log, VMEM_SNAPSHOT, &mut call)
    };
    for fd in [memory.file.as_raw_fd(), image.file().as_raw_fd(), 0] {
        equal!(
            call(fd).map_err(|error| error.raw_os_error()),
            Err(Some(Errno::INVAL.raw_os_error()))
        );
    }
    for fd in [-1, i32::MIN, i32::MAX, 999_999] {
        equal!(
            call(fd).map_err(|error| error.raw_os_error()),
            Err(Some(Errno::BADF.raw_os_error()))
        );
    }
    // A snapshot has not the calls of the memory.
    refused!(calls::track(image.as_fd(), 0), NOTTY);
    refused!(calls::snapshot(&[image.as_fd()], 0, 0), NOTTY);
    refused!(calls::snapshot_done(memory.log.as_fd(), 0, 1), NOTTY);
    refused!(calls::get_snapshot(memory.log.as_fd()), NOTTY);
    Ok(())
}

fn wrong_arguments_are_einval() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.settle()?;
    let mut members = [vmem_snapshot_member {
        vmem_fd: memory.log.as_fd().as_raw_fd(),
        snapshot_fd: -1,
    }; VMEM_MAX_MEMBERS as usize + 1];
    let right = vmem_snapshot {
        members: members.as_mut_ptr() as u64,
        nr: 1,
        ..Default::default()
    };
    for wrong in [
        vmem_snapshot { flags: 4, ..right },
        vmem_snapshot { flags: 1 << 31, ..right },
        vmem_snapshot {
            reserved: [1, 0],
            ..right
        },
        vmem_snapshot {
            reserved: [0, 1],
            ..right
        },
        vmem_snapshot { nr: 0, ..right },
        vmem_snapshot {
            nr: VMEM_MAX_MEMBERS + 1,
            ..right
        },
        // The same memory twice.
        vmem_snapshot { nr: 2, ..right },
    ] {
        refused!(ioctl(&memory.log, VMEM_SNAPSHOT, &mut { wrong }), INVAL);
    }
    let image = Image::take(&memory.log, VMEM_SNAPSHOT_ONCE, 0)?;
    for (first, count) in [(0, 0), (0, PAGES + 1), (PAGES, 1), (usize::MAX, 1), (1, usize::MAX)] {
        refused!(image.done(first, count), INVAL);
    }
    let clean = calls::dirty_bitmap(image.as_fd(), 0, PAGES as u64, true, &mut [0]);
    equal!(clean.error, Some(Errno::INVAL));
    Ok(())
}

fn an_answer_that_cannot_be_written_takes_none() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.settle()?;
    memory.area.poke(3 * PAGE_SIZE, 1);
    let read_only = AreaBuilder::default().anonymous(2)?;
    let members = read_only.address();
    read_only.store(
        0,
        u64::from(memory.log.as_fd().as_raw_fd() as u32) | (u64::from(u32::MAX) << 32),
    );
    let call = vmem_snapshot {
        members: members as u64,
        nr: 1,
        flags: VMEM_SNAPSHOT_CLEAN,
        ..Default::default()
    };
    // The argument itself, in another page.
    for (offset, word) in [
        (0, call.members),
        (8, 1 | (u64::from(call.flags) << 32)),
        (16, 0),
        (24, 0),
        (32, 0),
        (40, 0),
    ] {
        read_only.store(PAGE_SIZE + offset, word);
    }
    read_only.protect(0..2, 1)?;
    refused!(ioctl(&memory.log, VMEM_SNAPSHOT, &mut { call }), FAULT);
    memory.check_log([3])?;
    refused!(ioctl_at(&memory.log, VMEM_SNAPSHOT, members + PAGE_SIZE), FAULT);
    memory.check_log([3])?;
    refused!(
        ioctl(&memory.log, VMEM_SNAPSHOT, &mut vmem_snapshot { members: 8, ..call }),
        FAULT
    );
    // It can be taken, and has all.
    equal!(Image::take(&memory.log, VMEM_SNAPSHOT_CLEAN, 0)?.log()?, [3]);
    Ok(())
}

fn snapshot_without_free_descriptors_is_emfile_and_takes_none() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.settle()?;
    memory.area.poke(5 * PAGE_SIZE, 1);
    let program = Program::start(|| {
        let next = rustix::io::dup(&memory.file)?.as_raw_fd() as u64;
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        rustix::process::setrlimit(
            rustix::process::Resource::Nofile,
            rustix::process::Rlimit {
                current: Some(next),
                maximum: limit.maximum,
            },
        )?;
        refused!(Image::take(&memory.log, VMEM_SNAPSHOT_CLEAN, 0), MFILE);
        Ok(vec![])
    })?;
    program.join()?;
    memory.check_log([5])?;
    Image::take(&memory.log, 0, 0)?;
    Ok(())
}

/// Whether poll() says that it has failed.
fn has_failed(image: &Image) -> Outcome<bool> {
    let mut fds = [PollFd::new(image, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    equal!(poll(&mut fds, Some(&now))?, 1);
    ensure!(fds[0].revents().contains(PollFlags::IN), "it is not readable");
    Ok(fds[0].revents().contains(PollFlags::ERR))
}

/// Fails unless no page of it can be had.
fn check_failed(image: &Image) -> Outcome {
    refused!(image.page(0), STALE);
    equal!(image.info()?.failed, 1);
    ensure!(has_failed(image)?, "poll does not say so");
    refused!(seek(image, SeekFrom::Data(0)), STALE);
    Ok(())
}

fn snapshot_fails_when_its_log_ends() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    let image = Image::take(&memory.log, 0, 0)?;
    let map = image.map(AreaBuilder::default().read_only())?;
    check_words(&map.page(1), 1)?;
    ensure!(!has_failed(&image)?, "poll says that it has failed");
    memory.log.untrack()?;
    memory.area.write_page(0, &contents(77));
    check_failed(&image)?;
    wait_until("its memory is given back", || Ok(image.info()?.kept == 0))?;
    for page in [0, 1] {
        let toucher = Program::start(|| Ok(vec![map.load(page * PAGE_SIZE)]))?;
        toucher.join_killed(Signal::BUS)?;
    }
    // The memory can have another log, and another snapshot.
    memory.log.track()?;
    let next = Image::take(&memory.log, 0, 0)?;
    equal!(next.page(0)?, bytes_of(&contents(77)));
    check_failed(&image)
}

fn snapshot_of_several_memories_fails_when_any_log_ends() -> Outcome {
    let [one, other] = [Tracked::new(PAGES)?, Tracked::new(PAGES)?];
    let images = Image::take_all([&one.log, &other.log], 0, 0)?;
    other.log.untrack()?;
    for image in &images {
        check_failed(image)?;
    }
    Ok(())
}

fn snapshot_fails_when_the_tracking_program_dies() -> Outcome {
    let Tracked { file, area, log } = Tracked::new(PAGES)?;
    let image = Image::take(&log, 0, 0)?;
    drop(log);
    wait_until("the snapshot has failed", || has_failed(&image))?;
    area.write_page(0, &contents(78));
    check_failed(&image)?;
    drop(image);
    let log = Adopted::new(&file)?;
    log.track()?;
    equal!(Image::take(&log, 0, 0)?.page(0)?, bytes_of(&contents(78)));
    Ok(())
}

fn a_reader_that_is_killed_lets_the_next_one_take_one() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.settle()?;
    memory.area.poke(11 * PAGE_SIZE, 1);
    let board = Board::new()?;
    let reader = Program::start(|| {
        let image = Image::take(&memory.log, VMEM_SNAPSHOT_CLEAN, 0)?;
        let _map = image.map(AreaBuilder::default().read_only())?;
        board.set(0, 1)?;
        loop {
            image.bytes()?;
        }
    })?;
    board.wait(0, 1)?;
    refused!(Image::take(&memory.log, 0, 0), BUSY);
    reader.signal(Signal::KILL)?;
    reader.join_killed(Signal::KILL)?;
    // What it has not said it has is in the log again.
    equal!(Image::take(&memory.log, VMEM_SNAPSHOT_CLEAN, 0)?.log()?, [11]);
    Ok(())
}

fn the_module_cannot_be_removed_while_there_is_one() -> Outcome {
    let before = module_users()?;
    let memory = Tracked::new(PAGES)?;
    let image = Image::take(&memory.log, 0, 0)?;
    let map = image.map(AreaBuilder::default().read_only())?;
    check_words(&map.page(4), 4)?;
    // It is of no use without its log, but there.
    drop(memory);
    cannot_remove()?;
    drop(image);
    cannot_remove()?;
    drop(map);
    wait_until("nobody uses the module", || Ok(module_users()? == before))
}

/// A system call that waits for its data in the middle of a write.
fn writers_that_are_never_at_rest_are_eagain_and_go_on() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.settle()?;
    memory.area.poke(7 * PAGE_SIZE, 1);
    // The memory of a region whose page does not come.
    let region = crate::setting::Setting::new(1)?;
    let absent = region.area()?;
    let writer = Program::start(|| {
        let from = vmem_functional_sys::MemoryAt {
            area: &absent,
            offset: 0,
            len: 8,
        };
        let mut file = memory.file.try_clone()?;
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(0))?;
        vmem_functional_sys::write_from(&file, from)?;
        Ok(vec![])
    })?;
    region.wait_waiters(1)?;
    refused!(Image::take(&memory.log, VMEM_SNAPSHOT_CLEAN, 0), AGAIN);
    // Others write meanwhile, and afterwards.
    memory.area.poke(8 * PAGE_SIZE, 1);
    memory.check_log([7, 8])?;
    region.fill([0])?;
    writer.join()?;
    memory.check_log([0, 7, 8])?;
    equal!(Image::take(&memory.log, VMEM_SNAPSHOT_CLEAN, 0)?.log()?, [0, 7, 8]);
    memory.file.write_all_at(&[1], 0)?;
    Ok(())
}
