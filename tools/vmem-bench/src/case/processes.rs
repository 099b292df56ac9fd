// SPDX-License-Identifier: GPL-2.0-or-later
//! Case 6: several processes map the same memory, and all want each page.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use vmem_bench_sys::{Child, Memory, Mode, Userfault, fork};

use super::{Bench, Round};
use crate::contents::verify;
use crate::failure::{During, Failure, Outcome};
use crate::order::shuffled;
use crate::peer::{Daemon, Kind, MINOR, Peer, RegionPeer, SharedFile, VMEM};

/// Pages that every process touches.
const PAGES: u64 = 256;

pub(super) fn round(bench: &Bench, number: u64, round: &mut Round) -> Outcome {
    for processes in [2, 8] {
        let order = shuffled(PAGES, number);
        let what = format!("{processes} processes");
        if bench.wants(VMEM) {
            round.add(&*what, "us/page", VMEM, vmem(bench, &order, processes)?);
        }
        if bench.wants(MINOR) {
            round.add(&*what, "us/page", MINOR, userfaults(bench, &order, processes)?);
        }
    }
    Ok(())
}

/// One region, one daemon.
fn vmem(bench: &Bench, order: &[u64], processes: usize) -> Outcome<f64> {
    let peer = Arc::new(RegionPeer::new(PAGES + Daemon::THREADS)?);
    // Before the daemon's thread: who forks has no other.
    let programs = Programs::start(processes, Kind::Vmem, &peer.memory, order, |_| Ok(()))?;
    let peer: Arc<dyn Peer> = peer;
    let daemon = Daemon::start(Kind::Vmem, &peer, &bench.contents, PAGES, 1);
    let time = programs.run()?;
    daemon.stop()?;
    Ok(time)
}

/// One shmem file, and one userfaultfd for each process; one daemon, which gives a page that one process wants to all of them.
fn userfaults(bench: &Bench, order: &[u64], processes: usize) -> Outcome<f64> {
    let file = SharedFile::new(PAGES)?;
    let programs = Programs::start(processes, Kind::Minor, &file.memory, order, |say| {
        let faults = Userfault::new(&file.memory, Mode::Minor).during("userfaultfd, MINOR")?;
        let number = faults.as_fd().as_raw_fd();
        say.write_all(&number.to_le_bytes()).during("write to a socket")?;
        // The daemon takes it out of this process; it lives as long as one of the two has it.
        std::mem::forget(faults);
        Ok(())
    })?;
    let mut faults = Vec::new();
    for program in &programs.children {
        faults.push(adopt(program, &file.memory)?);
    }
    let (stopped, stop) = UnixStream::pair().during("socketpair")?;
    let contents = bench.contents.clone();
    let daemon = std::thread::spawn(move || {
        file.serve(&faults, &stopped, &contents).unwrap_or_else(|failure| {
            eprintln!("vmem-bench: the daemon failed: {:#}", anyhow::Error::from(failure));
            std::process::exit(1)
        })
    });
    let time = programs.run();
    drop(stop);
    // If it panicked, it has said so.
    let _ = daemon.join();
    time
}

/// Takes the userfaultfd of a program.
fn adopt(program: &Program, memory: &Memory) -> Outcome<Userfault> {
    let mut number = [0; size_of::<i32>()];
    (&program.heard).read_exact(&mut number).during("read from a socket")?;
    let pid = Pid::from_raw(program.child.id()).ok_or(Failure::Wrong("a child without a number".into()))?;
    let process = pidfd_open(pid, PidfdFlags::empty()).during("pidfd_open")?;
    let fd = pidfd_getfd(&process, i32::from_le_bytes(number), PidfdGetfdFlags::empty()).during("pidfd_getfd")?;
    Ok(Userfault::from_other(fd, memory))
}

/// A process that waits, and then touches pages.
struct Program {
    child: Child,
    /// What it says.
    heard: UnixStream,
}

struct Programs {
    children: Vec<Program>,
    /// A byte lets one of them go.
    start: UnixStream,
    pages: usize,
}

/// What a program says when it has touched all.
const DONE: u8 = 1;

impl Programs {
    /// Makes so many. `prepare` runs in each, with the socket to this process.
    fn start(
        number: usize,
        kind: Kind,
        memory: &Memory,
        order: &[u64],
        prepare: impl Fn(&mut UnixStream) -> Outcome,
    ) -> Outcome<Self> {
        let (gate, start) = UnixStream::pair().during("socketpair")?;
        let mut children = Vec::new();
        for _ in 0..number {
            let (heard, mut say) = UnixStream::pair().during("socketpair")?;
            let mut program = || -> Outcome {
                prepare(&mut say)?;
                (&gate).read_exact(&mut [0]).during("read from a socket")?;
                for page in order {
                    verify(kind.name(), *page, memory.read(*page as usize))?;
                }
                say.write_all(&[DONE]).during("write to a socket")
            };
            let child = fork(|| {
                program().map_or_else(
                    |failure| {
                        eprintln!("vmem-bench: a program failed: {:#}", anyhow::Error::from(failure));
                        1
                    },
                    |()| 0,
                )
            });
            children.push(Program {
                child: child.during("fork")?,
                heard,
            });
        }
        Ok(Self {
            children,
            start,
            pages: order.len(),
        })
    }

    /// Lets them go. Returns how long it took until all had all pages, in microseconds per page.
    fn run(mut self) -> Outcome<f64> {
        let since = Instant::now();
        let go = vec![0; self.children.len()];
        self.start.write_all(&go).during("write to a socket")?;
        for program in &self.children {
            (&program.heard).read_exact(&mut [0]).during("wait for a program")?;
        }
        let time = since.elapsed();
        for program in self.children {
            program.child.wait().during("waitpid")?;
        }
        Ok(time.as_secs_f64() * 1e6 / self.pages as f64)
    }
}
