// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemctl region` with regions some of whose pages have yet to come.

use std::fs;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use vmem::{Control, DescriptorInfo, Error, PAGE_SIZE, RegionBuilder};

use super::super::qemu::{MEMORY, Qemu, serve_zeros};
use super::region::{MADV_REMOVE, PAGES, adopt, incomplete, settle, user};
use super::snapshot::{directory, names, snapshot_figure};
use super::{rust_sample, success};
use crate::adopted::page_bytes;
use crate::failure::{Outcome, ensure, equal};
use crate::schema;
use crate::setting::{Board, Setting, bytes_of, contents, pages};
use crate::world::wait_until;

crate::tests![
    vmemctl_shows_the_region_of_a_process,
    vmemctl_shows_a_region_that_is_tracked,
    vmemctl_shows_where_a_region_is_written_to_while_it_is_filled,
    vmemctl_waits_for_the_absent_pages_of_a_snapshot,
    vmemctl_leaves_absent_pages_of_a_snapshot_out_if_that_is_wanted,
    vmemctl_ends_by_a_signal_while_it_waits_for_a_page,
    vmemctl_writes_no_zeros_for_absent_pages_that_are_discarded,
    vmemctl_takes_snapshots_of_a_qemu_whose_memory_is_still_coming,
];

fn vmemctl(arguments: &[&str]) -> Outcome<Output> {
    Ok(rust_sample("vmemctl")?.arg("region").args(arguments).output()?)
}

/// A `vmemctl region snapshot` that runs.
struct Running(Child);

impl Running {
    fn start(name: &str, out: &Path) -> Outcome<Self> {
        let mut command = rust_sample("vmemctl")?;
        command.args(["region", "snapshot", name, "--out"]).arg(out);
        Ok(Self(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?))
    }

    fn signal(&self, signal: Signal) -> Outcome {
        let pid = Pid::from_raw(self.0.id().try_into()?).ok_or("no process")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Its exit code, and what it prints on both of its outputs.
    fn end(&mut self) -> Outcome<(Option<i32>, String)> {
        let mut said = String::new();
        self.0.stderr.take().ok_or("no standard error")?.read_to_string(&mut said)?;
        self.0.stdout.take().ok_or("no output")?.read_to_string(&mut said)?;
        Ok((self.0.wait()?.code(), said))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended has no more to end.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Fails unless the region is adopted no more.
fn check_let_go(setting: &Setting) -> Outcome {
    wait_until("nobody has it adopted", || match Control::open()?.adopt(&setting.map) {
        Ok(_) => Ok(true),
        Err(Error::MemoryInUse) => Ok(false),
        Err(error) => Err(error.into()),
    })
}

/// Fails unless the file has these pages of the region, and nothing in the others.
fn check_file(path: &Path, present: Range<usize>) -> Outcome {
    let file = fs::read(path)?;
    equal!(file.len(), PAGES * PAGE_SIZE);
    for at in 0..PAGES {
        let expected = match present.contains(&at) {
            true => bytes_of(&contents(at as u64)),
            false => vec![0; PAGE_SIZE],
        };
        ensure!(file[page_bytes(at)] == expected, "page {at} of the file is not what it was");
    }
    Ok(())
}

fn vmemctl_shows_the_region_of_a_process() -> Outcome {
    let setting = incomplete("process")?;
    let board = Board::new()?;
    let program = user("process", &board)?;
    let check = |state: &str, present: &str| -> Outcome {
        let pid = program.pid().to_string();
        let said = success(vmemctl(&["info", "--pid", &pid, "--memory", "/dev/vmem/process"])?)?;
        for line in [state, present, "tracking    possible"] {
            ensure!(said.lines().any(|found| found == line), "no {line:?} in:\n{said}");
        }
        Ok(())
    };
    check("state       served", "present     32 pages")?;
    setting.fill(PAGES / 2..PAGES)?;
    setting.region.make_vma_anonymous()?;
    check("state       plain", "present     64 pages")?;
    board.set(1, 1)?;
    program.join().map(drop)
}

fn vmemctl_shows_a_region_that_is_tracked() -> Outcome {
    let setting = incomplete("shown")?;
    let line = || -> Outcome<Vec<String>> {
        schema::REGION.check(&success(vmemctl(&["list", "--json"])?)?)?;
        let list = success(vmemctl(&["list"])?)?;
        let mut lines = list.lines().filter(|line| line.starts_with("shown "));
        let line = lines.next().ok_or(format!("no line in:\n{list}"))?;
        ensure!(lines.next().is_none(), "two lines in:\n{list}");
        Ok(line
            .split("  ")
            .filter(|cell| !cell.is_empty())
            .map(|cell| cell.trim().to_owned())
            .collect())
    };
    equal!(line()?[3..5], ["served", "50.0 %"]);
    let adopted = adopt(&setting)?;
    equal!(line()?[3], "served, adopted");
    let area = setting.area()?;
    let tracking = adopted.track()?;
    settle(&tracking)?;
    area.poke(3 * PAGE_SIZE, 1);
    equal!(line()?[3..6], ["served, tracked", "50.0 %", "1"]);
    let info = || success(vmemctl(&["info", "shown"])?);
    ensure!(info()?.contains("log         tracked, 1 pages are in the log"), "{}", info()?);
    setting.fill(PAGES / 2..PAGES)?;
    setting.region.make_vma_anonymous()?;
    equal!(line()?[3..6], ["plain, tracked", "100.0 %", "1"]);
    drop((tracking, adopted));
    equal!(line()?[3..6], ["plain", "100.0 %", "0"]);
    ensure!(info()?.contains("log         -"), "{}", info()?);
    Ok(())
}

fn vmemctl_shows_where_a_region_is_written_to_while_it_is_filled() -> Outcome {
    let setting = incomplete("watched")?;
    let (stop, stopped) = mpsc::channel::<()>();
    let area = setting.area()?;
    let output = thread::scope(|scope| -> Outcome<Output> {
        let area = &area;
        scope.spawn(move || {
            for round in 1.. {
                // Half of what is present.
                (0..PAGES / 4).for_each(|page| area.poke(page * PAGE_SIZE, round));
                if stopped.try_recv() != Err(mpsc::TryRecvError::Empty) {
                    break;
                }
            }
        });
        let watch = rust_sample("vmemctl")?
            .args(["region", "watch", "watched", "--count", "2", "--interval", "0.5"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        wait_until("it is tracked", || {
            Ok(vmem::descriptors().iter().any(|descriptor| match &descriptor.memory {
                DescriptorInfo::Adopted { id, info, .. } => *id == setting.region.id() && info.tracked,
                _ => false,
            }))
        })?;
        let filled = setting.fill(PAGES / 2..PAGES);
        let output = watch.wait_with_output();
        drop(stop);
        filled?;
        Ok(output?)
    })?;
    let output = success(output)?;
    let (samples, histogram) = output
        .split_once("pages written, by where in the memory they are:\n")
        .ok_or("no histogram")?;
    ensure!(samples.starts_with("region watched: 256.00 KiB, 1 mappings"), "{samples}");
    let counts = histogram.lines().filter_map(|line| line.rsplit(' ').next());
    let written: Vec<bool> = counts.map(|count| count != "0").collect();
    // A page that was present and is not written to may be held when the log begins; one that was absent is not.
    equal!(written[..4], [true; 4]);
    equal!(written[8..], [false; 8]);
    check_let_go(&setting)
}

fn vmemctl_waits_for_the_absent_pages_of_a_snapshot() -> Outcome {
    let setting = incomplete("waits")?;
    let directory = directory("waits")?;
    let image = directory.join("image");
    let mut running = Running::start("waits", &image)?;
    setting.wait_waiters(1)?;
    // What was present has been read by then, and has no copies any more.
    equal!(snapshot_figure(running.0.id(), "done"), Some(PAGES as u64 / 2));
    equal!(names(&directory)?, ["image.partial"]);
    let area = setting.area()?;
    area.write_page(3, &contents(500));
    setting.fill(33..PAGES)?;
    for page in 33..PAGES {
        area.write_page(page, &contents(500));
    }
    setting.fill([32])?;
    let (code, said) = running.end()?;
    ensure!(code == Some(0), "{said}");
    ensure!(
        said.contains("region waits: 32 pages are absent, and are waited for"),
        "{said}"
    );
    equal!(names(&directory)?, ["image"]);
    check_file(&image, 0..PAGES)?;
    check_let_go(&setting)
}

fn vmemctl_leaves_absent_pages_of_a_snapshot_out_if_that_is_wanted() -> Outcome {
    let setting = incomplete("skips")?;
    let image = directory("skips")?.join("image");
    let output = vmemctl(&["snapshot", "skips", "--skip-absent", "--out", &image.to_string_lossy()])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    success(output)?;
    ensure!(said.contains("region skips: 32 pages were absent and are left out"), "{said}");
    check_file(&image, 0..PAGES / 2)?;
    let blocks = fs::metadata(&image)?.blocks() * 512;
    ensure!(blocks < (PAGES * PAGE_SIZE * 3 / 4) as u64, "the file takes {blocks} bytes");
    setting.no_request()?;
    // Nothing is left out of a region that is complete.
    setting.fill(PAGES / 2..PAGES)?;
    let arguments = ["--skip-absent", "--force", "--json", "--out", &image.to_string_lossy()];
    let said = success(vmemctl(&[&["snapshot", "skips"], &arguments[..]].concat())?)?;
    ensure!(said.contains("\"left_out\":0"), "{said}");
    schema::REGION.check(&said)?;
    check_file(&image, 0..PAGES)
}

fn vmemctl_ends_by_a_signal_while_it_waits_for_a_page() -> Outcome {
    let setting = incomplete("signal")?;
    let directory = directory("waiting")?;
    let mut running = Running::start("signal", &directory.join("image"))?;
    setting.wait_waiters(1)?;
    running.signal(Signal::INT)?;
    let (code, said) = running.end()?;
    ensure!(code == Some(1) && said.contains("SIGINT was received"), "{code:?}: {said}");
    equal!(names(&directory)?, Vec::<String>::new());
    setting.wait_waiters(0)?;
    check_let_go(&setting)
}

fn vmemctl_writes_no_zeros_for_absent_pages_that_are_discarded() -> Outcome {
    // One of those that are being read; and all of the pages behind a hole.
    for gone in [36..37, 48..PAGES] {
        let setting = incomplete("discarded")?;
        setting.region.mark_zero(&[pages(40, 8)]).complete()?;
        let directory = directory("discarded")?;
        let mut running = Running::start("discarded", &directory.join("image"))?;
        setting.wait_waiters(1)?;
        setting.area()?.advise(gone.clone(), MADV_REMOVE)?;
        setting.fill((32..40).chain(48..PAGES).filter(|page| !gone.contains(page)))?;
        let (code, said) = running.end()?;
        ensure!(
            code == Some(1) && said.contains("a program has discarded pages that were absent"),
            "{code:?}: {said}"
        );
        equal!(names(&directory)?, Vec::<String>::new());
        check_let_go(&setting)?;
    }
    Ok(())
}

/// Fails unless a snapshot of QEMU's memory can be taken, and is what its file holds, but for a few pages that the guest may write to.
fn check_qemu(setting: &Setting, qemu: &Qemu, image: &Path, arguments: &[&str]) -> Outcome<u64> {
    let pid = qemu.pid().to_string();
    let out = image.to_string_lossy();
    let command = [
        "snapshot",
        "--pid",
        &pid,
        "--memory",
        "/dev/vmem/guest0",
        "--force",
        "--out",
        &out,
    ];
    let said = success(vmemctl(&[&command[..], &["--json"], arguments].concat())?)?;
    let mut memory = vec![0; MEMORY as usize];
    setting.region.staging().read_exact_at(&mut memory, 0)?;
    let file = fs::read(image)?;
    equal!(file.len(), memory.len());
    let pages = file.chunks(PAGE_SIZE).zip(memory.chunks(PAGE_SIZE));
    let others = pages.filter(|(file, memory)| file != memory).count();
    ensure!(others < 16, "{others} pages are not what QEMU's memory holds");
    ensure!(file.iter().any(|byte| *byte != 0), "there is nothing in it");
    schema::REGION.check(&said)?;
    let (_, number) = said.split_once("\"left_out\":").ok_or(format!("no number in {said}"))?;
    let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
    Ok(digits.parse()?)
}

fn vmemctl_takes_snapshots_of_a_qemu_whose_memory_is_still_coming() -> Outcome {
    let setting = Setting::create(RegionBuilder::new(MEMORY).name("guest0"))?;
    let stop = Arc::new(AtomicBool::new(false));
    let daemon = thread::spawn({
        let (region, stop) = (setting.region.clone(), stop.clone());
        move || serve_zeros(&region, &stop)
    });
    let mut qemu = Qemu::new("guest0")?;
    let image = directory("qemu")?.join("image");
    let before = qemu
        .hear("No bootable device")
        .and_then(|()| check_qemu(&setting, &qemu, &image, &["--skip-absent"]));
    stop.store(true, Ordering::SeqCst);
    daemon.join().map_err(|_| "the daemon panicked")??;
    let (before, info) = (before?, setting.region.info()?);
    ensure!(
        before > 0 && before + info.present >= MEMORY / PAGE_SIZE as u64,
        "{before} pages are left out of {info:?}"
    );
    setting.region.mark_zero(&[setting.region.pages()]).complete()?;
    setting.region.make_vma_anonymous()?;
    let after = check_qemu(&setting, &qemu, &image, &[])?;
    equal!(after, 0);
    fs::remove_file(image)?;
    ensure!(qemu.runs()?, "QEMU has ended");
    Ok(())
}
