// SPDX-License-Identifier: GPL-2.0-or-later
//! Each step of the calls of a snapshot fails once, and each step of a first write beside one: writers go on, no image is wrong, and no page
//! is lost to the log.

use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::io::Errno;
use rustix::process::Signal;
use vmem::PAGE_SIZE;
use vmem_functional_sys::AreaBuilder;
use vmem_sys::{VMEM_SNAPSHOT_CLEAN, VMEM_SNAPSHOT_ONCE, calls};

use super::{MEMORY, MOST, NO_COPY, errno, sweep, tell};
use crate::failure::{Outcome, ensure, equal};
use crate::image::Image;
use crate::injector::Injector;
use crate::program::Program;
use crate::setting::{bytes_of, check_words, contents};
use crate::tracked::Tracked;
use crate::watchdog::still_moving;

crate::tests![
    snapshot_fails_cleanly_at_every_step,
    stores_beside_a_snapshot_never_fail,
    calls_beside_a_snapshot_fail_cleanly_at_every_step,
    reading_a_snapshot_fails_cleanly_at_every_step,
    queries_of_a_snapshot_fail_cleanly_at_every_step,
    done_fails_cleanly_at_every_step,
    mapping_a_snapshot_fails_cleanly_at_every_step,
    touches_of_a_mapped_snapshot_survive_a_failure_at_every_step,
    closing_a_snapshot_puts_pages_back_whatever_fails,
];

const PAGES: usize = 200;
/// Pages that are in the log, in different words of it.
const LOGGED: [usize; 3] = [3, 64, 190];

/// Memory of which these pages are in the log.
fn memory() -> Outcome<Tracked> {
    let memory = Tracked::new(PAGES)?;
    memory.settle()?;
    for page in LOGGED {
        memory.area.poke(page * PAGE_SIZE + PAGE_SIZE / 2, 7);
    }
    Ok(memory)
}

/// The same with a snapshot, and what that has to have.
struct Taken {
    memory: Tracked,
    image: Image,
    before: Vec<u8>,
}

impl Taken {
    fn new(flags: u32) -> Outcome<Self> {
        let memory = memory()?;
        let before = memory.bytes()?;
        let image = Image::take(&memory.log, flags, 0)?;
        Ok(Self { memory, image, before })
    }

    /// One that has copies.
    fn with_copies(flags: u32) -> Outcome<Self> {
        let taken = Self::new(flags)?;
        for page in (0..PAGES).step_by(2) {
            taken.memory.area.write_page(page, &contents(500));
        }
        Ok(taken)
    }

    /// The image is what it has to be, or the snapshot has failed and says so. Then the next one can be taken.
    fn check(self) -> Outcome {
        match self.image.info()?.failed {
            0 => self.image.check(&self.before)?,
            _ => equal!(self.image.page(0).map_err(|error| errno(&error)), Err(Errno::STALE)),
        }
        let Self { memory, image, .. } = self;
        drop(image);
        let before = memory.bytes()?;
        let next = Image::take(&memory.log, 0, 0)?;
        memory.area.write_page(0, &contents(501));
        next.check(&before)
    }
}

fn snapshot_fails_cleanly_at_every_step() -> Outcome {
    for flags in [0, VMEM_SNAPSHOT_CLEAN] {
        sweep(
            &format!("snapshot, flags {flags}"),
            || Ok(([memory()?, memory()?], None)),
            // A shmem file for which there is no inode is ENOSPC.
            &[Errno::NOMEM, Errno::FAULT, Errno::NOSPC],
            |([one, other], images)| {
                *images = Some(Image::take_all([&one.log, &other.log], flags, 0)?);
                Ok(())
            },
            |(memories, images)| {
                for (memory, image) in memories.into_iter().zip(images.ok_or("it was taken")?) {
                    let log = image.log()?;
                    ensure!(LOGGED.iter().all(|page| log.contains(page)), "its log has {log:?}");
                    let before = memory.bytes()?;
                    memory.area.write_page(3, &contents(500));
                    Taken { memory, image, before }.check()?;
                }
                Ok(())
            },
        )?;
    }
    Ok(())
}

/// A first write copies what was there. If that fails, the snapshot does, and not who writes.
fn stores_beside_a_snapshot_never_fail() -> Outcome {
    let mut stale = 0;
    let injector = Injector::new()?;
    for nth in 1..MOST {
        still_moving();
        let taken = Taken::new(0)?;
        // In the page table, for reading: what fails is what a snapshot adds.
        check_words(&taken.memory.area.page(5), 5)?;
        injector.arm(nth)?;
        taken.memory.area.store(5 * PAGE_SIZE, 99);
        let failed = injector.disarm()?;
        equal!(taken.memory.area.load(5 * PAGE_SIZE), 99);
        stale += taken.image.info()?.failed;
        taken
            .check()
            .map_err(|failure| format!("store, step {nth}: {}", failure.text()))?;
        if !failed {
            println!("  store: {stale} times the snapshot failed");
            ensure!(stale > 0, "no copy has failed");
            return tell("store beside a snapshot", nth - 1);
        }
    }
    Err("a store has too many steps".into())
}

fn calls_beside_a_snapshot_fail_cleanly_at_every_step() -> Outcome {
    sweep(
        "pwrite beside a snapshot",
        || Taken::new(0),
        &[Errno::NOMEM, Errno::FAULT, Errno::NOSPC],
        |taken| {
            let bytes = [9; 3 * PAGE_SIZE];
            match rustix::io::pwrite(&taken.memory.file, &bytes, 7 * PAGE_SIZE as u64)? {
                // A part of it is no failure.
                0 => Err(Errno::NOSPC),
                _ => Ok(()),
            }
        },
        |taken| {
            equal!(taken.memory.area.peek(7 * PAGE_SIZE), 9);
            taken.check()
        },
    )
}

fn reading_a_snapshot_fails_cleanly_at_every_step() -> Outcome {
    for flags in [0, VMEM_SNAPSHOT_ONCE] {
        sweep(
            &format!("read of a snapshot, flags {flags}"),
            || Ok((Taken::with_copies(flags)?, Vec::new())),
            &MEMORY,
            |(taken, bytes)| {
                // It goes on where it has stopped.
                while bytes.len() < 4 * PAGE_SIZE {
                    let mut part = vec![0; 4 * PAGE_SIZE - bytes.len()];
                    let at = bytes.len() as u64;
                    let len = taken.image.file().read_at(&mut part, at).map_err(|error| errno(&error))?;
                    if len == 0 {
                        return Err(Errno::NODATA);
                    }
                    bytes.extend_from_slice(&part[..len]);
                }
                Ok(())
            },
            |(taken, bytes)| {
                ensure!(bytes == taken.before[..4 * PAGE_SIZE], "what was read is not the image");
                match flags {
                    0 => taken.check(),
                    _ => Ok(()),
                }
            },
        )?;
    }
    Ok(())
}

fn queries_of_a_snapshot_fail_cleanly_at_every_step() -> Outcome {
    sweep(
        "get_snapshot",
        || Taken::with_copies(0),
        &MEMORY,
        |taken| {
            let info = taken.image.info()?;
            if info.copied == PAGES as u64 / 2 && info.failed == 0 {
                Ok(())
            } else {
                Err(Errno::NODATA)
            }
        },
        Taken::check,
    )?;
    sweep(
        "dirty, of a snapshot",
        || Taken::with_copies(VMEM_SNAPSHOT_CLEAN),
        &MEMORY,
        |taken| {
            let mut bitmap = [0; PAGES.div_ceil(64)];
            let logged = calls::dirty_bitmap(taken.image.as_fd(), 0, PAGES as u64, false, &mut bitmap);
            logged.error.map_or(Ok(()), Err)
        },
        |taken| {
            equal!(taken.image.log()?, LOGGED);
            taken.check()
        },
    )
}

fn done_fails_cleanly_at_every_step() -> Outcome {
    sweep(
        "done",
        || Taken::with_copies(VMEM_SNAPSHOT_CLEAN),
        &MEMORY,
        |taken| taken.image.done(0, 100),
        |taken| {
            equal!(taken.image.info()?.done, 100);
            equal!(taken.image.log()?, [190]);
            equal!(taken.image.page(0).map_err(|error| errno(&error)), Err(Errno::NODATA));
            equal!(taken.image.page(100)?, bytes_of(&contents(100)));
            drop(taken.image);
            let log = taken.memory.log.bitmap(0..PAGES, false)?.pages;
            ensure!(log.contains(&190), "the log has {log:?}");
            Ok(())
        },
    )
}

fn mapping_a_snapshot_fails_cleanly_at_every_step() -> Outcome {
    sweep(
        "mmap of a snapshot",
        || Ok((Taken::with_copies(0)?, None)),
        &NO_COPY,
        |(taken, map)| {
            let builder = AreaBuilder::default().read_only();
            *map = Some(builder.map(taken.image.file(), 0, PAGES).map_err(|error| errno(&error))?);
            Ok(())
        },
        |(taken, map)| {
            let map = map.ok_or("it was mapped")?;
            check_words(&map.page(10), 10)?;
            check_words(&map.page(11), 11)?;
            drop(map);
            taken.check()
        },
    )
}

/// Who touches a page that cannot be had gets SIGBUS.
fn touches_of_a_mapped_snapshot_survive_a_failure_at_every_step() -> Outcome {
    let mut killed = 0;
    for nth in 1..MOST {
        still_moving();
        let taken = Taken::with_copies(0)?;
        let program = Program::start(|| {
            let map = taken.image.map(AreaBuilder::default().read_only())?;
            let injector = Injector::new()?;
            injector.arm(nth)?;
            // One that has been copied, and one that is copied by the touch.
            let words = [10, 11].map(|page| map.load(page * PAGE_SIZE));
            let failed = injector.disarm()?;
            equal!(words, [contents(10)[0], contents(11)[0]]);
            check_words(&map.page(11), 11)?;
            Ok(vec![failed.into()])
        })?;
        let told = program.join_unless_killed(Signal::BUS)?;
        killed += u32::from(told.is_none());
        taken
            .check()
            .map_err(|failure| format!("touch, step {nth}: {}", failure.text()))?;
        if told.is_some_and(|told| told == [0]) {
            println!("  touch: {killed} times SIGBUS");
            return tell("touch of a mapped snapshot", nth - 1);
        }
    }
    Err("a touch has too many steps".into())
}

/// `close()` may have nothing in it that can fail, so that none is asked for.
fn closing_a_snapshot_puts_pages_back_whatever_fails() -> Outcome {
    let injector = Injector::new()?;
    for nth in 1..MOST {
        still_moving();
        let Taken { memory, image, .. } = Taken::with_copies(VMEM_SNAPSHOT_CLEAN)?;
        let map = image.map(AreaBuilder::default().read_only())?;
        check_words(&map.page(9), 9)?;
        injector.arm(nth)?;
        drop(image);
        drop(map);
        let failed = injector.disarm()?;
        let log = memory.log.bitmap(0..PAGES, true)?.pages;
        ensure!(LOGGED.iter().all(|page| log.contains(page)), "the log has {log:?}");
        Image::take(&memory.log, 0, 0)?;
        if !failed {
            return Ok(());
        }
    }
    Err("close has too many steps".into())
}
