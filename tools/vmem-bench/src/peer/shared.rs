// SPDX-License-Identifier: GPL-2.0-or-later
//! A shmem file that several processes map, each with a userfaultfd of its own.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use vmem::PAGE_SIZE;
use vmem_bench_sys::{Errno, Memory, Userfault};

use super::{Claims, map, shmem_file};
use crate::contents::Contents;
use crate::failure::{During, Outcome};

/// The file, and a mapping of it, which forked processes have at the same address.
pub(crate) struct SharedFile {
    file: File,
    /// The mapping.
    pub(crate) memory: Memory,
    claims: Claims,
}

impl SharedFile {
    /// An empty file of so many pages.
    pub(crate) fn new(pages: u64) -> Outcome<Self> {
        let file = shmem_file(pages)?;
        let memory = map(&file, pages)?;
        Ok(Self {
            file,
            memory,
            claims: Claims::new(pages),
        })
    }

    /// Brings each page that a process wants to all processes at once, so that the others do not fault on it, until the other end of
    /// `stopped` is closed.
    pub(crate) fn serve(&self, faults: &[Userfault], stopped: &UnixStream, contents: &Contents) -> Outcome {
        for one in faults {
            rustix::fs::fcntl_setfl(one, OFlags::NONBLOCK).during("fcntl(F_SETFL)")?;
        }
        let mut polled: Vec<_> = faults.iter().map(|one| PollFd::new(one, PollFlags::IN)).collect();
        polled.push(PollFd::new(stopped, PollFlags::IN));
        let mut pages = Vec::new();
        loop {
            poll(&mut polled, None).during("poll")?;
            if polled.last().is_some_and(|stopped| !stopped.revents().is_empty()) {
                return Ok(());
            }
            for (one, _) in faults
                .iter()
                .zip(&polled)
                .filter(|(_, polled)| polled.revents().contains(PollFlags::IN))
            {
                match one.take(&mut pages) {
                    // Who asked has gone on since: a page was given to all.
                    Err(Errno::AGAIN) => continue,
                    taken => taken.during("read of a userfaultfd")?,
                }
                for page in &pages {
                    self.bring(*page, faults, contents)?;
                }
            }
        }
    }

    fn bring(&self, page: u64, faults: &[Userfault], contents: &Contents) -> Outcome {
        if !self.claims.claim(page) {
            return Ok(());
        }
        let written = self.file.write_all_at(contents.of(page, 1), page * PAGE_SIZE as u64);
        written.during("write to a memfd")?;
        faults
            .iter()
            .try_for_each(|one| one.resume(page, 1).during("UFFDIO_CONTINUE"))
    }
}
