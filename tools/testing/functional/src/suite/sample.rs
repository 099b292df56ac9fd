// SPDX-License-Identifier: GPL-2.0-or-later
//! The samples run and say what they should; and requests can be awaited.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::process::Signal;
use vmem::{AsyncRegion, Control, Error, Fill, PAGE_SIZE, PageIndex, ProcessMemory, RegionBuilder};
use vmem_functional_sys::AreaBuilder;

use super::files::Mount;
use crate::failure::{Outcome, ensure, equal};
use crate::program::Program;
use crate::setting::{Setting, bytes_of, check_words, contents, page};
use crate::world::wait_until;

pub(super) mod python;
pub(super) mod region;
pub(super) mod region_command;
pub(super) mod snapshot;

crate::tests![
    the_sample_in_c_reads_what_its_daemon_fills,
    the_sample_in_rust_reads_what_its_daemon_fills,
    the_checksum_of_a_region_is_that_of_its_source,
    sum_in_c_of_a_regions_file_is_that_of_its_source,
    the_checksum_of_another_source_is_another,
    the_checksum_of_a_region_that_is_not_there_is_an_error,
    requests_can_be_awaited_on_tokio,
    the_program_in_the_description_of_the_calls_reads_what_its_daemons_fill,
    the_daemon_on_the_first_page_of_the_library_ends_when_programs_discard,
    the_dirty_rate_in_c_copies_what_a_running_program_writes,
    vmemctl_shows_where_a_running_program_writes,
];

/// The daemon on the first page of the library, as it stands there.
mod first_page {
    include!("../../../../vmem/doc/daemon.rs");

    pub(super) fn run(region: &Region) -> Result<(), Error> {
        serve(region)
    }
}

/// A sample in Rust: beside this program.
fn rust_sample(name: &str) -> Outcome<Command> {
    Ok(Command::new(std::env::current_exe()?.with_file_name(name)))
}

/// What it printed, if it exited with 0.
fn success(output: Output) -> Outcome<String> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{}: {text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(text)
}

/// Pages of the memory of [`writer`].
const WRITER_PAGES: usize = 1024;

/// A program that knows nothing of vmem, and writes to each page of the first half of a memfd of its own again and again.
fn writer(name: &'static str) -> Outcome<Program> {
    let program = Program::start(move || {
        let memory = memfd_create(name, MemfdFlags::CLOEXEC)?;
        ftruncate(&memory, (WRITER_PAGES * PAGE_SIZE) as u64)?;
        let area = AreaBuilder::default().map(&memory, 0, WRITER_PAGES)?;
        for round in 1.. {
            for page in 0..WRITER_PAGES / 2 {
                area.store(page * PAGE_SIZE + 8, round);
            }
            sleep(Duration::from_millis(1));
        }
        Ok(vec![])
    })?;
    wait_until("the program has its memory", || {
        Ok(ProcessMemory::open(program.pid(), name).is_ok_and(|memory| memory.file().allocated > 0))
    })?;
    Ok(program)
}

fn check_yabusame(output: &str) -> Outcome {
    let reader: Vec<&str> = output.lines().filter(|line| line.starts_with("reader: ")).collect();
    let pages = [(7, 101), (1, 102), (6, 103), (2, 104), (0, 100), (5, 105), (3, 106), (4, 107)];
    for (touch, (pgoff, number)) in (1..).zip(pages) {
        let line = format!("reader: touch {touch}: page {pgoff} holds {number}");
        ensure!(reader.contains(&line.as_str()), "no {line:?} in:\n{output}");
    }
    equal!(reader.iter().filter(|line| line.ends_with("sleeps")).count(), 2);
    ensure!(output.contains("all pages hold what they held"), "{output}");
    Ok(())
}

/// What a sample in C prints.
fn c_sample(name: &str, arguments: &[&str]) -> Outcome<String> {
    let directory = std::env::var_os("VMEM_SAMPLES").map_or_else(|| "build/samples".into(), PathBuf::from);
    let sample = directory.join(name);
    let output = Command::new(&sample)
        .args(arguments)
        .output()
        .map_err(|error| format!("{}: {error}", sample.display()))?;
    success(output)
}

fn the_sample_in_c_reads_what_its_daemon_fills() -> Outcome {
    check_yabusame(&c_sample("yabusame_c", &[])?)
}

fn the_sample_in_rust_reads_what_its_daemon_fills() -> Outcome {
    check_yabusame(&success(rust_sample("yabusame")?.output()?)?)
}

/// A file with a part of a page at its end, and a region of it.
fn file_and_region() -> Outcome<(PathBuf, Setting)> {
    let path = PathBuf::from("/tmp/vmem-checksum");
    let mut bytes: Vec<u8> = (0..200).flat_map(|pgoff| bytes_of(&contents(pgoff))).collect();
    bytes.truncate(199 * PAGE_SIZE + 100);
    fs::write(&path, &bytes)?;
    let setting = Setting::create(RegionBuilder::new(bytes.len() as u64).name("sum"))?;
    Ok((path, setting))
}

/// Fills what is asked for, as the file has it.
fn serve_file(setting: &Setting) -> Outcome {
    while setting.region.info()?.present < 200 {
        for wanted in setting.region.next_requests(16)? {
            let mut bytes = bytes_of(&contents(wanted.get()));
            if wanted == page(199) {
                bytes[100..].fill(0);
            }
            setting.region.fill(&[Fill::new(wanted, &bytes)?]).complete()?;
        }
    }
    Ok(())
}

fn the_checksum_of_a_region_is_that_of_its_source() -> Outcome {
    let (path, setting) = file_and_region()?;
    let of_file = success(rust_sample("checksum")?.arg("--file").arg(&path).output()?)?;
    fs::remove_file(&path)?;
    let expected = of_file.split_whitespace().next().ok_or("it printed nothing")?;
    let sample = rust_sample("checksum")?
        .args(["sum", "--wait", "10", "--random", "7", "--expect", expected])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    setting.region.ready()?;
    serve_file(&setting)?;
    let printed = success(sample.wait_with_output()?)?;
    ensure!(printed.starts_with(expected), "{printed:?} and not {expected:?}");
    // In order it is the same.
    let printed = success(rust_sample("checksum")?.arg("sum").output()?)?;
    ensure!(printed.starts_with(expected), "{printed:?} and not {expected:?}");
    Ok(())
}

fn sum_in_c_of_a_regions_file_is_that_of_its_source() -> Outcome {
    let (path, setting) = file_and_region()?;
    let path = path.to_string_lossy();
    let of_file = c_sample("filesum", &[&path])?;
    let [sum, bytes] = of_file.split_whitespace().take(2).collect::<Vec<_>>()[..] else {
        return Err(format!("it printed {of_file:?}").into());
    };
    let sum_before: u64 = sum.parse()?;
    equal!(bytes, "815204");
    // One byte more is one more.
    let mut other = fs::read(&*path)?;
    other[100_000] = other[100_000].wrapping_add(1);
    ensure!(other[100_000] != 0, "choose another byte");
    fs::write(&*path, other)?;
    ensure!(c_sample("filesum", &[&path])?.starts_with(&format!("{} ", sum_before + 1)));
    fs::remove_file(&*path)?;

    let mount = Mount::new("filesum")?;
    let file = mount.path("sum");
    let file = file.to_string_lossy().into_owned();
    // It begins when nothing is there.
    let reader = {
        let file = file.clone();
        std::thread::spawn(move || c_sample("filesum", &[&file]))
    };
    setting.region.ready()?;
    serve_file(&setting)?;
    let of_region = reader.join().map_err(|_| "the thread has panicked")??;
    equal!(of_region.trim(), format!("{sum} {bytes} {file}"));
    // The checksum of the file by its path is that of the region by its name.
    let by_path = success(rust_sample("checksum")?.args(["--file", &file]).output()?)?;
    let by_name = success(rust_sample("checksum")?.arg("sum").output()?)?;
    equal!(by_path.split_whitespace().next(), by_name.split_whitespace().next());
    Ok(())
}

fn the_checksum_of_another_source_is_another() -> Outcome {
    let (path, setting) = file_and_region()?;
    let mut other = fs::read(&path)?;
    other[100_000] ^= 1;
    fs::write(&path, other)?;
    let of_file = success(rust_sample("checksum")?.arg("--file").arg(&path).output()?)?;
    fs::remove_file(&path)?;
    setting.region.ready()?;
    setting.fill(0..200)?;
    let expected = of_file.split_whitespace().next().ok_or("it printed nothing")?;
    let output = rust_sample("checksum")?.args(["sum", "--expect", expected]).output()?;
    ensure!(!output.status.success());
    ensure!(String::from_utf8_lossy(&output.stderr).contains("the checksum is not"));
    Ok(())
}

fn the_checksum_of_a_region_that_is_not_there_is_an_error() -> Outcome {
    let output = rust_sample("checksum")?.arg("nobody").output()?;
    equal!(output.status.code(), Some(1));
    equal!(
        String::from_utf8_lossy(&output.stderr).trim(),
        "checksum: there is no /run/vmem/nobody, and no /dev/vmem/nobody"
    );
    Ok(())
}

fn requests_can_be_awaited_on_tokio() -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let region = RegionBuilder::new(64 * PAGE_SIZE as u64).create(&Control::open()?)?;
    let map = region.map_handle()?;
    let readers: Vec<_> = (0..4)
        .map(|reader| {
            Program::start(|| {
                let area = AreaBuilder::default().map(&map, 0, 64)?;
                let mut last = vec![];
                for pgoff in (reader..64).step_by(4) {
                    last = area.page(pgoff);
                    check_words(&last, pgoff)?;
                }
                Ok(last)
            })
        })
        .collect::<Outcome<_>>()?;
    let served = runtime.block_on(async {
        let requests = AsyncRegion::new(region)?;
        let mut served = Vec::new();
        while served.len() < 64 {
            for wanted in requests.next_requests(8).await? {
                let bytes = bytes_of(&contents(wanted.get()));
                requests.region().fill(&[Fill::new(wanted, &bytes)?]).complete()?;
                served.push(wanted);
            }
        }
        requests.region().make_vma_anonymous()?;
        // Of a plain region nobody waits for a request.
        ensure!(matches!(requests.next_requests(8).await, Err(Error::Plain)));
        Outcome::Ok(served)
    })?;
    for (reader, last) in readers.into_iter().zip(60..) {
        check_words(&reader.join()?, last)?;
    }
    let mut served: Vec<u64> = served.into_iter().map(PageIndex::get).collect();
    served.sort_unstable();
    equal!(served, (0..64).collect::<Vec<_>>());
    Ok(())
}

fn the_program_in_the_description_of_the_calls_reads_what_its_daemons_fill() -> Outcome {
    let output = c_sample("uapi", &[])?;
    equal!(output.trim(), "all 16777216 bytes are right");
    Ok(())
}

fn the_daemon_on_the_first_page_of_the_library_ends_when_programs_discard() -> Outcome {
    const MADV_REMOVE: i32 = 9;
    let setting = Setting::new(8)?;
    setting.region.ready()?;
    let region = setting.region.clone();
    let daemon = std::thread::spawn(move || first_page::run(&region));
    let area = setting.area()?;
    area.advise(2..4, MADV_REMOVE)?;
    for pgoff in [7, 1, 6, 0, 5, 4] {
        let word = u64::from_ne_bytes([pgoff as u8; 8]);
        ensure!(
            area.page(pgoff).iter().all(|found| *found == word),
            "page {pgoff} is not the daemon's"
        );
    }
    ensure!(area.page(2).iter().all(|word| *word == 0), "a discarded page is not zero");
    wait_until("the daemon has ended", || Ok(daemon.is_finished()))?;
    daemon.join().map_err(|_| "the daemon has panicked")??;
    ensure!(setting.region.info()?.plain);
    Ok(())
}

fn the_dirty_rate_in_c_copies_what_a_running_program_writes() -> Outcome {
    let program = writer("dirtyrate")?;
    let pid = program.pid().to_string();
    let output = c_sample("dirtyrate", &["--seconds", "2", "--verify", &pid, "/memfd:dirtyrate"])?;
    let rates = output.lines().filter(|line| line.contains(" pages/s ")).count();
    equal!(rates, 2);
    let verdict = format!("verify: {WRITER_PAGES} pages are equal, 0 are written to by others, 0 are lost");
    ensure!(output.contains(&verdict), "{output}");
    // The program goes on.
    program.signal(Signal::TERM)?;
    program.join_killed(Signal::TERM)
}

fn vmemctl_shows_where_a_running_program_writes() -> Outcome {
    let program = writer("watched")?;
    let region = |arguments: &[&str]| -> Outcome<String> {
        let pid = program.pid().to_string();
        let mut command = rust_sample("vmemctl")?;
        command.arg("region").args(arguments);
        success(command.args(["--pid", &pid, "--memory", "watched"]).output()?)
    };
    let output = region(&["watch", "--count", "2", "--interval", "0.3"])?;
    let (samples, histogram) = output
        .split_once("pages written, by where in the memory they are:\n")
        .ok_or("no histogram")?;
    // The memory, the titles, and the samples.
    equal!(samples.lines().count(), 4);
    let counts = histogram.lines().filter_map(|line| line.rsplit(' ').next());
    let written: Vec<bool> = counts.map(|count| count != "0").collect();
    equal!(written, [[true; 8], [false; 8]].concat());
    // It has let the memory go.
    let info = region(&["info"])?;
    ensure!(info.lines().any(|line| line.ends_with(" possible")), "{info}");
    Ok(())
}
