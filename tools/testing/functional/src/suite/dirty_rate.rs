// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemctl dirty-rate` of an unmodified QEMU, whose guest writes to the same pages without end.

use std::fs;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use vmem::{DescriptorInfo, PAGE_SIZE, ProcessMemory, RegionBuilder};

use super::boot::{BootDisk, FIRST, SEGMENT, SEGMENTS};
use super::qemu::{MEMORY, Qemu, serve_zeros};
use super::vmemd::beside;
use crate::adopted::Adopted;
use crate::failure::{Outcome, ensure, equal};
use crate::schema;
use crate::setting::Setting;
use crate::world::{insert_module, module_users, remove_module, wait_until};

crate::tests![
    dirty_rate_of_a_guest_on_a_file_has_the_pages_that_it_writes,
    dirty_rate_of_a_guest_on_a_memfd_has_the_pages_that_it_writes,
    dirty_rate_of_a_guest_on_a_region_has_the_pages_that_it_writes,
    dirty_rate_that_is_killed_leaves_memory_that_is_not_tracked,
    dirty_rate_that_a_signal_ends_prints_what_it_has,
    dirty_rate_ends_with_qemu,
    dirty_rate_of_tracked_memory_is_refused,
    dirty_rate_of_memory_that_is_not_shared_is_refused,
    dirty_rate_of_a_file_that_was_replaced_is_refused,
    dirty_rate_through_a_proxy_is_refused,
    dirty_rate_without_the_module_says_what_to_do,
];

const FILE: &str = "/dev/shm/vmem-dirty-rate";

/// A guest that writes without end.
struct Guest {
    qemu: Qemu,
    directory: PathBuf,
    _disk: BootDisk,
}

impl Guest {
    fn on_file() -> Outcome<Self> {
        let _ = fs::remove_file(FILE);
        Self::new(&format!("memory-backend-file,id=ram,size={MEMORY},mem-path={FILE},share=on"))
    }

    fn new(memory: &str) -> Outcome<Self> {
        let directory = PathBuf::from("/tmp/vmem-dirty-rate");
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir(&directory)?;
        let disk = BootDisk::new()?;
        let socket = format!("unix:{},server=on,wait=off", directory.join("qmp").display());
        let qemu = Qemu::start(memory, &[&disk.options()[..], &["-qmp", &socket]].concat())?;
        let guest = Self {
            qemu,
            directory,
            _disk: disk,
        };
        wait_until("QEMU listens", || Ok(UnixStream::connect(guest.qmp()).is_ok()))?;
        Ok(guest)
    }

    fn qmp(&self) -> PathBuf {
        self.directory.join("qmp")
    }

    /// Waits until the guest has written to the last of its segments.
    fn wait_for_stores(&self, memory: &str) -> Outcome {
        let pid = self.qemu.pid();
        let mut found = None;
        wait_until("QEMU has its memory", || {
            let memory = ProcessMemory::open(pid, memory).ok();
            // It has its name before it has its size.
            found = memory.filter(|memory| memory.file().size == MEMORY);
            Ok(found.is_some())
        })?;
        let fd = found.ok_or("QEMU has no memory")?.file().fd;
        wait_for_stores(&fs::File::open(format!("/proc/{pid}/fd/{fd}"))?)
    }

    fn dirty_rate(&self, arguments: &[&str]) -> Outcome<Running> {
        let mut command = beside("vmemctl")?;
        command.arg("dirty-rate").arg("--qmp").arg(self.qmp()).args(arguments);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        Ok(Running(Some(child)))
    }

    /// Fails unless the command fails before it has begun, and says this.
    fn check_refused(&self, said: &str) -> Outcome {
        let trace = self.directory.join("refused");
        let output = self.dirty_rate(&["--record", &trace.to_string_lossy()])?.end()?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code() == Some(1) && stderr.contains(said),
            "{:?} {stderr}",
            output.status
        );
        ensure!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
        ensure!(!trace.exists(), "there is a trace");
        check_let_go()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
        let _ = fs::remove_file(FILE);
    }
}

/// Waits until the guest that has this memory has written to the last of its segments.
fn wait_for_stores(memory: &fs::File) -> Outcome {
    let mut word = [0; 2];
    wait_until("the guest writes", || {
        memory.read_exact_at(&mut word, (FIRST + SEGMENTS * SEGMENT - 2) as u64)?;
        Ok(word != [0; 2])
    })
}

/// A `vmemctl dirty-rate`, killed when it is dropped.
struct Running(Option<Child>);

impl Running {
    fn child(&mut self) -> Outcome<&mut Child> {
        Ok(self.0.as_mut().ok_or("it has ended")?)
    }

    fn signal(&mut self, signal: Signal) -> Outcome {
        let pid = Pid::from_raw(self.child()?.id().try_into()?).ok_or("no process")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Waits until the process tracks memory.
    fn wait_tracking(&mut self) -> Outcome {
        let pid = i32::try_from(self.child()?.id())?;
        wait_until("it tracks", || {
            ensure!(self.child()?.try_wait()?.is_none(), "it has ended");
            Ok(tracked_by(|other| other == pid))
        })
    }

    fn end(mut self) -> Outcome<Output> {
        Ok(self.0.take().ok_or("it has ended")?.wait_with_output()?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Whether one of these processes has memory that is tracked.
fn tracked_by(is_meant: impl Fn(i32) -> bool) -> bool {
    vmem::descriptors().iter().any(|descriptor| {
        let is_tracked = matches!(&descriptor.memory, DescriptorInfo::Adopted { info, .. } if info.tracked);
        is_tracked && is_meant(descriptor.pid)
    })
}

/// Fails unless nothing is tracked any more.
fn check_let_go() -> Outcome {
    wait_until("nothing is tracked", || Ok(!tracked_by(|_| true)))
}

/// Fails unless the trace has the pages that the guest writes, and hardly any others.
fn check_trace(text: &str) -> Outcome {
    let mut lines = text.lines().filter(|line| !line.starts_with('#'));
    equal!(
        lines.next(),
        Some(format!("vmem-dirty-trace 1 {}", MEMORY as usize / PAGE_SIZE).as_str())
    );
    let mut counts = vec![0; MEMORY as usize / PAGE_SIZE];
    let mut intervals = 0;
    for line in lines {
        let mut words = line.split(' ');
        let micros: u64 = words.next().ok_or("an empty line")?.parse()?;
        ensure!(micros > 0, "{line}");
        intervals += 1;
        for range in words {
            let (first, count) = range.split_once('+').ok_or(format!("{range} is no range"))?;
            let first: usize = first.parse()?;
            counts[first..first + count.parse::<usize>()?]
                .iter_mut()
                .for_each(|times| *times += 1);
        }
    }
    ensure!(intervals >= 5, "{intervals} intervals only");
    let stores = FIRST / PAGE_SIZE..(FIRST + SEGMENTS * SEGMENT) / PAGE_SIZE;
    ensure!(
        counts[stores.clone()].iter().all(|times| *times > 0),
        "pages that the guest writes are missing: {:?}",
        &counts[stores.clone()]
    );
    let others = (0..counts.len()).filter(|page| !stores.contains(page) && counts[*page] > 0);
    let others: Vec<usize> = others.collect();
    ensure!(others.len() < 64, "{others:?} are written, too");
    Ok(())
}

/// Fails unless the command measures what this guest does.
fn check_measured(guest: &mut Guest) -> Outcome {
    let trace = guest.directory.join("trace");
    let record = ["--seconds", "2", "--record", &trace.to_string_lossy()];
    let output = guest.dirty_rate(&[&record[..], &["--json"]].concat())?.end()?;
    check_let_go()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{}{said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    schema::DIRTY_RATE.check(&said)?;
    check_trace(&fs::read_to_string(&trace)?)?;
    let number = |before: &str| -> Outcome<f64> {
        let (_, number) = said.split_once(before).ok_or(format!("no {before} in {said}"))?;
        let end = number
            .find(|c: char| !c.is_ascii_digit() && !".e-".contains(c))
            .unwrap_or(number.len());
        Ok(number[..end].parse()?)
    };
    ensure!(number("\"mean\":")?.total_cmp(&100.0).is_gt(), "{said}");
    let written = number("\"written_pages\":")?;
    ensure!((128.0..192.0).contains(&written), "{said}");
    // The guest writes in the first of 16 parts.
    let (_, histogram) = said.split_once("\"histogram\":[").ok_or(said.clone())?;
    let counts: Vec<u64> = histogram
        .split(']')
        .next()
        .unwrap_or_default()
        .split("\"written\":")
        .skip(1)
        .filter_map(|count| count.split('}').next()?.parse().ok())
        .collect();
    equal!(counts.len(), 16);
    ensure!(counts[0] >= 128 && counts[1..].iter().sum::<u64>() < 64, "{counts:?}");
    for limits in ["xen", "palacios"] {
        ensure!(said.contains(&format!("\"limits\":\"{limits}\"")), "{said}");
    }
    ensure!(said.contains("\"mode\":\"precopy\""), "{said}");
    // For people, and a second time: an existing trace is not overwritten.
    let again = guest.dirty_rate(&record)?.end()?;
    ensure!(!again.status.success(), "the trace was overwritten");
    let output = guest.dirty_rate(&["--seconds", "0.5", "--bandwidth", "100M"])?.end()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success() && said.contains("pages/s") && said.contains("a move over a link of 839 Mbit/s"),
        "{said}"
    );
    check_let_go()?;
    ensure!(guest.qemu.runs()?, "QEMU has ended");
    Ok(())
}

fn dirty_rate_of_a_guest_on_a_file_has_the_pages_that_it_writes() -> Outcome {
    let mut guest = Guest::on_file()?;
    guest.wait_for_stores(FILE)?;
    check_measured(&mut guest)
}

fn dirty_rate_of_a_guest_on_a_memfd_has_the_pages_that_it_writes() -> Outcome {
    let mut guest = Guest::new(&format!("memory-backend-memfd,id=ram,size={MEMORY},share=on"))?;
    guest.wait_for_stores("memory-backend-memfd")?;
    check_measured(&mut guest)
}

fn dirty_rate_of_a_guest_on_a_region_has_the_pages_that_it_writes() -> Outcome {
    let setting = Setting::create(RegionBuilder::new(MEMORY).name("guest0"))?;
    let stop = Arc::new(AtomicBool::new(false));
    let daemon = thread::spawn({
        let (region, stop) = (setting.region.clone(), stop.clone());
        move || serve_zeros(&region, &stop)
    });
    let node = "/dev/vmem/guest0";
    let checked =
        Guest::new(&format!("memory-backend-file,id=ram,size={MEMORY},mem-path={node},share=on")).and_then(|mut guest| {
            wait_for_stores(setting.region.staging())?;
            check_measured(&mut guest)
        });
    stop.store(true, Ordering::SeqCst);
    daemon.join().map_err(|_| "the daemon panicked")??;
    checked
}

fn dirty_rate_that_is_killed_leaves_memory_that_is_not_tracked() -> Outcome {
    let mut guest = Guest::on_file()?;
    guest.wait_for_stores(FILE)?;
    let mut running = guest.dirty_rate(&["--seconds", "1000"])?;
    running.wait_tracking()?;
    running.signal(Signal::KILL)?;
    drop(running);
    check_let_go()?;
    // Its mappings keep nothing of the module, and it can be tracked again.
    wait_until("nothing uses the module but QEMU's open file", || Ok(module_users()? <= 1))?;
    let memory = ProcessMemory::open(guest.qemu.pid(), FILE)?;
    let mut adopted = None;
    wait_until("it can be adopted", || {
        adopted = Adopted::new(&memory).ok();
        Ok(adopted.is_some())
    })?;
    let adopted = adopted.ok_or("not adopted")?;
    adopted.track_anew()?;
    adopted.untrack()?;
    ensure!(guest.qemu.runs()?, "QEMU has ended");
    Ok(())
}

fn dirty_rate_that_a_signal_ends_prints_what_it_has() -> Outcome {
    let mut guest = Guest::on_file()?;
    guest.wait_for_stores(FILE)?;
    for signal in [Signal::INT, Signal::TERM] {
        let mut running = guest.dirty_rate(&["--seconds", "1000"])?;
        running.wait_tracking()?;
        thread::sleep(std::time::Duration::from_millis(500));
        running.signal(signal)?;
        let output = running.end()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success() && said.contains("highest"),
            "{:?} {said}",
            output.status
        );
        ensure!(!said.contains("a move over"), "{said}");
        ensure!(
            String::from_utf8_lossy(&output.stderr).contains("a signal has ended the measurement"),
            "it does not say so"
        );
        check_let_go()?;
    }
    ensure!(guest.qemu.runs()?, "QEMU has ended");
    Ok(())
}

fn dirty_rate_ends_with_qemu() -> Outcome {
    let guest = Guest::on_file()?;
    guest.wait_for_stores(FILE)?;
    let mut running = guest.dirty_rate(&["--seconds", "1000"])?;
    running.wait_tracking()?;
    let pid = Pid::from_raw(guest.qemu.pid()).ok_or("no process")?;
    kill_process(pid, Signal::KILL)?;
    let output = running.end()?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success() && stderr.contains("QEMU has ended"), "{stderr}");
    check_let_go()
}

fn dirty_rate_of_tracked_memory_is_refused() -> Outcome {
    let guest = Guest::on_file()?;
    guest.wait_for_stores(FILE)?;
    let mut running = guest.dirty_rate(&["--seconds", "1000"])?;
    running.wait_tracking()?;
    let output = guest.dirty_rate(&[])?.end()?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.code() == Some(1) && stderr.contains("cannot track memory backend \"ram\"") && stderr.contains("already"),
        "{stderr}"
    );
    // The one that measures goes on.
    ensure!(running.child()?.try_wait()?.is_none(), "the first one has ended");
    drop(running);
    check_let_go()
}

fn dirty_rate_of_memory_that_is_not_shared_is_refused() -> Outcome {
    let guest = Guest::new(&format!("memory-backend-file,id=ram,size={MEMORY},mem-path={FILE},share=off"))?;
    guest.check_refused("which 0 are in files that a second process can map")?;
    drop(guest);
    let guest = Guest::new(&format!("memory-backend-ram,id=ram,size={MEMORY}"))?;
    guest.check_refused("share=on")
}

fn dirty_rate_of_a_file_that_was_replaced_is_refused() -> Outcome {
    let guest = Guest::on_file()?;
    guest.wait_for_stores(FILE)?;
    fs::remove_file(FILE)?;
    fs::write(FILE, vec![0; MEMORY as usize])?;
    guest.check_refused("what is there now is not the guest's memory")
}

fn dirty_rate_through_a_proxy_is_refused() -> Outcome {
    let guest = Guest::on_file()?;
    let front = guest.directory.join("proxy");
    let listener = UnixListener::bind(&front)?;
    let target = guest.qmp();
    let proxy = thread::spawn(move || -> io::Result<()> {
        let (near, far) = (listener.accept()?.0, UnixStream::connect(target)?);
        let (mut from, mut to) = (near.try_clone()?, far.try_clone()?);
        let forward = thread::spawn(move || {
            let copied = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Both);
            copied.map(drop)
        });
        let (mut from, mut to) = (far, near);
        let _ = io::copy(&mut from, &mut to);
        forward.join().unwrap_or(Ok(()))
    });
    let mut command = beside("vmemctl")?;
    let output = command.arg("dirty-rate").arg("--qmp").arg(&front).output()?;
    proxy.join().map_err(|_| "the proxy panicked")??;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.code() == Some(1)
            && stderr.contains("if a proxy listens at the socket")
            && stderr.contains("does not have"),
        "{stderr}"
    );
    check_let_go()
}

fn dirty_rate_without_the_module_says_what_to_do() -> Outcome {
    let guest = Guest::on_file()?;
    remove_module()?;
    let mut running = guest.dirty_rate(&[])?;
    let mut stderr = String::new();
    let stream = running.child()?.stderr.take().ok_or("no standard error")?;
    let mut stream = io::BufReader::new(stream);
    let read = stream.read_to_string(&mut stderr);
    let output = running.end()?;
    insert_module()?;
    read?;
    ensure!(
        output.status.code() == Some(1) && stderr.contains("is the module loaded? try: modprobe vmem"),
        "{stderr}"
    );
    Ok(())
}
