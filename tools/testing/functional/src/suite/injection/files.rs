// SPDX-License-Identifier: GPL-2.0-or-later
//! Each step of the calls on the file system and on its files fails once: an error is clean, and no byte is wrong. Nothing in a punch of present pages can fail.

use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir, chmodat, statat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use vmem::PAGE_SIZE;
use vmem_functional_sys::{Area, AreaBuilder};

use super::{MEMORY, PAGES, errno, gone, named, sweep};
use crate::adopted::Adopted;
use crate::failure::{Outcome, ensure, equal};
use crate::server::Server;
use crate::setting::{Setting, bytes_of, check_page, contents};
use crate::suite::files::Mount;
use crate::tracked::Tracked;

crate::tests![
    mount_and_umount_fail_cleanly_at_every_step,
    look_up_readdir_and_chmod_fail_cleanly_at_every_step,
    opening_a_file_fails_cleanly_at_every_step,
    mapping_a_file_fails_cleanly_at_every_step,
    reads_of_a_file_are_right_whatever_fails,
    writes_to_a_file_are_whole_and_logged_whatever_fails,
];

const SWEPT: &str = "/mnt/swept";
/// Of a call that needs a page of the staging file.
const PAGE: [Errno; 3] = [Errno::NOMEM, Errno::FAULT, Errno::NOSPC];

/// What is mounted at [`SWEPT`], if something is; it is unmounted in the end.
struct Swept;

impl Drop for Swept {
    fn drop(&mut self) {
        let _ = unmount(SWEPT, UnmountFlags::empty());
    }
}

fn mount_swept() -> Result<(), Errno> {
    mount("vmem", SWEPT, "vmem", MountFlags::empty(), None)
}

/// A file of a region that a server fills if it is asked to.
struct Opened {
    // In the order in which they go.
    _server: Server,
    file: File,
    setting: Setting,
    _mount: Mount,
}

impl Opened {
    fn new(is_present: bool) -> Outcome<Self> {
        let (mount, setting) = (Mount::new("a")?, named()?);
        if is_present {
            setting.fill_all()?;
        }
        Ok(Self {
            _server: Server::start(&setting.region),
            file: mount.open("swept")?,
            setting,
            _mount: mount,
        })
    }

    /// What the region holds.
    fn bytes(&self) -> Outcome<Vec<u8>> {
        let mut bytes = vec![0; PAGES * PAGE_SIZE];
        self.file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }
}

fn expected() -> Vec<u8> {
    (0..PAGES as u64).flat_map(|pgoff| bytes_of(&contents(pgoff))).collect()
}

fn mount_and_umount_fail_cleanly_at_every_step() -> Outcome {
    fs::create_dir_all(SWEPT)?;
    // The first mount makes the super block; the second one has it already.
    for is_first in [true, false] {
        sweep(
            &format!("mount, first: {is_first}"),
            || {
                let other = (!is_first).then(|| Mount::new("a")).transpose()?;
                Ok((named()?, other, Swept))
            },
            &MEMORY,
            |_| mount_swept(),
            |(setting, other, swept)| {
                ensure!(Path::new("/mnt/swept/swept").exists());
                drop((setting, other, swept));
                gone()
            },
        )?;
    }
    sweep(
        "umount",
        || {
            mount_swept()?;
            Ok((named()?, Swept))
        },
        &MEMORY,
        |_| unmount(SWEPT, UnmountFlags::empty()),
        |(setting, swept)| {
            ensure!(!Path::new("/mnt/swept/swept").exists());
            drop((setting, swept));
            gone()
        },
    )
}

fn look_up_readdir_and_chmod_fail_cleanly_at_every_step() -> Outcome {
    const FILE: &str = "/mnt/a/swept";
    let prepare = || Ok((Mount::new("a")?, named()?));
    sweep(
        "stat",
        prepare,
        &MEMORY,
        |(_, setting)| {
            let found = statat(CWD, FILE, AtFlags::empty())?;
            let is_right = found.st_ino == setting.region.id() + 1 && found.st_size == (PAGES * PAGE_SIZE) as i64;
            if is_right { Ok(()) } else { Err(Errno::NODATA) }
        },
        |state| {
            drop(state);
            gone()
        },
    )?;
    sweep(
        "readdir",
        prepare,
        &MEMORY,
        |_| {
            let directory = rustix::fs::open("/mnt/a", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
            let mut room = [MaybeUninit::uninit(); 1024];
            let mut entries = RawDir::new(&directory, &mut room);
            let mut names = vec![];
            while let Some(entry) = entries.next() {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
            if names == [".", "..", "swept"] {
                Ok(())
            } else {
                Err(Errno::NODATA)
            }
        },
        |state| {
            drop(state);
            gone()
        },
    )?;
    sweep(
        "chmod",
        prepare,
        &MEMORY,
        |_| chmodat(CWD, FILE, Mode::from_raw_mode(0o640), AtFlags::empty()),
        |_| {
            equal!(statat(CWD, FILE, AtFlags::empty())?.st_mode & 0o7777, 0o640);
            Ok(())
        },
    )
}

fn opening_a_file_fails_cleanly_at_every_step() -> Outcome {
    sweep(
        "open of a file",
        || Ok((named()?, None, Mount::new("a")?)),
        &MEMORY,
        |(_, file, _)| {
            *file = Some(rustix::fs::open("/mnt/a/swept", OFlags::RDWR, Mode::empty())?);
            Ok(())
        },
        |(setting, file, mount)| {
            setting.fill([1])?;
            check_page(&AreaBuilder::default().map(file.ok_or("it was opened")?, 0, PAGES)?, 1, 1)?;
            drop((setting, mount));
            gone()
        },
    )
}

fn mapping_a_file_fails_cleanly_at_every_step() -> Outcome {
    sweep(
        "mmap of a file",
        || Ok((Opened::new(true)?, None)),
        &[Errno::NOMEM],
        |(opened, area): &mut (Opened, Option<Area>)| {
            // Also beyond the end.
            let mapped = AreaBuilder::default().map(&opened.file, 2, PAGES);
            *area = Some(mapped.map_err(|error| errno(&error))?);
            Ok(())
        },
        |(opened, area)| {
            equal!(opened.setting.region.info()?.mappings, 1);
            check_page(&area.ok_or("it was mapped")?, 3, 5)
        },
    )
}

fn reads_of_a_file_are_right_whatever_fails() -> Outcome {
    for is_present in [true, false] {
        sweep(
            &format!("pread, present: {is_present}"),
            || Ok((Opened::new(is_present)?, vec![0; 5 * PAGE_SIZE])),
            &MEMORY,
            // What is read before a failure is right, and the rest comes by the next call.
            |(opened, bytes)| opened.file.read_exact_at(bytes, 1000).map_err(|error| errno(&error)),
            |(opened, bytes)| {
                ensure!(bytes == expected()[1000..][..5 * PAGE_SIZE], "other bytes than the daemon's");
                ensure!(opened.bytes()? == expected());
                Ok(())
            },
        )?;
    }
    Ok(())
}

fn writes_to_a_file_are_whole_and_logged_whatever_fails() -> Outcome {
    const FIRST: usize = 3;
    const LEN: usize = 4 * PAGE_SIZE;
    const OFFSET: usize = FIRST * PAGE_SIZE + 100;
    let mut written = expected();
    written[OFFSET..][..LEN].fill(9);
    for is_present in [true, false] {
        sweep(
            &format!("pwrite, present: {is_present}"),
            || Opened::new(is_present),
            &PAGE,
            |opened| {
                opened
                    .file
                    .write_all_at(&[9; LEN], OFFSET as u64)
                    .map_err(|error| errno(&error))
            },
            |opened| {
                ensure!(opened.bytes()? == written, "other bytes than were written");
                Ok(())
            },
        )?;
    }
    sweep(
        "pwrite to a tracked file",
        || {
            let opened = Opened::new(true)?;
            let tracked = Tracked {
                file: opened.setting.region.staging().try_clone()?,
                area: AreaBuilder::default().map(&opened.file, 0, PAGES)?,
                log: Adopted::new(&opened.file)?,
            };
            tracked.log.track()?;
            tracked.settle()?;
            Ok((tracked, opened))
        },
        &PAGE,
        |(_, opened)| {
            opened
                .file
                .write_all_at(&[9; LEN], OFFSET as u64)
                .map_err(|error| errno(&error))
        },
        |(tracked, opened)| {
            let found = tracked.log.bitmap(0..PAGES, false)?.pages;
            ensure!((FIRST..=FIRST + 4).all(|page| found.contains(&page)), "the log has {found:?}");
            ensure!(opened.bytes()? == written, "other bytes than were written");
            Ok(())
        },
    )
}
