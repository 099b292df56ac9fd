// SPDX-License-Identifier: GPL-2.0-or-later
//! System calls and other processes that reach for the region's memory: they wait for absent pages as a touch does.

use std::fs::{File, OpenOptions};
use std::io::Write;

use rustix::pipe::pipe;
use rustix::process::Signal;
use vmem::PAGE_SIZE;
use vmem_functional_sys::{
    Area, MemoryAt, peek_by_ptrace, read_at_into, read_into, read_other, splice_from, write_at_from, write_from, write_other,
};

use crate::failure::{Outcome, ensure, equal, refused};
use crate::kernel::Disk;
use crate::program::Program;
use crate::server::Server;
use crate::setting::{Board, Setting, bytes_of, check_page, check_words, contents, pages};

crate::tests![
    a_pipe_write_from_an_absent_page_waits_for_it,
    a_read_into_an_absent_page_waits_for_its_contents,
    vmsplice_waits_for_the_page,
    process_vm_readv_waits_for_the_page,
    process_vm_writev_goes_onto_the_contents,
    ptrace_peek_waits_for_the_page,
    proc_pid_mem_waits_for_the_page,
    remote_access_fails_when_the_page_does_not_come,
    a_direct_write_from_the_region_waits_for_its_pages,
    a_direct_read_into_absent_pages_stays,
    an_unreadable_page_is_efault_for_direct_io_too,
    waiter_in_a_system_call_can_be_killed,
];

fn whole(area: &Area, page: usize) -> MemoryAt<'_> {
    MemoryAt {
        area,
        offset: page * PAGE_SIZE,
        len: PAGE_SIZE,
    }
}

/// Bytes as words.
fn words(bytes: &[u8]) -> Vec<u64> {
    bytes
        .chunks_exact(8)
        .map(|word| word.iter().rev().fold(0, |word, byte| (word << 8) | u64::from(*byte)))
        .collect()
}

/// Runs the program, and answers its one request, for this page, when it waits.
fn answered(setting: &Setting, pgoff: usize, code: impl FnOnce(Area) -> Outcome<Vec<u64>>) -> Outcome<Vec<u64>> {
    let program = Program::start(|| code(setting.area()?))?;
    equal!(setting.take_request()?, pgoff);
    setting.wait_waiters(1)?;
    setting.fill([pgoff])?;
    program.join()
}

fn a_pipe_write_from_an_absent_page_waits_for_it() -> Outcome {
    let setting = Setting::new(8)?;
    let read = answered(&setting, 3, |area| {
        let (reader, writer) = pipe()?;
        equal!(write_from(&writer, whole(&area, 3))?, PAGE_SIZE);
        let mut bytes = vec![0; PAGE_SIZE];
        equal!(rustix::io::read(&reader, &mut bytes)?, PAGE_SIZE);
        Ok(words(&bytes))
    })?;
    check_words(&read, 3)
}

fn a_read_into_an_absent_page_waits_for_its_contents() -> Outcome {
    let setting = Setting::new(8)?;
    let mut read = answered(&setting, 3, |area| {
        let (reader, mut writer) = {
            let (reader, writer) = pipe()?;
            (reader, File::from(writer))
        };
        writer.write_all(&[0x11; 16])?;
        let memory = MemoryAt {
            area: &area,
            offset: 3 * PAGE_SIZE + 8,
            len: 16,
        };
        equal!(read_into(&reader, memory)?, 16);
        Ok(area.page(3))
    })?;
    equal!(read[1..3], [0x1111_1111_1111_1111; 2]);
    read[1..3].copy_from_slice(&contents(3)[1..3]);
    check_words(&read, 3)
}

fn vmsplice_waits_for_the_page() -> Outcome {
    let setting = Setting::new(8)?;
    let read = answered(&setting, 2, |area| {
        let (reader, writer) = pipe()?;
        equal!(splice_from(&writer, whole(&area, 2))?, PAGE_SIZE);
        let mut bytes = vec![0; PAGE_SIZE];
        equal!(rustix::io::read(&reader, &mut bytes)?, PAGE_SIZE);
        Ok(words(&bytes))
    })?;
    check_words(&read, 2)
}

/// A program that maps the region, says where, and then does nothing. Returns it and the address.
fn mapper<'a>(setting: &'a Setting, board: &'a Board) -> Outcome<(Program, usize)> {
    let program = Program::start(|| {
        let area = setting.area()?;
        board.set(0, area.address() as u64)?;
        board.wait(1, 1)?;
        Ok(vec![])
    })?;
    board.wait(0, 1)?;
    Ok((program, board.get(0)? as usize))
}

fn process_vm_readv_waits_for_the_page() -> Outcome {
    let (setting, board) = (Setting::new(8)?, Board::new()?);
    let (mapper, address) = mapper(&setting, &board)?;
    let pid = mapper.pid();
    let reader = Program::start(|| {
        let mut bytes = vec![0; PAGE_SIZE];
        equal!(read_other(pid, address + 4 * PAGE_SIZE, &mut bytes)?, PAGE_SIZE);
        Ok(words(&bytes))
    })?;
    equal!(setting.take_request()?, 4);
    setting.wait_waiters(1)?;
    setting.fill([4])?;
    check_words(&reader.join()?, 4)?;
    board.set(1, 1)?;
    mapper.join()?;
    Ok(())
}

fn process_vm_writev_goes_onto_the_contents() -> Outcome {
    let (setting, board) = (Setting::new(8)?, Board::new()?);
    let (mapper, address) = mapper(&setting, &board)?;
    let pid = mapper.pid();
    let writer = Program::start(|| {
        equal!(write_other(pid, address + 4 * PAGE_SIZE + 8, &[0x22; 8])?, 8);
        Ok(vec![])
    })?;
    equal!(setting.take_request()?, 4);
    setting.wait_waiters(1)?;
    setting.fill([4])?;
    writer.join()?;
    board.set(1, 1)?;
    mapper.join()?;
    let mut page = setting.area()?.page(4);
    equal!(page[1], 0x2222_2222_2222_2222);
    page[1] = contents(4)[1];
    check_words(&page, 4)
}

/// One of the pages at least is waited for, read by `read`, and comes. Who looks into another process waits for a second at most, which may
/// not be enough on a busy machine.
fn is_waited_for(read: impl Fn(i32, usize) -> Outcome<Vec<u64>>) -> Outcome {
    let (setting, board) = (Setting::new(32)?, Board::new()?);
    let (mapper, address) = mapper(&setting, &board)?;
    let pid = mapper.pid();
    let server = Server::start(&setting.region);
    let reader = Program::start(|| {
        for pgoff in 0..32 {
            if let Ok(words) = read(pid, address + pgoff * PAGE_SIZE) {
                equal!(words, contents(pgoff as u64)[..words.len()]);
                return Ok(vec![pgoff as u64]);
            }
        }
        Err("no page came within a second".into())
    })?;
    let read = reader.join()?[0];
    ensure!(server.stop()?.contains(&read));
    board.set(1, 1)?;
    mapper.join().map(drop)
}

fn ptrace_peek_waits_for_the_page() -> Outcome {
    is_waited_for(|pid, address| Ok(vec![peek_by_ptrace(pid, address)?]))
}

/// Reads a page by `/proc/PID/mem`.
fn read_mem(pid: i32, address: usize) -> Outcome<Vec<u64>> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; PAGE_SIZE];
    File::open(format!("/proc/{pid}/mem"))?.read_exact_at(&mut bytes, address as u64)?;
    Ok(words(&bytes))
}

fn proc_pid_mem_waits_for_the_page() -> Outcome {
    is_waited_for(read_mem)
}

/// Both hold the lock of the process that they look into.
fn remote_access_fails_when_the_page_does_not_come() -> Outcome {
    let (setting, board) = (Setting::new(8)?, Board::new()?);
    let (mapper, address) = mapper(&setting, &board)?;
    let pid = mapper.pid();
    let reader = Program::start(|| {
        ensure!(read_mem(pid, address + 2 * PAGE_SIZE).is_err());
        ensure!(peek_by_ptrace(pid, address + 3 * PAGE_SIZE).is_err());
        Ok(vec![])
    })?;
    // Who asks for its command line is not held up for good either.
    ensure!(!std::fs::read(format!("/proc/{pid}/cmdline"))?.is_empty());
    reader.join()?;
    // The page is as it was, for the program and everybody else.
    let info = setting.region.info()?;
    equal!((info.requested, info.unreadable, info.waiters), (2, 0, 0));
    let touch = setting.reader(2)?;
    setting.wait_waiters(1)?;
    setting.fill([2, 3])?;
    check_words(&touch.join()?, 2)?;
    check_words(&read_mem(pid, address + 3 * PAGE_SIZE)?, 3)?;
    board.set(1, 1)?;
    mapper.join().map(drop)
}

fn a_direct_write_from_the_region_waits_for_its_pages() -> Outcome {
    use std::os::unix::fs::FileExt;
    let setting = Setting::new(8)?;
    setting.fill([2])?;
    let disk = Disk::new("1M")?;
    let file = disk.open_direct()?;
    let program = Program::start(|| {
        let area = setting.area()?;
        let memory = MemoryAt {
            area: &area,
            offset: 2 * PAGE_SIZE,
            len: 3 * PAGE_SIZE,
        };
        equal!(write_at_from(&file, memory)?, 3 * PAGE_SIZE);
        Ok(vec![])
    })?;
    for pgoff in [3, 4] {
        equal!(setting.take_request()?, pgoff);
        setting.wait_waiters(1)?;
        setting.fill([pgoff])?;
    }
    program.join()?;
    let buffered = File::open(disk.path())?;
    let mut bytes = vec![0; 3 * PAGE_SIZE];
    buffered.read_exact_at(&mut bytes, 0)?;
    let expected: Vec<u8> = (2..5).flat_map(|pgoff| bytes_of(&contents(pgoff))).collect();
    ensure!(bytes == expected, "the disk does not hold the pages");
    Ok(())
}

fn a_direct_read_into_absent_pages_stays() -> Outcome {
    use std::os::unix::fs::FileExt;
    let setting = Setting::new(8)?;
    let disk = Disk::new("1M")?;
    let file = disk.open_direct()?;
    {
        let buffered = OpenOptions::new().write(true).open(disk.path())?;
        buffered.write_all_at(&bytes_of(&contents(70)), 0)?;
        buffered.write_all_at(&bytes_of(&contents(71)), PAGE_SIZE as u64)?;
        buffered.sync_all()?;
    }
    let program = Program::start(|| {
        let area = setting.area()?;
        let memory = MemoryAt {
            area: &area,
            offset: 3 * PAGE_SIZE,
            len: 2 * PAGE_SIZE,
        };
        equal!(read_at_into(&file, memory)?, 2 * PAGE_SIZE);
        check_page(&area, 3, 70)?;
        check_page(&area, 4, 71)?;
        Ok(vec![])
    })?;
    // The pages come first, and what is read goes over them.
    for pgoff in [3, 4] {
        equal!(setting.take_request()?, pgoff);
        setting.fill([pgoff])?;
    }
    program.join()?;
    check_page(&setting.area()?, 3, 70)
}

fn an_unreadable_page_is_efault_for_direct_io_too() -> Outcome {
    let setting = Setting::new(8)?;
    setting.region.mark_unreadable(&[pages(2, 1)]).complete()?;
    let disk = Disk::new("1M")?;
    let file = disk.open_direct()?;
    let area = setting.area()?;
    refused!(write_at_from(&file, whole(&area, 2)), FAULT);
    refused!(read_at_into(&file, whole(&area, 2)), FAULT);
    Ok(())
}

fn waiter_in_a_system_call_can_be_killed() -> Outcome {
    let setting = Setting::new(8)?;
    let (mapper_setting, board) = (&setting, Board::new()?);
    let (mapper, address) = mapper(mapper_setting, &board)?;
    let pid = mapper.pid();
    let programs = [
        Program::start(|| {
            let (_reader, writer) = pipe()?;
            Ok(vec![write_from(&writer, whole(&setting.area()?, 1))? as u64])
        })?,
        Program::start(|| Ok(vec![read_other(pid, address + 2 * PAGE_SIZE, &mut [0; 8])? as u64]))?,
        Program::start(|| {
            setting.area()?.lock(3..4)?;
            Ok(vec![])
        })?,
    ];
    setting.wait_waiters(3)?;
    for program in programs {
        program.signal(Signal::KILL)?;
        program.join_killed(Signal::KILL)?;
    }
    equal!(setting.region.info()?.waiters, 0);
    board.set(1, 1)?;
    mapper.join()?;
    Ok(())
}
