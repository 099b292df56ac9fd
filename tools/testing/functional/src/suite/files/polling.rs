// SPDX-License-Identifier: GPL-2.0-or-later
//! Programs that do not wait in a read, and are told when to read again.

use std::hint::spin_loop;
use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::event::{Timespec, epoll};
use rustix::fs::OFlags;
use vmem::PAGE_SIZE;

use super::{Mount, region};
use crate::failure::{Outcome, ensure};
use crate::setting::Setting;

crate::tests![edge_triggered_epoll_hears_of_each_page];

fn edge_triggered_epoll_hears_of_each_page() -> Outcome {
    const PAGES: usize = 20_000;
    const LONG: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };
    let (mount, setting) = (Mount::new("a")?, Setting::create(region("one", PAGES))?);
    let file = mount.open_with("one", OFlags::NONBLOCK)?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(
        &epoll,
        &file,
        epoll::EventData::new_u64(0),
        epoll::EventFlags::IN | epoll::EventFlags::ET,
    )?;
    // The page that is read. It comes while the read says that it is absent, a little before, or a little after.
    let read = AtomicUsize::new(0);
    thread::scope(|scope| -> Outcome {
        let filler = scope.spawn(|| -> Outcome {
            for page in 0..PAGES {
                while read.load(Ordering::Relaxed) < page {
                    spin_loop();
                }
                (0..page % 512).for_each(|_| spin_loop());
                setting.fill([page])?;
            }
            Ok(())
        });
        let mut waits = 0;
        let result = (0..PAGES).try_for_each(|page| {
            read.store(page, Ordering::Relaxed);
            loop {
                match file.read_at(&mut [0], (page * PAGE_SIZE) as u64) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => (),
                    read => return Ok(read.map(drop)?),
                }
                waits += 1;
                let mut events = [MaybeUninit::uninit(); 1];
                let (events, _) = epoll::wait(&epoll, &mut events, Some(&LONG))?;
                ensure!(!events.is_empty(), "nobody has said that page {page} has come");
            }
        });
        read.store(PAGES, Ordering::Relaxed);
        filler.join().map_err(|_| "a thread has panicked")??;
        ensure!(waits > PAGES / 100, "{waits} waits");
        result
    })
}
