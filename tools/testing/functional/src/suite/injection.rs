// SPDX-License-Identifier: GPL-2.0-or-later
//! Every allocation fails once, and every copy from and to user memory: each step of each call is tried without what it wants.
//!
//! A call is made again and again; the first time the first thing in it that can fail does, then the second, until one more would be
//! more than there are. Each time it must fail with an errno that the header names, or succeed; and when it is made once more with
//! nothing failing it must succeed and find everything as it should be. That nothing leaks is seen by the module's use count after
//! each test, and by kmemleak at the end of the run.

pub(crate) mod files;
pub(crate) mod huge;
pub(crate) mod region;
pub(crate) mod snapshot;
pub(crate) mod touch;
pub(crate) mod track;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use vmem::{Control, PAGE_SIZE, RegionBuilder};
use vmem_functional_sys::{AreaBuilder, close_descriptors};
use vmem_sys::calls::{self, FillRange};
use vmem_sys::{VMEM_ID_KEEP, VMEM_MARK_UNREADABLE, VMEM_MARK_ZERO, vmem_attach, vmem_create, vmem_range};

use crate::failure::{Outcome, ensure, equal, errno_of};
use crate::injector::Injector;
use crate::program::Program;
use crate::server::Server;
use crate::setting::{Board, Setting, bytes_of, check_page, contents};
use crate::watchdog::still_moving;
use crate::world::{module_users, nodes, wait_until};

crate::tests![
    create_fails_cleanly_at_every_step,
    attach_fails_cleanly_at_every_step,
    opening_a_node_fails_cleanly_at_every_step,
    get_map_fd_fails_cleanly_at_every_step,
    mapping_fails_cleanly_at_every_step,
    get_page_request_loses_no_request_at_any_step,
    fill_fails_cleanly_at_every_step,
    mark_fails_cleanly_at_every_step,
    make_pages_present_fails_cleanly_at_every_step,
    queries_fail_cleanly_at_every_step,
    conversion_fails_cleanly_at_every_step,
    close_succeeds_whatever_fails,
];

/// No call has more steps than this.
const MOST: u32 = 2000;
const PAGES: usize = 16;

/// Says how many failures there were, and fails if there was none: a sweep that makes nothing fail proves nothing.
fn tell(what: &str, failures: u32) -> Outcome {
    println!("  {what}: {failures} failures");
    ensure!(failures > 0, "nothing in {what} can fail");
    Ok(())
}

/// Calls `act` on what `prepare` makes, with each step of it failing once. An error must be one of `allowed`; after one, `act` without a
/// failure must succeed; and in the end `verify` must hold.
fn sweep<S>(
    what: &str,
    prepare: impl Fn() -> Outcome<S>,
    allowed: &[Errno],
    mut act: impl FnMut(&mut S) -> Result<(), Errno>,
    verify: impl Fn(S) -> Outcome,
) -> Outcome {
    let injector = Injector::new()?;
    for nth in 1..MOST {
        still_moving();
        let mut state = prepare()?;
        injector.arm(nth)?;
        let result = act(&mut state);
        let failed = injector.disarm()?;
        if let Err(errno) = result {
            ensure!(failed, "{what}: {errno} without a failure");
            ensure!(allowed.contains(&errno), "{what}: {errno} when step {nth} fails");
            act(&mut state).map_err(|errno| format!("{what}: {errno} after step {nth} had failed"))?;
        }
        verify(state).map_err(|failure| format!("{what}, step {nth}: {}", failure.text()))?;
        if !failed {
            return tell(what, nth - 1);
        }
    }
    Err(format!("{what} has more than {MOST} steps").into())
}

/// The errno of an error of the standard library or of the mapping crate.
fn errno(error: &(dyn std::error::Error + 'static)) -> Errno {
    errno_of(error).unwrap_or(Errno::NOTSUP)
}

/// What a call on ranges returned.
fn result(outcome: calls::Outcome) -> Result<(), Errno> {
    outcome.error.map_or(Ok(()), Err)
}

/// Of a call that copies from or to user memory, be it only its argument or a path.
const MEMORY: [Errno; 2] = [Errno::NOMEM, Errno::FAULT];
/// Of one that does not.
const NO_COPY: [Errno; 1] = [Errno::NOMEM];
const ALL: vmem_range = vmem_range {
    pgoff: 0,
    nr_pages: PAGES as u64,
};

fn absent() -> Outcome<Setting> {
    Setting::new(PAGES)
}

fn present() -> Outcome<Setting> {
    let setting = absent()?;
    setting.fill_all()?;
    Ok(setting)
}

/// A region with a node.
fn named() -> Outcome<Setting> {
    Setting::create(RegionBuilder::new((PAGES * PAGE_SIZE) as u64).name("swept"))
}

/// Waits until nothing is left of a region and its node.
fn gone() -> Outcome {
    wait_until("nothing uses the module", || Ok(module_users()? == 0))?;
    equal!(nodes()?, Vec::<String>::new());
    Ok(())
}

/// Fills what is still absent, and finds all pages right.
fn all_right(setting: &Setting) -> Outcome {
    let server = Server::start(&setting.region);
    setting.checker(0..PAGES)?.join()?;
    server.stop().map(drop)
}

fn create_fails_cleanly_at_every_step() -> Outcome {
    for name in [None, Some("swept")] {
        sweep(
            &format!("create, name {name:?}"),
            || Ok((Control::open()?, None)),
            // A shmem file for which there is no inode is ENOSPC.
            &[Errno::NOMEM, Errno::FAULT, Errno::NOSPC],
            |(control, served)| {
                let mut create = vmem_create {
                    size: (PAGES * PAGE_SIZE) as u64,
                    uid: VMEM_ID_KEEP,
                    gid: VMEM_ID_KEEP,
                    ..Default::default()
                };
                for (to, from) in create.name.iter_mut().zip(name.unwrap_or_default().bytes()) {
                    *to = from as std::ffi::c_char;
                }
                *served = Some(calls::create_vmem(control.as_fd(), create)?);
                Ok(())
            },
            |(control, served)| {
                equal!(nodes()?, name.into_iter().map(str::to_owned).collect::<Vec<_>>());
                drop((control, served));
                gone()
            },
        )?;
    }
    Ok(())
}

fn attach_fails_cleanly_at_every_step() -> Outcome {
    sweep(
        "attach",
        || {
            let Setting { region, map } = absent()?;
            let id = region.id();
            drop(region);
            Ok((Control::open()?, map, id, None))
        },
        &MEMORY,
        |(control, _, id, served)| {
            let attach = vmem_attach {
                id: *id,
                ..Default::default()
            };
            *served = Some(calls::attach(control.as_fd(), attach)?);
            Ok(())
        },
        |(control, map, id, served)| {
            ensure!(map.info()?.attached);
            drop(served);
            // Nothing that has failed keeps the next one away.
            control.attach_id(id)?;
            Ok(())
        },
    )
}

fn opening_a_node_fails_cleanly_at_every_step() -> Outcome {
    sweep(
        "open",
        || Ok((named()?, None)),
        &MEMORY,
        |(_, node)| {
            *node = Some(rustix::fs::open("/dev/vmem/swept", OFlags::RDWR, Mode::empty())?);
            Ok(())
        },
        |(setting, node)| {
            let node = node.ok_or("it was opened")?;
            setting.fill([1])?;
            check_page(&AreaBuilder::default().map(&node, 0, PAGES)?, 1, 1)
        },
    )
}

fn get_map_fd_fails_cleanly_at_every_step() -> Outcome {
    sweep(
        "get_map_fd",
        || Ok((present()?, None)),
        &MEMORY,
        |(setting, given)| {
            *given = Some(calls::get_map_fd(setting.map.as_fd())?);
            Ok(())
        },
        |(_, given)| check_page(&AreaBuilder::default().map(given.ok_or("it was given")?, 0, PAGES)?, 2, 2),
    )
}

fn mapping_fails_cleanly_at_every_step() -> Outcome {
    for (what, builder) in [
        ("mmap", AreaBuilder::default()),
        ("mmap, private", AreaBuilder::default().private()),
        ("mmap, populated", AreaBuilder::default().populate()),
    ] {
        sweep(
            what,
            || Ok((present()?, None)),
            &NO_COPY,
            |(setting, area)| {
                *area = Some(builder.map(&setting.map, 0, PAGES).map_err(|error| errno(&error))?);
                Ok(())
            },
            |(setting, area)| {
                equal!(setting.region.info()?.mappings, 1);
                check_page(&area.ok_or("it was mapped")?, 3, 3)
            },
        )?;
    }
    Ok(())
}

fn get_page_request_loses_no_request_at_any_step() -> Outcome {
    sweep(
        "get_page_request",
        || {
            let setting = absent()?;
            let readers = [setting.reader(3)?, setting.reader(11)?];
            setting.wait_waiters(2)?;
            Ok((setting, readers, vec![]))
        },
        &MEMORY,
        |(setting, _, taken)| {
            let mut pgoffs = [0; 8];
            let nr = calls::get_page_request(setting.region.as_fd(), &mut pgoffs)?;
            *taken = pgoffs[..nr].to_vec();
            Ok(())
        },
        |(setting, readers, mut taken)| {
            taken.sort_unstable();
            equal!(taken, [3, 11]);
            setting.fill([3, 11])?;
            for reader in readers {
                reader.join()?;
            }
            Ok(())
        },
    )
}

fn fill_fails_cleanly_at_every_step() -> Outcome {
    let bytes: Vec<u8> = (0..PAGES as u64).flat_map(|pgoff| bytes_of(&contents(pgoff))).collect();
    let (front, back) = bytes.split_at(PAGES / 2 * PAGE_SIZE);
    let fills = [FillRange::new(0, front), FillRange::new(PAGES as u64 / 2, back)];
    let [Some(front), Some(back)] = fills else {
        return Err("these are whole pages".into());
    };
    sweep(
        "fill",
        || {
            let setting = absent()?;
            let reader = setting.reader(5)?;
            setting.wait_waiters(1)?;
            Ok((setting, reader))
        },
        &[Errno::NOMEM, Errno::FAULT, Errno::NOSPC],
        |(setting, _)| result(calls::fill_pages(setting.region.as_fd(), &[front, back])),
        |(setting, reader)| {
            equal!(setting.region.info()?.present, PAGES as u64);
            reader.join()?;
            setting.checker(0..PAGES)?.join().map(drop)
        },
    )
}

fn mark_fails_cleanly_at_every_step() -> Outcome {
    for flags in [0, VMEM_MARK_ZERO, VMEM_MARK_UNREADABLE] {
        sweep(
            &format!("mark, flags {flags}"),
            absent,
            &MEMORY,
            |setting| result(calls::mark_page_cached(setting.region.as_fd(), &[ALL], flags)),
            |setting| {
                let info = setting.region.info()?;
                let unreadable = if flags == VMEM_MARK_UNREADABLE { PAGES as u64 } else { 0 };
                equal!((info.present, info.unreadable), (PAGES as u64 - unreadable, unreadable));
                Ok(())
            },
        )?;
    }
    Ok(())
}

/// Another program with a mapping of a region and nothing else of it. It looks at these pages when it is told to.
struct Neighbour {
    program: Program,
    board: Board,
}

impl Neighbour {
    fn new(setting: &Setting, page: usize) -> Outcome<Self> {
        let board = Board::new()?;
        let program = Program::start(|| {
            let area = setting.area()?;
            close_descriptors(|target| target.contains("[vmem") || target.starts_with("/dev/vmem/"))?;
            board.set(1, 1)?;
            board.wait(0, 1)?;
            check_page(&area, page, page)?;
            Ok(vec![])
        })?;
        board.wait(1, 1)?;
        Ok(Self { program, board })
    }

    /// Its page must be right.
    fn look(self) -> Outcome {
        self.board.set(0, 1)?;
        self.program.join().map(drop)
    }
}

fn make_pages_present_fails_cleanly_at_every_step() -> Outcome {
    sweep(
        "make_pages_present",
        || {
            let setting = present()?;
            let areas = [setting.area()?, setting.area_as(AreaBuilder::default().private())?];
            let neighbour = Neighbour::new(&setting, 9)?;
            Ok((setting, areas, neighbour))
        },
        &MEMORY,
        |(setting, _, _)| result(calls::make_pages_present(setting.region.as_fd(), &[ALL])),
        |(_, areas, neighbour)| {
            (0..PAGES).try_for_each(|page| areas.iter().try_for_each(|area| check_page(area, page, page)))?;
            neighbour.look()
        },
    )
}

fn queries_fail_cleanly_at_every_step() -> Outcome {
    type Query = fn(BorrowedFd<'_>) -> Result<(), Errno>;
    let queries: [(&str, Query); 4] = [
        ("get_features", |fd| calls::get_features(fd).map(drop)),
        ("get_info", |fd| calls::get_info(fd).map(drop)),
        ("get_present", |fd| {
            calls::get_present(fd, 0, PAGES as u64, &mut [0]).map(drop)
        }),
        ("ready", calls::ready),
    ];
    for (what, query) in queries {
        let act = |setting: &mut Setting| query(setting.region.as_fd());
        if what == "ready" {
            // Nothing in it can fail.
            act(&mut absent()?)?;
        } else {
            sweep(what, present, &MEMORY, act, |setting| all_right(&setting))?;
        }
    }
    let fdinfo = |setting: &mut Setting| {
        let path = format!("/proc/self/fdinfo/{}", setting.map.as_fd().as_raw_fd());
        let text = std::fs::read_to_string(path).map_err(|error| errno(&error))?;
        if text.contains("vmem-present") {
            Ok(())
        } else {
            Err(Errno::NODATA)
        }
    };
    sweep("fdinfo", present, &MEMORY, fdinfo, |setting| all_right(&setting))
}

fn conversion_fails_cleanly_at_every_step() -> Outcome {
    sweep(
        "make_vma_anonymous",
        || {
            let setting = present()?;
            let areas = [setting.area()?, setting.area_as(AreaBuilder::default().private())?];
            let neighbour = Neighbour::new(&setting, 9)?;
            Ok((setting, areas, neighbour))
        },
        &NO_COPY,
        |(setting, _, _)| calls::make_vma_anonymous(setting.region.as_fd()),
        |(setting, areas, neighbour)| {
            equal!(setting.region.info()?.mappings, 0);
            drop(setting);
            wait_until("nothing uses the module", || Ok(module_users()? == 0))?;
            areas.iter().try_for_each(|area| check_page(area, 4, 4))?;
            neighbour.look()
        },
    )
}

fn close_succeeds_whatever_fails() -> Outcome {
    for order in ["region first", "mapping first"] {
        sweep(
            &format!("close, {order}"),
            || {
                let setting = named()?;
                setting.fill_all()?;
                let area = setting.area()?;
                Ok((Some(setting), Some(area)))
            },
            &[],
            |(setting, area)| {
                if order == "region first" {
                    drop(setting.take());
                }
                drop(area.take());
                drop(setting.take());
                Ok(())
            },
            |_| gone(),
        )?;
    }
    Ok(())
}
