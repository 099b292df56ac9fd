// SPDX-License-Identifier: GPL-2.0-or-later
//! Writes to the memory by a descriptor of its file: each is in the log, and no other page is.

use std::fs::{File, OpenOptions};
use std::io::{IoSlice, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, copy_file_range, fallocate, sendfile};
use rustix::pipe::{SpliceFlags, pipe, splice};
use vmem::PAGE_SIZE;

use crate::failure::{Outcome, ensure, equal};
use crate::setting::{bytes_of, contents};
use crate::tracked::{Tracked, memfd};

crate::tests![
    pwrite_is_logged,
    write_of_several_parts_is_logged,
    splice_is_logged,
    sendfile_is_logged,
    copy_file_range_is_logged,
    a_write_by_a_descriptor_that_is_opened_while_tracked_is_logged,
    descriptor_opened_while_tracked_writes_after_the_log_has_ended,
    a_write_by_a_duplicate_is_logged,
    a_write_to_a_hole_is_logged,
    a_punched_hole_is_logged,
    madv_remove_is_logged,
    memory_that_is_only_allocated_keeps_its_contents,
];

const PAGES: usize = 64;
const MADV_REMOVE: i32 = 9;

fn pwrite_is_logged() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.logs([2, 3, 4, 60], |time| {
        memory
            .file
            .write_all_at(&vec![time; PAGE_SIZE + 2], (3 * PAGE_SIZE - 1) as u64)?;
        Ok(memory.file.write_all_at(&[time], (61 * PAGE_SIZE - 1) as u64)?)
    })
}

/// `writev`, at the descriptor's position.
fn write_of_several_parts_is_logged() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.logs([9, 10], |time| {
        let mut file = &memory.file;
        file.seek(SeekFrom::Start((10 * PAGE_SIZE - 4) as u64))?;
        let parts = [[time; 4], [time + 1; 4]];
        equal!(file.write_vectored(&parts.each_ref().map(|part| IoSlice::new(part)))?, 8);
        Ok(())
    })
}

fn splice_is_logged() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.logs([21], |time| {
        let (reader, writer) = pipe()?;
        File::from(writer).write_all(&[time; 100])?;
        let mut offset = (21 * PAGE_SIZE + 50) as u64;
        let spliced = splice(&reader, None, &memory.file, Some(&mut offset), 100, SpliceFlags::empty())?;
        equal!(spliced, 100);
        Ok(())
    })
}

/// A file that holds other contents each time.
fn source(time: u8) -> Outcome<File> {
    let source = memfd(2)?;
    for page in 0..2 {
        source.write_all_at(&bytes_of(&contents(1000 * u64::from(time) + page)), page * PAGE_SIZE as u64)?;
    }
    Ok(source)
}

fn sendfile_is_logged() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.logs([6, 7], |time| {
        let mut file = &memory.file;
        file.seek(SeekFrom::Start(6 * PAGE_SIZE as u64))?;
        equal!(sendfile(file, source(time)?, Some(&mut 0), 2 * PAGE_SIZE)?, 2 * PAGE_SIZE);
        Ok(())
    })
}

fn copy_file_range_is_logged() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.logs([6, 7], |time| {
        let mut to = 6 * PAGE_SIZE as u64;
        let copied = copy_file_range(source(time)?, Some(&mut 0), &memory.file, Some(&mut to), 2 * PAGE_SIZE)?;
        equal!(copied, 2 * PAGE_SIZE);
        Ok(())
    })
}

/// Opens the file again.
fn reopen(file: &File) -> Outcome<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(OpenOptions::new().read(true).write(true).open(path)?)
}

fn a_write_by_a_descriptor_that_is_opened_while_tracked_is_logged() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.logs([44, 45], |time| {
        let again = reopen(&memory.file)?;
        again.write_all_at(&[time; 2], (45 * PAGE_SIZE - 1) as u64)?;
        Ok(())
    })
}

fn descriptor_opened_while_tracked_writes_after_the_log_has_ended() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    let again = reopen(&memory.file)?;
    again.write_all_at(&[1; 8], 0)?;
    memory.log.untrack()?;
    again.write_all_at(&[2; 8], 0)?;
    equal!(memory.area.load(0), 0x0202_0202_0202_0202);
    let Tracked { file, area, log } = memory;
    drop(log);
    // It is the memory's, and nobody else's, even when nothing is adopted any more.
    again.write_all_at(&[3; 8], 0)?;
    equal!(area.load(0), 0x0303_0303_0303_0303);
    fallocate(
        &again,
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        0,
        PAGE_SIZE as u64,
    )?;
    equal!(area.load(0), 0);
    again.set_len((2 * PAGES * PAGE_SIZE) as u64)?;
    equal!(file.metadata()?.len(), (2 * PAGES * PAGE_SIZE) as u64);
    Ok(())
}

fn a_write_by_a_duplicate_is_logged() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    let duplicate = memory.file.try_clone()?;
    memory.logs([8], |time| Ok(duplicate.write_all_at(&[time], 8 * PAGE_SIZE as u64)?))
}

fn a_write_to_a_hole_is_logged() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.area.advise(8..16, MADV_REMOVE)?;
    memory.logs_once([9], || Ok(memory.file.write_all_at(&[1], 9 * PAGE_SIZE as u64)?))
}

/// The pages are removed when they have been cleaned, twice.
fn removed(pages: impl IntoIterator<Item = usize> + Clone, remove: impl Fn(&Tracked) -> Outcome) -> Outcome {
    let memory = Tracked::new(PAGES)?;
    for _ in 0..2 {
        crate::tracked::fill(&memory.file, PAGES)?;
        memory.logs_once(pages.clone(), || remove(&memory))?;
    }
    Ok(())
}

fn a_punched_hole_is_logged() -> Outcome {
    removed(15..20, |memory| {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        // Of the first and the last page a part is made zero.
        let (begin, len) = (15 * PAGE_SIZE + 8, 4 * PAGE_SIZE);
        fallocate(&memory.file, flags, begin as u64, len as u64)?;
        equal!(memory.area.load(15 * PAGE_SIZE), contents(15)[0]);
        equal!(memory.area.load(15 * PAGE_SIZE + 8), 0);
        ensure!(memory.area.page(17).iter().all(|word| *word == 0));
        Ok(())
    })
}

fn madv_remove_is_logged() -> Outcome {
    removed(30..33, |memory| {
        memory.area.advise(30..33, MADV_REMOVE)?;
        ensure!(memory.area.page(31).iter().all(|word| *word == 0));
        Ok(())
    })
}

/// It is no write; whether it is logged is nobody's business.
fn memory_that_is_only_allocated_keeps_its_contents() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.area.advise(8..16, MADV_REMOVE)?;
    let before = memory.bytes()?;
    fallocate(&memory.file, FallocateFlags::empty(), 0, (PAGES * PAGE_SIZE) as u64)?;
    ensure!(memory.bytes()? == before);
    memory.logs([9], |time| {
        memory.area.poke(9 * PAGE_SIZE, time);
        Ok(())
    })
}
