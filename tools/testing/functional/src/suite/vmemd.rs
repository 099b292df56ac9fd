// SPDX-License-Identifier: GPL-2.0
//! vmemd on real regions: what the programs see, whatever happens to daemon and source.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, Signal, kill_process};
use vmem::{Access, Control, Info, MapHandle, Mapping, PAGE_SIZE, RegionBuilder, Sharing};
use vmem_functional_sys::BUS_ADRERR;

use super::mark::{broken, bus_code};
use crate::failure::{Outcome, ensure, equal};
use crate::setting::{Setting, bytes_of, contents, pages};
use crate::world::{field, module_users, nodes, wait_until};

crate::tests![
    a_program_gets_the_source_s_memory_and_keeps_it_as_plain_memory,
    files_with_holes_and_memfds_are_exported_side_by_side,
    no_background_fetches_only_touched_pages,
    pages_ahead_of_equal_steps_are_fetched_and_no_others,
    a_killed_daemon_is_replaced_by_the_next_one,
    sigterm_leaves_a_mapped_region_to_the_next_daemon,
    programs_wait_for_a_source_that_comes_back,
    a_source_that_stays_away_is_exit_code_2_and_programs_wait_on,
    a_source_that_comes_back_with_other_memory_is_refused,
    pages_that_the_source_cannot_read_are_exit_code_4_and_can_be_cured,
    pages_that_the_source_cannot_read_are_broken_memory_if_that_is_wanted,
    regions_are_exported_on_demand_with_what_is_unreadable,
    a_complete_region_waits_without_its_source_until_somebody_maps_it,
    the_node_has_the_mode_and_owner_that_were_asked_for,
    a_plain_file_in_the_place_of_a_node_is_refused_before_ready,
    a_mapped_region_is_served_whatever_became_of_its_node,
    a_daemon_has_no_privileges_once_the_control_device_is_open,
    a_source_that_cannot_make_holes_keeps_its_pages_and_says_so_once,
    each_failure_has_its_exit_code,
    the_daemon_s_memory_does_not_grow_with_the_region,
];

/// A program beside this one.
pub(super) fn beside(name: &str) -> Outcome<Command> {
    Ok(Command::new(std::env::current_exe()?.with_file_name(name)))
}

/// A file in memory, gone at the end of its test.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// `pages` pages with their contents, but for every fifth, which is zero.
    pub(super) fn new(name: &str, pages: u64) -> Outcome<Self> {
        let scratch = Self(Path::new("/dev/shm").join(format!("vmemd-{name}")));
        let bytes = |pgoff| {
            if pgoff % 5 == 4 {
                vec![0; PAGE_SIZE]
            } else {
                bytes_of(&contents(pgoff))
            }
        };
        fs::write(&scratch.0, (0..pages).flat_map(bytes).collect::<Vec<u8>>())?;
        Ok(scratch)
    }

    pub(super) fn export(&self, name: &str) -> String {
        format!("{name}={}", self.0.display())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A child that does not outlive its test.
pub(super) struct Process(Child);

impl Process {
    pub(super) fn new(command: &mut Command) -> Outcome<Self> {
        Ok(Self(command.spawn()?))
    }

    pub(super) fn kill(&mut self) -> Outcome {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }

    /// Sends it a signal.
    pub(super) fn signal(&self, signal: Signal) -> Outcome {
        Ok(kill_process(Pid::from_child(&self.0), signal)?)
    }

    fn terminate(&self) -> Outcome {
        self.signal(Signal::TERM)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// `vmemd serve`.
pub(super) struct Source {
    process: Process,
    pub(super) address: String,
}

impl Source {
    pub(super) fn new(exports: &[&str]) -> Outcome<Self> {
        Self::at("127.0.0.1:0", exports)
    }

    fn at(address: &str, exports: &[&str]) -> Outcome<Self> {
        let mut source = Self::run(address, exports)?;
        // Who writes there when nobody reads must not wait.
        drop(source.process.0.stderr.take());
        Ok(source)
    }

    /// With options; what it says on standard error can be read.
    fn with(options: &[&str], exports: &[&str]) -> Outcome<Self> {
        Self::run("127.0.0.1:0", &[options, exports].concat())
    }

    fn run(address: &str, arguments: &[&str]) -> Outcome<Self> {
        let mut command = beside("vmemd")?;
        command
            .args(["serve", "--listen", address])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = Process(command.spawn()?);
        let output = process.0.stdout.take().ok_or("no output")?;
        for line in BufReader::new(output).lines() {
            if let Some(address) = line?.strip_prefix("listening on ") {
                let address = address.to_owned();
                return Ok(Self { process, address });
            }
        }
        Err("the source did not begin to listen".into())
    }
}

/// `vmemd --source`, which reports as JSON.
pub(super) struct Daemon {
    pub(super) process: Process,
    output: BufReader<ChildStdout>,
    heard: String,
}

/// How a daemon ended.
pub(super) struct End {
    code: Option<i32>,
    output: String,
    pub(super) errors: String,
}

impl Daemon {
    pub(super) fn new(source: &str, options: &[&str]) -> Outcome<Self> {
        let mut command = beside("vmemd")?;
        command.args(["--source", source, "--json"]).args(options);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = Process(command.spawn()?);
        let output = BufReader::new(process.0.stdout.take().ok_or("no output")?);
        Ok(Self {
            process,
            output,
            heard: String::new(),
        })
    }

    /// Tells it a word.
    fn tell(&mut self, word: &str) -> Outcome {
        let input = self.process.0.stdin.as_mut().ok_or("it hears nothing")?;
        Ok(writeln!(input, "{word}")?)
    }

    /// Waits until it says this.
    fn wait_line(&mut self, part: &str) -> Outcome {
        let mut line = String::new();
        while !line.contains(part) {
            line.clear();
            ensure!(self.output.read_line(&mut line)? > 0, "no {part} in {}", self.heard);
            self.heard.push_str(&line);
        }
        Ok(())
    }

    /// What it says on standard error from now on.
    pub(super) fn errors(&mut self) -> Outcome<BufReader<ChildStderr>> {
        Ok(BufReader::new(self.process.0.stderr.take().ok_or("it is read already")?))
    }

    /// Waits until it has ended.
    pub(super) fn end(mut self) -> Outcome<End> {
        let errors = self.process.0.stderr.take();
        let errors = thread::spawn(|| errors.map(std::io::read_to_string).transpose());
        self.output.read_to_string(&mut self.heard)?;
        let errors = errors.join().map_err(|_| "a thread has panicked")??.unwrap_or_default();
        let code = self.process.0.wait()?.code();
        Ok(End {
            code,
            output: self.heard,
            errors,
        })
    }
}

impl End {
    /// It ended with this code.
    pub(super) fn with_code(self, code: i32) -> Outcome<Self> {
        ensure!(
            self.code == Some(code),
            "exit code {:?}, not {code}: {}{}",
            self.code,
            self.output,
            self.errors
        );
        let last = self.output.lines().last().unwrap_or_default();
        ensure!(
            last.starts_with("{\"event\":\"end\"") && last.contains(&format!("\"exit_code\":{code},")),
            "{last}"
        );
        Ok(self)
    }

    /// The value of a number in the last line that has it.
    fn number(&self, name: &str) -> Outcome<u64> {
        let key = format!("\"{name}\":");
        let rest = self
            .output
            .rsplit_once(&key)
            .ok_or_else(|| format!("no {name} in {}", self.output))?
            .1;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        Ok(digits.parse()?)
    }
}

/// The sample that walks a region in random order, hashes it, and then keeps it.
struct Program {
    process: Process,
    hold: ChildStdin,
}

impl Program {
    fn new(name: &str, source: &Path) -> Outcome<Self> {
        let of_file = beside("checksum")?.arg("--file").arg(source).output()?;
        let expected = String::from_utf8(of_file.stdout)?;
        let expected = expected.split_whitespace().next().ok_or("no checksum")?;
        let mut command = beside("checksum")?;
        command.args([name, "--wait", "30", "--random", "7", "--hold", "--expect", expected]);
        let process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut process = Process(process?);
        let hold = process.0.stdin.take().ok_or("no input")?;
        Ok(Self { process, hold })
    }

    /// It has read all pages as they are at the source, and reads the same once more.
    fn succeeds(mut self) -> Outcome {
        drop(self.hold);
        let (output, errors) = (self.process.0.stdout.take(), self.process.0.stderr.take());
        let output = output.map(std::io::read_to_string).transpose()?.unwrap_or_default();
        let errors = errors.map(std::io::read_to_string).transpose()?.unwrap_or_default();
        let status = self.process.0.wait()?;
        ensure!(
            status.success() && output.trim_end().ends_with("again"),
            "{status}: {output}{errors}"
        );
        Ok(())
    }
}

/// Opens a region as soon as it is there.
pub(super) fn open(name: &str) -> Outcome<MapHandle> {
    wait_until("the region is there", || Ok(nodes()?.iter().any(|node| node == name)))?;
    Ok(MapHandle::open(name, Access::ReadWrite)?)
}

pub(super) fn map(handle: &MapHandle) -> Outcome<Mapping> {
    handle.wait_ready()?;
    Ok(handle.map(Access::ReadWrite, Sharing::Shared)?)
}

/// The region's state, once it is as it shall be.
fn wait_info(handle: &MapHandle, what: &str, holds: impl Fn(&Info) -> bool) -> Outcome<Info> {
    wait_until(what, || Ok(holds(&handle.info()?)))?;
    Ok(handle.info()?)
}

pub(super) fn check_page(mapping: &Mapping, pgoff: u64) -> Outcome {
    let mut page = vec![0; PAGE_SIZE];
    mapping.read_at(pgoff as usize * PAGE_SIZE, &mut page)?;
    let expected = if pgoff % 5 == 4 {
        vec![0; PAGE_SIZE]
    } else {
        bytes_of(&contents(pgoff))
    };
    ensure!(page == expected, "page {pgoff} is not that of the source");
    Ok(())
}

const PAGES: u64 = 2000;
const SIZE: u64 = PAGES * PAGE_SIZE as u64;

fn a_program_gets_the_source_s_memory_and_keeps_it_as_plain_memory() -> Outcome {
    let file = Scratch::new("plain", PAGES)?;
    let source = Source::new(&[&file.export("plain")])?;
    let program = Program::new("plain", &file.0)?;
    // However fast the pages come, somebody waits for the last of them before the first comes.
    let mut daemon = Daemon::new(&source.address, &["--hold"])?;
    let handle = open("plain")?;
    let reader = thread::spawn({
        let memory = handle.map(Access::ReadWrite, Sharing::Shared)?;
        move || check_page(&memory, PAGES - 1)
    });
    wait_info(&handle, "somebody waits", |info| info.waiters == 1)?;
    daemon.tell("start")?;
    reader.join().map_err(|_| "the reader panicked")??;
    drop(handle);
    let end = daemon.end()?.with_code(0)?;
    equal!(end.number("data_bytes")? + end.number("zero_bytes")?, SIZE);
    equal!(end.number("zero_bytes")?, SIZE / 5);
    ensure!(end.number("faults")? > 0, "{}", end.output);
    // The program has the memory, and no use of the module is left.
    wait_until("nothing uses the module", || Ok(module_users()? == 0))?;
    equal!(nodes()?, Vec::<String>::new());
    program.succeeds()
}

fn files_with_holes_and_memfds_are_exported_side_by_side() -> Outcome {
    let file = Scratch::new("holes", 100)?;
    File::options().write(true).open(&file.0)?.set_len(SIZE)?;
    let memfd = File::from(memfd_create("exported", MemfdFlags::CLOEXEC)?);
    memfd.write_all_at(&bytes_of(&contents(7)), 7 * PAGE_SIZE as u64)?;
    memfd.set_len(10 * PAGE_SIZE as u64)?;
    let fd = format!("memfd=/proc/{}/fd/{}", std::process::id(), memfd.as_raw_fd());
    let source = Source::new(&[&file.export("holes"), &fd])?;
    let daemon = Daemon::new(&source.address, &[])?;
    let (holes, other) = (open("holes")?, open("memfd")?);
    let (holes_memory, other_memory) = (map(&holes)?, map(&other)?);
    for pgoff in 0..100 {
        check_page(&holes_memory, pgoff)?;
    }
    for (memory, pgoff, expected) in [
        (&holes_memory, 1500, None),
        (&other_memory, 6, None),
        (&other_memory, 7, Some(7)),
    ] {
        let mut page = vec![1; PAGE_SIZE];
        memory.read_at(pgoff * PAGE_SIZE, &mut page)?;
        equal!(page, expected.map_or(vec![0; PAGE_SIZE], |of| bytes_of(&contents(of))));
    }
    let end = daemon.end()?.with_code(0)?;
    equal!(end.number("data_bytes")?, 81 * PAGE_SIZE as u64);
    Ok(())
}

fn no_background_fetches_only_touched_pages() -> Outcome {
    let file = Scratch::new("demand", PAGES)?;
    let source = Source::new(&[&file.export("demand")])?;
    let daemon = Daemon::new(&source.address, &["--no-background"])?;
    let handle = open("demand")?;
    let memory = map(&handle)?;
    for pgoff in [1999, 3, 14, 1000] {
        check_page(&memory, pgoff)?;
    }
    let info = handle.info()?;
    equal!((info.present, info.requests), (4, 4));
    daemon.process.terminate()?;
    let end = daemon.end()?.with_code(6)?;
    equal!((end.number("faults")?, end.number("duplicate_bytes")?), (4, 0));
    equal!(handle.info()?.present, 4);
    Ok(())
}

fn pages_ahead_of_equal_steps_are_fetched_and_no_others() -> Outcome {
    let file = Scratch::new("ahead", PAGES)?;
    let source = Source::new(&[&file.export("ahead")])?;
    let daemon = Daemon::new(&source.address, &["--no-background", "--prefetch", "8"])?;
    let handle = open("ahead")?;
    let memory = map(&handle)?;
    for pgoff in [1999, 3, 14, 1000] {
        check_page(&memory, pgoff)?;
    }
    equal!(handle.info()?.present, 4);
    // The third request on a walk brings four pages more, the next one eight.
    for pgoff in [100, 110, 120] {
        check_page(&memory, pgoff)?;
    }
    wait_info(&handle, "four pages come unasked", |info| info.present == 4 + 3 + 4)?;
    for pgoff in [130, 140, 150, 160] {
        check_page(&memory, pgoff)?;
    }
    let info = handle.info()?;
    equal!((info.present, info.requests), (11, 7));
    check_page(&memory, 170)?;
    wait_info(&handle, "eight pages come unasked", |info| info.present == 11 + 1 + 8)?;
    check_page(&memory, 250)?;
    equal!(handle.info()?.requests, 8);
    daemon.process.terminate()?;
    let end = daemon.end()?.with_code(6)?;
    equal!((end.number("faults")?, end.number("duplicate_bytes")?), (8, 0));
    Ok(())
}

/// A program that has some of its pages, and whose daemon fetches nothing but what it touches.
fn half_way(name: &str) -> Outcome<(Scratch, Source, Daemon, Program, MapHandle)> {
    let file = Scratch::new(name, PAGES)?;
    let source = Source::new(&[&file.export(name)])?;
    let daemon = Daemon::new(&source.address, &["--no-background", "--retry", "60"])?;
    let program = Program::new(name, &file.0)?;
    let handle = open(name)?;
    wait_info(&handle, "the program has some pages", |info| info.present > 20)?;
    Ok((file, source, daemon, program, handle))
}

/// The next daemon takes over, and fetches only what is not there.
fn goes_on(source: &Source, program: Program, handle: MapHandle) -> Outcome {
    wait_info(&handle, "the daemon has gone", |info| !info.attached)?;
    let before = handle.info()?.present;
    drop(handle);
    let end = Daemon::new(&source.address, &["--attach"])?.end()?.with_code(0)?;
    equal!(
        end.number("data_bytes")? + end.number("zero_bytes")?,
        SIZE - before * PAGE_SIZE as u64
    );
    program.succeeds()
}

fn a_killed_daemon_is_replaced_by_the_next_one() -> Outcome {
    let (_file, source, mut daemon, program, handle) = half_way("killed")?;
    daemon.process.kill()?;
    goes_on(&source, program, handle)
}

fn sigterm_leaves_a_mapped_region_to_the_next_daemon() -> Outcome {
    let (_file, source, daemon, program, handle) = half_way("stopped")?;
    daemon.process.terminate()?;
    daemon.end()?.with_code(6)?;
    goes_on(&source, program, handle)
}

fn programs_wait_for_a_source_that_comes_back() -> Outcome {
    let (file, mut source, daemon, program, handle) = half_way("back")?;
    source.process.kill()?;
    wait_info(&handle, "the program waits", |info| info.waiters == 1)?;
    let before = handle.info()?.present;
    ensure!(before < PAGES, "the program was done already");
    drop(handle);
    let _again = Source::at(&source.address, &[&file.export("back")])?;
    let end = daemon.end()?.with_code(0)?;
    ensure!(
        end.output.contains("{\"event\":\"lost\",\"connection\":\"urgent\""),
        "{}",
        end.output
    );
    equal!(end.number("reconnects")?, 1);
    program.succeeds()
}

fn a_source_that_stays_away_is_exit_code_2_and_programs_wait_on() -> Outcome {
    let file = Scratch::new("away", PAGES)?;
    let mut source = Source::new(&[&file.export("away")])?;
    let daemon = Daemon::new(&source.address, &["--no-background", "--retry", "0.5"])?;
    let program = Program::new("away", &file.0)?;
    let handle = open("away")?;
    wait_info(&handle, "the program has some pages", |info| info.present > 20)?;
    source.process.kill()?;
    daemon.end()?.with_code(2)?;
    let info = wait_info(&handle, "the program waits", |info| info.waiters == 1)?;
    ensure!(!info.attached && info.sigbus == 0, "{info:?}");
    drop(handle);
    let source = Source::new(&[&file.export("away")])?;
    Daemon::new(&source.address, &["--resume"])?.end()?.with_code(0)?;
    program.succeeds()
}

fn a_source_that_comes_back_with_other_memory_is_refused() -> Outcome {
    let (_file, mut source, daemon, mut program, handle) = half_way("other")?;
    source.process.kill()?;
    let other = Scratch::new("another", PAGES)?;
    let _other = Source::at(&source.address, &[&other.export("other")])?;
    let before = wait_info(&handle, "the program waits", |info| info.waiters == 1)?.present;
    let end = daemon.end()?.with_code(7)?;
    ensure!(end.errors.contains("other memory as other"), "{}", end.errors);
    equal!(handle.info()?.present, before);
    program.process.kill()
}

fn pages_that_the_source_cannot_read_are_exit_code_4_and_can_be_cured() -> Outcome {
    let file = Scratch::new("lost", PAGES)?;
    let whole = fs::read(&file.0)?;
    let source = Source::new(&[&file.export("lost")])?;
    File::options().write(true).open(&file.0)?.set_len(SIZE / 2)?;
    let daemon = Daemon::new(&source.address, &[])?;
    let handle = open("lost")?;
    let memory = map(&handle)?;
    let end = daemon.end()?.with_code(4)?;
    equal!(end.number("unreadable_pages")?, PAGES / 2);
    let info = handle.info()?;
    equal!((info.present, info.unreadable, info.plain), (PAGES / 2, PAGES / 2, false));
    check_page(&memory, PAGES / 2 - 1)?;
    let mut page = vec![0; PAGE_SIZE];
    equal!(memory.read_until_fault(SIZE as usize / 2, &mut page)?, 0);
    fs::write(&file.0, whole)?;
    drop(handle);
    Daemon::new(&source.address, &["--resume"])?.end()?.with_code(0)?;
    for pgoff in 0..PAGES {
        check_page(&memory, pgoff)?;
    }
    Ok(())
}

fn pages_that_the_source_cannot_read_are_broken_memory_if_that_is_wanted() -> Outcome {
    let code = |options: &[&str]| -> Outcome<i32> {
        let file = Scratch::new("broken", 4)?;
        let source = Source::new(&[&file.export("broken")])?;
        File::options().write(true).open(&file.0)?.set_len(2 * PAGE_SIZE as u64)?;
        let daemon = Daemon::new(&source.address, options)?;
        let map = open("broken")?;
        daemon.end()?.with_code(4)?;
        let region = Control::open()?.attach("broken")?.into();
        bus_code(&Setting { region, map })
    };
    equal!(code(&[])?, BUS_ADRERR);
    equal!(code(&["--on-unreadable", "sigbus"])?, BUS_ADRERR);
    equal!(code(&["--on-unreadable", "poison"])?, broken());
    Ok(())
}

fn regions_are_exported_on_demand_with_what_is_unreadable() -> Outcome {
    let near = Setting::create(RegionBuilder::new(50 * PAGE_SIZE as u64).name("near"))?;
    near.region.ready()?;
    near.fill((0..20).filter(|pgoff| pgoff % 5 != 4))?;
    near.region
        .mark_zero(&[4, 9, 14, 19].map(|pgoff| pages(pgoff, 1)))
        .complete()?;
    near.region.mark_unreadable(&[pages(20, 10)]).complete()?;
    let source = Source::new(&["far=/dev/vmem/near"])?;
    let daemon = Daemon::new(&source.address, &[])?;
    let handle = open("far")?;
    let memory = map(&handle)?;
    for pgoff in 0..20 {
        check_page(&memory, pgoff)?;
    }
    // What is absent in the one is requested there when the other one wants it.
    let requested = near.region.next_requests(1)?;
    ensure!(requested.iter().all(|page| page.get() >= 30), "{requested:?}");
    near.fill((30..50).filter(|pgoff| pgoff % 5 != 4))?;
    near.region
        .mark_zero(&[34, 39, 44, 49].map(|pgoff| pages(pgoff, 1)))
        .complete()?;
    let end = daemon.end()?.with_code(4)?;
    equal!(end.number("unreadable_pages")?, 10);
    for pgoff in 30..50 {
        check_page(&memory, pgoff)?;
    }
    equal!(handle.info()?.unreadable, 10);
    Ok(())
}

fn a_complete_region_waits_without_its_source_until_somebody_maps_it() -> Outcome {
    let file = Scratch::new("waits", PAGES)?;
    let mut source = Source::new(&[&file.export("waits")])?;
    let mut daemon = Daemon::new(&source.address, &["--retry", "0.1"])?;
    daemon.wait_line("\"phase\":\"waiting\"")?;
    // The source is not needed any more.
    source.process.kill()?;
    thread::sleep(Duration::from_millis(500));
    let handle = open("waits")?;
    let info = handle.info()?;
    ensure!(info.present == PAGES && info.attached && !info.plain, "{info:?}");
    let memory = map(&handle)?;
    drop(handle);
    let end = daemon.end()?.with_code(0)?;
    ensure!(!end.output.contains("lost"), "{}", end.output);
    for pgoff in 0..PAGES {
        check_page(&memory, pgoff)?;
    }
    Ok(())
}

fn the_node_has_the_mode_and_owner_that_were_asked_for() -> Outcome {
    let file = Scratch::new("node", 1)?;
    let source = format!("file:{}", file.export("node"));
    let mut daemon = Daemon::new(&source, &["--mode", "640", "--owner", "12:34"])?;
    daemon.wait_line("\"ready\"")?;
    let _handle = open("node")?;
    let node = fs::metadata("/dev/vmem/node")?;
    equal!((node.mode() & 0o7777, node.uid(), node.gid()), (0o640, 12, 34));
    daemon.process.terminate()?;
    daemon.end()?.with_code(6)?;
    Ok(())
}

/// A program that opens the node before it is there, and creates what it does not find, gets a file of its own, which no daemon fills.
fn a_plain_file_in_the_place_of_a_node_is_refused_before_ready() -> Outcome {
    let file = Scratch::new("early", PAGES)?;
    let from_file = format!("file:{}", file.export("early"));
    fs::write("/dev/vmem/early", "what a program wrote")?;
    let end = Daemon::new(&from_file, &[])?.end()?.with_code(5)?;
    ensure!(end.errors.contains("/dev/vmem/early is a plain file"), "{}", end.errors);
    ensure!(!end.output.contains("\"ready\""), "{}", end.output);
    // Nor is it offered as if it were the region.
    let serve = beside("vmemd")?
        .args(["serve", "--listen", "127.0.0.1:0", "other=/dev/vmem/early"])
        .output()?;
    let errors = String::from_utf8_lossy(&serve.stderr);
    ensure!(
        serve.status.code() == Some(1) && errors.contains("a plain file in the place"),
        "{:?}: {errors}",
        serve.status
    );
    ensure!(
        matches!(MapHandle::open("early", Access::ReadWrite), Err(vmem::Error::NotVmem { .. })),
        "the library opens it"
    );
    fs::remove_file("/dev/vmem/early")?;
    let mut daemon = Daemon::new(&from_file, &[])?;
    daemon.wait_line("\"ready\"")?;
    let memory = map(&open("early")?)?;
    check_page(&memory, 7)?;
    daemon.end()?.with_code(0)?;
    Ok(())
}

fn a_mapped_region_is_served_whatever_became_of_its_node() -> Outcome {
    let file = Scratch::new("hidden", PAGES)?;
    let from_file = format!("file:{}", file.export("hidden"));
    let mut first = Daemon::new(&from_file, &["--no-background"])?;
    first.wait_line("\"ready\"")?;
    let handle = open("hidden")?;
    let memory = map(&handle)?;
    first.process.kill()?;
    wait_info(&handle, "the daemon has gone", |info| !info.attached)?;
    fs::rename("/dev/vmem/hidden", "/dev/vmem/elsewhere")?;
    fs::write("/dev/vmem/hidden", "")?;
    let next = Daemon::new(&from_file, &["--resume"])?;
    check_page(&memory, 1999)?;
    drop(handle);
    let end = next.end()?.with_code(0)?;
    ensure!(
        end.errors.contains("region hidden: /dev/vmem/hidden is a plain file"),
        "{}",
        end.errors
    );
    fs::remove_file("/dev/vmem/hidden")?;
    // The kernel forgets a node that was moved.
    fs::remove_file("/dev/vmem/elsewhere")?;
    Ok(())
}

fn a_daemon_has_no_privileges_once_the_control_device_is_open() -> Outcome {
    let file = Scratch::new("privileges", PAGES)?;
    let source = Source::new(&[&file.export("privileges")])?;
    let mut daemon = Daemon::new(&source.address, &["--no-background", "--user", "1234:99"])?;
    daemon.wait_line("\"ready\"")?;
    for (process, uid, gid) in [(&daemon.process, 1234, 99), (&source.process, 65534, 65534)] {
        let directory = format!("/proc/{}/task", process.0.id());
        for thread in fs::read_dir(directory)? {
            let status = fs::read_to_string(thread?.path().join("status"))?;
            let value = |name: &str| -> Outcome<String> {
                let line = status
                    .lines()
                    .find_map(|line| line.strip_prefix(name))
                    .ok_or("no such field")?;
                Ok(line.split_whitespace().collect::<Vec<_>>().join(" "))
            };
            equal!(value("Uid:")?, [uid; 4].map(|id: u32| id.to_string()).join(" "));
            equal!(value("Gid:")?, [gid; 4].map(|id: u32| id.to_string()).join(" "));
            equal!((value("CapPrm:")?, value("CapEff:")?), ("0".repeat(16), "0".repeat(16)));
            equal!((value("NoNewPrivs:")?, value("Groups:")?), ("1".to_owned(), String::new()));
        }
    }
    let descriptors = fs::read_dir(format!("/proc/{}/fd", daemon.process.0.id()))?;
    for descriptor in descriptors {
        let target = fs::read_link(descriptor?.path())?;
        ensure!(target != Path::new("/dev/vmem/control"), "the control device is still open");
    }
    // It serves all the same, and the node is root's.
    let memory = map(&open("privileges")?)?;
    check_page(&memory, 1)?;
    daemon.process.terminate()?;
    daemon.end()?.with_code(6)?;
    Ok(())
}

fn a_source_that_cannot_make_holes_keeps_its_pages_and_says_so_once() -> Outcome {
    let directory = Path::new("/run/vmemd-holes");
    fs::create_dir_all(directory)?;
    // A file system without fallocate().
    let mounted = Command::new("mount").args(["-t", "ramfs", "none"]).arg(directory).status()?;
    ensure!(mounted.success(), "mount: {mounted}");
    let file = Scratch(directory.join("memory"));
    let bytes = (0..PAGES).flat_map(|pgoff| bytes_of(&contents(pgoff)));
    fs::write(&file.0, bytes.collect::<Vec<u8>>())?;
    let mut source = Source::with(&["--free", "/run"], &[&file.export("holes")])?;
    let errors = source.process.0.stderr.take().ok_or("no errors")?;
    let daemon = Daemon::new(&source.address, &["--release"])?;
    let handle = open("holes")?;
    let memory = map(&handle)?;
    drop(handle);
    daemon.end()?.with_code(0)?;
    drop(memory);
    // Its pages are readable, because they are all there.
    wait_until("the region has gone", || Ok(nodes()?.is_empty()))?;
    let daemon = Daemon::new(&source.address, &[])?;
    let handle = open("holes")?;
    let memory = map(&handle)?;
    drop(handle);
    daemon.end()?.with_code(0)?;
    let mut page = vec![0; PAGE_SIZE];
    memory.read_at(0, &mut page)?;
    equal!(page, bytes_of(&contents(0)));
    source.process.kill()?;
    let errors = std::io::read_to_string(errors)?;
    equal!(errors.matches("cannot give pages of holes back").count(), 1);
    drop(file);
    fs::remove_file("/run/holes.released")?;
    Command::new("umount").arg(directory).status()?;
    Ok(())
}

fn each_failure_has_its_exit_code() -> Outcome {
    let file = Scratch::new("codes", PAGES)?;
    let from_file = format!("file:{}", file.export("codes"));
    for wrong in [&["localhost", "--mode", "999"][..], &["localhost:abc"]] {
        let usage = beside("vmemd")?.arg("--source").args(wrong).output()?;
        equal!(usage.status.code(), Some(1));
    }
    let end = Daemon::new("192.0.2.1:1", &[])?.end()?.with_code(1)?;
    ensure!(end.errors.contains("192.0.2.1:1 is not a loopback address"), "{}", end.errors);

    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    let stranger = thread::spawn(move || {
        let (mut socket, _) = listener.accept()?;
        socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    });
    let end = Daemon::new(&address, &[])?.end()?.with_code(3)?;
    ensure!(end.errors.contains("it began with \"HTTP/1.1\""), "{}", end.errors);
    stranger.join().map_err(|_| "a thread has panicked")??;
    let end = Daemon::new(&address, &[])?.end()?.with_code(2)?;
    ensure!(
        end.errors.contains(&address) && end.errors.contains("Connection refused"),
        "{}",
        end.errors
    );

    let mut first = Daemon::new(&from_file, &[])?;
    first.wait_line("\"ready\"")?;
    let handle = open("codes")?;
    let end = Daemon::new(&from_file, &["--attach"])?.end()?.with_code(5)?;
    ensure!(end.errors.contains("another daemon serves the region"), "{}", end.errors);
    first.process.terminate()?;
    first.end()?.with_code(6)?;
    // What a source calls a region is no reason to serve it.
    let end = Daemon::new(&from_file, &[])?.end()?.with_code(5)?;
    ensure!(end.errors.contains("region codes exists already: --attach"), "{}", end.errors);
    File::options().write(true).open(&file.0)?.set_len(SIZE * 2)?;
    let end = Daemon::new(&from_file, &["--attach"])?.end()?.with_code(5)?;
    ensure!(end.errors.contains("exists with"), "{}", end.errors);
    wait_info(&handle, "the region has no daemon", |info| !info.attached)?;
    Ok(())
}

fn the_daemon_s_memory_does_not_grow_with_the_region() -> Outcome {
    const GIB: u64 = 1 << 30;
    let file = Scratch::new("large", PAGES)?;
    File::options().write(true).open(&file.0)?.set_len(2 * GIB)?;
    let source = Source::new(&[&file.export("large")])?;
    let daemon = Daemon::new(&source.address, &[])?;
    let handle = open("large")?;
    wait_info(&handle, "all pages are present", |info| {
        info.present == 2 * GIB / PAGE_SIZE as u64
    })?;
    for process in [&daemon.process, &source.process] {
        let status = fs::read_to_string(format!("/proc/{}/status", process.0.id()))?;
        let peak = field(&status, "VmHWM")?;
        ensure!(peak < 16 << 10, "{peak} KiB");
    }
    daemon.process.terminate()?;
    daemon.end()?.with_code(6)?;
    Ok(())
}
