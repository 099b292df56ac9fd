// SPDX-License-Identifier: GPL-2.0-or-later
//! vmemd as a process: its privileges, its exit codes, its memory, and what it frees.

use std::fs::{self, File};
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::thread;

use vmem::PAGE_SIZE;

use super::{Daemon, PAGES, SIZE, Scratch, Source, beside, check_page, map, open, wait_info};
use crate::failure::{Outcome, ensure, equal};
use crate::setting::{bytes_of, contents};
use crate::world::{field, nodes, wait_until};

crate::tests![
    a_daemon_has_no_privileges_once_the_control_device_is_open,
    a_source_that_cannot_make_holes_keeps_its_pages_and_says_so_once,
    each_failure_has_its_exit_code,
    the_daemon_s_memory_does_not_grow_with_the_region,
];

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
