// SPDX-License-Identifier: GPL-2.0-or-later
//! Files that the kernel reads for a daemon.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::statfs;
use vmem::{Access, Info, MapHandle, Mapping, PAGE_SIZE, Sharing};

use super::{Daemon, PAGES, SIZE, Scratch, check_page, map, open, wait_info};
use crate::failure::{Outcome, ensure, equal};
use crate::program::Program;
use crate::world::wait_until;

crate::tests![
    pages_of_a_file_come_without_requests_until_the_region_is_plain,
    stream_leaves_out_what_the_kernel_has_read,
    no_backing_has_a_request_for_each_page,
    file_that_the_kernel_does_not_take_is_read_by_the_daemon_which_says_why,
    backing_begins_with_the_order_to_start,
    backing_outlives_its_daemon_until_the_next_one_decides,
    truncated_and_replaced_files_give_no_wrong_page,
];

const FUSE: i64 = 0x6573_5546;

fn from(file: &Scratch, name: &str) -> String {
    format!("file:{}", file.export(name))
}

/// A daemon that fills a region from the file, and a mapping of the region.
fn filled(name: &str, file: &Scratch, options: &[&str]) -> Outcome<(Daemon, MapHandle, Mapping)> {
    let daemon = Daemon::new(&from(file, name), options)?;
    let handle = open(name)?;
    let memory = map(&handle)?;
    Ok((daemon, handle, memory))
}

fn counts(info: &Info) -> (u64, u64, u64) {
    (info.present, info.backed, info.requests)
}

fn pages_of_a_file_come_without_requests_until_the_region_is_plain() -> Outcome {
    let file = Scratch::new("backed", PAGES)?;
    let (daemon, handle, memory) = filled("backed", &file, &["--no-background"])?;
    for pgoff in [1999, 3, 14, 1000] {
        check_page(&memory, pgoff)?;
    }
    // Only what was touched.
    equal!(counts(&handle.info()?), (4, 4, 0));
    for pgoff in 0..PAGES {
        check_page(&memory, pgoff)?;
    }
    equal!(counts(&handle.info()?), (PAGES, PAGES, 0));
    drop(handle);
    let end = daemon.end()?.with_code(0)?;
    let figures = ["backed_bytes", "data_bytes", "zero_bytes", "faults", "unreadable_pages"];
    let [backed, data, zero, faults, unreadable] = figures.map(|figure| end.number(figure));
    equal!((backed?, data?, zero?, faults?, unreadable?), (SIZE, 0, 0, 0, 0));
    ensure!(end.output.contains("\"phase\":\"plain\""), "{}", end.output);
    let line = "backed: the kernel reads touched pages from /dev/shm/vmemd-backed by itself (7.81 MiB)";
    ensure!(end.errors.contains(line), "{}", end.errors);
    check_page(&memory, 7)
}

fn stream_leaves_out_what_the_kernel_has_read() -> Outcome {
    let file = Scratch::new("left", PAGES)?;
    // The stream comes from the other end.
    let (daemon, handle, memory) = filled("left", &file, &["--verify"])?;
    for pgoff in (0..PAGES).rev() {
        check_page(&memory, pgoff)?;
    }
    equal!(handle.info()?.requests, 0);
    drop(handle);
    // All pages are the source's, whoever has read them.
    let end = daemon.end()?.with_code(0)?;
    let figures = ["backed_bytes", "data_bytes", "zero_bytes", "verified_bytes"];
    let [backed, data, zero, verified] = figures.map(|figure| end.number(figure));
    equal!((backed? + data? + zero?, verified?), (SIZE, SIZE));
    Ok(())
}

fn no_backing_has_a_request_for_each_page() -> Outcome {
    let file = Scratch::new("without", PAGES)?;
    let (daemon, handle, memory) = filled("without", &file, &["--no-background", "--no-backing"])?;
    for pgoff in 0..100 {
        check_page(&memory, pgoff * 20)?;
    }
    equal!(counts(&handle.info()?), (100, 0, 100));
    daemon.process.terminate()?;
    let end = daemon.end()?.with_code(6)?;
    equal!((end.number("backed_bytes")?, end.number("faults")?), (0, 100));
    ensure!(!end.errors.contains("by itself"), "{}", end.errors);
    Ok(())
}

/// What a daemon of this file says of it, after a touch of its first page, which it must have answered.
fn told(path: &Path, options: &[&str]) -> Outcome<String> {
    let source = format!("file:other={}", path.display());
    let daemon = Daemon::new(&source, &[&["--no-background"], options].concat())?;
    let handle = open("other")?;
    let memory = map(&handle)?;
    let mut found = vec![0; PAGE_SIZE];
    memory.read_at(0, &mut found)?;
    let mut expected = vec![0; PAGE_SIZE];
    let length = File::open(path)?.read_at(&mut expected, 0)?;
    ensure!(found == expected, "the page is not that of {}", path.display());
    ensure!(length > 0, "{} is empty", path.display());
    let info = handle.info()?;
    equal!((info.backed, info.requests), (0, 1));
    daemon.process.terminate()?;
    drop((handle, memory));
    let errors = daemon.end()?.errors;
    let line = errors.lines().find(|line| line.contains("vmemd answers each touch"));
    Ok(line.ok_or_else(|| format!("it does not say why: {errors}"))?.to_owned())
}

fn file_that_the_kernel_does_not_take_is_read_by_the_daemon_which_says_why() -> Outcome {
    let program = std::env::current_exe()?;
    equal!(statfs(&program)?.f_type, FUSE);
    let why = told(&program, &[])?;
    ensure!(why.contains("a program may serve its file system"), "{why}");
    let file = Scratch::new("short", 1)?;
    OpenOptions::new()
        .write(true)
        .open(file.path())?
        .set_len(PAGE_SIZE as u64 - 1)?;
    let why = told(file.path(), &[])?;
    ensure!(why.ends_with("the file has no whole page"), "{why}");
    let file = Scratch::new("touches", 2)?;
    let why = told(file.path(), &["--report-touches"])?;
    ensure!(why.contains("--report-touches"), "{why}");
    Ok(())
}

fn backing_begins_with_the_order_to_start() -> Outcome {
    let file = Scratch::new("held", PAGES)?;
    let mut daemon = Daemon::new(&from(&file, "held"), &["--no-background", "--hold"])?;
    let handle = open("held")?;
    let reader = Program::start(|| {
        check_page(&handle.map(Access::ReadWrite, Sharing::Shared)?, 5)?;
        Ok(vec![])
    })?;
    let info = wait_info(&handle, "the reader waits", |info| info.waiters == 1)?;
    equal!((info.present, info.backed), (0, 0));
    daemon.tell("start")?;
    reader.join()?;
    // The waiting touch is answered by the kernel, too.
    let info = handle.info()?;
    equal!((info.present, info.backed), (1, 1));
    daemon.process.terminate()?;
    daemon.end()?.with_code(6)?;
    Ok(())
}

fn backing_outlives_its_daemon_until_the_next_one_decides() -> Outcome {
    let file = Scratch::new("stays", PAGES)?;
    let (mut daemon, handle, memory) = filled("stays", &file, &["--no-background"])?;
    check_page(&memory, 0)?;
    daemon.process.kill()?;
    wait_info(&handle, "the daemon has gone", |info| !info.attached)?;
    check_page(&memory, 1)?;
    equal!(counts(&handle.info()?), (2, 2, 0));
    // The file stays locked.
    let mut serve = super::beside("vmemd")?;
    let serve = serve.args(["serve", "--listen", "127.0.0.1:0", "--free", "/run", &file.export("stays")]);
    let refused = serve.output()?;
    ensure!(refused.status.code() == Some(1), "{refused:?}");
    let options = ["--resume", "--no-background", "--no-backing"];
    let mut next = Daemon::new(&from(&file, "stays"), &options)?;
    next.wait_line("\"ready\"")?;
    check_page(&memory, 2)?;
    equal!(counts(&handle.info()?), (3, 2, 1));
    next.process.kill()?;
    wait_info(&handle, "the daemon has gone", |info| !info.attached)?;
    let mut last = Daemon::new(&from(&file, "stays"), &["--resume", "--no-background"])?;
    last.wait_line("\"ready\"")?;
    for pgoff in 0..PAGES {
        check_page(&memory, pgoff)?;
    }
    equal!(counts(&handle.info()?), (PAGES, PAGES - 1, 1));
    drop(handle);
    let end = last.end()?.with_code(0)?;
    equal!(end.number("backed_bytes")?, SIZE - 3 * PAGE_SIZE as u64);
    Ok(())
}

fn truncated_and_replaced_files_give_no_wrong_page() -> Outcome {
    let file = Scratch::new("cut", PAGES)?;
    let opened = OpenOptions::new().write(true).open(file.path())?;
    // The end of the memory is within the last page, which the daemon fills up.
    opened.set_len(SIZE - 100)?;
    let (daemon, handle, memory) = filled("cut", &file, &["--no-background"])?;
    let mut page = vec![1; PAGE_SIZE];
    memory.read_at(SIZE as usize - PAGE_SIZE, &mut page)?;
    ensure!(
        page[PAGE_SIZE - 100..].iter().all(|byte| *byte == 0),
        "not zero behind the end"
    );
    equal!(counts(&handle.info()?), (1, 0, 1));
    // Another file in its place is another file.
    let other = Scratch::empty("other");
    fs::write(other.path(), vec![7; SIZE as usize])?;
    fs::rename(other.path(), file.path())?;
    check_page(&memory, 10)?;
    opened.set_len(SIZE / 2)?;
    check_page(&memory, 11)?;
    equal!(counts(&handle.info()?), (3, 2, 1));
    equal!(memory.read_until_fault(SIZE as usize / 2, &mut page)?, 0);
    let info = handle.info()?;
    equal!((info.present, info.backed, info.unreadable), (3, 2, 1));
    daemon.process.terminate()?;
    // It was asked for the page that the kernel could not read.
    equal!(daemon.end()?.with_code(6)?.number("faults")?, 2);
    // Without a daemon it is unreadable, too.
    wait_until("the daemon has gone", || Ok(!handle.info()?.attached))?;
    equal!(memory.read_until_fault(SIZE as usize / 2 + PAGE_SIZE, &mut page)?, 0);
    equal!(handle.info()?.unreadable, 2);
    Ok(())
}
