// SPDX-License-Identifier: GPL-2.0-or-later
//! A child that reads, and perhaps is killed for it.

use std::io;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};
use vmem_functional_sys::{End, fork};

use crate::numbers::Numbers;

/// How a child has ended that reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    /// It has found nothing wrong, was killed, or could not be made.
    Right,
    /// It got SIGBUS.
    Bus,
}

/// Has a child read. Sometimes it is killed meanwhile.
pub(crate) fn in_a_child(numbers: &mut Numbers, read: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Reader> {
    let (parent, kill) = (getpid(), numbers.once_in(3));
    let child = fork(|| {
        // Else it waits for its page for good when its parent and all daemons are dead, and keeps what it has of a daemon from the next one. The
        // parent may have died before the signal was asked for.
        let looked = set_parent_process_death_signal(Some(Signal::KILL))
            .context("the death signal")
            .and_then(|()| {
                ensure!(getppid() == Some(parent), "the parent is gone");
                read()
            });
        looked.map_or_else(
            |error| {
                eprintln!("vmem-stress: a child that reads: {error:#}");
                1
            },
            |()| 0,
        )
    });
    let mut child = match child {
        Err(error) if matches!(error.kind(), io::ErrorKind::OutOfMemory | io::ErrorKind::WouldBlock) => return Ok(Reader::Right),
        other => other.context("fork")?,
    };
    if kill {
        sleep(Duration::from_micros(numbers.below(3000) as u64));
        child.kill(Signal::KILL.as_raw())?;
    }
    match child.wait()? {
        End::Exited(0) => Ok(Reader::Right),
        End::Killed(signal) if kill && signal == Signal::KILL.as_raw() => Ok(Reader::Right),
        End::Killed(signal) if signal == Signal::BUS.as_raw() => Ok(Reader::Bus),
        end => bail!("a child that reads ended with {end:?}"),
    }
}
